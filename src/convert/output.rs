//! The files of a new image: temporary files beside the target, renamed when the image is complete.

use std::collections::hash_map::RandomState;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf, is_separator};
use std::sync::{Arc, Mutex, PoisonError};

use crate::driver::TargetFiles;
use crate::error::{Error, Result};
use crate::io::{
    FileIdentity, FileKind, FileStatus, FileTarget, WriteAt, is_in_use, rename_new, resolve, sync_directory,
};
use crate::name::escaped_path;

/// A new image file and the further files of the image, all under temporary names; or a device. Dropping it before
/// [`commit`](Output::commit) removes the files.
pub(super) struct Output {
    target: PathBuf,
    file: Arc<FileTarget>,
    /// `None` for a device.
    temporary: Option<Temporary>,
    /// The existing file at the target.
    old: Option<FileStatus>,
    /// The further files of the image.
    parts: Mutex<Vec<Part>>,
    rules: Rules,
}

/// A further file of the image, under a temporary name.
struct Part {
    path: PathBuf,
    file: Arc<FileTarget>,
    temporary: Temporary,
}

/// Settings for each file of the output.
struct Rules {
    /// Files of the source and of the backing chain.
    in_use: Vec<FileIdentity>,
    sync: bool,
    clobber: bool,
    /// Whether the files may have holes.
    holes: bool,
}

impl Output {
    /// Creates the temporary file for `target`, which must not be one of the files `in_use`.
    pub fn create(target: &Path, in_use: &[FileIdentity], sync: bool, clobber: bool) -> Result<Output> {
        let rules = Rules { in_use: in_use.to_vec(), sync, clobber, holes: true };
        Self::prepare(target, rules).map_err(|e| e.in_file(target))
    }

    fn prepare(target: &Path, rules: Rules) -> Result<Output> {
        if target.as_os_str().as_encoded_bytes().last().is_some_and(|&byte| is_separator(byte.into())) {
            return Err(Error::Usage("the target ends with a path separator, expected a file".into()));
        }
        let old = FileStatus::from_path(target).map_err(Error::io("reading the file status", None))?;
        let Some(status) = &old else {
            if fs::symlink_metadata(target).is_ok() {
                return Err(Error::Usage("the target is a dangling symbolic link".into()));
            }
            return Self::beside(target.to_owned(), old, rules);
        };
        if rules.in_use.contains(&status.identity) {
            return Err(Error::Usage("the target is also an input file".into()));
        }
        check_idle(target)?;
        if status.kind.is_device() {
            let device = FileTarget::open_device(target).map_err(Error::io("opening the device", None))?;
            let file = Arc::new(device.with_sync(rules.sync));
            return Ok(Output {
                target: target.to_owned(),
                file,
                temporary: None,
                old,
                parts: Mutex::default(),
                rules,
            });
        }
        if status.kind != FileKind::Regular {
            return Err(Error::Usage("the target is neither a regular file nor a block device".into()));
        }
        if !rules.clobber {
            return Err(Error::Usage("the target exists".into()));
        }
        // The target of a symbolic link is replaced, not the link.
        let target = resolve(target).map_err(Error::io("resolving the symbolic link", None))?;
        Self::beside(target, old, rules)
    }

    fn beside(target: PathBuf, old: Option<FileStatus>, rules: Rules) -> Result<Output> {
        let (file, temporary) = Temporary::create(&target, old.as_ref(), None)?;
        let file = Arc::new(file.with_sync(rules.sync));
        Ok(Output { target, file, temporary: Some(temporary), old, parts: Mutex::default(), rules })
    }

    /// Makes all files of the new output free of holes.
    pub fn without_holes(mut self) -> Result<Output> {
        self.rules.holes = false;
        self.file = Arc::new(without_holes(owned(self.file)?).map_err(|e| e.in_file(&self.target))?);
        Ok(self)
    }

    /// The file to write to.
    pub fn file(&self) -> Arc<dyn WriteAt> {
        self.file.clone()
    }

