//! Opening the disk in a package.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::open::{Opened, Purpose};
use super::peel::Peeled;
use super::{Image, OpenOptions, SizedFile, SourceFile};
use crate::driver::{FormatDriver, Probe};
use crate::error::{Error, ReferenceProblem, Result};
use crate::format::Format;
use crate::info::FileReference;
use crate::io::{FileSource, ReadAt};
use crate::limits::Budget;
use crate::name::Name;
use crate::package::{Contents, DigestCheck, DiskFile, Kind, Package};

/// What messages about the files of a descriptor call the format. It is never opened as an image.
static OVF: FormatDriver =
    FormatDriver::new("ovf", |_| false, |_, _| Err(Error::unsupported("ovf", "opening it as an image")));

/// The format of a package whose disks are opened.
pub(super) fn descriptor_format() -> Format {
    Format::from_driver(&OVF)
}

/// What is known of an image that is the disk of a package.
#[derive(Default)]
pub(crate) struct Origin {
    checks: Vec<DigestCheck>,
    capacity: Option<u64>,
    pub warnings: Vec<Cow<'static, str>>,
    /// Whether the image is in the file of the package, so that it cannot reference files outside.
    pub is_inside: bool,
    /// The package and the index of the disk, whose extents may be other files of it.
    package: Option<(Contents, usize)>,
}

impl OpenOptions {
    /// Selects the disk of a package by the name of its file, its identifier, or its number from 1 on. Without it, the package must have
    /// one disk. The [format](Self::format), if it is stated, is then that of the disk.
    ///
    /// ```no_run
    /// use diskimage::OpenOptions;
    ///
    /// let second = OpenOptions::new().member("2").open("vm.ova")?;
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[must_use]
    pub fn member(mut self, member: impl Into<String>) -> Self {
        self.member = Some(member.into());
        self
    }

    /// Describes the package at `path`: an archive, the descriptor of an OVF package, or the directory of one. No other file is opened.
    /// `None` if it is not a package, or the format is stated.
    ///
    /// # Errors
    /// Errors of the system and of the package.
    pub fn package(&self, path: impl AsRef<Path>) -> Result<Option<Package>> {
        let path = in_directory(path.as_ref())?;
        let describe = || {
            let source = FileSource::open(&path).map_err(Error::io("opening", None))?;
            self.describe(Arc::new(SizedFile::new(Arc::new(source))?), Some(&path))
        };
        describe().map_err(|e: Error| e.in_file(&path))
    }

    /// Describes the package in `source`, as [`package`](Self::package) does.
    ///
    /// # Errors
    /// As [`package`](Self::package).
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::OpenOptions;
    /// use diskimage::io::MemFile;
    ///
    /// assert!(OpenOptions::new().package_source(Arc::new(MemFile::from(vec![0; 1024])))?.is_none());
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn package_source(&self, source: Arc<dyn ReadAt>) -> Result<Option<Package>> {
        self.describe(Arc::new(SizedFile::new(source)?), None)
    }

    fn describe(&self, file: Arc<SizedFile>, path: Option<&Path>) -> Result<Option<Package>> {
        // To decompress a whole image, only to find that it is not a package, may take long.
        let head = self.decompressed_head(&file)?.filter(|_| !self.selects_disk());
        if head.is_some_and(|head| Kind::of(&Probe::new(&head, &[], u64::MAX)).is_none()) {
            return Ok(None);
        }
        self.package_in(&self.peel(file, path)?)
    }

    /// Describes the package in a file without its compression.
    pub(crate) fn package_in(&self, Peeled { source, layers, inner_path, .. }: &Peeled) -> Result<Option<Package>> {
        let contents = self.contents(source, inner_path.as_deref(), 0)?;
        Ok(contents.map(|contents| Package { compression: layers.clone(), ..contents.description }))
    }

    /// The contents of the file, if it is a package and is to be opened as one.
    pub(super) fn contents(
        &self,
        source: &Arc<SizedFile>,
        path: Option<&Path>,
        depth: usize,
    ) -> Result<Option<Contents>> {
        let member = self.member.as_deref().filter(|_| depth == 0);
        if (self.format.is_some() || self.detached_header.is_some() || self.detect_as_qemu) && member.is_none() {
            return Ok(None);
        }
        let kind = Kind::of(&source.ends()?.probe());
        if kind.is_some() {
            self.check_nesting("tar", "number of packages within packages", depth)?;
        }
        let contents = match kind {
            None if member.is_some() => {
                return Err(Error::Usage("a disk is selected, but the file is not a package".into()));
            }
            None => return Ok(None),
            Some(Kind::Archive) => {
                Contents::of_archive(source.clone(), &self.limits, &Budget::new(self.limits.metadata))?
            }
            // It would name files beside the package, which is in no directory, or itself.
            Some(Kind::Descriptor) if depth > 0 => {
                return Err(Error::unsupported(OVF.name, "a descriptor as the file of a disk"));
            }
            Some(Kind::Descriptor) => {
                let name = path.and_then(Path::file_name).map(|name| Name::from(Path::new(name))).unwrap_or_default();
                Contents::of_descriptor(&**source, name, &self.limits)?
            }
        };
        Ok(Some(contents))
    }

