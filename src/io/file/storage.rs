//! Files that are read and written.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{FileIdentity, FileSource, sys, target};
use crate::io::{ReadAt, WriteAt};

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
    source: FileSource,
    path: PathBuf,
}

impl FileStorage {
    /// Opens `path`, following symbolic links. A device is opened for exclusive use: not while it is mounted.
    ///
    /// # Errors
    /// Those of the system, and [`io::ErrorKind::InvalidInput`] for anything but a regular file or a block device.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = sys::open_writable(path)?;
        if sys::kind(&file)?.is_device() {
            file = sys::open_device(path)?;
        }
        Self::from_file(file, path)
    }

    /// A file that was opened for reading and writing; `path` is what messages call it.
    pub(super) fn from_file(file: File, path: &Path) -> io::Result<Self> {
        Ok(FileStorage { source: FileSource::try_from(file)?, path: path.to_owned() })
    }

    /// Locks the file as QEMU does for writing, until this is dropped. Does nothing where there are no such locks: on other systems than
    /// Linux, and on some file systems.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if another program, for example a virtual machine, has the image open.
    pub fn lock(&self) -> io::Result<()> {
        self.source.lock_for_update()
    }
}

impl ReadAt for FileStorage {
    fn size(&self) -> io::Result<u64> {
        self.source.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.source.read_at(buf, offset)
    }

    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        ReadAt::identity(&self.source)
    }

    fn allocated(&self) -> io::Result<Option<u64>> {
        ReadAt::allocated(&self.source)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.source.next_data(offset)
    }

    fn name(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

impl WriteAt for FileStorage {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        sys::write_all_at(self.source.file(), buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        target::set_len(self.source.file(), self.source.is_device(), len)
    }

    fn sync(&self) -> io::Result<()> {
        sys::sync(self.source.file())
    }

    /// A regular file that grows reads as zeros there; a device has old content.
    fn starts_zeroed(&self) -> bool {
        !self.source.is_device()
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        WriteAt::zero_range(self.source.file(), range)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        WriteAt::allocate(self.source.file(), range)
    }
}
