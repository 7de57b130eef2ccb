//! Tables that decode symbols.
//!
//! The first bits of a code are an index into the main part of a table. A code that is longer finds a subtable there, of which the bits after those are
//! the index. An entry has all that is needed to go on: a length has its extra bits in it where they are in the index, too.

/// Number of bits that are an index of the main part.
const LITERAL_BITS: u32 = 11;
const DISTANCE_BITS: u32 = 8;
const PRECODE_BITS: u32 = 7;
/// Entries of a table: a power of two, not below what any code needs. That is 2342 entries for 288 symbols and 11 bits, and 402 for 32 symbols and 8 bits,
/// as the program `enough` of zlib finds.
const LITERAL_ENTRIES: usize = 4096;
const DISTANCE_ENTRIES: usize = 512;

/// The longest code (RFC 1951, section 3.2.7).
const MAX_LENGTH: usize = 15;
/// Symbols of the largest alphabet.
const MAX_SYMBOLS: usize = 288;
const END_OF_BLOCK: usize = 256;
/// The first length that has extra bits.
const FIRST_EXTRA: usize = 265;

/// What the next bits stand for.
///
/// | bits | literal | length or distance | subtable | end of block, invalid code |
/// |---|---|---|---|---|
/// | 0..8 | bits of the code | bits of the code and extra bits | bits before the index | bits of the code |
/// | 8..12 | | bits of the code | bits of the index | bits of the code |
/// | 12..16 | | [`OTHER`](Entry::OTHER), [`SPECIAL`](Entry::SPECIAL) for a length with extra bits | `OTHER`, `SPECIAL`, [`SUBTABLE`](Entry::SUBTABLE) | `OTHER`, `SPECIAL`, [`STOP`](Entry::STOP) |
/// | 16..32 | the byte | the least value | offset | 1 for the end of the block |
/// | 32..64 | | mask of the extra bits | mask of the index | |
#[derive(Clone, Copy)]
pub(super) struct Entry(u64);

impl Entry {
    const OTHER: u64 = 1 << 15;
    const SPECIAL: u64 = 1 << 14;
    const SUBTABLE: u64 = 1 << 13;
    const STOP: u64 = 1 << 12;

    const INVALID: Entry = Entry(Entry::OTHER | Entry::SPECIAL | Entry::STOP);
    const END: Entry = Entry(Entry::INVALID.0 | 1 << 16);

    const fn of_literal(byte: usize) -> Self {
        Entry((byte as u64) << 16)
    }

    /// A value with extra bits.
    const fn of_value(least: u64, extra: u32) -> Self {
        Entry(((1 << extra) - 1) << 32 | least << 16 | Entry::OTHER | extra as u64)
    }

    /// A subtable at `start`.
    const fn of_subtable(start: usize, before: u32, bits: u32) -> Self {
        let flags = Entry::OTHER | Entry::SPECIAL | Entry::SUBTABLE;
        Entry(((1 << bits) - 1) << 32 | (start as u64) << 16 | flags | (bits << 8 | before) as u64)
    }

    /// Adds the bits of the code.
    #[inline(always)]
    const fn with_code(self, bits: u32) -> Self {
        Entry(self.0 + (if self.is_literal() { bits } else { bits << 8 | bits }) as u64)
    }

    #[inline(always)]
    pub(super) const fn is_literal(self) -> bool {
        self.0 & Self::OTHER == 0
    }

    /// Whether it is neither a literal nor a length without further bits; of distances, whether it is no distance.
    #[inline(always)]
    pub(super) fn is_special(self) -> bool {
        self.0 & Self::SPECIAL != 0
    }

    #[inline(always)]
    pub(super) fn is_subtable(self) -> bool {
        self.0 & Self::SUBTABLE != 0
    }

    /// Whether it is the end of the block, which an invalid code is not; `None` for all others.
    #[inline(always)]
    pub(super) fn stop(self) -> Option<bool> {
        (self.0 & Self::STOP != 0).then_some(self.0 >> 16 != 0)
    }

    /// Bits that it takes.
    #[inline(always)]
    pub(super) fn bits(self) -> u32 {
        self.0 as u32 & 0xff
    }

    /// Removes what it takes from `bits`, and from their number, of which only the low eight bits are right afterwards.
    #[inline(always)]
    pub(super) fn take(self, bits: &mut u64, count: &mut u32) {
        *bits >>= self.0 & 63;
        *count = count.wrapping_sub(self.0 as u32);
    }

    #[inline(always)]
    pub(super) fn literal(self) -> u8 {
        (self.0 >> 16) as u8
    }

    #[inline(always)]
    pub(super) fn least(self) -> usize {
        (self.0 as u32 >> 16) as usize
    }

    /// The value, with the extra bits that are in `bits` after the code.
    #[inline(always)]
    pub(super) fn value_in(self, bits: u64) -> usize {
        self.least() + (bits >> (self.0 >> 8 & 15) & self.0 >> 32) as usize
    }

