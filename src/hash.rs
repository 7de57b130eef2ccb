//! Digests of whole disks.

use std::fmt;
use std::str::FromStr;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha512};

use crate::error::{Error, Result};

/// A hash function for [`Converter::hash`](crate::Converter::hash).
///
/// ```
/// use diskimage::HashAlgorithm;
///
/// assert_eq!("sha256".parse::<HashAlgorithm>()?, HashAlgorithm::Sha256);
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HashAlgorithm {
    /// By far the fastest: the only one that several threads compute.
    Blake3,
    /// For comparison with lists that have nothing else: collisions are easily made.
    Md5,
    /// As MD5.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl HashAlgorithm {
    /// All algorithms.
    pub const ALL: [HashAlgorithm; 5] =
        [HashAlgorithm::Blake3, HashAlgorithm::Md5, HashAlgorithm::Sha1, HashAlgorithm::Sha256, HashAlgorithm::Sha512];

    /// The name: "sha256".
    pub const fn name(self) -> &'static str {
        match self {
            HashAlgorithm::Blake3 => "blake3",
            HashAlgorithm::Md5 => "md5",
            HashAlgorithm::Sha1 => "sha1",
            HashAlgorithm::Sha256 => "sha256",
            HashAlgorithm::Sha512 => "sha512",
        }
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HashAlgorithm {
    type Err = Error;

    /// # Errors
    /// [`Error::Usage`] for another name.
    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|algorithm| algorithm.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::Usage(format!("unknown hash algorithm '{name}': expected {names}"))
        })
    }
}

/// A digest, which is displayed as lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Digest {
    algorithm: HashAlgorithm,
    bytes: Vec<u8>,
}

impl Digest {
    /// The hash function.
    pub fn algorithm(&self) -> HashAlgorithm {
        self.algorithm
    }

    /// The digest in bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Hashes a disk whose parts are given in order. What does not depend on the order is done before: [`part`](Hasher::part).
pub(crate) enum Hasher {
    Blake3(Box<Tree>),
    Md5(Md5),
    Sha1(Sha1),
    Sha256(Sha256),
    Sha512(Sha512),
}

/// A part of a disk that is to be added.
pub(crate) enum Part<'a> {
    Bytes(&'a [u8]),
    Subtrees(Vec<ChainingValue>),
}

impl Hasher {
    /// Parts of a disk begin at multiples of it, in bytes.
    pub const UNIT: u64 = 1 << 20;

