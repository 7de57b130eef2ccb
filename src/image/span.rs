//! Spans: the host location of guest data, resolved through the chain.

mod unmapped;

use std::ops::Range;

use super::overlap::OverlapTracker;
use super::{Image, Layer};
use crate::driver::{Extent, ExtentKind, FileId, Location};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::format::shared::data_runs::DataRuns;
pub(crate) use unmapped::Unmapped;

/// A guest range of one kind, resolved through the whole chain.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::driver::ExtentKind;
/// use diskimage::io::MemFile;
/// use diskimage::{Format, OpenOptions};
///
/// let file = Arc::new(MemFile::from(vec![7; 1024]));
/// let image = OpenOptions::new().format(Format::RAW).open_source(file)?;
/// let span = image.spans(512..1024).next().unwrap()?;
/// assert_eq!((span.offset, span.len, span.layer), (512, 512, 0));
/// assert!(matches!(span.kind, ExtentKind::Data(at) if at.offset == 512));
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Span {
    /// Guest offset in bytes.
    pub offset: u64,
    /// Length in bytes, at least 1.
    pub len: u64,
    /// How the range is stored; [`ExtentKind::Hole`] if no layer has it, and it reads as zeros.
    pub kind: ExtentKind,
    /// Index of the layer that has the range; 0 is the top.
    pub layer: usize,
    /// Whether the host range is a hole of its file, so that it reads as zeros, as in an image with preallocated metadata.
    pub host_hole: bool,
}

impl Span {
    /// Guest offset of the end.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// A range that no layer has.
    pub(crate) fn hole(range: Range<u64>) -> Span {
        Span { offset: range.start, len: range.end - range.start, kind: ExtentKind::Hole, layer: 0, host_hole: false }
    }

    /// Whether the range is known to be zeros without reading it.
    pub fn is_zero(&self) -> bool {
        self.host_hole || !self.is_data()
    }

    /// Whether the image maps the range to data, which in a hole of the file reads as zeros.
    pub fn is_data(&self) -> bool {
        matches!(self.kind, ExtentKind::Data(_) | ExtentKind::Compressed(_))
    }

    /// The host location of the range, unless it is compressed.
    pub fn location(&self) -> Option<Location> {
        match self.kind {
            ExtentKind::Data(at) => Some(at),
            ExtentKind::Zero { allocated } => allocated,
            ExtentKind::Compressed(_) | ExtentKind::Hole => None,
        }
    }

    /// The part in the guest range `start..end`, which must overlap the span.
    #[must_use]
    pub(crate) fn clip(self, start: u64, end: u64) -> Span {
        let Extent { offset, len, kind } =
            Extent { offset: self.offset, len: self.len, kind: self.kind }.clip(start, end);
        Span { offset, len, kind, ..self }
    }
}

/// The iterator of [`Image::spans`], which has an example. It ends after an error.
#[derive(Debug)]
pub struct Spans<'a> {
    image: &'a Image,
    at: u64,
    end: u64,
    /// The last extent of each layer. It may be much longer than its visible part. Empty where no extent is needed twice.
    cached: Vec<Option<Extent>>,
    trackers: Option<Vec<OverlapTracker>>,
    /// The guest ranges whose host range has another use, if these are not errors.
    overlaps: Option<Vec<(Range<u64>, Error)>>,
    finds_holes: bool,
}

impl<'a> Spans<'a> {
    pub(super) fn new(image: &'a Image, range: Range<u64>) -> Self {
        let end = range.end.min(image.virtual_size());
        Spans { image, at: range.start, end, cached: Vec::new(), trackers: None, overlaps: None, finds_holes: true }
    }

    /// Adds an overlap tracker for each layer.
    pub(super) fn with_trackers(self, trackers: Vec<OverlapTracker>) -> Self {
        Spans { trackers: Some(trackers), ..self }
    }

    /// Collects overlaps, for [`take_overlaps`](Self::take_overlaps), instead of ending at the first one.
    pub(super) fn with_overlaps(self) -> Self {
        Spans { overlaps: Some(Vec::new()), ..self }
    }

