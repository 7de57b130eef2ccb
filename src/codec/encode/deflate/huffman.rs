//! Huffman codes of limited length.
//!
//! - A. Moffat, J. Katajainen: In-Place Calculation of Minimum-Redundancy Codes. WADS 1995. The lengths of an unlimited code, in linear time after
//!   sorting.
//! - L. L. Larmore, D. S. Hirschberg: A Fast Algorithm for Optimal Length-Limited Huffman Codes. J. ACM 37, 1990. Package-merge, for the few
//!   codes that are longer than DEFLATE allows.

/// The most symbols in an alphabet.
const MAX_SYMBOLS: usize = 288;
/// The longest code (RFC 1951, section 3.2.7).
const MAX_LENGTH: usize = 15;

/// A code for each symbol.
#[derive(Clone)]
pub(super) struct Code<const N: usize> {
    /// Length of each code in bits; 0 for symbols without one.
    pub(super) lengths: [u8; N],
    /// The codes, first bit lowest.
    pub(super) codes: [u16; N],
}

impl<const N: usize> Code<N> {
    pub(super) const EMPTY: Self = Code { lengths: [0; N], codes: [0; N] };

    /// An optimal code with no length above `limit`, for symbols of these frequencies.
    ///
    /// There are always two codes at least: not all decoders take a code of one symbol (RFC 1951, section 3.2.7), and none is complete.
    pub(super) fn from_frequencies(frequencies: &[u32; N], limit: usize) -> Self {
        let mut code = Self::EMPTY;
        // Sorted by frequency, then by symbol.
        let mut sorted = [0_u64; MAX_SYMBOLS];
        let mut used = 0;
        for (symbol, frequency) in (0_u64..).zip(frequencies) {
            if *frequency > 0 {
                sorted[used] = u64::from(*frequency) << 16 | symbol;
                used += 1;
            }
        }
        if used < 2 {
            let symbol = if used == 1 { sorted[0] as usize & 0xffff } else { 0 };
            code.lengths[symbol] = 1;
            code.lengths[if symbol == 0 { 1 } else { 0 }] = 1;
            code.assign();
            return code;
        }
        let sorted = &mut sorted[..used];
        sorted.sort_unstable();
        let mut work = [0_u32; MAX_SYMBOLS];
        let work = &mut work[..used];
        work.iter_mut().zip(&*sorted).for_each(|(to, from)| *to = (*from >> 16) as u32);
        minimum_redundancy(work);
        // Lengths descend.
        if work[0] as usize > limit {
            work.iter_mut().zip(&*sorted).for_each(|(to, from)| *to = (*from >> 16) as u32);
            package_merge(work, limit);
        }
        for (length, symbol) in work.iter().zip(&*sorted) {
            code.lengths[(*symbol & 0xffff) as usize] = *length as u8;
        }
        code.assign();
        code
    }

    /// The code with these lengths.
    pub(super) fn from_lengths(lengths: [u8; N]) -> Self {
        let mut code = Code { lengths, codes: [0; N] };
        code.assign();
        code
    }

    /// Gives each symbol its code: in order of length, then of symbol (RFC 1951, section 3.2.2).
    fn assign(&mut self) {
        let mut count = [0_u16; MAX_LENGTH + 1];
        for length in self.lengths {
            count[usize::from(length) & MAX_LENGTH] += 1;
        }
        count[0] = 0;
        let (mut next, mut code) = ([0_u16; MAX_LENGTH + 1], 0_u16);
        for length in 1..=MAX_LENGTH {
            code = code.wrapping_add(count[length - 1]) << 1;
            next[length] = code;
        }
        for (length, code) in self.lengths.iter().zip(&mut self.codes) {
            if *length > 0 {
                let next = &mut next[usize::from(*length) & MAX_LENGTH];
                *code = next.reverse_bits() >> (16 - length);
                *next = next.wrapping_add(1);
            }
        }
    }

    /// Bits that symbols of these frequencies take.
    pub(super) fn cost(&self, frequencies: &[u32; N]) -> usize {
        self.lengths.iter().zip(frequencies).map(|(length, frequency)| usize::from(*length) * *frequency as usize).sum()
    }
}

/// Replaces ascending frequencies, two or more, by the lengths of their codes (Moffat and Katajainen, figure 1).
fn minimum_redundancy(work: &mut [u32]) {
    let count = work.len();
    // Frequencies become those of inner nodes, and those that have been used the indexes of their parents.
    work[0] += work[1];
    let (mut root, mut leaf) = (0, 2);
    for next in 1..count - 1 {
        let mut weight = 0;
        for _ in 0..2 {
            if leaf >= count || (root < next && work[root] < work[leaf]) {
                weight += work[root];
                work[root] = next as u32;
                root += 1;
            } else {
                weight += work[leaf];
                leaf += 1;
            }
        }
        work[next] = weight;
    }
    // Indexes of parents become depths of inner nodes.
    work[count - 2] = 0;
    for next in (0..count - 2).rev() {
        work[next] = work[work[next] as usize] + 1;
    }
    // Depths of inner nodes become depths of leaves.
    let (mut available, mut depth, mut root, mut next) = (1, 0, count - 1, count);
    while available > 0 {
        let mut used = 0;
        while root > 0 && work[root - 1] == depth {
            used += 1;
            root -= 1;
        }
        while available > used {
            next -= 1;
            work[next] = depth;
            available -= 1;
        }
        available = 2 * used;
        depth += 1;
    }
}

