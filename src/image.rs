//! An opened image: a chain of layers read as one disk.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::claims::Claims;
use crate::codec::{DecodeError, Decoder};
use crate::error::{Error, Problem, Result};
use crate::extent::{Compressed, Extent, ExtentKind, FileId};
use crate::format::Format;
use crate::info::ImageInfo;
use crate::io::{FileIdentity, FileSource, ReadAt, table};
use crate::open::OpenOptions;
use crate::sparse::SparseRead;

/// A disk, as its guest sees it.
pub struct Image {
    /// The top first. There is at least one.
    layers: Vec<Layer>,
    /// What the last small read decoded.
    scratch: Mutex<Scratch>,
}

/// One image file of a chain, with the other files that hold its guest bytes.
pub(crate) struct Layer {
    pub reader: Box<dyn SparseRead>,
    pub format: Format,
    /// By [`FileId`].
    pub files: Vec<SourceFile>,
}

/// A file that guest bytes are read from.
pub(crate) struct SourceFile {
    pub source: Arc<dyn ReadAt>,
    pub path: Option<PathBuf>,
    pub identity: Option<FileIdentity>,
    /// Length in bytes, as it is read.
    len: u64,
    /// As it is stored, and its length in bytes when it was opened.
    stored: (Arc<dyn ReadAt>, u64),
}

/// A run of guest bytes that all live in the same way, looked up through the whole chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Guest offset in bytes.
    pub offset: u64,
    /// Length in bytes, at least 1.
    pub len: u64,
    /// How they live; [`ExtentKind::Hole`] when no layer has them, and they read as zeros.
    pub kind: ExtentKind,
    /// The layer that has them; 0 is the top.
    pub depth: usize,
}

impl Span {
    /// Guest offset of the first byte after it.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// Whether its bytes are zeros by the metadata alone.
    pub fn is_zero(&self) -> bool {
        matches!(self.kind, ExtentKind::Zero { .. } | ExtentKind::Hole)
    }

    /// The part of it that lies in `start..end`, with which it has a byte in common.
    #[must_use]
    pub(crate) fn clip(self, start: u64, end: u64) -> Span {
        let Extent { offset, len, kind } =
            Extent { offset: self.offset, len: self.len, kind: self.kind }.clip(start, end);
        Span { offset, len, kind, depth: self.depth }
    }
}

