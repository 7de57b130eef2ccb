//! Requests and replies of a server ("Transmission").

use std::io::{self, BufReader, Read, Write};

use super::Server;
use super::handshake::{ALLOCATION_ID, Session};
use super::write::Refusal;
use crate::driver::ExtentKind;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::image::{Image, Span};
use crate::nbd::protocol::{self as protocol, Request, chunk, command, command_flag, error, state};

/// Guest bytes that are read or written at once.
pub(super) const PIECE: u64 = 1 << 20;
/// Most extents of one reply: 64 KiB.
const MAX_EXTENTS: usize = 8 << 10;

/// Answers the requests of a client until it disconnects.
///
/// # Errors
/// Those of the stream; [`io::ErrorKind::InvalidData`] if the client breaks the protocol.
pub fn run<S: Read + Write>(stream: S, session: Session, server: &Server) -> io::Result<()> {
    let stream = BufReader::with_capacity(4096, stream);
    let mut connection = Connection { stream, session, server, message: Vec::new() };
    loop {
        if connection.is_at_end()? {
            return Ok(());
        }
        let request = Request::read(&mut connection.stream)?;
        match request.command {
            command::DISCONNECT => return Ok(()),
            command::READ => connection.read(&request)?,
            command::BLOCK_STATUS => connection.block_status(&request)?,
            command::FLUSH => {
                let flushed = connection.server.export.flush();
                connection.answer(&request, flushed.map_err(Refusal::from))?;
            }
            command::WRITE => {
                let written = connection.write(&request)?;
                connection.answer(&request, written)?;
            }
            command::TRIM | command::WRITE_ZEROES => {
                let changed = connection.change(&request);
                connection.answer(&request, changed)?;
            }
            _ => connection.refuse(&request, error::EINVAL, "unknown request")?,
        }
    }
}

pub(super) struct Connection<'a, S> {
    pub(super) stream: BufReader<S>,
    session: Session,
    pub(super) server: &'a Server,
    /// The buffer of replies, and of what is written.
    pub(super) message: Vec<u8>,
}