    /// Opens the selected disk of `package`.
    pub(super) fn open_member(
        &self,
        contents: Contents,
        package: Opened,
        purpose: Purpose,
        depth: usize,
    ) -> Result<Opened> {
        let index = contents.select(self.member.as_deref().filter(|_| depth == 0))?;
        let is_inside = contents.description.kind != OVF.name;
        let found = std::cell::RefCell::new(None);
        let open = |reference: &FileReference| {
            let file = self.open_reference(&package, reference)?;
            if found.borrow().is_none() {
                *found.borrow_mut() = Some(file.path);
            }
            Ok(file.source)
        };
        let DiskFile { file, checks, capacity, mut warnings } = contents.open_disk(index, &open)?;
        warnings.extend(contents.description.warnings.iter().cloned());
        let name = contents.description.disks.get(index).map(|disk| disk.name.clone()).unwrap_or_default();
        // For messages, the member of an archive is a file in a directory of its name.
        let (member_path, directory) = match (is_inside, package.path()) {
            (true, Some(path)) => (name.as_path().map(|name| path.join(name)), None),
            (true, None) => (name.as_path().map(Path::to_owned), None),
            (false, _) => (found.into_inner(), package.directory.clone()),
        };
        let opened = SizedFile::new(file)
            .and_then(|file| self.opened_at(Arc::new(file), member_path.as_deref(), directory, purpose, depth + 1));
        let mut opened = opened.map_err(|e| e.in_file_at(member_path.as_deref()))?;
        let inner = opened.origin.take().unwrap_or_default();
        let mut checks = checks;
        checks.extend(inner.checks);
        warnings.extend(inner.warnings);
        opened.origin = Some(Origin {
            checks,
            capacity: capacity.or(inner.capacity),
            warnings,
            is_inside: is_inside || inner.is_inside,
            package: inner.package.or(Some((contents, index))),
        });
        Ok(opened)
    }
}

impl Origin {
    /// The file of the same package that a reference of the image names, which needs no permission. Only extents are looked for there.
    pub fn find(&self, reference: &FileReference) -> Result<Arc<dyn ReadAt>, ReferenceProblem> {
        match (reference.role, &self.package) {
            ("extent", Some((package, disk))) => {
                package.sibling(*disk, &reference.name).ok_or(ReferenceProblem::NotInPackage)
            }
            _ => Err(ReferenceProblem::NoPlace),
        }
    }

    /// Frees the list of members: all extents have been opened.
    pub fn forget_package(&mut self) {
        self.package = None;
    }

    /// Adds a warning if a disk of `size` bytes is smaller than the descriptor states.
    pub fn check_capacity(&mut self, size: u64) {
        if let Some(capacity) = self.capacity.filter(|capacity| *capacity > size) {
            self.warnings.push(format!("the disk has {size} bytes, but the descriptor states {capacity}").into());
        }
    }
}

impl Image {
    /// Compares the files that the image was read from with the manifest of its package, and what was not read yet with its checksums. Nothing is read if
    /// there are none.
    /// [`Converter`](crate::Converter) does that before the new image gets its name.
    ///
    /// # Errors
    /// [`Error::Digest`] for another digest; errors of the storage.
    ///
    /// ```no_run
    /// use diskimage::Image;
    ///
    /// Image::open("vm.ova")?.verify()?;
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn verify(&self) -> Result<()> {
        self.files().try_for_each(SourceFile::verify)?;
        self.verify_unless(&|| false)
    }

    pub(crate) fn verify_unless(&self, cancelled: &dyn Fn() -> bool) -> Result<()> {
        self.parts.iter().try_for_each(|part| {
            let top = self.layers.get(part.layers.start).and_then(|layer| layer.files.first());
            let mut checks = part.origin.iter().flat_map(|origin| &origin.checks);
            let verified = checks.try_for_each(|check| check.verify(cancelled));
            verified.map_err(|e| e.in_file_at(top.and_then(|file| file.path())))
        })
    }

    /// What is odd about the package of the image, but does not prevent reading; also that it has no manifest.
    pub fn package_warnings(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().flat_map(|part| &part.origin).flat_map(|origin| &origin.warnings).map(|warning| &**warning)
    }
}

/// The descriptor in the directory at `path`; `path` itself if it is not a directory.
pub(super) fn in_directory(path: &Path) -> Result<Cow<'_, Path>> {
    if !path.is_dir() {
        return Ok(Cow::Borrowed(path));
    }
    let list = || {
        let entries = std::fs::read_dir(path)?.take(10_000).collect::<std::io::Result<Vec<_>>>()?;
        let is_descriptor = |path: &PathBuf| {
            path.extension().is_some_and(|own| own.eq_ignore_ascii_case("ovf"))
                && !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"._"))
        };
        Ok(entries.into_iter().map(|entry| entry.path()).filter(is_descriptor).collect::<Vec<_>>())
    };
    let mut descriptors = list().map_err(Error::io("listing the directory", None)).map_err(|e| e.in_file(path))?;
    match (descriptors.pop(), descriptors.is_empty()) {
        (Some(descriptor), true) => Ok(Cow::Owned(descriptor)),
        (None, _) => Err(Error::Usage("a directory without an OVF descriptor".into()).in_file(path)),
        (Some(_), false) => {
            Err(Error::Usage("a directory with several OVF descriptors; name one".into()).in_file(path))
        }
    }
}
