//! How files use the page cache of the system.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::sys;

/// How a file is read and written: the cache modes of QEMU.
///
/// Only Linux can bypass the page cache here, and only on file systems that do it. Elsewhere [`None`](Self::None) is the same as
/// [`Writeback`](Self::Writeback), and [`Directsync`](Self::Directsync) as [`Writethrough`](Self::Writethrough).
///
/// ```
/// use diskimage::io::CacheMode;
///
/// assert_eq!(CacheMode::by_name("none"), Some(CacheMode::None));
/// assert!(CacheMode::None.bypasses() && !CacheMode::Writethrough.bypasses());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CacheMode {
    /// Through the page cache, and durable when the file is synced.
    #[default]
    Writeback,
    /// Bypassing the page cache (`O_DIRECT`), and durable when the file is synced.
    None,
    /// Through the page cache, and each write is durable when it returns.
    Writethrough,
    /// Bypassing the page cache, and each write is durable when it returns.
    Directsync,
    /// Through the page cache, and never synced.
    Unsafe,
}

impl CacheMode {
    const NAMES: [(&'static str, CacheMode); 5] = [
        ("writeback", CacheMode::Writeback),
        ("none", CacheMode::None),
        ("writethrough", CacheMode::Writethrough),
        ("directsync", CacheMode::Directsync),
        ("unsafe", CacheMode::Unsafe),
    ];

    /// Finds a mode by its name in QEMU.
    pub fn by_name(name: &str) -> Option<CacheMode> {
        Self::NAMES.iter().find(|(other, _)| *other == name).map(|(_, mode)| *mode)
    }

    /// Whether the page cache is bypassed.
    pub fn bypasses(self) -> bool {
        matches!(self, CacheMode::None | CacheMode::Directsync)
    }

    /// Whether each write is durable when it returns.
    pub fn writes_through(self) -> bool {
        matches!(self, CacheMode::Writethrough | CacheMode::Directsync)
    }
}

/// Reads and writes of at least so many bytes are of guest data. Shorter ones are of metadata, which may be read and written again.
pub(super) const LARGE: usize = 256 << 10;

/// Whether a file of `len` bytes is dropped from the page cache once it has been read or written: its end would displace its beginning, and what other
/// programs have there.
pub(super) fn drops_behind(len: u64, memory: Option<u64>) -> bool {
    memory.is_some_and(|memory| len > memory / 2)
}

/// Ranges of a file that were written, and that the system is storing.
#[derive(Debug, Default)]
pub(super) struct WriteBehind(Mutex<VecDeque<Range<u64>>>);

impl WriteBehind {
    /// Most ranges that are in the page cache. With those of the pipeline they are some tens of MiB.
    const KEPT: usize = 32;

    /// Adds a range whose write-back has begun, and drops an old one from the page cache, for which it may have to wait.
    pub fn add(&self, file: &File, range: Range<u64>) {
        let mut ranges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ranges.push_back(range);
        let old = if ranges.len() > Self::KEPT { ranges.pop_front() } else { None };
        drop(ranges);
        if let Some(old) = old {
            sys::finish_write_back(file, &old);
            sys::drop_cached(file, &old);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_the_names_of_qemu() {
        for (name, mode) in CacheMode::NAMES {
            assert_eq!(CacheMode::by_name(name), Some(mode));
            assert_eq!(mode.bypasses(), ["none", "directsync"].contains(&name));
            assert_eq!(mode.writes_through(), ["writethrough", "directsync"].contains(&name));
        }
        assert_eq!(CacheMode::by_name("None"), None);
    }

    #[test]
    fn files_larger_than_half_of_memory_are_dropped() {
        for (len, memory, drops) in
            [(0, Some(0), false), (50, Some(100), false), (51, Some(100), true), (u64::MAX, None, false)]
        {
            assert_eq!(drops_behind(len, memory), drops, "{len} of {memory:?}");
        }
    }
}
