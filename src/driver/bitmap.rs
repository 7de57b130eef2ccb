//! Bitmaps of writes, which an image holds besides the disk.

use std::fmt;
use std::sync::Arc;

use crate::io::ReadAt;
use crate::name::Name;

/// A bitmap that tells which parts of the disk have been written since a point in time. Programs for incremental backups keep it in an image.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::driver::DirtyBitmap;
/// use diskimage::io::MemFile;
///
/// // The second of 8 blocks of 64 KiB has been written.
/// let bitmap = DirtyBitmap::new("monday", 64 << 10, Arc::new(MemFile::from(vec![0b10])));
/// assert!(!bitmap.inconsistent && !bitmap.recording);
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct DirtyBitmap {
    /// Its name, which no other bitmap of the image has.
    pub name: Name,
    /// Guest bytes for each bit, a power of two.
    pub granularity: u64,
    /// Whether programs that write to the disk update it.
    pub recording: bool,
    /// Whether the bits are wrong, because a program that used the bitmap was interrupted.
    pub inconsistent: bool,
    /// The bits, from the least significant bit of the first byte on. What follows the last bit is undefined; bits that are missing are 0.
    pub bits: Arc<dyn ReadAt>,
}

impl DirtyBitmap {
    /// A consistent bitmap that is not updated.
    pub fn new(name: impl Into<Name>, granularity: u64, bits: Arc<dyn ReadAt>) -> Self {
        DirtyBitmap { name: name.into(), granularity, recording: false, inconsistent: false, bits }
    }
}

impl fmt::Debug for DirtyBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DirtyBitmap { name, granularity, recording, inconsistent, .. } = self;
        f.debug_struct("DirtyBitmap")
            .field("name", name)
            .field("granularity", granularity)
            .field("recording", recording)
            .field("inconsistent", inconsistent)
            .finish_non_exhaustive()
    }
}
