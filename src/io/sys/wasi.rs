//! WebAssembly with WASI preview 1: files without holes, permissions and devices.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::wasi::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat};

pub(crate) use super::page_cache::*;
use super::{FileKind, calls};
use crate::io::FileIdentity;

/// WASI has no permissions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileAccess;

pub(crate) fn open(path: &Path, follow: bool) -> io::Result<File> {
    if follow {
        return File::open(path);
    }
    Ok(rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::NOFOLLOW, Mode::empty())?.into())
}

pub(crate) fn create(path: &Path, _private: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

pub(crate) fn create_within(
    path: &Path,
    _replaced: Option<&FileAccess>,
    _within: Option<&FileAccess>,
) -> io::Result<File> {
    create(path, true)
}

/// Opens an existing file for writing.
pub(crate) fn open_existing(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

pub(crate) fn open_writable(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Opens for reading and writing, unless it is a symbolic link.
pub(crate) fn open_writable_nofollow(path: &Path) -> io::Result<File> {
    Ok(rustix::fs::openat(CWD, path, OFlags::RDWR | OFlags::NOFOLLOW, Mode::empty())?.into())
}

/// Keeps a directory open.
pub(crate) fn hold_directory(path: &Path) -> io::Result<File> {
    Ok(rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?.into())
}

/// Files have no such attribute.
pub(crate) fn clear_sparse(_file: &File) -> io::Result<()> {
    Ok(())
}

pub(crate) fn open_device(_path: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn kind(file: &File) -> io::Result<FileKind> {
    Ok(if file.metadata()?.is_file() { FileKind::Regular } else { FileKind::Other })
}

pub(crate) fn size(file: &File, _device: bool) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}

/// WASI does not tell; the length is the upper bound.
pub(crate) fn allocated(file: &File) -> io::Result<u64> {
    size(file, false)
}

pub(crate) fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    Ok(rustix::io::pread(file, buf, offset)?)
}

pub(crate) fn write_all_at(file: &File, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match rustix::io::retry_on_intr(|| rustix::io::pwrite(file, buf, offset))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => {
                buf = buf.get(n..).unwrap_or_default();
                offset += n as u64;
            }
        }
    }
    Ok(())
}

pub(crate) fn next_data(_file: &File, _offset: u64) -> io::Result<Option<Range<u64>>> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn punch_hole(_file: &File, _range: &Range<u64>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn block_size(_file: &File) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn allocate(_file: &File, _range: &Range<u64>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn clone_range(_file: &File, _source: &File, _offset: u64, _range: &Range<u64>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// WASI has no locks.
pub(crate) fn set_lock(_file: &File, _bytes: &Range<u64>, _locked: bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn is_locked(_file: &File, _bytes: &Range<u64>) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn sync(file: &File) -> io::Result<()> {
    file.sync_all()
}

/// WASI gives no right to sync a directory.
pub(crate) fn sync_directory(_path: &Path) -> io::Result<()> {
    Ok(())
}

pub(crate) fn close(file: File) -> io::Result<()> {
    calls::close(file)
}

pub(crate) fn identity(file: &File) -> io::Result<FileIdentity> {
    Ok(identity_in(&rustix::fs::fstat(file)?))
}

fn identity_in(stat: &Stat) -> FileIdentity {
    FileIdentity::from_parts(stat.st_dev, stat.st_ino.into())
}

pub(crate) fn status(path: &Path, follow: bool) -> io::Result<(FileKind, FileIdentity, FileAccess)> {
    let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let stat = rustix::fs::statat(CWD, path, flags)?;
    let metadata = if follow { fs::metadata(path)? } else { fs::symlink_metadata(path)? };
    let kind = if metadata.is_file() { FileKind::Regular } else { FileKind::Other };
    Ok((kind, identity_in(&stat), FileAccess))
}

pub(crate) fn set_access(_file: &File, _replaced: Option<&FileAccess>, _within: Option<&FileAccess>) -> io::Result<()> {
    Ok(())
}

pub(crate) fn rename_obstacle(_new: &File, _path: &Path) -> Option<&'static str> {
    None
}

/// Bytes from an image as a path of this system, if they can be one.
pub(crate) fn path_from_bytes(bytes: &[u8]) -> Option<&Path> {
    // WASI takes nothing but UTF-8.
    std::str::from_utf8(bytes).ok()?;
    Some(Path::new(OsStr::from_bytes(bytes)))
}

/// There is no such limit.
pub(crate) fn address_space() -> Option<u64> {
    None
}

/// Files have no modes.
pub(crate) fn mode_within(_replaced: Option<&FileAccess>, _within: Option<&FileAccess>) -> u32 {
    0
}
