//! Reads a `streamOptimized` image from a pipe, by its markers, from the beginning to the end.
//!
//! The grain tables are not needed, because each marker holds the guest sector of its grain. Grains may be somewhat out
//! of order, as from a writer with several threads. A grain before the guest range that was already returned is an
//! error; such a stream can be read from a file.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::descriptor::Descriptor;
use super::grains::{check_payload_len, payload_codec};
use super::header::{Directory, Flags, Header};
use super::hosted::has_text;
use super::marker::Marker;
use super::reader::describe_hosted;
use super::{FIELDS, FORMAT_NAME, SECTOR, SparseKind};
use crate::driver::SparseRead;
use crate::driver::{Compressed, Extent, ExtentKind, FileId, Location};
use crate::driver::{OpenContext, Probe};
use crate::error::{Error, Problem, Result};
use crate::info::ImageInfo;
use crate::io::ReadAt;
use crate::limits::LimitName;

/// Bytes of the stream that are read ahead to sort grains.
const READ_AHEAD: u64 = 8 << 20;
/// Bytes of the stream that are cached after the first read, because two threads may each need a part of a grain.
const CACHE_LEN: u64 = 8 << 20;
/// Smallest number of cached grains. Other threads read on while a slow one has yet to read the rest of a large grain.
const CACHE_GRAINS: u64 = 32;

/// Whether a stream with this start is an image whose compressed grains follow markers.
pub(super) fn is_stream(probe: &Probe<'_>) -> bool {
    let magic = probe.head.first_chunk::<8>().and_then(|magic| SparseKind::from_magic(magic));
    let flags = probe.head.get(8..).and_then(|rest| rest.first_chunk()).map(|flags| u32::from_le_bytes(*flags));
    let flags = Flags::from_bits_retain(flags.unwrap_or_default());
    magic == Some(SparseKind::Hosted) && flags.contains(Flags::COMPRESSED | Flags::MARKERS)
}

/// Opens the image at the current position of `stream`.
pub(super) fn open(
    stream: Box<dyn Read + Send>,
    cx: &OpenContext<'_>,
) -> Result<(Box<dyn SparseRead>, Arc<dyn ReadAt>)> {
    let mut input = StreamInput { stream, at: 0 };
    let mut bytes = [0; Header::LEN as usize];
    let (start, rest) = bytes.split_at_mut(8);
    input.read(start)?;
    if SparseKind::from_magic(start) != Some(SparseKind::Hosted) {
        return Err(needs_seek(0));
    }
    input.read(rest)?;
    let header = Header::parse(&bytes, 0, cx.limits)?;
    if !header.flags.contains(Flags::COMPRESSED | Flags::MARKERS) {
        return Err(needs_seek(8));
    }
    if let Some(range) = &header.descriptor {
        FIELDS.at("descriptorSize", 36).within_limit(
            LimitName::TextLength,
            range.end - range.start,
            cx.limits.text_length,
        )?;
    }
    let metadata = read_metadata(&mut input, &header, cx)?;
    let metadata_range = |range: Range<u64>| {
        let from = range.start.checked_sub(Header::LEN)?;
        metadata.get(usize::try_from(from).ok()?..usize::try_from(range.end - Header::LEN).ok()?)
    };
    let text = header.descriptor.clone().and_then(metadata_range).filter(|text| has_text(text));
    let at = header.descriptor.as_ref().map_or(0, |range| range.start);
    let descriptor = text.map(|text| Descriptor::parse(text, at, cx.limits)).transpose()?;
    let info = describe_hosted(&header, descriptor.as_ref(), cx)?;
    let payloads = Arc::new(Payloads::with_limit(CACHE_LEN.max(CACHE_GRAINS * header.grain_bytes())));
    let walk = StreamWalk {
        grains_in_tables: match header.directory {
            Directory::At(sector) => count_grains(&header, sector, metadata_range),
            Directory::AtEnd => None,
        },
        has_footer: header.directory == Directory::AtEnd,
        grain_bytes: header.grain_bytes(),
        virtual_size: info.virtual_size,
        capacity: header.capacity_bytes(),
        payloads: payloads.clone(),
        input,
        pending: BTreeMap::new(),
        pending_len: 0,
        returned_end: 0,
        discarded_end: 0,
        grain_count: 0,
        footer_seen: false,
        ended: false,
    };
    Ok((Box::new(StreamReader { info, walk: Mutex::new(walk) }), payloads))
}

/// The error for an image that cannot be read from a pipe, by the field at file offset `at`.
fn needs_seek(at: u64) -> Error {
    let feature = "reading from a pipe, except streamOptimized".into();
    Error::Unsupported { format: FORMAT_NAME, feature, at: Some(at) }
}

