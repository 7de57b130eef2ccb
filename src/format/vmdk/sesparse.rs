//! The two headers and the table entries of a space-efficient sparse extent.
//!
//! VMware has not published this format. The layout is known from the analysis of snapshots written by ESXi, all with
//! the same version, grain size and table size; other values are refused. Integers have 64 bits; header offsets and
//! sizes are in sectors.

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};

use super::header::{MAX_SECTORS, parse_capacity, region, sector, unsupported};
use super::{FIELDS, SECTOR};
use crate::error::{Problem, Result};
use crate::limits::Limits;

pub(crate) use crate::format::shared::signature::VMDK_SESPARSE as MAGIC;
const VOLATILE_MAGIC: u64 = 0xcafe_cafe;
/// Version 2.1.
const VERSION: u64 = 0x2_0000_0001;
/// Bytes in a grain.
pub(crate) const GRAIN: u64 = 8 * SECTOR;
/// Bytes in a grain table.
pub(crate) const TABLE: u64 = 64 * SECTOR;
/// Entries in a grain table, of 8 bytes each.
pub(crate) const TABLE_ENTRIES: u64 = TABLE / 8;
/// Guest bytes mapped by one grain table.
pub(crate) const TABLE_COVERAGE: u64 = TABLE_ENTRIES * GRAIN;
/// Bytes of the constant header with a known meaning.
const HEADER_LEN: usize = 208;

/// A valid constant header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeSparseHeader {
    /// Size of the disk in sectors.
    pub capacity: u64,
    /// Byte range in the file; the caller checks it against the file length.
    pub volatile_header: Range<u64>,
    /// Byte range in the file, large enough for [`SeSparseHeader::directory_entries`].
    pub grain_directory: Range<u64>,
    /// Byte range of all grain tables in the file.
    pub grain_tables: Range<u64>,
    /// Byte range of all grains in the file.
    pub grains: Range<u64>,
}

impl SeSparseHeader {
    /// Bytes of this header on disk, and of the volatile header.
    pub const LEN: u64 = SECTOR;

    /// Parses the constant header at the start of `bytes`, the beginning of the file.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<SeSparseHeader> {
        let bytes = sector(bytes, 0)?;
        let u64_at = |offset: usize| LittleEndian::read_u64(&bytes[offset..]);
        let part = |at: usize, offset_name, size_name| {
            let (offset_field, size_field) = (FIELDS.at(offset_name, at as u64), FIELDS.at(size_name, at as u64 + 8));
            region(u64_at(at), u64_at(at + 8), offset_field, size_field)
        };

        if u64_at(0) != MAGIC {
            let rule = "must be 0xcafebabe";
            return Err(FIELDS.at("constMagic", 0).fault(Problem::Rule { value: u64_at(0), rule }));
        }
        for (at, name, known) in [(8, "version", VERSION), (24, "grain size", 8), (32, "grain table size", 64)] {
            if u64_at(at) != known {
                return Err(unsupported(
                    format!("{name} {:#x} in a space-efficient sparse extent", u64_at(at)),
                    at as u64,
                ));
            }
        }
        refuse_unknown(bytes, 40..80)?;
        refuse_unknown(bytes, HEADER_LEN..bytes.len())?;
        let capacity = parse_capacity(u64_at(16), FIELDS.at("capacity", 16), limits)?;
        let volatile_header = part(80, "volatile_header_offset", "volatile_header_size")?;
        part(96, "journal_header_offset", "journal_header_size")?;
        part(112, "journal_offset", "journal_size")?;
        let grain_directory = part(128, "grain_dir_offset", "grain_dir_size")?;
        let grain_tables = part(144, "grain_tables_offset", "grain_tables_size")?;
        part(160, "free_bitmap_offset", "free_bitmap_size")?;
        part(176, "backmap_offset", "backmap_size")?;
        let grains = part(192, "grains_offset", "grains_size")?;

