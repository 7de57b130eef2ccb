//! Other metadata of an extent: larger tables, another size, another descriptor.
//!
//! What replaces metadata is written at the end of the file, and a write to the header, which is one sector, makes it that of the extent. Directories
//! and the last tables get their new entries in place where zeros follow them that nothing else uses, as in the files of all known writers. The
//! descriptor keeps its host offset, because qemu reads it at sector 1 whatever the header says: while it is written, the header points
//! to a copy of the old one.

use std::ops::Range;

use super::{SparseExtent, too_large};
use crate::error::{Error, Result};
use crate::format::shared::table;
use crate::format::vmdk::header::{Directory, Header};
use crate::format::vmdk::{FORMAT_NAME, SECTOR};
use crate::io::write_zeros;
use crate::zero::is_zero;

/// The fields of the header that change.
const CAPACITY: Range<usize> = 12..20;
const DESCRIPTOR: Range<usize> = 28..44;
const REDUNDANT_DIRECTORY: Range<usize> = 48..56;
const DIRECTORY: Range<usize> = 56..64;

/// A grain directory, by the host offsets of its tables, and its own host offset.
struct NewDirectory {
    tables: Vec<u64>,
    at: u64,
}

impl SparseExtent {
    /// Sets the size of the extent to `len` bytes, more than it has, and with it the text of the embedded descriptor, if there is one.
    pub fn grow(&mut self, len: u64, text: Option<&[u8]>) -> Result<()> {
        self.begin()?;
        self.flush()?;
        let mut header = Header { capacity: len / SECTOR, ..self.header.clone() };
        let has_copies = !self.grains.redundant_directory.is_empty();
        if has_copies != header.redundant_directory_sector().is_some() || !matches!(header.directory, Directory::At(_))
        {
            return Err(Error::unsupported(
                FORMAT_NAME,
                "changing the size of an extent with a damaged grain directory",
            ));
        }
        let start = self.end_of_grains()?.next_multiple_of(SECTOR);
        let mut end = start;
        let in_place = self.tails_are_free(&header)?;
        let mut larger = |image: &mut Self, (at, tables): (u64, Vec<u64>)| match in_place {
            true => image.longer_directory(&header, at, tables, &mut end),
            false => image.new_directory(&header, tables, &mut end),
        };
        let [directory, redundant] = self.directories();
        let redundant = redundant.map(|redundant| larger(self, redundant)).transpose()?;
        let Some(directory) = directory.map(|directory| larger(self, directory)).transpose()? else {
            return Err(Error::unsupported(FORMAT_NAME, "a grain directory at the end of the file"));
        };
        header.directory = Directory::At(directory.at / SECTOR);
        if let Some(redundant) = &redundant {
            header.redundant_directory = Some(Directory::At(redundant.at / SECTOR));
        }
        self.switch(header, end, text)?;
        self.grains.metadata.extend((start < end).then_some(start..end));
        self.grains.directory = directory.tables;
        self.grains.redundant_directory = redundant.map_or_else(Vec::new, |redundant| redundant.tables);
        self.grains.len = len;
        self.next = Some(end);
        Ok(())
    }

    /// Sets the size of the extent to `len` bytes, less than it has, as [`grow`](Self::grow) does. Entries after the end are cleared when they are no
    /// longer those of the extent, and the file is cut off after what is left. Grains between others are leaked.
    pub fn shrink(&mut self, len: u64, text: Option<&[u8]>) -> Result<()> {
        self.begin()?;
        self.flush()?;
        let header = Header { capacity: len / SECTOR, ..self.header.clone() };
        let end = self.end_of_grains()?.next_multiple_of(SECTOR);
        self.switch(header, end, text)?;
        let entries = self.header.directory_entries() as usize;
        let directories = self.directories();
        let last = entries.saturating_sub(1);
        let old_entries = self.grains.table_entries(last);
        self.grains.directory.truncate(entries);
        self.grains.redundant_directory.truncate(entries);
        self.grains.len = len;
        let kept = self.grains.table_entries(last);
        for (at, tables) in directories.into_iter().flatten() {
            self.clear(at + entries as u64 * 4..at + tables.len() as u64 * 4)?;
            if let Some(table) = tables.get(last).filter(|table| **table != 0) {
                self.clear(table + kept * 4..table + old_entries * 4)?;
            }
        }
        self.sync()?;
        (self.next, self.released) = (None, Vec::new());
        let end = self.end_of_grains()?;
        if end < self.grains.file_len {
            self.file.set_len(end).map_err(Error::io("setting the length", end))?;
            self.grains.file_len = end;
        }
        Ok(())
    }

