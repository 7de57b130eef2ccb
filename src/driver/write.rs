//! Writing: allocating host ranges for guest ranges.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::codec::Encoding;
use crate::error::Result;
use crate::io::WriteAt;

/// A new image that is being written. It knows metadata only: the payload is written by whoever asks.
///
/// The calls are `{ place | place_compressed | zero }`, with ascending guest offsets, then `finish`. Guest bytes that no
/// call mentions read as zeros, or as the backing file's where the image has one.
pub trait SparseWrite: Send {
    /// What the image takes.
    fn spec(&self) -> &WriteSpec;

    /// Says where a first part of `guest` goes: at least one granule, and as much as is contiguous in the file.
    ///
    /// Both ends of `guest` lie on granules or at the virtual size. Bytes of a block that are not placed read as zeros
    /// if the target started zeroed. A block may be placed in several calls.
    fn place(&mut self, guest: Range<u64>) -> Result<Placement>;

    /// Says where the `stored_len` bytes go that hold the block `guest` compressed, with the frame around them.
    fn place_compressed(&mut self, guest: Range<u64>, stored_len: u32) -> Result<Placement>;

    /// Makes `guest`, whose ends lie on granules or at the virtual size, read as zeros, whatever a backing file holds.
    fn zero(&mut self, guest: Range<u64>) -> Result<()>;

    /// Writes the tables and then, once they are on stable storage, the header, and syncs again.
    fn finish(&mut self) -> Result<()>;
}

/// What an image that is being written takes.
#[derive(Clone, Debug, Default)]
pub struct WriteSpec {
    /// Virtual size in bytes, after any rounding that the format asks for.
    pub virtual_size: u64,
    /// Bytes that are allocated at once, and the unit of compression. A power of two.
    pub block_size: u64,
    /// Smallest range in bytes that can be placed by itself. A power of two that divides `block_size`.
    pub granule: u64,
    /// How blocks are compressed; `None` to store them as they are.
    pub encoding: Option<Encoding>,
    /// Whether blocks are compressed even if that makes them longer.
    pub always_encoded: bool,
    /// What stands around each compressed block.
    pub frame: Option<Frame>,
    /// Whether each write follows the one before it, as long as all of the disk or whole compressed blocks are stored: such
    /// an image can be written to a pipe.
    pub sequential: bool,
    /// Whether zeros too are placed and written (a fully preallocated image).
    pub dense: bool,
    /// Whether the bytes of a backing file show where nothing is placed.
    pub over_backing: bool,
}

/// What stands in the file around the payload of a compressed block.
#[derive(Clone, Copy)]
pub struct Frame {
    /// Length of what stands before it, in bytes.
    pub header_len: usize,
    /// Writes that, for a block at a guest offset whose payload has so many bytes.
    pub header: fn(&mut [u8], u64, u32),
    /// Zeros fill it up to a multiple of this, in bytes.
    pub alignment: usize,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame").field("header_len", &self.header_len).field("alignment", &self.alignment).finish()
    }
}

/// Where bytes go.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The file.
    pub out: Arc<dyn WriteAt>,
    /// Byte offset in it.
    pub offset: u64,
    /// Metadata that goes there first; the guest's bytes follow it.
    pub before: Vec<u8>,
    /// How many of the guest's bytes go there.
    pub len: u64,
}
