//! The header of an image that is not fixed (the document, "Dynamic Disk Header Format").
//!
//! [`Header::parse`] returns only valid headers; [`Header::encode`] mirrors it.

use byteorder::{BigEndian, ByteOrder};
use uuid::Uuid;

use super::locator::Locator;
use super::{FIELDS, FORMAT_NAME, SECTOR, checksum};
use crate::error::{Error, Problem, Result};
use crate::name::{Name, utf16, utf16_text};

const COOKIE: &[u8; 8] = b"cxsparse";
/// Byte offset of the checksum in the header.
const CHECKSUM_AT: usize = 36;
/// 1.0
const VERSION: u32 = 0x0001_0000;
/// `data offset`: reserved for more. The document has 32 bits of ones, and Microsoft writes 64.
const NOTHING_MORE: u64 = !0;
/// The parent's name: at most so many bytes of UTF-16.
const NAME: std::ops::Range<usize> = 64..576;
/// Where the parent locators begin.
const LOCATORS_AT: usize = 576;
/// Largest block that is read. The document has no limit, and 2 MiB as the usual size.
const MAX_BLOCK_SIZE: u32 = 256 << 20;

/// A valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Where the block allocation table is.
    pub table_offset: u64,
    /// Its length: the number of blocks of the disk, or more.
    pub max_table_entries: u32,
    /// Bytes of the disk in a block, a power of two from a sector on.
    pub block_size: u32,
    /// Of no meaning unless the disk is a differencing one.
    pub parent: Parent,
}

/// The image that a differencing one lies over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parent {
    pub unique_id: Uuid,
    /// When its file was changed last: seconds since [`EPOCH`](super::EPOCH).
    pub timestamp: u32,
    /// Its file's name, without a directory.
    pub name: Name,
    /// Where longer names of it are. The empty ones are left out.
    pub locators: Vec<Locator>,
}

impl Header {
    /// Bytes in the file.
    pub const LEN: u64 = 2 * SECTOR;
    /// Number of parent locators.
    pub const LOCATORS: usize = 8;

    /// Parses the header `bytes`, which stands at offset `at` of the file.
    pub fn parse(bytes: &[u8; Header::LEN as usize], at: u64) -> Result<Header> {
        let field = |name, offset: u64| FIELDS.at(name, at.saturating_add(offset));
        let u32_at = |offset: usize| BigEndian::read_u32(&bytes[offset..]);
        let u64_at = |offset: usize| BigEndian::read_u64(&bytes[offset..]);

        if !bytes.starts_with(COOKIE) {
            let rule = "a header begins with \"cxsparse\"";
            return Err(field("cookie", 0).fault(Problem::Rule { value: u64_at(0), rule }));
        }
        let stored = u32_at(CHECKSUM_AT);
        if stored != checksum(bytes, CHECKSUM_AT) {
            let rule = "the header has another checksum: it is damaged";
            return Err(field("checksum", CHECKSUM_AT as u64).fault(Problem::Rule { value: stored.into(), rule }));
        }
        let version = u32_at(24);
        if version >> 16 != VERSION >> 16 {
            let feature = format!("version {}.{} of the header", version >> 16, version & 0xffff).into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(at.saturating_add(24)) });
        }
        let block_size = u32_at(32);
        let (value, min, max) = (block_size.into(), SECTOR, MAX_BLOCK_SIZE.into());
        if !(min..=max).contains(&value) {
            return Err(field("block size", 32).fault(Problem::Range { value, min, max }));
        }
        if !block_size.is_power_of_two() {
            return Err(field("block size", 32).fault(Problem::Rule { value, rule: "it must be a power of two" }));
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

    /// The header as it stands in the file. A name that is too long is cut off: the locators have all of it.
    pub fn encode(&self) -> [u8; Header::LEN as usize] {
        let mut bytes = [0; Header::LEN as usize];
        bytes[..8].copy_from_slice(COOKIE);
        BigEndian::write_u64(&mut bytes[8..], NOTHING_MORE);
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

    /// Bytes of the bitmap of a block: whole sectors.
    pub fn bitmap_len(&self) -> u64 {
        (u64::from(self.block_size) / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }

    /// Bytes of disk that the table has room for.
    pub fn room(&self) -> u64 {
        u64::from(self.max_table_entries) * u64::from(self.block_size)
    }
}

#[cfg(test)]
mod tests;
