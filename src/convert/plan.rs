//! Cutting the disk into work ranges, one at a time.

use std::ops::Range;

use super::{Converter, Job};
use crate::error::{Error, Result};
use crate::image::{Span, Spans};

/// A work range: at most a chunk, or a run of zeros of any length.
pub(super) struct Work {
    /// Its number: 0, 1, 2, ...
    pub seq: u64,
    /// Guest bytes. Where the last one ends is the virtual size of the new disk.
    pub range: Range<u64>,
    /// Where the source's bytes are; what no span mentions is zeros.
    pub source: Vec<Span>,
    /// The same for the image that the new one lies over.
    pub base: Vec<Span>,
}

/// What has not been handed out yet.
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

    /// The next range that holds something to do.
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

/// The spans of one image, in ascending order, each for as long as it is needed.
struct SpanCursor<'a> {
    spans: Spans<'a>,
    current: Option<Span>,
}

impl<'a> SpanCursor<'a> {
    fn new(spans: Spans<'a>) -> Self {
        SpanCursor { spans, current: None }
    }

    /// The span that contains `at` or, if zeros up to there have been passed already, the one after it; nothing past the
    /// end of the disk.
    fn span_at(&mut self, at: u64) -> Result<Option<Span>> {
        if self.current.is_none_or(|span| span.end() <= at) {
            self.spans.skip_to(at);
            self.current = self.spans.next().transpose()?;
        }
        Ok(self.current)
    }

    /// The spans of `range` that are not zeros, cut at its ends.
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

    /// Where the zeros that begin at `at` end, as far as the metadata tells. There can be much of it to look at.
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
