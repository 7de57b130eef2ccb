//! Blocks whose literals and matches are coded by finite state entropy.
//!
//! Each of four alphabets (numbers of literals L, lengths of matches M, distances D, literals) has a table of states. A state has a symbol,
//! and tells how many bits of the input, added to a base, are the next state. A symbol of the first three is a base of a value, to which
//! further bits are added. The bits are read from the end of the input to its start.
//!
//! ```text
//! 8    n literals: 20 bits, length of the literals: 20, n matches: 20, 7 - unused bits at the end of the literals: 3
//! 16   states of the literals: 4 of 10 bits, length of the matches: 20, 7 - unused bits at their end: 3
//! 24   length of the header: 32, states of L, M, D: 10 each
//! 32   frequencies of the symbols of L, M, D and the literals: a prefix code
//! ```

use crate::codec::decode::lz::{Fault, Input, Output};

/// Bytes before the frequencies, with the magic.
const HEADER: usize = 32;
/// Most literals and matches of a block.
const MAX_LITERALS: usize = 40_000;
const MAX_MATCHES: u64 = 10_000;
/// Numbers of states; each is a power of two.
const STATES: usize = 64;
const DISTANCE_STATES: usize = 256;
const LITERAL_STATES: usize = 1024;
/// Numbers of symbols of L and of M, of D, and of all alphabets.
const SYMBOLS: usize = 20;
const DISTANCE_SYMBOLS: usize = 64;
const ALL_SYMBOLS: usize = 2 * SYMBOLS + DISTANCE_SYMBOLS + 256;

/// The numbers of further bits of the symbols.
const LITERAL_RUN_BITS: [u8; SYMBOLS] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 3, 5, 8];
const MATCH_BITS: [u8; SYMBOLS] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 5, 8, 11];
/// 0 to 15, four times each.
const DISTANCE_BITS: [u8; DISTANCE_SYMBOLS] = {
    let mut bits = [0; DISTANCE_SYMBOLS];
    let mut symbol = 0;
    while symbol < DISTANCE_SYMBOLS {
        bits[symbol] = symbol as u8 / 4;
        symbol += 1;
    }
    bits
};

/// A state of the literals.
#[derive(Clone, Copy, Default)]
struct Literal {
    base: u16,
    bits: u8,
    symbol: u8,
}

/// A state of another alphabet.
#[derive(Clone, Copy, Default)]
struct Value {
    base: u16,
    /// Bits of the next state and of the value, the latter in the lower bits.
    bits: u8,
    value_bits: u8,
    value: u32,
}

/// The tables of one block, and its literals.
pub(super) struct Fse {
    literal: Box<[Literal; LITERAL_STATES]>,
    runs: [Value; STATES],
    matches: [Value; STATES],
    distances: Box<[Value; DISTANCE_STATES]>,
    literals: Vec<u8>,
}

/// The fields of a header.
struct Header {
    literals: usize,
    matches: u64,
    literals_len: usize,
    literals_unused: u32,
    literal_states: [usize; 4],
    matches_len: usize,
    matches_unused: u32,
    run_state: usize,
    match_state: usize,
    distance_state: usize,
    /// Bytes of the frequencies.
    frequencies_len: usize,
}

impl Header {
    fn parse(fields: [u64; 3]) -> Result<Header, Fault> {
        let [first, second, third] = fields;
        let bits = |word: u64, at: u32, len: u32| word >> at & ((1 << len) - 1);
        let index = |word, at, len| bits(word, at, len) as usize;
        let unused = |word| 7 - bits(word, 60, 3) as u32;
        let header = Header {
            literals: index(first, 0, 20),
            literals_len: index(first, 20, 20),
            matches: bits(first, 40, 20),
            literals_unused: unused(first),
            literal_states: [0, 10, 20, 30].map(|at| index(second, at, 10)),
            matches_len: index(second, 40, 20),
            matches_unused: unused(second),
            run_state: index(third, 32, 10),
            match_state: index(third, 42, 10),
            distance_state: index(third, 52, 10),
            frequencies_len: index(third, 0, 32).checked_sub(HEADER).ok_or(INVALID_HEADER)?,
        };
        let is_valid = header.literals <= MAX_LITERALS
            && header.matches <= MAX_MATCHES
            && header.run_state < STATES
            && header.match_state < STATES
            && header.distance_state < DISTANCE_STATES;
        if is_valid { Ok(header) } else { Err(INVALID_HEADER) }
    }
}

const INVALID_HEADER: Fault = Fault::Invalid("invalid header of a block");

impl Fse {
    pub fn new() -> Self {
        Fse {
            literal: Box::new([Literal::default(); LITERAL_STATES]),
            runs: [Value::default(); STATES],
            matches: [Value::default(); STATES],
            distances: Box::new([Value::default(); DISTANCE_STATES]),
            literals: Vec::new(),
        }
    }

