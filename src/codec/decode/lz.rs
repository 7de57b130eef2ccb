//! What the decoders of this crate have in common: an input of bytes, and an output of literals and matches.

use super::DecodeError;
use crate::codec::Codec;

/// Why a payload does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It ends too early.
    Short,
    /// It holds more than the output can take.
    Long,
    /// It breaks a rule.
    Invalid(&'static str),
}

impl Fault {
    /// The error, after `got` of `want` bytes.
    pub fn error(self, codec: Codec, got: usize, want: usize) -> DecodeError {
        match self {
            Fault::Short => DecodeError::Short { codec, got, want, ended: false },
            Fault::Long => DecodeError::Long { codec, want },
            Fault::Invalid(reason) => DecodeError::invalid(codec, reason),
        }
    }
}

/// The rest of a payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Takes the next `len` bytes.
    #[inline]
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Fault::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Takes the next `N` bytes.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Fault::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    #[inline]
    pub fn byte(&mut self) -> Result<u8, Fault> {
        self.array().map(|[byte]| byte)
    }

    /// Takes a little-endian number.
    pub fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }
}

/// The decoded bytes.
pub(super) struct Output<'a> {
    pub bytes: &'a mut [u8],
    /// Number of bytes decoded.
    pub got: usize,
}

impl Output<'_> {
    /// Appends `literals`.
    #[inline]
    pub fn literals(&mut self, literals: &[u8]) -> Result<(), Fault> {
        let room = self.bytes.get_mut(self.got..).and_then(|rest| rest.get_mut(..literals.len())).ok_or(Fault::Long)?;
        room.copy_from_slice(literals);
        self.got += literals.len();
        Ok(())
    }

    /// Appends `len` bytes that begin `distance` bytes before the end. They may overlap those that are appended.
    #[inline]
    pub fn copy(&mut self, distance: usize, len: usize) -> Result<(), Fault> {
        let from = self.got.checked_sub(distance).filter(|_| distance > 0);
        let from = from.ok_or(Fault::Invalid("a match begins before the data"))?;
        if len > self.bytes.len() - self.got {
            return Err(Fault::Long);
        }
        // What is copied repeats with a period of the distance, so that each step can copy all that precedes it.
        let mut left = len;
        while left > 0 {
            let step = left.min(self.got - from);
            self.bytes.copy_within(from..from + step, self.got);
            self.got += step;
            left -= step;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn matches_equal_those_of_a_naive_copy(start in prop::collection::vec(any::<u8>(), 1..40), distance in 1usize..50, len in 0usize..200) {
            let mut bytes = vec![0; 200];
            let mut output = Output { bytes: &mut bytes, got: 0 };
            output.literals(&start).unwrap();
            let result = output.copy(distance, len);
            let got = output.got;
            if distance > start.len() {
                prop_assert_eq!(result, Err(Fault::Invalid("a match begins before the data")));
            } else if start.len() + len > 200 {
                prop_assert_eq!(result, Err(Fault::Long));
            } else {
                let mut naive = start.clone();
                (0..len).for_each(|_| naive.push(naive[naive.len() - distance]));
                prop_assert_eq!(&bytes[..got], naive);
            }
        }
    }
}
