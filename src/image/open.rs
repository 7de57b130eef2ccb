//! Opening images: from files, streams and other storage, with their backing chains; and checks.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::detached::HeaderFile;
#[cfg(feature = "compressed")]
use super::peel::{OnePass, PeeledStream};
use super::peel::{Peeled, decompressed, head_of};
use super::references::{Found, refusal};
use super::{Image, Layer, OpenOptions, ReferencePolicy, SizedFile, SourceFile};
use crate::driver::{CheckReport, FileOpener, OpenContext, Probe, SparseRead};
#[cfg(feature = "compressed")]
use crate::error::ErrorKind;
use crate::error::{Error, ReferenceProblem, Result};
use crate::format::Format;
use crate::format::shared::table;
use crate::guest;
use crate::info::{CompressionLayer, FileReference};
use crate::io::{FileDirectory, FileSource, ReadAt};
use crate::limits::{Budget, LimitName};
#[cfg(feature = "packages")]
use crate::package::Kind;
use crate::spool;

impl OpenOptions {
    /// Opens the image at `path` with all files that hold its guest data.
    ///
    /// A compressed file (gzip, xz, bzip2, zstd) is decompressed, up to three layers, unless the format raw is stated.
    ///
    /// # Errors
    /// Errors of the system and of the image, and [`Error::Reference`] for a referenced file that is not opened. Unless the format is
    /// stated, also those of [`Formats::probe`](crate::Formats::probe), and [`Error::Extension`] for a file without a signature whose extension is that of
    /// another format than raw.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Image> {
        let path = &*file_at(path.as_ref())?;
        let file = self.open_top(path)?;
        #[cfg(feature = "compressed")]
        if let Some(image) = self.open_once(&file, path).map_err(|e| e.in_file(path))? {
            return Ok(image);
        }
        self.open_chain(self.opened(file, Some(path), Purpose::Read)?)
    }

    /// Opens a compressed image for one pass, if one is enough for the caller; `None` if it is not one that can be read so.
    #[cfg(feature = "compressed")]
    fn open_once(&self, file: &Arc<SizedFile>, path: &Path) -> Result<Option<Image>> {
        if !self.one_pass || self.selects_disk() || self.detached_header.is_some() {
            return Ok(None);
        }
        match self.peel_once(file, Some(path))? {
            None => Ok(None),
            Some(OnePass::Disk(Peeled { source, layers, path, file_len, .. })) => {
                let opened = Opened { layers, file_len, ..Opened::new(path, source, Format::RAW)? };
                self.open_chain(opened).map(Image::read_in_order).map(Some)
            }
            Some(OnePass::Stream(format, stream)) => {
                match self.open_in_order(format, stream, Some((file.clone(), path))) {
                    // Only some images of the format can be read in order.
                    Err(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
                    image => image.map(Some),
                }
            }
        }
    }

    /// Opens the image in an open file, such as one that standard input was redirected from. It is locked as one that is
    /// [opened](Self::open) by its path; referenced files are opened as for [`open_source`](Self::open_source).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    ///
    /// ```
    /// use diskimage::OpenOptions;
    /// use diskimage::io::FileSource;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let path = std::env::temp_dir().join(format!("diskimage-doc-open-file-{}", std::process::id()));
    /// # std::fs::write(&path, [0; 1024])?;
    /// let file = FileSource::try_from(std::fs::File::open(&path)?)?;
    /// assert_eq!(OpenOptions::new().open_file(file)?.virtual_size(), 1024);
    /// # std::fs::remove_file(&path)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn open_file(&self, file: FileSource) -> Result<Image> {
        self.lock(&file).map_err(cannot_open("locking"))?;
        self.open_source(Arc::new(file))
    }

    /// Opens the image in `source`. Referenced files are opened by the [`resolver`](Self::resolver), if there is one.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_source(&self, source: Arc<dyn ReadAt>) -> Result<Image> {
        self.open_chain(self.opened_source(source, Purpose::Read)?)
    }

    /// Opens an image from a pipe.
    ///
    /// A stream-optimized VMDK is read in order: its guest data can be read once, by one conversion. Every other image, and an archive
    /// with a disk, is first copied to a sparse file without a name in the [temporary directory](Self::temporary_directory): the size of a raw
    /// disk is known at its end only. [`Limits::virtual_size`](crate::Limits::virtual_size) limits its length.
    ///
    /// A compressed stream is decompressed, unless the format raw is stated.
    ///
    /// # Errors
    /// [`Error::Usage`] if the stream has no signature and its format is not stated, or if it is empty, and as [`open`](Self::open).
    pub fn open_stream(&self, stream: impl Read + Send + 'static) -> Result<Image> {
        #[cfg(feature = "compressed")]
        let stream = match self.peel_stream(Box::new(stream))? {
            PeeledStream::Plain(stream) => stream,
            PeeledStream::Decompressed(stream, Some(format)) => return self.open_in_order(format, stream, None),
            PeeledStream::Decompressed(stream, None) => {
                let directory = self.spool_directory();
                let file = spool::spool(
                    stream,
                    &directory,
                    "compressed file",
                    LimitName::Decompressed,
                    self.limits.decompressed,
                )?;
                return self.open_source(Arc::new(file));
            }
        };
        let (head, stream) = head_of(Box::new(stream))?;
        let probe = Probe::new(&head, &[], u64::MAX);
        let name = match self.format {
            _ if self.is_package_stream(&probe) => "tar",
            Some(format) if format.streams(&probe) && !self.selects_disk() => {
                return self.open_in_order(format, stream, None);
            }
            Some(format) => format.name(),
            // The end of the file may be that of another format, so that the copy is probed again.
            None => match self.formats.probe(&probe)? {
                format if format == Format::RAW => {
                    return Err(Error::Usage("the format of a raw disk from a pipe must be stated".into()));
                }
                format => format.name(),
            },
        };
        let file =
            spool::spool(stream, &self.spool_directory(), name, LimitName::VirtualSize, self.limits.virtual_size)?;
        if table::length(&file)? == 0 {
            // Its writer has failed.
            return Err(Error::Usage("the input is empty".into()));
        }
        self.open_source(Arc::new(file))
    }

    /// Whether the stream is to be opened as an archive.
    fn is_package_stream(&self, _probe: &Probe<'_>) -> bool {
        #[cfg(feature = "packages")]
        return (self.format.is_none() || self.selects_disk()) && Kind::of(_probe) == Some(Kind::Archive);
        #[cfg(not(feature = "packages"))]
        false
    }

    /// Whether a disk of a package is selected.
    pub(crate) fn selects_disk(&self) -> bool {
        #[cfg(feature = "packages")]
        return self.member.is_some();
        #[cfg(not(feature = "packages"))]
        false
    }

    fn open_in_order(
        &self,
        format: Format,
        stream: Box<dyn Read + Send>,
        stored: Option<(Arc<SizedFile>, &Path)>,
    ) -> Result<Image> {
        self.check_has_headers(format)?;
        let refuse = |reference: &FileReference| Err(refusal(format, reference, ReferenceProblem::NoPlace));
        let budget = Budget::new(self.limits.metadata);
        let (reader, source) = format.open_stream(stream, &self.context(&budget, 0, &refuse))?;
        check_decrypted(&*reader)?;
        if let Some(backing) = &reader.info().backing {
            refuse(backing)?;
        }
        let (source, path) = match stored {
            Some((stored, path)) => (decompressed(source, stored), Some(path.to_owned())),
            None => (source, None),
        };
        let file = SourceFile::from_file(source, path)?.seen_by(&*reader)?;
        Ok(Image::new(vec![Layer { reader, format, files: vec![file] }]).read_in_order())
    }

    /// Lowers a limit, unless it is lower already.
    #[cfg(feature = "inspect")]
    pub(crate) fn at_most(mut self, name: LimitName, value: u64) -> Self {
        self.limits.set(name, value.min(self.limits.get(name)));
        self
    }

    /// Most bytes of a stream that are copied to a temporary file.
    #[cfg(feature = "inspect")]
    pub(crate) fn stream_limit(&self) -> u64 {
        self.limits.virtual_size
    }

    pub(crate) fn spool_directory(&self) -> PathBuf {
        self.temporary_directory.clone().unwrap_or_else(spool::default_directory)
    }

    /// Checks the metadata of the image at `path`. The backing file is not opened.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if there are no checks for the format, and as [`open`](Self::open).
    pub fn check(&self, path: impl AsRef<Path>) -> Result<CheckReport> {
        let path = &*file_at(path.as_ref())?;
        self.check_opened(&self.opened(self.open_top(path)?, Some(path), Purpose::Read)?)
    }

    /// Checks the metadata of the image in `source`. The backing file is not opened.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_source(&self, source: Arc<dyn ReadAt>) -> Result<CheckReport> {
        self.check_opened(&self.opened_source(source, Purpose::Read)?)
    }

    pub(crate) fn check_opened(&self, opened: &Opened) -> Result<CheckReport> {
        let budget = Budget::new(self.limits.metadata);
        let open = |reference: &FileReference| self.open_data_file(opened, reference).map(|file| Some(file.source));
        let checked = opened.format.check(opened.source.clone(), &self.context(&budget, 0, &open));
        checked.map_err(|e| e.in_file_at(opened.name()))
    }

    pub(crate) fn open_chain(&self, top: Opened) -> Result<Image> {
        self.open_chain_by(top, None)
    }

    /// Opens a chain, the top image by `open_top` if it is given.
    pub(super) fn open_chain_by(&self, top: Opened, mut open_top: Option<&LayerOpener<'_>>) -> Result<Image> {
        #[cfg(feature = "packages")]
        let mut origin = None;
        let budget = Budget::new(self.limits.metadata);
        let mut layers = Vec::new();
        let mut next = Some(top);
        while let Some(opened) = next {
            next = self
                .add_layer(&mut layers, &opened, &budget, open_top.take())
                .and_then(|backing| backing.map(|r| self.open_backing(&opened, &r, layers.len())).transpose())
                .map_err(|e| e.in_file_at(opened.name()))?;
            // Only the top is the disk of a package.
            #[cfg(feature = "packages")]
            {
                origin = origin.or(opened.origin);
            }
        }
        let image = Image::new(layers);
        #[cfg(feature = "packages")]
        let image = image.with_origin(origin);
        Ok(image)
    }

    /// Adds the opened file to the chain, and returns the reference to its backing file.
    fn add_layer(
        &self,
        layers: &mut Vec<Layer>,
        opened: &Opened,
        budget: &Budget,
        open: Option<&LayerOpener<'_>>,
    ) -> Result<Option<FileReference>> {
        if layers.iter().flat_map(|layer| &layer.files).any(|other| other.is_same(&opened.source)) {
            return Err(opened.closes_loop());
        }
        if let Some(open) = open {
            let layer = open(opened, &self.context(budget, layers.len(), &|_| Ok(None)))?;
            let backing = layer.reader.info().backing.clone().filter(|_| !self.alone);
            if !self.alone {
                self.check_has_backing(backing.as_ref())?;
            }
            layers.push(layer);
            return Ok(backing);
        }
        let file = SourceFile::new(opened.source.clone(), opened.path.clone());
        let data_files = RefCell::new(Vec::new());
        let open_data_file = |reference: &FileReference| {
            let file = self.open_data_file(opened, reference)?;
            let source = file.source.clone();
            data_files.borrow_mut().push(file);
            Ok(Some(source))
        };
        let detached_header = opened.header.as_ref().map(HeaderFile::for_driver);
        let cx = OpenContext { detached_header, ..self.context(budget, layers.len(), &open_data_file) };
        let reader = opened.format.open(opened.source.clone(), &cx)?;
        check_decrypted(&*reader)?;
        let mut files = vec![file.seen_by(&*reader)?];
        files.append(&mut data_files.into_inner());
        files.extend(opened.header.as_ref().map(HeaderFile::as_source_file));
        self.check_identity(opened, reader.info())?;
        let backing = reader.info().backing.clone().filter(|_| !self.without_backing);
        if layers.is_empty() {
            self.check_has_backing(backing.as_ref())?;
        }
        layers.push(Layer { reader, format: opened.format, files });
        Ok(backing)
    }

    pub(super) fn context<'a>(&'a self, budget: &'a Budget, layer: usize, file: &'a FileOpener<'a>) -> OpenContext<'a> {
        let snapshot = if layer == 0 { self.snapshot.as_deref() } else { None };
        let cancel = self.cancel.as_deref();
        let cx =
            OpenContext { snapshot, file, secrets: &self.secrets, cancel, ..OpenContext::new(&self.limits, budget) };
        if layer == 0 { OpenContext { options: &self.options, ..cx } } else { cx }
    }

    pub(super) fn open_data_file(&self, image: &Opened, reference: &FileReference) -> Result<SourceFile> {
        let Found { path, source, .. } = self.open_reference(image, reference)?;
        let file = SourceFile::from_file(source, Some(path.clone())).map_err(|e| e.in_file(&path))?;
        if file.is_same(&image.source) {
            return Err(refusal(image.format, reference, ReferenceProblem::Loop));
        }
        Ok(file)
    }

    pub(super) fn open_backing(&self, image: &Opened, reference: &FileReference, layer: usize) -> Result<Opened> {
        let limit = self.limits.chain_depth;
        if layer as u64 >= limit {
            let field = "backing chain length".into();
            return Err(Error::Limit {
                name: Some(LimitName::ChainDepth),
                format: image.format.name(),
                field,
                at: None,
                value: limit.saturating_add(1),
                limit,
            });
        }
        let Found { path, source, reference, directory } = match &self.backing_file {
            Some((path, format)) if layer == 1 => self.open_chosen_backing(reference, path, *format)?,
            _ => self.open_reference(image, reference)?,
        };
        let opened = || {
            let source = Arc::new(SizedFile::new(source)?);
            let format = self.detect_backing(image, &reference, &source, &path)?;
            let named_by = Some((image.path.clone(), reference));
            Ok((format, source, named_by))
        };
        let (format, source, named_by) = opened().map_err(|e: Error| e.in_file(&path))?;
        let opened = Opened::new(Some(path), source, format)?;
        Ok(Opened { named_by, directory, ..opened })
    }

    /// Opens the file at a path that the caller names, to which the reference policy does not apply.
    pub(crate) fn open_top(&self, path: &Path) -> Result<Arc<SizedFile>> {
        let open = || SizedFile::new(Arc::new(self.open_locked(path).map_err(cannot_open("opening"))?));
        open().map(Arc::new).map_err(|e| e.in_file(path))
    }

    /// Opens and locks a file, following symbolic links.
    pub(super) fn open_locked(&self, path: &Path) -> io::Result<FileSource> {
        self.locked(FileSource::open(path)?)
    }

    /// Locks an open file.
    pub(super) fn locked(&self, file: FileSource) -> io::Result<FileSource> {
        self.lock(&file)?;
        Ok(file.with_cache(self.cache))
    }

    /// The directory of a file that the caller names, if referenced files are opened there only.
    pub(super) fn directory_of(&self, path: Option<&Path>, file: &SizedFile) -> Result<Option<Arc<FileDirectory>>> {
        match path {
            Some(path) if self.policy == ReferencePolicy::Beside && self.resolver.is_none() => {
                let identity = file.identity().map_err(Error::io("reading the file identity", None))?;
                let directory = FileDirectory::of_file(path, identity);
                Ok(Some(Arc::new(directory.map_err(Error::io("opening the directory", None))?)))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn lock(&self, file: &FileSource) -> io::Result<()> {
        if self.force_share { Ok(()) } else { file.lock() }
    }

    /// Detects the format, unless it is stated, of a file that is not in a package.
    pub(super) fn opened(&self, file: Arc<SizedFile>, path: Option<&Path>, purpose: Purpose) -> Result<Opened> {
        self.directory_of(path, &file)
            .and_then(|directory| self.opened_at(file.clone(), path, directory, purpose, 0))
            .map_err(|e| e.in_file_at(path.or_else(|| file.name())))
    }

    /// Opens storage other than a file that the caller names.
    pub(super) fn opened_source(&self, source: Arc<dyn ReadAt>, purpose: Purpose) -> Result<Opened> {
        self.opened(Arc::new(SizedFile::new(source)?), None, purpose)
    }

    /// Opens the file, or the disk in it; `depth` is the number of packages around it.
    pub(super) fn opened_at(
        &self,
        file: Arc<SizedFile>,
        path: Option<&Path>,
        directory: Option<Arc<FileDirectory>>,
        purpose: Purpose,
        depth: usize,
    ) -> Result<Opened> {
        self.opened_peeled(self.peel(file, path)?, directory, purpose, depth)
    }

    /// Opens a file without its compression, as [`opened_at`](Self::opened_at) does.
    pub(crate) fn opened_peeled(
        &self,
        peeled: Peeled,
        directory: Option<Arc<FileDirectory>>,
        purpose: Purpose,
        _depth: usize,
    ) -> Result<Opened> {
        let Peeled { source, layers, path, inner_path: inner, file_len } = peeled;
        #[cfg(feature = "packages")]
        if let Some(contents) = self.contents(&source, inner.as_deref(), _depth)? {
            let package = Opened::new(path, source, super::package::descriptor_format())?;
            return self.open_member(contents, Opened { directory, ..package }, purpose, _depth);
        }
        let header = self.open_header()?;
        let format = match (self.format, &header) {
            (Some(format), _) => format,
            (None, Some(header)) => self.detect_by_header(header, &source)?,
            (None, None) => match self.detect(&source, inner.as_deref()) {
                // Its properties say what it is; it is no disk that could be converted.
                Err(Error::Unreadable { .. }) if purpose == Purpose::Inspect && self.is_ramdisk(&source)? => {
                    Format::RAW
                }
                format => format?,
            },
        };
        self.check_has_headers(format)?;
        Ok(Opened { layers, file_len, header, directory, ..Opened::new(path, source, format)? })
    }

    fn is_ramdisk(&self, file: &SizedFile) -> Result<bool> {
        Ok(self.formats.iter().any(|format| format == Format::RAW) && guest::is_ramdisk(file)?)
    }
}

impl Image {
    /// Opens the image at `path`, which must not need a referenced file. [`OpenOptions`] has all settings.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Image> {
        OpenOptions::new().open(path)
    }
}

/// The file to open for a path that the caller names: for the directory of a package, its descriptor.
pub(crate) fn file_at(path: &Path) -> Result<Cow<'_, Path>> {
    #[cfg(feature = "packages")]
    return super::package::in_directory(path);
    #[cfg(not(feature = "packages"))]
    Ok(Cow::Borrowed(path))
}

