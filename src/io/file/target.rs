//! Files that are written.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::FileStatus;
use crate::io::cache::{self, CacheMode, WriteBehind};
use crate::io::direct::DirectFile;
use crate::io::filler::Filler;
use crate::io::sys::{self, FileKind};
use crate::io::{WriteAt, write_zeros};

/// A regular file or block device, opened for writing.
///
/// # Examples
///
/// ```
/// use diskimage::io::{FileTarget, WriteAt};
///
/// # fn main() -> std::io::Result<()> {
/// # let path = std::env::temp_dir().join(format!("diskimage-doc-target-{}", std::process::id()));
/// let target = FileTarget::create_new(&path)?;
/// target.write_all_at(b"tent", 3)?;
/// target.write_all_at(b"con", 0)?;
/// target.sync()?;
/// target.close()?;
/// assert_eq!(std::fs::read(&path)?, b"content");
/// # std::fs::remove_file(&path)
/// # }
/// ```
#[derive(Debug)]
pub struct FileTarget {
    file: File,
    device: bool,
    sync: bool,
    /// Whether each write is durable when it returns.
    through: bool,
    /// If the page cache is bypassed.
    direct: Option<DirectFile>,
    /// If what was written is dropped from the page cache, since the file is larger than that should be.
    behind: OnceLock<WriteBehind>,
    /// `None` if the file may have holes.
    filler: Option<Filler>,
    path: Option<PathBuf>,
}

impl FileTarget {
    /// Creates a file with the permissions that new files have.
    ///
    /// # Errors
    /// Those of the system; [`io::ErrorKind::AlreadyExists`] when there is something at `path`.
    pub fn create_new(path: &Path) -> io::Result<Self> {
        Ok(Self::new(sys::create(path, false)?, false))
    }

    /// Creates a file that no other user may read: only the owner on Unix (mode 600); on Windows only this handle, until it
    /// is closed.
    ///
    /// # Errors
    /// As [`create_new`](Self::create_new).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("diskimage-doc-private-{}", std::process::id()));
    /// diskimage::io::FileTarget::create_private(&path)?.close()?;
    /// # #[cfg(unix)]
    /// assert_eq!(std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path)?) & 0o777, 0o600);
    /// # std::fs::remove_file(&path)
    /// # }
    /// ```
    pub fn create_private(path: &Path) -> io::Result<Self> {
        Ok(Self::new(sys::create(path, true)?, false))
    }

    /// Creates a file for [`set_access`](Self::set_access), that no user may read who will not be allowed to.
    pub(crate) fn create_within(
        path: &Path,
        replaced: Option<&FileStatus>,
        within: Option<&FileStatus>,
    ) -> io::Result<Self> {
        let file = sys::create_within(path, replaced.map(|old| &old.access), within.map(|old| &old.access))?;
        Ok(Self::new(file, false))
    }

    /// Creates a file without a name in `directory`, where the file system has such files. It can be read by no user who would not be allowed to
    /// read one that [`create_within`](Self::create_within) creates.
    pub(crate) fn create_unnamed(
        directory: &Path,
        replaced: Option<&FileStatus>,
        within: Option<&FileStatus>,
    ) -> io::Result<Self> {
        let mode = sys::mode_within(replaced.map(|old| &old.access), within.map(|old| &old.access));
        Ok(Self::new(sys::create_unnamed(directory, mode)?, false))
    }

    /// Gives the file, which was created without a name, one that is unused.
    pub(crate) fn give_name(&self, path: &Path) -> io::Result<()> {
        sys::give_name(&self.file, path)
    }

    /// A path at which this process can open the file, which was created without a name.
    pub(crate) fn path_without_name(&self) -> PathBuf {
        sys::path_without_name(&self.file)
    }

    /// Opens an existing regular file.
    ///
    /// # Errors
    /// Those of the system; [`io::ErrorKind::InvalidInput`] for anything else.
    pub(crate) fn open_existing(path: &Path) -> io::Result<Self> {
        let file = sys::open_existing(path)?;
        if sys::kind(&file)? != FileKind::Regular {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Self::new(file, false))
    }

