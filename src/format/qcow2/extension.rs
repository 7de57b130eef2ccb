//! Header extensions (qcow2 specification, "Header extensions"): `u32 type, u32 length, data, padding to 8`, ended by type 0.

use byteorder::{BigEndian, ByteOrder};

use super::FIELDS;
use crate::error::{Problem, Result};
use crate::name::Name;

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const CRYPTO: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;

/// Length of a record of the feature name table: type, bit, 46 bytes of name.
const FEATURE_RECORD: usize = 48;

/// The extensions that this crate knows. Others are skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    pub backing_format: Option<Name>,
    pub data_file: Option<Name>,
    pub crypto: Option<ClusterRange>,
    pub features: Vec<Feature>,
    pub bitmaps: Option<BitmapDirectory>,
}

/// A range of the file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClusterRange {
    pub offset: u64,
    pub len: u64,
}

/// The bitmaps extension: location of the bitmap directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BitmapDirectory {
    pub count: u32,
    pub len: u64,
    pub offset: u64,
    /// File offset of the extension's data, for errors.
    pub at: u64,
}

/// The name of a feature bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Feature {
    /// 0 incompatible, 1 compatible, 2 autoclear.
    pub kind: u8,
    pub bit: u8,
    pub name: Name,
}

impl Extensions {
    /// Parses the extensions from byte `start` to the end of `header`, the part of the first cluster before the backing file
    /// name.
    pub fn parse(header: &[u8], start: u32) -> Result<Extensions> {
        let mut extensions = Extensions::default();
        let mut at = start as usize;
        while let Some(head) = header.get(at..at + 8) {
            let (kind, len) = (BigEndian::read_u32(head), BigEndian::read_u32(&head[4..]));
            if kind == END {
                break;
            }
            let data_at = at + 8;
            FIELDS.at("header extension length", at as u64 + 4).within(
                data_at as u64,
                len.into(),
                header.len() as u64,
            )?;
            let Some(data) = header.get(data_at..data_at + len as usize) else { break };
            extensions.set(kind, data, data_at as u64)?;
            at = data_at + (len as usize).next_multiple_of(8);
        }
        Ok(extensions)
    }

