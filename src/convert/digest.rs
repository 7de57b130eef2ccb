//! The digest of the content of a new image, from which reproducible identifiers are derived.
//!
//! It is the sum of the hashes of all pieces that are not zeros. A sum does not depend on the order of the pieces, and small pieces
//! do not depend on what else is stored with them, so that the digest is the same for any number of threads, any format of
//! the source, and with all zeros stored or none.

use std::ops::Range;

use twox_hash::XxHash3_128;

use crate::zero;

/// Guest bytes hashed at once: the default unit of zero detection.
const PIECE: u64 = 4096;

/// The digest of `bytes` at guest offset `offset`.
pub(super) fn of_data(bytes: &[u8], offset: u64) -> u128 {
    let (first, rest) = bytes.split_at(bytes.len().min((PIECE - offset % PIECE) as usize));
    let aligned = offset + first.len() as u64;
    let pieces = (aligned..).step_by(PIECE as usize).zip(rest.chunks(PIECE as usize));
    let pieces = [(offset, first)].into_iter().chain(pieces).filter(|(_, piece)| !zero::is_zero(piece));
    pieces.fold(0, |sum, (at, piece)| {
        // Formats pad the last sector of a disk with zeros.
        let len = piece.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        sum.wrapping_add(XxHash3_128::oneshot_with_seed(at, piece.get(..len).unwrap_or_default()))
    })
}

/// The digest of a guest range of zeros that hide data of a backing file.
pub(super) fn of_zeros(guest: &Range<u64>) -> u128 {
    let starts = (guest.start / PIECE * PIECE..guest.end).step_by(PIECE as usize);
    let pieces = starts.map(|at| at.max(guest.start)..(at + PIECE).min(guest.end));
    // Offsets are even, so that no data has this seed.
    pieces.fold(0, |sum, Range { start, end }| {
        sum.wrapping_add(XxHash3_128::oneshot_with_seed(start | 1, &(end - start).to_le_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    #[test]
    fn the_digest_does_not_depend_on_how_the_data_is_cut() {
        let mut bytes = noise(10 * PIECE, 1);
        bytes[3 * PIECE as usize..5 * PIECE as usize].fill(0);
        let whole = of_data(&bytes, PIECE);
        let parts = [0..3, 5..6, 6..10].map(|part: Range<u64>| {
            of_data(&bytes[(part.start * PIECE) as usize..(part.end * PIECE) as usize], (part.start + 1) * PIECE)
        });
        assert_eq!(parts.iter().fold(0u128, |sum, part| sum.wrapping_add(*part)), whole);
        // The first piece is shorter where the range does not begin with one.
        let (first, rest) = (&bytes[512..PIECE as usize], &bytes[PIECE as usize..]);
        let cut = of_data(first, PIECE + 512).wrapping_add(of_data(rest, 2 * PIECE));
        assert_eq!(of_data(&bytes[512..], PIECE + 512), cut);
        assert_ne!(of_data(&bytes, 2 * PIECE), whole, "at another offset");
        bytes[20_000] ^= 1;
        assert_ne!(of_data(&bytes, PIECE), whole);
        assert_eq!(of_data(&[0; 10_000], 512), 0);
        assert_eq!(of_data(b"padded\0\0", 512), of_data(b"padded", 512));
        let zeros = of_zeros(&(512..3 * PIECE));
        assert_eq!(zeros, of_zeros(&(512..PIECE)).wrapping_add(of_zeros(&(PIECE..3 * PIECE))));
        assert_ne!(zeros, of_zeros(&(0..3 * PIECE)));
        let [first, second, part] = [0..PIECE, PIECE..2 * PIECE, 512..PIECE].map(|guest| of_zeros(&guest));
        assert!(first != second && first != part && part != 0);
    }

    #[test]
    fn the_digest_stays_the_same_in_all_versions() {
        assert_eq!(of_data(b"guest", 512), 242_359_365_962_714_779_915_755_674_432_592_586_503);
        assert_eq!(of_zeros(&(512..1024)), 140_358_633_613_568_862_629_081_591_968_987_385_909);
    }
}
