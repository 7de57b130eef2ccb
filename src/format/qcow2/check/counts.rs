//! How often host clusters are used, and for what: one window of the file at a time, so that memory stays bounded.

use std::ops::Range;

use bitflags::bitflags;

bitflags! {
    /// What a cluster is used for. The bits below are the number of uses.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct Uses: u32 {
        /// Something that has its clusters for itself: header, refcounts, L1 tables, snapshot table, bitmaps, LUKS header.
        const METADATA = 1 << 31;
        /// An L2 table, which states of the disk may share.
        const L2_TABLE = 1 << 30;
        /// Guest bytes as they are, or the place for them.
        const DATA = 1 << 29;
        /// A part of a compressed payload.
        const COMPRESSED = 1 << 28;
        /// An L1 table of the current state names it.
        const ACTIVE = 1 << 27;
        /// It does so more than once. (Data may be shared within a state, if the reference count says so.)
        const TWICE = 1 << 26;
        /// The stored reference count is 1.
        const STORED_ONE = 1 << 25;
        const _ = !0;
    }
}

impl Uses {
    /// The largest number of uses that is told apart from larger ones.
    pub const MAX_COUNT: u32 = (1 << 25) - 1;

    pub fn count(self) -> u32 {
        self.bits() & Self::MAX_COUNT
    }

    fn add(&mut self, uses: Uses, times: u32) {
        if uses.contains(Uses::ACTIVE) && self.contains(Uses::ACTIVE) {
            *self |= Uses::TWICE;
        }
        let count = self.count().saturating_add(times).min(Self::MAX_COUNT);
        *self = Uses::from_bits_retain((self.bits() | uses.bits()) & !Self::MAX_COUNT | count);
    }

    /// Why the uses cannot all be right, whatever the reference count.
    pub fn conflict(self) -> Option<&'static str> {
        if self.contains(Uses::METADATA) && self.count() > 1 {
            Some("metadata has to be there alone")
        } else if self.contains(Uses::L2_TABLE) && self.intersects(Uses::DATA | Uses::COMPRESSED) {
            Some("guest data lies in an L2 table")
        } else if self.contains(Uses::DATA | Uses::COMPRESSED) {
            Some("compressed and other guest data lie in one cluster")
        } else if self.contains(Uses::TWICE) {
            Some("two parts of the disk share an L2 table")
        } else {
            None
        }
    }
}

/// The uses of the clusters in a window.
pub(super) struct Counts {
    /// The first cluster of the window: a multiple of its length.
    first: u64,
    window: u64,
    uses: Vec<Uses>,
    beyond: Option<u64>,
}

impl Counts {
    /// A window of at most `window` clusters, a power of two, at the beginning of a file of `clusters` clusters.
    pub fn new(clusters: u64, window: u64) -> Self {
        Counts { first: 0, window, uses: vec![Uses::empty(); clusters.min(window) as usize], beyond: None }
    }

    /// Moves on to the window that contains `cluster`.
    pub fn restart(&mut self, cluster: u64) {
        self.first = cluster & !(self.window - 1);
        self.uses.fill(Uses::empty());
        self.beyond = None;
    }

    /// The clusters in the window.
    pub fn window(&self) -> Range<u64> {
        self.first..self.first.saturating_add(self.uses.len() as u64)
    }

    /// The first of the clusters after the window that were to be counted.
    pub fn beyond(&self) -> Option<u64> {
        self.beyond
    }

    /// Counts `times` uses of each of the `clusters` that are in the window.
    pub fn add(&mut self, clusters: Range<u64>, uses: Uses, times: u32) {
        let window = self.window();
        if clusters.is_empty() {
            return;
        }
        if clusters.end > window.end {
            let beyond = clusters.start.max(window.end);
            self.beyond = Some(self.beyond.map_or(beyond, |other| other.min(beyond)));
        }
        let (start, end) = (clusters.start.max(window.start), clusters.end.min(window.end));
        if start < end {
            let places = (start - self.first) as usize..(end - self.first) as usize;
            self.uses.get_mut(places).unwrap_or_default().iter_mut().for_each(|place| place.add(uses, times));
        }
    }

    /// The uses of a cluster, if it is in the window.
    pub fn get(&self, cluster: u64) -> Option<Uses> {
        let index = cluster.checked_sub(self.first)?;
        self.uses.get(usize::try_from(index).ok()?).copied()
    }

    /// The clusters of the window that are used.
    pub fn used(&self) -> impl Iterator<Item = (u64, Uses)> {
        (self.first..).zip(&self.uses).filter(|(_, uses)| uses.count() > 0).map(|(cluster, uses)| (cluster, *uses))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u64 = 32;

    #[test]
    fn windows_follow_one_another_without_the_empty_ones() {
        let mut counts = Counts::new(u64::MAX, WINDOW);
        let clusters = [3..5, WINDOW - 1..WINDOW + 1, 7 * WINDOW + 9..7 * WINDOW + 10];
        let mut found = Vec::new();
        loop {
            for range in &clusters {
                counts.add(range.clone(), Uses::DATA, 2);
            }
            found.extend(counts.used().map(|(cluster, uses)| (cluster, uses.count())));
            match counts.beyond() {
                Some(cluster) => counts.restart(cluster),
                None => break,
            }
        }
        let expected = [3, 4, WINDOW - 1, WINDOW, 7 * WINDOW + 9].map(|cluster| (cluster, 2));
        assert_eq!(found, expected);
    }

    #[test]
    fn counts_stop_at_the_largest() {
        let mut counts = Counts::new(1, 8);
        counts.add(0..1, Uses::DATA, Uses::MAX_COUNT);
        counts.add(0..1, Uses::DATA, u32::MAX);
        assert_eq!(counts.get(0), Some(Uses::DATA | Uses::from_bits_retain(Uses::MAX_COUNT)));
    }

    #[test]
    fn conflicts() {
        let conflict = |uses: &[Uses]| {
            let mut counts = Counts::new(1, 8);
            uses.iter().for_each(|uses| counts.add(0..1, *uses, 1));
            counts.get(0).and_then(Uses::conflict).is_some()
        };
        let (l2, data, compressed) = (Uses::L2_TABLE, Uses::DATA, Uses::COMPRESSED);
        assert!(!conflict(&[l2 | Uses::ACTIVE, l2, l2]));
        assert!(!conflict(&[data, data]));
        assert!(!conflict(&[compressed, compressed]));
        assert!(conflict(&[l2 | Uses::ACTIVE, l2 | Uses::ACTIVE]));
        assert!(conflict(&[Uses::METADATA, Uses::METADATA]));
        assert!(conflict(&[l2, Uses::METADATA]));
        assert!(conflict(&[l2, data]));
        assert!(conflict(&[compressed, data]));
    }
}
