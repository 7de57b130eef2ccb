//! The block allocation table, which has the host offset of each block, and the sector bitmaps of the blocks (the document,
//! "Block Allocation Table and Data Blocks").

use std::ops::Range;
use std::sync::Arc;

use super::footer::Footer;
use super::header::Header;
use super::{FIELDS, SECTOR};
use crate::driver::{ExtentKind, FileId, Location};
use crate::error::{Problem, Result};
use crate::format::shared::bits::{self, BitOrder};
use crate::format::shared::paged_table::{PagedTable, TablePage};
use crate::format::shared::table;
use crate::format::shared::table_cache::TableCache;
use crate::io::ReadAt;
use crate::limits::Budget;

/// The image file.
pub(super) const IMAGE: FileId = FileId(0);
/// The entry of an unallocated block.
pub(super) const UNALLOCATED: u32 = !0;
/// Bytes of an entry.
const ENTRY_LEN: usize = 4;

/// The blocks of an open image.
pub(super) struct Blocks {
    file: Arc<dyn ReadAt>,
    pub file_len: u64,
    /// Size of the disk in bytes.
    pub size: u64,
    entries: PagedTable<ENTRY_LEN>,
    pub block_size: u64,
    pub bitmap_len: u64,
    /// Whether sectors that were never written read from the parent, not as zeros.
    pub differencing: bool,
    bitmaps: TableCache,
    /// Host ranges of the table and all metadata outside the blocks.
    pub metadata: Vec<Range<u64>>,
}

/// An entry of the block allocation table.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatEntry {
    /// Index of the block.
    pub index: u64,
    /// Host offset of the entry.
    pub at: u64,
    /// Host offset of the block, which starts with its bitmap; `None` if it is unallocated.
    pub block: Option<u64>,
}

/// A page of the table.
type BatPage = TablePage<ENTRY_LEN>;

impl Blocks {
    /// The blocks of a disk of `size` bytes, as described by `header` at host offset `header_at`. `other` are the host ranges of
    /// metadata outside the table.
    ///
    /// # Errors
    /// If the table is out of bounds, or has fewer entries than the disk has blocks.
    pub fn new(
        file: Arc<dyn ReadAt>,
        size: u64,
        header: &Header,
        header_at: u64,
        differencing: bool,
        mut other: Vec<Range<u64>>,
        budget: &Budget,
    ) -> Result<Blocks> {
        let file_len = table::length(&*file)?;
        let entries = FIELDS.at("max table entries", header_at + 28);
        entries.within(header.table_offset, header.table_len(), file_len)?;
        let needed = size.div_ceil(header.block_size.into());
        if needed > header.max_table_entries.into() {
            let (value, max) = (header.max_table_entries.into(), u32::MAX.into());
            return Err(entries.fault(Problem::Range { value, min: needed, max }));
        }
        other.push(header.table_offset..header.table_offset + header.table_len());
        Ok(Blocks {
            file_len,
            size,
            entries: PagedTable::new(file.clone(), header.table_offset, budget),
            file,
            block_size: header.block_size.into(),
            bitmap_len: header.bitmap_len(),
            differencing,
            bitmaps: TableCache::new(budget),
            metadata: other,
        })
    }

    /// The kind and the length of the extent at guest offset `offset`. It ends at the end of the table page or of the block, or
    /// where entries beyond `end` would have to be read.
    pub fn extent(&self, offset: u64, end: u64) -> Result<(ExtentKind, u64)> {
        let index = offset / self.block_size;
        let page = self.page(index)?;
        let entry = BatEntry::from_page(&page, index);
        match entry.block {
            Some(block) => self.block(entry, block, offset, end),
            None => {
                let unallocated = unallocated(&page, index, end.div_ceil(self.block_size) - index);
                let end = (index + unallocated.max(1)) * self.block_size;
                let kind = if self.differencing { ExtentKind::Hole } else { ExtentKind::Zero { allocated: None } };
                Ok((kind, end.min(self.size) - offset))
            }
        }
    }

    /// The entries and host offsets of the allocated blocks from block `index` to the end of its table page, and the first block after
    /// the page.
    pub fn allocated(&self, index: u64) -> Result<(impl Iterator<Item = (BatEntry, u64)>, u64)> {
        let page = self.page(index)?;
        let (mut index, end) = (index, page.indexes.end);
        let entries = std::iter::from_fn(move || {
            index += unallocated(&page, index, u64::MAX);
            let entry = BatEntry::from_page(&page, index);
            index += 1;
            Some((entry, entry.block?))
        });
        Ok((entries, end))
    }

    fn page(&self, index: u64) -> Result<BatPage> {
        self.entries.page(index, 0..self.count())
    }

    /// Number of blocks.
    pub fn count(&self) -> u64 {
        self.size.div_ceil(self.block_size)
    }

    /// Bytes of the disk in block `index`. All of them have to be in the file.
    pub fn used_len(&self, index: u64) -> u64 {
        self.block_size.min(self.size.saturating_sub(index * self.block_size))
    }

