//! The anti-forensic splitter ("LUKS1 On-Disk Format Specification", version 1.2.3, section 2.4): a key is spread over many stripes, all
//! of which are needed to restore it.

use zeroize::Zeroizing;

use super::{Hash, random};
use crate::error::Result;

/// Restores a key of `len` bytes from its stripes. `None` unless there is at least one, and all are whole.
pub(crate) fn merge(stripes: &[u8], len: usize, hash: Hash) -> Option<Zeroizing<Vec<u8>>> {
    let (last, first) = split_last(stripes, len)?;
    let mut key = Zeroizing::new(vec![0; len]);
    for stripe in first.chunks_exact(len) {
        xor(&mut key, stripe);
        key = diffuse(&key, hash);
    }
    xor(&mut key, last);
    Some(key)
}

/// Spreads `key` over `count` stripes, at least one.
///
/// # Errors
/// If the system has no random numbers.
pub(crate) fn split(key: &[u8], count: usize, hash: Hash) -> Result<Zeroizing<Vec<u8>>> {
    let mut stripes = Zeroizing::new(vec![0; key.len() * count.saturating_sub(1)]);
    random(&mut stripes)?;
    let mut last = Zeroizing::new(vec![0; key.len()]);
    for stripe in stripes.chunks_exact(key.len().max(1)) {
        xor(&mut last, stripe);
        last = diffuse(&last, hash);
    }
    xor(&mut last, key);
    Ok(Zeroizing::new([&stripes[..], &last[..]].concat()))
}

/// The last stripe, and the ones before it.
fn split_last(stripes: &[u8], len: usize) -> Option<(&[u8], &[u8])> {
    if len == 0 || !stripes.len().is_multiple_of(len) {
        return None;
    }
    let (first, last) = stripes.split_at_checked(stripes.len().checked_sub(len)?)?;
    Some((last, first))
}

/// The function H1: each part of the length of a digest is replaced by the digest of its number and itself, cut off for the last one.
fn diffuse(key: &[u8], hash: Hash) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(key.len()));
    for (number, part) in (0_u32..).zip(key.chunks(hash.len())) {
        let digest = hash.digest(&[&number.to_be_bytes(), part]);
        out.extend(digest.iter().take(part.len()));
    }
    out
}

fn xor(key: &mut [u8], stripe: &[u8]) {
    key.iter_mut().zip(stripe).for_each(|(key, byte)| *key ^= byte);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn a_split_key_is_restored_from_all_stripes_only(
            key in prop::collection::vec(any::<u8>(), 1..70),
            count in 1usize..20,
            hash in prop::sample::select(Hash::ALL.to_vec()),
            (at, bit) in (any::<prop::sample::Index>(), 0u8..8),
        ) {
            let mut stripes = split(&key, count, hash).unwrap();
            prop_assert_eq!(stripes.len(), key.len() * count);
            prop_assert_eq!(&merge(&stripes, key.len(), hash).unwrap()[..], &key[..]);
            let at = at.index(stripes.len());
            stripes[at] ^= 1 << bit;
            prop_assert_ne!(&merge(&stripes, key.len(), hash).unwrap()[..], &key[..]);
        }
    }

    #[test]
    fn parts_of_stripes_are_refused() {
        for (len, stripe) in [(0, 4), (3, 4), (5, 4), (4, 0)] {
            assert!(merge(&vec![0; len], stripe, Hash::Sha1).is_none());
        }
    }
}