impl Image {
    /// Opens the image at `path`, which names no other file. See [`OpenOptions`] for everything else.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Image> {
        OpenOptions::new().open(path)
    }

    /// Size of the disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.info().virtual_size
    }

    /// What the top layer says of itself.
    pub fn info(&self) -> &ImageInfo {
        self.layers[0].reader.info()
    }

    /// The format of the top layer.
    pub fn format(&self) -> Format {
        self.layers[0].format
    }

    /// What each layer says of itself, the top first.
    pub fn infos(&self) -> impl Iterator<Item = &ImageInfo> {
        self.layers.iter().map(|layer| layer.reader.info())
    }

    /// Number of layers.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// The path of a file, by the layer and its number in it.
    pub fn file_path(&self, depth: usize, file: FileId) -> Option<&Path> {
        self.layers.get(depth)?.files.get(file.0 as usize)?.path.as_deref()
    }

    /// Where the bytes of `range` live, in order. The range is cut off at the end of the disk.
    pub fn spans(&self, range: Range<u64>) -> Spans<'_> {
        Spans {
            image: self,
            at: range.start,
            end: range.end.min(self.virtual_size()),
            cached: vec![None; self.layers.len()],
            claims: None,
        }
    }

    /// As [`spans`](Self::spans) over the whole disk, where it is an error that two guest ranges share one place.
    pub(crate) fn spans_exclusive(&self) -> Result<Spans<'_>> {
        let claims = self.layers.iter().map(|layer| {
            let file_lens = layer.files.iter().map(|file| file.len);
            Claims::new(&*layer.reader, file_lens).map_err(|e| layer.locate(e, FileId::default()))
        });
        Ok(Spans { claims: Some(claims.collect::<Result<_>>()?), ..self.spans(0..u64::MAX) })
    }

    /// Fills `buf` with the guest bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::Usage`] when the disk ends before, and whatever reading meets.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.virtual_size());
        let Some(end) = end else {
            let (len, size) = (buf.len(), self.virtual_size());
            return Err(Error::Usage(format!("cannot read {len} bytes at {offset:#x} of a disk of {size:#x} bytes")));
        };
        // Neighbouring small reads share what the last one decoded; reads at the same time do without.
        let mut own = Scratch::default();
        let mut shared = self.scratch.try_lock();
        let scratch = shared.as_deref_mut().unwrap_or(&mut own);
        let mut rest = buf;
        for span in self.spans(offset..end) {
            let span = span?;
            let (part, behind) = rest.split_at_mut(span.len as usize);
            self.load(&span, part, scratch)?;
            rest = behind;
        }
        Ok(())
    }

    /// The disk as a stream.
    pub fn reader(&self) -> Reader<'_> {
        Reader { image: self, at: 0 }
    }

    /// Fills `buf` with the bytes of `span`.
    pub(crate) fn load(&self, span: &Span, buf: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        match span.kind {
            ExtentKind::Hole | ExtentKind::Zero { .. } => {
                buf.fill(0);
                Ok(())
            }
            ExtentKind::Data(at) => {
                let read = |file: &Arc<dyn ReadAt>| table::read(&**file, buf, at.offset);
                self.with_file(span, at.file, read)
            }
            // A whole unit is decoded where it is wanted.
            ExtentKind::Compressed(unit) if buf.len() == unit.unit_len as usize => {
                self.decode(span, &unit, buf, scratch).map(drop)
            }
            ExtentKind::Compressed(unit) => {
                let key = (span.depth, unit.at.offset, unit.unit);
                if scratch.unit_key != Some(key) {
                    scratch.unit_key = None;
                    scratch.unit.resize(unit.unit_len as usize, 0);
                    let mut decoded = std::mem::take(&mut scratch.unit);
                    let result = self.decode(span, &unit, &mut decoded, scratch);
                    scratch.unit = decoded;
                    result?;
                    scratch.unit_key = Some(key);
                }
                let from = (span.offset - unit.unit) as usize;
                let decoded = scratch.unit.get(from..from + buf.len()).unwrap_or_default();
                buf.copy_from_slice(decoded);
                Ok(())
            }
        }
    }

    /// Decodes a compressed unit into `unit`, and returns whether its payload, which `scratch.stored` begins with, gives all
    /// of it; if it is the last one of a disk, and ends beyond the disk's end, the rest was made zeros.
    pub(crate) fn decode(&self, span: &Span, at: &Compressed, unit: &mut [u8], scratch: &mut Scratch) -> Result<bool> {
        scratch.stored.resize(at.stored_len as usize, 0);
        let format = self.layers[span.depth].format.name();
        self.with_file(span, at.at.file, |file| {
            table::read(&**file, &mut scratch.stored, at.at.offset)?;
            match scratch.decoder.decode(at.codec, &scratch.stored, unit) {
                Ok(_) => Ok(true),
                Err(DecodeError::Short { got, ended: true, .. }) if got >= at.min_len as usize => {
                    unit.get_mut(got..).unwrap_or_default().fill(0);
                    Ok(false)
                }
                Err(source) => {
                    let offset = at.at.offset;
                    Err(Error::corrupt(format, "compressed block", offset, Problem::Decode { offset, source }))
                }
            }
        })
    }

    fn with_file<T>(&self, span: &Span, id: FileId, read: impl FnOnce(&Arc<dyn ReadAt>) -> Result<T>) -> Result<T> {
        let layer = &self.layers[span.depth];
        let file = layer.files.get(id.0 as usize).ok_or_else(|| Error::Usage("the file has not been opened".into()));
        file.and_then(|file| read(&file.source)).map_err(|e| layer.locate(e, id).in_guest(span.offset..span.end()))
    }

    /// The image whose layers these are, at least one, the top first.
    pub(crate) fn new(layers: Vec<Layer>) -> Image {
        Image { layers, scratch: Mutex::default() }
    }

    /// All files that guest bytes are read from.
    pub(crate) fn files(&self) -> impl Iterator<Item = &SourceFile> {
        self.layers.iter().flat_map(|layer| &layer.files)
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

impl SourceFile {
    pub fn new(source: Arc<dyn ReadAt>, path: Option<PathBuf>) -> Result<SourceFile> {
        let len = table::length(&*source)?;
        Ok(SourceFile { stored: (source.clone(), len), source, path, identity: None, len })
    }

    pub fn opened(source: Arc<FileSource>, path: &Path) -> Result<SourceFile> {
        let identity = source.identity().map_err(Error::io("asking what file it is", None))?;
        Ok(SourceFile { identity: Some(identity), ..SourceFile::new(source, Some(path.to_owned()))? })
    }

    /// Reads it as the reader says.
    pub fn seen_by(self, reader: &dyn SparseRead) -> Result<SourceFile> {
        match reader.image_file() {
            Some(source) => Ok(SourceFile { len: table::length(&*source)?, source, ..self }),
            None => Ok(self),
        }
    }

    fn check_unchanged(&self) -> Result<()> {
        let (stored, before) = &self.stored;
        let after = table::length(&**stored)?;
        if after == *before {
            return Ok(());
        }
        Err(Error::Changed { before: *before, after }.in_file_at(self.path.as_deref()))
    }
}

/// Buffers and states that reading needs; one for each thread and image.
#[derive(Default)]
pub(crate) struct Scratch {
    pub decoder: Decoder,
    /// The payload that was decoded last, with what followed it in its sectors.
    pub stored: Vec<u8>,
    unit: Vec<u8>,
    /// Which unit `unit` holds: its layer, and where it is in the file and on the disk.
    unit_key: Option<(usize, u64, u64)>,
}

/// The iterator of [`Image::spans`]. After an error it ends.
#[derive(Debug)]
pub struct Spans<'a> {
    image: &'a Image,
    at: u64,
    end: u64,
    /// The extent that each layer was asked for last: a layer's may be much longer than what shows of it.
    cached: Vec<Option<Extent>>,
    claims: Option<Vec<Claims>>,
}

