//! The header of a hosted sparse extent and the footer of a stream, which has the same layout (Virtual Disk Format 5.0,
//! "Hosted Sparse Extents" and "Stream-Optimized Compressed").
//!
//! [`Header::parse`] returns only valid headers; [`Header::encode`] is its inverse. Offsets and sizes are in sectors,
//! as on disk, and their conversion to bytes does not overflow.

use std::ops::Range;

use bitflags::bitflags;
use byteorder::{ByteOrder, LittleEndian};

use super::{FIELDS, FORMAT_NAME, SECTOR};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table::Field;
use crate::limits::{LimitName, Limits};

pub(crate) use crate::format::shared::signature::VMDK_HOSTED as MAGIC;
/// Largest sector number and largest number of sectors whose byte offset is a valid file offset.
pub(crate) const MAX_SECTORS: u64 = i64::MAX as u64 / SECTOR;
/// Byte offset of `capacity` in the header.
pub(crate) const CAPACITY_AT: u64 = 12;
/// Value of `gdOffset` and `rgdOffset` if the footer holds the actual sector.
const AT_END: u64 = !0;
/// `singleEndLineChar` to `doubleEndLineChar2`: they detect a transfer in text mode, which changes line ends.
const NEWLINES: &[u8; 4] = b"\n \r\n";
/// Flags that a reader must know: VMware's `SPARSEFLAG_INCOMPAT_FLAGS`.
const INCOMPATIBLE: u32 = 0xffff_0000;
/// Largest uncompressed grain in sectors: 1 GiB, qemu's limit.
const MAX_GRAIN_SIZE: u64 = 1 << 21;
/// Largest compressed grain in sectors: 2 MiB, since grains are decoded in memory. Known writers use 64 KiB.
const MAX_COMPRESSED_GRAIN_SIZE: u64 = 1 << 12;
/// Largest number of entries in a grain table: 4 MiB. The document says 512.
const MAX_TABLE_ENTRIES: u32 = 1 << 20;
/// Value of `compressAlgorithm` for deflated grains; 0 is uncompressed.
const DEFLATE: u16 = 1;

bitflags! {
    /// `flags` of the header.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Flags: u32 {
        const NEWLINE_TEST = 1 << 0;
        const REDUNDANT = 1 << 1;
        const ZEROED_GRAIN = 1 << 2;
        const COMPRESSED = 1 << 16;
        const MARKERS = 1 << 17;
        const _ = !0;
    }
}

/// Location of a grain directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Directory {
    /// At this sector.
    At(u64),
    /// At the sector in the footer.
    AtEnd,
}

/// A valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// 1 to 3.
    pub version: u32,
    /// `MARKERS` is set only together with `COMPRESSED`.
    pub flags: Flags,
    /// Size of the disk in sectors, possibly 0, not necessarily a multiple of the grain size.
    pub capacity: u64,
    /// Sectors in a grain, a power of two.
    pub grain_size: u64,
    /// Byte range of the embedded descriptor in the file, not empty.
    pub descriptor: Option<Range<u64>>,
    /// `numGTEsPerGT`, at least 1.
    pub entries_per_table: u32,
    /// `rgdOffset`, if the flag `REDUNDANT` is set.
    pub redundant_directory: Option<Directory>,
    /// `gdOffset`.
    pub directory: Directory,
    /// Sectors of metadata at the beginning of the file. A hint, not validated: some writers store wrong values.
    pub overhead: u64,
    pub unclean: bool,
}

impl Header {
    /// Bytes on disk.
    pub const LEN: u64 = SECTOR;

