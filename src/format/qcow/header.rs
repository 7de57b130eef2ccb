//! The header.
//!
//! [`Header::parse`] returns only valid headers; [`Header::encode`] mirrors it.

use std::ops::{Range, RangeInclusive};

use byteorder::{BigEndian, ByteOrder};

use super::{FIELDS, FORMAT_NAME};
use crate::error::{Error, Problem, Result};
pub(super) use crate::format::shared::signature::QCOW as MAGIC;
use crate::format::shared::table;
use crate::format::shared::two_level::{ENTRY, Shape};
use crate::io::ReadAt;
use crate::limits::{LimitName, Limits};
use crate::name::Name;

/// Base-2 logarithms of the cluster sizes that qemu opens.
pub(super) const CLUSTER_BITS: RangeInclusive<u8> = 9..=16;
/// Base-2 logarithms of the numbers of entries of an L2 table that qemu opens.
const L2_BITS: RangeInclusive<u8> = 6..=13;
/// Length in bytes of the longest backing file name in qemu.
pub(super) const MAX_BACKING_NAME: u64 = 1023;

/// Entries of the largest L1 table that qemu opens.
pub(super) const MAX_L1_ENTRIES: u64 = i32::MAX as u64 / ENTRY;

/// A valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub backing_file: Option<Name>,
    /// Virtual size in bytes.
    pub size: u64,
    /// Base-2 logarithm of the cluster size in bytes.
    pub cluster_bits: u8,
    /// Base-2 logarithm of the number of entries of an L2 table.
    pub l2_bits: u8,
    /// Whether guest data is encrypted with AES.
    pub is_encrypted: bool,
    pub l1_table_offset: u64,
}

impl Header {
    /// Bytes of the header without the backing file name.
    pub const LEN: usize = 48;

    /// Reads the header of `file`.
    pub fn read(file: &dyn ReadAt, limits: &Limits) -> Result<Header> {
        let (bytes, file_len) = FIELDS.read_header(file)?;
        let mut header = Header::parse(&bytes, file_len, limits)?;
        if let Some(range) = backing_name(&bytes, file_len)? {
            let mut name = vec![0; (range.end - range.start) as usize];
            table::read(file, &mut name, range.start)?;
            header.backing_file = Some(Name::from(name.as_slice()));
        }
        Ok(header)
    }

    /// Parses the first bytes of a file of `file_len` bytes, but for the backing file.
    pub fn parse(bytes: &[u8; Header::LEN], file_len: u64, limits: &Limits) -> Result<Header> {
        let u32_at = |offset: usize| BigEndian::read_u32(&bytes[offset..]);
        let u64_at = |offset: usize| BigEndian::read_u64(&bytes[offset..]);

        if !bytes.starts_with(MAGIC) {
            let rule = "must be 0x514649fb";
            return Err(FIELDS.at("magic", 0).fault(Problem::Rule { value: u32_at(0).into(), rule }));
        }
        if u32_at(4) != 1 {
            let feature = format!("version {}", u32_at(4)).into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(4) });
        }
        let header = Header {
            backing_file: None,
            size: u64_at(24),
            cluster_bits: in_range("cluster_bits", 32, bytes[32], CLUSTER_BITS)?,
            l2_bits: in_range("l2_bits", 33, bytes[33], L2_BITS)?,
            is_encrypted: match u32_at(36) {
                0 => false,
                1 => true,
                other => {
                    let feature = format!("encryption method {other}").into();
                    return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(36) });
                }
            },
            l1_table_offset: u64_at(40),
        };
        FIELDS.at("size", 24).within_limit(LimitName::VirtualSize, header.size, limits.virtual_size)?;
        FIELDS.at("number of L1 entries for the size", 24).at_most(header.shape().l1_entries(), MAX_L1_ENTRIES)?;
        let l1 = FIELDS.at("l1_table_offset", 40);
        l1.within(header.l1_table_offset, header.shape().l1_entries() * ENTRY, file_len)?;
        if header.l1_table_offset < Header::LEN as u64 && header.size > 0 {
            return Err(l1.fault(Problem::Overlap { offset: header.l1_table_offset, with: "the header" }));
        }
        Ok(header)
    }

    pub fn shape(&self) -> Shape {
        Shape {
            format: FORMAT_NAME,
            cluster_bits: self.cluster_bits.into(),
            l2_entries: 1 << self.l2_bits,
            l1_offset: self.l1_table_offset,
            virtual_size: self.size,
            decode: u64::from_be_bytes,
            encode: u64::to_be_bytes,
        }
    }

    /// Encodes the header, followed by the backing file name.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; Header::LEN];
        if let Some(name) = &self.backing_file {
            bytes.extend(name.as_bytes());
            BigEndian::write_u64(&mut bytes[8..], Header::LEN as u64);
            BigEndian::write_u32(&mut bytes[16..], name.as_bytes().len() as u32);
        }
        bytes[..MAGIC.len()].copy_from_slice(MAGIC);
        BigEndian::write_u32(&mut bytes[4..], 1);
        BigEndian::write_u64(&mut bytes[24..], self.size);
        bytes[32] = self.cluster_bits;
        bytes[33] = self.l2_bits;
        BigEndian::write_u32(&mut bytes[36..], self.is_encrypted.into());
        BigEndian::write_u64(&mut bytes[40..], self.l1_table_offset);
        bytes
    }
}

/// The range of the file with the backing file name, if there is one.
pub(super) fn backing_name(bytes: &[u8; Header::LEN], file_len: u64) -> Result<Option<Range<u64>>> {
    let (offset, len) = (BigEndian::read_u64(&bytes[8..]), u64::from(BigEndian::read_u32(&bytes[16..])));
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    if len > MAX_BACKING_NAME {
        return Err(FIELDS.at("backing_file_size", 16).fault(Problem::Range {
            value: len,
            min: 0,
            max: MAX_BACKING_NAME,
        }));
    }
    let field = FIELDS.at("backing_file_offset", 8);
    field.within(offset, len, file_len)?;
    if offset < Header::LEN as u64 {
        return Err(field.fault(Problem::Overlap { offset, with: "the header" }));
    }
    Ok(Some(offset..offset + len))
}

fn in_range(name: &'static str, at: u64, value: u8, range: RangeInclusive<u8>) -> Result<u8> {
    if range.contains(&value) {
        return Ok(value);
    }
    let (min, max) = ((*range.start()).into(), (*range.end()).into());
    Err(FIELDS.at(name, at).fault(Problem::Range { value: value.into(), min, max }))
}

#[cfg(test)]
mod tests;
