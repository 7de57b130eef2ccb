//! L2 entries.

use super::FORMAT_NAME;
use crate::codec::Codec;
use crate::driver::{Compressed, ExtentKind, Location};
use crate::error::{Error, Problem, Result};
use crate::format::shared::two_level::{Entry, IMAGE, Shape};

/// The bit of a compressed cluster, `QCOW_OFLAG_COMPRESSED`.
const COMPRESSED: u64 = 1 << 63;

/// The state of a guest cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum L2Entry {
    /// Reads as the backing file, or as zeros.
    Unallocated,
    /// The host offset of the cluster. It is not checked.
    Data(u64),
    /// Host offset and length in bytes of the payload, which is shorter than a cluster and not empty.
    Compressed { host: u64, len: u32 },
}

impl L2Entry {
    /// # Errors
    /// For an empty payload.
    pub fn parse(value: u64, cluster_bits: u32) -> Result<L2Entry, Problem> {
        if value == 0 {
            return Ok(L2Entry::Unallocated);
        }
        if value & COMPRESSED == 0 {
            return Ok(L2Entry::Data(value));
        }
        let shift = 63 - cluster_bits;
        let len = (value >> shift) & ((1 << cluster_bits) - 1);
        if len == 0 {
            return Err(Problem::Rule { value, rule: "must have the length of the compressed cluster" });
        }
        Ok(L2Entry::Compressed { host: value & (offset_limit(cluster_bits) - 1), len: len as u32 })
    }

    /// The entry as it is written. The host offset of a payload is below [`offset_limit`].
    pub fn encode(self, cluster_bits: u32) -> u64 {
        match self {
            L2Entry::Unallocated => 0,
            L2Entry::Data(host) => host,
            L2Entry::Compressed { host, len } => COMPRESSED | u64::from(len) << (63 - cluster_bits) | host,
        }
    }
}

/// What the cluster of an entry is, from the guest offset on that was looked up. What it points to in a file of `file_len` bytes is checked.
pub(super) fn kind(shape: &Shape, entry: Entry, file_len: u64) -> Result<ExtentKind> {
    let within = entry.offset % shape.cluster_size();
    let fault = |problem| Error::corrupt(FORMAT_NAME, "L2 entry", entry.at, problem);
    Ok(match L2Entry::parse(entry.value, shape.cluster_bits).map_err(fault)? {
        L2Entry::Unallocated => ExtentKind::Hole,
        L2Entry::Data(host) => {
            shape.check_cluster(entry, host, within + shape.len_in_cluster(entry.offset), file_len)?;
            ExtentKind::Data(Location { file: IMAGE, offset: host + within })
        }
        L2Entry::Compressed { host, len } => {
            shape.check_within(entry, host, len.into(), file_len)?;
            ExtentKind::Compressed(Compressed {
                at: Location { file: IMAGE, offset: host },
                stored_len: len,
                codec: Codec::Deflate,
                unit: entry.offset - within,
                unit_len: shape.cluster_size() as u32,
                min_len: shape.cluster_size() as u32,
            })
        }
    })
}

/// The exclusive limit of host offsets of payloads: the length takes the upper bits.
pub(super) fn offset_limit(cluster_bits: u32) -> u64 {
    1 << (63 - cluster_bits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn entries() {
        assert_eq!(L2Entry::parse(0, 12), Ok(L2Entry::Unallocated));
        assert_eq!(L2Entry::parse(0x1000, 12), Ok(L2Entry::Data(0x1000)));
        // As qemu-img writes it: 0x23 bytes at 0x1038.
        assert_eq!(L2Entry::parse(0x8118_0000_0000_1038, 12), Ok(L2Entry::Compressed { host: 0x1038, len: 0x23 }));
        assert!(matches!(L2Entry::parse(1 << 63 | 5, 9), Err(Problem::Rule { .. })));
    }

    proptest! {
        #[test]
        fn compressed_entries_parse(cluster_bits in 9u32..=16, host in any::<u64>(), len in any::<u32>()) {
            let entry = L2Entry::Compressed { host: host % offset_limit(cluster_bits), len: len % ((1 << cluster_bits) - 1) + 1 };
            prop_assert_eq!(L2Entry::parse(entry.encode(cluster_bits), cluster_bits), Ok(entry));
        }
    }
}
