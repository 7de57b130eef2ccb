//! Opening disks.

use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};

use super::ranges::RangeLocks;
use super::{Disk, Top};
use crate::driver::UpdateContext;
use crate::error::Result;
use crate::format::Format;
use crate::image::{OpenOptions, TopLayer};
use crate::io::Storage;

impl OpenOptions {
    /// Opens the image at `path` for reading and writing. Its backing files are opened for reading.
    ///
    /// On Linux the image is locked as QEMU does it: while this program or a virtual machine has it open for writing, the other cannot
    /// open it.
    ///
    /// # Errors
    /// [`Error::InUse`](crate::Error::InUse) if another program has it open; [`Error::Unsupported`](crate::Error::Unsupported) for an image
    /// that cannot be written in place; and as [`open`](Self::open).
    ///
    /// ```no_run
    /// use diskimage::OpenOptions;
    ///
    /// let disk = OpenOptions::new().open_disk("disk.qcow2")?;
    /// disk.write_zeros(0..1 << 20)?;
    /// disk.close()?;
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn open_disk(&self, path: impl AsRef<Path>) -> Result<Disk> {
        let path = path.as_ref();
        let open = || self.open_disk_at(self.open_storage(path)?, Some(path));
        open().map_err(|e| e.in_file(path))
    }

    /// Opens the image in `storage` for reading and writing. Referenced files are opened by the [`resolver`](Self::resolver), if there is one.
    ///
    /// # Errors
    /// As [`open_disk`](Self::open_disk).
    pub fn open_disk_in(&self, storage: Arc<dyn Storage>) -> Result<Disk> {
        self.open_disk_at(storage, None)
    }

    /// Opens the image at `path` for reading and writing, without its backing file: what the image does not have reads as zeros. For changes of
    /// its header, also if there is no such file.
    ///
    /// # Errors
    /// As [`open_disk`](Self::open_disk).
    pub fn open_disk_alone(&self, path: impl AsRef<Path>) -> Result<Disk> {
        self.clone().alone(true).open_disk(path)
    }

    /// Opens an image whose backing file is going to be changed by another [`Disk`], which locks it.
    pub(super) fn open_disk_of_chain(&self, path: &Path) -> Result<Disk> {
        let open = || self.clone().force_share(true).open_disk_at(self.open_storage(path)?, Some(path));
        open().map_err(|e| e.in_file(path))
    }

    fn open_disk_at(&self, storage: Arc<dyn Storage>, path: Option<&Path>) -> Result<Disk> {
        let opened = Mutex::new(None);
        let open = |format: Format, storage: Arc<dyn Storage>, cx: &UpdateContext<'_>| {
            let driver = format.open_update(storage, cx)?;
            let (files, spec) = (driver.files(), driver.spec());
            let driver = Arc::new(Mutex::new(driver));
            let reader = Top::boxed(&driver);
            *opened.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((driver, files.clone(), spec));
            Ok(TopLayer { reader, files })
        };
        let image = self.open_chain_over(storage, path, &open)?;
        let opened = opened.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (driver, files, spec) = opened.ok_or_else(|| crate::error::Error::Usage("no image was opened".into()))?;
        Ok(Disk {
            format: image.format(),
            image: RwLock::new(image),
            driver,
            files,
            spec,
            ranges: RangeLocks::default(),
            path: path.map(Path::to_owned),
            is_closed: false,
        })
    }
}
