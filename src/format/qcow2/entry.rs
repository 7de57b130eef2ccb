//! Entries of the L1 and L2 tables (qcow2 specification, "Cluster mapping").

use super::header::Header;
use crate::error::Problem;

/// "Exactly one reference": bit 63 of L1 and standard L2 entries.
pub(crate) const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry.
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard L2 entry, version 3.
pub(crate) const ZERO: u64 = 1;
/// Bits 9 to 55.
pub(crate) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Subclusters in a cluster, with extended L2 entries.
pub(crate) const SUBCLUSTERS: u32 = 32;
/// Unit in which the length of a compressed payload is given.
const SECTOR: u64 = 512;

/// Where the L2 table lies that an L1 entry names, if it names one. Whether that is within the file is not known here.
pub(crate) fn parse_l1_entry(entry: u64, header: &Header) -> Result<Option<u64>, Problem> {
    reserved(entry, !(OFFSET_MASK | COPIED))?;
    let offset = entry & OFFSET_MASK;
    aligned(offset, header.cluster_size())?;
    Ok((offset != 0).then_some(offset))
}

/// What an L2 entry says of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum L2Entry {
    /// Nothing: the backing file's bytes, or zeros.
    Unallocated,
    /// Zeros, with a host cluster set aside for them or not.
    Zero { host: Option<u64> },
    /// Stored as it is in this host cluster.
    Data { host: u64 },
    /// Stored compressed, in at most `len` bytes from `host` on.
    Compressed { host: u64, len: u32 },
    /// Each of the 32 subclusters for itself. `zero` and `allocated` have no bit in common, at least one has a bit set, and
    /// `allocated` has none if there is no host cluster.
    Subclusters { host: Option<u64>, allocated: u32, zero: u32 },
}

impl L2Entry {
    /// Parses an entry of 8 or, with extended L2 entries, of 16 bytes, of which `bitmap` is the second half.
    pub fn parse(entry: u64, bitmap: u64, header: &Header) -> Result<L2Entry, Problem> {
        if entry & COMPRESSED != 0 {
            reserved(entry, COPIED)?;
            reserved(bitmap, !0)?;
            if header.has_data_file() {
                return Err(Problem::Rule {
                    value: entry,
                    rule: "an image with a data file has no compressed clusters",
                });
            }
            let (host, len) = split_compressed(entry, header.cluster_bits);
            return Ok(L2Entry::Compressed { host, len });
        }
        let flags = if header.version >= 3 && !header.extended_l2() { COPIED | ZERO } else { COPIED };
        reserved(entry, !(OFFSET_MASK | flags))?;
        let offset = entry & OFFSET_MASK;
        aligned(offset, header.cluster_size())?;
        // In a data file, offset 0 is a place like any other, and bit 63 tells that it is meant.
        let at_zero = header.has_data_file() && entry & COPIED != 0;
        let host = (offset != 0 || at_zero).then_some(offset);
        if header.extended_l2() {
            let (allocated, zero) = (bitmap as u32, (bitmap >> 32) as u32);
            if allocated & zero != 0 {
                return Err(Problem::Rule { value: bitmap, rule: "no subcluster may be both allocated and zero" });
            }
            if allocated != 0 && host.is_none() {
                return Err(Problem::Rule { value: bitmap, rule: "no subcluster is allocated without a cluster" });
            }
            return Ok(match (allocated | zero, host) {
                (0, _) => L2Entry::Unallocated,
                _ => L2Entry::Subclusters { host, allocated, zero },
            });
        }
        Ok(match (entry & ZERO != 0, host) {
            (true, host) => L2Entry::Zero { host },
            (false, Some(host)) => L2Entry::Data { host },
            (false, None) => L2Entry::Unallocated,
        })
    }
}

/// The entry for a payload of `len` bytes, at least 1, at byte `host` of the file.
pub(crate) fn encode_compressed(host: u64, len: u64, cluster_bits: u32) -> u64 {
    let sectors = (host + len - 1) / SECTOR - host / SECTOR;
    COMPRESSED | sectors << count_shift(cluster_bits) | host
}

/// The highest file offset, exclusive, at which a compressed payload can begin.
pub(crate) fn compressed_offset_limit(cluster_bits: u32) -> u64 {
    1 << count_shift(cluster_bits).min(56)
}

/// The offset of a compressed payload, and how many bytes its sectors leave for it.
fn split_compressed(entry: u64, cluster_bits: u32) -> (u64, u32) {
    let shift = count_shift(cluster_bits);
    let host = entry & ((1 << shift) - 1);
    let sectors = (entry & !(COPIED | COMPRESSED)) >> shift;
    // At most 2^13 sectors: 13 bits are left for the count at the largest cluster size.
    let len = (sectors + 1) * SECTOR - host % SECTOR;
    (host, len as u32)
}

/// Where in an entry the count of sectors begins; the bits below hold the offset.
fn count_shift(cluster_bits: u32) -> u32 {
    62 - (cluster_bits - 8)
}

fn reserved(value: u64, mask: u64) -> Result<(), Problem> {
    match value & mask {
        0 => Ok(()),
        bits => Err(Problem::Reserved { value, bits }),
    }
}

fn aligned(value: u64, alignment: u64) -> Result<(), Problem> {
    if value.is_multiple_of(alignment) { Ok(()) } else { Err(Problem::Misaligned { value, alignment }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn compressed_entries_survive(cluster_bits in 9u32..=21, host in 0u64..1 << 49, len in 1u64..=2 << 20) {
            let len = len.min(1 << cluster_bits);
            let host = host % compressed_offset_limit(cluster_bits);
            let (back, room) = split_compressed(encode_compressed(host, len, cluster_bits), cluster_bits);
            prop_assert_eq!(back, host);
            prop_assert!(u64::from(room) >= len && u64::from(room) < len + SECTOR);
        }
    }
}