    pub fn new(algorithm: HashAlgorithm) -> Hasher {
        match algorithm {
            HashAlgorithm::Blake3 => Hasher::Blake3(Box::default()),
            HashAlgorithm::Md5 => Hasher::Md5(Md5::new()),
            HashAlgorithm::Sha1 => Hasher::Sha1(Sha1::new()),
            HashAlgorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            HashAlgorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    /// The part of a disk of `total` bytes that begins at `start`, a multiple of [`UNIT`](Self::UNIT). All parts but the last are multiples of
    /// it. Any number of threads does this at once, and most of the work of BLAKE3 is done here.
    pub fn part(algorithm: HashAlgorithm, bytes: &[u8], start: u64, total: u64) -> Part<'_> {
        if algorithm != HashAlgorithm::Blake3 || total <= Self::UNIT {
            return Part::Bytes(bytes);
        }
        let units = (start..).step_by(Self::UNIT as usize).zip(bytes.chunks(Self::UNIT as usize));
        Part::Subtrees(
            units
                .map(|(at, unit)| blake3::Hasher::new().set_input_offset(at).update(unit).finalize_non_root())
                .collect(),
        )
    }

    /// Adds the part after the last one.
    pub fn add(&mut self, part: Part<'_>) {
        match (self, part) {
            (Hasher::Blake3(tree), Part::Subtrees(subtrees)) => {
                subtrees.into_iter().for_each(|subtree| tree.push(subtree))
            }
            (Hasher::Blake3(tree), Part::Bytes(bytes)) => {
                tree.small.update(bytes);
            }
            (Hasher::Md5(state), Part::Bytes(bytes)) => state.update(bytes),
            (Hasher::Sha1(state), Part::Bytes(bytes)) => state.update(bytes),
            (Hasher::Sha256(state), Part::Bytes(bytes)) => state.update(bytes),
            (Hasher::Sha512(state), Part::Bytes(bytes)) => state.update(bytes),
            // Only BLAKE3 has them.
            (_, Part::Subtrees(_)) => {}
        }
    }

    pub fn finish(self) -> Digest {
        let (algorithm, bytes) = match self {
            Hasher::Blake3(tree) => (HashAlgorithm::Blake3, tree.root().as_bytes().to_vec()),
            Hasher::Md5(state) => (HashAlgorithm::Md5, state.finalize().to_vec()),
            Hasher::Sha1(state) => (HashAlgorithm::Sha1, state.finalize().to_vec()),
            Hasher::Sha256(state) => (HashAlgorithm::Sha256, state.finalize().to_vec()),
            Hasher::Sha512(state) => (HashAlgorithm::Sha512, state.finalize().to_vec()),
        };
        Digest { algorithm, bytes }
    }
}

/// The tree of BLAKE3 (specification, section 2.1): its leaves are subtrees of one unit, the last one may be shorter.
#[derive(Default)]
pub(crate) struct Tree {
    /// A disk of at most one unit is hashed as a whole, since its only subtree is the root.
    small: blake3::Hasher,
    /// Complete subtrees to the left, the largest first.
    stack: Vec<ChainingValue>,
    /// Number of units so far.
    count: u64,
}

impl Tree {
    fn push(&mut self, unit: ChainingValue) {
        // One subtree for each bit of the count. This is done late because the last merge is another one.
        while self.stack.len() > self.count.count_ones() as usize {
            let (Some(right), Some(left)) = (self.stack.pop(), self.stack.pop()) else { return };
            self.stack.push(merge_subtrees_non_root(&left, &right, Mode::Hash));
        }
        self.stack.push(unit);
        self.count += 1;
    }

    fn root(mut self) -> blake3::Hash {
        let Some(mut right) = self.stack.pop() else { return self.small.finalize() };
        while let Some(left) = self.stack.pop() {
            if self.stack.is_empty() {
                return merge_subtrees_root(&left, &right, Mode::Hash);
            }
            right = merge_subtrees_non_root(&left, &right, Mode::Hash);
        }
        self.small.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    fn digest(algorithm: HashAlgorithm, bytes: &[u8], part_len: usize) -> String {
        let mut hasher = Hasher::new(algorithm);
        for (start, part) in (0..).step_by(part_len).zip(bytes.chunks(part_len)) {
            hasher.add(Hasher::part(algorithm, part, start, bytes.len() as u64));
        }
        hasher.finish().to_string()
    }

    /// The digests of "abc": RFC 1321, FIPS 180-4, and the test vectors of BLAKE3.
    #[test]
    fn known_digests() {
        for (algorithm, expected) in [
            (HashAlgorithm::Md5, "900150983cd24fb0d6963f7d28e17f72"),
            (HashAlgorithm::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (HashAlgorithm::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (HashAlgorithm::Blake3, "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"),
        ] {
            assert_eq!(digest(algorithm, b"abc", 1 << 20), expected);
            assert_eq!(algorithm.to_string().parse::<HashAlgorithm>().unwrap(), algorithm);
        }
        assert!(digest(HashAlgorithm::Sha512, b"abc", 1 << 20).starts_with("ddaf35a193617abacc417349ae204131"));
        assert_eq!("SHA256".parse::<HashAlgorithm>().unwrap_err().kind().as_str(), "usage");
    }

    #[test]
    fn the_parts_of_a_tree_make_the_digest_of_the_whole() {
        const UNIT: usize = Hasher::UNIT as usize;
        let bytes = noise(9 * Hasher::UNIT + 5000, 1);
        for len in (0..=9 * UNIT).step_by(UNIT).flat_map(|len| [len, len + 1, len + 5000]) {
            let expected = blake3::hash(&bytes[..len]).to_string();
            for part_len in [UNIT, 4 * UNIT] {
                assert_eq!(digest(HashAlgorithm::Blake3, &bytes[..len], part_len), expected, "{len} bytes");
            }
        }
    }
}
