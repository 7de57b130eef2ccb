//! Files that are read.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::FileIdentity;
use crate::io::cache::{self, CacheMode};
use crate::io::direct::DirectFile;
use crate::io::sys::{self, FileKind};
use crate::io::{ReadAt, lock};

/// A regular file or block device, opened for reading only.
///
/// Devices are `/dev/sda`, `/dev/disk2` or `/dev/rdisk2` (macOS), `/dev/da0` (FreeBSD) and `\\.\PhysicalDrive0` (Windows).
///
/// # Examples
///
/// ```
/// use diskimage::io::{FileSource, ReadAt};
///
/// # fn main() -> std::io::Result<()> {
/// # let path = std::env::temp_dir().join(format!("diskimage-doc-source-{}", std::process::id()));
/// std::fs::write(&path, b"content")?;
/// let source = FileSource::open(&path)?;
/// let mut buf = [0; 4];
/// source.read_exact_at(&mut buf, 3)?;
/// assert_eq!((source.size()?, &buf), (7, b"tent"));
/// # std::fs::remove_file(&path)
/// # }
/// ```
#[derive(Debug)]
pub struct FileSource {
    file: File,
    kind: FileKind,
    /// If the page cache is bypassed.
    direct: Option<DirectFile>,
    /// Whether what was read is dropped from the page cache.
    drops_behind: bool,
    locked: AtomicBool,
}

impl FileSource {
    /// Opens `path`, following symbolic links.
    ///
    /// # Errors
    /// Those of the system, and [`io::ErrorKind::InvalidInput`] for anything but a regular file or a block device. Never
    /// waits for the other end of a FIFO.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::try_from(sys::open(path, true)?)
    }

    /// Opens `path` unless it is a symbolic link. Links in the directories before it are followed.
    ///
    /// # Errors
    /// As [`open`](Self::open); for a symbolic link `ELOOP`, and [`io::ErrorKind::InvalidInput`] on Windows.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::path::Path;
    ///
    /// use diskimage::io::FileSource;
    ///
    /// let error = FileSource::open_nofollow(Path::new("no/such/file")).unwrap_err();
    /// assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    /// ```
    pub fn open_nofollow(path: &Path) -> io::Result<Self> {
        Self::try_from(sys::open(path, false)?)
    }

    /// Bypasses the page cache when the file is read, if `cache` says so and the file system can do it; see
    /// [`bypasses_cache`](ReadAt::bypasses_cache).
    ///
    /// # Examples
    ///
    /// ```
    /// use diskimage::io::{CacheMode, FileSource, ReadAt};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("diskimage-doc-direct-{}", std::process::id()));
    /// std::fs::write(&path, b"content")?;
    /// let source = FileSource::open(&path)?.with_cache(CacheMode::None);
    /// let mut buf = [0; 4];
    /// source.read_exact_at(&mut buf, 3)?;
    /// assert_eq!(&buf, b"tent");
    /// # std::fs::remove_file(&path)
    /// # }
    /// ```
    #[must_use]
    pub fn with_cache(mut self, cache: CacheMode) -> Self {
        let takes_any_range = !matches!(self.kind, FileKind::Device { sector } if sector > 1);
        self.direct = if cache.bypasses() && takes_any_range { DirectFile::open(&self.file, false).ok() } else { None };
        self
    }

    /// The identity of the file, the same for all its names.
    ///
    /// # Errors
    /// Those of the system.
    pub fn identity(&self) -> io::Result<FileIdentity> {
        FileIdentity::from_file(&self.file)
    }

    /// Locks the file as QEMU does for reading, until this is dropped: a virtual machine that would write to it cannot be
    /// started. Does nothing where there are no such locks: on other systems than Linux, and on some file systems.
    ///
    /// [`OpenOptions`](crate::OpenOptions) locks the files that it opens by path.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if another program, for example a virtual machine, has opened the image for writing.
    ///
    /// # Examples
    ///
    /// ```
    /// use diskimage::io::FileSource;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("diskimage-doc-lock-{}", std::process::id()));
    /// # std::fs::write(&path, b"content")?;
    /// let (one, other) = (FileSource::open(&path)?, FileSource::open(&path)?);
    /// one.lock()?;
    /// // Readers do not exclude each other.
    /// other.lock()?;
    /// # std::fs::remove_file(&path)
    /// # }
    /// ```
    pub fn lock(&self) -> io::Result<()> {
        lock::start_reading(&self.file)?;
        self.locked.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Locks the file as QEMU does for writing, as [`lock`](Self::lock) does for reading.
    pub(super) fn lock_for_update(&self) -> io::Result<()> {
        lock::start_updating(&self.file)?;
        self.locked.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The file itself.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn is_device(&self) -> bool {
        self.kind.is_device()
    }

    /// Bytes that the file occupies on its file system; holes do not count. The length, where the system does not tell.
    ///
    /// # Errors
    /// Those of the system.
    pub fn allocated(&self) -> io::Result<u64> {
        sys::allocated(&self.file)
    }
}

impl Drop for FileSource {
    fn drop(&mut self) {
        if *self.locked.get_mut() {
            lock::stop(&self.file);
        }
    }
}

/// An open file, for example a descriptor that was handed into a sandbox. Its cursor is not used, and may be moved.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for anything but a regular file or a block device.
///
/// # Examples
///
/// ```
/// use diskimage::io::{FileSource, ReadAt};
///
/// # fn main() -> std::io::Result<()> {
/// # let path = std::env::temp_dir().join(format!("diskimage-doc-from-{}", std::process::id()));
/// # std::fs::write(&path, b"content")?;
/// let file = std::fs::File::open(&path)?;
/// assert_eq!(FileSource::try_from(file)?.size()?, 7);
/// # std::fs::remove_file(&path)
/// # }
/// ```
impl TryFrom<File> for FileSource {
    type Error = io::Error;

    fn try_from(file: File) -> io::Result<Self> {
        match sys::kind(&file)? {
            FileKind::Other => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a block device"))
            }
            kind => {
                let len = sys::size(&file, kind.is_device()).unwrap_or(0);
                let drops_behind = cache::drops_behind(len, sys::memory());
                Ok(FileSource { file, kind, direct: None, drops_behind, locked: AtomicBool::new(false) })
            }
        }
    }
}

