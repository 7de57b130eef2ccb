//! The size of the disk.

use std::ops::Range;

use super::{IMAGE_SIZE_AT, Update};
use crate::driver::SparseUpdate;
use crate::error::{Error, Result};
use crate::format::qed::FORMAT_NAME;
use crate::format::qed::entry::{L2Entry, ZERO};
use crate::format::shared::{end_is_allocated, whole_sectors};

impl Update {
    /// Makes the disk larger, or smaller where it has no data. The backing file has `below` bytes.
    pub(super) fn set_size(&mut self, size: u64, below: u64) -> Result<()> {
        let (size, old) = (whole_sectors(FORMAT_NAME, size)?, self.header.image_size);
        let shape = self.shape();
        self.check_unused(size.next_multiple_of(self.cluster_size())..old)?;
        let limit = shape.l2_coverage().saturating_mul(shape.l2_entries);
        if size > limit {
            let field = "virtual size".into();
            return Err(Error::Limit { name: None, format: FORMAT_NAME, field, at: None, value: size, limit });
        }
        self.begin()?;
        self.clear_entries(old.next_multiple_of(self.cluster_size())..size, below)?;
        self.flush()?;
        self.write_header(&size.to_le_bytes(), IMAGE_SIZE_AT)?;
        self.header.image_size = size;
        self.sync()
    }

    /// Makes guest clusters that the disk gets read as zeros, also where the backing file, which has `below` bytes, has data.
    fn clear_entries(&mut self, guest: Range<u64>, below: u64) -> Result<()> {
        let (coverage, cluster_size) = (self.shape().l2_coverage(), self.cluster_size());
        let mut offset = guest.start;
        while offset < guest.end {
            let hides = offset < below && self.header.backing.is_some();
            match self.l2_entry_at(offset)? {
                None if !hides => {
                    offset = (offset / coverage + 1).saturating_mul(coverage);
                    continue;
                }
                _ => {}
            }
            let value = if hides { ZERO } else { 0 };
            if self.entry(offset)?.0 != L2Entry::parse(value) {
                self.set_entry(offset, value)?;
            }
            if self.pages.is_full() {
                self.flush()?;
            }
            offset += cluster_size;
        }
        Ok(())
    }

    /// Checks that a guest range has neither data nor tables of its own.
    fn check_unused(&mut self, guest: Range<u64>) -> Result<()> {
        let (coverage, mut offset) = (self.shape().l2_coverage(), guest.start);
        while offset < guest.end {
            let is_own = offset.is_multiple_of(coverage);
            match self.l2_entry_at(offset)? {
                None => offset = (offset / coverage + 1).saturating_mul(coverage),
                Some(_) if is_own || matches!(self.entry(offset)?.0, L2Entry::Data(_)) => {
                    return Err(end_is_allocated(FORMAT_NAME));
                }
                Some(_) => offset += self.cluster_size(),
            }
        }
        Ok(())
    }
}
