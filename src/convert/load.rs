//! From a work range to what is to be stored: reading, decoding, finding zeros, encoding.

use std::ops::Range;

use super::Job;
use super::plan::Work;
use crate::codec::Encoder;
use crate::driver::ExtentKind;
use crate::driver::Frame;
use crate::error::{Error, Result};
use crate::image::{Image, Scratch, Span};
use crate::zero;

/// A thread's buffers, which hold one work range at a time.
pub(super) struct Loader<'a> {
    job: &'a Job<'a>,
    /// The source's bytes; index 0 is the beginning of the work range.
    data: Vec<u8>,
    /// The bytes of the image that the new one lies over.
    base: Vec<u8>,
    /// Encoded blocks, one after the other.
    packed: Vec<u8>,
    items: Vec<Item>,
    scratch: Scratch,
    /// Each image has its own: what was decoded is known by its place in the image.
    base_scratch: Scratch,
    encoder: Option<Encoder>,
}

/// Something to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub guest: Range<u64>,
    pub kind: ItemKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ItemKind {
    /// Bytes as they are, from the data buffer.
    Data,
    /// A compressed block, at this place in the packed buffer.
    Packed {
        place: Range<usize>,
        /// Taken from the source as it was.
        copied: bool,
    },
    /// Zeros over a base that has others.
    Zero,
}

impl<'a> Loader<'a> {
    pub fn new(job: &'a Job<'a>) -> Result<Self> {
        Ok(Loader {
            job,
            data: Vec::new(),
            base: Vec::new(),
            packed: Vec::new(),
            items: Vec::new(),
            scratch: Scratch::default(),
            base_scratch: Scratch::default(),
            encoder: job.spec.encoding.as_ref().map(Encoder::new).transpose().map_err(Error::missing_codec)?,
        })
    }

    /// What the last [`load`](Self::load) found to store, in guest order.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The bytes of `guest`, which lies in the work range that begins at `start`.
    pub fn data(&self, start: u64, guest: &Range<u64>) -> &[u8] {
        &self.data[(guest.start - start) as usize..(guest.end - start) as usize]
    }

    /// Encoded bytes.
    pub fn packed(&self, place: &Range<usize>) -> &[u8] {
        &self.packed[place.clone()]
    }

    /// Finds out what there is to store of a work range.
    pub fn load(&mut self, work: &Work) -> Result<()> {
        self.items.clear();
        self.packed.clear();
        let chunk_size = self.job.chunk_size() as usize;
        self.data.resize(chunk_size, 0);
        for segment in self.segments(work) {
            match (self.job.base, self.encoder.is_some()) {
                (None, false) => {
                    read(self.job.source, &mut self.data, work.range.start, &work.source, &segment, &mut self.scratch)?;
                    self.find_data(work, segment);
                }
                (None, true) => self.encode_segment(work, segment)?,
                (Some(base), encode) => {
                    self.base.resize(chunk_size, 0);
                    read(self.job.source, &mut self.data, work.range.start, &work.source, &segment, &mut self.scratch)?;
                    read(base, &mut self.base, work.range.start, &work.base, &segment, &mut self.base_scratch)?;
                    let first = self.items.len();
                    self.find_changes(work, segment);
                    if encode {
                        self.encode_items(work, first);
                    }
                }
            }
        }
        Ok(())
    }

    /// The parts of a work range that may hold something else than zeros, extended to whole units.
    fn segments(&self, work: &Work) -> Vec<Range<u64>> {
        if self.job.dense() {
            return vec![work.range.clone()];
        }
        let unit = self.job.unit();
        let mut parts: Vec<_> = work.source.iter().chain(&work.base).collect();
        parts.sort_by_key(|span| span.offset);
        let mut segments: Vec<Range<u64>> = Vec::new();
        for span in parts {
            let start = (span.offset / unit * unit).max(work.range.start);
            let end = span.end().next_multiple_of(unit).min(work.range.end);
            match segments.last_mut() {
                Some(last) if start <= last.end => last.end = last.end.max(end),
                _ => segments.push(start..end),
            }
        }
        segments
    }

    /// Stores what is not zero.
    fn find_data(&mut self, work: &Work, segment: Range<u64>) {
        if self.job.dense() {
            self.items.push(Item { guest: segment, kind: ItemKind::Data });
            return;
        }
        let bytes = &self.data[index(work, &segment)];
        for run in zero::data_runs(bytes, self.job.unit() as usize) {
            let guest = segment.start + run.start as u64..segment.start + run.end as u64;
            self.items.push(Item { guest, kind: ItemKind::Data });
        }
    }

    /// Stores what is not as it is in the base.
    fn find_changes(&mut self, work: &Work, segment: Range<u64>) {
        let unit = self.job.unit();
        let mut at = segment.start;
        while at < segment.end {
            let guest = at..(at / unit + 1).saturating_mul(unit).min(segment.end);
            at = guest.end;
            let (ours, theirs) = (&self.data[index(work, &guest)], &self.base[index(work, &guest)]);
            let kind = match (self.job.dense(), ours == theirs, zero::is_zero(ours)) {
                (false, true, _) => continue,
                (false, false, true) => ItemKind::Zero,
                _ => ItemKind::Data,
            };
            match self.items.last_mut() {
                Some(last) if last.guest.end == guest.start && last.kind == kind => last.guest.end = guest.end,
                _ => self.items.push(Item { guest, kind }),
            }
        }
    }

