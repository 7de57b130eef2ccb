//! Files under temporary names.

use std::collections::hash_map::RandomState;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::{FileStatus, FileTarget, rename_new};
use crate::name::escaped_path;

/// A file under a temporary name. Dropping it removes the file.
pub(super) struct Temporary {
    path: PathBuf,
    /// The file has got another name, or is to keep this one.
    renamed: bool,
}

impl Temporary {
    /// Creates a file beside `target` under an unused name. It has what can be kept of the file `replaced`, with permissions limited
    /// to those of `within`.
    pub fn create(
        target: &Path,
        replaced: Option<&FileStatus>,
        within: Option<&FileStatus>,
    ) -> Result<(FileTarget, Temporary)> {
        // A user who may not read the old file must never be able to read the new one.
        let private = replaced.is_some() || within.is_some();
        let create = if private { FileTarget::create_private } else { FileTarget::create_new };
        let (file, temporary) = Self::with_temporary_name(target, "creating a temporary file", create)?;
        if private {
            file.set_access(replaced, within).map_err(Error::io("setting the permissions", None))?;
        }
        if let Some(obstacle) = replaced.and_then(|_| file.rename_obstacle(target)) {
            return Err(Error::Usage(obstacle.into()));
        }
        Ok((file, temporary))
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
                Ok(made) => return Ok((made, Temporary { path, renamed: false })),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(action, None)(e)),
            }
        }
    }

    /// Gives the file the name `target`, in place of an existing file if `clobber`.
    pub fn rename(mut self, target: &Path, clobber: bool) -> Result<()> {
        let result = if clobber { fs::rename(&self.path, target) } else { rename_new(&self.path, target) };
        result.map_err(Error::io("renaming the temporary file", None))?;
        self.renamed = true;
        Ok(())
    }

    /// Gives an old file its name back.
    pub fn put_back(mut self, path: &Path) -> Result<()> {
        fs::rename(&self.path, path).map_err(|cause| {
            // The file may have no other name.
            self.renamed = true;
            let action = format!("restoring the old file, which is now {}", escaped_path(&self.path));
            Error::io(action, None)(cause)
        })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // There is no way to report an error.
            let _ = fs::remove_file(&self.path);
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
