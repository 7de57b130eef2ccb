//! The alphabets of DEFLATE (RFC 1951, section 3.2.5), and what a parse makes of the data.

/// The shortest match.
pub(super) const MIN_MATCH: usize = 3;
/// The longest match.
pub(super) const MAX_MATCH: usize = 258;
/// The symbol that ends a block.
pub(super) const END_OF_BLOCK: usize = 256;
/// Literals, the end of a block, lengths.
pub(super) const LITERAL_SYMBOLS: usize = 286;
/// Distances.
pub(super) const DISTANCE_SYMBOLS: usize = 30;

/// Extra bits of each length symbol, from 257.
pub(super) const LENGTH_EXTRA: [u8; 29] =
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];

/// Extra bits of each distance symbol; none for what is not a symbol.
pub(super) const DISTANCE_EXTRA: [u8; SLOTS] =
    [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 0, 0];

/// The shortest length of each length symbol, less [`MIN_MATCH`].
pub(super) const LENGTH_BASE: [u8; 29] = length_bases();

/// The length symbol of each length, less 257; indexed by the length less [`MIN_MATCH`].
pub(super) const LENGTH_SLOT: [u8; 256] = length_slots();

const fn length_bases() -> [u8; 29] {
    let (mut bases, mut slot, mut base) = ([0; 29], 0, 0);
    while slot < 28 {
        bases[slot] = base as u8;
        base += 1 << LENGTH_EXTRA[slot];
        slot += 1;
    }
    // The longest match has a symbol of its own, although the one before could state it.
    bases[28] = 255;
    bases
}

const fn length_slots() -> [u8; 256] {
    let (mut slots, mut slot, mut length) = ([0; 256], 0, 0);
    while length < 256 {
        while slot < 28 && length >= LENGTH_BASE[slot + 1] as usize {
            slot += 1;
        }
        slots[length] = slot as u8;
        length += 1;
    }
    slots
}

/// The symbol of a distance, and its number of extra bits, which are the low bits of the distance less 1.
#[inline]
pub(super) fn distance_slot(distance: u32) -> (usize, u32) {
    let rest = distance.wrapping_sub(1);
    if rest < 4 {
        return (rest as usize, 0);
    }
    // From 4 on there are two symbols for each power of two.
    let log = 31 - rest.leading_zeros();
    ((2 * log + (rest >> (log - 1) & 1)) as usize, log - 1)
}

/// A match; its length is 0 if there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Match {
    /// From 3 to 258.
    pub(super) length: u16,
    /// From 1 to 32768.
    pub(super) distance: u16,
}

impl Match {
    pub(super) const NONE: Match = Match { length: 0, distance: 0 };
}

/// Number of values that [`Token::symbol`] has.
pub(super) const TOKEN_SYMBOLS: usize = 512;
/// Number of values that [`Token::slot`] has.
pub(super) const SLOTS: usize = 32;
/// The slot of a literal.
const NO_SLOT: u32 = 31;

/// A literal, or a match: its length, the symbol of its distance, and the extra bits of the distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token(u32);

impl Token {
    #[inline(always)]
    pub(super) fn literal(byte: u8) -> Self {
        Token(u32::from(byte) | NO_SLOT << 9)
    }

    /// A match, which is not [`Match::NONE`].
    #[inline(always)]
    pub(super) fn matched(Match { length, distance }: Match) -> Self {
        let length = u32::from(length.wrapping_sub(MIN_MATCH as u16)) & 0xff;
        let (slot, extra) = distance_slot(distance.into());
        let rest = u32::from(distance.wrapping_sub(1)) & ((1 << extra) - 1);
        Token(256 | length | (slot as u32) << 9 | rest << 14)
    }

    /// The literal, or 256 and the length less [`MIN_MATCH`].
    #[inline(always)]
    pub(super) fn symbol(self) -> usize {
        self.0 as usize % TOKEN_SYMBOLS
    }

    /// The symbol of the distance; another value for a literal.
    #[inline(always)]
    pub(super) fn slot(self) -> usize {
        (self.0 >> 9) as usize % SLOTS
    }

    /// The extra bits of the distance.
    #[inline(always)]
    pub(super) fn extra(self) -> u32 {
        self.0 >> 14
    }
}

/// How often each symbol occurs.
#[derive(Clone)]
pub(super) struct Histogram {
    pub(super) literals: [u32; LITERAL_SYMBOLS],
    pub(super) distances: [u32; DISTANCE_SYMBOLS],
}

impl Histogram {
    pub(super) const EMPTY: Histogram = Histogram { literals: [0; LITERAL_SYMBOLS], distances: [0; DISTANCE_SYMBOLS] };

    /// The symbols of `tokens`, without an end of block, and the number of bytes that they stand for.
    pub(super) fn of(tokens: &[Token]) -> (Self, usize) {
        // Two of each, so that equal symbols in a row do not wait for each other.
        let (mut symbols, mut slots) = ([[0_u32; TOKEN_SYMBOLS]; 2], [[0_u32; SLOTS]; 2]);
        let (pairs, rest) = tokens.as_chunks::<2>();
        for [first, second] in pairs {
            symbols[0][first.symbol()] += 1;
            slots[0][first.slot()] += 1;
            symbols[1][second.symbol()] += 1;
            slots[1][second.slot()] += 1;
        }
        for token in rest {
            symbols[0][token.symbol()] += 1;
            slots[0][token.slot()] += 1;
        }
        let mut histogram = Histogram::EMPTY;
        let mut data_len = 0;
        let counts = symbols[0].iter().zip(&symbols[1]).map(|(first, second)| first + second);
        for (symbol, count) in counts.enumerate() {
            match symbol {
                0..=255 => {
                    histogram.literals[symbol] = count;
                    data_len += count as usize;
                }
                _ => {
                    histogram.literals[END_OF_BLOCK + 1 + usize::from(LENGTH_SLOT[symbol - 256])] += count;
                    data_len += count as usize * (symbol - 256 + MIN_MATCH);
                }
            }
        }
        let counts = slots[0].iter().zip(&slots[1]).map(|(first, second)| first + second);
        histogram.distances.iter_mut().zip(counts).for_each(|(to, count)| *to = count);
        (histogram, data_len)
    }

    pub(super) fn add(&mut self, other: &Histogram) {
        self.literals.iter_mut().zip(&other.literals).for_each(|(to, from)| *to += from);
        self.distances.iter_mut().zip(&other.distances).for_each(|(to, from)| *to += from);
    }
}

/// Tokens of a stretch of data.
pub(super) struct Tokens {
    list: Box<[Token; CAPACITY]>,
    count: usize,
}

/// The most tokens, one for each byte.
pub(super) const CAPACITY: usize = 1 << 17;

impl Tokens {
    pub(super) fn new() -> Self {
        let list = vec![Token(0); CAPACITY].into_boxed_slice();
        Tokens { list: list.try_into().unwrap_or_else(|_| unreachable!()), count: 0 }
    }

    pub(super) fn clear(&mut self) {
        self.count = 0;
    }

    /// Adds a token.
    #[inline(always)]
    pub(super) fn push(&mut self, token: Token) {
        self.list[self.count % CAPACITY] = token;
        self.count += 1;
    }

    #[inline(always)]
    pub(super) fn extend(&mut self, tokens: impl Iterator<Item = Token>) {
        tokens.for_each(|token| self.push(token));
    }

    pub(super) fn as_slice(&self) -> &[Token] {
        self.list.get(..self.count).unwrap_or_default()
    }
}
