//! cloop, version 2: a compressed disk of Knoppix. Read only.
//!
//! # Layout
//!
//! All integers are big-endian, and all offsets are in bytes.
//!
//! | offset | content |
//! |---|---|
//! | 0 | a shell script of 128 bytes, whose second line is `#V2.0 Format` |
//! | 128 | block size, number of blocks |
//! | 136 | host offset of each block, and of the end of the last one |
//! | | blocks: one zlib stream each |
//!
//! The size of the disk is a whole number of blocks.
//!
//! # Support
//!
//! | feature | read |
//! |---|---|
//! | blocks of 512 B to 64 MiB | yes |
//! | other versions | refused |
//!
//! # References
//!
//! No specification exists. The layout is that of what `create_compressed_fs` (cloop-utils) writes; the largest block is that of qemu.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use byteorder::{BigEndian, ByteOrder};

use crate::codec::Codec;
use crate::driver::{Compressed, Extent, ExtentKind, FileId, FormatDriver, Location, OpenContext, SparseRead};
use crate::error::{Error, Problem, Result};
use crate::format::shared::paged_table::PagedTable;
use crate::format::shared::signature;
use crate::format::shared::table::Fields;
use crate::info::ImageInfo;
use crate::io::ReadAt;

pub(crate) static DRIVER: FormatDriver =
    FormatDriver::new(FORMAT_NAME, signature::is_cloop, |source, cx| Ok(Box::new(Reader::open(source, cx)?)))
        .extensions(&["cloop"])
        .description("compressed disk of Knoppix, version 2");

const FORMAT_NAME: &str = "cloop";
/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);

/// Bytes before the table of offsets.
const HEADER: u64 = 136;
/// Bytes of an entry of the table.
const ENTRY: usize = 8;
const SECTOR: u32 = 512;
/// Bytes in a block, a multiple of 512.
const BLOCK_SIZES: RangeInclusive<u64> = 512..=64 << 20;
/// Bytes by which a payload can be longer than its block: more than zlib adds to incompressible data.
const EXPANSION: u64 = 1 << 20;

/// An open image.
struct Reader {
    info: ImageInfo,
    file_len: u64,
    block_size: u32,
    /// Number of blocks.
    blocks: u32,
    /// One entry more than there are blocks.
    offsets: PagedTable<ENTRY>,
}

impl Reader {
    fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        cx.refuse_snapshots(FORMAT_NAME)?;
        let (header, file_len) = FIELDS.read_header::<{ HEADER as usize }>(&*file)?;
        if !header.starts_with(signature::CLOOP[0]) {
            return Err(Error::unsupported(FORMAT_NAME, "versions other than 2.0"));
        }
        let (block_size, blocks) = (BigEndian::read_u32(&header[128..]), BigEndian::read_u32(&header[132..]));
        let field = FIELDS.at("block size", 128);
        if !BLOCK_SIZES.contains(&block_size.into()) {
            let (min, max) = (*BLOCK_SIZES.start(), *BLOCK_SIZES.end());
            return Err(field.fault(Problem::Range { value: block_size.into(), min, max }));
        }
        field.aligned(block_size.into(), SECTOR.into())?;
        let virtual_size = u64::from(block_size) * u64::from(blocks);
        cx.check_virtual_size(FORMAT_NAME, virtual_size)?;
        FIELDS.at("number of blocks", 132).within(HEADER, (u64::from(blocks) + 1) * ENTRY as u64, file_len)?;
        let info = ImageInfo { block_size: Some(block_size), ..ImageInfo::new(FORMAT_NAME, virtual_size) };
        Ok(Reader { info, file_len, block_size, blocks, offsets: PagedTable::new(file, HEADER, cx.budget) })
    }

    /// The host range of the payload of block `index`. Since each block ends where the next one begins, no two of them overlap.
    fn payload(&self, index: u64) -> Result<Range<u64>> {
        let (start, end) = (self.offset(index)?, self.offset(index + 1)?);
        let field = FIELDS.at("block offset", self.offsets.host_offset(index));
        field.within(start, end.saturating_sub(start), self.file_len)?;
        if start < self.offsets.host_offset(u64::from(self.blocks) + 1) {
            return Err(field.fault(Problem::Overlap { offset: start, with: "the block offsets" }));
        }
        let max = start.saturating_add(u64::from(self.block_size) + EXPANSION);
        if !(start + 1..=max).contains(&end) {
            let field = FIELDS.at("block offset", self.offsets.host_offset(index + 1));
            return Err(field.fault(Problem::Range { value: end, min: start + 1, max }));
        }
        Ok(start..end)
    }

    /// Entry `index` of the table of offsets.
    fn offset(&self, index: u64) -> Result<u64> {
        let page = self.offsets.page(index, 0..u64::from(self.blocks) + 1)?;
        Ok(page.entry(index).map_or(0, u64::from_be_bytes))
    }
}

impl SparseRead for Reader {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        self.info.check_offset(range.start)?;
        let block_size = u64::from(self.block_size);
        let index = range.start / block_size;
        let payload = self.payload(index)?;
        let unit = Compressed {
            at: Location { file: FileId::default(), offset: payload.start },
            stored_len: (payload.end - payload.start) as u32,
            codec: Codec::Zlib,
            unit: index * block_size,
            unit_len: self.block_size,
            min_len: self.block_size,
        };
        Ok(Extent::new(range.start..(index + 1) * block_size, ExtentKind::Compressed(unit)))
    }

    fn host_alignment(&self) -> Option<u64> {
        None
    }
}

#[cfg(test)]
mod tests;
