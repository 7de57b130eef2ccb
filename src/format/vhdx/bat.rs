//! The block allocation table: the state and the place of each block (2.5).
//!
//! Entries are interleaved: behind those of all payload blocks of a chunk comes that of its sector bitmap block, which has a
//! bit for each sector of the chunk.

use std::ops::Range;
use std::sync::Arc;

use super::structure::Structure;
use super::{FIELDS, HEADER_SECTION, MIB};
use crate::driver::{FileId, Location};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table::Field;
use crate::format::shared::table_cache::{CachedTable, TableCache};
use crate::io::ReadAt;

/// The image file.
pub(super) const IMAGE: FileId = FileId(0);
/// Bytes of an entry.
pub(super) const ENTRY_LEN: u64 = 8;

/// An entry's state, which are its lowest three bits (2.5.1).
pub(super) mod state {
    pub const NOT_PRESENT: u64 = 0;
    pub const UNDEFINED: u64 = 1;
    pub const ZERO: u64 = 2;
    pub const UNMAPPED: u64 = 3;
    /// UNMAPPED in version 0.95 of the document.
    pub const OLD_UNMAPPED: u64 = 5;
    /// Of a sector bitmap block, it is present.
    pub const FULLY_PRESENT: u64 = 6;
    pub const PARTIALLY_PRESENT: u64 = 7;
}

/// Bits of an entry that hold its state.
const STATE_BITS: u64 = 7;
/// Bits of an entry that hold the place of the block, in bytes as they are.
const PLACE_BITS: u64 = !(MIB - 1);

/// How a payload block is, with its byte offset in the file (2.5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payload {
    /// The parent's bytes, or zeros.
    NotPresent,
    /// Zeros, whatever a parent holds. A block whose content is undefined is one of them: that tells nothing of other files.
    Zero,
    /// Zeros too; what the block held before may lie there still.
    Unmapped(u64),
    FullyPresent(u64),
    /// The sector bitmap says what is here, and what in the parent.
    PartiallyPresent(u64),
}

/// The table of an opened image, which is read piece by piece.
pub(super) struct Bat {
    file: Arc<dyn ReadAt>,
    file_len: u64,
    /// Byte offset of the table in the file.
    offset: u64,
    disk_size: u64,
    pub block_size: u64,
    /// Number of payload blocks.
    pub blocks: u64,
    pub chunk_ratio: u64,
    pub differencing: bool,
    slices: TableCache,
}

/// Some payload blocks whose entries follow each other.
pub(super) struct Piece<'a> {
    bat: &'a Bat,
    pub blocks: Range<u64>,
    slice: Arc<CachedTable>,
}

impl Bat {
    /// Entries that are read at once.
    const PIECE: u64 = 2048;

    /// The table of a disk.
    ///
    /// # Errors
    /// When its region is too small for the disk.
    pub fn new(structure: &Structure) -> Result<Bat> {
        let Structure { file, file_len, regions, metadata, .. } = structure;
        let bat = Bat {
            file: file.clone(),
            file_len: *file_len,
            offset: regions.bat.range.start,
            disk_size: metadata.virtual_disk_size,
            block_size: metadata.block_size.into(),
            blocks: metadata.payload_blocks(),
            chunk_ratio: metadata.chunk_ratio(),
            differencing: metadata.parent.is_some(),
            slices: TableCache::default(),
        };
        let len = regions.bat.range.end - regions.bat.range.start;
        let needed = bat.entries() * ENTRY_LEN;
        if len < needed {
            let field = FIELDS.at("Length", regions.bat.at + 24);
            return Err(field.fault(Problem::Range { value: len, min: needed, max: u32::MAX.into() }));
        }
        Ok(bat)
    }

    /// Number of entries: of a differencing disk, up to the last sector bitmap block; else, up to the last payload block.
    fn entries(&self) -> u64 {
        if self.differencing {
            self.chunks() * (self.chunk_ratio + 1)
        } else {
            self.blocks + self.chunks().saturating_sub(1)
        }
    }

    /// Number of chunks.
    pub fn chunks(&self) -> u64 {
        self.blocks.div_ceil(self.chunk_ratio)
    }

    /// Byte offset in the file of the first entry of a chunk.
    fn chunk_at(&self, chunk: u64) -> u64 {
        self.offset + chunk * (self.chunk_ratio + 1) * ENTRY_LEN
    }

