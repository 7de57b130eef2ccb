//! Which places of an image file are taken.
//!
//! Guest bytes have a place of their own. An image in which guest bytes lie where metadata is, or in which two guest ranges
//! share a place that the image does not count as shared, is corrupt: a reader would give one range the other's bytes. It
//! is also how a small file expands to any size. A conversion passes each guest byte once and in order, so that it can tell.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::driver::SparseRead;
use crate::driver::{Compressed, Extent, ExtentKind, FileId, Location};
use crate::error::{Error, Problem, Result};
use crate::format::shared::bits::BitSet;

/// The places in the files of one image that have been claimed so far.
///
/// Memory is bounded: two bits for each mapping unit of the first [`OverlapTracker::UNITS`] units of the files, where they are
/// used, and what [`Payloads`] needs. Beyond those units, sharing is found by the sum: no more bytes can be stored there than
/// the file has.
#[derive(Debug)]
pub(crate) struct OverlapTracker {
    unit: Option<u64>,
    /// By [`FileId`].
    files: Vec<FileClaims>,
    payloads: Payloads,
}

/// What is claimed of one file.
#[derive(Debug)]
struct FileClaims {
    len: u64,
    metadata: BitSet,
    data: BitSet,
    /// Units that are used more than once, with how often.
    shared: HashMap<u64, u64>,
    shared_uses: usize,
    /// Bytes that were claimed in units that have no bits.
    untracked: u64,
}

impl OverlapTracker {
    /// 8 MiB of bits twice: 4 TiB of file with units of 64 KiB.
    const UNITS: u64 = 1 << 26;
    /// No sound image comes near it: sharing within one state of a disk is something that only tests do.
    const SHARED: usize = 1 << 16;

    /// OverlapTracker for the files of `reader`, which are so long, with its metadata claimed already.
    ///
    /// # Errors
    /// When metadata overlaps in a way that makes reading senseless.
    pub fn new(reader: &dyn SparseRead, file_lens: impl Iterator<Item = u64>) -> Result<OverlapTracker> {
        let unit = reader.host_alignment();
        let mut left = Self::UNITS;
        let mut files: Vec<_> = file_lens
            .map(|len| {
                let units = unit.map_or(0, |unit| len.div_ceil(unit).min(left));
                left -= units;
                FileClaims::new(len, units)
            })
            .collect();
        if let Some(unit) = unit {
            reader.metadata(&mut |file, range: Range<u64>| {
                files.get_mut(file.0 as usize).is_none_or(|file| file.claim_metadata(unit, range))
            })?;
        }
        Ok(OverlapTracker { unit, files, payloads: Payloads::default() })
    }

    /// OverlapTracker what the bytes of `extent`, which is of `reader`, lie in.
    pub fn claim(&mut self, reader: &dyn SparseRead, extent: &Extent) -> Result<()> {
        let Some(unit) = self.unit else { return Ok(()) };
        let (ExtentKind::Data(at) | ExtentKind::Compressed(Compressed { at, .. })) = extent.kind else { return Ok(()) };
        let Some(file) = self.files.get_mut(at.file.0 as usize) else { return Ok(()) };
        let problem = if let ExtentKind::Data(_) = extent.kind {
            let references = |offset| if at.file == FileId::default() { reader.refcount(offset) } else { 1 };
            file.claim_data(unit, at.offset..at.offset.saturating_add(extent.len), &references)
        } else if file.metadata.contains(at.offset / unit) {
            Some("metadata")
        } else {
            // Payloads share units with each other, but none is used twice.
            self.payloads.repeats(at).then_some("data of another guest range")
        };
        problem.map_or(Ok(()), |with| Err(overlap(reader, extent, at.offset, with)))
    }
}

impl FileClaims {
    fn new(len: u64, units: u64) -> FileClaims {
        let (metadata, data) = (BitSet::new(units), BitSet::new(units));
        FileClaims { len, metadata, data, shared: HashMap::new(), shared_uses: 0, untracked: 0 }
    }

