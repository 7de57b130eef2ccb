//! The block map: where each block of the disk is.

use std::ops::Range;
use std::sync::Arc;

use byteorder::{ByteOrder, LittleEndian};

use super::FIELDS;
use super::header::Header;
use crate::driver::{FileId, Location};
use crate::error::Result;
use crate::format::shared::table;
use crate::format::shared::table_cache::{CachedTable, TableCache};
use crate::io::ReadAt;

/// The image file itself.
pub(super) const IMAGE: FileId = FileId(0);

/// An entry of the block map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// `VDI_IMAGE_BLOCK_FREE`: the parent's bytes, or zeros.
    Free,
    /// `VDI_IMAGE_BLOCK_ZERO`: zeros.
    Zero,
    /// The block of the data area with this number.
    Block(u32),
}

impl Entry {
    /// Bytes in the file.
    pub const LEN: u64 = 4;

    pub fn parse(number: u32) -> Entry {
        match number {
            0xffff_ffff => Entry::Free,
            0xffff_fffe => Entry::Zero,
            number => Entry::Block(number),
        }
    }

    /// Numbers of blocks are below the two that stand for something else.
    pub fn encode(self) -> u32 {
        match self {
            Entry::Free => 0xffff_ffff,
            Entry::Zero => 0xffff_fffe,
            Entry::Block(number) => number,
        }
    }
}

/// The block map of an opened image, which is read piece by piece.
pub(super) struct BlockMap {
    file: Arc<dyn ReadAt>,
    file_len: u64,
    pub header: Header,
    slices: TableCache,
}

/// Some entries in a row.
pub(super) struct Piece {
    pub indices: Range<u64>,
    slice: Arc<CachedTable>,
}

impl BlockMap {
    /// Entries that are read at once.
    const PIECE: u64 = 4096;

    pub fn new(file: Arc<dyn ReadAt>, header: Header) -> Result<BlockMap> {
        let file_len = table::length(&*file)?;
        Ok(BlockMap { file, file_len, header, slices: TableCache::default() })
    }

    /// The piece that has entry `index`, which is below the number of blocks.
    pub fn piece(&self, index: u64) -> Result<Piece> {
        let first = index / Self::PIECE * Self::PIECE;
        let indices = first..(first + Self::PIECE).min(self.header.blocks.into()).max(first);
        let at = Location { file: IMAGE, offset: self.header.map_offset + first * Entry::LEN };
        let slice = self.slices.get(&*self.file, at, ((indices.end - first) * Entry::LEN) as usize)?;
        Ok(Piece { indices, slice })
    }

    /// Where the bytes of block `number` of the data area begin that belong to the disk. Not checked.
    pub fn place(&self, number: u32) -> u64 {
        let before = u64::from(number).saturating_mul(self.header.stride());
        before.saturating_add(self.header.data_offset + u64::from(self.header.block_extra))
    }

    /// Checks that `len` bytes at `place`, to which entry `index` leads, are in the file. The last block may end with the disk.
    pub fn check(&self, index: u64, place: u64, len: u64) -> Result<()> {
        let at = self.header.map_offset + index * Entry::LEN;
        FIELDS.at("block map entry", at).within(place, len, self.file_len)
    }

    /// Bytes of the disk in block `index`.
    pub fn visible(&self, index: u64) -> u64 {
        let block_size = u64::from(self.header.block_size);
        self.header.disk_size.saturating_sub(index * block_size).min(block_size)
    }

    /// Blocks of the data area that the file has room for, a part of one too.
    pub fn room(&self) -> u64 {
        self.file_len.saturating_sub(self.header.data_offset).div_ceil(self.header.stride())
    }
}

impl Piece {
    /// Entry `index` of the block map; free for one that is not in the piece.
    pub fn entry(&self, index: u64) -> Entry {
        let start = index.saturating_sub(self.indices.start).saturating_mul(Entry::LEN) as usize;
        let bytes = self.slice.bytes.get(start..).and_then(|rest| rest.first_chunk::<4>());
        bytes.map_or(Entry::Free, |bytes| Entry::parse(LittleEndian::read_u32(bytes)))
    }
}