/// Reads the metadata between the header and the first marker.
fn read_metadata(input: &mut StreamInput, header: &Header, cx: &OpenContext<'_>) -> Result<Vec<u8>> {
    let len = header.overhead.saturating_mul(SECTOR).saturating_sub(Header::LEN);
    cx.budget.take(len, FORMAT_NAME, "overHead", 64)?;
    // The buffer grows with the data: the length comes from the image.
    let mut metadata = Vec::new();
    let got = (&mut input.stream).take(len).read_to_end(&mut metadata).map_err(Error::io("reading", input.at))?;
    input.at += got as u64;
    FIELDS.at("overHead", 64).within(Header::LEN, len, Header::LEN + got as u64)?;
    Ok(metadata)
}

/// Counts the allocated grains by the tables before the grains; `None` if not all tables are there.
fn count_grains<'a>(
    header: &Header,
    sector: u64,
    metadata_range: impl Fn(Range<u64>) -> Option<&'a [u8]>,
) -> Option<u64> {
    let byte_range =
        |sector: u64, len: u64| Some(sector.checked_mul(SECTOR)?..sector.checked_mul(SECTOR)?.checked_add(len)?);
    let directory = metadata_range(byte_range(sector, header.directory_entries().checked_mul(4)?)?)?;
    let mut grains = 0;
    for (index, entry) in directory.as_chunks().0.iter().enumerate() {
        let sector = u32::from_le_bytes(*entry);
        if sector != 0 {
            let table = metadata_range(byte_range(sector.into(), header.table_bytes(index as u64))?)?;
            grains += table.as_chunks::<4>().0.iter().filter(|entry| u32::from_le_bytes(**entry) > 1).count() as u64;
        }
    }
    Some(grains)
}

/// An image that can be read once, in order.
struct StreamReader {
    info: ImageInfo,
    walk: Mutex<StreamWalk>,
}

/// The state of reading a stream.
struct StreamWalk {
    input: StreamInput,
    payloads: Arc<Payloads>,
    /// Bytes in a grain.
    grain_bytes: u64,
    /// Size of the disk in bytes.
    virtual_size: u64,
    /// Capacity in the header in bytes.
    capacity: u64,
    /// Whether the header requires a footer.
    has_footer: bool,
    /// Number of allocated grains, by tables before the grains.
    grains_in_tables: Option<u64>,
    /// Grains that were read from the stream but not returned yet, by guest offset.
    pending: BTreeMap<u64, Compressed>,
    /// Length of the pending grains in the stream in bytes.
    pending_len: u64,
    /// End of the guest range that was returned.
    returned_end: u64,
    /// End of the guest range whose pending grains were discarded.
    discarded_end: u64,
    /// Number of grains read from the stream.
    grain_count: u64,
    footer_seen: bool,
    ended: bool,
}

impl SparseRead for StreamReader {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        lock(&self.walk).extent_at(range.start)
    }

    fn host_alignment(&self) -> Option<u64> {
        Some(SECTOR)
    }
}

impl StreamWalk {
    fn extent_at(&mut self, offset: u64) -> Result<Extent> {
        let grain_start = offset / self.grain_bytes * self.grain_bytes;
        self.discard_before(grain_start);
        // Grains of the read-ahead window may be out of order.
        while !self.ended && self.pending_len < READ_AHEAD {
            self.next_marker()?;
        }
        let next = self.pending.range(grain_start..).next().map(|(start, payload)| (*start, *payload));
        let (kind, end) = match next {
            Some((start, payload)) if start <= offset => (ExtentKind::Compressed(payload), start + self.grain_bytes),
            Some((start, _)) => (ExtentKind::Hole, start),
            None => (ExtentKind::Hole, self.virtual_size),
        };
        let end = end.min(self.virtual_size);
        if offset < self.returned_end && self.returned_end != end {
            return Err(Error::Usage("an image from a pipe can be read only once and in order".into()));
        }
        self.returned_end = end;
        Ok(Extent { offset, len: end - offset, kind })
    }

    /// Discards the pending grains before guest offset `offset`.
    fn discard_before(&mut self, offset: u64) {
        self.discarded_end = self.discarded_end.max(offset);
        while let Some(first) = self.pending.first_entry().filter(|first| *first.key() < self.discarded_end) {
            self.pending_len -= framed_len(first.remove().stored_len);
        }
    }

