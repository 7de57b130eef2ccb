//! Changing an image in place.
//!
//! # Order
//!
//! Tables are changed in memory. [`Update::flush`] makes the payload and new tables, which are zeros, durable, and then writes the changed
//! sectors of tables. There are no reference counts and there is no mark: a power cut leaves clusters after the end of what is used at most, which
//! are allocated again.
//!
//! A cluster keeps its host offset: zeros and discards are holes in it. The payload of a compressed cluster that is written to is not used again.

use std::ops::Range;
use std::sync::Arc;

use super::entry::L2Entry;
use super::header::{Header, backing_name};
use super::{FIELDS, FORMAT_NAME, reader};
use crate::codec::Codec;
use crate::driver::{
    Allocation, Compressed, Extent, ExtentKind, Location, SparseUpdate, UpdateContext, UpdateSpec, Zeroed,
};
use crate::error::{Error, Problem, Result};
use crate::format::shared::run;
use crate::format::shared::table_pages::{Step, TablePages};
use crate::format::shared::two_level::{ENTRY, IMAGE, Shape};
use crate::info::ImageInfo;
use crate::io::{Storage, write_zeros};

/// The L1 table and the L2 tables.
const TABLES: Step = Step(0);
/// Largest page of tables in bytes.
const PAGE: u64 = 4096;

/// An image that changes.
pub(super) struct Update {
    file: Arc<dyn Storage>,
    file_len: u64,
    header: Header,
    /// Host offset after the name of the backing file.
    name_end: u64,
    /// Pages are not larger than clusters and tables, so that none has a part of a new table and something else.
    pages: TablePages,
    /// Host offset after all clusters in use, once it is known.
    next: Option<u64>,
    /// Host offsets of clusters that were allocated and given up.
    released: Vec<u64>,
}

impl Update {
    pub fn open(file: Arc<dyn Storage>, cx: &UpdateContext<'_>) -> Result<Update> {
        let header = Header::read(&*file, cx.open.limits)?;
        if header.is_encrypted {
            return Err(Error::unsupported(FORMAT_NAME, "writing to an encrypted image in place"));
        }
        if !header.l1_table_offset.is_multiple_of(ENTRY) {
            // An entry in two sectors would not be written at once.
            return Err(Error::unsupported(
                FORMAT_NAME,
                "writing to an image whose L1 table is not a multiple of 8 bytes into it",
            ));
        }
        let (bytes, file_len) = FIELDS.read_header(&*file)?;
        let name_end = backing_name(&bytes, file_len)?.map_or(0, |name| name.end);
        let pages = pages(&file, &header);
        Ok(Update { file, file_len, header, name_end, pages, next: None, released: Vec::new() })
    }

    fn shape(&self) -> Shape {
        self.header.shape()
    }

