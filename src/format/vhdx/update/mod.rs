//! Changing an image in place.
//!
//! # Order
//!
//! Tables (the BAT, sector bitmaps, the size of the disk) are changed in memory. [`Update::flush`] makes the payload durable, writes the changed
//! sectors to the log as one entry, and then to their host offsets, with a sync after each (2.3). Each entry is a sequence of its own, because
//! everything before it has been applied. The log gets its GUID in the header after its first entry is durable, so that it has a valid
//! sequence whenever it is marked as not empty. Closing the image removes the GUID.
//!
//! A block is allocated after all others, and keeps its host offset: zeros and discards are holes in it. In a differencing disk, a new block is filled
//! from the parent, so that it needs no sector bitmap.

mod journal;
mod parent;
mod regions;

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use super::bat::{Bat, BlockState, IMAGE, OFFSET_BITS, state};
use super::check::check;
use super::log;
use super::metadata::MAX_DISK_SIZE;
use super::reader::describe;
use super::structure::Structure;
use super::{FIELDS, FORMAT_NAME, MIB};
use crate::driver::{
    Allocation, Extent, ExtentKind, Location, Repair, RepairReport, SparseUpdate, UpdateContext, UpdateSpec, Zeroed,
};
use crate::error::{Error, Result};
use crate::format::shared::bits::{self, BitOrder};
use crate::format::shared::table::Field;
use crate::format::shared::table_pages::{Step, TablePages};
use crate::format::shared::{end_is_allocated, run};
use crate::info::{FileReference, ImageInfo};
use crate::io::{ReadAt, Storage};
use journal::{new_guid, replay, write_header};

/// All tables: the log makes their changes atomic.
const TABLES: Step = Step(0);
/// Most changed sectors that wait. Two entries with a few more of them are in the smallest log.
const MAX_CHANGED: usize = 64;
/// Bytes of a sector bitmap that are read at once.
const BITMAP_PAGE: u64 = log::SECTOR;

/// An image that changes.
pub(super) struct Update {
    file: Arc<dyn Storage>,
    structure: Structure,
    bat: Bat,
    pages: TablePages,
    /// Host offset after all blocks, once it is known.
    next: Option<u64>,
    /// Host offsets of blocks that were allocated and given up.
    released: Vec<u64>,
    /// Whether the GUIDs of the content are new.
    is_announced: bool,
    /// GUID of the log, once it has an entry.
    log_guid: Option<Uuid>,
    /// Offset in the log and sequence number of the next entry.
    log_next: (u64, u64),
}

/// Replays the log of an image that was not closed. Nothing else is repaired.
pub(super) fn repair(file: Arc<dyn Storage>, cx: &UpdateContext<'_>, _what: Repair) -> Result<RepairReport> {
    let source: Arc<dyn ReadAt> = file.clone();
    let before = check(source.clone(), &cx.open)?;
    let mut structure = Structure::read(source.clone(), &cx.open)?;
    if structure.replay.is_none() {
        return Ok(RepairReport { after: before.clone(), before, ..RepairReport::default() });
    }
    replay(&file, &mut structure)?;
    Ok(RepairReport { before, corruptions_fixed: 1, after: check(source, &cx.open)?, ..RepairReport::default() })
}

impl Update {
    pub fn open(file: Arc<dyn Storage>, cx: &UpdateContext<'_>) -> Result<Update> {
        cx.open.refuse_snapshots(FORMAT_NAME)?;
        let source: Arc<dyn ReadAt> = file.clone();
        let mut structure = Structure::read(source.clone(), &cx.open)?;
        if structure.replay.is_some() {
            replay(&file, &mut structure)?;
            structure = Structure::read(source, &cx.open)?;
        }
        if structure.header.log.end - structure.header.log.start < MIB {
            return Err(Error::unsupported(FORMAT_NAME, "writing to an image without a log"));
        }
        if let Some(warning) = &structure.table_warning {
            return Err(Error::unsupported(FORMAT_NAME, format!("writing to a damaged image: {warning}")));
        }
        let bat = Bat::new(&structure, cx.open.budget)?;
        Ok(Update {
            pages: TablePages::new(file.clone(), FORMAT_NAME, log::SECTOR as usize),
            file,
            structure,
            bat,
            next: None,
            released: Vec::new(),
            is_announced: false,
            log_guid: None,
            log_next: (0, 1),
        })
    }

