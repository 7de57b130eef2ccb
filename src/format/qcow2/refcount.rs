//! Refcounts of 1 to 64 bits (qcow2 specification, "Host cluster management").
//!
//! Refcounts of 16, 32 and 64 bits are big-endian. Smaller ones are packed into bytes, lowest bits first.

use byteorder::{BigEndian, ByteOrder};

/// Largest refcount of `1 << order` bits.
pub(crate) fn max_count(order: u32) -> u64 {
    u64::MAX >> (64 - (1u32 << order))
}

/// Returns refcount number `index` of a block, or `None` beyond its end.
pub(crate) fn count_at(block: &[u8], order: u32, index: usize) -> Option<u64> {
    if order < 3 {
        let per_byte = 8 >> order;
        let byte = *block.get(index / per_byte)?;
        return Some(u64::from(byte) >> ((index % per_byte) << order) & max_count(order));
    }
    let width = 1 << (order - 3);
    let at = index.checked_mul(width)?;
    Some(BigEndian::read_uint(block.get(at..at + width)?, width))
}

/// Sets refcount number `index` of a block to `count`, at most [`max_count`]. Does nothing beyond the block's end.
pub(crate) fn set_count(block: &mut [u8], order: u32, index: usize, count: u64) {
    if order < 3 {
        let per_byte = 8 >> order;
        let shift = (index % per_byte) << order;
        if let Some(byte) = block.get_mut(index / per_byte) {
            *byte = *byte & !((max_count(order) as u8) << shift) | (count as u8) << shift;
        }
        return;
    }
    let width = 1 << (order - 3);
    if let Some(bytes) = block.get_mut(index * width..(index + 1) * width) {
        BigEndian::write_uint(bytes, count, width);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_refcounts_are_packed_lowest_bits_first() {
        let mut block = [0; 2];
        set_count(&mut block, 0, 1, 1);
        set_count(&mut block, 2, 3, 0xa);
        assert_eq!(block, [0b10, 0xa0]);
    }

    proptest! {
        #[test]
        fn refcounts_round_trip(order in 0u32..=6, counts in prop::collection::vec(any::<u64>(), 64)) {
            let mut block = [0xa5; 512];
            let counts: Vec<u64> = counts.iter().map(|count| count & max_count(order)).collect();
            for (index, &count) in counts.iter().enumerate() {
                set_count(&mut block, order, index, count);
            }
            for (index, &count) in counts.iter().enumerate() {
                prop_assert_eq!(count_at(&block, order, index), Some(count));
            }
            prop_assert_eq!(count_at(&block, order, 512 * 8), None);
        }
    }
}
