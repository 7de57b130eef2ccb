//! Where the bytes of a guest range live.

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use super::FORMAT_NAME;
use super::header::{Header, Kind};
use super::map::{BlockMap, Entry, IMAGE, Piece};
use crate::driver::OpenContext;
use crate::driver::SparseRead;
use crate::driver::{Extent, ExtentKind, Location};
use crate::error::Result;
use crate::format::shared::file_extents::FileExtents;
use crate::format::shared::run;
use crate::info::{FileReference, ImageInfo, Value};
use crate::io::ReadAt;
use crate::name::Name;

/// An opened image.
pub(super) struct Reader {
    info: ImageInfo,
    map: BlockMap,
    /// Of a static image, whose blocks are all there: what was never written is a hole of the file.
    runs: Option<FileExtents>,
}

impl Reader {
    pub fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        cx.refuse_snapshots(FORMAT_NAME)?;
        let header = Header::read(&*file, cx.limits)?;
        let runs = (header.kind == Kind::Static).then(|| FileExtents::new(file.clone(), IMAGE));
        Ok(Reader { info: describe(&header), map: BlockMap::new(file, header)?, runs })
    }

    /// How the bytes from `offset` to the end of its block live, by entry `index` of `piece`.
    fn block(&self, piece: &Piece, index: u64, offset: u64) -> Result<(ExtentKind, u64)> {
        let within = offset % u64::from(self.map.header.block_size);
        let len = self.map.visible(index) - within;
        let kind = match piece.entry(index) {
            Entry::Free => ExtentKind::Hole,
            Entry::Zero => ExtentKind::Zero { allocated: None },
            Entry::Block(number) => {
                let place = self.map.place(number);
                self.map.check(index, place, within + len)?;
                let at = Location { file: IMAGE, offset: place + within };
                // A block that is not a hole altogether is one run: its parts could end anywhere.
                let run = self.runs.as_ref().map(|runs| runs.extent(at.offset, at.offset + len)).transpose()?;
                match run {
                    Some((zero @ ExtentKind::Zero { .. }, zeros)) if zeros == len => zero,
                    _ => ExtentKind::Data(at),
                }
            }
        };
        Ok((kind, len))
    }
}

/// What the header says.
fn describe(header: &Header) -> ImageInfo {
    let mut specific = vec![
        ("type", header.kind.name().into()),
        ("uuid", text(header.uuid)),
        ("modification-uuid", text(header.modification)),
    ];
    if header.kind.has_parent() {
        specific.push(("parent-uuid", text(header.linkage)));
        specific.push(("parent-modification-uuid", text(header.parent_modification)));
    }
    if !header.comment.as_bytes().is_empty() {
        specific.push(("comment", Value::Text(header.comment.clone())));
    }
    if header.block_extra != 0 {
        specific.push(("block-extra", u64::from(header.block_extra).into()));
    }
    specific.push(("blocks-allocated", u64::from(header.blocks_allocated).into()));
    ImageInfo {
        format: FORMAT_NAME,
        virtual_size: header.disk_size,
        block_size: Some(header.block_size),
        backing: header.kind.has_parent().then(|| parent(header.linkage)),
        identities: (!header.uuid.is_nil()).then(|| identity(header.uuid)).into_iter().collect(),
        warnings: header.warnings(),
        specific,
        ..ImageInfo::default()
    }
}

/// The image with this UUID. Its name is the one that VirtualBox gives to the files of snapshots.
fn parent(uuid: Uuid) -> FileReference {
    let name = Name::from(format!("{{{uuid}}}.vdi"));
    let mut reference = FileReference::new("parent", name, Some(Name::from(FORMAT_NAME)));
    reference.beside = Some("vdi");
    reference.identities.push(identity(uuid));
    reference
}

fn identity(uuid: Uuid) -> Name {
    Name::from(format!("UUID {uuid}"))
}

fn text(uuid: Uuid) -> Value {
    Value::Text(Name::from(uuid.to_string()))
}

impl SparseRead for Reader {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        self.info.check_offset(range.start)?;
        let (offset, end) = (range.start, range.end.min(self.info.virtual_size));
        let block_size = u64::from(self.map.header.block_size);
        let index = offset / block_size;
        let piece = self.map.piece(index)?;
        let (kind, len) = self.block(&piece, index, offset)?;
        Ok(run::merge(Extent { offset, len, kind }, end, |at| {
            let index = at / block_size;
            if index < piece.indices.end { self.block(&piece, index, at).ok() } else { None }
        }))
    }

    /// What divides the places of all blocks, and their size. Metadata lies before the data, by the header.
    fn host_alignment(&self) -> Option<u64> {
        let Header { data_offset, block_size, block_extra, .. } = self.map.header;
        Some(1 << (data_offset | u64::from(block_size | block_extra)).trailing_zeros())
    }
}

#[cfg(test)]
mod tests;
