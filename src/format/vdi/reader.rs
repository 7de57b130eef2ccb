//! Maps guest ranges to host offsets.

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use super::FORMAT_NAME;
use super::header::Header;
use super::map::{BlockMap, BlockMapEntry, BlockMapPage};
use crate::driver::{Extent, ExtentKind, OpenContext, SparseRead};
use crate::error::Result;
use crate::format::shared::run;
use crate::info::{FileReference, ImageInfo, Value};
use crate::io::ReadAt;
use crate::name::Name;

/// An open image.
pub(super) struct Reader {
    info: ImageInfo,
    map: BlockMap,
}

impl Reader {
    pub fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        cx.refuse_snapshots(FORMAT_NAME)?;
        let header = Header::read(&*file, cx.limits)?;
        Ok(Reader { info: describe(&header), map: BlockMap::new(file, header, cx.budget)? })
    }

    /// The kind and length of the extent from guest offset `offset` to the end of its block, block `index` on `page`.
    fn block(&self, page: &BlockMapPage, index: u64, offset: u64) -> Result<(ExtentKind, u64)> {
        self.map.header.extent(BlockMapEntry::from_page(page, index), offset, self.map.file_len)
    }
}

/// The properties of the image, from its header.
pub(super) fn describe(header: &Header) -> ImageInfo {
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

/// A reference to the image with this UUID, under the name that VirtualBox gives to snapshot files.
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
        let block_size = self.map.header.block_size.into();
        let page = self.map.page(offset / block_size)?;
        let (kind, len) = self.block(&page, offset / block_size, offset)?;
        let first = Extent { offset, len, kind };
        Ok(run::merge_units(first, end, block_size, &page, |index, at| self.block(&page, index, at).ok()))
    }

    /// The largest power of two that divides the host offsets and the size of all blocks. Metadata precedes the data area.
    fn host_alignment(&self) -> Option<u64> {
        let Header { data_offset, block_size, block_extra, .. } = self.map.header;
        Some(1 << (data_offset | u64::from(block_size | block_extra)).trailing_zeros())
    }
}

#[cfg(test)]
mod tests;
