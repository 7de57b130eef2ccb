//! An opened image: a chain of layers read as one disk.

mod concatenation;
mod detached;
mod detect;
#[cfg(feature = "sparsify")]
mod free_space;
mod inspect;
mod open;
mod open_options;
pub(crate) mod overlap;
#[cfg(feature = "packages")]
mod package;
mod peel;
mod plot;
mod qemu_name;
mod reader;
mod references;
mod source;
mod span;
mod units;
#[cfg(feature = "disk")]
mod update;
#[cfg(feature = "remote")]
mod url;

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::codec::{Codec, DecodeError, Decoder};
#[cfg(feature = "write")]
use crate::driver::DirtyBitmap;
use crate::driver::{Compressed, Extent, ExtentKind, FileId, Location, SparseRead};
use crate::error::{Error, Problem, Result};
use crate::format::Format;
use crate::format::shared::table;
#[cfg(feature = "sparsify")]
use crate::guest::free::FreeSpace;
use crate::info::ImageInfo;
use crate::io::ReadAt;
use concatenation::Part;
pub use inspect::Inspection;
#[cfg(feature = "inspect")]
pub(crate) use open::{Opened, Purpose, file_at};
pub use open_options::OpenOptions;
use overlap::OverlapTracker;
#[cfg(feature = "inspect")]
pub(crate) use peel::Peeled;
pub use plot::{Allocation, Plot};
pub use reader::Reader;
pub use references::{ReferencePolicy, ResolveRequest};
pub(crate) use source::{SizedFile, SourceFile};
pub(crate) use span::Unmapped;
pub use span::{Span, Spans};
use units::UnitCache;
#[cfg(feature = "disk")]
pub(crate) use update::TopLayer;

/// An opened image with its backing chain: the disk as the guest sees it.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::io::MemFile;
/// use diskimage::{Converter, Format, OpenOptions};
///
/// let file = Arc::new(MemFile::new());
/// Converter::new(Format::QCOW2).create_to(1 << 20, file.clone())?;
/// let image = OpenOptions::new().open_source(file)?;
/// let mut sector = [7; 512];
/// image.read_exact_at(&mut sector, 4096)?;
/// assert_eq!(sector, [0; 512]);
/// for span in image.spans(0..image.virtual_size()) {
///     assert!(span?.is_zero());
/// }
/// # Ok::<(), diskimage::Error>(())
/// ```
pub struct Image {
    /// At least one, of each part the top first.
    layers: Vec<Layer>,
    /// The disks of a concatenation, or one, in ascending order without gaps.
    parts: Vec<Part>,
    /// The properties of a concatenation.
    concatenation: Option<Box<ImageInfo>>,
    /// The units that were read in part.
    units: UnitCache,
    /// Decoders and buffers of reads that are over.
    scratch: ScratchPool,
    /// Whether it can be read once only, from its beginning to its end.
    in_order: bool,
    /// What reads as zeros, because no file system uses it.
    #[cfg(feature = "sparsify")]
    free: Option<Arc<FreeSpace>>,
}

/// One image of a chain, with its data files and extents.
pub(crate) struct Layer {
    pub reader: Box<dyn SparseRead>,
    pub format: Format,
    /// Indexed by [`FileId`].
    pub files: Vec<SourceFile>,
}

