//! Planning: splits the disk into work ranges, one at a time.

use std::ops::Range;

use super::{Converter, Job};
use crate::error::{Error, Result};
use crate::image::{Span, Spans};

/// A work range of at most one chunk.
pub(super) struct Work {
    /// Sequence number, from 0 on.
    pub seq: u64,
    /// Guest offsets. The last work range ends at the virtual size of the new image.
    pub range: Range<u64>,
    /// Spans of the source that are not zeros, in ascending order.
    pub source: Vec<Span>,
    /// Spans of the backing image that are not zeros, in ascending order.
    pub base: Vec<Span>,
}

/// The part of the disk that is not planned yet.
pub(super) struct Planner<'a> {
    job: &'a Job<'a>,
    settings: &'a Converter,
    source: SpanCursor<'a>,
    base: Option<SpanCursor<'a>>,
    at: u64,
    seq: u64,
}

impl<'a> Planner<'a> {
    pub fn new(job: &'a Job<'a>, settings: &'a Converter) -> Result<Self> {
        Ok(Planner {
            job,
            settings,
            source: SpanCursor::new(job.source.spans_exclusive()?),
            base: job.base.map(|base| SpanCursor::new(base.spans(0..u64::MAX))),
            at: 0,
            seq: 0,
        })
    }

    /// Returns the next work range, or `None` at the end of the disk.
    pub fn next(&mut self) -> Result<Option<Work>> {
        let end = self.job.spec.virtual_size;
        if !self.job.dense() {
            self.skip_zeros()?;
        }
        if self.at >= end {
            return Ok(None);
        }
        let chunk_size = self.job.chunk_size();
        let range = self.at..(self.at / chunk_size + 1).saturating_mul(chunk_size).min(end);
        let source = self.source.spans(&range)?;
        let base = self.base.as_mut().map(|base| base.spans(&range)).transpose()?.unwrap_or_default();
        self.at = range.end;
        self.seq += 1;
        Ok(Some(Work { seq: self.seq - 1, range, source, base }))
    }

    /// Skips the chunks that are zeros in all images by their metadata.
    fn skip_zeros(&mut self) -> Result<()> {
        let (end, chunk_size) = (self.job.spec.virtual_size, self.job.chunk_size());
        let mut upto = self.source.zeros_until(self.at, self.settings)?;
        if let Some(base) = &mut self.base {
            upto = upto.min(base.zeros_until(self.at, self.settings)?);
        }
        self.at = if upto >= end { end } else { (upto / chunk_size * chunk_size).max(self.at) };
        Ok(())
    }
}

/// A cursor over the spans of one image, which moves forward only.
struct SpanCursor<'a> {
    spans: Spans<'a>,
    current: Option<Span>,
}

impl<'a> SpanCursor<'a> {
    fn new(spans: Spans<'a>) -> Self {
        SpanCursor { spans, current: None }
    }

    /// Returns the span that contains `at`, or the first one after it if the zeros at `at` were skipped already; `None` after
    /// the end of the disk.
    fn span_at(&mut self, at: u64) -> Result<Option<Span>> {
        if self.current.is_none_or(|span| span.end() <= at) {
            self.spans.skip_to(at);
            self.current = self.spans.next().transpose()?;
        }
        Ok(self.current)
    }

    /// Returns the spans in `range` that are not zeros, clipped to it.
    fn spans(&mut self, range: &Range<u64>) -> Result<Vec<Span>> {
        let mut spans = Vec::new();
        let mut at = range.start;
        while at < range.end
            && let Some(span) = self.span_at(at)?
        {
            if !span.is_zero() && span.offset < range.end {
                spans.push(span.clip(at, range.end));
            }
            at = span.end();
        }
        Ok(spans)
    }

    /// Returns the end of the zeros at `at` by the metadata. A large amount of metadata can be read, so that this is cancelled.
    fn zeros_until(&mut self, mut at: u64, settings: &Converter) -> Result<u64> {
        loop {
            if settings.is_cancelled() {
                return Err(Error::Cancelled);
            }
            match self.span_at(at)? {
                None => return Ok(u64::MAX),
                Some(span) if span.is_zero() => at = span.end(),
                Some(span) => return Ok(span.offset.max(at)),
            }
        }
    }
}

#[cfg(test)]
mod tests;
