//! Maps guest ranges to host offsets by the L1 and L2 tables.

use std::ops::Range;
use std::sync::Arc;

use super::FORMAT_NAME;
use super::entry::L2Entry;
use super::header::Header;
use crate::codec::Codec;
use crate::driver::{Compressed, Extent, ExtentKind, FileId, Location, OpenContext, SparseRead};
use crate::error::{Error, Result};
use crate::format::shared::two_level::{ENTRY, Entry, IMAGE, TwoLevelMap};
use crate::info::{FileReference, ImageInfo};
use crate::io::ReadAt;

/// An open image.
pub(super) struct Reader {
    info: ImageInfo,
    map: TwoLevelMap,
}

impl Reader {
    pub fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        cx.refuse_snapshots(FORMAT_NAME)?;
        let header = Header::read(&*file, cx.limits)?;
        Ok(Reader { info: describe(&header), map: TwoLevelMap::open(file, header.shape())? })
    }

    fn kind(&self, entry: Entry) -> Result<ExtentKind> {
        let shape = &self.map.shape;
        let within = entry.offset % shape.cluster_size();
        let fault = |problem| Error::corrupt(FORMAT_NAME, "L2 entry", entry.at, problem);
        Ok(match L2Entry::parse(entry.value, shape.cluster_bits).map_err(fault)? {
            L2Entry::Unallocated => ExtentKind::Hole,
            L2Entry::Data(host) => {
                self.map.check_cluster(entry, host, within + shape.len_in_cluster(entry.offset))?;
                ExtentKind::Data(Location { file: IMAGE, offset: host + within })
            }
            L2Entry::Compressed { host, len } => {
                self.map.check_within(entry, host, len.into())?;
                ExtentKind::Compressed(Compressed {
                    at: Location { file: IMAGE, offset: host },
                    stored_len: len,
                    codec: Codec::Deflate,
                    unit: entry.offset - within,
                    unit_len: shape.cluster_size() as u32,
                    min_len: shape.cluster_size() as u32,
                })
            }
        })
    }
}

/// The properties of the image, from its header.
fn describe(header: &Header) -> ImageInfo {
    let backing = header.backing_file.clone();
    ImageInfo {
        format: FORMAT_NAME,
        virtual_size: header.size,
        block_size: Some(1 << header.cluster_bits),
        backing: backing.map(|name| FileReference::new("backing file", name, None)),
        encryption: header.is_encrypted.then_some("AES"),
        ..ImageInfo::default()
    }
}

impl SparseRead for Reader {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        self.map.extent_at(&self.info, range, |entry| self.kind(entry))
    }

    /// A payload may follow an L2 table in its cluster.
    fn host_alignment(&self) -> Option<u64> {
        Some(self.map.shape.cluster_size().min(self.map.shape.l2_len()))
    }

    fn metadata(&self, claim: &mut dyn FnMut(FileId, Range<u64>) -> bool) -> Result<()> {
        // The L1 table follows the header, usually in the same cluster.
        let (l1, len) = (self.map.shape.l1_offset, self.map.shape.l1_entries() * ENTRY);
        claim(IMAGE, 0..Header::LEN as u64);
        claim(IMAGE, l1..l1.saturating_add(len));
        self.map.claim_l2_tables(claim)
    }
}

#[cfg(test)]
mod tests;
