//! Growing images of Bochs. Read only.
//!
//! # Layout
//!
//! All integers are little-endian. A sector has 512 bytes.
//!
//! | offset | content |
//! |---|---|
//! | 0 | magic, type `Redolog`, subtype `Growing`, each padded with NULs |
//! | 64 | version, header size, catalog entries, bitmap size, extent size, disk size |
//! | header size | catalog: for each extent of the disk `0xffffffff`, or its number in the file |
//! | after the catalog | extents: a bitmap of the sectors that are stored, in whole sectors, then the sectors |
//!
//! The file ends after the last sector that was written.
//!
//! # Support
//!
//! | feature | read |
//! |---|---|
//! | versions 1 and 2, extents of 512 B to 8 MiB | yes |
//! | redologs of other images: `Undoable`, `Volatile` | refused |
//!
//! # References
//!
//! "Bochs user manual", appendix "disk image modes", and what `bximage` 2.7 writes; the largest extent is that of qemu.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use byteorder::{ByteOrder, LittleEndian};

use crate::driver::{Extent, ExtentKind, FileId, FormatDriver, Location, OpenContext, SparseRead};
use crate::error::{Error, Problem, Result};
use crate::format::shared::bits::{self, BitOrder};
use crate::format::shared::paged_table::{PagedTable, TablePage};
use crate::format::shared::table::{self, Fields};
use crate::format::shared::table_cache::TableCache;
use crate::format::shared::{run, signature};
use crate::info::ImageInfo;
use crate::io::ReadAt;
use crate::limits::{LimitName, Limits};
use crate::name::Name;

pub(crate) static DRIVER: FormatDriver =
    FormatDriver::new(FORMAT_NAME, signature::is_bochs, |source, cx| Ok(Box::new(Reader::open(source, cx)?)))
        .extensions(&["bochs"])
        .description("growing image of Bochs");

const FORMAT_NAME: &str = "bochs";
/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);
const IMAGE: FileId = FileId(0);
const SECTOR: u64 = 512;
/// The catalog entry of an extent that is not stored.
const UNALLOCATED: u32 = u32::MAX;
/// Bytes in an extent, powers of two.
const EXTENT_SIZES: RangeInclusive<u64> = 512..=8 << 20;

/// A valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    /// Host offset of the catalog.
    header_size: u32,
    /// Entries of the catalog: at least the number of extents of the disk.
    catalog_entries: u32,
    /// Bytes of the bitmap of an extent, one bit for each sector.
    bitmap_size: u32,
    /// Bytes in an extent.
    extent_size: u32,
    /// Virtual size in bytes.
    disk_size: u64,
}

impl Header {
    /// Bytes of the header of version 2; that of version 1 is shorter.
    const LEN: usize = 96;

    fn read(file: &dyn ReadAt, limits: &Limits) -> Result<Header> {
        let (bytes, file_len) = FIELDS.read_header(file)?;
        Header::parse(&bytes, file_len, limits)
    }

    /// Parses the first bytes of a file of `file_len` bytes.
    fn parse(bytes: &[u8; Header::LEN], file_len: u64, limits: &Limits) -> Result<Header> {
        let u32_at = |offset: usize| LittleEndian::read_u32(&bytes[offset..]);
        let text_at = |range: Range<usize>| {
            let text = bytes.get(range).unwrap_or_default();
            text.split(|byte| *byte == 0).next().unwrap_or_default()
        };
        let unsupported = |feature: String, at| {
            Err(Error::Unsupported { format: FORMAT_NAME, feature: feature.into(), at: Some(at) })
        };
        if !bytes.starts_with(signature::BOCHS) {
            let rule = "must be the start of \"Bochs Virtual HD Image\"";
            let value = LittleEndian::read_u64(bytes);
            return Err(FIELDS.at("magic", 0).fault(Problem::Rule { value, rule }));
        }
        let (kind, subtype) = (text_at(32..48), text_at(48..64));
        if (kind, subtype) != (b"Redolog", b"Growing") {
            return unsupported(format!("type {} {}", Name::from(kind), Name::from(subtype)), 32);
        }
        let disk_at = match u32_at(64) {
            0x0001_0000 => 84,
            0x0002_0000 => 88,
            other => return unsupported(format!("version {}.{}", other >> 16, other & 0xffff), 64),
        };
        let header = Header {
            header_size: u32_at(68),
            catalog_entries: u32_at(72),
            bitmap_size: u32_at(76),
            extent_size: u32_at(80),
            disk_size: LittleEndian::read_u64(&bytes[disk_at..]),
        };
        header.check(disk_at as u64, file_len, limits)?;
        Ok(header)
    }