    /// Reads the next marker and its structure.
    fn next_marker(&mut self) -> Result<()> {
        let at = self.input.at;
        let mut sector = [0; SECTOR as usize];
        let marker = match self.read_marker(&mut sector) {
            Ok(Some(marker)) => marker,
            Ok(None) => return self.end_without_marker(at),
            // Anything may follow a stream. Without an end-of-stream marker, its tables show that it is complete.
            Err(Error::Corrupt(_)) if self.has_all_grains() => return self.end(at),
            Err(error) => return Err(error),
        };
        match marker {
            Marker::Grain { lba, size } => return self.read_grain(lba, size, at, &sector),
            // A gap: qemu aligns the first grain that it appends to an existing image.
            Marker::EndOfStream if self.grains_in_tables.is_some() && !self.has_all_grains() => {}
            Marker::EndOfStream => return self.end(at),
            Marker::Footer { .. } => self.footer_seen = true,
            Marker::GrainTable { .. } | Marker::GrainDirectory { .. } | Marker::Other { .. } => {}
        }
        self.input.skip(marker.total_len() - SECTOR)
    }

    /// Reads a sector with a marker, or returns `None` at the end of the stream.
    fn read_marker(&mut self, sector: &mut [u8; SECTOR as usize]) -> Result<Option<Marker>> {
        let at = self.input.at;
        if !self.input.read_or_end(sector)? {
            return Ok(None);
        }
        let marker = Marker::parse(sector, at)?;
        if let Marker::Grain { lba, size } = marker {
            let unit = lba.saturating_mul(SECTOR);
            if unit >= self.capacity || !unit.is_multiple_of(self.grain_bytes) {
                let rule = "must be the first sector of a grain of the disk";
                return Err(FIELDS.at("lba", at).fault(Problem::Rule { value: lba, rule }));
            }
            check_payload_len(size, self.grain_bytes, at)?;
        }
        Ok(Some(marker))
    }

    /// Whether the stream had all grains of the tables before them.
    fn has_all_grains(&self) -> bool {
        self.grains_in_tables.is_some_and(|count| self.grain_count >= count)
    }

    /// Reads the grain whose marker is at stream offset `at`, in `sector` with the first bytes of the payload.
    fn read_grain(&mut self, lba: u64, size: u32, at: u64, sector: &[u8; SECTOR as usize]) -> Result<()> {
        let unit = lba.saturating_mul(SECTOR);
        if unit < self.returned_end {
            let feature = "grains far out of order in a stream from a pipe; read it from a file instead".into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(at) });
        }
        let len = size as usize;
        let mut payload = vec![0; len];
        let first = len.min(sector.len() - Marker::GRAIN_HEADER);
        let in_sector = sector.get(Marker::GRAIN_HEADER..Marker::GRAIN_HEADER + first).unwrap_or_default();
        let (start, rest) = payload.split_at_mut(first);
        start.copy_from_slice(in_sector);
        self.input.read(rest)?;
        self.input.skip(
            (Marker::GRAIN_HEADER + len).next_multiple_of(SECTOR as usize) as u64
                - (Marker::GRAIN_HEADER + len).max(SECTOR as usize) as u64,
        )?;
        let offset = at + Marker::GRAIN_HEADER as u64;
        let grain = Compressed {
            at: Location { file: FileId::default(), offset },
            stored_len: size,
            codec: payload_codec(&payload),
            unit,
            unit_len: self.grain_bytes as u32,
            min_len: self.grain_bytes.min(self.virtual_size.saturating_sub(unit)) as u32,
        };
        self.grain_count += 1;
        if unit >= self.virtual_size || unit < self.discarded_end {
            // A capacity rounded up to a grain allows a grain beyond the end of the disk; other grains were skipped.
            return Ok(());
        }
        self.payloads.insert(offset, payload);
        self.pending_len += framed_len(size);
        match self.pending.insert(unit, grain) {
            None => Ok(()),
            Some(other) => {
                let problem = Problem::Overlap { offset: other.at.offset, with: "the same grain" };
                Err(FIELDS.at("lba", at).fault(problem))
            }
        }
    }

    /// Handles the end-of-stream marker at stream offset `at`; what follows is ignored.
    fn end(&mut self, at: u64) -> Result<()> {
        if self.has_footer && !self.footer_seen {
            let finding = "the stream ends without a footer";
            return Err(FIELDS.at("marker", at).fault(Problem::Conflict { value: 0, finding }));
        }
        // Unread data would make the writing process fail.
        self.input.skip_all()?;
        self.check_count()
    }

    /// Handles the end of the input at stream offset `at` without an end-of-stream marker, as qemu writes it. Only
    /// tables before the grains can show that the stream is complete.
    fn end_without_marker(&mut self, at: u64) -> Result<()> {
        if self.grains_in_tables.is_none() {
            return Err(truncated(at, SECTOR, 0));
        }
        self.check_count()
    }

    /// Checks that the stream contains the grains of its tables.
    fn check_count(&mut self) -> Result<()> {
        match self.grains_in_tables {
            Some(count) if self.grain_count < count => {
                let finding = "the stream contains fewer grains; it may be truncated";
                Err(FIELDS.at("number of allocated grains", 56).fault(Problem::Conflict { value: count, finding }))
            }
            _ => {
                self.ended = true;
                Ok(())
            }
        }
    }
}

