//! Changing: an image that a guest writes to.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::{DirtyBitmap, Extent, Location, OpenContext};
use crate::codec::Encoding;
use crate::error::{Error, Result};
use crate::info::{FileReference, ImageInfo};
use crate::io::Storage;
use crate::options::Options;
use crate::secret::Secret;

/// An image of one file format that is open for reading and writing: its metadata. The payload is read and written by the core
/// (`Disk`, with the feature `disk`).
///
/// The core calls one method at a time, and makes the steps of a write:
///
/// 1. [`allocate`](Self::allocate) tells where data of a guest range goes. Tables are not changed yet.
/// 2. The core writes the payload there. Where the host range is new, it fills what the request does not cover with the old content, which
///    it reads through [`extent_at`](Self::extent_at): of this image, compressed or not, or of lower layers.
/// 3. [`publish`](Self::publish) makes the tables point to it; [`release`](Self::release) gives it up instead, after an error.
///
/// No request is made for a guest block while another one changes it, so that a driver may free the old host range when the new one is
/// published. It must not use a freed range again before the tables that pointed to it are durable: see [`flush`](Self::flush).
///
/// # Crash safety
///
/// After a power cut at any time, the image must open, each sector must have its old or its new content, and a check must find nothing but
/// leaked allocations. Between two syncs the storage may write in any order. So what a table points to is durable before the
/// table is written, and what counts uses (reference counts, bitmaps) counts a use before there is one and until after it has ended.
/// Tables that are changed in memory are kept in order by the cache that the drivers of this crate share.
pub trait SparseUpdate: Send {
    /// The image's properties as they are now.
    fn info(&self) -> ImageInfo;

    /// The requirements of the image.
    fn spec(&self) -> UpdateSpec;

    /// The files of the image, indexed by [`FileId`](super::FileId). They do not change while it is open.
    fn files(&self) -> Vec<Arc<dyn Storage>>;

    /// Returns the extent that begins at guest offset `range.start`, as [`SparseRead::extent_at`](super::SparseRead::extent_at) does. What
    /// is allocated but not yet published does not count.
    ///
    /// # Errors
    /// If the metadata cannot be read or is corrupt.
    fn extent_at(&mut self, range: Range<u64>) -> Result<Extent>;

    /// Notes that a guest range is about to be changed, where the image tracks that, as in persistent bitmaps. It may end after the virtual size.
    ///
    /// # Errors
    /// Errors of the storage and of the image.
    fn record(&mut self, _guest: Range<u64>) -> Result<()> {
        Ok(())
    }

    /// Allocates a host range for the start of `guest`, as much as is contiguous in a file, or returns the one that it has.
    ///
    /// `guest` is not empty and ends at or before the virtual size; it need not be aligned. Before the disk grows, the rest of its last block is
    /// written too.
    ///
    /// # Errors
    /// Errors of the storage and of the image, and [`Error::Limit`] when the format cannot address more.
    fn allocate(&mut self, guest: Range<u64>) -> Result<Allocation>;

    /// Makes the tables point to what was allocated and is now written. Called for new allocations only. After an error the core calls
    /// [`release`](Self::release).
    ///
    /// # Errors
    /// Errors of the storage and of the image.
    fn publish(&mut self, allocation: &Allocation) -> Result<()>;

    /// Gives up a new allocation, which could not be written. Best effort: what cannot be freed is leaked.
    fn release(&mut self, allocation: &Allocation);

    /// How blocks are compressed; `None` where the image cannot have compressed ones.
    fn encoding(&self) -> Option<Encoding> {
        None
    }

    /// Allocates `len` bytes for the payload of the block `guest`, which is whole but for the end of the disk. The core writes the payload and calls
    /// [`publish_compressed`](Self::publish_compressed), or [`release_compressed`](Self::release_compressed) after an error.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate); [`Error::Unsupported`] without an [`encoding`](Self::encoding).
    fn allocate_compressed(&mut self, _guest: Range<u64>, _len: u32) -> Result<Allocation> {
        Err(Error::unsupported(self.info().format, "compressed blocks"))
    }

    /// As [`publish`](Self::publish), for a payload of `len` bytes.
    ///
    /// # Errors
    /// Errors of the storage and of the image.
    fn publish_compressed(&mut self, _allocation: &Allocation, _len: u32) -> Result<()> {
        Err(Error::unsupported(self.info().format, "compressed blocks"))
    }

    /// As [`release`](Self::release), for a payload of `len` bytes.
    fn release_compressed(&mut self, _allocation: &Allocation, _len: u32) {}

    /// Makes the start of `guest` read as zeros by metadata alone, whatever a backing file holds, or tells that this cannot be done.
    ///
    /// Both ends of `guest` are multiples of [`UpdateSpec::granule`] or the virtual size. With `keep`, space that is allocated stays so, where
    /// the format has such a state. By default it cannot be done.
    ///
    /// # Errors
    /// Errors of the storage and of the image.
    fn zero(&mut self, guest: Range<u64>, _keep: bool) -> Result<Zeroed> {
        Ok(Zeroed::Not(guest.end - guest.start))
    }

