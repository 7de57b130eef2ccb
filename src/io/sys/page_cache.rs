//! Requests about the page cache, for systems that have none of them: hints do nothing, and files cannot bypass it.

use std::fs::File;
use std::io;
use std::ops::Range;

pub(crate) fn start_write_back(_file: &File, _range: &Range<u64>) {}

pub(crate) fn finish_write_back(_file: &File, _range: &Range<u64>) {}

pub(crate) fn drop_cached(_file: &File, _range: &Range<u64>) {}

/// The system is not asked.
pub(crate) fn memory() -> Option<u64> {
    None
}

pub(crate) fn open_direct(_file: &File, _write: bool) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}
