//! The ring of sectors that the log is.

use std::ops::Range;

use crate::error::Result;
use crate::format::shared::table;
use crate::io::ReadAt;

/// What the log consists of, and what all that it says is a multiple of, in bytes (2.3.1).
pub(super) const SECTOR: u64 = 4096;

/// The log of a file. Offsets in it count from its beginning, and those behind its end begin anew.
pub(super) struct Ring<'a> {
    file: &'a dyn ReadAt,
    range: Range<u64>,
    /// The sectors that were read last, and the offset of the first of them.
    window: Vec<u8>,
    window_offset: u64,
}

impl<'a> Ring<'a> {
    /// Bytes that are read at once.
    const WINDOW: u64 = 256 << 10;

    /// The log in a `range` of `file`.
    pub fn new(file: &'a dyn ReadAt, range: Range<u64>) -> Ring<'a> {
        Ring { file, range, window: Vec::new(), window_offset: 0 }
    }

    /// Its length in bytes, whole sectors.
    pub fn len(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start) / SECTOR * SECTOR
    }

    /// Where an offset is in the file.
    pub fn place(&self, offset: u64) -> u64 {
        self.range.start + offset.checked_rem(self.len()).unwrap_or_default()
    }

    /// The sector at `offset`, which is a multiple of a sector. Whoever goes on from sector to sector reads them once.
    pub fn sector(&mut self, offset: u64) -> Result<&[u8; SECTOR as usize]> {
        const NONE: &[u8; SECTOR as usize] = &[0; _];
        let offset = self.place(offset) - self.range.start;
        let window = self.window_offset..self.window_offset + self.window.len() as u64;
        if !window.contains(&offset) {
            let len = self.len().saturating_sub(offset).min(Self::WINDOW);
            self.window.clear();
            self.window.resize(len as usize, 0);
            self.window_offset = offset;
            if let Err(error) = table::read(self.file, &mut self.window, self.range.start + offset) {
                self.window.clear();
                return Err(error);
            }
        }
        let in_window = (offset - self.window_offset) as usize;
        Ok(self.window.get(in_window..).and_then(<[u8]>::first_chunk).unwrap_or(NONE))
    }
}
