//! Writes an image in one pass, in the order in which Windows has it: log, metadata, block allocation table, blocks.
//!
//! Blocks are in the order of the disk, so that the table and the blocks grow from front to back, each in its place. Over a
//! parent, the sector bitmap block of a chunk follows the first block of the chunk that needs it.

mod bitmap;
mod table;

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use self::bitmap::SectorBitmap;
use self::table::Table;
use super::bat::{ENTRY_LEN, state};
use super::header::{self, HEADERS_AT, Header};
use super::metadata::Metadata;
use super::options::Settings;
use super::region::{Region, Regions, TABLES_AT};
use super::{FORMAT_NAME, HEADER_SECTION, MIB};
use crate::driver::CreateContext;
use crate::driver::{Placement, SparseWrite, WriteSpec};
use crate::error::{Error, Result};
use crate::io::WriteAt;

/// What the file says of who made it.
const CREATOR: &str = "diskimage";

pub(super) fn create(cx: &CreateContext<'_>) -> Result<Box<dyn SparseWrite>> {
    Ok(Box::new(Writer::create(cx)?))
}

/// A new image.
struct Writer {
    out: Arc<dyn WriteAt>,
    spec: WriteSpec,
    metadata: Metadata,
    /// The first of the two headers.
    header: Header,
    regions: Regions,
    /// What the table has for blocks of which no call speaks.
    untouched: u64,
    table: Table,
    /// Payload blocks that have their entries.
    mapped: u64,
    /// The block that the last call spoke of; it is the next one to get its entry.
    block: Option<Block>,
    /// Of the chunk of that block.
    bitmap: SectorBitmap,
    /// Where the last call ended on the disk.
    guest: u64,
    /// Byte offset after the last block in the file.
    next: u64,
    /// Everything before it in the file is placed or cleared.
    done: u64,
}

/// A payload block while calls speak of it.
struct Block {
    index: u64,
    /// Where it is in the file, once there is something to be placed in it.
    offset: Option<u64>,
    /// Bytes of it that were placed or made zeros.
    covered: u64,
}

impl Writer {
    fn create(cx: &CreateContext<'_>) -> Result<Writer> {
        let Settings { metadata, log_size, block_state_zero, file_write_guid, data_write_guid } = Settings::parse(cx)?;
        let log = HEADER_SECTION..HEADER_SECTION + log_size;
        let regions = regions(&metadata, log.end);
        let out = cx.out.clone();
        let differencing = metadata.parent.is_some();
        // No block is needed as a whole: the rest of one is a hole of the file, is cleared, or is the parent's.
        let granule = if differencing { metadata.logical_sector_size.into() } else { 512 };
        let spec = WriteSpec {
            virtual_size: metadata.virtual_disk_size,
            block_size: granule,
            granule,
            over_backing: differencing,
            ..WriteSpec::default()
        };
        let next = regions.bat.range.end;
        let mut writer = Writer {
            spec,
            header: Header { sequence_number: 1, file_write_guid, data_write_guid, log_guid: Uuid::nil(), log },
            untouched: if block_state_zero && !differencing { state::ZERO } else { state::NOT_PRESENT },
            table: Table::new(out.clone(), regions.bat.range.start),
            mapped: 0,
            block: None,
            bitmap: SectorBitmap::new(metadata.logical_sector_size),
            guest: 0,
            next,
            done: 0,
            out,
            metadata,
            regions,
        };
        if writer.metadata.leave_block_allocated {
            // A device that is too small is found before the first byte is written to it.
            writer.set_len(next + writer.metadata.payload_blocks() * writer.block_size())?;
        }
        // Until the new headers are there, nothing shall take the old ones for them.
        writer.clear(next)?;
        Ok(writer)
    }

    fn block_size(&self) -> u64 {
        self.metadata.block_size.into()
    }

    /// Sees to it that what is not placed reads as zeros.
    fn clear(&mut self, until: u64) -> Result<()> {
        if !self.out.starts_zeroed() && until > self.done {
            self.out.zero_range(self.done..until).map_err(Error::io("writing zeros", self.done))?;
        }
        self.done = self.done.max(until);
        Ok(())
    }

