//! Copies of the bitmaps of the source.

use std::sync::Arc;

use super::{Converter, Report};
use crate::driver::{DirtyBitmap, WriteSpec};
use crate::error::{Error, Result};
use crate::image::Image;

/// Whether the bitmaps of the source are copied: the persistent bitmaps of qcow2, by which programs for incremental backups know what has been
/// written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BitmapPolicy {
    /// None is.
    #[default]
    Omit,
    /// All are. An inconsistent one, whose bits are wrong because a program was interrupted, is an error.
    Copy,
    /// All are, except inconsistent ones, which are [reported](Report::skipped_bitmaps).
    SkipInconsistent,
}

impl Converter {
    /// Sets whether the bitmaps of the source are copied, with their granularity. The new image must be qcow2 of version 3 if there are any. Default:
    /// [`BitmapPolicy::Omit`].
    ///
    /// ```
    /// use diskimage::{BitmapPolicy, Converter, Format};
    ///
    /// let converter = Converter::new(Format::QCOW2).bitmaps(BitmapPolicy::Copy);
    /// # let _ = converter;
    /// ```
    #[must_use]
    pub fn bitmaps(mut self, policy: BitmapPolicy) -> Self {
        self.bitmaps = policy;
        self
    }

    /// Sets the image whose bitmaps are copied instead of those of the source: for a snapshot, which has none, the active state.
    #[must_use]
    pub fn bitmaps_from(mut self, image: Image) -> Self {
        self.bitmap_image = Some(Arc::new(image));
        self
    }

    /// The bitmaps to copy to an image with these requirements.
    pub(super) fn bitmaps_of(&self, source: &Image, spec: &WriteSpec, report: &mut Report) -> Result<Vec<DirtyBitmap>> {
        let mut bitmaps = match self.bitmaps {
            BitmapPolicy::Omit => return Ok(Vec::new()),
            BitmapPolicy::Copy | BitmapPolicy::SkipInconsistent => {
                self.bitmap_image.as_deref().unwrap_or(source).bitmaps()?
            }
        };
        let inconsistent = bitmaps.extract_if(.., |bitmap| bitmap.inconsistent);
        report.skipped_bitmaps = inconsistent.map(|bitmap| bitmap.name).collect();
        if let (BitmapPolicy::Copy, Some(name)) = (self.bitmaps, report.skipped_bitmaps.first()) {
            let problem = "is inconsistent: a program that used it was interrupted, and its bits are wrong";
            return Err(Error::Usage(format!("the bitmap '{name}' {problem}")));
        }
        if !bitmaps.is_empty() && !spec.bitmaps {
            let format = self.format.name();
            return Err(Error::Usage(format!("the source has bitmaps, and the new {format} image cannot have any")));
        }
        Ok(bitmaps)
    }
}