    fn cluster_size(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// Host offset after the L1 table.
    fn l1_end(&self) -> u64 {
        self.header.l1_table_offset + self.shape().l1_entries() * ENTRY
    }

    /// Host offset of the L1 entry for a guest offset.
    fn l1_entry_at(&self, offset: u64) -> u64 {
        self.header.l1_table_offset + offset / self.shape().l2_coverage() * ENTRY
    }

    /// Host offset of the L2 entry for a guest offset, if it has a table.
    fn l2_entry_at(&mut self, offset: u64) -> Result<Option<u64>> {
        let (shape, at) = (self.shape(), self.l1_entry_at(offset));
        let table = u64::from_be_bytes(self.pages.read_array(at)?);
        if table == 0 {
            return Ok(None);
        }
        let field = FIELDS.at("L1 entry", at);
        field.aligned(table, shape.cluster_size())?;
        field.within(table, shape.l2_len(), self.file_len)?;
        Ok(Some(table + (offset >> shape.cluster_bits) % shape.l2_entries * ENTRY))
    }

    /// The entry of a guest offset, and its host offset. What it points to is checked for all bytes of the cluster that are on the disk.
    fn entry(&mut self, offset: u64) -> Result<(L2Entry, u64)> {
        let Some(at) = self.l2_entry_at(offset)? else { return Ok((L2Entry::Unallocated, 0)) };
        let field = FIELDS.at("L2 entry", at);
        let entry = u64::from_be_bytes(self.pages.read_array(at)?);
        let entry = L2Entry::parse(entry, self.header.cluster_bits.into()).map_err(|problem| field.fault(problem))?;
        match entry {
            L2Entry::Unallocated => {}
            L2Entry::Data(host) => {
                field.aligned(host, self.cluster_size())?;
                let end = self.l1_end();
                if host < end {
                    return Err(field.fault(Problem::Overlap { offset: host, with: "the header or the L1 table" }));
                }
                let within = offset % self.cluster_size();
                field.within(host, within + self.shape().len_in_cluster(offset), self.file_len)?;
            }
            L2Entry::Compressed { host, len } => field.within(host, len.into(), self.file_len)?,
        }
        Ok((entry, at))
    }

    /// The extent at a guest offset, which ends with its cluster.
    fn extent(&mut self, offset: u64) -> Result<(ExtentKind, u64)> {
        let (len, within) = (self.shape().len_in_cluster(offset), offset % self.cluster_size());
        let kind = match self.entry(offset)?.0 {
            L2Entry::Unallocated => ExtentKind::Hole,
            L2Entry::Data(host) => ExtentKind::Data(Location { file: IMAGE, offset: host + within }),
            L2Entry::Compressed { host, len } => ExtentKind::Compressed(Compressed {
                at: Location { file: IMAGE, offset: host },
                stored_len: len,
                codec: Codec::Deflate,
                unit: offset - within,
                unit_len: self.cluster_size() as u32,
                min_len: self.cluster_size() as u32,
            }),
        };
        Ok((kind, len))
    }

    /// Creates the L2 table for a guest offset, and returns the host offset of its entry.
    fn new_table(&mut self, offset: u64) -> Result<u64> {
        let shape = self.shape();
        let (table, file_len) = (self.allocate_space(shape.l2_len())?, self.file_len);
        let end = table + shape.l2_len();
        let old = if self.file.starts_zeroed() { table..end.min(file_len).max(table) } else { table..end };
        let zero = |image: &mut Self| write_zeros(&*image.file, old).map_err(Error::io("writing a table", table));
        // After an error, the space is still free.
        self.grow_file(end).and_then(|()| zero(self)).inspect_err(|_| self.next = Some(table))?;
        self.pages.forget(&(table..end));
        self.pages.write(&table.to_be_bytes(), self.l1_entry_at(offset), TABLES)?;
        Ok(table + (offset >> shape.cluster_bits) % shape.l2_entries * ENTRY)
    }

    /// Allocates whole clusters after all others.
    fn allocate_space(&mut self, len: u64) -> Result<u64> {
        let start = match self.next {
            Some(next) => next,
            None => self.end_of_clusters()?,
        };
        let end = start.checked_add(len).and_then(|end| end.checked_next_multiple_of(self.cluster_size()));
        let end = end.filter(|end| i64::try_from(*end).is_ok());
        self.next = end;
        let (field, limit) = ("file length", i64::MAX as u64);
        let error =
            Error::Limit { name: None, format: FORMAT_NAME, field: field.into(), at: None, value: start, limit };
        end.map(|_| start).ok_or(error)
    }

    /// Host offset after all clusters in use.
    ///
    /// # Errors
    /// If an entry is corrupt: a new cluster could be where it points to.
    fn end_of_clusters(&mut self) -> Result<u64> {
        let shape = self.shape();
        let mut end = self.l1_end().max(self.name_end);
        let mut offset = 0;
        while offset < shape.virtual_size {
            if offset.is_multiple_of(shape.l2_coverage()) {
                match self.l2_entry_at(offset)? {
                    None => {
                        offset = offset.saturating_add(shape.l2_coverage());
                        continue;
                    }
                    Some(table) => end = end.max(table + shape.l2_len()),
                }
            }
            end = end.max(match self.entry(offset)?.0 {
                L2Entry::Unallocated => 0,
                L2Entry::Data(host) => host + shape.cluster_size(),
                L2Entry::Compressed { host, len } => host + u64::from(len),
            });
            offset += shape.cluster_size();
        }
        Ok(end.next_multiple_of(shape.cluster_size()))
    }

    fn grow_file(&mut self, len: u64) -> Result<()> {
        if len > self.file_len {
            self.file.set_len(len).map_err(Error::io("setting the length", len))?;
            self.file_len = len;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.file.sync().map_err(Error::io("syncing", None))
    }

    /// Whether the start of `guest` reads as zeros already, up to the end of its cluster. There are no zero clusters.
    fn zeroed(&mut self, guest: &Range<u64>) -> Result<Zeroed> {
        let len = (self.cluster_size() - guest.start % self.cluster_size()).min(guest.end - guest.start);
        Ok(match self.entry(guest.start)?.0 {
            L2Entry::Unallocated if self.header.backing_file.is_none() => Zeroed::ByMetadata(len),
            _ => Zeroed::Not(len),
        })
    }
}

fn pages(file: &Arc<dyn Storage>, header: &Header) -> TablePages {
    let (shape, file) = (header.shape(), file.clone());
    TablePages::new(file, FORMAT_NAME, PAGE.min(shape.cluster_size()).min(shape.l2_len()) as usize)
}

impl SparseUpdate for Update {
    fn info(&self) -> ImageInfo {
        reader::describe(&self.header)
    }

    fn spec(&self) -> UpdateSpec {
        UpdateSpec::new(self.cluster_size())
    }

    fn files(&self) -> Vec<Arc<dyn Storage>> {
        vec![self.file.clone()]
    }

    fn extent_at(&mut self, range: Range<u64>) -> Result<Extent> {
        let shape = self.shape();
        let end = range.end.min(shape.virtual_size);
        if self.l2_entry_at(range.start)?.is_none() {
            let until = (range.start / shape.l2_coverage() + 1).saturating_mul(shape.l2_coverage());
            return Ok(Extent::new(range.start..until.min(shape.virtual_size), ExtentKind::Hole));
        }
        let (kind, len) = self.extent(range.start)?;
        Ok(run::merge(Extent { offset: range.start, len, kind }, end, |at| self.extent(at).ok()))
    }

    fn allocate(&mut self, guest: Range<u64>) -> Result<Allocation> {
        if self.pages.is_full() {
            self.flush()?;
        }
        let (cluster_size, within) = (self.cluster_size(), guest.start % self.cluster_size());
        if let L2Entry::Data(host) = self.entry(guest.start)?.0 {
            let mut end = (guest.start - within + cluster_size).min(guest.end);
            let mut host_end = host + cluster_size;
            while end < guest.end && self.entry(end)?.0 == L2Entry::Data(host_end) {
                (end, host_end) = ((end + cluster_size).min(guest.end), host_end + cluster_size);
            }
            // The last cluster of a file may be cut off.
            self.grow_file(host_end)?;
            let at = Location { file: IMAGE, offset: host + within };
            return Ok(Allocation { guest: guest.start..end, at, is_new: false, reads_as_zeros: false });
        }
        let offset = match self.released.pop() {
            Some(offset) => offset,
            None => self.allocate_space(cluster_size)?,
        };
        let reads_as_zeros = offset >= self.file_len && self.file.starts_zeroed();
        self.grow_file(offset + cluster_size).inspect_err(|_| self.released.push(offset))?;
        let (start, at) = (guest.start - within, Location { file: IMAGE, offset });
        Ok(Allocation { guest: start..start + cluster_size, at, is_new: true, reads_as_zeros })
    }

    fn publish(&mut self, allocation: &Allocation) -> Result<()> {
        let at = match self.l2_entry_at(allocation.guest.start)? {
            Some(at) => at,
            None => self.new_table(allocation.guest.start)?,
        };
        let entry = L2Entry::Data(allocation.at.offset).encode(self.header.cluster_bits.into());
        self.pages.write(&entry.to_be_bytes(), at, TABLES)
    }

    fn release(&mut self, allocation: &Allocation) {
        self.released.push(allocation.at.offset);
    }

    fn zero(&mut self, guest: Range<u64>, _keep: bool) -> Result<Zeroed> {
        self.zeroed(&guest)
    }

    fn resize(&mut self, _size: u64, _below: u64) -> Result<()> {
        // The L1 table has no room to grow, and qemu does not resize such images either.
        Err(Error::unsupported(FORMAT_NAME, "changing the size"))
    }

    /// The file ends with the L1 table then.
    fn empty(&mut self) -> Result<()> {
        self.flush()?;
        for index in 0..self.shape().l1_entries() {
            let at = self.header.l1_table_offset + index * ENTRY;
            if self.pages.read_array(at)? != [0; ENTRY as usize] {
                self.pages.write(&[0; ENTRY as usize], at, TABLES)?;
            }
            if self.pages.is_full() {
                self.flush()?;
            }
        }
        self.flush()?;
        let end = self.l1_end().max(self.name_end);
        self.pages = pages(&self.file, &self.header);
        (self.next, self.released) = (None, Vec::new());
        self.file.set_len(end).map_err(Error::io("setting the length", end))?;
        self.file_len = end;
        self.sync()
    }

    fn flush(&mut self) -> Result<()> {
        self.sync()?;
        if self.pages.write_back(TABLES)? {
            self.sync()?;
        }
        Ok(())
    }
}
