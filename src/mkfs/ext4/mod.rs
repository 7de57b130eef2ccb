//! ext4, as mke2fs 1.47 makes it (Linux kernel, Documentation/filesystems/ext4).
//!
//! ```text
//! geometry     sizes: of blocks, groups, inode tables, the journal
//! layout       where everything is: copies of the superblock, tables, directories, the journal
//! inode        the inodes that are in use, and their blocks
//! group        bitmaps and group descriptors
//! superblock   the superblock and its copies
//! ```
//!
//! The inode tables and the journal are zeros, which a new disk has anyway, so that only the few blocks in use are written. Not among the
//! features, though mke2fs has them since 1.47.1, are metadata_csum_seed and orphan_file: older boot loaders and kernels refuse them.

mod geometry;
mod group;
mod inode;
mod layout;
mod superblock;

use super::disk::Volume;
use super::{checked_label, uuid};
use crate::error::Result;
use crate::identifiers::ImageIdentifiers;
use geometry::Geometry;
use layout::Layout;

/// Options of a new ext4 file system.
///
/// The file system has the features, the sizes and the layout that `mke2fs -t ext4` 1.47 chooses, including a journal. It is up to 16 TiB.
///
/// ```
/// use diskimage::mkfs::{DiskOptions, Ext4Options};
///
/// let disk = DiskOptions::new(Ext4Options::new().label("root")).build(10 << 30)?;
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ext4Options {
    pub(super) label: String,
}

impl Ext4Options {
    /// No label.
    pub fn new() -> Self {
        Ext4Options::default()
    }

    /// Sets the label, at most 16 bytes.
    #[must_use]
    pub fn label(self, label: impl Into<String>) -> Self {
        Ext4Options { label: label.into() }
    }
}

/// What tells this file system from others.
struct Identity<'a> {
    uuid: [u8; 16],
    hash_seed: [u8; 16],
    label: &'a [u8],
    /// In seconds since 1970, as far as 34 bits from 1901 reach.
    time: u64,
}

impl Identity<'_> {
    /// The start of all checksums of metadata.
    fn seed(&self) -> u32 {
        checksum(!0, &self.uuid)
    }
}

pub(super) fn write(options: &Ext4Options, volume: &mut Volume, identifiers: &ImageIdentifiers) -> Result<()> {
    const LAST_TIME: u64 = (1 << 34) - (1 << 31) - 1;
    let identity = Identity {
        uuid: uuid(identifiers, "ext4"),
        hash_seed: uuid(identifiers, "hash seed"),
        label: checked_label(&options.label, "ext4", 16)?,
        time: identifiers.time.min(LAST_TIME),
    };
    let geometry = Geometry::new(volume.len())?;
    let layout = Layout::new(&geometry)?;
    let journal_map = inode::write(&geometry, &layout, &identity, volume);
    let groups = group::write(&geometry, &layout, &identity, volume);
    superblock::write(&geometry, &identity, &groups, &journal_map, volume);
    Ok(())
}

/// The checksum of all metadata: CRC-32C, without the inversions at its start and its end, which continues `seed`.
fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}
