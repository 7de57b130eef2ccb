//! Maps guest ranges to host offsets.

use std::ops::Range;
use std::sync::Arc;

use super::bat::{Bat, BatPage, IMAGE};
use super::extension::{Bitmap, read_bitmaps};
use super::header::Header;
use super::{FORMAT_NAME, SECTOR};
use crate::driver::{Extent, ExtentKind, FileId, Location, OpenContext, SparseRead};
use crate::error::{Error, Result};
use crate::format::shared::run;
use crate::info::{ImageInfo, Value};
use crate::io::ReadAt;
use crate::name::Name;

/// An open image.
pub(super) struct Reader {
    info: ImageInfo,
    bat: Bat,
}

impl Reader {
    pub fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        cx.refuse_snapshots(FORMAT_NAME)?;
        let header = Header::read(&*file, cx.limits)?;
        let info = describe(&header, read_bitmaps(&*file, &header))?;
        Ok(Reader { info, bat: Bat::new(file, header, cx.budget)? })
    }

    /// The kind and length of the extent from guest offset `offset` to the end of its cluster, cluster `index` on `page`.
    fn cluster(&self, page: &BatPage, index: u64, offset: u64) -> Result<(ExtentKind, u64)> {
        let within = offset % self.bat.header.cluster_size();
        let kind = match self.bat.host_offset(page, index)? {
            None => ExtentKind::Hole,
            Some(host) => ExtentKind::Data(Location { file: IMAGE, offset: host + within }),
        };
        Ok((kind, self.bat.visible_len(index) - within))
    }
}

/// The properties of the image. The disk can be read without its bitmaps, whatever is wrong with them.
fn describe(header: &Header, bitmaps: Result<Vec<Bitmap>>) -> Result<ImageInfo> {
    let mut warnings = header.warnings();
    let bitmaps = bitmaps.or_else(|error| match error {
        Error::Corrupt(_) | Error::Limit { .. } => {
            warnings.push(format!("bitmaps are not listed: {error}").into());
            Ok(Vec::new())
        }
        other => Err(other),
    })?;
    let mut specific = vec![("magic", Value::Text(Name::from(&header.magic()[..])))];
    if !bitmaps.is_empty() {
        specific.push(("bitmaps", Value::List(bitmaps.iter().map(Bitmap::to_value).collect())));
    }
    Ok(ImageInfo {
        format: FORMAT_NAME,
        virtual_size: header.virtual_size(),
        block_size: Some(header.cluster_size() as u32),
        dirty: header.is_open(),
        warnings,
        specific,
        ..ImageInfo::default()
    })
}

impl SparseRead for Reader {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        self.info.check_offset(range.start)?;
        let (offset, end) = (range.start, range.end.min(self.info.virtual_size));
        let cluster_size = self.bat.header.cluster_size();
        let page = self.bat.page(offset / cluster_size)?;
        let (kind, len) = self.cluster(&page, offset / cluster_size, offset)?;
        let first = Extent { offset, len, kind };
        Ok(run::merge_units(first, end, cluster_size, &page, |index, at| self.cluster(&page, index, at).ok()))
    }

    /// The largest power of two that divides the host offsets and the size of all clusters.
    fn host_alignment(&self) -> Option<u64> {
        let sizes = self.bat.header.unit_len() | self.bat.header.cluster_size();
        Some(1 << sizes.trailing_zeros())
    }

    fn metadata(&self, claim: &mut dyn FnMut(FileId, Range<u64>) -> bool) -> Result<()> {
        claim(IMAGE, 0..self.bat.header.bat_end());
        let extension = self.bat.header.extension_sector.saturating_mul(SECTOR);
        if extension != 0 {
            claim(IMAGE, extension..extension.saturating_add(self.bat.header.cluster_size()).min(self.bat.file_len));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
