//! Opening a chain whose top image is going to be changed.

use std::path::Path;
use std::sync::Arc;

use super::open::{Opened, cannot_open};
use super::references::{Found, ResolveRequest};
use super::{Image, Layer, OpenOptions, SizedFile, SourceFile};
use crate::driver::{OpenContext, Repair, RepairReport, SparseRead, UpdateContext};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::info::FileReference;
use crate::io::{FileStorage, ReadAt, Storage};
use crate::limits::Budget;

/// The top image of a chain: its metadata, as it is now, and its files.
pub(crate) struct TopLayer {
    pub reader: Box<dyn SparseRead>,
    /// Indexed by [`FileId`](crate::driver::FileId).
    pub files: Vec<Arc<dyn Storage>>,
}

/// Opens the top image of a chain.
pub(crate) type TopOpener<'a> = dyn Fn(Format, Arc<dyn Storage>, &UpdateContext<'_>) -> Result<TopLayer> + 'a;

impl OpenOptions {
    /// Opens and locks the file at `path`, which the caller names, for reading and writing.
    pub(crate) fn open_storage(&self, path: &Path) -> Result<Arc<dyn Storage>> {
        let file = FileStorage::open(path).map_err(Error::io("opening", None))?;
        self.lock_storage(&file)?;
        Ok(Arc::new(file))
    }

    /// Also with [`force_share`](Self::force_share), which is about what is read: two programs that write would destroy the image.
    fn lock_storage(&self, file: &FileStorage) -> Result<()> {
        file.lock().map_err(|cause| match cause.kind() {
            std::io::ErrorKind::ResourceBusy => Error::InUse { for_writing: false },
            _ => cannot_open("locking")(cause),
        })
    }

    /// Opens the image in `storage`, by `open`, with its backing chain.
    pub(crate) fn open_chain_over(
        &self,
        storage: Arc<dyn Storage>,
        path: Option<&Path>,
        open: &TopOpener<'_>,
    ) -> Result<Image> {
        let source = Arc::new(SizedFile::new(storage.clone())?);
        // What is inside of another file cannot be changed: nothing is decompressed or unpacked.
        let format = self.format.map_or_else(|| self.detect(&source, path), Ok)?;
        if self.detached_header.is_some() {
            return Err(Error::unsupported(format.name(), "writing with a detached header"));
        }
        let directory = self.directory_of(path, &source)?;
        let top = Opened { directory, ..Opened::new(path.map(Path::to_owned), source, format)? };
        self.open_chain_by(top, Some(&|top, cx| self.open_top_layer(top, cx, storage.clone(), open)))
    }

    /// Repairs the image in `storage`, which is at `path`. The backing file is not opened.
    pub(crate) fn repair_in(
        &self,
        storage: Arc<dyn Storage>,
        path: Option<&Path>,
        what: Repair,
    ) -> Result<RepairReport> {
        let source = Arc::new(SizedFile::new(storage.clone())?);
        let format = self.format.map_or_else(|| self.detect(&source, path), Ok)?;
        let directory = self.directory_of(path, &source)?;
        let top = Opened { directory, ..Opened::new(path.map(Path::to_owned), source, format)? };
        let budget = Budget::new(self.limits.metadata);
        let data_file = |reference: &FileReference| self.open_data_storage(&top, reference);
        let cx = self.context(&budget, 0, &|_| Ok(None));
        format.repair(storage, &UpdateContext { storage: &data_file, ..UpdateContext::new(cx) }, what)
    }

    fn open_top_layer(
        &self,
        top: &Opened,
        cx: &OpenContext<'_>,
        storage: Arc<dyn Storage>,
        open: &TopOpener<'_>,
    ) -> Result<Layer> {
        let data_file = |reference: &FileReference| self.open_data_storage(top, reference);
        let cx = UpdateContext { storage: &data_file, ..UpdateContext::new(*cx) };
        let TopLayer { reader, files } = open(top.format, storage, &cx)?;
        let files = files.into_iter().enumerate().map(|(index, file)| match index {
            0 => SourceFile::new(top.source.clone(), top.path.clone()).seen_by(&*reader),
            _ => SourceFile::from_file(file, None),
        });
        let files = files.collect::<Result<_>>()?;
        Ok(Layer { reader, format: top.format, files })
    }

    /// Opens a data file for writing: the one that the reference policy lets be opened for reading.
    fn open_data_storage(&self, image: &Opened, reference: &FileReference) -> Result<Arc<dyn Storage>> {
        let Found { path, source, reference, directory } = self.open_reference(image, reference)?;
        if let Some(resolve) = &self.storage_resolver {
            let request =
                ResolveRequest { reference: &reference, name: &reference.name, path: &path, image: image.path() };
            return resolve(&request).map_err(|e| cannot_open("opening")(e).in_file(&path));
        }
        let identity = source.identity().map_err(Error::io("reading the file identity", None))?;
        // Its lock is that of a reader.
        drop(source);
        if identity.is_none() {
            return Err(Error::unsupported(image.format.name(), "writing to a data file that is not at a path"));
        }
        let open = || {
            let file = match (&directory, path.file_name()) {
                (Some(directory), Some(name)) => directory.open_storage(name, &path).map_err(Into::into),
                _ => FileStorage::open(&path),
            };
            let file = file.map_err(Error::io("opening", None))?;
            if file.identity().map_err(Error::io("reading the file identity", None))? != identity {
                return Err(Error::Usage("the file was replaced meanwhile".into()));
            }
            self.lock_storage(&file)?;
            Ok(Arc::new(file) as Arc<dyn Storage>)
        };
        open().map_err(|e| e.in_file(&path))
    }
}

impl Image {
    /// Replaces the metadata of the top image, whose size has changed.
    pub(crate) fn replace_top(&mut self, reader: Box<dyn SparseRead>) {
        self.layers[0].reader = reader;
        self.parts = vec![super::Part::whole(&self.layers)];
    }

    /// Closes the layers from the index `count` on, which is not 0. What they had reads as zeros.
    pub(crate) fn truncate_layers(&mut self, count: usize) {
        self.layers.truncate(count.max(1));
        self.parts = vec![super::Part::whole(&self.layers)];
    }
}