    /// Decodes the block whose header has been read up to the number of bytes.
    pub fn block(&mut self, input: &mut Input<'_>, output: &mut Output<'_>) -> Result<(), Fault> {
        let mut field = || input.array().map(u64::from_le_bytes);
        let header = Header::parse([field()?, field()?, field()?])?;
        self.set_tables(input.take(header.frequencies_len)?)?;
        let literals = Bits::new(input.take(header.literals_len)?, header.literals_unused)?;
        self.decode_literals(literals, &header)?;
        let matches = Bits::new(input.take(header.matches_len)?, header.matches_unused)?;
        self.decode_matches(matches, &header, output)
    }

    /// Builds the tables from the compressed frequencies.
    fn set_tables(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let frequencies = frequencies(bytes)?;
        let (runs, rest) = frequencies.split_at_checked(SYMBOLS).unwrap_or_default();
        let (matches, rest) = rest.split_at_checked(SYMBOLS).unwrap_or_default();
        let (distances, literals) = rest.split_at_checked(DISTANCE_SYMBOLS).unwrap_or_default();
        set_values(&mut self.runs, runs, &LITERAL_RUN_BITS)?;
        set_values(&mut self.matches, matches, &MATCH_BITS)?;
        set_values(&mut self.distances, distances, &DISTANCE_BITS)?;
        set_states(&mut self.literal, literals, |symbol, base, bits| Literal { base, bits, symbol: symbol as u8 })
    }

    /// Decodes all literals of the block. Four states take turns.
    fn decode_literals(&mut self, mut input: Bits<'_>, header: &Header) -> Result<(), Fault> {
        self.literals.resize(header.literals.next_multiple_of(4), 0);
        let [mut a, mut b, mut c, mut d] = header.literal_states;
        let (groups, _) = self.literals.as_chunks_mut::<4>();
        for group in groups {
            input.refill();
            let table = &*self.literal;
            let mut next = |state: &mut usize| {
                // The number of states is a power of two.
                let Literal { base, bits, symbol } = table[*state % LITERAL_STATES];
                *state = usize::from(base) + input.take(bits.into()) as usize;
                symbol
            };
            *group = [next(&mut a), next(&mut b), next(&mut c), next(&mut d)];
        }
        input.check()
    }

    /// Decodes the matches, and puts the literals between them.
    fn decode_matches(&self, mut input: Bits<'_>, header: &Header, output: &mut Output<'_>) -> Result<(), Fault> {
        let mut literals = Input(&self.literals);
        let (mut run, mut length, mut offset) = (header.run_state, header.match_state, header.distance_state);
        let mut distance = 0;
        for _ in 0..header.matches {
            // The three values take 54 bits at most.
            input.refill();
            let literal_run = input.value(self.runs[run % STATES], &mut run);
            let match_len = input.value(self.matches[length % STATES], &mut length);
            match input.value(self.distances[offset % DISTANCE_STATES], &mut offset) {
                // The distance of the match before.
                0 => {}
                new => distance = new,
            }
            input.check()?;
            output.literals(literals.take(literal_run).map_err(|_| MISSING_LITERALS)?)?;
            if match_len > 0 {
                output.copy(distance, match_len)?;
            }
        }
        Ok(())
    }
}

const MISSING_LITERALS: Fault = Fault::Invalid("a block has fewer literals than it uses");

/// Decodes the frequencies of all symbols.
fn frequencies(bytes: &[u8]) -> Result<[u16; ALL_SYMBOLS], Fault> {
    const INVALID: Fault = Fault::Invalid("invalid frequencies");
    let mut bytes = bytes.iter();
    let (mut accumulator, mut count) = (0_u64, 0);
    let mut frequencies = [0; ALL_SYMBOLS];
    for frequency in &mut frequencies {
        while count <= 56
            && let Some(byte) = bytes.next()
        {
            accumulator |= u64::from(*byte) << count;
            count += 8;
        }
        let bits = |at: u32, len: u32| (accumulator >> at & ((1 << len) - 1)) as u16;
        // Codes from the lowest bit on: 0x, 10x, 110xx, 1110xxxx, 1111 and ten bits.
        let (value, len) = match (!accumulator).trailing_zeros() {
            0 => (bits(1, 1), 2),
            1 => (2 + bits(2, 1), 3),
            2 => (4 + bits(3, 2), 5),
            3 => (8 + bits(4, 4), 8),
            _ => (24 + bits(4, 10), 14),
        };
        count = u32::checked_sub(count, len).ok_or(INVALID)?;
        accumulator >>= len;
        *frequency = value;
    }
    // Less than a byte of padding.
    if count < 8 && bytes.next().is_none() { Ok(frequencies) } else { Err(INVALID) }
}

