//! Header extensions (qcow2 specification, "Header extensions"): `u32 type, u32 length, data, padding to 8`, until type 0.

use byteorder::{BigEndian, ByteOrder};

use super::field;
use crate::error::{Problem, Result};
use crate::name::Name;

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const CRYPTO: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;

/// Length of a record in the feature name table: type, bit, 46 bytes of name.
const FEATURE_RECORD: usize = 48;

/// The extensions that mean something to this crate. Others are skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    pub backing_format: Option<Name>,
    pub data_file: Option<Name>,
    pub crypto: Option<ClusterRange>,
    pub features: Vec<Feature>,
    pub bitmaps: Option<BitmapDirectory>,
}

/// Where something lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClusterRange {
    pub offset: u64,
    pub len: u64,
}

/// The bitmaps extension: where the directory of bitmaps lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BitmapDirectory {
    pub count: u32,
    pub len: u64,
    pub offset: u64,
    /// File offset of the extension's data, for messages.
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
    /// Parses the extensions between `start` and the end of `header`, which is the part of the first cluster before the
    /// name of the backing file.
    pub fn parse(header: &[u8], start: u32) -> Result<Extensions> {
        let mut extensions = Extensions::default();
        let mut at = start as usize;
        while let Some(head) = header.get(at..at + 8) {
            let (kind, len) = (BigEndian::read_u32(head), BigEndian::read_u32(&head[4..]));
            if kind == END {
                break;
            }
            let data_at = at + 8;
            field("header extension length", at as u64 + 4).within(data_at as u64, len.into(), header.len() as u64)?;
            let Some(data) = header.get(data_at..data_at + len as usize) else { break };
            extensions.take(kind, data, data_at as u64)?;
            at = data_at + (len as usize).next_multiple_of(8);
        }
        Ok(extensions)
    }

    fn take(&mut self, kind: u32, data: &[u8], at: u64) -> Result<()> {
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

    /// The extensions as they are written, in qemu's order, with the end mark.
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

    /// The name of a feature bit, from the image's own table if it has one: it knows bits that this crate does not.
    pub fn feature_name(&self, kind: u8, bit: u8) -> String {
        match self.features.iter().find(|feature| (feature.kind, feature.bit) == (kind, bit)) {
            Some(feature) => format!("{bit} ({})", feature.name),
            None => bit.to_string(),
        }
    }
}

impl Feature {
    /// The bits that the specification names.
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
    Err(field(name, at - 4).fault(Problem::Range { value, min: len, max: len }))
}