    /// Whether nothing claimed any of it before.
    fn claim_metadata(&mut self, unit: u64, range: Range<u64>) -> bool {
        let mut free = true;
        for index in range.start / unit..range.end.div_ceil(unit).min(self.metadata.bound()) {
            free &= self.metadata.insert(index) != Some(true);
        }
        free
    }

    fn claim_data(&mut self, unit: u64, range: Range<u64>, references: &dyn Fn(u64) -> u64) -> Option<&'static str> {
        // The part of a unit that the guest sees stands for the whole.
        let units = range.start / unit..range.end.div_ceil(unit);
        for index in units.start..units.end.min(self.data.bound()) {
            if self.metadata.contains(index) {
                return Some("metadata");
            }
            if self.data.insert(index) == Some(true) {
                let uses = self.shared.entry(index).or_insert(1);
                *uses += 1;
                self.shared_uses += 1;
                if *uses > references(index * unit) || self.shared_uses > OverlapTracker::SHARED {
                    return Some("data of another guest range");
                }
            }
        }
        let untracked = units.end.saturating_sub(units.start.max(self.data.bound()));
        self.untracked = self.untracked.saturating_add(untracked.saturating_mul(unit));
        (self.untracked > self.len).then_some("data of another guest range")
    }
}

/// The places of compressed payloads.
///
/// The first [`Payloads::EXACT`] of them are remembered as they are. Of the others a bit is set, by a hash of the place: a
/// bit that is set already may be chance. How many there are by chance is known, and an image that has twice as many and a
/// thousand more uses payloads again.
#[derive(Debug, Default)]
struct Payloads {
    exact: HashSet<Location>,
    hashed: Option<BitSet>,
    /// Bits that are set.
    set: u64,
    /// Bits that were found set.
    hits: u64,
    /// How many would be found by chance, in units of 1 / [`Payloads::BITS`].
    expected: u64,
}

impl Payloads {
    const EXACT: usize = 1 << 16;
    /// 8 MiB.
    const BITS: u64 = 1 << 26;

    /// Notes a payload, and tells whether it, or too many, were noted before.
    fn repeats(&mut self, at: Location) -> bool {
        if self.exact.len() < Self::EXACT {
            return !self.exact.insert(at);
        }
        if self.exact.contains(&at) {
            return true;
        }
        let place = at.offset ^ u64::from(at.file.0) << 40;
        let hash = place.wrapping_mul(0x9e37_79b9_7f4a_7c15) / (u64::MAX / Self::BITS + 1);
        self.expected = self.expected.saturating_add(self.set);
        match self.hashed.get_or_insert_with(|| BitSet::new(Self::BITS)).insert(hash) {
            Some(true) => self.hits += 1,
            _ => self.set += 1,
        }
        self.hits > 2 * (self.expected / Self::BITS) + 1000
    }
}

