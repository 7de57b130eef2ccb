//! Files and block devices of the operating system.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::unistd::{Whence, lseek};

use super::{ReadAt, WriteAt, write_zeros};

/// A regular file or block device, opened for reading only.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    device: bool,
}

impl FileSource {
    /// Opens `path`, following symbolic links.
    ///
    /// # Errors
    /// Those of the system, and [`io::ErrorKind::InvalidInput`] for what is neither a regular file nor a block device. Never
    /// waits for the other end of a FIFO.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_with(path, OFlag::O_NONBLOCK)
    }

    /// As [`open`](Self::open), but refuses a symbolic link at the end of `path`.
    pub fn open_nofollow(path: &Path) -> io::Result<Self> {
        Self::open_with(path, OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW)
    }

    fn open_with(path: &Path, flags: OFlag) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a block device"));
        }
        Ok(FileSource { file, device: kind.is_block_device() })
    }

    /// What tells this file from every other one on this machine.
    pub fn identity(&self) -> io::Result<FileIdentity> {
        Ok(FileIdentity::of(&self.file.metadata()?))
    }

    /// Bytes that the file takes up on its file system.
    pub fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks().saturating_mul(512))
    }
}

impl ReadAt for FileSource {
    fn size(&self) -> io::Result<u64> {
        length(&self.file, self.device)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        FileSource::identity(self).map(Some)
    }

    fn allocated(&self) -> io::Result<Option<u64>> {
        FileSource::allocated(self).map(Some)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let everything = || Ok((offset < self.size()?).then_some(offset..self.size()?));
        let Ok(from) = i64::try_from(offset) else { return Ok(None) };
        match lseek(&self.file, from, Whence::SeekData) {
            Ok(data) => {
                let hole =
                    lseek(&self.file, data, Whence::SeekHole).map_or_else(|_| self.size(), |at| Ok(at as u64))?;
                Ok(Some(data as u64..hole))
            }
            Err(Errno::ENXIO) => Ok(None),
            // The file system, or the device, does not know holes.
            Err(_) => everything(),
        }
    }
}

/// A regular file or block device, opened for writing.
#[derive(Debug)]
pub struct FileTarget {
    file: File,
    device: bool,
    sync: bool,
    path: Option<PathBuf>,
}

impl FileTarget {
    /// Makes a new file with these permission bits, less those of the process's umask.
    ///
    /// # Errors
    /// Those of the system; [`io::ErrorKind::AlreadyExists`] when there is something at `path`.
    pub fn create_new(path: &Path, mode: u32) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)?;
        Ok(FileTarget { file, device: false, sync: true, path: None })
    }

    /// Opens a block device that exists, alone (`O_EXCL`: not while it is mounted).
    pub fn open_device(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_EXCL.bits()).open(path)?;
        if !file.metadata()?.file_type().is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a block device"));
        }
        Ok(FileTarget { file, device: true, sync: true, path: None })
    }

    /// Whether [`sync`](WriteAt::sync) does anything. It does by default.
    #[must_use]
    pub fn with_sync(mut self, sync: bool) -> Self {
        self.sync = sync;
        self
    }

    /// Says what the file will be called, for messages.
    #[must_use]
    pub fn with_path(mut self, path: &Path) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Closes the file and tells what the system says to that; dropping it does not.
    pub fn close(self) -> io::Result<()> {
        Ok(nix::unistd::close(self.file)?)
    }
}

impl WriteAt for FileTarget {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if !self.device {
            return self.file.set_len(len);
        }
        match length(&self.file, true)? {
            size if size >= len => Ok(()),
            size => Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("the device has {size} bytes, and {len} are needed"),
            )),
        }
    }

    fn sync(&self) -> io::Result<()> {
        if self.sync { self.file.sync_all() } else { Ok(()) }
    }

    fn starts_zeroed(&self) -> bool {
        !self.device
    }

    fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        // On a device this discards what reads as zeros afterwards, and writes zeros where that is not certain.
        match self.fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, &range) {
            Ok(()) => Ok(()),
            Err(_) => write_zeros(self, range),
        }
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        match self.fallocate(FallocateFlags::empty(), &range) {
            Err(Errno::EOPNOTSUPP) if !self.device => write_zeros(self, range),
            Err(Errno::EOPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }
}

