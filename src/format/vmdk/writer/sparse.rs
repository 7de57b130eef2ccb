//! Writes a hosted sparse extent: all metadata first, then the grains.
//!
//! The file consists of the header, the embedded descriptor if there is one, the redundant grain directory and its
//! tables, the grain directory and its tables, and the grains, aligned to the grain size. All tables are allocated.
//! Grains arrive in ascending order, so one table is in memory at a time. An empty `streamOptimized` image, which its owner
//! appends compressed grains to, has this layout as well.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::{DESCRIPTOR_SECTORS, ENTRIES_PER_TABLE, GRAIN_SECTORS, sector_entry};
use crate::error::{Error, Result};
use crate::format::vmdk::header::{Directory, Flags, Header};
use crate::format::vmdk::options::{Settings, Subformat};
use crate::format::vmdk::{FORMAT_NAME, SECTOR, pad_descriptor};
use crate::io::WriteAt;

const GRAIN: u64 = GRAIN_SECTORS * SECTOR;
/// Sectors in a grain table.
const TABLE_SECTORS: u64 = ENTRIES_PER_TABLE as u64 * 4 / SECTOR;
/// Grain table entry of a zeroed grain, in version 2.
const ZEROED: u32 = 1;

/// A new sparse extent.
pub(super) struct SparseExtent {
    out: Arc<dyn WriteAt>,
    header: Header,
    /// Sectors of the redundant grain directory and of the grain directory.
    directories: [u64; 2],
    /// Whether to mark zero grains instead of storing them.
    zeroed_grains: bool,
    /// The current grain table and its index.
    table: Vec<u32>,
    table_index: u64,
    /// Host offset of the next grain.
    next: u64,
}

impl SparseExtent {
    /// Creates an extent of `sectors` sectors in `out`, with an embedded descriptor as long as `descriptor` if there is one.
    pub fn create(
        out: Arc<dyn WriteAt>,
        sectors: u64,
        descriptor: Option<&[u8]>,
        settings: &Settings,
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
        if settings.subformat == Subformat::StreamOptimized {
            header.version = 3;
            header.flags |= Flags::COMPRESSED | Flags::MARKERS;
        }
        if let Some(text) = descriptor {
            // One that is too long is refused before anything is written.
            pad_descriptor(text, DESCRIPTOR_SECTORS)?;
            header.descriptor = Some(DESCRIPTOR_SECTORS.start * SECTOR..DESCRIPTOR_SECTORS.end * SECTOR);
        }
        let redundant = if descriptor.is_some() { DESCRIPTOR_SECTORS.end } else { DESCRIPTOR_SECTORS.start };
        let directories = [redundant, redundant + metadata_sectors(&header)];
        header.redundant_directory = Some(Directory::At(directories[0]));
        header.directory = Directory::At(directories[1]);
        header.overhead = (directories[1] + metadata_sectors(&header)).next_multiple_of(GRAIN_SECTORS);
        sector_entry(header.overhead)?;
        let next = header.overhead * SECTOR;
        if !out.starts_zeroed() {
            // An old header must not be mistaken for the new one, and empty tables are not written.
            out.zero_range(0..next).map_err(Error::io("clearing the tables", 0))?;
        }
        Ok(SparseExtent {
            out,
            header,
            directories,
            zeroed_grains: settings.zeroed_grain,
            table: vec![0; ENTRIES_PER_TABLE as usize],
            table_index: 0,
            next,
        })
    }

    /// Allocates grains for the start of `range`, offsets in the extent. Returns the host range, which may be shorter.
    pub fn allocate(&mut self, range: Range<u64>) -> Result<(Arc<dyn WriteAt>, Range<u64>)> {
        if self.header.is_compressed() {
            return Err(Error::unsupported(FORMAT_NAME, "guest data in an image that is created empty"));
        }
        let first = range.start / GRAIN;
        self.open_table(first / u64::from(ENTRIES_PER_TABLE))?;
        let start = self.allocate_grain(first)?;
        let mut end = first + 1;
        let table_end = (self.table_index + 1) * u64::from(ENTRIES_PER_TABLE);
        // Further grains are contiguous only if this one was allocated last.
        while end < range.end.div_ceil(GRAIN).min(table_end) && start + (end - first) * GRAIN == self.next {
            self.allocate_grain(end)?;
            end += 1;
        }
        let from = start + range.start % GRAIN;
        let len = range.end.min(end * GRAIN) - range.start;
        if !self.out.starts_zeroed() {
            // The last grain of the disk is written up to the end of the disk.
            let rest = from + len..(from + len).next_multiple_of(GRAIN);
            self.out.zero_range(rest).map_err(Error::io("clearing the end of a grain", from + len))?;
        }
        Ok((self.out.clone(), from..from + len))
    }

