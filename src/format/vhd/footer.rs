//! The footer in the last sector of the image, and its copy at the start of dynamic and differencing images (the document, "Hard
//! Disk Footer Format").
//!
//! [`Footer::parse`] returns only valid footers; [`Footer::encode`] mirrors it.

use byteorder::{BigEndian, ByteOrder};
use uuid::Uuid;

use super::geometry::Geometry;
use super::{FIELDS, FORMAT_NAME, SECTOR, checksum};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::limits::{LimitName, Limits};

pub(super) use crate::format::shared::signature::VHD as COOKIE;
/// Offset of `data offset` in the footer.
pub(super) const DATA_OFFSET: usize = 16;
/// Offset of the checksum in the footer.
pub(super) const CHECKSUM_AT: usize = 64;
/// Offset of the type of the disk in bytes.
pub(super) const DISK_TYPE_AT: usize = 60;
/// Offset of `current size` in the footer, for messages.
pub(super) const CURRENT_SIZE_AT: u64 = 48;
/// Bit 1 is always set; bit 0 marks a temporary disk.
const FEATURES: u32 = 2;
/// 1.0
const VERSION: u32 = 0x0001_0000;
/// `data offset` of a fixed disk. The document has 32 one bits, Microsoft writes 64.
const NO_HEADER: u64 = !0;

/// The type of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskType {
    Fixed = 2,
    Dynamic = 3,
    Differencing = 4,
}

/// A valid footer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    /// Host offset of the header, unless the disk is fixed.
    pub data_offset: u64,
    /// Seconds since [`EPOCH`](super::EPOCH).
    pub timestamp: u32,
    pub creator_app: [u8; 4],
    /// Major and minor version, 16 bits each.
    pub creator_version: u32,
    pub creator_os: [u8; 4],
    pub original_size: u64,
    pub current_size: u64,
    pub geometry: Geometry,
    pub disk_type: DiskType,
    pub unique_id: Uuid,
    pub saved_state: bool,
}

impl Footer {
    /// Bytes in the file.
    pub const LEN: u64 = SECTOR;
    /// Bytes in the file before Virtual PC 2004, which did not write the last byte.
    pub const OLD_LEN: u64 = 511;

    /// Parses the footer `bytes` at host offset `at`.
    pub fn parse(bytes: &[u8; Footer::LEN as usize], at: u64, limits: &Limits) -> Result<Footer> {
        let field = |name, offset: u64| FIELDS.at(name, at + offset);
        let u32_at = |offset: usize| BigEndian::read_u32(&bytes[offset..]);
        let u64_at = |offset: usize| BigEndian::read_u64(&bytes[offset..]);
        let four_at = |offset: usize| u32_at(offset).to_be_bytes();

        if !bytes.starts_with(COOKIE) {
            let rule = "must be \"conectix\"";
            return Err(field("cookie", 0).fault(Problem::Rule { value: u64_at(0), rule }));
        }
        let on_disk = u32_at(CHECKSUM_AT);
        if on_disk != checksum(bytes, CHECKSUM_AT) {
            let problem = Problem::Conflict { value: on_disk.into(), finding: "checksum mismatch" };
            return Err(field("checksum", CHECKSUM_AT as u64).fault(problem));
        }
        let version = u32_at(12);
        if version >> 16 != VERSION >> 16 {
            let feature = format!("version {}.{}", version >> 16, version & 0xffff).into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(at + 12) });
        }
        let disk_type = match u32_at(60) {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            other => return Err(field("disk type", 60).fault(Problem::Range { value: other.into(), min: 2, max: 4 })),
        };
        let current_size = u64_at(CURRENT_SIZE_AT as usize);
        field("current size", CURRENT_SIZE_AT).within_limit(
            LimitName::VirtualSize,
            current_size,
            limits.virtual_size,
        )?;
        Ok(Footer {
            data_offset: u64_at(16),
            timestamp: u32_at(24),
            creator_app: four_at(28),
            creator_version: u32_at(32),
            creator_os: four_at(36),
            original_size: u64_at(40),
            current_size,
            geometry: Geometry {
                cylinders: BigEndian::read_u16(&bytes[56..]),
                heads: bytes[58],
                sectors_per_track: bytes[59],
            },
            disk_type,
            unique_id: Uuid::from_u128(BigEndian::read_u128(&bytes[68..])),
            saved_state: bytes[84] != 0,
        })
    }

    /// Encodes the footer.
    pub fn encode(&self) -> [u8; Footer::LEN as usize] {
        let mut bytes = [0; Footer::LEN as usize];
        bytes[..8].copy_from_slice(COOKIE);
        BigEndian::write_u32(&mut bytes[8..], FEATURES);
        BigEndian::write_u32(&mut bytes[12..], VERSION);
        let data_offset = if self.disk_type == DiskType::Fixed { NO_HEADER } else { self.data_offset };
        BigEndian::write_u64(&mut bytes[16..], data_offset);
        BigEndian::write_u32(&mut bytes[24..], self.timestamp);
        bytes[28..32].copy_from_slice(&self.creator_app);
        BigEndian::write_u32(&mut bytes[32..], self.creator_version);
        bytes[36..40].copy_from_slice(&self.creator_os);
        BigEndian::write_u64(&mut bytes[40..], self.original_size);
        BigEndian::write_u64(&mut bytes[CURRENT_SIZE_AT as usize..], self.current_size);
        BigEndian::write_u16(&mut bytes[56..], self.geometry.cylinders);
        bytes[58] = self.geometry.heads;
        bytes[59] = self.geometry.sectors_per_track;
        BigEndian::write_u32(&mut bytes[60..], self.disk_type as u32);
        bytes[68..84].copy_from_slice(self.unique_id.as_bytes());
        bytes[84] = self.saved_state.into();
        let sum = checksum(&bytes, CHECKSUM_AT);
        BigEndian::write_u32(&mut bytes[CHECKSUM_AT..], sum);
        bytes
    }

    /// Whether both footers describe the same disk.
    fn agrees_with(&self, other: &Footer) -> bool {
        let identity = |footer: &Footer| {
            let data_offset = if footer.disk_type == DiskType::Fixed { NO_HEADER } else { footer.data_offset };
            (footer.current_size, footer.geometry, footer.disk_type, data_offset, footer.unique_id)
        };
        identity(self) == identity(other)
    }

    #[cfg(test)]
    pub fn for_tests() -> Footer {
        Footer {
            data_offset: 512,
            timestamp: 0x1234_5678,
            creator_app: *b"win ",
            creator_version: 0x000a_0000,
            creator_os: *b"Wi2k",
            original_size: 1 << 20,
            current_size: 1 << 20,
            geometry: Geometry::from_sectors(2048),
            disk_type: DiskType::Dynamic,
            unique_id: Uuid::from_bytes([7; 16]),
            saved_state: false,
        }
    }
}

