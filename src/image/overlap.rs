//! Detection of overlaps in the files of an image.
//!
//! An image that maps guest data to metadata, or two guest ranges to one host range without a matching reference count, is
//! corrupt. It is also how a small file expands to a disk of any size. A conversion visits each guest range once, so that it
//! detects this.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::driver::SparseRead;
use crate::driver::{Compressed, Extent, ExtentKind, FileId, Location};
use crate::error::{Error, Problem, Result};
use crate::format::shared::bits::BitSet;

/// The host ranges of one image that are claimed so far.
///
/// Memory is bounded: two bits for each of the first [`OverlapTracker::UNITS`] units of the files, where they are used, plus
/// [`Payloads`]. After those units, an overlap is detected by the sum of the claims, which cannot exceed the file length.
#[derive(Debug)]
pub(crate) struct OverlapTracker {
    unit: Option<u64>,
    /// Indexed by [`FileId`].
    files: Vec<FileClaims>,
    payloads: Payloads,
}

/// The claims in one file.
#[derive(Debug)]
struct FileClaims {
    len: u64,
    metadata: BitSet,
    data: BitSet,
    /// Number of uses of each unit that is used more than once.
    shared: HashMap<u64, u64>,
    shared_uses: usize,
    /// Bytes claimed in units without bits.
    untracked: u64,
}

impl OverlapTracker {
    /// Two bitmaps of 8 MiB: 4 TiB of file with units of 64 KiB.
    const UNITS: u64 = 1 << 26;
    /// Largest number of shared uses. Only tests share units within one state of a disk, so that valid images stay below.
    const SHARED: usize = 1 << 16;

    /// A tracker for the files of `reader` with these lengths in bytes, in which the metadata is claimed.
    ///
    /// # Errors
    /// If metadata overlaps in a way that prevents reading.
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

    /// Claims the host range of `extent`.
    ///
    /// # Errors
    /// [`Problem::Overlap`] if it is claimed already.
    pub fn claim(&mut self, reader: &dyn SparseRead, extent: &Extent) -> Result<()> {
        let first = self.claim_units(reader, extent, true).into_iter().next();
        first.map_or(Ok(()), |Overlap { with, .. }| Err(overlap(reader, extent, with)))
    }

    /// Claims what is free of the host range of `extent`, and returns the guest ranges of the rest, each with [`Problem::Overlap`].
    pub fn claim_free(&mut self, reader: &dyn SparseRead, extent: &Extent) -> Vec<(Range<u64>, Error)> {
        let overlaps = self.claim_units(reader, extent, false);
        let guest = |Overlap { part, with }: Overlap| {
            let part = extent.clip(extent.offset + part.start, extent.offset + part.end);
            (part.offset..part.end(), overlap(reader, &part, with))
        };
        overlaps.into_iter().map(guest).collect()
    }

    /// Claims the host range of `extent` up to the end, or to the first overlap.
    fn claim_units(&mut self, reader: &dyn SparseRead, extent: &Extent, until_overlap: bool) -> Vec<Overlap> {
        let Some(unit) = self.unit else { return Vec::new() };
        let Some(at) = location(extent) else { return Vec::new() };
        let Some(file) = self.files.get_mut(at.file.0 as usize) else { return Vec::new() };
        // A block of zeros within the data of another one is as wrong as data there. Where it is beyond the file, it does no harm.
        if matches!(extent.kind, ExtentKind::Zero { .. }) && at.offset.saturating_add(extent.len) > file.len {
            return Vec::new();
        }
        let with = if !matches!(extent.kind, ExtentKind::Compressed(_)) {
            let refcount = |offset| if at.file == FileId::default() { reader.refcount(offset) } else { 1 };
            return file.claim_data(unit, at.offset..at.offset.saturating_add(extent.len), &refcount, until_overlap);
        } else if file.metadata.contains(at.offset / unit) {
            Some("metadata")
        } else {
            // Payloads share units, but no payload is used twice.
            self.payloads.repeats(at).then_some("data of another guest range")
        };
        with.map(|with| Overlap { part: 0..extent.len, with }).into_iter().collect()
    }
}

/// A part of a host range that is claimed already, in bytes from the start of the range, and what has claimed it.
struct Overlap {
    part: Range<u64>,
    with: &'static str,
}

/// The host location that is the extent's own: that of data, compressed or not, or of preallocated zeros.
fn location(extent: &Extent) -> Option<Location> {
    match extent.kind {
        ExtentKind::Data(at) | ExtentKind::Compressed(Compressed { at, .. }) => Some(at),
        ExtentKind::Zero { allocated } => allocated,
        ExtentKind::Hole => None,
    }
}