    /// Prepares for a change. The GUIDs of the content change before it does, so that children notice (2.2.2).
    fn begin(&mut self) -> Result<()> {
        if !self.is_announced {
            let header = &mut self.structure.header;
            header.file_write_guid = new_guid(header.file_write_guid);
            header.data_write_guid = new_guid(header.data_write_guid);
            write_header(&*self.file, &mut self.structure)?;
            self.is_announced = true;
        }
        if self.pages.changed_count() >= MAX_CHANGED { self.flush() } else { Ok(()) }
    }

    fn block_size(&self) -> u64 {
        self.bat.block_size
    }

    /// The entry of the BAT with this index, and its field.
    fn entry(&mut self, index: u64) -> Result<(u64, Field)> {
        let at = self.structure.regions.bat.range.start + index * 8;
        let entry = u64::from_le_bytes(self.pages.read_array(at)?);
        Ok((entry, FIELDS.at("BAT entry", at)))
    }

    /// The index of the entry of a payload block.
    fn index_of(&self, block: u64) -> u64 {
        block + block / self.bat.chunk_ratio
    }

    fn state(&mut self, block: u64) -> Result<BlockState> {
        let (entry, field) = self.entry(self.index_of(block))?;
        self.bat.parse(entry, block, field)
    }

    fn set_entry(&mut self, block: u64, entry: u64) -> Result<()> {
        let at = self.structure.regions.bat.range.start + self.index_of(block) * 8;
        self.pages.write(&entry.to_le_bytes(), at, TABLES)
    }

    /// The extent at guest offset `offset`, which ends with its block at the latest.
    fn extent(&mut self, offset: u64, end: u64) -> Result<(ExtentKind, u64)> {
        let (block, within) = (offset / self.block_size(), offset % self.block_size());
        let state = self.state(block)?;
        let kind = self.bat.kind(state).advance(within);
        let len = self.bat.visible_len(block).saturating_sub(within);
        let BlockState::PartiallyPresent(_) = state else { return Ok((kind, len)) };
        let (is_present, run) = self.present_run(block, within, len.min(end - offset))?;
        Ok((if is_present { kind } else { ExtentKind::Hole }, run.min(len)))
    }

    /// Whether the sectors from byte `within` of a partially present block are in this file, and the number of bytes, at most about `max_len`,
    /// for which that is so.
    fn present_run(&mut self, block: u64, within: u64, max_len: u64) -> Result<(bool, u64)> {
        let sector_size = self.sector_size();
        let (bitmap, sector) = self.bit(block, within)?;
        let page = sector / 8 / BITMAP_PAGE * BITMAP_PAGE;
        let bytes = self.pages.read_array::<{ BITMAP_PAGE as usize }>(bitmap + page)?;
        let first = sector - page * 8;
        let end = (first + (within % sector_size + max_len).div_ceil(sector_size)).min(BITMAP_PAGE * 8);
        let (is_present, end) = bits::run(&bytes, BitOrder::LowestFirst, first, end);
        Ok((is_present, (end - first) * sector_size - within % sector_size))
    }

    /// The host offset of the sector bitmap block of a partially present block, and the bit for its byte `within`.
    fn bit(&mut self, block: u64, within: u64) -> Result<(u64, u64)> {
        let chunk = block / self.bat.chunk_ratio;
        let (entry, field) = self.entry(self.bat.first_entry(chunk) + self.bat.chunk_ratio)?;
        let bitmap = self.bat.parse_sector_bitmap(entry, field)?.ok_or_else(|| Bat::missing_bitmap(field))?;
        let per_block = self.block_size() / self.sector_size();
        Ok((bitmap, block % self.bat.chunk_ratio * per_block + within / self.sector_size()))
    }

    fn sector_size(&self) -> u64 {
        self.structure.metadata.logical_sector_size.into()
    }

    /// Marks the bytes `within` of a partially present block as present.
    fn mark_present(&mut self, block: u64, within: Range<u64>) -> Result<()> {
        let (bitmap, first) = self.bit(block, within.start)?;
        let end = first + (within.end - within.start).div_ceil(self.sector_size());
        let mut bytes = vec![0; (end.div_ceil(8) - first / 8) as usize];
        self.pages.read(&mut bytes, bitmap + first / 8)?;
        for bit in first..end {
            if let Some(byte) = bytes.get_mut((bit / 8 - first / 8) as usize) {
                *byte |= 1 << (bit % 8);
            }
        }
        self.pages.write(&bytes, bitmap + first / 8, TABLES)
    }

    /// Host offset of a new block.
    fn new_block(&mut self) -> Result<u64> {
        if let Some(offset) = self.released.pop() {
            return Ok(offset);
        }
        let offset = self.end()?;
        let end = offset.checked_add(self.block_size()).filter(|end| i64::try_from(*end).is_ok());
        self.next = end;
        end.map(|_| offset).ok_or_else(|| Error::limit(FORMAT_NAME, "file length", offset, i64::MAX as u64))
    }