    fn add_at(&self, path: &Path) -> Result<Arc<dyn WriteAt>> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if path == self.target || parts.iter().any(|part| part.path == path) {
            return Err(Error::Usage("two files of the new image would have this name".into()));
        }
        let old = self.rules.replaced(path)?;
        if old.is_some() && !self.rules.clobber {
            return Err(Error::Usage("this file of the new image exists already".into()));
        }
        // It holds data that may have been in the old target, which not everybody was allowed to read.
        let (file, temporary) = Temporary::create(path, old.as_ref().or(self.old.as_ref()), self.old.as_ref())?;
        let file = file.with_sync(self.rules.sync).with_path(path);
        let file = Arc::new(if self.rules.holes { file } else { without_holes(file)? });
        parts.push(Part { path: path.to_owned(), file: file.clone(), temporary });
        Ok(file)
    }

    /// Renames the files to their final names, the target last. The writer has synced and released them.
    ///
    /// # Errors
    /// Errors of the system. The old files are restored then, except after a failure of the last step, the sync of the
    /// directory: the new files have their names by then.
    pub fn commit(self) -> Result<()> {
        let target = self.target.clone();
        self.close_and_rename().map_err(|e| e.in_file(&target))
    }

    fn close_and_rename(self) -> Result<()> {
        let Output { target, file, temporary, parts, rules, .. } = self;
        let mut pending = Vec::new();
        for Part { path, file, temporary } in parts.into_inner().unwrap_or_else(PoisonError::into_inner) {
            close(file).map_err(|e| e.in_file(&path))?;
            pending.push((path, temporary));
        }
        close(file)?;
        let Some(temporary) = temporary else { return Ok(()) };
        // A virtual machine may have been started since.
        check_idle(&target)?;
        // If the process is killed from here on, there is no image, rather than one of old and new files.
        let replaces_several = rules.clobber && !pending.is_empty() && rules.replaced(&target)?.is_some();
        let old = replaces_several.then(|| Temporary::keep(&target, |from, to| fs::rename(from, to))).transpose()?;
        let mut placed = Vec::with_capacity(pending.len());
        let all = pending.into_iter().try_for_each(|(path, temporary)| {
            let result = rules.keep(&path).and_then(|old| Placed::new(&path, temporary, old, rules.clobber));
            placed.push(result.map_err(|e| e.in_file(&path))?);
            Ok(())
        });
        if let Err(error) = all.and_then(|()| temporary.rename(&target, rules.clobber)) {
            // An old file that cannot be restored is worse than the failure itself.
            let error = placed.into_iter().rev().fold(error, |error, placed| placed.take_back().err().unwrap_or(error));
            return Err(old.and_then(|old| old.put_back(&target).err()).unwrap_or(error));
        }
        // Removes the old files.
        drop((placed, old));
        if rules.sync {
            let directory = target.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
            sync_directory(directory).map_err(Error::io("syncing the directory", None))?;
        }
        Ok(())
    }
}

impl TargetFiles for Output {
    /// The name of the file itself where the target is a symbolic link.
    fn image_name(&self) -> &OsStr {
        self.target.file_name().unwrap_or_default()
    }

    /// # Errors
    /// Errors of the system, and [`Error::Usage`] if the target is a device, if the name is taken by another file of the
    /// output, or if it names something that must not be replaced.
    fn add(&self, name: &OsStr) -> Result<Arc<dyn WriteAt>> {
        if self.temporary.is_none() {
            let problem = "an image of several files cannot be written to a device";
            return Err(Error::Usage(problem.into()).in_file(&self.target));
        }
        if Path::new(name).file_name() != Some(name) {
            return Err(Error::Usage(format!("{name:?} is not a file name")).in_file(&self.target));
        }
        let path = self.target.with_file_name(name);
        self.add_at(&path).map_err(|e| e.in_file(&path))
    }
}

fn owned(file: Arc<FileTarget>) -> Result<FileTarget> {
    Arc::into_inner(file).ok_or_else(|| Error::Usage("the output is still in use".into()))
}

fn close(file: Arc<FileTarget>) -> Result<()> {
    owned(file)?.close().map_err(Error::io("closing", None))
}

