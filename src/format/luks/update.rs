//! Writing to a volume in place.

use std::ops::Range;
use std::sync::Arc;

use super::FORMAT_NAME;
use super::reader::Volume;
use crate::crypto::Encrypted;
use crate::driver::{Allocation, Extent, ExtentKind, FileId, Location, SparseUpdate, UpdateContext, UpdateSpec};
use crate::error::{Error, Result};
use crate::info::ImageInfo;
use crate::io::{Storage, WriteAt};

/// A volume whose sectors are written where they are.
pub(super) struct Update {
    info: ImageInfo,
    /// Offset of the guest data in bytes.
    payload: u64,
    sector_size: u64,
    /// Whether the volume ends with the file.
    ends_with_file: bool,
    /// The file with the guest data decrypted.
    decrypted: Arc<Encrypted>,
}

impl Update {
    pub fn open(file: Arc<dyn Storage>, cx: &UpdateContext<'_>) -> Result<Update> {
        let volume = Volume::read(&*file, &cx.open)?;
        let (info, payload, first) = (volume.info.clone(), volume.payload, volume.first);
        let ends_with_file = volume.ends_with_file() && file.starts_zeroed();
        let cipher = volume.unlock(&*file, &cx.open)?;
        let sector_size = cipher.sector_size() as u64;
        let decrypted = Arc::new(Encrypted::new(file, cipher, payload, first));
        Ok(Update { info, payload, sector_size, ends_with_file, decrypted })
    }

    fn location(&self, guest: u64) -> Location {
        Location { file: FileId::default(), offset: self.payload + guest }
    }
}

impl SparseUpdate for Update {
    fn info(&self) -> ImageInfo {
        self.info.clone()
    }

    /// A sector is encrypted as a whole, so that requests for one exclude each other.
    fn spec(&self) -> UpdateSpec {
        UpdateSpec::new(self.sector_size)
    }

    fn files(&self) -> Vec<Arc<dyn Storage>> {
        vec![self.decrypted.clone()]
    }

    fn extent_at(&mut self, range: Range<u64>) -> Result<Extent> {
        self.info.check_offset(range.start)?;
        let at = self.location(range.start);
        Ok(Extent::new(range, ExtentKind::Data(at)))
    }

    fn allocate(&mut self, guest: Range<u64>) -> Result<Allocation> {
        let at = self.location(guest.start);
        Ok(Allocation { guest, at, is_new: false, reads_as_zeros: false })
    }

    fn publish(&mut self, _allocation: &Allocation) -> Result<()> {
        Ok(())
    }

    fn release(&mut self, _allocation: &Allocation) {}

    /// What is added is written: nothing else decrypts to zeros. An interruption leaves a size in between.
    fn resize(&mut self, size: u64, _below: u64) -> Result<()> {
        let old = self.info.virtual_size;
        if size == old {
            return Ok(());
        }
        if !self.ends_with_file {
            return Err(Error::unsupported(
                FORMAT_NAME,
                "changing the size of a volume that does not end with its file",
            ));
        }
        let limit = (i64::MAX as u64 - self.payload) / self.sector_size * self.sector_size;
        let rounded = size.checked_next_multiple_of(self.sector_size).filter(|rounded| *rounded <= limit);
        let field = || "virtual size".into();
        let size = rounded.ok_or_else(|| Error::Limit {
            format: FORMAT_NAME,
            field: field(),
            at: None,
            value: size,
            limit,
        })?;
        let end = |size: u64| self.payload + size;
        let resize = || match size < old {
            true => self.decrypted.set_len(end(size)),
            // The file may end within a sector, which is not part of the disk.
            false => self.decrypted.set_len(end(old)).and_then(|()| self.decrypted.zero_range(end(old)..end(size))),
        };
        resize().map_err(Error::io("changing the size", end(size))).inspect_err(|_| {
            // A part of it may have been written.
            let _ = self.decrypted.set_len(end(old));
        })?;
        self.info.virtual_size = size;
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        self.decrypted.sync().map_err(Error::io("syncing", None))
    }
}
