//! Markers, which precede each structure of a stream (Virtual Disk Format 5.0, "Stream-Optimized Compressed").
//!
//! A marker consists of `val`, `size` and `type`. A nonzero size marks a grain: `val` is its guest sector, and the
//! payload follows immediately, in place of `type`. A metadata marker has size 0 and fills its sector; `val` sectors
//! follow. The next marker begins at the next sector boundary.

use byteorder::{ByteOrder, LittleEndian};

use super::header::MAX_SECTORS;
use super::{FIELDS, SECTOR};
use crate::error::{Problem, Result};

pub(crate) const END_OF_STREAM: u32 = 0;
pub(crate) const GRAIN_TABLE: u32 = 1;
pub(crate) const GRAIN_DIRECTORY: u32 = 2;
pub(crate) const FOOTER: u32 = 3;

/// A marker, which describes the following structure of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marker {
    /// The grain at guest sector `lba`, compressed to `size` bytes, at least 1.
    Grain {
        lba: u64,
        size: u32,
    },
    EndOfStream,
    GrainTable {
        sectors: u64,
    },
    GrainDirectory {
        sectors: u64,
    },
    Footer {
        sectors: u64,
    },
    /// Another structure, to be skipped: type 4 is VMware's progress report.
    Other {
        kind: u32,
        sectors: u64,
    },
}

impl Marker {
    /// Bytes before the payload of a grain.
    pub const GRAIN_HEADER: usize = 12;
    /// Bytes of a metadata marker in use, enough to parse any marker.
    pub const LEN: usize = 16;

    /// Parses the marker at the start of `sector`, which is at file offset `at`.
    pub fn parse(sector: &[u8], at: u64) -> Result<Marker> {
        let Some(bytes) = sector.first_chunk::<{ Marker::LEN }>() else {
            let file_len = at.saturating_add(sector.len() as u64);
            let problem = Problem::OutOfBounds { offset: at, len: Marker::LEN as u64, file_len };
            return Err(FIELDS.at("marker", at).fault(problem));
        };
        let val = LittleEndian::read_u64(bytes);
        let size = LittleEndian::read_u32(&bytes[8..]);
        let kind = LittleEndian::read_u32(&bytes[12..]);
        let max = if size == 0 && kind == END_OF_STREAM { 0 } else { MAX_SECTORS };
        if val > max {
            return Err(FIELDS.at("marker val", at).fault(Problem::Range { value: val, min: 0, max }));
        }
        Ok(match (size, kind) {
            (1.., _) => Marker::Grain { lba: val, size },
            (0, END_OF_STREAM) => Marker::EndOfStream,
            (0, GRAIN_TABLE) => Marker::GrainTable { sectors: val },
            (0, GRAIN_DIRECTORY) => Marker::GrainDirectory { sectors: val },
            (0, FOOTER) => Marker::Footer { sectors: val },
            (0, kind) => Marker::Other { kind, sectors: val },
        })
    }

    /// Bytes from the start of this marker to the next one.
    pub fn total_len(&self) -> u64 {
        match *self {
            Marker::Grain { size, .. } => (Marker::GRAIN_HEADER as u64 + u64::from(size)).next_multiple_of(SECTOR),
            Marker::EndOfStream => SECTOR,
            Marker::GrainTable { sectors }
            | Marker::GrainDirectory { sectors }
            | Marker::Footer { sectors }
            | Marker::Other { sectors, .. } => SECTOR + sectors * SECTOR,
        }
    }
}

/// Returns the marker of the grain at guest sector `lba` with a payload of `size` bytes, at least 1.
pub(crate) fn grain_header(lba: u64, size: u32) -> [u8; Marker::GRAIN_HEADER] {
    let mut bytes = [0; Marker::GRAIN_HEADER];
    LittleEndian::write_u64(&mut bytes, lba);
    LittleEndian::write_u32(&mut bytes[8..], size);
    bytes
}

