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
            // "Exactly one reference" to nothing is nothing.
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
    fn a_data_file_has_a_cluster_at_0() {
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
        fn compressed_entries_survive(cluster_bits in 9u32..=21, host in 0u64..1 << 49, len in 1u64..=2 << 20) {
            let len = len.min(1 << cluster_bits);
            let host = host % compressed_offset_limit(cluster_bits);
            let (back, room) = split_compressed(encode_compressed(host, len, cluster_bits), cluster_bits);
            prop_assert_eq!(back, host);
            prop_assert!(u64::from(room) >= len && u64::from(room) < len + SECTOR);
        }
    }
}
