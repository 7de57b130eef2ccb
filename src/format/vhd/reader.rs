//! Maps guest ranges to host offsets.

use std::ops::Range;
use std::sync::Arc;

use super::blocks::Blocks;
use super::footer::{CURRENT_SIZE_AT, DiskType, Footer, Footers};
use super::geometry::SizeField;
use super::header::Header;
use super::{EPOCH, FIELDS, FORMAT_NAME, SECTOR, geometry, locator};
use crate::driver::{Extent, ExtentKind, FileId, Location, OpenContext, SparseRead};
use crate::error::{Problem, Result};
use crate::format::shared::table;
use crate::info::{ImageInfo, Value};
use crate::io::ReadAt;
use crate::limits::LimitName;
use crate::name::Name;

const SAVED_STATE: &str = "the image belongs to a saved machine state, which can hold writes that are not in the image";

/// An open image.
pub(super) struct Reader {
    info: ImageInfo,
    pub content: Content,
}

pub(super) enum Content {
    /// Guest data from the start of the file.
    Fixed,
    Blocks(Box<Blocks>),
}

impl Reader {
    pub fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        cx.refuse_snapshots(FORMAT_NAME)?;
        let file_len = table::length(&*file)?;
        let Footers { footer, at, end, warning } = Footers::read(&*file, file_len, cx.limits)?;
        let size_field = FIELDS.at("current size", at + CURRENT_SIZE_AT);
        let stated_size = SizeField::stated(cx.options)?;
        if footer.disk_type == DiskType::Fixed {
            let (size, contradiction) = geometry::disk_size(&footer, at, stated_size);
            size_field.within(0, size, at)?;
            let mut info = describe(&footer, size, warning);
            contradiction.into_iter().for_each(|contradiction| contradiction.note_in(&mut info));
            return Ok(Reader { info, content: Content::Fixed });
        }

        let header_at = footer.data_offset;
        let header = read_header(&*file, file_len, at, header_at)?;
        let (size, contradiction) = geometry::disk_size(&footer, header.capacity(), stated_size);
        size_field.within_limit(LimitName::VirtualSize, size, cx.limits.virtual_size)?;
        let mut info = describe(&footer, size, warning);
        contradiction.into_iter().for_each(|contradiction| contradiction.note_in(&mut info));
        info.block_size = Some(header.block_size);
        let mut metadata = vec![0..Footer::LEN, header_at..header_at + Header::LEN];
        // If the file does not end on a sector boundary, the start of the footer can be in the last sector of a block.
        metadata.extend(end.map(|end| end.next_multiple_of(SECTOR)..file_len).filter(|range| !range.is_empty()));
        let differencing = footer.disk_type == DiskType::Differencing;
        let blocks = Blocks::new(file.clone(), size, &header, header_at, differencing, metadata, cx.budget)?;
        if differencing {
            info.backing = Some(locator::reference(&header.parent, &*file, cx.budget)?);
        }
        Ok(Reader { info, content: Content::Blocks(Box::new(blocks)) })
    }
}

/// Reads the header at host offset `header_at`, to which the footer at `footer_at` points.
pub(super) fn read_header(file: &dyn ReadAt, file_len: u64, footer_at: u64, header_at: u64) -> Result<Header> {
    let field = FIELDS.at("data offset", footer_at + 16);
    if header_at < Footer::LEN {
        return Err(field.fault(Problem::Overlap { offset: header_at, with: "the copy of the footer" }));
    }
    field.within(header_at, Header::LEN, file_len)?;
    let mut bytes = [0; Header::LEN as usize];
    table::read(file, &mut bytes, header_at)?;
    Header::parse(&bytes, header_at)
}

/// The properties of a disk of `virtual_size` bytes, from its footer.
pub(super) fn describe(footer: &Footer, virtual_size: u64, warning: Option<&'static str>) -> ImageInfo {
    let subformat = match footer.disk_type {
        DiskType::Fixed => "fixed",
        DiskType::Dynamic => "dynamic",
        DiskType::Differencing => "differencing",
    };
    let text = |bytes: [u8; 4]| {
        let len = bytes.iter().rposition(|byte| !matches!(byte, 0 | b' ')).map_or(0, |last| last + 1);
        Value::Text(Name::from(bytes.get(..len).unwrap_or_default()))
    };
    let version = footer.creator_version;
    let specific = vec![
        ("subformat", subformat.into()),
        ("current-size", footer.current_size.into()),
        ("chs-size", footer.geometry.bytes().into()),
        ("cylinders", u64::from(footer.geometry.cylinders).into()),
        ("heads", u64::from(footer.geometry.heads).into()),
        ("sectors-per-track", u64::from(footer.geometry.sectors_per_track).into()),
        ("original-size", footer.original_size.into()),
        ("creator-application", text(footer.creator_app)),
        ("creator-version", format!("{}.{}", version >> 16, version & 0xffff).as_str().into()),
        ("creator-host-os", text(footer.creator_os)),
        ("timestamp", (u64::from(footer.timestamp) + EPOCH).into()),
        ("uuid", footer.unique_id.to_string().as_str().into()),
        ("saved-state", footer.saved_state.into()),
    ];
    let identities = (!footer.unique_id.is_nil()).then(|| locator::identity(footer.unique_id)).into_iter().collect();
    let warnings = warning.into_iter().chain(footer.saved_state.then_some(SAVED_STATE));
    let warnings = warnings.map(Into::into).collect();
    ImageInfo { format: FORMAT_NAME, virtual_size, identities, warnings, specific, ..ImageInfo::default() }
}

impl SparseRead for Reader {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        self.info.check_offset(range.start)?;
        let (offset, end) = (range.start, range.end.min(self.info.virtual_size));
        let (kind, len) = match &self.content {
            Content::Fixed => (ExtentKind::Data(Location { file: FileId::default(), offset }), end - offset),
            Content::Blocks(blocks) => blocks.extent(offset, end)?,
        };
        Ok(Extent { offset, len, kind })
    }

    fn host_alignment(&self) -> Option<u64> {
        matches!(self.content, Content::Blocks(_)).then_some(SECTOR)
    }

    fn metadata(&self, claim: &mut dyn FnMut(FileId, Range<u64>) -> bool) -> Result<()> {
        match &self.content {
            Content::Fixed => Ok(()),
            Content::Blocks(blocks) => blocks.report_metadata(claim),
        }
    }
}
