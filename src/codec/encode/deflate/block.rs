//! Blocks (RFC 1951, section 3.2.3): stored, with the fixed codes, or with codes of their own, whichever is shortest.

use super::bits::BitWriter;
use super::huffman::Code;
use super::symbols::{
    DISTANCE_EXTRA, DISTANCE_SYMBOLS, END_OF_BLOCK, Histogram, LENGTH_BASE, LENGTH_EXTRA, LENGTH_SLOT, LITERAL_SYMBOLS,
    SLOTS, TOKEN_SYMBOLS, Token,
};
use crate::codec::zlib::MAX_STORED_BLOCK;

/// Longest codes of literals and distances. One bit less than the format allows for literals, so that four of them, and the bits that are left in the
/// writer, fit in 63 bits; it makes no difference for blocks of this size.
const LITERAL_LIMIT: usize = 14;
const DISTANCE_LIMIT: usize = 15;
/// Longest codes of code lengths, and the order in which these are stated (section 3.2.7).
const PRECODE_LIMIT: usize = 7;
const PRECODE_SYMBOLS: usize = 19;
const PRECODE_ORDER: [u8; PRECODE_SYMBOLS] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

const STORED: u64 = 0;
const FIXED: u64 = 1;
const DYNAMIC: u64 = 2;

/// Writes `data` as a block of `tokens`, which have these symbols.
pub(super) fn write(out: &mut BitWriter<'_>, data: &[u8], tokens: &[Token], histogram: &Histogram, is_last: bool) {
    let mut literals = histogram.literals;
    literals[END_OF_BLOCK] = 1;
    let codes = Codes {
        literals: Code::from_frequencies(&literals, LITERAL_LIMIT),
        distances: Code::from_frequencies(&histogram.distances, DISTANCE_LIMIT),
    };
    let header = Header::of(&codes);
    let extra = extra_bits(histogram);
    let dynamic = header.cost() + codes.literals.cost(&literals) + codes.distances.cost(&histogram.distances) + extra;
    let fixed = fixed_cost(&literals, &histogram.distances) + extra;
    if stored_cost(out, data) <= fixed.min(dynamic) + 3 {
        write_stored(out, data, is_last);
        return;
    }
    let kind = if fixed <= dynamic { FIXED } else { DYNAMIC };
    out.put(u64::from(is_last) | kind << 1, 3);
    if kind == FIXED {
        Codes::fixed().write(out, tokens);
    } else {
        header.write(out);
        codes.write(out, tokens);
    }
}

/// Bits of stored blocks for `data`.
fn stored_cost(out: &BitWriter<'_>, data: &[u8]) -> usize {
    let padding = (out.bit_len() + 3).wrapping_neg() & 7;
    (3 + padding + 32) + data.len().div_ceil(MAX_STORED_BLOCK).saturating_sub(1) * 40 + data.len() * 8
}

/// Writes `data` as stored blocks (section 3.2.4).
pub(super) fn write_stored(out: &mut BitWriter<'_>, data: &[u8], is_last: bool) {
    let mut rest = data;
    loop {
        let (block, after) = rest.split_at(rest.len().min(MAX_STORED_BLOCK));
        out.put(u64::from(is_last && after.is_empty()) | STORED << 1, 3);
        out.align();
        let len = block.len() as u16;
        out.put(u64::from(len) | u64::from(!len) << 16, 32);
        out.extend(block);
        if after.is_empty() {
            return;
        }
        rest = after;
    }
}

/// Extra bits of all lengths and distances.
fn extra_bits(histogram: &Histogram) -> usize {
    let lengths = histogram
        .literals
        .iter()
        .skip(END_OF_BLOCK + 1)
        .zip(LENGTH_EXTRA)
        .map(|(count, extra)| *count as usize * usize::from(extra));
    let distances =
        histogram.distances.iter().zip(DISTANCE_EXTRA).map(|(count, extra)| *count as usize * usize::from(extra));
    lengths.sum::<usize>() + distances.sum::<usize>()
}

/// Lengths of the fixed codes (section 3.2.6).
fn fixed_literal_length(symbol: usize) -> u8 {
    match symbol {
        0..=143 => 8,
        144..=255 => 9,
        256..=279 => 7,
        _ => 8,
    }
}

