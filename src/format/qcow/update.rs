//! Changing an image in place. There are no reference counts and there is no mark: the order of [`MapUpdate`] is all.

use std::ops::Range;
use std::sync::Arc;

use super::header::{Header, backing_name};
use super::{FIELDS, FORMAT_NAME, entry, reader};
use crate::driver::{Allocation, Extent, ExtentKind, SparseUpdate, UpdateContext, UpdateSpec, Zeroed};
use crate::error::{Error, Result};
use crate::format::shared::two_level::{ENTRY, MapUpdate};
use crate::info::ImageInfo;
use crate::io::Storage;

/// An image that changes.
pub(super) struct Update {
    file: Arc<dyn Storage>,
    header: Header,
    map: MapUpdate,
}

impl Update {
    pub fn open(file: Arc<dyn Storage>, cx: &UpdateContext<'_>) -> Result<Update> {
        let header = Header::read(&*file, cx.open.limits)?;
        if header.is_encrypted {
            return Err(Error::unsupported(FORMAT_NAME, "writing to an encrypted image in place"));
        }
        if !header.l1_table_offset.is_multiple_of(ENTRY) {
            // An entry in two sectors would not be written at once.
            return Err(Error::unsupported(
                FORMAT_NAME,
                "writing to an image whose L1 table is not a multiple of 8 bytes into it",
            ));
        }
        let (bytes, file_len) = FIELDS.read_header(&*file)?;
        let (name, shape) = (backing_name(&bytes, file_len)?, header.shape());
        // Everything up to the end of the L1 table, and of the name.
        let l1_end = shape.l1_offset + shape.l1_entries() * ENTRY;
        let reserved = [0..l1_end, name.map_or(0..0, |name| name.start..name.end)];
        let map = MapUpdate::new(file.clone(), shape, entry::kind, reserved)?;
        Ok(Update { file, header, map })
    }
}

impl SparseUpdate for Update {
    fn info(&self) -> ImageInfo {
        reader::describe(&self.header)
    }

    fn spec(&self) -> UpdateSpec {
        UpdateSpec::new(self.map.shape.cluster_size())
    }

    fn files(&self) -> Vec<Arc<dyn Storage>> {
        vec![self.file.clone()]
    }

    fn extent_at(&mut self, range: Range<u64>) -> Result<Extent> {
        self.map.extent_at(range)
    }

    fn allocate(&mut self, guest: Range<u64>) -> Result<Allocation> {
        if self.map.is_full() {
            self.flush()?;
        }
        self.map.allocate(guest)
    }

    fn publish(&mut self, allocation: &Allocation) -> Result<()> {
        self.map.publish(allocation)
    }

    fn release(&mut self, allocation: &Allocation) {
        self.map.release(allocation);
    }

    /// Whether the cluster reads as zeros already: there are no zero clusters.
    fn zero(&mut self, guest: Range<u64>, _keep: bool) -> Result<Zeroed> {
        let len = self.map.one_cluster(&guest);
        Ok(match self.map.kind_at(guest.start)? {
            ExtentKind::Hole if self.header.backing_file.is_none() => Zeroed::ByMetadata(len),
            _ => Zeroed::Not(len),
        })
    }

    fn resize(&mut self, _size: u64, _below: u64) -> Result<()> {
        // The L1 table has no room to grow, and qemu does not resize such images either.
        Err(Error::unsupported(FORMAT_NAME, "changing the size"))
    }

    fn empty(&mut self) -> Result<()> {
        self.map.empty()
    }

    fn flush(&mut self) -> Result<()> {
        self.map.flush()
    }
}