impl Spans<'_> {
    /// Skips to guest offset `at`, which is not before the current one.
    pub(crate) fn skip_to(&mut self, at: u64) {
        self.at = self.at.max(at);
    }

    fn resolve(&mut self) -> Result<Span> {
        let mut limit = self.end;
        let last = self.image.layers.len() - 1;
        let mut depth = 0;
        loop {
            let info = self.image.layers[depth].reader.info();
            if self.at >= info.virtual_size {
                // The layer ends before the one above it: zeros from here on.
                let kind = ExtentKind::Hole;
                return Ok(Span { offset: self.at, len: limit - self.at, kind, depth: depth.saturating_sub(1) });
            }
            let extent = self.extent(depth)?.clip(self.at, limit);
            limit = extent.end();
            if extent.kind != ExtentKind::Hole || depth == last {
                return Ok(Span { offset: extent.offset, len: extent.len, kind: extent.kind, depth });
            }
            depth += 1;
        }
    }

    fn extent(&mut self, depth: usize) -> Result<Extent> {
        match self.cached[depth] {
            Some(extent) if extent.offset <= self.at && self.at < extent.end() => Ok(extent),
            _ => {
                let layer = &self.image.layers[depth];
                let extent = layer
                    .reader
                    .extent_at(self.at)
                    .and_then(|extent| match &mut self.claims {
                        Some(claims) => claims[depth].claim(&*layer.reader, &extent).map(|()| extent),
                        None => Ok(extent),
                    })
                    .map_err(|e| layer.locate(e, FileId::default()))?;
                self.cached[depth] = Some(extent);
                Ok(extent)
            }
        }
    }
}

impl Iterator for Spans<'_> {
    type Item = Result<Span>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let span = self.resolve().map_err(|e| e.in_guest(self.at..self.at + 1));
        self.at = span.as_ref().map_or(self.end, Span::end);
        Some(span)
    }
}

/// A disk as a stream: [`io::Read`] and [`io::Seek`].
#[derive(Debug)]
pub struct Reader<'a> {
    image: &'a Image,
    at: u64,
}

impl io::Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.image.virtual_size().saturating_sub(self.at);
        let len = left.min(buf.len() as u64) as usize;
        if len == 0 {
            return Ok(0);
        }
        self.image.read_at(&mut buf[..len], self.at).map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl io::Seek for Reader<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let target = match to {
            io::SeekFrom::Start(offset) => Some(offset),
            io::SeekFrom::End(by) => self.image.virtual_size().checked_add_signed(by),
            io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests;
