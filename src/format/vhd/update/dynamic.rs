//! Dynamic and differencing disks.
//!
//! # Order
//!
//! Tables are changed in memory, and written by `flush` in two steps with a sync after each: bitmaps of new blocks; then entries of the table,
//! and bits of sectors in blocks that have an entry. New blocks follow the footer, which is copied to their end first. The former one stays
//! in the gap that aligns the guest data. A power cut leaves an image that is longer than necessary at most.
//!
//! A block keeps its host offset: zeros and discards are holes in it.

use std::ops::Range;
use std::sync::Arc;

use super::{FooterBytes, sync};
use crate::driver::{
    Allocation, Extent, ExtentKind, Location, SparseRead, SparseUpdate, UpdateContext, UpdateSpec, Zeroed,
};
use crate::error::{Error, Problem, Result};
use crate::format::shared::bits::{self, BitOrder};
use crate::format::shared::run;
use crate::format::shared::table_pages::{Step, TablePages};
use crate::format::vhd::blocks::{BatEntry, Blocks, IMAGE, UNALLOCATED};
use crate::format::vhd::footer::{Footer, Footers};
use crate::format::vhd::header::Header;
use crate::format::vhd::reader::{Content, Reader, read_header};
use crate::format::vhd::{FIELDS, FORMAT_NAME, SECTOR};
use crate::info::{FileReference, ImageInfo};
use crate::io::Storage;
use crate::limits::Limits;

/// Bitmaps of new blocks, and entries that the disk does not have yet.
pub(super) const NEW: Step = Step(0);
/// The table, and bitmaps of blocks in use.
pub(super) const TABLES: Step = Step(1);
/// Alignment of the guest data in new blocks.
const ALIGNMENT: u64 = 4096;
/// The largest sector number in an entry.
const MAX_SECTOR: u64 = UNALLOCATED as u64 - 1;

/// A dynamic or differencing image that changes.
pub(super) struct Dynamic {
    pub file: Arc<dyn Storage>,
    pub info: ImageInfo,
    pub limits: Limits,
    /// The length of the file includes the footer.
    pub blocks: Blocks,
    pub header: Header,
    pub header_at: u64,
    pub pages: TablePages,
    pub footer: FooterBytes,
    /// Host offset of the footer; where it belongs, if it is missing.
    pub footer_at: u64,
    /// Whether the footer and its copy are in order.
    has_footers: bool,
    /// Host offset after the last block, once it is known.
    next: Option<u64>,
    /// Host offsets of blocks that were allocated and given up.
    pub released: Vec<u64>,
}

impl Dynamic {
    pub fn open(file: Arc<dyn Storage>, footers: &Footers, cx: &UpdateContext<'_>) -> Result<Dynamic> {
        if !file.starts_zeroed() {
            return Err(Error::unsupported(FORMAT_NAME, "writing in place to a disk on a device that is not fixed"));
        }
        let reader = Reader::open(file.clone(), &cx.open)?;
        let info = reader.info().clone();
        let Content::Blocks(blocks) = reader.content else {
            return Err(Error::Usage("a fixed disk has no blocks".into()));
        };
        let header_at = footers.footer.data_offset;
        let header = read_header(&*file, blocks.file_len, footers.at, header_at)?;
        if !(header_at | header.table_offset).is_multiple_of(SECTOR) {
            return Err(Error::unsupported(FORMAT_NAME, "writing to an image whose tables are not aligned to sectors"));
        }
        let footer = FooterBytes::read(&*file, footers.at)?;
        Ok(Dynamic {
            info,
            limits: cx.open.limits.clone(),
            header,
            header_at,
            // Bitmaps are in sectors between payload.
            pages: TablePages::new(file.clone(), FORMAT_NAME, SECTOR as usize),
            footer,
            footer_at: footers.end.unwrap_or(blocks.file_len).next_multiple_of(SECTOR),
            has_footers: footers.warning.is_none(),
            next: None,
            released: Vec::new(),
            file,
            blocks: *blocks,
        })
    }

    /// Prepares for a change. A missing footer, or copy of it, is written.
    pub fn begin(&mut self) -> Result<()> {
        if !self.has_footers {
            self.write_footer(self.footer_at)?;
            self.footer.write(&*self.file, 0)?;
            sync(&*self.file)?;
            self.has_footers = true;
        }
        if self.pages.is_full() { self.flush() } else { Ok(()) }
    }

    /// Writes a footer, which makes the file longer.
    pub fn write_footer(&mut self, at: u64) -> Result<()> {
        self.footer.write(&*self.file, at)?;
        self.footer_at = at;
        self.blocks.file_len = self.blocks.file_len.max(at + Footer::LEN);
        Ok(())
    }