    /// Parses the header at the start of `bytes`, which are from file offset `at`.
    pub fn parse(bytes: &[u8], at: u64, limits: &Limits) -> Result<Header> {
        let bytes = sector(bytes, at)?;
        let field = |name, offset: u64| FIELDS.at(name, at + offset);
        let u32_at = |offset: usize| LittleEndian::read_u32(&bytes[offset..]);
        let u64_at = |offset: usize| LittleEndian::read_u64(&bytes[offset..]);

        if !bytes.starts_with(MAGIC) {
            let rule = "must be 0x564d444b (\"KDMV\")";
            return Err(field("magicNumber", 0).fault(Problem::Rule { value: u32_at(0).into(), rule }));
        }
        let version = u32_at(4);
        if !(1..=3).contains(&version) {
            return Err(unsupported(format!("version {version} of a sparse extent"), at + 4));
        }
        let flags = parse_flags(bytes, at)?;
        let compressed = flags.contains(Flags::COMPRESSED);
        let capacity = parse_capacity(u64_at(CAPACITY_AT as usize), field("capacity", CAPACITY_AT), limits)?;
        let grain_size = parse_grain_size(u64_at(20), compressed, field("grainSize", 20))?;
        let descriptor = parse_descriptor(u64_at(28), u64_at(36), at)?;
        let entries_per_table = u32_at(44);
        if !(1..=MAX_TABLE_ENTRIES).contains(&entries_per_table) {
            let (value, max) = (entries_per_table.into(), MAX_TABLE_ENTRIES.into());
            return Err(field("numGTEsPerGT", 44).fault(Problem::Range { value, min: 1, max }));
        }
        // In streams, VirtualBox sets rgdOffset to all ones as well.
        let redundant_directory = match u64_at(48) {
            0 => None,
            _ if !flags.contains(Flags::REDUNDANT) => None,
            offset => Some(Directory::parse(offset, field("rgdOffset", 48))?),
        };
        let directory = Directory::parse(u64_at(56), field("gdOffset", 56))?;
        Ok(Header {
            version,
            flags,
            capacity,
            grain_size,
            descriptor,
            entries_per_table,
            redundant_directory,
            directory,
            overhead: u64_at(64),
            unclean: bytes[72] != 0,
        })
    }

    /// Returns the header as stored on disk.
    pub fn encode(&self) -> [u8; Header::LEN as usize] {
        let mut bytes = [0; Header::LEN as usize];
        let descriptor = self.descriptor.clone().unwrap_or_default();
        bytes[..4].copy_from_slice(MAGIC);
        LittleEndian::write_u32(&mut bytes[4..], self.version);
        LittleEndian::write_u32(&mut bytes[8..], self.flags.bits());
        LittleEndian::write_u64(&mut bytes[12..], self.capacity);
        LittleEndian::write_u64(&mut bytes[20..], self.grain_size);
        LittleEndian::write_u64(&mut bytes[28..], descriptor.start / SECTOR);
        LittleEndian::write_u64(&mut bytes[36..], (descriptor.end - descriptor.start) / SECTOR);
        LittleEndian::write_u32(&mut bytes[44..], self.entries_per_table);
        LittleEndian::write_u64(&mut bytes[48..], self.redundant_directory.map_or(0, Directory::encode));
        LittleEndian::write_u64(&mut bytes[56..], self.directory.encode());
        LittleEndian::write_u64(&mut bytes[64..], self.overhead);
        bytes[72] = self.unclean.into();
        bytes[73..77].copy_from_slice(NEWLINES);
        LittleEndian::write_u16(&mut bytes[77..], if self.is_compressed() { DEFLATE } else { 0 });
        bytes
    }

    /// Whether grains are compressed.
    pub fn is_compressed(&self) -> bool {
        self.flags.contains(Flags::COMPRESSED)
    }

    /// Size of the disk in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity * SECTOR
    }

    /// Bytes in a grain.
    pub fn grain_bytes(&self) -> u64 {
        self.grain_size * SECTOR
    }

    /// Guest bytes mapped by one grain table, at most 1 PiB.
    pub fn table_coverage(&self) -> u64 {
        self.grain_bytes() * u64::from(self.entries_per_table)
    }

    /// Bytes of grain table `index` in use: the last table may end after the last grain of the disk.
    pub fn table_bytes(&self, index: u64) -> u64 {
        let entries = u64::from(self.entries_per_table);
        let grains = self.capacity.div_ceil(self.grain_size);
        grains.saturating_sub(index.saturating_mul(entries)).min(entries) * 4
    }

    /// Number of entries in the grain directory, one for each grain table.
    pub fn directory_entries(&self) -> u64 {
        self.capacity_bytes().div_ceil(self.table_coverage())
    }

    /// Sector of the redundant grain directory, if the header has one.
    pub fn redundant_directory_sector(&self) -> Option<u64> {
        match self.redundant_directory {
            Some(Directory::At(sector)) => Some(sector),
            Some(Directory::AtEnd) | None => None,
        }
    }
}

impl Directory {
    fn parse(offset: u64, field: Field) -> Result<Directory> {
        match offset {
            AT_END => Ok(Directory::AtEnd),
            0..=MAX_SECTORS => Ok(Directory::At(offset)),
            _ => Err(out_of_range(offset, MAX_SECTORS, field)),
        }
    }

    fn encode(self) -> u64 {
        match self {
            Directory::At(sector) => sector,
            Directory::AtEnd => AT_END,
        }
    }
}