impl Image {
    /// Virtual size in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.info().virtual_size
    }

    /// The persistent bitmaps of the top layer.
    ///
    /// # Errors
    /// If the metadata cannot be read or is corrupt; [`Error::Usage`] for a snapshot and for a concatenation.
    #[cfg(feature = "write")]
    pub fn bitmaps(&self) -> Result<Vec<DirtyBitmap>> {
        match self.layers.first() {
            Some(_) if self.parts.len() > 1 => {
                Err(Error::Usage("the bitmaps of several images cannot be combined".into()))
            }
            Some(top) => top.reader.bitmaps().map_err(|e| e.in_file_at(self.files().next().and_then(SourceFile::path))),
            None => Ok(Vec::new()),
        }
    }

    /// The properties of the top layer.
    pub fn info(&self) -> &ImageInfo {
        self.concatenation.as_deref().unwrap_or_else(|| self.layers[0].reader.info())
    }

    /// The format of the top layer.
    pub fn format(&self) -> Format {
        if self.concatenation.is_some() { Format::RAW } else { self.layers[0].format }
    }

    /// The format of the layer with the index `layer`.
    pub(crate) fn format_of(&self, layer: usize) -> Option<Format> {
        self.layers.get(layer).map(|layer| layer.format)
    }

    /// The properties of each layer, the top first.
    pub fn layers(&self) -> impl Iterator<Item = &ImageInfo> {
        self.layers.iter().map(|layer| layer.reader.info())
    }

    /// Number of layers: the image and the images of its backing chain.
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// Returns the path of a file of the layer with the index `layer`, where 0 is the top, if it was opened by path, or else the name of its
    /// storage, if that has one.
    pub fn file_path(&self, layer: usize, file: FileId) -> Option<&Path> {
        self.layers.get(layer)?.files.get(file.0 as usize)?.path()
    }

    /// Whether reads of its files bypass the page cache of the system. Storage that is no file of the system does not count.
    pub fn bypasses_cache(&self) -> bool {
        self.files().filter(|file| file.is_local()).all(|file| file.source.bypasses_cache())
    }

    /// Iterates over the guest range `range`, clipped to the disk, with the host location of each part.
    pub fn spans(&self, range: Range<u64>) -> Spans<'_> {
        Spans::new(self, range)
    }

    /// Iterates over the whole disk as [`spans`](Self::spans), with an error where guest ranges overlap in a file.
    pub(crate) fn spans_exclusive(&self) -> Result<Spans<'_>> {
        let trackers = self.layers.iter().map(|layer| {
            let file_lens = layer.files.iter().map(|file| file.len);
            OverlapTracker::new(&*layer.reader, file_lens).map_err(|e| layer.locate(e, FileId::default()))
        });
        Ok(self.spans(0..u64::MAX).with_trackers(trackers.collect::<Result<_>>()?))
    }

    /// As [`spans_exclusive`](Self::spans_exclusive), but overlaps are collected and do not end the iteration.
    pub(crate) fn spans_with_overlaps(&self) -> Spans<'_> {
        // Where metadata overlaps, nothing is known of the rest.
        self.spans_exclusive().unwrap_or_else(|_| self.spans(0..u64::MAX)).with_overlaps()
    }

    /// Fills `buf` with guest data from byte `offset` on.
    ///
    /// # Errors
    /// [`Error::Usage`] if the range ends after the disk; errors of the storage and of the image.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.virtual_size());
        let Some(end) = end else {
            let (len, size) = (buf.len(), self.virtual_size());
            return Err(Error::Usage(format!("cannot read {len} bytes at {offset:#x} of a disk of {size:#x} bytes")));
        };
        if self.read_one_extent(buf, offset..end) {
            return Ok(());
        }
        // Only compressed units need it.
        let mut scratch = None;
        let mut rest = buf;
        for span in self.spans(offset..end).without_holes() {
            let span = span?;
            let (part, after) = rest.split_at_mut(span.len as usize);
            match span.kind {
                ExtentKind::Compressed(unit) => {
                    let scratch = scratch.get_or_insert_with(|| self.scratch.take());
                    self.load_compressed(&span, &unit, part, scratch, needed_for(&span, &unit))?;
                }
                _ => self.load_plain(&span, part)?,
            }
            rest = after;
        }
        scratch.into_iter().for_each(|scratch| self.scratch.put_back(scratch));
        Ok(())
    }

    /// Reads a range that is stored in one piece in the top layer, as most short ones are. Otherwise, and after a failure, returns false, and
    /// the range has to be read by its spans, which cost about as much as the system's read.
    fn read_one_extent(&self, buf: &mut [u8], range: Range<u64>) -> bool {
        let ([_], Some(layer)) = (&*self.parts, self.layers.first()) else { return false };
        if range.is_empty() || layer.reader.reads_payload() || self.has_free_space() {
            return false;
        }
        match layer.reader.extent_at(range.clone()) {
            Ok(Extent { offset, len, kind: ExtentKind::Data(at) })
                if offset == range.start
                    && len >= buf.len() as u64
                    && layer.reader.decrypted_file(range.start, at).is_none() =>
            {
                let file = layer.files.get(at.file.0 as usize);
                file.is_some_and(|file| file.source.read_exact_at(buf, at.offset).is_ok())
            }
            _ => false,
        }
    }

    /// Whether parts of the disk read as zeros that no file system uses.
    #[cfg(not(feature = "sparsify"))]
    fn has_free_space(&self) -> bool {
        false
    }

    /// The disk as a stream. [`Reader::new`] has sub-ranges, and readers that own the image.
    pub fn reader(&self) -> Reader<&Image> {
        Reader::new(self, 0..u64::MAX)
    }

    /// Fills `buf` with the data of `span`.
    pub(crate) fn load(&self, span: &Span, buf: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        match span.kind {
            ExtentKind::Compressed(unit) => self.load_compressed(span, &unit, buf, scratch, unit.unit_len as usize),
            _ => self.load_plain(span, buf),
        }
    }

    /// Fills `buf` with the data of `span`, which is not compressed.
    fn load_plain(&self, span: &Span, buf: &mut [u8]) -> Result<()> {
        match span.kind {
            ExtentKind::Data(at) if !span.host_hole => {
                let decrypted = self.decrypted_file(span, at);
                self.with_file(span, at.file, |file| table::read(&**decrypted.as_ref().unwrap_or(file), buf, at.offset))
            }
            _ => {
                buf.fill(0);
                Ok(())
            }
        }
    }

    /// Fills `buf` with the data of `span`, which is compressed. A unit that is read in part is decoded up to `needed` bytes.
    fn load_compressed(
        &self,
        span: &Span,
        unit: &Compressed,
        buf: &mut [u8],
        scratch: &mut Scratch,
        needed: usize,
    ) -> Result<()> {
        // A whole unit is decoded in place.
        if buf.len() == unit.unit_len as usize {
            return self.decode(span, unit, buf, scratch).map(drop);
        }
        self.with_unit(span, unit, scratch, needed, |decoded| {
            let from = (span.offset - unit.unit) as usize;
            buf.copy_from_slice(decoded.get(from..from + buf.len()).unwrap_or_default());
        })
    }

    /// The file to read the data of `span` from, where its decryption depends on the guest offset.
    fn decrypted_file(&self, span: &Span, at: Location) -> Option<Arc<dyn ReadAt>> {
        self.layers[span.layer].reader.decrypted_file(span.offset - self.start_of_layer(span.layer), at)
    }

    /// Decodes the compressed unit of `span`, if it is one, for the threads that read parts of it.
    pub(crate) fn decode_shared(&self, span: &Span, scratch: &mut Scratch) -> Result<()> {
        match span.kind {
            ExtentKind::Compressed(unit) => self.with_unit(span, &unit, scratch, unit.unit_len as usize, |_| ()),
            _ => Ok(()),
        }
    }

    /// Calls `read` with at least the first `needed` bytes of the decoded unit of `span`.
    fn with_unit(
        &self,
        span: &Span,
        unit: &Compressed,
        scratch: &mut Scratch,
        needed: usize,
        read: impl FnOnce(&[u8]),
    ) -> Result<()> {
        let key = (span.layer, unit.at.offset, unit.unit);
        let decode = |decoded: &mut [u8]| self.decode(span, unit, decoded, scratch).map(drop);
        self.units.with(key, unit.unit_len as usize, needed, decode, read)
    }

    /// Decodes a compressed unit, or the start of one where its codec can do that, into `unit`, and leaves its payload at the start of
    /// `scratch.stored`. Returns false if the payload is shorter than the unit, which only the last unit of a disk may be; the rest is zeros
    /// then.
    pub(crate) fn decode(&self, span: &Span, at: &Compressed, unit: &mut [u8], scratch: &mut Scratch) -> Result<bool> {
        scratch.stored.resize(at.stored_len as usize, 0);
        let format = self.layers[span.layer].format.name();
        self.with_file(span, at.at.file, |file| {
            table::read(&**file, &mut scratch.stored, at.at.offset)?;
            match scratch.decoder.decode(at.codec, &scratch.stored, unit) {
                Ok(_) => Ok(true),
                Err(DecodeError::Short { got, ended: true, .. }) if got >= at.min_len as usize => {
                    unit.get_mut(got..).unwrap_or_default().fill(0);
                    Ok(false)
                }
                Err(DecodeError::Missing(missing)) => Err(Error::missing_codec(missing)),
                Err(source) => {
                    let offset = at.at.offset;
                    Err(Error::corrupt(format, "compressed block", offset, Problem::Decode { offset, source }))
                }
            }
        })
    }

    fn with_file<T>(&self, span: &Span, id: FileId, read: impl FnOnce(&Arc<dyn ReadAt>) -> Result<T>) -> Result<T> {
        let layer = &self.layers[span.layer];
        let file =
            layer.files.get(id.0 as usize).ok_or_else(|| Error::Usage("a referenced file has not been opened".into()));
        file.and_then(|file| read(&file.source)).map_err(|e| layer.locate(e, id).in_guest(span.offset..span.end()))
    }

    /// An image of at least one layer, the top first.
    pub(crate) fn new(layers: Vec<Layer>) -> Image {
        Image {
            parts: vec![Part::whole(&layers)],
            layers,
            concatenation: None,
            units: UnitCache::default(),
            scratch: ScratchPool::default(),
            in_order: false,
            #[cfg(feature = "sparsify")]
            free: None,
        }
    }

    /// The same image, of which nothing is read twice.
    pub(crate) fn read_in_order(self) -> Image {
        Image { in_order: true, ..self }
    }

    /// Whether it can be read once only, from its beginning to its end. A map of it is then the end of it.
    pub(crate) fn is_in_order(&self) -> bool {
        self.in_order
    }

    /// Whether a map of the whole disk costs little beside reading it: only tables are read, of local files.
    pub(crate) fn is_mapped_cheaply(&self) -> bool {
        !self.in_order
            && self.layers.iter().all(|layer| !layer.reader.reads_payload())
            && self.files().all(SourceFile::is_local)
    }

    /// The same image as the disk of a package.
    #[cfg(feature = "packages")]
    fn with_origin(mut self, mut origin: Option<package::Origin>) -> Image {
        if let Some(origin) = &mut origin {
            origin.check_capacity(self.virtual_size());
            origin.forget_package();
        }
        if let Some(part) = self.parts.first_mut() {
            part.origin = origin;
        }
        self
    }

    /// All files that hold guest data.
    pub(crate) fn files(&self) -> impl Iterator<Item = &SourceFile> {
        self.layers.iter().flat_map(|layer| &layer.files)
    }

    /// The files of the operating system that hold guest data, with their layers.
    pub(crate) fn system_files(&self) -> impl Iterator<Item = ((usize, FileId), &File)> {
        self.layers.iter().enumerate().flat_map(|(layer, Layer { files, .. })| {
            let files = files.iter().zip(0..);
            files.filter_map(move |(file, id)| Some(((layer, FileId(id)), file.source.as_file()?)))
        })
    }

    /// Where the data of `span` is stored as it is, neither compressed nor encrypted nor a hole.
    pub(crate) fn stored_at(&self, span: &Span) -> Option<Location> {
        match span.kind {
            ExtentKind::Data(at) if !span.host_hole && self.decrypted_file(span, at).is_none() => Some(at),
            _ => None,
        }
    }

    /// Checks that no file has grown or shrunk since it was opened.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        self.files().try_for_each(SourceFile::check_unchanged)
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.layers.iter().map(|layer| (layer.format, &layer.files[0].path))).finish()
    }
}

