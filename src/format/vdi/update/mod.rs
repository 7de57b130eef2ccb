//! Changing an image in place. `move_map` makes a larger map, `holes` finds blocks of the data area that nothing uses.
//!
//! # Order
//!
//! Tables are changed in memory, and written by [`Update::flush`] in two steps with a sync after each: the header, which counts the blocks of the
//! data area, then the map, which points to them. A power cut leaves a count that is too high at most; the blocks after the last one in use are
//! allocated again.
//!
//! A block keeps its host offset: zeros and discards are holes in it.

mod holes;
mod move_map;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::check::check;
use super::header::{BLOCKS_ALLOCATED_AT, Header, MODIFICATION_AT};
use super::map::{BlockMapEntry, IMAGE};
use super::options::random;
use super::{FIELDS, FORMAT_NAME, SECTOR, reader};
use crate::driver::{
    Allocation, Extent, Location, Repair, RepairReport, SparseUpdate, UpdateContext, UpdateSpec, Zeroed,
};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table_pages::{Step, TablePages};
use crate::format::shared::{end_is_allocated, new_identifier, run, table, whole_sectors};
use crate::info::ImageInfo;
use crate::io::{ReadAt, Storage};

/// The header, and entries of blocks that the disk does not have yet.
const HEADER: Step = Step(0);
/// The map.
const MAP: Step = Step(1);
/// Largest page of tables in bytes. The header and the map are in different pages.
const PAGE: u64 = 4096;
/// Most entries of a map: their values are numbers of blocks, but for two.
const MAX_BLOCKS: u64 = 0xffff_fffe;
/// Bytes of the map that are read or written at once.
const CHUNK: u64 = 64 << 10;

/// An image that changes.
pub(super) struct Update {
    file: Arc<dyn Storage>,
    file_len: u64,
    header: Header,
    pages: TablePages,
    /// Blocks of the data area that were allocated and given up.
    released: Vec<u32>,
    /// Blocks of the data area that were allocated, and that the map does not point to yet.
    pending: BTreeSet<u32>,
    /// Whether the header counts the blocks in use exactly.
    is_counted: bool,
    /// Whether the modification UUID is a new one.
    is_marked: bool,
}

/// Corrects the number of blocks in the header: where it is too low, a writer would overwrite a block in use; where it is too high, blocks at the
/// end are leaked. Blocks that are leaked between others are allocated again when they are needed.
pub(super) fn repair(file: Arc<dyn Storage>, cx: &UpdateContext<'_>, what: Repair) -> Result<RepairReport> {
    let source: Arc<dyn ReadAt> = file.clone();
    let before = check(source.clone(), &cx.open)?;
    let mut image = Update::open(file, cx)?;
    let (stated, counted) = (image.header.blocks_allocated, image.blocks_in_use()?);
    // What seems to be unused may be what a damaged entry should point to.
    let is_right = match counted < stated {
        true => before.corruptions == 0,
        false => what == Repair::All && counted <= image.header.blocks,
    };
    if before.corruptions + before.leaks == 0 || counted == stated || !is_right || before.check_errors > 0 {
        return Ok(RepairReport { after: before.clone(), before, ..RepairReport::default() });
    }
    image.set_blocks_allocated(counted)?;
    image.flush()?;
    let after = check(source, &cx.open)?;
    let leaks_fixed = before.leaks.saturating_sub(after.leaks);
    let corruptions_fixed = before.corruptions.saturating_sub(after.corruptions);
    Ok(RepairReport { before, leaks_fixed, corruptions_fixed, after })
}

impl Update {
    pub fn open(file: Arc<dyn Storage>, cx: &UpdateContext<'_>) -> Result<Update> {
        cx.open.refuse_snapshots(FORMAT_NAME)?;
        let header = Header::read(&*file, cx.open.limits)?;
        let offsets = header.map_offset | header.data_offset | header.stride() | u64::from(header.block_extra);
        if !offsets.is_multiple_of(SECTOR) {
            return Err(Error::unsupported(FORMAT_NAME, "writing to an image whose blocks are not aligned to sectors"));
        }
        let page_size = 1 << header.map_offset.trailing_zeros().min(PAGE.ilog2());
        let pages = TablePages::new(file.clone(), FORMAT_NAME, page_size);
        let file_len = table::length(&*file)?;
        let (released, pending) = (Vec::new(), BTreeSet::new());
        Ok(Update { file, file_len, header, pages, released, pending, is_counted: false, is_marked: false })
    }

    /// Prepares for a change.
    fn begin(&mut self) -> Result<()> {
        if !self.is_marked {
            let new = random(new_identifier(FORMAT_NAME, self.header.modification.as_bytes()));
            self.pages.write(&new.to_bytes_le(), MODIFICATION_AT, HEADER)?;
            self.header.modification = new;
            self.is_marked = true;
        }
        if self.pages.is_full() { self.flush() } else { Ok(()) }
    }

