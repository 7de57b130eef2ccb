//! A hosted sparse extent: grains, grain tables and their redundant copies.
//!
//! # Order
//!
//! The extent is marked as not closed cleanly before anything else. Tables are changed in memory, and written by [`SparseExtent::flush`] in these
//! steps with a sync after each: new tables; entries of the grain directory and the tables; the redundant copies of these. So the redundant
//! copies may lack what was written last, as long as the extent is marked. Grains are allocated after the last one in use, and keep their
//! place: zeros and discards are holes in them.

mod grow;

use std::ops::Range;
use std::sync::Arc;

use crate::driver::{Allocation, Extent, ExtentKind, Location, OpenContext, Zeroed};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table_pages::{Step, TablePages};
use crate::format::shared::{run, table};
use crate::format::vmdk::grains::{EntryFormat, GrainEntry, GrainMap};
use crate::format::vmdk::header::{Directory, Header};
use crate::format::vmdk::hosted::Hosted;
use crate::format::vmdk::{FIELDS, FORMAT_NAME, SECTOR, SparseKind, reader};
use crate::io::Storage;

/// Tables that nothing points to yet.
const NEW: Step = Step(0);
/// The grain directory and the tables.
const TABLES: Step = Step(1);
/// Their redundant copies.
const REDUNDANT: Step = Step(2);
/// Offset of `uncleanShutdown` in the header.
const UNCLEAN_AT: u64 = 72;
/// Entry of a zeroed grain.
const ZEROED: u32 = 1;
/// Bytes of a table that are read at once.
const CHUNK: u64 = 64 << 10;

pub(super) struct SparseExtent {
    file: Arc<dyn Storage>,
    pub grains: GrainMap,
    header: Header,
    pages: TablePages,
    /// Host offset after the last grain in use, once it is known.
    next: Option<u64>,
    /// Host offsets of grains that were allocated and given up.
    released: Vec<u64>,
    /// Whether it is marked as not closed cleanly.
    is_marked: bool,
}

impl SparseExtent {
    pub fn open(file: Arc<dyn Storage>, grains: GrainMap, cx: &OpenContext<'_>) -> Result<SparseExtent> {
        let is_plain = matches!(grains.entry_format, EntryFormat::Sectors { framing: None, .. });
        if !is_plain || reader::sparse_kind(&*file)? != Some(SparseKind::Hosted) {
            return Err(Error::unsupported(FORMAT_NAME, "writing in place to an ESXi or compressed extent"));
        }
        let header = Hosted::read(file.clone(), grains.id, cx)?.header;
        let pages = TablePages::new(file.clone(), FORMAT_NAME, SECTOR as usize);
        Ok(SparseExtent { file, grains, header, pages, next: None, released: Vec::new(), is_marked: false })
    }

    /// Prepares for a change.
    fn begin(&mut self) -> Result<()> {
        if !self.is_marked {
            if self.header.unclean {
                self.compare_copies()?;
            }
            self.mark(true)?;
        }
        if self.pages.is_full() { self.flush() } else { Ok(()) }
    }

    /// Completes the redundant copies. [`close`](Self::close) then marks the extent as closed.
    pub fn complete(&mut self) -> Result<()> {
        self.begin()?;
        self.flush()
    }

    fn mark(&mut self, unclean: bool) -> Result<()> {
        let written = self.file.write_all_at(&[unclean.into()], UNCLEAN_AT);
        written.map_err(Error::io("writing the header", UNCLEAN_AT))?;
        self.is_marked = unclean;
        Ok(())
    }

    /// Completes the redundant copies of an extent that was not closed.
    ///
    /// # Errors
    /// If they have what the tables do not have: this program writes the tables first.
    fn compare_copies(&mut self) -> Result<()> {
        for index in 0..self.grains.directory.len() {
            let Some((table, copy)) = self.table(index) else { continue };
            let Some(copy) = copy else {
                if self.grains.redundant_directory.get(index) == Some(&0) {
                    self.copy_table(index, table)?;
                }
                continue;
            };
            for at in (0..self.grains.table_entries(index) * 4).step_by(4) {
                let [entry, other] = [self.pages.read_array::<4>(table + at)?, self.pages.read_array(copy + at)?];
                if entry == other {
                    continue;
                }
                if other != [0; 4] {
                    let finding = "the redundant grain table has another grain";
                    let value = u32::from_le_bytes(entry).into();
                    return Err(FIELDS.at("grain table entry", table + at).fault(Problem::Conflict { value, finding }));
                }
                if self.pages.is_full() {
                    self.flush()?;
                }
                self.pages.write(&entry, copy + at, REDUNDANT)?;
            }
        }
        Ok(())
    }

