//! The block map: the index in the data area of each block of the disk.

use std::sync::Arc;

use byteorder::{ByteOrder, LittleEndian};

use super::FIELDS;
use super::header::Header;
use crate::driver::{ExtentKind, FileId, Location};
use crate::error::Result;
use crate::format::shared::paged_table::{PagedTable, TablePage};
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::limits::Budget;

/// The image file.
pub(super) const IMAGE: FileId = FileId(0);

/// An entry of the block map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockMapEntry {
    /// `VDI_IMAGE_BLOCK_FREE`: unallocated. Reads from the parent, or as zeros.
    Free,
    /// `VDI_IMAGE_BLOCK_ZERO`: a zero block.
    Zero,
    /// Allocated: the index of the block in the data area.
    Block(u32),
}

impl BlockMapEntry {
    /// Bytes in the file.
    pub const LEN: u64 = 4;

    pub fn parse(number: u32) -> BlockMapEntry {
        match number {
            0xffff_ffff => BlockMapEntry::Free,
            0xffff_fffe => BlockMapEntry::Zero,
            number => BlockMapEntry::Block(number),
        }
    }

    /// Entry `index` of the block map, which is on `page`; free outside it.
    pub fn from_page(page: &BlockMapPage, index: u64) -> BlockMapEntry {
        page.entry(index).map_or(BlockMapEntry::Free, |entry| BlockMapEntry::parse(LittleEndian::read_u32(&entry)))
    }

    /// The entry as it is written. The index of a block is below the values of the other two variants.
    pub fn encode(self) -> u32 {
        match self {
            BlockMapEntry::Free => 0xffff_ffff,
            BlockMapEntry::Zero => 0xffff_fffe,
            BlockMapEntry::Block(number) => number,
        }
    }
}

/// A page of the block map.
pub(super) type BlockMapPage = TablePage<{ BlockMapEntry::LEN as usize }>;

/// The block map of an open image.
pub(super) struct BlockMap {
    pub file_len: u64,
    pub header: Header,
    entries: PagedTable<{ BlockMapEntry::LEN as usize }>,
}

impl BlockMap {
    pub fn new(file: Arc<dyn ReadAt>, header: Header, budget: &Budget) -> Result<BlockMap> {
        let file_len = table::length(&*file)?;
        let entries = PagedTable::new(file, header.map_offset, budget);
        Ok(BlockMap { file_len, header, entries })
    }

    /// The page of entry `index`, which is below the number of blocks.
    pub fn page(&self, index: u64) -> Result<BlockMapPage> {
        self.entries.page(index, 0..self.header.blocks.into())
    }

    /// The host offset of the guest data in block `number` of the data area. It is not checked.
    pub fn host_offset(&self, number: u32) -> u64 {
        self.header.host_offset(number)
    }

    /// Checks that the `len` bytes at `host_offset`, to which entry `index` points, lie within the file. The last block may end
    /// with the disk.
    pub fn check(&self, index: u64, host_offset: u64, len: u64) -> Result<()> {
        self.header.check_block(index, host_offset, len, self.file_len)
    }

    /// Bytes of the disk in block `index`: a whole block, or less at the end of the disk.
    pub fn visible_len(&self, index: u64) -> u64 {
        self.header.visible_len(index)
    }

    /// Number of blocks that the data area of the file can hold, a partial one included.
    pub fn capacity(&self) -> u64 {
        self.file_len.saturating_sub(self.header.data_offset).div_ceil(self.header.stride())
    }
}

impl Header {
    /// The host offset of entry `index` of the block map.
    pub fn entry_at(&self, index: u64) -> u64 {
        self.map_offset + index * BlockMapEntry::LEN
    }

    /// The host offset of the guest data in block `number` of the data area. It is not checked.
    pub fn host_offset(&self, number: u32) -> u64 {
        let before = u64::from(number).saturating_mul(self.stride());
        before.saturating_add(self.data_offset + u64::from(self.block_extra))
    }

    /// Bytes of the disk in block `index`: a whole block, or less at the end of the disk.
    pub fn visible_len(&self, index: u64) -> u64 {
        let block_size = u64::from(self.block_size);
        self.disk_size.saturating_sub(index * block_size).min(block_size)
    }

    /// The kind and length of the extent from guest offset `offset` to the end of its block, which has this entry in a file of `file_len`
    /// bytes.
    pub fn extent(&self, entry: BlockMapEntry, offset: u64, file_len: u64) -> Result<(ExtentKind, u64)> {
        let (index, within) = (offset / u64::from(self.block_size), offset % u64::from(self.block_size));
        let len = self.visible_len(index).saturating_sub(within);
        let kind = match entry {
            BlockMapEntry::Free if self.kind.has_parent() => ExtentKind::Hole,
            BlockMapEntry::Free | BlockMapEntry::Zero => ExtentKind::Zero { allocated: None },
            BlockMapEntry::Block(number) => {
                let host_offset = self.host_offset(number);
                self.check_block(index, host_offset, within + len, file_len)?;
                ExtentKind::Data(Location { file: IMAGE, offset: host_offset + within })
            }
        };
        Ok((kind, len))
    }

    fn check_block(&self, index: u64, host_offset: u64, len: u64, file_len: u64) -> Result<()> {
        FIELDS.at("block map entry", self.entry_at(index)).within(host_offset, len, file_len)
    }
}
