//! A `streamOptimized` image that comes through a pipe: read by its markers alone, from the beginning to the end.
//!
//! The tables are not needed: each grain has its place on the disk in its marker. Grains may come somewhat out of order, as
//! from a writer with several threads; a grain that comes after what follows it on the disk has been handed out is an error,
//! and such a stream can be read from a file.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::descriptor::Descriptor;
use super::grains::{checked_grain_len, payload_codec};
use super::header::{Directory, Flags, Header};
use super::hosted::is_there;
use super::marker::Marker;
use super::reader::{MAX_DESCRIPTOR, describe_hosted};
use super::{FIELDS, FORMAT_NAME, Kind, SECTOR};
use crate::driver::OpenContext;
use crate::driver::SparseRead;
use crate::driver::{Compressed, Extent, ExtentKind, FileId, Location};
use crate::error::{Error, Problem, Result};
use crate::info::ImageInfo;
use crate::io::ReadAt;

/// Bytes of the stream that are read ahead, to put grains in order.
const READ_AHEAD: u64 = 8 << 20;
/// Bytes of the stream that are kept after they have been read: two threads may each need a part of a grain.
const KEPT: u64 = 8 << 20;
/// And so many grains at least: other threads read on while one that is slow has yet to read the rest of a large grain.
const KEPT_GRAINS: u64 = 32;

/// Opens the image that begins with the next byte of `stream`.
pub(super) fn open(
    stream: Box<dyn Read + Send>,
    cx: &OpenContext<'_>,
) -> Result<(Box<dyn SparseRead>, Arc<dyn ReadAt>)> {
    let mut input = Input { stream, at: 0 };
    let mut bytes = [0; Header::LEN as usize];
    let (start, rest) = bytes.split_at_mut(8);
    input.read(start)?;
    if Kind::of(start) != Some(Kind::Hosted) {
        return Err(other_kind(0));
    }
    input.read(rest)?;
    let header = Header::parse(&bytes, 0, cx.limits)?;
    if !header.flags.contains(Flags::COMPRESSED | Flags::MARKERS) {
        return Err(other_kind(8));
    }
    if let Some(place) = &header.descriptor {
        FIELDS.at("descriptorSize", 36).at_most(place.end - place.start, MAX_DESCRIPTOR)?;
    }
    let front = read_front(&mut input, &header, cx)?;
    let in_front = |range: std::ops::Range<u64>| {
        let from = range.start.checked_sub(Header::LEN)?;
        front.get(usize::try_from(from).ok()?..usize::try_from(range.end - Header::LEN).ok()?)
    };
    let text = header.descriptor.clone().and_then(in_front).filter(|text| is_there(text));
    let at = header.descriptor.as_ref().map_or(0, |range| range.start);
    let descriptor = text.map(|text| Descriptor::parse(text, at, cx.limits)).transpose()?;
    let info = describe_hosted(&header, descriptor.as_ref())?;
    let payloads = Arc::new(Payloads::keeping(KEPT.max(KEPT_GRAINS * header.grain_bytes())));
    let walk = Walk {
        grains_in_tables: match header.directory {
            Directory::At(sector) => count_grains(&header, sector, in_front),
            Directory::AtEnd => None,
        },
        has_footer: header.directory == Directory::AtEnd,
        grain: header.grain_bytes(),
        size: info.virtual_size,
        capacity: header.capacity_bytes(),
        payloads: payloads.clone(),
        input,
        ahead: BTreeMap::new(),
        ahead_len: 0,
        answered: 0,
        wanted: 0,
        grains: 0,
        footer_seen: false,
        ended: false,
    };
    Ok((Box::new(StreamReader { info, walk: Mutex::new(walk) }), payloads))
}

fn other_kind(at: u64) -> Error {
    let feature = "reading anything but streamOptimized from a pipe".into();
    Error::Unsupported { format: FORMAT_NAME, feature, at: Some(at) }
}

/// What is between the header and the first marker.
fn read_front(input: &mut Input, header: &Header, cx: &OpenContext<'_>) -> Result<Vec<u8>> {
    let len = header.overhead.saturating_mul(SECTOR).saturating_sub(Header::LEN);
    cx.budget.take(len, FORMAT_NAME, "overHead", 64)?;
    // Nothing is believed about a length before the bytes have come.
    let mut front = Vec::new();
    let got = (&mut input.stream).take(len).read_to_end(&mut front).map_err(Error::io("reading", input.at))?;
    input.at += got as u64;
    FIELDS.at("overHead", 64).within(Header::LEN, len, Header::LEN + got as u64)?;
    Ok(front)
}

