//! The caller's policy for the files that an image names, and finding them.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf, absolute};
use std::sync::Arc;

use super::{OpenOptions, Opened, References, refusal};
use crate::error::{Error, ReferenceProblem, Result};
use crate::info::{ImageInfo, Reference};
use crate::io::FileSource;
use crate::limits::Budget;
use crate::name::Name;

impl OpenOptions {
    /// Opens what `image` names, if the policy allows it. A refusal does not depend on what is there.
    pub(super) fn open_reference(&self, image: &Opened, reference: &Reference) -> Result<(PathBuf, FileSource)> {
        if self.references == References::Deny {
            return Err(refusal(image.format, reference, ReferenceProblem::NotAllowed));
        }
        let mut result = self.open_named(image, reference, &reference.name);
        for name in &reference.alternatives {
            match &result {
                Err(error) if leads_nowhere(error) => result = self.open_named(image, reference, name),
                _ => break,
            }
        }
        match (&result, reference.beside) {
            (Err(error), Some(extension)) if leads_nowhere(error) => self.find_beside(image, reference, extension),
            _ => result,
        }
    }

    /// Looks for the file that has an identity of the reference, among those with `extension` in the directory of `image`;
    /// where any file is allowed also in the one above, since VirtualBox keeps snapshots in a directory below that of the disk.
    fn find_beside(&self, image: &Opened, reference: &Reference, extension: &str) -> Result<(PathBuf, FileSource)> {
        let here = image.path.with_file_name("");
        let mut candidates = files_of_extension(&here, extension)?;
        if self.references == References::Any {
            candidates.extend(files_of_extension(&here.join(".."), extension).unwrap_or_default());
        }
        let identity = reference.identity();
        let mut found: Option<(PathBuf, FileSource)> = None;
        for path in candidates {
            let Some(source) = self.with_identity(image, reference, &path) else { continue };
            match &found {
                None => found = Some((path, source)),
                // A second name of it.
                Some((_, first)) if first.identity().ok() == source.identity().ok() => {}
                Some(_) => return Err(refusal(image.format, reference, ReferenceProblem::SeveralBeside(identity))),
            }
        }
        found.ok_or_else(|| refusal(image.format, reference, ReferenceProblem::NoneBeside(identity)))
    }

    /// Opens the file at `path` if it has an identity that is looked for. What cannot be read is not it.
    fn with_identity(&self, image: &Opened, reference: &Reference, path: &Path) -> Option<FileSource> {
        let source = Arc::new(FileSource::open_nofollow(path).ok()?);
        if source.identity().ok()? == image.source.identity().ok()? {
            return None;
        }
        let budget = Budget::new(self.limits.metadata);
        let reader = image.format.open(source.clone(), &self.context(&budget, 1, &|_| Ok(None))).ok()?;
        let same = has_identity(reader.info(), reference);
        drop(reader);
        Arc::into_inner(source).filter(|_| same)
    }

    fn open_named(&self, image: &Opened, reference: &Reference, name: &Name) -> Result<(PathBuf, FileSource)> {
        let refuse = |problem| Err(refusal(image.format, reference, problem));
        let directory = image.path.parent().unwrap_or(Path::new(""));
        let (true, Some(name_path), Some(path)) = (name.is_file_name(), name.as_path(), name.path_from(&image.path))
        else {
            return refuse(ReferenceProblem::NotAFile);
        };
        if self.references == References::Beside && !is_beside(name_path, directory) {
            return refuse(ReferenceProblem::NotBeside);
        }
        let source = match self.references {
            References::Any => FileSource::open(&path),
            _ => FileSource::open_nofollow(&path),
        };
        match source {
            Ok(source) => Ok((path, source)),
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => refuse(ReferenceProblem::NotRegular),
            Err(e) => Err(Error::io(format!("opening the {}", reference.role), None)(e).in_file(&path)),
        }
    }

    /// Checks that an image that another one lies over is still the one it was.
    pub(super) fn check_identity(&self, opened: &Opened, info: &ImageInfo) -> Result<()> {
        match &opened.named_by {
            Some((image, reference)) if !self.changed_backing && !reference.identities.is_empty() => {
                if has_identity(info, reference) {
                    return Ok(());
                }
                let expected = reference.identity();
                let found = info.identities.first().cloned().unwrap_or_default();
                let problem = ReferenceProblem::Changed { expected, found };
                Err(refusal(opened.format, reference, problem).in_file(image))
            }
            _ => Ok(()),
        }
    }
}

/// Whether an image is the one that a reference means.
fn has_identity(info: &ImageInfo, reference: &Reference) -> bool {
    reference.identities.iter().any(|identity| info.identities.contains(identity))
}

/// Whether a file may still be found under another name.
fn leads_nowhere(error: &Error) -> bool {
    match error.root() {
        Error::Io { cause, .. } => cause.kind() == io::ErrorKind::NotFound,
        Error::Reference { problem, .. } => {
            matches!(problem, ReferenceProblem::NotAFile | ReferenceProblem::NotBeside)
        }
        _ => false,
    }
}

/// The regular files with `extension` in a directory, links not among them, by their names; not more than a thousand, since
/// each will be opened.
fn files_of_extension(directory: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    const MOST: usize = 1000;
    let real = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let list = || -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(real)? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            if path.extension().is_some_and(|own| own.eq_ignore_ascii_case(extension)) && entry.file_type()?.is_file() {
                paths.push(path);
            }
        }
        paths.sort();
        paths.truncate(MOST);
        Ok(paths)
    };
    list().map_err(|e| Error::io("listing the directory", None)(e).in_file(real))
}

/// Whether a name means a file in `directory`, by its text alone.
fn is_beside(name: &Path, directory: &Path) -> bool {
    let Some(file_name) = name.file_name() else { return false };
    if name.is_absolute() {
        return name.parent().is_some_and(|parent| absolute(directory.join(".")).is_ok_and(|here| here == parent));
    }
    name.components().filter(|part| *part != Component::CurDir).eq([Component::Normal(file_name)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_is_a_matter_of_text() {
        let here = Path::new("/images");
        for name in ["base.qcow2", "./base.qcow2", "/images/base.qcow2"] {
            assert!(is_beside(Path::new(name), here), "{name}");
        }
        for name in ["../base", "a/base", "/etc/passwd", "/images/a/b", "/images/../base", "..", ".", "/", ""] {
            assert!(!is_beside(Path::new(name), here), "{name}");
        }
    }
}
