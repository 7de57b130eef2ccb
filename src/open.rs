//! Opening: probing, chains, and the files that an image names.

mod references;

use std::cell::RefCell;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ReferenceProblem, Result};
use crate::format::{CheckReport, Format, OpenContext, OpenFile, Probe};
use crate::image::{Image, Layer, SourceFile};
use crate::info::{ImageInfo, Reference};
use crate::io::{FileSource, ReadAt, table};
use crate::limits::{Budget, Limits};
use crate::sparse::SparseRead;

/// Which files that an image names (backing files, data files) may be opened.
///
/// An image that comes from a stranger can name any file of this machine, so nothing is opened unless the caller says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum References {
    /// None. An image that needs one is refused.
    #[default]
    Deny,
    /// Those in the directory of the image that names them, and no symbolic links.
    Beside,
    /// All.
    Any,
}

/// How to open an image.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    format: Option<Format>,
    backing_format: Option<Format>,
    snapshot: Option<String>,
    references: References,
    changed_backing: bool,
    limits: Limits,
}

/// What can be said of an image by opening nothing but the image.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// Where it is.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// What it says of itself.
    pub info: ImageInfo,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// Bytes that the file takes up on its file system.
    pub allocated: u64,
}

impl OpenOptions {
    /// The format is found by probing, no other file is opened, and [`Limits`] are the default.
    pub fn new() -> Self {
        OpenOptions::default()
    }

    /// States the format. For a raw disk of a guest that is not trusted this is a must: the guest can write the signature of
    /// any format to it.
    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    /// States the format of backing files whose format the image does not state.
    #[must_use]
    pub fn backing_format(mut self, format: Format) -> Self {
        self.backing_format = Some(format);
        self
    }

    /// Opens the disk as it was at an internal snapshot, named by its id or its name.
    #[must_use]
    pub fn snapshot(mut self, snapshot: impl Into<String>) -> Self {
        self.snapshot = Some(snapshot.into());
        self
    }

    /// Allows files that the image names.
    #[must_use]
    pub fn references(mut self, references: References) -> Self {
        self.references = references;
        self
    }

    /// Whether an image may lie over one that says that it has been changed since. What the guest sees is then a mix of old and
    /// new. Default false.
    #[must_use]
    pub fn allow_changed_backing(mut self, allow: bool) -> Self {
        self.changed_backing = allow;
        self
    }

