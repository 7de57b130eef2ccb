//! The header: `VDIPREHEADER`, followed by `VDIHEADER1` or `VDIHEADER1PLUS`.
//!
//! [`Header::parse`] returns only valid headers; [`Header::encode`] mirrors it.

use std::borrow::Cow;

use byteorder::{ByteOrder, LittleEndian};
use uuid::Uuid;

use super::{FIELDS, FORMAT_NAME, SECTOR};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::limits::{LimitName, Limits};
use crate::name::Name;

pub(super) use crate::format::shared::signature::{VDI as SIGNATURE, VDI_AT as SIGNATURE_AT};
/// Host offset of `cBlocksAllocated`, for messages.
pub(super) const BLOCKS_ALLOCATED_AT: u64 = 388;
/// Host offset of `uuidModify`.
pub(super) const MODIFICATION_AT: u64 = 408;
/// Host offset of `offBlocks`, the offset of the block map.
pub(super) const MAP_OFFSET_AT: u64 = 340;
/// Host offset of `offData`, the offset of the data area.
pub(super) const DATA_OFFSET_AT: u64 = 344;
/// Host offset of `cbHeader`, from which the header size counts.
const START: u64 = 72;
/// Sizes in bytes of `VDIHEADER1` and of `VDIHEADER1PLUS`, which adds the LCHS geometry.
const SIZES: [u32; 2] = [384, 400];
/// The text at the start of the file, which `file` shows. It differs between programs.
const TEXT: &[u8] = b"<<< diskimage Virtual Disk Image >>>\n";
const COMMENT_LEN: usize = 256;
/// The only flag, `VDI_IMAGE_FLAGS_ZERO_EXPAND`: the writer zeroed new blocks.
const ZERO_EXPAND: u32 = 1;

/// The type of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Grows on demand.
    Dynamic,
    /// Fully preallocated.
    Static,
    /// Differencing, with writes that can be discarded.
    Undo,
    /// Backed by a parent.
    Differencing,
}

impl Kind {
    /// In the order of their values in the file, from 1.
    const ALL: [Kind; 4] = [Kind::Dynamic, Kind::Static, Kind::Undo, Kind::Differencing];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Dynamic => "dynamic",
            Kind::Static => "static",
            Kind::Undo => "undo",
            Kind::Differencing => "differencing",
        }
    }

    pub fn has_parent(self) -> bool {
        matches!(self, Kind::Undo | Kind::Differencing)
    }
}

/// A valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The lower half of the version; the upper one is 1.
    pub minor_version: u16,
    pub kind: Kind,
    pub comment: Name,
    /// Host offset of the block map, after the header.
    pub map_offset: u64,
    /// Host offset of the data area, after the block map.
    pub data_offset: u64,
    /// Size of the disk in bytes.
    pub disk_size: u64,
    /// Bytes in a block: a power of two, at least 512.
    pub block_size: u32,
    /// Bytes of metadata before the guest data of each block.
    pub block_extra: u32,
    /// Entries in the block map: at least the number of blocks of the disk.
    pub blocks: u32,
    /// Number of blocks in the data area. It is not checked.
    pub blocks_allocated: u32,
    pub uuid: Uuid,
    /// Changes with every change of the disk.
    pub modification: Uuid,
    /// UUID of the parent; not nil for types with a parent. VirtualBox ignores it for others.
    pub linkage: Uuid,
    /// Modification UUID of the parent when the image was created.
    pub parent_modification: Uuid,
    /// Sector size of the LCHS geometry, if the header has one.
    pub lchs_sector_size: Option<u32>,
}

impl Header {
    /// Bytes of the largest known header, including what precedes it.
    pub const LEN: usize = START as usize + SIZES[1] as usize;

    /// Reads the header of `file`.
    pub fn read(file: &dyn ReadAt, limits: &Limits) -> Result<Header> {
        let file_len = table::length(file)?;
        let mut bytes = [0; Header::LEN];
        let len = file_len.min(bytes.len() as u64) as usize;
        table::read(file, bytes.get_mut(..len).unwrap_or_default(), 0)?;
        Header::parse(&bytes, file_len, limits)
    }