    fn block_size(&self) -> u64 {
        self.header.block_size.into()
    }

    fn entry(&mut self, index: u64) -> Result<BlockMapEntry> {
        let bytes = self.pages.read_array(self.header.entry_at(index))?;
        Ok(BlockMapEntry::parse(u32::from_le_bytes(bytes)))
    }

    fn set_entry(&mut self, index: u64, entry: BlockMapEntry, step: Step) -> Result<()> {
        self.pages.write(&entry.encode().to_le_bytes(), self.header.entry_at(index), step)
    }

    /// Allocates a block of the data area.
    fn new_block(&mut self) -> Result<u32> {
        if !self.is_counted {
            self.header.blocks_allocated = self.blocks_in_use()?;
            self.is_counted = true;
        }
        if let Some(number) = self.released.pop() {
            return Ok(number);
        }
        let number = self.header.blocks_allocated;
        if number < self.header.blocks {
            self.set_blocks_allocated(number + 1)?;
            return Ok(number);
        }
        self.released = self.holes()?;
        self.released.pop().ok_or_else(|| {
            let finding = "all blocks of the data area are in use, but not by the map";
            FIELDS
                .at("cBlocksAllocated", BLOCKS_ALLOCATED_AT)
                .fault(Problem::Conflict { value: number.into(), finding })
        })
    }

    fn set_blocks_allocated(&mut self, count: u32) -> Result<()> {
        self.pages.write(&count.to_le_bytes(), BLOCKS_ALLOCATED_AT, HEADER)?;
        self.header.blocks_allocated = count;
        Ok(())
    }

    /// The number of blocks of the data area up to the last one that the map points to. The count in the header may be wrong, and a block
    /// in use must not be allocated.
    fn blocks_in_use(&self) -> Result<u32> {
        let mut count = 0;
        self.each_entry(|entry| {
            if let BlockMapEntry::Block(number) = entry {
                count = count.max(number.saturating_add(1));
            }
        })?;
        Ok(count)
    }

    /// Makes the file at least this long, in bytes.
    fn grow_file(&mut self, len: u64) -> Result<()> {
        if len > self.file_len {
            self.file.set_len(len).map_err(Error::io("setting the length", len))?;
            self.file_len = len;
        }
        Ok(())
    }

    /// The part of a guest range from its start on that is contiguous in the file, of which the first block is block `number` of the data area.
    fn run_in_place(&mut self, guest: &Range<u64>, number: u32) -> Result<Allocation> {
        let (block_size, first) = (self.block_size(), guest.start / self.block_size());
        let mut blocks = 1;
        while (first + blocks) * block_size < guest.end && self.header.block_extra == 0 {
            match self.entry(first + blocks)? {
                BlockMapEntry::Block(next) if u64::from(next) == u64::from(number) + blocks => blocks += 1,
                _ => break,
            }
        }
        let host = self.header.host_offset(number);
        // The last block of a file may end with the disk.
        let (index, last) = (first + blocks - 1, host.saturating_add((blocks - 1) * block_size));
        self.header.extent(BlockMapEntry::Block(number), guest.start, self.file_len)?;
        let field = FIELDS.at("block map entry", self.header.entry_at(index));
        field.within(last, self.header.visible_len(index), self.file_len)?;
        self.grow_file(last.saturating_add(block_size))?;
        let end = guest.end.min((first + blocks) * block_size);
        let at = Location { file: IMAGE, offset: host + guest.start % block_size };
        Ok(Allocation { guest: guest.start..end, at, is_new: false, reads_as_zeros: false })
    }

    /// The entry of a block that reads as zeros.
    fn empty_entry(&self) -> BlockMapEntry {
        if self.header.kind.has_parent() { BlockMapEntry::Zero } else { BlockMapEntry::Free }
    }

    /// Makes the entries of what is added to a disk read as zeros.
    fn clear_entries(&mut self, blocks: Range<u64>) -> Result<()> {
        let entry = self.empty_entry();
        for index in blocks {
            if self.pages.is_full() {
                self.flush()?;
            }
            self.set_entry(index, entry, HEADER)?;
        }
        Ok(())
    }
}

impl SparseUpdate for Update {
    fn info(&self) -> ImageInfo {
        reader::describe(&self.header)
    }

    fn spec(&self) -> UpdateSpec {
        UpdateSpec::new(self.block_size())
    }

    fn files(&self) -> Vec<Arc<dyn Storage>> {
        vec![self.file.clone()]
    }

