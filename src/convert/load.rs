//! Loading: reads and decodes a work range, detects zeros, and encodes blocks.

use std::ops::Range;

use super::Job;
use super::digest;
use super::plan::Work;
use super::reflink::{Part, SystemFile};
use super::report::Damage;
use super::salvage::Salvage;
use crate::codec::Encoder;
use crate::driver::ExtentKind;
use crate::driver::Frame;
use crate::error::{Error, Result};
use crate::image::{Scratch, Span};
use crate::zero;

/// The buffers of one thread for one work range.
pub(super) struct Loader<'a> {
    job: &'a Job<'a>,
    /// Data of the source; index 0 is the start of the work range.
    data: Vec<u8>,
    /// Whether `data` is known to be zeros.
    is_zeroed: bool,
    /// Data of the backing image.
    base: Vec<u8>,
    /// Encoded blocks with their frames, contiguous.
    encoded: Vec<u8>,
    items: Vec<Item>,
    scratch: Scratch,
    encoder: Option<Encoder>,
    salvage: Option<Salvage<'a>>,
}

/// What is known of a loaded work range, besides its items.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// The digest of its items, if the job has one.
    pub digest: u128,
    /// The digest of its contents, if the new image is going to be verified.
    pub content: u128,
    /// What could not be read, in ascending order.
    pub unreadable: Vec<Damage>,
}

/// A guest range to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub guest: Range<u64>,
    pub kind: ItemKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ItemKind {
    /// Uncompressed, from the data buffer.
    Data,
    /// A compressed block.
    Encoded {
        /// Its bytes in the buffer of encoded blocks.
        bytes: Range<usize>,
        /// Whether the payload is a passthrough of the source's.
        passthrough: bool,
    },
    /// Not loaded: the new image shares its blocks with this file of the source, from a byte on.
    Cloned(SystemFile, u64),
    /// Zeros that hide what the backing image has.
    Zero,
}

impl<'a> Loader<'a> {
    pub fn new(job: &'a Job<'a>) -> Result<Self> {
        Ok(Loader {
            job,
            data: Vec::new(),
            is_zeroed: false,
            base: Vec::new(),
            encoded: Vec::new(),
            items: Vec::new(),
            scratch: Scratch::default(),
            encoder: job.spec.encoding.as_ref().map(Encoder::new).transpose().map_err(Error::missing_codec)?,
            salvage: job.salvage.map(Salvage::new),
        })
    }

    /// The items of the last [`load`](Self::load), in guest order.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The data of the guest range `guest` in the work range that begins at `start`.
    pub fn data(&self, start: u64, guest: &Range<u64>) -> &[u8] {
        &self.data[(guest.start - start) as usize..(guest.end - start) as usize]
    }

    /// The digest of the items, in the work range that begins at `start`.
    fn digest(&self, start: u64) -> u128 {
        self.items.iter().fold(0, |sum, Item { guest, kind }| {
            sum.wrapping_add(match kind {
                ItemKind::Zero => digest::of_zeros(guest),
                // Of the decoded bytes, also for a passthrough.
                // Nothing is cloned where there is a digest.
                ItemKind::Cloned(..) => 0,
                ItemKind::Data | ItemKind::Encoded { .. } => digest::of_data(self.data(start, guest), guest.start),
            })
        })
    }

    /// Encoded blocks.
    pub fn encoded(&self, bytes: &Range<usize>) -> &[u8] {
        &self.encoded[bytes.clone()]
    }

    /// Loads a work range, and determines its items.
    pub fn load(&mut self, work: &Work) -> Result<Loaded> {
        self.load_segments(work)?;
        let digest = if self.job.digests { self.digest(work.range.start) } else { 0 };
        let content = if self.job.verifies { digest::of_data(self.contents(work), work.range.start) } else { 0 };
        let mut unreadable = work.unreadable.clone();
        if let Some(salvage) = &mut self.salvage {
            unreadable.append(&mut salvage.unreadable);
            unreadable.sort_by_key(|lost| lost.range.start);
        }
        Ok(Loaded { digest, content, unreadable })
    }

    fn load_segments(&mut self, work: &Work) -> Result<()> {
        self.items.clear();
        self.encoded.clear();
        let chunk_size = self.job.chunk_size() as usize;
        allocate(&mut self.data, chunk_size);
        self.decode_last_unit(work);
        let segments = self.segments(work);
        if self.job.fills_gaps() {
            self.fill_gaps(work, &segments);
        }
        for segment in segments {
            match (self.job.base, self.encoder.is_some()) {
                (None, false) => self.load_or_clone(work, segment)?,
                (None, true) => self.encode_segment(work, segment)?,
                (Some(base), encode) => {
                    allocate(&mut self.base, chunk_size);
                    self.read_source(work, &segment)?;
                    let (start, scratch) = (work.range.start, &mut self.scratch);
                    read(&mut self.base, start, &work.base, &segment, |span, buf| base.load(&span, buf, scratch))?;
                    let first = self.items.len();
                    self.find_changes(work, segment);
                    if encode {
                        self.encode_items(work, first);
                    }
                }
            }
        }
        if self.job.complete {
            self.add_zeros(&work.range);
        }
        Ok(())
    }