    fn check(&self, disk_at: u64, file_len: u64, limits: &Limits) -> Result<()> {
        let extent = FIELDS.at("extent size", 80);
        if !EXTENT_SIZES.contains(&self.extent_size.into()) {
            let (min, max) = (*EXTENT_SIZES.start(), *EXTENT_SIZES.end());
            return Err(extent.fault(Problem::Range { value: self.extent_size.into(), min, max }));
        }
        if !self.extent_size.is_power_of_two() {
            let rule = "must be a power of two";
            return Err(extent.fault(Problem::Rule { value: self.extent_size.into(), rule }));
        }
        if u64::from(self.bitmap_size) < self.bitmap_len() {
            let (min, max) = (self.bitmap_len(), u32::MAX.into());
            return Err(FIELDS.at("bitmap size", 76).fault(Problem::Range {
                value: self.bitmap_size.into(),
                min,
                max,
            }));
        }
        if u64::from(self.header_size) < Header::LEN as u64 {
            let (min, max) = (Header::LEN as u64, u32::MAX.into());
            return Err(FIELDS.at("header size", 68).fault(Problem::Range {
                value: self.header_size.into(),
                min,
                max,
            }));
        }
        FIELDS.at("catalog entries", 72).within(self.header_size.into(), self.catalog_len(), file_len)?;
        let disk = FIELDS.at("disk size", disk_at);
        disk.within_limit(LimitName::VirtualSize, self.disk_size, limits.virtual_size)?;
        let max = u64::from(self.catalog_entries) * u64::from(self.extent_size);
        if self.disk_size > max {
            return Err(disk.fault(Problem::Range { value: self.disk_size, min: 0, max }));
        }
        Ok(())
    }

    /// Bytes of the catalog.
    fn catalog_len(&self) -> u64 {
        u64::from(self.catalog_entries) * 4
    }

    /// Bytes of a bitmap that have a bit for a sector.
    fn bitmap_len(&self) -> u64 {
        (u64::from(self.extent_size) / SECTOR).div_ceil(8)
    }

    /// Host offset of the first extent.
    fn data_offset(&self) -> u64 {
        u64::from(self.header_size) + self.catalog_len()
    }

    /// Bytes that a bitmap takes in the file: whole sectors.
    fn bitmap_room(&self) -> u64 {
        u64::from(self.bitmap_size).next_multiple_of(SECTOR)
    }
}

/// An open image.
struct Reader {
    info: ImageInfo,
    header: Header,
    file: Arc<dyn ReadAt>,
    file_len: u64,
    catalog: PagedTable<4>,
    bitmaps: TableCache,
}

impl Reader {
    fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        cx.refuse_snapshots(FORMAT_NAME)?;
        let header = Header::read(&*file, cx.limits)?;
        let file_len = table::length(&*file)?;
        let block_size = Some(header.extent_size);
        let info = ImageInfo { block_size, ..ImageInfo::new(FORMAT_NAME, header.disk_size) };
        let catalog = PagedTable::new(file.clone(), header.header_size.into(), cx.budget);
        Ok(Reader { info, header, file, file_len, catalog, bitmaps: TableCache::new(cx.budget) })
    }

    /// The kind and length of the range from guest offset `offset` on, in extent `index` on `page`.
    fn range(&self, page: &TablePage<4>, index: u64, offset: u64) -> Result<(ExtentKind, u64)> {
        let extent_size = u64::from(self.header.extent_size);
        let start = index * extent_size;
        let visible = self.header.disk_size.saturating_sub(start).min(extent_size);
        let within = offset - start;
        let number = page.entry(index).map_or(UNALLOCATED, u32::from_le_bytes);
        if number == UNALLOCATED {
            return Ok((ExtentKind::Zero { allocated: None }, visible - within));
        }
        let stride = self.header.bitmap_room() + extent_size;
        let bitmap_at = self.header.data_offset().saturating_add(u64::from(number).saturating_mul(stride));
        let field = FIELDS.at("catalog entry", page.host_offset(index));
        field.within(bitmap_at, self.header.bitmap_len(), self.file_len)?;
        let location = Location { file: IMAGE, offset: bitmap_at };
        let bitmap = self.bitmaps.get(&*self.file, location, self.header.bitmap_len() as usize)?;
        let end = visible.div_ceil(SECTOR);
        let (is_stored, next) = bits::run(&bitmap.bytes, BitOrder::LowestFirst, within / SECTOR, end);
        let len = (next * SECTOR).min(visible) - within;
        if !is_stored {
            return Ok((ExtentKind::Zero { allocated: None }, len));
        }
        let host = bitmap_at + self.header.bitmap_room() + within;
        field.within(host, len, self.file_len)?;
        Ok((ExtentKind::Data(Location { file: IMAGE, offset: host }), len))
    }
}

impl SparseRead for Reader {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        self.info.check_offset(range.start)?;
        let (offset, end) = (range.start, range.end.min(self.info.virtual_size));
        let extent_size = u64::from(self.header.extent_size);
        let index = offset / extent_size;
        let page = self.catalog.page(index, 0..self.header.catalog_entries.into())?;
        let (kind, len) = self.range(&page, index, offset)?;
        Ok(run::merge(Extent { offset, len, kind }, end, |at| {
            // Extents that are stored have a bitmap between them.
            let unallocated = |index| page.entry(index).is_some_and(|entry| u32::from_le_bytes(entry) == UNALLOCATED);
            let index = at / extent_size;
            let follows = at.is_multiple_of(extent_size) && unallocated(index);
            if follows { self.range(&page, index, at).ok() } else { None }
        }))
    }

    /// The largest power of two that divides the host offsets of all sectors.
    fn host_alignment(&self) -> Option<u64> {
        Some(1 << (self.header.data_offset() | SECTOR).trailing_zeros())
    }
}

#[cfg(test)]
mod tests;
