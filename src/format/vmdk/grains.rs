//! The map from guest offsets to grains: the grain directory and the grain tables of a sparse extent.
//!
//! The three types of sparse extents share these two levels and differ in the format of table entries.

use std::ops::Range;
use std::sync::Arc;

use super::marker::Marker;
use super::sesparse::SeSparseEntry;
use super::{FIELDS, FORMAT_NAME, SECTOR};
use crate::codec::{Codec, has_zlib_header};
use crate::driver::{Compressed, Extent, ExtentKind, FileId, Location};
use crate::error::{Error, Problem, Result};
use crate::format::shared::data_runs::DataRuns;
use crate::format::shared::table_cache::{CachedTable, TableCache};
use crate::format::shared::{run, table};
use crate::io::ReadAt;
use crate::zero;

/// The grains of an opened sparse extent.
pub(super) struct GrainMap {
    pub file: Arc<dyn ReadAt>,
    pub id: FileId,
    pub file_len: u64,
    /// Guest bytes of the extent. The tables cover at least this range.
    pub len: u64,
    /// Bytes in a grain.
    pub grain_bytes: u64,
    pub entries_per_table: u64,
    pub entry_format: EntryFormat,
    /// Host offset of each grain table, checked against the file length; 0 for an unallocated table.
    pub directory: Vec<u64>,
    /// Host offset of the redundant copy of each grain table; empty without a redundant grain directory.
    pub redundant_directory: Vec<u64>,
    /// Host ranges of the remaining metadata.
    pub metadata: Vec<Range<u64>>,
    /// Data and holes of the file.
    pub data_runs: DataRuns,
}

/// The format of grain table entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EntryFormat {
    /// The sector of a grain; 0 is unallocated.
    Sectors {
        /// Whether 1 is a zeroed grain.
        zeroed_grains: bool,
        /// Framing of compressed grains; `None` if grains are not compressed.
        framing: Option<Framing>,
    },
    /// Entries of a space-efficient sparse extent, whose grains are in this host range.
    SeSparse { grains: Range<u64> },
}

/// The data at the sector of a compressed grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// A marker, which holds the payload length, and the payload.
    Marked,
    /// The payload alone.
    Bare,
}

/// A parsed grain table entry.
pub(super) enum GrainEntry {
    Unallocated,
    Zero,
    /// Host offset of the grain, or of its marker.
    Allocated(u64),
}

/// Host offset of a grain table whose directory entry is invalid. Used only by checks.
pub(super) const DAMAGED: u64 = u64::MAX;

impl GrainMap {
    /// Largest part of a table that is read at once, in bytes.
    const PAGE_LEN: u64 = 16 << 10;

    /// Returns the kind and the length of the run of grains at `offset`. A run ends at the latest with a table page,
    /// and no entry for grains after `end` is read. Offsets are relative to the extent.
    pub fn extent(&self, table_cache: &TableCache, offset: u64, end: u64) -> Result<(ExtentKind, u64)> {
        let index = offset / self.grain_bytes;
        let table = (index / self.entries_per_table) as usize;
        let table_offset = match self.directory.get(table) {
            Some(&0) | None => return Ok(self.unallocated_tables(table, offset, end)),
            Some(&table_offset) => table_offset,
        };
        if let Some(tables) = self.tables_in_hole(table, table_offset, end)? {
            return Ok(self.hole(table, tables, offset));
        }
        let page_entries = (Self::PAGE_LEN / self.entry_size()).min(self.entries_per_table);
        let in_table = index % self.entries_per_table;
        let first = in_table / page_entries * page_entries;
        let count = page_entries.min(self.table_entries(table) - first);
        let location = Location { file: self.id, offset: table_offset + first * self.entry_size() };
        let len = (count * self.entry_size()) as usize;
        let page = table_cache.get(&*self.file, location, len)?;
        if zero::is_zero(&page.bytes)
            && let Some(&copy) = self.redundant_directory.get(table).filter(|copy| **copy != 0)
            && !zero::is_zero(
                &table_cache
                    .get(&*self.file, Location { offset: copy + first * self.entry_size(), ..location }, len)?
                    .bytes,
            )
        {
            // A reader cannot tell which of the two is damaged.
            let finding = "no grain is allocated, but the redundant grain table has allocated grains";
            return Err(FIELDS.at("grain table", table_offset).fault(Problem::Conflict { value: 0, finding }));
        }

        let page_end = index - in_table + first + count;
        let (kind, len) = self.grain_in_page(&page, in_table - first, offset)?;
        if let ExtentKind::Compressed(_) = kind {
            // Parsing the next entry would read the marker of its grain.
            return Ok((kind, len));
        }
        let run = run::merge(Extent { offset, len, kind }, end, |at| {
            let index = at / self.grain_bytes;
            if index >= page_end {
                return None;
            }
            // Most entries of most disks are unallocated, and zero.
            let start = ((index % self.entries_per_table - first) * self.entry_size()) as usize;
            let wanted = (end - at).div_ceil(self.grain_bytes).min(page_end - index) * self.entry_size();
            let entries = page.bytes.get(start..).and_then(|bytes| bytes.get(..wanted as usize)).unwrap_or_default();
            let empty = zero::leading_zeros(entries) as u64 / self.entry_size();
            if empty > 0 {
                return Some((ExtentKind::Hole, (empty * self.grain_bytes).min(self.len - at)));
            }
            self.grain_in_page(&page, index % self.entries_per_table - first, at).ok()
        });
        Ok((run.kind, run.len))
    }

