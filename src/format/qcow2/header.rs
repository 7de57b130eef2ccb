//! The header, in the first cluster (qcow2 specification, "Header").
//!
//! [`Header::parse`] returns valid headers only; [`Header::encode`] is its inverse.

use std::sync::Arc;

use bitflags::bitflags;
use byteorder::{BigEndian, ByteOrder};

use super::extension::Extensions;
use super::{FIELDS, FORMAT_NAME};
use crate::codec::Codec;
use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::limits::{LimitName, Limits};
use crate::name::Name;

pub(crate) use crate::format::shared::signature::QCOW as MAGIC;
/// Length in bytes of a version 2 header. Its extensions follow.
pub(crate) const V2_LENGTH: u32 = 72;
/// Length in bytes of a version 3 header without optional fields.
const V3_LENGTH: u32 = 104;
/// Length in bytes of a version 3 header as written: with `compression_type` and padding.
pub(crate) const V3_WRITTEN_LENGTH: u32 = 112;
/// Largest L1 table in qemu: 32 MiB.
pub(crate) const MAX_L1_ENTRIES: u64 = (32 << 20) / 8;
/// Largest refcount table in qemu: 8 MiB.
pub(crate) const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// Longest name of a backing file, in bytes.
pub(crate) const MAX_BACKING_NAME: u64 = 1023;

bitflags! {
    /// Incompatible features: an image with an unknown one must not be opened.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Incompatible: u64 {
        const DIRTY = 1 << 0;
        const CORRUPT = 1 << 1;
        const DATA_FILE = 1 << 2;
        const COMPRESSION_TYPE = 1 << 3;
        const EXTENDED_L2 = 1 << 4;
        const _ = !0;
    }

    /// Compatible features: unknown ones are ignored.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Compatible: u64 {
        const LAZY_REFCOUNTS = 1 << 0;
        const _ = !0;
    }

    /// Autoclear features: a writer clears unknown ones.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Autoclear: u64 {
        const BITMAPS = 1 << 0;
        const RAW_DATA_FILE = 1 << 1;
        const _ = !0;
    }
}

/// Encryption method of guest data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encryption {
    None,
    Aes,
    Luks,
}

/// A valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// 2 or 3.
    pub version: u32,
    pub backing_file: Option<Name>,
    /// 9 to 21.
    pub cluster_bits: u32,
    /// Virtual size in bytes.
    pub size: u64,
    pub encryption: Encryption,
    pub l1_size: u32,
    pub l1_table_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub nb_snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: Incompatible,
    pub compatible: Compatible,
    pub autoclear: Autoclear,
    /// Refcounts have `1 << refcount_order` bits; 0 to 6.
    pub refcount_order: u32,
    /// Offset of the extensions in bytes.
    pub header_length: u32,
    pub compression: Codec,
    pub extensions: Extensions,
}

impl Header {
    /// Reads and parses the header of `file`.
    pub fn read(file: &Arc<dyn ReadAt>, limits: &Limits) -> Result<Header> {
        let file_len = table::length(&**file)?;
        Header::parse(&Header::first_cluster(file, file_len)?, file_len, limits)
    }

    /// Reads and parses the header of `file`, whose L1 table may be cut off, or be missing, at the end of the file. A check reports that.
    pub fn read_for_check(file: &Arc<dyn ReadAt>, limits: &Limits) -> Result<Header> {
        let file_len = table::length(&**file)?;
        let cluster = Header::first_cluster(file, file_len)?;
        // No file is longer: entries of tables have 56 bits for an offset.
        Header::parse(&cluster, 1 << 56, limits)
    }

    /// Reads the first cluster, or the whole file if it is shorter.
    fn first_cluster(file: &Arc<dyn ReadAt>, file_len: u64) -> Result<Vec<u8>> {
        let mut start = [0; 24];
        FIELDS.at("header", 0).within(0, start.len() as u64, file_len)?;
        table::read(&**file, &mut start, 0)?;
        let cluster_bits = parse_cluster_bits(&start)?;
        let mut cluster = vec![0; (1 << cluster_bits).min(file_len) as usize];
        table::read(&**file, &mut cluster, 0)?;
        Ok(cluster)
    }