    /// Parses the first bytes of a file of `file_len` bytes. Bytes beyond the end of the file are zeros.
    pub fn parse(bytes: &[u8; Header::LEN], file_len: u64, limits: &Limits) -> Result<Header> {
        let u32_at = |offset: usize| LittleEndian::read_u32(&bytes[offset..]);
        let uuid_at = |offset: usize| Uuid::from_bytes_le(bytes[offset..].first_chunk().copied().unwrap_or_default());

        FIELDS.at("header", 0).within(0, START + 4, file_len)?;
        if u32_at(SIGNATURE_AT) != SIGNATURE {
            let rule = "must be 0xbeda107f";
            return Err(FIELDS
                .at("u32Signature", 64)
                .fault(Problem::Rule { value: u32_at(SIGNATURE_AT).into(), rule }));
        }
        let (version, minor_version) = (u32_at(68) >> 16, u32_at(68) as u16);
        if version != 1 {
            let age = if version == 0 { " (older than 1)" } else { "" };
            let feature = format!("header version {version}.{minor_version}{age}").into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(68) });
        }
        let header_size = u32_at(72);
        if header_size < SIZES[0] {
            let problem = Problem::Range { value: header_size.into(), min: SIZES[0].into(), max: u32::MAX.into() };
            return Err(FIELDS.at("cbHeader", 72).fault(problem));
        }
        // Fields after the known ones are ignored.
        let header_end = START + u64::from(header_size.min(SIZES[1]));
        FIELDS.at("cbHeader", 72).within(0, header_end, file_len)?;

        let kind = parse_kind(u32_at(76))?;
        let flags = u32_at(80);
        if flags & !ZERO_EXPAND != 0 {
            let problem = Problem::Reserved { value: flags.into(), bits: (flags & !ZERO_EXPAND).into() };
            return Err(FIELDS.at("fFlags", 80).fault(problem));
        }
        let comment: &[u8] = bytes[84..84 + COMMENT_LEN].split(|&byte| byte == 0).next().unwrap_or_default();
        let header = Header {
            minor_version,
            kind,
            comment: Name::from(comment),
            map_offset: u32_at(340).into(),
            data_offset: u32_at(344).into(),
            disk_size: LittleEndian::read_u64(&bytes[368..]),
            block_size: parse_block_size(u32_at(376))?,
            block_extra: u32_at(380),
            blocks: u32_at(384),
            blocks_allocated: u32_at(BLOCKS_ALLOCATED_AT as usize),
            uuid: uuid_at(392),
            modification: uuid_at(MODIFICATION_AT as usize),
            linkage: uuid_at(424),
            parent_modification: uuid_at(440),
            lchs_sector_size: (header_size >= SIZES[1]).then(|| u32_at(468)),
        };
        header.check_layout(header_end, file_len)?;
        header.check_size(limits)?;
        header.check_linkage()?;
        Ok(header)
    }

    /// Checks that header, block map and data area are in this order and do not overlap, and that the block map is in the file.
    fn check_layout(&self, header_end: u64, file_len: u64) -> Result<()> {
        FIELDS.at("cBlocks", 384).within(self.map_offset, self.map_len(), file_len)?;
        if self.map_offset < header_end {
            let problem = Problem::Overlap { offset: self.map_offset, with: "the header" };
            return Err(FIELDS.at("offBlocks", 340).fault(problem));
        }
        if self.data_offset < self.map_offset + self.map_len() {
            let problem = Problem::Overlap { offset: self.data_offset, with: "the block map" };
            return Err(FIELDS.at("offData", 344).fault(problem));
        }
        Ok(())
    }

    fn check_size(&self, limits: &Limits) -> Result<()> {
        let size = FIELDS.at("cbDisk", 368);
        size.within_limit(LimitName::VirtualSize, self.disk_size, limits.virtual_size)?;
        let max = u64::from(self.blocks) * u64::from(self.block_size);
        if self.disk_size > max {
            return Err(size.fault(Problem::Range { value: self.disk_size, min: 0, max }));
        }
        Ok(())
    }

    fn check_linkage(&self) -> Result<()> {
        if self.kind.has_parent() && self.linkage.is_nil() {
            let rule = "must be 1 or 2 if uuidLinkage is nil";
            return Err(FIELDS.at("u32Type", 76).fault(Problem::Rule { value: self.kind as u64 + 1, rule }));
        }
        Ok(())
    }

    /// Bytes of the block map.
    pub fn map_len(&self) -> u64 {
        u64::from(self.blocks) * 4
    }

    /// Distance between blocks of the data area in bytes.
    pub fn stride(&self) -> u64 {
        u64::from(self.block_size) + u64::from(self.block_extra)
    }

    /// The fields of the size of the disk with their host offsets, all in the first sector. The geometries become unknown, as in new images.
    pub fn size_fields(&self) -> Vec<(u64, Vec<u8>)> {
        let mut fields = vec![
            // `LegacyGeometry`, but for its sector size.
            (348, vec![0; 12]),
            (368, self.disk_size.to_le_bytes().to_vec()),
            (384, self.blocks.to_le_bytes().to_vec()),
        ];
        // `LCHSGeometry`
        fields.extend(self.lchs_sector_size.map(|_| (456, vec![0; 12])));
        fields
    }

    /// Problems that do not affect reading; VirtualBox refuses most of them.
    pub fn warnings(&self) -> Vec<Cow<'static, str>> {
        let checks = [
            (self.disk_size == 0, "the disk is empty"),
            (self.uuid.is_nil(), "the UUID is nil"),
            (self.modification.is_nil(), "the modification UUID is nil"),
            (self.lchs_sector_size.is_some_and(|size| size != SECTOR as u32), "the LCHS sector size is not 512"),
            (self.blocks_allocated > self.blocks, "more blocks are allocated than the disk has"),
        ];
        let broken = checks.into_iter().filter(|(broken, _)| *broken);
        let refused = broken.map(|(_, what)| format!("VirtualBox does not open the image: {what}").into());
        let ignored = "the UUID of a parent is ignored: an image of this type has no parent";
        let names_parent = !(self.linkage.is_nil() && self.parent_modification.is_nil());
        let ignored = Some(ignored.into()).filter(|_| !self.kind.has_parent() && names_parent);
        refused.chain(ignored).collect()
    }

    /// Encodes a header of 400 bytes, as VirtualBox writes it, without geometries.
    pub fn encode(&self) -> [u8; Header::LEN] {
        let mut bytes = [0; Header::LEN];
        let mut put = |offset: usize, part: &[u8]| {
            bytes.iter_mut().skip(offset).zip(part).for_each(|(byte, value)| *byte = *value);
        };
        put(0, TEXT);
        put(84, self.comment.as_bytes().get(..COMMENT_LEN - 1).unwrap_or(self.comment.as_bytes()));
        put(368, &self.disk_size.to_le_bytes());
        for (offset, number) in [
            (SIGNATURE_AT, SIGNATURE),
            (68, 1 << 16 | u32::from(self.minor_version)),
            (72, SIZES[1]),
            (76, self.kind as u32 + 1),
            (340, self.map_offset as u32),
            (344, self.data_offset as u32),
            // The sector size of the legacy geometry; that of the LCHS geometry is at 468.
            (360, SECTOR as u32),
            (376, self.block_size),
            (380, self.block_extra),
            (384, self.blocks),
            (BLOCKS_ALLOCATED_AT as usize, self.blocks_allocated),
            (468, self.lchs_sector_size.unwrap_or_default()),
        ] {
            put(offset, &number.to_le_bytes());
        }
        for (offset, uuid) in [
            (392, self.uuid),
            (MODIFICATION_AT as usize, self.modification),
            (424, self.linkage),
            (440, self.parent_modification),
        ] {
            put(offset, &uuid.to_bytes_le());
        }
        bytes
    }
}

fn parse_kind(number: u32) -> Result<Kind> {
    number.checked_sub(1).and_then(|index| Kind::ALL.get(index as usize)).copied().ok_or_else(|| {
        let max = Kind::ALL.len() as u64;
        FIELDS.at("u32Type", 76).fault(Problem::Range { value: number.into(), min: 1, max })
    })
}

fn parse_block_size(size: u32) -> Result<u32> {
    let (field, value) = (FIELDS.at("cbBlock", 376), u64::from(size));
    if value < SECTOR {
        return Err(field.fault(Problem::Range { value, min: SECTOR, max: 1 << 31 }));
    }
    if !size.is_power_of_two() {
        return Err(field.fault(Problem::Rule { value, rule: "must be a power of two" }));
    }
    Ok(size)
}

#[cfg(test)]
mod tests;