/// Opens an image in another way than for reading.
pub(super) type LayerOpener<'a> = dyn Fn(&Opened, &OpenContext<'_>) -> Result<Layer> + 'a;

/// Why an image is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Read,
    Inspect,
}

/// Makes an error of [`OpenOptions::open_locked`] and [`OpenOptions::lock`].
pub(super) fn cannot_open(action: impl Into<Cow<'static, str>>) -> impl FnOnce(io::Error) -> Error {
    move |cause| match cause.kind() {
        io::ErrorKind::ResourceBusy => Error::InUse { for_writing: true },
        _ => Error::io(action, None)(cause),
    }
}

/// An image file whose format is known.
pub(crate) struct Opened {
    pub path: Option<PathBuf>,
    pub source: Arc<SizedFile>,
    pub format: Format,
    /// The path of the overlay and its reference to this file.
    pub named_by: Option<(Option<PathBuf>, FileReference)>,
    /// The layers of compression that were removed.
    pub layers: Vec<CompressionLayer>,
    /// Length of the file as it is stored.
    pub file_len: u64,
    /// Where referenced files are opened, if that is in one directory only.
    pub directory: Option<Arc<FileDirectory>>,
    /// The header, if it is in a file of its own.
    pub header: Option<HeaderFile>,
    /// The package that it is the disk of.
    #[cfg(feature = "packages")]
    pub origin: Option<super::package::Origin>,
}

impl Opened {
    /// A file that is stored as it is, and that no image names.
    pub fn new(path: Option<PathBuf>, source: Arc<SizedFile>, format: Format) -> Result<Opened> {
        let file_len = table::length(&*source)?;
        Ok(Opened {
            path,
            source,
            format,
            named_by: None,
            layers: Vec::new(),
            file_len,
            directory: None,
            header: None,
            #[cfg(feature = "packages")]
            origin: None,
        })
    }

    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What messages call it: its path, or the name of the storage.
    pub fn name(&self) -> Option<&Path> {
        self.path().or_else(|| self.source.name())
    }

    pub fn closes_loop(&self) -> Error {
        let name = self.name().unwrap_or(Path::new("")).into();
        Error::Reference { format: self.format.name(), role: "backing file", name, problem: ReferenceProblem::Loop }
    }
}

/// Refuses an encrypted image whose driver does not decrypt it.
fn check_decrypted(reader: &dyn SparseRead) -> Result<()> {
    let info = reader.info();
    match info.encryption.filter(|_| reader.image_file().is_none()) {
        None => Ok(()),
        Some(method) => Err(Error::unsupported(info.format, format!("encryption ({method})"))),
    }
}