    /// Adds the zeros between the items.
    fn add_zeros(&mut self, range: &Range<u64>) {
        let mut at = range.start;
        for item in std::mem::take(&mut self.items) {
            self.add_zero(at..item.guest.start);
            at = item.guest.end;
            self.items.push(item);
        }
        self.add_zero(at..range.end);
    }

    fn add_zero(&mut self, guest: Range<u64>) {
        if !guest.is_empty() {
            self.items.push(Item { guest, kind: ItemKind::Zero });
        }
    }

    /// Loads what is not cloned of a segment.
    fn load_or_clone(&mut self, work: &Work, segment: Range<u64>) -> Result<()> {
        let parts = match &self.job.reflinks {
            Some(reflinks) => reflinks.split(&work.source, &segment),
            None => vec![Part::Copy(segment)],
        };
        for part in parts {
            match part {
                Part::Copy(segment) => {
                    self.read_source(work, &segment)?;
                    self.find_data(work, segment);
                }
                Part::Clone(guest, file, offset) => {
                    self.items.push(Item { guest, kind: ItemKind::Cloned(file, offset) });
                }
            }
        }
        Ok(())
    }

    /// The data of a range that was to be cloned, in the work range.
    pub fn load_instead(&mut self, work: &Work, guest: &Range<u64>) -> Result<&[u8]> {
        self.read_source(work, guest)?;
        Ok(self.data(work.range.start, guest))
    }

    /// Zeroes what is between the segments, so that the buffer has all of the work range.
    fn fill_gaps(&mut self, work: &Work, segments: &[Range<u64>]) {
        if segments.is_empty() && self.is_zeroed {
            return;
        }
        self.is_zeroed = segments.is_empty();
        if segments.is_empty() {
            return self.data.fill(0);
        }
        let mut at = work.range.start;
        for segment in segments {
            self.data[index(work, &(at..segment.start))].fill(0);
            at = segment.end;
        }
        self.data[index(work, &(at..work.range.end))].fill(0);
    }

    /// The bytes of the source in a loaded work range, if the job fills gaps. Those by which formats pad a disk are left out.
    pub fn contents(&self, work: &Work) -> &[u8] {
        let end = work.range.end.min(self.job.source.virtual_size());
        &self.data[..end.saturating_sub(work.range.start) as usize]
    }

    /// Decodes the unit that the next work range has a part of, before anything else: the thread that loads the next one needs this unit
    /// first, and would wait for it, or decode it again. A failure is met again when the unit is read.
    fn decode_last_unit(&mut self, work: &Work) {
        if let Some(span) = work.source.last()
            && let ExtentKind::Compressed(unit) = span.kind
            && unit.unit + u64::from(unit.unit_len) > work.range.end
            && work.range.end < self.job.source.virtual_size()
        {
            let _ = self.job.source.decode_shared(span, &mut self.scratch);
        }
    }

    /// Reads a segment of the source, or what can be read of it.
    fn read_source(&mut self, work: &Work, segment: &Range<u64>) -> Result<()> {
        let Loader { job, data, scratch, salvage, .. } = self;
        read(data, work.range.start, &work.source, segment, |span, buf| match salvage {
            Some(salvage) => salvage.load(job.source, span, buf, scratch),
            None => job.source.load(&span, buf, scratch),
        })?;
        let pattern = salvage.as_ref().map_or(0, Salvage::pattern);
        for range in &work.unmapped {
            let part = range.start.max(segment.start)..range.end.min(segment.end);
            if !part.is_empty() {
                data[index(work, &part)].fill(pattern);
            }
        }
        Ok(())
    }

    /// The parts of a work range that may hold data, extended to whole units.
    fn segments(&self, work: &Work) -> Vec<Range<u64>> {
        if self.job.dense() {
            return vec![work.range.clone()];
        }
        let unit = self.job.unit();
        let spans = work.source.iter().chain(&work.base).map(|span| span.offset..span.end());
        let mut parts: Vec<_> = spans.chain(work.unmapped.iter().cloned()).collect();
        parts.sort_by_key(|part| part.start);
        let mut segments: Vec<Range<u64>> = Vec::new();
        for part in parts {
            let start = (part.start / unit * unit).max(work.range.start);
            let end = part.end.next_multiple_of(unit).min(work.range.end);
            match segments.last_mut() {
                Some(last) if start <= last.end => last.end = last.end.max(end),
                _ => segments.push(start..end),
            }
        }
        segments
    }

    /// Adds the units that are not zero.
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

    /// Adds the units that differ from the backing image.
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

    /// Encodes the data items from index `first` on, block by block.
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

