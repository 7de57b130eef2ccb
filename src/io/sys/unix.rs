//! Linux, macOS, FreeBSD and other Unix systems.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::{FileKind, calls};
use crate::io::FileIdentity;

/// Owner, group and mode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileAccess {
    uid: u32,
    gid: u32,
    mode: u32,
}

/// Opens for reading. Does not wait for the other end of a FIFO.
pub(crate) fn open(path: &Path, follow: bool) -> io::Result<File> {
    let flags = if follow { OFlags::NONBLOCK } else { OFlags::NONBLOCK | OFlags::NOFOLLOW };
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

pub(crate) fn create(path: &Path, private: bool) -> io::Result<File> {
    let mode = if private { 0o600 } else { 0o666 };
    OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)
}

/// Files have no such attribute.
pub(crate) fn clear_sparse(_file: &File) -> io::Result<()> {
    Ok(())
}

/// Opens a device for writing, alone: not while it is mounted.
pub(crate) fn open_device(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(OFlags::EXCL.bits().cast_signed()).open(path)
}

pub(crate) fn kind(file: &File) -> io::Result<FileKind> {
    let file_type = file.metadata()?.file_type();
    Ok(if file_type.is_file() {
        FileKind::Regular
    } else if file_type.is_block_device() {
        FileKind::Device { sector: 1 }
    } else if file_type.is_char_device() {
        // The disks of FreeBSD and /dev/rdisk of macOS; not terminals.
        calls::disk(file).map_or(FileKind::Other, |disk| FileKind::Device { sector: disk.sector })
    } else {
        FileKind::Other
    })
}

/// Length in bytes.
pub(crate) fn size(file: &File, device: bool) -> io::Result<u64> {
    // `stat` says 0 for a device.
    if device { Ok(calls::disk(file)?.size) } else { Ok(file.metadata()?.len()) }
}

pub(crate) fn allocated(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks().saturating_mul(512))
}

pub(crate) fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    file.read_at(buf, offset)
}

pub(crate) fn write_all_at(file: &File, buf: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(buf, offset)
}

/// The next run of data. Fails where the file system, or the device, does not know holes.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple", target_os = "freebsd"))]
pub(crate) fn next_data(file: &File, offset: u64) -> io::Result<Option<Range<u64>>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::{Errno, retry_on_intr};

    if i64::try_from(offset).is_err() {
        return Ok(None);
    }
    match retry_on_intr(|| seek(file, SeekFrom::Data(offset))) {
        Ok(data) => {
            let hole = retry_on_intr(|| seek(file, SeekFrom::Hole(data)))
                .or_else(|_| Ok::<_, io::Error>(file.metadata()?.len()))?;
            Ok(Some(data..hole))
        }
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple", target_os = "freebsd")))]
pub(crate) fn next_data(_file: &File, _offset: u64) -> io::Result<Option<Range<u64>>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Makes a range read as zeros without storing them, or fails where that is impossible: with
/// [`io::ErrorKind::InvalidInput`] if only whole blocks can be punched.
///
/// On a device of Linux this discards what reads as zeros afterwards, and writes zeros where that is not certain.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn punch_hole(file: &File, range: &Range<u64>) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, range)
}

#[cfg(target_vendor = "apple")]
pub(crate) fn punch_hole(file: &File, range: &Range<u64>) -> io::Result<()> {
    calls::punch_hole(file, range)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
pub(crate) fn punch_hole(_file: &File, _range: &Range<u64>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The unit in bytes in which holes are punched where not every range can be.
pub(crate) fn block_size(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if metadata.file_type().is_block_device() {
        return Ok(rustix::fs::ioctl_blksszget(file)?.into());
    }
    Ok(metadata.blksize())
}

/// Allocates a range that is to read as zeros. [`io::ErrorKind::Unsupported`] where zeros have to be written.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn allocate(file: &File, range: &Range<u64>) -> io::Result<()> {
    match fallocate(file, rustix::fs::FallocateFlags::empty(), range) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) => {
            Err(io::ErrorKind::Unsupported.into())
        }
        other => other,
    }
}