    /// Reports the host ranges of the metadata to `claim`.
    pub fn metadata(&self, claim: &mut dyn FnMut(FileId, Range<u64>) -> bool) -> Result<()> {
        for range in &self.metadata {
            claim(self.id, range.clone());
        }
        for (table, &offset) in self.directory.iter().enumerate().filter(|(_, offset)| **offset != 0) {
            if !claim(self.id, offset..offset + self.table_entries(table) * self.entry_size()) {
                let field = format!("grain directory entry {table}");
                return Err(Error::corrupt(
                    FORMAT_NAME,
                    field,
                    offset,
                    Problem::Overlap { offset, with: "other metadata" },
                ));
            }
        }
        Ok(())
    }

    /// Whether grains are compressed, so that the length of each is at its payload.
    pub fn is_marked(&self) -> bool {
        matches!(self.entry_format, EntryFormat::Sectors { framing: Some(_), .. })
    }

    /// Number of entries in use of grain table `table`: the last one may end after the last grain of the extent.
    pub fn table_entries(&self, table: usize) -> u64 {
        let grains = self.len.div_ceil(self.grain_bytes);
        grains.saturating_sub(table as u64 * self.entries_per_table).min(self.entries_per_table)
    }

    /// Bytes in a grain table entry.
    pub fn entry_size(&self) -> u64 {
        match self.entry_format {
            EntryFormat::Sectors { .. } => 4,
            EntryFormat::SeSparse { .. } => 8,
        }
    }

    /// The run at `offset` of grains whose tables, from `table`, are unallocated.
    fn unallocated_tables(&self, table: usize, offset: u64, end: u64) -> (ExtentKind, u64) {
        let tables = self.directory.iter().skip(table).take(self.tables_until(table, end));
        let absent = tables.take_while(|table| **table == 0).count();
        self.hole(table, absent.max(1), offset)
    }

    /// Number of tables from `table`, at least 1, that map grains before `end`.
    fn tables_until(&self, table: usize, end: u64) -> usize {
        let coverage = self.entries_per_table.saturating_mul(self.grain_bytes);
        (end.div_ceil(coverage) as usize).saturating_sub(table).max(1)
    }

    /// The hole from `offset` to the end of `tables` tables from `table`.
    fn hole(&self, table: usize, tables: usize, offset: u64) -> (ExtentKind, u64) {
        let end = ((table + tables) as u64).saturating_mul(self.entries_per_table).saturating_mul(self.grain_bytes);
        (ExtentKind::Hole, end.min(self.len) - offset)
    }

    /// Number of tables from `table`, at `table_offset`, in the same hole of the file, if any. A sparsely filled disk
    /// has all tables allocated, but most were never written.
    fn tables_in_hole(&self, table: usize, table_offset: u64, end: u64) -> Result<Option<usize>> {
        if !self.data_runs.has_holes() {
            return Ok(None);
        }
        let in_hole = |directory: &[u64], offset| {
            let (is_data, run_end) = self.data_runs.run_at(offset)?;
            let hole = offset..if is_data { offset } else { run_end };
            let numbered = directory.iter().enumerate().skip(table).take(self.tables_until(table, end));
            let empty = numbered.take_while(|(table, offset)| {
                let end = offset.saturating_add(self.table_entries(*table) * self.entry_size());
                hole.contains(*offset) && end <= hole.end
            });
            Ok(empty.count())
        };
        let mut empty = in_hole(&self.directory, table_offset)?;
        if let Some(&copy) = self.redundant_directory.get(table).filter(|copy| **copy != 0 && empty > 0) {
            empty = empty.min(in_hole(&self.redundant_directory, copy)?);
        }
        Ok(Some(empty).filter(|count| *count > 0))
    }

    /// The kind and the length of the data from `offset` to the end of its grain, from entry `index` of a table page.
    fn grain_in_page(&self, page: &CachedTable, index: u64, offset: u64) -> Result<(ExtentKind, u64)> {
        let start = index * self.entry_size();
        self.grain_extent(page.bytes.get(start as usize..).unwrap_or_default(), page.offset() + start, offset)
    }

    /// The same, from the entry at the start of `bytes`, which are at file offset `at`.
    pub fn grain_extent(&self, bytes: &[u8], at: u64, offset: u64) -> Result<(ExtentKind, u64)> {
        let within = offset % self.grain_bytes;
        let len = (self.grain_bytes - within).min(self.len - offset);
        let kind = match self.entry(bytes, at)? {
            GrainEntry::Unallocated => ExtentKind::Hole,
            GrainEntry::Zero => ExtentKind::Zero { allocated: None },
            GrainEntry::Allocated(host_offset) => match &self.entry_format {
                EntryFormat::Sectors { framing: Some(framing), .. } => {
                    ExtentKind::Compressed(self.payload(*framing, host_offset, offset - within, at)?)
                }
                _ => {
                    // The last grain may be cut off at the end of the disk.
                    FIELDS.at("grain table entry", at).within(host_offset, within + len, self.file_len)?;
                    ExtentKind::Data(Location { file: self.id, offset: host_offset + within })
                }
            },
        };
        Ok((kind, len))
    }