impl Layer {
    fn locate(&self, error: Error, id: FileId) -> Error {
        error.in_file_at(self.files.get(id.0 as usize).and_then(|file| file.path.as_deref()))
    }
}

/// An image inside an image: a disk can be opened like a file.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::io::MemFile;
/// use diskimage::{Format, OpenOptions};
///
/// let outer = OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(vec![7; 1024])))?;
/// let inner = OpenOptions::new().open_source(Arc::new(outer))?;
/// assert_eq!(inner.virtual_size(), 1024);
/// # Ok::<(), diskimage::Error>(())
/// ```
impl ReadAt for Image {
    fn size(&self) -> io::Result<u64> {
        Ok(self.virtual_size())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = self.virtual_size().saturating_sub(offset).min(buf.len() as u64) as usize;
        if len == 0 {
            return Ok(0);
        }
        Image::read_exact_at(self, buf.get_mut(..len).unwrap_or_default(), offset)?;
        Ok(len)
    }

    /// Returns one span. A longer range would need the metadata of the whole disk, where a fault elsewhere is an error.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        for span in self.spans(offset..u64::MAX) {
            let span = span?;
            if !span.is_zero() {
                return Ok(Some(span.offset..span.end()));
            }
        }
        Ok(None)
    }
}

/// How many bytes of the compressed unit of `span` have to be decoded for it.
fn needed_for(span: &Span, unit: &Compressed) -> usize {
    match unit.codec {
        // It has no checksum at its end, and can be left anywhere.
        Codec::Deflate => (span.end() - unit.unit) as usize,
        _ => unit.unit_len as usize,
    }
}

/// Buffers and decoder states, one for each thread.
#[derive(Default)]
pub(crate) struct Scratch {
    pub decoder: Decoder,
    /// The payload decoded last, with what follows it in its sectors.
    pub stored: Vec<u8>,
}

/// Decoders and buffers that wait for the next read: as many as there were reads at once, up to a number.
#[derive(Default)]
struct ScratchPool(Mutex<Vec<Scratch>>);

impl ScratchPool {
    const KEPT: usize = 16;

    fn take(&self) -> Scratch {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn put_back(&self, scratch: Scratch) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < Self::KEPT {
            kept.push(scratch);
        }
    }
}

#[cfg(test)]
mod tests;
