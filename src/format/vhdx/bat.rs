//! The block allocation table (BAT): state and host offset of each block (2.5).
//!
//! Entries are interleaved: the entries of the payload blocks of a chunk are followed by the entry of its sector bitmap block,
//! which has a bit for each sector of the chunk.

use super::structure::Structure;
use super::{FIELDS, HEADER_SECTION, MIB};
use crate::driver::{ExtentKind, FileId, Location};
use crate::error::{Error, Problem, Result};
use crate::format::shared::paged_table::{PagedTable, TablePage};
use crate::format::shared::table::Field;
use crate::limits::Budget;

/// The image file.
pub(super) const IMAGE: FileId = FileId(0);
/// Bytes of an entry.
pub(super) const ENTRY_LEN: u64 = 8;

/// States of a block, the lowest three bits of an entry (2.5.1).
pub(super) mod state {
    pub const NOT_PRESENT: u64 = 0;
    pub const UNDEFINED: u64 = 1;
    pub const ZERO: u64 = 2;
    pub const UNMAPPED: u64 = 3;
    /// `UNMAPPED` in version 0.95 of the document.
    pub const OLD_UNMAPPED: u64 = 5;
    /// For a sector bitmap block: present.
    pub const FULLY_PRESENT: u64 = 6;
    pub const PARTIALLY_PRESENT: u64 = 7;
}

/// The state bits of an entry.
const STATE_BITS: u64 = 7;
/// The host offset bits of an entry. The offset is in bytes.
pub(super) const OFFSET_BITS: u64 = !(MIB - 1);

/// The state of a payload block, with its host offset (2.5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockState {
    /// Unallocated: reads from the parent, or as zeros.
    NotPresent,
    /// A zero block. Blocks with undefined content are read as zero blocks, so that they expose nothing else.
    Zero,
    /// A zero block with an allocation, which can still hold old data.
    Unmapped(u64),
    FullyPresent(u64),
    /// The sector bitmap selects the sectors in this file; the others read from the parent.
    PartiallyPresent(u64),
}

/// The table of an open image.
pub(super) struct Bat {
    pub file_len: u64,
    entries: PagedTable<{ ENTRY_LEN as usize }>,
    pub disk_size: u64,
    pub block_size: u64,
    /// Number of payload blocks.
    pub block_count: u64,
    pub chunk_ratio: u64,
    pub differencing: bool,
}

/// A page of the table, with payload blocks of one chunk.
pub(super) struct BatPage<'a> {
    bat: &'a Bat,
    /// By the index of the payload block.
    pub entries: TablePage<{ ENTRY_LEN as usize }>,
}

impl Bat {
    /// The table described by `structure`.
    ///
    /// # Errors
    /// If its region is too small for the disk.
    pub fn new(structure: &Structure, budget: &Budget) -> Result<Bat> {
        let Structure { file, file_len, regions, metadata, .. } = structure;
        let bat = Bat {
            file_len: *file_len,
            entries: PagedTable::new(file.clone(), regions.bat.range.start, budget),
            disk_size: metadata.virtual_disk_size,
            block_size: metadata.block_size.into(),
            block_count: metadata.payload_block_count(),
            chunk_ratio: metadata.chunk_ratio(),
            differencing: metadata.parent.is_some(),
        };
        let len = regions.bat.range.end - regions.bat.range.start;
        let needed = bat.entry_count() * ENTRY_LEN;
        if len < needed {
            let field = FIELDS.at("Length", regions.bat.at + 24);
            return Err(field.fault(Problem::Range { value: len, min: needed, max: u32::MAX.into() }));
        }
        Ok(bat)
    }

    /// Number of entries: up to the last sector bitmap block of a differencing disk, else up to the last payload block.
    pub fn entry_count(&self) -> u64 {
        if self.differencing {
            self.chunk_count() * (self.chunk_ratio + 1)
        } else {
            self.block_count + self.chunk_count().saturating_sub(1)
        }
    }

    /// Number of chunks.
    pub fn chunk_count(&self) -> u64 {
        self.block_count.div_ceil(self.chunk_ratio)
    }

    /// The index of the first entry of a chunk.
    pub fn first_entry(&self, chunk: u64) -> u64 {
        chunk * (self.chunk_ratio + 1)
    }

