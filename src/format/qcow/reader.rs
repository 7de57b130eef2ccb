//! Maps guest ranges to host offsets by the L1 and L2 tables.

use std::ops::Range;
use std::sync::Arc;

use super::FORMAT_NAME;
use super::entry;
use super::header::Header;
use crate::driver::{Extent, ExtentKind, FileId, Location, OpenContext, SparseRead};
use crate::error::{Error, Result};
#[cfg(feature = "crypto")]
use crate::format::shared::decryption::LegacyAes;
use crate::format::shared::decryption::{Decryption, LEGACY_AES_WARNING};
use crate::format::shared::two_level::{ENTRY, Entry, IMAGE, TwoLevelMap};
use crate::info::{FileReference, ImageInfo};
use crate::io::ReadAt;

/// An open image.
pub(super) struct Reader {
    info: ImageInfo,
    map: TwoLevelMap,
    /// If the image is encrypted and unlocked.
    decryption: Option<Decryption>,
}

impl Reader {
    pub fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        cx.refuse_snapshots(FORMAT_NAME)?;
        let header = Header::read(&*file, cx.limits)?;
        let decryption = if header.is_encrypted && !cx.inspect { unlock(file.clone(), cx)? } else { None };
        Ok(Reader { info: describe(&header), map: TwoLevelMap::open(file, header.shape(), cx.budget)?, decryption })
    }

    fn kind(&self, entry: Entry) -> Result<ExtentKind> {
        match entry::kind(&self.map.shape, entry, self.map.file_len)? {
            ExtentKind::Compressed(payload) if self.info.encryption.is_some() => {
                let feature = "compressed clusters of an encrypted image".into();
                Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(payload.at.offset) })
            }
            kind => Ok(kind),
        }
    }
}

#[cfg(feature = "crypto")]
fn unlock(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Option<Decryption>> {
    LegacyAes::unlock(FORMAT_NAME, file, cx).map(|aes| Some(Decryption::ByGuest(aes)))
}

/// The core refuses the image.
#[cfg(not(feature = "crypto"))]
fn unlock(_: Arc<dyn ReadAt>, _: &OpenContext<'_>) -> Result<Option<Decryption>> {
    Ok(None)
}

/// The properties of the image, from its header.
pub(super) fn describe(header: &Header) -> ImageInfo {
    let backing = header.backing_file.clone();
    ImageInfo {
        format: FORMAT_NAME,
        virtual_size: header.size,
        block_size: Some(1 << header.cluster_bits),
        backing: backing.map(|name| FileReference::new("backing file", name, None)),
        encryption: header.is_encrypted.then_some("AES"),
        warnings: header.is_encrypted.then(|| LEGACY_AES_WARNING.into()).into_iter().collect(),
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

    fn image_file(&self) -> Option<Arc<dyn ReadAt>> {
        self.decryption.as_ref().map(Decryption::image_file)
    }

    fn decrypted_file(&self, guest: u64, at: Location) -> Option<Arc<dyn ReadAt>> {
        self.decryption.as_ref().and_then(|decryption| decryption.decrypted_file(guest, at))
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
