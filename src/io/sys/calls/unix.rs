//! `close` with its error; size of disks; `F_PUNCHHOLE` of macOS; shared blocks, early write-back and locks of open files of Linux.

use std::fs::File;
use std::io;
use std::os::fd::IntoRawFd;

#[cfg(unix)]
use super::Disk;

/// Closes a file and returns the error that `drop` ignores.
pub(in super::super) fn close(file: File) -> io::Result<()> {
    // SAFETY: `into_raw_fd` gives up the only owner of the descriptor, so it is valid and it is not used afterwards.
    Ok(unsafe { rustix::io::try_close(file.into_raw_fd()) }?)
}

#[cfg(all(unix, not(any(target_vendor = "apple", target_os = "freebsd"))))]
pub(in super::super) fn disk(file: &File) -> io::Result<Disk> {
    use std::io::{Seek, SeekFrom};
    use std::os::unix::fs::FileTypeExt;

    if !file.metadata()?.file_type().is_block_device() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut file = file;
    Ok(Disk { size: file.seek(SeekFrom::End(0))?, sector: 1 })
}

/// `DKIOCGETBLOCKSIZE` and `DKIOCGETBLOCKCOUNT` of `<sys/disk.h>`.
#[cfg(target_vendor = "apple")]
pub(in super::super) fn disk(file: &File) -> io::Result<Disk> {
    use rustix::ioctl::{Getter, ioctl, opcode};

    // SAFETY: these requests write a `uint32_t` and a `uint64_t` to their argument, as declared.
    let sector = unsafe { ioctl(file, Getter::<{ opcode::read::<u32>(b'd', 24) }, u32>::new()) }?;
    // SAFETY: as above.
    let count = unsafe { ioctl(file, Getter::<{ opcode::read::<u64>(b'd', 25) }, u64>::new()) }?;
    Ok(Disk { size: count.saturating_mul(sector.into()), sector: sector.max(1) as usize })
}

/// `DIOCGSECTORSIZE` and `DIOCGMEDIASIZE` of `<sys/disk.h>`.
#[cfg(target_os = "freebsd")]
pub(in super::super) fn disk(file: &File) -> io::Result<Disk> {
    use rustix::ioctl::{Getter, ioctl, opcode};

    // SAFETY: these requests write a `u_int` and an `off_t`, which has 64 bits, to their argument, as declared.
    let sector = unsafe { ioctl(file, Getter::<{ opcode::read::<u32>(b'd', 128) }, u32>::new()) }?;
    // SAFETY: as above.
    let size = unsafe { ioctl(file, Getter::<{ opcode::read::<i64>(b'd', 129) }, i64>::new()) }?;
    let size = u64::try_from(size).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(Disk { size, sector: sector.max(1) as usize })
}

/// Makes whole blocks of the file system read as zeros.
#[cfg(target_vendor = "apple")]
pub(in super::super) fn punch_hole(file: &File, range: &std::ops::Range<u64>) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let signed = |value: u64| i64::try_from(value).map_err(|_| io::ErrorKind::FileTooLarge);
    let (fp_offset, fp_length) = (signed(range.start)?, signed(range.end - range.start)?);
    let hole = libc::fpunchhole_t { fp_flags: 0, reserved: 0, fp_offset, fp_length };
    // SAFETY: the request reads a `fpunchhole_t`, which is valid until the call returns; the descriptor is open.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_PUNCHHOLE, &raw const hole) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `sync_file_range` with `SYNC_FILE_RANGE_WRITE`.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(in super::super) fn start_write_back(file: &File, range: &std::ops::Range<u64>) -> io::Result<()> {
    sync_file_range(file, range, libc::SYNC_FILE_RANGE_WRITE)
}

/// `sync_file_range` that waits.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(in super::super) fn finish_write_back(file: &File, range: &std::ops::Range<u64>) -> io::Result<()> {
    let wait = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_file_range(file, range, libc::SYNC_FILE_RANGE_WRITE | wait)
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn sync_file_range(file: &File, range: &std::ops::Range<u64>, flags: libc::c_uint) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let signed = |value: u64| libc::off64_t::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
    let (offset, len) = (signed(range.start)?, signed(range.end - range.start)?);
    // SAFETY: no memory is passed, and the descriptor is open.
    if unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `FICLONERANGE` of `<linux/fs.h>`.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(in super::super) fn clone_range(
    file: &File,
    source: &File,
    offset: u64,
    range: &std::ops::Range<u64>,
) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    use rustix::ioctl::{Setter, ioctl, opcode};

    /// `struct file_clone_range`.
    #[repr(C)]
    struct FileCloneRange {
        source: i64,
        source_offset: u64,
        len: u64,
        offset: u64,
    }
    const REQUEST: rustix::ioctl::Opcode = opcode::write::<FileCloneRange>(0x94, 13);
    let clone = FileCloneRange {
        source: source.as_raw_fd().into(),
        source_offset: offset,
        len: range.end - range.start,
        offset: range.start,
    };
    // SAFETY: the request reads the structure that it is declared with, and both descriptors are open.
    Ok(unsafe { ioctl(file, Setter::<REQUEST, FileCloneRange>::new(clone)) }?)
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(in super::super) fn set_lock(file: &File, bytes: &std::ops::Range<u64>, locked: bool) -> io::Result<()> {
    let kind = if locked { libc::F_RDLCK } else { libc::F_UNLCK };
    lock(file, libc::F_OFD_SETLK, kind, bytes).map(drop)
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(in super::super) fn is_locked(file: &File, bytes: &std::ops::Range<u64>) -> io::Result<bool> {
    // An exclusive lock conflicts with any other one. It is not placed.
    let found = lock(file, libc::F_OFD_GETLK, libc::F_WRLCK, bytes)?;
    Ok(found != libc::F_UNLCK)
}

/// Other systems have no locks that belong to an open file, or `libc` has not. Those of a process would be lost when it closes
/// any of its descriptors of the file.
#[cfg(all(unix, not(all(target_os = "linux", target_pointer_width = "64"))))]
pub(in super::super) fn set_lock(_file: &File, _bytes: &std::ops::Range<u64>, _locked: bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(unix, not(all(target_os = "linux", target_pointer_width = "64"))))]
pub(in super::super) fn is_locked(_file: &File, _bytes: &std::ops::Range<u64>) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Calls `fcntl` with a lock, and returns the kind of lock that it leaves in its argument.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn lock(file: &File, command: libc::c_int, kind: libc::c_int, bytes: &std::ops::Range<u64>) -> io::Result<libc::c_int> {
    use std::os::fd::AsRawFd;

    let signed = |value: u64| i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: signed(bytes.start)?,
        l_len: signed(bytes.end - bytes.start)?,
        // Required for locks of open files.
        l_pid: 0,
    };
    // SAFETY: both commands take a pointer to a `flock`, which is valid until the call returns; the descriptor is open.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock.l_type.into())
}
