//! Referenced files: the caller's policy, and finding the files.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf, absolute};
use std::sync::Arc;

use super::open::{Opened, cannot_open};
use super::{OpenOptions, SizedFile, qemu_name};
use crate::driver::OpenContext;
use crate::error::{Error, ReferenceProblem, Result};
use crate::format::Format;
use crate::info::{FileReference, ImageInfo};
use crate::io::{FileDirectory, FileSource, NotOpened, ReadAt};
use crate::limits::Budget;
use crate::name::Name;

/// Which referenced files (backing files, data files, extents) may be opened.
///
/// An untrusted image can name any file of this machine, so that nothing is opened by default.
///
/// ```no_run
/// use diskimage::{ErrorKind, Image, OpenOptions, ReferencePolicy};
///
/// let denied = Image::open("overlay.qcow2").unwrap_err();
/// assert_eq!(denied.kind(), ErrorKind::Reference);
/// let image = OpenOptions::new().reference_policy(ReferencePolicy::Beside).open("overlay.qcow2")?;
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReferencePolicy {
    /// None. An image with a required reference is refused.
    #[default]
    Deny,
    /// Regular files in the directory of the referencing image. Symbolic links are not followed, and the directory is the one that the image
    /// was opened in, even if its path comes to mean another one meanwhile.
    Beside,
    /// All files.
    Any,
}

/// A request to a [resolver](OpenOptions::resolver), which has an example.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ResolveRequest<'a> {
    /// The reference, with the role and the stated format of the file.
    pub reference: &'a FileReference,
    /// The name as stored in the image, relative to the directory of `image` unless it is absolute; the file name alone, if
    /// the image has it as `file:` or `json:`.
    pub name: &'a Name,
    /// The name joined to the directory of `image`; the name itself if that has no path.
    pub path: &'a Path,
    /// Path of the image that references the file: the path it was opened by, or `path` of its own request.
    pub image: Option<&'a Path>,
}

