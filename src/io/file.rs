//! Files and block devices of the operating system.

mod directory;
mod source;
mod storage;
mod target;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::Path;

use super::sys::{self, FileAccess, FileKind};
pub(crate) use directory::{FileDirectory, NotOpened};
pub use source::FileSource;
pub use storage::FileStorage;
pub use target::FileTarget;

/// Distinguishes a file from every other one on this machine: device and inode on Unix, volume serial number and file ID on
/// Windows; a device is identified by its number.
///
/// # Examples
///
/// ```
/// use diskimage::io::FileIdentity;
///
/// # fn main() -> std::io::Result<()> {
/// # let path = std::env::temp_dir().join(format!("diskimage-doc-identity-{}", std::process::id()));
/// # std::fs::write(&path, b"content")?;
/// let (one, again) = (std::fs::File::open(&path)?, std::fs::File::open(&path)?);
/// assert_eq!(FileIdentity::from_file(&one)?, FileIdentity::from_file(&again)?);
/// # std::fs::remove_file(&path)
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity(u64, u128);

impl FileIdentity {
    /// The identity of an open file.
    ///
    /// # Errors
    /// Those of the system.
    pub fn from_file(file: &File) -> io::Result<Self> {
        sys::identity(file)
    }

    /// From the number of the volume, `u64::MAX` for a device, and that of the file or device.
    #[cfg(any(unix, windows, target_os = "wasi"))]
    pub(super) fn from_parts(volume: u64, file: u128) -> Self {
        FileIdentity(volume, file)
    }
}

/// What is at a path.
#[derive(Clone, Debug)]
pub(crate) struct FileStatus {
    pub kind: FileKind,
    pub identity: FileIdentity,
    /// Owner, permissions and attributes.
    access: FileAccess,
}

impl FileStatus {
    /// The file at `path`, following symbolic links; `None` if it does not exist.
    pub fn from_path(path: &Path) -> io::Result<Option<Self>> {
        Self::new(sys::status(path, true))
    }

    /// What is at `path`, which may be a symbolic link. `None` if there is nothing.
    pub fn from_link(path: &Path) -> io::Result<Option<Self>> {
        Self::new(sys::status(path, false))
    }

    fn new(status: io::Result<(FileKind, FileIdentity, FileAccess)>) -> io::Result<Option<Self>> {
        match status {
            Ok((kind, identity, access)) => Ok(Some(FileStatus { kind, identity, access })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}