    /// Sets the next `len` bytes of the file aside, and says where.
    fn allocate(&mut self, len: u64) -> u64 {
        let offset = self.next;
        self.next += len;
        offset
    }

    /// The first block of `guest`, and the part of `guest` in it, from the block's beginning on.
    fn first_block(&self, guest: &Range<u64>) -> (u64, Range<u64>) {
        let size = self.block_size();
        let index = guest.start / size;
        let start = index * size;
        (index, guest.start - start..guest.end.min(start + size) - start)
    }

    /// Where a block begins in its chunk, in bytes.
    fn in_chunk(&self, index: u64) -> u64 {
        index % self.metadata.chunk_ratio() * self.block_size()
    }

    /// Checks that `guest` is what a call may speak of after the calls before it.
    fn check_order(&self, guest: &Range<u64>) -> Result<()> {
        let aligned = [guest.start, guest.end].iter().all(|at| at.is_multiple_of(self.spec.granule));
        if guest.start < self.guest || guest.start >= guest.end || guest.end > self.spec.virtual_size || !aligned {
            return Err(Error::Usage(format!("guest bytes {guest:x?} are not the next ones of the disk")));
        }
        Ok(())
    }

    /// The block `index`, after those before it have got their entries; of it, `within` is placed or made zeros.
    fn touch(&mut self, index: u64, within: &Range<u64>) -> Result<Block> {
        let block = match self.block.take() {
            Some(block) if block.index == index => block,
            last => {
                self.close(last)?;
                self.skip_to(index)?;
                Block { index, offset: None, covered: 0 }
            }
        };
        if self.spec.over_backing {
            let start = self.in_chunk(index);
            self.bitmap.set(start + within.start..start + within.end, true);
        }
        self.guest = index * self.block_size() + within.end;
        Ok(Block { covered: block.covered + (within.end - within.start), ..block })
    }

    /// Makes the entry of a block of which no more calls will speak.
    fn close(&mut self, block: Option<Block>) -> Result<()> {
        let Some(Block { index, offset, covered }) = block else { return Ok(()) };
        let len = self.block_size().min(self.spec.virtual_size - index * self.block_size());
        let entry = match offset {
            // Without a parent, a block that is placed is present: all of it is as it is to be read.
            Some(offset) if !self.spec.over_backing || covered == len => offset | state::FULLY_PRESENT,
            None if covered == len => {
                // Nobody has to look at its bits, and libvhdi takes them for data at the beginning of the file.
                let start = self.in_chunk(index);
                self.bitmap.set(start..start + len, false);
                state::ZERO
            }
            _ => {
                // Zeros over a parent are sectors like others, which are holes of the file.
                let offset = offset.unwrap_or_else(|| self.allocate(self.metadata.block_size.into()));
                self.allocate_bitmap()?;
                offset | state::PARTIALLY_PRESENT
            }
        };
        self.map(entry)
    }

    /// Sets the sector bitmap block of this chunk aside. It is written as a whole when the chunk ends.
    fn allocate_bitmap(&mut self) -> Result<()> {
        if self.bitmap.offset.is_none() {
            let offset = self.allocate(SectorBitmap::LEN);
            self.clear(offset)?;
            self.done = offset + SectorBitmap::LEN;
            self.bitmap.offset = Some(offset);
        }
        Ok(())
    }

    /// Makes the entries of the blocks before `index`, of which no call speaks.
    fn skip_to(&mut self, index: u64) -> Result<()> {
        while self.mapped < index {
            let entry = if self.metadata.leave_block_allocated {
                self.allocate(self.block_size()) | state::FULLY_PRESENT
            } else {
                self.untouched
            };
            self.map(entry)?;
        }
        Ok(())
    }

    /// Adds the entry of the next payload block, and behind the last one of a chunk that of its sector bitmap block (2.5).
    fn map(&mut self, entry: u64) -> Result<()> {
        self.table.push(entry)?;
        self.mapped += 1;
        if self.mapped.is_multiple_of(self.metadata.chunk_ratio()) { self.end_chunk() } else { Ok(()) }
    }

