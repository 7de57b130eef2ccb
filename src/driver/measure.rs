//! Measuring: how long the file of an image will be.

/// What determines the length of the file of a new image, for [`FormatDriver::measure`](super::FormatDriver::measure).
///
/// ```
/// use diskimage::driver::{CreateContext, FileSize};
/// use diskimage::{ImageInfo, Result};
///
/// /// A header of 4096 bytes, and blocks of 64 KiB, each with 8 bytes in a table.
/// fn measure(cx: &CreateContext<'_>, _source: Option<&ImageInfo>) -> Result<FileSize> {
///     let block_size = 64 << 10;
///     Ok(FileSize::new(4096 + 8 * cx.size.div_ceil(block_size), cx.size, block_size))
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileSize {
    /// Length of the metadata in bytes, if all blocks are allocated.
    pub metadata: u64,
    /// Virtual size in bytes, rounded up to whole blocks.
    pub virtual_size: u64,
    /// Allocation unit in bytes, a power of two.
    pub block_size: u64,
    /// Whether all blocks are allocated, also those without data.
    pub dense: bool,
    /// Bytes that the bitmaps of the source take; `None` if it cannot have any.
    pub bitmaps: Option<u64>,
}

impl FileSize {
    /// An image with `metadata` bytes of metadata, whose `virtual_size` bytes are allocated in blocks of `block_size` bytes as needed.
    /// The virtual size is rounded up; it must be less than 2<sup>63</sup>.
    pub fn new(metadata: u64, virtual_size: u64, block_size: u64) -> Self {
        let virtual_size = virtual_size.next_multiple_of(block_size);
        FileSize { metadata, virtual_size, block_size, dense: false, bitmaps: None }
    }
}