    /// Opens an existing block device for exclusive use: not while it is mounted.
    ///
    /// # Errors
    /// Those of the system; [`io::ErrorKind::InvalidInput`] for anything but a block device; [`io::ErrorKind::Unsupported`] on
    /// Windows. Devices of FreeBSD and `/dev/rdisk` of macOS take whole sectors only, so that formats with unaligned
    /// writes fail there.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::path::Path;
    ///
    /// use diskimage::io::FileTarget;
    ///
    /// let device = FileTarget::open_device(Path::new("/dev/sdb"))?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn open_device(path: &Path) -> io::Result<Self> {
        let file = sys::open_device(path)?;
        if !sys::kind(&file)?.is_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a block device"));
        }
        Ok(Self::new(file, true))
    }

    fn new(file: File, device: bool) -> Self {
        FileTarget {
            file,
            device,
            sync: true,
            through: false,
            direct: None,
            behind: OnceLock::new(),
            filler: None,
            path: None,
        }
    }

    /// Sets whether [`sync`](WriteAt::sync) makes the file durable. Default true.
    #[must_use]
    pub fn with_sync(mut self, sync: bool) -> Self {
        self.sync = sync;
        self
    }

    /// Writes the file as `cache` says; where the file system cannot bypass the page cache, through it: see
    /// [`bypasses_cache`](Self::bypasses_cache). [`CacheMode::Unsafe`] is the same as not to [sync](Self::with_sync).
    ///
    /// Parts of pages at both ends of a write go through the page cache in any case.
    ///
    /// # Examples
    ///
    /// ```
    /// use diskimage::io::{CacheMode, FileTarget, WriteAt};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("diskimage-doc-cache-{}", std::process::id()));
    /// let target = FileTarget::create_new(&path)?.with_cache(CacheMode::None);
    /// target.write_all_at(&[7; 100_000], 1000)?;
    /// target.sync()?;
    /// target.close()?;
    /// assert_eq!(std::fs::read(&path)?[1000..], [7; 100_000]);
    /// # std::fs::remove_file(&path)
    /// # }
    /// ```
    #[must_use]
    pub fn with_cache(mut self, cache: CacheMode) -> Self {
        self.sync &= cache != CacheMode::Unsafe;
        self.through = cache.writes_through();
        self.direct = if cache.bypasses() { DirectFile::open(&self.file, true).ok() } else { None };
        self
    }

    /// Whether writes of whole pages bypass the page cache.
    pub fn bypasses_cache(&self) -> bool {
        self.direct.is_some()
    }

    /// Keeps a new file free of holes: what is not written is allocated, at the latest by [`sync`](WriteAt::sync) and
    /// [`close`](Self::close). On Windows the file does not get the sparse attribute, which Hyper-V refuses. Does nothing
    /// for a device.
    ///
    /// # Errors
    /// Those of the system.
    ///
    /// # Examples
    ///
    /// ```
    /// use diskimage::io::{FileSource, FileTarget, WriteAt};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("diskimage-doc-holes-{}", std::process::id()));
    /// let target = FileTarget::create_new(&path)?.without_holes()?;
    /// target.set_len(1 << 20)?;
    /// target.close()?;
    /// assert!(FileSource::open(&path)?.allocated()? >= 1 << 20);
    /// # std::fs::remove_file(&path)
    /// # }
    /// ```
    pub fn without_holes(mut self) -> io::Result<Self> {
        if !self.device {
            sys::clear_sparse(&self.file)?;
            self.filler = Some(Filler::default());
        }
        Ok(self)
    }

    /// Sets the path for messages.
    #[must_use]
    pub fn with_path(mut self, path: &Path) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file itself, which stays open.
    pub(crate) fn into_file(self) -> File {
        self.file
    }

    /// Gives a new, private file what can be kept of the file that it replaces: owner, permissions, attributes. The permissions are
    /// limited to those of `within`.
    ///
    /// # Errors
    /// Those of the system, and [`io::ErrorKind::PermissionDenied`] if the file would be more open than these.
    pub(crate) fn set_access(&self, replaced: Option<&FileStatus>, within: Option<&FileStatus>) -> io::Result<()> {
        sys::set_access(&self.file, replaced.map(|old| &old.access), within.map(|old| &old.access))
    }

    /// Why a rename of this file cannot replace the one at `path`, as far as that is known before.
    pub(crate) fn rename_obstacle(&self, path: &Path) -> Option<&'static str> {
        sys::rename_obstacle(&self.file, path)
    }

    /// Closes the file.
    ///
    /// # Errors
    /// The error that the system reports on closing, which dropping ignores. Network file systems report failed writes there.
    pub fn close(self) -> io::Result<()> {
        self.fill()?;
        sys::close(self.file)
    }

    fn fill(&self) -> io::Result<()> {
        self.filler.as_ref().map_or(Ok(()), |filler| filler.finish(&self.file))
    }
}

