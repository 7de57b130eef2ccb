//! One connection in the transmission phase: a request, then its reply ("Transmission").

use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::ops::Range;

use super::handshake::{Export, with_message};
use crate::nbd::protocol::{self as protocol, Request, chunk, command, error, violation};

/// Longest list of extents that is read, in bytes: a million.
const MAX_STATUS: u32 = 4 + (8 << 20);
/// Most chunks of one reply: more than there are sectors in the longest one.
const MAX_CHUNKS: usize = 1 << 17;
/// Most separate parts of a read that wait for the rest.
const MAX_PARTS: usize = 1024;

/// Any stream in both directions.
pub trait Duplex: Read + Write + Send {}

impl<S: Read + Write + Send> Duplex for S {}

/// A connection with an open export.
pub struct Connection {
    stream: BufReader<Box<dyn Duplex>>,
    export: Export,
    cookie: u64,
}

/// Why a request failed.
#[derive(Debug)]
pub enum Failure {
    /// The server answered with an error. The connection can be used further.
    Refused(io::Error),
    /// The stream failed, or the server broke the protocol.
    Broken(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Broken(protocol::closed(error))
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> io::Error {
        let (Failure::Refused(error) | Failure::Broken(error)) = failure;
        error
    }
}

/// The beginning of a reply to the current request.
enum Reply {
    Simple { error: u32 },
    Chunk { flags: u16, kind: u16, len: u32 },
}

impl Connection {
    pub fn new(stream: Box<dyn Duplex>, export: Export) -> Connection {
        Connection { stream: BufReader::with_capacity(4096, stream), export, cookie: 0 }
    }

    pub fn export(&self) -> &Export {
        &self.export
    }

    /// Fills `buf`. The range has to satisfy the block size constraints of the export.
    pub fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<(), Failure> {
        self.send(command::READ, offset, buf.len() as u32)?;
        if !self.export.structured {
            self.finish_simple()?;
            return Ok(self.stream.read_exact(buf)?);
        }
        let mut parts = Parts::default();
        self.chunks(|stream, kind, len| match (kind, len) {
            (chunk::OFFSET_DATA, 9..) => {
                let at = protocol::u64(stream)?;
                let part = parts.add(at, len - 8, offset, buf.len())?;
                stream.read_exact(buf.get_mut(part).unwrap_or_default())
            }
            (chunk::OFFSET_HOLE, 12) => {
                let (at, len) = (protocol::u64(stream)?, protocol::u32(stream)?);
                let part = parts.add(at, len, offset, buf.len())?;
                buf.get_mut(part).unwrap_or_default().fill(0);
                Ok(())
            }
            _ => Err(unexpected(kind, len)),
        })?;
        if parts.are_whole(buf.len()) { Ok(()) } else { Err(violation("a reply without all of the data").into()) }
    }

    /// Writes all of `buf`. The range has to satisfy the block size constraints of the export.
    pub fn write(&mut self, buf: &[u8], offset: u64) -> Result<(), Failure> {
        self.send(command::WRITE, offset, buf.len() as u32)?;
        self.stream.get_mut().write_all(buf)?;
        self.finish()
    }

    /// Sends a request without payloads: FLUSH, TRIM, WRITE_ZEROES.
    pub fn execute(&mut self, command: u16, offset: u64, len: u32) -> Result<(), Failure> {
        self.send(command, offset, len)?;
        self.finish()
    }

    /// Returns what `read` makes of the extents from `offset` on, which has their number: at least one byte, and about `len` at most.
    pub fn block_status<T>(
        &mut self,
        context: u32,
        (offset, len): (u64, u32),
        read: impl Fn(&mut BufReader<Box<dyn Duplex>>, u32) -> io::Result<T>,
    ) -> Result<T, Failure> {
        self.send(command::BLOCK_STATUS, offset, len)?;
        let mut found = None;
        self.chunks(|stream, kind, len| match (kind, len) {
            (chunk::BLOCK_STATUS, 12..=MAX_STATUS) if (len - 4) % 8 == 0 => {
                if protocol::u32(stream)? != context || found.is_some() {
                    return Err(violation("extents of a metadata context that was not asked for"));
                }
                found = Some(read(stream, (len - 4) / 8)?);
                Ok(())
            }
            _ => Err(unexpected(kind, len)),
        })?;
        found.ok_or_else(|| violation("a reply without extents").into())
    }