/// Parses the flags and checks the fields that depend on them. The newline test comes first: a transfer in text mode
/// explains every other error.
fn parse_flags(bytes: &[u8; Header::LEN as usize], at: u64) -> Result<Flags> {
    let flags = Flags::from_bits_retain(LittleEndian::read_u32(&bytes[8..]));
    let newlines = &bytes[73..77];
    if flags.contains(Flags::NEWLINE_TEST) && newlines != NEWLINES {
        let rule = "must be 0x0a200d0a: the file was damaged by a transfer in text mode";
        let value = LittleEndian::read_u32(newlines).swap_bytes().into();
        return Err(FIELDS.at("singleEndLineChar", at + 73).fault(Problem::Rule { value, rule }));
    }
    let unknown = flags.bits() & INCOMPATIBLE & !(Flags::COMPRESSED | Flags::MARKERS).bits();
    if unknown != 0 {
        return Err(unsupported(format!("flags {unknown:#x} of a sparse extent"), at + 8));
    }
    // VMware's open-vmdk refuses this as well; no known program writes it.
    let compressed = flags.contains(Flags::COMPRESSED);
    if flags.contains(Flags::MARKERS) && !compressed {
        return Err(unsupported("markers without compressed grains".into(), at + 8));
    }
    // VMware evaluates the flag, qemu the algorithm: they must agree.
    match LittleEndian::read_u16(&bytes[77..]) {
        algorithm @ (0 | DEFLATE) if (algorithm == DEFLATE) == compressed => Ok(flags),
        algorithm @ (0 | DEFLATE) => {
            let rule = "must be 1 if and only if flag bit 16 is set";
            Err(FIELDS.at("compressAlgorithm", at + 77).fault(Problem::Rule { value: algorithm.into(), rule }))
        }
        other => Err(unsupported(format!("compression algorithm {other}"), at + 77)),
    }
}

/// Parses the grain size in sectors. The document requires more than 8, possibly meaning "at least 8", and VMware's own
/// COWD extents use 1. Smaller powers of two are unambiguous, so they are accepted.
fn parse_grain_size(sectors: u64, compressed: bool, field: Field) -> Result<u64> {
    let max = if compressed { MAX_COMPRESSED_GRAIN_SIZE } else { MAX_GRAIN_SIZE };
    if sectors == 0 {
        return Err(field.fault(Problem::Range { value: sectors, min: 1, max }));
    }
    if !sectors.is_power_of_two() {
        return Err(field.fault(Problem::Rule { value: sectors, rule: "must be a power of two" }));
    }
    field.at_most(sectors, max)?;
    Ok(sectors)
}

/// Parses the byte range of the embedded descriptor, if there is one. The caller checks it against the file length.
fn parse_descriptor(offset: u64, size: u64, at: u64) -> Result<Option<Range<u64>>> {
    if offset == 0 || size == 0 {
        return Ok(None);
    }
    region(offset, size, FIELDS.at("descriptorOffset", at + 28), FIELDS.at("descriptorSize", at + 36)).map(Some)
}

/// Returns the first sector of `bytes`, which are from file offset `at`.
pub(super) fn sector(bytes: &[u8], at: u64) -> Result<&[u8; SECTOR as usize]> {
    let problem = Problem::OutOfBounds { offset: at, len: SECTOR, file_len: at.saturating_add(bytes.len() as u64) };
    bytes.first_chunk().ok_or_else(|| FIELDS.at("header", at).fault(problem))
}

/// Parses the size of a disk in sectors.
pub(super) fn parse_capacity(sectors: u64, field: Field, limits: &Limits) -> Result<u64> {
    if sectors > MAX_SECTORS {
        return Err(out_of_range(sectors, MAX_SECTORS, field));
    }
    field.within_limit(LimitName::VirtualSize, sectors, limits.virtual_size / SECTOR)?;
    Ok(sectors)
}

/// Returns the byte range of `size` sectors from sector `offset`.
pub(super) fn region(offset: u64, size: u64, offset_field: Field, size_field: Field) -> Result<Range<u64>> {
    let Some(max_size) = MAX_SECTORS.checked_sub(offset) else {
        return Err(out_of_range(offset, MAX_SECTORS, offset_field));
    };
    if size > max_size {
        return Err(out_of_range(size, max_size, size_field));
    }
    Ok(offset * SECTOR..(offset + size) * SECTOR)
}

/// The error for an unsupported feature, requested by the field at file offset `at`.
pub(super) fn unsupported(feature: String, at: u64) -> Error {
    Error::Unsupported { format: FORMAT_NAME, feature: feature.into(), at: Some(at) }
}

/// The error for a number of sectors above `max`.
fn out_of_range(value: u64, max: u64, field: Field) -> Error {
    field.fault(Problem::Range { value, min: 0, max })
}

#[cfg(test)]
mod tests;
