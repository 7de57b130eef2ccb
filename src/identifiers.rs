//! Identifiers in new images: all of them come from here.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use crate::io::unix_time;
use crate::options::Options;

/// Where the identifiers and times in new images come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identifiers {
    /// From the system's source of randomness and its clock. As [`Reproducible`](Self::Reproducible) with time 0 on
    /// `wasm32-unknown-unknown`, which has neither: state a time there, and options that differ for images that must differ.
    Random,
    /// Derived from the format, size and options of the image, so that making it again gives the same bytes.
    Reproducible {
        /// When the image was made, as far as it says so: seconds since 1970.
        time: u64,
    },
}

impl Identifiers {
    /// Reproducible if the environment has `SOURCE_DATE_EPOCH`, and random otherwise. What is no number there means 0.
    ///
    /// See <https://reproducible-builds.org/specs/source-date-epoch/>.
    pub fn from_env() -> Self {
        match std::env::var_os("SOURCE_DATE_EPOCH") {
            Some(text) => {
                let time = text.to_str().and_then(|text| text.parse().ok()).unwrap_or_default();
                Identifiers::Reproducible { time }
            }
            None => Identifiers::Random,
        }
    }

    /// Those for one image.
    pub fn for_image(self, format: &str, size: u64, options: &Options) -> ImageIdentifiers {
        match (self, unix_time()) {
            (Identifiers::Random, Some(time)) => {
                // Each state has keys of its own, from the system's source of randomness.
                let random = || RandomState::new().build_hasher().finish();
                ImageIdentifiers { seed: [random(), random()], time }
            }
            (Identifiers::Random, None) => Identifiers::Reproducible { time: 0 }.for_image(format, size, options),
            (Identifiers::Reproducible { time }, _) => {
                let text = format!("{format} {size} {options:?}");
                ImageIdentifiers { seed: [0, 1].map(|lane| hash(lane, text.as_bytes())), time }
            }
        }
    }
}

/// The identifiers of one image.
#[derive(Clone, Copy, Debug)]
pub struct ImageIdentifiers {
    seed: [u64; 2],
    /// When the image is made: seconds since 1970.
    pub time: u64,
}

impl ImageIdentifiers {
    /// Those that follow from `seed`, which the caller was given, and from nothing random. The time is 0.
    pub fn pinned(seed: u64) -> Self {
        ImageIdentifiers { seed: [seed, !seed], time: 0 }
    }

    /// The identifier for `what`, always the same for one image and purpose.
    pub fn bytes(&self, what: &str) -> [u8; 16] {
        let [high, low] = self.seed.map(|seed| hash(seed, what.as_bytes()));
        (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
    }
}

/// A number that looks random: FNV-1a over the bytes, and the finalizer of SplitMix64. Identifiers have to differ, they are
/// no secrets; and they must not change with a version of a library.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let start = mix(seed ^ 0xcbf2_9ce4_8422_2325);
    mix(bytes.iter().fold(start, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn only_random_ones_differ_each_time() {
        let ids = |from: Identifiers, size| from.for_image("vmdk", size, &Options::new()).bytes("cid");
        let fixed = Identifiers::Reproducible { time: 0 };
        assert_eq!(ids(fixed, 512), ids(fixed, 512));
        let distinct: HashSet<_> =
            (0..1000).map(|size| ids(fixed, size)).chain((0..1000).map(|_| ids(Identifiers::Random, 512))).collect();
        assert_eq!(distinct.len(), 2000);
    }

    #[test]
    fn they_stay_the_same_in_all_versions() {
        let pinned = ImageIdentifiers::pinned(1);
        assert_ne!(pinned.bytes("a"), pinned.bytes("b"));
        let ids = Identifiers::Reproducible { time: 7 }.for_image("vmdk", 1 << 20, &Options::new());
        assert_eq!(u128::from_be_bytes(ids.bytes("cid")), 0xac20_41e2_ceab_c7e5_bfe7_3113_7970_add6);
    }
}
