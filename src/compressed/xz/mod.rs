//! xz: one or more streams of blocks (The .xz File Format, version 1.2.1).
//!
//! ```text
//! stream   header (12 bytes), blocks, index, footer (12 bytes); then padding to a multiple of 4
//! block    header with the filters, LZMA2 data, padding, check
//! index    sizes of each block, CRC-32
//! ```

mod block;
mod index;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use block::Block;
pub(super) use block::BlockReader;
pub(super) use index::read as read_index;

use super::input::Input;
use super::meter::{Decode, EmptyParts};
pub(super) use crate::codec::xz::Check;
use crate::codec::xz::{ALIGNMENT, Fault, HEADER_MAGIC, STREAM_HEADER, stream_header};
use crate::error::Problem;
use crate::limits::Limits;
use zlib_rs::crc32::crc32;

const FOOTER_MAGIC: [u8; 2] = *b"YZ";

/// Decodes a file from its beginning to its end.
pub(super) struct Xz {
    input: Input,
    state: State,
    limits: Limits,
    empty: EmptyParts,
}

enum State {
    /// Before a stream; whether one has been decoded already.
    Between(bool),
    /// Before a block, or the index.
    Stream(Stream),
    Block(Stream, Box<Block>),
    Ended,
    /// While the state changes.
    Failed,
}

/// The part of a stream that has been decoded.
struct Stream {
    check: Check,
    flags: [u8; 2],
    records: Records,
}

/// The sizes of the blocks of a stream: what the index has to state.
#[derive(Clone, Default)]
struct Records {
    count: u64,
    /// Of all sizes in order. The index must not be kept in memory: it has no limit.
    hasher: DefaultHasher,
}

impl Records {
    fn add(&mut self, unpadded: u64, uncompressed: u64) {
        self.count += 1;
        (unpadded, uncompressed).hash(&mut self.hasher);
    }
}

impl Xz {
    pub fn new(input: Input, limits: &Limits) -> Xz {
        Xz { input, state: State::Between(false), limits: limits.clone(), empty: EmptyParts::default() }
    }

    /// Reads the header of a stream (section 2.1.1), or finds the end of the file.
    fn next_stream(&mut self, is_first: bool) -> io::Result<State> {
        if !is_first {
            while self.input.peek(4)?.starts_with(&[0; 4]) {
                self.input.consume(4);
            }
            if !self.input.peek(HEADER_MAGIC.len())?.starts_with(&HEADER_MAGIC) {
                self.input.only_zeros_follow()?;
                return Ok(State::Ended);
            }
        }
        let at = self.input.at();
        let header: [u8; STREAM_HEADER as usize] = self.input.array()?;
        let (flags, check) = stream_header(&header).map_err(|error| fault(&self.input, at, error))?;
        Ok(State::Stream(Stream { check, flags, records: Records::default() }))
    }

    /// Opens the next block, or verifies the index and the footer.
    fn next_block(&mut self, stream: Stream) -> io::Result<State> {
        if self.input.data()?.first() != Some(&0) {
            let block = Block::open(&mut self.input, stream.check, &self.limits)?;
            return Ok(State::Block(stream, Box::new(block)));
        }
        let len = self.read_index(&stream.records)?;
        let at = self.input.at();
        let footer: [u8; STREAM_HEADER as usize] = self.input.array()?;
        let backward = stream_footer(&footer, stream.flags, &self.input, at)?;
        if backward != len {
            let problem = Problem::Conflict { value: backward, finding: "the index has another length" };
            return Err(self.input.corrupt("backward size", at + 4, problem));
        }
        self.empty.note(stream.records.count, &self.input)?;
        Ok(State::Between(true))
    }

    /// Reads the index (section 4), compares it with the blocks, and returns its length.
    fn read_index(&mut self, blocks: &Records) -> io::Result<u64> {
        let start = self.input.at();
        let mut reader = index::IndexReader::new(&mut self.input)?;
        let mut stated = Records::default();
        let finding = "the stream has other blocks";
        if reader.count() != blocks.count {
            let problem = Problem::Conflict { value: reader.count(), finding };
            return Err(self.input.corrupt("number of records", start + 1, problem));
        }
        while let Some((unpadded, uncompressed)) = reader.next_record(&mut self.input)? {
            stated.add(unpadded, uncompressed);
        }
        if stated.hasher.finish() != blocks.hasher.finish() {
            let problem = Problem::Conflict { value: stated.count, finding };
            return Err(self.input.corrupt("index", start, problem));
        }
        Ok(self.input.at() - start)
    }
}

impl Decode for Xz {
    fn decode(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            self.state = match std::mem::replace(&mut self.state, State::Failed) {
                State::Between(some) => self.next_stream(!some)?,
                State::Stream(stream) => self.next_block(stream)?,
                State::Block(mut stream, mut block) => {
                    let len = block.decode(&mut self.input, buf)?;
                    if len > 0 {
                        self.state = State::Block(stream, block);
                        return Ok(len);
                    }
                    self.empty.note(block.uncompressed(), &self.input)?;
                    stream.records.add(block.unpadded(), block.uncompressed());
                    State::Stream(stream)
                }
                State::Ended => {
                    self.state = State::Ended;
                    return Ok(0);
                }
                State::Failed => return Err(self.input.invalid("it failed to decode before")),
            };
        }
    }

    fn input(&self) -> &Input {
        &self.input
    }
}

/// The error for a header at offset `at` of the file.
fn fault(input: &Input, at: u64, fault: Fault) -> io::Error {
    match fault {
        Fault::Invalid { field, reason } => input.corrupt(field, at, Problem::Invalid { reason: reason.into() }),
        Fault::Mismatch { field, at: within, stored } => input.mismatch(field, at + within, stored.into()),
        Fault::Unsupported { feature, at: within } => input.unsupported(feature, at + within),
    }
}

/// Parses the footer of a stream at offset `at`: the length of the index in bytes.
fn stream_footer(footer: &[u8; STREAM_HEADER as usize], flags: [u8; 2], input: &Input, at: u64) -> io::Result<u64> {
    let [c0, c1, c2, c3, covered @ .., m0, m1] = footer;
    let stored = u32::from_le_bytes([*c0, *c1, *c2, *c3]);
    if [*m0, *m1] != FOOTER_MAGIC {
        return Err(input.corrupt("stream footer", at + 10, Problem::Invalid { reason: "wrong magic".into() }));
    }
    if crc32(0, covered) != stored {
        return Err(input.mismatch("CRC32 of the stream footer", at, stored.into()));
    }
    let [b0, b1, b2, b3, f0, f1] = covered;
    if [*f0, *f1] != flags {
        let value = u16::from_be_bytes([*f0, *f1]).into();
        let problem = Problem::Conflict { value, finding: "the stream header has others" };
        return Err(input.corrupt("stream flags", at + 8, problem));
    }
    Ok((u64::from(u32::from_le_bytes([*b0, *b1, *b2, *b3])) + 1) * ALIGNMENT)
}

/// Reads a number of variable length (section 1.2), and adds its bytes to the checksum.
fn read_number(input: &mut Input, crc: &mut u32) -> io::Result<u64> {
    let at = input.at();
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let byte: [u8; 1] = input.array()?;
        *crc = crc32(*crc, &byte);
        let [byte] = byte;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            if byte == 0 && shift > 0 {
                break;
            }
            return Ok(number);
        }
    }
    Err(input.corrupt("number", at, Problem::Invalid { reason: "it has more bytes than it needs".into() }))
}
