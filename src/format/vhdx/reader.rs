//! Maps guest ranges to host offsets.

use std::ops::Range;
use std::sync::Arc;

use super::bat::{Bat, BlockState, IMAGE};
use super::locator;
use super::metadata::Metadata;
use super::structure::{Replay, Structure};
use super::{FIELDS, FORMAT_NAME, MIB};
use crate::driver::{Extent, ExtentKind, FileId, Location, OpenContext, SparseRead};
use crate::error::{Problem, Result};
use crate::format::shared::bits::{self, BitOrder};
use crate::format::shared::run;
use crate::format::shared::table_cache::TableCache;
use crate::info::{ImageInfo, Value};
use crate::io::ReadAt;
use crate::limits::Budget;
use crate::name::Name;

const IGNORED_LOCATOR: &str = "a parent locator is ignored: without the flag HasParent, the disk has no parent";

/// An open image.
pub(super) struct Reader {
    info: ImageInfo,
    /// The image file with its log replayed.
    file: Arc<dyn ReadAt>,
    /// Whether the log changed it.
    replayed: bool,
    bat: Bat,
    sector_size: u64,
    bitmaps: TableCache,
    /// Host ranges of metadata other than sector bitmap blocks.
    metadata: Vec<Range<u64>>,
}

impl Reader {
    /// Bytes of a sector bitmap read at once.
    const BITMAP_PAGE: u64 = 16 << 10;

    pub fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        cx.refuse_snapshots(FORMAT_NAME)?;
        Reader::new(Structure::read(file, cx)?, cx.budget)
    }

    fn new(structure: Structure, budget: &Budget) -> Result<Reader> {
        Ok(Reader {
            info: describe(&structure),
            replayed: structure.replay.is_some(),
            bat: Bat::new(&structure, budget)?,
            sector_size: structure.metadata.logical_sector_size.into(),
            bitmaps: TableCache::new(budget),
            metadata: structure.ranges().map(|(range, _)| range).collect(),
            file: structure.file,
        })
    }

    /// Alignment of mapped host offsets.
    fn alignment(&self) -> u64 {
        if self.bat.differencing { self.sector_size } else { MIB }
    }

    /// The kind and the length of the extent at guest offset `offset`, up to the end of the table page.
    fn extent(&self, offset: u64, end: u64) -> Result<(ExtentKind, u64)> {
        let (block, within) = (offset / self.bat.block_size, offset % self.bat.block_size);
        let page = self.bat.page(block)?;
        let first = match page.block_state(block)? {
            BlockState::PartiallyPresent(host_offset) => {
                return self.partial(block, host_offset, within, end - offset);
            }
            first => self.bat.kind(first).advance(within),
        };
        let first = Extent { offset, len: self.bat.visible_len(block) - within, kind: first };
        let extent = run::merge_units(first, end, self.bat.block_size, &page.entries, |block, _| {
            match page.block_state(block) {
                Ok(BlockState::PartiallyPresent(_)) | Err(_) => None,
                Ok(next) => Some((self.bat.kind(next), self.bat.visible_len(block))),
            }
        });
        Ok((extent.kind, extent.len))
    }

    /// The kind and the length of the extent at byte `within` of the partially present block at `host_offset`, at most `max_len`
    /// bytes. The sector bitmap of the chunk has the lowest bit first (2.4).
    fn partial(&self, block: u64, host_offset: u64, within: u64, max_len: u64) -> Result<(ExtentKind, u64)> {
        let (bitmap, field) = self.bat.sector_bitmap(block / self.bat.chunk_ratio)?;
        let Some(bitmap) = bitmap else {
            return Err(Bat::missing_bitmap(field));
        };
        // Indexes of bits in the bitmap.
        let start = block % self.bat.chunk_ratio * (self.bat.block_size / self.sector_size);
        let sector = start + within / self.sector_size;
        let end = start + self.bat.visible_len(block).div_ceil(self.sector_size);
        let page_bits = Self::BITMAP_PAGE * 8;
        let first = sector / page_bits * page_bits;
        let at = Location { file: IMAGE, offset: bitmap + first / 8 };
        let page = self.bitmaps.get(&*self.file, at, Self::BITMAP_PAGE as usize)?;
        let end = end.min(first + page_bits).min(start + (within + max_len).div_ceil(self.sector_size));
        let (present, run_end) = bits::run(&page.bytes, BitOrder::LowestFirst, sector - first, end - first);
        let run_end = ((first + run_end - start) * self.sector_size).min(self.bat.visible_len(block));
        let len = run_end - within;
        let location = Location { file: IMAGE, offset: host_offset + within };
        Ok((if present { ExtentKind::Data(location) } else { ExtentKind::Hole }, len))
    }
}

