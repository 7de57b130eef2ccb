//! Which places of an image file are taken.
//!
//! Guest bytes have a place of their own. An image in which guest bytes lie where metadata is, or in which two guest ranges
//! share a place that the image does not count as shared, is corrupt: a reader would give one range the other's bytes. It
//! is also how a small file expands to any size. A conversion passes each guest byte once and in order, so that it can tell.

use std::collections::HashMap;
use std::ops::Range;

use crate::error::{Error, Problem, Result};
use crate::extent::{Extent, ExtentKind, FileId};
use crate::sparse::SparseRead;

/// The places that have been claimed so far.
///
/// Memory is bounded: two bits for each mapping unit of the first [`Claims::UNITS`] units of the file, and the last payload
/// seen for each of [`Claims::PAYLOADS`] hash values. Behind those units, sharing is found by the sum: no more bytes can be
/// stored there than the file has.
pub(crate) struct Claims {
    unit: Option<u64>,
    file_len: u64,
    metadata: Bits,
    data: Bits,
    /// Units that are used more than once, with how often.
    shared: HashMap<u64, u64>,
    /// Bytes that were claimed in units that have no bits.
    untracked: u64,
    /// Offsets of compressed payloads, plus 1, by a hash of the offset.
    payloads: Vec<u64>,
}

impl Claims {
    /// 8 MiB of bits twice: 4 TiB of file with units of 64 KiB.
    const UNITS: u64 = 1 << 26;
    const PAYLOADS: usize = 1 << 15;
    /// No sound image comes near it: sharing within one state of a disk is something that only tests do.
    const SHARED: usize = 1 << 16;

    /// Claims for the image file of `reader`, with its metadata claimed already.
    pub fn new(reader: &dyn SparseRead, file_len: u64) -> Claims {
        let unit = reader.map_unit();
        let units = unit.map_or(0, |unit| file_len.div_ceil(unit).min(Self::UNITS));
        let mut claims = Claims {
            unit,
            file_len,
            metadata: Bits::new(units),
            data: Bits::new(units),
            shared: HashMap::new(),
            untracked: 0,
            payloads: Vec::new(),
        };
        if let Some(unit) = unit {
            reader.metadata(&mut |range: Range<u64>| {
                for index in range.start / unit..range.end.div_ceil(unit).min(units) {
                    claims.metadata.set(index);
                }
            });
        }
        claims
    }

    /// Claims what the bytes of `extent`, which is of `reader`, lie in.
    pub fn claim(&mut self, reader: &dyn SparseRead, extent: &Extent) -> Result<()> {
        let Some(unit) = self.unit else { return Ok(()) };
        let (offset, problem) = match extent.kind {
            ExtentKind::Data(at) if at.file == FileId::default() => {
                (at.offset, self.claim_data(reader, unit, at.offset..at.offset.saturating_add(extent.len)))
            }
            ExtentKind::Compressed(payload) => (payload.at.offset, self.claim_payload(unit, payload.at.offset)),
            _ => return Ok(()),
        };
        problem.map_or(Ok(()), |with| Err(overlap(reader, extent, offset, with)))
    }

    fn claim_data(&mut self, reader: &dyn SparseRead, unit: u64, range: Range<u64>) -> Option<&'static str> {
        // The part of a unit that the guest sees stands for the whole.
        for index in range.start / unit..range.end.div_ceil(unit) {
            if self.metadata.get(index) {
                return Some("metadata");
            }
            match self.data.set(index) {
                Some(false) => {}
                None => self.untracked = self.untracked.saturating_add(unit),
                Some(true) => {
                    let uses = self.shared.entry(index).or_insert(1);
                    *uses += 1;
                    if *uses > reader.references(index * unit) || self.shared.len() > Self::SHARED {
                        return Some("data of another guest range");
                    }
                }
            }
        }
        (self.untracked > self.file_len).then_some("data of another guest range")
    }

    /// Payloads share units with each other, but none is used twice.
    fn claim_payload(&mut self, unit: u64, offset: u64) -> Option<&'static str> {
        if self.metadata.get(offset / unit) {
            return Some("metadata");
        }
        if self.payloads.is_empty() {
            self.payloads = vec![0; Self::PAYLOADS];
        }
        let hash = offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49;
        let last = std::mem::replace(self.payloads.get_mut(hash as usize)?, offset + 1);
        (last == offset + 1).then_some("data of another guest range")
    }
}

fn overlap(reader: &dyn SparseRead, extent: &Extent, offset: u64, with: &'static str) -> Error {
    let field = format!("the mapping of guest offset {:#x}", extent.offset);
    Error::corrupt(reader.info().format, field, offset, Problem::Overlap { offset, with })
}

/// A set of small numbers.
struct Bits(Vec<u64>);

impl Bits {
    fn new(len: u64) -> Bits {
        Bits(vec![0; len.div_ceil(64) as usize])
    }

    fn get(&self, index: u64) -> bool {
        self.0.get((index / 64) as usize).is_some_and(|word| word >> (index % 64) & 1 != 0)
    }

    /// Adds `index` and tells whether it was there; nothing for a number that is too large.
    fn set(&mut self, index: u64) -> Option<bool> {
        let word = self.0.get_mut((index / 64) as usize)?;
        let bit = 1 << (index % 64);
        let was = *word & bit != 0;
        *word |= bit;
        Some(was)
    }
}
