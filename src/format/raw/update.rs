//! Writing to a raw disk in place.

use std::ops::Range;
use std::sync::Arc;

use super::{FIELDS, FORMAT_NAME};
use crate::driver::{Allocation, Extent, ExtentKind, FileId, Location, SparseUpdate, UpdateContext, UpdateSpec};
use crate::error::{Error, Result};
use crate::format::shared::table;
use crate::info::ImageInfo;
use crate::io::Storage;
use crate::limits::LimitName;

/// A raw disk whose sectors are written where they are.
pub(super) struct Update {
    file: Arc<dyn Storage>,
    virtual_size: u64,
}

impl Update {
    pub fn open(file: Arc<dyn Storage>, cx: &UpdateContext<'_>) -> Result<Self> {
        let virtual_size = table::length(&*file)?;
        FIELDS.at("size", 0).within_limit(LimitName::VirtualSize, virtual_size, cx.open.limits.virtual_size)?;
        Ok(Update { file, virtual_size })
    }
}

fn location(offset: u64) -> Location {
    Location { file: FileId::default(), offset }
}

impl SparseUpdate for Update {
    fn info(&self) -> ImageInfo {
        ImageInfo::new(FORMAT_NAME, self.virtual_size)
    }

    fn spec(&self) -> UpdateSpec {
        UpdateSpec::new(1)
    }

    fn files(&self) -> Vec<Arc<dyn Storage>> {
        vec![self.file.clone()]
    }

    fn extent_at(&mut self, range: Range<u64>) -> Result<Extent> {
        let at = location(range.start);
        Ok(Extent::new(range, ExtentKind::Data(at)))
    }

    fn allocate(&mut self, guest: Range<u64>) -> Result<Allocation> {
        let at = location(guest.start);
        Ok(Allocation { guest, at, is_new: false, reads_as_zeros: false })
    }

    fn publish(&mut self, _allocation: &Allocation) -> Result<()> {
        Ok(())
    }

    fn release(&mut self, _allocation: &Allocation) {}

    /// A device keeps its size.
    fn resize(&mut self, size: u64, _below: u64) -> Result<()> {
        if !self.file.starts_zeroed() {
            return match size == self.virtual_size {
                true => Ok(()),
                false => Err(Error::unsupported(FORMAT_NAME, "changing the size of a device")),
            };
        }
        self.file.set_len(size).map_err(Error::io("setting the length", size))?;
        self.virtual_size = size;
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        self.file.sync().map_err(Error::io("syncing", None))
    }
}
