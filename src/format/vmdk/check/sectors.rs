//! Which sectors of a file are taken: one window of the file at a time, so that memory stays bounded.

use std::iter;
use std::ops::Range;

use crate::format::vmdk::SECTOR;

/// What takes a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Metadata,
    Grain,
}

/// The sectors of a window that are taken.
pub(super) struct Sectors {
    /// The first sector of the window: a multiple of its length.
    first: u64,
    window: u64,
    file_len: u64,
    /// A bit for each sector.
    metadata: Vec<u64>,
    grains: Vec<u64>,
    beyond: Option<u64>,
}

impl Sectors {
    /// 32 GiB of file: 8 MiB of bits twice.
    pub const WINDOW: u64 = 1 << 26;

    /// A window of at most `window` sectors, a power of two of at least 64, at the beginning of a file of `file_len` bytes.
    pub fn new(file_len: u64, window: u64) -> Self {
        let words = file_len.div_ceil(SECTOR).min(window).div_ceil(64) as usize;
        Sectors { first: 0, window, file_len, metadata: vec![0; words], grains: vec![0; words], beyond: None }
    }

    /// Moves on to the window that contains byte `offset`.
    pub fn restart(&mut self, offset: u64) {
        self.first = (offset / SECTOR) & !(self.window - 1);
        self.metadata.fill(0);
        self.grains.fill(0);
        self.beyond = None;
    }

    /// The bytes of the file that are in the window.
    pub fn window(&self) -> Range<u64> {
        self.first * SECTOR..self.first.saturating_add(self.len()).saturating_mul(SECTOR)
    }

    /// The first byte after the window that something was to take; nothing that the file has not got, which a header can put
    /// anywhere.
    pub fn beyond(&self) -> Option<u64> {
        self.beyond.filter(|&offset| offset < self.file_len)
    }

    /// What it costs to go through a window, in table entries.
    pub fn cost(&self) -> u64 {
        self.metadata.len() as u64 * 4
    }

    /// Notes that the bytes of `place`, at least one, are to be looked at in the window that they are in.
    pub fn leave(&mut self, place: &Range<u64>) {
        let end = self.window().end;
        if place.end > end {
            let beyond = place.start.max(end);
            self.beyond = Some(self.beyond.map_or(beyond, |other| other.min(beyond)));
        }
    }

    /// Takes the sectors of these bytes, as far as they are in the window, and tells what had taken one of them before.
    pub fn take(&mut self, place: &Range<u64>, by: Use) -> Option<Use> {
        if place.is_empty() {
            return None;
        }
        self.leave(place);
        let start = (place.start / SECTOR).max(self.first) - self.first;
        let end = place.end.div_ceil(SECTOR).saturating_sub(self.first).min(self.len());
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
                Use::Metadata => *metadata |= mask,
                Use::Grain => *grains |= mask,
            }
        }
        if on_metadata { Some(Use::Metadata) } else { on_grain.then_some(Use::Grain) }
    }

    /// The runs of bytes in the window that are taken.
    pub fn taken(&self) -> impl Iterator<Item = Range<u64>> {
        let mut at = 0;
        iter::from_fn(move || {
            let start = self.find(at, true)?;
            at = self.find(start, false).unwrap_or(self.len());
            Some((self.first + start) * SECTOR..(self.first + at) * SECTOR)
        })
    }

    /// The first sector from `from` on, counted from the beginning of the window, that is taken or not.
    fn find(&self, from: u64, taken: bool) -> Option<u64> {
        let first = (from / 64) as usize;
        let words = self.metadata.iter().zip(&self.grains).enumerate().skip(first);
        words.map(|(index, (metadata, grains))| (index, (metadata | grains) ^ if taken { 0 } else { !0 })).find_map(
            |(index, word)| {
                let word = if index == first { word & (!0 << (from % 64)) } else { word };
                (word != 0).then(|| index as u64 * 64 + u64::from(word.trailing_zeros()))
            },
        )
    }

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
        let mut sectors = Sectors::new(1 << 20, WINDOW);
        sectors.take(&(512..u64::MAX), Use::Metadata);
        assert_eq!(sectors.beyond(), Some(WINDOW * SECTOR));
        sectors.restart((1 << 20) - 1);
        sectors.take(&(512..u64::MAX), Use::Metadata);
        assert_eq!(sectors.beyond(), None);
    }

    #[test]
    fn a_sector_is_taken_once() {
        let mut sectors = Sectors::new(1 << 20, WINDOW);
        assert_eq!(sectors.take(&(0..512), Use::Metadata), None);
        assert_eq!(sectors.take(&(512..40_000), Use::Grain), None);
        assert_eq!(sectors.take(&(511..512), Use::Grain), Some(Use::Metadata));
        assert_eq!(sectors.take(&(39_999..50_000), Use::Grain), Some(Use::Grain));
        assert_eq!(sectors.take(&(60_000..60_000), Use::Grain), None);
        assert!(sectors.taken().eq(iter::once(0..50_176)));
        assert_eq!(sectors.beyond(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Sector by sector it is the same.
        #[test]
        fn windows_see_all(places in prop::collection::vec((0u64..600, 1u64..200, any::<bool>()), 1..12)) {
            let mut used = vec![0; 800];
            for (start, len, _) in &places {
                (*start..start + len).for_each(|sector| used[sector as usize] += 1);
            }
            let mut sectors = Sectors::new(800 * SECTOR, WINDOW);
            let mut found = vec![0; 800];
            loop {
                let mut conflicts = 0;
                for (start, len, metadata) in &places {
                    let by = if *metadata { Use::Metadata } else { Use::Grain };
                    conflicts += usize::from(sectors.take(&(start * SECTOR..(start + len) * SECTOR), by).is_some());
                }
                let Range { start, end } = sectors.window();
                let window = (start / SECTOR) as usize..(end / SECTOR).min(800) as usize;
                prop_assert_eq!(conflicts > 0, used[window].iter().any(|uses| *uses > 1));
                for run in sectors.taken() {
                    (run.start / SECTOR..run.end / SECTOR).for_each(|sector| found[sector as usize] += 1);
                }
                match sectors.beyond() {
                    Some(offset) => sectors.restart(offset),
                    None => break,
                }
            }
            for (used, found) in used.iter().zip(&found) {
                prop_assert_eq!((*used).min(1), *found);
            }
        }
    }
}
