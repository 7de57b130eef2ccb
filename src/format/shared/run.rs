//! Merging table entries into extents.

use super::paged_table::TablePage;
use crate::driver::{Extent, ExtentKind};

/// Extends `first` by allocation units of `unit` bytes whose entries are on `page`, up to guest offset `end`.
///
/// `kind` returns the kind and the length of the rest of a unit, by its index and a guest offset in it, or `None` for an invalid
/// entry, and for a unit that is not of one kind.
pub(crate) fn merge_units<const N: usize>(
    first: Extent,
    end: u64,
    unit: u64,
    page: &TablePage<N>,
    kind: impl Fn(u64, u64) -> Option<(ExtentKind, u64)>,
) -> Extent {
    merge(first, end, |at| {
        let index = at / unit;
        if index >= page.indexes.end {
            return None;
        }
        match kind(index, at)? {
            // Fast path: most units of most disks are not allocated, and have the same entry.
            (first @ (ExtentKind::Hole | ExtentKind::Zero { allocated: None }), len) => {
                match page.repeats(index, (end - at).div_ceil(unit)) {
                    0 | 1 => Some((first, len)),
                    // The last one may end with the disk.
                    count => {
                        let last = (count - 1) * unit;
                        kind(index + count - 1, at + last).map(|(_, len)| (first, last + len))
                    }
                }
            }
            other => Some(other),
        }
    })
}

/// Extends `first` by the extents that continue it, up to guest offset `end`.
///
/// `next` returns the kind and the length of the extent at a guest offset, or `None` at the end of the table page and for an
/// invalid entry. An invalid entry is reported when its own guest range is read.
pub(crate) fn merge(first: Extent, end: u64, mut next: impl FnMut(u64) -> Option<(ExtentKind, u64)>) -> Extent {
    let mut extent = first;
    while extent.end() < end {
        match next(extent.end()) {
            Some((kind, len)) if extent.kind.continues(extent.len, kind) => extent.len += len,
            _ => break,
        }
    }
    extent
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::driver::{FileId, Location};

    #[test]
    fn merging_stops_at_the_requested_end_and_at_a_gap() {
        let data = |offset| ExtentKind::Data(Location { file: FileId(0), offset });
        let first = Extent { offset: 10, len: 10, kind: data(110) };
        let calls = Cell::new(0);
        // Blocks of 10 bytes. The block at 50 is not contiguous with the block before it.
        let next = |at| {
            calls.set(calls.get() + 1);
            (at < 80).then(|| (data(if at == 50 { 0 } else { 100 + at }), 10))
        };
        assert_eq!((merge(first, 15, next).len, calls.take()), (10, 0));
        assert_eq!((merge(first, 35, next).len, calls.take()), (30, 2));
        assert_eq!((merge(first, u64::MAX, next).len, calls.take()), (40, 4));
    }
}