    /// Reports the host ranges of all metadata to `claim`, which returns whether a range was free.
    ///
    /// # Errors
    /// If the table or a bitmap overlaps other metadata.
    pub fn report_metadata(&self, claim: &mut dyn FnMut(FileId, Range<u64>) -> bool) -> Result<()> {
        for range in &self.metadata {
            if !claim(IMAGE, range.clone()) {
                let overlap = Problem::Overlap { offset: range.start, with: "other metadata" };
                return Err(FIELDS.at("header or table", range.start).fault(overlap));
            }
        }
        let mut index = 0;
        while index < self.count() {
            let (entries, next) = self.allocated(index)?;
            index = next;
            for (entry, offset) in entries {
                // An offset beyond the end of the file is reported when the block is read.
                if offset < self.file_len && !claim(IMAGE, offset..offset + self.bitmap_len) {
                    let overlap = Problem::Overlap { offset, with: "other metadata" };
                    return Err(FIELDS.at("block allocation table entry", entry.at).fault(overlap));
                }
            }
        }
        Ok(())
    }

    /// The kind and the length of the extent at guest offset `offset`, in the block at host offset `block`.
    fn block(&self, entry: BatEntry, block: u64, offset: u64, end: u64) -> Result<(ExtentKind, u64)> {
        self.check_bitmap(entry.at, block)?;
        let bitmap =
            self.bitmaps.get(&*self.file, Location { file: IMAGE, offset: block }, self.bitmap_len as usize)?;
        self.in_block(entry, block, &bitmap.bytes, offset, end)
    }

    /// Returns the host offset of the first sector of a block which is not zero, although its bit is clear. `block` are the host offsets of the
    /// bitmap and the data, which are in the file; `buf` is for use by the next call.
    pub fn hidden_data(&self, block: &Range<u64>, buf: &mut Vec<u8>) -> Result<Option<u64>> {
        const CHUNK: u64 = 1 << 20;
        let mut bitmap = vec![0; self.bitmap_len as usize];
        table::read(&*self.file, &mut bitmap, block.start)?;
        let start = block.start + self.bitmap_len;
        let (mut at, end) = (start, block.end);
        while at < end {
            let (written, run_end) =
                bits::run(&bitmap, BitOrder::HighestFirst, (at - start) / SECTOR, (end - start).div_ceil(SECTOR));
            let run_end = (start + run_end * SECTOR).min(end);
            while at < run_end && !written {
                buf.resize((run_end - at).min(CHUNK) as usize, 0);
                table::read(&*self.file, buf, at)?;
                if let Some(found) = buf.iter().position(|byte| *byte != 0) {
                    return Ok(Some(at + found as u64 / SECTOR * SECTOR));
                }
                at += buf.len() as u64;
            }
            at = run_end;
        }
        Ok(None)
    }

    /// Checks that the bitmap of the block at host offset `block`, to which the entry at `at` points, is within the file.
    pub fn check_bitmap(&self, at: u64, block: u64) -> Result<()> {
        let field = FIELDS.at("block allocation table entry", at);
        if block < Footer::LEN {
            return Err(field.fault(Problem::Overlap { offset: block, with: "the copy of the footer" }));
        }
        field.within(block, self.bitmap_len, self.file_len)
    }

    /// The kind and the length of the extent at guest offset `offset`, in the block at host offset `block` with this bitmap.
    pub fn in_block(
        &self,
        entry: BatEntry,
        block: u64,
        bitmap: &[u8],
        offset: u64,
        end: u64,
    ) -> Result<(ExtentKind, u64)> {
        let within = offset % self.block_size;
        let end = (within + (end - offset)).min(self.block_size).div_ceil(SECTOR);
        let (written, end) = bits::run(bitmap, BitOrder::HighestFirst, within / SECTOR, end);
        let len = (end * SECTOR).min(self.used_len(entry.index)).saturating_sub(within);
        let location = Location { file: IMAGE, offset: block + self.bitmap_len + within };
        let kind = match (written, self.differencing) {
            (true, _) => ExtentKind::Data(location),
            (false, true) => return Ok((ExtentKind::Hole, len)),
            (false, false) => ExtentKind::Zero { allocated: Some(location) },
        };
        FIELDS.at("block allocation table entry", entry.at).within(location.offset, len, self.file_len)?;
        Ok((kind, len))
    }
}

impl BatEntry {
    /// The entry of block `index`, which is on `page`; unallocated outside it.
    fn from_page(page: &BatPage, index: u64) -> BatEntry {
        let block = match page.entry(index).map_or(UNALLOCATED, u32::from_be_bytes) {
            UNALLOCATED => None,
            sector => Some(u64::from(sector) * SECTOR),
        };
        BatEntry { index, at: page.host_offset(index), block }
    }
}

/// How many of `count` blocks from `index` on are unallocated, up to one that is not, or to the end of the page.
fn unallocated(page: &BatPage, index: u64, count: u64) -> u64 {
    page.equal(index, count, UNALLOCATED.to_be_bytes())
}
