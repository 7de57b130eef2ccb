//! Writes an image in one pass, in the layout of Windows: log, metadata, block allocation table, blocks.
//!
//! Blocks are in guest order, so the table and the blocks are both written sequentially. In a differencing image, the sector
//! bitmap block of a chunk follows the first block of the chunk that needs it.

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
use super::options::{Guids, Settings};
use super::region::{Region, Regions, TABLES_AT};
use super::{FORMAT_NAME, HEADER_SECTION, MIB};
use crate::driver::{CreateContext, Placement, SparseWrite, WriteSpec};
use crate::error::{Error, Result};
use crate::format::shared::written::Written;
use crate::identifiers::ImageIdentifiers;
use crate::io::WriteAt;

/// The creator in the file identifier.
const CREATOR: &str = "diskimage";

pub(super) fn create(cx: &CreateContext<'_>) -> Result<Box<dyn SparseWrite>> {
    Ok(Box::new(Writer::create(cx)?))
}

/// A new image.
struct Writer {
    out: Arc<dyn WriteAt>,
    spec: WriteSpec,
    guids: Guids,
    /// Without the virtual disk ID, which follows from the content.
    metadata: Metadata,
    /// Host range of the log.
    log: Range<u64>,
    regions: Regions,
    /// The entry of blocks without data.
    unwritten_entry: u64,
    table: Table,
    /// Number of payload blocks with an entry.
    mapped: u64,
    /// The current block, which gets the next entry.
    block: Option<Block>,
    /// The sector bitmap of the current chunk.
    bitmap: SectorBitmap,
    /// Guest offset at the end of the last call.
    guest: u64,
    /// Host offset of the next block.
    next: u64,
    /// What is placed or zeroed.
    written: Written,
}

/// The payload block being written.
struct Block {
    index: u64,
    /// Host offset, once data is placed in it.
    offset: Option<u64>,
    /// Number of its bytes that are placed or zeros.
    covered: u64,
}

impl Writer {
    fn create(cx: &CreateContext<'_>) -> Result<Writer> {
        let Settings { metadata, log_size, block_state_zero, guids } = Settings::parse(cx)?;
        let log = HEADER_SECTION..HEADER_SECTION + log_size;
        let regions = regions(&metadata, log.end);
        let out = cx.out.clone();
        let differencing = metadata.parent.is_some();
        // Parts of a block can be placed: the rest stays a hole of the file, is zeroed, or reads from the parent.
        let granule = if differencing { metadata.logical_sector_size.into() } else { 512 };
        let spec = WriteSpec {
            virtual_size: metadata.virtual_disk_size,
            block_size: granule,
            granule,
            over_backing: differencing,
            // Blocks begin at multiples of 1 MiB ([MS-VHDX] 2.5.1.1).
            host_alignment: 1 << 20,
            ..WriteSpec::default()
        };
        let next = regions.bat.range.end;
        let mut writer = Writer {
            spec,
            guids,
            log,
            unwritten_entry: if block_state_zero && !differencing { state::ZERO } else { state::NOT_PRESENT },
            table: Table::new(out.clone(), regions.bat.range.start),
            mapped: 0,
            block: None,
            bitmap: SectorBitmap::new(metadata.logical_sector_size),
            guest: 0,
            next,
            written: Written::default(),
            out,
            metadata,
            regions,
        };
        if writer.metadata.leave_block_allocated {
            // Fails before the first write if a device is too small.
            writer.set_len(next + writer.metadata.payload_block_count() * writer.block_size())?;
        }
        // The headers of an old image must not describe the new one while it is incomplete.
        writer.written.zero_until(&*writer.out, next)?;
        Ok(writer)
    }

    fn block_size(&self) -> u64 {
        self.metadata.block_size.into()
    }

    /// Allocates the next `len` bytes of the file and returns their host offset.
    fn allocate(&mut self, len: u64) -> u64 {
        let offset = self.next;
        self.next += len;
        offset
    }

    /// The index of the first block of `guest`, and the part of `guest` in it, relative to the block.
    fn first_block(&self, guest: &Range<u64>) -> (u64, Range<u64>) {
        let size = self.block_size();
        let index = guest.start / size;
        let start = index * size;
        (index, guest.start - start..guest.end.min(start + size) - start)
    }

    /// Offset of a block in its chunk, in bytes.
    fn in_chunk(&self, index: u64) -> u64 {
        index % self.metadata.chunk_ratio() * self.block_size()
    }

    /// Checks that `guest` is aligned and follows the range of the last call.
    fn check_order(&self, guest: &Range<u64>) -> Result<()> {
        let aligned = [guest.start, guest.end].iter().all(|at| at.is_multiple_of(self.spec.granule));
        if guest.start < self.guest || guest.start >= guest.end || guest.end > self.spec.virtual_size || !aligned {
            return Err(Error::Usage(format!("guest range {guest:x?} is not in ascending order or not aligned")));
        }
        Ok(())
    }

