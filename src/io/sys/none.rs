//! Targets without files. Everything that names a file fails with [`io::ErrorKind::Unsupported`], as `std::fs` does there;
//! images in memory and storage of the caller's work.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use super::FileKind;
pub(crate) use super::page_cache::*;
use crate::io::FileIdentity;

/// There are no permissions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileAccess;

fn unsupported<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn open(_path: &Path, _follow: bool) -> io::Result<File> {
    unsupported()
}

pub(crate) fn create(_path: &Path, _private: bool) -> io::Result<File> {
    unsupported()
}

pub(crate) fn create_within(
    path: &Path,
    _replaced: Option<&FileAccess>,
    _within: Option<&FileAccess>,
) -> io::Result<File> {
    create(path, true)
}

pub(crate) fn open_existing(_path: &Path) -> io::Result<File> {
    unsupported()
}

pub(crate) fn open_writable(_path: &Path) -> io::Result<File> {
    unsupported()
}

pub(crate) fn open_writable_nofollow(_path: &Path) -> io::Result<File> {
    unsupported()
}

pub(crate) fn hold_directory(_path: &Path) -> io::Result<File> {
    unsupported()
}

pub(crate) fn clear_sparse(_file: &File) -> io::Result<()> {
    unsupported()
}

pub(crate) fn open_device(_path: &Path) -> io::Result<File> {
    unsupported()
}

pub(crate) fn kind(_file: &File) -> io::Result<FileKind> {
    unsupported()
}

pub(crate) fn size(_file: &File, _device: bool) -> io::Result<u64> {
    unsupported()
}

pub(crate) fn allocated(_file: &File) -> io::Result<u64> {
    unsupported()
}

pub(crate) fn read_at(_file: &File, _buf: &mut [u8], _offset: u64) -> io::Result<usize> {
    unsupported()
}

pub(crate) fn write_all_at(_file: &File, _buf: &[u8], _offset: u64) -> io::Result<()> {
    unsupported()
}

pub(crate) fn next_data(_file: &File, _offset: u64) -> io::Result<Option<Range<u64>>> {
    unsupported()
}

pub(crate) fn punch_hole(_file: &File, _range: &Range<u64>) -> io::Result<()> {
    unsupported()
}

pub(crate) fn block_size(_file: &File) -> io::Result<u64> {
    unsupported()
}

pub(crate) fn allocate(_file: &File, _range: &Range<u64>) -> io::Result<()> {
    unsupported()
}

pub(crate) fn clone_range(_file: &File, _source: &File, _offset: u64, _range: &Range<u64>) -> io::Result<()> {
    unsupported()
}

pub(crate) fn set_lock(_file: &File, _bytes: &Range<u64>, _locked: bool) -> io::Result<()> {
    unsupported()
}

pub(crate) fn is_locked(_file: &File, _bytes: &Range<u64>) -> io::Result<bool> {
    unsupported()
}

pub(crate) fn sync(_file: &File) -> io::Result<()> {
    unsupported()
}

pub(crate) fn sync_directory(_path: &Path) -> io::Result<()> {
    unsupported()
}

pub(crate) fn close(_file: File) -> io::Result<()> {
    unsupported()
}

pub(crate) fn identity(_file: &File) -> io::Result<FileIdentity> {
    unsupported()
}

pub(crate) fn status(_path: &Path, _follow: bool) -> io::Result<(FileKind, FileIdentity, FileAccess)> {
    unsupported()
}

pub(crate) fn set_access(_file: &File, _replaced: Option<&FileAccess>, _within: Option<&FileAccess>) -> io::Result<()> {
    unsupported()
}

pub(crate) fn rename_obstacle(_new: &File, _path: &Path) -> Option<&'static str> {
    None
}

pub(crate) fn rename_new(_from: &Path, _to: &Path) -> io::Result<()> {
    unsupported()
}

pub(crate) fn path_from_bytes(bytes: &[u8]) -> Option<&Path> {
    std::str::from_utf8(bytes).ok().map(Path::new)
}

/// There is no such limit.
pub(crate) fn address_space() -> Option<u64> {
    None
}

/// Files have no modes.
pub(crate) fn mode_within(_replaced: Option<&FileAccess>, _within: Option<&FileAccess>) -> u32 {
    0
}
