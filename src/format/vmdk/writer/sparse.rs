//! A hosted sparse extent: the grain tables first, all of them and twice, and then the grains.
//!
//! In order: the header; the descriptor, if it is inside; the redundant grain directory and its tables; the grain directory
//! and its tables; grains, from a multiple of the grain size on. Grains come up in ascending order, so that one table is in
//! memory at a time.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::{DESCRIPTOR_SECTORS, ENTRIES_PER_TABLE, GRAIN_SECTORS, sector_entry};
use crate::error::{Error, Result};
use crate::format::vmdk::header::{Directory, Flags, Header};
use crate::format::vmdk::{SECTOR, embedded};
use crate::io::WriteAt;

const GRAIN: u64 = GRAIN_SECTORS * SECTOR;
/// Sectors of a grain table.
const TABLE_SECTORS: u64 = ENTRIES_PER_TABLE as u64 * 4 / SECTOR;
/// The entry of a grain of zeros, in version 2.
const ZEROED: u32 = 1;

/// A new sparse extent.
pub(super) struct SparseExtent {
    out: Arc<dyn WriteAt>,
    header: Header,
    /// The sectors of the redundant grain directory and of the other one.
    directories: [u64; 2],
    /// The embedded descriptor.
    descriptor: Option<Vec<u8>>,
    /// Whether grains of zeros may be marked as such.
    zeroed_grains: bool,
    /// The grain table that grains are entered in, and its number.
    table: Vec<u32>,
    number: u64,
    /// Byte offset of the next grain.
    next: u64,
}

impl SparseExtent {
    /// An extent of `sectors` in `out`, with a descriptor inside or without.
    pub fn create(
        out: Arc<dyn WriteAt>,
        sectors: u64,
        descriptor: Option<&[u8]>,
        zeroed_grains: bool,
    ) -> Result<SparseExtent> {
        let mut header = Header {
            version: 1,
            flags: Flags::NEWLINE_TEST | Flags::REDUNDANT,
            capacity: sectors,
            grain_size: GRAIN_SECTORS,
            descriptor: None,
            entries_per_table: ENTRIES_PER_TABLE,
            redundant_directory: None,
            directory: Directory::AtEnd,
            overhead: 0,
            unclean: false,
        };
        if descriptor.is_some() {
            header.descriptor = Some(DESCRIPTOR_SECTORS.start * SECTOR..DESCRIPTOR_SECTORS.end * SECTOR);
        }
        let redundant = if descriptor.is_some() { DESCRIPTOR_SECTORS.end } else { DESCRIPTOR_SECTORS.start };
        let directories = [redundant, redundant + tables_sectors(&header)];
        header.redundant_directory = Some(Directory::At(directories[0]));
        header.directory = Directory::At(directories[1]);
        header.overhead = (directories[1] + tables_sectors(&header)).next_multiple_of(GRAIN_SECTORS);
        sector_entry(header.overhead)?;
        let next = header.overhead * SECTOR;
        if !out.starts_zeroed() {
            // Until the new header is there, nothing shall take the old one for it; and tables that stay empty are not written.
            out.zero_range(0..next).map_err(Error::io("clearing the tables", 0))?;
        }
        let descriptor = descriptor.map(|text| embedded(text, DESCRIPTOR_SECTORS)).transpose()?;
        Ok(SparseExtent {
            out,
            header,
            directories,
            descriptor,
            zeroed_grains,
            table: vec![0; ENTRIES_PER_TABLE as usize],
            number: 0,
            next,
        })
    }

    /// Where a first part of these bytes of the extent goes.
    pub fn place(&mut self, range: Range<u64>) -> Result<(Arc<dyn WriteAt>, Range<u64>)> {
        let first = range.start / GRAIN;
        self.open_table(first / u64::from(ENTRIES_PER_TABLE))?;
        let start = self.grain(first)?;
        let mut end = first + 1;
        let table_end = (self.number + 1) * u64::from(ENTRIES_PER_TABLE);
        // Grains after the one that is entered last are new.
        while end < range.end.div_ceil(GRAIN).min(table_end) && start + (end - first) * GRAIN == self.next {
            self.grain(end)?;
            end += 1;
        }
        let from = start + range.start % GRAIN;
        let len = range.end.min(end * GRAIN) - range.start;
        if !self.out.starts_zeroed() {
            // The caller has no bytes for the rest of a last grain.
            let rest = from + len..(from + len).next_multiple_of(GRAIN);
            self.out.zero_range(rest).map_err(Error::io("clearing the end of a grain", from + len))?;
        }
        Ok((self.out.clone(), from..from + len))
    }

