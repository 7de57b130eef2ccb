//! Maps of two levels, as QED and version 1 of qcow have them: an L1 table of the host offsets of L2 tables, which have one entry for
//! each guest cluster. Both are read page by page.

mod update;
mod writer;

use std::ops::Range;
use std::sync::Arc;

pub(crate) use update::MapUpdate;
pub(crate) use writer::TwoLevelWriter;

use super::paged_table::{PagedTable, TablePage};
use super::run;
use super::table::{self, Field, Fields};
use super::table_cache::{CachedTable, TableCache};
use crate::driver::{Extent, ExtentKind, FileId, Location};
use crate::error::{Problem, Result};
use crate::info::ImageInfo;
use crate::io::ReadAt;
use crate::limits::Budget;
use crate::zero;

/// The image file.
pub(crate) const IMAGE: FileId = FileId(0);
/// Bytes of a table entry.
pub(crate) const ENTRY: u64 = 8;
/// Length of a slice in bytes, unless the table is smaller.
const SLICE: u64 = 16 << 10;

/// The geometry of a map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub format: &'static str,
    /// Base-2 logarithm of the cluster size in bytes.
    pub cluster_bits: u32,
    /// Entries of an L2 table, a power of two.
    pub l2_entries: u64,
    /// Host offset of the L1 table.
    pub l1_offset: u64,
    /// Virtual size in bytes.
    pub virtual_size: u64,
    pub decode: fn([u8; 8]) -> u64,
    pub encode: fn(u64) -> [u8; 8],
}

impl Shape {
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Length of an L2 table in bytes.
    pub fn l2_len(&self) -> u64 {
        self.l2_entries * ENTRY
    }

    /// Guest bytes of an L2 table. The headers limit clusters and tables, so that it has less than 64 bits.
    pub fn l2_coverage(&self) -> u64 {
        self.l2_entries << self.cluster_bits
    }

    /// Entries of the L1 table that the disk needs.
    pub fn l1_entries(&self) -> u64 {
        self.virtual_size.div_ceil(self.l2_coverage())
    }

    /// The part of guest offset `offset`'s cluster from there to its end, or to the end of the disk: its length in bytes.
    pub fn len_in_cluster(&self, offset: u64) -> u64 {
        let len = self.cluster_size() - offset % self.cluster_size();
        len.min(self.virtual_size.saturating_sub(offset))
    }

    /// Checks that `len` bytes at host offset `host`, to which an L2 entry points, are a cluster or the part of one that the disk
    /// shows.
    pub fn check_cluster(&self, entry: Entry, host: u64, len: u64, file_len: u64) -> Result<()> {
        self.field("L2 entry", entry.at).aligned(host, self.cluster_size())?;
        self.check_within(entry, host, len, file_len)
    }

    /// Checks that `len` bytes at host offset `host`, to which an L2 entry points, are within the file.
    pub fn check_within(&self, entry: Entry, host: u64, len: u64, file_len: u64) -> Result<()> {
        self.field("L2 entry", entry.at).within(host, len, file_len)
    }

    fn field(&self, name: &'static str, at: u64) -> Field {
        Fields(self.format).at(name, at)
    }
}

/// The map of an opened image.
pub(crate) struct TwoLevelMap {
    pub shape: Shape,
    pub file: Arc<dyn ReadAt>,
    pub file_len: u64,
    l1: PagedTable<{ ENTRY as usize }>,
    l2_cache: TableCache,
}

/// An L2 entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub value: u64,
    /// Its host offset, for messages.
    pub at: u64,
    /// The guest offset that is looked up, within the cluster of the entry.
    pub offset: u64,
}

impl TwoLevelMap {
    /// The map of `file`.
    ///
    /// # Errors
    /// If the part of the L1 table that the disk needs is not within the file.
    pub fn open(file: Arc<dyn ReadAt>, shape: Shape, budget: &Budget) -> Result<TwoLevelMap> {
        let file_len = table::length(&*file)?;
        let field = shape.field("L1 table", shape.l1_offset);
        field.within(shape.l1_offset, shape.l1_entries() * ENTRY, file_len)?;
        let l1 = PagedTable::new(file.clone(), shape.l1_offset, budget);
        Ok(TwoLevelMap { shape, file, file_len, l1, l2_cache: TableCache::new(budget) })
    }

    /// Returns the extent at guest offset `range.start`, as [`SparseRead::extent_at`](crate::driver::SparseRead::extent_at).
    /// `kind` parses an entry; the extent that it returns does not end before the cluster. Entries of 0 have one kind.
    pub fn extent_at(
        &self,
        info: &ImageInfo,
        range: Range<u64>,
        kind: impl Fn(Entry) -> Result<ExtentKind>,
    ) -> Result<Extent> {
        info.check_offset(range.start)?;
        let (offset, end) = (range.start, range.end.min(self.shape.virtual_size));
        let l1_index = offset / self.shape.l2_coverage();
        let l1 = self.l1_page(l1_index)?;
        let Some(l2) = self.l2_table_in(&l1, l1_index)? else {
            return Ok(self.hole(offset, &l1, l1_index, end));
        };
        let index = (offset >> self.shape.cluster_bits) % self.shape.l2_entries;
        let slice = self.slice(l2, index)?;
        let first = Extent { offset, len: self.shape.len_in_cluster(offset), kind: kind(slice.entry(index, offset))? };
        let mut index = index;
        Ok(run::merge(first, end, |at| {
            index += 1;
            if index >= slice.indexes.end {
                return None;
            }
            let kind = kind(slice.entry(index, at)).ok()?;
            // Fast path: most entries of most disks are unallocated.
            match slice.empty(index, (end - at).div_ceil(self.shape.cluster_size())) {
                0 => Some((kind, self.shape.len_in_cluster(at))),
                count => {
                    index += count - 1;
                    Some((kind, (count << self.shape.cluster_bits).min(self.shape.virtual_size - at)))
                }
            }
        }))
    }

