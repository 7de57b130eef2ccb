//! Entries of the L1 and L2 tables (qcow2 specification, "Cluster mapping").

use super::header::Header;
use crate::error::Problem;

/// Bit 63 of L1 and L2 entries: the refcount of the host cluster is 1.
pub(crate) const COPIED: u64 = 1 << 63;
/// Bit 62 of L2 entries: compressed cluster.
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of standard L2 entries of version 3: zero cluster.
pub(crate) const ZERO: u64 = 1;
/// Bits 9 to 55: host offset.
pub(crate) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Subclusters per cluster, with extended L2 entries.
pub(crate) const SUBCLUSTERS: u32 = 32;
/// Unit of the length of a compressed payload, in bytes.
const SECTOR: u64 = 512;

/// Parses an L1 entry: the host offset of its L2 table, not checked against the file length, or `None`.
pub(crate) fn parse_l1_entry(entry: u64, header: &Header) -> Result<Option<u64>, Problem> {
    reserved(entry, !(OFFSET_MASK | COPIED))?;
    let offset = entry & OFFSET_MASK;
    aligned(offset, header.cluster_size())?;
    Ok((offset != 0).then_some(offset))
}

/// State of a guest cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum L2Entry {
    /// Reads from the backing file, or as zeros.
    Unallocated,
    /// Zero cluster, preallocated if there is a host offset.
    Zero { host: Option<u64> },
    /// Uncompressed, in this host cluster.
    Data { host: u64 },
    /// Compressed. The payload is at most `len` bytes at `host`.
    Compressed { host: u64, len: u32 },
    /// Bitmaps of the 32 subclusters. They are disjoint and not both 0; `allocated` is 0 without a host cluster.
    Subclusters { host: Option<u64>, allocated: u32, zero: u32 },
}

