//! The header (Parallels specification, "Header").
//!
//! [`Header::parse`] returns only valid headers; [`Header::encode`] mirrors it.

use std::borrow::Cow;

use byteorder::{ByteOrder, LittleEndian};

use super::bat::BatEntry;
use super::{FIELDS, FORMAT_NAME, SECTOR};
use crate::error::{Error, Problem, Result};
use crate::format::shared::signature::PARALLELS as MAGICS;
use crate::io::ReadAt;
use crate::limits::{LimitName, Limits};

/// Host offset of the offset of the data area.
pub(super) const DATA_SECTOR_AT: u64 = 48;
const VERSION: u32 = 2;
/// `in_use` of an image that is open for writing, or was not closed.
const OPEN: u32 = 0x746f_6e59;
/// `in_use` of an image that was closed.
const CLOSED: u32 = 0x312e_3276;
/// The flag of an empty image.
const EMPTY: u32 = 1;
/// Heads of the disk geometry, as qemu writes them.
const HEADS: u32 = 16;
/// Sectors in a track of the disk geometry.
const TRACK: u64 = 32;

/// What entries of the BAT count in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// The magic `WithoutFreeSpace`.
    Sectors,
    /// The magic `WithouFreSpacExt`.
    Clusters,
}

/// A valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub unit: Unit,
    /// Sectors in a cluster, so that it has less than 4 GiB.
    pub cluster_sectors: u32,
    /// Entries of the BAT: at least the number of clusters of the disk.
    pub bat_entries: u32,
    /// Size of the disk in sectors.
    pub sectors: u64,
    /// Whether the image was closed, and what it says if it is neither open nor closed.
    pub in_use: u32,
    /// Host offset of the data area in sectors, or 0: it follows the BAT. It is not checked.
    pub data_sector: u32,
    pub flags: u32,
    /// Host offset of the format extension in sectors, or 0. It is not checked.
    pub extension_sector: u64,
}

impl Header {
    /// Bytes of the header; the BAT follows it.
    pub const LEN: usize = 64;

    /// A header of an image that is closed and has no data.
    pub fn new(cluster_sectors: u32, sectors: u64, bat_entries: u32, data_sector: u32) -> Header {
        let unit = Unit::Clusters;
        Header {
            unit,
            cluster_sectors,
            bat_entries,
            sectors,
            in_use: CLOSED,
            data_sector,
            flags: 0,
            extension_sector: 0,
        }
    }

    /// Reads the header of `file`.
    pub fn read(file: &dyn ReadAt, limits: &Limits) -> Result<Header> {
        let (bytes, file_len) = FIELDS.read_header(file)?;
        Header::parse(&bytes, file_len, limits)
    }

