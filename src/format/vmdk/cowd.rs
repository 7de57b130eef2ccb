//! The header of a COWD sparse extent, which ESXi writes for snapshots of the type `vmfsSparse` (Virtual Disk Format
//! 5.0, "ESXi Host Sparse Extents").

use bitflags::bitflags;
use byteorder::{ByteOrder, LittleEndian};

use super::header::{parse_capacity, unsupported};
use super::{FIELDS, SECTOR};
use crate::error::{Problem, Result};
use crate::limits::Limits;

pub(crate) use crate::format::shared::signature::VMDK_COWD as MAGIC;
/// Entries in a grain table.
pub(crate) const TABLE_ENTRIES: u64 = 4096;
/// Largest grain in sectors: 1 MiB, by the document.
const MAX_GRAIN_SIZE: u64 = 2048;

bitflags! {
    /// `flags` of the header. The document defines only the value 3.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Flags: u32 {
        const ROOT = 1 << 0;
        const CHECK_CAPABLE = 1 << 1;
        const INCONSISTENT = 1 << 2;
        const _ = !0;
    }
}

/// A valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CowdHeader {
    pub flags: Flags,
    /// Size of the disk in sectors.
    pub capacity: u64,
    /// Sectors in a grain, 1 to 2048, not necessarily a power of two.
    pub grain_size: u64,
    /// Sector of the grain directory, after the header unless the disk is empty.
    pub directory: u64,
    /// Whether the extent was not closed cleanly or is marked inconsistent.
    pub unclean: bool,
}

impl CowdHeader {
    /// Bytes on disk.
    pub const LEN: u64 = 2048;

    /// Parses the header at the start of `bytes`, the beginning of the file.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<CowdHeader> {
        FIELDS.at("header", 0).within(0, CowdHeader::LEN, bytes.len() as u64)?;
        let u32_at = |offset: usize| LittleEndian::read_u32(&bytes[offset..]);

