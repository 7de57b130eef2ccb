//! Requests, and what answers must say.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use base64ct::{Base64, Encoding};
use ureq::http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName, IF_RANGE,
    LAST_MODIFIED, RANGE, TRANSFER_ENCODING,
};
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body, ResponseExt};

use super::tls;
use super::url::Url;
use crate::error::{Error, Result};

/// How often a request is repeated that had no answer, or whose answer was cut off, without a byte in between.
const RETRIES: u32 = 5;
/// The first pause before a request is repeated; each one after it is twice as long.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a server may be silent.
const SILENCE: Duration = Duration::from_secs(30);
const REDIRECTS: u32 = 8;
/// How soon a pause ends when the caller cancels.
const PATIENCE: Duration = Duration::from_millis(50);

/// The connections to a server.
pub(super) struct Client {
    agent: Agent,
    url: Url,
    authorization: Option<String>,
    cancel: Option<Arc<AtomicBool>>,
}

/// What identifies the content of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// Length in bytes.
    pub size: u64,
    etag: Option<String>,
    last_modified: Option<String>,
}

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may succeed if it is repeated.
    Transient(io::Error),
    Final(io::Error),
}

/// The answer to the first request.
pub(super) enum First {
    /// The start of the file.
    Part(Version, Box<dyn io::Read + Send>),
    /// All of it.
    Whole { size: Option<u64>, body: Box<dyn io::Read + Send> },
}

impl Client {
    pub fn new(url: Url, cancel: Option<Arc<AtomicBool>>) -> Result<Client> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(REDIRECTS)
            .https_only(url.is_https)
            .user_agent(concat!("diskimage/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE));
        let config = tls::add(config, url.is_https)?;
        let authorization = url.user.as_deref().map(|user| {
            let user = if user.contains(':') { user.to_owned() } else { format!("{user}:") };
            format!("Basic {}", Base64::encode_string(&decoded(&user)))
        });
        Ok(Client { agent: config.build().into(), url, authorization, cancel })
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }

    /// Asks for the first `len` bytes.
    pub fn first(&self, len: u64) -> Result<First, Failure> {
        let response = self.get(&(0..len), None)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let (range, size) = content_range(&response)?;
                let version = Version::of(&response, size);
                if range != (0..len.min(size)) {
                    return Err(lie(format!("bytes {} to {} of {size}", range.start, range.end)));
                }
                check_length(&response, range.end)?;
                Ok(First::Part(version, Box::new(response.into_body().into_reader())))
            }
            StatusCode::OK => {
                let size = length(&response);
                if size.is_none() && !response.headers().contains_key(TRANSFER_ENCODING) {
                    return Err(fault("the server does not state the length of the file".into()));
                }
                Ok(First::Whole { size, body: Box::new(response.into_body().into_reader()) })
            }
            // Of an empty file there is no first byte.
            StatusCode::RANGE_NOT_SATISFIABLE if text(&response, CONTENT_RANGE).as_deref() == Some("bytes */0") => {
                Ok(First::Part(Version::of(&response, 0), Box::new(io::empty())))
            }
            status => Err(refused(status)),
        }
    }

    /// Asks for a range, which is not empty and within the file.
    pub fn range(&self, range: &Range<u64>, version: &Version) -> Result<Box<dyn io::Read + Send>, Failure> {
        let response = self.get(range, version.validator())?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            // What `If-Range` asks for if the file is another one.
            StatusCode::OK | StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PRECONDITION_FAILED => {
                return Err(changed());
            }
            status => return Err(refused(status)),
        }
        let (answered, size) = content_range(&response)?;
        if !version.allows(&Version::of(&response, size)) {
            return Err(changed());
        }
        if answered != *range {
            return Err(lie(format!("bytes {} to {}", answered.start, answered.end)));
        }
        check_length(&response, range.end - range.start)?;
        Ok(Box::new(response.into_body().into_reader()))
    }

    fn get(&self, range: &Range<u64>, if_range: Option<&str>) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(&self.url.address).header(ACCEPT_ENCODING, "identity");
        request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        if let Some(validator) = if_range {
            request = request.header(IF_RANGE, validator);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = request.call().map_err(failure)?;
        match response.get_uri().scheme_str() {
            Some("https") => {}
            Some("http") if !self.url.is_https => {}
            _ => return Err(fault("the server redirects to an address that is not https, or http".into())),
        }
        match text(&response, CONTENT_ENCODING) {
            Some(encoding) if !encoding.eq_ignore_ascii_case("identity") => {
                Err(fault(format!("the server compresses the file ({encoding:?})")))
            }
            _ => Ok(response),
        }
    }

    /// Repeats `request` while its failure is transient, with growing pauses.
    pub fn retry<T>(&self, mut request: impl FnMut() -> Result<T, Failure>) -> io::Result<T> {
        let mut attempts = Attempts::default();
        loop {
            match request() {
                Ok(answer) => return Ok(answer),
                Err(failure) => attempts.next(self, failure)?,
            }
        }
    }
}

/// The failures since the last progress.
#[derive(Default)]
pub(super) struct Attempts(u32);

impl Attempts {
    /// Waits before the request is repeated.
    ///
    /// # Errors
    /// The failure, if it is final or one too many, and [`Error::Cancelled`].
    pub fn next(&mut self, client: &Client, failure: Failure) -> io::Result<()> {
        match failure {
            Failure::Transient(_) if self.0 < RETRIES => {}
            Failure::Transient(error) | Failure::Final(error) => return Err(error),
        }
        let mut left = PAUSE * 2_u32.pow(self.0);
        self.0 += 1;
        while !left.is_zero() {
            if client.is_cancelled() {
                return Err(Error::Cancelled.into());
            }
            let nap = left.min(PATIENCE);
            thread::sleep(nap);
            left -= nap;
        }
        Ok(())
    }
}

