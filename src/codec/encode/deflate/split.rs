//! Cuts a parse into blocks where the statistics of its symbols change.
//!
//! A parse is cut into segments of a fixed number of tokens, which are merged with their neighbours as long as one block is expected to be shorter
//! than two. What a block takes is estimated from its entropy (C. E. Shannon: A Mathematical Theory of Communication, section 7), and from
//! the number of different symbols for its code lengths.

use super::symbols::{Histogram, Token};

/// Fractional bits of a logarithm.
pub(super) const SCALE: u32 = 8;
/// Estimated bits of a block for its header, and for each symbol in it: a code length and its share of the precode.
const HEADER: u64 = 80;
const SYMBOL: u64 = 4;

/// A block to be.
pub(super) struct Block {
    /// Tokens, and the bytes of them.
    pub(super) token_count: usize,
    pub(super) data_len: usize,
    pub(super) histogram: Histogram,
    /// Estimated length, in 2^-[`SCALE`] bits.
    cost: u64,
    /// What merging with the next one saves.
    saving: u64,
}

/// Cuts `tokens` into `blocks`, of which there is at least one.
pub(super) fn split(tokens: &[Token], segment: usize, blocks: &mut Vec<Block>) {
    blocks.clear();
    for part in tokens.chunks(segment) {
        let (histogram, data_len) = Histogram::of(part);
        let cost = cost(&histogram);
        blocks.push(Block { token_count: part.len(), data_len, histogram, cost, saving: 0 });
    }
    if blocks.is_empty() {
        blocks.push(Block { token_count: 0, data_len: 0, histogram: Histogram::EMPTY, cost: 0, saving: 0 });
    }
    for index in 1..blocks.len() {
        update(blocks, index - 1);
    }
    while let Some((index, saving)) = best(blocks) {
        let next = blocks.remove(index + 1);
        let block = &mut blocks[index];
        block.token_count += next.token_count;
        block.data_len += next.data_len;
        block.histogram.add(&next.histogram);
        block.cost = (block.cost + next.cost).saturating_sub(saving);
        update(blocks, index);
        if index > 0 {
            update(blocks, index - 1);
        }
    }
}

/// The block that saves most if merged with the next one.
fn best(blocks: &[Block]) -> Option<(usize, u64)> {
    let savings = blocks.iter().map(|block| block.saving).enumerate();
    savings.rev().max_by_key(|(_, saving)| *saving).filter(|(_, saving)| *saving > 0)
}

/// Estimates what merging a block with the next one saves.
fn update(blocks: &mut [Block], index: usize) {
    let saving = match blocks.get(index..index + 2) {
        Some([first, second]) => {
            (first.cost + second.cost).saturating_sub(merged_cost(&first.histogram, &second.histogram))
        }
        _ => 0,
    };
    blocks[index].saving = saving;
}

fn cost(histogram: &Histogram) -> u64 {
    entropy(histogram.literals.iter().copied()) + entropy(histogram.distances.iter().copied()) + (HEADER << SCALE)
}

fn merged_cost(first: &Histogram, second: &Histogram) -> u64 {
    let literals = first.literals.iter().zip(&second.literals).map(|(a, b)| a + b);
    let distances = first.distances.iter().zip(&second.distances).map(|(a, b)| a + b);
    entropy(literals) + entropy(distances) + (HEADER << SCALE)
}

/// Bits of symbols of these frequencies and of their code lengths.
fn entropy(frequencies: impl Iterator<Item = u32>) -> u64 {
    let (mut total, mut weighted, mut used) = (0_u32, 0_u64, 0_u64);
    for frequency in frequencies {
        total += frequency;
        weighted += u64::from(frequency) * u64::from(log2(frequency));
        used += u64::from(frequency > 0);
    }
    (u64::from(total) * u64::from(log2(total))).saturating_sub(weighted) + ((used * SYMBOL) << SCALE)
}

/// The logarithm to base 2, in 2^-[`SCALE`]; 0 of 0.
#[inline]
pub(super) fn log2(value: u32) -> u32 {
    let value = value.max(1);
    let log = 31 - value.leading_zeros();
    // The eight bits after the first one.
    let fraction = ((u64::from(value) << 8) >> log) as usize & 0xff;
    (log << SCALE) + u32::from(FRACTION[fraction])
}

/// 256 times the logarithms of 1 + n / 256, rounded.
const FRACTION: [u8; 256] = fractions();

const fn fractions() -> [u8; 256] {
    let (mut table, mut index) = ([0; 256], 0);
    while index < 256 {
        // Squaring doubles the logarithm: each bit of it is whether the square reaches 2. Nine bits, the last one for rounding.
        let (mut value, mut log, mut bit) = ((256 + index as u64) << 22, 0_u32, 0);
        while bit < 9 {
            value = ((value as u128 * value as u128) >> 30) as u64;
            log <<= 1;
            if value >= 2 << 30 {
                value >>= 1;
                log |= 1;
            }
            bit += 1;
        }
        let rounded = log.div_ceil(2);
        table[index] = if rounded > 255 { 255 } else { rounded as u8 };
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_rounded_to_the_nearest() {
        assert_eq!(log2(0), 0);
        for value in (1..2000).chain([65_535, 65_536, 1 << 20, u32::MAX]) {
            let exact = f64::from(value).log2() * f64::from(1 << SCALE);
            assert!((f64::from(log2(value)) - exact).abs() < 2.0, "{value}");
        }
        assert!((0..=31).all(|log| log2(1 << log) == log << SCALE));
    }
}