    /// Makes these bytes of the extent, which are whole grains, read as zeros over a parent.
    pub fn zero(&mut self, range: Range<u64>) -> Result<()> {
        for index in range.start / GRAIN..range.end.div_ceil(GRAIN) {
            self.open_table(index / u64::from(ENTRIES_PER_TABLE))?;
            if self.zeroed_grains {
                // Only now: VirtualBox does not read version 2.
                self.header.version = 2;
                self.header.flags.insert(Flags::ZEROED_GRAIN);
                self.set(index, ZEROED);
            } else {
                // It is a hole of the file, and still a grain.
                let start = self.grain(index)?;
                if !self.out.starts_zeroed() {
                    self.out.zero_range(start..start + GRAIN).map_err(Error::io("clearing a grain", start))?;
                }
            }
        }
        Ok(())
    }

    /// Writes the tables, and then the header.
    pub fn finish(&mut self) -> Result<()> {
        self.flush_table()?;
        for sector in self.directories {
            let first_table = sector + directory_sectors(&self.header);
            let tables = 0..self.header.directory_entries();
            let entries: Vec<u8> =
                tables.flat_map(|table| ((first_table + table * TABLE_SECTORS) as u32).to_le_bytes()).collect();
            self.write(&entries, sector * SECTOR, "writing a grain directory")?;
        }
        if let Some(text) = &self.descriptor {
            self.write(text, DESCRIPTOR_SECTORS.start * SECTOR, "writing the descriptor")?;
        }
        // The last grain is whole, even where the disk ends within it.
        self.out.set_len(self.next).map_err(Error::io("setting the length", self.next))?;
        self.sync()?;
        self.write(&self.header.encode(), 0, "writing the header")?;
        self.sync()
    }

    /// The name of the file.
    pub fn path(&self) -> Option<&Path> {
        self.out.path()
    }

    /// The place of a grain, which gets one if it has none.
    fn grain(&mut self, index: u64) -> Result<u64> {
        let entry = self.table.get((index % u64::from(ENTRIES_PER_TABLE)) as usize);
        match entry {
            Some(&sector) if sector > ZEROED => Ok(u64::from(sector) * SECTOR),
            _ => {
                let place = self.next;
                self.set(index, sector_entry(place / SECTOR)?);
                self.next += GRAIN;
                Ok(place)
            }
        }
    }

    fn set(&mut self, index: u64, value: u32) {
        if let Some(entry) = self.table.get_mut((index % u64::from(ENTRIES_PER_TABLE)) as usize) {
            *entry = value;
        }
    }

    fn open_table(&mut self, number: u64) -> Result<()> {
        if self.number != number {
            self.flush_table()?;
            self.table.fill(0);
            self.number = number;
        }
        Ok(())
    }

    /// Writes the table twice, unless it is empty: the file has zeros there.
    fn flush_table(&self) -> Result<()> {
        if self.table.iter().all(|&entry| entry == 0) {
            return Ok(());
        }
        let bytes: Vec<u8> = self.table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        for sector in self.directories {
            let table = sector + directory_sectors(&self.header) + self.number * TABLE_SECTORS;
            self.write(&bytes, table * SECTOR, "writing a grain table")?;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64, action: &'static str) -> Result<()> {
        self.out.write_all_at(bytes, offset).map_err(Error::io(action, offset))
    }

    fn sync(&self) -> Result<()> {
        self.out.sync().map_err(Error::io("syncing", None))
    }
}

/// Sectors of a grain directory.
fn directory_sectors(header: &Header) -> u64 {
    (header.directory_entries() * 4).div_ceil(SECTOR)
}

/// Sectors of a grain directory and its tables.
fn tables_sectors(header: &Header) -> u64 {
    directory_sectors(header) + header.directory_entries() * TABLE_SECTORS
}
