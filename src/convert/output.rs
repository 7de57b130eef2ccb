//! The files of a new image: under temporary names beside the target and renamed when the image is complete, or written in place.

mod in_place;
mod temporary;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf, is_separator};
use std::sync::Arc;

use super::directory::FileNames;
use crate::driver::TargetFiles;
use crate::error::{Error, Result};
use crate::io::{CacheMode, FileIdentity, FileKind, FileStatus, FileTarget, WriteAt};
use crate::io::{directory_of, is_in_use, resolve, sync_directory};
use in_place::InPlace;
use temporary::Temporary;

/// A new image file and the further files of the image. Dropping it before [`commit`](Output::commit) removes the files, and empties
/// those that are written in place.
pub(super) struct Output {
    image: NewFile,
    /// The existing file at the target.
    old: Option<FileStatus>,
    /// The further files of the image.
    parts: RefCell<Vec<NewFile>>,
    names: FileNames,
    rules: Rules,
}

/// Settings for each file of the output.
pub(super) struct Rules {
    /// Files of the source and of the backing chain.
    pub in_use: Vec<FileIdentity>,
    pub sync: bool,
    pub cache: CacheMode,
    pub clobber: bool,
    /// Existing files are written in place, not replaced.
    pub in_place: bool,
    /// Existing files keep their content, except for what is written: the target is an image already.
    pub existing: bool,
    /// Whether the files may have holes.
    pub holes: bool,
}

/// A file of a new image.
struct NewFile {
    path: PathBuf,
    storage: Storage,
}

enum Storage {
    Temporary(Arc<FileTarget>, Temporary),
    /// An existing file, a device, or a new file that has its name already.
    InPlace(InPlace),
}

impl Output {
    /// Opens or creates the file for `target`, which must not be one of those in use.
    pub fn create(target: &Path, rules: Rules) -> Result<Output> {
        Self::prepare(target, rules).map_err(|e| e.in_file(target))
    }

    fn prepare(target: &Path, rules: Rules) -> Result<Output> {
        let old = FileStatus::from_path(target).map_err(Error::io("reading the file status", None))?;
        let device = old.as_ref().is_some_and(|old| old.kind.is_device());
        // The target of a symbolic link is created or replaced, not the link.
        let path = if device { Ok(target.to_owned()) } else { resolve(target) };
        let path = path.map_err(Error::io("resolving the symbolic link", None))?;
        for path in [target, &path] {
            if path.as_os_str().as_encoded_bytes().last().is_some_and(|&byte| is_separator(byte.into())) {
                return Err(Error::Usage("the target ends with a path separator, expected a file".into()));
            }
        }
        if let Some(old) = &old {
            if rules.in_use.contains(&old.identity) {
                return Err(Error::Usage("the target is also an input file".into()));
            }
            if !device && old.kind != FileKind::Regular {
                return Err(Error::Usage("the target is neither a regular file nor a block device".into()));
            }
            if !rules.clobber {
                return Err(Error::Usage("the target exists".into()));
            }
            check_idle(target)?;
        }
        let image = match &old {
            None if rules.in_place => NewFile::at(path, &rules)?,
            None => NewFile::beside(path, None, None, &rules)?,
            Some(old) if device => NewFile::in_place(path, old, &rules)?,
            Some(old) => NewFile::instead_of(path, old, None, &rules)?,
        };
        let names = FileNames::default();
        image.path.file_name().map_or(Ok(()), |name| names.add(name))?;
        Ok(Output { image, old, parts: RefCell::default(), names, rules })
    }

    /// The path of the image: that of the target, without a symbolic link.
    pub fn path(&self) -> &Path {
        &self.image.path
    }

    /// The names that the files are going to have, and those that they have.
    pub fn current_names(&self) -> Vec<(PathBuf, PathBuf)> {
        let parts = self.parts.borrow();
        [&self.image].into_iter().chain(parts.iter()).map(|file| (file.path.clone(), file.current_path())).collect()
    }

    /// The file to write to.
    pub fn file(&self) -> Arc<dyn WriteAt> {
        self.image.file()
    }

    /// Whether writes to the files bypass the page cache.
    pub fn bypasses_cache(&self) -> bool {
        let parts = self.parts.borrow();
        [&self.image].into_iter().chain(parts.iter()).all(NewFile::bypasses_cache)
    }

    fn check_takes_parts(&self) -> Result<()> {
        if self.old.as_ref().is_some_and(|old| old.kind.is_device()) {
            let problem = "an image of several files cannot be written to a device";
            return Err(Error::Usage(problem.into()).in_file(&self.image.path));
        }
        Ok(())
    }

