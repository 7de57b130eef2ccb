//! Runs: what a block table tells of the sectors of a partition.

use std::ops::Range;

use byteorder::{BigEndian, ByteOrder};

use super::{FORMAT_NAME, SECTOR};
use crate::codec::Codec;
use crate::error::{Error, Problem, Result};
use crate::format::shared::table::Field;

/// Bytes of a block table before the runs, and of a run.
const HEADER: usize = 204;
const ENTRY: usize = 40;
/// Largest length of a compressed run in bytes, a multiple of a sector. It is decoded as a whole.
pub(super) const MAX_COMPRESSED: u64 = 64 << 20;
/// Bytes by which a payload can be longer than its run: more than any codec adds to incompressible data.
const EXPANSION: u64 = 1 << 20;

/// Guest data that is stored in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Guest offset in bytes.
    pub start: u64,
    /// Guest offset of the end.
    pub end: u64,
    /// Host offset; 0 for zeros.
    pub at: u64,
    pub kind: RunKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunKind {
    Zeros,
    Raw,
    /// With the length of the payload in bytes.
    Compressed(Codec, u32),
}

impl Run {
    /// The host range, which is empty for zeros.
    pub fn host(&self) -> Range<u64> {
        let len = match self.kind {
            RunKind::Zeros => 0,
            RunKind::Raw => self.end - self.start,
            RunKind::Compressed(_, len) => len.into(),
        };
        self.at..self.at + len
    }
}

/// What the runs of an image have to fit into.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Size of the disk in bytes; `None` if the trailer does not state it.
    pub disk_size: Option<u64>,
    /// Host offset of the data fork.
    pub data_fork: u64,
    /// Host offset of the end of all data.
    pub data_end: u64,
}

/// A block table.
#[derive(Debug)]
pub(super) struct BlockTable<'a> {
    field: Field,
    bounds: Bounds,
    /// First sector of the partition, and host offset of its data.
    first_sector: u64,
    data: u64,
    entries: &'a [[u8; ENTRY]],
}

impl<'a> BlockTable<'a> {
    /// Parses the header of the table `bytes`.
    pub fn parse(bytes: &'a [u8], field: Field, bounds: Bounds) -> Result<Self> {
        let (Some(header), Some(rest)) = (bytes.first_chunk::<HEADER>(), bytes.get(HEADER..)) else {
            return Err(field.fault(Problem::Truncated));
        };
        if !header.starts_with(b"mish") {
            let (value, rule) = (BigEndian::read_u32(header).into(), "must begin with 'mish'");
            return Err(field.fault(Problem::Rule { value, rule }));
        }
        let version = BigEndian::read_u32(&header[4..]);
        if version != 1 {
            let feature = format!("version {version} of block tables").into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(field.at) });
        }
        let count = BigEndian::read_u32(&header[200..]) as usize;
        let entries = rest.as_chunks().0.get(..count).ok_or_else(|| field.fault(Problem::Truncated))?;
        let (first_sector, offset) = (BigEndian::read_u64(&header[8..]), BigEndian::read_u64(&header[24..]));
        // A sum that is too large is beyond the end of the data.
        let data = bounds.data_fork.saturating_add(offset);
        Ok(BlockTable { field, bounds, first_sector, data, entries })
    }

    /// Number of entries, of which each is a run at most.
    pub fn entry_count(&self) -> usize {
        self.entries.len()
    }

    /// Parses the runs, in the order of the table.
    pub fn runs(&self) -> impl Iterator<Item = Result<Run>> {
        let is_end = |entry: &&[u8; ENTRY]| BigEndian::read_u32(*entry) == 0xffff_ffff;
        let entries = self.entries.iter().take_while(move |entry| !is_end(entry));
        entries.filter_map(|entry| self.run(entry).transpose())
    }

    /// Parses an entry; `None` for one without sectors.
    fn run(&self, entry: &[u8; ENTRY]) -> Result<Option<Run>> {
        let number = |at: usize| BigEndian::read_u64(&entry[at..]);
        let (sector, count, offset, len) = (number(8), number(16), number(24), number(32));
        let kind = BigEndian::read_u32(entry);
        if kind == 0x7fff_fffe || count == 0 {
            return Ok(None);
        }
        let (start, end) = self.guest(sector, count)?;
        let at = self.data.saturating_add(offset);
        let field = |name| Field { name, ..self.field };
        let codec = match kind {
            0 | 2 => return Ok(Some(Run { start, end, at: 0, kind: RunKind::Zeros })),
            1 => {
                // The file must have what is read, and the run must tell so.
                field("raw run").within(at, len.max(end - start), self.bounds.data_end)?;
                if len < end - start {
                    return Err(field("length of a raw run").fault(Problem::Range {
                        value: len,
                        min: end - start,
                        max: u64::MAX,
                    }));
                }
                return Ok(Some(Run { start, end, at, kind: RunKind::Raw }));
            }
            0x8000_0004 => Codec::Adc,
            0x8000_0005 => Codec::Zlib,
            0x8000_0006 => Codec::Bzip2,
            0x8000_0007 => Codec::Lzfse,
            0x8000_0008 => Codec::Xz,
            _ => {
                let feature = format!("runs of type {kind:#010x}").into();
                return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(self.field.at) });
            }
        };
        field("size of a compressed run").at_most(end - start, MAX_COMPRESSED)?;
        field("compressed run").within(at, len, self.bounds.data_end)?;
        let max = end - start + EXPANSION;
        if !(1..=max).contains(&len) {
            return Err(field("length of a compressed run").fault(Problem::Range { value: len, min: 1, max }));
        }
        Ok(Some(Run { start, end, at, kind: RunKind::Compressed(codec, len as u32) }))
    }

    /// The guest range of `count` sectors from `sector` of the partition on, in bytes.
    fn guest(&self, sector: u64, count: u64) -> Result<(u64, u64)> {
        let disk_size = self.bounds.disk_size.unwrap_or(i64::MAX as u64);
        let first = self.first_sector.checked_add(sector);
        let bytes = |sectors: u64| sectors.checked_mul(SECTOR);
        let range = first.and_then(|first| Some((bytes(first)?, bytes(first.checked_add(count)?)?)));
        range.filter(|(_, end)| *end <= disk_size).ok_or_else(|| {
            let (value, finding) = (first.unwrap_or(u64::MAX), "a run of sectors from there on ends after the disk");
            Field { name: "first sector of a run", ..self.field }.fault(Problem::Conflict { value, finding })
        })
    }
}