    /// Sets what the image may ask for.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Opens the image at `path` with all the files that its guest bytes are in.
    ///
    /// # Errors
    /// Those of the system and of the image, and [`Error::Reference`] for a file that may not be opened.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Image> {
        let budget = Budget::new(self.limits.metadata);
        let mut layers = Vec::new();
        let mut next = Some(Opened::named_by_caller(path.as_ref(), self.format)?);
        while let Some(opened) = next {
            next = self
                .add_layer(&mut layers, &opened, &budget)
                .and_then(|backing| backing.map(|r| self.open_backing(&opened, &r, layers.len())).transpose())
                .map_err(|e| e.in_file(&opened.path))?;
        }
        Ok(Image::new(layers))
    }

    /// Opens an image that is not in a file of its own. It has no place from which to find other files.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_source(&self, source: Arc<dyn ReadAt>) -> Result<Image> {
        let format = self.format.map_or_else(|| probe(&*source), Ok)?;
        let no_place = |reference: &Reference| Err(refusal(format, reference, ReferenceProblem::NoPlace));
        let budget = Budget::new(self.limits.metadata);
        let reader = format.open(source.clone(), &self.context(&budget, 0, &no_place))?;
        alone(format, reader, source)
    }

    /// Opens an image that comes through a pipe. Its guest bytes can be read once and in order, by one conversion.
    ///
    /// # Errors
    /// [`Error::Usage`] when the format is not stated, [`Error::Unsupported`] when images of the format cannot be read in
    /// this way, and as [`open`](Self::open).
    pub fn open_stream(&self, stream: impl Read + Send + 'static) -> Result<Image> {
        let Some(format) = self.format else {
            return Err(Error::Usage("the format of an image that comes through a pipe has to be stated".into()));
        };
        let no_place = |reference: &Reference| Err(refusal(format, reference, ReferenceProblem::NoPlace));
        let budget = Budget::new(self.limits.metadata);
        let (reader, source) = format.open_stream(Box::new(stream), &self.context(&budget, 0, &no_place))?;
        alone(format, reader, source)
    }

    /// Opens only the file at `path`, not what it names, and tells what it says of itself.
    ///
    /// # Errors
    /// Those of the system and of the image.
    pub fn inspect(&self, path: impl AsRef<Path>) -> Result<Inspection> {
        let opened = Opened::named_by_caller(path.as_ref(), self.format)?;
        self.inspect_opened(&opened).map_err(|e| e.in_file(&opened.path))
    }

    /// As [`inspect`](Self::inspect), for the image and, by the policy, each of its backing files in turn.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn inspect_chain(&self, path: impl AsRef<Path>) -> Result<Vec<Inspection>> {
        let mut chain: Vec<Inspection> = Vec::new();
        let mut seen = Vec::new();
        let mut next = Some(Opened::named_by_caller(path.as_ref(), self.format)?);
        while let Some(opened) = next {
            let step = || {
                let inspection = self.inspect_opened(&opened)?;
                self.check_identity(&opened, &inspection.info)?;
                let identity = opened.source.identity().map_err(Error::io("asking what file it is", None))?;
                let backing = inspection.info.backing.as_ref();
                let backing = backing.map(|r| self.open_backing(&opened, r, chain.len() + 1)).transpose()?;
                Ok((inspection, identity, backing))
            };
            let (inspection, identity, backing) = step().map_err(|e: Error| e.in_file(&opened.path))?;
            if seen.contains(&identity) {
                return Err(loops(&opened));
            }
            seen.push(identity);
            chain.push(inspection);
            next = backing;
        }
        Ok(chain)
    }

    /// Examines the metadata of the image at `path`, without opening its backing file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the format has nothing that can be examined, and as [`open`](Self::open).
    pub fn check(&self, path: impl AsRef<Path>) -> Result<CheckReport> {
        let opened = Opened::named_by_caller(path.as_ref(), self.format)?;
        let budget = Budget::new(self.limits.metadata);
        let data_file = |reference: &Reference| self.open_data_file(&opened, reference).map(|file| Some(file.source));
        opened
            .format
            .check(opened.source.clone(), &self.context(&budget, 0, &data_file))
            .map_err(|e| e.in_file(&opened.path))
    }

    /// As [`check`](Self::check), for an image that is not in a file of its own.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_source(&self, source: Arc<dyn ReadAt>) -> Result<CheckReport> {
        let format = self.format.map_or_else(|| probe(&*source), Ok)?;
        let no_place = |reference: &Reference| Err(refusal(format, reference, ReferenceProblem::NoPlace));
        format.check(source, &self.context(&Budget::new(self.limits.metadata), 0, &no_place))
    }

    fn inspect_opened(&self, opened: &Opened) -> Result<Inspection> {
        let budget = Budget::new(self.limits.metadata);
        let reader = opened.format.open(opened.source.clone(), &self.context(&budget, 1, &|_| Ok(None)))?;
        Ok(Inspection {
            path: opened.path.clone(),
            format: opened.format,
            info: reader.info().clone(),
            file_len: table::length(&*opened.source)?,
            allocated: opened.source.allocated().map_err(Error::io("asking for the space in use", None))?,
        })
    }

    /// Adds the opened file to the chain, and returns what it names as its backing file.
    fn add_layer(&self, layers: &mut Vec<Layer>, opened: &Opened, budget: &Budget) -> Result<Option<Reference>> {
        let file = SourceFile::opened(opened.source.clone(), &opened.path)?;
        if layers.iter().flat_map(|layer| &layer.files).any(|other| other.identity == file.identity) {
            return Err(loops(opened));
        }
        let data_files = RefCell::new(Vec::new());
        let reader = opened.format.open(
            opened.source.clone(),
            &self.context(budget, layers.len(), &|reference| {
                let file = self.open_data_file(opened, reference)?;
                let source = file.source.clone();
                data_files.borrow_mut().push(file);
                Ok(Some(source))
            }),
        )?;
        let mut files = vec![file.seen_by(&*reader)?];
        files.append(&mut data_files.into_inner());
        check_readable(reader.info())?;
        self.check_identity(opened, reader.info())?;
        let backing = reader.info().backing.clone();
        layers.push(Layer { reader, format: opened.format, files });
        Ok(backing)
    }

    fn context<'a>(&'a self, budget: &'a Budget, depth: usize, file: &'a OpenFile<'a>) -> OpenContext<'a> {
        let snapshot = if depth == 0 { self.snapshot.as_deref() } else { None };
        OpenContext { limits: &self.limits, budget, snapshot, file }
    }

    fn open_data_file(&self, image: &Opened, reference: &Reference) -> Result<SourceFile> {
        let (path, source) = self.open_reference(image, reference)?;
        let file = SourceFile::opened(Arc::new(source), &path)?;
        match image.source.identity() {
            Ok(identity) if file.identity == Some(identity) => {
                Err(refusal(image.format, reference, ReferenceProblem::Loop))
            }
            _ => Ok(file),
        }
    }

    fn open_backing(&self, image: &Opened, reference: &Reference, depth: usize) -> Result<Opened> {
        if depth >= self.limits.chain_depth {
            let limit = self.limits.chain_depth as u64;
            let field = "the number of images in the chain".into();
            return Err(Error::Limit { format: image.format.name(), field, at: None, value: limit + 1, limit });
        }
        let (path, source) = self.open_reference(image, reference)?;
        let format = match (&reference.format, self.backing_format) {
            (Some(stated), _) => Format::named(&stated.to_text()),
            (None, Some(format)) => Ok(format),
            (None, None) => match probe(&source) {
                // What carries no signature can be nothing but raw. What carries one may be a raw disk whose guest wrote it.
                Ok(format) if format == Format::RAW => Ok(format),
                Ok(format) => Err(refusal(image.format, reference, ReferenceProblem::FormatNotStated(format.name()))),
                Err(error) => Err(error),
            },
        };
        let format = format.map_err(|e| e.in_file(&path))?;
        Ok(Opened { format, source: Arc::new(source), path, named_by: Some((image.path.clone(), reference.clone())) })
    }
}