    fn add_part(&self, path: &Path) -> Result<Arc<dyn WriteAt>> {
        // It holds data that may have been in the old target, which not everybody was allowed to read.
        let within = self.old.as_ref();
        let part = match self.rules.replaced(path)? {
            None if self.rules.in_place && within.is_none() => NewFile::at(path.to_owned(), &self.rules)?,
            None => NewFile::beside(path.to_owned(), None, within, &self.rules)?,
            Some(_) if !self.rules.clobber => {
                return Err(Error::Usage("this file of the new image exists already".into()));
            }
            Some(old) => NewFile::instead_of(path.to_owned(), &old, within, &self.rules)?,
        };
        let file = part.file();
        self.parts.borrow_mut().push(part);
        Ok(file)
    }

    /// Renames the files to their final names, the target last. The writer has synced and released them.
    ///
    /// # Errors
    /// Errors of the system. The replaced files are restored then, and those written in place are empty, except after a failure of the
    /// last step, the sync of the directory: the new files have their names by then.
    pub fn commit(self) -> Result<()> {
        let target = self.image.path.clone();
        self.close_and_rename().map_err(|e| e.in_file(&target))
    }

    fn close_and_rename(self) -> Result<()> {
        let Output { image, parts, rules, .. } = self;
        let (mut pending, mut in_place) = (Vec::new(), Vec::new());
        for NewFile { path, storage } in parts.into_inner() {
            match storage {
                Storage::Temporary(file, mut temporary) => {
                    let named = temporary.give_name(&file, &path);
                    named.and_then(|()| close(file, FileTarget::close)).map_err(|e| e.in_file(&path))?;
                    pending.push((path, temporary));
                }
                Storage::InPlace(file) => in_place.push((path, file)),
            }
        }
        let NewFile { path: target, storage } = image;
        let temporary = match storage {
            Storage::Temporary(file, mut temporary) => {
                temporary.give_name(&file, &target)?;
                close(file, FileTarget::close)?;
                Some(temporary)
            }
            Storage::InPlace(file) => {
                in_place.push((target.clone(), file));
                None
            }
        };
        let renames = temporary.is_some() || !pending.is_empty();
        if temporary.is_some() {
            // A virtual machine may have been started since.
            check_idle(&target)?;
        }
        // If the process is killed from here on, there is no image, rather than one of old and new files.
        let replaces_several =
            temporary.is_some() && rules.clobber && !pending.is_empty() && rules.replaced(&target)?.is_some();
        let old = replaces_several.then(|| Temporary::keep(&target, |from, to| fs::rename(from, to))).transpose()?;
        let mut placed = Vec::with_capacity(pending.len());
        let all = pending.into_iter().try_for_each(|(path, temporary)| {
            let result = rules.keep(&path).and_then(|old| Placed::new(&path, temporary, old, rules.clobber));
            placed.push(result.map_err(|e| e.in_file(&path))?);
            Ok(())
        });
        let all = all.and_then(|()| temporary.map_or(Ok(()), |temporary| temporary.rename(&target, rules.clobber)));
        // Last, since they can no longer be emptied afterwards.
        let mut in_place = in_place.into_iter();
        let all = all.and_then(|()| in_place.try_for_each(|(path, file)| file.finish().map_err(|e| e.in_file(&path))));
        if let Err(error) = all {
            // An old file that cannot be restored is worse than the failure itself.
            let error = placed.into_iter().rev().fold(error, |error, placed| placed.take_back().err().unwrap_or(error));
            return Err(old.and_then(|old| old.put_back(&target).err()).unwrap_or(error));
        }
        if rules.sync && renames {
            let files = placed.iter().map(|placed| &placed.path).chain([&target]);
            let directories: BTreeSet<_> = files.map(|path| directory_of(path).to_owned()).collect();
            // Removes the old files.
            drop((placed, old));
            for directory in directories {
                sync_directory(&directory).map_err(Error::io("syncing the directory", None))?;
            }
        }
        Ok(())
    }
}

impl NewFile {
    /// A temporary file that gets the name `path`, where it replaces the file `old`. Its permissions are limited to those of `within`.
    fn beside(path: PathBuf, old: Option<&FileStatus>, within: Option<&FileStatus>, rules: &Rules) -> Result<NewFile> {
        let (file, temporary) = Temporary::create(&path, old, within)?;
        let file = rules.apply(file.with_path(&path))?;
        Ok(NewFile { path, storage: Storage::Temporary(Arc::new(file), temporary) })
    }

