//! Runs of equal bits in a bitmap.

/// Which bit of a byte comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BitOrder {
    HighestFirst,
    LowestFirst,
}

/// The bit number `index`, and the number of the first one after it, below `end`, that is another; `end` when there is none. What
/// is not in `bytes` counts as zeros.
pub(crate) fn run(bytes: &[u8], order: BitOrder, index: u64, end: u64) -> (bool, u64) {
    let byte = |index: u64| bytes.get((index / 8) as usize).copied().unwrap_or_default();
    let bit = |index: u64| match order {
        BitOrder::HighestFirst => byte(index) & 0x80 >> (index % 8) != 0,
        BitOrder::LowestFirst => byte(index) & 1 << (index % 8) != 0,
    };
    let first = bit(index);
    let whole = if first { 0xff } else { 0 };
    let mut at = index + 1;
    while at < end {
        if at.is_multiple_of(8) && byte(at) == whole {
            at += 8;
        } else if bit(at) == first {
            at += 1;
        } else {
            break;
        }
    }
    (first, at.min(end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
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