    /// Loads a segment block by block. Blocks are encoded, unless the payload of the source can be copied.
    fn encode_segment(&mut self, work: &Work, segment: Range<u64>) -> Result<()> {
        for block in blocks(&segment, self.job.spec.block_size) {
            if let Some(span) = self.copyable(work, &block) {
                match self.copy_block(work, block.clone(), span) {
                    // What can be read of it is read below.
                    Err(_) if self.salvage.is_some() => {}
                    copied => {
                        copied?;
                        continue;
                    }
                }
            }
            self.read_source(work, &block)?;
            if self.job.dense() || !zero::is_zero(&self.data[index(work, &block)]) {
                self.encode_block(work, block);
            }
        }
        Ok(())
    }

    /// Returns the span of a block that the source stores as one compressed unit of the same size.
    fn copyable(&self, work: &Work, block: &Range<u64>) -> Option<Span> {
        self.job.spec.encoding.as_ref().filter(|encoding| encoding.is_default())?;
        let index = work.source.partition_point(|span| span.end() <= block.start);
        let span = work.source.get(index)?;
        let ExtentKind::Compressed(unit) = span.kind else { return None };
        let whole = span.offset == block.start && span.end() >= block.end.min(self.job.source.virtual_size());
        let alike = unit.unit == block.start && u64::from(unit.unit_len) == self.job.spec.block_size;
        (whole && alike).then_some(*span)
    }

    /// Copies a payload after decoding it as a test. Bytes after the payload in its sectors are not copied.
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
        let from = open_frame(&mut self.encoded, self.job.spec.frame);
        let payload = self.encoded.len();
        let copied = is_whole
            && self.scratch.decoder.rewrap(&self.scratch.stored, encoding.codec, decoded, &mut self.encoded)
            && self.encoded.len() - payload < self.job.encoded_limit();
        if copied {
            self.push_encoded(from, block, true);
        } else {
            self.encoded.truncate(from);
            self.encode_block(work, block);
        }
        Ok(())
    }

    fn encode_block(&mut self, work: &Work, block: Range<u64>) {
        let start = (block.start - work.range.start) as usize;
        let mut end = start + (block.end - block.start) as usize;
        if !self.job.spec.unpadded_end {
            // The last block of the disk is padded with zeros.
            let padded = start + self.job.spec.block_size as usize;
            self.data[end..padded].fill(0);
            end = padded;
        }
        let limit = self.job.encoded_limit();
        match self.encoder.as_mut().and_then(|encoder| encoder.encode(&self.data[start..end], limit)) {
            Some(payload) => {
                let from = open_frame(&mut self.encoded, self.job.spec.frame);
                self.encoded.extend_from_slice(payload);
                self.push_encoded(from, block, false);
            }
            None => self.items.push(Item { guest: block, kind: ItemKind::Data }),
        }
    }

    /// Adds the payload at the end of the buffer, whose frame begins at `from`.
    fn push_encoded(&mut self, from: usize, guest: Range<u64>, passthrough: bool) {
        if let Some(frame) = self.job.spec.frame {
            let (header, payload) = self.encoded[from..].split_at_mut(frame.header_len);
            (frame.header)(header, guest.start, payload.len() as u32);
            let framed = (self.encoded.len() - from).next_multiple_of(frame.alignment);
            self.encoded.resize(from + framed, 0);
        }
        let bytes = from..self.encoded.len();
        self.items.push(Item { guest, kind: ItemKind::Encoded { bytes, passthrough } });
    }
}

/// Allocates a buffer before its first use. The system has zeroed its memory already, so that it is not written twice.
fn allocate(buf: &mut Vec<u8>, len: usize) {
    if buf.is_empty() {
        *buf = vec![0; len];
    }
}

/// Reserves space for the header of a frame, and returns the index of the frame.
fn open_frame(encoded: &mut Vec<u8>, frame: Option<Frame>) -> usize {
    let from = encoded.len();
    encoded.resize(from + frame.map_or(0, |frame| frame.header_len), 0);
    from
}

/// Reads `segment` with `load` into a buffer whose index 0 is guest offset `start`. Ranges without a span are zeros.
fn read(
    buf: &mut [u8],
    start: u64,
    spans: &[Span],
    segment: &Range<u64>,
    mut load: impl FnMut(Span, &mut [u8]) -> Result<()>,
) -> Result<()> {
    let mut at = segment.start;
    let first = spans.partition_point(|span| span.end() <= segment.start);
    for span in spans[first..].iter().take_while(|span| span.offset < segment.end) {
        let span = span.clip(segment.start, segment.end);
        buf[(at - start) as usize..(span.offset - start) as usize].fill(0);
        load(span, &mut buf[(span.offset - start) as usize..(span.end() - start) as usize])?;
        at = span.end();
    }
    buf[(at - start) as usize..(segment.end - start) as usize].fill(0);
    Ok(())
}

/// The range of a guest range in the buffers of a work range.
fn index(work: &Work, guest: &Range<u64>) -> Range<usize> {
    (guest.start - work.range.start) as usize..(guest.end - work.range.start) as usize
}

/// Splits a range that begins on a block into blocks.
fn blocks(range: &Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = range.end;
    (range.start..end).step_by(size as usize).map(move |start| start..(start + size).min(end))
}

#[cfg(test)]
mod tests;
