//! The header (QED specification, "Header").
//!
//! [`Header::parse`] returns only valid headers; [`Header::encode`] mirrors it.

use std::ops::RangeInclusive;

use byteorder::{ByteOrder, LittleEndian};

use super::{FIELDS, FORMAT_NAME, SECTOR};
use crate::error::{Error, Problem, Result};
pub(super) use crate::format::shared::signature::QED as MAGIC;
use crate::format::shared::table;
use crate::format::shared::two_level::{ENTRY, Shape};
use crate::io::ReadAt;
use crate::limits::{LimitName, Limits};
use crate::name::Name;

/// Bytes in a cluster, powers of two.
pub(super) const CLUSTER_SIZES: RangeInclusive<u64> = 1 << 12..=1 << 26;
/// Clusters in a table, powers of two.
pub(super) const TABLE_SIZES: RangeInclusive<u64> = 1..=16;
/// Length in bytes of the longest backing file name in qemu.
pub(super) const MAX_BACKING_NAME: u64 = 1023;

/// `QED_F_BACKING_FILE`
pub(super) const BACKING_FILE: u64 = 1;
/// `QED_F_NEED_CHECK`
pub(super) const NEED_CHECK: u64 = 2;
/// `QED_F_BACKING_FORMAT_NO_PROBE`: the backing file is raw.
pub(super) const BACKING_IS_RAW: u64 = 4;

/// A valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Base-2 logarithm of the cluster size in bytes.
    pub cluster_bits: u32,
    /// Clusters in a table.
    pub table_size: u32,
    /// Clusters before the first one that a table may use; the backing file name is in them.
    pub header_size: u32,
    /// Whether the image was not closed by its writer.
    pub need_check: bool,
    pub l1_table_offset: u64,
    /// Virtual size in bytes, a multiple of 512.
    pub image_size: u64,
    pub backing: Option<Backing>,
}

/// The backing file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backing {
    pub name: Name,
    /// Whether its format is raw. Otherwise the image does not state it.
    pub is_raw: bool,
}

impl Header {
    /// Bytes of the header without the backing file name.
    pub const LEN: usize = 64;

    /// Reads the header of `file`.
    pub fn read(file: &dyn ReadAt, limits: &Limits) -> Result<Header> {
        let (bytes, file_len) = FIELDS.read_header(file)?;
        let mut header = Header::parse(&bytes, file_len, limits)?;
        if let Some(range) = header.backing_name(&bytes, file_len)? {
            let mut name = vec![0; (range.end - range.start) as usize];
            table::read(file, &mut name, range.start)?;
            let is_raw = LittleEndian::read_u64(&bytes[16..]) & BACKING_IS_RAW != 0;
            header.backing = Some(Backing { name: Name::from(name.as_slice()), is_raw });
        }
        Ok(header)
    }