impl ReadAt for FileSource {
    fn size(&self) -> io::Result<u64> {
        sys::size(&self.file, self.kind.is_device())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = match (self.kind, &self.direct) {
            (FileKind::Device { sector }, _) if sector > 1 => read_sectors(&self.file, sector, buf, offset),
            (_, Some(direct)) => direct.read_at(&self.file, buf, offset),
            _ => sys::read_at(&self.file, buf, offset),
        }?;
        if self.drops_behind && read >= cache::LARGE {
            sys::drop_cached(&self.file, &(offset..offset + read as u64));
        }
        Ok(read)
    }

    fn bypasses_cache(&self) -> bool {
        self.direct.is_some()
    }

    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        FileSource::identity(self).map(Some)
    }

    fn allocated(&self) -> io::Result<Option<u64>> {
        FileSource::allocated(self).map(Some)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        run_of_data(sys::next_data(&self.file, offset), offset, || self.size())
    }

    fn as_file(&self) -> Option<&File> {
        (self.kind == FileKind::Regular).then_some(&self.file)
    }
}

/// An open file as it is. [`FileSource`] also reads devices at any offset, and refuses pipes.
impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        sys::size(self, sys::kind(self)?.is_device())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        sys::read_at(self, buf, offset)
    }

    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        sys::identity(self).map(Some)
    }

    fn allocated(&self) -> io::Result<Option<u64>> {
        sys::allocated(self).map(Some)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        run_of_data(sys::next_data(self, offset), offset, || self.size())
    }

    fn as_file(&self) -> Option<&File> {
        Some(self)
    }
}

/// The run of data at or after `offset`, from the answer of the system. It is not empty and does not start before `offset`.
///
/// Without a usable answer, the rest of the file is data. That is right even if the file is damaged, since holes only save
/// reading, and reading reports what cannot be read. An empty run is such an answer: OpenZFS may say that there is data at an
/// offset in the last hole, and that the hole starts there too. Asking again after each block of it would take hours.
pub(super) fn run_of_data(
    answer: io::Result<Option<Range<u64>>>,
    offset: u64,
    size: impl FnOnce() -> io::Result<u64>,
) -> io::Result<Option<Range<u64>>> {
    let start = match answer {
        Ok(None) => return Ok(None),
        Ok(Some(run)) if run.start.max(offset) < run.end => return Ok(Some(run.start.max(offset)..run.end)),
        Ok(Some(run)) => run.start.max(offset),
        Err(_) => offset,
    };
    let size = size()?;
    Ok((start < size).then_some(start..size))
}

/// Reads at any offset from a device that reads whole sectors only.
pub(super) fn read_sectors(file: &File, sector: usize, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    const MOST: usize = 1 << 20;
    let skip = (offset % sector as u64) as usize;
    if skip == 0 && buf.len().is_multiple_of(sector) {
        return sys::read_at(file, buf, offset);
    }
    let wanted = buf.len().min(MOST);
    let mut sectors = vec![0; (skip + wanted).next_multiple_of(sector)];
    let n = sys::read_at(file, &mut sectors, offset - skip as u64)?;
    let read = sectors.get(skip..n.min(skip + wanted)).unwrap_or_default();
    if let Some(buf) = buf.get_mut(..read.len()) {
        buf.copy_from_slice(read);
    }
    Ok(read.len())
}