    /// Tells the server that no more requests follow. There is no reply.
    pub fn close(mut self) {
        // The server may be gone.
        let _ = self.send(command::DISCONNECT, 0, 0);
    }

    fn send(&mut self, command: u16, offset: u64, len: u32) -> io::Result<()> {
        self.cookie = self.cookie.wrapping_add(1);
        let request = Request { flags: 0, command, cookie: self.cookie, offset, len };
        self.stream.get_mut().write_all(&request.to_bytes())
    }

    /// Reads a reply without data.
    fn finish(&mut self) -> Result<(), Failure> {
        if !self.export.structured {
            return self.finish_simple();
        }
        self.chunks(|_, kind, len| Err(unexpected(kind, len)))
    }

    fn finish_simple(&mut self) -> Result<(), Failure> {
        match self.reply()? {
            Reply::Simple { error: 0 } => Ok(()),
            Reply::Simple { error } => Err(Failure::Refused(refusal(error, &[]))),
            Reply::Chunk { .. } => Err(violation("a structured reply, which was not negotiated").into()),
        }
    }

    /// Reads the chunks of a reply; `content` takes the payload of those that are no errors.
    fn chunks(
        &mut self,
        mut content: impl FnMut(&mut BufReader<Box<dyn Duplex>>, u16, u32) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let mut refused = None;
        for _ in 0..MAX_CHUNKS {
            let (flags, kind, len) = match self.reply()? {
                // Valid for requests whose reply has no data; for others, nothing was read.
                Reply::Simple { error: 0 } => return Ok(()),
                Reply::Simple { error } => return Err(Failure::Refused(refusal(error, &[]))),
                Reply::Chunk { flags, kind, len } => (flags, kind, len),
            };
            match kind {
                chunk::NONE if len == 0 && flags & chunk::DONE != 0 => {}
                chunk::IS_ERROR.. => {
                    let error = self.error_chunk(len)?;
                    refused.get_or_insert(error);
                }
                _ => content(&mut self.stream, kind, len)?,
            }
            if flags & chunk::DONE != 0 {
                return refused.map_or(Ok(()), |error| Err(Failure::Refused(error)));
            }
        }
        Err(violation("too many chunks of one reply").into())
    }

    fn reply(&mut self) -> io::Result<Reply> {
        let from = &mut self.stream;
        let (reply, cookie) = match protocol::u32(from)? {
            protocol::SIMPLE_REPLY_MAGIC => {
                let error = protocol::u32(from)?;
                (Reply::Simple { error }, protocol::u64(from)?)
            }
            protocol::STRUCTURED_REPLY_MAGIC => {
                let (flags, kind, cookie) = (protocol::u16(from)?, protocol::u16(from)?, protocol::u64(from)?);
                (Reply::Chunk { flags, kind, len: protocol::u32(from)? }, cookie)
            }
            magic => return Err(violation(format!("the magic number of a reply is {magic:#x}"))),
        };
        if cookie == self.cookie { Ok(reply) } else { Err(violation("a reply to another request")) }
    }

