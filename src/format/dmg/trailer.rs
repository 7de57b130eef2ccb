//! The trailer: the last 512 bytes of the file.

use std::ops::Range;

use byteorder::{BigEndian, ByteOrder};

use super::{FIELDS, FORMAT_NAME, SECTOR};
use crate::driver::{OpenContext, Probe};
use crate::error::{Error, Problem, Result};
use crate::format::shared::{signature, table};
use crate::io::ReadAt;

const LEN: usize = Probe::TAIL;
const VERSION: u32 = 4;
/// The kind of checksum that hdiutil writes.
const CRC32: u32 = 2;

/// What the trailer tells of the image.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    /// Host offset of the data fork, and its length in bytes.
    pub data_fork: u64,
    pub data_len: u64,
    /// CRC-32 of the data fork, if the trailer has one.
    pub data_checksum: Option<u32>,
    /// Where the block tables are.
    pub tables: Tables,
    /// Size of the disk in bytes; `None` if it is not stated.
    pub disk_size: Option<u64>,
    /// Host offset of the trailer, at or before which all data ends.
    pub at: u64,
}

/// Where the block tables are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tables {
    /// In the property list with this host range.
    Plist(Range<u64>),
    /// In the resource fork with this host range.
    Resources(Range<u64>),
    /// Nowhere: the data fork is the disk.
    None,
}

impl Trailer {
    /// Reads the trailer of a file.
    pub fn read(file: &dyn ReadAt, cx: &OpenContext<'_>) -> Result<Trailer> {
        let file_len = table::length(file)?;
        let mut head = vec![0; file_len.min(8) as usize];
        table::read(file, &mut head, 0)?;
        let mut tail = [0; LEN];
        let at = file_len.checked_sub(LEN as u64);
        if let Some(at) = at {
            table::read(file, &mut tail, at)?;
        }
        if signature::is_encrypted_dmg(&Probe::new(&head, &tail, file_len)) {
            return Err(Error::unsupported(FORMAT_NAME, "encrypted images"));
        }
        match at {
            Some(at) => Trailer::parse(&tail, at, cx),
            None => Err(FIELDS.at("trailer", 0).fault(Problem::Missing)),
        }
    }

    /// Parses the trailer at host offset `at`.
    fn parse(bytes: &[u8; LEN], at: u64, cx: &OpenContext<'_>) -> Result<Trailer> {
        let u32_at = |offset: usize| BigEndian::read_u32(&bytes[offset..]);
        let u64_at = |offset: usize| BigEndian::read_u64(&bytes[offset..]);
        let field = |name, offset: usize| FIELDS.at(name, at + offset as u64);
        if !bytes.starts_with(signature::DMG) {
            return Err(field("trailer", 0).fault(Problem::Missing));
        }
        let unsupported = |feature: String, offset: usize| Error::Unsupported {
            format: FORMAT_NAME,
            feature: feature.into(),
            at: Some(at + offset as u64),
        };
        if u32_at(4) != VERSION {
            return Err(unsupported(format!("version {}", u32_at(4)), 4));
        }
        if u32_at(8) != LEN as u32 {
            return Err(
                field("length of the trailer", 8).fault(Problem::Rule { value: u32_at(8).into(), rule: "must be 512" })
            );
        }
        if u32_at(60) > 1 {
            return Err(unsupported(format!("an image of {} segments", u32_at(60)), 60));
        }
        let (data_fork, data_len) = (u64_at(24), u64_at(32));
        field("data fork", 24).within(data_fork, data_len, at)?;
        let (plist, plist_len) = (u64_at(216), u64_at(224));
        let (resources, resources_len) = (u64_at(40), u64_at(48));
        let tables = if plist_len > 0 {
            field("property list", 216).within(plist, plist_len, at)?;
            Tables::Plist(plist..plist + plist_len)
        } else if resources_len > 0 {
            field("resource fork", 40).within(resources, resources_len, at)?;
            Tables::Resources(resources..resources + resources_len)
        } else {
            Tables::None
        };
        let has_crc32 = u32_at(80) == CRC32 && u32_at(84) == 32;
        let data_checksum = has_crc32.then(|| u32_at(88));
        let sectors = u64_at(492);
        let disk_size = sectors.saturating_mul(SECTOR);
        cx.check_virtual_size(FORMAT_NAME, disk_size)?;
        Ok(Trailer {
            data_fork,
            data_len,
            data_checksum,
            tables,
            disk_size: Some(disk_size).filter(|size| *size > 0),
            at,
        })
    }
}