impl<S: Read + Write> Connection<'_, S> {
    /// Whether the client has closed the connection, and not in the middle of a request.
    fn is_at_end(&mut self) -> io::Result<bool> {
        use std::io::BufRead;
        Ok(self.stream.fill_buf()?.is_empty())
    }

    fn read(&mut self, request: &Request) -> io::Result<()> {
        let Some(end) = self.end_of(request) else {
            return self.refuse(request, error::EINVAL, "the range is not in the export");
        };
        // Of what can be asked for with the block sizes of this server.
        if request.len > protocol::MAX_PAYLOAD {
            return self.refuse(request, error::EOVERFLOW, "the read is too long");
        }
        let mut at = request.offset;
        while at < end {
            let len = PIECE.min(end - at);
            let flags = if at + len == end { chunk::DONE } else { 0 };
            let is_first = at == request.offset;
            self.message.clear();
            if self.session.structured && self.server.export.with_image(|image| is_zero(image, at, len)) {
                self.chunk_header(request, flags, chunk::OFFSET_HOLE, 12);
                self.message.extend(at.to_be_bytes());
                self.message.extend((len as u32).to_be_bytes());
            } else {
                if self.session.structured {
                    self.chunk_header(request, flags, chunk::OFFSET_DATA, 8 + len as u32);
                    self.message.extend(at.to_be_bytes());
                } else if is_first {
                    self.simple_header(request, 0);
                }
                match self.load(at, len) {
                    Ok(()) => {}
                    // The last chunk of the reply.
                    Err(_) if self.session.structured || is_first => {
                        return self.refuse(request, error::EIO, "the image cannot be read");
                    }
                    // "If an error occurs while reading after sending out the reply header with an error field set to zero, the
                    // server MUST immediately initiate a hard disconnect."
                    Err(error) => return Err(error.into()),
                }
            }
            self.send()?;
            at += len;
        }
        Ok(())
    }

    /// Appends guest data to the message.
    fn load(&mut self, offset: u64, len: u64) -> Result<()> {
        let start = self.message.len();
        self.message.resize(start + len as usize, 0);
        let buf = self.message.get_mut(start..).unwrap_or_default();
        let read = self.server.export.read_exact_at(buf, offset);
        if let Err(error) = &read {
            self.report(error);
        }
        read
    }

    fn block_status(&mut self, request: &Request) -> io::Result<()> {
        if !self.session.allocation {
            return self.refuse(request, error::EINVAL, "no metadata context is selected");
        }
        let Some(end) = self.end_of(request) else {
            return self.refuse(request, error::EINVAL, "the range is not in the export");
        };
        let most = if request.flags & command_flag::REQ_ONE != 0 { 1 } else { MAX_EXTENTS };
        let extents = match self.server.export.with_image(|image| extents(image, request.offset, end, most)) {
            Ok(extents) => extents,
            Err(error) => {
                self.report(&error);
                return self.refuse(request, error::EIO, "the map of the image cannot be read");
            }
        };
        self.message.clear();
        self.chunk_header(request, chunk::DONE, chunk::BLOCK_STATUS, 4 + 8 * extents.len() as u32);
        self.message.extend(ALLOCATION_ID.to_be_bytes());
        self.message.extend(extents.into_iter().flat_map(|(len, flags)| [len, flags]).flat_map(u32::to_be_bytes));
        self.send()
    }

    /// The end of the range of a request, which is not empty and in the export.
    pub(super) fn end_of(&self, request: &Request) -> Option<u64> {
        let end = request.offset.checked_add(request.len.into())?;
        (request.len > 0 && end <= self.server.export.size()).then_some(end)
    }

    fn report(&self, error: &Error) {
        if let Some(report) = &self.server.on_error {
            report(error);
        }
    }

    /// Replies to a request without data.
    fn answer(&mut self, request: &Request, result: Result<(), Refusal>) -> io::Result<()> {
        if let Err(refusal) = result {
            if let Refusal::Failed(error) = &refusal {
                self.report(error);
            }
            return self.refuse(request, refusal.code(), refusal.message());
        }
        self.message.clear();
        match self.session.structured {
            true => self.chunk_header(request, chunk::DONE, chunk::NONE, 0),
            false => self.simple_header(request, 0),
        }
        self.send()
    }

    fn refuse(&mut self, request: &Request, error: u32, message: &str) -> io::Result<()> {
        self.message.clear();
        if self.session.structured {
            self.chunk_header(request, chunk::DONE, chunk::ERROR, 6 + message.len() as u32);
            self.message.extend(error.to_be_bytes());
            self.message.extend((message.len() as u16).to_be_bytes());
            self.message.extend(message.as_bytes());
        } else {
            self.simple_header(request, error);
        }
        self.send()
    }

    /// "Simple reply message".
    fn simple_header(&mut self, request: &Request, error: u32) {
        self.message.extend(protocol::SIMPLE_REPLY_MAGIC.to_be_bytes());
        self.message.extend(error.to_be_bytes());
        self.message.extend(request.cookie.to_be_bytes());
    }

    /// "Structured reply chunk message".
    fn chunk_header(&mut self, request: &Request, flags: u16, kind: u16, len: u32) {
        self.message.extend(protocol::STRUCTURED_REPLY_MAGIC.to_be_bytes());
        self.message.extend(flags.to_be_bytes());
        self.message.extend(kind.to_be_bytes());
        self.message.extend(request.cookie.to_be_bytes());
        self.message.extend(len.to_be_bytes());
    }

    fn send(&mut self) -> io::Result<()> {
        self.stream.get_mut().write_all(&self.message)
    }
}

/// Whether a guest range is known to be zeros.
fn is_zero(image: &Image, offset: u64, len: u64) -> bool {
    image.spans(offset..offset + len).all(|span| span.is_ok_and(|span| span.is_zero()))
}

/// The lengths and flags of up to `most` extents, and at least one, of a guest range of less than 4 GiB.
fn extents(image: &Image, start: u64, end: u64, most: usize) -> Result<Vec<(u32, u32)>> {
    let mut extents = Vec::<(u32, u32)>::new();
    for span in image.spans(start..end) {
        let span = match span {
            Ok(span) => span,
            // What is known until there is an answer.
            Err(_) if !extents.is_empty() => break,
            Err(error) => return Err(error),
        };
        let (len, flags) = (span.len as u32, flags_of(image, &span));
        let is_full = extents.len() == most;
        match extents.last_mut() {
            Some(last) if last.1 == flags => last.0 += len,
            _ if is_full => break,
            _ => extents.push((len, flags)),
        }
    }
    Ok(extents)
}

/// "Metadata contexts", `base:allocation`.
fn flags_of(image: &Image, span: &Span) -> u32 {
    match span.kind {
        _ if span.host_hole => state::HOLE | state::ZERO,
        ExtentKind::Data(_) | ExtentKind::Compressed(_) => 0,
        // A hole of a raw disk has a location, but no space.
        ExtentKind::Zero { allocated: Some(_) } if image.format_of(span.layer) != Some(Format::RAW) => state::ZERO,
        ExtentKind::Zero { .. } | ExtentKind::Hole => state::HOLE | state::ZERO,
    }
}