    /// Host offset of the next block or region.
    fn end(&mut self) -> Result<u64> {
        match self.next {
            Some(next) => Ok(next),
            None => self.end_of_blocks(),
        }
    }

    /// Host offset after all regions and blocks.
    ///
    /// # Errors
    /// If an entry is corrupt: a new block could be where it points to.
    fn end_of_blocks(&mut self) -> Result<u64> {
        let regions = self.structure.ranges().map(|(range, _)| range.end).fold(0, u64::max);
        let mut end = 0;
        for block in 0..self.bat.block_count {
            if let BlockState::FullyPresent(at) | BlockState::PartiallyPresent(at) | BlockState::Unmapped(at) =
                self.state(block)?
            {
                end = end.max(at.saturating_add(self.block_size()));
            }
        }
        let chunks = if self.bat.differencing { self.bat.chunk_count() } else { 0 };
        for chunk in 0..chunks {
            let (entry, field) = self.entry(self.bat.first_entry(chunk) + self.bat.chunk_ratio)?;
            end = end.max(self.bat.parse_sector_bitmap(entry, field)?.map_or(0, |at| at + MIB));
        }
        // qemu leaves room after the regions, which is not for blocks.
        let end = if end == 0 { regions.max(self.bat.file_len) } else { end.max(regions) };
        Ok(end.next_multiple_of(MIB))
    }

    /// Makes the file at least this long, in bytes.
    fn grow_file(&mut self, len: u64) -> Result<()> {
        if len > self.bat.file_len {
            self.file.set_len(len).map_err(Error::io("setting the length", len))?;
            self.bat.file_len = len;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.file.sync().map_err(Error::io("syncing", None))
    }

    /// Makes the blocks that a disk gets read as zeros, also where a parent has data.
    fn clear_entries(&mut self, blocks: Range<u64>) -> Result<()> {
        let new = if self.bat.differencing { state::ZERO } else { state::NOT_PRESENT };
        for block in blocks {
            let (entry, _) = self.entry(self.index_of(block))?;
            if entry != new {
                self.set_entry(block, new)?;
            }
            if (block + 1).is_multiple_of(self.bat.chunk_ratio) {
                let (entry, field) = self.entry(self.index_of(block) + 1)?;
                if entry != state::NOT_PRESENT && !self.bat.differencing {
                    self.pages.write(&[0; 8], field.at, TABLES)?;
                }
            }
            if self.pages.changed_count() >= MAX_CHANGED {
                self.flush()?;
            }
        }
        Ok(())
    }
}

impl SparseUpdate for Update {
    fn info(&self) -> ImageInfo {
        describe(&self.structure)
    }

    fn spec(&self) -> UpdateSpec {
        UpdateSpec::new(self.block_size())
    }

    fn files(&self) -> Vec<Arc<dyn Storage>> {
        vec![self.file.clone()]
    }

    fn extent_at(&mut self, range: Range<u64>) -> Result<Extent> {
        let end = range.end.min(self.bat.disk_size);
        let (kind, len) = self.extent(range.start, end)?;
        Ok(run::merge(Extent { offset: range.start, len, kind }, end, |at| self.extent(at, end).ok()))
    }

    fn allocate(&mut self, guest: Range<u64>) -> Result<Allocation> {
        self.begin()?;
        let (block_size, block) = (self.block_size(), guest.start / self.block_size());
        let (start, within) = (block * block_size, guest.start % block_size);
        let end = guest.end.min(start + block_size) - start;
        let host = match self.state(block)? {
            BlockState::FullyPresent(host) => {
                self.grow_file(host + block_size)?;
                let at = Location { file: IMAGE, offset: host + within };
                return Ok(Allocation { guest: guest.start..start + end, at, is_new: false, reads_as_zeros: false });
            }
            BlockState::PartiallyPresent(host) => {
                self.grow_file(host + block_size)?;
                let (is_present, run) = self.present_run(block, within, end - within)?;
                let (until, sector_size) = ((within + run).min(end), self.sector_size());
                let part = match is_present {
                    true => within..until,
                    false => within - within % sector_size..until.next_multiple_of(sector_size),
                };
                let at = Location { file: IMAGE, offset: host + part.start };
                let guest = start + part.start..start + part.end;
                return Ok(Allocation { guest, at, is_new: !is_present, reads_as_zeros: false });
            }
            BlockState::NotPresent | BlockState::Zero | BlockState::Unmapped(_) => self.new_block()?,
        };
        let reads_as_zeros = host >= self.bat.file_len && self.file.starts_zeroed();
        self.grow_file(host + block_size).inspect_err(|_| self.released.push(host))?;
        let at = Location { file: IMAGE, offset: host };
        Ok(Allocation { guest: start..start + block_size, at, is_new: true, reads_as_zeros })
    }

