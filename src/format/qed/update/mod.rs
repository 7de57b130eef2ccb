//! Changing an image in place.
//!
//! # Order
//!
//! The image is marked as in need of a check before its tables change, and unmarked when it is closed (QED specification, "Consistency
//! checking"). Tables are changed in memory. [`Update::flush`] makes the payload and new tables, which are zeros, durable, and then writes the
//! changed sectors of tables. So a power cut leaves clusters after the end of what is used at most, which are allocated again.
//!
//! A cluster keeps its host offset: zeros and discards are holes in it.

mod resize;

use std::ops::Range;
use std::sync::Arc;

use byteorder::{ByteOrder, LittleEndian};

use super::check::check;
use super::entry::{L2Entry, ZERO};
use super::header::{BACKING_FILE, BACKING_IS_RAW, Backing, Header, NEED_CHECK};
use super::{FIELDS, FORMAT_NAME, SECTOR, reader};
use crate::driver::{Allocation, Extent, ExtentKind, Location, SparseUpdate, UpdateContext, UpdateSpec, Zeroed};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table_pages::{Step, TablePages};
use crate::format::shared::two_level::{ENTRY, IMAGE, Shape};
use crate::format::shared::{run, table};
use crate::info::{FileReference, ImageInfo};
use crate::io::{Storage, write_zeros};
use crate::name::Name;

/// The L1 table and the L2 tables.
const TABLES: Step = Step(0);
/// Largest page of tables in bytes, the smallest cluster.
const PAGE: usize = 4096;
/// Offsets of `features` and `image_size` in the header.
const FEATURES_AT: u64 = 16;
const IMAGE_SIZE_AT: u64 = 48;

/// An image that changes.
pub(super) struct Update {
    file: Arc<dyn Storage>,
    file_len: u64,
    header: Header,
    pages: TablePages,
    /// Host offset after all clusters in use, once it is known.
    next: Option<u64>,
    /// Host offsets of clusters that were allocated and given up.
    released: Vec<u64>,
}

impl Update {
    pub fn open(file: Arc<dyn Storage>, cx: &UpdateContext<'_>) -> Result<Update> {
        cx.open.refuse_snapshots(FORMAT_NAME)?;
        let mut header = Header::read(&*file, cx.open.limits)?;
        if header.need_check {
            let report = check(file.clone(), &cx.open)?;
            if report.corruptions + report.check_errors > 0 {
                let feature = "writing to an image that was not closed cleanly and is damaged";
                return Err(Error::unsupported(FORMAT_NAME, feature));
            }
            // It is marked again before the first change.
            header.need_check = false;
        }
        let pages = TablePages::new(file.clone(), FORMAT_NAME, PAGE);
        let file_len = table::length(&*file)?;
        Ok(Update { file, file_len, header, pages, next: None, released: Vec::new() })
    }

    /// Prepares for a change.
    fn begin(&mut self) -> Result<()> {
        if !self.header.need_check {
            self.mark(true)?;
        }
        if self.pages.is_full() { self.flush() } else { Ok(()) }
    }

    /// Writes whether the image needs a check.
    fn mark(&mut self, need_check: bool) -> Result<()> {
        let mut features = [0; 8];
        table::read(&*self.file, &mut features, FEATURES_AT)?;
        let others = u64::from_le_bytes(features) & !NEED_CHECK;
        let features = if need_check { others | NEED_CHECK } else { others };
        self.write_header(&features.to_le_bytes(), FEATURES_AT)?;
        self.header.need_check = need_check;
        Ok(())
    }

    fn write_header(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.file.write_all_at(bytes, at).map_err(Error::io("writing the header", at))
    }

    fn shape(&self) -> Shape {
        self.header.shape()
    }