impl FileTarget {
    fn fallocate(&self, mode: FallocateFlags, range: &Range<u64>) -> nix::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let offset = i64::try_from(range.start).map_err(|_| Errno::EFBIG)?;
        let len = i64::try_from(range.end - range.start).map_err(|_| Errno::EFBIG)?;
        loop {
            match fallocate(&self.file, mode, offset, len) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }
}

/// What tells a file from every other one on this machine: its device and inode, or the device that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity(u64, u64);

impl FileIdentity {
    /// From what the system says of the file.
    pub fn of(metadata: &std::fs::Metadata) -> Self {
        if metadata.file_type().is_block_device() {
            FileIdentity(u64::MAX, metadata.rdev())
        } else {
            FileIdentity(metadata.dev(), metadata.ino())
        }
    }
}

/// Length in bytes of a file, or of a device, for which `stat` says 0.
fn length(file: &File, device: bool) -> io::Result<u64> {
    if device {
        let mut file = file;
        file.seek(SeekFrom::End(0))
    } else {
        Ok(file.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;
    use crate::tempdir::TempDir;

    const KIB: u64 = 1 << 10;

    #[test]
    fn holes_are_found_exactly() {
        let dir = TempDir::new();
        let path = dir.join("sparse");
        let file = FileTarget::create_new(&path, 0o600).unwrap();
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
        let target = FileTarget::create_new(&dir.join("tail"), 0o600).unwrap();
        target.write_all_at(&[1; 100], 0).unwrap();
        target.set_len(1024 * KIB).unwrap();
        let source = FileSource::open(&dir.join("tail")).unwrap();
        assert_eq!(source.next_data(512 * KIB).unwrap(), None);
    }

    #[test]
    fn only_files_and_devices_are_opened_and_nobody_waits() {
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

    #[test]
    fn links_are_followed_unless_that_is_refused() {
        let dir = TempDir::new();
        let file = dir.file("file", b"content");
        let link = dir.join("link");
        symlink("file", &link).unwrap();
        assert_eq!(FileSource::open(&link).unwrap().size().unwrap(), 7);
        assert_eq!(FileSource::open_nofollow(&file).unwrap().size().unwrap(), 7);
        let error = FileSource::open_nofollow(&link).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ELOOP as i32), "{error}");
    }

    #[test]
    fn a_file_is_known_by_all_its_names() {
        let dir = TempDir::new();
        let (one, other) = (dir.file("one", b"same"), dir.file("other", b"same"));
        fs::hard_link(&one, dir.join("again")).unwrap();
        symlink("one", dir.join("link")).unwrap();
        let identity = |path: &Path| FileSource::open(path).unwrap().identity().unwrap();
        assert_eq!(identity(&one), identity(&dir.join("again")));
        assert_eq!(identity(&one), identity(&dir.join("link")));
        assert_ne!(identity(&one), identity(&other));
    }

    #[test]
    fn a_target_is_new_or_a_device() {
        let dir = TempDir::new();
        let file = dir.file("file", b"content");
        assert_eq!(FileTarget::create_new(&file, 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(FileTarget::open_device(&file).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(fs::read(&file).unwrap(), b"content");
    }

    #[test]
    fn zeros_and_space() {
        let dir = TempDir::new();
        let path = dir.join("new");
        let file = FileTarget::create_new(&path, 0o600).unwrap();
        file.write_all_at(&[7; 3000], 0).unwrap();
        file.zero_range(100..2900).unwrap();
        file.zero_range(5..5).unwrap();
        file.sync().unwrap();
        let expected = [[7; 100].as_slice(), &[0; 2800], &[7; 100]].concat();
        assert_eq!(fs::read(&path).unwrap(), expected);
        file.set_len(1024 * KIB).unwrap();
        file.allocate(0..1024 * KIB).unwrap();
        file.allocate(0..0).unwrap();
        let allocated = FileSource::open(&path).unwrap().allocated().unwrap();
        assert!(allocated >= 1024 * KIB, "{allocated}");
        assert_eq!(fs::read(&path).unwrap()[..3000], expected);
    }
}