/// Replaces ascending frequencies by the lengths of their codes, none above `limit` (Larmore and Hirschberg).
///
/// In each round the items of the previous one are paired, and the pairs are merged with the symbols. The first 2n - 2 items of the last
/// round are taken: each symbol is as long as the number of rounds in which it is among those taken.
fn package_merge(work: &mut [u32], limit: usize) {
    let count = work.len();
    // For each round, whether an item is a symbol; pairs and symbols are taken in order, so that their numbers suffice.
    let mut is_symbol = [[false; 2 * MAX_SYMBOLS]; MAX_LENGTH];
    let mut items = [0_u64; 2 * MAX_SYMBOLS];
    let mut item_count = 0;
    for round in is_symbol.iter_mut().take(limit) {
        let mut merged = [0_u64; 2 * MAX_SYMBOLS];
        let (mut symbol, mut pair, mut len) = (0, 0, 0);
        while symbol < count || pair + 1 < item_count {
            let package = if pair + 1 < item_count { items[pair] + items[pair + 1] } else { u64::MAX };
            round[len] = symbol < count && u64::from(work[symbol]) <= package;
            if round[len] {
                merged[len] = work[symbol].into();
                symbol += 1;
            } else {
                merged[len] = package;
                pair += 2;
            }
            len += 1;
        }
        (items, item_count) = (merged, len);
    }
    work.fill(0);
    let mut taken = 2 * count - 2;
    for round in is_symbol[..limit].iter().rev() {
        let symbols = round[..taken].iter().filter(|is_symbol| **is_symbol).count();
        work[..symbols].iter_mut().for_each(|length| *length += 1);
        taken = (taken - symbols) * 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const N: usize = 30;

    fn frequencies() -> impl Strategy<Value = [u32; N]> {
        // From even to steep distributions.
        (prop::array::uniform::<_, N>(any::<u32>()), 8_u32..28, prop::array::uniform::<_, N>(0_u32..28))
            .prop_map(|(values, bits, shifts)| std::array::from_fn(|at| values[at] >> (32 - bits) >> shifts[at]))
    }

    fn kraft(code: &Code<N>) -> u32 {
        code.lengths.iter().filter(|length| **length > 0).map(|length| 1 << (MAX_LENGTH - usize::from(*length))).sum()
    }

    /// The cost of an optimal code: the sum of the weights of the inner nodes (D. A. Huffman, 1952).
    fn optimal(frequencies: &[u32; N]) -> usize {
        let mut nodes: Vec<usize> =
            frequencies.iter().filter(|frequency| **frequency > 0).map(|frequency| *frequency as usize).collect();
        let mut cost = 0;
        while nodes.len() > 1 {
            nodes.sort_by(|a, b| b.cmp(a));
            let pair = nodes.pop().unwrap() + nodes.pop().unwrap();
            nodes.push(pair);
            cost += pair;
        }
        cost
    }

    #[test]
    fn the_code_of_the_specification() {
        // RFC 1951, section 3.2.2: A to H with these lengths.
        let code = Code::from_lengths([3, 3, 3, 3, 3, 2, 4, 4]);
        let forwards: [u16; 8] = std::array::from_fn(|at| code.codes[at].reverse_bits() >> (16 - code.lengths[at]));
        assert_eq!(forwards, [0b010, 0b011, 0b100, 0b101, 0b110, 0b00, 0b1110, 0b1111]);
    }

    #[test]
    fn one_symbol_or_none_has_a_complete_code() {
        for used in [None, Some(0), Some(1), Some(29)] {
            let frequencies = std::array::from_fn(|symbol| u32::from(Some(symbol) == used) * 5);
            let code = Code::<N>::from_frequencies(&frequencies, 15);
            assert_eq!(kraft(&code), 1 << MAX_LENGTH);
            assert!(used.is_none_or(|used| code.lengths[used] == 1));
        }
    }

    #[test]
    fn a_limit_costs_as_little_as_possible() {
        // Fibonacci numbers have an unlimited code of 29 bits. With five bits for 30 symbols, two have a code of four.
        let mut frequencies = [1; N];
        (2..N).for_each(|at| frequencies[at] = frequencies[at - 1] + frequencies[at - 2]);
        let code = Code::from_frequencies(&frequencies, 5);
        assert_eq!(code.lengths, std::array::from_fn(|at| if at < 28 { 5 } else { 4 }));
    }

    proptest! {
        #[test]
        fn codes_are_complete_and_optimal(frequencies in frequencies(), limit in 5_usize..=15) {
            let code = Code::<N>::from_frequencies(&frequencies, limit);
            prop_assert_eq!(kraft(&code), 1 << MAX_LENGTH);
            prop_assert!(code.lengths.iter().all(|length| usize::from(*length) <= limit));
            if frequencies.iter().filter(|frequency| **frequency > 0).count() > 1 {
                prop_assert!(code.lengths.iter().zip(&frequencies).all(|(length, frequency)| (*length > 0) == (*frequency > 0)));
                let unlimited = optimal(&frequencies);
                prop_assert!(code.cost(&frequencies) >= unlimited);
                let (mut sorted, count) = (frequencies.to_vec(), frequencies.iter().filter(|frequency| **frequency > 0).count());
                sorted.sort_unstable();
                let mut work = sorted.split_off(N - count);
                let ascending = work.clone();
                // Package-merge and the in-place algorithm agree where the limit does not matter.
                package_merge(&mut work, limit);
                let merged: usize = work.iter().zip(&ascending).map(|(length, frequency)| *length as usize * *frequency as usize).sum();
                prop_assert_eq!(code.cost(&frequencies), merged);
            }
        }
    }
}