    /// The index of an entry of the subtable, after the bits before it have been removed from `bits`.
    #[inline(always)]
    fn index_in(self, bits: u64) -> usize {
        self.least() + (bits & self.0 >> 32) as usize
    }
}

/// The tables of a block.
pub(super) struct Tables {
    literals: [Entry; LITERAL_ENTRIES],
    distances: [Entry; DISTANCE_ENTRIES],
    precode: [Entry; 1 << PRECODE_BITS],
}

impl Tables {
    pub(super) fn new() -> Box<Self> {
        Box::new(Tables {
            literals: [Entry(0); LITERAL_ENTRIES],
            distances: [Entry(0); DISTANCE_ENTRIES],
            precode: [Entry(0); 1 << PRECODE_BITS],
        })
    }

    #[inline(always)]
    pub(super) fn literal(&self, bits: u64) -> Entry {
        self.literals[bits as usize % (1 << LITERAL_BITS)]
    }

    /// The entry in a subtable, after the bits before it have been removed.
    #[inline(always)]
    pub(super) fn literal_in(&self, subtable: Entry, bits: u64) -> Entry {
        self.literals[subtable.index_in(bits) % LITERAL_ENTRIES]
    }

    #[inline(always)]
    pub(super) fn distance(&self, bits: u64) -> Entry {
        self.distances[bits as usize % (1 << DISTANCE_BITS)]
    }

    #[inline(always)]
    pub(super) fn distance_in(&self, subtable: Entry, bits: u64) -> Entry {
        self.distances[subtable.index_in(bits) % DISTANCE_ENTRIES]
    }

    /// The symbol of the code for code lengths.
    pub(super) fn code_length(&self, bits: u64) -> Entry {
        self.precode[bits as usize % (1 << PRECODE_BITS)]
    }

    pub(super) fn set_literals(&mut self, lengths: &[u8]) -> Result<(), InvalidCode> {
        let code = Code::new(lengths, true)?;
        code.fill(&mut self.literals, LITERAL_BITS, &LITERALS);
        code.expand(&mut self.literals);
        Ok(())
    }

    pub(super) fn set_distances(&mut self, lengths: &[u8]) -> Result<(), InvalidCode> {
        Code::new(lengths, true)?.fill(&mut self.distances, DISTANCE_BITS, &DISTANCES);
        Ok(())
    }

    pub(super) fn set_precode(&mut self, lengths: &[u8]) -> Result<(), InvalidCode> {
        Code::new(lengths, false)?.fill(&mut self.precode, PRECODE_BITS, &PRECODE);
        Ok(())
    }
}

/// A code that is over-subscribed or incomplete.
pub(super) struct InvalidCode;

/// The symbols of an alphabet in the order of their codes: by length, then by symbol (RFC 1951, section 3.2.2).
struct Code {
    symbols: [u16; MAX_SYMBOLS],
    /// Number of those of each length.
    counts: [u16; MAX_LENGTH + 1],
    is_complete: bool,
}

impl Code {
    /// The code with these lengths. If it `may_be_incomplete`, it may have one symbol with one bit, or no symbol at all, as in zlib.
    fn new(lengths: &[u8], may_be_incomplete: bool) -> Result<Self, InvalidCode> {
        let mut counts = [0; MAX_LENGTH + 1];
        for length in lengths {
            counts[usize::from(*length) % (MAX_LENGTH + 1)] += 1;
        }
        // Symbols without a code come first, and are dropped by the sorting.
        let mut next = [0; MAX_LENGTH + 1];
        let mut space = 0;
        for length in 1..MAX_LENGTH {
            next[length + 1] = next[length] + counts[length];
        }
        for (length, count) in counts.iter().enumerate().skip(1) {
            space += usize::from(*count) << (MAX_LENGTH - length);
        }
        let is_complete = space == 1 << MAX_LENGTH;
        let is_single = usize::from(counts[0] + counts[1]) == lengths.len() && counts[1] < 2;
        let is_allowed = is_complete || (may_be_incomplete && is_single);
        if !is_allowed {
            return Err(InvalidCode);
        }
        let mut symbols = [0; MAX_SYMBOLS];
        // Symbols without a code are put where nothing is read.
        next[0] = (lengths.len() as u16) - counts[0];
        for (symbol, length) in (0..).zip(lengths) {
            let next = &mut next[usize::from(*length) % (MAX_LENGTH + 1)];
            symbols[usize::from(*next) % MAX_SYMBOLS] = symbol;
            *next += 1;
        }
        Ok(Code { symbols, counts, is_complete })
    }