    /// Encodes the data items from number `first` on, block by block.
    fn encode_items(&mut self, work: &Work, first: usize) {
        for item in self.items.split_off(first) {
            if item.kind != ItemKind::Data {
                self.items.push(item);
                continue;
            }
            for block in blocks(&item.guest, self.job.spec.block_size) {
                self.encode_block(work, block);
            }
        }
    }

    /// Loads a segment block by block, and encodes what the source does not have encoded in the same way.
    fn encode_segment(&mut self, work: &Work, segment: Range<u64>) -> Result<()> {
        for block in blocks(&segment, self.job.spec.block_size) {
            match self.copyable(work, &block) {
                Some(span) => self.copy_block(work, block, span)?,
                None => {
                    read(self.job.source, &mut self.data, work.range.start, &work.source, &block, &mut self.scratch)?;
                    if self.job.dense() || !zero::is_zero(&self.data[index(work, &block)]) {
                        self.encode_block(work, block);
                    }
                }
            }
        }
        Ok(())
    }

    /// The span of a block that the source holds as one payload, which may be of the kind that is wanted.
    fn copyable(&self, work: &Work, block: &Range<u64>) -> Option<Span> {
        self.job.spec.encoding.as_ref().filter(|encoding| encoding.is_default())?;
        let index = work.source.partition_point(|span| span.end() <= block.start);
        let span = work.source.get(index)?;
        let ExtentKind::Compressed(unit) = span.kind else { return None };
        let whole = span.offset == block.start && span.end() >= block.end.min(self.job.source.virtual_size());
        let alike = unit.unit == block.start && u64::from(unit.unit_len) == self.job.spec.block_size;
        (whole && alike).then_some(*span)
    }

    /// Copies a payload, once it is known to decode. What follows it in its sectors is left behind.
    fn copy_block(&mut self, work: &Work, block: Range<u64>, span: Span) -> Result<()> {
        let (ExtentKind::Compressed(unit), Some(encoding)) = (span.kind, &self.job.spec.encoding) else {
            return Ok(());
        };
        let start = (block.start - work.range.start) as usize;
        let decoded = &mut self.data[start..start + self.job.spec.block_size as usize];
        let is_whole = self.job.source.decode(&span, &unit, decoded, &mut self.scratch)?;
        if !self.job.dense() && zero::is_zero(decoded) {
            return Ok(());
        }
        let from = open_frame(&mut self.packed, self.job.spec.frame);
        let payload = self.packed.len();
        let copied = is_whole
            && self.scratch.decoder.rewrap(&self.scratch.stored, encoding.codec, decoded, &mut self.packed)
            && self.packed.len() - payload < self.job.encoded_limit();
        if copied {
            self.push_packed(from, block, true);
        } else {
            self.packed.truncate(from);
            self.encode_block(work, block);
        }
        Ok(())
    }

    fn encode_block(&mut self, work: &Work, block: Range<u64>) {
        let start = (block.start - work.range.start) as usize;
        let end = start + self.job.spec.block_size as usize;
        // The last block of the disk is encoded as a whole one.
        self.data[start + (block.end - block.start) as usize..end].fill(0);
        let limit = self.job.encoded_limit();
        match self.encoder.as_mut().and_then(|encoder| encoder.encode(&self.data[start..end], limit)) {
            Some(payload) => {
                let from = open_frame(&mut self.packed, self.job.spec.frame);
                self.packed.extend_from_slice(payload);
                self.push_packed(from, block, false);
            }
            None => self.items.push(Item { guest: block, kind: ItemKind::Data }),
        }
    }

    /// Stores the payload that the packed buffer ends with, whose frame begins at `from`.
    fn push_packed(&mut self, from: usize, guest: Range<u64>, copied: bool) {
        if let Some(frame) = self.job.spec.frame {
            let (header, payload) = self.packed[from..].split_at_mut(frame.header_len);
            (frame.header)(header, guest.start, payload.len() as u32);
            let framed = (self.packed.len() - from).next_multiple_of(frame.alignment);
            self.packed.resize(from + framed, 0);
        }
        let place = from..self.packed.len();
        self.items.push(Item { guest, kind: ItemKind::Packed { place, copied } });
    }
}

/// Leaves room for what stands before a payload, and returns where that begins.
fn open_frame(packed: &mut Vec<u8>, frame: Option<Frame>) -> usize {
    let from = packed.len();
    packed.resize(from + frame.map_or(0, |frame| frame.header_len), 0);
    from
}

/// Fills the part `segment` of a buffer whose first byte is guest byte `start`: with zeros where there is no span.
fn read(
    image: &Image,
    buf: &mut [u8],
    start: u64,
    spans: &[Span],
    segment: &Range<u64>,
    scratch: &mut Scratch,
) -> Result<()> {
    let mut at = segment.start;
    let first = spans.partition_point(|span| span.end() <= segment.start);
    for span in spans[first..].iter().take_while(|span| span.offset < segment.end) {
        let span = span.clip(segment.start, segment.end);
        buf[(at - start) as usize..(span.offset - start) as usize].fill(0);
        image.load(&span, &mut buf[(span.offset - start) as usize..(span.end() - start) as usize], scratch)?;
        at = span.end();
    }
    buf[(at - start) as usize..(segment.end - start) as usize].fill(0);
    Ok(())
}

/// Where a guest range lies in the buffers of a work range.
fn index(work: &Work, guest: &Range<u64>) -> Range<usize> {
    (guest.start - work.range.start) as usize..(guest.end - work.range.start) as usize
}

/// The blocks of a range that begins on a block.
fn blocks(range: &Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = range.end;
    (range.start..end).step_by(size as usize).map(move |start| start..(start + size).min(end))
}

#[cfg(test)]
mod tests;
