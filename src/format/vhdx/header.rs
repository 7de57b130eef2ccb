//! The file identifier and the two headers (2.2.1, 2.2.2).
//!
//! A header is written in place, not through the log. So there are two of them, and one is written after the other: when the
//! writer crashes in one of them, the other one is still whole.

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};
use uuid::Uuid;

use super::redundant_copy::{RedundantCopy, Signature, check_whole, seal};
use super::{FIELDS, FORMAT_NAME, HEADER_SECTION, MIB};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::name::{Name, utf16, utf16_text};

pub(super) const FILE_SIGNATURE: &[u8; 8] = b"vhdxfile";
/// Bytes of the text behind the signature, in UTF-16.
const CREATOR_LEN: usize = 512;
/// Where the two headers are.
pub(super) const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];
const SIGNATURE: Signature = Signature { bytes: b"head", rule: "a header begins with \"head\"" };
const VERSION: u16 = 1;
const LOG_VERSION: u16 = 0;

/// A valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Of two headers the one with the higher number is the current one.
    pub sequence_number: u64,
    /// Changes whenever the file is written to.
    pub file_write_guid: Uuid,
    /// Changes whenever what the guest sees does. Children know their parent by it.
    pub data_write_guid: Uuid,
    /// Nil when the log holds nothing to be replayed; else that of the entries that count.
    pub log_guid: Uuid,
    /// Where the log is in the file. Empty only where nothing is to be replayed.
    pub log: Range<u64>,
}

/// What was found at the beginning of a file.
#[derive(Clone, Debug)]
pub(super) struct Headers {
    /// The program that made the file.
    pub creator: Name,
    /// The current header.
    pub header: Header,
    /// Byte offset of that.
    pub at: u64,
    /// The other one is damaged, and how; a writer that crashed leaves it like that.
    pub warning: Option<String>,
}

impl Header {
    /// Bytes that the checksum covers.
    pub const LEN: usize = 4096;

    /// Parses the header at offset `at` of a file of `file_len` bytes.
    pub fn parse(bytes: &[u8; Header::LEN], at: u64, file_len: u64) -> Result<Header> {
        let u16_at = |offset: usize| LittleEndian::read_u16(&bytes[offset..]);
        let guid_at = |offset: usize| Uuid::from_bytes_le(bytes[offset..].first_chunk().copied().unwrap_or_default());

        check_whole(bytes, at, SIGNATURE).map_err(Error::Corrupt)?;
        let log_guid = guid_at(48);
        let unsupported = |feature: String, offset| {
            Err(Error::Unsupported { format: FORMAT_NAME, feature: feature.into(), at: Some(at + offset) })
        };
        if u16_at(66) != VERSION {
            return unsupported(format!("version {} of the format", u16_at(66)), 66);
        }
        // The version of a log that is empty says nothing about the file.
        if u16_at(64) != LOG_VERSION && !log_guid.is_nil() {
            return unsupported(format!("version {} of the log", u16_at(64)), 64);
        }
        Ok(Header {
            sequence_number: sequence_number(bytes),
            file_write_guid: guid_at(16),
            data_write_guid: guid_at(32),
            log_guid,
            log: parse_log(bytes, at, file_len, log_guid.is_nil())?,
        })
    }

    /// The header as it stands in the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Header::LEN);
        bytes.extend(SIGNATURE.bytes);
        bytes.extend([0; 4]);
        bytes.extend(self.sequence_number.to_le_bytes());
        for guid in [self.file_write_guid, self.data_write_guid, self.log_guid] {
            bytes.extend(guid.to_bytes_le());
        }
        bytes.extend(LOG_VERSION.to_le_bytes());
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(((self.log.end - self.log.start) as u32).to_le_bytes());
        bytes.extend(self.log.start.to_le_bytes());
        bytes.resize(Header::LEN, 0);
        seal(&mut bytes);
        bytes
    }
}

fn sequence_number(bytes: &[u8; Header::LEN]) -> u64 {
    LittleEndian::read_u64(&bytes[8..])
}

/// The place of the log. It may have no bytes where there is nothing in it.
fn parse_log(bytes: &[u8; Header::LEN], at: u64, file_len: u64, unused: bool) -> Result<Range<u64>> {
    let (len, start) = (LittleEndian::read_u32(&bytes[68..]), LittleEndian::read_u64(&bytes[72..]));
    let (len_field, start_field) = (FIELDS.at("LogLength", at + 68), FIELDS.at("LogOffset", at + 72));
    let len = u64::from(len);
    len_field.aligned(len, MIB)?;
    start_field.aligned(start, MIB)?;
    start_field.within(start, len, file_len)?;
    if len == 0 && !unused {
        return Err(len_field.fault(Problem::Rule { value: 0, rule: "LogGuid says that there is a log" }));
    }
    if len != 0 && start < HEADER_SECTION {
        return Err(start_field.fault(Problem::Overlap { offset: start, with: "the header section" }));
    }
    Ok(start..start + len)
}

impl Headers {
    /// Reads the file identifier and the headers.
    pub fn read(file: &dyn ReadAt, file_len: u64) -> Result<Headers> {
        FIELDS.at("the header section", 0).within(0, HEADER_SECTION, file_len)?;
        let creator = read_creator(file)?;
        let [first, second] = HEADERS_AT.map(|at| RedundantCopy::read(file, at, SIGNATURE));
        let (used, other) = current(first?, second?)?;
        let header = Header::parse(&used.bytes, used.at, file_len)?;
        Ok(Headers { creator, header, at: used.at, warning: other.warning("headers") })
    }
}

/// A header as it stands in the file.
type Stored = RedundantCopy<{ Header::LEN }>;

/// The current header and the other one. Nothing but signature and checksum count for that (2.2.2): a header that is whole and
/// current, and breaks another rule, is no reason to go back to an older state of the file.
fn current(first: Stored, second: Stored) -> Result<(Stored, Stored)> {
    if let (Some(fault), Some(_)) = (&first.damage, &second.damage) {
        return Err(Error::Corrupt(fault.clone()));
    }
    // A damaged one has no number, which is less than any.
    let [number, second_number] =
        [&first, &second].map(|twin| twin.damage.is_none().then(|| sequence_number(&twin.bytes)));
    // By the document none is current if both have the same number. disk2vhd writes one header twice.
    if number == second_number && first.bytes != second.bytes {
        let value = second_number.unwrap_or_default();
        let problem = Problem::Rule { value, rule: "the other header has the same, and is another one" };
        return Err(FIELDS.at("SequenceNumber", second.at + 8).fault(problem));
    }
    Ok(if number >= second_number { (first, second) } else { (second, first) })
}

/// Checks the file identifier and returns the text in it.
fn read_creator(file: &dyn ReadAt) -> Result<Name> {
    let mut bytes = [0; FILE_SIGNATURE.len() + CREATOR_LEN];
    table::read(file, &mut bytes, 0)?;
    let Some(creator) = bytes.strip_prefix(FILE_SIGNATURE) else {
        let rule = "the signature is \"vhdxfile\"";
        return Err(FIELDS.at("Signature", 0).fault(Problem::Rule { value: LittleEndian::read_u64(&bytes), rule }));
    };
    Ok(Name::from(utf16_text(creator, u16::from_le_bytes)))
}

/// The file identifier of a new file.
pub(super) fn encode_identifier(creator: &str) -> Vec<u8> {
    let mut bytes = FILE_SIGNATURE.to_vec();
    bytes.extend(utf16(creator, u16::to_le_bytes));
    bytes.resize(FILE_SIGNATURE.len() + CREATOR_LEN, 0);
    bytes
}

#[cfg(test)]
mod tests;