    /// The guest ranges since the last call whose host range is also that of metadata or of another guest range, with the reason.
    pub(crate) fn take_overlaps(&mut self) -> Vec<(Range<u64>, Error)> {
        self.overlaps.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes holes of the files for data: for a single read, to look for holes costs more than to read them.
    pub(crate) fn without_holes(self) -> Self {
        Spans { finds_holes: false, ..self }
    }

    /// Skips to guest offset `at`, which is not before the current one.
    pub(crate) fn skip_to(&mut self, at: u64) {
        self.at = self.at.max(at);
    }

    /// The next span, which is of zeros where no file system uses the disk.
    #[cfg(feature = "sparsify")]
    fn resolve_used(&mut self) -> Result<Span> {
        let Some(free) = &self.image.free else { return self.resolve() };
        match free.at(self.at) {
            Ok(end) => {
                let kind = ExtentKind::Zero { allocated: None };
                Ok(Span { kind, ..Span::hole(self.at..end.min(self.end)) })
            }
            Err(next) => self.resolve().map(|span| span.clip(span.offset, span.end().min(next))),
        }
    }

    #[cfg(not(feature = "sparsify"))]
    fn resolve_used(&mut self) -> Result<Span> {
        self.resolve()
    }

    fn resolve(&mut self) -> Result<Span> {
        // Guest offsets of the part, until the span is returned.
        let Some(part) = self.image.part_at(self.at) else { return Ok(Span::hole(self.at..self.end)) };
        let (start, layers) = (part.guest.start, &part.layers);
        let (at, mut limit) = (self.at - start, self.end.min(part.guest.end) - start);
        let mut index = layers.start;
        loop {
            let info = self.image.layers[index].reader.info();
            if at >= info.virtual_size {
                // A layer that is shorter than its overlay reads as zeros after its end.
                let layer = index.saturating_sub(1).max(layers.start);
                return Ok(Span { layer, ..Span::hole(at..limit) }.in_part_at(start));
            }
            let extent = self.extent(index, at, limit, start)?.clip(at, limit);
            limit = extent.end();
            if extent.kind != ExtentKind::Hole || index + 1 == layers.end {
                return self.find_hole(index, extent).map(|span| span.in_part_at(start));
            }
            index += 1;
        }
    }

    /// The start of `extent` up to where data of the file begins or ends.
    fn find_hole(&self, index: usize, Extent { offset, len, kind }: Extent) -> Result<Span> {
        let whole = Span { offset, len, kind, layer: index, host_hole: false };
        let layer = &self.image.layers[index];
        let ExtentKind::Data(at) = kind else { return Ok(whole) };
        let Some(runs) = self.data_runs(layer, at.file) else { return Ok(whole) };
        let (in_data, end) = runs.run_at(at.offset).map_err(|e| layer.locate(e, at.file))?;
        let len = len.min(end - at.offset);
        Ok(match in_data {
            true => Span { len, ..whole },
            // As in qemu, a hole of a raw disk is not data at all.
            false if layer.format == Format::RAW => {
                Span { len, kind: ExtentKind::Zero { allocated: Some(at) }, ..whole }
            }
            false => Span { len, host_hole: true, ..whole },
        })
    }

    /// The data and holes of a file, if they are worth a query: in a raw disk, nothing else tells zeros.
    fn data_runs<'b>(&self, layer: &'b Layer, id: FileId) -> Option<&'b DataRuns> {
        let file = layer.files.get(id.0 as usize).filter(|_| self.finds_holes)?;
        (layer.format == Format::RAW || file.data_runs.has_holes()).then_some(&file.data_runs)
    }

    /// The extent of a layer at the guest offset `at` of the part that begins at `start`.
    fn extent(&mut self, index: usize, at: u64, limit: u64, start: u64) -> Result<Extent> {
        match self.cached.get(index) {
            Some(Some(extent)) if extent.offset <= at && at < extent.end() => Ok(*extent),
            _ => {
                let layer = &self.image.layers[index];
                // Overlaps are tracked by whole allocation units, also if overlays hide parts of them.
                let limit = if self.trackers.is_some() { u64::MAX } else { limit };
                let range = at..limit.min(layer.reader.info().virtual_size);
                let extent = layer
                    .reader
                    .extent_at(range)
                    .and_then(|extent| if covers(&extent, at) { Ok(extent) } else { Err(misplaced(layer, at)) })
                    .map_err(|e| layer.locate(e, FileId::default()))?;
                let locate = |e| layer.locate(e, FileId::default());
                match (&mut self.trackers, &mut self.overlaps) {
                    (None, _) => {}
                    (Some(trackers), None) => trackers[index].claim(&*layer.reader, &extent).map_err(locate)?,
                    (Some(trackers), Some(overlaps)) => {
                        let found = trackers[index].claim_free(&*layer.reader, &extent).into_iter();
                        overlaps.extend(found.map(|(part, e)| (part.start + start..part.end + start, locate(e))));
                    }
                }
                // Without overlays and holes, a span is the whole extent.
                if self.cached.is_empty() && (self.finds_holes || self.image.layers.len() > 1) {
                    self.cached = vec![None; self.image.layers.len()];
                }
                if let Some(cached) = self.cached.get_mut(index) {
                    *cached = Some(extent);
                }
                Ok(extent)
            }
        }
    }
}

/// Whether `extent` has the guest byte `at`, and lies within its compressed unit, as the driver's contract says.
fn covers(extent: &Extent, at: u64) -> bool {
    let Some(end) = extent.offset.checked_add(extent.len) else { return false };
    let in_unit = match extent.kind {
        ExtentKind::Compressed(unit) => unit.unit <= extent.offset && end - unit.unit <= u64::from(unit.unit_len),
        _ => true,
    };
    extent.offset <= at && at < end && in_unit
}

/// The error for a driver of another crate that breaks its contract, which would make a reader loop or panic.
fn misplaced(layer: &Layer, at: u64) -> Error {
    let format = layer.format;
    Error::Usage(format!("the driver of the format {format} returned an invalid extent for guest offset {at:#x}"))
}

impl Iterator for Spans<'_> {
    type Item = Result<Span>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let span = self.resolve_used().map_err(|e| e.in_guest(self.at..self.at + 1));
        self.at = span.as_ref().map_or(self.end, Span::end);
        Some(span)
    }
}