    /// Parses the first bytes of a file of `file_len` bytes.
    pub fn parse(bytes: &[u8; Header::LEN], file_len: u64, limits: &Limits) -> Result<Header> {
        let u32_at = |offset: usize| LittleEndian::read_u32(&bytes[offset..]);
        let u64_at = |offset: usize| LittleEndian::read_u64(&bytes[offset..]);

        let unit = match MAGICS.iter().position(|magic| bytes.starts_with(*magic)) {
            Some(0) => Unit::Sectors,
            Some(_) => Unit::Clusters,
            None => {
                let rule = "must be the start of \"WithoutFreeSpace\" or \"WithouFreSpacExt\"";
                return Err(FIELDS.at("magic", 0).fault(Problem::Rule { value: u64_at(0), rule }));
            }
        };
        if u32_at(16) != VERSION {
            let feature = format!("version {}", u32_at(16)).into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(16) });
        }
        let (cluster_sectors, max) = (u32_at(28), u32::MAX / SECTOR as u32);
        if !(1..=max).contains(&cluster_sectors) {
            let problem = Problem::Range { value: cluster_sectors.into(), min: 1, max: max.into() };
            return Err(FIELDS.at("tracks", 28).fault(problem));
        }
        let header = Header {
            unit,
            cluster_sectors,
            bat_entries: u32_at(32),
            // "Only the lowest 4 bytes are used."
            sectors: if unit == Unit::Sectors { u32_at(36).into() } else { u64_at(36) },
            in_use: u32_at(44),
            data_sector: u32_at(48),
            flags: u32_at(52),
            extension_sector: u64_at(56),
        };
        FIELDS.at("nb_bat_entries", 32).within(Header::LEN as u64, header.bat_len(), file_len)?;
        let sectors = FIELDS.at("nb_sectors", 36);
        sectors.within_limit(LimitName::VirtualSize, header.sectors, limits.virtual_size / SECTOR)?;
        let max = u64::from(header.bat_entries) * u64::from(cluster_sectors);
        if header.sectors > max {
            return Err(sectors.fault(Problem::Range { value: header.sectors, min: 0, max }));
        }
        Ok(header)
    }

    /// Virtual size in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.sectors * SECTOR
    }

    /// Cluster size in bytes.
    pub fn cluster_size(&self) -> u64 {
        u64::from(self.cluster_sectors) * SECTOR
    }

    /// Clusters of the disk. The BAT may have more entries.
    pub fn clusters(&self) -> u64 {
        self.sectors.div_ceil(self.cluster_sectors.into())
    }

    /// Bytes of the BAT.
    pub fn bat_len(&self) -> u64 {
        u64::from(self.bat_entries) * BatEntry::LEN
    }

    /// Host offset of the end of the BAT.
    pub fn bat_end(&self) -> u64 {
        Header::LEN as u64 + self.bat_len()
    }

    /// Host offset of the data area.
    pub fn data_offset(&self) -> u64 {
        match self.data_sector {
            0 => self.bat_end().next_multiple_of(self.unit_len()),
            sector => u64::from(sector) * SECTOR,
        }
    }

    /// Whether the data area is in a file of `file_len` bytes, after the BAT.
    pub fn has_data_area(&self, file_len: u64) -> bool {
        self.data_sector == 0 || (self.bat_end()..=file_len).contains(&self.data_offset())
    }

    /// Bytes that entries of the BAT count in.
    pub fn unit_len(&self) -> u64 {
        match self.unit {
            Unit::Sectors => SECTOR,
            Unit::Clusters => self.cluster_size(),
        }
    }

    pub fn magic(&self) -> &'static [u8; 16] {
        MAGICS[self.unit as usize]
    }

    /// Whether the image is open for writing, or was not closed.
    pub fn is_open(&self) -> bool {
        self.in_use == OPEN
    }

    /// Problems that do not affect reading.
    pub fn warnings(&self) -> Vec<Cow<'static, str>> {
        let mut warnings = Vec::new();
        if ![0, OPEN, CLOSED].contains(&self.in_use) {
            warnings.push(format!("unknown state of the image: in_use is {:#x}", self.in_use).into());
        }
        if self.flags & EMPTY != 0 {
            warnings.push("the image is marked as empty; the marked clusters are read as they are".into());
        }
        warnings
    }

    pub fn encode(&self) -> [u8; Header::LEN] {
        let mut bytes = [0; Header::LEN];
        bytes[..16].copy_from_slice(self.magic());
        let cylinders = u32::try_from(self.sectors / (u64::from(HEADS) * TRACK)).unwrap_or(u32::MAX);
        for (offset, number) in [
            (16, VERSION),
            (20, HEADS),
            (24, cylinders),
            (28, self.cluster_sectors),
            (32, self.bat_entries),
            (44, self.in_use),
            (48, self.data_sector),
            (52, self.flags),
        ] {
            LittleEndian::write_u32(&mut bytes[offset..], number);
        }
        LittleEndian::write_u64(&mut bytes[36..], self.sectors);
        LittleEndian::write_u64(&mut bytes[56..], self.extension_sector);
        bytes
    }
}

#[cfg(test)]
mod tests;