    fn cluster_size(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// Host offset of the L1 entry for a guest offset.
    fn l1_entry_at(&self, offset: u64) -> u64 {
        self.header.l1_table_offset + offset / self.shape().l2_coverage() * ENTRY
    }

    /// Host offset of the L2 entry for a guest offset, if it has a table.
    fn l2_entry_at(&mut self, offset: u64) -> Result<Option<u64>> {
        let (shape, at) = (self.shape(), self.l1_entry_at(offset));
        let table = u64::from_le_bytes(self.pages.read_array(at)?);
        if table == 0 {
            return Ok(None);
        }
        let field = FIELDS.at("L1 entry", at);
        field.aligned(table, shape.cluster_size())?;
        field.within(table, shape.l2_len(), self.file_len)?;
        Ok(Some(table + (offset >> shape.cluster_bits) % shape.l2_entries * ENTRY))
    }

    /// The entry of a guest offset, and its host offset.
    fn entry(&mut self, offset: u64) -> Result<(L2Entry, u64)> {
        match self.l2_entry_at(offset)? {
            None => Ok((L2Entry::Unallocated, 0)),
            Some(at) => Ok((L2Entry::parse(u64::from_le_bytes(self.pages.read_array(at)?)), at)),
        }
    }

    /// Checks that `len` bytes of a cluster, to which the entry at `at` points, are data.
    fn check_cluster(&self, at: u64, host: u64, len: u64) -> Result<()> {
        let field = FIELDS.at("L2 entry", at);
        field.aligned(host, self.cluster_size())?;
        let l1 = self.header.l1_table_offset;
        if host < self.header.header_len() || (l1..l1 + self.shape().l2_len()).contains(&host) {
            return Err(field.fault(Problem::Overlap { offset: host, with: "the header or the L1 table" }));
        }
        field.within(host, len, self.file_len)
    }

    /// The extent at a guest offset, which ends with its cluster.
    fn extent(&mut self, offset: u64) -> Result<(ExtentKind, u64)> {
        let (len, within) = (self.shape().len_in_cluster(offset), offset % self.cluster_size());
        let (entry, at) = self.entry(offset)?;
        let kind = match entry {
            L2Entry::Unallocated => ExtentKind::Hole,
            L2Entry::Zero => ExtentKind::Zero { allocated: None },
            L2Entry::Data(host) => {
                self.check_cluster(at, host, within + len)?;
                ExtentKind::Data(Location { file: IMAGE, offset: host + within })
            }
        };
        Ok((kind, len))
    }

    fn set_entry(&mut self, offset: u64, value: u64) -> Result<()> {
        let at = match self.l2_entry_at(offset)? {
            Some(at) => at,
            None => self.new_table(offset)?,
        };
        self.pages.write(&value.to_le_bytes(), at, TABLES)
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
        self.pages.write(&table.to_le_bytes(), self.l1_entry_at(offset), TABLES)?;
        Ok(table + (offset >> shape.cluster_bits) % shape.l2_entries * ENTRY)
    }

    /// Allocates clusters after all others.
    fn allocate_space(&mut self, len: u64) -> Result<u64> {
        let start = match self.next {
            Some(next) => next,
            None => self.end_of_clusters()?,
        };
        let end = start.checked_add(len).filter(|end| i64::try_from(*end).is_ok());
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
        let mut end = self.header.header_len().max(shape.l1_offset + shape.l2_len());
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
            if let (L2Entry::Data(host), at) = self.entry(offset)? {
                self.check_cluster(at, host, shape.len_in_cluster(offset))?;
                end = end.max(host + shape.cluster_size());
            }
            offset += shape.cluster_size();
        }
        Ok(end)
    }

    fn grow_file(&mut self, len: u64) -> Result<()> {
        if len > self.file_len {
            self.file.set_len(len).map_err(Error::io("setting the length", len))?;
            self.file_len = len;
        }
        Ok(())
    }

    fn one_cluster(&self, guest: &Range<u64>) -> u64 {
        (self.cluster_size() - guest.start % self.cluster_size()).min(guest.end - guest.start)
    }