    /// The page of payload block `block`, which is below their number.
    pub fn page(&self, block: u64) -> Result<BatPage<'_>> {
        let chunk = block / self.chunk_ratio;
        let first_block = chunk * self.chunk_ratio;
        let count = self.chunk_ratio.min(self.block_count.saturating_sub(first_block));
        let first = self.first_entry(chunk);
        let entries = self.entries.page(first + (block - first_block), first..first + count)?;
        // The entries of the sector bitmap blocks of the chunks before are not counted.
        let first = entries.indexes.start - chunk;
        Ok(BatPage { bat: self, entries: entries.renumbered(first) })
    }

    /// The host offset of the sector bitmap block of a chunk, if it is present (2.5.1.2), and the field of its entry.
    pub fn sector_bitmap(&self, chunk: u64) -> Result<(Option<u64>, Field)> {
        let index = self.first_entry(chunk) + self.chunk_ratio;
        let page = self.entries.page(index, index..index + 1)?;
        let field = FIELDS.at("sector bitmap BAT entry", page.host_offset(index));
        let entry = page.entry(index).map_or(state::NOT_PRESENT, u64::from_le_bytes);
        Ok((self.parse_sector_bitmap(entry, field)?, field))
    }

    /// The host offset of a sector bitmap block by its entry, which is `field`.
    pub fn parse_sector_bitmap(&self, entry: u64, field: Field) -> Result<Option<u64>> {
        let (state, host_offset) = split(entry, field)?;
        match state {
            state::NOT_PRESENT => Ok(None),
            state::FULLY_PRESENT => self.check(host_offset, MIB, field).map(|()| Some(host_offset)),
            _ => {
                let rule = "must be in state 0 or 6";
                Err(field.fault(Problem::Rule { value: entry, rule }))
            }
        }
    }

    /// The error for a partially present block without the sector bitmap block whose entry is `field`.
    pub fn missing_bitmap(field: Field) -> Error {
        let rule = "must be present for a partially present block";
        field.fault(Problem::Rule { value: state::NOT_PRESENT, rule })
    }

    /// The extent kind of a block whose bytes all have the same kind.
    pub fn kind(&self, state: BlockState) -> ExtentKind {
        match state {
            BlockState::NotPresent if self.differencing => ExtentKind::Hole,
            BlockState::NotPresent | BlockState::Zero | BlockState::Unmapped(_) => ExtentKind::Zero { allocated: None },
            BlockState::FullyPresent(offset) | BlockState::PartiallyPresent(offset) => {
                ExtentKind::Data(Location { file: IMAGE, offset })
            }
        }
    }

    /// Bytes of the disk in payload block `block`: a whole block, or less at the end of the disk.
    pub fn visible_len(&self, block: u64) -> u64 {
        self.block_size.min(self.disk_size.saturating_sub(block * self.block_size))
    }

    /// Checks that `len` bytes at `host_offset` lie within the file and after the header section.
    fn check(&self, host_offset: u64, len: u64, field: Field) -> Result<()> {
        if host_offset < HEADER_SECTION {
            return Err(field.fault(Problem::Overlap { offset: host_offset, with: "the header section" }));
        }
        field.within(host_offset, len, self.file_len)
    }
}

impl BatPage<'_> {
    /// The field of the entry of a block, for messages.
    pub fn field(&self, block: u64) -> Field {
        FIELDS.at("payload BAT entry", self.entries.host_offset(block))
    }

    /// The state of a block of the page. The visible bytes of a present block lie within the file; the last block of an image may
    /// be truncated after them.
    pub fn block_state(&self, block: u64) -> Result<BlockState> {
        let entry = self.entries.entry(block).map_or(state::NOT_PRESENT, u64::from_le_bytes);
        self.bat.parse(entry, block, self.field(block))
    }
}

impl Bat {
    /// The state of payload block `block` by its entry, which is `field`.
    pub fn parse(&self, entry: u64, block: u64, field: Field) -> Result<BlockState> {
        // Most entries of a large disk are one of these.
        match entry {
            state::NOT_PRESENT => return Ok(BlockState::NotPresent),
            state::ZERO => return Ok(BlockState::Zero),
            _ => {}
        }
        let (state, host_offset) = split(entry, field)?;
        let broken = |rule| Err(field.fault(Problem::Rule { value: entry, rule }));
        let present = |state| self.check(host_offset, self.visible_len(block), field).map(|()| state);
        match state {
            state::NOT_PRESENT => Ok(BlockState::NotPresent),
            state::UNDEFINED | state::UNMAPPED | state::OLD_UNMAPPED if host_offset != 0 => {
                Ok(BlockState::Unmapped(host_offset))
            }
            state::UNDEFINED | state::ZERO | state::UNMAPPED | state::OLD_UNMAPPED => Ok(BlockState::Zero),
            state::FULLY_PRESENT => present(BlockState::FullyPresent(host_offset)),
            state::PARTIALLY_PRESENT if self.differencing => present(BlockState::PartiallyPresent(host_offset)),
            state::PARTIALLY_PRESENT => broken("must not be partially present without a parent"),
            _ => broken("must not be in the reserved state 4"),
        }
    }
}

/// The state and the host offset in an entry.
fn split(entry: u64, field: Field) -> Result<(u64, u64)> {
    match entry & !(STATE_BITS | OFFSET_BITS) {
        0 => Ok((entry & STATE_BITS, entry & OFFSET_BITS)),
        bits => Err(field.fault(Problem::Reserved { value: entry, bits })),
    }
}