    /// As [`zero`](Self::zero) for what reads as zeros already, so that it does also with another backing file.
    ///
    /// # Errors
    /// Errors of the storage and of the image.
    fn store_zeros(&mut self, guest: Range<u64>) -> Result<Zeroed> {
        self.zero(guest, false)
    }

    /// Gives up the content of the start of `guest`, which then reads as zeros, or as before if nothing can be gained. It must not read as a
    /// backing file where it did not before. The range is as for [`zero`](Self::zero). By default the core makes holes in the file, where the
    /// data is.
    ///
    /// # Errors
    /// Errors of the storage and of the image.
    fn discard(&mut self, guest: Range<u64>) -> Result<Zeroed> {
        Ok(Zeroed::Not(guest.end - guest.start))
    }

    /// Sets the virtual size in bytes, which may be rounded up, and makes it durable. No other request is under way, and everything before is
    /// flushed. The rest of the last block after the former end has been cleared by the core, if it has data or lower layers may have.
    ///
    /// What is added must read as zeros also where lower layers, the largest of which has `below` bytes, have data. A driver makes that durable
    /// before it changes the size, so that an interruption exposes nothing, or refuses.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the image cannot have this size, and errors of the storage. The size is unchanged then.
    fn resize(&mut self, size: u64, below: u64) -> Result<()>;

    /// Writes another name and format of the backing file into the image, or removes them, and makes that durable. Everything before is flushed.
    /// A format that knows its backing file by an identity takes it from the reference; without one there, it keeps the one that it has.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the format has no backing files, or not such a name; errors of the storage.
    fn set_backing(&mut self, _backing: Option<&FileReference>) -> Result<()> {
        Err(Error::unsupported(self.info().format, "changing the backing file"))
    }

    /// Checks options for [`amend`](Self::amend). Returns whether the core has to replace zero blocks before, since the format does not have them
    /// with these options: by unallocated ones, or in an overlay by data.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the format has no such option, or the image cannot have this value; [`Error::Option`] for an invalid value.
    fn check_amend(&mut self, _options: &Options) -> Result<bool> {
        Err(Error::unsupported(self.info().format, "changing options of an existing image"))
    }

    /// Changes options of the image, which have been checked, and makes that durable. Everything before is flushed.
    ///
    /// # Errors
    /// As [`check_amend`](Self::check_amend), and errors of the storage.
    fn amend(&mut self, options: &Options) -> Result<()> {
        self.check_amend(options).map(drop)
    }

    /// Adds or changes a persistent bitmap, and makes that durable. No other request is under way.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the image cannot have bitmaps; [`Error::Usage`] if there is no such bitmap, or one to be added is there; errors of
    /// the storage.
    fn change_bitmap(&mut self, _name: &str, _change: BitmapChange) -> Result<()> {
        Err(Error::unsupported(self.info().format, "bitmaps"))
    }

    /// The persistent bitmaps with their bits, which can be read as long as the bitmaps do not change.
    ///
    /// # Errors
    /// If the metadata cannot be read or is corrupt.
    fn bitmaps(&mut self) -> Result<Vec<DirtyBitmap>> {
        Ok(Vec::new())
    }

    /// Sets the bits of another bitmap, of a disk of the same size, in the persistent bitmap called `name`, and makes that durable. No other
    /// request is under way.
    ///
    /// # Errors
    /// As [`change_bitmap`](Self::change_bitmap), and if one of the bitmaps is inconsistent.
    fn merge_bitmap(&mut self, _name: &str, _source: &DirtyBitmap) -> Result<()> {
        Err(Error::unsupported(self.info().format, "bitmaps"))
    }

    /// Changes the key slots of an encrypted image, and makes that durable.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the image has none; [`Error::Usage`] for a change that is refused; errors of the storage.
    fn change_keys(&mut self, _change: &KeyChange) -> Result<()> {
        Err(Error::unsupported(self.info().format, "key slots"))
    }

    /// Removes all data, so that the backing file shows through, and makes that durable.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the format does not allow it; errors of the storage.
    fn empty(&mut self) -> Result<()> {
        Err(Error::unsupported(self.info().format, "removing all data of an image"))
    }

    /// The internal snapshots, if the format has them.
    fn snapshots(&mut self) -> Option<&mut dyn SnapshotUpdate> {
        None
    }

    /// Writes all changed tables in order, and makes them and the payload durable. What was freed may be used again after that.
    ///
    /// # Errors
    /// Errors of the storage. The changes are still in memory, and a later call tries again.
    fn flush(&mut self) -> Result<()>;

    /// Flushes, and marks the image as closed, where the format has such a mark.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    fn close(&mut self) -> Result<()> {
        self.flush()
    }
}

/// Changes the internal snapshots of an image. Everything before is flushed, and no other request is under way. A change is durable on return,
/// and made as a whole: a power cut leaves the image with it or without it.
pub trait SnapshotUpdate {
    /// Makes a snapshot of the disk as it is now. Its date is in seconds since 1970 and nanoseconds.
    ///
    /// # Errors
    /// Errors of the storage and of the image; [`Error::Limit`] if the image cannot have another one.
    fn create(&mut self, name: &str, date: (u32, u32)) -> Result<()>;

