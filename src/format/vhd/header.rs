//! The header of a dynamic or differencing image (the document, "Dynamic Disk Header Format").
//!
//! [`Header::parse`] returns only valid headers; [`Header::encode`] mirrors it.

use byteorder::{BigEndian, ByteOrder};
use uuid::Uuid;

use super::locator::Locator;
use super::{FIELDS, FORMAT_NAME, SECTOR, checksum};
use crate::error::{Error, Problem, Result};
use crate::name::{Name, utf16, utf16_text};

const COOKIE: &[u8; 8] = b"cxsparse";
/// Offset of the checksum in the header.
pub(super) const CHECKSUM_AT: usize = 36;
/// 1.0
const VERSION: u32 = 0x0001_0000;
/// `data offset`, which is reserved. The document has 32 one bits, Microsoft writes 64.
const NO_DATA_OFFSET: u64 = !0;
/// The bytes of the parent's name, in UTF-16.
const NAME: std::ops::Range<usize> = 64..576;
/// Offset of the parent locators in the header.
const LOCATORS_AT: usize = 576;
/// Largest supported block. The document has no limit; 2 MiB is the default.
const MAX_BLOCK_SIZE: u32 = 256 << 20;

/// A valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Host offset of the block allocation table.
    pub table_offset: u64,
    /// Entries in the table: at least the number of blocks of the disk.
    pub max_table_entries: u32,
    /// Guest bytes in a block: a power of two, at least a sector.
    pub block_size: u32,
    /// Meaningless unless the disk is differencing.
    pub parent: Parent,
}

/// The parent of a differencing image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parent {
    pub unique_id: Uuid,
    /// Modification time of its file: seconds since [`EPOCH`](super::EPOCH).
    pub timestamp: u32,
    /// Its file name, without a directory.
    pub name: Name,
    /// The used parent locators, which hold paths.
    pub locators: Vec<Locator>,
}

impl Header {
    /// Bytes in the file.
    pub const LEN: u64 = 2 * SECTOR;
    /// Number of parent locators.
    pub const LOCATORS: usize = 8;

    /// Parses the header `bytes` at host offset `at`.
    pub fn parse(bytes: &[u8; Header::LEN as usize], at: u64) -> Result<Header> {
        let field = |name, offset: u64| FIELDS.at(name, at.saturating_add(offset));
        let u32_at = |offset: usize| BigEndian::read_u32(&bytes[offset..]);
        let u64_at = |offset: usize| BigEndian::read_u64(&bytes[offset..]);

        if !bytes.starts_with(COOKIE) {
            let rule = "must be \"cxsparse\"";
            return Err(field("cookie", 0).fault(Problem::Rule { value: u64_at(0), rule }));
        }
        let on_disk = u32_at(CHECKSUM_AT);
        if on_disk != checksum(bytes, CHECKSUM_AT) {
            let problem = Problem::Conflict { value: on_disk.into(), finding: "checksum mismatch" };
            return Err(field("checksum", CHECKSUM_AT as u64).fault(problem));
        }
        let version = u32_at(24);
        if version >> 16 != VERSION >> 16 {
            let feature = format!("header version {}.{}", version >> 16, version & 0xffff).into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(at.saturating_add(24)) });
        }
        let block_size = u32_at(32);
        let (value, min, max) = (block_size.into(), SECTOR, MAX_BLOCK_SIZE.into());
        if !(min..=max).contains(&value) {
            return Err(field("block size", 32).fault(Problem::Range { value, min, max }));
        }
        if !block_size.is_power_of_two() {
            return Err(field("block size", 32).fault(Problem::Rule { value, rule: "must be a power of two" }));
        }
        let entries = bytes[LOCATORS_AT..].chunks(Locator::LEN).take(Self::LOCATORS);
        let locators = entries.zip(0..).filter_map(|(entry, index)| {
            Locator::parse(entry, at.saturating_add(LOCATORS_AT as u64 + index * Locator::LEN as u64))
        });
        Ok(Header {
            table_offset: u64_at(16),
            max_table_entries: u32_at(28),
            block_size,
            parent: Parent {
                unique_id: Uuid::from_u128(BigEndian::read_u128(&bytes[40..])),
                timestamp: u32_at(56),
                name: utf16_text(&bytes[NAME], u16::from_be_bytes).into(),
                locators: locators.collect(),
            },
        })
    }

    /// Encodes the header. A long name is truncated; the locators hold the whole path.
    pub fn encode(&self) -> [u8; Header::LEN as usize] {
        let mut bytes = [0; Header::LEN as usize];
        bytes[..8].copy_from_slice(COOKIE);
        BigEndian::write_u64(&mut bytes[8..], NO_DATA_OFFSET);
        BigEndian::write_u64(&mut bytes[16..], self.table_offset);
        BigEndian::write_u32(&mut bytes[24..], VERSION);
        BigEndian::write_u32(&mut bytes[28..], self.max_table_entries);
        BigEndian::write_u32(&mut bytes[32..], self.block_size);
        bytes[40..56].copy_from_slice(self.parent.unique_id.as_bytes());
        BigEndian::write_u32(&mut bytes[56..], self.parent.timestamp);
        let name = utf16(&self.parent.name.to_text(), u16::to_be_bytes);
        for (byte, text) in bytes[NAME].iter_mut().zip(name) {
            *byte = text;
        }
        for (entry, locator) in
            bytes[LOCATORS_AT..].chunks_mut(Locator::LEN).zip(&self.parent.locators).take(Self::LOCATORS)
        {
            entry.copy_from_slice(&locator.encode());
        }
        let sum = checksum(&bytes, CHECKSUM_AT);
        BigEndian::write_u32(&mut bytes[CHECKSUM_AT..], sum);
        bytes
    }

    /// Length of the table in bytes.
    pub fn table_len(&self) -> u64 {
        u64::from(self.max_table_entries) * 4
    }

    /// Length of the bitmap of a block in bytes: whole sectors.
    pub fn bitmap_len(&self) -> u64 {
        (u64::from(self.block_size) / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }

    /// Largest disk in bytes that the table can describe.
    pub fn capacity(&self) -> u64 {
        u64::from(self.max_table_entries) * u64::from(self.block_size)
    }
}

#[cfg(test)]
mod tests;