    fn publish(&mut self, allocation: &Allocation) -> Result<()> {
        if self.pages.changed_count() >= MAX_CHANGED {
            self.flush()?;
        }
        let block = allocation.guest.start / self.block_size();
        if let BlockState::PartiallyPresent(_) = self.state(block)? {
            let within = allocation.guest.start % self.block_size();
            return self.mark_present(block, within..within + (allocation.guest.end - allocation.guest.start));
        }
        self.set_entry(block, allocation.at.offset & OFFSET_BITS | state::FULLY_PRESENT)
    }

    fn release(&mut self, allocation: &Allocation) {
        let block = allocation.guest.start / self.block_size();
        if !matches!(self.state(block), Ok(BlockState::PartiallyPresent(_)) | Err(_)) {
            self.released.push(allocation.at.offset);
        }
    }

    /// A block without data becomes a zero block; one with data keeps its host offset.
    fn zero(&mut self, guest: Range<u64>, _keep: bool) -> Result<Zeroed> {
        let (block, len) = (guest.start / self.block_size(), self.block_size().min(guest.end - guest.start));
        match self.state(block)? {
            BlockState::FullyPresent(_) | BlockState::PartiallyPresent(_) => return Ok(Zeroed::Not(len)),
            BlockState::NotPresent if self.bat.differencing => {
                self.begin()?;
                self.set_entry(block, state::ZERO)?;
            }
            BlockState::NotPresent | BlockState::Zero | BlockState::Unmapped(_) => {}
        }
        Ok(Zeroed::ByMetadata(len))
    }

    fn discard(&mut self, guest: Range<u64>) -> Result<Zeroed> {
        let len = self.block_size().min(guest.end - guest.start);
        match self.state(guest.start / self.block_size())? {
            BlockState::FullyPresent(_) | BlockState::PartiallyPresent(_) => self.begin().map(|()| Zeroed::Not(len)),
            _ => Ok(Zeroed::ByMetadata(len)),
        }
    }

    /// A BAT that needs a larger region moves to the end of the file. A disk becomes smaller only where it has no data.
    fn resize(&mut self, size: u64, _below: u64) -> Result<()> {
        let size = size.checked_next_multiple_of(self.sector_size()).unwrap_or(u64::MAX);
        if size > MAX_DISK_SIZE {
            return Err(Error::limit(FORMAT_NAME, "virtual size", size, MAX_DISK_SIZE));
        }
        let (old_count, count) = (self.bat.block_count, size.div_ceil(self.block_size()));
        for block in count..old_count {
            if !matches!(self.state(block)?, BlockState::NotPresent | BlockState::Zero) {
                return Err(end_is_allocated(FORMAT_NAME));
            }
        }
        if self.bat.differencing && count.div_ceil(self.bat.chunk_ratio) < self.bat.chunk_count() {
            return Err(Error::unsupported(FORMAT_NAME, "making a differencing disk smaller by whole chunks"));
        }
        let room = (self.structure.regions.bat.range.end - self.structure.regions.bat.range.start) / 8;
        let chunks = count.div_ceil(self.bat.chunk_ratio);
        let needed = if self.bat.differencing { chunks * (self.bat.chunk_ratio + 1) } else { count + chunks };
        self.begin()?;
        if needed > room {
            self.move_bat(needed)?;
        }
        self.clear_entries(old_count..count)?;
        self.flush()?;
        self.pages.write(&size.to_le_bytes(), self.structure.metadata.virtual_disk_size_at, TABLES)?;
        self.flush()?;
        self.structure.metadata.virtual_disk_size = size;
        (self.bat.disk_size, self.bat.block_count) = (size, count);
        Ok(())
    }

    fn set_backing(&mut self, backing: Option<&FileReference>) -> Result<()> {
        self.replace_parent(backing)
    }

    fn flush(&mut self) -> Result<()> {
        self.sync()?;
        if self.pages.changed_count() > 0 {
            self.write_log()?;
            self.pages.write_back(TABLES)?;
            self.sync()?;
        }
        Ok(())
    }

    /// Empties the log, after everything in it has been applied.
    fn close(&mut self) -> Result<()> {
        self.flush()?;
        if self.log_guid.is_some() {
            self.structure.header.log_guid = Uuid::nil();
            write_header(&*self.file, &mut self.structure)?;
            self.log_guid = None;
        }
        Ok(())
    }
}
