//! Files without a name, which get one when they are complete. A process that is killed leaves nothing.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux {
    use std::fs::OpenOptions;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;

    use rustix::fs::{AtFlags, CWD, OFlags, linkat};

    use super::*;

    /// Creates a file in `directory`, with a mode that the caller can make more open, on file systems that can do it (open(2),
    /// `O_TMPFILE`).
    pub fn create_unnamed(directory: &Path, mode: u32) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .mode(mode)
            .custom_flags(OFlags::TMPFILE.bits().cast_signed())
            .open(directory)
    }

    /// Gives the file the name `path`, which must be unused.
    pub fn give_name(file: &File, path: &Path) -> io::Result<()> {
        // Without a privilege, a file is linked by its entry in /proc only (open(2)).
        Ok(linkat(CWD, path_without_name(file), CWD, path, AtFlags::SYMLINK_FOLLOW)?)
    }

    /// A path at which this process can open a file that has no name.
    pub fn path_without_name(file: &File) -> PathBuf {
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use linux::{create_unnamed, give_name, path_without_name};

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn create_unnamed(_directory: &Path, _mode: u32) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn give_name(_file: &File, _path: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn path_without_name(_file: &File) -> PathBuf {
    PathBuf::new()
}
