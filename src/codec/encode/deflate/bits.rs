//! Bits, from the least significant bit of each byte (RFC 1951, section 3.1.1).

/// Writes bits into a buffer that may be too short for them.
pub(super) struct BitWriter<'a> {
    out: &'a mut [u8],
    /// Whole bytes in `out`.
    len: usize,
    bits: u64,
    /// Number of bits in `bits`, below 64; those above are clear.
    count: u32,
    overflow: bool,
}

impl<'a> BitWriter<'a> {
    /// Writes from the beginning of `out`, which needs [`SLACK`] bytes more than what is written.
    pub(super) fn new(out: &'a mut [u8]) -> Self {
        BitWriter { out, len: 0, bits: 0, count: 0, overflow: false }
    }

    /// Adds the low `count` bits of `bits`; the others are clear. At most 63 bits fit, 7 of which [`flush`](Self::flush) may leave.
    #[inline]
    pub(super) fn add(&mut self, bits: u64, count: u32) {
        self.bits |= bits << (self.count & 63);
        self.count += count;
    }

    /// Moves whole bytes to the buffer.
    #[inline]
    pub(super) fn flush(&mut self) {
        match self.out.get_mut(self.len..).and_then(|rest| rest.first_chunk_mut()) {
            Some(chunk) => *chunk = self.bits.to_le_bytes(),
            None => self.overflow = true,
        }
        self.len += (self.count >> 3) as usize;
        self.bits >>= self.count & 56;
        self.count &= 7;
    }

    /// Adds bits and moves them to the buffer.
    #[inline(always)]
    pub(super) fn put(&mut self, bits: u64, count: u32) {
        self.add(bits, count);
        self.flush();
    }

    /// Number of bits so far.
    pub(super) fn bit_len(&self) -> usize {
        self.len * 8 + self.count as usize
    }

    /// Adds clear bits up to the next byte.
    pub(super) fn align(&mut self) {
        self.put(0, self.count.wrapping_neg() & 7);
    }

    /// Adds whole bytes, after [`align`](Self::align).
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        match self.out.get_mut(self.len..).and_then(|rest| rest.get_mut(..bytes.len())) {
            Some(to) => to.copy_from_slice(bytes),
            None => self.overflow = true,
        }
        self.len += bytes.len();
    }

    /// The number of bytes written, the last one filled up with clear bits; `None` if they did not fit.
    pub(super) fn finish(mut self) -> Option<usize> {
        self.align();
        (!self.overflow && self.len <= self.out.len()).then_some(self.len)
    }
}

/// Bytes that a buffer needs beyond those that are written: words are written whole.
pub(super) const SLACK: usize = 8;