    /// Makes `range`, whole grains of the extent, read as zeros over a parent.
    pub fn zero(&mut self, range: Range<u64>) -> Result<()> {
        for index in range.start / GRAIN..range.end.div_ceil(GRAIN) {
            self.open_table(index / u64::from(ENTRIES_PER_TABLE))?;
            if self.zeroed_grains {
                // Only when needed: VirtualBox does not read version 2.
                self.header.version = 2;
                self.header.flags.insert(Flags::ZEROED_GRAIN);
                self.set(index, ZEROED);
            } else {
                // An allocated grain, although it is a hole in the file.
                let start = self.allocate_grain(index)?;
                if !self.out.starts_zeroed() {
                    self.out.zero_range(start..start + GRAIN).map_err(Error::io("clearing a grain", start))?;
                }
            }
        }
        Ok(())
    }

    /// Writes the remaining metadata, with the text of the descriptor if it is embedded; the header last.
    pub fn finish(&mut self, descriptor: &[u8]) -> Result<()> {
        self.flush_table()?;
        for sector in self.directories {
            let first_table = sector + directory_sectors(&self.header);
            let tables = 0..self.header.directory_entries();
            let entries: Vec<u8> =
                tables.flat_map(|table| ((first_table + table * TABLE_SECTORS) as u32).to_le_bytes()).collect();
            self.write(&entries, sector * SECTOR, "writing a grain directory")?;
        }
        if self.header.descriptor.is_some() {
            let text = pad_descriptor(descriptor, DESCRIPTOR_SECTORS)?;
            self.write(&text, DESCRIPTOR_SECTORS.start * SECTOR, "writing the descriptor")?;
        }
        // The last grain is stored whole, even if the disk ends within it.
        self.out.set_len(self.next).map_err(Error::io("setting the length", self.next))?;
        self.sync()?;
        self.write(&self.header.encode(), 0, "writing the header")?;
        self.sync()
    }

    /// The path of the file, if it has one.
    pub fn path(&self) -> Option<&Path> {
        self.out.path()
    }

    /// Returns the host offset of a grain of the current table, allocating it if needed.
    fn allocate_grain(&mut self, index: u64) -> Result<u64> {
        let entry = self.table.get((index % u64::from(ENTRIES_PER_TABLE)) as usize);
        match entry {
            Some(&sector) if sector > ZEROED => Ok(u64::from(sector) * SECTOR),
            _ => {
                let host_offset = self.next;
                self.set(index, sector_entry(host_offset / SECTOR)?);
                self.next += GRAIN;
                Ok(host_offset)
            }
        }
    }

    /// Sets the entry of a grain in the current table.
    fn set(&mut self, index: u64, value: u32) {
        if let Some(entry) = self.table.get_mut((index % u64::from(ENTRIES_PER_TABLE)) as usize) {
            *entry = value;
        }
    }

    /// Makes grain table `index` the current one.
    fn open_table(&mut self, index: u64) -> Result<()> {
        if self.table_index != index {
            self.flush_table()?;
            self.table.fill(0);
            self.table_index = index;
        }
        Ok(())
    }

    /// Writes the current table and its redundant copy, unless it is empty: the file is already zero there.
    fn flush_table(&self) -> Result<()> {
        if self.table.iter().all(|&entry| entry == 0) {
            return Ok(());
        }
        let bytes: Vec<u8> = self.table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        for sector in self.directories {
            let table = sector + directory_sectors(&self.header) + self.table_index * TABLE_SECTORS;
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

/// Sectors in a grain directory.
fn directory_sectors(header: &Header) -> u64 {
    (header.directory_entries() * 4).div_ceil(SECTOR)
}

/// Sectors in a grain directory and its tables.
fn metadata_sectors(header: &Header) -> u64 {
    directory_sectors(header) + header.directory_entries() * TABLE_SECTORS
}
