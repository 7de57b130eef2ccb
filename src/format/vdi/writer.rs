//! Writes an image in one pass, as VirtualBox lays it out: the block map at 1 MiB, the data on a MiB behind it.
//!
//! Blocks are in the order of the disk, so that the map and the data grow from front to back, each in its place.

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use super::header::{Header, Kind};
use super::map::Entry;
use super::options::Settings;
use super::{FORMAT_NAME, SECTOR};
use crate::driver::CreateContext;
use crate::driver::{Placement, SparseWrite, WriteSpec};
use crate::error::{Error, Result};
use crate::io::WriteAt;
use crate::name::Name;

/// What VirtualBox aligns the block map and the data to.
const ALIGNMENT: u64 = 1 << 20;
/// Entries that are written at once.
const FLUSH: usize = 64 << 10;

/// A new image.
pub(super) struct Writer {
    out: Arc<dyn WriteAt>,
    spec: WriteSpec,
    header: Header,
    /// Entries of the block map that are not written yet; the last of them is for the block that was placed last.
    entries: Vec<u8>,
    /// Entries that are made, written or not.
    mapped: u64,
    /// Everything before it in the file is placed or cleared.
    done: u64,
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
                // No block is needed as a whole: the rest of one is a hole of the file, or is cleared.
                block_size: SECTOR,
                granule: SECTOR,
                ..WriteSpec::default()
            },
            header,
            entries: Vec::new(),
            mapped: 0,
            done: 0,
        };
        if settings.is_static {
            // A device that is too small is found before the first byte is written to it.
            writer.set_len()?;
        }
        // Until the new header is there, nothing shall take the old one for it.
        writer.clear(writer.header.data_offset)?;
        Ok(writer)
    }

    /// Sees to it that what is not placed reads as zeros.
    fn clear(&mut self, until: u64) -> Result<()> {
        if !self.out.starts_zeroed() && until > self.done {
            self.out.zero_range(self.done..until).map_err(Error::io("writing zeros", self.done))?;
        }
        self.done = self.done.max(until);
        Ok(())
    }

    /// Makes the entries of the blocks before `end`. From `start` on, and in a static image all, they get the next blocks of the
    /// data area.
    fn map(&mut self, start: u64, end: u64) -> Result<()> {
        while self.mapped < end {
            let entry = if self.header.kind == Kind::Static || self.mapped >= start {
                let number = self.header.blocks_allocated;
                self.header.blocks_allocated += 1;
                Entry::Block(number)
            } else {
                Entry::Free
            };
            self.entries.extend(entry.encode().to_le_bytes());
            self.mapped += 1;
            if self.entries.len() >= FLUSH * Entry::LEN as usize {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let end = self.header.map_offset + self.mapped * Entry::LEN;
        let at = end - self.entries.len() as u64;
        self.write(&self.entries, at, "writing the block map")?;
        self.entries.clear();
        Ok(())
    }

    /// Where block `number` of the data area begins.
    fn place_of(&self, number: u64) -> u64 {
        self.header.data_offset + number * self.header.stride()
    }

    /// Makes the file as long as the blocks in it. The last one is whole, even where the disk ends within it.
    fn set_len(&self) -> Result<()> {
        let blocks = if self.header.kind == Kind::Static { self.header.blocks } else { self.header.blocks_allocated };
        let len = self.place_of(blocks.into());
        self.out.set_len(len).map_err(Error::io("setting the length", len))
    }

    fn write(&self, bytes: &[u8], offset: u64, action: &'static str) -> Result<()> {
        self.out.write_all_at(bytes, offset).map_err(Error::io(action, offset))
    }

    fn sync(&self) -> Result<()> {
        self.out.sync().map_err(Error::io("syncing", None))
    }
}

/// The header of an image in which no block is allocated.
fn new_header(settings: &Settings) -> Result<Header> {
    let blocks = settings.disk_size.div_ceil(settings.block_size.into());
    let data_offset = (ALIGNMENT + blocks * Entry::LEN).next_multiple_of(ALIGNMENT);
    // Its offset has 32 bits, which bounds the number of blocks as well.
    if data_offset > u32::MAX.into() {
        let limit = (u64::from(u32::MAX) / ALIGNMENT - 1) * ALIGNMENT / Entry::LEN * u64::from(settings.block_size);
        let (value, field) = (settings.disk_size, "size of the disk in blocks of this size".into());
        return Err(Error::Limit { format: FORMAT_NAME, field, at: None, value, limit });
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
        uuid: settings.uuid,
        modification: settings.modification,
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
            return Err(Error::Usage(format!("guest bytes {guest:x?} are not the next ones of the disk")));
        }
        self.map(first, end)?;
        // The blocks from the first one on follow each other, and were allocated last.
        let number = u64::from(self.header.blocks_allocated) - (end - first);
        let offset = self.place_of(number) + guest.start % block_size;
        let len = guest.end - guest.start;
        self.clear(offset)?;
        self.done = offset + len;
        Ok(Placement { out: self.out.clone(), offset, before: Vec::new(), len })
    }

    fn place_compressed(&mut self, _guest: Range<u64>, _stored_len: u32) -> Result<Placement> {
        Err(Error::Unsupported { format: FORMAT_NAME, feature: "compression".into(), at: None })
    }

    fn zero(&mut self, _guest: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let blocks = u64::from(self.header.blocks);
        self.map(blocks, blocks)?;
        self.flush()?;
        self.clear(self.place_of(self.header.blocks_allocated.into()))?;
        self.set_len()?;
        self.sync()?;
        self.write(&self.header.encode(), 0, "writing the header")?;
        self.sync()
    }
}

#[cfg(test)]
mod tests;