    /// Host offsets of a grain table and of its redundant copy.
    fn table(&self, index: usize) -> Option<(u64, Option<u64>)> {
        let table = self.grains.directory.get(index).copied().filter(|table| *table != 0)?;
        let copy = self.grains.redundant_directory.get(index).copied();
        Some((table, copy.filter(|copy| *copy != 0 && *copy != table)))
    }

    /// Host offsets of the entry of a grain and of its redundant copy, if there is a table.
    fn entry_at(&self, grain: u64) -> Option<(u64, Option<u64>)> {
        let (table, copy) = self.table((grain / self.grains.entries_per_table) as usize)?;
        let within = grain % self.grains.entries_per_table * 4;
        Some((table + within, copy.map(|copy| copy + within)))
    }

    /// The kind and length of the extent at `offset`, to the end of its grain.
    fn grain(&mut self, offset: u64) -> Result<(ExtentKind, u64)> {
        let Some((at, _)) = self.entry_at(offset / self.grains.grain_bytes) else {
            let len = self.grains.grain_bytes - offset % self.grains.grain_bytes;
            return Ok((ExtentKind::Hole, len.min(self.grains.len - offset)));
        };
        let entry = self.pages.read_array::<4>(at)?;
        self.grains.grain_extent(&entry, at, offset)
    }

    /// Returns the extent at the start of a range of this extent.
    pub fn extent_at(&mut self, range: Range<u64>) -> Result<Extent> {
        let (kind, len) = self.grain(range.start)?;
        Ok(run::merge(Extent { offset: range.start, len, kind }, range.end, |at| {
            if at < self.grains.len { self.grain(at).ok() } else { None }
        }))
    }

    /// Allocates a grain for the start of a range, or returns what it has.
    pub fn allocate(&mut self, range: Range<u64>) -> Result<Allocation> {
        self.begin()?;
        if range.start >= self.grains.len {
            return self.rest_of_last_grain(range);
        }
        let found = self.extent_at(range.clone())?;
        let id = self.grains.id;
        if let ExtentKind::Data(at) = found.kind {
            let guest = range.start..found.end().min(range.end);
            self.check_grain(at.offset..at.offset + (guest.end - guest.start))?;
            return Ok(Allocation { guest, at, is_new: false, reads_as_zeros: false });
        }
        let grain_bytes = self.grains.grain_bytes;
        let start = range.start - range.start % grain_bytes;
        self.own_table((start / grain_bytes / self.grains.entries_per_table) as usize)?;
        let offset = match self.released.pop() {
            Some(offset) => offset,
            None => self.new_grain()?,
        };
        let reads_as_zeros = offset >= self.grains.file_len && self.file.starts_zeroed();
        self.grow_file(offset + grain_bytes).inspect_err(|_| self.released.push(offset))?;
        // The last grain may end after the extent.
        let guest = start..(start + grain_bytes).min(self.grains.len);
        Ok(Allocation { guest, at: Location { file: id, offset }, is_new: true, reads_as_zeros })
    }

    /// Returns where the last grain has a range after the end of the extent.
    fn rest_of_last_grain(&mut self, range: Range<u64>) -> Result<Allocation> {
        let grain_bytes = self.grains.grain_bytes;
        let at = self.entry_at(range.start / grain_bytes).filter(|_| !range.start.is_multiple_of(grain_bytes));
        let entry = at.map(|(at, _)| self.pages.read_array::<4>(at).and_then(|entry| self.grains.entry(&entry, at)));
        let Some(GrainEntry::Allocated(host)) = entry.transpose()? else {
            return Err(Error::unsupported(FORMAT_NAME, "making a disk larger in place that has a larger parent"));
        };
        let (within, start) = (range.start % grain_bytes, range.start - range.start % grain_bytes);
        self.check_grain(host..host + grain_bytes)?;
        self.grow_file(host + grain_bytes)?;
        let guest = range.start..range.end.min(start + grain_bytes);
        let at = Location { file: self.grains.id, offset: host + within };
        Ok(Allocation { guest, at, is_new: false, reads_as_zeros: false })
    }

