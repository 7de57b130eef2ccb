//! The log as a ring buffer of sectors.

use std::ops::Range;

use crate::error::Result;
use crate::format::shared::table;
use crate::io::ReadAt;

/// Bytes of a log sector, the alignment of all offsets and lengths in the log (2.3.1).
pub(in super::super) const SECTOR: u64 = 4096;

/// The log of a file. Offsets count from its start and wrap around at its end.
pub(super) struct Ring<'a> {
    file: &'a dyn ReadAt,
    range: Range<u64>,
    /// The sectors read last, and the offset of the first of them.
    window: Vec<u8>,
    window_offset: u64,
}

impl<'a> Ring<'a> {
    /// Bytes read at once.
    const WINDOW: u64 = 256 << 10;

    /// The log in the host range `range` of `file`.
    pub fn new(file: &'a dyn ReadAt, range: Range<u64>) -> Ring<'a> {
        Ring { file, range, window: Vec::new(), window_offset: 0 }
    }

    /// Length in bytes: whole sectors.
    pub fn len(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start) / SECTOR * SECTOR
    }

    /// The host offset of an offset in the log.
    pub fn host_offset(&self, offset: u64) -> u64 {
        self.range.start + offset.checked_rem(self.len()).unwrap_or_default()
    }

    /// Returns the sector at `offset`, which is a multiple of a sector. A sequential scan reads each sector once.
    pub fn sector(&mut self, offset: u64) -> Result<&[u8; SECTOR as usize]> {
        const NONE: &[u8; SECTOR as usize] = &[0; _];
        let offset = self.host_offset(offset) - self.range.start;
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
