//! The file identifier and the two headers (2.2.1, 2.2.2).
//!
//! Headers are written in place, not through the log. There are two, written one after the other: after a crash at least one is
//! valid.

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};
use uuid::Uuid;

use super::redundant_copy::{RedundantCopy, Signature, check_integrity, seal};
use super::{FIELDS, FORMAT_NAME, HEADER_SECTION, MIB};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::name::{Name, utf16, utf16_text};

pub(super) use crate::format::shared::signature::VHDX as FILE_SIGNATURE;
/// Bytes of the creator after the signature, in UTF-16.
const CREATOR_LEN: usize = 512;
/// Host offsets of the two headers.
pub(super) const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];
const SIGNATURE: Signature = Signature { bytes: b"head", rule: "must be \"head\"" };
const VERSION: u16 = 1;
const LOG_VERSION: u16 = 0;

/// A valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The header with the higher number is the current one.
    pub sequence_number: u64,
    /// Changes with every write to the file.
    pub file_write_guid: Uuid,
    /// Changes with every change of the guest data. Children identify their parent by it.
    pub data_write_guid: Uuid,
    /// Identifies the valid log entries. Nil if the log is empty.
    pub log_guid: Uuid,
    /// Host range of the log. It can have no bytes if the log is empty.
    pub log: Range<u64>,
}

/// The header section of a file.
#[derive(Clone, Debug)]
pub(super) struct Headers {
    /// The program that created the file.
    pub creator: Name,
    /// The current header.
    pub header: Header,
    /// Its host offset.
    pub at: u64,
    /// A warning if the other header is damaged, for example after a crash.
    pub warning: Option<String>,
}

impl Header {
    /// Bytes of a header, which the checksum covers.
    pub const LEN: usize = 4096;

    /// Parses the header at host offset `at` of a file of `file_len` bytes.
    pub fn parse(bytes: &[u8; Header::LEN], at: u64, file_len: u64) -> Result<Header> {
        let u16_at = |offset: usize| LittleEndian::read_u16(&bytes[offset..]);
        let guid_at = |offset: usize| Uuid::from_bytes_le(bytes[offset..].first_chunk().copied().unwrap_or_default());

        check_integrity(bytes, at, SIGNATURE).map_err(Error::Corrupt)?;
        let log_guid = guid_at(48);
        let unsupported = |feature: String, offset| {
            Err(Error::Unsupported { format: FORMAT_NAME, feature: feature.into(), at: Some(at + offset) })
        };
        if u16_at(66) != VERSION {
            return unsupported(format!("format version {}", u16_at(66)), 66);
        }
        // The version of an empty log is ignored.
        if u16_at(64) != LOG_VERSION && !log_guid.is_nil() {
            return unsupported(format!("log version {}", u16_at(64)), 64);
        }
        Ok(Header {
            sequence_number: sequence_number(bytes),
            file_write_guid: guid_at(16),
            data_write_guid: guid_at(32),
            log_guid,
            log: parse_log(bytes, at, file_len, log_guid.is_nil())?,
        })
    }

    /// Encodes the header.
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

/// The host range of the log.
fn parse_log(bytes: &[u8; Header::LEN], at: u64, file_len: u64, empty: bool) -> Result<Range<u64>> {
    let (len, start) = (LittleEndian::read_u32(&bytes[68..]), LittleEndian::read_u64(&bytes[72..]));
    let (len_field, start_field) = (FIELDS.at("LogLength", at + 68), FIELDS.at("LogOffset", at + 72));
    let len = u64::from(len);
    len_field.aligned(len, MIB)?;
    start_field.aligned(start, MIB)?;
    start_field.within(start, len, file_len)?;
    if len == 0 && !empty {
        return Err(len_field.fault(Problem::Rule { value: 0, rule: "must not be 0 unless LogGuid is nil" }));
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

/// One of the two headers.
type HeaderCopy = RedundantCopy<{ Header::LEN }>;

/// Returns the current header and the other one. Only signature and checksum decide (2.2.2): if the current header breaks another
/// rule, the older one is not used instead, because it describes an older state of the file.
fn current(first: HeaderCopy, second: HeaderCopy) -> Result<(HeaderCopy, HeaderCopy)> {
    if let (Some(fault), Some(_)) = (&first.damage, &second.damage) {
        return Err(Error::Corrupt(fault.clone()));
    }
    // A damaged header has no number, which compares less than any.
    let [number, second_number] =
        [&first, &second].map(|copy| copy.damage.is_none().then(|| sequence_number(&copy.bytes)));
    // By the document, no header is current if both have the same number. disk2vhd writes the same header twice.
    if number == second_number && first.bytes != second.bytes {
        let value = second_number.unwrap_or_default();
        let problem = Problem::Conflict { value, finding: "the other header has the same number and differs" };
        return Err(FIELDS.at("SequenceNumber", second.at + 8).fault(problem));
    }
    Ok(if number >= second_number { (first, second) } else { (second, first) })
}

/// Checks the file identifier and returns the creator.
fn read_creator(file: &dyn ReadAt) -> Result<Name> {
    let mut bytes = [0; FILE_SIGNATURE.len() + CREATOR_LEN];
    table::read(file, &mut bytes, 0)?;
    let Some(creator) = bytes.strip_prefix(FILE_SIGNATURE) else {
        let rule = "must be \"vhdxfile\"";
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
