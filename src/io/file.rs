//! Files and block devices of the operating system.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::filler::Filler;
use super::lock;
use super::sys::{self, FileAccess, FileKind};
use super::{ReadAt, WriteAt, write_zeros};

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
            lock::stop_reading(&self.file);
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
            kind => Ok(FileSource { file, kind, locked: AtomicBool::new(false) }),
        }
    }
}

impl ReadAt for FileSource {
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
        FileSource::identity(self).map(Some)
    }

    fn allocated(&self) -> io::Result<Option<u64>> {
        FileSource::allocated(self).map(Some)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        run_of_data(sys::next_data(&self.file, offset), offset, || self.size())
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
}

/// The run of data at or after `offset`, from the answer of the system. It is not empty and does not start before `offset`.
///
/// Without a usable answer, the rest of the file is data. That is right even if the file is damaged, since holes only save
/// reading, and reading reports what cannot be read. An empty run is such an answer: OpenZFS may say that there is data at an
/// offset in the last hole, and that the hole starts there too. Asking again after each block of it would take hours.
fn run_of_data(
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
fn read_sectors(file: &File, sector: usize, buf: &mut [u8], offset: u64) -> io::Result<usize> {
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
        FileTarget { file, device, sync: true, filler: None, path: None }
    }

    /// Sets whether [`sync`](WriteAt::sync) waits for stable storage. Default true.
    #[must_use]
    pub fn with_sync(mut self, sync: bool) -> Self {
        self.sync = sync;
        self
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
    /// # if !cfg!(windows)
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
        match &self.filler {
            Some(filler) => filler.write_all_at(&self.file, buf, offset),
            None => sys::write_all_at(&self.file, buf, offset),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
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

fn set_len(file: &File, device: bool, len: u64) -> io::Result<()> {
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
fn punch(
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

/// Distinguishes a file from every other one on this machine: device and inode on Unix, volume serial number and file ID on
/// Windows; a device is identified by its number.
///
/// # Examples
///
/// ```
/// use diskimage::io::FileIdentity;
///
/// # fn main() -> std::io::Result<()> {
/// # let path = std::env::temp_dir().join(format!("diskimage-doc-identity-{}", std::process::id()));
/// # std::fs::write(&path, b"content")?;
/// let (one, again) = (std::fs::File::open(&path)?, std::fs::File::open(&path)?);
/// assert_eq!(FileIdentity::from_file(&one)?, FileIdentity::from_file(&again)?);
/// # std::fs::remove_file(&path)
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity(u64, u128);

impl FileIdentity {
    /// The identity of an open file.
    ///
    /// # Errors
    /// Those of the system.
    pub fn from_file(file: &File) -> io::Result<Self> {
        sys::identity(file)
    }

    /// From the number of the volume, `u64::MAX` for a device, and that of the file or device.
    #[cfg(any(unix, windows, target_os = "wasi"))]
    pub(super) fn from_parts(volume: u64, file: u128) -> Self {
        FileIdentity(volume, file)
    }
}

/// What is at a path.
#[derive(Clone, Debug)]
pub(crate) struct FileStatus {
    pub kind: FileKind,
    pub identity: FileIdentity,
    /// Owner, permissions and attributes.
    access: FileAccess,
}

impl FileStatus {
    /// The file at `path`, following symbolic links; `None` if it does not exist.
    pub fn from_path(path: &Path) -> io::Result<Option<Self>> {
        Self::new(sys::status(path, true))
    }

    /// What is at `path`, which may be a symbolic link. `None` if there is nothing.
    pub fn from_link(path: &Path) -> io::Result<Option<Self>> {
        Self::new(sys::status(path, false))
    }

    fn new(status: io::Result<(FileKind, FileIdentity, FileAccess)>) -> io::Result<Option<Self>> {
        match status {
            Ok((kind, identity, access)) => Ok(Some(FileStatus { kind, identity, access })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    #[cfg(unix)]
    use std::{os::unix::fs::symlink, process::Command};

    use super::*;
    use crate::testing::TempDir;

    const KIB: u64 = 1 << 10;

    #[test]
    fn holes_are_found_exactly() {
        let dir = TempDir::new();
        let path = dir.join("sparse");
        let file = FileTarget::create_new(&path).unwrap();
        file.set_len(1024 * KIB).unwrap();
        file.write_all_at(&[1; 128 << 10], 256 * KIB).unwrap();
        file.write_all_at(&[1; 64 << 10], 960 * KIB).unwrap();
        file.close().unwrap();
        let source = FileSource::open(&path).unwrap();
        assert_eq!(source.size().unwrap(), 1024 * KIB);
        assert_eq!((source.next_data(1024 * KIB).unwrap(), source.next_data(u64::MAX).unwrap()), (None, None));
        if source.next_data(0).unwrap() == Some(0..1024 * KIB) {
            eprintln!("SKIPPED: the file system of {} does not tell holes", dir.path().display());
            return;
        }
        for (from, run) in [(0, 256..384), (256 * KIB, 256..384), (384 * KIB, 960..1024), (1024 * KIB - 1, 960..1024)] {
            let run = (run.start * KIB).max(from)..run.end * KIB;
            assert_eq!(source.next_data(from).unwrap(), Some(run), "{from}");
        }
        let allocated = source.allocated().unwrap();
        assert!((192 * KIB..512 * KIB).contains(&allocated), "{allocated}");
        // The file ends in a hole.
        let target = FileTarget::create_new(&dir.join("tail")).unwrap();
        target.write_all_at(&[1; 100], 0).unwrap();
        target.set_len(1024 * KIB).unwrap();
        let source = FileSource::open(&dir.join("tail")).unwrap();
        assert_eq!(source.next_data(512 * KIB).unwrap(), None);
    }

    #[test]
    fn an_answer_without_a_run_of_data_means_data_up_to_the_end() {
        let run = |answer, offset| run_of_data(answer, offset, || Ok(1000)).unwrap();
        assert_eq!(run(Ok(None), 10), None);
        assert_eq!(run(Ok(Some(20..30)), 10), Some(20..30));
        // Before the offset, at it, and after it.
        assert_eq!(run(Ok(Some(0..30)), 10), Some(10..30));
        for empty in [10..10, 0..10, 0..5] {
            assert_eq!(run(Ok(Some(empty.clone())), 10), Some(10..1000), "{empty:?}");
        }
        assert_eq!(run(Ok(Some(20..20)), 10), Some(20..1000));
        for error in [io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported, io::ErrorKind::Other] {
            assert_eq!(run(Err(error.into()), 10), Some(10..1000), "{error}");
            assert_eq!(run(Err(error.into()), 1000), None, "{error}");
        }
        assert_eq!(run(Ok(Some(1000..1000)), 1000), None);
    }

    #[test]
    fn whole_blocks_are_punched_where_not_every_range_can_be() {
        let punched = |range: Range<u64>, unit: u64, block: io::Result<u64>| {
            let aligned = |range: &Range<u64>| range.start.is_multiple_of(unit) && range.end.is_multiple_of(unit);
            punch(
                &range,
                || block,
                |range| if aligned(range) { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) },
            )
        };
        let block = || Ok(4096);
        assert_eq!(punched(512..99_840, 512, block()), 512..99_840);
        assert_eq!(punched(512..99_840, 4096, block()), 4096..98_304);
        assert_eq!(punched(4096..99_840, 4096, block()), 4096..98_304);
        assert_eq!(punched(8192..16_384, 4096, block()), 8192..16_384);
        // Less than a block, an unknown block size, a wrong one, and no holes at all.
        for (range, unit, block) in [
            (512..4096, 4096, block()),
            (4608..8704, 4096, block()),
            (512..99_840, 4096, Err(io::ErrorKind::Unsupported.into())),
            (512..99_840, 8192, block()),
            (512..99_840, 4096, Ok(0)),
        ] {
            assert!(punched(range, unit, block).is_empty());
        }
        let refused = |_: &Range<u64>| Err(io::ErrorKind::Unsupported.into());
        assert!(punch(&(0..8192), || unreachable!("nothing can be punched"), refused).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn only_files_and_devices_are_opened_without_blocking() {
        let dir = TempDir::new();
        let fifo = dir.join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        for path in [&*fifo, dir.path(), Path::new("/dev/null")] {
            for opened in [FileSource::open(path), FileSource::open_nofollow(path)] {
                assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::InvalidInput, "{}", path.display());
            }
        }
        assert_eq!(FileSource::open(&dir.join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_unless_that_is_refused() {
        let dir = TempDir::new();
        let file = dir.file("file", b"content");
        let link = dir.join("link");
        symlink("file", &link).unwrap();
        assert_eq!(FileSource::open(&link).unwrap().size().unwrap(), 7);
        assert_eq!(FileSource::open_nofollow(&file).unwrap().size().unwrap(), 7);
        let error = FileSource::open_nofollow(&link).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()), "{error}");
    }

    #[test]
    fn a_file_is_known_by_all_its_names() {
        let dir = TempDir::new();
        let (one, other) = (dir.file("one", b"same"), dir.file("other", b"same"));
        fs::hard_link(&one, dir.join("again")).unwrap();
        let identity = |path: &Path| FileSource::open(path).unwrap().identity().unwrap();
        assert_eq!(identity(&one), identity(&dir.join("again")));
        #[cfg(unix)]
        {
            symlink("one", dir.join("link")).unwrap();
            assert_eq!(identity(&one), identity(&dir.join("link")));
        }
        assert_ne!(identity(&one), identity(&other));
    }

    #[test]
    fn a_target_is_new_or_a_device() {
        let dir = TempDir::new();
        let file = dir.file("file", b"content");
        assert_eq!(FileTarget::create_new(&file).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let expected = if cfg!(unix) { io::ErrorKind::InvalidInput } else { io::ErrorKind::Unsupported };
        assert_eq!(FileTarget::open_device(&file).unwrap_err().kind(), expected);
        assert_eq!(fs::read(&file).unwrap(), b"content");
    }

    #[test]
    fn zeros_and_space() {
        let dir = TempDir::new();
        let path = dir.join("new");
        let file = FileTarget::create_new(&path).unwrap();
        file.write_all_at(&[7; 3000], 0).unwrap();
        file.zero_range(100..2900).unwrap();
        file.zero_range(5..5).unwrap();
        file.sync().unwrap();
        let expected = [[7; 100].as_slice(), &[0; 2800], &[7; 100]].concat();
        assert_eq!(fs::read(&path).unwrap(), expected);
        file.set_len(1024 * KIB).unwrap();
        file.allocate(4 * KIB..1024 * KIB).unwrap();
        file.allocate(0..0).unwrap();
        let allocated = FileSource::open(&path).unwrap().allocated().unwrap();
        assert!(allocated >= 1024 * KIB, "{allocated}");
        assert_eq!(fs::read(&path).unwrap()[..3000], expected);
    }

    #[test]
    fn an_open_file_is_read_and_written_at_offsets() {
        let dir = TempDir::new();
        let path = dir.join("file");
        let options = || fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = options().unwrap();
        let target: &dyn WriteAt = &file;
        assert!(target.starts_zeroed() && target.seeks());
        target.set_len(1 << 20).unwrap();
        target.write_all_at(b"data", 4096).unwrap();
        target.zero_range(4097..4099).unwrap();
        target.allocate(8192..16384).unwrap();
        target.sync().unwrap();
        let source: &dyn ReadAt = &file;
        let mut buf = [9; 6];
        source.read_exact_at(&mut buf, 4095).unwrap();
        assert_eq!((source.size().unwrap(), &buf), (1 << 20, b"\0d\0\0a\0"));
        assert!(source.next_data(4096).unwrap().unwrap().contains(&4096));
        let source = FileSource::try_from(options().unwrap()).unwrap();
        assert_eq!(source.identity().unwrap(), FileIdentity::from_file(&file).unwrap());
    }

    #[test]
    fn a_device_of_sectors_is_read_at_any_offset() {
        let dir = TempDir::new();
        let bytes: Vec<u8> = (0..(2 << 20) + 1024_u32).map(|i| (i % 251) as u8).collect();
        let file = File::open(dir.file("disk", &bytes)).unwrap();
        for offset in [0, 1, 511, 512, 513, 1 << 20, (2 << 20) + 1023, (2 << 20) + 1024, 3 << 20] {
            for len in [0, 1, 511, 512, 513, 4096, 2 << 20] {
                let rest = bytes.get(offset..).unwrap_or_default();
                let mut buf = vec![0; len];
                let n = read_sectors(&file, 512, &mut buf, offset as u64).unwrap();
                assert_eq!(n == 0, len.min(rest.len()) == 0, "{offset} {len}");
                assert!(buf[..n] == rest[..n], "{offset} {len}");
            }
        }
    }
}
