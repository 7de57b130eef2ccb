//! Where guest data is stored, looked up through the whole chain.

use std::ops::Range;

use super::Image;
use super::overlap::OverlapTracker;
use crate::driver::{Extent, ExtentKind, FileId};
use crate::error::Result;

/// A run of guest bytes that all live in the same way, looked up through the whole chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Span {
    /// Guest offset in bytes.
    pub offset: u64,
    /// Length in bytes, at least 1.
    pub len: u64,
    /// How they live; [`ExtentKind::Hole`] when no layer has them, and they read as zeros.
    pub kind: ExtentKind,
    /// Index of the layer that has them; 0 is the top.
    pub layer: usize,
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
        Span { offset, len, kind, layer: self.layer }
    }
}

/// The iterator of [`Image::spans`]. After an error it ends.
#[derive(Debug)]
pub struct Spans<'a> {
    image: &'a Image,
    at: u64,
    end: u64,
    /// The extent that each layer was asked for last: a layer's may be much longer than what shows of it.
    cached: Vec<Option<Extent>>,
    trackers: Option<Vec<OverlapTracker>>,
}

impl<'a> Spans<'a> {
    pub(super) fn new(image: &'a Image, range: Range<u64>) -> Self {
        let end = range.end.min(image.virtual_size());
        Spans { image, at: range.start, end, cached: vec![None; image.layers.len()], trackers: None }
    }

    /// With a tracker for each layer.
    pub(super) fn with_trackers(self, trackers: Vec<OverlapTracker>) -> Self {
        Spans { trackers: Some(trackers), ..self }
    }

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
                return Ok(Span { offset: self.at, len: limit - self.at, kind, layer: depth.saturating_sub(1) });
            }
            let extent = self.extent(depth, limit)?.clip(self.at, limit);
            limit = extent.end();
            if extent.kind != ExtentKind::Hole || depth == last {
                return Ok(Span { offset: extent.offset, len: extent.len, kind: extent.kind, layer: depth });
            }
            depth += 1;
        }
    }

    fn extent(&mut self, depth: usize, limit: u64) -> Result<Extent> {
        match self.cached[depth] {
            Some(extent) if extent.offset <= self.at && self.at < extent.end() => Ok(extent),
            _ => {
                let layer = &self.image.layers[depth];
                // Overlaps are tracked by whole allocation units, of which the layers above may show parts.
                let limit = if self.trackers.is_some() { u64::MAX } else { limit };
                let range = self.at..limit.min(layer.reader.info().virtual_size);
                let extent = layer
                    .reader
                    .extent_at(range)
                    .and_then(|extent| match &mut self.trackers {
                        Some(trackers) => trackers[depth].claim(&*layer.reader, &extent).map(|()| extent),
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
