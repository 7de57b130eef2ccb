//! URLs, of which messages show no secrets.

// WASI opens none.
#![cfg_attr(target_family = "wasm", allow(dead_code))]

use crate::error::{Error, Result};

/// An http or https URL.
pub(super) struct Url {
    /// Without user name and password.
    pub address: String,
    /// As in the URL: `user:password`, percent-encoded.
    pub user: Option<String>,
    pub is_https: bool,
}

/// Whether the text is an http or https URL, and not the name of a file.
///
/// ```
/// use diskimage::remote::is_url;
///
/// assert!(is_url("https://example.com/disk.qcow2"));
/// assert!(!is_url("./http:/disk.qcow2"));
/// ```
pub fn is_url(text: &str) -> bool {
    scheme(text).is_some()
}

/// The scheme in lower case, and what follows `://`.
fn scheme(text: &str) -> Option<(&'static str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    ["http", "https"].into_iter().find(|known| scheme.eq_ignore_ascii_case(known)).map(|known| (known, rest))
}

impl Url {
    /// # Errors
    /// [`Error::Usage`] for another scheme, or without a host.
    pub fn parse(text: &str) -> Result<Url> {
        let wrong =
            || Error::Usage(format!("invalid URL {:?}: expected http://HOST/PATH or https://HOST/PATH", shown(text)));
        let (scheme, rest) = scheme(text).ok_or_else(wrong)?;
        let (authority, path) = split_authority(rest);
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user.to_owned()), host),
            None => (None, authority),
        };
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || !is_plain(host) || !is_plain(path) {
            return Err(wrong());
        }
        // A fragment is for browsers.
        let path = path.split('#').next().unwrap_or_default();
        Ok(Url { address: format!("{scheme}://{host}{path}"), user, is_https: scheme == "https" })
    }
}

/// The URL without user name, password and query, all of which can be secrets; other text as it is.
///
/// ```
/// use diskimage::remote::shown;
///
/// assert_eq!(shown("https://me:password@example.com/disk.raw?token=1"), "https://example.com/disk.raw");
/// ```
pub fn shown(text: &str) -> String {
    let Some((scheme, rest)) = scheme(text) else { return text.to_owned() };
    let (authority, path) = split_authority(rest);
    let host = authority.rsplit('@').next().unwrap_or_default();
    let path = path.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

fn split_authority(rest: &str) -> (&str, &str) {
    rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_are_taken_out() {
        let url = Url::parse("HTTPS://me:p%40ss@example.com:8443/a/b.raw?sig=abc#x").unwrap();
        assert_eq!(url.address, "https://example.com:8443/a/b.raw?sig=abc");
        assert_eq!((url.user.as_deref(), url.is_https), (Some("me:p%40ss"), true));
        let url = Url::parse("http://[::1]:80").unwrap();
        assert_eq!((url.address.as_str(), url.user, url.is_https), ("http://[::1]:80", None, false));
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(shown("http://me:pass@host/disk.raw?token=secret"), "http://host/disk.raw");
        assert_eq!(shown("http://host?token=secret"), "http://host");
        assert_eq!(shown("http://a@b:c@host/x@y"), "http://host/x@y");
        let error = Url::parse("http://me:pass@/disk?token=secret").err().unwrap().to_string();
        assert!(!error.contains("pass") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn other_names_are_no_urls() {
        for text in ["disk.raw", "ftp://host/x", "http:/host/x", "nbd://host", "file:///x", "http//host", "-"] {
            assert!(!is_url(text) && Url::parse(text).is_err(), "{text}");
        }
        for text in ["http://", "http:///x", "http://host/a b", "http://h\u{e9}/", "http://host/\r\nX: y"] {
            assert!(Url::parse(text).is_err(), "{text}");
        }
    }
}