    pub fn entry(&mut self, index: u64) -> Result<BatEntry> {
        let at = self.header.table_offset + index * 4;
        let block = match u32::from_be_bytes(self.pages.read_array(at)?) {
            UNALLOCATED => None,
            sector => Some(u64::from(sector) * SECTOR),
        };
        Ok(BatEntry { index, at, block })
    }

    /// The bitmap of the block at host offset `block`.
    pub fn bitmap(&mut self, at: u64, block: u64) -> Result<Vec<u8>> {
        self.blocks.check_bitmap(at, block)?;
        let mut bitmap = vec![0; self.blocks.bitmap_len as usize];
        self.pages.read(&mut bitmap, block)?;
        Ok(bitmap)
    }

    /// The kind and the length of the extent at guest offset `offset`, which ends with the block at the latest.
    fn extent(&mut self, offset: u64, end: u64) -> Result<(ExtentKind, u64)> {
        let entry = self.entry(offset / self.blocks.block_size)?;
        let Some(block) = entry.block else {
            let kind = if self.blocks.differencing { ExtentKind::Hole } else { ExtentKind::Zero { allocated: None } };
            let len = self.blocks.used_len(entry.index).saturating_sub(offset % self.blocks.block_size);
            return Ok((kind, len));
        };
        let bitmap = self.bitmap(entry.at, block)?;
        self.blocks.in_block(entry, block, &bitmap, offset, end)
    }

    /// Allocates `len` bytes of metadata and, after them, `data_len` bytes that are aligned. Returns the host offset of the metadata, and whether
    /// the data reads as zeros.
    pub fn allocate_space(&mut self, len: u64, data_len: u64) -> Result<(u64, bool)> {
        let place = |after: u64| (after + len).next_multiple_of(ALIGNMENT);
        let next = match self.next {
            Some(next) => next,
            None => self.end_of_blocks()?,
        };
        let file_len = self.blocks.file_len;
        let mut data = place(next);
        if data + data_len > self.footer_at {
            if data - len < self.footer_at + Footer::LEN {
                data = place(self.footer_at + Footer::LEN);
            }
            let (value, limit) = ((data + data_len) / SECTOR, MAX_SECTOR);
            if value > limit {
                return Err(Error::limit(FORMAT_NAME, "image size in sectors", value, limit));
            }
            self.write_footer(data + data_len)?;
        }
        self.next = Some(data + data_len);
        Ok((data - len, data >= file_len))
    }

    /// Host offset after all metadata and blocks in use.
    ///
    /// # Errors
    /// If an entry is out of bounds: a new block could be there.
    fn end_of_blocks(&mut self) -> Result<u64> {
        let whole = self.blocks.bitmap_len + self.blocks.block_size;
        let mut end = self.blocks.metadata.iter().map(|range| range.end).filter(|end| *end <= self.footer_at).max();
        for locator in &self.header.parent.locators {
            end = end.max(locator.offset.checked_add(locator.space.max(locator.len).into()));
        }
        for index in 0..self.header.max_table_entries.into() {
            let entry = self.entry(index)?;
            let Some(block) = entry.block else { continue };
            let len = self.blocks.bitmap_len + self.blocks.used_len(index);
            FIELDS.at("block allocation table entry", entry.at).within(block, len, self.blocks.file_len)?;
            end = end.max(Some(block + whole));
        }
        // The last block may be cut off.
        Ok(end.unwrap_or(0).min(self.footer_at))
    }

    /// Allocates a block whose bitmap has all bits set, or none. Returns the host offset and whether it reads as zeros.
    fn new_block(&mut self) -> Result<(u64, bool)> {
        let (block, reads_as_zeros) = match self.released.pop() {
            Some(block) => (block, false),
            None => self.allocate_space(self.blocks.bitmap_len, self.blocks.block_size)?,
        };
        self.pages.create(block..block + self.blocks.bitmap_len, NEW);
        if !self.blocks.differencing {
            self.pages.write(&vec![0xff; self.blocks.bitmap_len as usize], block, NEW)?;
        }
        Ok((block, reads_as_zeros))
    }

    /// Sets the bits of the sectors with these bytes of a block.
    fn mark_present(&mut self, block: u64, within: Range<u64>) -> Result<()> {
        let sectors = within.start / SECTOR..within.end.div_ceil(SECTOR).min(self.blocks.block_size / SECTOR);
        let bytes = sectors.start / 8..sectors.end.div_ceil(8);
        let mut bits = vec![0; (bytes.end - bytes.start) as usize];
        self.pages.read(&mut bits, block + bytes.start)?;
        for sector in sectors {
            if let Some(byte) = bits.get_mut((sector / 8 - bytes.start) as usize) {
                *byte |= 0x80 >> (sector % 8);
            }
        }
        self.pages.write(&bits, block + bytes.start, TABLES)
    }