    /// Makes block `index` the current one, and marks its bytes `within` as placed or zeros.
    fn enter(&mut self, index: u64, within: &Range<u64>) -> Result<Block> {
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

    /// Adds the entry of a completed block.
    fn close(&mut self, block: Option<Block>) -> Result<()> {
        let Some(Block { index, offset, covered }) = block else { return Ok(()) };
        let len = self.block_size().min(self.spec.virtual_size - index * self.block_size());
        let entry = match offset {
            // Without a parent, a block with data is fully present: its other bytes are zeros.
            Some(offset) if !self.spec.over_backing || covered == len => offset | state::FULLY_PRESENT,
            None if covered == len => {
                // The bits of a zero block are meaningless, but libvhdi would read data at the start of the file for them.
                let start = self.in_chunk(index);
                self.bitmap.set(start..start + len, false);
                state::ZERO
            }
            _ => {
                // Zeros hide the parent: their sectors are present, and holes of the file.
                let offset = offset.unwrap_or_else(|| self.allocate(self.metadata.block_size.into()));
                self.allocate_bitmap()?;
                offset | state::PARTIALLY_PRESENT
            }
        };
        self.map(entry)
    }

    /// Allocates the sector bitmap block of this chunk, which is written at the end of the chunk.
    fn allocate_bitmap(&mut self) -> Result<()> {
        if self.bitmap.offset.is_none() {
            let offset = self.allocate(SectorBitmap::LEN);
            self.written.zero_until(&*self.out, offset)?;
            self.written.advance(offset + SectorBitmap::LEN);
            self.bitmap.offset = Some(offset);
        }
        Ok(())
    }

    /// Adds the entries of the blocks before `index`, which have no data.
    fn skip_to(&mut self, index: u64) -> Result<()> {
        while self.mapped < index && self.metadata.leave_block_allocated {
            let entry = self.allocate(self.block_size()) | state::FULLY_PRESENT;
            self.map(entry)?;
        }
        while self.mapped < index {
            let chunk_end = (self.mapped / self.metadata.chunk_ratio() + 1) * self.metadata.chunk_ratio();
            let end = index.min(chunk_end);
            self.table.repeat(self.unwritten_entry, end - self.mapped)?;
            self.mapped = end;
            if end == chunk_end {
                self.end_chunk()?;
            }
        }
        Ok(())
    }

    /// Adds the entry of the next payload block, and after the last one of a chunk the entry of its sector bitmap block (2.5).
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

    /// Sets the file length. The last block is whole, even if the disk ends within it.
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

/// The host ranges of the metadata and the table, after the log. The table has whole chunks, so that a parent can be added later
/// without moving data.
fn regions(metadata: &Metadata, log_end: u64) -> Regions {
    let region = |start, len: u64| Region { range: start..start + len.next_multiple_of(MIB), at: 0 };
    let (blocks, ratio) = (metadata.payload_block_count(), metadata.chunk_ratio());
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
        let mut block = self.enter(index, &within)?;
        let start = block.offset.unwrap_or_else(|| self.allocate(self.metadata.block_size.into()));
        block.offset = Some(start);
        self.block = Some(block);
        let (offset, len) = (start + within.start, within.end - within.start);
        self.written.zero_until(&*self.out, offset)?;
        self.written.advance(offset + len);
        Ok(Placement { out: self.out.clone(), offset, before: Vec::new(), len })
    }

    fn place_compressed(&mut self, _guest: Range<u64>, _payload_len: u32) -> Result<Placement> {
        Err(Error::Unsupported { format: FORMAT_NAME, feature: "compression".into(), at: None })
    }

    fn zero(&mut self, guest: Range<u64>) -> Result<()> {
        self.check_order(&guest)?;
        // Without a parent, unplaced bytes read as zeros.
        let mut at = guest.start;
        while self.spec.over_backing && at < guest.end {
            let (index, within) = self.first_block(&(at..guest.end));
            self.block = Some(self.enter(index, &within)?);
            at += within.end - within.start;
        }
        Ok(())
    }

    /// Writes the headers last: they mark the image complete (2.2.2).
    fn finish(&mut self, identifiers: &ImageIdentifiers) -> Result<()> {
        let last = self.block.take();
        self.close(last)?;
        self.skip_to(self.metadata.payload_block_count())?;
        // The entry of a sector bitmap block follows the entries of a whole chunk.
        while self.bitmap.offset.is_some() {
            self.map(state::NOT_PRESENT)?;
        }
        self.table.flush()?;
        self.written.zero_until(&*self.out, self.next)?;
        self.set_len(self.next)?;
        self.metadata.virtual_disk_id = self.guids.virtual_disk_id(identifiers);
        self.write(&self.metadata.encode(), self.regions.metadata.range.start, "writing the metadata")?;
        let table = self.regions.encode();
        for at in TABLES_AT {
            self.write(&table, at, "writing a region table")?;
        }
        self.sync()?;
        self.write(&header::encode_identifier(CREATOR), 0, "writing the file identifier")?;
        for (at, sequence_number) in HEADERS_AT.into_iter().zip(1..) {
            let header = Header {
                sequence_number,
                file_write_guid: self.guids.file_write_guid(identifiers),
                data_write_guid: self.guids.data_write_guid(identifiers),
                log_guid: Uuid::nil(),
                log: self.log.clone(),
            };
            self.write(&header.encode(), at, "writing a header")?;
        }
        self.sync()
    }
}

#[cfg(test)]
mod tests;
