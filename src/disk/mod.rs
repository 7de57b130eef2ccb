//! Disks that are written by a guest, and changed in place.
//!
//! A driver ([`SparseUpdate`]) has the metadata. The core moves the payload: it splits requests, fills new blocks around a write with
//! their old content, from lower layers and compressed units too, and decides what may be done at the same time.
//!
//! | module | content |
//! |---|---|
//! | `open` | [`OpenOptions::open_disk`](crate::OpenOptions::open_disk) |
//! | `write` | writes: allocate, write and fill, publish |
//! | `zero` | zeros and discards |
//! | `preallocate` | growing with allocated space |
//! | `ranges` | guest ranges that requests have to themselves |
//! | `commit`, `rebase` | overlays |
//! | `amend`, `bitmaps` | options and bitmaps of the image |
//! | `snapshots` | internal snapshots |
//! | `repair` | repairs |
//! | `backup` | the old metadata of a repaired image |
//! | `trial` | a file that is changed for trial |
//! | `stream` | `Read`, `Write` and `Seek` |
//!
//! # Threads
//!
//! The driver is behind a mutex, which is held while it looks into its tables, and while it flushes. Payload is read and written without it. A
//! request holds the guest blocks that it is about: readers share them, a change has them alone.

mod amend;
mod backup;
mod bitmaps;
mod commit;
mod open;
mod preallocate;
mod ranges;
mod rebase;
mod repair;
mod snapshots;
mod stream;
mod trial;
mod write;
mod zero;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use crate::driver::{Extent, ExtentKind, SparseRead, SparseUpdate, UpdateSpec};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::image::Image;
use crate::info::ImageInfo;
use crate::io::{ReadAt, Storage};
pub use commit::Commit;
pub use preallocate::Preallocation;
use ranges::{RangeGuard, RangeLocks, Use};
pub use rebase::RebaseTo;
pub use stream::DiskStream;
use write::Payload;

/// The metadata of the top image, shared by the disk and by the reader of its chain.
type Driver = Arc<Mutex<Box<dyn SparseUpdate>>>;

/// An image with its backing chain, open for reading and writing: the disk as a guest has it.
///
/// All methods can be called by many threads at once. What was written is durable after [`flush`](Self::flush). At a power cut before that,
/// each sector has its old or its new content, and the image needs no repair, except that space may be leaked.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::io::MemFile;
/// use diskimage::{Converter, Format, OpenOptions};
///
/// let file = Arc::new(MemFile::new());
/// Converter::new(Format::QCOW2).create_to(1 << 20, file.clone())?;
/// let disk = OpenOptions::new().open_disk_in(file)?;
/// disk.write_all_at(b"boot", 512)?;
/// disk.flush()?;
/// let mut bytes = [9; 6];
/// disk.read_exact_at(&mut bytes, 511)?;
/// assert_eq!(&bytes, b"\0boot\0");
/// disk.close()?;
/// # Ok::<(), diskimage::Error>(())
/// ```
pub struct Disk {
    /// The chain, for reading. Locked exclusively by what concerns the whole disk.
    image: RwLock<Image>,
    driver: Driver,
    /// The files of the top image.
    files: Vec<Arc<dyn Storage>>,
    spec: UpdateSpec,
    ranges: RangeLocks,
    format: Format,
    path: Option<PathBuf>,
    is_closed: bool,
}

impl Disk {
    /// Virtual size in bytes.
    pub fn size(&self) -> u64 {
        self.image().virtual_size()
    }

    /// The properties of the top image as they are now.
    pub fn info(&self) -> ImageInfo {
        self.driver().info()
    }

