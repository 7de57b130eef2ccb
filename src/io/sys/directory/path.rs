//! By its path, without the links in it. On Windows neither the directory nor one above it can be renamed while it is open here. On WASI the
//! runtime keeps a program in the directories that it was given.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::super::system;
use super::{Access, EntryKind};
use crate::io::FileIdentity;

#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    _handle: File,
}

impl Directory {
    pub fn open(path: &Path) -> io::Result<Directory> {
        let handle = system::hold_directory(path)?;
        // A drive of another kind than a disk may not tell the path, and WASI does not.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        Ok(Directory { path, _handle: handle })
    }

    pub fn kind(&self, name: &OsStr) -> io::Result<EntryKind> {
        let file_type = fs::symlink_metadata(self.path.join(name))?.file_type();
        Ok(match (file_type.is_symlink(), file_type.is_file()) {
            (true, _) => EntryKind::Link,
            (false, true) => EntryKind::Regular,
            (false, false) => EntryKind::Other,
        })
    }

    pub fn identity(&self, name: &OsStr) -> io::Result<FileIdentity> {
        system::status(&self.path.join(name), true).map(|(_, identity, _)| identity)
    }

    pub fn open_file(&self, name: &OsStr, access: Access) -> io::Result<File> {
        let path = self.path.join(name);
        match access {
            Access::Read => system::open(&path, false),
            Access::ReadWrite => system::open_writable_nofollow(&path),
        }
    }

    pub fn names(&self) -> io::Result<Vec<OsString>> {
        fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name())).collect()
    }
}
