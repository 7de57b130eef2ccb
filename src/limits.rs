//! Limits for untrusted images.

mod budget;

use std::str::FromStr;

use crate::error::{Error, Result};
pub use crate::limit_name::LimitName;
pub use budget::Budget;
pub(crate) use budget::TableRoom;

/// Upper bounds for untrusted images. An image that exceeds one is refused with [`Error::Limit`], which has its [name](LimitName).
///
/// These are the limits of the caller. Those of a format, such as 1023 bytes for the name of a backing file in qcow2, are in its driver.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::io::MemFile;
/// use diskimage::{Error, Format, LimitName, Limits, OpenOptions};
///
/// let mut limits = Limits::default();
/// limits.virtual_size = 1 << 20;
/// limits.metadata = 1 << 20;
/// let options = OpenOptions::new().format(Format::RAW).limits(limits);
/// let error = options.open_source(Arc::new(MemFile::from(vec![0; 2 << 20]))).unwrap_err();
/// assert!(matches!(error.root(), Error::Limit { name: Some(LimitName::VirtualSize), limit: 0x10_0000, .. }));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Largest virtual size in bytes. Default: 8 EiB less one sector, the largest file offset.
    pub virtual_size: u64,
    /// Memory in bytes for the metadata (tables, names) of a whole chain. Default: 64 MiB, the tables of any disk of usual size.
    pub metadata: u64,
    /// Largest number of images in a chain. Default: 200, the limit of libvirt.
    pub chain_depth: u64,
    /// Largest number of extents of one image, each possibly a file of its own. Default: 8192, which is 16 TiB in the usual
    /// extents of 2 GiB.
    pub extents: u64,
    /// Largest number of internal snapshots of one image. Default: 65,536, the limit of QEMU.
    pub snapshots: u64,
    /// Largest number of members of an archive, and of files of a package. Default: 1 Mi, twice the blocks in an export of XenServer of
    /// 512 GiB, each of which has a checksum. (The memory of their names is limited by [`metadata`](Self::metadata).)
    pub members: u64,
    /// Largest number of compressions around a file, and of packages within packages. Default: 3, more than anyone makes on purpose; each
    /// multiplies the size, and has memory and a temporary file of its own.
    pub nesting: u64,
    /// Longest name of a member of an archive, with all else that describes the member, in bytes. Default: 1 MiB, the limit of GNU tar.
    pub name_length: u64,
    /// Longest text in bytes: the descriptor of a VMDK or a package, a manifest. Default: 4 MiB, several times the descriptor of a disk with
    /// the largest number of extents.
    pub text_length: u64,
    /// Largest number of iterations of PBKDF2 in one key slot or digest of an encrypted image: the time to try a secret. Default: 100
    /// million, half a minute.
    pub pbkdf2_iterations: u64,
    /// Largest amount of memory in bytes that Argon2 may take for a key slot of an encrypted image. Default: 1 GiB, the most that
    /// cryptsetup uses by default.
    pub argon2_memory: u64,
    /// Largest product of this memory in bytes and the number of passes over it: the time to try a secret. Default: 32 GiB, a minute or two.
    pub argon2_work: u64,
    /// Largest number of bytes to which a compressed file decompresses, at each layer of compression: what is written to temporary files.
    /// Default: 64 TiB, the largest disk of VMDK and VHDX.
    pub decompressed: u64,
    /// Largest ratio of decompressed to compressed bytes, above 1 GiB of decompressed bytes, over all layers of compression of a file. Default: 100,000, which only
    /// bzip2 exceeds, on a disk of zeros.
    pub decompression_ratio: u64,
    /// Largest dictionary (xz) or window (zstd) in bytes, which each thread that decodes keeps in memory. Default: 128 MiB, that of
    /// `zstd --ultra -22`, and twice that of `xz -9`.
    pub window: u64,
}

/// Number of decompressed bytes from which on [`Limits::decompression_ratio`] counts: an empty disk compresses to next to nothing.
pub(crate) const RATIO_FROM: u64 = 1 << 30;

impl Default for Limits {
    fn default() -> Self {
        Limits {
            virtual_size: i64::MAX as u64 & !511,
            metadata: 64 << 20,
            chain_depth: 200,
            extents: 8192,
            snapshots: 65_536,
            members: 1 << 20,
            nesting: 3,
            name_length: 1 << 20,
            text_length: 4 << 20,
            pbkdf2_iterations: 100_000_000,
            argon2_memory: 1 << 30,
            argon2_work: 32 << 30,
            decompressed: 64 << 40,
            decompression_ratio: 100_000,
            window: 128 << 20,
        }
    }
}