fn without_holes(file: FileTarget) -> Result<FileTarget> {
    file.without_holes().map_err(Error::io("removing the sparse attribute", None))
}

/// Checks that no virtual machine has the file at `path` open: it would go on to use the replaced file.
fn check_idle(path: &Path) -> Result<()> {
    if is_in_use(path) { Err(Error::InUse { for_writing: false }) } else { Ok(()) }
}

impl Rules {
    /// The existing file at `path` that a file of the output replaces. The caller did not name this path, so that only a
    /// regular file is replaced, never a symbolic link.
    fn replaced(&self, path: &Path) -> Result<Option<FileStatus>> {
        let old = FileStatus::from_link(path).map_err(Error::io("reading the file status", None))?;
        let Some(old) = old else { return Ok(None) };
        if old.kind != FileKind::Regular {
            return Err(Error::Usage(
                "a file of the new image has this name, and the existing one is not a regular file".into(),
            ));
        }
        if self.in_use.contains(&old.identity) {
            return Err(Error::Usage(
                "a file of the new image has this name, and the existing one is an input file".into(),
            ));
        }
        check_idle(path)?;
        Ok(Some(old))
    }

    /// Keeps the existing file at `path` to restore it after a failure. Without clobber there is nothing to keep: the rename fails if it exists.
    fn keep(&self, path: &Path) -> Result<Option<Temporary>> {
        if self.clobber && self.replaced(path)?.is_some() {
            return Temporary::keep(path, |from, to| fs::hard_link(from, to)).map(Some);
        }
        Ok(None)
    }
}

/// A further file of the image under its final name. Dropping it commits the file.
struct Placed {
    path: PathBuf,
    /// The replaced file.
    old: Option<Temporary>,
}

impl Placed {
    fn new(path: &Path, new: Temporary, old: Option<Temporary>, clobber: bool) -> Result<Placed> {
        match (new.rename(path, clobber), old) {
            (Ok(()), old) => Ok(Placed { path: path.to_owned(), old }),
            (Err(error), Some(old)) => Err(old.put_back(path).err().unwrap_or(error)),
            (Err(error), None) => Err(error),
        }
    }

    /// Restores the replaced file.
    fn take_back(self) -> Result<()> {
        let Placed { path, old } = self;
        let result = match old {
            Some(old) => old.put_back(&path),
            None => fs::remove_file(&path).map_err(Error::io("removing the new file after a failure", None)),
        };
        result.map_err(|e| e.in_file(&path))
    }
}

/// A file under a temporary name. Dropping it removes the file.
struct Temporary {
    path: PathBuf,
    /// The file has got another name, or is to keep this one.
    renamed: bool,
}

impl Temporary {
    /// Creates a file beside `target` under an unused name, with the permissions of `old`, limited to those of `within`.
    fn create(target: &Path, old: Option<&FileStatus>, within: Option<&FileStatus>) -> Result<(FileTarget, Temporary)> {
        // A user who may not read the old file must never be able to read the new one.
        let create = if old.is_some() { FileTarget::create_private } else { FileTarget::create_new };
        let (file, temporary) = Self::with_temporary_name(target, "creating a temporary file", create)?;
        if let Some(old) = old {
            let set = file.set_access(&old.access, within.map(|within| &within.access));
            set.map_err(Error::io("setting the permissions", None))?;
        }
        Ok((file, temporary))
    }

    /// Gives the file at `path` a temporary name: a second one with `link`, or instead of its own where the file system has no
    /// hard links.
    fn keep(path: &Path, link: impl Fn(&Path, &Path) -> io::Result<()>) -> Result<Temporary> {
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

    fn rename(mut self, target: &Path, clobber: bool) -> Result<()> {
        let result = if clobber { fs::rename(&self.path, target) } else { rename_new(&self.path, target) };
        result.map_err(Error::io("renaming the temporary file", None))?;
        self.renamed = true;
        Ok(())
    }

    /// Gives an old file its name back.
    fn put_back(mut self, path: &Path) -> Result<()> {
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

#[cfg(test)]
mod tests;