// `F_PREALLOCATE` of macOS allocates beyond the end only, and ZFS on FreeBSD refuses.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn allocate(_file: &File, _range: &Range<u64>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn fallocate(file: &File, mode: rustix::fs::FallocateFlags, range: &Range<u64>) -> io::Result<()> {
    let len = range.end - range.start;
    if i64::try_from(range.start).is_err() || i64::try_from(len).is_err() {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, mode, range.start, len))?)
}

/// Places a shared lock on `bytes`. It belongs to the open file, and ends when that is closed.
pub(crate) fn lock_shared(file: &File, bytes: &Range<u64>) -> io::Result<()> {
    calls::lock_shared(file, bytes)
}

/// Whether another open file, of any process, has a lock on one of `bytes`.
pub(crate) fn is_locked(file: &File, bytes: &Range<u64>) -> io::Result<bool> {
    calls::is_locked(file, bytes)
}

/// Writes everything to stable storage; `F_FULLFSYNC` on macOS.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    let synced = file.sync_all();
    if cfg!(target_vendor = "apple") && synced.is_err() {
        // Not all file systems have `F_FULLFSYNC`, network file systems for instance.
        return Ok(rustix::fs::fsync(file)?);
    }
    synced
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    sync(&File::open(path)?)
}

pub(crate) fn close(file: File) -> io::Result<()> {
    calls::close(file)
}

pub(crate) fn identity(file: &File) -> io::Result<FileIdentity> {
    Ok(identity_in(&file.metadata()?))
}

fn identity_in(metadata: &Metadata) -> FileIdentity {
    let file_type = metadata.file_type();
    if file_type.is_block_device() || file_type.is_char_device() {
        FileIdentity::from_parts(u64::MAX, metadata.rdev().into())
    } else {
        FileIdentity::from_parts(metadata.dev(), metadata.ino().into())
    }
}

/// What is at `path`.
pub(crate) fn status(path: &Path, follow: bool) -> io::Result<(FileKind, FileIdentity, FileAccess)> {
    let metadata = if follow { fs::metadata(path)? } else { fs::symlink_metadata(path)? };
    let file_type = metadata.file_type();
    let kind = if file_type.is_file() {
        FileKind::Regular
    } else if file_type.is_block_device() {
        FileKind::Device { sector: 1 }
    } else if file_type.is_char_device() && cfg!(any(target_vendor = "apple", target_os = "freebsd")) {
        kind(&open(path, follow)?)?
    } else {
        FileKind::Other
    };
    let access = FileAccess { uid: metadata.uid(), gid: metadata.gid(), mode: metadata.mode() };
    Ok((kind, identity_in(&metadata), access))
}

/// Gives a file the owner, group and mode of another one, the mode as far as that of `within` has it.
pub(crate) fn set_access(file: &File, like: &FileAccess, within: Option<&FileAccess>) -> io::Result<()> {
    // Only root can give a file away. Where the group is another one, it may do nothing.
    let same_group = fchown(file, Some(like.uid), Some(like.gid)).is_ok();
    let mode = if same_group { like.mode } else { like.mode & !0o070 };
    let mask = within.map_or(0o7777, |within| within.mode);
    file.set_permissions(Permissions::from_mode(mode & mask & 0o7777))
}

/// Gives the file at `from` the name `to` unless something has it: a second name is made only if it is free.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    fs::remove_file(from).inspect_err(|_| {
        let _ = fs::remove_file(to);
    })
}

/// The path of an existing file without symbolic links.
pub(crate) fn resolve(path: &Path) -> io::Result<PathBuf> {
    fs::canonicalize(path)
}

/// Bytes from an image as a path of this system, if they can be one.
pub(crate) fn path_from_bytes(bytes: &[u8]) -> Option<&Path> {
    Some(Path::new(OsStr::from_bytes(bytes)))
}
