//! Partition tables with one partition (UEFI specification 2.10, section 5).

use std::ops::Range;
use std::str::FromStr;

use zlib_rs::crc32::crc32;

use super::disk::{NewDisk, put};
use super::{FileSystem, uuid};
use crate::error::{Error, Result};
use crate::identifiers::ImageIdentifiers;
use crate::name::Name;

const SECTOR: u64 = 512;
/// Offset of the partition, and a divisor of its length, in bytes, as partitioning tools choose them.
const ALIGNMENT: u64 = 1 << 20;
/// Size of the array of 128 partition entries in sectors.
const ENTRY_SECTORS: u64 = 32;

/// The partition table of a new disk.
///
/// ```
/// use diskimage::mkfs::PartitionScheme;
///
/// assert_eq!("gpt".parse::<PartitionScheme>()?, PartitionScheme::Gpt);
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PartitionScheme {
    /// No partition table: the file system has the whole disk.
    #[default]
    None,
    /// A GPT with sectors of 512 bytes. The partition begins at 1 MiB, and its length is a multiple of 1 MiB.
    Gpt,
    /// An MBR, for disks of up to 2 TiB. The partition is as in [`Gpt`](Self::Gpt).
    Mbr,
}

impl FromStr for PartitionScheme {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = [PartitionScheme::None, PartitionScheme::Gpt, PartitionScheme::Mbr];
        all.into_iter().find(|scheme| scheme.name() == name).ok_or_else(|| {
            let name = Name::from(name.as_bytes());
            Error::Usage(format!("unknown partition table '{name}': expected gpt, mbr or none"))
        })
    }
}

impl PartitionScheme {
    /// Returns the name: `none`, `gpt` or `mbr`.
    pub fn name(self) -> &'static str {
        match self {
            PartitionScheme::None => "none",
            PartitionScheme::Gpt => "gpt",
            PartitionScheme::Mbr => "mbr",
        }
    }

    /// The range of the file system on a disk of `size` bytes.
    pub(super) fn volume(self, size: u64) -> Result<Range<u64>> {
        const LARGEST_MBR: u64 = SECTOR << 32;
        let last = match self {
            PartitionScheme::None => return Ok(0..size),
            PartitionScheme::Mbr if size > LARGEST_MBR => return Err(super::too_large("an MBR", size, LARGEST_MBR)),
            PartitionScheme::Mbr => size,
            PartitionScheme::Gpt => size / SECTOR * SECTOR - (1 + ENTRY_SECTORS) * SECTOR,
        };
        Ok(ALIGNMENT..last / ALIGNMENT * ALIGNMENT)
    }

    /// Writes the table for the file system `system` in `volume`.
    pub(super) fn write(self, disk: &mut NewDisk, volume: Range<u64>, system: &FileSystem, ids: &ImageIdentifiers) {
        match self {
            PartitionScheme::None => {}
            PartitionScheme::Mbr => {
                let signature = ids.bytes("disk signature");
                let mut mbr = mbr(mbr_type(system), volume.start / SECTOR..volume.end / SECTOR);
                mbr[440..444].copy_from_slice(&signature[..4]);
                disk.put(0, mbr);
            }
            PartitionScheme::Gpt => write_gpt(disk, volume, system, ids),
        }
    }
}

/// An MBR with a partition of these sectors.
fn mbr(kind: u8, sectors: Range<u64>) -> Vec<u8> {
    let mut mbr = vec![0; SECTOR as usize];
    let entry = &mut mbr[446..];
    put(entry, 1, cylinder_head_sector(sectors.start));
    entry[4] = kind;
    put(entry, 5, cylinder_head_sector(sectors.end - 1));
    put(entry, 8, (sectors.start as u32).to_le_bytes());
    put(entry, 12, u32::try_from(sectors.end - sectors.start).unwrap_or(u32::MAX).to_le_bytes());
    put(&mut mbr, 510, [0x55, 0xaa]);
    mbr
}

