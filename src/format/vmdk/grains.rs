//! Where the grains of a sparse extent lie, by its grain directory and grain tables.
//!
//! The three kinds of sparse extents have these two levels in common, and differ in what an entry says.

use std::ops::Range;
use std::sync::Arc;

use super::marker::Marker;
use super::sesparse::TableEntry;
use super::{FIELDS, FORMAT_NAME, SECTOR};
use crate::codec::{Codec, has_zlib_header};
use crate::driver::{Compressed, Extent, ExtentKind, FileId, Location};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table_cache::{CachedTable, TableCache};
use crate::format::shared::{run, table};
use crate::io::ReadAt;
use crate::zero;

/// An opened sparse extent.
pub(super) struct Grains {
    pub file: Arc<dyn ReadAt>,
    pub id: FileId,
    pub file_len: u64,
    /// Bytes of the extent that belong to the disk. There are at least so many in the tables.
    pub len: u64,
    /// Bytes in a grain.
    pub grain: u64,
    pub entries_per_table: u64,
    pub entries: Entries,
    /// Byte offset of each grain table in the file, which has room for it there; 0 for one that does not exist.
    pub directory: Vec<u64>,
    /// The same of the copies of the tables, if there are any.
    pub copies: Vec<u64>,
    /// Where other metadata is in the file.
    pub metadata: Vec<Range<u64>>,
}

/// What the entries of the grain tables say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entries {
    /// The sector of a grain. 0 is none.
    Sectors {
        /// 1 is a grain of zeros.
        zeroed_grains: bool,
        /// How grains are compressed, if they are.
        packing: Option<Packing>,
    },
    /// The entries of a space-efficient sparse extent, whose grains are in this range of the file.
    SeSparse { grains: Range<u64> },
}

/// What is at the sector of a compressed grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// A marker with the length of the payload, and the payload.
    Marked,
    /// The payload.
    Bare,
}

/// What an entry means.
pub(super) enum Entry {
    None,
    Zero,
    /// Byte offset of what is stored.
    At(u64),
}

/// Stands, where an image is examined, for a grain table that is not where the directory says.
pub(super) const DAMAGED: u64 = u64::MAX;

impl Grains {
    /// Bytes of a table that are read at once, unless it is smaller.
    const SLICE: u64 = 16 << 10;

    /// The kind and the length of the run at `offset` of the extent, which ends with a piece of a table, or where entries
    /// beyond `end` would have to be read. Units are counted from the beginning of the extent.
    pub fn extent(&self, slices: &TableCache, offset: u64, end: u64) -> Result<(ExtentKind, u64)> {
        let index = offset / self.grain;
        let table = (index / self.entries_per_table) as usize;
        let table_offset = match self.directory.get(table) {
            Some(&0) | None => return Ok(self.hole(table, offset, end)),
            Some(&table_offset) => table_offset,
        };
        if let Some(tables) = self.empty_tables(table, table_offset, end)? {
            return Ok(self.hole_of(table, tables, offset));
        }
        let slice_entries = (Self::SLICE / self.entry_size()).min(self.entries_per_table);
        let in_table = index % self.entries_per_table;
        let first = in_table / slice_entries * slice_entries;
        let count = slice_entries.min(self.table_entries(table) - first);
        let place = Location { file: self.id, offset: table_offset + first * self.entry_size() };
        let len = (count * self.entry_size()) as usize;
        let slice = slices.get(&*self.file, place, len)?;
        if zero::is_zero(&slice.bytes)
            && let Some(&copy) = self.copies.get(table).filter(|copy| **copy != 0)
            && !zero::is_zero(
                &slices.get(&*self.file, Location { offset: copy + first * self.entry_size(), ..place }, len)?.bytes,
            )
        {
            // Which of them is damaged is not for a reader to decide, but zeros would be a guess.
            let rule = "it has no grains, and its copy has";
            return Err(FIELDS.at("grain table", table_offset).fault(Problem::Rule { value: 0, rule }));
        }

        let slice_end = index - in_table + first + count;
        let (kind, len) = self.grain(&slice, in_table - first, offset)?;
        if let ExtentKind::Compressed(_) = kind {
            // To look at the next one would be to read its marker.
            return Ok((kind, len));
        }
        let run = run::merge(Extent { offset, len, kind }, end, |at| {
            let index = at / self.grain;
            if index >= slice_end {
                return None;
            }
            self.grain(&slice, index % self.entries_per_table - first, at).ok()
        });
        Ok((run.kind, run.len))
    }