    /// Parses the entry at the start of `bytes`, which are at file offset `at`.
    pub fn entry(&self, bytes: &[u8], at: u64) -> Result<GrainEntry> {
        Ok(match &self.entry_format {
            EntryFormat::Sectors { zeroed_grains, .. } => {
                match bytes.first_chunk().map_or(0, |entry| u32::from_le_bytes(*entry)) {
                    0 => GrainEntry::Unallocated,
                    1 if *zeroed_grains => GrainEntry::Zero,
                    sector => GrainEntry::Allocated(u64::from(sector) * SECTOR),
                }
            }
            EntryFormat::SeSparse { grains } => {
                let entry = bytes.first_chunk().map_or(0, |entry| u64::from_le_bytes(*entry));
                let field = FIELDS.at("grain table entry", at);
                match SeSparseEntry::parse(entry).map_err(|problem| field.fault(problem))? {
                    SeSparseEntry::Unallocated => GrainEntry::Unallocated,
                    SeSparseEntry::Unmapped | SeSparseEntry::Zero => GrainEntry::Zero,
                    SeSparseEntry::Data(index) => {
                        let offset =
                            index.checked_mul(self.grain_bytes).and_then(|offset| offset.checked_add(grains.start));
                        let host_offset = offset.unwrap_or(u64::MAX);
                        // ESXi sizes the range by the disk, so the last grain may be cut off.
                        field.within(host_offset, 1, grains.end)?;
                        GrainEntry::Allocated(host_offset)
                    }
                }
            }
        })
    }

    /// The payload at `host_offset` of the grain at offset `unit` of the extent. The table entry is at file offset
    /// `at`.
    fn payload(&self, framing: Framing, host_offset: u64, unit: u64, at: u64) -> Result<Compressed> {
        let mut start = [0; Marker::LEN];
        FIELDS.at("grain table entry", at).within(host_offset, start.len() as u64, self.file_len)?;
        table::read(&*self.file, &mut start, host_offset)?;
        let (offset, stored_len) = match framing {
            Framing::Marked => {
                let marker = Marker::parse(&start, host_offset)?;
                let len = payload_len(marker, unit / SECTOR, self.grain_bytes, host_offset)?;
                let offset = host_offset + Marker::GRAIN_HEADER as u64;
                FIELDS.at("size", host_offset + 8).within(offset, len, self.file_len)?;
                (offset, len)
            }
            // The length is not stored.
            Framing::Bare => (host_offset, max_payload_len(self.grain_bytes).min(self.file_len - host_offset)),
        };
        let data = start.get((offset - host_offset) as usize..).unwrap_or_default();
        Ok(Compressed {
            at: Location { file: self.id, offset },
            stored_len: stored_len as u32,
            codec: payload_codec(data),
            unit,
            unit_len: self.grain_bytes as u32,
            min_len: self.grain_bytes.min(self.len - unit) as u32,
        })
    }
}

/// Returns the payload length from a marker at file offset `at`, which must be the marker of the grain at guest sector
/// `lba`.
fn payload_len(marker: Marker, lba: u64, grain_bytes: u64, at: u64) -> Result<u64> {
    match marker {
        Marker::Grain { lba: found, .. } if found != lba => {
            let rule = "must be the first sector of the grain whose table entry points here";
            Err(FIELDS.at("lba", at).fault(Problem::Rule { value: found, rule }))
        }
        Marker::Grain { size, .. } => check_payload_len(size, grain_bytes, at),
        _ => {
            let rule = "must not be 0: a grain table entry points to this marker";
            Err(FIELDS.at("size", at + 8).fault(Problem::Rule { value: 0, rule }))
        }
    }
}

/// Checks the payload length in a grain marker at file offset `at`.
pub(super) fn check_payload_len(size: u32, grain_bytes: u64, at: u64) -> Result<u64> {
    let (value, max) = (u64::from(size), max_payload_len(grain_bytes));
    if value > max {
        return Err(FIELDS.at("size", at + 8).fault(Problem::Range { value, min: 1, max }));
    }
    Ok(value)
}

/// Largest payload of a grain. Deflate expands incompressible data slightly: payloads of 65562 bytes for grains of 64
/// KiB exist.
pub(super) fn max_payload_len(grain_bytes: u64) -> u64 {
    grain_bytes + grain_bytes / 8 + 1024
}

/// Detects the codec of a payload by its first bytes. The document says RFC 1951, but known writers use RFC 1950.
pub(super) fn payload_codec(data: &[u8]) -> Codec {
    if data.first_chunk().is_some_and(|start| has_zlib_header(*start)) { Codec::Zlib } else { Codec::Deflate }
}
