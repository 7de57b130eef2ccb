//! Runs of equal bits in a bitmap, and bit sets.

use std::ops::Range;

use crate::zero;

/// The order of the bits in a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BitOrder {
    HighestFirst,
    LowestFirst,
}

/// Returns bit `index`, and the index of the next bit that differs; at most `end`. Bits beyond `bytes` are zeros.
pub(crate) fn run(bytes: &[u8], order: BitOrder, index: u64, end: u64) -> (bool, u64) {
    let byte = |index: u64| bytes.get((index / 8) as usize).copied().unwrap_or_default();
    let bit = |index: u64| match order {
        BitOrder::HighestFirst => byte(index) & 0x80 >> (index % 8) != 0,
        BitOrder::LowestFirst => byte(index) & 1 << (index % 8) != 0,
    };
    let first = bit(index);
    let edge = (index + 1).next_multiple_of(8).min(end);
    if let Some(at) = (index + 1..edge).find(|at| bit(*at) != first) {
        return (first, at);
    }
    // Whole bytes.
    let rest = bytes.get((edge / 8) as usize..bytes.len().min(end.div_ceil(8) as usize)).unwrap_or_default();
    let equal = zero::leading_repeats(rest, [if first { 0xff } else { 0 }; 8]);
    let at = edge + equal as u64 * 8;
    match rest.get(equal) {
        Some(_) => (first, (at..end).find(|at| bit(*at) != first).unwrap_or(end)),
        None if first => (first, at.min(end)),
        None => (first, end),
    }
}

/// A set of numbers below a bound, one bit each.
#[derive(Clone, Debug)]
pub(crate) struct BitSet(Vec<u8>);

impl BitSet {
    /// An empty set for numbers below `bound`. It takes `bound / 8` bytes.
    pub fn new(bound: u64) -> BitSet {
        BitSet(vec![0; bound.div_ceil(8) as usize])
    }

    /// The bound, rounded up to a multiple of 8.
    pub fn bound(&self) -> u64 {
        self.0.len() as u64 * 8
    }

    pub fn contains(&self, number: u64) -> bool {
        self.0.get((number / 8) as usize).is_some_and(|byte| byte >> (number % 8) & 1 != 0)
    }

    /// Adds a number and returns whether the set contained it; `None` if it is not below the bound.
    pub fn insert(&mut self, number: u64) -> Option<bool> {
        let byte = self.0.get_mut((number / 8) as usize)?;
        let bit = 1 << (number % 8);
        let contained = *byte & bit != 0;
        *byte |= bit;
        Some(contained)
    }

    /// Adds the numbers in `range`, which are below the bound, if the set contains none of them. Returns whether it did.
    pub fn insert_all(&mut self, range: Range<u64>) -> bool {
        if !range.is_empty() && self.run(range.start, range.end) != (false, range.end) {
            return false;
        }
        let bytes = range.start.div_ceil(8)..range.end / 8;
        let Some(whole) = self.0.get_mut(bytes.start as usize..bytes.end as usize) else {
            // Within one byte.
            return range.into_iter().all(|number| self.insert(number).is_some());
        };
        whole.fill(0xff);
        let edges = (range.start..bytes.start * 8).chain(bytes.end * 8..range.end);
        edges.into_iter().all(|number| self.insert(number).is_some())
    }

    /// Adds all numbers of `other`, a set with the same bound.
    pub fn union_with(&mut self, other: &BitSet) {
        self.0.iter_mut().zip(&other.0).for_each(|(byte, other)| *byte |= other);
    }

    /// Returns whether the set contains `number`, and the next number for which that changes; at most `end`.
    pub fn run(&self, number: u64, end: u64) -> (bool, u64) {
        run(&self.0, BitOrder::LowestFirst, number, end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sets_of_numbers() {
        let (mut set, mut other) = (BitSet::new(20), BitSet::new(20));
        assert_eq!(
            [3, 23, 3, 24, 0].map(|number| set.insert(number)),
            [Some(false), Some(false), Some(true), None, Some(false)]
        );
        assert_eq!((set.bound(), other.insert(4), other.insert(5)), (24, Some(false), Some(false)));
        set.union_with(&other);
        assert!((0..30).filter(|number| set.contains(*number)).eq([0, 3, 4, 5, 23]));
        assert_eq!([0, 1, 3, 6].map(|number| set.run(number, 22)), [(true, 1), (false, 3), (true, 6), (false, 22)]);
    }

    #[test]
    fn bits_beyond_the_bytes_are_zeros() {
        for order in [BitOrder::HighestFirst, BitOrder::LowestFirst] {
            assert_eq!(run(&[0], order, 3, 100), (false, 100));
            assert_eq!(run(&[0xff, 0xff], order, 3, 100), (true, 16));
            assert_eq!(run(&[0xff], order, 8, 100), (false, 100));
        }
    }

    proptest! {
        #[test]
        fn a_range_is_added_as_a_whole(numbers in prop::collection::vec(0u64..200, 0..6), start in 0u64..200, len in 0u64..200) {
            let mut set = BitSet::new(200);
            for number in &numbers {
                set.insert(*number);
            }
            let range = start..(start + len).min(200);
            let free = !numbers.iter().any(|number| range.contains(number));
            prop_assert_eq!(set.insert_all(range.clone()), free);
            for number in 0..200 {
                prop_assert_eq!(set.contains(number), numbers.contains(&number) || free && range.contains(&number));
            }
        }

        #[test]
        fn runs_of_bits(
            bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 1..40),
            index in 0u64..320,
            cut in 0u64..16,
        ) {
            let all = bytes.len() as u64 * 8;
            let end = (all - cut.min(all - 1)).max(1);
            let index = index % end;
            for (order, shift) in [(BitOrder::HighestFirst, 7), (BitOrder::LowestFirst, 0)] {
                let bits: Vec<bool> =
                    bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> (bit ^ shift) & 1 == 1)).collect();
                let (bit, next) = run(&bytes, order, index, end);
                prop_assert_eq!(bit, bits[index as usize]);
                prop_assert!(next > index && bits[index as usize..next as usize].iter().all(|other| *other == bit));
                prop_assert!(next == end || bits[next as usize] != bit);
            }
        }
    }
}