impl L2Entry {
    /// Parses an L2 entry. `bitmap` is the second half of an extended L2 entry, else 0.
    pub fn parse(entry: u64, bitmap: u64, header: &Header) -> Result<L2Entry, Problem> {
        if entry & COMPRESSED != 0 {
            reserved(entry, COPIED)?;
            reserved(bitmap, !0)?;
            if header.has_data_file() {
                return Err(Problem::Rule {
                    value: entry,
                    rule: "must not be compressed in an image with a data file",
                });
            }
            let (host, len) = split_compressed(entry, header.cluster_bits);
            return Ok(L2Entry::Compressed { host, len });
        }
        let flags = if header.version >= 3 && !header.extended_l2() { COPIED | ZERO } else { COPIED };
        reserved(entry, !(OFFSET_MASK | flags))?;
        let offset = entry & OFFSET_MASK;
        aligned(offset, header.cluster_size())?;
        // In a data file, offset 0 is valid, and bit 63 marks it as allocated.
        let at_zero = header.has_data_file() && entry & COPIED != 0;
        let host = (offset != 0 || at_zero).then_some(offset);
        if header.extended_l2() {
            let (allocated, zero) = (bitmap as u32, (bitmap >> 32) as u32);
            if allocated & zero != 0 {
                return Err(Problem::Rule {
                    value: bitmap,
                    rule: "must not mark a subcluster as both allocated and zero",
                });
            }
            if allocated != 0 && host.is_none() {
                return Err(Problem::Rule {
                    value: bitmap,
                    rule: "must not mark subclusters as allocated without a host cluster",
                });
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

/// Encodes the L2 entry of a payload of `len` bytes, at least 1, at host offset `host`.
pub(crate) fn encode_compressed(host: u64, len: u64, cluster_bits: u32) -> u64 {
    let sectors = (host + len - 1) / SECTOR - host / SECTOR;
    COMPRESSED | sectors << count_shift(cluster_bits) | host
}

/// Upper bound, exclusive, of the host offset of a compressed payload.
pub(crate) fn compressed_offset_limit(cluster_bits: u32) -> u64 {
    1 << count_shift(cluster_bits).min(56)
}

/// Host offset and largest length in bytes of a compressed payload.
fn split_compressed(entry: u64, cluster_bits: u32) -> (u64, u32) {
    let shift = count_shift(cluster_bits);
    let host = entry & ((1 << shift) - 1);
    let sectors = (entry & !(COPIED | COMPRESSED)) >> shift;
    // At most 2^13 sectors: the count has 13 bits with the largest clusters.
    let len = (sectors + 1) * SECTOR - host % SECTOR;
    (host, len as u32)
}

/// Lowest bit of the sector count in a compressed entry. The bits below are the host offset.
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
    use crate::limits::Limits;
    use proptest::prelude::*;

    /// The header of an empty image with clusters of 64 KiB.
    fn header(version: u32, incompatible: u64) -> Header {
        let mut bytes = [0; 104];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[4..8].copy_from_slice(&version.to_be_bytes());
        bytes[20..24].copy_from_slice(&16u32.to_be_bytes());
        bytes[72..80].copy_from_slice(&incompatible.to_be_bytes());
        bytes[100..].copy_from_slice(&104u32.to_be_bytes());
        Header::parse(&bytes, 104, &Limits::default()).unwrap()
    }

    fn reserved_bits(value: u64, bits: u64) -> Result<L2Entry, Problem> {
        Err(Problem::Reserved { value, bits })
    }

    fn misaligned(value: u64) -> Result<L2Entry, Problem> {
        Err(Problem::Misaligned { value, alignment: 0x10000 })
    }

    fn rule(found: Result<L2Entry, Problem>) -> Option<u64> {
        match found {
            Err(Problem::Rule { value, .. }) => Some(value),
            _ => None,
        }
    }

    #[test]
    fn standard_entries() {
        let (v2, v3) = (header(2, 0), header(3, 0));
        for (entry, expected) in [
            (0, Ok(L2Entry::Unallocated)),
            // Bit 63 without a host offset.
            (COPIED, Ok(L2Entry::Unallocated)),
            (0x10000, Ok(L2Entry::Data { host: 0x10000 })),
            (COPIED | 0x10000, Ok(L2Entry::Data { host: 0x10000 })),
            (0xff_ffff_ffff_0000, Ok(L2Entry::Data { host: 0xff_ffff_ffff_0000 })),
            (0x200, misaligned(0x200)),
            (0x18000, misaligned(0x18000)),
            (0x10002, reserved_bits(0x10002, 2)),
            (0x10100, reserved_bits(0x10100, 0x100)),
            (1 << 56, reserved_bits(1 << 56, 1 << 56)),
            (1 << 61 | 0x10000, reserved_bits(1 << 61 | 0x10000, 1 << 61)),
        ] {
            assert_eq!(L2Entry::parse(entry, 0, &v3), expected, "{entry:#x}");
            assert_eq!(L2Entry::parse(entry, 0, &v2), expected, "{entry:#x}");
        }
        for (entry, host) in [(ZERO, None), (ZERO | 0x10000, Some(0x10000)), (COPIED | ZERO | 0x20000, Some(0x20000))] {
            assert_eq!(L2Entry::parse(entry, 0, &v3), Ok(L2Entry::Zero { host }), "{entry:#x}");
            assert_eq!(L2Entry::parse(entry, 0, &v2), reserved_bits(entry, ZERO), "{entry:#x}");
        }
    }

    #[test]
    fn compressed_entries() {
        // With clusters of 64 KiB: 54 bits of offset, 8 of additional sectors.
        for version in [2, 3] {
            let header = header(version, 0);
            let parse = |entry| L2Entry::parse(COMPRESSED | entry, 0, &header);
            assert_eq!(parse(0x5_0000), Ok(L2Entry::Compressed { host: 0x5_0000, len: 512 }));
            assert_eq!(parse(3 << 54 | 0x5_01ff), Ok(L2Entry::Compressed { host: 0x5_01ff, len: 3 * 512 + 1 }));
            let (host, len) = ((1 << 54) - 1, 255 * 512 + 1);
            assert_eq!(parse((1 << 62) - 1), Ok(L2Entry::Compressed { host, len }));
            assert_eq!(parse(COPIED | 512), reserved_bits(COPIED | COMPRESSED | 512, COPIED));
        }
        assert_eq!(rule(L2Entry::parse(COMPRESSED | 512, 0, &header(3, 4))), Some(COMPRESSED | 512));
    }

    #[test]
    fn extended_entries() {
        let header = header(3, 16);
        let parse = |entry, bitmap| L2Entry::parse(entry, bitmap, &header);
        let host = Some(0x10000);
        assert_eq!(parse(0, 0), Ok(L2Entry::Unallocated));
        assert_eq!(parse(COPIED | 0x10000, 0), Ok(L2Entry::Unallocated));
        assert_eq!(parse(0x10000, 0b101), Ok(L2Entry::Subclusters { host, allocated: 0b101, zero: 0 }));
        let (allocated, zero) = (0x8000_0000, 0x7fff_ffff);
        assert_eq!(parse(0x10000, 0x7fff_ffff_8000_0000), Ok(L2Entry::Subclusters { host, allocated, zero }));
        assert_eq!(parse(0, 1 << 63), Ok(L2Entry::Subclusters { host: None, allocated: 0, zero: 1 << 31 }));
        assert_eq!(rule(parse(0x10000, 1 << 32 | 1)), Some(1 << 32 | 1));
        assert_eq!(rule(parse(0, 1)), Some(1));
        // Bit 0 is the zero flag of standard entries only.
        assert_eq!(parse(0x10000 | ZERO, 0), reserved_bits(0x10000 | ZERO, ZERO));
        assert_eq!(parse(COMPRESSED | 0x5_0000, 0), Ok(L2Entry::Compressed { host: 0x5_0000, len: 512 }));
        assert_eq!(parse(COMPRESSED | 0x5_0000, 1 << 40), reserved_bits(1 << 40, 1 << 40));
    }

    #[test]
    fn offset_0_is_valid_in_a_data_file() {
        let parse = |entry| L2Entry::parse(entry, 0, &header(3, 4));
        assert_eq!(parse(COPIED), Ok(L2Entry::Data { host: 0 }));
        assert_eq!(parse(COPIED | ZERO), Ok(L2Entry::Zero { host: Some(0) }));
        assert_eq!(parse(ZERO), Ok(L2Entry::Zero { host: None }));
        assert_eq!(parse(0), Ok(L2Entry::Unallocated));
        let extended = L2Entry::parse(COPIED, 1, &header(3, 4 | 16));
        assert_eq!(extended, Ok(L2Entry::Subclusters { host: Some(0), allocated: 1, zero: 0 }));
    }

    #[test]
    fn l1_entries() {
        let parse = |entry| parse_l1_entry(entry, &header(3, 0));
        assert_eq!(parse(0), Ok(None));
        assert_eq!(parse(COPIED), Ok(None));
        assert_eq!(parse(COPIED | 0x30000), Ok(Some(0x30000)));
        assert_eq!(parse(0x30200), Err(Problem::Misaligned { value: 0x30200, alignment: 0x10000 }));
        for bit in [0, 8, 56, 62] {
            let (value, bits) = (0x30000 | 1 << bit, 1 << bit);
            assert_eq!(parse(value), Err(Problem::Reserved { value, bits }));
        }
    }

    proptest! {
        #[test]
        fn compressed_entries_round_trip(cluster_bits in 9u32..=21, host in 0u64..1 << 49, len in 1u64..=2 << 20) {
            let len = len.min(1 << cluster_bits);
            let host = host % compressed_offset_limit(cluster_bits);
            let (offset, max_len) = split_compressed(encode_compressed(host, len, cluster_bits), cluster_bits);
            prop_assert_eq!(offset, host);
            prop_assert!(u64::from(max_len) >= len && u64::from(max_len) < len + SECTOR);
        }
    }
}