impl Limits {
    /// The most memory in bytes that an image takes at once, beside files in memory of the caller's.
    ///
    /// ```text
    /// opening, checking: metadata + 2 × text_length + 5 MiB
    ///                  + layers × (3 × metadata + 2 × text_length + name_length + window + 8 MiB)
    /// converting, also:  24 MiB + threads × (4 MiB + 6 × block)
    ///                  + layers × (64 MiB + threads × (window + 26 MiB))
    /// ```
    ///
    /// The first line is a chain of images: its tables, and the parts of tables that are cached. For a conversion, the overlap detection and decoded
    /// units are added, and for each thread the buffers of a work range and a codec. `threads` are those of the conversion, or the cores of the
    /// machine if these are more; 0 for an image that is not converted. `block` is 1 MiB, or the blocks of the new image (VHD, VHDX) or the
    /// largest compressed unit of the source (dmg: 64 MiB), if these are larger. `layers` is the number of compressions and packages around the
    /// image, at most twice [`nesting`](Self::nesting): each has an index or a list of names, and decoders.
    ///
    /// While a secret is tried, a LUKS2 volume takes [`argon2_memory`](Self::argon2_memory) beside.
    ///
    /// ```
    /// use diskimage::Limits;
    ///
    /// let mut limits = Limits::default();
    /// limits.metadata = 16 << 20;
    /// assert_eq!(limits.peak_memory(0, 1 << 20, 0) >> 20, 29);
    /// assert_eq!(limits.peak_memory(2, 1 << 20, 0) >> 20, 73);
    /// ```
    pub fn peak_memory(&self, threads: u64, block: u64, layers: u64) -> u64 {
        const MIB: u64 = 1 << 20;
        let Limits { metadata, text_length, name_length, window, .. } = *self;
        let sum = |terms: &[u64]| terms.iter().fold(0, |sum: u64, term| sum.saturating_add(*term));
        let texts = text_length.saturating_mul(2);
        let opening = sum(&[metadata, texts, 5 * MIB]);
        let layer = sum(&[metadata.saturating_mul(3), texts, name_length, window, 8 * MIB]);
        let (converting, decoding) = match threads {
            0 => (0, 0),
            _ => (
                sum(&[24 * MIB, threads.saturating_mul(sum(&[4 * MIB, block.saturating_mul(6)]))]),
                sum(&[64 * MIB, threads.saturating_mul(sum(&[window, 26 * MIB]))]),
            ),
        };
        sum(&[opening, converting, layers.saturating_mul(sum(&[layer, decoding]))])
    }

    /// The value of a limit.
    ///
    /// ```
    /// use diskimage::{LimitName, Limits};
    ///
    /// let mut limits = Limits::default();
    /// limits.set(LimitName::ChainDepth, 8);
    /// assert_eq!((limits.chain_depth, limits.get(LimitName::ChainDepth)), (8, 8));
    /// ```
    pub fn get(&self, name: LimitName) -> u64 {
        *self.clone().field(name)
    }

    /// Sets a limit.
    pub fn set(&mut self, name: LimitName, value: u64) {
        *self.field(name) = value;
    }

    fn field(&mut self, name: LimitName) -> &mut u64 {
        match name {
            LimitName::VirtualSize => &mut self.virtual_size,
            LimitName::Metadata => &mut self.metadata,
            LimitName::ChainDepth => &mut self.chain_depth,
            LimitName::Extents => &mut self.extents,
            LimitName::Snapshots => &mut self.snapshots,
            LimitName::Members => &mut self.members,
            LimitName::Nesting => &mut self.nesting,
            LimitName::NameLength => &mut self.name_length,
            LimitName::TextLength => &mut self.text_length,
            LimitName::Pbkdf2Iterations => &mut self.pbkdf2_iterations,
            LimitName::Argon2Memory => &mut self.argon2_memory,
            LimitName::Argon2Work => &mut self.argon2_work,
            LimitName::Decompressed => &mut self.decompressed,
            LimitName::DecompressionRatio => &mut self.decompression_ratio,
            LimitName::Window => &mut self.window,
        }
    }
}

impl FromStr for LimitName {
    type Err = Error;

    /// # Errors
    /// [`Error::Usage`] for another name.
    fn from_str(name: &str) -> Result<Self> {
        LimitName::all().find(|limit| limit.as_str() == name).ok_or_else(|| {
            let names: Vec<_> = LimitName::all().map(LimitName::as_str).collect();
            Error::Usage(format!("unknown limit {name:?}: expected {}", names.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_fields() {
        let mut limits = Limits::default();
        let text = format!("{limits:?}");
        let fields: Vec<_> = text.split(['{', ',']).filter_map(|field| field.trim().split_once(": ")).collect();
        let names: Vec<_> = LimitName::all().map(|name| name.as_str().replace('-', "_")).collect();
        assert!(fields.iter().map(|(field, _)| field).eq(&names), "{text}");
        for (number, name) in (7..).zip(LimitName::all()) {
            limits.set(name, number);
            assert_eq!(name.as_str().parse::<LimitName>().unwrap(), name);
        }
        for (number, name) in (7..).zip(LimitName::all()) {
            assert_eq!(limits.get(name), number, "{name}");
            assert!(format!("{limits:?}").contains(&format!(" {}: {number}", name.as_str().replace('-', "_"))));
        }
    }
}
