//! Changes a map of two levels in place.
//!
//! Tables are changed in memory. [`MapUpdate::flush`] makes the payload and new tables, which are zeros, durable, and then writes the changed
//! sectors of tables. So a power cut leaves clusters after the end of what is used at most, which are allocated again.
//!
//! A cluster keeps its host offset: zeros and discards are holes in it. The payload of a compressed cluster that is written to is not used again.

use std::ops::Range;
use std::sync::Arc;

use super::{ENTRY, Entry, IMAGE, Shape};
use crate::driver::{Allocation, Extent, ExtentKind, Location};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table_pages::{Step, TablePages};
use crate::format::shared::{run, table};
use crate::io::{Storage, write_zeros};

/// The L1 table and the L2 tables.
const TABLES: Step = Step(0);
/// Largest page of tables in bytes.
const PAGE: u64 = 4096;

/// The map of an image that changes.
pub(crate) struct MapUpdate {
    pub shape: Shape,
    file: Arc<dyn Storage>,
    file_len: u64,
    kind: ParseEntry,
    /// Host ranges of the header and the L1 table, in which no cluster begins.
    reserved: [Range<u64>; 2],
    /// Pages are not larger than clusters and tables, so that none has a part of a new table and something else.
    pages: TablePages,
    /// Host offset after all clusters in use, once it is known.
    next: Option<u64>,
    /// Host offsets of clusters that were allocated and given up.
    released: Vec<u64>,
}

/// Parses an entry. What it points to is checked, for all bytes of the cluster that are on the disk, against the file length, which is the
/// last argument.
pub(crate) type ParseEntry = fn(&Shape, Entry, u64) -> Result<ExtentKind>;

impl MapUpdate {
    /// The map of `file`. No cluster is allocated before the end of `reserved`, the header and the L1 table.
    pub fn new(file: Arc<dyn Storage>, shape: Shape, kind: ParseEntry, reserved: [Range<u64>; 2]) -> Result<MapUpdate> {
        let (file_len, pages) = (table::length(&*file)?, pages(&file, &shape));
        Ok(MapUpdate { shape, file, file_len, kind, reserved, pages, next: None, released: Vec::new() })
    }

    /// The extent at guest offset `range.start`, as [`SparseUpdate::extent_at`](crate::driver::SparseUpdate::extent_at).
    pub fn extent_at(&mut self, range: Range<u64>) -> Result<Extent> {
        let shape = self.shape;
        let end = range.end.min(shape.virtual_size);
        if self.l2_entry_at(range.start)?.is_none() {
            let until = self.next_table(range.start).min(shape.virtual_size);
            return Ok(Extent::new(range.start..until, ExtentKind::Hole));
        }
        let (kind, len) = (self.kind_at(range.start)?, shape.len_in_cluster(range.start));
        Ok(run::merge(Extent { offset: range.start, len, kind }, end, |at| {
            self.kind_at(at).ok().map(|kind| (kind, shape.len_in_cluster(at)))
        }))
    }

    /// What the cluster of a guest offset is, from that offset on.
    pub fn kind_at(&mut self, offset: u64) -> Result<ExtentKind> {
        let Some(at) = self.l2_entry_at(offset)? else { return Ok(ExtentKind::Hole) };
        let value = (self.shape.decode)(self.pages.read_array(at)?);
        let kind = (self.kind)(&self.shape, Entry { value, at, offset }, self.file_len)?;
        if let ExtentKind::Data(Location { offset: host, .. }) = kind {
            let host = host - offset % self.shape.cluster_size();
            if self.reserved.iter().any(|range| range.contains(&host)) {
                let problem = Problem::Overlap { offset: host, with: "the header or the L1 table" };
                return Err(self.shape.field("L2 entry", at).fault(problem));
            }
        }
        Ok(kind)
    }

