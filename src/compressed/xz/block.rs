//! A block (section 3): its header, and decoding its data.

use std::io;

use lzma_rust2::{Action, FilterConfig, FilterType, Lzma2Stream, Status};
use zlib_rs::crc32::crc32;

use super::check::Running;
use super::{ALIGNMENT, Check, Input};
use crate::compressed::index::Unit;
use crate::compressed::meter::Decode;
use crate::error::Problem;
use crate::limits::Limits;

/// A block that is being decoded.
pub(in crate::compressed) struct Block {
    decoder: Lzma2Stream,
    check: Check,
    running: Running,
    header: Header,
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

/// The header of a block.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    compressed: Option<u64>,
    uncompressed: Option<u64>,
    dictionary: u32,
    /// The filter before LZMA2, with its property.
    filter: Option<(FilterType, u32)>,
}

impl Block {
    /// Reads the header of the block at the current offset.
    pub fn open(input: &mut Input, check: Check, limits: &Limits) -> io::Result<Block> {
        let at = input.at();
        let header = Header::read(input)?;
        if u64::from(header.dictionary) > limits.window {
            return Err(input.limit("dictionary size", at, header.dictionary.into(), limits.window));
        }
        let mut decoder = Lzma2Stream::new(header.dictionary);
        if let Some((filter_type, property)) = header.filter {
            let filter = FilterConfig { filter_type, property };
            decoder.set_filters(&[filter]).map_err(|error| input.unsupported(error.to_string(), at))?;
        }
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

impl Header {
    /// Reads a header (section 3.1).
    fn read(input: &mut Input) -> io::Result<Header> {
        let at = input.at();
        let len = match input.data()?.first() {
            Some(&size) => (usize::from(size) + 1) * ALIGNMENT as usize,
            None => return Err(input.truncated()),
        };
        let bytes = match input.peek(len)?.get(..len) {
            Some(bytes) => bytes.to_vec(),
            None => {
                let rest = input.peek(len)?.len();
                input.consume(rest);
                return Err(input.truncated());
            }
        };
        let (covered, stored) = bytes.split_last_chunk().unwrap_or((&[], &[0; 4]));
        let stored = u32::from_le_bytes(*stored);
        if crc32(0, covered) != stored {
            return Err(input.mismatch("CRC32 of the block header", at + covered.len() as u64, stored.into()));
        }
        let header = Header::parse(covered, input, at)?;
        input.consume(len);
        Ok(header)
    }

    /// Parses the header at offset `at`, without its checksum.
    fn parse(bytes: &[u8], input: &Input, at: u64) -> io::Result<Header> {
        const RESERVED: u8 = 0x3c;
        let invalid =
            |reason: &'static str| input.corrupt("block header", at, Problem::Invalid { reason: reason.into() });
        let mut fields = Fields(bytes.get(1..).unwrap_or_default());
        let flags = fields.byte().ok_or_else(|| invalid("it has no flags"))?;
        if flags & RESERVED != 0 {
            return Err(input.unsupported(format!("block flags {flags:#04x}"), at + 1));
        }
        let mut size = |flag: u8, least: u64| {
            if flags & flag == 0 {
                return Ok(None);
            }
            fields.number().filter(|size| *size >= least).map(Some).ok_or_else(|| invalid("a size is not a number"))
        };
        let compressed = size(0x40, 1)?;
        let uncompressed = size(0x80, 0)?;
        let mut filters = Vec::new();
        for _ in 0..=flags & 3 {
            let filter = fields.filter().ok_or_else(|| invalid("a filter is incomplete"))?;
            filters.push(filter);
        }
        if fields.0.iter().any(|byte| *byte != 0) {
            return Err(input.unsupported("block header with other fields", at));
        }
        let Some(((LZMA2, &[properties]), before)) = filters.split_last().map(|(last, rest)| (*last, rest)) else {
            return Err(input.unsupported("block without LZMA2", at));
        };
        let dictionary = dictionary_size(properties).ok_or_else(|| invalid("the dictionary size is reserved"))?;
        let filter = match before {
            [] => None,
            [(id, properties)] => match filter_property(*id, properties) {
                Some(filter) => Some(filter),
                None => return Err(input.unsupported(format!("filter {id:#x}"), at)),
            },
            _ => return Err(input.unsupported("several filters before LZMA2", at)),
        };
        Ok(Header { compressed, uncompressed, dictionary, filter })
    }
}

/// Filter ID of LZMA2 (section 5.3.1).
const LZMA2: u64 = 0x21;

/// Dictionary size in bytes from the properties of LZMA2; `None` for reserved values. 40 means 4 GiB less 1.
fn dictionary_size(bits: u8) -> Option<u32> {
    match bits {
        0..40 => Some((2 | u32::from(bits & 1)) << (bits / 2 + 11)),
        40 => Some(u32::MAX),
        _ => None,
    }
}

/// A filter before LZMA2 and its property: the distance of delta, the start offset of the others (sections 5.3.2 and 5.3.3).
fn filter_property(id: u64, properties: &[u8]) -> Option<(FilterType, u32)> {
    match (FilterType::try_from(id).ok()?, properties) {
        (FilterType::Lzma2, _) => None,
        (FilterType::Delta, [distance]) => Some((FilterType::Delta, u32::from(*distance) + 1)),
        (FilterType::Delta, _) => None,
        (filter, []) => Some((filter, 0)),
        (filter, _) => Some((filter, u32::from_le_bytes(properties.try_into().ok()?))),
    }
}

/// The rest of a header.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    /// A number of variable length (section 1.2).
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number).filter(|_| byte != 0 || shift == 0);
            }
        }
        None
    }

    /// Filter flags (section 3.1.5): the ID and the properties.
    fn filter(&mut self) -> Option<(u64, &'a [u8])> {
        let id = self.number()?;
        let len = usize::try_from(self.number()?).ok()?;
        let (properties, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some((id, properties))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionary_sizes() {
        assert_eq!([0, 1, 2, 22, 39].map(dictionary_size), [4096, 6144, 8192, 8 << 20, 3 << 30].map(Some));
        assert_eq!((dictionary_size(40), dictionary_size(41)), (Some(u32::MAX), None));
    }

    #[test]
    fn numbers_have_one_encoding() {
        let number = |bytes: &[u8]| Fields(bytes).number();
        assert_eq!(number(&[0]), Some(0));
        assert_eq!(number(&[0x80, 1]), Some(128));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), Some((1 << 63) - 1));
        for wrong in [&[][..], &[0x80], &[0x80, 0], &[0xff; 9]] {
            assert_eq!(number(wrong), None, "{wrong:?}");
        }
    }
}
