//! The compressed bytes, with their offset in the file.

use std::borrow::Cow;
use std::io::{self, Read};

use super::Compression;
use crate::error::{Error, Problem};
use crate::limits::LimitName;

/// Bytes read at once.
const BUFFER: usize = 64 << 10;

/// A buffered stream of compressed bytes.
pub(super) struct Input {
    stream: Box<dyn Read + Send>,
    compression: Compression,
    buf: Vec<u8>,
    /// The bytes of the buffer that are not consumed yet.
    start: usize,
    end: usize,
    /// Offset of the next byte in the file.
    at: u64,
    /// The failure of the stream, while the decoder that met it reports one of its own.
    failure: Option<io::Error>,
}

impl Input {
    /// A stream whose next byte has the offset `at` in the file.
    pub fn new(compression: Compression, stream: Box<dyn Read + Send>, at: u64) -> Input {
        Input { stream, compression, buf: vec![0; BUFFER], start: 0, end: 0, at, failure: None }
    }

    /// Offset of the next byte in the file.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The next bytes, at least one; none at the end of the file.
    pub fn data(&mut self) -> io::Result<&[u8]> {
        self.peek(1)
    }

    /// The next bytes, at least `len`; fewer only at the end of the file. `len` is at most that of the buffer.
    pub fn peek(&mut self, len: usize) -> io::Result<&[u8]> {
        debug_assert!(len <= BUFFER);
        while self.end - self.start < len {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            match self.stream.read(self.buf.get_mut(self.end..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(n) => self.end += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(io::Error::from(Error::io("reading", self.at)(e))),
            }
        }
        Ok(self.buf.get(self.start..self.end).unwrap_or_default())
    }

    /// Moves past the next `len` bytes, which [`data`](Self::data) or [`peek`](Self::peek) returned.
    pub fn consume(&mut self, len: usize) {
        let len = len.min(self.end - self.start);
        self.start += len;
        self.at += len as u64;
    }

    /// Reads the next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        match self.peek(N)?.first_chunk() {
            Some(bytes) => {
                let bytes = *bytes;
                self.consume(N);
                Ok(bytes)
            }
            None => Err(self.truncated()),
        }
    }

    /// Moves past the next `len` bytes.
    pub fn skip(&mut self, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let step = len.min(self.data()?.len() as u64);
            if step == 0 {
                return Err(self.truncated());
            }
            self.consume(step as usize);
            len -= step;
        }
        Ok(())
    }

    /// Checks that only zeros follow, and returns their number.
    pub fn only_zeros_follow(&mut self) -> io::Result<u64> {
        let from = self.at;
        loop {
            let data = self.data()?;
            if data.is_empty() {
                return Ok(self.at - from);
            }
            match data.iter().position(|byte| *byte != 0) {
                None => {
                    let len = data.len();
                    self.consume(len);
                }
                Some(index) => {
                    self.consume(index);
                    let value = self.data()?.first().copied().unwrap_or_default().into();
                    let rule = "must be zero padding";
                    return Err(self.corrupt("data after the end", self.at, Problem::Rule { value, rule }));
                }
            }
        }
    }

    /// The error for a field at offset `at` of the file.
    pub fn corrupt(&self, field: impl Into<Cow<'static, str>>, at: u64, problem: Problem) -> io::Error {
        Error::corrupt(self.compression.name(), field, at, problem).into()
    }

    /// The error for compressed data before the current offset that does not decode.
    pub fn invalid(&self, reason: impl Into<Cow<'static, str>>) -> io::Error {
        self.corrupt("compressed data", self.at, Problem::Invalid { reason: reason.into() })
    }

    /// The error for a file that ends here, within what is being read.
    pub fn truncated(&self) -> io::Error {
        self.corrupt("compressed data", self.at + (self.end - self.start) as u64, Problem::Truncated)
    }

    /// The error for a checksum at offset `at` of the file, which is that of other data.
    pub fn mismatch(&self, field: &'static str, at: u64, value: u64) -> io::Error {
        self.corrupt(field, at, Problem::Conflict { value, finding: "the data has another" })
    }

    /// The error for a number that exceeds a limit: of the caller, if it has a name.
    pub fn limit(&self, name: Option<LimitName>, field: &'static str, at: u64, value: u64, limit: u64) -> io::Error {
        Error::Limit { name, format: self.compression.name(), field: field.into(), at: Some(at), value, limit }.into()
    }

    /// The error for a feature that is not implemented.
    pub fn unsupported(&self, feature: impl Into<Cow<'static, str>>, at: u64) -> io::Error {
        Error::Unsupported { format: self.compression.name(), feature: feature.into(), at: Some(at) }.into()
    }

    /// The error that made a decoder fail which reads this as a stream: that of the stream, or else the end of the file, or else
    /// the decoder's own message.
    pub fn failure(&mut self, reason: impl Into<Cow<'static, str>>) -> io::Error {
        match (self.failure.take(), self.data().map(<[u8]>::is_empty)) {
            (Some(error), _) | (None, Err(error)) => error,
            (None, Ok(true)) => self.truncated(),
            (None, Ok(false)) => self.invalid(reason),
        }
    }
}

/// The rest of the file, for decoders that take a stream. Their error is replaced by [`Input::failure`].
impl Read for Input {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.data() {
            Ok(data) => {
                let len = data.len().min(buf.len());
                for (to, from) in buf.iter_mut().zip(data) {
                    *to = *from;
                }
                self.consume(len);
                Ok(len)
            }
            Err(error) => {
                self.failure = Some(error);
                Err(io::ErrorKind::Other.into())
            }
        }
    }
}