/// The footers of an image.
#[derive(Debug)]
pub(super) struct Footers {
    pub footer: Footer,
    /// Its host offset.
    pub at: u64,
    /// Host offset of the footer at the end of the file, if that one is valid.
    pub end: Option<u64>,
    /// A warning about a damaged footer.
    pub warning: Option<&'static str>,
}

/// The result of looking for a footer.
enum Found {
    None,
    Damaged(Error),
    Sound(Footer),
}

impl Footers {
    /// Reads the footer at the end and its copy at the start of a file of `file_len` bytes.
    ///
    /// # Errors
    /// If neither is valid, or if they describe different disks.
    pub fn read(file: &dyn ReadAt, file_len: u64, limits: &Limits) -> Result<Footers> {
        FIELDS.at("footer", 0).within(0, Footer::OLD_LEN, file_len)?;
        let first = look(file, 0, Footer::LEN.min(file_len), limits)?;
        let last_at = file_len.saturating_sub(Footer::LEN);
        let (last, at) = match look(file, last_at, Footer::LEN.min(file_len), limits)? {
            Found::None => {
                (look(file, file_len - Footer::OLD_LEN, Footer::OLD_LEN, limits)?, file_len - Footer::OLD_LEN)
            }
            found => (found, last_at),
        };
        match (first, last) {
            (Found::Sound(first), Found::Sound(last)) => {
                if !first.agrees_with(&last) {
                    let finding = "the copy of the footer at the start of the file describes a different disk";
                    let problem = Problem::Conflict { value: last.current_size, finding };
                    return Err(FIELDS.at("current size", at + CURRENT_SIZE_AT).fault(problem));
                }
                Ok(Footers { footer: last, at, end: Some(at), warning: None })
            }
            (Found::Sound(footer), last) if footer.disk_type != DiskType::Fixed => {
                let warning = Some(match last {
                    Found::Damaged(_) => "the footer is damaged, its copy at the start of the file is used",
                    _ => "the file does not end with a footer, the copy at the start of the file is used",
                });
                Ok(Footers { footer, at: 0, end: None, warning })
            }
            (_, Found::Sound(footer)) => {
                let warning = (footer.disk_type != DiskType::Fixed)
                    .then_some("the copy of the footer at the start of the file is damaged");
                Ok(Footers { footer, at, end: Some(at), warning })
            }
            // A fixed disk has no copy: a footer at the start is guest data.
            (_, Found::Damaged(error)) | (Found::Damaged(error), Found::None) => Err(error),
            (Found::None | Found::Sound(_), Found::None) => {
                let rule = "must be \"conectix\" at the start or the end of the file";
                Err(FIELDS.at("cookie", last_at).fault(Problem::Rule { value: 0, rule }))
            }
        }
    }
}

/// Looks for a footer in the `len` bytes at host offset `at`, which lie within the file.
///
/// # Errors
/// I/O errors, and invalid fields of a footer with a correct checksum.
fn look(file: &dyn ReadAt, at: u64, len: u64, limits: &Limits) -> Result<Found> {
    let mut bytes = [0; Footer::LEN as usize];
    table::read(file, bytes.get_mut(..len as usize).unwrap_or_default(), at)?;
    if !bytes.starts_with(COOKIE) {
        return Ok(Found::None);
    }
    let damaged = BigEndian::read_u32(&bytes[CHECKSUM_AT..]) != checksum(&bytes, CHECKSUM_AT);
    match Footer::parse(&bytes, at, limits) {
        Ok(footer) => Ok(Found::Sound(footer)),
        Err(error) if damaged => Ok(Found::Damaged(error)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
pub(super) use self::tests::from_hex;
#[cfg(test)]
mod tests;
