//! Free space: what the file systems of a disk do not use.
//!
//! When in doubt, everything is kept. Of a volume nothing is free unless its file system is clean, has no unknown feature, its free blocks add up to the
//! number that it states itself, and none of them holds metadata that was read. What is no known file system, and what is between
//! partitions, is in use.

mod btrfs;
mod exfat;
mod ext;
mod fat;
mod lvm;
mod ntfs;
mod swap;
mod volume;
mod volumes;
mod xfs;

use std::borrow::Cow;
use std::ops::Range;

use crate::name::Name;
use volume::{Found, Kept};
pub(super) use volume::{FreeRanges, Volume};
pub(crate) use volumes::find;

/// A volume of a disk: a partition, all of a disk without a partition table, or a logical volume of LVM, with what its file system says of
/// itself.
///
/// The properties are there for file systems that are known: ext2, ext3, ext4, XFS, btrfs, NTFS, exFAT, FAT, and swap space of Linux. Those of
/// a physical volume of LVM are of its extents, and its label is the name of the volume group.
///
/// ```no_run
/// use diskimage::Image;
///
/// for volume in Image::open("disk.qcow2")?.volumes()? {
///     match &volume.kept {
///         None => println!("{:?}: {} bytes are free", volume.range, volume.unused),
///         Some(reason) => println!("{:?}: {reason}", volume.range),
///     }
/// }
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuestVolume {
    /// Number of the partition, as operating systems count; `None` for a whole disk, and for a logical volume.
    pub partition: Option<u32>,
    /// Names of the volume group and of the logical volume, as `vg/root`.
    pub logical_volume: Option<Name>,
    /// Guest offsets in bytes. Those of a logical volume, which can be in pieces, are from its first byte on the disk to its last one; empty
    /// where that is not known.
    pub range: Range<u64>,
    /// Length in bytes.
    pub len: u64,
    /// What it holds, as far as that is known: `ext4`, `LVM`.
    pub content: Option<&'static str>,
    /// The label of the file system. Empty without one.
    pub label: Name,
    /// The UUID of the file system, in its usual form.
    pub uuid: Option<String>,
    /// Length of the file system in bytes.
    pub size: Option<u64>,
    /// Bytes that the file system does not use, as it says. Where [`kept`](Self::kept) is `None`, they have been counted.
    pub free: Option<u64>,
    /// Bytes in [`range`](Self::range) that are certainly not in use; 0 if all is kept. A file system keeps a part of what is free for itself.
    pub unused: u64,
    /// Bytes of [`unused`](Self::unused) that the image stores as data, which are read as zeros after
    /// [`Image::drop_free_space`](crate::Image::drop_free_space). The others are holes of it already.
    pub unused_stored: u64,
    /// Why all of it counts as used.
    pub kept: Option<Cow<'static, str>>,
}

impl GuestVolume {
    /// A volume of which nothing is known.
    fn new(range: Range<u64>) -> GuestVolume {
        GuestVolume {
            partition: None,
            logical_volume: None,
            len: range.end - range.start,
            range,
            content: None,
            label: Name::default(),
            uuid: None,
            size: None,
            free: None,
            unused: 0,
            unused_stored: 0,
            kept: None,
        }
    }
}

/// What a disk does not use.
#[derive(Debug, Default)]
pub(crate) struct FreeSpace {
    /// In ascending order, without overlaps.
    pub ranges: Vec<Range<u64>>,
    /// In the order of the partition table; logical volumes after the partitions.
    pub volumes: Vec<GuestVolume>,
}

impl FreeSpace {
    /// The end of the free range with the guest offset `at`; or else the start of the next one.
    pub fn at(&self, at: u64) -> Result<u64, u64> {
        let index = self.ranges.partition_point(|range| range.end <= at);
        match self.ranges.get(index) {
            Some(range) if range.start <= at => Ok(range.end),
            Some(range) => Err(range.start),
            None => Err(u64::MAX),
        }
    }
}

/// A file system of a volume.
trait FileSystem {
    fn describe(&self) -> Described;

    /// Adds what is free, in offsets from the start of the volume, in ascending order. After an error, what was added does not count. What is
    /// read of the volume must not be free, nor what is [marked](Volume::mark_used) as in use.
    fn free(&self, volume: &Volume, free: &mut FreeRanges) -> Found<()>;
}

/// What a file system says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Described {
    name: &'static str,
    /// Up to the first zero.
    label: Vec<u8>,
    uuid: Option<String>,
    /// In bytes.
    size: u64,
    free: Option<u64>,
}

/// Opens the file system, if the volume has one of a kind.
type Open = fn(&Volume) -> Found<Option<Box<dyn FileSystem>>>;

static FILE_SYSTEMS: &[Open] = &[ext::open, xfs::open, btrfs::open, ntfs::open, exfat::open, fat::open, swap::open];

/// The bytes of a UUID in its usual form.
fn uuid_text(bytes: &[u8; 16]) -> String {
    let groups = [&bytes[..4], &bytes[4..6], &bytes[6..8], &bytes[8..10], &bytes[10..]];
    let hex = |group: &[u8]| group.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    groups.map(hex).join("-")
}

/// The serial number of a file system of Microsoft in its usual form.
fn serial_text(bytes: [u8; 4]) -> String {
    let [a, b, c, d] = bytes;
    format!("{d:02X}{c:02X}-{b:02X}{a:02X}")
}

#[cfg(test)]
mod tests;