fn overlap(reader: &dyn SparseRead, extent: &Extent, offset: u64, with: &'static str) -> Error {
    let field = format!("the mapping of guest offset {:#x}", extent.offset);
    Error::corrupt(reader.info().format, field, offset, Problem::Overlap { offset, with })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Codec;
    use crate::error::Fault;
    use crate::info::ImageInfo;

    const UNIT: u64 = 64 << 10;
    const FILE_LEN: u64 = 100 * UNIT;

    /// A layer with metadata in its first unit, and unit 7 counted as used twice.
    struct Fake(ImageInfo);

    impl SparseRead for Fake {
        fn info(&self) -> &ImageInfo {
            &self.0
        }

        fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
            let offset = range.start;
            Ok(Extent { offset, len: 1, kind: ExtentKind::Hole })
        }

        fn host_alignment(&self) -> Option<u64> {
            Some(UNIT)
        }

        fn refcount(&self, offset: u64) -> u64 {
            if offset == 7 * UNIT { 2 } else { 1 }
        }

        fn metadata(&self, claim: &mut dyn FnMut(FileId, Range<u64>) -> bool) -> Result<()> {
            assert!(claim(FileId(0), 0..10));
            assert!(!claim(FileId(0), 5..UNIT));
            assert!(claim(FileId(1), UNIT..UNIT + 1));
            Ok(())
        }
    }

    /// OverlapTracker each of these, and returns what the first that fails overlaps.
    fn claim(kinds: impl IntoIterator<Item = (ExtentKind, u64)>) -> Option<&'static str> {
        let layer = Fake(ImageInfo::default());
        let mut claims = OverlapTracker::new(&layer, [FILE_LEN, FILE_LEN].into_iter()).unwrap();
        kinds.into_iter().find_map(|(kind, len)| match claims.claim(&layer, &Extent { offset: 0, len, kind }) {
            Err(Error::Corrupt(Fault { problem: Problem::Overlap { with, .. }, .. })) => Some(with),
            other => {
                other.unwrap();
                None
            }
        })
    }

    fn data(unit: u64, units: u64) -> (ExtentKind, u64) {
        (ExtentKind::Data(Location { file: FileId(0), offset: unit * UNIT }), units * UNIT)
    }

    fn payload(offset: u64) -> (ExtentKind, u64) {
        let at = Location { file: FileId(0), offset };
        let len = UNIT as u32;
        let unit = Compressed { at, stored_len: 512, codec: Codec::Deflate, unit: 0, unit_len: len, min_len: len };
        (ExtentKind::Compressed(unit), UNIT)
    }

    #[test]
    fn data_has_its_place_for_itself() {
        assert_eq!(claim([data(1, 3), data(4, 3), data(8, 1)]), None);
        assert_eq!(claim([data(1, 3), data(3, 1)]), Some("data of another guest range"));
        assert_eq!(claim([data(1, 3), data(0, 1)]), Some("metadata"));
        let elsewhere = |unit| (ExtentKind::Data(Location { file: FileId(1), offset: unit * UNIT }), UNIT);
        assert_eq!(claim([data(2, 1), elsewhere(2)]), None);
        assert_eq!(claim([elsewhere(0), elsewhere(1)]), Some("metadata"));
        assert_eq!(claim([elsewhere(2), elsewhere(2)]), Some("data of another guest range"));
        let not_opened = (ExtentKind::Data(Location { file: FileId(2), offset: 0 }), UNIT);
        assert_eq!(claim([not_opened, not_opened]), None);
    }

    #[test]
    fn what_the_image_counts_may_be_shared_so_often() {
        assert_eq!(claim([data(7, 1), data(7, 1)]), None);
        assert_eq!(claim([data(7, 1), data(7, 1), data(7, 1)]), Some("data of another guest range"));
    }

    #[test]
    fn payloads_share_a_unit_but_are_not_repeated() {
        assert_eq!(claim([payload(UNIT), payload(UNIT + 1), payload(UNIT + 600)]), None);
        assert_eq!(claim([payload(289_792), payload(197_056), payload(289_792)]), Some("data of another guest range"));
        assert_eq!(claim([payload(12)]), Some("metadata"));
        // The same place in another file is another place, and has other metadata.
        let in_file = |file, offset| match payload(offset) {
            (ExtentKind::Compressed(unit), len) => {
                (ExtentKind::Compressed(Compressed { at: Location { file: FileId(file), offset }, ..unit }), len)
            }
            other => other,
        };
        assert_eq!(claim([payload(2 * UNIT), in_file(1, 2 * UNIT), in_file(1, 12)]), None);
        assert_eq!(claim([in_file(1, 2 * UNIT), in_file(1, 2 * UNIT)]), Some("data of another guest range"));
        assert_eq!(claim([in_file(1, UNIT)]), Some("metadata"));
    }

    #[test]
    fn many_payloads_are_no_repetition_and_repeated_ones_are() {
        let many = || (0..400_000).map(|n| payload(UNIT + n * 61));
        assert_eq!(claim(many()), None);
        let again = (100_000..104_000).map(|n| payload(UNIT + n * 61));
        assert_eq!(claim(many().chain(again)), Some("data of another guest range"));
    }

    #[test]
    fn beyond_the_bits_the_sum_counts() {
        let unit = OverlapTracker::UNITS + 5;
        assert_eq!(claim((0..100).map(|_| data(unit, 1))), None);
        assert_eq!(claim((0..101).map(|_| data(unit, 1))), Some("data of another guest range"));
    }
}