/// Fills the table of an alphabet whose symbols have these numbers of further bits. Each value begins where that of the symbol before ends.
fn set_values<const N: usize>(table: &mut [Value; N], frequencies: &[u16], further: &[u8]) -> Result<(), Fault> {
    let mut start = 0;
    let starts: Vec<(u32, u8)> = further
        .iter()
        .map(|bits| {
            let value = start;
            start += 1 << bits;
            (value, *bits)
        })
        .collect();
    set_states(table, frequencies, |symbol, base, bits| {
        let (value, value_bits) = starts.get(symbol).copied().unwrap_or_default();
        Value { base, bits: bits + value_bits, value_bits, value }
    })
}

/// Fills a table of `N` states, a power of two: a symbol of frequency f has f states, one after the other. States that no symbol has
/// stay what they are by default, which is harmless.
///
/// With k bits, f states shifted by k are at least N and less than 2N. The first (2N >> k) - f states have k bits, the others one bit less.
fn set_states<T: Copy + Default, const N: usize>(
    table: &mut [T; N],
    frequencies: &[u16],
    state: impl Fn(usize, u16, u8) -> T,
) -> Result<(), Fault> {
    *table = [T::default(); N];
    let mut free = table.iter_mut();
    for (symbol, &frequency) in frequencies.iter().enumerate().filter(|(_, frequency)| **frequency > 0) {
        let frequency = usize::from(frequency);
        if frequency > free.len() {
            return Err(Fault::Invalid("the frequencies exceed the number of states"));
        }
        let bits = N.ilog2() - frequency.ilog2();
        let wide = ((2 * N) >> bits) - frequency;
        for (index, entry) in free.by_ref().take(frequency).enumerate() {
            let (base, bits) = match index.checked_sub(wide) {
                None => (((frequency + index) << bits) - N, bits),
                Some(index) => (index << (bits - 1), bits - 1),
            };
            *entry = state(symbol, base as u16, bits as u8);
        }
    }
    Ok(())
}

/// Bits, read from the end of the bytes to their start.
struct Bits<'a> {
    /// The bytes before those in the accumulator.
    bytes: &'a [u8],
    accumulator: u64,
    /// Bits in the accumulator, at most 63; the others are zeros.
    count: u32,
    /// Whether more bits were taken than there are.
    overrun: bool,
}

impl<'a> Bits<'a> {
    /// The bits of `bytes` but for the `unused` upper bits of the last byte, which have to be zeros.
    fn new(bytes: &'a [u8], unused: u32) -> Result<Self, Fault> {
        let mut bits = Bits { bytes, accumulator: 0, count: 0, overrun: false };
        if unused > 0 {
            let (last, rest) = bytes.split_last().ok_or(Fault::Short)?;
            bits.bytes = rest;
            bits.accumulator = u64::from(*last);
            bits.count = 8 - unused;
            if bits.accumulator >> bits.count != 0 {
                return Err(Fault::Invalid("the unused bits are not zeros"));
            }
        }
        Ok(bits)
    }

    /// Fills the accumulator with at least 56 bits, or with all that are left.
    #[inline(always)]
    fn refill(&mut self) {
        let len = ((63 - self.count) / 8) as usize;
        if let Some((rest, word)) = self.bytes.split_last_chunk::<8>() {
            if len > 0 {
                let word = u64::from_le_bytes(*word);
                self.accumulator = self.accumulator << (8 * len) | word >> (64 - 8 * len);
                self.count += 8 * len as u32;
                self.bytes = &self.bytes[..rest.len() + 8 - len];
            }
        } else {
            for _ in 0..len {
                let Some((last, rest)) = self.bytes.split_last() else { break };
                self.accumulator = self.accumulator << 8 | u64::from(*last);
                self.count += 8;
                self.bytes = rest;
            }
        }
    }

    /// Takes the next `len` bits, the highest ones of the accumulator; `len` is at most 32.
    #[inline(always)]
    fn take(&mut self, len: u32) -> u32 {
        match self.count.checked_sub(len) {
            Some(left) => {
                let taken = self.accumulator >> left;
                self.accumulator &= (1 << left) - 1;
                self.count = left;
                taken as u32
            }
            None => {
                self.overrun = true;
                0
            }
        }
    }

    /// Takes a value, and moves `state` on.
    #[inline(always)]
    fn value(&mut self, entry: Value, state: &mut usize) -> usize {
        let bits = self.take(entry.bits.into());
        *state = usize::from(entry.base) + (bits >> entry.value_bits) as usize;
        (entry.value + (bits & ((1 << entry.value_bits) - 1))) as usize
    }

    /// [`Fault::Short`] if more bits were taken than there are.
    fn check(&self) -> Result<(), Fault> {
        if self.overrun { Err(Fault::Short) } else { Ok(()) }
    }
}
