//! The directory of an image, in which its referenced files are opened.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path};

use super::{FileIdentity, FileSource, FileStorage, sys};
use sys::{Access, EntryKind};

/// A directory that stays the same one, even if its path comes to mean another.
///
/// Every name is looked at before it is opened: to open a device or a FIFO can have effects.
#[derive(Debug)]
pub(crate) struct FileDirectory(sys::Directory);

/// Why a name in a directory was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotOpened {
    #[error("a symbolic link")]
    Link,
    #[error("not a regular file")]
    NotRegular,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<NotOpened> for io::Error {
    fn from(error: NotOpened) -> Self {
        match error {
            NotOpened::Io(error) => error,
            refused => io::Error::new(io::ErrorKind::InvalidInput, refused),
        }
    }
}

impl FileDirectory {
    /// Opens the directory of the file at `path`, which has been opened and has `identity`. Fails if that is not there any more.
    pub fn of_file(path: &Path, identity: Option<FileIdentity>) -> io::Result<Self> {
        let directory = sys::Directory::open(sys::directory_of(path))?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        match identity {
            Some(identity) if directory.identity(name)? != identity => {
                Err(io::Error::other("the file was replaced meanwhile"))
            }
            _ => Ok(FileDirectory(directory)),
        }
    }

    /// Opens the regular file `name`.
    pub fn open_source(&self, name: &OsStr) -> Result<FileSource, NotOpened> {
        Ok(FileSource::try_from(self.open(name, Access::Read)?)?)
    }

    /// Opens the regular file `name` for reading and writing; `path` is what messages call it.
    pub fn open_storage(&self, name: &OsStr, path: &Path) -> Result<FileStorage, NotOpened> {
        Ok(FileStorage::from_file(self.open(name, Access::ReadWrite)?, path)?)
    }

    fn open(&self, name: &OsStr, access: Access) -> Result<std::fs::File, NotOpened> {
        if !Path::new(name).components().eq([Component::Normal(name)]) {
            return Err(NotOpened::NotRegular);
        }
        self.check_kind(name)?;
        let file = self.0.open_file(name, access).or_else(|error| {
            // What was put there after the look may be the reason.
            self.check_kind(name)?;
            Err(NotOpened::Io(error))
        })?;
        match sys::kind(&file)? {
            sys::FileKind::Regular => Ok(file),
            _ => Err(NotOpened::NotRegular),
        }
    }

    fn check_kind(&self, name: &OsStr) -> Result<(), NotOpened> {
        match self.0.kind(name)? {
            EntryKind::Regular => Ok(()),
            EntryKind::Link => Err(NotOpened::Link),
            EntryKind::Other => Err(NotOpened::NotRegular),
        }
    }

    /// The names in the directory, in no order.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        self.0.names()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    #[cfg(unix)]
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::io::{ReadAt, WriteAt};
    use crate::testing::TempDir;

    /// `images` with the file `disk`, and `elsewhere` with another `disk`.
    fn directories() -> (TempDir, FileDirectory) {
        let dir = TempDir::new();
        for (name, content) in [("images", "inside"), ("elsewhere", "secrets")] {
            fs::create_dir(dir.join(name)).unwrap();
            fs::write(dir.join(name).join("disk"), content).unwrap();
        }
        let path = dir.join("images/disk");
        let identity = FileSource::open(&path).unwrap().identity().unwrap();
        let directory = FileDirectory::of_file(&path, Some(identity)).unwrap();
        (dir, directory)
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_place_of_the_directory_changes_nothing() {
        let (dir, directory) = directories();
        fs::rename(dir.join("images"), dir.join("moved")).unwrap();
        symlink("elsewhere", dir.join("images")).unwrap();
        let name = OsStr::new("disk");
        assert_eq!(directory.open_source(name).unwrap().size().unwrap(), 6);
        directory.open_storage(name, Path::new("disk")).unwrap().write_all_at(b"I", 0).unwrap();
        assert_eq!(fs::read(dir.join("moved/disk")).unwrap(), b"Inside");
        assert_eq!(fs::read(dir.join("elsewhere/disk")).unwrap(), b"secrets");
        fs::write(dir.join("elsewhere/more"), "").unwrap();
        assert_eq!(directory.names().unwrap(), ["disk"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_that_was_exchanged_before_is_refused() {
        let (dir, _) = directories();
        let path = dir.join("images/disk");
        let identity = FileSource::open(&path).unwrap().identity().unwrap();
        fs::rename(dir.join("images"), dir.join("moved")).unwrap();
        symlink("elsewhere", dir.join("images")).unwrap();
        let error = FileDirectory::of_file(&path, Some(identity)).unwrap_err();
        assert_eq!(error.to_string(), "the file was replaced meanwhile");
    }

    #[test]
    fn only_regular_files_are_opened() {
        let (dir, directory) = directories();
        let name = OsStr::new("disk");
        directory.open_storage(name, Path::new("disk")).unwrap().write_all_at(b"I", 0).unwrap();
        let mut content = [0; 6];
        directory.open_source(name).unwrap().read_exact_at(&mut content, 0).unwrap();
        assert_eq!((&content, directory.names().unwrap()), (b"Inside", vec![name.to_owned()]));

        fs::create_dir(dir.join("images/directory")).unwrap();
        let refusal = |name: &str| directory.open_source(OsStr::new(name)).unwrap_err();
        for name in ["directory", ".", "..", "", "../elsewhere/disk", "directory/../disk"] {
            assert!(matches!(refusal(name), NotOpened::NotRegular), "{name}");
        }
        assert!(matches!(refusal("absent"), NotOpened::Io(error) if error.kind() == io::ErrorKind::NotFound));
        #[cfg(unix)]
        {
            symlink("disk", dir.join("images/link")).unwrap();
            assert!(matches!(refusal("link"), NotOpened::Link));
            let _socket = std::os::unix::net::UnixListener::bind(dir.join("images/socket")).unwrap();
            assert!(std::process::Command::new("mkfifo").arg(dir.join("images/fifo")).status().unwrap().success());
            for name in ["socket", "fifo"] {
                assert!(matches!(refusal(name), NotOpened::NotRegular), "{name}");
            }
        }
    }
}
