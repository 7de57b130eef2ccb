//! Maps guest ranges to host offsets by the L1 and L2 tables.

use std::ops::Range;
use std::sync::Arc;

use super::entry;
use super::header::{Backing, Header};
use super::{FIELDS, FORMAT_NAME};
use crate::driver::{Extent, FileId, OpenContext, SparseRead};
use crate::error::{Problem, Result};
use crate::format::shared::two_level::{IMAGE, TwoLevelMap};
use crate::info::{FileReference, ImageInfo};
use crate::io::ReadAt;
use crate::name::Name;

/// An open image.
pub(super) struct Reader {
    info: ImageInfo,
    header: Header,
    map: TwoLevelMap,
}

impl Reader {
    pub fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        cx.refuse_snapshots(FORMAT_NAME)?;
        let header = Header::read(&*file, cx.limits)?;
        let map = TwoLevelMap::open(file, header.shape(), cx.budget)?;
        Ok(Reader { info: describe(&header), header, map })
    }
}

/// The properties of the image, from its header.
pub(super) fn describe(header: &Header) -> ImageInfo {
    let reference = |Backing { name, is_raw }: &Backing| {
        FileReference::new("backing file", name.clone(), is_raw.then(|| Name::from("raw")))
    };
    ImageInfo {
        format: FORMAT_NAME,
        virtual_size: header.image_size,
        block_size: Some(1 << header.cluster_bits),
        backing: header.backing.as_ref().map(reference),
        dirty: header.need_check,
        specific: vec![("table-size", u64::from(header.table_size).into())],
        ..ImageInfo::default()
    }
}

impl SparseRead for Reader {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        self.map.extent_at(&self.info, range, |entry| entry::kind(&self.map.shape, entry, self.map.file_len))
    }

    fn host_alignment(&self) -> Option<u64> {
        Some(self.map.shape.cluster_size())
    }

    fn metadata(&self, claim: &mut dyn FnMut(FileId, Range<u64>) -> bool) -> Result<()> {
        claim(IMAGE, 0..self.header.header_len());
        let (l1, len) = (self.header.l1_table_offset, self.map.shape.l2_len());
        if !claim(IMAGE, l1..l1.saturating_add(len)) {
            let problem = Problem::Overlap { offset: l1, with: "the header" };
            return Err(FIELDS.at("l1_table_offset", 40).fault(problem));
        }
        self.map.claim_l2_tables(claim)
    }
}

#[cfg(test)]
mod tests;