/// How many grains the tables know that stand before the grains, if they are all there.
fn count_grains<'a>(
    header: &Header,
    sector: u64,
    in_front: impl Fn(std::ops::Range<u64>) -> Option<&'a [u8]>,
) -> Option<u64> {
    let place =
        |sector: u64, len: u64| Some(sector.checked_mul(SECTOR)?..sector.checked_mul(SECTOR)?.checked_add(len)?);
    let directory = in_front(place(sector, header.directory_entries().checked_mul(4)?)?)?;
    let mut grains = 0;
    for (index, entry) in directory.as_chunks().0.iter().enumerate() {
        let sector = u32::from_le_bytes(*entry);
        if sector != 0 {
            let table = in_front(place(sector.into(), header.table_bytes(index as u64))?)?;
            grains += table.as_chunks::<4>().0.iter().filter(|entry| u32::from_le_bytes(**entry) > 1).count() as u64;
        }
    }
    Some(grains)
}

/// An image that is read once and in order.
struct StreamReader {
    info: ImageInfo,
    walk: Mutex<Walk>,
}

/// How far the stream has been read.
struct Walk {
    input: Input,
    payloads: Arc<Payloads>,
    /// Bytes in a grain.
    grain: u64,
    /// Size of the disk in bytes, and as the header has it.
    size: u64,
    capacity: u64,
    has_footer: bool,
    /// How many grains there are, by tables that stood before them.
    grains_in_tables: Option<u64>,
    /// Grains that have been read and not handed out, by guest offset.
    ahead: BTreeMap<u64, Compressed>,
    /// Bytes of the stream that they take.
    ahead_len: u64,
    /// Guest bytes below it have been handed out, and are not asked for.
    answered: u64,
    wanted: u64,
    grains: u64,
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

impl Walk {
    fn extent_at(&mut self, offset: u64) -> Result<Extent> {
        let grain_start = offset / self.grain * self.grain;
        self.want(grain_start);
        // Until there is enough to be sure of the order, or the stream ends.
        while !self.ended && self.ahead_len < READ_AHEAD {
            self.next_marker()?;
        }
        let next = self.ahead.range(grain_start..).next().map(|(start, payload)| (*start, *payload));
        let (kind, end) = match next {
            Some((start, payload)) if start <= offset => (ExtentKind::Compressed(payload), start + self.grain),
            Some((start, _)) => (ExtentKind::Hole, start),
            None => (ExtentKind::Hole, self.size),
        };
        let end = end.min(self.size);
        if offset < self.answered && self.answered != end {
            return Err(Error::Usage("an image that comes through a pipe can be read only once, in order".into()));
        }
        self.answered = end;
        Ok(Extent { offset, len: end - offset, kind })
    }

    /// Forgets the grains before `offset`.
    fn want(&mut self, offset: u64) {
        self.wanted = self.wanted.max(offset);
        while let Some(first) = self.ahead.first_entry().filter(|first| *first.key() < self.wanted) {
            self.ahead_len -= grain_sectors(first.remove().stored_len);
        }
    }

    fn next_marker(&mut self) -> Result<()> {
        let at = self.input.at;
        let mut sector = [0; SECTOR as usize];
        if !self.input.read_or_end(&mut sector)? {
            return self.end_without_marker(at);
        }
        let marker = Marker::parse(&sector, at)?;
        match marker {
            Marker::Grain { lba, size } => return self.take_grain(lba, size, at, &sector),
            Marker::EndOfStream => return self.end(at),
            Marker::Footer { .. } => self.footer_seen = true,
            Marker::GrainTable { .. } | Marker::GrainDirectory { .. } | Marker::Other { .. } => {}
        }
        self.input.skip(marker.stored_len() - SECTOR)
    }

