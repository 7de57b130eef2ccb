//! Writing: allocating host ranges for guest ranges.

use std::ops::Range;
use std::sync::Arc;

use super::DirtyBitmap;
use crate::codec::Encoding;
use crate::error::{Error, Result};
use crate::identifiers::ImageIdentifiers;
use crate::io::WriteAt;

/// A new image of one file format: its metadata. The payload is written by the core.
///
/// The core calls `place`, `place_compressed` and `zero` in ascending order of guest offsets, then `finish`. Guest ranges
/// without a call read as zeros, or as the backing file where the image has one.
///
/// The module page has a complete [reader](super#a-reader) and [writer](super#a-writer).
pub trait SparseWrite: Send {
    /// The requirements of the image.
    fn spec(&self) -> &WriteSpec;

    /// Allocates a host range for the start of `guest`: at least one granule, and as much as is contiguous in the file.
    ///
    /// Both ends of `guest` are multiples of [`WriteSpec::granule`] or the virtual size. Bytes of a block that are never
    /// placed read as zeros, provided that the target was zeroed. A block may be placed in several calls.
    ///
    /// # Errors
    /// Errors of the storage, and [`Error::Limit`](crate::Error::Limit) when the format cannot address more.
    fn place(&mut self, guest: Range<u64>) -> Result<Placement>;

    /// Allocates `stored_len` bytes for the compressed block `guest`, including its [frame](WriteSpec::frame). Errors are as in
    /// [`place`](Self::place).
    fn place_compressed(&mut self, guest: Range<u64>, stored_len: u32) -> Result<Placement>;

    /// Makes `guest` read as zeros, whatever a backing file holds. Both ends, and errors, are as in [`place`](Self::place).
    fn zero(&mut self, guest: Range<u64>) -> Result<()>;

    /// Adds a copy of a bitmap, after all guest data, if [`WriteSpec::bitmaps`] is set.
    ///
    /// # Errors
    /// Errors of the storage and of the bitmap; [`Error::Usage`] if the format cannot have such a bitmap.
    fn add_bitmap(&mut self, bitmap: &DirtyBitmap) -> Result<()> {
        Err(Error::Usage(format!("the format has no bitmaps: '{}'", bitmap.name)))
    }

    /// Writes and syncs the tables, then writes and syncs the header, so that an incomplete image has no valid header.
    /// `identifiers` follow from the content; they replace those of the context, except in what a pipe has got already.
    ///
    /// # Errors
    /// Errors of the storage.
    fn finish(&mut self, identifiers: &ImageIdentifiers) -> Result<()>;
}

/// The requirements of an image that is being written.
///
/// ```
/// use diskimage::driver::WriteSpec;
///
/// // Blocks of 1 MiB that can be written sector by sector.
/// let mut spec = WriteSpec::new(10 << 30, 1 << 20);
/// spec.granule = 512;
/// assert!(!spec.dense && spec.encoding.is_none());
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct WriteSpec {
    /// Virtual size in bytes, as rounded up by the format.
    pub virtual_size: u64,
    /// Allocation unit and unit of compression in bytes. A power of two.
    pub block_size: u64,
    /// Smallest guest range in bytes that can be placed separately. A power of two that divides `block_size`.
    pub granule: u64,
    /// How blocks are compressed; `None` to store them uncompressed.
    pub encoding: Option<Encoding>,
    /// Whether a block is stored compressed even if that makes it longer.
    pub always_encoded: bool,
    /// Header and padding of each compressed block.
    pub frame: Option<Frame>,
    /// Whether the last block of the disk is encoded as it is. By default zeros fill it up to the block size.
    pub unpadded_end: bool,
    /// Whether placements are contiguous if the whole disk, or whole compressed blocks, are stored. Such an image is written to a
    /// pipe directly. Any other is created for the pipe, to which nothing must be written then, and again for a temporary file.
    pub sequential: bool,
    /// Whether zeros are placed and written too, as in a fully preallocated image.
    pub dense: bool,
    /// Whether guest ranges that are not placed read as the backing file.
    pub over_backing: bool,
    /// What divides the host offset of the data of each placement whose guest offset it divides, in bytes: a power of two, or 0 if that is not known.
    /// Blocks of a file system can be shared with the source where they divide it, if the host range holds the guest data as it is.
    pub host_alignment: u64,
    /// Whether the image can have bitmaps.
    pub bitmaps: bool,
}

impl WriteSpec {
    /// A sparse, uncompressed image of `virtual_size` bytes with an allocation unit of `block_size` bytes, which is placed as
    /// a whole.
    pub fn new(virtual_size: u64, block_size: u64) -> Self {
        WriteSpec { virtual_size, block_size, granule: block_size, ..WriteSpec::default() }
    }
}

/// Header and padding of a compressed block in the file.
///
/// ```
/// use diskimage::driver::Frame;
///
/// // Guest sector and length of the payload before it, zeros after it up to a multiple of 512.
/// let frame = Frame::new(12, 512, |header, guest_offset, payload_len| {
///     header[..8].copy_from_slice(&(guest_offset / 512).to_le_bytes());
///     header[8..].copy_from_slice(&payload_len.to_le_bytes());
/// });
/// let mut header = [0; 12];
/// (frame.header)(&mut header, 1024, 100);
/// assert_eq!(header, [2, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0]);
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Frame {
    /// Length of the header in bytes.
    pub header_len: usize,
    /// Writes the header. Arguments: its `header_len` bytes, the guest offset of the block, the length of the payload.
    pub header: fn(&mut [u8], u64, u32),
    /// Zeros after the payload fill the frame up to a multiple of this, in bytes.
    pub alignment: usize,
}

impl Frame {
    /// A frame with a header of `header_len` bytes and padding to `alignment` bytes.
    pub const fn new(header_len: usize, alignment: usize, header: fn(&mut [u8], u64, u32)) -> Self {
        Frame { header_len, header, alignment }
    }
}

/// A host range allocated for guest data.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::driver::Placement;
/// use diskimage::io::MemFile;
///
/// let mut placement = Placement::new(Arc::new(MemFile::new()), 0x10000, 0x8000);
/// // A bitmap of one sector; the guest data follows it, at 0x10200.
/// placement.before = vec![0xff; 512];
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Placement {
    /// The file.
    pub out: Arc<dyn WriteAt>,
    /// Byte offset in the file.
    pub offset: u64,
    /// Metadata written at `offset`, before the guest data.
    pub before: Vec<u8>,
    /// Number of guest bytes.
    pub len: u64,
}

impl Placement {
    /// `len` guest bytes at byte `offset` of `out`.
    pub fn new(out: Arc<dyn WriteAt>, offset: u64, len: u64) -> Self {
        Placement { out, offset, before: Vec::new(), len }
    }
}