    /// Replaces the text of the embedded descriptor.
    pub fn replace_descriptor(&mut self, text: &[u8]) -> Result<()> {
        self.begin()?;
        self.flush()?;
        let end = self.end_of_grains()?.next_multiple_of(SECTOR);
        self.switch(self.header.clone(), end, Some(text))
    }

    /// Host offset and tables of the grain directory, and of the redundant one.
    fn directories(&self) -> [Option<(u64, Vec<u64>)>; 2] {
        let directory = match self.header.directory {
            Directory::At(sector) => Some((sector * SECTOR, self.grains.directory.clone())),
            Directory::AtEnd => None,
        };
        let redundant = self.header.redundant_directory_sector();
        let redundant = redundant.map(|sector| (sector * SECTOR, self.grains.redundant_directory.clone()));
        [directory, redundant.filter(|(_, tables)| !tables.is_empty())]
    }

    /// Whether what follows directories and last tables, up to the length that they get, is zeros and not used.
    fn tails_are_free(&self, header: &Header) -> Result<bool> {
        let (mut used, mut tails) = (self.grains.metadata.clone(), Vec::new());
        for (at, tables) in self.directories().into_iter().flatten() {
            let end = at + tables.len() as u64 * 4;
            used.push(at..end);
            tails.push(end..at + header.directory_entries() * 4);
            for (index, table) in tables.iter().enumerate().filter(|(_, table)| **table != 0) {
                used.push(*table..table + self.grains.table_entries(index) * 4);
            }
            if let Some(last) = tables.last().filter(|last| **last != 0) {
                let index = tables.len() - 1;
                tails.push(last + self.grains.table_entries(index) * 4..last + header.table_bytes(index as u64));
            }
        }
        tails.retain(|tail| !tail.is_empty());
        let overlaps = |range: &Range<u64>| tails.iter().any(|tail| tail.start < range.end && range.start < tail.end);
        if used.iter().any(overlaps) {
            return Ok(false);
        }
        let mut has_grain = false;
        self.each_grain(&mut |grain| has_grain |= overlaps(&grain))?;
        for tail in &tails {
            if has_grain || tail.end > self.grains.file_len {
                return Ok(false);
            }
            let mut bytes = vec![0; (tail.end - tail.start) as usize];
            table::read(&*self.file, &mut bytes, tail.start)?;
            if !is_zero(&bytes) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Adds tables to the directory at host offset `at`, for the capacity in the header. New tables begin at the host offset `end`, which moves on.
    fn longer_directory(
        &mut self,
        header: &Header,
        at: u64,
        mut tables: Vec<u64>,
        end: &mut u64,
    ) -> Result<NewDirectory> {
        let (old, first) = (tables.len() as u64, *end);
        let stride = (self.grains.entries_per_table * 4).next_multiple_of(SECTOR);
        tables.extend((old..header.directory_entries()).map(|index| first + (index - old) * stride));
        *end = first + (tables.len() as u64 - old) * stride;
        self.clear(first..*end)?;
        let added = tables.get(old as usize..).unwrap_or_default();
        self.write_entries(added, at + old * 4)?;
        Ok(NewDirectory { tables, at })
    }

    /// Writes a directory for the capacity in the header, and the tables that it has more, at the host offset `end`, which moves on. The last of
    /// the old tables is copied if it gets more entries.
    fn new_directory(&mut self, header: &Header, mut tables: Vec<u64>, end: &mut u64) -> Result<NewDirectory> {
        let (entries, at) = (self.grains.entries_per_table, *end);
        let (count, stride) = (header.directory_entries(), (entries * 4).next_multiple_of(SECTOR));
        let first = at + (count * 4).next_multiple_of(SECTOR);
        let full = (self.header.capacity.div_ceil(self.header.grain_size) / entries).min(tables.len() as u64);
        let partial = tables.get(full as usize).copied().filter(|table| *table != 0);
        let mut copied = vec![0; self.header.table_bytes(full) as usize];
        if let Some(table) = partial {
            table::read(&*self.file, &mut copied, table)?;
        }
        tables.truncate(full as usize);
        tables.extend((full..count).map(|index| first + (index - full) * stride));
        *end = first + (count - full) * stride;
        self.clear(at..*end)?;
        self.write_entries(&tables, at)?;
        if !copied.is_empty() {
            self.file.write_all_at(&copied, first).map_err(Error::io("writing a grain table", first))?;
        }
        Ok(NewDirectory { tables, at })
    }

    /// Makes a host range zeros, which may end after the file.
    fn clear(&mut self, range: Range<u64>) -> Result<()> {
        u32::try_from(range.end / SECTOR).map_err(|_| too_large(range.end))?;
        let zeroed = write_zeros(&*self.file, range.start..self.grains.file_len.clamp(range.start, range.end));
        zeroed.map_err(Error::io("writing zeros", range.start))?;
        self.grow_file(range.end)?;
        self.pages.forget(&range);
        Ok(())
    }

    /// Writes entries of a grain directory.
    fn write_entries(&mut self, tables: &[u64], at: u64) -> Result<()> {
        let bytes: Vec<u8> = tables.iter().flat_map(|table| ((table / SECTOR) as u32).to_le_bytes()).collect();
        if !bytes.is_empty() {
            self.file.write_all_at(&bytes, at).map_err(Error::io("writing a grain directory", at))?;
            self.pages.forget(&(at..at + bytes.len() as u64));
        }
        Ok(())
    }

    /// Makes a header that of the extent, together with the text of the descriptor. The host offset `end` is after everything in use.
    fn switch(&mut self, header: Header, end: u64, text: Option<&[u8]>) -> Result<()> {
        if let (Some(text), Some(range)) = (text, header.descriptor.clone()) {
            let len = range.end - range.start;
            let mut bytes = text.to_vec();
            if bytes.len() as u64 > len {
                return Err(Error::unsupported(FORMAT_NAME, "a descriptor that is longer than the space for it"));
            }
            bytes.resize(len as usize, 0);
            let mut old = vec![0; len as usize];
            table::read(&*self.file, &mut old, range.start)?;
            self.grow_file(end + len)?;
            self.write(&old, end, "writing a copy of the descriptor")?;
            self.write_header(&Header { descriptor: Some(end..end + len), ..self.header.clone() })?;
            self.write(&bytes, range.start, "writing the descriptor")?;
        } else {
            self.sync()?;
        }
        self.write_header(&header)?;
        self.header = header;
        Ok(())
    }

    fn write(&self, bytes: &[u8], at: u64, action: &'static str) -> Result<()> {
        self.file.write_all_at(bytes, at).map_err(Error::io(action, at))?;
        self.sync()
    }

    /// Writes the fields that change; what else is in the sector stays.
    fn write_header(&self, header: &Header) -> Result<()> {
        let mut sector = [0; SECTOR as usize];
        table::read(&*self.file, &mut sector, 0)?;
        let new = header.encode();
        let redundant = header.redundant_directory.map(|_| REDUNDANT_DIRECTORY);
        for range in [CAPACITY, DESCRIPTOR, DIRECTORY].into_iter().chain(redundant) {
            if let (Some(place), Some(field)) = (sector.get_mut(range.clone()), new.get(range)) {
                place.copy_from_slice(field);
            }
        }
        self.write(&sector, 0, "writing the header")
    }
}
