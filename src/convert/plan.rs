//! Planning: splits the disk into work ranges, one at a time.

use std::ops::Range;

use super::amount::{Amount, data_len};
use super::report::{Damage, DamageList};
use super::{Converter, Job};
use crate::error::{Error, Result};
use crate::image::{Span, Spans, Unmapped};

/// The largest work range without data, in chunks. It is placed without looking whether the conversion was cancelled.
const ZERO_CHUNKS: u64 = 1024;

/// A work range of at most one chunk, or of zeros that are placed.
pub(super) struct Work {
    /// Sequence number, from 0 on.
    pub seq: u64,
    /// Guest offsets. The last work range ends at the virtual size of the new image.
    pub range: Range<u64>,
    /// How much is done with this work range, by [`Amount`].
    pub done: u64,
    /// Spans of the source that are not zeros, in ascending order.
    pub source: Vec<Span>,
    /// Spans of the backing image that are not zeros, in ascending order.
    pub base: Vec<Span>,
    /// Ranges of the source that cannot be mapped and are not replaced by zeros, in ascending order.
    pub unmapped: Vec<Range<u64>>,
    /// What could not be mapped since the last work range, also outside this one.
    pub unreadable: Vec<Damage>,
}

/// The part of the disk that is not planned yet.
pub(super) struct Planner<'a> {
    job: &'a Job<'a>,
    settings: &'a Converter,
    source: SpanCursor<'a>,
    base: Option<SpanCursor<'a>>,
    amount: Amount,
    /// Bytes of data in the work ranges so far.
    data: u64,
    at: u64,
    seq: u64,
}

impl<'a> Planner<'a> {
    pub fn new(job: &'a Job<'a>, settings: &'a Converter) -> Result<Self> {
        let source = match job.salvage {
            None => SpanCursor::new(job.source.spans_exclusive()?),
            Some(settings) => {
                let spans = job.source.spans_with_overlaps();
                SpanCursor { salvage: Some(settings.salvage_pattern), ..SpanCursor::new(spans) }
            }
        };
        Ok(Planner {
            job,
            settings,
            source,
            base: job.base.map(|base| SpanCursor::new(base.spans(0..u64::MAX))),
            amount: Amount::of(job, settings),
            data: 0,
            at: 0,
            seq: 0,
        })
    }

    /// Returns the next work range, or `None` at the end of the disk.
    pub fn next(&mut self) -> Result<Option<Work>> {
        let end = self.job.spec.virtual_size;
        let chunk_size = self.job.chunk_size();
        let mut zeros_end = self.at;
        if !self.job.dense() && !self.job.hashes() {
            match self.job.complete {
                false => self.at = self.zeros_end()?,
                true if self.job.fills_gaps() => {}
                true => zeros_end = self.zeros_end()?.min(self.at.saturating_add(ZERO_CHUNKS * chunk_size)),
            }
        }
        if self.at >= end {
            return Ok(None);
        }
        let chunk_end = (self.at / chunk_size + 1).saturating_mul(chunk_size).min(end);
        let range = self.at..chunk_end.max(zeros_end);
        let (source, unmapped) = self.source.spans(&range)?;
        let (base, _) = self.base.as_mut().map(|base| base.spans(&range)).transpose()?.unwrap_or_default();
        self.at = range.end;
        self.seq += 1;
        self.data += source.iter().chain(&base).map(data_len).sum::<u64>();
        let (seq, done) = (self.seq - 1, self.amount.done(self.data, range.end));
        Ok(Some(Work { seq, range, done, source, base, unmapped, unreadable: self.take_unreadable() }))
    }

    /// What [`Work::done`] is at the end.
    pub fn total(&self) -> u64 {
        self.amount.total(self.job.spec.virtual_size)
    }

    /// What could not be mapped since the last work range.
    pub fn take_unreadable(&mut self) -> Vec<Damage> {
        std::mem::take(&mut self.source.unreadable)
    }

