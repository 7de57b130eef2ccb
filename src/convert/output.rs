//! Where a new image is written: beside its target under hidden names, until it is complete.

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
    FileIdentity, FileKind, FileStatus, FileTarget, WriteAt, name_prefix, rename_new, resolve, sync_directory,
};
use crate::name::escaped_path;

/// A new file that is not in its place yet, with the files beside it that belong to it; or a device. Dropped before
/// [`commit`](Output::commit), it leaves no trace.
pub(super) struct Output {
    target: PathBuf,
    file: Arc<FileTarget>,
    /// Nothing for a device.
    temporary: Option<Temporary>,
    /// What was at the target before.
    old: Option<FileStatus>,
    /// The files beside the target.
    parts: Mutex<Vec<Part>>,
    rules: Rules,
}

/// A new file beside the target, before it has its name.
struct Part {
    path: PathBuf,
    file: Arc<FileTarget>,
    temporary: Temporary,
}

/// What holds for each file of the output.
struct Rules {
    /// The files that are read from.
    in_use: Vec<FileIdentity>,
    sync: bool,
    clobber: bool,
}

impl Output {
    /// Prepares to write `target`, which must be none of the files `in_use`.
    pub fn create(target: &Path, in_use: &[FileIdentity], sync: bool, clobber: bool) -> Result<Output> {
        let rules = Rules { in_use: in_use.to_vec(), sync, clobber };
        Self::prepare(target, rules).map_err(|e| e.in_file(target))
    }

    fn prepare(target: &Path, rules: Rules) -> Result<Output> {
        if target.as_os_str().as_encoded_bytes().last().is_some_and(|&byte| is_separator(byte.into())) {
            return Err(Error::Usage("the target is a directory by its name".into()));
        }
        let old = FileStatus::from_path(target).map_err(Error::io("looking at the target", None))?;
        let Some(status) = &old else {
            if fs::symlink_metadata(target).is_ok() {
                return Err(Error::Usage("the target is a link that leads nowhere".into()));
            }
            return Self::beside(target.to_owned(), old, rules);
        };
        if rules.in_use.contains(&status.identity) {
            return Err(Error::Usage("the target is a file that is read from".into()));
        }
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
        // The file that a link leads to is replaced, not the link.
        let target = resolve(target).map_err(Error::io("following the link", None))?;
        Self::beside(target, old, rules)
    }

    fn beside(target: PathBuf, old: Option<FileStatus>, rules: Rules) -> Result<Output> {
        let (file, temporary) = Temporary::create(&target, old.as_ref(), None)?;
        let file = Arc::new(file.with_sync(rules.sync));
        Ok(Output { target, file, temporary: Some(temporary), old, parts: Mutex::default(), rules })
    }

    /// The file to write to.
    pub fn file(&self) -> Arc<dyn WriteAt> {
        self.file.clone()
    }

    fn add_at(&self, path: &Path) -> Result<Arc<dyn WriteAt>> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if path == self.target || parts.iter().any(|part| part.path == path) {
            return Err(Error::Usage("two files of the new image have this name".into()));
        }
        let old = self.rules.replaced(path)?;
        if old.is_some() && !self.rules.clobber {
            return Err(Error::Usage("a file of the new image has this name, which exists".into()));
        }
        // It holds what a file at the target may have held that not everybody was to read.
        let (file, temporary) = Temporary::create(path, old.as_ref().or(self.old.as_ref()), self.old.as_ref())?;
        let file = Arc::new(file.with_sync(self.rules.sync).with_path(path));
        parts.push(Part { path: path.to_owned(), file: file.clone(), temporary });
        Ok(file)
    }

    /// Puts the files in their places, that at the target last. Their writer has synced them, and nobody else has them any
    /// more.
    ///
    /// # Errors
    /// Those of the system. Everything is as before then, except when only the last step fails, syncing the directory: the
    /// new files have their names already.
    pub fn commit(self) -> Result<()> {
        let target = self.target.clone();
        self.close_and_rename().map_err(|e| e.in_file(&target))
    }

    fn close_and_rename(self) -> Result<()> {
        let Output { target, file, temporary, parts, rules, .. } = self;
        let mut hidden = Vec::new();
        for Part { path, file, temporary } in parts.into_inner().unwrap_or_else(PoisonError::into_inner) {
            close(file).map_err(|e| e.in_file(&path))?;
            hidden.push((path, temporary));
        }
        close(file)?;
        let Some(temporary) = temporary else { return Ok(()) };
        // A run that is killed from here on leaves no image rather than one of old and new files.
        let replaces_several = rules.clobber && !hidden.is_empty() && rules.replaced(&target)?.is_some();
        let old = replaces_several.then(|| Temporary::keep(&target, |from, to| fs::rename(from, to))).transpose()?;
        let mut placed = Vec::with_capacity(hidden.len());
        let all = hidden.into_iter().try_for_each(|(path, temporary)| {
            let result = rules.keep(&path).and_then(|old| Placed::new(&path, temporary, old, rules.clobber));
            placed.push(result.map_err(|e| e.in_file(&path))?);
            Ok(())
        });
        if let Err(error) = all.and_then(|()| temporary.rename(&target, rules.clobber)) {
            // What cannot be put back is worse than the failure itself.
            let error = placed.into_iter().rev().fold(error, |error, placed| placed.take_back().err().unwrap_or(error));
            return Err(old.and_then(|old| old.put_back(&target).err()).unwrap_or(error));
        }
        // The old files go.
        drop((placed, old));
        if rules.sync {
            let directory = target.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
            sync_directory(directory).map_err(Error::io("syncing the directory", None))?;
        }
        Ok(())
    }
}