impl Version {
    fn of(response: &Response<Body>, size: u64) -> Version {
        Version { size, etag: text(response, ETAG), last_modified: text(response, LAST_MODIFIED) }
    }

    /// The value of `If-Range`: a weak ETag is not allowed there (RFC 9110, 13.1.5).
    fn validator(&self) -> Option<&str> {
        let strong = self.etag.as_deref().filter(|etag| !etag.starts_with("W/"));
        strong.or(self.last_modified.as_deref())
    }

    /// Whether an answer is of this version. It may leave out validators.
    fn allows(&self, other: &Version) -> bool {
        let same =
            |ours: &Option<String>, theirs: &Option<String>| theirs.is_none() || ours.is_none() || ours == theirs;
        self.size == other.size && same(&self.etag, &other.etag) && same(&self.last_modified, &other.last_modified)
    }
}

/// The range and the size of the file that an answer states: `bytes 0-99/1000`.
fn content_range(response: &Response<Body>) -> Result<(Range<u64>, u64), Failure> {
    let header = text(response, CONTENT_RANGE).unwrap_or_default();
    let number = |text: &str| text.parse::<u64>().ok().filter(|number| *number < u64::MAX);
    let parse = || {
        let (range, size) = header.strip_prefix("bytes ")?.split_once('/')?;
        let ((first, last), size) = (range.split_once('-')?, number(size)?);
        let range = number(first)?..number(last)? + 1;
        (range.start < range.end && range.end <= size).then_some((range, size))
    };
    parse().ok_or_else(|| lie(format!("{header:?}")))
}

fn check_length(response: &Response<Body>, expected: u64) -> Result<(), Failure> {
    match length(response) {
        Some(other) if other != expected => Err(lie(format!("{other} bytes in place of {expected}"))),
        _ => Ok(()),
    }
}

fn length(response: &Response<Body>) -> Option<u64> {
    text(response, CONTENT_LENGTH)?.parse().ok()
}

fn text(response: &Response<Body>, name: HeaderName) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

fn fault(problem: String) -> Failure {
    Failure::Final(io::Error::other(problem))
}

/// The failure of an answer that is not what was asked for.
fn lie(answer: String) -> Failure {
    fault(format!("the server answers with another range: {answer}"))
}

fn changed() -> Failure {
    fault("the file on the server has changed".into())
}

fn refused(status: StatusCode) -> Failure {
    let error = |kind| io::Error::new(kind, format!("the server answers {status}"));
    match status.as_u16() {
        // Too early, too many requests, and failures of the server or of a gateway that can pass.
        408 | 425 | 429 | 500 | 502..=504 => Failure::Transient(error(io::ErrorKind::Other)),
        401 | 403 | 407 => Failure::Final(error(io::ErrorKind::PermissionDenied)),
        404 | 410 => Failure::Final(error(io::ErrorKind::NotFound)),
        _ => Failure::Final(error(io::ErrorKind::Other)),
    }
}

/// The texts of some errors of the crate contain the URL.
fn failure(error: ureq::Error) -> Failure {
    match error {
        ureq::Error::Io(error) => Failure::Transient(error),
        ureq::Error::Timeout(_) => Failure::Transient(io::ErrorKind::TimedOut.into()),
        ureq::Error::ConnectionFailed => Failure::Transient(io::ErrorKind::NotConnected.into()),
        ureq::Error::Protocol(error) => Failure::Transient(io::Error::other(error.to_string())),
        ureq::Error::HostNotFound => fault("the host is not known".into()),
        ureq::Error::TooManyRedirects => fault(format!("the server redirects more than {REDIRECTS} times")),
        ureq::Error::BadUri(_) => fault("the URL is invalid, or the server redirects to an invalid one".into()),
        ureq::Error::RequireHttpsOnly(_) => fault("the server redirects from https to http".into()),
        error => fault(error.to_string()),
    }
}

/// The bytes of percent-encoded text.
fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let escape = (*byte == b'%').then(|| after.get(..2)).flatten();
        let value = escape.and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(value.unwrap_or(*byte));
        rest = if value.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding_is_undone() {
        assert_eq!(decoded("me:p%40%73s%2"), b"me:p@ss%2");
        assert_eq!(decoded("%zz%"), b"%zz%");
    }

    #[test]
    fn only_a_strong_etag_is_a_validator() {
        let version = |etag: Option<&str>, date: Option<&str>| Version {
            size: 1,
            etag: etag.map(str::to_owned),
            last_modified: date.map(str::to_owned),
        };
        assert_eq!(version(Some("\"a\""), Some("date")).validator(), Some("\"a\""));
        assert_eq!(version(Some("W/\"a\""), Some("date")).validator(), Some("date"));
        assert_eq!(version(Some("W/\"a\""), None).validator(), None);
        let opened = version(Some("W/\"a\""), Some("date"));
        assert!(opened.allows(&version(None, None)) && opened.allows(&opened.clone()));
        assert!(!opened.allows(&version(Some("W/\"b\""), None)));
        assert!(!opened.allows(&version(None, Some("other"))));
        assert!(!opened.allows(&Version { size: 2, ..opened.clone() }));
    }
}
