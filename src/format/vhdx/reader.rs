//! Where the bytes of a guest range live.

use std::ops::Range;
use std::sync::Arc;

use super::bat::{Bat, IMAGE, Payload};
use super::locator;
use super::metadata::Metadata;
use super::structure::{Replay, Structure};
use super::{FIELDS, FORMAT_NAME, MIB};
use crate::driver::OpenContext;
use crate::driver::SparseRead;
use crate::driver::{Extent, ExtentKind, FileId, Location};
use crate::error::{Problem, Result};
use crate::format::shared::bits::{self, BitOrder};
use crate::format::shared::file_extents::FileExtents;
use crate::format::shared::run;
use crate::format::shared::table_cache::TableCache;
use crate::info::{ImageInfo, Value};
use crate::io::ReadAt;
use crate::name::Name;

/// An opened image.
pub(super) struct Reader {
    info: ImageInfo,
    /// As it is to be read.
    file: Arc<dyn ReadAt>,
    /// That is not as it is stored.
    replayed: bool,
    bat: Bat,
    sector_size: u64,
    bitmaps: TableCache,
    /// What the file holds within blocks: those of a fixed disk are all there, whatever was written to them.
    runs: FileExtents,
    /// Where other metadata is than sector bitmap blocks.
    metadata: Vec<Range<u64>>,
}

impl Reader {
    /// Bytes of a sector bitmap that are read at once.
    const BITMAP_SLICE: u64 = 16 << 10;