impl TargetFiles for Output {
    /// That of the file a link leads to, not the link's.
    fn image_name(&self) -> &OsStr {
        self.target.file_name().unwrap_or_default()
    }

    /// # Errors
    /// Those of the system, and [`Error::Usage`] when the target is a device, when another file of the output has that
    /// name, and when the name is that of something that must not be replaced.
    fn add(&self, name: &OsStr) -> Result<Arc<dyn WriteAt>> {
        if self.temporary.is_none() {
            let problem = "an image of several files cannot be written to a device";
            return Err(Error::Usage(problem.into()).in_file(&self.target));
        }
        if Path::new(name).file_name() != Some(name) {
            return Err(Error::Usage(format!("{name:?} is not the name of a file")).in_file(&self.target));
        }
        let path = self.target.with_file_name(name);
        self.add_at(&path).map_err(|e| e.in_file(&path))
    }
}

fn close(file: Arc<FileTarget>) -> Result<()> {
    let Some(file) = Arc::into_inner(file) else {
        return Err(Error::Usage("the output is still in use".into()));
    };
    file.close().map_err(Error::io("closing", None))
}

impl Rules {
    /// The file at `path` that a part of the output takes the place of. Whoever chose the target may not know of it, so that
    /// only a regular file is replaced, no link.
    fn replaced(&self, path: &Path) -> Result<Option<FileStatus>> {
        let old = FileStatus::from_link(path).map_err(Error::io("looking at what is there", None))?;
        let Some(old) = old else { return Ok(None) };
        if old.kind != FileKind::Regular {
            return Err(Error::Usage(
                "a file of the new image has this name, and what is there is no regular file".into(),
            ));
        }
        if self.in_use.contains(&old.identity) {
            return Err(Error::Usage("a file of the new image has this name, and what is there is read from".into()));
        }
        Ok(Some(old))
    }

    /// Keeps the file at `path`, if that is to be replaced. Without clobber nothing is: renaming fails then.
    fn keep(&self, path: &Path) -> Result<Option<Temporary>> {
        if self.clobber && self.replaced(path)?.is_some() {
            return Temporary::keep(path, |from, to| fs::hard_link(from, to)).map(Some);
        }
        Ok(None)
    }
}

/// A file beside the target that has its name already. Dropping it makes that final.
struct Placed {
    path: PathBuf,
    /// The file that had the name before.
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

    /// Makes everything as it was before.
    fn take_back(self) -> Result<()> {
        let Placed { path, old } = self;
        let result = match old {
            Some(old) => old.put_back(&path),
            None => fs::remove_file(&path).map_err(Error::io("removing the new file after a failure", None)),
        };
        result.map_err(|e| e.in_file(&path))
    }
}

/// A file under a hidden name. Dropping it removes the file.
struct Temporary {
    path: PathBuf,
    /// The file has its final name, or the hidden one has become that.
    renamed: bool,
}

impl Temporary {
    /// Makes a file beside `target`, with a name that nobody else uses, and with the permissions of `old` as far as
    /// `within` has them.
    fn create(target: &Path, old: Option<&FileStatus>, within: Option<&FileStatus>) -> Result<(FileTarget, Temporary)> {
        // Who may not read the old file may not read the new one either, at no time.
        let create = if old.is_some() { FileTarget::create_private } else { FileTarget::create_new };
        let (file, temporary) = Self::hidden(target, "making a file beside the target", create)?;
        if let Some(old) = old {
            let set = file.set_access(&old.access, within.map(|within| &within.access));
            set.map_err(Error::io("setting the permissions", None))?;
        }
        Ok((file, temporary))
    }

    /// Gives the file at `path` a hidden name: a second one by `link`, or only that where the file system has no links.
    fn keep(path: &Path, link: impl Fn(&Path, &Path) -> io::Result<()>) -> Result<Temporary> {
        let link_or_move = |hidden: &Path| match link(path, hidden) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => fs::rename(path, hidden),
            other => other,
        };
        Ok(Self::hidden(path, "keeping the old file", link_or_move)?.1)
    }

    /// Makes a file at a hidden name beside `target`.
    fn hidden<T>(target: &Path, action: &'static str, make: impl Fn(&Path) -> io::Result<T>) -> Result<(T, Temporary)> {
        let Some(name) = target.file_name() else {
            return Err(Error::Usage("the target has no file name".into()));
        };
        loop {
            let path = target.with_file_name(hidden_name(name));
            match make(&path) {
                Ok(made) => return Ok((made, Temporary { path, renamed: false })),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(action, None)(e)),
            }
        }
    }

    fn rename(mut self, target: &Path, clobber: bool) -> Result<()> {
        let result = if clobber { fs::rename(&self.path, target) } else { rename_new(&self.path, target) };
        result.map_err(Error::io("giving the new file its name", None))?;
        self.renamed = true;
        Ok(())
    }

    /// Gives an old file its name back, also if it still has it as well.
    fn put_back(mut self, path: &Path) -> Result<()> {
        fs::rename(&self.path, path).map_err(|cause| {
            // There may be no other name.
            self.renamed = true;
            let action =
                format!("putting back the old file after a failure, which is now {}", escaped_path(&self.path));
            Error::io(action, None)(cause)
        })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // There is nobody left to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// `.NAME.0123456789abcdef.tmp`, with as much of the name as fits.
fn hidden_name(name: &OsStr) -> OsString {
    let random = RandomState::new().build_hasher().finish();
    let mut hidden = OsString::from(".");
    hidden.push(name_prefix(name, 200));
    hidden.push(format!(".{random:016x}.tmp"));
    hidden
}

#[cfg(test)]
mod tests;