    /// Makes the table. For each number of bits, entries are added to one of that many bits, which is then doubled.
    #[inline(always)]
    fn fill(&self, table: &mut [Entry], main_bits: u32, entries: &[Entry]) {
        if !self.is_complete {
            table.fill(Entry::INVALID.with_code(1));
        }
        let mut symbols = self.symbols.iter();
        // The first bit of the code is the lowest.
        let mut code = 0;
        for length in 1..=main_bits {
            for symbol in symbols.by_ref().take(self.counts[length as usize].into()) {
                table[code] = entries[usize::from(*symbol)].with_code(length);
                code = next_code(code, length);
            }
            if length < main_bits {
                table.copy_within(..1 << length, 1 << length);
            }
        }
        let main = 1 << main_bits;
        let (mut end, mut prefix, mut start) = (main, main, 0);
        for length in main_bits + 1..=MAX_LENGTH as u32 {
            let count = self.counts[length as usize];
            for (left, symbol) in (1..=count).rev().zip(symbols.by_ref()) {
                if code % main != prefix {
                    prefix = code % main;
                    start = end;
                    // The subtable ends with the codes that fill it.
                    let (mut bits, mut codes) = (length - main_bits, left);
                    while codes < 1 << bits && main_bits + bits < MAX_LENGTH as u32 {
                        bits += 1;
                        codes = (codes << 1) + self.counts[(main_bits + bits) as usize];
                    }
                    end += 1 << bits;
                    table[prefix] = Entry::of_subtable(start, main_bits, bits);
                }
                let entry = entries[usize::from(*symbol)].with_code(length - main_bits);
                let to = table.get_mut(start..end).unwrap_or_default().iter_mut();
                to.skip(code >> main_bits).step_by(1 << (length - main_bits)).for_each(|to| *to = entry);
                code = next_code(code, length);
            }
        }
    }

    /// Gives lengths whose extra bits are in the index an entry for each value.
    fn expand(&self, table: &mut [Entry; LITERAL_ENTRIES]) {
        let (mut end, mut first_code) = (0, 0);
        for length in 1..=LITERAL_BITS {
            let count = self.counts[length as usize];
            let symbols = self.symbols.get(usize::from(end)..usize::from(end + count)).unwrap_or_default();
            for (code, symbol) in (first_code..first_code + count).zip(symbols).rev() {
                let entry = LITERALS[usize::from(*symbol) % MAX_SYMBOLS];
                if usize::from(*symbol) < FIRST_EXTRA {
                    break;
                }
                // Two symbols of the fixed code stand for nothing (section 3.2.6).
                if entry.stop().is_some() {
                    continue;
                }
                let bits = length + entry.bits();
                if entry.is_special() && bits <= LITERAL_BITS {
                    let code = usize::from(code.reverse_bits() >> (16 - length));
                    let mask = (1 << entry.bits()) - 1;
                    for (rest, index) in (0..).zip((code..1 << LITERAL_BITS).step_by(1 << length)) {
                        let value = entry.least() as u64 + (rest & mask);
                        table[index] = Entry(value << 16 | Entry::OTHER | u64::from(length << 8 | bits));
                    }
                }
            }
            end += count;
            first_code = (first_code + count) << 1;
        }
    }
}

/// The code after `code` of `length` bits; that after the last one does not matter.
#[inline(always)]
fn next_code(code: usize, length: u32) -> usize {
    // Adds one at the last bit, which is the highest here.
    let clear = !code & ((1 << length) - 1);
    let bit = 1 << clear.checked_ilog2().unwrap_or_default();
    code & (bit - 1) | bit
}

/// What the symbols of each alphabet stand for (section 3.2.5), without their codes.
const LITERALS: [Entry; MAX_SYMBOLS] = literals();
const DISTANCES: [Entry; 32] = distances();
const PRECODE: [Entry; 19] = precode();

const fn literals() -> [Entry; MAX_SYMBOLS] {
    let mut entries = [Entry::INVALID; MAX_SYMBOLS];
    let mut symbol = 0;
    while symbol < END_OF_BLOCK {
        entries[symbol] = Entry::of_literal(symbol);
        symbol += 1;
    }
    entries[END_OF_BLOCK] = Entry::END;
    let mut least = 3;
    while symbol < 284 {
        symbol += 1;
        let extra = if symbol < 265 { 0 } else { (symbol as u32 - 261) / 4 };
        entries[symbol] = Entry::of_value(least, extra);
        if extra > 0 {
            entries[symbol].0 |= Entry::SPECIAL;
        }
        least += 1 << extra;
    }
    entries[285] = Entry::of_value(258, 0);
    entries
}

const fn distances() -> [Entry; 32] {
    let mut entries = [Entry::INVALID; 32];
    let (mut symbol, mut least) = (0, 1);
    while symbol < 30 {
        let extra = if symbol < 4 { 0 } else { (symbol as u32 - 2) / 2 };
        entries[symbol] = Entry::of_value(least, extra);
        least += 1 << extra;
        symbol += 1;
    }
    entries
}

const fn precode() -> [Entry; 19] {
    let mut entries = [Entry(0); 19];
    let mut symbol = 0;
    while symbol < 19 {
        entries[symbol] = Entry::of_value(symbol as u64, 0);
        symbol += 1;
    }
    entries
}
