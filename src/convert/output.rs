//! Where a new image is written: beside its target under a hidden name, until it is complete.

use std::collections::hash_map::RandomState;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::error::{Error, Result};
use crate::io::{FileIdentity, FileTarget, WriteAt};

/// A new file that is not in its place yet, or a device. Dropping it removes the file.
pub(super) struct Output {
    target: PathBuf,
    file: Option<Arc<FileTarget>>,
    /// The hidden name; nothing for a device.
    temporary: Option<PathBuf>,
    /// The file that is replaced.
    old: Option<Metadata>,
    sync: bool,
    clobber: bool,
}

impl Output {
    /// Prepares to write `target`, which must be none of the files `in_use`.
    pub fn create(target: &Path, in_use: &[FileIdentity], sync: bool, clobber: bool) -> Result<Output> {
        Self::prepare(target, in_use, sync, clobber).map_err(|e| e.in_file(target))
    }

    fn prepare(target: &Path, in_use: &[FileIdentity], sync: bool, clobber: bool) -> Result<Output> {
        let old = match fs::metadata(target) {
            Ok(metadata) => Some(metadata),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io("looking at the target", None)(e)),
        };
        let mut output = Output { target: target.to_owned(), file: None, temporary: None, old: None, sync, clobber };
        if let Some(old) = old {
            if in_use.contains(&FileIdentity::of(&old)) {
                return Err(Error::Usage("the target is a file that is read from".into()));
            }
            if old.file_type().is_block_device() {
                let device = FileTarget::open_device(target).map_err(Error::io("opening the device", None))?;
                output.file = Some(Arc::new(device.with_sync(sync)));
                return Ok(output);
            }
            if !old.is_file() {
                return Err(Error::Usage("the target is neither a regular file nor a block device".into()));
            }
            if !clobber {
                return Err(Error::Usage("the target exists".into()));
            }
            // The file that a link leads to is replaced, not the link.
            output.target = fs::canonicalize(target).map_err(Error::io("following the link", None))?;
            output.old = Some(old);
        } else if fs::symlink_metadata(target).is_ok() {
            return Err(Error::Usage("the target is a link that leads nowhere".into()));
        }
        output.open_temporary()?;
        Ok(output)
    }

    /// Makes a file with a name that nobody else uses.
    fn open_temporary(&mut self) -> Result<()> {
        let Some(name) = self.target.file_name() else {
            return Err(Error::Usage("the target has no file name".into()));
        };
        loop {
            let temporary = self.target.with_file_name(hidden_name(name.as_bytes()));
            match FileTarget::create_new(&temporary) {
                Ok(file) => {
                    self.file = Some(Arc::new(file.with_sync(self.sync)));
                    self.temporary = Some(temporary);
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io("making a file beside the target", None)(e)),
            }
        }
    }

    /// The file to write to.
    pub fn file(&self) -> Arc<dyn WriteAt> {
        match &self.file {
            Some(file) => file.clone(),
            None => Arc::new(crate::io::MemFile::new()),
        }
    }

    /// Puts the file in its place. Its content has been synced.
    pub fn commit(mut self) -> Result<()> {
        let target = self.target.clone();
        self.close_and_rename().map_err(|e| e.in_file(&target))
    }

    fn close_and_rename(&mut self) -> Result<()> {
        let file = self.file.take().and_then(Arc::into_inner);
        let file = file.ok_or_else(|| Error::Usage("the output is still in use".into()))?;
        if let Some(old) = &self.old {
            // Who may read the old file may read the new one. Only root can give a file away, so that may fail.
            let _ = chown(self.temporary.as_deref().unwrap_or(&self.target), Some(old.uid()), Some(old.gid()));
            file.file().set_permissions(old.permissions()).map_err(Error::io("setting the permissions", None))?;
        }
        file.close().map_err(Error::io("closing", None))?;
        let Some(temporary) = &self.temporary else { return Ok(()) };
        if self.clobber {
            fs::rename(temporary, &self.target).map_err(Error::io("renaming the new file to its name", None))?;
        } else {
            rename_new(temporary, &self.target).map_err(Error::io("giving the new file its name", None))?;
        }
        self.temporary = None;
        if self.sync {
            let directory = self.target.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(directory)
                .and_then(|directory| directory.sync_all())
                .map_err(Error::io("syncing the directory", None))?;
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            // There is nobody left to tell.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// `.NAME.0123456789abcdef.tmp`, with as much of the name as fits.
fn hidden_name(name: &[u8]) -> OsString {
    let name = &name[..name.len().min(200)];
    let random = RandomState::new().build_hasher().finish();
    let mut hidden = vec![b'.'];
    hidden.extend(name);
    hidden.extend(format!(".{random:016x}.tmp").into_bytes());
    OsString::from_vec(hidden)
}

/// Renames `from` to `to` unless there is something at `to`.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // The file system does not know the flag: a second name, made only if it is free, does the same.
        Err(Errno::EINVAL) => fs::hard_link(from, to).and_then(|()| fs::remove_file(from)),
        other => Ok(other?),
    }
}
