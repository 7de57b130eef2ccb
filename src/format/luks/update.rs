//! Writing to a volume in place.

use std::ops::Range;
use std::sync::Arc;

use super::FORMAT_NAME;
use super::reader::Volume;
use crate::crypto::EncryptedFile;
use crate::driver::{
    Allocation, Extent, ExtentKind, FileId, KeyChange, Location, SparseUpdate, UpdateContext, UpdateSpec,
};
use crate::error::{Error, Result};
use crate::format::shared::luks::KeySlots;
use crate::info::ImageInfo;
use crate::io::Storage;

/// A volume whose sectors are written where they are.
pub(super) struct Update {
    info: ImageInfo,
    /// Offset of the guest data in bytes.
    payload: u64,
    sector_size: u64,
    /// Whether the header has the size of the disk, which otherwise ends with the file.
    has_size: bool,
    /// Those that can be changed.
    keys: Option<KeySlots>,
    file: Arc<dyn Storage>,
    /// The file with the guest data in plain text.
    disk: Arc<dyn Storage>,
}

impl Update {
    pub fn open(file: Arc<dyn Storage>, cx: &UpdateContext<'_>) -> Result<Update> {
        let volume = Volume::read(&*file, &cx.open)?;
        let (info, payload, first, has_size) = (volume.info.clone(), volume.payload, volume.first, volume.has_size());
        let keys = volume.key_slots(&*file, &cx.open)?;
        let cipher = match &keys {
            Some(keys) => keys.cipher()?,
            None => volume.unlock(&*file, &cx.open)?,
        };
        let sector_size = cipher.sector_size() as u64;
        let disk = Arc::new(EncryptedFile::new(file.clone(), cipher, payload, first));
        Ok(Update { info, payload, sector_size, has_size, keys, file, disk })
    }

    fn location(&self, guest: u64) -> Location {
        Location { file: FileId::default(), offset: self.payload + guest }
    }
}

impl SparseUpdate for Update {
    fn info(&self) -> ImageInfo {
        self.info.clone()
    }

    fn spec(&self) -> UpdateSpec {
        UpdateSpec::new(self.sector_size)
    }

    fn files(&self) -> Vec<Arc<dyn Storage>> {
        vec![self.disk.clone()]
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

    /// What is added is not written: it has undefined content, as all of a new volume.
    fn resize(&mut self, size: u64, _below: u64) -> Result<()> {
        let unsupported = |feature: &'static str| Err(Error::unsupported(FORMAT_NAME, feature));
        if self.has_size {
            return unsupported("changing the size of a volume whose header has it");
        }
        if !self.file.starts_zeroed() {
            return unsupported("changing the size of a device");
        }
        let limit = i64::MAX as u64;
        let size = size.checked_next_multiple_of(self.sector_size).unwrap_or(u64::MAX);
        let Some(len) = self.payload.checked_add(size).filter(|len| *len <= limit) else {
            return Err(Error::limit(FORMAT_NAME, "size", size, limit));
        };
        self.file.set_len(len).map_err(Error::io("setting the length", len))?;
        self.info.virtual_size = size;
        self.flush()
    }

    fn change_keys(&mut self, change: &KeyChange) -> Result<()> {
        let unsupported =
            || Error::unsupported(FORMAT_NAME, "changing the keys of this version, or of a detached header");
        self.keys.as_mut().ok_or_else(unsupported)?.change(&*self.file, change)
    }

    fn flush(&mut self) -> Result<()> {
        self.file.sync().map_err(Error::io("syncing", None))
    }
}
