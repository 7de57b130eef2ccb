//! What differs between operating systems. One module for each family, all with the same functions.
//!
//! | module | systems |
//! |---|---|
//! | `unix` | Linux, macOS, FreeBSD and other Unix systems |
//! | `windows` | Windows |
//! | `wasi` | WebAssembly with WASI preview 1 |
//! | `none` | targets without files, such as `wasm32-unknown-unknown`: every call fails with `Unsupported` |

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

#[cfg(any(unix, windows, target_os = "wasi"))]
#[allow(unsafe_code)] // System calls without a safe wrapper; each use states its reason.
mod calls;

mod directory;
#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
#[cfg_attr(unix, allow(dead_code, reason = "each system has some of these requests itself"))]
mod page_cache;
#[cfg(any(unix, target_os = "wasi"))]
mod rename;
mod unnamed;

#[cfg_attr(unix, path = "unix.rs")]
#[cfg_attr(windows, path = "windows.rs")]
#[cfg_attr(target_os = "wasi", path = "wasi.rs")]
#[cfg_attr(not(any(unix, windows, target_os = "wasi")), path = "none.rs")]
mod system;

pub(crate) use directory::{Access, Directory, EntryKind};
#[cfg(any(unix, target_os = "wasi"))]
pub(crate) use rename::rename_new;
pub(crate) use system::*;
pub(crate) use unnamed::{create_unnamed, give_name, path_without_name};

/// What an open file or a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(any(unix, windows)), allow(dead_code))] // Neither WASI nor targets without files have devices.
pub(crate) enum FileKind {
    Regular,
    /// A disk or a partition. Reads must start and end at multiples of `sector` bytes; 1 where any will do.
    Device {
        sector: usize,
    },
    /// A directory, a pipe, a terminal and the like.
    Other,
}

impl FileKind {
    pub fn is_device(self) -> bool {
        matches!(self, FileKind::Device { .. })
    }
}

/// The directory of the file at `path`.
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The path without symbolic links in its last component, whether or not there is a file at the end of the chain.
pub(crate) fn resolve(path: &Path) -> io::Result<PathBuf> {
    /// As in Linux.
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..=MAX_LINKS {
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => path = path.with_file_name("").join(fs::read_link(&path)?),
            Ok(_) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

/// Seconds since 1970, or `None` where the system has no clock. Such systems have no source of randomness either.
pub(crate) fn unix_time() -> Option<u64> {
    if cfg!(all(target_family = "wasm", target_os = "unknown")) {
        // `SystemTime::now` panics there.
        return None;
    }
    Some(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}