    /// The piece that has the entry of payload block `block`, which is below their number. It ends with its chunk at the latest.
    pub fn piece(&self, block: u64) -> Result<Piece<'_>> {
        let (chunk, within) = (block / self.chunk_ratio, block % self.chunk_ratio);
        let first = within / Self::PIECE * Self::PIECE;
        let start = chunk * self.chunk_ratio + first;
        let count = (self.chunk_ratio - first).min(Self::PIECE).min(self.blocks.saturating_sub(start));
        let at = Location { file: IMAGE, offset: self.chunk_at(chunk) + first * ENTRY_LEN };
        let slice = self.slices.get(&*self.file, at, (count * ENTRY_LEN) as usize)?;
        Ok(Piece { bat: self, blocks: start..start + count, slice })
    }

    /// Where the sector bitmap block of a chunk is, if it is present (2.5.1.2), and the field that says so.
    pub fn sector_bitmap(&self, chunk: u64) -> Result<(Option<u64>, Field)> {
        let at = self.chunk_at(chunk) + self.chunk_ratio * ENTRY_LEN;
        let slice = self.slices.get(&*self.file, Location { file: IMAGE, offset: at }, ENTRY_LEN as usize)?;
        let field = FIELDS.at("sector bitmap BAT entry", at);
        let entry = entry(&slice, 0);
        let (state, place) = split(entry, field)?;
        match state {
            state::NOT_PRESENT => Ok((None, field)),
            state::FULLY_PRESENT => self.check(place, MIB, field).map(|()| (Some(place), field)),
            _ => {
                let rule = "a sector bitmap block is in state 0 or 6";
                Err(field.fault(Problem::Rule { value: entry, rule }))
            }
        }
    }

    /// The error when a partially present block has no sector bitmap block, as `field` says.
    pub fn missing_bitmap(field: Field) -> Error {
        let rule = "a partially present block needs the sector bitmap block";
        field.fault(Problem::Rule { value: state::NOT_PRESENT, rule })
    }

    /// Bytes of the disk in payload block `block`.
    pub fn visible(&self, block: u64) -> u64 {
        self.block_size.min(self.disk_size.saturating_sub(block * self.block_size))
    }

    /// Checks that `len` bytes at `place` are in the file, and behind the header section.
    fn check(&self, place: u64, len: u64, field: Field) -> Result<()> {
        if place < HEADER_SECTION {
            return Err(field.fault(Problem::Overlap { offset: place, with: "the header section" }));
        }
        field.within(place, len, self.file_len)
    }
}

impl Piece<'_> {
    /// The field that holds the entry of a block, for messages.
    pub fn field(&self, block: u64) -> Field {
        FIELDS.at("payload BAT entry", self.slice.offset() + (block - self.blocks.start) * ENTRY_LEN)
    }

    /// How a block of the piece is. The bytes of the disk that it has are in the file; an image need not store what its last block
    /// has behind them.
    pub fn payload(&self, block: u64) -> Result<Payload> {
        let entry = entry(&self.slice, block - self.blocks.start);
        // Most entries of a large disk are like that.
        match entry {
            state::NOT_PRESENT => return Ok(Payload::NotPresent),
            state::ZERO => return Ok(Payload::Zero),
            _ => {}
        }
        let field = self.field(block);
        let (state, place) = split(entry, field)?;
        let wrong = |rule| Err(field.fault(Problem::Rule { value: entry, rule }));
        let present = |payload| self.bat.check(place, self.bat.visible(block), field).map(|()| payload);
        match state {
            state::NOT_PRESENT => Ok(Payload::NotPresent),
            state::UNDEFINED | state::UNMAPPED | state::OLD_UNMAPPED if place != 0 => Ok(Payload::Unmapped(place)),
            state::UNDEFINED | state::ZERO | state::UNMAPPED | state::OLD_UNMAPPED => Ok(Payload::Zero),
            state::FULLY_PRESENT => present(Payload::FullyPresent(place)),
            state::PARTIALLY_PRESENT if self.bat.differencing => present(Payload::PartiallyPresent(place)),
            state::PARTIALLY_PRESENT => wrong("only a disk with a parent has partially present blocks"),
            _ => wrong("its state is reserved"),
        }
    }
}

/// The entry number `index` of a piece of the table.
fn entry(slice: &CachedTable, index: u64) -> u64 {
    let bytes = slice.bytes.get((index * ENTRY_LEN) as usize..).and_then(<[u8]>::first_chunk);
    bytes.map_or(state::NOT_PRESENT, |bytes| u64::from_le_bytes(*bytes))
}

/// The state and the place in an entry.
fn split(entry: u64, field: Field) -> Result<(u64, u64)> {
    match entry & !(STATE_BITS | PLACE_BITS) {
        0 => Ok((entry & STATE_BITS, entry & PLACE_BITS)),
        bits => Err(field.fault(Problem::Reserved { value: entry, bits })),
    }
}