    pub fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        cx.refuse_snapshots(FORMAT_NAME)?;
        Reader::new(Structure::read(file, cx)?)
    }

    fn new(structure: Structure) -> Result<Reader> {
        Ok(Reader {
            info: describe(&structure),
            replayed: structure.replay.is_some(),
            bat: Bat::new(&structure)?,
            sector_size: structure.metadata.logical_sector_size.into(),
            bitmaps: TableCache::default(),
            runs: FileExtents::new(structure.file.clone(), IMAGE),
            metadata: structure.ranges().map(|(range, _)| range).collect(),
            file: structure.file,
        })
    }

    /// What places in the file are multiples of.
    fn unit(&self) -> u64 {
        if self.bat.differencing { self.sector_size } else { MIB }
    }

    /// How the bytes of the disk from `offset` on live, and how many live in the same way, as far as a piece of the table tells.
    fn extent(&self, offset: u64, end: u64) -> Result<(ExtentKind, u64)> {
        let (block, within) = (offset / self.bat.block_size, offset % self.bat.block_size);
        let piece = self.bat.piece(block)?;
        let first = match piece.payload(block)? {
            Payload::PartiallyPresent(place) => return self.partial(block, place, within, end - offset),
            first => self.whole(first).advance(within),
        };
        let first = Extent { offset, len: self.bat.visible(block) - within, kind: first };
        let Extent { len, kind, .. } = run::merge(first, end, |at| {
            let block = at / self.bat.block_size;
            if block >= piece.blocks.end {
                return None;
            }
            match piece.payload(block) {
                Ok(Payload::PartiallyPresent(_)) | Err(_) => None,
                Ok(next) => Some((self.whole(next), self.bat.visible(block))),
            }
        });
        match kind {
            ExtentKind::Data(at) => self.stored(at.offset, len),
            kind => Ok((kind, len)),
        }
    }

    /// How the bytes of a block live that all live in the same way, as far as its entry tells.
    fn whole(&self, payload: Payload) -> ExtentKind {
        match payload {
            Payload::NotPresent if self.bat.differencing => ExtentKind::Hole,
            Payload::NotPresent | Payload::Zero | Payload::Unmapped(_) => ExtentKind::Zero { allocated: None },
            Payload::FullyPresent(offset) | Payload::PartiallyPresent(offset) => {
                ExtentKind::Data(Location { file: IMAGE, offset })
            }
        }
    }

    /// How the bytes of a partially present block at `place` live, from byte `within` of it on: by its chunk's sector bitmap
    /// (2.4), which has the lowest bit first.
    fn partial(&self, block: u64, place: u64, within: u64, most: u64) -> Result<(ExtentKind, u64)> {
        let (bitmap, field) = self.bat.sector_bitmap(block / self.bat.chunk_ratio)?;
        let Some(bitmap) = bitmap else {
            return Err(Bat::missing_bitmap(field));
        };
        // In bits of the bitmap.
        let start = block % self.bat.chunk_ratio * (self.bat.block_size / self.sector_size);
        let sector = start + within / self.sector_size;
        let end = start + self.bat.visible(block).div_ceil(self.sector_size);
        let per_slice = Self::BITMAP_SLICE * 8;
        let first = sector / per_slice * per_slice;
        let at = Location { file: IMAGE, offset: bitmap + first / 8 };
        let slice = self.bitmaps.get(&*self.file, at, Self::BITMAP_SLICE as usize)?;
        let end = end.min(first + per_slice).min(start + (within + most).div_ceil(self.sector_size));
        let (present, run_end) = bits::run(&slice.bytes, BitOrder::LowestFirst, sector - first, end - first);
        let run_end = ((first + run_end - start) * self.sector_size).min(self.bat.visible(block));
        let len = run_end - within;
        if present { self.stored(place + within, len) } else { Ok((ExtentKind::Hole, len)) }
    }

    /// How the `len` bytes at `place` in the file live, or those of them that live in the same way. Only whole units of the file
    /// are holes of it: what is claimed for the guest would have no unit of its own otherwise.
    fn stored(&self, place: u64, len: u64) -> Result<(ExtentKind, u64)> {
        let (unit, end) = (self.unit(), place + len);
        let start = place / unit * unit;
        let (kind, run) = self.runs.extent(start, end)?;
        let run_end = start + run;
        let at = Location { file: IMAGE, offset: place };
        let (kind, run_end) = match kind {
            ExtentKind::Zero { .. } if run_end == end => (ExtentKind::Zero { allocated: Some(at) }, end),
            ExtentKind::Zero { .. } if run >= unit => (ExtentKind::Zero { allocated: Some(at) }, run_end / unit * unit),
            ExtentKind::Zero { .. } => (ExtentKind::Data(at), start + unit),
            _ => (ExtentKind::Data(at), run_end.div_ceil(unit).saturating_mul(unit)),
        };
        Ok((kind, run_end.min(end) - place))
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
        Some(self.unit())
    }

    fn metadata(&self, claim: &mut dyn FnMut(FileId, Range<u64>) -> bool) -> Result<()> {
        for range in &self.metadata {
            if !claim(IMAGE, range.clone()) {
                let overlap = Problem::Overlap { offset: range.start, with: "other metadata" };
                return Err(FIELDS.at("region", range.start).fault(overlap));
            }
        }
        let chunks = if self.bat.differencing { self.bat.chunks() } else { 0 };
        for chunk in 0..chunks {
            // What is wrong with an entry is told when a block needs it.
            if let Ok((Some(offset), field)) = self.bat.sector_bitmap(chunk)
                && !claim(IMAGE, offset..offset + MIB)
            {
                return Err(field.fault(Problem::Overlap { offset, with: "other metadata" }));
            }
        }
        Ok(())
    }
}

/// What the file says of itself.
fn describe(structure: &Structure) -> ImageInfo {
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
    ImageInfo {
        format: FORMAT_NAME,
        virtual_size: *virtual_disk_size,
        block_size: Some(*block_size),
        backing: parent.as_ref().map(|parent| parent.reference()),
        identities: vec![locator::identity(header.data_write_guid)],
        dirty: replay.is_some(),
        warnings: structure.notes().chain(structure.table_warning.clone()).map(Into::into).collect(),
        specific,
        ..ImageInfo::default()
    }
}

#[cfg(test)]
mod tests;
