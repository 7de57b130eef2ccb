//! Internal snapshots.

use std::sync::PoisonError;

use super::{Disk, Top};
use crate::driver::SnapshotUpdate;
use crate::error::{Error, Result};
use crate::io::unix_time;

impl Disk {
    /// Makes an internal snapshot of the disk as it is now, with the time of the system. [`info`](Self::info) lists the snapshots.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the format has none; [`Error::Limit`] if the image cannot have another one; errors of the storage and of the
    /// image, which is unchanged then.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Converter, Format, OpenOptions};
    ///
    /// let file = Arc::new(MemFile::new());
    /// Converter::new(Format::QCOW2).create_to(1 << 20, file.clone())?;
    /// let disk = OpenOptions::new().open_disk_in(file)?;
    /// disk.create_snapshot("before")?;
    /// disk.write_all_at(&[7; 512], 0)?;
    /// disk.apply_snapshot("before")?;
    /// let mut sector = [9; 512];
    /// disk.read_exact_at(&mut sector, 0)?;
    /// assert_eq!(sector, [0; 512]);
    /// disk.delete_snapshot("before")?;
    /// assert!(disk.info().snapshots.is_empty());
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn create_snapshot(&self, name: &str) -> Result<()> {
        let seconds = u32::try_from(unix_time().unwrap_or(0)).unwrap_or(u32::MAX);
        self.change_snapshots(|snapshots| snapshots.create(name, (seconds, 0)))
    }

    /// Gives the disk the content and the size that it had at a snapshot, given by ID or name. The present content is lost, unless another
    /// snapshot has it.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown snapshot; otherwise as [`create_snapshot`](Self::create_snapshot).
    pub fn apply_snapshot(&self, snapshot: &str) -> Result<()> {
        self.change_snapshots(|snapshots| snapshots.apply(snapshot))
    }

    /// Deletes a snapshot, given by ID or name.
    ///
    /// # Errors
    /// As [`apply_snapshot`](Self::apply_snapshot).
    pub fn delete_snapshot(&self, snapshot: &str) -> Result<()> {
        self.change_snapshots(|snapshots| snapshots.delete(snapshot))
    }

    fn change_snapshots(&self, change: impl FnOnce(&mut dyn SnapshotUpdate) -> Result<()>) -> Result<()> {
        // Nobody else has a request under way.
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        let mut driver = self.driver();
        let changed = driver.flush().and_then(|()| match driver.snapshots() {
            Some(snapshots) => change(snapshots),
            None => Err(Error::unsupported(self.format.name(), "internal snapshots")),
        });
        drop(driver);
        image.replace_top(Top::boxed(&self.driver));
        changed.map_err(|e| self.locate(e))
    }
}