    fn error_chunk(&mut self, len: u32) -> io::Result<io::Error> {
        if !(6..=6 + protocol::MAX_STRING as u32 + 8).contains(&len) {
            return Err(violation(format!("an error chunk of {len} bytes")));
        }
        let (error, text) = (protocol::u32(&mut self.stream)?, protocol::u16(&mut self.stream)?);
        let rest =
            (len - 6).checked_sub(text.into()).ok_or_else(|| violation("an error message longer than its chunk"))?;
        let mut message = vec![0; text.into()];
        self.stream.read_exact(&mut message)?;
        protocol::skip(&mut self.stream, rest.into())?;
        if error == 0 {
            return Err(violation("an error chunk without an error"));
        }
        Ok(refusal(error, &message))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("export", &self.export).finish_non_exhaustive()
    }
}

/// The parts of a buffer that have been read, in ascending order, not adjacent.
#[derive(Default)]
struct Parts(Vec<Range<usize>>);

impl Parts {
    /// Adds `len` bytes at the offset `at` of the export to those of a read of `wanted` bytes at `offset`, and returns their range.
    fn add(&mut self, at: u64, len: u32, offset: u64, wanted: usize) -> io::Result<Range<usize>> {
        let start = at.checked_sub(offset).and_then(|start| usize::try_from(start).ok());
        let end = start.and_then(|start| start.checked_add(len as usize)).filter(|end| *end <= wanted);
        let (Some(start), Some(end), 1..) = (start, end, len) else {
            return Err(violation(format!("{len} bytes at {at:#x}, which were not asked for")));
        };
        let next = self.0.partition_point(|part| part.end < start);
        let is_full = self.0.len() >= MAX_PARTS;
        match self.0.get_mut(next) {
            Some(part) if part.end == start => {
                part.end = end;
                let grown = part.clone();
                if self.0.get(next + 1).is_some_and(|after| after.start < grown.end) {
                    return Err(violation(format!("the bytes at {at:#x} twice")));
                }
            }
            Some(part) if part.start < end => return Err(violation(format!("the bytes at {at:#x} twice"))),
            _ if is_full => return Err(violation("a reply in too many parts out of order")),
            _ => self.0.insert(next, start..end),
        }
        Ok(start..end)
    }

    /// Whether they are all of `len` bytes.
    fn are_whole(&self, len: usize) -> bool {
        let mut at = 0;
        for part in &self.0 {
            if part.start != at {
                return false;
            }
            at = part.end;
        }
        at == len
    }
}

fn unexpected(kind: u16, len: u32) -> io::Error {
    violation(format!("an unexpected chunk of type {kind} with {len} bytes"))
}

/// The error of a reply ("Error values").
fn refusal(error: u32, message: &[u8]) -> io::Error {
    let (kind, problem) = match error {
        error::EPERM => (io::ErrorKind::PermissionDenied, "operation not permitted".to_owned()),
        error::EIO => (io::ErrorKind::Other, "input/output error".to_owned()),
        error::ENOMEM => (io::ErrorKind::OutOfMemory, "out of memory".to_owned()),
        error::EINVAL => (io::ErrorKind::InvalidInput, "invalid argument".to_owned()),
        error::ENOSPC => (io::ErrorKind::StorageFull, "no space left".to_owned()),
        error::ENOTSUP => (io::ErrorKind::Unsupported, "not supported".to_owned()),
        error::EOVERFLOW => (io::ErrorKind::Other, "value too large".to_owned()),
        error::ESHUTDOWN => (io::ErrorKind::ConnectionAborted, "the server is shutting down".to_owned()),
        error => (io::ErrorKind::Other, format!("error {error}")),
    };
    io::Error::new(kind, with_message(format!("the server reports: {problem}"), message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_in_any_order_are_whole() {
        let mut parts = Parts::default();
        for (at, len) in [(10, 2), (14, 2), (12, 2), (16, 4)] {
            parts.add(at, len, 10, 10).unwrap();
        }
        assert!(parts.are_whole(10) && !parts.are_whole(11));
    }

    #[test]
    fn other_parts_are_refused() {
        for (first, second) in [
            // Twice, in each position.
            ((10, 2), (10, 2)),
            ((10, 4), (12, 4)),
            ((14, 4), (12, 4)),
            ((12, 1), (10, 6)),
            // Outside, or nothing.
            ((10, 2), (9, 1)),
            ((10, 2), (19, 2)),
            ((10, 2), (u64::MAX, 1)),
            ((10, 2), (12, 0)),
            ((10, 2), (12, u32::MAX)),
        ] {
            let mut parts = Parts::default();
            parts.add(first.0, first.1, 10, 10).unwrap();
            assert!(parts.add(second.0, second.1, 10, 10).is_err(), "{first:?} {second:?}");
        }
        // One that closes a gap must not go on into the next part.
        let mut parts = Parts::default();
        parts.add(10, 2, 10, 10).unwrap();
        parts.add(14, 2, 10, 10).unwrap();
        assert!(parts.add(12, 3, 10, 10).is_err());
        assert!(!parts.are_whole(10));
    }

    #[test]
    fn parts_are_bounded() {
        let mut parts = Parts::default();
        let added = (0..5000).take_while(|part| parts.add(part * 2, 1, 0, 1 << 20).is_ok()).count();
        assert_eq!(added, MAX_PARTS);
    }
}