    /// A file instead of the existing one at `path`: written in place if the rules say so, or if it is empty and cannot be replaced.
    fn instead_of(path: PathBuf, old: &FileStatus, within: Option<&FileStatus>, rules: &Rules) -> Result<NewFile> {
        if rules.in_place {
            return Self::in_place(path, old, rules);
        }
        let error = match Self::beside(path.clone(), Some(old), within, rules) {
            Ok(file) => return Ok(file),
            Err(error) => error,
        };
        match InPlace::open(&path, old, rules) {
            // Nothing can be lost.
            Ok(file) if file.is_empty() => Ok(NewFile { path, storage: Storage::InPlace(file) }),
            Ok(_) => Err(Error::NotReplaceable { cause: Box::new(error) }),
            Err(_) => Err(error),
        }
    }

    /// A new file that has its name from the start.
    fn at(path: PathBuf, rules: &Rules) -> Result<NewFile> {
        let file = InPlace::create(&path, rules)?;
        Ok(NewFile { path, storage: Storage::InPlace(file) })
    }

    fn in_place(path: PathBuf, old: &FileStatus, rules: &Rules) -> Result<NewFile> {
        let file = InPlace::open(&path, old, rules)?;
        Ok(NewFile { path, storage: Storage::InPlace(file) })
    }

    fn current_path(&self) -> PathBuf {
        match &self.storage {
            Storage::Temporary(file, temporary) => {
                temporary.path().map_or_else(|| file.path_without_name(), Path::to_owned)
            }
            Storage::InPlace(_) => self.path.clone(),
        }
    }

    fn bypasses_cache(&self) -> bool {
        match &self.storage {
            Storage::Temporary(file, _) => file.bypasses_cache(),
            Storage::InPlace(file) => file.bypasses_cache(),
        }
    }

    fn file(&self) -> Arc<dyn WriteAt> {
        match &self.storage {
            Storage::Temporary(file, _) => file.clone(),
            Storage::InPlace(file) => file.file(),
        }
    }
}

impl TargetFiles for Output {
    /// The name of the file itself where the target is a symbolic link.
    fn image_name(&self) -> &OsStr {
        self.image.path.file_name().unwrap_or_default()
    }

    /// # Errors
    /// Errors of the system, and [`Error::Usage`] if the target is a device, if the name is taken by another file of the
    /// output, or if it names something that must not be replaced.
    fn add(&self, name: &OsStr) -> Result<Arc<dyn WriteAt>> {
        self.check_takes_parts()?;
        self.names.add(name).map_err(|e| e.in_file(&self.image.path))?;
        let path = self.image.path.with_file_name(name);
        self.add_part(&path).map_err(|e| e.in_file(&path))
    }

    fn add_at(&self, path: &Path) -> Result<Arc<dyn WriteAt>> {
        self.check_takes_parts()?;
        let path = self.image.path.with_file_name("").join(path);
        let is_beside = is_same_directory(directory_of(&path), directory_of(&self.image.path))
            .map_err(Error::io("finding the directory", None))
            .map_err(|e| e.in_file(&path))?;
        match path.file_name() {
            None => return Err(Error::Usage("not the name of a file".into()).in_file(&path)),
            Some(name) if is_beside => self.names.add(name).map_err(|e| e.in_file(&self.image.path))?,
            Some(_) => {}
        }
        // By the path that was given, under which the image is going to find it.
        self.add_part(&path).map_err(|e| e.in_file(&path))
    }
}

/// Whether both paths are the same directory, which has to exist.
fn is_same_directory(a: &Path, b: &Path) -> io::Result<bool> {
    Ok(fs::canonicalize(a)? == fs::canonicalize(b)?)
}

fn close<T>(file: Arc<T>, close: impl FnOnce(T) -> io::Result<()>) -> Result<()> {
    let Some(file) = Arc::into_inner(file) else {
        return Err(Error::Usage("the output is still in use".into()));
    };
    close(file).map_err(Error::io("closing", None))
}

/// Checks that no virtual machine has the file at `path` open: it would go on to use the replaced file.
fn check_idle(path: &Path) -> Result<()> {
    if is_in_use(path) { Err(Error::InUse { for_writing: false }) } else { Ok(()) }
}

impl Rules {
    /// Sets up a file that is going to be written.
    fn apply(&self, file: FileTarget) -> Result<FileTarget> {
        let file = file.with_sync(self.sync).with_cache(self.cache);
        if self.holes {
            return Ok(file);
        }
        file.without_holes().map_err(Error::io("removing the sparse attribute", None))
    }

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

    /// Keeps the existing file at `path` to restore it after a failure. Without clobber there is nothing to keep: the rename fails
    /// if it exists.
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