    fn end_chunk(&mut self) -> Result<()> {
        let entry = match self.bitmap.offset {
            Some(offset) => {
                self.write(self.bitmap.bytes(), offset, "writing a sector bitmap")?;
                offset | state::FULLY_PRESENT
            }
            None => state::NOT_PRESENT,
        };
        self.bitmap.clear();
        self.table.push(entry)
    }

    /// Makes the file as long as the blocks in it. The last one is whole, even where the disk ends within it.
    fn set_len(&self, len: u64) -> Result<()> {
        self.out.set_len(len).map_err(Error::io("setting the length", len))
    }

    fn write(&self, bytes: &[u8], offset: u64, action: &'static str) -> Result<()> {
        self.out.write_all_at(bytes, offset).map_err(Error::io(action, offset))
    }

    fn sync(&self) -> Result<()> {
        self.out.sync().map_err(Error::io("syncing", None))
    }
}

/// Where the metadata and the table are, behind the log. The table has whole chunks, so that a disk can get a parent later and
/// its table stays where it is.
fn regions(metadata: &Metadata, log_end: u64) -> Regions {
    let region = |start, len: u64| Region { range: start..start + len.next_multiple_of(MIB), at: 0 };
    let (blocks, ratio) = (metadata.payload_blocks(), metadata.chunk_ratio());
    let entries = blocks.div_ceil(ratio) * (ratio + 1);
    let items = region(log_end, MIB);
    Regions { bat: region(items.range.end, entries * ENTRY_LEN), metadata: items, others: Vec::new() }
}

impl SparseWrite for Writer {
    fn spec(&self) -> &WriteSpec {
        &self.spec
    }

    fn place(&mut self, guest: Range<u64>) -> Result<Placement> {
        self.check_order(&guest)?;
        let (index, within) = self.first_block(&guest);
        let mut block = self.touch(index, &within)?;
        let start = block.offset.unwrap_or_else(|| self.allocate(self.metadata.block_size.into()));
        block.offset = Some(start);
        self.block = Some(block);
        let (offset, len) = (start + within.start, within.end - within.start);
        self.clear(offset)?;
        self.done = offset + len;
        Ok(Placement { out: self.out.clone(), offset, before: Vec::new(), len })
    }

    fn place_compressed(&mut self, _guest: Range<u64>, _stored_len: u32) -> Result<Placement> {
        Err(Error::Unsupported { format: FORMAT_NAME, feature: "compression".into(), at: None })
    }

    fn zero(&mut self, guest: Range<u64>) -> Result<()> {
        self.check_order(&guest)?;
        // Without a parent, zeros are what nothing is placed in.
        let mut at = guest.start;
        while self.spec.over_backing && at < guest.end {
            let (index, within) = self.first_block(&(at..guest.end));
            self.block = Some(self.touch(index, &within)?);
            at += within.end - within.start;
        }
        Ok(())
    }

    /// Only headers make the file an image, so that they come last (2.2.2).
    fn finish(&mut self) -> Result<()> {
        let last = self.block.take();
        self.close(last)?;
        self.skip_to(self.metadata.payload_blocks())?;
        // The entry of a sector bitmap block stands behind those of a whole chunk.
        while self.bitmap.offset.is_some() {
            self.map(state::NOT_PRESENT)?;
        }
        self.table.flush()?;
        self.clear(self.next)?;
        self.set_len(self.next)?;
        self.write(&self.metadata.encode(), self.regions.metadata.range.start, "writing the metadata")?;
        let table = self.regions.encode();
        for at in TABLES_AT {
            self.write(&table, at, "writing a region table")?;
        }
        self.sync()?;
        self.write(&header::encode_identifier(CREATOR), 0, "writing the file identifier")?;
        for (at, more) in HEADERS_AT.into_iter().zip(0..) {
            let header = Header { sequence_number: self.header.sequence_number + more, ..self.header.clone() };
            self.write(&header.encode(), at, "writing a header")?;
        }
        self.sync()
    }
}

#[cfg(test)]
mod tests;