        if !bytes.starts_with(MAGIC) {
            let rule = "must be 0x44574f43 (\"COWD\")";
            return Err(FIELDS.at("magicNumber", 0).fault(Problem::Rule { value: u32_at(0).into(), rule }));
        }
        if u32_at(4) != 1 {
            return Err(unsupported(format!("version {} of a COWD extent", u32_at(4)), 4));
        }
        let flags = Flags::from_bits_retain(u32_at(8));
        let header = CowdHeader {
            flags,
            capacity: parse_capacity(u32_at(12).into(), FIELDS.at("numSectors", 12), limits)?,
            grain_size: u32_at(16).into(),
            directory: u32_at(20).into(),
            unclean: u32_at(1648) != 0 || flags.contains(Flags::INCONSISTENT),
        };
        if !(1..=MAX_GRAIN_SIZE).contains(&header.grain_size) {
            let problem = Problem::Range { value: header.grain_size, min: 1, max: MAX_GRAIN_SIZE };
            return Err(FIELDS.at("grainSize", 16).fault(problem));
        }
        if header.capacity > 0 && header.directory * SECTOR < CowdHeader::LEN {
            let problem = Problem::Overlap { offset: header.directory * SECTOR, with: "the header" };
            return Err(FIELDS.at("gdOffset", 20).fault(problem));
        }
        let (entries, needed) = (u32_at(24).into(), header.directory_entries());
        if entries < needed {
            let problem = Problem::Range { value: entries, min: needed, max: u32::MAX.into() };
            return Err(FIELDS.at("numGDEntries", 24).fault(problem));
        }
        Ok(header)
    }

    /// Size of the disk in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity * SECTOR
    }

    /// Bytes in a grain.
    pub fn grain_bytes(&self) -> u64 {
        self.grain_size * SECTOR
    }

    /// Guest bytes mapped by one grain table.
    pub fn table_coverage(&self) -> u64 {
        self.grain_bytes() * TABLE_ENTRIES
    }

    /// Number of grain tables of the disk. The grain directory has at least as many entries.
    pub fn directory_entries(&self) -> u64 {
        self.capacity_bytes().div_ceil(self.table_coverage())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl CowdHeader {
        /// Returns the header as stored on disk.
        pub(crate) fn encode(&self) -> [u8; CowdHeader::LEN as usize] {
            let mut bytes = [0; CowdHeader::LEN as usize];
            bytes[..4].copy_from_slice(MAGIC);
            let mut put = |at: usize, value: u64| LittleEndian::write_u32(&mut bytes[at..], value.try_into().unwrap());
            put(4, 1);
            put(8, self.flags.bits().into());
            put(12, self.capacity);
            put(16, self.grain_size);
            put(20, self.directory);
            put(24, self.directory_entries());
            put(1648, self.unclean.into());
            bytes
        }
    }

    /// A disk of 8 MiB and one sector, with the values of the document.
    fn header() -> CowdHeader {
        CowdHeader {
            flags: Flags::ROOT | Flags::CHECK_CAPABLE,
            capacity: 16385,
            grain_size: 1,
            directory: 4,
            unclean: false,
        }
    }

    fn with_field(at: usize, value: u32) -> Result<CowdHeader> {
        let mut bytes = header().encode();
        LittleEndian::write_u32(&mut bytes[at..], value);
        CowdHeader::parse(&bytes, &Limits::default())
    }

    #[test]
    fn header_matches_the_document() {
        let bytes = header().encode();
        let fields = "434f5744 01000000 03000000 01400000 01000000 04000000 05000000".replace(' ', "");
        let found: String = bytes[..28].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, fields);
        assert_eq!(CowdHeader::parse(&bytes, &Limits::default()).unwrap(), header());
    }

    #[test]
    fn invalid_fields_are_refused() {
        for (at, value, kind) in [
            (0, 0x564d_444b, "invalid-field"),
            (4, 0, "unsupported"),
            (4, 2, "unsupported"),
            (16, 0, "invalid-field"),
            (16, 2049, "invalid-field"),
            (20, 0, "overlap"),
            (20, 3, "overlap"),
            (24, 4, "invalid-field"),
        ] {
            let error = with_field(at, value).unwrap_err();
            assert_eq!(error.kind().as_str(), kind, "{value} at {at}: {error}");
            assert!(error.to_string().contains(&format!("offset {at:#x}")), "{value} at {at}: {error}");
        }
        let limits = Limits { virtual_size: 16384 * 512, ..Limits::default() };
        assert_eq!(CowdHeader::parse(&header().encode(), &limits).unwrap_err().kind().as_str(), "limit");
    }

    #[test]
    fn limits_of_valid_fields() {
        for (at, value) in [(8, u32::MAX), (16, 3), (16, 2048), (20, u32::MAX), (24, u32::MAX), (12, 5 * 4096)] {
            with_field(at, value).unwrap();
        }
        let empty = CowdHeader { capacity: 0, directory: 0, ..header() };
        assert_eq!(CowdHeader::parse(&empty.encode(), &Limits::default()).unwrap(), empty);
        let largest = CowdHeader { capacity: u32::MAX.into(), ..header() };
        assert_eq!(largest.directory_entries(), 1 << 20);
        assert_eq!(CowdHeader::parse(&largest.encode(), &Limits::default()).unwrap(), largest);
    }

    #[test]
    fn truncated_headers_are_refused() {
        let bytes = header().encode();
        for len in 0..bytes.len() {
            assert_eq!(
                CowdHeader::parse(&bytes[..len], &Limits::default()).unwrap_err().kind().as_str(),
                "out-of-bounds"
            );
        }
    }

    #[test]
    fn unclean_extents_are_reported() {
        assert!(with_field(1648, 1).unwrap().unclean);
        assert!(with_field(8, 7).unwrap().unclean);
        assert!(!with_field(8, 3).unwrap().unclean);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn headers_round_trip(
            flags in any::<u32>(), capacity in any::<u32>(), grain_size in 1u64..=2048,
            directory in 4u64..=u32::MAX.into(), unclean in any::<bool>(),
        ) {
            let header = CowdHeader {
                flags: Flags::from_bits_retain(flags) - Flags::INCONSISTENT,
                capacity: capacity.into(),
                grain_size,
                directory,
                unclean,
            };
            prop_assert_eq!(CowdHeader::parse(&header.encode(), &Limits::default()).unwrap(), header);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(
            fields in any::<[u8; 32]>(), magic in any::<bool>(), cut in 0usize..=2048,
        ) {
            let mut bytes = header().encode();
            let from = if magic { 8 } else { 0 };
            bytes[from..32].copy_from_slice(&fields[from..]);
            if let Ok(header) = CowdHeader::parse(&bytes[..cut], &Limits::default()) {
                prop_assert!(header.directory_entries() * header.table_coverage() >= header.capacity_bytes());
            }
        }
    }
}