    /// What is mapped to a host range that has another use.
    pub fn take_doubtful(&mut self) -> DamageList {
        std::mem::take(&mut self.source.doubtful)
    }

    /// The end of the chunks that are zeros in all images by their metadata.
    fn zeros_end(&mut self) -> Result<u64> {
        let (end, chunk_size) = (self.job.spec.virtual_size, self.job.chunk_size());
        let mut upto = self.source.zeros_until(self.at, self.settings)?;
        if let Some(base) = &mut self.base {
            upto = upto.min(base.zeros_until(self.at, self.settings)?);
        }
        Ok(if upto >= end { end } else { (upto / chunk_size * chunk_size).max(self.at) })
    }
}

/// A cursor over the spans of one image, which moves forward only.
struct SpanCursor<'a> {
    spans: Spans<'a>,
    current: Option<Part>,
    /// The byte that replaces what cannot be mapped; `None` to fail.
    salvage: Option<u8>,
    unreadable: Vec<Damage>,
    doubtful: DamageList,
}

/// A span, or a range that cannot be mapped, as a hole.
#[derive(Clone, Copy)]
struct Part {
    span: Span,
    is_mapped: bool,
}

impl<'a> SpanCursor<'a> {
    fn new(spans: Spans<'a>) -> Self {
        SpanCursor { spans, current: None, salvage: None, unreadable: Vec::new(), doubtful: DamageList::default() }
    }

    /// Returns the span that contains `at`, or the first one after it if the zeros at `at` were skipped already; `None` after
    /// the end of the disk.
    fn part_at(&mut self, at: u64) -> Result<Option<Part>> {
        if self.current.is_none_or(|part| part.span.end() <= at) {
            self.spans.skip_to(at);
            self.current = self.next_part()?;
        }
        Ok(self.current)
    }

    fn next_part(&mut self) -> Result<Option<Part>> {
        if self.salvage.is_none() {
            return Ok(self.spans.next().transpose()?.map(|span| Part { span, is_mapped: true }));
        }
        let next = self.spans.next_or_unmapped();
        for (range, error) in self.spans.take_overlaps() {
            self.doubtful.add(Damage::new(range, error));
        }
        Ok(next.map(|next| match next {
            Ok(span) => Part { span, is_mapped: true },
            Err(Unmapped { range, error }) => {
                self.unreadable.push(Damage::new(range.clone(), error));
                Part { span: Span::hole(range), is_mapped: false }
            }
        }))
    }

    /// Whether the part becomes zeros.
    fn is_zero(&self, part: &Part) -> bool {
        part.span.is_zero() && (part.is_mapped || self.salvage.is_none_or(|pattern| pattern == 0))
    }

    /// Returns the spans in `range` that are not zeros, and the ranges that cannot be mapped and do not become zeros, clipped to it.
    fn spans(&mut self, range: &Range<u64>) -> Result<(Vec<Span>, Vec<Range<u64>>)> {
        let (mut spans, mut unmapped) = (Vec::new(), Vec::new());
        let mut at = range.start;
        while at < range.end
            && let Some(part) = self.part_at(at)?
        {
            if !self.is_zero(&part) && part.span.offset < range.end {
                let span = part.span.clip(at, range.end);
                if part.is_mapped { spans.push(span) } else { unmapped.push(span.offset..span.end()) }
            }
            at = part.span.end();
        }
        Ok((spans, unmapped))
    }

    /// Returns the end of the zeros at `at` by the metadata. A large amount of metadata can be read, so that this is cancelled.
    fn zeros_until(&mut self, mut at: u64, settings: &Converter) -> Result<u64> {
        loop {
            if settings.is_cancelled() {
                return Err(Error::Cancelled);
            }
            match self.part_at(at)? {
                None => return Ok(u64::MAX),
                Some(part) if self.is_zero(&part) => at = part.span.end(),
                Some(part) => return Ok(part.span.offset.max(at)),
            }
        }
    }
}

#[cfg(test)]
mod tests;
