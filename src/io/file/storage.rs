//! Files that are read and written.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::source::{read_sectors, run_of_data};
use super::{FileIdentity, FileKind, sys};
use crate::io::{ReadAt, WriteAt, lock};

/// An existing regular file or block device, opened for reading and writing.
///
/// # Examples
///
/// ```
/// use diskimage::io::{FileStorage, ReadAt, WriteAt};
///
/// # fn main() -> std::io::Result<()> {
/// # let path = std::env::temp_dir().join(format!("diskimage-doc-storage-{}", std::process::id()));
/// std::fs::write(&path, b"content")?;
/// let file = FileStorage::open(&path)?;
/// file.write_all_at(b"trol", 3)?;
/// let mut buf = [0; 7];
/// file.read_exact_at(&mut buf, 0)?;
/// assert_eq!(&buf, b"control");
/// # std::fs::remove_file(&path)
/// # }
/// ```
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    kind: FileKind,
    path: PathBuf,
    locked: AtomicBool,
}

impl FileStorage {
    /// Opens `path`, following symbolic links. A device is opened for exclusive use: not while it is mounted.
    ///
    /// # Errors
    /// Those of the system, and [`io::ErrorKind::InvalidInput`] for anything but a regular file or a block device.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = sys::open_writable(path)?;
        let mut kind = sys::kind(&file)?;
        if kind.is_device() {
            file = sys::open_device(path)?;
            kind = sys::kind(&file)?;
        }
        match kind {
            FileKind::Other => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a block device"))
            }
            kind => Ok(FileStorage { file, kind, path: path.to_owned(), locked: AtomicBool::new(false) }),
        }
    }

    /// Locks the file as QEMU does for writing, until this is dropped. Does nothing where there are no such locks: on other systems than
    /// Linux, and on some file systems.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if another program, for example a virtual machine, has the image open.
    pub fn lock(&self) -> io::Result<()> {
        lock::start_updating(&self.file)?;
        self.locked.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for FileStorage {
    fn drop(&mut self) {
        if *self.locked.get_mut() {
            lock::stop(&self.file);
        }
    }
}

impl ReadAt for FileStorage {
    fn size(&self) -> io::Result<u64> {
        sys::size(&self.file, self.kind.is_device())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.kind {
            FileKind::Device { sector } if sector > 1 => read_sectors(&self.file, sector, buf, offset),
            _ => sys::read_at(&self.file, buf, offset),
        }
    }

    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        FileIdentity::from_file(&self.file).map(Some)
    }

    fn allocated(&self) -> io::Result<Option<u64>> {
        sys::allocated(&self.file).map(Some)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        run_of_data(sys::next_data(&self.file, offset), offset, || self.size())
    }

    fn name(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

impl WriteAt for FileStorage {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        sys::write_all_at(&self.file, buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        WriteAt::set_len(&self.file, len)
    }

    fn sync(&self) -> io::Result<()> {
        sys::sync(&self.file)
    }

    /// A regular file that grows reads as zeros there; a device has old content.
    fn starts_zeroed(&self) -> bool {
        !self.kind.is_device()
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        WriteAt::zero_range(&self.file, range)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        WriteAt::allocate(&self.file, range)
    }
}
