//! Reading: the map from guest ranges to host offsets.

use std::ops::Range;
use std::sync::Arc;

use super::{DirtyBitmap, Extent, FileId, Location};
use crate::error::Result;
use crate::info::ImageInfo;
use crate::io::ReadAt;

/// An opened image of one file format: its metadata. The payload is read by the core.
///
/// The module page has [an example](super#a-reader).
pub trait SparseRead: Send + Sync {
    /// The image's properties.
    fn info(&self) -> &ImageInfo;

    /// Returns the extent that begins at guest offset `range.start`.
    ///
    /// `range` is not empty and ends at or before the virtual size. The driver reads and merges no table entries beyond
    /// `range.end`; the caller clips an extent that ends after it. It reads at most one metadata table and never
    /// panics, whatever the image holds.
    ///
    /// # Errors
    /// If the metadata cannot be read or is corrupt. A host offset out of bounds of its file is corruption.
    fn extent_at(&self, range: Range<u64>) -> Result<Extent>;

    /// Whether [`extent_at`](Self::extent_at) reads a part of the payload of each compressed unit, so that a map of the disk can take as
    /// long as reading it.
    fn reads_payload(&self) -> bool {
        false
    }

    /// The image file with pending log entries applied, where the format has a log and it is not empty.
    fn image_file(&self) -> Option<Arc<dyn ReadAt>> {
        None
    }

    /// The file to read data from whose decryption depends on its guest offset `guest`; `None` for the [image file](Self::image_file). The
    /// data at `at`, and what follows it in the same extent, is decrypted in it, at the same offset.
    fn decrypted_file(&self, _guest: u64, _at: Location) -> Option<Arc<dyn ReadAt>> {
        None
    }

    /// Alignment of mapped host offsets in bytes, a power of two; the granularity of overlap tracking; `None` if the
    /// format cannot map two guest ranges to one host range.
    fn host_alignment(&self) -> Option<u64>;

    /// Reference count of the host cluster at `offset` of the image file; 1 for formats without reference counts.
    fn refcount(&self, _offset: u64) -> u64 {
        1
    }

    /// The bitmaps of writes that the image holds, in its order. Outdated ones are left out.
    ///
    /// # Errors
    /// If they cannot be read or are corrupt.
    fn bitmaps(&self) -> Result<Vec<DirtyBitmap>> {
        Ok(Vec::new())
    }

    /// Reports each range of the image's files that holds metadata to `claim`, which returns whether the range was free.
    /// Ranges are tracked by whole units of [`host_alignment`](Self::host_alignment): of two tables in one unit, the second is not
    /// free.
    ///
    /// # Errors
    /// If two tables that are needed for reading overlap.
    fn metadata(&self, _claim: &mut dyn FnMut(FileId, Range<u64>) -> bool) -> Result<()> {
        Ok(())
    }
}
