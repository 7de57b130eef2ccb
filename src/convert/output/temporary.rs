//! Files without a name, or under temporary names.

use std::collections::hash_map::RandomState;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::{FileStatus, FileTarget, directory_of, rename_new};
use crate::name::escaped_path;

const CREATING: &str = "creating a temporary file";

/// A file under a temporary name, or still without one. Dropping it removes the file.
pub(super) struct Temporary {
    /// `None`: the file has no name yet, and is gone when it is closed.
    path: Option<PathBuf>,
    /// The file has got another name, or is to keep this one.
    renamed: bool,
}

impl Temporary {
    /// The temporary name.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Creates a file beside `target` under an unused name. It has what can be kept of the file `replaced`, with permissions limited
    /// to those of `within`.
    pub fn create(
        target: &Path,
        replaced: Option<&FileStatus>,
        within: Option<&FileStatus>,
    ) -> Result<(FileTarget, Temporary)> {
        let create = |path: &Path| match (replaced, within) {
            (None, None) => FileTarget::create_new(path),
            _ => FileTarget::create_within(path, replaced, within),
        };
        let (file, temporary) = match Self::create_unnamed(target, replaced, within) {
            Ok(created) => created,
            Err(_) => {
                match Self::try_rename(target, replaced.is_some(), |path| FileTarget::create_private(path)?.close()) {
                    Ok(()) => Self::with_temporary_name(target, CREATING, create)?,
                    // Where nothing can be renamed, a new file has its name from the start.
                    Err(error) if replaced.is_none() => match create(target) {
                        Ok(file) => (file, Temporary { path: Some(target.to_owned()), renamed: false }),
                        Err(_) => return Err(error),
                    },
                    Err(error) => return Err(error),
                }
            }
        };
        let access = file.set_access(replaced, within).map_err(Error::io("setting the permissions", None));
        let checked = access.and_then(|()| match replaced.and_then(|_| file.rename_obstacle(target)) {
            Some(obstacle) => Err(Error::Usage(obstacle.into())),
            None => Ok(()),
        });
        if let Err(error) = checked {
            // Not all file systems can remove an open file.
            drop(file);
            return Err(error);
        }
        Ok((file, temporary))
    }

    /// Creates a file without a name beside `target`, where the file system has such files and can give them one.
    fn create_unnamed(
        target: &Path,
        replaced: Option<&FileStatus>,
        within: Option<&FileStatus>,
    ) -> Result<(FileTarget, Temporary)> {
        let create = |replaced, within| FileTarget::create_unnamed(directory_of(target), replaced, within);
        let probe = create(None, None).map_err(Error::io(CREATING, None))?;
        Self::try_rename(target, replaced.is_some(), |path| probe.give_name(path))?;
        let file = create(replaced, within).map_err(Error::io(CREATING, None))?;
        Ok((file, Temporary { path: None, renamed: false }))
    }

    /// Gives the file a temporary name, if it has none yet.
    pub fn give_name(&mut self, file: &FileTarget, target: &Path) -> Result<()> {
        if self.path.is_none() {
            let ((), mut named) = Self::with_temporary_name(target, CREATING, |path| file.give_name(path))?;
            self.path = named.path.take();
        }
        Ok(())
    }

    /// Renames an empty file beside `target` that `make` makes, over another one if it `replaces` a file. Some file systems cannot do
    /// that, and the conversion would be in vain.
    fn try_rename(target: &Path, replaces: bool, make: impl Fn(&Path) -> io::Result<()>) -> Result<()> {
        let create = |path: &Path| FileTarget::create_private(path)?.close();
        let ((), from) = Self::with_temporary_name(target, CREATING, make)?;
        let ((), to) =
            Self::with_temporary_name(target, CREATING, |path| if replaces { create(path) } else { Ok(()) })?;
        to.path.as_deref().map_or(Ok(()), |path| from.rename(path, true))
    }

    /// Gives the file at `path` a temporary name: a second one with `link`, or instead of its own where the file system has no
    /// hard links.
    pub fn keep(path: &Path, link: impl Fn(&Path, &Path) -> io::Result<()>) -> Result<Temporary> {
        let link_or_move = |temporary: &Path| match link(path, temporary) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => fs::rename(path, temporary),
            other => other,
        };
        Ok(Self::with_temporary_name(path, "keeping the old file", link_or_move)?.1)
    }

    /// Calls `make` with temporary names beside `target` until one is unused.
    fn with_temporary_name<T>(
        target: &Path,
        action: &'static str,
        make: impl Fn(&Path) -> io::Result<T>,
    ) -> Result<(T, Temporary)> {
        let Some(name) = target.file_name() else {
            return Err(Error::Usage("the target has no file name".into()));
        };
        loop {
            let path = target.with_file_name(temporary_name(name));
            match make(&path) {
                Ok(made) => return Ok((made, Temporary { path: Some(path), renamed: false })),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(action, None)(e)),
            }
        }
    }

    /// Gives the file the name `target`, in place of an existing file if `clobber`.
    pub fn rename(mut self, target: &Path, clobber: bool) -> Result<()> {
        let path = match self.path.as_deref() {
            None => return Err(Error::Usage("the new file has no name yet".into())),
            Some(path) => path,
        };
        if path == target {
            self.renamed = true;
            return Ok(());
        }
        let result = if clobber { fs::rename(path, target) } else { rename_new(path, target) };
        result.map_err(Error::io("renaming the temporary file", None))?;
        self.renamed = true;
        Ok(())
    }

    /// Gives an old file its name back.
    pub fn put_back(mut self, path: &Path) -> Result<()> {
        let Some(kept) = self.path.as_deref() else { return Ok(()) };
        // Two names of one file are not renamed: the second one is removed then.
        fs::rename(kept, path).map_err(|cause| {
            let action = format!("restoring the old file, which is now {}", escaped_path(kept));
            // The file may have no other name.
            self.renamed = true;
            Error::io(action, None)(cause)
        })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.path.take().filter(|_| !self.renamed) {
            // There is no way to report an error.
            let _ = fs::remove_file(path);
        }
    }
}

/// `.NAME.01234567.tmp`, with the start of the name: short, because file systems have different limits (eCryptfs 143 bytes, for
/// example), and the new name must fit wherever that of the target does.
fn temporary_name(name: &OsStr) -> OsString {
    let name = name.to_string_lossy();
    let start = name.get(..name.floor_char_boundary(12)).unwrap_or_default();
    let random = RandomState::new().build_hasher().finish() as u32;
    format!(".{start}.{random:08x}.tmp").into()
}