        let header = SeSparseHeader { capacity, volatile_header, grain_directory, grain_tables, grains };
        let directory_size = (header.directory_entries() * 8).div_ceil(SECTOR);
        for (part, name, at, min) in [
            (&header.volatile_header, "volatile_header_size", 88, 1),
            (&header.grain_directory, "grain_dir_size", 136, directory_size),
        ] {
            let value = (part.end - part.start) / SECTOR;
            if value < min {
                return Err(FIELDS.at(name, at).fault(Problem::Range { value, min, max: MAX_SECTORS }));
            }
        }
        Ok(header)
    }

    /// Checks the volatile header at the start of `bytes`, which are from `volatile_header`.
    pub fn check_volatile(&self, bytes: &[u8]) -> Result<()> {
        let at = self.volatile_header.start;
        let bytes = sector(bytes, at)?;
        let magic = LittleEndian::read_u64(bytes);
        if magic != VOLATILE_MAGIC {
            let rule = "must be 0xcafecafe";
            return Err(FIELDS.at("volatileMagic", at).fault(Problem::Rule { value: magic, rule }));
        }
        // Until the journal is replayed, grains and tables may be out of date.
        if LittleEndian::read_u64(&bytes[24..]) != 0 {
            return Err(unsupported("a space-efficient sparse extent with a journal to replay".into(), at + 24));
        }
        Ok(())
    }

    /// Size of the disk in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity * SECTOR
    }

    /// Number of entries in the grain directory, one for each grain table.
    pub fn directory_entries(&self) -> u64 {
        self.capacity_bytes().div_ceil(TABLE_COVERAGE)
    }

    /// Returns the host offset of grain table `index`.
    pub fn table_offset(&self, index: u64) -> Result<u64, Problem> {
        if index >= (self.grain_tables.end - self.grain_tables.start) / TABLE {
            return Err(Problem::Rule { value: index, rule: "must be less than the number of grain tables" });
        }
        Ok(self.grain_tables.start + index * TABLE)
    }
}

/// Parses an entry of the grain directory: the index of a grain table, or `None` if the table is unallocated.
pub(crate) fn parse_directory_entry(entry: u64) -> Result<Option<u64>, Problem> {
    match (entry >> 32, entry & 0xffff_ffff) {
        (0, 0) => Ok(None),
        (0x1000_0000, index) => Ok(Some(index)),
        _ => Err(Problem::Rule { value: entry, rule: "must be 0 or have 0x10000000 in the upper 32 bits" }),
    }
}

/// An entry of a grain table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SeSparseEntry {
    /// Reads from the parent, or as zeros without one.
    Unallocated,
    /// Discarded by the guest: reads as zeros.
    Unmapped,
    Zero,
    /// Stored as the grain with this index in the file.
    Data(u64),
}

impl SeSparseEntry {
    pub fn parse(entry: u64) -> Result<SeSparseEntry, Problem> {
        match entry >> 60 {
            0 if entry == 0 => Ok(SeSparseEntry::Unallocated),
            0 => Err(Problem::Reserved { value: entry, bits: entry }),
            1 => Ok(SeSparseEntry::Unmapped),
            2 => Ok(SeSparseEntry::Zero),
            // The low 12 bits of the index are stored above its high 48 bits.
            3 => Ok(SeSparseEntry::Data(entry >> 48 & 0xfff | (entry & 0xffff_ffff_ffff) << 12)),
            _ => Err(Problem::Rule { value: entry, rule: "must have 0 to 3 in the upper 4 bits" }),
        }
    }
}

/// Refuses an extent with a nonzero field of unknown meaning.
fn refuse_unknown(bytes: &[u8], fields: Range<usize>) -> Result<()> {
    let start = fields.start;
    match bytes[fields].iter().position(|&byte| byte != 0) {
        Some(at) => Err(unsupported("an unknown field of a space-efficient sparse extent".into(), (start + at) as u64)),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