    /// Tells `claim` where the metadata is.
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

    /// Entries of a table that are for grains of the extent.
    pub fn table_entries(&self, table: usize) -> u64 {
        let grains = self.len.div_ceil(self.grain);
        grains.saturating_sub(table as u64 * self.entries_per_table).min(self.entries_per_table)
    }

    pub fn entry_size(&self) -> u64 {
        match self.entries {
            Entries::Sectors { .. } => 4,
            Entries::SeSparse { .. } => 8,
        }
    }

    /// The run of grains without tables.
    fn hole(&self, table: usize, offset: u64, end: u64) -> (ExtentKind, u64) {
        let tables = self.directory.iter().skip(table).take(self.tables_until(table, end));
        let absent = tables.take_while(|table| **table == 0).count();
        self.hole_of(table, absent.max(1), offset)
    }

    /// Number of tables from number `table` on that are for grains before `end`.
    fn tables_until(&self, table: usize, end: u64) -> usize {
        let coverage = self.entries_per_table.saturating_mul(self.grain);
        (end.div_ceil(coverage) as usize).saturating_sub(table).max(1)
    }

    fn hole_of(&self, table: usize, tables: usize, offset: u64) -> (ExtentKind, u64) {
        let end = ((table + tables) as u64).saturating_mul(self.entries_per_table).saturating_mul(self.grain);
        (ExtentKind::Hole, end.min(self.len) - offset)
    }

    /// How many tables from number `table` on, which is at `table_offset`, lie in the same hole of the file: the tables of a
    /// large disk are all there, and hardly any has been written.
    fn empty_tables(&self, table: usize, table_offset: u64, end: u64) -> Result<Option<usize>> {
        let in_hole = |directory: &[u64], offset| {
            let data = self.file.next_data(offset).map_err(Error::io("looking for data", offset))?;
            let hole = offset..data.map_or(self.file_len, |run| run.start);
            let numbered = directory.iter().enumerate().skip(table).take(self.tables_until(table, end));
            let empty = numbered.take_while(|(table, offset)| {
                let end = offset.saturating_add(self.table_entries(*table) * self.entry_size());
                hole.contains(*offset) && end <= hole.end
            });
            Ok(empty.count())
        };
        let mut empty = in_hole(&self.directory, table_offset)?;
        if let Some(&copy) = self.copies.get(table).filter(|copy| **copy != 0 && empty > 0) {
            empty = empty.min(in_hole(&self.copies, copy)?);
        }
        Ok(Some(empty).filter(|count| *count > 0))
    }

    /// How the bytes from `offset` to the end of its grain live, by entry number `index` of a slice.
    fn grain(&self, slice: &CachedTable, index: u64, offset: u64) -> Result<(ExtentKind, u64)> {
        let start = index * self.entry_size();
        self.stored(slice.bytes.get(start as usize..).unwrap_or_default(), slice.offset() + start, offset)
    }

    /// The same by the entry that `bytes`, which stand at byte `at` of the file, begin with.
    pub fn stored(&self, bytes: &[u8], at: u64, offset: u64) -> Result<(ExtentKind, u64)> {
        let within = offset % self.grain;
        let len = (self.grain - within).min(self.len - offset);
        let kind = match self.entry(bytes, at)? {
            Entry::None => ExtentKind::Hole,
            Entry::Zero => ExtentKind::Zero { allocated: None },
            Entry::At(place) => match &self.entries {
                Entries::Sectors { packing: Some(packing), .. } => {
                    ExtentKind::Compressed(self.payload(*packing, place, offset - within, at)?)
                }
                _ => {
                    // The last grain of a file may end with the disk.
                    FIELDS.at("grain table entry", at).within(place, within + len, self.file_len)?;
                    ExtentKind::Data(Location { file: self.id, offset: place + within })
                }
            },
        };
        Ok((kind, len))
    }

