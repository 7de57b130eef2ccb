//! Where the blocks of a disk lie, by its block allocation table, and which of their sectors were written, by their bitmaps
//! (the document, "Block Allocation Table and Data Blocks").

use std::ops::Range;
use std::sync::Arc;

use super::footer::Footer;
use super::header::Header;
use super::{FIELDS, SECTOR};
use crate::driver::{ExtentKind, FileId, Location};
use crate::error::{Problem, Result};
use crate::format::shared::bits::{self, BitOrder};
use crate::format::shared::table_cache::TableCache;
use crate::io::ReadAt;

/// The image file.
const IMAGE: FileId = FileId(0);
/// The entry of a block that does not exist.
pub(super) const ABSENT: u32 = !0;

/// The blocks of an opened image.
pub(super) struct Blocks {
    file: Arc<dyn ReadAt>,
    pub file_len: u64,
    /// Size of the disk in bytes.
    size: u64,
    table_offset: u64,
    pub block_size: u64,
    pub bitmap_len: u64,
    /// What lives where nothing is written: the parent's bytes, or zeros.
    differencing: bool,
    slices: TableCache,
    /// Where other metadata is in the file.
    pub metadata: Vec<Range<u64>>,
}

/// An entry of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Number of the block.
    pub index: u64,
    /// Byte offset of the entry in the file.
    pub at: u64,
    /// Byte offset of the block, that is of its bitmap, in the file.
    pub block: Option<u64>,
}

impl Blocks {
    /// Bytes of the table that are read at once.
    const SLICE: u64 = 16 << 10;

    /// The blocks of a disk of `size` bytes, by the header in `file`, which has that many bytes. `other` is where metadata is
    /// beside the table.
    ///
    /// # Errors
    /// When the table is not in the file, and when it does not have an entry for each block.
    pub fn new(
        file: Arc<dyn ReadAt>,
        file_len: u64,
        size: u64,
        header: &Header,
        header_at: u64,
        differencing: bool,
        mut other: Vec<Range<u64>>,
    ) -> Result<Blocks> {
        let entries = FIELDS.at("max table entries", header_at + 28);
        entries.within(header.table_offset, header.table_len(), file_len)?;
        let needed = size.div_ceil(header.block_size.into());
        if needed > header.max_table_entries.into() {
            let (value, max) = (header.max_table_entries.into(), u32::MAX.into());
            return Err(entries.fault(Problem::Range { value, min: needed, max }));
        }
        other.push(header.table_offset..header.table_offset + header.table_len());
        Ok(Blocks {
            file,
            file_len,
            size,
            table_offset: header.table_offset,
            block_size: header.block_size.into(),
            bitmap_len: header.bitmap_len(),
            differencing,
            slices: TableCache::default(),
            metadata: other,
        })
    }

    /// The kind and the length of the extent at guest offset `offset`, which ends with a piece of the table or the block's
    /// bitmap, or where table entries beyond `end` would have to be read.
    pub fn extent(&self, offset: u64, end: u64) -> Result<(ExtentKind, u64)> {
        let index = offset / self.block_size;
        let mut entries = self.entries(index)?;
        let first = entries.next();
        match first.and_then(|entry| Some((entry, entry.block?))) {
            Some((entry, block)) => self.block(entry, block, offset, end),
            None => {
                let most = (end.div_ceil(self.block_size) - index).saturating_sub(1);
                let absent = entries.take(most as usize).take_while(|entry| entry.block.is_none()).count() as u64;
                let end = (index + 1 + absent) * self.block_size;
                let kind = if self.differencing { ExtentKind::Hole } else { ExtentKind::Zero { allocated: None } };
                Ok((kind, end.min(self.size) - offset))
            }
        }
    }

    /// The entries of a piece of the table, from that of block `index` on.
    pub fn entries(&self, index: u64) -> Result<impl Iterator<Item = Entry>> {
        let per_slice = Self::SLICE / 4;
        let first = index / per_slice * per_slice;
        let count = self.count().saturating_sub(first).min(per_slice);
        let place = Location { file: IMAGE, offset: self.table_offset + first * 4 };
        let slice = self.slices.get(&*self.file, place, (count * 4) as usize)?;
        Ok((index..first + count).map(move |index| {
            let start = (index - first) * 4;
            let bytes = slice.bytes.get(start as usize..).and_then(<[u8]>::first_chunk);
            let block = match bytes.map_or(ABSENT, |entry| u32::from_be_bytes(*entry)) {
                ABSENT => None,
                sector => Some(u64::from(sector) * SECTOR),
            };
            Entry { index, at: slice.offset() + start, block }
        }))
    }

    /// Number of blocks.
    pub fn count(&self) -> u64 {
        self.size.div_ceil(self.block_size)
    }

    /// Bytes of the block number `index` that belong to the disk, and so have to be in the file.
    pub fn used_len(&self, index: u64) -> u64 {
        self.block_size.min(self.size.saturating_sub(index * self.block_size))
    }

    /// Tells `claim` where the metadata is.
    ///
    /// # Errors
    /// When the table or a bitmap lies where other metadata is.
    pub fn claim_metadata(&self, claim: &mut dyn FnMut(FileId, Range<u64>) -> bool) -> Result<()> {
        for range in &self.metadata {
            if !claim(IMAGE, range.clone()) {
                let overlap = Problem::Overlap { offset: range.start, with: "other metadata" };
                return Err(FIELDS.at("header or table", range.start).fault(overlap));
            }
        }
        let mut index = 0;
        while index < self.count() {
            for entry in self.entries(index)? {
                index = entry.index + 1;
                // One past the end of the file is told by whoever reads the block.
                if let Some(offset) = entry.block.filter(|offset| *offset < self.file_len)
                    && !claim(IMAGE, offset..offset + self.bitmap_len)
                {
                    let overlap = Problem::Overlap { offset, with: "other metadata" };
                    return Err(FIELDS.at("block allocation table entry", entry.at).fault(overlap));
                }
            }
        }
        Ok(())
    }

    /// How the bytes of a block that exists live, from `offset` on.
    fn block(&self, entry: Entry, block: u64, offset: u64, end: u64) -> Result<(ExtentKind, u64)> {
        let field = FIELDS.at("block allocation table entry", entry.at);
        if block < Footer::LEN {
            return Err(field.fault(Problem::Overlap { offset: block, with: "the copy of the footer" }));
        }
        field.within(block, self.bitmap_len, self.file_len)?;
        let bitmap = self.slices.get(&*self.file, Location { file: IMAGE, offset: block }, self.bitmap_len as usize)?;
        let within = offset % self.block_size;
        let order = BitOrder::HighestFirst;
        let end = (within + (end - offset)).min(self.block_size).div_ceil(SECTOR);
        let (written, end) = bits::run(&bitmap.bytes, order, within / SECTOR, end);
        let len = (end * SECTOR).min(self.used_len(entry.index)).saturating_sub(within);
        let place = Location { file: IMAGE, offset: block + self.bitmap_len + within };
        let kind = match (written, self.differencing) {
            (true, _) => ExtentKind::Data(place),
            (false, true) => return Ok((ExtentKind::Hole, len)),
            (false, false) => ExtentKind::Zero { allocated: Some(place) },
        };
        field.within(place.offset, len, self.file_len)?;
        Ok((kind, len))
    }
}
