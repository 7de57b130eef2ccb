//! Bits, from the least significant bit of each byte (RFC 1951, section 3.1.1).

/// Reads bits of a stream that may be truncated.
pub(super) struct BitReader<'a> {
    pub(super) input: &'a [u8],
    /// Offset of the first byte of which `count` counts no bit.
    pub(super) next: usize,
    /// The next bits. Those above `count` are clear, or as they are in the input.
    pub(super) bits: u64,
    /// Number of bits, at most 63.
    pub(super) count: u32,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        BitReader { input, next: 0, bits: 0, count: 0 }
    }

    /// Adds bits until there are 56 at least, or all that are left.
    pub(super) fn refill(&mut self) {
        if refill(self.input, &mut self.next, &mut self.bits, &mut self.count) {
            return;
        }
        while self.count < 56
            && let Some(byte) = self.input.get(self.next)
        {
            self.bits |= u64::from(*byte) << self.count;
            self.next += 1;
            self.count += 8;
        }
    }

    /// The next `count` bits, at most 32; `None` if they are missing.
    pub(super) fn take(&mut self, count: u32) -> Option<u32> {
        if self.count < count {
            self.refill();
        }
        let value = self.bits & ((1 << count) - 1);
        self.consume(count).then_some(value as u32)
    }

    /// Removes bits; returns `false` if they are missing.
    pub(super) fn consume(&mut self, count: u32) -> bool {
        if count > self.count {
            return false;
        }
        self.bits >>= count;
        self.count -= count;
        true
    }

    /// Skips the bits up to the next byte, and returns the bytes from there on.
    pub(super) fn align(&mut self) -> &'a [u8] {
        self.next = self.taken();
        (self.bits, self.count) = (0, 0);
        self.input.get(self.next..).unwrap_or_default()
    }

    /// Number of bytes that have been read, the last one perhaps in part.
    pub(super) fn taken(&self) -> usize {
        self.next - (self.count / 8) as usize
    }
}

/// Adds bits until there are 56 at least, if eight bytes are left; returns whether they are. Only the low six bits of `count` are looked at.
#[inline(always)]
pub(super) fn refill(input: &[u8], next: &mut usize, bits: &mut u64, count: &mut u32) -> bool {
    let word = input.get(*next..).and_then(|rest| rest.first_chunk());
    if let Some(word) = word {
        *bits |= u64::from_le_bytes(*word) << (*count & 63);
        *next += (!*count >> 3 & 7) as usize;
        *count |= 56;
    }
    word.is_some()
}