    /// The entry that `bytes`, which stand at byte `at` of the file, begin with.
    pub fn entry(&self, bytes: &[u8], at: u64) -> Result<Entry> {
        Ok(match &self.entries {
            Entries::Sectors { zeroed_grains, .. } => {
                match bytes.first_chunk().map_or(0, |entry| u32::from_le_bytes(*entry)) {
                    0 => Entry::None,
                    1 if *zeroed_grains => Entry::Zero,
                    sector => Entry::At(u64::from(sector) * SECTOR),
                }
            }
            Entries::SeSparse { grains } => {
                let entry = bytes.first_chunk().map_or(0, |entry| u64::from_le_bytes(*entry));
                let field = FIELDS.at("grain table entry", at);
                match TableEntry::parse(entry).map_err(|problem| field.fault(problem))? {
                    TableEntry::Unallocated => Entry::None,
                    TableEntry::Unmapped | TableEntry::Zero => Entry::Zero,
                    TableEntry::Data(number) => {
                        let place = number.checked_mul(self.grain).and_then(|offset| offset.checked_add(grains.start));
                        let place = place.unwrap_or(u64::MAX);
                        // ESXi gives the grains the room of the disk, of which the last one is a part.
                        field.within(place, 1, grains.end)?;
                        Entry::At(place)
                    }
                }
            }
        })
    }

    /// The payload of the grain at `unit`, which is stored at `place` by the entry at `at`.
    fn payload(&self, packing: Packing, place: u64, unit: u64, at: u64) -> Result<Compressed> {
        let mut start = [0; Marker::LEN];
        FIELDS.at("grain table entry", at).within(place, start.len() as u64, self.file_len)?;
        table::read(&*self.file, &mut start, place)?;
        let (offset, stored_len) = match packing {
            Packing::Marked => {
                let len = grain_len(Marker::parse(&start, place)?, unit / SECTOR, self.grain, place)?;
                let offset = place + Marker::GRAIN_HEADER as u64;
                FIELDS.at("size", place + 8).within(offset, len, self.file_len)?;
                (offset, len)
            }
            // Nothing says how long it is.
            Packing::Bare => (place, max_payload(self.grain).min(self.file_len - place)),
        };
        let data = start.get((offset - place) as usize..).unwrap_or_default();
        Ok(Compressed {
            at: Location { file: self.id, offset },
            stored_len: stored_len as u32,
            codec: payload_codec(data),
            unit,
            unit_len: self.grain as u32,
            min_len: self.grain.min(self.len - unit) as u32,
        })
    }
}

/// The length of a payload by its marker, which stands at byte `at` and must be that of the grain at sector `lba`.
fn grain_len(marker: Marker, lba: u64, grain: u64, at: u64) -> Result<u64> {
    match marker {
        Marker::Grain { lba: found, .. } if found != lba => {
            let rule = "it is not the sector of the grain whose table entry leads here";
            Err(FIELDS.at("lba", at).fault(Problem::Rule { value: found, rule }))
        }
        Marker::Grain { size, .. } => checked_grain_len(size, grain, at),
        _ => {
            let rule = "a grain table entry leads to a marker of something else";
            Err(FIELDS.at("size", at + 8).fault(Problem::Rule { value: 0, rule }))
        }
    }
}

/// The size that a grain marker at byte `at` states, if a payload of a grain can be so long.
pub(super) fn checked_grain_len(size: u32, grain: u64, at: u64) -> Result<u64> {
    let (value, max) = (u64::from(size), max_payload(grain));
    if value > max {
        return Err(FIELDS.at("size", at + 8).fault(Problem::Range { value, min: 1, max }));
    }
    Ok(value)
}

/// Deflate hardly makes anything longer; payloads of 65562 bytes for grains of 64 KiB have been seen.
pub(super) fn max_payload(grain: u64) -> u64 {
    grain + grain / 8 + 1024
}

/// The specification says RFC 1951, and everybody writes RFC 1950: the first bytes tell.
pub(super) fn payload_codec(data: &[u8]) -> Codec {
    if data.first_chunk().is_some_and(|start| has_zlib_header(*start)) { Codec::Zlib } else { Codec::Deflate }
}