impl SparseRead for Reader {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        self.info.check_offset(range.start)?;
        let (offset, end) = (range.start, range.end.min(self.info.virtual_size));
        let (kind, len) = self.extent(offset, end)?;
        Ok(Extent { offset, len, kind })
    }

    fn image_file(&self) -> Option<Arc<dyn ReadAt>> {
        self.replayed.then(|| self.file.clone())
    }

    fn host_alignment(&self) -> Option<u64> {
        Some(self.alignment())
    }

    fn metadata(&self, claim: &mut dyn FnMut(FileId, Range<u64>) -> bool) -> Result<()> {
        for range in &self.metadata {
            if !claim(IMAGE, range.clone()) {
                let overlap = Problem::Overlap { offset: range.start, with: "other metadata" };
                return Err(FIELDS.at("region", range.start).fault(overlap));
            }
        }
        let chunks = if self.bat.differencing { self.bat.chunk_count() } else { 0 };
        for chunk in 0..chunks {
            // An invalid entry is reported when a block needs it.
            if let Ok((Some(offset), field)) = self.bat.sector_bitmap(chunk)
                && !claim(IMAGE, offset..offset + MIB)
            {
                return Err(field.fault(Problem::Overlap { offset, with: "other metadata" }));
            }
        }
        Ok(())
    }
}

/// The properties of the image.
pub(super) fn describe(structure: &Structure) -> ImageInfo {
    let Structure { creator, header, metadata, replay, .. } = structure;
    let Metadata { block_size, leave_block_allocated, virtual_disk_size, parent, .. } = metadata;
    let subformat = match (parent, leave_block_allocated) {
        (Some(_), _) => "differencing",
        (None, true) => "fixed",
        (None, false) => "dynamic",
    };
    let text = |text: String| Value::Text(Name::from(text));
    let mut specific = vec![
        ("subformat", subformat.into()),
        ("creator", Value::Text(creator.clone())),
        ("logical-sector-size", u64::from(metadata.logical_sector_size).into()),
        ("physical-sector-size", u64::from(metadata.physical_sector_size).into()),
        ("virtual-disk-id", text(metadata.virtual_disk_id.to_string())),
        ("data-write-guid", text(header.data_write_guid.to_string())),
        ("file-write-guid", text(header.file_write_guid.to_string())),
    ];
    if let Some(Replay { entries, bytes, .. }) = replay {
        specific.push(("log-entries-replayed", (*entries).into()));
        specific.push(("log-bytes-replayed", (*bytes).into()));
    }
    let ignored = metadata.ignores_locator.then_some(IGNORED_LOCATOR.into());
    ImageInfo {
        format: FORMAT_NAME,
        virtual_size: *virtual_disk_size,
        block_size: Some(*block_size),
        backing: parent.as_ref().map(|parent| parent.reference()),
        identities: vec![locator::identity(header.data_write_guid)],
        dirty: replay.is_some(),
        warnings: structure.notes().chain(structure.table_warning.clone()).map(Into::into).chain(ignored).collect(),
        specific,
        ..ImageInfo::default()
    }
}

#[cfg(test)]
mod tests;
