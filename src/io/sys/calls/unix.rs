//! `close` with its error; size of disks; `F_PUNCHHOLE` of macOS.

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

/// Makes a range read as zeros, with holes in the place of whole blocks of the file system.
#[cfg(target_vendor = "apple")]
pub(in super::super) fn punch_hole(file: &File, range: &std::ops::Range<u64>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    // Only whole blocks can be punched. What is left at both ends is smaller than one.
    let block = file.metadata()?.blksize().max(4096);
    let start = range.start.next_multiple_of(block);
    let end = range.end - range.end % block;
    if start >= end {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let signed = |value: u64| i64::try_from(value).map_err(|_| io::ErrorKind::FileTooLarge);
    let hole =
        libc::fpunchhole_t { fp_flags: 0, reserved: 0, fp_offset: signed(start)?, fp_length: signed(end - start)? };
    // SAFETY: the request reads a `fpunchhole_t`, which is valid until the call returns; the descriptor is open.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_PUNCHHOLE, &raw const hole) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for edge in [range.start..start, end..range.end] {
        let zeros = vec![0; usize::try_from(edge.end - edge.start).map_err(|_| io::ErrorKind::FileTooLarge)?];
        file.write_all_at(&zeros, edge.start)?;
    }
    Ok(())
}