/// A callback that opens referenced files.
pub(super) type Resolver = dyn Fn(&ResolveRequest<'_>) -> io::Result<Arc<dyn ReadAt>> + Send + Sync;

/// A callback that opens referenced files for writing.
#[cfg(feature = "disk")]
pub(super) type StorageResolver = dyn Fn(&ResolveRequest<'_>) -> io::Result<Arc<dyn crate::io::Storage>> + Send + Sync;

/// A referenced file.
pub(super) struct Found {
    /// The path by which it was found.
    pub path: PathBuf,
    pub source: Arc<dyn ReadAt>,
    /// The reference, with a plain file name.
    pub reference: FileReference,
    /// The directory in which it was opened, if the policy allows no other.
    pub directory: Option<Arc<FileDirectory>>,
}

/// A file with the path it was found by.
type Opening = (PathBuf, Arc<dyn ReadAt>);

impl OpenOptions {
    /// Opens a referenced file, if the policy allows it. A refusal does not depend on what exists.
    pub(super) fn open_reference(&self, image: &Opened, reference: &FileReference) -> Result<Found> {
        #[cfg(feature = "packages")]
        if let Some(origin) = image.origin.as_ref().filter(|origin| origin.is_inside) {
            let found = origin.find(reference).map_err(|problem| refusal(image.format, reference, problem));
            let (source, name) = (found?, reference.name.as_path().unwrap_or(Path::new("")));
            let path = image.path().and_then(Path::parent).unwrap_or(Path::new("")).join(name);
            return Ok(Found { path, source, reference: reference.clone(), directory: None });
        }
        if image.path.is_none() && self.resolver.is_none() {
            return Err(refusal(image.format, reference, ReferenceProblem::NoPlace));
        }
        if self.policy == ReferencePolicy::Deny {
            return Err(refusal(image.format, reference, ReferenceProblem::NotAllowed));
        }
        let reference = qemu_name::resolve(reference).map_err(|problem| refusal(image.format, reference, problem))?;
        let (path, source) = self.find(image, &reference)?;
        Ok(Found { path, source, reference, directory: image.directory.clone() })
    }

    /// Opens the backing file at `path` in place of the referenced one.
    pub(super) fn open_chosen_backing(
        &self,
        reference: &FileReference,
        path: &Path,
        format: Option<Format>,
    ) -> Result<Found> {
        let file = self.open_locked(path);
        let file = file.map_err(|e| cannot_open("opening the backing file")(e).in_file(path))?;
        let format = format.map(|format| Name::from(format.name())).or_else(|| reference.format.clone());
        let reference = FileReference { name: path.into(), format, ..reference.clone() };
        let source = Arc::new(SizedFile::new(Arc::new(file)).map_err(|e| e.in_file(path))?);
        let directory = self.directory_of(Some(path), &source).map_err(|e| e.in_file(path))?;
        Ok(Found { path: path.to_owned(), source, reference, directory })
    }

    /// Checks that the top image has a backing file, if the caller names one.
    pub(super) fn check_has_backing(&self, backing: Option<&FileReference>) -> Result<()> {
        match (&self.backing_file, backing) {
            (Some((path, _)), None) => {
                let problem = format!("the image has no backing file that {} could replace", path.display());
                Err(Error::Usage(problem))
            }
            _ => Ok(()),
        }
    }

    /// Tries the names in turn; then, for images of Windows, files whose names differ in case only; then identities.
    fn find(&self, image: &Opened, reference: &FileReference) -> Result<Opening> {
        let names = || [&reference.name].into_iter().chain(&reference.alternatives);
        let mut result = self.open_named(image, reference, &reference.name, Case::Exact);
        let again = names().skip(1).map(|name| (name, Case::Exact));
        let again = again.chain(names().map(|name| (name, Case::Ignored)).filter(|_| reference.ignore_case));
        for (name, case) in again {
            match &result {
                Err(error) if is_missing(error) => {
                    let other = self.open_named(image, reference, name, case);
                    // What is said is about the name as stated.
                    if case == Case::Exact || other.is_ok() {
                        result = other;
                    }
                }
                _ => break,
            }
        }
        match (&result, reference.beside, image.path(), &self.resolver) {
            (Err(error), Some(extension), Some(path), None) if is_missing(error) => {
                self.find_beside(image, path, reference, extension)
            }
            _ => result,
        }
    }

    /// Searches the directory of `image` for the file with an identity of the reference, among those with `extension`. If any
    /// file is allowed, its parent directory is searched too, since VirtualBox keeps snapshots in a subdirectory.
    fn find_beside(
        &self,
        image: &Opened,
        image_path: &Path,
        reference: &FileReference,
        extension: &str,
    ) -> Result<Opening> {
        let here = image_path.with_file_name("");
        let mut candidates = files_with_extension(&here, image.directory.as_deref(), extension)?;
        if self.policy == ReferencePolicy::Any {
            candidates.extend(files_with_extension(&here.join(".."), None, extension).unwrap_or_default());
        }
        let identity = reference.identity();
        let mut found: Option<(PathBuf, Arc<FileSource>)> = None;
        for path in candidates {
            let Some(source) = self.with_identity(image, reference, &path) else { continue };
            match &found {
                None => found = Some((path, source)),
                // A hard link.
                Some((_, first)) if first.identity().ok() == source.identity().ok() => {}
                Some(_) => return Err(refusal(image.format, reference, ReferenceProblem::SeveralBeside(identity))),
            }
        }
        match found {
            Some((path, source)) => match self.lock(&source) {
                Ok(()) => Ok((path, source)),
                Err(e) => Err(cannot_open("locking")(e).in_file(&path)),
            },
            None => Err(refusal(image.format, reference, ReferenceProblem::NoneBeside(identity))),
        }
    }

    /// Opens the file at `path` if it has an identity of the reference. A file that cannot be read is skipped.
    fn with_identity(&self, image: &Opened, reference: &FileReference, path: &Path) -> Option<Arc<FileSource>> {
        let source = match &image.directory {
            Some(directory) => directory.open_source(path.file_name()?).ok()?,
            None => FileSource::open_nofollow(path).ok()?,
        };
        let source = Arc::new(source);
        if source.identity().ok()?.is_some_and(|own| image.source.identity().is_ok_and(|other| other == Some(own))) {
            return None;
        }
        let budget = Budget::new(self.limits.metadata);
        let cx = OpenContext { inspect: true, ..self.context(&budget, 1, &|_| Ok(None)) };
        let reader = image.format.open(source.clone(), &cx).ok()?;
        has_identity(reader.info(), reference).then_some(source)
    }

    fn open_named(&self, image: &Opened, reference: &FileReference, name: &Name, case: Case) -> Result<Opening> {
        let refuse = |problem| Err(refusal(image.format, reference, problem));
        let base = image.path().unwrap_or(Path::new(""));
        let (true, Some(name_path), Some(mut path)) = (name.is_file_name(), name.as_path(), name.path_from(base))
        else {
            return refuse(ReferenceProblem::NotAFile);
        };
        let directory = image.path().map(|path| path.parent().unwrap_or(Path::new("")));
        if self.policy == ReferencePolicy::Beside && !is_beside(name_path, directory) {
            return refuse(ReferenceProblem::NotBeside);
        }
        if case == Case::Ignored && self.resolver.is_none() {
            path = in_other_case(&path, image.directory.as_deref()).unwrap_or(path);
        }
        let source: Result<Arc<dyn ReadAt>, NotOpened> = match (&self.resolver, self.policy) {
            (Some(resolve), _) => {
                resolve(&ResolveRequest { reference, name, path: &path, image: image.path() }).map_err(NotOpened::Io)
            }
            (None, ReferencePolicy::Any) => {
                self.open_locked(&path).map(|file| Arc::new(file) as _).map_err(NotOpened::Io)
            }
            (None, _) => match (&image.directory, path.file_name()) {
                (Some(directory), Some(name)) => self.open_in(directory, name),
                _ => return refuse(ReferenceProblem::NoPlace),
            },
        };
        match source {
            Ok(source) => Ok((path, source)),
            Err(NotOpened::Link) => refuse(ReferenceProblem::Link),
            Err(NotOpened::NotRegular) => refuse(ReferenceProblem::NotRegular),
            Err(NotOpened::Io(e)) if e.kind() == io::ErrorKind::InvalidInput => refuse(ReferenceProblem::NotRegular),
            Err(NotOpened::Io(e)) => Err(cannot_open(format!("opening the {}", reference.role))(e).in_file(&path)),
        }
    }

    fn open_in(&self, directory: &FileDirectory, name: &OsStr) -> Result<Arc<dyn ReadAt>, NotOpened> {
        Ok(Arc::new(self.locked(directory.open_source(name)?)?))
    }

    /// Checks that a backing file is the one that its overlay was created with.
    pub(super) fn check_identity(&self, opened: &Opened, info: &ImageInfo) -> Result<()> {
        match &opened.named_by {
            Some((image, reference)) if !self.changed_backing && !reference.identities.is_empty() => {
                if has_identity(info, reference) {
                    return Ok(());
                }
                let expected = reference.identity();
                let found = info.identities.first().cloned().unwrap_or_default();
                let problem = ReferenceProblem::Changed { expected, found };
                Err(refusal(opened.format, reference, problem).in_file_at(image.as_deref()))
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn refusal(format: Format, reference: &FileReference, problem: ReferenceProblem) -> Error {
    Error::Reference { format: format.name(), role: reference.role, name: reference.name.clone(), problem }
}

/// Whether the image has an identity of the reference.
fn has_identity(info: &ImageInfo, reference: &FileReference) -> bool {
    reference.identities.iter().any(|identity| info.identities.contains(identity))
}

/// Whether another name of the reference is tried.
fn is_missing(error: &Error) -> bool {
    match error.root() {
        Error::Io { cause, .. } => cause.kind() == io::ErrorKind::NotFound,
        Error::Reference { problem, .. } => {
            matches!(problem, ReferenceProblem::NotAFile | ReferenceProblem::NotBeside)
        }
        _ => false,
    }
}

/// Whether the case of letters in a file name counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Exact,
    Ignored,
}

/// The path of the only file in the directory of `path` whose name differs in case at most. `directory` is that directory, if it is open.
fn in_other_case(path: &Path, directory: Option<&FileDirectory>) -> Option<PathBuf> {
    let wanted = path.file_name()?.to_str()?.to_lowercase();
    let names = names_in(&path.with_file_name(""), directory).ok()?;
    let mut names = names.iter().filter(|name| name.to_str().is_some_and(|name| name.to_lowercase() == wanted));
    let name = names.next().filter(|_| names.next().is_none())?;
    Some(path.with_file_name(name))
}

/// The names in the directory at `path`, or in `directory`, which is the same one as it was opened.
fn names_in(path: &Path, directory: Option<&FileDirectory>) -> io::Result<Vec<OsString>> {
    match directory {
        Some(directory) => directory.names(),
        None => fs::read_dir(or_current(path))?.map(|entry| Ok(entry?.file_name())).collect(),
    }
}

fn or_current(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// Lists what has `extension` in a directory, sorted by name; at most 1000, since each file is opened. See [`names_in`].
fn files_with_extension(path: &Path, directory: Option<&FileDirectory>, extension: &str) -> Result<Vec<PathBuf>> {
    const MOST: usize = 1000;
    let names = names_in(path, directory);
    let names = names.map_err(|e| Error::io("listing the directory", None)(e).in_file(or_current(path)))?;
    let files = names.iter().map(|name| path.join(name));
    let has_extension = |path: &PathBuf| path.extension().is_some_and(|own| own.eq_ignore_ascii_case(extension));
    let mut files: Vec<_> = files.filter(has_extension).collect();
    files.sort();
    files.truncate(MOST);
    Ok(files)
}

/// Whether `name` is a file in `directory` by its text alone. Without a directory, only a plain file name is.
fn is_beside(name: &Path, directory: Option<&Path>) -> bool {
    let Some(file_name) = name.file_name() else { return false };
    if name.is_absolute() {
        let here = directory.and_then(|directory| absolute(directory.join(".")).ok());
        return here.is_some_and(|here| name.parent() == Some(&*here));
    }
    name.components().filter(|part| *part != Component::CurDir).eq([Component::Normal(file_name)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_is_decided_by_the_text_of_the_name() {
        let drive = if cfg!(windows) { "C:" } else { "" };
        let absolute = |path: &str| format!("{drive}{path}");
        let here = absolute("/images");
        let here = Some(Path::new(&here));
        for name in ["base.qcow2", "./base.qcow2", &absolute("/images/base.qcow2")] {
            assert!(is_beside(Path::new(name), here), "{name}");
        }
        for name in ["../base", "a/base", "..", ".", "/", ""] {
            assert!(!is_beside(Path::new(name), here), "{name}");
        }
        for name in ["/etc/passwd", "/images/a/b", "/images/../base"].map(absolute) {
            assert!(!is_beside(Path::new(&name), here), "{name}");
        }
        assert!(is_beside(Path::new("base"), None) && !is_beside(Path::new(&absolute("/images/base")), None));
    }
}
