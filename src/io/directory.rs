//! Directories of an image that consists of several files.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{MemFile, ReadAt, WriteAt};

/// A directory in which the files of a new image are created, in any storage. [`MemDirectory`] is one in memory.
///
/// ```
/// use std::ffi::OsStr;
/// use std::io;
/// use std::sync::Arc;
///
/// use diskimage::io::{MemDirectory, TargetDirectory, WriteAt};
/// use diskimage::{Converter, Format};
///
/// /// Refuses to replace a file.
/// struct WriteOnce(MemDirectory);
///
/// impl TargetDirectory for WriteOnce {
///     fn create(&self, name: &OsStr) -> io::Result<Arc<dyn WriteAt>> {
///         match self.0.file(name) {
///             Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
///             None => self.0.create(name),
///         }
///     }
/// }
///
/// let directory = WriteOnce(MemDirectory::new());
/// let converter = Converter::new(Format::VDI);
/// converter.create_into(1 << 20, &directory, "disk.vdi")?;
/// let error = converter.create_into(1 << 20, &directory, "disk.vdi").unwrap_err();
/// assert_eq!(error.to_string(), "disk.vdi: creating the file: entity already exists");
/// # Ok::<(), diskimage::Error>(())
/// ```
pub trait TargetDirectory: Send + Sync {
    /// Creates the empty file `name`, a plain file name, in place of one that exists.
    ///
    /// # Errors
    /// Errors of the storage.
    fn create(&self, name: &OsStr) -> io::Result<Arc<dyn WriteAt>>;
}

/// A directory in memory.
///
/// It takes an image of several files from [`Converter::convert_into`](crate::Converter::convert_into), and gives them back
/// to a [resolver](crate::OpenOptions::resolver).
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::io::{MemDirectory, MemFile};
/// use diskimage::{Converter, Format, OpenOptions, Options, ReferencePolicy};
///
/// let disk = OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(vec![7; 1 << 20])))?;
/// let mut options = Options::new();
/// options.set("subformat", "monolithicFlat");
/// let directory = Arc::new(MemDirectory::new());
/// Converter::new(Format::VMDK).options(options).convert_into(&disk, &*directory, "disk.vmdk")?;
/// assert!(directory.names().into_iter().eq(["disk-flat.vmdk", "disk.vmdk"]));
///
/// let descriptor = directory.open("disk.vmdk")?;
/// let image = OpenOptions::new()
///     .reference_policy(ReferencePolicy::Beside)
///     .resolver(move |request| directory.open(request.path))
///     .open_source(descriptor)?;
/// assert_eq!(image.virtual_size(), 1 << 20);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct MemDirectory {
    files: Mutex<BTreeMap<OsString, Arc<MemFile>>>,
}

impl MemDirectory {
    /// An empty directory.
    pub fn new() -> Self {
        MemDirectory::default()
    }

    /// Adds a file, in place of one of the same name.
    pub fn insert(&self, name: impl Into<OsString>, file: Arc<MemFile>) {
        self.lock().insert(name.into(), file);
    }

    /// Returns the file called `name`.
    pub fn file(&self, name: impl AsRef<OsStr>) -> Option<Arc<MemFile>> {
        self.lock().get(name.as_ref()).cloned()
    }

    /// Returns the file called `path`, for a [resolver](crate::OpenOptions::resolver). `./name` is the same file as `name`.
    ///
    /// # Errors
    /// [`NotFound`](io::ErrorKind::NotFound) if there is none.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<Arc<dyn ReadAt>> {
        let is_name = |part: &Component<'_>| *part != Component::CurDir;
        let path: PathBuf = path.as_ref().components().filter(is_name).collect();
        match self.file(path) {
            Some(file) => Ok(file),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Returns the names of all files, in ascending order.
    pub fn names(&self) -> Vec<OsString> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<OsString, Arc<MemFile>>> {
        // A panic elsewhere leaves the map complete.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TargetDirectory for MemDirectory {
    fn create(&self, name: &OsStr) -> io::Result<Arc<dyn WriteAt>> {
        let file = Arc::new(MemFile::new());
        self.insert(name, file.clone());
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_the_current_directory_is_a_name() {
        let directory = MemDirectory::new();
        directory.insert("base.raw", Arc::new(MemFile::from(vec![7])));
        for path in ["base.raw", "./base.raw", "././base.raw"] {
            assert_eq!(directory.open(path).unwrap().size().unwrap(), 1, "{path}");
        }
        for path in ["../base.raw", "/base.raw", "a/base.raw", ".", ""] {
            assert_eq!(directory.open(path).err().unwrap().kind(), io::ErrorKind::NotFound, "{path}");
        }
    }
}
