//! The bytes that a parse looks at: a ring of twice the largest window.
//!
//! Positions modulo its size are of type `u16`, so that no index into it, and no entry of a match finder, can be out of bounds. An entry that is
//! wrong after all is a candidate like any other: what it points to is compared.

/// Bytes in the ring.
pub(super) const RING: usize = 1 << 16;
/// The largest window (RFC 1951, section 2).
pub(super) const MAX_WINDOW: usize = RING / 2;
/// Bytes at the end of the ring that repeat its beginning.
const MIRROR: usize = 8;

pub(super) struct Window {
    ring: Box<[u8; RING + MIRROR]>,
}

impl Window {
    pub(super) fn new() -> Self {
        Window { ring: Box::new([0; RING + MIRROR]) }
    }

    /// Adds the bytes of `data` from `start` to `end`, which are at most [`RING`], and replace as many that are older.
    pub(super) fn load(&mut self, data: &[u8], start: usize, end: usize) {
        let mut bytes = data.get(start..end).unwrap_or_default();
        let mut at = start % RING;
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(RING - at));
            if let Some(to) = self.ring.get_mut(at..at + part.len()) {
                to.copy_from_slice(part);
            }
            (bytes, at) = (rest, 0);
        }
        self.ring.copy_within(..MIRROR, RING);
    }

    #[inline(always)]
    pub(super) fn byte(&self, at: u16) -> u8 {
        self.ring[usize::from(at)]
    }

    /// Four bytes.
    #[inline(always)]
    pub(super) fn word(&self, at: u16) -> u32 {
        let at = usize::from(at);
        u32::from_le_bytes([self.ring[at], self.ring[at + 1], self.ring[at + 2], self.ring[at + 3]])
    }

    /// Eight bytes.
    #[inline(always)]
    fn double_word(&self, at: u16) -> u64 {
        let at = usize::from(at);
        u64::from_le_bytes(std::array::from_fn(|index| self.ring[at + index]))
    }

    /// The number of equal bytes at `old` and `new`, `max` at most, the first `known` of which are known to be equal.
    #[inline(always)]
    pub(super) fn match_len(&self, old: u16, new: u16, known: u16, max: u16) -> u16 {
        let mut len = known;
        while len < max {
            let difference = self.double_word(old.wrapping_add(len)) ^ self.double_word(new.wrapping_add(len));
            if difference != 0 {
                return max.min(len + (difference.trailing_zeros() / 8) as u16);
            }
            len += 8;
        }
        max
    }
}

/// Bytes that are hashed.
pub(super) const HASHED: u16 = 4;

/// A hash of `bits` bits: the high bits of a product (D. E. Knuth: The Art of Computer Programming, volume 3, section 6.4).
#[inline(always)]
pub(super) fn hash(word: u32, bits: u32) -> usize {
    (word.wrapping_mul(0x9e37_79b1) >> (32 - bits)) as usize
}

/// A hash of the first three bytes of a word.
#[inline(always)]
pub(super) fn short_hash(word: u32, bits: u32) -> usize {
    hash(word << 8, bits)
}
