//! Identifiers and timestamps of new images.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use crate::error::{Error, Result};
use crate::io::unix_time;
use crate::options::Options;

/// The time of a reproducible build.
const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";

/// Source of the identifiers and timestamps of new images.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::io::MemFile;
/// use diskimage::{Converter, Format, Identifiers};
///
/// let converter = Converter::new(Format::VHDX).identifiers(Identifiers::Reproducible { time: 0 });
/// let images = [Arc::new(MemFile::new()), Arc::new(MemFile::new())];
/// for image in &images {
///     converter.create_to(1 << 20, image.clone())?;
/// }
/// assert_eq!(images[0].to_vec(), images[1].to_vec());
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identifiers {
    /// Random identifiers, and the time of the system. As [`Reproducible`](Self::Reproducible) with time 0 on
    /// `wasm32-unknown-unknown`, which has neither: state a time there, and options that differ for images that must differ.
    Random,
    /// Identifiers derived from the format, size, options and content of the image, and for an overlay from the name, format
    /// and identities of its backing file: the same disk gives the same bytes, another disk has other identifiers.
    ///
    /// Identifiers that are written to a pipe before the content are derived from the name of the file instead, if it has one.
    Reproducible {
        /// Creation time for formats that store one, in seconds since 1970.
        time: u64,
    },
}

impl Identifiers {
    /// Reproducible if the environment variable `SOURCE_DATE_EPOCH` is set and not empty, random otherwise.
    ///
    /// See <https://reproducible-builds.org/specs/source-date-epoch/>.
    ///
    /// # Errors
    /// [`Error::Usage`] if the value is not a number of seconds.
    pub fn from_env() -> Result<Self> {
        match std::env::var_os(SOURCE_DATE_EPOCH) {
            Some(text) if !text.is_empty() => match text.to_str().and_then(|text| text.parse().ok()) {
                Some(time) => Ok(Identifiers::Reproducible { time }),
                None => Err(Error::Usage(format!("{SOURCE_DATE_EPOCH} is not a number of seconds since 1970"))),
            },
            _ => Ok(Identifiers::Random),
        }
    }

    /// Returns the identifiers for an image of `format` with `size` bytes, of which the content is not known yet.
    pub fn for_image(self, format: &str, size: u64, options: &Options) -> ImageIdentifiers {
        match (self, unix_time()) {
            (Identifiers::Random, Some(time)) => {
                // Each `RandomState` has keys from the system's source of randomness.
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

/// The identifiers of one new image.
///
/// ```
/// use diskimage::ImageIdentifiers;
///
/// let identifiers = ImageIdentifiers::pinned(1);
/// assert_eq!(identifiers.bytes("disk"), identifiers.bytes("disk"));
/// assert_ne!(identifiers.bytes("disk"), identifiers.bytes("file"));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ImageIdentifiers {
    seed: [u64; 2],
    /// Creation time in seconds since 1970.
    pub time: u64,
}

impl ImageIdentifiers {
    /// Identifiers that depend on `seed` only. The time is 0.
    pub fn pinned(seed: u64) -> Self {
        ImageIdentifiers { seed: [seed, !seed], time: 0 }
    }

    /// Identifiers that also depend on `bytes`, such as a digest of the content. The time is the same.
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        ImageIdentifiers { seed: self.seed.map(|seed| hash(seed, bytes)), ..self }
    }

    /// Returns the identifier for the purpose `what`: the same bytes each time.
    pub fn bytes(&self, what: &str) -> [u8; 16] {
        let [high, low] = self.seed.map(|seed| hash(seed, what.as_bytes()));
        (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
    }
}

/// Hash: FNV-1a over the bytes, then the finalizer of SplitMix64. Identifiers have to be distinct but are not secrets, and
/// must not change with the version of a library.
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
        assert_ne!(pinned.bytes("a"), pinned.with(b"x").bytes("a"));
        assert_ne!(pinned.with(b"x").bytes("a"), pinned.with(b"y").bytes("a"));
        let ids = Identifiers::Reproducible { time: 7 }.for_image("vmdk", 1 << 20, &Options::new());
        assert_eq!(ids.with(b"x").time, 7);
        assert_eq!(u128::from_be_bytes(ids.bytes("cid")), 0xac20_41e2_ceab_c7e5_bfe7_3113_7970_add6);
    }
}
