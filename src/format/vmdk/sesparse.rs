//! The two headers of a space-efficient sparse extent, and its table entries.
//!
//! VMware has not published this format. What is known comes from people who looked at snapshots that ESXi had made, all of
//! one version and with the same sizes of grains and tables; anything else is refused. Integers have 64 bits; the header's
//! offsets and sizes are in sectors.

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};

use super::header::{MAX_SECTORS, parse_capacity, region, sector, unsupported};
use super::{FIELDS, SECTOR};
use crate::error::{Problem, Result};
use crate::limits::Limits;

pub(crate) const MAGIC: u64 = 0xcafe_babe;
const VOLATILE_MAGIC: u64 = 0xcafe_cafe;
/// 2.1
const VERSION: u64 = 0x2_0000_0001;
/// Bytes in a grain.
pub(crate) const GRAIN: u64 = 8 * SECTOR;
/// Bytes in a grain table.
pub(crate) const TABLE: u64 = 64 * SECTOR;
/// Entries in a grain table, of 8 bytes each.
pub(crate) const TABLE_ENTRIES: u64 = TABLE / 8;
/// Guest bytes that one grain table maps.
pub(crate) const TABLE_COVERAGE: u64 = TABLE_ENTRIES * GRAIN;
/// Bytes of a header that have a meaning.
const HEADER_LEN: usize = 208;

/// A valid constant header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeSparseHeader {
    /// Size of the disk in sectors.
    pub capacity: u64,
    /// Parts of the file, in bytes. Whether they are within it is not known here.
    pub volatile_header: Range<u64>,
    /// Large enough for [`SeSparseHeader::directory_entries`].
    pub grain_directory: Range<u64>,
    pub grain_tables: Range<u64>,
    pub grains: Range<u64>,
}

impl SeSparseHeader {
    /// Bytes of this header, and of the volatile one.
    pub const LEN: u64 = SECTOR;

    /// Parses the constant header that `bytes`, the beginning of the file, begin with.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<SeSparseHeader> {
        let bytes = sector(bytes, 0)?;
        let u64_at = |offset: usize| LittleEndian::read_u64(&bytes[offset..]);
        let part = |at: usize, offset_name, size_name| {
            let (offset_field, size_field) = (FIELDS.at(offset_name, at as u64), FIELDS.at(size_name, at as u64 + 8));
            region(u64_at(at), u64_at(at + 8), offset_field, size_field)
        };

        if u64_at(0) != MAGIC {
            let rule = "a space-efficient sparse extent begins with 0xcafebabe";
            return Err(FIELDS.at("constMagic", 0).fault(Problem::Rule { value: u64_at(0), rule }));
        }
        for (at, name, known) in [(8, "version", VERSION), (24, "grain size", 8), (32, "grain table size", 64)] {
            if u64_at(at) != known {
                return Err(unsupported(
                    format!("{name} {:#x} of a space-efficient sparse extent", u64_at(at)),
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

    /// Checks the volatile header that `bytes`, which stand at `volatile_header`, begin with.
    pub fn check_volatile(&self, bytes: &[u8]) -> Result<()> {
        let at = self.volatile_header.start;
        let bytes = sector(bytes, at)?;
        let magic = LittleEndian::read_u64(bytes);
        if magic != VOLATILE_MAGIC {
            let rule = "a volatile header begins with 0xcafecafe";
            return Err(FIELDS.at("volatileMagic", at).fault(Problem::Rule { value: magic, rule }));
        }
        // Grains and tables are older than what the journal says of them.
        if LittleEndian::read_u64(&bytes[24..]) != 0 {
            return Err(unsupported("a space-efficient sparse extent whose journal is to be replayed".into(), at + 24));
        }
        Ok(())
    }

    /// Size of the disk in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity * SECTOR
    }

    /// Entries of the grain directory that the disk needs, one for each grain table.
    pub fn directory_entries(&self) -> u64 {
        self.capacity_bytes().div_ceil(TABLE_COVERAGE)
    }

    /// Byte offset of grain table number `index`.
    pub fn table(&self, index: u64) -> Result<u64, Problem> {
        if index >= (self.grain_tables.end - self.grain_tables.start) / TABLE {
            return Err(Problem::Rule { value: index, rule: "there are fewer grain tables" });
        }
        Ok(self.grain_tables.start + index * TABLE)
    }
}

/// Entries of the grain directory.
pub(crate) struct DirectoryEntry;

impl DirectoryEntry {
    /// The number of the grain table that the entry names, if it names one.
    pub fn parse(entry: u64) -> Result<Option<u64>, Problem> {
        match (entry >> 32, entry & 0xffff_ffff) {
            (0, 0) => Ok(None),
            (0x1000_0000, index) => Ok(Some(index)),
            _ => Err(Problem::Rule { value: entry, rule: "it must be 0 or 0x10000000 followed by 32 bits" }),
        }
    }
}

/// What an entry of a grain table says of its grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableEntry {
    /// Nothing: the parent's bytes, or zeros.
    Unallocated,
    /// The guest has discarded it: zeros.
    Unmapped,
    Zero,
    /// It is stored as the grain of this number.
    Data(u64),
}

impl TableEntry {
    pub fn parse(entry: u64) -> Result<TableEntry, Problem> {
        match entry >> 60 {
            0 if entry == 0 => Ok(TableEntry::Unallocated),
            0 => Err(Problem::Reserved { value: entry, bits: entry }),
            1 => Ok(TableEntry::Unmapped),
            2 => Ok(TableEntry::Zero),
            // The low 12 bits of the number are above its high 48.
            3 => Ok(TableEntry::Data(entry >> 48 & 0xfff | (entry & 0xffff_ffff_ffff) << 12)),
            _ => Err(Problem::Rule { value: entry, rule: "its highest 4 bits must be 0 to 3" }),
        }
    }
}

/// Refuses an extent that uses what is not known to mean anything.
fn refuse_unknown(bytes: &[u8], fields: Range<usize>) -> Result<()> {
    let start = fields.start;
    match bytes[fields].iter().position(|&byte| byte != 0) {
        Some(at) => Err(unsupported("an unknown field of a space-efficient sparse extent".into(), (start + at) as u64)),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