impl WriteAt for FileTarget {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let write = |buf: &[u8], offset| match &self.direct {
            Some(direct) => direct.write_all_at(&self.file, buf, offset),
            None => sys::write_all_at(&self.file, buf, offset),
        };
        match &self.filler {
            Some(filler) => filler.write_all_at(&self.file, buf, offset, write)?,
            None => write(buf, offset)?,
        }
        if self.through {
            return self.file.sync_data();
        }
        let behind = self.behind.get();
        if self.direct.is_none() && buf.len() >= cache::LARGE && (self.sync || behind.is_some()) {
            // The data goes to the device while more is prepared, and not only when the file is synced.
            let range = offset..offset + buf.len() as u64;
            sys::start_write_back(&self.file, &range);
            if let Some(behind) = behind {
                behind.add(&self.file, range);
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if cache::drops_behind(len, sys::memory()) {
            self.behind.get_or_init(WriteBehind::default);
        }
        match &self.filler {
            Some(filler) => filler.set_len(&self.file, len),
            None => set_len(&self.file, self.device, len),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.fill()?;
        if self.sync { sys::sync(&self.file) } else { Ok(()) }
    }

    fn starts_zeroed(&self) -> bool {
        !self.device
    }

    fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        if self.filler.is_some() { write_zeros(self, range) } else { zero_range(&self.file, range) }
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        match &self.filler {
            Some(filler) => filler.fill(&self.file, range.end),
            None => allocate(&self.file, self.device, range),
        }
    }

    fn clone_unit(&self, source: &File) -> Option<u64> {
        // What has no holes keeps count of what is written.
        if self.device || self.filler.is_some() { None } else { clone_unit(&self.file, source) }
    }

    fn clone_range(&self, source: &File, offset: u64, range: Range<u64>) -> io::Result<()> {
        sys::clone_range(&self.file, source, offset, &range)
    }
}

/// An open file as it is: a regular file must be new or empty, since its old content is taken for zeros.
impl WriteAt for File {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        sys::write_all_at(self, buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        set_len(self, sys::kind(self)?.is_device(), len)
    }

    fn sync(&self) -> io::Result<()> {
        sys::sync(self)
    }

    fn starts_zeroed(&self) -> bool {
        sys::kind(self).is_ok_and(|kind| kind == FileKind::Regular)
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        zero_range(self, range)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        allocate(self, sys::kind(self)?.is_device(), range)
    }
}

/// Finds out by a trial, which a file system without shared blocks refuses, and one without room for them too.
fn clone_unit(file: &File, source: &File) -> Option<u64> {
    let unit = sys::block_size(source).ok()?;
    let source_len = sys::size(source, false).ok()?;
    if unit == 0 || source_len < unit || sys::size(file, false).ok()? != 0 {
        return None;
    }
    let cloned = sys::clone_range(file, source, 0, &(0..unit));
    // Whatever it did.
    let emptied = file.set_len(0);
    (cloned.is_ok() && emptied.is_ok()).then_some(unit)
}

pub(super) fn set_len(file: &File, device: bool, len: u64) -> io::Result<()> {
    if !device {
        return file.set_len(len);
    }
    match sys::size(file, true)? {
        size if size >= len => Ok(()),
        size => Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("the device has {size} bytes, and {len} are needed"),
        )),
    }
}

fn zero_range(file: &File, range: Range<u64>) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let hole = punch(&range, || sys::block_size(file), |range| sys::punch_hole(file, range));
    write_zeros(file, range.start..hole.start)?;
    write_zeros(file, hole.end..range.end)
}

/// Punches `range`, or as much of it as the system can, and returns that: whole blocks where it cannot punch less (a device of
/// 4096-byte sectors), or nothing.
pub(super) fn punch(
    range: &Range<u64>,
    block_size: impl FnOnce() -> io::Result<u64>,
    punch_hole: impl Fn(&Range<u64>) -> io::Result<()>,
) -> Range<u64> {
    match punch_hole(range) {
        Ok(()) => range.clone(),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            let block = block_size().unwrap_or(1).max(1);
            let start = range.start.checked_next_multiple_of(block).unwrap_or(range.end);
            let blocks = start..range.end - range.end % block;
            let punched = !blocks.is_empty() && blocks != *range && punch_hole(&blocks).is_ok();
            if punched { blocks } else { range.start..range.start }
        }
        Err(_) => range.start..range.start,
    }
}

fn allocate(file: &File, device: bool, range: Range<u64>) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    match sys::allocate(file, &range) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported && !device => write_zeros(file, range),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
        other => other,
    }
}