    /// Guest bytes from the start of the range to the end of its block, or of the range.
    fn one_block(&self, guest: &Range<u64>) -> u64 {
        (self.blocks.block_size - guest.start % self.blocks.block_size).min(guest.end - guest.start)
    }
}

impl SparseUpdate for Dynamic {
    fn info(&self) -> ImageInfo {
        self.info.clone()
    }

    fn spec(&self) -> UpdateSpec {
        UpdateSpec::new(self.blocks.block_size)
    }

    fn files(&self) -> Vec<Arc<dyn Storage>> {
        vec![self.file.clone()]
    }

    fn extent_at(&mut self, range: Range<u64>) -> Result<Extent> {
        self.info.check_offset(range.start)?;
        let end = range.end.min(self.blocks.size);
        let (kind, len) = self.extent(range.start, end)?;
        Ok(run::merge(Extent { offset: range.start, len, kind }, end, |at| self.extent(at, end).ok()))
    }

    fn allocate(&mut self, guest: Range<u64>) -> Result<Allocation> {
        self.begin()?;
        let block_size = self.blocks.block_size;
        let (start, within) = (guest.start - guest.start % block_size, guest.start % block_size);
        let end = within + self.one_block(&guest);
        // Whole sectors with bits of their own.
        let sectors = |end: u64| within - within % SECTOR..end.next_multiple_of(SECTOR);
        let entry = self.entry(guest.start / block_size)?;
        let (block, part, is_new, reads_as_zeros) = match entry.block {
            None => {
                let (block, reads_as_zeros) = self.new_block()?;
                let part = if self.blocks.differencing { sectors(end) } else { 0..block_size };
                (block, part, true, reads_as_zeros)
            }
            Some(block) => {
                let bitmap = self.bitmap(entry.at, block)?;
                let last = end.div_ceil(SECTOR);
                let (is_present, until) = bits::run(&bitmap, BitOrder::HighestFirst, within / SECTOR, last);
                let until = end.min(until * SECTOR);
                let part = if is_present { within..until } else { sectors(until) };
                (block, part, !is_present, false)
            }
        };
        let (offset, len) = (block + self.blocks.bitmap_len + part.start, part.end - part.start);
        if offset.saturating_add(len) > self.footer_at {
            let problem = Problem::Overlap { offset, with: "the footer" };
            return Err(FIELDS.at("block allocation table entry", entry.at).fault(problem));
        }
        let guest = start + part.start..start + part.end;
        Ok(Allocation { guest, at: Location { file: IMAGE, offset }, is_new, reads_as_zeros })
    }

    fn publish(&mut self, allocation: &Allocation) -> Result<()> {
        let within = allocation.guest.start % self.blocks.block_size;
        let block = allocation.at.offset - within - self.blocks.bitmap_len;
        let entry = self.entry(allocation.guest.start / self.blocks.block_size)?;
        self.mark_present(block, within..within + (allocation.guest.end - allocation.guest.start))?;
        match entry.block {
            Some(_) => Ok(()),
            None => self.pages.write(&((block / SECTOR) as u32).to_be_bytes(), entry.at, TABLES),
        }
    }

    fn release(&mut self, allocation: &Allocation) {
        let within = allocation.guest.start % self.blocks.block_size;
        let block = allocation.at.offset - within - self.blocks.bitmap_len;
        let entry = self.entry(allocation.guest.start / self.blocks.block_size);
        if entry.is_ok_and(|entry| entry.block.is_none()) {
            self.released.push(block);
        }
    }

    /// Many programs ignore the bitmaps of dynamic disks, so that a clear bit is not enough.
    fn zero(&mut self, guest: Range<u64>, _keep: bool) -> Result<Zeroed> {
        let len = self.one_block(&guest);
        match self.entry(guest.start / self.blocks.block_size)?.block {
            None if !self.blocks.differencing => Ok(Zeroed::ByMetadata(len)),
            _ => Ok(Zeroed::Not(len)),
        }
    }

    fn discard(&mut self, guest: Range<u64>) -> Result<Zeroed> {
        let len = self.one_block(&guest);
        match self.entry(guest.start / self.blocks.block_size)?.block {
            None => Ok(Zeroed::ByMetadata(len)),
            Some(_) => Ok(Zeroed::Not(len)),
        }
    }

    fn resize(&mut self, size: u64, below: u64) -> Result<()> {
        self.begin()?;
        self.set_size(size, below)
    }

    fn set_backing(&mut self, backing: Option<&FileReference>) -> Result<()> {
        self.replace_parent(backing)
    }

    fn flush(&mut self) -> Result<()> {
        self.pages.write_back(NEW)?;
        sync(&*self.file)?;
        if self.pages.write_back(TABLES)? {
            sync(&*self.file)?;
        }
        Ok(())
    }
}