    /// Makes the tables point to a grain.
    pub fn publish(&mut self, offset: u64, host: u64) -> Result<()> {
        let sector = u32::try_from(host / SECTOR).map_err(|_| too_large(host))?;
        self.set_entry(offset / self.grains.grain_bytes, sector)
    }

    pub fn release(&mut self, host: u64) {
        self.released.push(host);
    }

    /// Makes the start of a range of whole grains read as zeros, if it has no grain.
    pub fn zero(&mut self, range: Range<u64>, has_parent: bool) -> Result<Zeroed> {
        let (kind, len) = self.grain(range.start)?;
        let len = len.min(range.end - range.start);
        let has_zeros = matches!(self.grains.entry_format, EntryFormat::Sectors { zeroed_grains: true, .. });
        match kind {
            ExtentKind::Zero { .. } => {}
            ExtentKind::Hole if !has_parent => {}
            ExtentKind::Hole if has_zeros => {
                self.begin()?;
                let grain = range.start / self.grains.grain_bytes;
                self.own_table((grain / self.grains.entries_per_table) as usize)?;
                self.set_entry(grain, ZEROED)?;
            }
            _ => return Ok(Zeroed::Not(len)),
        }
        Ok(Zeroed::ByMetadata(len))
    }

    pub fn flush(&mut self) -> Result<()> {
        self.pages.write_back(NEW)?;
        self.sync()?;
        for step in [TABLES, REDUNDANT] {
            if self.pages.write_back(step)? {
                self.sync()?;
            }
        }
        Ok(())
    }

