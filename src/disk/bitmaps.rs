//! Persistent bitmaps, which track writes between backups.

use std::sync::PoisonError;

use super::{Disk, Top};
use crate::driver::{BitmapChange, DirtyBitmap};
use crate::error::Result;

impl Disk {
    /// Adds or changes the persistent bitmap called `name`, and makes that durable. A power cut leaves the image with the change or without it.
    ///
    /// Enabled bitmaps record what is written to the disk. From the first write on they are marked as in use, until [`close`](Disk::close): those of
    /// a disk that was not closed are inconsistent, as with qemu.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) if the image cannot have bitmaps; [`Error::Usage`](crate::Error::Usage) if there is no
    /// such bitmap, or one to be added is there; errors of the storage.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::driver::BitmapChange;
    /// use diskimage::io::MemFile;
    /// use diskimage::{Converter, Format, OpenOptions};
    ///
    /// let file = Arc::new(MemFile::new());
    /// Converter::new(Format::QCOW2).create_to(1 << 20, file.clone())?;
    /// let disk = OpenOptions::new().open_disk_in(file)?;
    /// disk.change_bitmap("backup", BitmapChange::Add { granularity: None, enabled: true })?;
    /// disk.change_bitmap("backup", BitmapChange::Disable)?;
    /// assert!(disk.change_bitmap("other", BitmapChange::Remove).is_err());
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn change_bitmap(&self, name: &str, change: BitmapChange) -> Result<()> {
        // Nobody else has a request under way.
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        let changed = self.driver().change_bitmap(name, change);
        image.replace_top(Top::boxed(&self.driver));
        changed.map_err(|e| self.locate(e))
    }

    /// The persistent bitmaps. Their bits can be read until a bitmap is changed.
    ///
    /// # Errors
    /// Errors of the storage and of the image.
    pub fn bitmaps(&self) -> Result<Vec<DirtyBitmap>> {
        self.driver().bitmaps().map_err(|e| self.locate(e))
    }

    /// Sets the bits of the bitmap `source`, of a disk of the same size, in the persistent bitmap called `name`, and makes that durable. Where
    /// their granularities differ, a bit is set if any part of its range is set in the other one.
    ///
    /// # Errors
    /// As [`change_bitmap`](Self::change_bitmap); [`Error::Usage`](crate::Error::Usage) if one of the bitmaps is inconsistent.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::driver::{BitmapChange, DirtyBitmap};
    /// use diskimage::io::MemFile;
    /// use diskimage::{Converter, Format, OpenOptions};
    ///
    /// let file = Arc::new(MemFile::new());
    /// Converter::new(Format::QCOW2).create_to(1 << 20, file.clone())?;
    /// let disk = OpenOptions::new().open_disk_in(file)?;
    /// disk.change_bitmap("week", BitmapChange::Add { granularity: Some(128 << 10), enabled: false })?;
    /// // The second of 16 blocks of 64 KiB.
    /// let monday = DirtyBitmap::new("monday", 64 << 10, Arc::new(MemFile::from(vec![0b10, 0])));
    /// disk.merge_bitmap("week", &monday)?;
    /// let mut bits = [0];
    /// disk.bitmaps()?[0].bits.read_exact_at(&mut bits, 0).unwrap();
    /// assert_eq!(bits, [0b1]);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn merge_bitmap(&self, name: &str, source: &DirtyBitmap) -> Result<()> {
        // Nobody else has a request under way.
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        let merged = self.driver().merge_bitmap(name, source);
        image.replace_top(Top::boxed(&self.driver));
        merged.map_err(|e| self.locate(e))
    }
}