    /// Parses the header in `cluster`, the first cluster, or the whole file if it is shorter.
    pub fn parse(cluster: &[u8], file_len: u64, limits: &Limits) -> Result<Header> {
        let length = if parse_version(cluster)? == 2 { V2_LENGTH } else { V3_LENGTH };
        FIELDS.at("header", 0).within(0, length.into(), cluster.len() as u64)?;
        let u32_at = |at: usize| BigEndian::read_u32(&cluster[at..]);
        let u64_at = |at: usize| BigEndian::read_u64(&cluster[at..]);

        let version = parse_version(cluster)?;
        let cluster_bits = parse_cluster_bits(cluster)?;
        let size = u64_at(24);
        FIELDS.at("size", 24).within_limit(LimitName::VirtualSize, size, limits.virtual_size)?;
        let encryption = match u32_at(32) {
            0 => Encryption::None,
            1 => Encryption::Aes,
            2 => Encryption::Luks,
            other => return Err(range("crypt_method", 32, other.into(), 0, 2)),
        };
        let mut header = Header {
            version,
            backing_file: None,
            cluster_bits,
            size,
            encryption,
            l1_size: u32_at(36),
            l1_table_offset: u64_at(40),
            refcount_table_offset: u64_at(48),
            refcount_table_clusters: u32_at(56),
            nb_snapshots: u32_at(60),
            snapshots_offset: u64_at(64),
            incompatible: Incompatible::empty(),
            compatible: Compatible::empty(),
            autoclear: Autoclear::empty(),
            refcount_order: 4,
            header_length: V2_LENGTH,
            compression: Codec::Deflate,
            extensions: Extensions::default(),
        };
        if version >= 3 {
            header.incompatible = Incompatible::from_bits_retain(u64_at(72));
            header.compatible = Compatible::from_bits_retain(u64_at(80));
            header.autoclear = Autoclear::from_bits_retain(u64_at(88));
            header.refcount_order = u32_at(96);
            header.header_length = u32_at(100);
            header.check_version_3(cluster)?;
        }
        header.backing_file = header.parse_backing_file(cluster)?;
        let end = header.extensions_end(cluster);
        header.extensions = Extensions::parse(cluster.get(..end).unwrap_or(cluster), header.header_length)?;
        header.check_features()?;
        header.check_tables(file_len)?;
        Ok(header)
    }

    /// Encodes the header with extensions and backing file name, for the start of the first cluster.
    pub fn encode(&self) -> Vec<u8> {
        let extensions = self.extensions.encode();
        let name_offset = self.header_length as usize + extensions.len();
        let name = self.backing_file.as_ref().map_or(&[][..], Name::as_bytes);
        let mut bytes = vec![0; self.header_length as usize];
        let mut put_u32 = |at: usize, value| BigEndian::write_u32(&mut bytes[at..], value);
        put_u32(4, self.version);
        put_u32(16, name.len() as u32);
        put_u32(20, self.cluster_bits);
        put_u32(32, self.encryption as u32);
        put_u32(36, self.l1_size);
        put_u32(56, self.refcount_table_clusters);
        put_u32(60, self.nb_snapshots);
        let mut put_u64 = |at: usize, value| BigEndian::write_u64(&mut bytes[at..], value);
        put_u64(8, if name.is_empty() { 0 } else { name_offset as u64 });
        put_u64(24, self.size);
        put_u64(40, self.l1_table_offset);
        put_u64(48, self.refcount_table_offset);
        put_u64(64, self.snapshots_offset);
        if self.version >= 3 {
            put_u64(72, self.incompatible.bits());
            put_u64(80, self.compatible.bits());
            put_u64(88, self.autoclear.bits());
            BigEndian::write_u32(&mut bytes[96..], self.refcount_order);
            BigEndian::write_u32(&mut bytes[100..], self.header_length);
            if self.header_length > V3_LENGTH {
                bytes[104] = (self.compression == Codec::Zstd).into();
            }
        }
        bytes[..4].copy_from_slice(MAGIC);
        bytes.extend(extensions);
        bytes.extend(name);
        bytes
    }

