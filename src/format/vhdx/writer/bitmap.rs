//! The sector bitmap block of the current chunk (2.4).

use std::ops::Range;

use crate::format::vhdx::MIB;

/// The sectors of a chunk that are present in this file.
pub(super) struct SectorBitmap {
    /// Host offset, once the chunk has a partially present block.
    pub offset: Option<u64>,
    sector_size: u64,
    /// Empty until a bit is set.
    bits: Vec<u8>,
}

impl SectorBitmap {
    /// Bytes of a sector bitmap block.
    pub const LEN: u64 = MIB;

    pub fn new(sector_size: u32) -> SectorBitmap {
        SectorBitmap { offset: None, sector_size: sector_size.into(), bits: Vec::new() }
    }

    /// Marks the bytes `within` of the chunk as present or not.
    pub fn set(&mut self, within: Range<u64>, present: bool) {
        self.bits.resize(SectorBitmap::LEN as usize, 0);
        for sector in within.start / self.sector_size..within.end.div_ceil(self.sector_size) {
            if let Some(byte) = self.bits.get_mut((sector / 8) as usize) {
                let bit = 1 << (sector % 8);
                *byte = if present { *byte | bit } else { *byte & !bit };
            }
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bits
    }

    /// Starts the next chunk.
    pub fn clear(&mut self) {
        self.offset = None;
        self.bits.clear();
    }
}