impl FileClaims {
    fn new(len: u64, units: u64) -> FileClaims {
        let (metadata, data) = (BitSet::new(units), BitSet::new(units));
        FileClaims { len, metadata, data, shared: HashMap::new(), shared_uses: 0, untracked: 0 }
    }

    /// Claims a range, and returns whether it was free.
    fn claim_metadata(&mut self, unit: u64, range: Range<u64>) -> bool {
        let mut free = true;
        for index in range.start / unit..range.end.div_ceil(unit).min(self.metadata.bound()) {
            free &= self.metadata.insert(index) != Some(true);
        }
        free
    }

    /// Returns the parts that are claimed already: all of them, or only the first one, after which nothing is claimed.
    fn claim_data(
        &mut self,
        unit: u64,
        range: Range<u64>,
        refcount: &dyn Fn(u64) -> u64,
        until_overlap: bool,
    ) -> Vec<Overlap> {
        let mut overlaps: Vec<Overlap> = Vec::new();
        let mut add = |units: Range<u64>, with| {
            let start = (units.start * unit).max(range.start) - range.start;
            let end = units.end.saturating_mul(unit).min(range.end) - range.start;
            match overlaps.last_mut().filter(|last| last.part.end == start && last.with == with) {
                Some(last) => last.part.end = end,
                None => overlaps.push(Overlap { part: start..end, with }),
            }
        };
        // The visible part of a unit claims the whole unit.
        let units = range.start / unit..range.end.div_ceil(unit);
        let tracked = units.start..units.end.min(self.data.bound()).max(units.start);
        let is_new = tracked.is_empty()
            || self.metadata.run(tracked.start, tracked.end) == (false, tracked.end)
                && self.data.insert_all(tracked.clone());
        for index in if is_new { 0..0 } else { tracked } {
            let with = if self.metadata.contains(index) {
                Some("metadata")
            } else if self.data.insert(index) == Some(true) {
                let is_shared = self.share(index, refcount(index * unit));
                (!is_shared).then_some("data of another guest range")
            } else {
                None
            };
            if let Some(with) = with {
                add(index..index + 1, with);
                if until_overlap {
                    return overlaps;
                }
            }
        }
        let untracked = units.start.max(self.data.bound()).min(units.end)..units.end;
        self.untracked = self.untracked.saturating_add((untracked.end - untracked.start).saturating_mul(unit));
        if self.untracked > self.len {
            add(untracked, "data of another guest range");
        }
        overlaps
    }

    /// Counts another use of a unit that is used already, and returns whether its reference count allows that.
    fn share(&mut self, index: u64, refcount: u64) -> bool {
        if self.shared_uses > OverlapTracker::SHARED {
            return false;
        }
        let uses = self.shared.entry(index).or_insert(1);
        *uses += 1;
        self.shared_uses += 1;
        *uses <= refcount && self.shared_uses <= OverlapTracker::SHARED
    }
}

/// The host locations of compressed payloads.
///
/// The first [`Payloads::EXACT`] are recorded exactly. Each further one sets a bit at a hash of its location, which may
/// collide. The expected number of collisions is known; an image with more than twice that and a thousand reuses payloads.
#[derive(Debug, Default)]
struct Payloads {
    exact: HashSet<Location>,
    hashed: Option<BitSet>,
    /// Number of bits set.
    set: u64,
    /// Number of collisions.
    hits: u64,
    /// Expected number of collisions, times [`Payloads::BITS`].
    expected: u64,
}

impl Payloads {
    const EXACT: usize = 1 << 16;
    /// 8 MiB of memory.
    const BITS: u64 = 1 << 26;

    /// Records a payload, and returns whether it is a repetition, or too many are.
    fn repeats(&mut self, at: Location) -> bool {
        if self.exact.len() < Self::EXACT {
            return !self.exact.insert(at);
        }
        if self.exact.contains(&at) {
            return true;
        }
        let key = at.offset ^ u64::from(at.file.0) << 40;
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) / (u64::MAX / Self::BITS + 1);
        self.expected = self.expected.saturating_add(self.set);
        match self.hashed.get_or_insert_with(|| BitSet::new(Self::BITS)).insert(hash) {
            Some(true) => self.hits += 1,
            _ => self.set += 1,
        }
        self.hits > 2 * (self.expected / Self::BITS) + 1000
    }
}

