//! Header extensions (qcow2 specification, "Header extensions"): `u32 type, u32 length, data, padding to 8`, ended by type 0.

use std::collections::HashMap;

use byteorder::{BigEndian, ByteOrder};

use super::{FIELDS, FORMAT_NAME, until_nul};
use crate::error::{Error, Fault, Problem, Result};
use crate::name::Name;

pub(super) const END: u32 = 0;
pub(super) const BACKING_FORMAT: u32 = 0xe279_2aca;
pub(super) const FEATURE_NAMES: u32 = 0x6803_f857;
pub(super) const BITMAPS: u32 = 0x2385_2875;
const CRYPTO: u32 = 0x0537_be77;
pub(super) const DATA_FILE: u32 = 0x4441_5441;

/// Length of a record of the feature name table: type, bit, 46 bytes of name.
const FEATURE_RECORD: usize = 48;

/// The extensions that this crate knows. Others are skipped. Those that the guest data does not depend on may be damaged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    pub backing_format: Option<Name>,
    pub data_file: Option<Name>,
    pub crypto: Option<Result<CryptoHeader, Fault>>,
    pub features: Vec<Feature>,
    pub bitmaps: Option<Result<BitmapDirectory, Fault>>,
}

/// The encryption header extension: location of the LUKS header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CryptoHeader {
    pub offset: u64,
    pub len: u64,
    /// File offset of the extension's data, for errors.
    pub at: u64,
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
        let mut seen = HashMap::new();
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
            let is_unique = matches!(kind, BACKING_FORMAT | DATA_FILE | CRYPTO | BITMAPS);
            let differs = is_unique && seen.insert(kind, data).is_some_and(|other| other != data);
            extensions.set(kind, data, data_at as u64, differs)?;
            at = data_at + (len as usize).next_multiple_of(8);
        }
        Ok(extensions)
    }

    /// `differs`: an earlier extension of this type has other data. Programs that use the first one and programs that use the
    /// last one would then open different files.
    fn set(&mut self, kind: u32, data: &[u8], at: u64, differs: bool) -> Result<()> {
        let unique = || match differs {
            true => {
                let finding = "an earlier extension of this type has other data";
                Err(fault("header extension type", at - 8, Problem::Conflict { value: kind.into(), finding }))
            }
            false => Ok(()),
        };
        match kind {
            BACKING_FORMAT => {
                unique().map_err(Error::Corrupt)?;
                self.backing_format = Some(Name::from(until_nul(data)));
            }
            DATA_FILE => {
                unique().map_err(Error::Corrupt)?;
                self.data_file = Some(Name::from(data));
            }
            FEATURE_NAMES => self.features = Feature::parse_table(data),
            CRYPTO => self.crypto = Some(unique().and_then(|()| CryptoHeader::parse(data, at))),
            BITMAPS => self.bitmaps = Some(unique().and_then(|()| BitmapDirectory::parse(data, at))),
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
        if let Some(Ok(crypto)) = &self.crypto {
            put(CRYPTO, &[crypto.offset.to_be_bytes(), crypto.len.to_be_bytes()].concat());
        }
        if !self.features.is_empty() {
            put(FEATURE_NAMES, self.features.iter().map(Feature::encode).collect::<Vec<_>>().as_flattened());
        }
        if let Some(Ok(directory)) = &self.bitmaps {
            put(BITMAPS, &directory.encode());
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

impl CryptoHeader {
    fn parse(data: &[u8], at: u64) -> Result<CryptoHeader, Fault> {
        exact_length("encryption header", data, 16, at)?;
        Ok(CryptoHeader { offset: BigEndian::read_u64(data), len: BigEndian::read_u64(&data[8..]), at })
    }
}

impl BitmapDirectory {
    pub fn encode(&self) -> Vec<u8> {
        let count = u64::from(self.count) << 32;
        [count, self.len, self.offset].map(u64::to_be_bytes).concat()
    }

    fn parse(data: &[u8], at: u64) -> Result<BitmapDirectory, Fault> {
        exact_length("bitmaps", data, 24, at)?;
        Ok(BitmapDirectory {
            count: BigEndian::read_u32(data),
            len: BigEndian::read_u64(&data[8..]),
            offset: BigEndian::read_u64(&data[16..]),
            at,
        })
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

    /// Parses the feature name table. As in qemu, the padding of the last name may be missing.
    fn parse_table(data: &[u8]) -> Vec<Feature> {
        let records = data.chunks(FEATURE_RECORD).filter_map(|record| match record {
            [kind, bit, name @ ..] => Some(Feature { kind: *kind, bit: *bit, name: Name::from(until_nul(name)) }),
            _ => None,
        });
        records.collect()
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

fn exact_length(name: &'static str, data: &[u8], len: usize, at: u64) -> Result<(), Fault> {
    if data.len() == len {
        return Ok(());
    }
    let (value, len) = (data.len() as u64, len as u64);
    Err(fault(name, at - 4, Problem::Range { value, min: len, max: len }))
}

fn fault(name: &'static str, at: u64, problem: Problem) -> Fault {
    Fault::new(FORMAT_NAME, name, at, problem)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Extensions {
        /// Sets the file offsets for errors of encoded extensions that end at file offset `end`.
        pub fn locate(&mut self, end: u64) {
            // Bitmaps and feature names are the last ones before the end mark.
            let mut end = end - 8;
            if let Some(Ok(bitmaps)) = &mut self.bitmaps {
                bitmaps.at = end - 24;
                end -= 32;
            }
            if !self.features.is_empty() {
                end -= 8 + (self.features.len() * FEATURE_RECORD) as u64;
            }
            if let Some(Ok(crypto)) = &mut self.crypto {
                crypto.at = end - 16;
            }
        }
    }

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
                let fault = damage(&bytes).unwrap();
                let (value, right) = (len.into(), right.into());
                assert_eq!((fault.at, fault.problem), (4, Problem::Range { value, min: right, max: right }));
            }
            assert_eq!(damage(&extension(kind, right, &vec![0; right as usize])), None);
        }
    }

    /// Why the encryption header extension or the bitmaps extension cannot be used.
    fn damage(bytes: &[u8]) -> Option<Fault> {
        let Extensions { crypto, bitmaps, .. } = Extensions::parse(bytes, 0).unwrap();
        crypto.and_then(Result::err).or(bitmaps.and_then(Result::err))
    }

    #[test]
    fn extensions_that_disagree() {
        let conflict = |kind: u32, at| {
            let finding = "an earlier extension of this type has other data";
            fault("header extension type", at, Problem::Conflict { value: kind.into(), finding })
        };
        for kind in [BACKING_FORMAT, DATA_FILE] {
            let twice = |second| [extension(kind, 3, b"raw\0\0\0\0\0"), extension(kind, 3, second)].concat();
            assert!(Extensions::parse(&twice(b"raw\0\0\0\0\0"), 0).is_ok());
            let Err(Error::Corrupt(found)) = Extensions::parse(&twice(b"vdi\0\0\0\0\0"), 0) else { panic!() };
            assert_eq!(found, conflict(kind, 16));
        }
        for (kind, len) in [(CRYPTO, 16), (BITMAPS, 24)] {
            let twice = |second| {
                let extensions = [0, second].map(|byte| extension(kind, len, &vec![byte; len as usize]));
                extensions.concat()
            };
            assert_eq!(damage(&twice(0)), None);
            assert_eq!(damage(&twice(1)), Some(conflict(kind, 8 + u64::from(len))));
        }
        // They decide nothing.
        let twice = [0, 1].map(|byte| extension(FEATURE_NAMES, 48, &[byte; 48]));
        assert!(Extensions::parse(&twice.concat(), 0).is_ok());
    }

    #[test]
    fn feature_names() {
        let full = [b'n'; 46];
        // The last record is cut short.
        let table = [&[0, 63][..], &full, &[2, 1], b"short\0no", &[0; 38], &[0, 62], b"end"].concat();
        let extensions = Extensions::parse(&extension(FEATURE_NAMES, table.len() as u32, &table), 0).unwrap();
        let feature = |kind, bit, name: &[u8]| Feature { kind, bit, name: Name::from(name) };
        assert_eq!(extensions.features, [feature(0, 63, &full), feature(2, 1, b"short"), feature(0, 62, b"end")]);
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
                crypto: crypto.map(|(offset, len)| Ok(CryptoHeader { offset, len, at: 0 })),
                features: features
                    .into_iter()
                    .map(|(kind, bit, name)| Feature { kind, bit, name: name.unwrap_or_default() })
                    .collect(),
                bitmaps: bitmaps.map(|(count, len, offset)| Ok(BitmapDirectory { count, len, offset, at: 0 })),
            };
            let bytes = [vec![0xff; start], extensions.encode()].concat();
            extensions.locate(bytes.len() as u64);
            prop_assert_eq!(Extensions::parse(&bytes, start as u32).unwrap(), extensions);
        }
    }
}
