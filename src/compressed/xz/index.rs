//! The index of a stream (section 4), and from those of all streams the blocks of a file.

use std::io;

use super::block::read_padding;
use super::{Input, read_number};
use crate::error::Problem;

/// Reads the records of an index in order.
pub(super) struct IndexReader {
    start: u64,
    crc: u32,
    count: u64,
    left: u64,
}

impl IndexReader {
    /// Reads the start of the index at the current offset.
    pub fn new(input: &mut Input) -> io::Result<IndexReader> {
        let start = input.at();
        let indicator: [u8; 1] = input.array()?;
        if indicator != [0] {
            let problem = Problem::Rule { value: indicator[0].into(), rule: "must be 0" };
            return Err(input.corrupt("index indicator", start, problem));
        }
        let mut crc = zlib_rs::crc32::crc32(0, &indicator);
        let count = read_number(input, &mut crc)?;
        Ok(IndexReader { start, crc, count, left: count })
    }

    /// The stated number of records.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The next record: the unpadded size and the uncompressed size of a block; `None` at the end, with padding and checksum verified.
    pub fn next_record(&mut self, input: &mut Input) -> io::Result<Option<(u64, u64)>> {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                let unpadded = read_number(input, &mut self.crc)?;
                let uncompressed = read_number(input, &mut self.crc)?;
                Ok(Some((unpadded, uncompressed)))
            }
            None => {
                let len = input.at() - self.start;
                read_padding(input, len)?;
                // The CRC covers the padding, whose bytes are zeros.
                let padding = [0; 3];
                let padding_len = (input.at() - self.start - len) as usize;
                let crc = zlib_rs::crc32::crc32(self.crc, padding.get(..padding_len).unwrap_or_default());
                let at = input.at();
                let stored = u32::from_le_bytes(input.array()?);
                if stored != crc {
                    return Err(input.mismatch("CRC32 of the index", at, stored.into()));
                }
                Ok(None)
            }
        }
    }
}