fn overlap(reader: &dyn SparseRead, extent: &Extent, with: &'static str) -> Error {
    let offset = location(extent).map_or(0, |at| at.offset);
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

    /// A layer with metadata in its first unit, and a reference count of 2 for unit 7.
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

    /// Claims each extent, and returns the owner of the range that the first overlap hits.
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
    fn overlapping_data_is_refused() {
        assert_eq!(claim([data(1, 3), data(4, 3), data(8, 1)]), None);
        assert_eq!(claim([data(1, 3), data(3, 1)]), Some("data of another guest range"));
        assert_eq!(claim([data(1, 3), data(0, 1)]), Some("metadata"));
        let elsewhere = |unit| (ExtentKind::Data(Location { file: FileId(1), offset: unit * UNIT }), UNIT);
        assert_eq!(claim([data(2, 1), elsewhere(2)]), None);
        assert_eq!(claim([elsewhere(0), elsewhere(1)]), Some("metadata"));
        assert_eq!(claim([elsewhere(2), elsewhere(2)]), Some("data of another guest range"));
        let zeros =
            |unit| (ExtentKind::Zero { allocated: Some(Location { file: FileId(0), offset: unit * UNIT }) }, UNIT);
        assert_eq!(claim([zeros(1), data(2, 1), zeros(3), zeros(100), zeros(100)]), None);
        assert_eq!(claim([zeros(3), data(2, 2)]), Some("data of another guest range"));
        assert_eq!(claim([data(2, 2), zeros(2)]), Some("data of another guest range"));
        assert_eq!(claim([zeros(0)]), Some("metadata"));
        let not_opened = (ExtentKind::Data(Location { file: FileId(2), offset: 0 }), UNIT);
        assert_eq!(claim([not_opened, not_opened]), None);
    }

    #[test]
    fn what_is_free_is_claimed_and_the_rest_is_returned() {
        let layer = Fake(ImageInfo::default());
        let mut claims = OverlapTracker::new(&layer, [FILE_LEN, FILE_LEN].into_iter()).unwrap();
        for (kind, len) in [data(3, 1), data(5, 1)] {
            claims.claim(&layer, &Extent { offset: 0, len, kind }).unwrap();
        }
        // From the middle of the first unit on, which has metadata, into the sixth one.
        const GUEST: u64 = 1 << 30;
        let kind = ExtentKind::Data(Location { file: FileId(0), offset: UNIT / 2 });
        let extent = Extent { offset: GUEST, len: 5 * UNIT + UNIT / 4, kind };
        let mut taken = || {
            let taken = claims.claim_free(&layer, &extent).into_iter();
            let part = |range: Range<u64>| (range.start - GUEST) * 4 / UNIT..(range.end - GUEST) * 4 / UNIT;
            taken.map(|(range, error)| (part(range), error.to_string().contains("metadata"))).collect::<Vec<_>>()
        };
        assert_eq!(taken(), [(0..2, true), (10..14, false), (18..21, false)]);
        assert_eq!(taken(), [(0..2, true), (2..21, false)]);
    }

    #[test]
    fn units_are_shared_up_to_their_reference_count() {
        assert_eq!(claim([data(7, 1), data(7, 1)]), None);
        assert_eq!(claim([data(7, 1), data(7, 1), data(7, 1)]), Some("data of another guest range"));
    }

    #[test]
    fn payloads_share_a_unit_but_are_not_repeated() {
        assert_eq!(claim([payload(UNIT), payload(UNIT + 1), payload(UNIT + 600)]), None);
        assert_eq!(claim([payload(289_792), payload(197_056), payload(289_792)]), Some("data of another guest range"));
        assert_eq!(claim([payload(12)]), Some("metadata"));
        // Files are independent of each other.
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
    fn repeated_payloads_are_refused_among_many_others() {
        let many = || (0..400_000).map(|n| payload(UNIT + n * 61));
        assert_eq!(claim(many()), None);
        let again = (100_000..104_000).map(|n| payload(UNIT + n * 61));
        assert_eq!(claim(many().chain(again)), Some("data of another guest range"));
    }

    #[test]
    fn after_the_bitmaps_the_sum_is_limited() {
        let unit = OverlapTracker::UNITS + 5;
        assert_eq!(claim((0..100).map(|_| data(unit, 1))), None);
        assert_eq!(claim((0..101).map(|_| data(unit, 1))), Some("data of another guest range"));
    }
}