/// Returns the metadata marker, one sector, of a structure of type `kind` and `sectors` sectors.
pub(crate) fn metadata_marker(kind: u32, sectors: u64) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    LittleEndian::write_u64(&mut bytes, sectors);
    LittleEndian::write_u32(&mut bytes[12..], kind);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Markers of a stream written by VirtualBox 7, each with its offset and the offset of the next marker.
    const STREAM: [(u64, &str, Marker, u64); 6] = [
        (65536, "0000000000000000cb8a0000789cecdd", Marker::Grain { lba: 0, size: 35531 }, 101_376),
        (175_616, "80010000000000009f070000789ced96", Marker::Grain { lba: 384, size: 1951 }, 177_664),
        (177_664, "04000000000000000000000001000000", Marker::GrainTable { sectors: 4 }, 180_224),
        (523_776, "02000000000000000000000002000000", Marker::GrainDirectory { sectors: 2 }, 525_312),
        (525_312, "01000000000000000000000003000000", Marker::Footer { sectors: 1 }, 526_336),
        (526_336, "00000000000000000000000000000000", Marker::EndOfStream, 526_848),
    ];

    #[test]
    fn virtualbox_markers_are_parsed() {
        for (at, hex, marker, next) in STREAM {
            let bytes = u128::from_str_radix(hex, 16).unwrap().to_be_bytes();
            assert_eq!(Marker::parse(&bytes, at).unwrap(), marker);
            assert_eq!(at + marker.total_len(), next, "{marker:?}");
            match marker {
                Marker::Grain { lba, size } => assert_eq!(grain_header(lba, size), bytes[..12]),
                Marker::EndOfStream => assert_eq!(metadata_marker(END_OF_STREAM, 0), [0; 512]),
                Marker::GrainTable { sectors } => assert_eq!(metadata_marker(GRAIN_TABLE, sectors)[..16], bytes),
                Marker::GrainDirectory { sectors } => {
                    assert_eq!(metadata_marker(GRAIN_DIRECTORY, sectors)[..16], bytes)
                }
                Marker::Footer { sectors } => assert_eq!(metadata_marker(FOOTER, sectors)[..16], bytes),
                Marker::Other { .. } => unreachable!(),
            }
        }
    }

    #[test]
    fn invalid_fields_are_refused() {
        for (marker, kind) in [
            (&metadata_marker(GRAIN_TABLE, MAX_SECTORS + 1)[..], "invalid-field"),
            (&metadata_marker(4, u64::MAX), "invalid-field"),
            (&metadata_marker(END_OF_STREAM, 1), "invalid-field"),
            (&[grain_header(MAX_SECTORS + 1, 1).as_slice(), &[0; 4]].concat(), "invalid-field"),
            (&[0; 15], "out-of-bounds"),
        ] {
            let error = Marker::parse(marker, 512).unwrap_err();
            assert_eq!(error.kind().as_str(), kind, "{error}");
            assert!(error.to_string().contains("0x200"), "{error}");
        }
        Marker::parse(&metadata_marker(GRAIN_TABLE, MAX_SECTORS), 0).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn markers_round_trip(val in 0..=MAX_SECTORS, size in 1u32.., kind in 1u32.., data in any::<[u8; 4]>()) {
            let grain = [grain_header(val, size).as_slice(), &data].concat();
            prop_assert_eq!(Marker::parse(&grain, 0).unwrap(), Marker::Grain { lba: val, size });
            let metadata = Marker::parse(&metadata_marker(kind, val), 0).unwrap();
            prop_assert_eq!(metadata.total_len(), (val + 1) * 512);
            let other = Marker::Other { kind, sectors: val };
            prop_assert_eq!(metadata == other, kind > FOOTER);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..20), at in any::<u64>()) {
            if let Ok(marker) = Marker::parse(&bytes, at) {
                prop_assert!(marker.total_len().is_multiple_of(512));
            }
        }
    }
}
