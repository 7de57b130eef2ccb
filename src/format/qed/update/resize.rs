//! The size of the disk.

use std::ops::Range;

use super::{IMAGE_SIZE_AT, Update};
use crate::driver::{ExtentKind, SparseUpdate};
use crate::error::{Error, Result};
use crate::format::qed::FORMAT_NAME;
use crate::format::qed::entry::ZERO;
use crate::format::shared::{end_is_allocated, whole_sectors};

impl Update {
    /// Makes the disk larger, or smaller where it has no data. The backing file has `below` bytes.
    pub(super) fn set_size(&mut self, size: u64, below: u64) -> Result<()> {
        let (size, old) = (whole_sectors(FORMAT_NAME, size)?, self.header.image_size);
        let shape = self.map.shape;
        self.check_unused(size.next_multiple_of(shape.cluster_size())..old)?;
        let limit = shape.l2_coverage().saturating_mul(shape.l2_entries);
        if size > limit {
            return Err(Error::limit(FORMAT_NAME, "virtual size", size, limit));
        }
        self.begin()?;
        self.clear_entries(old.next_multiple_of(shape.cluster_size())..size, below)?;
        self.flush()?;
        self.write_header(&size.to_le_bytes(), IMAGE_SIZE_AT)?;
        self.header.image_size = size;
        self.map.shape.virtual_size = size;
        self.map.sync()
    }

    /// Makes guest clusters that the disk gets read as zeros, also where the backing file, which has `below` bytes, has data.
    fn clear_entries(&mut self, guest: Range<u64>, below: u64) -> Result<()> {
        let mut offset = guest.start;
        while offset < guest.end {
            let hides = offset < below && self.header.backing.is_some();
            if !hides && self.map.l2_entry_at(offset)?.is_none() {
                offset = self.map.next_table(offset);
                continue;
            }
            let (kind, value) =
                if hides { (ExtentKind::Zero { allocated: None }, ZERO) } else { (ExtentKind::Hole, 0) };
            if self.map.kind_at(offset)? != kind {
                self.map.set_entry(offset, value)?;
            }
            if self.map.is_full() {
                self.flush()?;
            }
            offset += self.map.shape.cluster_size();
        }
        Ok(())
    }

    /// Checks that a guest range has neither data nor tables of its own.
    fn check_unused(&mut self, guest: Range<u64>) -> Result<()> {
        let (coverage, mut offset) = (self.map.shape.l2_coverage(), guest.start);
        while offset < guest.end {
            let is_own = offset.is_multiple_of(coverage);
            match self.map.l2_entry_at(offset)? {
                None => offset = self.map.next_table(offset),
                Some(_) if is_own || matches!(self.map.kind_at(offset)?, ExtentKind::Data(_)) => {
                    return Err(end_is_allocated(FORMAT_NAME));
                }
                Some(_) => offset += self.map.shape.cluster_size(),
            }
        }
        Ok(())
    }
}