fn fixed_cost(literals: &[u32; LITERAL_SYMBOLS], distances: &[u32; DISTANCE_SYMBOLS]) -> usize {
    let literals =
        literals.iter().enumerate().map(|(symbol, count)| *count as usize * usize::from(fixed_literal_length(symbol)));
    literals.sum::<usize>() + distances.iter().map(|count| *count as usize * 5).sum::<usize>()
}

/// The codes of a block.
struct Codes {
    literals: Code<LITERAL_SYMBOLS>,
    distances: Code<DISTANCE_SYMBOLS>,
}

impl Codes {
    /// The fixed codes. Two symbols never occur, but take part in the code.
    fn fixed() -> Self {
        let all = Code::<{ LITERAL_SYMBOLS + 2 }>::from_lengths(std::array::from_fn(fixed_literal_length));
        let literals = Code {
            lengths: std::array::from_fn(|symbol| all.lengths[symbol]),
            codes: std::array::from_fn(|symbol| all.codes[symbol]),
        };
        Codes { literals, distances: Code::from_lengths([5; DISTANCE_SYMBOLS]) }
    }

    /// Writes `tokens`, and the end of the block.
    fn write(&self, out: &mut BitWriter<'_>, tokens: &[Token]) {
        let symbols: [Bits; TOKEN_SYMBOLS] = std::array::from_fn(|symbol| match symbol {
            0..=255 => Bits::new(self.literals.codes[symbol].into(), self.literals.lengths[symbol].into()),
            length => self.length(length - 256),
        });
        // The bits that a slot counts include the extra bits.
        let slots: [Bits; SLOTS] = std::array::from_fn(|slot| {
            let code =
                self.distances.codes.get(slot).zip(self.distances.lengths.get(slot)).zip(DISTANCE_EXTRA.get(slot));
            code.map_or(Bits::new(0, 0), |((code, length), extra)| {
                Bits::new(u32::from(*code) | u32::from(*length) << 16, u32::from(*length + *extra))
            })
        });
        // Literals and matches alike, without a branch: which one is next is hard to predict.
        let encoded = |token: Token| {
            let (symbol, slot) = (symbols[token.symbol()], slots[token.slot()]);
            let distance = slot.bits() & 0xffff | u64::from(token.extra()) << (slot.bits() >> 16);
            (symbol.bits() | distance << symbol.count(), symbol.count() + slot.count())
        };
        let (pairs, rest) = tokens.as_chunks::<2>();
        for [first, second] in pairs {
            // 14 + 5 bits of the length, 15 + 13 of the distance.
            let ((first, first_count), (second, second_count)) = (encoded(*first), encoded(*second));
            if first_count + second_count <= 56 {
                out.put(first | second << first_count, first_count + second_count);
            } else {
                out.put(first, first_count);
                out.put(second, second_count);
            }
        }
        for token in rest {
            let (bits, count) = encoded(*token);
            out.put(bits, count);
        }
        out.put(self.literals.codes[END_OF_BLOCK].into(), self.literals.lengths[END_OF_BLOCK].into());
    }

    /// The code of a length with its extra bits; `length` is less the shortest one.
    fn length(&self, length: usize) -> Bits {
        let slot = usize::from(LENGTH_SLOT[length]);
        let symbol = END_OF_BLOCK + 1 + slot;
        let (code, count) = (u32::from(self.literals.codes[symbol]), u32::from(self.literals.lengths[symbol]));
        let extra = length as u32 - u32::from(LENGTH_BASE[slot]);
        Bits::new(code | extra << count, count + u32::from(LENGTH_EXTRA[slot]))
    }
}

/// Up to 24 bits, and their number above them.
#[derive(Clone, Copy)]
struct Bits(u32);

impl Bits {
    fn new(bits: u32, count: u32) -> Self {
        Bits(bits | count << 24)
    }

    #[inline(always)]
    fn bits(self) -> u64 {
        u64::from(self.0 & 0xff_ffff)
    }

    #[inline(always)]
    fn count(self) -> u32 {
        self.0 >> 24
    }
}

