//! Tracks the sectors of a file that are in use, one window of the file at a time, which bounds memory.

use std::iter;
use std::ops::Range;

use crate::format::vmdk::SECTOR;

/// The use of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SectorUse {
    Metadata,
    Grain,
}

/// The sectors in use within a window of a file.
pub(super) struct SectorTracker {
    /// First sector of the window, a multiple of its length.
    first: u64,
    /// Sectors in a window.
    window: u64,
    /// In bytes.
    file_len: u64,
    /// One bit for each sector.
    metadata: Vec<u64>,
    grains: Vec<u64>,
    /// Smallest offset after the window that was marked.
    beyond: Option<u64>,
}

impl SectorTracker {
    /// Sectors in the default window: 32 GiB of the file, in two bitmaps of 8 MiB.
    pub const WINDOW: u64 = 1 << 26;

    /// Creates a tracker for a file of `file_len` bytes. The window has at most `window` sectors, a power of two and at
    /// least 64, and begins at offset 0.
    pub fn new(file_len: u64, window: u64) -> Self {
        let words = file_len.div_ceil(SECTOR).min(window).div_ceil(64) as usize;
        SectorTracker { first: 0, window, file_len, metadata: vec![0; words], grains: vec![0; words], beyond: None }
    }

    /// Moves to the window that contains file offset `offset` and marks all its sectors unused.
    pub fn move_to(&mut self, offset: u64) {
        self.first = (offset / SECTOR) & !(self.window - 1);
        self.metadata.fill(0);
        self.grains.fill(0);
        self.beyond = None;
    }

    /// Byte range of the window.
    pub fn window(&self) -> Range<u64> {
        self.first * SECTOR..self.first.saturating_add(self.len()).saturating_mul(SECTOR)
    }

    /// Returns the smallest offset after the window that was marked since the last move, if it is within the file.
    pub fn beyond(&self) -> Option<u64> {
        self.beyond.filter(|&offset| offset < self.file_len)
    }

    /// Cost of scanning a window, in table entries.
    pub fn scan_cost(&self) -> u64 {
        self.metadata.len() as u64 * 4
    }

    /// Records the part of `range`, which is not empty, after the window.
    pub fn note_beyond(&mut self, range: &Range<u64>) {
        let end = self.window().end;
        if range.end > end {
            let beyond = range.start.max(end);
            self.beyond = Some(self.beyond.map_or(beyond, |other| other.min(beyond)));
        }
    }

    /// Marks the sectors of the byte range `range` within the window. Returns the previous use if one was in use
    /// already.
    pub fn mark(&mut self, range: &Range<u64>, by: SectorUse) -> Option<SectorUse> {
        if range.is_empty() {
            return None;
        }
        self.note_beyond(range);
        let start = (range.start / SECTOR).max(self.first) - self.first;
        let end = range.end.div_ceil(SECTOR).saturating_sub(self.first).min(self.len());
        let (mut on_metadata, mut on_grain) = (false, false);
        let mut at = start;
        while at < end {
            let index = (at / 64) as usize;
            let bits = (end - at).min(64 - at % 64);
            let mask = (!0 >> (64 - bits)) << (at % 64);
            at += bits;
            let (Some(metadata), Some(grains)) = (self.metadata.get_mut(index), self.grains.get_mut(index)) else {
                break;
            };
            on_metadata |= *metadata & mask != 0;
            on_grain |= *grains & mask != 0;
            match by {
                SectorUse::Metadata => *metadata |= mask,
                SectorUse::Grain => *grains |= mask,
            }
        }
        if on_metadata { Some(SectorUse::Metadata) } else { on_grain.then_some(SectorUse::Grain) }
    }

    /// Returns the byte ranges in use within the window.
    pub fn used_runs(&self) -> impl Iterator<Item = Range<u64>> {
        let mut at = 0;
        iter::from_fn(move || {
            let start = self.find(at, true)?;
            at = self.find(start, false).unwrap_or(self.len());
            Some((self.first + start) * SECTOR..(self.first + at) * SECTOR)
        })
    }

    /// Returns the first sector at or after `from`, relative to the window, that is in use, or unused if `used` is
    /// false.
    fn find(&self, from: u64, used: bool) -> Option<u64> {
        let first = (from / 64) as usize;
        let words = self.metadata.iter().zip(&self.grains).enumerate().skip(first);
        words.map(|(index, (metadata, grains))| (index, (metadata | grains) ^ if used { 0 } else { !0 })).find_map(
            |(index, word)| {
                let word = if index == first { word & (!0 << (from % 64)) } else { word };
                (word != 0).then(|| index as u64 * 64 + u64::from(word.trailing_zeros()))
            },
        )
    }

    /// Sectors in the window.
    fn len(&self) -> u64 {
        self.metadata.len() as u64 * 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: u64 = 128;

    #[test]
    fn windows_end_with_the_file() {
        let mut sectors = SectorTracker::new(1 << 20, WINDOW);
        sectors.mark(&(512..u64::MAX), SectorUse::Metadata);
        assert_eq!(sectors.beyond(), Some(WINDOW * SECTOR));
        sectors.move_to((1 << 20) - 1);
        sectors.mark(&(512..u64::MAX), SectorUse::Metadata);
        assert_eq!(sectors.beyond(), None);
    }

    #[test]
    fn overlapping_ranges_are_reported() {
        let mut sectors = SectorTracker::new(1 << 20, WINDOW);
        assert_eq!(sectors.mark(&(0..512), SectorUse::Metadata), None);
        assert_eq!(sectors.mark(&(512..40_000), SectorUse::Grain), None);
        assert_eq!(sectors.mark(&(511..512), SectorUse::Grain), Some(SectorUse::Metadata));
        assert_eq!(sectors.mark(&(39_999..50_000), SectorUse::Grain), Some(SectorUse::Grain));
        assert_eq!(sectors.mark(&(60_000..60_000), SectorUse::Grain), None);
        assert!(sectors.used_runs().eq(iter::once(0..50_176)));
        assert_eq!(sectors.beyond(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Compares with a count of the uses of each sector.
        #[test]
        fn windows_cover_the_file(ranges in prop::collection::vec((0u64..600, 1u64..200, any::<bool>()), 1..12)) {
            let mut used = vec![0; 800];
            for (start, len, _) in &ranges {
                (*start..start + len).for_each(|sector| used[sector as usize] += 1);
            }
            let mut sectors = SectorTracker::new(800 * SECTOR, WINDOW);
            let mut found = vec![0; 800];
            loop {
                let mut conflicts = 0;
                for (start, len, metadata) in &ranges {
                    let by = if *metadata { SectorUse::Metadata } else { SectorUse::Grain };
                    conflicts += usize::from(sectors.mark(&(start * SECTOR..(start + len) * SECTOR), by).is_some());
                }
                let Range { start, end } = sectors.window();
                let window = (start / SECTOR) as usize..(end / SECTOR).min(800) as usize;
                prop_assert_eq!(conflicts > 0, used[window].iter().any(|uses| *uses > 1));
                for run in sectors.used_runs() {
                    (run.start / SECTOR..run.end / SECTOR).for_each(|sector| found[sector as usize] += 1);
                }
                match sectors.beyond() {
                    Some(offset) => sectors.move_to(offset),
                    None => break,
                }
            }
            for (used, found) in used.iter().zip(&found) {
                prop_assert_eq!((*used).min(1), *found);
            }
        }
    }
}
