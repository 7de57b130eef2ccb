//! Number and kind of uses of host clusters, one window of the file at a time to bound memory.

use std::ops::Range;

use bitflags::bitflags;

bitflags! {
    /// Kinds of uses of a host cluster. The lower bits are the number of uses.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct Uses: u32 {
        /// Exclusive metadata: header, refcounts, L1 tables, snapshot table, bitmaps, LUKS header.
        const METADATA = 1 << 31;
        /// An L2 table, which snapshots may share.
        const L2_TABLE = 1 << 30;
        /// Uncompressed guest data, or a preallocated cluster.
        const DATA = 1 << 29;
        /// Part of a compressed payload.
        const COMPRESSED = 1 << 28;
        /// Referenced by the active L1 table.
        const ACTIVE = 1 << 27;
        /// Referenced more than once by the active L1 table. (Guest clusters may be shared within a state.)
        const TWICE = 1 << 26;
        /// The refcount is 1.
        const REFCOUNT_ONE = 1 << 25;
        const _ = !0;
    }
}

impl Uses {
    /// Largest number of uses; larger ones are counted as this.
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

    /// Whether the cluster is exclusive metadata and something else.
    pub fn overlaps_metadata(self) -> bool {
        self.contains(Uses::METADATA) && self.count() > 1
    }

    /// Describes a conflict between the uses, whatever the refcount.
    pub fn conflict(self) -> Option<&'static str> {
        if self.overlaps_metadata() {
            Some("metadata overlaps other data")
        } else if self.contains(Uses::L2_TABLE) && self.intersects(Uses::DATA | Uses::COMPRESSED) {
            Some("guest data overlaps an L2 table")
        } else if self.contains(Uses::DATA | Uses::COMPRESSED) {
            Some("compressed and uncompressed guest data share a cluster")
        } else if self.contains(Uses::TWICE) {
            Some("two L1 entries reference the same L2 table")
        } else {
            None
        }
    }
}

/// Uses of the host clusters in a window.
pub(super) struct Counts {
    /// First cluster of the window, a multiple of its length.
    first: u64,
    window: u64,
    uses: Vec<Uses>,
    beyond: Option<u64>,
}

impl Counts {
    /// Creates a window of `window` clusters, a power of two, at the start of a file of `clusters` clusters.
    pub fn new(clusters: u64, window: u64) -> Self {
        Counts { first: 0, window, uses: vec![Uses::empty(); clusters.min(window) as usize], beyond: None }
    }

    /// Clears the counts and moves to the window of `cluster`.
    pub fn restart(&mut self, cluster: u64) {
        self.first = cluster & !(self.window - 1);
        self.uses.fill(Uses::empty());
        self.beyond = None;
    }

    /// Clusters in the window.
    pub fn window(&self) -> Range<u64> {
        self.first..self.first.saturating_add(self.uses.len() as u64)
    }

    /// First cluster after the window that [`add`](Self::add) was called with.
    pub fn beyond(&self) -> Option<u64> {
        self.beyond
    }

    /// Adds `times` uses to each of `clusters` that is in the window.
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
            let indexes = (start - self.first) as usize..(end - self.first) as usize;
            self.uses.get_mut(indexes).unwrap_or_default().iter_mut().for_each(|entry| entry.add(uses, times));
        }
    }

    /// Uses of a cluster, if it is in the window.
    pub fn get(&self, cluster: u64) -> Option<Uses> {
        let index = cluster.checked_sub(self.first)?;
        self.uses.get(usize::try_from(index).ok()?).copied()
    }

    /// Iterates over the used clusters of the window.
    pub fn used(&self) -> impl Iterator<Item = (u64, Uses)> {
        (self.first..).zip(&self.uses).filter(|(_, uses)| uses.count() > 0).map(|(cluster, uses)| (cluster, *uses))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u64 = 32;

    #[test]
    fn empty_windows_are_skipped() {
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
    fn counts_saturate() {
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
