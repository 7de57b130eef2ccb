//! Writes an image in one pass, in the layout of VirtualBox: the block map at 1 MiB, then the data area, aligned to 1 MiB.
//!
//! Blocks are in guest order, so the map and the data area are both written sequentially.

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use super::header::{Header, Kind};
use super::map::BlockMapEntry;
use super::options::{Settings, uuids};
use super::{FORMAT_NAME, SECTOR};
use crate::driver::{CreateContext, Placement, SparseWrite, WriteSpec};
use crate::error::{Error, Result};
use crate::format::shared::written::Written;
use crate::identifiers::ImageIdentifiers;
use crate::io::WriteAt;
use crate::name::Name;

/// Alignment of the block map and the data area in VirtualBox.
const ALIGNMENT: u64 = 1 << 20;
/// Number of entries written at once.
const FLUSH: usize = 64 << 10;

/// A new image.
pub(super) struct Writer {
    out: Arc<dyn WriteAt>,
    spec: WriteSpec,
    /// Without UUIDs, which follow from the content.
    header: Header,
    /// The UUID that the caller has set.
    uuid: Option<Uuid>,
    /// Encoded entries not yet written. The last one is of the block placed last.
    entries: Vec<u8>,
    /// Number of entries so far, written or not.
    mapped: u64,
    /// What is placed or zeroed.
    written: Written,
}

impl Writer {
    pub fn create(cx: &CreateContext<'_>) -> Result<Writer> {
        let settings = Settings::parse(cx)?;
        let header = new_header(&settings)?;
        let out = cx.out.clone();
        let mut writer = Writer {
            out,
            spec: WriteSpec {
                virtual_size: header.disk_size,
                // Parts of a block can be placed: the rest stays a hole of the file, or is zeroed.
                block_size: SECTOR,
                granule: SECTOR,
                host_alignment: 1 << header.data_offset.trailing_zeros().min(header.block_size.trailing_zeros()),
                ..WriteSpec::default()
            },
            header,
            uuid: settings.uuid,
            entries: Vec::new(),
            mapped: 0,
            written: Written::default(),
        };
        if settings.is_static {
            // Fails before the first write if a device is too small.
            writer.set_len()?;
        }
        // The header of an old image must not describe the new one while it is incomplete.
        writer.written.zero_until(&*writer.out, writer.header.data_offset)?;
        Ok(writer)
    }

    /// Adds the entries of the blocks before `end`. Blocks from `start`, and all blocks of a static image, are allocated at the
    /// end of the data area.
    fn map(&mut self, start: u64, end: u64) -> Result<()> {
        if self.header.kind == Kind::Dynamic {
            while self.mapped < start {
                let count = (start - self.mapped).min(self.room());
                let len = self.entries.len() + (count * BlockMapEntry::LEN) as usize;
                // `BlockMapEntry::Free`.
                self.entries.resize(len, 0xff);
                self.add(count)?;
            }
        }
        while self.mapped < end {
            let number = self.header.blocks_allocated;
            self.header.blocks_allocated += 1;
            self.entries.extend(BlockMapEntry::Block(number).encode().to_le_bytes());
            self.add(1)?;
        }
        Ok(())
    }

    /// How many entries are added before the next ones are written: at least one.
    fn room(&self) -> u64 {
        FLUSH as u64 - self.entries.len() as u64 / BlockMapEntry::LEN
    }

    /// Counts entries that were added to the encoded ones.
    fn add(&mut self, count: u64) -> Result<()> {
        self.mapped += count;
        if self.room() == 0 { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let end = self.header.map_offset + self.mapped * BlockMapEntry::LEN;
        let at = end - self.entries.len() as u64;
        self.write(&self.entries, at, "writing the block map")?;
        self.entries.clear();
        Ok(())
    }

    /// The host offset of block `number` of the data area.
    fn host_offset(&self, number: u64) -> u64 {
        self.header.data_offset + number * self.header.stride()
    }

    /// Sets the file length to the end of the last block, which is whole even if the disk ends within it.
    fn set_len(&self) -> Result<()> {
        let blocks = if self.header.kind == Kind::Static { self.header.blocks } else { self.header.blocks_allocated };
        let len = self.host_offset(blocks.into());
        self.out.set_len(len).map_err(Error::io("setting the length", len))
    }

    fn write(&self, bytes: &[u8], offset: u64, action: &'static str) -> Result<()> {
        self.out.write_all_at(bytes, offset).map_err(Error::io(action, offset))
    }

    fn sync(&self) -> Result<()> {
        self.out.sync().map_err(Error::io("syncing", None))
    }
}

/// The header of an image without allocated blocks.
fn new_header(settings: &Settings) -> Result<Header> {
    let blocks = settings.disk_size.div_ceil(settings.block_size.into());
    let data_offset = (ALIGNMENT + blocks * BlockMapEntry::LEN).next_multiple_of(ALIGNMENT);
    // The offset of the data area has 32 bits, which also bounds the number of blocks.
    if data_offset > u32::MAX.into() {
        let limit =
            (u64::from(u32::MAX) / ALIGNMENT - 1) * ALIGNMENT / BlockMapEntry::LEN * u64::from(settings.block_size);
        return Err(Error::limit(FORMAT_NAME, "disk size at this block size", settings.disk_size, limit));
    }
    Ok(Header {
        minor_version: 1,
        kind: if settings.is_static { Kind::Static } else { Kind::Dynamic },
        comment: Name::default(),
        map_offset: ALIGNMENT,
        data_offset,
        disk_size: settings.disk_size,
        block_size: settings.block_size,
        block_extra: 0,
        blocks: blocks as u32,
        blocks_allocated: 0,
        uuid: Uuid::nil(),
        modification: Uuid::nil(),
        linkage: Uuid::nil(),
        parent_modification: Uuid::nil(),
        lchs_sector_size: Some(SECTOR as u32),
    })
}

impl SparseWrite for Writer {
    fn spec(&self) -> &WriteSpec {
        &self.spec
    }

    fn place(&mut self, guest: Range<u64>) -> Result<Placement> {
        let block_size = u64::from(self.header.block_size);
        let (first, end) = (guest.start / block_size, guest.end.div_ceil(block_size));
        if guest.start >= guest.end || guest.end > self.spec.virtual_size || self.mapped > first + 1 {
            return Err(Error::Usage(format!("guest range {guest:x?} is not in ascending order")));
        }
        self.map(first, end)?;
        // The blocks of `guest` are contiguous and were allocated last.
        let number = u64::from(self.header.blocks_allocated) - (end - first);
        let offset = self.host_offset(number) + guest.start % block_size;
        let len = guest.end - guest.start;
        self.written.zero_until(&*self.out, offset)?;
        self.written.advance(offset + len);
        Ok(Placement { out: self.out.clone(), offset, before: Vec::new(), len })
    }

    fn place_compressed(&mut self, _guest: Range<u64>, _payload_len: u32) -> Result<Placement> {
        Err(Error::Unsupported { format: FORMAT_NAME, feature: "compression".into(), at: None })
    }

    fn zero(&mut self, _guest: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self, identifiers: &ImageIdentifiers) -> Result<()> {
        let blocks = u64::from(self.header.blocks);
        self.map(blocks, blocks)?;
        self.flush()?;
        self.written.zero_until(&*self.out, self.host_offset(self.header.blocks_allocated.into()))?;
        self.set_len()?;
        self.sync()?;
        (self.header.uuid, self.header.modification) = uuids(self.uuid, identifiers);
        self.write(&self.header.encode(), 0, "writing the header")?;
        self.sync()
    }
}

#[cfg(test)]
mod tests;