    /// The format of the top image.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Path of the image file, if it was opened by path.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Fills `buf` with guest data from byte `offset` on.
    ///
    /// # Errors
    /// [`Error::Usage`] if the range ends after the disk; errors of the storage and of the image.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let image = self.image();
        let range = self.range(&image, offset, buf.len() as u64, "read")?;
        let _reading = self.hold(&range, Use::Read);
        image.read_exact_at(buf, offset)
    }

    /// Makes everything durable that was written before.
    ///
    /// # Errors
    /// Errors of the storage. What was written is not lost by that; a later call tries again.
    pub fn flush(&self) -> Result<()> {
        self.driver().flush().map_err(|e| self.locate(e))
    }

    /// Sets the virtual size in bytes, which some formats round up. What is added reads as zeros, but in a LUKS volume its content is
    /// undefined, as that of a new one; what is cut off is lost. It is durable on return.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the image cannot have this size, and errors of the storage. The size is unchanged then, unless the last
    /// sync is what failed.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Format, OpenOptions};
    ///
    /// let file = Arc::new(MemFile::from(vec![7; 512]));
    /// let disk = OpenOptions::new().format(Format::RAW).open_disk_in(file)?;
    /// disk.resize(1024)?;
    /// let mut bytes = [9; 2];
    /// disk.read_exact_at(&mut bytes, 511)?;
    /// assert_eq!((disk.size(), bytes), (1024, [7, 0]));
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn resize(&self, size: u64) -> Result<()> {
        // Nobody else has a request under way.
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        let (old, block) = (image.virtual_size(), self.spec.block_size);
        // Lower layers may have data after the end.
        let below = image.layers().skip(1).map(|layer| layer.virtual_size).max().unwrap_or(0);
        if size > old && !old.is_multiple_of(block) {
            let last = self.driver().extent_at(old - 1..old).map_err(|e| self.locate(e))?;
            let shows_below = last.kind == ExtentKind::Hole && below > old;
            if shows_below || matches!(last.kind, ExtentKind::Data(_) | ExtentKind::Compressed(_)) {
                self.write_piece(&image, old..old.saturating_add(block - old % block), Payload::Zeros)?;
            }
        }
        self.flush()?;
        self.driver().resize(size, below).map_err(|e| self.locate(e))?;
        image.replace_top(Top::boxed(&self.driver));
        self.flush()
    }

    /// Flushes and closes the image. Dropping it does the same and ignores errors.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn close(mut self) -> Result<()> {
        self.is_closed = true;
        let closed = self.driver().close();
        closed.map_err(|e| self.locate(e))
    }

    /// The chain as it is now. The size does not change while it is held.
    pub(crate) fn image(&self) -> RwLockReadGuard<'_, Image> {
        // Only `resize` changes it, by replacing parts.
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn driver(&self) -> MutexGuard<'_, Box<dyn SparseUpdate>> {
        lock(&self.driver)
    }

    /// Waits until the blocks of the guest range can be used.
    fn hold(&self, range: &Range<u64>, used: Use) -> RangeGuard<'_> {
        let block = self.spec.block_size;
        let end = range.end.checked_next_multiple_of(block).unwrap_or(u64::MAX);
        self.ranges.lock(range.start - range.start % block..end, used)
    }

    /// Checks that the request lies within the disk.
    fn range(&self, image: &Image, offset: u64, len: u64, action: &str) -> Result<Range<u64>> {
        let size = image.virtual_size();
        match offset.checked_add(len).filter(|end| *end <= size) {
            Some(end) => Ok(offset..end),
            None => {
                Err(Error::Usage(format!("cannot {action} {len} bytes at {offset:#x} of a disk of {size:#x} bytes")))
            }
        }
    }

    fn locate(&self, error: Error) -> Error {
        error.in_file_at(self.path())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !self.is_closed {
            // There is no way to report an error.
            let _ = self.driver().close();
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("format", &self.format).field("path", &self.path).finish_non_exhaustive()
    }
}

/// The top image as a layer of its chain.
struct Top {
    driver: Driver,
    /// As it was when the size changed last.
    info: ImageInfo,
}

impl Top {
    fn boxed(driver: &Driver) -> Box<dyn SparseRead> {
        let info = lock(driver).info();
        Box::new(Top { driver: driver.clone(), info })
    }
}

impl SparseRead for Top {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        lock(&self.driver).extent_at(range)
    }

    /// The file with the guest data decrypted.
    fn image_file(&self) -> Option<Arc<dyn ReadAt>> {
        self.info.encryption?;
        let files = lock(&self.driver).files();
        files.into_iter().next().map(|file| file as Arc<dyn ReadAt>)
    }

    fn host_alignment(&self) -> Option<u64> {
        None
    }
}

fn lock(driver: &Driver) -> MutexGuard<'_, Box<dyn SparseUpdate>> {
    // A driver that panicked may have half a change in memory. What it has on disk is in order.
    driver.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