    /// Cluster size in bytes.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub fn extended_l2(&self) -> bool {
        self.incompatible.contains(Incompatible::EXTENDED_L2)
    }

    /// Whether guest data is in an external data file. Its name may be missing.
    pub fn has_data_file(&self) -> bool {
        self.incompatible.contains(Incompatible::DATA_FILE)
    }

    /// Size of an L2 entry in bytes.
    pub fn l2_entry_size(&self) -> u64 {
        if self.extended_l2() { 16 } else { 8 }
    }

    /// Entries per L2 table, which is one cluster.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_size() / self.l2_entry_size()
    }

    /// Guest bytes per L2 table.
    pub fn l2_coverage(&self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// L1 entries needed for a disk of `size` bytes.
    pub fn l1_entries_for(&self, size: u64) -> u64 {
        size.div_ceil(self.l2_coverage())
    }

    /// Refcounts per refcount block, which is one cluster.
    pub fn refcount_block_entries(&self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    fn check_version_3(&mut self, cluster: &[u8]) -> Result<()> {
        if self.refcount_order > 6 {
            return Err(range("refcount_order", 96, self.refcount_order.into(), 0, 6));
        }
        let length = self.header_length;
        if u64::from(length) > self.cluster_size() || length < V3_LENGTH {
            return Err(range("header_length", 100, length.into(), V3_LENGTH.into(), self.cluster_size()));
        }
        FIELDS.at("header_length", 100).aligned(length.into(), 8)?;
        FIELDS.at("header_length", 100).within(0, length.into(), cluster.len() as u64)?;
        let compression_type = if length > V3_LENGTH { cluster[104] } else { 0 };
        self.compression = match compression_type {
            0 => Codec::Deflate,
            1 => Codec::Zstd,
            other => return Err(unsupported(format!("compression type {other}"), 104)),
        };
        if self.incompatible.contains(Incompatible::COMPRESSION_TYPE) != (compression_type != 0) {
            let rule = "must be nonzero if and only if incompatible feature bit 3 is set";
            return Err(FIELDS
                .at("compression_type", 104)
                .fault(Problem::Rule { value: compression_type.into(), rule }));
        }
        Ok(())
    }

    fn parse_backing_file(&self, cluster: &[u8]) -> Result<Option<Name>> {
        let (offset, len) = (BigEndian::read_u64(&cluster[8..]), BigEndian::read_u32(&cluster[16..]));
        FIELDS.at("backing_file_offset", 8).within(offset, 0, cluster.len() as u64)?;
        if offset == 0 || len == 0 {
            return Ok(None);
        }
        if u64::from(len) > MAX_BACKING_NAME {
            return Err(range("backing_file_size", 16, len.into(), 0, MAX_BACKING_NAME));
        }
        FIELDS.at("backing_file_offset", 8).within(offset, len.into(), cluster.len() as u64)?;
        if offset < self.header_length.into() {
            let rule = "must be after the header";
            return Err(FIELDS.at("backing_file_offset", 8).fault(Problem::Rule { value: offset, rule }));
        }
        Ok(cluster.get(offset as usize..offset as usize + len as usize).map(Name::from))
    }

    /// Offset in bytes of the end of the extensions: the backing file name, or the end of the first cluster.
    fn extensions_end(&self, cluster: &[u8]) -> usize {
        match &self.backing_file {
            Some(_) => BigEndian::read_u64(&cluster[8..]) as usize,
            None => cluster.len(),
        }
    }

    fn check_features(&self) -> Result<()> {
        let known = Incompatible::DIRTY
            | Incompatible::CORRUPT
            | Incompatible::DATA_FILE
            | Incompatible::COMPRESSION_TYPE
            | Incompatible::EXTENDED_L2;
        let unknown = self.incompatible.difference(known).bits();
        if unknown != 0 {
            let names: Vec<_> =
                (0..64).filter(|bit| unknown >> bit & 1 != 0).map(|bit| self.extensions.feature_name(0, bit)).collect();
            return Err(unsupported(format!("incompatible feature {}", names.join(", ")), 72));
        }
        if self.extended_l2() && self.cluster_bits < 14 {
            return Err(range("cluster_bits with extended L2 entries", 20, self.cluster_bits.into(), 14, 21));
        }
        if self.extensions.data_file.is_some() && !self.has_data_file() {
            let rule = "must have bit 2 set with a data file name extension";
            return Err(FIELDS
                .at("incompatible_features", 72)
                .fault(Problem::Rule { value: self.incompatible.bits(), rule }));
        }
        Ok(())
    }

    /// Checks the tables of the active state. The snapshot table may be damaged.
    fn check_tables(&self, file_len: u64) -> Result<()> {
        let cluster_size = self.cluster_size();
        FIELDS.at("l1_size", 36).at_most(self.l1_size.into(), MAX_L1_ENTRIES)?;
        let needed = self.l1_entries_for(self.size);
        if u64::from(self.l1_size) < needed {
            return Err(range("l1_size", 36, self.l1_size.into(), needed, MAX_L1_ENTRIES));
        }
        FIELDS.at("l1_table_offset", 40).aligned(self.l1_table_offset, cluster_size)?;
        FIELDS.at("l1_table_offset", 40).within(self.l1_table_offset, needed * 8, file_len)?;
        if needed > 0 && self.l1_table_offset == 0 {
            let overlap = Problem::Overlap { offset: 0, with: "the header" };
            return Err(FIELDS.at("l1_table_offset", 40).fault(overlap));
        }
        FIELDS.at("refcount_table_offset", 48).aligned(self.refcount_table_offset, cluster_size)?;
        let refcount_table = u64::from(self.refcount_table_clusters) << self.cluster_bits;
        FIELDS
            .at("refcount_table_clusters", 56)
            .at_most(self.refcount_table_clusters.into(), (MAX_REFCOUNT_TABLE >> self.cluster_bits).max(1))?;
        FIELDS.at("refcount_table_offset", 48).fits_u63(self.refcount_table_offset, refcount_table)?;
        Ok(())
    }
}

fn parse_version(start: &[u8]) -> Result<u32> {
    let Some(start) = start.get(..8) else {
        let problem = Problem::OutOfBounds { offset: 0, len: V2_LENGTH.into(), file_len: start.len() as u64 };
        return Err(FIELDS.at("header", 0).fault(problem));
    };
    if !start.starts_with(MAGIC) {
        let rule = "must be 0x514649fb";
        return Err(FIELDS.at("magic", 0).fault(Problem::Rule { value: BigEndian::read_u32(start).into(), rule }));
    }
    match BigEndian::read_u32(&start[4..]) {
        version @ (2 | 3) => Ok(version),
        other => Err(unsupported(format!("version {other}"), 4)),
    }
}

fn parse_cluster_bits(start: &[u8]) -> Result<u32> {
    parse_version(start)?;
    match start.get(20..24).map(BigEndian::read_u32) {
        Some(bits @ 9..=21) => Ok(bits),
        Some(bits) => Err(range("cluster_bits", 20, bits.into(), 9, 21)),
        None => Err(FIELDS.at("header", 0).fault(Problem::OutOfBounds {
            offset: 0,
            len: V2_LENGTH.into(),
            file_len: start.len() as u64,
        })),
    }
}

fn range(name: &'static str, at: u64, value: u64, min: u64, max: u64) -> Error {
    FIELDS.at(name, at).fault(Problem::Range { value, min, max })
}

fn unsupported(feature: String, at: u64) -> Error {
    Error::Unsupported { format: FORMAT_NAME, feature: feature.into(), at: Some(at) }
}

#[cfg(test)]
mod tests;