    /// Marks the extent as closed, after everything was flushed.
    pub fn close(&mut self) -> Result<()> {
        if self.is_marked {
            self.mark(false)?;
            self.header.unclean = false;
            return self.sync();
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.file.sync().map_err(Error::io("syncing", None))
    }

    fn set_entry(&mut self, grain: u64, entry: u32) -> Result<()> {
        let Some((at, copy)) = self.entry_at(grain) else {
            return Err(Error::Usage("a grain without a grain table".into()));
        };
        // It is in memory then: an entry is not changed without its copy.
        copy.map_or(Ok([0; 4]), |copy| self.pages.read_array(copy))?;
        self.pages.write(&entry.to_le_bytes(), at, TABLES)?;
        copy.map_or(Ok(()), |copy| self.pages.write(&entry.to_le_bytes(), copy, REDUNDANT))
    }

    /// Creates a grain table and its redundant copy, where there is none.
    fn own_table(&mut self, index: usize) -> Result<()> {
        if self.table(index).is_some() {
            return Ok(());
        }
        let (directory, redundant) = (self.header.directory, self.header.redundant_directory_sector());
        let Directory::At(directory) = directory else {
            return Err(Error::unsupported(FORMAT_NAME, "a grain directory at the end of the file"));
        };
        let redundant = redundant.filter(|_| !self.grains.redundant_directory.is_empty());
        let entry = |directory: u64| directory * SECTOR + index as u64 * 4;
        let mut entries = vec![(entry(directory), TABLES)];
        entries.extend(redundant.map(|directory| (entry(directory), REDUNDANT)));
        let len = self.table_len();
        let offset = self.end_of_grains()?.next_multiple_of(SECTOR);
        let end = offset + len * entries.len() as u64;
        u32::try_from(end / SECTOR).map_err(|_| too_large(end))?;
        self.grow_file(end)?;
        // All that can fail comes before the first change: a table without its copy would never get one.
        for (at, _) in &entries {
            self.pages.read_array::<4>(*at)?;
        }
        self.next = Some(end);
        for ((at, step), offset) in entries.into_iter().zip((offset..end).step_by(len as usize)) {
            self.set_directory_entry(index, at, offset, step)?;
            self.pages.create(offset..offset + len, NEW);
        }
        Ok(())
    }

    /// Length of a table in its file.
    fn table_len(&self) -> u64 {
        (self.grains.entries_per_table * 4).next_multiple_of(SECTOR)
    }

    /// Makes the entry of a directory, which is at `at`, point to the table at `offset`.
    fn set_directory_entry(&mut self, index: usize, at: u64, offset: u64, step: Step) -> Result<()> {
        let sector = u32::try_from(offset / SECTOR).map_err(|_| too_large(offset))?;
        self.pages.write(&sector.to_le_bytes(), at, step)?;
        let tables = if step == TABLES { &mut self.grains.directory } else { &mut self.grains.redundant_directory };
        if let Some(table) = tables.get_mut(index) {
            *table = offset;
        }
        Ok(())
    }

    /// Creates the redundant copy of a table that lacks one.
    fn copy_table(&mut self, index: usize, table: u64) -> Result<()> {
        let Some(directory) = self.header.redundant_directory_sector() else { return Ok(()) };
        let len = self.table_len();
        let offset = self.end_of_grains()?.next_multiple_of(SECTOR);
        self.grow_file(offset + len)?;
        self.next = Some(offset + len);
        self.pages.create(offset..offset + len, NEW);
        for at in (0..self.grains.table_entries(index) * 4).step_by(4) {
            let entry = self.pages.read_array::<4>(table + at)?;
            self.pages.write(&entry, offset + at, NEW)?;
        }
        self.set_directory_entry(index, directory * SECTOR + index as u64 * 4, offset, REDUNDANT)
    }

    /// Host offset of a new grain.
    fn new_grain(&mut self) -> Result<u64> {
        let offset = self.end_of_grains()?.next_multiple_of(self.grains.grain_bytes);
        u32::try_from(offset / SECTOR).map_err(|_| too_large(offset))?;
        self.next = Some(offset + self.grains.grain_bytes);
        Ok(offset)
    }

    /// Host offset after all grains and tables.
    fn end_of_grains(&mut self) -> Result<u64> {
        if let Some(next) = self.next {
            return Ok(next);
        }
        let mut end = self.header.overhead.saturating_mul(SECTOR).min(self.grains.file_len);
        end = self.grains.metadata.iter().map(|range| range.end).fold(end, u64::max);
        for index in 0..self.grains.directory.len() {
            let Some((table, copy)) = self.table(index) else { continue };
            let len = self.grains.table_entries(index) * 4;
            end = end.max(table + len).max(copy.map_or(0, |copy| copy + len));
        }
        self.each_grain(&mut |grain| end = end.max(grain.end))?;
        self.next = Some(end);
        Ok(end)
    }

    /// Calls `seen` with the host range of each grain in the tables of the file.
    ///
    /// # Errors
    /// If one is out of bounds: a new grain could be where its entry points to.
    fn each_grain(&self, seen: &mut dyn FnMut(Range<u64>)) -> Result<()> {
        let mut bytes = Vec::new();
        for index in 0..self.grains.directory.len() {
            let Some((table, _)) = self.table(index) else { continue };
            let len = self.grains.table_entries(index) * 4;
            for at in (0..len).step_by(CHUNK as usize) {
                bytes.resize(CHUNK.min(len - at) as usize, 0);
                table::read(&*self.file, &mut bytes, table + at)?;
                for (entry, at) in bytes.as_chunks::<4>().0.iter().zip((table + at..).step_by(4)) {
                    if let GrainEntry::Allocated(host) = self.grains.entry(entry, at)? {
                        FIELDS.at("grain table entry", at).within(host, 1, self.grains.file_len)?;
                        seen(host..host.saturating_add(self.grains.grain_bytes));
                    }
                }
            }
        }
        Ok(())
    }

    /// Refuses to write guest data where metadata is.
    fn check_grain(&self, host: Range<u64>) -> Result<()> {
        match self.grains.metadata.iter().find(|range| range.start < host.end && host.start < range.end) {
            None => Ok(()),
            Some(_) => {
                let problem = Problem::Overlap { offset: host.start, with: "metadata" };
                Err(FIELDS.at("grain table entry", host.start).fault(problem))
            }
        }
    }

    fn grow_file(&mut self, len: u64) -> Result<()> {
        if len > self.grains.file_len {
            self.file.set_len(len).map_err(Error::io("setting the length", len))?;
            self.grains.file_len = len;
        }
        Ok(())
    }
}

/// The error for a grain or table beyond what entries can address.
fn too_large(offset: u64) -> Error {
    let (value, limit) = (offset / SECTOR, u32::MAX.into());
    Error::limit(FORMAT_NAME, "sector of a grain", value, limit)
}