    /// Parses the first bytes of a file of `file_len` bytes, but for the backing file.
    pub fn parse(bytes: &[u8; Header::LEN], file_len: u64, limits: &Limits) -> Result<Header> {
        let u32_at = |offset: usize| LittleEndian::read_u32(&bytes[offset..]);
        let u64_at = |offset: usize| LittleEndian::read_u64(&bytes[offset..]);

        if !bytes.starts_with(MAGIC) {
            let rule = "must be 0x444551";
            return Err(FIELDS.at("magic", 0).fault(Problem::Rule { value: u32_at(0).into(), rule }));
        }
        let unknown = u64_at(16) & !(BACKING_FILE | NEED_CHECK | BACKING_IS_RAW);
        if unknown != 0 {
            let feature = format!("features {unknown:#x}").into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(16) });
        }
        let cluster_size = power_of_two("cluster_size", 4, u32_at(4), CLUSTER_SIZES)?;
        let header = Header {
            cluster_bits: cluster_size.ilog2(),
            table_size: power_of_two("table_size", 8, u32_at(8), TABLE_SIZES)?,
            header_size: u32_at(12),
            need_check: u64_at(16) & NEED_CHECK != 0,
            l1_table_offset: u64_at(40),
            image_size: u64_at(48),
            backing: None,
        };
        header.check(file_len, limits)?;
        Ok(header)
    }

    fn check(&self, file_len: u64, limits: &Limits) -> Result<()> {
        let shape = self.shape();
        if self.header_size == 0 {
            let problem = Problem::Range { value: 0, min: 1, max: u32::MAX.into() };
            return Err(FIELDS.at("header_size", 12).fault(problem));
        }
        FIELDS.at("image_size", 48).within_limit(LimitName::VirtualSize, self.image_size, limits.virtual_size)?;
        FIELDS.at("image_size", 48).aligned(self.image_size, SECTOR)?;
        if shape.l1_entries() > shape.l2_entries {
            let max = shape.l2_coverage().saturating_mul(shape.l2_entries);
            return Err(FIELDS.at("image_size", 48).fault(Problem::Range { value: self.image_size, min: 0, max }));
        }
        let l1 = FIELDS.at("l1_table_offset", 40);
        l1.aligned(self.l1_table_offset, shape.cluster_size())?;
        l1.within(self.l1_table_offset, shape.l2_len(), file_len)?;
        if self.l1_table_offset < self.header_len() {
            return Err(l1.fault(Problem::Overlap { offset: self.l1_table_offset, with: "the header" }));
        }
        Ok(())
    }

    /// The range of the file with the backing file name, if there is one.
    fn backing_name(&self, bytes: &[u8; Header::LEN], file_len: u64) -> Result<Option<std::ops::Range<u64>>> {
        let u32_at = |offset: usize| u64::from(LittleEndian::read_u32(&bytes[offset..]));
        if LittleEndian::read_u64(&bytes[16..]) & BACKING_FILE == 0 {
            return Ok(None);
        }
        let (offset, len) = (u32_at(56), u32_at(60));
        let field = FIELDS.at("backing_filename_size", 60);
        if len == 0 || len > MAX_BACKING_NAME {
            return Err(field.fault(Problem::Range { value: len, min: 1, max: MAX_BACKING_NAME }));
        }
        // "The string must be stored within the first header_size clusters."
        let field = FIELDS.at("backing_filename_offset", 56);
        field.within(offset, len, self.header_len().min(file_len))?;
        if offset < Header::LEN as u64 {
            return Err(field.fault(Problem::Overlap { offset, with: "the header" }));
        }
        Ok(Some(offset..offset + len))
    }

    /// Bytes of the clusters of the header.
    pub fn header_len(&self) -> u64 {
        u64::from(self.header_size) << self.cluster_bits
    }

    pub fn shape(&self) -> Shape {
        Shape {
            format: FORMAT_NAME,
            cluster_bits: self.cluster_bits,
            l2_entries: (u64::from(self.table_size) << self.cluster_bits) / ENTRY,
            l1_offset: self.l1_table_offset,
            virtual_size: self.image_size,
            decode: u64::from_le_bytes,
            encode: u64::to_le_bytes,
        }
    }

    /// Encodes the header, followed by the backing file name.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; Header::LEN];
        let mut features = if self.need_check { NEED_CHECK } else { 0 };
        if let Some(backing) = &self.backing {
            features |= BACKING_FILE | if backing.is_raw { BACKING_IS_RAW } else { 0 };
            bytes.extend(backing.name.as_bytes());
        }
        let name_len = bytes.len() - Header::LEN;
        let name_offset = if name_len == 0 { 0 } else { Header::LEN };
        for (offset, number) in [
            (4, 1 << self.cluster_bits),
            (8, self.table_size),
            (12, self.header_size),
            (56, name_offset as u32),
            (60, name_len as u32),
        ] {
            LittleEndian::write_u32(&mut bytes[offset..], number);
        }
        for (offset, number) in [(16, features), (40, self.l1_table_offset), (48, self.image_size)] {
            LittleEndian::write_u64(&mut bytes[offset..], number);
        }
        bytes[..MAGIC.len()].copy_from_slice(MAGIC);
        bytes
    }
}

fn power_of_two(name: &'static str, at: u64, value: u32, range: RangeInclusive<u64>) -> Result<u32> {
    let field = FIELDS.at(name, at);
    if !range.contains(&value.into()) {
        return Err(field.fault(Problem::Range { value: value.into(), min: *range.start(), max: *range.end() }));
    }
    if !value.is_power_of_two() {
        return Err(field.fault(Problem::Rule { value: value.into(), rule: "must be a power of two" }));
    }
    Ok(value)
}

#[cfg(test)]
mod tests;