/// Returns the length in the stream of a grain with a payload of `size` bytes. Limits count this length, which is
/// closer to the memory needed for a short payload.
fn framed_len(size: u32) -> u64 {
    Marker::Grain { lba: 0, size }.total_len()
}

/// A stream with its position in bytes.
struct StreamInput {
    stream: Box<dyn Read + Send>,
    at: u64,
}

impl StreamInput {
    /// Fills `buf`.
    fn read(&mut self, buf: &mut [u8]) -> Result<()> {
        let at = self.at;
        if buf.is_empty() || self.read_or_end(buf)? { Ok(()) } else { Err(truncated(at, buf.len() as u64, 0)) }
    }

    /// Fills `buf`, or returns false at the end of the stream.
    fn read_or_end(&mut self, buf: &mut [u8]) -> Result<bool> {
        let mut got = 0;
        while let Some(rest) = buf.get_mut(got..).filter(|rest| !rest.is_empty()) {
            match self.stream.read(rest) {
                Ok(0) if got == 0 => return Ok(false),
                Ok(0) => return Err(truncated(self.at, buf.len() as u64, got as u64)),
                Ok(n) => got += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("reading", self.at + got as u64)(e)),
            }
        }
        self.at += got as u64;
        Ok(true)
    }

    fn skip(&mut self, len: u64) -> Result<()> {
        let skipped =
            io::copy(&mut (&mut self.stream).take(len), &mut io::sink()).map_err(Error::io("reading", self.at))?;
        if skipped < len {
            return Err(truncated(self.at, len, skipped));
        }
        self.at += len;
        Ok(())
    }

    fn skip_all(&mut self) -> Result<()> {
        io::copy(&mut self.stream, &mut io::sink()).map(drop).map_err(Error::io("reading", self.at))
    }
}

/// The error for a stream that ends after `got` of `len` bytes at `offset`.
fn truncated(offset: u64, len: u64, got: u64) -> Error {
    FIELDS.at("stream", offset).fault(Problem::OutOfBounds { offset, len, file_len: offset + got })
}

/// The payloads of the stream, from their arrival until they are evicted after the first read.
struct Payloads(Mutex<PayloadCache>);

#[derive(Default)]
struct PayloadCache {
    /// By stream offset.
    payloads: BTreeMap<u64, CachedPayload>,
    /// Offsets of the payloads that were read, in the order of their first read.
    read: VecDeque<u64>,
    /// Length in the stream of the payloads that were read.
    read_len: u64,
    /// Largest `read_len`.
    limit: u64,
}

struct CachedPayload {
    bytes: Vec<u8>,
    read: bool,
}

impl CachedPayload {
    /// Length in the stream in bytes.
    fn framed_len(&self) -> u64 {
        framed_len(self.bytes.len() as u32)
    }
}

impl Payloads {
    /// Keeps at most `limit` bytes of payloads that were read, counted as in the stream.
    fn with_limit(limit: u64) -> Payloads {
        Payloads(Mutex::new(PayloadCache { limit, ..PayloadCache::default() }))
    }

    fn insert(&self, offset: u64, bytes: Vec<u8>) {
        lock(&self.0).payloads.insert(offset, CachedPayload { bytes, read: false });
    }
}

impl ReadAt for Payloads {
    fn size(&self) -> io::Result<u64> {
        // Unknown; the largest offset never limits a read.
        Ok(i64::MAX as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut cache = lock(&self.0);
        let PayloadCache { payloads, read, read_len, limit } = &mut *cache;
        let Some(payload) = payloads.get_mut(&offset).filter(|payload| payload.bytes.len() >= buf.len()) else {
            return Err(io::Error::new(io::ErrorKind::NotSeekable, "the stream is past this offset"));
        };
        for (to, from) in buf.iter_mut().zip(&payload.bytes) {
            *to = *from;
        }
        if !payload.read {
            payload.read = true;
            read.push_back(offset);
            *read_len += payload.framed_len();
        }
        while *read_len > *limit
            && let Some(oldest) = read.pop_front()
        {
            *read_len -= payloads.remove(&oldest).map_or(0, |payload| payload.framed_len());
        }
        Ok(buf.len())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