/// The code lengths of a block of its own codes, as they are written (section 3.2.7).
struct Header {
    literal_count: usize,
    distance_count: usize,
    /// Lengths and repetitions: the symbol, and the value of its extra bits.
    items: [(u8, u8); LITERAL_SYMBOLS + DISTANCE_SYMBOLS],
    item_count: usize,
    precode: Code<PRECODE_SYMBOLS>,
    precode_count: usize,
}

impl Header {
    fn of(codes: &Codes) -> Self {
        let used = |lengths: &[u8], least: usize| {
            lengths.iter().rposition(|length| *length > 0).map_or(least, |last| least.max(last + 1))
        };
        let literal_count = used(&codes.literals.lengths, END_OF_BLOCK + 1);
        let distance_count = used(&codes.distances.lengths, 1);
        let mut lengths = [0; LITERAL_SYMBOLS + DISTANCE_SYMBOLS];
        lengths[..literal_count].copy_from_slice(&codes.literals.lengths[..literal_count]);
        lengths[literal_count..literal_count + distance_count]
            .copy_from_slice(&codes.distances.lengths[..distance_count]);

        let mut items = [(0, 0); LITERAL_SYMBOLS + DISTANCE_SYMBOLS];
        let mut item_count = 0;
        let mut frequencies = [0; PRECODE_SYMBOLS];
        for run in lengths[..literal_count + distance_count].chunk_by(|a, b| a == b) {
            runs(run[0], run.len(), |symbol, extra| {
                items[item_count] = (symbol, extra);
                item_count += 1;
                frequencies[usize::from(symbol)] += 1;
            });
        }
        let precode = Code::from_frequencies(&frequencies, PRECODE_LIMIT);
        let is_used = |symbol: &u8| precode.lengths[usize::from(*symbol)] > 0;
        let precode_count = PRECODE_ORDER.iter().rposition(is_used).map_or(4, |last| 4.max(last + 1));
        Header { literal_count, distance_count, items, item_count, precode, precode_count }
    }

    fn items(&self) -> &[(u8, u8)] {
        self.items.get(..self.item_count).unwrap_or_default()
    }

    /// Length in bits.
    fn cost(&self) -> usize {
        let items = self
            .items()
            .iter()
            .map(|(symbol, _)| usize::from(self.precode.lengths[usize::from(*symbol)]) + repeat_bits(*symbol) as usize);
        5 + 5 + 4 + 3 * self.precode_count + items.sum::<usize>()
    }

    fn write(&self, out: &mut BitWriter<'_>) {
        out.add(self.literal_count as u64 - 257, 5);
        out.add(self.distance_count as u64 - 1, 5);
        out.put(self.precode_count as u64 - 4, 4);
        for symbol in PRECODE_ORDER.iter().take(self.precode_count) {
            out.put(self.precode.lengths[usize::from(*symbol)].into(), 3);
        }
        for (symbol, extra) in self.items() {
            let symbol_index = usize::from(*symbol);
            out.add(self.precode.codes[symbol_index].into(), self.precode.lengths[symbol_index].into());
            out.put((*extra).into(), repeat_bits(*symbol));
        }
    }
}

/// Extra bits of a symbol of the code for code lengths.
fn repeat_bits(symbol: u8) -> u32 {
    match symbol {
        16 => 2,
        17 => 3,
        18 => 7,
        _ => 0,
    }
}

/// Calls `item` with symbols and extra bits for a run of `count` code lengths of `length`.
fn runs(length: u8, mut count: usize, mut item: impl FnMut(u8, u8)) {
    if length == 0 {
        while count >= 11 {
            let repeated = count.min(138);
            item(18, (repeated - 11) as u8);
            count -= repeated;
        }
        if count >= 3 {
            item(17, (count - 3) as u8);
            count = 0;
        }
    } else if count >= 4 {
        item(length, 0);
        count -= 1;
        while count >= 3 {
            // Leaves no rest of one or two, which would be stated one by one.
            let repeated = if matches!(count, 7 | 8) { count - 3 } else { count.min(6) };
            item(16, (repeated - 3) as u8);
            count -= repeated;
        }
    }
    for _ in 0..count {
        item(length, 0);
    }
}