    fn sync(&self) -> Result<()> {
        self.file.sync().map_err(Error::io("syncing", None))
    }
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
        self.begin()?;
        let (cluster_size, within) = (self.cluster_size(), guest.start % self.cluster_size());
        if let (L2Entry::Data(host), at) = self.entry(guest.start)? {
            let mut end = (guest.start - within + cluster_size).min(guest.end);
            self.check_cluster(at, host, self.shape().len_in_cluster(guest.start) + within)?;
            let mut host_end = host + cluster_size;
            while end < guest.end {
                match self.entry(end)? {
                    (L2Entry::Data(next), at) if next == host_end => {
                        self.check_cluster(at, next, self.shape().len_in_cluster(end))?;
                        (end, host_end) = ((end + cluster_size).min(guest.end), host_end + cluster_size);
                    }
                    _ => break,
                }
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
        self.set_entry(allocation.guest.start, allocation.at.offset)
    }

    fn release(&mut self, allocation: &Allocation) {
        self.released.push(allocation.at.offset);
    }

    /// A cluster without data becomes a zero cluster; one with data keeps its host offset.
    fn zero(&mut self, guest: Range<u64>, _keep: bool) -> Result<Zeroed> {
        match self.entry(guest.start)?.0 {
            L2Entry::Data(_) => return Ok(Zeroed::Not(self.one_cluster(&guest))),
            L2Entry::Unallocated if self.header.backing.is_some() => {
                self.begin()?;
                self.set_entry(guest.start, ZERO)?;
            }
            L2Entry::Unallocated | L2Entry::Zero => {}
        }
        Ok(Zeroed::ByMetadata(self.one_cluster(&guest)))
    }

    fn discard(&mut self, guest: Range<u64>) -> Result<Zeroed> {
        let len = self.one_cluster(&guest);
        Ok(match self.entry(guest.start)?.0 {
            L2Entry::Data(_) => Zeroed::Not(len),
            L2Entry::Unallocated | L2Entry::Zero => Zeroed::ByMetadata(len),
        })
    }

    fn resize(&mut self, size: u64, below: u64) -> Result<()> {
        self.set_size(size, below)
    }

    /// The name is written after the header, all in one sector.
    fn set_backing(&mut self, reference: Option<&FileReference>) -> Result<()> {
        let (name, format) = (reference.map(|file| &file.name), reference.and_then(|file| file.format.as_ref()));
        let mut sector = [0; SECTOR as usize];
        table::read(&*self.file, sector.get_mut(..Header::LEN).unwrap_or_default(), 0)?;
        let text = name.map_or(&[][..], Name::as_bytes);
        let Some(place) = sector.get_mut(Header::LEN..Header::LEN + text.len()) else {
            let (field, limit) = ("length of the backing file name".into(), SECTOR - Header::LEN as u64);
            return Err(Error::Limit {
                name: None,
                format: FORMAT_NAME,
                field,
                at: None,
                value: text.len() as u64,
                limit,
            });
        };
        place.copy_from_slice(text);
        let is_raw = format.is_some_and(|format| format.as_bytes() == b"raw");
        let backing = name.map(|name| Backing { name: name.clone(), is_raw });
        let mut features = LittleEndian::read_u64(&sector[FEATURES_AT as usize..]) & !(BACKING_FILE | BACKING_IS_RAW);
        if let Some(backing) = &backing {
            features |= BACKING_FILE | if backing.is_raw { BACKING_IS_RAW } else { 0 };
        }
        LittleEndian::write_u64(&mut sector[FEATURES_AT as usize..], features);
        LittleEndian::write_u32(&mut sector[56..], if text.is_empty() { 0 } else { Header::LEN as u32 });
        LittleEndian::write_u32(&mut sector[60..], text.len() as u32);
        self.write_header(&sector, 0)?;
        self.header.backing = backing;
        self.sync()
    }

    fn flush(&mut self) -> Result<()> {
        self.sync()?;
        if self.pages.write_back(TABLES)? {
            self.sync()?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        self.flush()?;
        if self.header.need_check {
            self.mark(false)?;
            return self.sync();
        }
        Ok(())
    }
}
