//! One xz stream: its blocks, with their checks. The index and the footer after them repeat the sizes, and are not read.

use std::io;

use lzma_rust2::{Action, Status};

use super::{Decode, DecodeError, Payload};
use crate::codec::Codec;
use crate::codec::xz::{ALIGNMENT, BlockHeader, Check, Fault, STREAM_HEADER, stream_header};

pub(super) struct Xz;

/// A payload that is being decoded.
struct Stream<'a> {
    stored: &'a [u8],
    /// Bytes of `stored` used.
    taken: usize,
    out: &'a mut [u8],
    /// Bytes decoded.
    got: usize,
}

impl Decode for Xz {
    fn decode(&mut self, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<Payload, DecodeError> {
        let mut stream = Stream { stored, taken: STREAM_HEADER as usize, out, got: 0 };
        let header = stored.first_chunk().ok_or_else(|| stream.short(false))?;
        let (_, check) = stream_header(header).map_err(invalid)?;
        loop {
            match stream.rest().first() {
                None => return Err(stream.short(false)),
                // The index follows.
                Some(0) if stream.got < stream.out.len() => return Err(stream.short(true)),
                Some(0) => return Ok(Payload { codec, length: stream.taken, whole: true }),
                Some(&size) => stream.block(size, check)?,
            }
        }
    }
}

impl Stream<'_> {
    /// Decodes the block at the current position, whose first byte is `size`.
    fn block(&mut self, size: u8, check: Check) -> Result<(), DecodeError> {
        let len = BlockHeader::len(size);
        let header = self.rest().get(..len).ok_or_else(|| self.short(false))?;
        let header = BlockHeader::parse(header).map_err(invalid)?;
        self.taken += len;
        let (data, first) = (self.taken, self.got);
        self.data(&header)?;
        let (compressed, uncompressed) = (self.taken - data, self.got - first);
        let differs = |stated: Option<u64>, found: usize| stated.is_some_and(|stated| stated != found as u64);
        if differs(header.compressed, compressed) || differs(header.uncompressed, uncompressed) {
            return Err(DecodeError::invalid(Codec::Xz, "a block has another size than its header states"));
        }
        let padding = compressed.next_multiple_of(ALIGNMENT as usize) - compressed;
        let end = self.rest().get(..padding + check.len()).ok_or_else(|| self.short(false))?;
        let (padding, stored) = end.split_at_checked(padding).unwrap_or_default();
        let mut running = check.start();
        running.add(self.out.get(first..self.got).unwrap_or_default());
        if padding.iter().any(|byte| *byte != 0) || !running.matches(stored) {
            return Err(DecodeError::invalid(Codec::Xz, "the check of a block is that of other data"));
        }
        self.taken += end.len();
        Ok(())
    }

    /// Decodes the LZMA2 data of a block.
    fn data(&mut self, header: &BlockHeader) -> Result<(), DecodeError> {
        let most = u32::try_from(self.out.len()).unwrap_or(u32::MAX);
        let mut decoder = header.decoder(most).map_err(invalid)?;
        // A stream that continues yields one more byte.
        let mut spare = [0];
        loop {
            let rest = self.stored.get(self.taken..).unwrap_or_default();
            let (room, is_full) = match self.out.get_mut(self.got..) {
                Some(room) if !room.is_empty() => (room, false),
                _ => (&mut spare[..], true),
            };
            let result = decoder.process(rest, room, Action::Finish).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => self.short(false),
                _ => DecodeError::invalid(Codec::Xz, error),
            })?;
            if is_full && result.bytes_produced > 0 {
                return Err(DecodeError::Long { codec: Codec::Xz, want: self.out.len() });
            }
            self.taken += result.bytes_consumed;
            self.got += result.bytes_produced;
            match result.status {
                Status::StreamEnd => return Ok(()),
                Status::Ok if result.bytes_consumed == 0 && result.bytes_produced == 0 => {
                    return Err(self.short(false));
                }
                Status::Ok => {}
            }
        }
    }

    fn rest(&self) -> &[u8] {
        self.stored.get(self.taken..).unwrap_or_default()
    }

    fn short(&self, ended: bool) -> DecodeError {
        DecodeError::Short { codec: Codec::Xz, got: self.got, want: self.out.len(), ended }
    }
}

fn invalid(fault: Fault) -> DecodeError {
    DecodeError::invalid(
        Codec::Xz,
        match fault {
            Fault::Invalid { field, reason } => format!("{field}: {reason}"),
            Fault::Mismatch { field, .. } => format!("wrong {field}"),
            Fault::Unsupported { feature, .. } => format!("not supported: {feature}"),
        },
    )
}