    /// Claims the L1 and L2 tables, as [`SparseRead::metadata`](crate::driver::SparseRead::metadata).
    pub fn claim_l2_tables(&self, claim: &mut dyn FnMut(FileId, Range<u64>) -> bool) -> Result<()> {
        let mut index = 0;
        while index < self.shape.l1_entries() {
            let page = self.l1_page(index)?;
            while index < page.indexes.end {
                // Other faults of an entry are reported when its guest range is read.
                if let Ok(Some(offset)) = self.l2_table_in(&page, index)
                    && !claim(IMAGE, offset..offset.saturating_add(self.shape.l2_len()))
                {
                    return Err(self.l1_field(index).fault(Problem::Overlap { offset, with: "other metadata" }));
                }
                index += 1;
                index += page.equal(index, u64::MAX, [0; ENTRY as usize]);
            }
        }
        Ok(())
    }

    /// Host offset of the L2 table of L1 entry `index`, if it is allocated.
    pub fn l2_table(&self, index: u64) -> Result<Option<u64>> {
        self.l2_table_in(&self.l1_page(index)?, index)
    }

    fn l2_table_in(&self, page: &L1Page, index: u64) -> Result<Option<u64>> {
        let Some(offset) = page.entry(index).map(self.shape.decode).filter(|offset| *offset != 0) else {
            return Ok(None);
        };
        let field = self.l1_field(index);
        field.aligned(offset, self.shape.cluster_size())?;
        field.within(offset, self.shape.l2_len(), self.file_len)?;
        Ok(Some(offset))
    }

    fn l1_page(&self, index: u64) -> Result<L1Page> {
        self.l1.page(index, 0..self.shape.l1_entries())
    }

    /// The slice with entry `index` of the L2 table at host offset `l2`, which is within the file.
    pub fn slice(&self, l2: u64, index: u64) -> Result<L2Slice> {
        let len = SLICE.min(self.shape.l2_len());
        let start = index * ENTRY / len * len;
        let bytes = self.l2_cache.get(&*self.file, Location { file: IMAGE, offset: l2 + start }, len as usize)?;
        Ok(L2Slice { indexes: start / ENTRY..(start + len) / ENTRY, bytes, decode: self.shape.decode })
    }

    /// Returns the hole at `offset`, up to `end` or the next L1 entry on the page that is not empty.
    fn hole(&self, offset: u64, page: &L1Page, l1_index: u64, end: u64) -> Extent {
        let coverage = self.shape.l2_coverage();
        let end_index = end.div_ceil(coverage).min(page.indexes.end);
        let empty = page.equal(l1_index, end_index.saturating_sub(l1_index), [0; ENTRY as usize]);
        let end = (l1_index + empty.max(1)).saturating_mul(coverage).min(self.shape.virtual_size);
        Extent { offset, len: end - offset, kind: ExtentKind::Hole }
    }

    fn l1_field(&self, index: u64) -> Field {
        self.shape.field("L1 entry", self.shape.l1_offset + index * ENTRY)
    }
}

type L1Page = TablePage<{ ENTRY as usize }>;

/// A slice of an L2 table.
pub(crate) struct L2Slice {
    /// Indexes in the table.
    pub indexes: Range<u64>,
    bytes: Arc<CachedTable>,
    decode: fn([u8; 8]) -> u64,
}

impl L2Slice {
    /// How many of `count` entries from `index` on, which is in the slice, are 0, up to one that is not.
    fn empty(&self, index: u64, count: u64) -> u64 {
        let start = (index.saturating_sub(self.indexes.start) * ENTRY) as usize;
        let bytes = self.bytes.bytes.get(start..).unwrap_or_default();
        let len = bytes.len().min(usize::try_from(count.saturating_mul(ENTRY)).unwrap_or(usize::MAX));
        zero::leading_zeros(bytes.get(..len).unwrap_or_default()) as u64 / ENTRY
    }

    /// Entry `index`, which maps the cluster of guest offset `offset`.
    pub fn entry(&self, index: u64, offset: u64) -> Entry {
        let within = index.saturating_sub(self.indexes.start) * ENTRY;
        let bytes = self.bytes.bytes.get(within as usize..).and_then(|rest| rest.first_chunk().copied());
        Entry { value: bytes.map_or(0, self.decode), at: self.bytes.offset() + within, offset }
    }
}
