//! A block (section 3): decoding its data.

use std::io;

use lzma_rust2::{Action, Lzma2Stream, Status};

use super::{Input, fault};
use crate::codec::xz::check::Running;
use crate::codec::xz::{ALIGNMENT, BlockHeader, Check};
use crate::compressed::index::Unit;
use crate::compressed::meter::Decode;
use crate::error::Problem;
use crate::limits::{LimitName, Limits};

/// A block that is being decoded.
pub(in crate::compressed) struct Block {
    decoder: Lzma2Stream,
    check: Check,
    running: Running,
    header: BlockHeader,
    /// Offset of the header in the file.
    at: u64,
    /// Offset of the compressed data.
    data_at: u64,
    /// Length of the compressed data, at its end.
    compressed: u64,
    /// Bytes decoded.
    uncompressed: u64,
    ended: bool,
}

impl Block {
    /// Reads the header of the block at the current offset.
    pub fn open(input: &mut Input, check: Check, limits: &Limits) -> io::Result<Block> {
        let at = input.at();
        let header = read_header(input)?;
        if u64::from(header.dictionary) > limits.window {
            return Err(input.limit(
                Some(LimitName::Window),
                "dictionary size",
                at,
                header.dictionary.into(),
                limits.window,
            ));
        }
        let decoder = header.decoder(u32::MAX).map_err(|error| fault(input, at, error))?;
        let running = check.start();
        let data_at = input.at();
        Ok(Block { decoder, check, running, header, at, data_at, compressed: 0, uncompressed: 0, ended: false })
    }

    /// Decodes to the start of `buf`; 0 at the end, with the sizes and the check verified.
    pub fn decode(&mut self, input: &mut Input, buf: &mut [u8]) -> io::Result<usize> {
        while !self.ended {
            let data = input.data()?;
            let action = if data.is_empty() { Action::Finish } else { Action::Run };
            let result = match self.decoder.process(data, buf, action) {
                Ok(result) => result,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(input.truncated()),
                Err(error) => return Err(input.invalid(error.to_string())),
            };
            let is_last = data.is_empty();
            input.consume(result.bytes_consumed);
            self.running.add(buf.get(..result.bytes_produced).unwrap_or_default());
            self.uncompressed += result.bytes_produced as u64;
            self.compressed = input.at() - self.data_at;
            self.check_sizes(input)?;
            if result.status == Status::StreamEnd {
                self.close(input)?;
            } else if result.bytes_produced == 0 && result.bytes_consumed == 0 {
                return Err(if is_last { input.truncated() } else { input.invalid("the decoder makes no progress") });
            }
            if result.bytes_produced > 0 {
                return Ok(result.bytes_produced);
            }
        }
        Ok(0)
    }

    /// Length in bytes with the header and the check, without padding.
    pub fn unpadded(&self) -> u64 {
        self.data_at - self.at + self.compressed + self.check.len() as u64
    }

    /// Bytes decoded.
    pub fn uncompressed(&self) -> u64 {
        self.uncompressed
    }

    /// Checks that the block is not longer than its header states.
    fn check_sizes(&self, input: &Input) -> io::Result<()> {
        let sizes = [
            ("compressed size", self.header.compressed, self.compressed),
            ("uncompressed size", self.header.uncompressed, self.uncompressed),
        ];
        for (name, stated, found) in sizes {
            if let Some(stated) = stated.filter(|stated| found > *stated) {
                return Err(input.corrupt(name, self.at, conflict(stated)));
            }
        }
        Ok(())
    }

    /// Verifies the sizes, the padding and the check.
    fn close(&mut self, input: &mut Input) -> io::Result<()> {
        self.ended = true;
        for (name, stated, found) in [
            ("compressed size", self.header.compressed, self.compressed),
            ("uncompressed size", self.header.uncompressed, self.uncompressed),
        ] {
            if let Some(stated) = stated.filter(|stated| found != *stated) {
                return Err(input.corrupt(name, self.at, conflict(stated)));
            }
        }
        read_padding(input, self.compressed)?;
        let at = input.at();
        let stored = input.peek(self.check.len())?.get(..self.check.len());
        let running = std::mem::replace(&mut self.running, Running::None);
        match stored.map(|stored| running.matches(stored)) {
            None => Err(input.truncated()),
            Some(false) => Err(input.corrupt("check", at, Problem::Invalid { reason: "the data has another".into() })),
            Some(true) => {
                input.consume(self.check.len());
                Ok(())
            }
        }
    }
}

fn conflict(stated: u64) -> Problem {
    Problem::Conflict { value: stated, finding: "the block has another" }
}

/// One block as a file of its own.
pub(in crate::compressed) struct BlockReader {
    input: Input,
    block: Block,
    /// What the index states.
    unit: Unit,
}

impl BlockReader {
    /// Opens the block at the current offset, which the index describes as `unit`.
    pub fn open(mut input: Input, check: Check, unit: &Unit, limits: &Limits) -> io::Result<BlockReader> {
        let block = Block::open(&mut input, check, limits)?;
        Ok(BlockReader { input, block, unit: *unit })
    }
}

impl Decode for BlockReader {
    fn decode(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.block.decode(&mut self.input, buf)?;
        if len == 0 && self.block.unpadded().next_multiple_of(ALIGNMENT) != self.unit.stored {
            return Err(self.input.corrupt("unpadded size in the index", self.unit.at, conflict(self.unit.stored)));
        }
        Ok(len)
    }

    fn input(&self) -> &Input {
        &self.input
    }
}

/// Reads the zeros that follow `len` bytes, up to the alignment.
pub(super) fn read_padding(input: &mut Input, len: u64) -> io::Result<()> {
    for _ in len..len.next_multiple_of(ALIGNMENT) {
        let at = input.at();
        let [byte] = input.array()?;
        if byte != 0 {
            let problem = Problem::Rule { value: byte.into(), rule: "must be 0" };
            return Err(input.corrupt("padding", at, problem));
        }
    }
    Ok(())
}

/// Reads the header of the block at the current offset.
fn read_header(input: &mut Input) -> io::Result<BlockHeader> {
    let at = input.at();
    let Some(&size) = input.data()?.first() else { return Err(input.truncated()) };
    let len = BlockHeader::len(size);
    let bytes = input.peek(len)?;
    let Some(bytes) = bytes.get(..len) else {
        let rest = bytes.len();
        input.consume(rest);
        return Err(input.truncated());
    };
    let header = BlockHeader::parse(bytes);
    let header = header.map_err(|error| fault(input, at, error))?;
    input.consume(len);
    Ok(header)
}