    /// Takes the grain whose marker is at `at`, and whose first bytes are in the same sector.
    fn take_grain(&mut self, lba: u64, size: u32, at: u64, sector: &[u8; SECTOR as usize]) -> Result<()> {
        let unit = lba.saturating_mul(SECTOR);
        if unit >= self.capacity || !unit.is_multiple_of(self.grain) {
            let rule = "it is not the first sector of a grain of the disk";
            return Err(FIELDS.at("lba", at).fault(Problem::Rule { value: lba, rule }));
        }
        if unit < self.answered {
            let feature = "a stream from a pipe with grains far out of order; it can be read from a file".into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(at) });
        }
        let len = checked_grain_len(size, self.grain, at)? as usize;
        let mut payload = vec![0; len];
        let first = len.min(sector.len() - Marker::GRAIN_HEADER);
        let here = sector.get(Marker::GRAIN_HEADER..Marker::GRAIN_HEADER + first).unwrap_or_default();
        let (start, rest) = payload.split_at_mut(first);
        start.copy_from_slice(here);
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
            unit_len: self.grain as u32,
            min_len: self.grain.min(self.size.saturating_sub(unit)) as u32,
        };
        self.grains += 1;
        if unit >= self.size || unit < self.wanted {
            // A header whose capacity is rounded up has grains that no guest sees; others were skipped.
            return Ok(());
        }
        self.payloads.insert(offset, payload);
        self.ahead_len += grain_sectors(size);
        match self.ahead.insert(unit, grain) {
            None => Ok(()),
            Some(other) => {
                let problem = Problem::Overlap { offset: other.at.offset, with: "the same grain" };
                Err(FIELDS.at("lba", at).fault(problem))
            }
        }
    }

    /// The marker of the end is at `at`; what follows it is padding.
    fn end(&mut self, at: u64) -> Result<()> {
        if self.has_footer && !self.footer_seen {
            let rule = "the stream ends without a footer";
            return Err(FIELDS.at("marker", at).fault(Problem::Rule { value: 0, rule }));
        }
        // Whoever writes to the pipe is not to fail.
        self.input.skip_all()?;
        self.check_count()
    }

    /// The stream ends at `at`, as one of qemu does. Only tables that stood before the grains tell whether it is all there.
    fn end_without_marker(&mut self, at: u64) -> Result<()> {
        if self.grains_in_tables.is_none() {
            return Err(cut_off(at, SECTOR, 0));
        }
        self.check_count()
    }

    fn check_count(&mut self) -> Result<()> {
        match self.grains_in_tables {
            Some(count) if self.grains < count => {
                let rule = "the stream ends after fewer grains than its tables have";
                Err(FIELDS.at("grain tables", 56).fault(Problem::Rule { value: count, rule }))
            }
            _ => {
                self.ended = true;
                Ok(())
            }
        }
    }
}

/// Bytes of the stream that a grain takes whose payload has so many. Payloads may be much shorter than what it takes to keep
/// them.
fn grain_sectors(size: u32) -> u64 {
    Marker::Grain { lba: 0, size }.stored_len()
}

/// The stream, and how much of it has been read.
struct Input {
    stream: Box<dyn Read + Send>,
    at: u64,
}

impl Input {
    fn read(&mut self, buf: &mut [u8]) -> Result<()> {
        let at = self.at;
        if buf.is_empty() || self.read_or_end(buf)? { Ok(()) } else { Err(cut_off(at, buf.len() as u64, 0)) }
    }

    /// Fills `buf`, or returns false when there is nothing left at all.
    fn read_or_end(&mut self, buf: &mut [u8]) -> Result<bool> {
        let mut got = 0;
        while let Some(rest) = buf.get_mut(got..).filter(|rest| !rest.is_empty()) {
            match self.stream.read(rest) {
                Ok(0) if got == 0 => return Ok(false),
                Ok(0) => return Err(cut_off(self.at, buf.len() as u64, got as u64)),
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
            return Err(cut_off(self.at, len, skipped));
        }
        self.at += len;
        Ok(())
    }

    fn skip_all(&mut self) -> Result<()> {
        io::copy(&mut self.stream, &mut io::sink()).map(drop).map_err(Error::io("reading", self.at))
    }
}

/// The stream ends after `got` of the `len` bytes at `offset`.
fn cut_off(offset: u64, len: u64, got: u64) -> Error {
    FIELDS.at("stream", offset).fault(Problem::OutOfBounds { offset, len, file_len: offset + got })
}

/// Payloads that have come, until they have been read.
struct Payloads(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// By their offset in the stream.
    payloads: BTreeMap<u64, Payload>,
    /// Those that have been read, the latest last, and what they take of the stream.
    read: VecDeque<u64>,
    read_len: u64,
    /// The largest size of those.
    most: u64,
}

struct Payload {
    bytes: Vec<u8>,
    read: bool,
}

impl Payload {
    fn sectors(&self) -> u64 {
        grain_sectors(self.bytes.len() as u32)
    }
}

impl Payloads {
    fn keeping(most: u64) -> Payloads {
        Payloads(Mutex::new(Kept { most, ..Kept::default() }))
    }

    fn insert(&self, offset: u64, bytes: Vec<u8>) {
        lock(&self.0).payloads.insert(offset, Payload { bytes, read: false });
    }
}

impl ReadAt for Payloads {
    fn size(&self) -> io::Result<u64> {
        // Nobody knows; and it is never too little.
        Ok(i64::MAX as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut kept = lock(&self.0);
        let Kept { payloads, read, read_len, most } = &mut *kept;
        let Some(payload) = payloads.get_mut(&offset).filter(|payload| payload.bytes.len() >= buf.len()) else {
            return Err(io::Error::new(io::ErrorKind::NotSeekable, "the stream has been read past this"));
        };
        for (to, from) in buf.iter_mut().zip(&payload.bytes) {
            *to = *from;
        }
        if !payload.read {
            payload.read = true;
            read.push_back(offset);
            *read_len += payload.sectors();
        }
        while *read_len > *most
            && let Some(oldest) = read.pop_front()
        {
            *read_len -= payloads.remove(&oldest).map_or(0, |payload| payload.sectors());
        }
        Ok(buf.len())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