    fn extent_at(&mut self, range: Range<u64>) -> Result<Extent> {
        let block_size = self.block_size();
        let first = self.entry(range.start / block_size)?;
        let (kind, len) = self.header.extent(first, range.start, self.file_len)?;
        let end = range.end.min(self.header.disk_size);
        Ok(run::merge(Extent { offset: range.start, len, kind }, end, |at| {
            let entry = self.entry(at / block_size).ok()?;
            self.header.extent(entry, at, self.file_len).ok()
        }))
    }

    fn allocate(&mut self, guest: Range<u64>) -> Result<Allocation> {
        self.begin()?;
        let (block_size, index) = (self.block_size(), guest.start / self.block_size());
        if let BlockMapEntry::Block(number) = self.entry(index)? {
            return self.run_in_place(&guest, number);
        }
        let number = self.new_block()?;
        let host = self.header.host_offset(number);
        let reads_as_zeros = host >= self.file_len && self.file.starts_zeroed();
        self.grow_file(host + block_size).inspect_err(|_| self.released.push(number))?;
        self.pending.insert(number);
        let (start, at) = (index * block_size, Location { file: IMAGE, offset: host });
        Ok(Allocation { guest: start..start + block_size, at, is_new: true, reads_as_zeros })
    }

    fn publish(&mut self, allocation: &Allocation) -> Result<()> {
        let number = (allocation.at.offset - self.header.host_offset(0)) / self.header.stride();
        self.set_entry(allocation.guest.start / self.block_size(), BlockMapEntry::Block(number as u32), MAP)?;
        self.pending.remove(&(number as u32));
        Ok(())
    }

    fn release(&mut self, allocation: &Allocation) {
        let number = (allocation.at.offset - self.header.host_offset(0)) / self.header.stride();
        self.pending.remove(&(number as u32));
        self.released.push(number as u32);
    }

    /// A block without data becomes a zero block; one with data keeps its host offset.
    fn zero(&mut self, guest: Range<u64>, _keep: bool) -> Result<Zeroed> {
        let (index, len) = (guest.start / self.block_size(), self.block_size().min(guest.end - guest.start));
        match self.entry(index)? {
            BlockMapEntry::Block(_) => return Ok(Zeroed::Not(len)),
            BlockMapEntry::Free if self.header.kind.has_parent() => {
                self.begin()?;
                self.set_entry(index, BlockMapEntry::Zero, MAP)?;
            }
            BlockMapEntry::Free | BlockMapEntry::Zero => {}
        }
        Ok(Zeroed::ByMetadata(len))
    }

    fn discard(&mut self, guest: Range<u64>) -> Result<Zeroed> {
        let len = self.block_size().min(guest.end - guest.start);
        match self.entry(guest.start / self.block_size())? {
            BlockMapEntry::Block(_) => self.begin().map(|()| Zeroed::Not(len)),
            BlockMapEntry::Free | BlockMapEntry::Zero => Ok(Zeroed::ByMetadata(len)),
        }
    }

    /// The map grows up to the data area, or moves. A disk becomes smaller only where it has no data.
    fn resize(&mut self, size: u64, _below: u64) -> Result<()> {
        let size = whole_sectors(FORMAT_NAME, size)?;
        let (old, needed) = (self.header.disk_size, size.div_ceil(self.block_size()));
        for index in needed..old.div_ceil(self.block_size()) {
            if let BlockMapEntry::Block(_) = self.entry(index)? {
                return Err(end_is_allocated(FORMAT_NAME));
            }
        }
        if needed > MAX_BLOCKS {
            let limit = MAX_BLOCKS.saturating_mul(self.block_size());
            return Err(Error::limit(FORMAT_NAME, "virtual size", size, limit));
        }
        self.begin()?;
        if needed > self.map_capacity() {
            self.move_map(needed)?;
        }
        self.grow_file(self.header.data_offset)?;
        self.clear_entries(old.div_ceil(self.block_size())..needed)?;
        self.flush()?;
        // All in one sector.
        let is_larger = size > old;
        self.header.blocks = if is_larger { self.header.blocks.max(needed as u32) } else { needed as u32 };
        self.header.disk_size = size;
        for (at, field) in self.header.size_fields() {
            self.pages.write(&field, at, HEADER)?;
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        self.pages.write_back(HEADER)?;
        self.file.sync().map_err(Error::io("syncing", None))?;
        if self.pages.write_back(MAP)? {
            self.file.sync().map_err(Error::io("syncing", None))?;
        }
        Ok(())
    }

    /// What was given up at the end of the data area is no longer counted.
    fn close(&mut self) -> Result<()> {
        self.flush()?;
        let mut count = self.header.blocks_allocated;
        while let Some(index) = self.released.iter().position(|number| number.checked_add(1) == Some(count)) {
            self.released.swap_remove(index);
            count -= 1;
        }
        if count != self.header.blocks_allocated {
            self.set_blocks_allocated(count)?;
            return self.flush();
        }
        Ok(())
    }
}
