//! Requests that change the disk.

use std::io::{self, Read, Write};
use std::ops::Range;

use super::transmission::{Connection, PIECE};
use crate::error::Error;
use crate::nbd::protocol::{self, Request, command, command_flag, error, violation};

/// Why a request is not done.
pub enum Refusal {
    ReadOnly,
    UnknownFlags,
    /// The range ends after the export.
    OutOfBounds {
        is_write: bool,
    },
    Failed(Error),
}

impl Refusal {
    /// "Error values".
    pub fn code(&self) -> u32 {
        match self {
            Refusal::ReadOnly => error::EPERM,
            Refusal::OutOfBounds { is_write: true } => error::ENOSPC,
            Refusal::UnknownFlags | Refusal::OutOfBounds { is_write: false } => error::EINVAL,
            Refusal::Failed(cause) => match cause.root() {
                Error::Io { cause, .. } if is_full(cause.kind()) => error::ENOSPC,
                _ => error::EIO,
            },
        }
    }

    pub fn message(&self) -> &'static str {
        match self {
            Refusal::ReadOnly => "the export is read-only",
            Refusal::UnknownFlags => "unknown flags",
            Refusal::OutOfBounds { .. } => "the range is not in the export",
            Refusal::Failed(_) => "the disk cannot be written",
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Failed(error)
    }
}

impl<S: Read + Write> Connection<'_, S> {
    /// Writes the data that follows the request, all of which is taken from the stream, whatever the answer is.
    ///
    /// # Errors
    /// Those of the stream; [`io::ErrorKind::InvalidData`] for a longer payload than the handshake allows.
    pub fn write(&mut self, request: &Request) -> io::Result<Result<(), Refusal>> {
        if request.len > protocol::MAX_PAYLOAD {
            return Err(violation(format!("a write of {} bytes", request.len)));
        }
        let range = match self.changed_range(request, command_flag::FUA) {
            Ok(range) => range,
            Err(refusal) => {
                protocol::skip(&mut self.stream, request.len.into())?;
                return Ok(Err(refusal));
            }
        };
        let mut written = Ok(());
        for piece in pieces(range) {
            self.message.resize((piece.end - piece.start) as usize, 0);
            self.stream.read_exact(&mut self.message)?;
            written = written.and_then(|()| self.server.export.write_all_at(&self.message, piece.start));
        }
        Ok(written.and_then(|()| self.sync_if_asked(request)).map_err(Refusal::from))
    }

    /// Trims a range or makes it zeros.
    pub fn change(&mut self, request: &Request) -> Result<(), Refusal> {
        let export = &self.server.export;
        if request.command == command::TRIM {
            export.discard(self.changed_range(request, command_flag::FUA)?)?;
        } else {
            let range = self.changed_range(request, command_flag::FUA | command_flag::NO_HOLE)?;
            if request.flags & command_flag::NO_HOLE == 0 {
                export.write_zeros(range)?;
            } else {
                // "the client wants to ensure that the server does not create a hole"
                self.message.clear();
                self.message.resize(PIECE.min(range.end - range.start) as usize, 0);
                for piece in pieces(range) {
                    let zeros = self.message.get(..(piece.end - piece.start) as usize).unwrap_or_default();
                    export.write_all_at(zeros, piece.start)?;
                }
            }
        }
        Ok(self.sync_if_asked(request)?)
    }

    /// The range of a request with some of the flags `known`.
    fn changed_range(&self, request: &Request, known: u16) -> Result<Range<u64>, Refusal> {
        if !self.server.export.is_writable() {
            return Err(Refusal::ReadOnly);
        }
        if request.flags & !known != 0 {
            return Err(Refusal::UnknownFlags);
        }
        let end = self.end_of(request);
        let is_write = request.command == command::WRITE;
        end.map(|end| request.offset..end).ok_or(Refusal::OutOfBounds { is_write })
    }

    /// "FUA": what the request wrote is durable before its reply.
    fn sync_if_asked(&self, request: &Request) -> crate::error::Result<()> {
        if request.flags & command_flag::FUA == 0 { Ok(()) } else { self.server.export.flush() }
    }
}

fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let starts = range.clone().step_by(PIECE as usize);
    starts.map(move |start| start..(start + PIECE).min(range.end))
}

fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