    /// Gives the disk the content and the size that it had, given by ID or name.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown snapshot; errors of the storage and of the image.
    fn apply(&mut self, snapshot: &str) -> Result<()>;

    /// Deletes a snapshot, given by ID or name.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    fn delete(&mut self, snapshot: &str) -> Result<()>;
}

/// A change of a persistent bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BitmapChange {
    /// It is added, without a bit set.
    Add {
        /// Guest bytes per bit, a power of two; `None` for the default of the format.
        granularity: Option<u64>,
        /// Whether it tracks writes.
        enabled: bool,
    },
    /// It is removed, also if it is inconsistent.
    Remove,
    /// No bit is set.
    Clear,
    /// It tracks writes.
    Enable,
    /// It tracks no more writes.
    Disable,
}

/// A change of the key slots of an encrypted image, each of which unlocks it with a secret.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum KeyChange {
    /// A slot gets a secret.
    Add {
        /// The secret.
        secret: Secret,
        /// Index of the slot; `None` for the first free one.
        slot: Option<usize>,
        /// The time that a try of a secret takes on this machine; `None` for the default of the format.
        iter_time: Option<Duration>,
        /// Whether a slot in use may be overwritten.
        force: bool,
    },
    /// A slot is erased.
    EraseSlot {
        /// Its index.
        slot: usize,
        /// Whether it may be the last one, after which nobody can read the image.
        force: bool,
    },
    /// All slots with a secret are erased.
    EraseSecret {
        /// The secret.
        secret: Secret,
        /// Whether these may be all slots in use.
        force: bool,
    },
}

/// The requirements of an image that changes.
///
/// ```
/// use diskimage::driver::UpdateSpec;
///
/// let spec = UpdateSpec::new(64 << 10);
/// assert_eq!((spec.block_size, spec.granule), (65536, 65536));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpdateSpec {
    /// Largest unit of the guest disk in bytes that is allocated, or compressed, at once. A power of two. Requests for one block exclude each other.
    pub block_size: u64,
    /// Smallest guest range in bytes that can be zeroed or discarded. A power of two that divides `block_size`.
    pub granule: u64,
}

impl UpdateSpec {
    /// An image whose blocks of `block_size` bytes are allocated and zeroed as a whole.
    pub fn new(block_size: u64) -> Self {
        UpdateSpec { block_size, granule: block_size }
    }
}

/// A host range for a write.
///
/// ```
/// use diskimage::driver::{Allocation, FileId, Location};
///
/// // A write of 512 bytes allocates a block of 64 KiB. The core fills the rest.
/// let at = Location { file: FileId(0), offset: 0x50000 };
/// let allocation = Allocation { guest: 0x20000..0x30000, at, is_new: true, reads_as_zeros: false };
/// assert!(allocation.guest.contains(&0x20200));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The guest range that is stored there in bytes. A new one may begin before the request, end after it, and end after the disk: the core
    /// writes all of it. One that is not new is a part of the request, from its start on.
    pub guest: Range<u64>,
    /// The host location of the start of `guest`.
    pub at: Location,
    /// Whether the tables point elsewhere until it is [published](SparseUpdate::publish).
    pub is_new: bool,
    /// Whether a new host range is known to read as zeros, as after the former end of a file, so that zeros need not be written.
    pub reads_as_zeros: bool,
}

/// How much of a guest range was zeroed, from its start on, in bytes; at least 1.
///
/// ```
/// use diskimage::driver::Zeroed;
///
/// assert_eq!(Zeroed::ByMetadata(512).len(), Zeroed::Not(512).len());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroed {
    /// It now reads as zeros, or a discard is done with it.
    ByMetadata(u64),
    /// It is unchanged. The core writes zeros to what is allocated for it.
    Not(u64),
}

impl Zeroed {
    /// The number of bytes.
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(self) -> u64 {
        match self {
            Zeroed::ByMetadata(len) | Zeroed::Not(len) => len,
        }
    }
}

/// Opens a referenced data file for writing, if the reference policy allows it.
pub type StorageOpener<'a> = dyn Fn(&FileReference) -> Result<Arc<dyn Storage>> + 'a;

/// Arguments for opening an image that changes.
///
/// ```
/// use diskimage::driver::{OpenContext, UpdateContext};
/// use diskimage::{Budget, Limits};
///
/// // In a test of a driver:
/// let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
/// let cx = UpdateContext::new(OpenContext::new(&limits, &budget));
/// assert!(cx.open.snapshot.is_none());
/// ```
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct UpdateContext<'a> {
    /// The arguments for opening it for reading. [`OpenContext::file`] opens nothing.
    pub open: OpenContext<'a>,
    /// Opens referenced data files and extents.
    pub storage: &'a StorageOpener<'a>,
}

impl<'a> UpdateContext<'a> {
    /// A context without access to referenced files.
    pub fn new(open: OpenContext<'a>) -> Self {
        UpdateContext { open, storage: &|reference| Err(Error::unsupported(reference.role, "writing")) }
    }
}

impl fmt::Debug for UpdateContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpdateContext").field("open", &self.open).finish_non_exhaustive()
    }
}
