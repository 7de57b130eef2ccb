//! Which places of an image file are taken.
//!
//! Guest bytes have a place of their own. An image in which two guest ranges share one, or in which guest bytes lie where
//! metadata is, is corrupt: a reader would give one range the other's bytes. It is also how a small file expands to any
//! size. A conversion passes each guest byte once and in order, so that it can tell.

use std::ops::Range;

use crate::error::{Fault, Problem, Result};
use crate::extent::{Extent, ExtentKind, FileId};
use crate::sparse::SparseRead;

/// The places that have been claimed so far.
///
/// Memory is bounded: a bit for each mapping unit of the first [`Claims::UNITS`] units of the file, and the last payload
/// seen for each of [`Claims::PAYLOADS`] hash values. Beyond that, sharing is found by the sum: no more bytes can be stored
/// than the file has.
pub(crate) struct Claims {
    format: &'static str,
    unit: Option<u64>,
    taken: Vec<u64>,
    file_len: u64,
    /// Bytes that were claimed as data.
    total: u64,
    /// Offsets of compressed payloads, plus 1, by a hash of the offset.
    payloads: Vec<u64>,
}

impl Claims {
    /// 8 MiB of bits: 4 TiB of file with units of 64 KiB.
    const UNITS: u64 = 1 << 26;
    const PAYLOADS: usize = 1 << 15;

    /// Claims for the image file of `reader`, with its metadata claimed already.
    pub fn new(reader: &dyn SparseRead, file_len: u64) -> Claims {
        let unit = reader.map_unit();
        let units = unit.map_or(0, |unit| file_len.div_ceil(unit).min(Self::UNITS));
        let mut claims = Claims {
            format: reader.info().format,
            unit,
            taken: vec![0; units.div_ceil(64) as usize],
            file_len,
            total: 0,
            payloads: Vec::new(),
        };
        reader.metadata(&mut |range| {
            claims.take(range);
        });
        claims
    }

    /// Claims what the extent's bytes lie in.
    pub fn claim(&mut self, extent: &Extent) -> Result<()> {
        let Some(unit) = self.unit else { return Ok(()) };
        match extent.kind {
            ExtentKind::Data(at) if at.file == FileId::default() => {
                // The visible part of a unit stands for the whole.
                let end = at.offset.saturating_add(extent.len).next_multiple_of(unit);
                self.total += extent.len;
                if self.take(at.offset / unit * unit..end) || self.total > self.file_len {
                    return Err(self.shared(extent, at.offset));
                }
            }
            ExtentKind::Compressed(payload) => {
                let offset = payload.at.offset;
                if self.unit_is_taken(offset) || self.take_payload(offset) {
                    return Err(self.shared(extent, offset));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Marks the units of `range` as taken, and tells whether one of them was.
    fn take(&mut self, range: Range<u64>) -> bool {
        let Some(unit) = self.unit else { return false };
        let end = range.end.div_ceil(unit).min(self.taken.len() as u64 * 64);
        let mut overlaps = false;
        for index in range.start / unit..end {
            if let Some(word) = self.taken.get_mut((index / 64) as usize) {
                let bit = 1 << (index % 64);
                overlaps |= *word & bit != 0;
                *word |= bit;
            }
        }
        overlaps
    }

    /// Whether `offset` lies in a unit that is taken as a whole. Payloads share units with each other, and take none.
    fn unit_is_taken(&self, offset: u64) -> bool {
        let index = self.unit.map_or(0, |unit| offset / unit);
        self.taken.get((index / 64) as usize).is_some_and(|word| word >> (index % 64) & 1 != 0)
    }

    /// Notes a payload, and tells whether the same one was noted before.
    fn take_payload(&mut self, offset: u64) -> bool {
        if self.payloads.is_empty() {
            self.payloads = vec![0; Self::PAYLOADS];
        }
        let hash = offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49;
        match self.payloads.get_mut(hash as usize) {
            Some(place) => std::mem::replace(place, offset + 1) == offset + 1,
            None => false,
        }
    }

    fn shared(&self, extent: &Extent, offset: u64) -> crate::error::Error {
        let field = format!("the mapping of guest offset {:#x}", extent.offset);
        Fault::new(
            self.format,
            field,
            offset,
            Problem::Overlap { offset, with: "metadata or data of another guest range" },
        )
    }
}
