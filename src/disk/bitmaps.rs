//! Persistent bitmaps, which track writes between backups.

use std::sync::PoisonError;

use super::{Disk, Top};
use crate::driver::BitmapChange;
use crate::error::Result;

impl Disk {
    /// Adds or changes the persistent bitmap called `name`, and makes that durable. A power cut leaves the image with the change or without it.
    ///
    /// Writes by a [`Disk`] are not tracked: they mark enabled bitmaps as inconsistent.
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
}