    fn set(&mut self, kind: u32, data: &[u8], at: u64) -> Result<()> {
        match kind {
            BACKING_FORMAT => self.backing_format = Some(Name::from(data)),
            DATA_FILE => self.data_file = Some(Name::from(data)),
            FEATURE_NAMES => self.features = data.as_chunks().0.iter().map(Feature::parse).collect(),
            CRYPTO => {
                exact_length("encryption header", data, 16, at)?;
                self.crypto =
                    Some(ClusterRange { offset: BigEndian::read_u64(data), len: BigEndian::read_u64(&data[8..]) });
            }
            BITMAPS => {
                exact_length("bitmaps", data, 24, at)?;
                self.bitmaps = Some(BitmapDirectory {
                    count: BigEndian::read_u32(data),
                    len: BigEndian::read_u64(&data[8..]),
                    offset: BigEndian::read_u64(&data[16..]),
                    at,
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// Encodes the extensions in the order of qemu, with the end mark.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |kind: u32, data: &[u8]| {
            bytes.extend(kind.to_be_bytes());
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend(data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        };
        if let Some(format) = &self.backing_format {
            put(BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &self.data_file {
            put(DATA_FILE, name.as_bytes());
        }
        if let Some(crypto) = &self.crypto {
            put(CRYPTO, &[crypto.offset.to_be_bytes(), crypto.len.to_be_bytes()].concat());
        }
        if !self.features.is_empty() {
            put(FEATURE_NAMES, self.features.iter().map(Feature::encode).collect::<Vec<_>>().as_flattened());
        }
        if let Some(directory) = &self.bitmaps {
            let count = u64::from(directory.count) << 32;
            put(BITMAPS, [count, directory.len, directory.offset].map(u64::to_be_bytes).as_flattened());
        }
        put(END, &[]);
        bytes
    }

    /// Describes a feature bit, with its name from the table in the image, which covers bits that are unknown to this crate.
    pub fn feature_name(&self, kind: u8, bit: u8) -> String {
        match self.features.iter().find(|feature| (feature.kind, feature.bit) == (kind, bit)) {
            Some(feature) => format!("{bit} ({})", feature.name),
            None => bit.to_string(),
        }
    }
}

impl Feature {
    /// The feature bits in the specification.
    pub fn known() -> Vec<Feature> {
        [
            (0, 0, "dirty bit"),
            (0, 1, "corrupt bit"),
            (0, 2, "external data file"),
            (0, 3, "compression type"),
            (0, 4, "extended L2 entries"),
            (1, 0, "lazy refcounts"),
            (2, 0, "bitmaps"),
            (2, 1, "raw external data"),
        ]
        .map(|(kind, bit, name)| Feature { kind, bit, name: Name::from(name) })
        .into()
    }

    fn parse(record: &[u8; FEATURE_RECORD]) -> Feature {
        let name = &record[2..];
        let len = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        Feature { kind: record[0], bit: record[1], name: Name::from(&name[..len]) }
    }

    fn encode(&self) -> [u8; FEATURE_RECORD] {
        let mut record = [0; FEATURE_RECORD];
        record[0] = self.kind;
        record[1] = self.bit;
        let name = self.name.as_bytes();
        let len = name.len().min(FEATURE_RECORD - 2);
        record[2..2 + len].copy_from_slice(&name[..len]);
        record
    }
}

fn exact_length(name: &'static str, data: &[u8], len: usize, at: u64) -> Result<()> {
    if data.len() == len {
        return Ok(());
    }
    let (value, len) = (data.len() as u64, len as u64);
    Err(FIELDS.at(name, at - 4).fault(Problem::Range { value, min: len, max: len }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::{Error, Fault};

    fn extension(kind: u32, len: u32, data: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &len.to_be_bytes(), data].concat()
    }

    #[test]
    fn a_length_beyond_the_header_is_refused() {
        let bytes = [vec![0; 104], extension(BACKING_FORMAT, 3, b"raw\0\0\0\0\0"), extension(7, 9, &[1; 8])].concat();
        let problem = Problem::OutOfBounds { offset: 128, len: 9, file_len: 136 };
        let expected = Fault { format: "qcow2", field: "header extension length".into(), at: 124, problem };
        let Err(Error::Corrupt(fault)) = Extensions::parse(&bytes, 104) else { panic!() };
        assert_eq!(fault, expected);
        // The end mark and the padding of the last extension may be missing.
        assert!(Extensions::parse(&[vec![0; 104], extension(7, u32::MAX, &[])].concat(), 104).is_err());
        for len in [0, 1, 7, 8] {
            let bytes = [vec![0; 104], extension(BACKING_FORMAT, len, &b"rawraw01"[..len as usize])].concat();
            let format = Extensions::parse(&bytes, 104).unwrap().backing_format.unwrap();
            assert_eq!(format.as_bytes(), &b"rawraw01"[..len as usize]);
        }
    }

    #[test]
    fn unknown_extensions_are_skipped_and_the_end_mark_ends_parsing() {
        let bytes = [
            extension(0x1234_5678, 5, b"abcde\xff\xff\xff"),
            extension(DATA_FILE, 5, b"d.raw\0\0\0"),
            extension(END, 0, &[]),
            extension(BACKING_FORMAT, u32::MAX, b"raw\0\0\0\0\0"),
        ]
        .concat();
        let expected = Extensions { data_file: Some("d.raw".into()), ..Extensions::default() };
        assert_eq!(Extensions::parse(&bytes, 0).unwrap(), expected);
        assert_eq!(Extensions::parse(&bytes, 1 << 31).unwrap(), Extensions::default());
    }

    #[test]
    fn extensions_of_fixed_length() {
        for (kind, right) in [(CRYPTO, 16), (BITMAPS, 24)] {
            for len in [0, right - 8, right + 8] {
                let bytes = extension(kind, len, &vec![0; len as usize]);
                let Err(Error::Corrupt(fault)) = Extensions::parse(&bytes, 0) else { panic!() };
                let (value, right) = (len.into(), right.into());
                assert_eq!((fault.at, fault.problem), (4, Problem::Range { value, min: right, max: right }));
            }
            assert!(Extensions::parse(&extension(kind, right, &vec![0; right as usize]), 0).is_ok());
        }
    }

    #[test]
    fn feature_names() {
        let full = [b'n'; 46];
        // A truncated record is ignored.
        let table = [&[0, 63][..], &full, &[2, 1], b"short\0no", &[0; 38], &[1; 47]].concat();
        let extensions = Extensions::parse(&extension(FEATURE_NAMES, table.len() as u32, &table), 0).unwrap();
        let feature = |kind, bit, name: &[u8]| Feature { kind, bit, name: Name::from(name) };
        assert_eq!(extensions.features, [feature(0, 63, &full), feature(2, 1, b"short")]);
        assert_eq!(extensions.feature_name(0, 63), format!("63 ({})", "n".repeat(46)));
        assert_eq!(extensions.feature_name(1, 63), "63");
        // A long name is truncated.
        let long = Extensions { features: vec![feature(0, 1, &[b'x'; 47])], ..Extensions::default() };
        assert_eq!(Extensions::parse(&long.encode(), 0).unwrap().features, [feature(0, 1, &[b'x'; 46])]);
    }

    fn names() -> impl Strategy<Value = Option<Name>> {
        prop::option::of(prop::collection::vec(1u8.., 0..=46).prop_map(|name| Name::from(&name[..])))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn extensions_round_trip(
            (backing_format, data_file) in (names(), names()),
            crypto in prop::option::of(any::<(u64, u64)>()),
            features in prop::collection::vec((any::<u8>(), any::<u8>(), names()), 0..5),
            bitmaps in prop::option::of(any::<(u32, u64, u64)>()),
            start in 0usize..64,
        ) {
            let mut extensions = Extensions {
                backing_format,
                data_file,
                crypto: crypto.map(|(offset, len)| ClusterRange { offset, len }),
                features: features
                    .into_iter()
                    .map(|(kind, bit, name)| Feature { kind, bit, name: name.unwrap_or_default() })
                    .collect(),
                bitmaps: bitmaps.map(|(count, len, offset)| BitmapDirectory { count, len, offset, at: 0 }),
            };
            let bytes = [vec![0xff; start], extensions.encode()].concat();
            if let Some(bitmaps) = &mut extensions.bitmaps {
                // The last extension before the end mark.
                bitmaps.at = bytes.len() as u64 - 8 - 24;
            }
            prop_assert_eq!(Extensions::parse(&bytes, start as u32).unwrap(), extensions);
        }
    }
}