/// An image file whose format is known.
struct Opened {
    path: PathBuf,
    source: Arc<FileSource>,
    format: Format,
    /// The image that lies over it, and how that names it.
    named_by: Option<(PathBuf, Reference)>,
}

impl Opened {
    /// Opens a file that the caller named: it may be anywhere, and it is probed unless the format is stated.
    fn named_by_caller(path: &Path, format: Option<Format>) -> Result<Opened> {
        let open = || {
            let source = FileSource::open(path).map_err(Error::io("opening", None))?;
            let format = format.map_or_else(|| probe(&source), Ok)?;
            Ok(Opened { path: path.to_owned(), source: Arc::new(source), format, named_by: None })
        };
        open().map_err(|e: Error| e.in_file(path))
    }
}

/// Finds the format by the first and the last bytes.
fn probe(source: &dyn ReadAt) -> Result<Format> {
    let len = table::length(source)?;
    let read = |offset: u64, most: usize| {
        let mut bytes = vec![0; (len - offset).min(most as u64) as usize];
        table::read(source, &mut bytes, offset).map(|()| bytes)
    };
    let head = read(0, Probe::HEAD)?;
    let tail = read(len.saturating_sub(Probe::TAIL as u64), Probe::TAIL)?;
    Format::probe(&Probe { head: &head, tail: &tail, len })
}

/// An image in one file, which names no other.
fn alone(format: Format, reader: Box<dyn SparseRead>, source: Arc<dyn ReadAt>) -> Result<Image> {
    check_readable(reader.info())?;
    if let Some(reference) = &reader.info().backing {
        return Err(refusal(format, reference, ReferenceProblem::NoPlace));
    }
    let file = SourceFile::new(source, None)?.seen_by(&*reader)?;
    Ok(Image::new(vec![Layer { reader, format, files: vec![file] }]))
}

fn check_readable(info: &ImageInfo) -> Result<()> {
    match info.encryption {
        None => Ok(()),
        Some(method) => {
            Err(Error::Unsupported { format: info.format, feature: format!("encryption ({method})").into(), at: None })
        }
    }
}

fn refusal(format: Format, reference: &Reference, problem: ReferenceProblem) -> Error {
    Error::Reference { format: format.name(), role: reference.role, name: reference.name.clone(), problem }
}

fn loops(opened: &Opened) -> Error {
    let name = opened.path.as_path().into();
    Error::Reference { format: opened.format.name(), role: "backing file", name, problem: ReferenceProblem::Loop }
}
