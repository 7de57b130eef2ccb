//! The properties of images.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::detached::HeaderFile;
use super::open::{Opened, Purpose, cannot_open, file_at};
use super::references::ReferencePolicy;
use super::{OpenOptions, SizedFile, SourceFile};
use crate::driver::{FileOpener, OpenContext};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::guest::{self, ContentKind};
use crate::info::{CompressionLayer, FileReference, ImageInfo};
use crate::io::{FileSource, ReadAt};
use crate::limits::Budget;

/// Properties of an image and of its file. Referenced files are not opened for them.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::io::MemFile;
/// use diskimage::{Converter, Format, OpenOptions};
///
/// let upload = Arc::new(MemFile::new());
/// Converter::new(Format::VDI).create_to(1 << 20, upload.clone())?;
/// let inspection = OpenOptions::new().inspect_source(upload)?;
/// assert_eq!((inspection.format, inspection.info.virtual_size), (Format::VDI, 1 << 20));
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// Path of the image file, if it was opened by path, or else the name of the storage, if it has one.
    pub path: Option<PathBuf>,
    /// The layers of compression around the image, the outermost first.
    pub compression: Vec<CompressionLayer>,
    /// The format.
    pub format: Format,
    /// The kind of the bytes of a raw disk; [`ContentKind::Disk`] for every other format.
    pub content: ContentKind,
    /// The properties.
    pub info: ImageInfo,
    /// File length in bytes.
    pub file_len: u64,
    /// Space allocated to the file by its file system in bytes, where the storage reports it.
    pub allocated: Option<u64>,
}

impl OpenOptions {
    /// Returns the properties of the image at `path`. Other files are opened only if the reference policy allows them, for
    /// properties that are stored there, such as the grain size of VMDK extents.
    ///
    /// # Errors
    /// Errors of the system and of the image.
    pub fn inspect(&self, path: impl AsRef<Path>) -> Result<Inspection> {
        self.inspect_opened(&self.open_to_inspect(path.as_ref())?)
    }

    /// Returns the properties of the image in `source`, as [`inspect`](Self::inspect) does.
    ///
    /// # Errors
    /// As [`inspect`](Self::inspect).
    pub fn inspect_source(&self, source: Arc<dyn ReadAt>) -> Result<Inspection> {
        self.inspect_opened(&self.opened_source(source, Purpose::Inspect)?)
    }

    /// Returns the properties of the image at `path` and, as far as the reference policy allows, of each image in its
    /// backing chain, the top first.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn inspect_chain(&self, path: impl AsRef<Path>) -> Result<Vec<Inspection>> {
        self.inspect_opened_chain(self.open_to_inspect(path.as_ref())?)
    }

    /// Returns the properties of the image in `source` and of its backing chain, as [`inspect_chain`](Self::inspect_chain) does.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn inspect_chain_source(&self, source: Arc<dyn ReadAt>) -> Result<Vec<Inspection>> {
        self.inspect_opened_chain(self.opened_source(source, Purpose::Inspect)?)
    }

    fn inspect_opened_chain(&self, top: Opened) -> Result<Vec<Inspection>> {
        let mut chain: Vec<Inspection> = Vec::new();
        let mut seen: Vec<SourceFile> = Vec::new();
        let mut next = Some(top);
        while let Some(opened) = next {
            let step = || {
                let inspection = self.inspect_opened(&opened)?;
                self.check_identity(&opened, &inspection.info)?;
                let backing = inspection.info.backing.as_ref().filter(|_| !self.without_backing);
                if chain.is_empty() {
                    self.check_has_backing(backing)?;
                }
                let backing = backing.map(|r| self.open_backing(&opened, r, chain.len() + 1)).transpose()?;
                Ok((inspection, SourceFile::new(opened.source.clone(), None), backing))
            };
            let (inspection, file, backing) = step().map_err(|e: Error| e.in_file_at(opened.name()))?;
            if seen.iter().any(|other| other.is_same(&opened.source)) {
                return Err(opened.closes_loop());
            }
            seen.push(file);
            chain.push(inspection);
            next = backing;
        }
        Ok(chain)
    }

    /// Opens an image at a path that the caller names, to read its properties: those of a raw disk do not depend on its bytes, which a
    /// virtual machine may write to.
    fn open_to_inspect(&self, path: &Path) -> Result<Opened> {
        let path = &*file_at(path)?;
        let open = || {
            let source = Arc::new(FileSource::open(path).map_err(Error::io("opening", None))?);
            Ok((source.clone(), Arc::new(SizedFile::new(source)?)))
        };
        let (source, file) = open().map_err(|e: Error| e.in_file(path))?;
        let opened = self.opened(file, Some(path), Purpose::Inspect)?;
        if opened.format != Format::RAW {
            self.lock(&source).map_err(cannot_open("locking")).map_err(|e| e.in_file(path))?;
        }
        Ok(opened)
    }

    pub(crate) fn inspect_opened(&self, opened: &Opened) -> Result<Inspection> {
        let inspect = || {
            let open = |file: &FileOpener<'_>| {
                let budget = Budget::new(self.limits.metadata);
                let detached_header = opened.header.as_ref().map(HeaderFile::for_driver);
                let cx =
                    OpenContext { snapshot: None, ..self.context(&budget, opened.named_by.is_some().into(), file) };
                let cx = OpenContext { path: opened.path(), inspect: true, detached_header, ..cx };
                opened.format.open(opened.source.clone(), &cx)
            };
            let alone = || open(&|_| Ok(None));
            let with_files = |reference: &FileReference| Ok(Some(self.open_data_file(opened, reference)?.source));
            let reader = match self.policy {
                ReferencePolicy::Deny => alone()?,
                // What is wrong with another file does not hide the properties of this one.
                _ => open(&with_files).or_else(|_| alone())?,
            };
            let mut info = reader.info().clone();
            let mut content = ContentKind::default();
            if opened.format == Format::RAW {
                let (kind, mut properties) = guest::properties(&*opened.source)?;
                info.specific.append(&mut properties);
                content = kind;
            }
            #[cfg(feature = "packages")]
            info.warnings.extend(opened.origin.iter().flat_map(|origin| origin.warnings.iter().cloned()));
            Ok(Inspection {
                path: opened.name().map(Path::to_owned),
                compression: opened.layers.clone(),
                format: opened.format,
                content,
                info,
                file_len: opened.file_len,
                allocated: opened.source.allocated().map_err(Error::io("reading the allocated size", None))?,
            })
        };
        inspect().map_err(|e: Error| e.in_file_at(opened.name()))
    }
}
