//! The bits of two bitmaps, which may have different granularities.

use std::ops::Range;

use crate::driver::DirtyBitmap;
use crate::error::{Error, Result};
use crate::io::ReadAt;

/// Bytes of bits that are read at a time.
const CHUNK: u64 = 64 << 10;

/// A bitmap with the bits of another one.
pub(in crate::format::qcow2) struct Union<'a> {
    /// Its own bits.
    pub old: &'a dyn ReadAt,
    /// Guest bytes for each of its bits, a power of two.
    pub granularity: u64,
    pub source: &'a DirtyBitmap,
    /// Of the disk, in bytes.
    pub size: u64,
}

impl Union<'_> {
    /// Reads the bits from byte `at` on. After the end of the disk they are 0.
    pub fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        read_padded(self.old, buf, at)?;
        let per_byte = self.granularity * 8;
        let start = at.saturating_mul(per_byte).min(self.size);
        let guest = start..start.saturating_add((buf.len() as u64).saturating_mul(per_byte)).min(self.size);
        if guest.is_empty() {
            return Ok(());
        }
        let granularity = self.source.granularity.max(1);
        let bits = guest.start / granularity..guest.end.div_ceil(granularity);
        let mut chunk = [0; CHUNK as usize];
        for from in (bits.start / 8..bits.end.div_ceil(8)).step_by(CHUNK as usize) {
            let len = (bits.end.div_ceil(8) - from).min(CHUNK) as usize;
            let (bytes, _) = chunk.split_at_mut(len);
            read_padded(&*self.source.bits, bytes, from)?;
            for (number, byte) in (from * 8..).step_by(8).zip(bytes.iter()).filter(|(_, byte)| **byte != 0) {
                let set = (0..8).filter(|bit| byte >> bit & 1 != 0).map(|bit| number + bit);
                for bit in set.filter(|bit| bits.contains(bit)) {
                    let covered = (bit * granularity).max(guest.start)..((bit + 1) * granularity).min(guest.end);
                    let first = covered.start / self.granularity - at * 8;
                    set_bits(buf, first..covered.end.div_ceil(self.granularity) - at * 8);
                }
            }
        }
        Ok(())
    }
}

/// Reads bits, of which those that are missing are 0.
fn read_padded(bits: &dyn ReadAt, buf: &mut [u8], at: u64) -> Result<()> {
    let size = bits.size().map_err(Error::io("reading the size of a bitmap", None))?;
    let stored = size.saturating_sub(at).min(buf.len() as u64);
    let (head, tail) = buf.split_at_mut(stored as usize);
    tail.fill(0);
    bits.read_exact_at(head, at).map_err(Error::io("reading a bitmap", at))
}

/// Sets bits, of which number 0 is the least significant one of the first byte.
pub(in crate::format::qcow2) fn set_bits(bytes: &mut [u8], bits: Range<u64>) {
    let mut bit = bits.start;
    while bit < bits.end {
        let Some(byte) = bytes.get_mut((bit / 8) as usize) else { return };
        if bit.is_multiple_of(8) && bits.end - bit >= 8 {
            *byte = 0xff;
            bit += 8;
        } else {
            *byte |= 1 << (bit % 8);
            bit += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::io::MemFile;

    fn is_set(bytes: &[u8], bit: u64) -> bool {
        bytes.get((bit / 8) as usize).is_some_and(|byte| byte >> (bit % 8) & 1 != 0)
    }

    proptest! {
        /// A bit is set if it was, or if a bit of the other bitmap covers a part of its range.
        #[test]
        fn bits_of_other_granularities(
            old in proptest::collection::vec(any::<u8>(), 0..4),
            bits in proptest::collection::vec(any::<u8>(), 0..32),
            granularities in (9_u32..14, 9_u32..14),
            size in 1_u64..100_000,
            at in 0_u64..3,
        ) {
            let (own, other) = (1 << granularities.0, 1 << granularities.1);
            let source = DirtyBitmap::new("b", other, Arc::new(MemFile::from(bits.clone())));
            let own_bits = MemFile::from(old.clone());
            let union = Union { old: &own_bits, granularity: own, source: &source, size };
            let mut found = [0; 2];
            union.read(&mut found, at).unwrap();
            for bit in 0..16 {
                let guest = (at * 8 + bit) * own..((at * 8 + bit + 1) * own).min(size);
                let covers = (guest.start / other..guest.end.div_ceil(other)).any(|bit| is_set(&bits, bit));
                let expected = is_set(&old, at * 8 + bit) || !guest.is_empty() && covers;
                prop_assert_eq!(is_set(&found, bit), expected, "bit {}", bit);
            }
        }
    }
}