    /// Host offset of the L2 entry for a guest offset, if it has a table.
    pub fn l2_entry_at(&mut self, offset: u64) -> Result<Option<u64>> {
        let at = self.l1_entry_at(offset);
        let table = (self.shape.decode)(self.pages.read_array(at)?);
        if table == 0 {
            return Ok(None);
        }
        let field = self.shape.field("L1 entry", at);
        field.aligned(table, self.shape.cluster_size())?;
        field.within(table, self.shape.l2_len(), self.file_len)?;
        Ok(Some(self.entry_in(table, offset)))
    }

    /// The guest offset at which the next L2 table begins.
    pub fn next_table(&self, offset: u64) -> u64 {
        (offset / self.shape.l2_coverage() + 1).saturating_mul(self.shape.l2_coverage())
    }

    /// Sets the entry of a guest offset. Its table is created if there is none.
    pub fn set_entry(&mut self, offset: u64, value: u64) -> Result<()> {
        let at = match self.l2_entry_at(offset)? {
            Some(at) => at,
            None => self.new_table(offset)?,
        };
        self.pages.write(&(self.shape.encode)(value), at, TABLES)
    }

    /// As [`SparseUpdate::allocate`](crate::driver::SparseUpdate::allocate). Changes that are many have been [flushed](Self::flush).
    pub fn allocate(&mut self, guest: Range<u64>) -> Result<Allocation> {
        let cluster_size = self.shape.cluster_size();
        let start = guest.start - guest.start % cluster_size;
        if let ExtentKind::Data(at) = self.kind_at(guest.start)? {
            let mut end = (start + cluster_size).min(guest.end);
            let mut host_end = at.offset - (guest.start - start) + cluster_size;
            while end < guest.end && self.kind_at(end)? == ExtentKind::Data(Location { file: IMAGE, offset: host_end })
            {
                (end, host_end) = ((end + cluster_size).min(guest.end), host_end + cluster_size);
            }
            // The last cluster of a file may be cut off.
            self.grow_file(host_end)?;
            return Ok(Allocation { guest: guest.start..end, at, is_new: false, reads_as_zeros: false });
        }
        let offset = match self.released.pop() {
            Some(offset) => offset,
            None => self.allocate_space(cluster_size)?,
        };
        let reads_as_zeros = offset >= self.file_len && self.file.starts_zeroed();
        self.grow_file(offset + cluster_size).inspect_err(|_| self.released.push(offset))?;
        let at = Location { file: IMAGE, offset };
        Ok(Allocation { guest: start..start + cluster_size, at, is_new: true, reads_as_zeros })
    }

    /// As [`SparseUpdate::publish`](crate::driver::SparseUpdate::publish): the entry of a data cluster is its host offset.
    pub fn publish(&mut self, allocation: &Allocation) -> Result<()> {
        self.set_entry(allocation.guest.start, allocation.at.offset)
    }

    /// As [`SparseUpdate::release`](crate::driver::SparseUpdate::release).
    pub fn release(&mut self, allocation: &Allocation) {
        self.released.push(allocation.at.offset);
    }

    /// Bytes from the start of `guest` to the end of its cluster, or of the range.
    pub fn one_cluster(&self, guest: &Range<u64>) -> u64 {
        let cluster_size = self.shape.cluster_size();
        (cluster_size - guest.start % cluster_size).min(guest.end - guest.start)
    }

    /// Whether there are so many changes that they have to be flushed before the next one.
    pub fn is_full(&self) -> bool {
        self.pages.is_full()
    }

    /// Makes the payload durable, and then the tables.
    pub fn flush(&mut self) -> Result<()> {
        self.sync()?;
        if self.pages.write_back(TABLES)? {
            self.sync()?;
        }
        Ok(())
    }

    pub fn sync(&self) -> Result<()> {
        self.file.sync().map_err(Error::io("syncing", None))
    }

