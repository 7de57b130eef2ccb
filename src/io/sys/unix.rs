//! Linux, macOS, FreeBSD and other Unix systems.

#[path = "unix/access.rs"]
mod access;
#[path = "unix/xattr.rs"]
mod xattr;

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::{Resource, getrlimit};

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
pub(crate) use super::page_cache::drop_cached;
#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
pub(crate) use super::page_cache::{finish_write_back, start_write_back};
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) use super::page_cache::{memory, open_direct};
use super::{FileKind, calls, directory_of};
use crate::io::FileIdentity;
pub(crate) use access::{FileAccess, set_access};

/// Opens for reading. Does not wait for the other end of a FIFO.
pub(crate) fn open(path: &Path, follow: bool) -> io::Result<File> {
    let flags = if follow { OFlags::NONBLOCK } else { OFlags::NONBLOCK | OFlags::NOFOLLOW };
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

pub(crate) fn create(path: &Path, private: bool) -> io::Result<File> {
    create_with_mode(path, if private { 0o600 } else { 0o666 })
}

/// Creates a file for [`set_access`], which is not more open than that will make it.
pub(crate) fn create_within(
    path: &Path,
    replaced: Option<&FileAccess>,
    within: Option<&FileAccess>,
) -> io::Result<File> {
    create_with_mode(path, mode_within(replaced, within))
}

/// The mode of a new file that is not more open than [`set_access`] will make it: it keeps this one where the mode cannot be changed.
pub(crate) fn mode_within(replaced: Option<&FileAccess>, within: Option<&FileAccess>) -> u32 {
    match (replaced, within) {
        (None, None) => 0o666,
        _ => access::common_mode([replaced, within].into_iter().flatten()),
    }
}

fn create_with_mode(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)
}

/// Opens an existing file for writing. Does not wait for the other end of a FIFO.
pub(crate) fn open_existing(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// Opens an existing file for reading and writing. Does not wait for the other end of a FIFO.
pub(crate) fn open_writable(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// The limit of the address space of this process in bytes (`ulimit -v`, `RLIMIT_AS`), if it has one.
pub(crate) fn address_space() -> Option<u64> {
    getrlimit(Resource::As).current
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

/// Makes `range` of `file` share the blocks of `source` from `offset` on (`FICLONERANGE`).
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn clone_range(file: &File, source: &File, offset: u64, range: &Range<u64>) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    calls::clone_range(file, source, offset, range)
}

// macOS clones whole files only, and FreeBSD does it within copy_file_range, which does not tell.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn clone_range(_file: &File, _source: &File, _offset: u64, _range: &Range<u64>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Asks the system to begin to store what was written in `range`, without waiting for it, so that [`sync`] finds little to do.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(crate) fn start_write_back(file: &File, range: &Range<u64>) {
    // Only a hint: `sync` reports what fails.
    let _ = calls::start_write_back(file, range);
}

/// Waits until what was written in `range` has been stored.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(crate) fn finish_write_back(file: &File, range: &Range<u64>) {
    let _ = calls::finish_write_back(file, range);
}

/// Asks the system to drop what is stored of `range` from the page cache.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
pub(crate) fn drop_cached(file: &File, range: &Range<u64>) {
    use std::num::NonZeroU64;

    use rustix::fs::{Advice, fadvise};

    // Only a hint.
    let _ = fadvise(file, range.start, NonZeroU64::new(range.end - range.start), Advice::DontNeed);
}

/// Bytes of memory of this machine, where the system tells.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[allow(clippy::useless_conversion, reason = "the number has the size of a word")]
pub(crate) fn memory() -> Option<u64> {
    let info = rustix::system::sysinfo();
    u64::try_from(info.totalram).ok()?.checked_mul(info.mem_unit.into())
}

/// Opens a file again, for reading or for writing, to bypass the page cache. Fails where the file system, or the system, cannot do that.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn open_direct(file: &File, write: bool) -> io::Result<File> {
    let flags = OFlags::DIRECT | OFlags::NONBLOCK;
    let path = super::path_without_name(file);
    OpenOptions::new().read(!write).write(write).custom_flags(flags.bits().cast_signed()).open(path)
}

/// Places a shared lock on `bytes`, or removes it. It belongs to the open file.
pub(crate) fn set_lock(file: &File, bytes: &Range<u64>, locked: bool) -> io::Result<()> {
    calls::set_lock(file, bytes, locked)
}

/// Whether another open file, of any process, has a lock on one of `bytes`.
pub(crate) fn is_locked(file: &File, bytes: &Range<u64>) -> io::Result<bool> {
    calls::is_locked(file, bytes)
}

/// Makes everything durable; `F_FULLFSYNC` on macOS.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    let synced = file.sync_all();
    if cfg!(target_vendor = "apple") && synced.is_err() {
        // Not all file systems have `F_FULLFSYNC`, network file systems for instance.
        return Ok(rustix::fs::fsync(file)?);
    }
    synced
}

/// Makes the names in a directory durable, where the file system can do that.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    ignore_refusal(File::open(path).and_then(|directory| sync(&directory)))
}

/// Many file systems, shared folders of virtual machines for instance, cannot sync a directory, each with an error of its own; some
/// do not even open it, and a user may be allowed to write to it, but not to read. The file in it is complete and synced by then.
/// Errors of the storage are others: EIO, ENOSPC, EDQUOT, EROFS.
fn ignore_refusal(result: io::Result<()>) -> io::Result<()> {
    use rustix::io::Errno;

    const REFUSALS: [Errno; 9] = [
        Errno::INVAL,
        Errno::NOTSUP,
        Errno::OPNOTSUPP,
        Errno::NOSYS,
        Errno::NOTTY,
        Errno::BADF,
        Errno::ISDIR,
        Errno::ACCESS,
        Errno::PERM,
    ];
    match result {
        Err(error) if Errno::from_io_error(&error).is_some_and(|errno| REFUSALS.contains(&errno)) => Ok(()),
        other => other,
    }
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
    Ok((kind, identity_in(&metadata), FileAccess::new(path, follow, &metadata)))
}

/// Why a rename of `new` cannot replace the file at `path`, as far as that is known before.
pub(crate) fn rename_obstacle(new: &File, path: &Path) -> Option<&'static str> {
    const STICKY: u32 = 0o1000;
    let (old, directory) = (fs::symlink_metadata(path).ok()?, fs::metadata(directory_of(path)).ok()?);
    let owner = new.metadata().ok()?.uid();
    if owner != 0 && directory.mode() & STICKY != 0 && owner != directory.uid() && owner != old.uid() {
        return Some("the file belongs to another user, and its directory is sticky");
    }
    obstacle_of_file(path, &old, &directory)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn obstacle_of_file(path: &Path, _old: &Metadata, _directory: &Metadata) -> Option<&'static str> {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};

    // In overlayfs a file may have another device number than its directory, and is no mount point.
    let attributes = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()).ok()?.stx_attributes;
    if attributes.contains(StatxAttributes::MOUNT_ROOT) {
        Some("the file is a mount point")
    } else if attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND) {
        Some("the file is immutable or append-only")
    } else {
        None
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn obstacle_of_file(_path: &Path, old: &Metadata, directory: &Metadata) -> Option<&'static str> {
    (old.dev() != directory.dev()).then_some("the file is a mount point")
}

/// Bytes from an image as a path of this system, if they can be one.
pub(crate) fn path_from_bytes(bytes: &[u8]) -> Option<&Path> {
    Some(Path::new(OsStr::from_bytes(bytes)))
}

#[cfg(test)]
#[path = "unix/tests.rs"]
mod tests;
