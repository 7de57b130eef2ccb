//! The files of a new image in a directory of the caller.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use crate::driver::TargetFiles;
use crate::error::{Error, Result};
use crate::io::{TargetDirectory, WriteAt};
use crate::name::Name;

/// Creates the files of an image in a [`TargetDirectory`].
pub(super) struct DirectoryFiles<'a> {
    directory: &'a dyn TargetDirectory,
    image_name: &'a OsStr,
    names: FileNames,
}

impl<'a> DirectoryFiles<'a> {
    pub fn new(directory: &'a dyn TargetDirectory, image_name: &'a OsStr) -> Self {
        DirectoryFiles { directory, image_name, names: FileNames::default() }
    }
}

impl TargetFiles for DirectoryFiles<'_> {
    fn image_name(&self) -> &OsStr {
        self.image_name
    }

    fn add(&self, name: &OsStr) -> Result<Arc<dyn WriteAt>> {
        self.names.add(name)?;
        self.directory
            .create(name)
            .map_err(Error::io("creating the file", None))
            .map_err(|e| e.in_file(Path::new(name)))
    }
}

/// The names that files of a new image have already. All are in one directory.
#[derive(Default)]
pub(super) struct FileNames(RefCell<Vec<OsString>>);

impl FileNames {
    /// Adds the name of a file.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is not a plain file name, or is that of another file.
    pub fn add(&self, name: &OsStr) -> Result<()> {
        let path = Path::new(name);
        if path.file_name() != Some(name) {
            return Err(Error::Usage(format!("not a plain file name: '{}'", Name::from(path))));
        }
        let mut names = self.0.borrow_mut();
        if names.iter().any(|other| other == name) {
            return Err(Error::Usage("two files of the new image have this name".into()).in_file(path));
        }
        names.push(name.to_owned());
        Ok(())
    }
}