    /// Drops all clusters and L2 tables: the file ends with the header and the L1 table then.
    pub fn empty(&mut self) -> Result<()> {
        self.flush()?;
        for index in 0..self.shape.l1_entries() {
            let at = self.shape.l1_offset + index * ENTRY;
            if self.pages.read_array(at)? != [0; ENTRY as usize] {
                self.pages.write(&[0; ENTRY as usize], at, TABLES)?;
            }
            if self.pages.is_full() {
                self.flush()?;
            }
        }
        self.flush()?;
        let end = self.end_of_reserved();
        self.pages = pages(&self.file, &self.shape);
        (self.next, self.released) = (None, Vec::new());
        self.file.set_len(end).map_err(Error::io("setting the length", end))?;
        self.file_len = end;
        self.sync()
    }

    /// Host offset of the L1 entry for a guest offset.
    fn l1_entry_at(&self, offset: u64) -> u64 {
        self.shape.l1_offset + offset / self.shape.l2_coverage() * ENTRY
    }

    /// Host offset of the entry for a guest offset in the L2 table at host offset `table`.
    fn entry_in(&self, table: u64, offset: u64) -> u64 {
        table + (offset >> self.shape.cluster_bits) % self.shape.l2_entries * ENTRY
    }

    /// Creates the L2 table for a guest offset, and returns the host offset of its entry.
    fn new_table(&mut self, offset: u64) -> Result<u64> {
        let len = self.shape.l2_len();
        let (table, file_len) = (self.allocate_space(len)?, self.file_len);
        let end = table + len;
        let old = if self.file.starts_zeroed() { table..end.min(file_len).max(table) } else { table..end };
        let zero = |map: &mut Self| write_zeros(&*map.file, old).map_err(Error::io("writing a table", table));
        // After an error, the space is still free.
        self.grow_file(end).and_then(|()| zero(self)).inspect_err(|_| self.next = Some(table))?;
        self.pages.forget(&(table..end));
        self.pages.write(&(self.shape.encode)(table), self.l1_entry_at(offset), TABLES)?;
        Ok(self.entry_in(table, offset))
    }

    /// Allocates whole clusters after all others.
    fn allocate_space(&mut self, len: u64) -> Result<u64> {
        let start = match self.next {
            Some(next) => next,
            None => self.end_of_clusters()?,
        };
        let end = start.checked_add(len).and_then(|end| end.checked_next_multiple_of(self.shape.cluster_size()));
        let end = end.filter(|end| i64::try_from(*end).is_ok());
        self.next = end;
        end.map(|_| start).ok_or_else(|| Error::limit(self.shape.format, "file length", start, i64::MAX as u64))
    }

    /// Host offset after all clusters in use.
    ///
    /// # Errors
    /// If an entry is corrupt: a new cluster could be where it points to.
    fn end_of_clusters(&mut self) -> Result<u64> {
        let shape = self.shape;
        let mut end = self.end_of_reserved();
        let mut offset = 0;
        while offset < shape.virtual_size {
            if offset.is_multiple_of(shape.l2_coverage()) {
                match self.l2_entry_at(offset)? {
                    None => {
                        offset = self.next_table(offset);
                        continue;
                    }
                    Some(table) => end = end.max(table + shape.l2_len()),
                }
            }
            end = end.max(match self.kind_at(offset)? {
                ExtentKind::Data(at) => at.offset + shape.cluster_size(),
                ExtentKind::Compressed(payload) => payload.at.offset + u64::from(payload.stored_len),
                _ => 0,
            });
            offset += shape.cluster_size();
        }
        Ok(end.next_multiple_of(shape.cluster_size()))
    }

    fn end_of_reserved(&self) -> u64 {
        self.reserved.iter().map(|range| range.end).max().unwrap_or(0)
    }

    fn grow_file(&mut self, len: u64) -> Result<()> {
        if len > self.file_len {
            self.file.set_len(len).map_err(Error::io("setting the length", len))?;
            self.file_len = len;
        }
        Ok(())
    }
}

fn pages(file: &Arc<dyn Storage>, shape: &Shape) -> TablePages {
    let size = PAGE.min(shape.cluster_size()).min(shape.l2_len());
    TablePages::new(file.clone(), shape.format, size as usize)
}
