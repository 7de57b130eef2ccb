//! Repairs, and the old metadata that is kept of them.

use std::path::Path;
use std::sync::Arc;

use super::backup;
use super::trial::Trial;
use crate::driver::{Repair, RepairReport};
use crate::error::Result;
use crate::image::OpenOptions;
use crate::io::Storage;

impl OpenOptions {
    /// Repairs the metadata of the image at `path`, which is locked as for [`open_disk`](Self::open_disk). The backing file is not opened.
    ///
    /// Only what follows from the rest of the metadata is changed, so that nothing that can be read is lost: the reference counts of qcow2,
    /// and the marks of an image that was not closed, or found to be corrupt; the number of allocated blocks of VDI; the footer of VHD or its
    /// copy; the grain directory of VMDK, where the redundant one has what it lacks; clusters of Parallels
    /// images that several entries share, and space after all clusters. The log of VHDX is replayed.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) if there are no repairs for the format; and as [`open_disk`](Self::open_disk).
    ///
    /// ```no_run
    /// use diskimage::{OpenOptions, Repair};
    ///
    /// let report = OpenOptions::new().repair("disk.qcow2", Repair::Leaks)?;
    /// println!("{} clusters are free again, {} faults are left", report.leaks_fixed, report.after.corruptions);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn repair(&self, path: impl AsRef<Path>, what: Repair) -> Result<RepairReport> {
        let path = path.as_ref();
        let repair = || self.repair_in(self.open_storage(path)?, Some(path), what);
        repair().map_err(|e| e.in_file(path))
    }

    /// Repairs the metadata of the image at `path`, and before anything is changed, writes the old content of all that will be to a new file at
    /// `backup`. There is no such file if nothing has to be changed.
    ///
    /// The repair is done twice: first with a file in the [temporary directory](Self::temporary_directory), which has the changes. The backup is that
    /// of metadata, a few KiB for most images. [`restore_backup`](Self::restore_backup) puts it back.
    ///
    /// # Errors
    /// As [`repair`](Self::repair); errors of the backup file, as if something is at its path. The image is unchanged then.
    ///
    /// ```no_run
    /// use diskimage::{OpenOptions, Repair};
    ///
    /// let report = OpenOptions::new().repair_with_backup("disk.qcow2", Repair::All, "disk.backup")?;
    /// if report.after.corruptions > report.before.corruptions {
    ///     OpenOptions::new().restore_backup("disk.qcow2", "disk.backup")?;
    /// }
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn repair_with_backup(
        &self,
        path: impl AsRef<Path>,
        what: Repair,
        backup: impl AsRef<Path>,
    ) -> Result<RepairReport> {
        let (path, backup) = (path.as_ref(), backup.as_ref());
        let storage = self.open_storage(path).map_err(|e| e.in_file(path))?;
        let trial = Arc::new(Trial::new(storage.clone(), &self.spool_directory()).map_err(|e| e.in_file(path))?);
        let report = self.repair_in(trial.clone(), Some(path), what).map_err(|e| e.in_file(path))?;
        if trial.changed().is_empty() {
            return Ok(report);
        }
        backup::write(&storage, &trial, backup).map_err(|e| e.in_file(backup))?;
        self.repair_in(storage, Some(path), what).map_err(|e| e.in_file(path))
    }

    /// Gives the image at `path`, which is locked as for [`open_disk`](Self::open_disk), the metadata that it had before a
    /// [repair](Self::repair_with_backup), also one that was interrupted.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) for a damaged backup; [`Error::Usage`](crate::Error::Usage) if the image is not as the repair left
    /// it, because it is another one, or something has changed the same metadata since; errors of the storage. An interrupted call can be repeated.
    pub fn restore_backup(&self, path: impl AsRef<Path>, backup: impl AsRef<Path>) -> Result<()> {
        let (path, backup) = (path.as_ref(), backup.as_ref());
        let storage = self.open_storage(path).map_err(|e| e.in_file(path))?;
        backup::restore(backup, &*storage).map_err(|e| e.in_file(backup))
    }

    /// Repairs the metadata of the image in `storage`.
    ///
    /// # Errors
    /// As [`repair`](Self::repair).
    pub fn repair_storage(&self, storage: Arc<dyn Storage>, what: Repair) -> Result<RepairReport> {
        self.repair_in(storage, None, what)
    }
}