/// The address of a sector with 255 heads and 63 sectors a track, or the largest of all.
fn cylinder_head_sector(sector: u64) -> [u8; 3] {
    let (track, sector) = (sector / 63, sector % 63 + 1);
    match (track / 255, track % 255) {
        (cylinder @ 0..1024, head) => [head as u8, (cylinder >> 8 << 6 | sector) as u8, cylinder as u8],
        _ => [254, 255, 255],
    }
}

fn mbr_type(system: &FileSystem) -> u8 {
    match system {
        FileSystem::Ext4(_) => 0x83,
        FileSystem::Swap(_) => 0x82,
        // FAT with LBA. Nothing depends on the width of its entries: readers take it from the boot sector.
        FileSystem::Vfat(_) => 0x0c,
    }
}

fn write_gpt(disk: &mut NewDisk, volume: Range<u64>, system: &FileSystem, ids: &ImageIdentifiers) {
    const ENTRY_COUNT: u32 = 128;
    const ENTRY_SIZE: u32 = 128;
    let sectors = disk.sector_count();
    let last_sector = sectors - 1;
    // The protective MBR has a partition of the whole disk, or as much of it as it can tell (5.2.3).
    let mut protective = mbr(0xee, 1..sectors);
    put(&mut protective, 446 + 1, [0, 2, 0]);
    disk.put(0, protective);

    let mut entries = vec![0; (ENTRY_SECTORS * SECTOR) as usize];
    put(&mut entries, 0, gpt_type(system));
    put(&mut entries, 16, uuid(ids, "partition"));
    put(&mut entries, 32, (volume.start / SECTOR).to_le_bytes());
    put(&mut entries, 40, (volume.end / SECTOR - 1).to_le_bytes());

    let header = |own: u64, other: u64, entries_at: u64| {
        let mut header = vec![0; SECTOR as usize];
        put(&mut header, 0, *b"EFI PART");
        put(&mut header, 8, 0x1_0000_u32.to_le_bytes());
        put(&mut header, 12, 92_u32.to_le_bytes());
        put(&mut header, 24, own.to_le_bytes());
        put(&mut header, 32, other.to_le_bytes());
        put(&mut header, 40, (2 + ENTRY_SECTORS).to_le_bytes());
        put(&mut header, 48, (last_sector - ENTRY_SECTORS - 1).to_le_bytes());
        put(&mut header, 56, uuid(ids, "disk"));
        put(&mut header, 72, entries_at.to_le_bytes());
        put(&mut header, 80, ENTRY_COUNT.to_le_bytes());
        put(&mut header, 84, ENTRY_SIZE.to_le_bytes());
        put(&mut header, 88, crc32(0, &entries).to_le_bytes());
        // The checksum counts as zeros in itself (5.3.2).
        let checksum = crc32(0, &header[..92]);
        put(&mut header, 16, checksum.to_le_bytes());
        header
    };
    let backup_entries = last_sector - ENTRY_SECTORS;
    let (primary, backup) = (header(1, last_sector, 2), header(last_sector, 1, backup_entries));
    disk.put(SECTOR, primary);
    disk.put(last_sector * SECTOR, backup);
    disk.put(2 * SECTOR, entries.clone());
    disk.put(backup_entries * SECTOR, entries);
}

/// The type of the partition: the first three fields of a GUID are little-endian (appendix A).
fn gpt_type(system: &FileSystem) -> [u8; 16] {
    let guid: u128 = match system {
        FileSystem::Ext4(_) => 0x0fc63daf_8483_4772_8e79_3d69d8477de4,
        FileSystem::Vfat(_) => 0xebd0a0a2_b9e5_4433_87c0_68b6b72699c7,
        FileSystem::Swap(_) => 0x0657fd6d_a4ab_43c4_84e5_0933c84b4f4f,
    };
    let mut bytes = guid.to_be_bytes();
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}
