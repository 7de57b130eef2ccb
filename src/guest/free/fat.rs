//! FAT12, FAT16 and FAT32 (Microsoft, FAT: General Overview of On-Disk Format, 1.03).

use super::volume::{Fields, Found, FreeRanges, Volume, kept};
use super::{Described, FileSystem, serial_text};

/// Entries that are read at once.
const CHUNK: u64 = 1 << 18;

#[derive(Clone, Copy, PartialEq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
}

use Width::{Fat12, Fat16, Fat32};

pub(super) struct Fat {
    width: Width,
    size: u64,
    cluster_size: u64,
    clusters: u64,
    /// Offsets in bytes.
    table: u64,
    table_len: u64,
    /// Root directory of FAT12 and FAT16.
    root: u64,
    root_len: u64,
    /// First cluster of the root directory; of FAT32 only.
    root_cluster: u64,
    /// Offset of the second table, if it is a copy of the first.
    copy: Option<u64>,
    data: u64,
    label: [u8; 11],
    serial: [u8; 4],
}

/// Opens the file system, if the volume has one.
pub(super) fn open(volume: &Volume) -> Found<Option<Box<dyn FileSystem>>> {
    let Some(sector) = volume.peek::<512>(0)? else { return Ok(None) };
    // A jump, the signature, and a name of the type, which only tells that there is a FAT.
    let is_fat = matches!(sector, [0xeb, _, 0x90, ..] | [0xe9, ..])
        && sector.ends_with(&[0x55, 0xaa])
        && (sector[54..].starts_with(b"FAT") || sector[82..].starts_with(b"FAT32   "));
    if !is_fat {
        return Ok(None);
    }
    Fat::parse(&sector, volume).map(|fat| Some(Box::new(fat) as Box<dyn FileSystem>))
}

impl Fat {
    fn parse(sector: &[u8; 512], volume: &Volume) -> Found<Fat> {
        let fields = Fields(sector);
        let sector_size = u64::from(fields.le16(11)?);
        let per_cluster = u64::from(fields.u8(13)?);
        let (reserved, tables) = (u64::from(fields.le16(14)?), u64::from(fields.u8(16)?));
        let (root_entries, sectors16) = (u64::from(fields.le16(17)?), u64::from(fields.le16(19)?));
        let sectors = if sectors16 != 0 { sectors16 } else { fields.le32(32)?.into() };
        let table16 = u64::from(fields.le16(22)?);
        let table_sectors = if table16 != 0 { table16 } else { fields.le32(36)?.into() };
        let is_sound = sector_size.is_power_of_two()
            && (512..=4096).contains(&sector_size)
            && per_cluster.is_power_of_two()
            && reserved > 0
            && (1..=2).contains(&tables)
            && table_sectors > 0;
        if !is_sound {
            return kept("the numbers in its boot sector are not valid");
        }
        let root_sectors = (root_entries * 32).div_ceil(sector_size);
        let data = reserved + tables * table_sectors + root_sectors;
        let Some(data_sectors) = sectors.checked_sub(data).filter(|_| sectors * sector_size <= volume.len()) else {
            return kept("it is larger than the volume");
        };
        let clusters = data_sectors / per_cluster;
        // The number of clusters alone tells the width of the entries (3.5).
        let (width, bits) = match clusters {
            0..4085 => (Fat12, 12),
            4085..65525 => (Fat16, 16),
            _ => (Fat32, 32),
        };
        let table_len = table_sectors * sector_size;
        if (clusters + 2) * bits > table_len * 8 || (width == Fat32) != (root_entries == 0) {
            return kept("the numbers in its boot sector contradict each other");
        }
        // FAT32 can use one table only.
        let is_single = width == Fat32 && fields.le16(40)? & 0x80 != 0;
        let active = if is_single { u64::from(fields.le16(40)? & 0xf) } else { 0 };
        if active >= tables {
            return kept("the numbers in its boot sector contradict each other");
        }
        let extended = if width == Fat32 { 64 } else { 36 };
        Ok(Fat {
            width,
            size: sectors * sector_size,
            cluster_size: per_cluster * sector_size,
            clusters,
            table: (reserved + active * table_sectors) * sector_size,
            table_len,
            root: (reserved + tables * table_sectors) * sector_size,
            root_len: root_sectors * sector_size,
            root_cluster: fields.le32(44)?.into(),
            copy: (tables == 2 && !is_single).then_some((reserved + table_sectors) * sector_size),
            data: data * sector_size,
            label: fields.bytes(extended + 7)?,
            serial: fields.bytes(extended + 3)?,
        })
    }

    /// Makes sure that the numbers of the boot sector are right, which has no checksum. Returns whether they are: nothing tells where the clusters
    /// of FAT12 and FAT16 begin as long as none is in use.
    fn check_numbers(&self, volume: &Volume) -> Found<bool> {
        if self.width == Fat32 {
            let sector = volume.read(0, 512)?;
            let copy = u64::from(Fields(&sector).le16(50)?);
            let sector_size = u64::from(Fields(&sector).le16(11)?);
            return match copy > 0 && sector == volume.read(copy * sector_size, 512)? {
                true => Ok(true),
                false => kept("the copies of its boot sector differ"),
            };
        }
        // The first entry of a directory is for itself.
        let root = volume.read(self.root, self.root_len as usize)?;
        for entry in root.chunks_exact(32).take_while(|entry| entry.first() != Some(&0)) {
            let fields = Fields(entry);
            let cluster = fields.le16(26)?;
            let is_directory = fields.u8(11)? & 0x18 == 0x10 && fields.u8(0)? != 0xe5 && fields.u8(11)? != 0xf;
            if is_directory && (2..self.clusters + 2).contains(&u64::from(cluster)) {
                let own = volume.read(self.data + (u64::from(cluster) - 2) * self.cluster_size, 32)?;
                return match own.starts_with(b".          ") && Fields(&own).le16(26)? == cluster {
                    true => Ok(true),
                    false => kept("a directory is not where its clusters seem to be"),
                };
            }
        }
        // The copy of the table is where the numbers say, and so is this directory. If it ends here, nothing of it comes later (6.1), and a table
        // without entries has none in any order.
        match root.chunks_exact(32).any(|entry| entry.first() == Some(&0)) && self.is_rest_of_table_empty(volume)? {
            true => Ok(false),
            false => kept("it has no directory, which would tell where its clusters begin"),
        }
    }

    /// Whether the table has nothing after its last cluster, as it may if the number of clusters is wrong.
    fn is_rest_of_table_empty(&self, volume: &Volume) -> Found<bool> {
        const MOST: u64 = 1 << 20;
        let bit = (self.clusters + 2) * if self.width == Fat12 { 12 } else { 16 };
        let (start, shift) = (bit / 8, bit % 8);
        if self.table_len - start > MOST {
            return Ok(false);
        }
        let rest = volume.read(self.table + start, (self.table_len - start) as usize)?;
        Ok(rest.iter().zip(std::iter::once(shift).chain(std::iter::repeat(0))).all(|(byte, shift)| byte >> shift == 0))
    }

    /// Calls `entry` with the number and the value of each cluster, the two reserved ones first.
    fn entries(&self, volume: &Volume, mut entry: impl FnMut(u64, u32) -> Found<()>) -> Found<()> {
        for first in (0..self.clusters + 2).step_by(CHUNK as usize) {
            let count = CHUNK.min(self.clusters + 2 - first);
            let (start, len) = match self.width {
                Fat12 => (first * 3 / 2, (count * 3).div_ceil(2)),
                Fat16 => (first * 2, count * 2),
                Fat32 => (first * 4, count * 4),
            };
            let bytes = volume.read(self.table + start, len.min(self.table_len - start) as usize)?;
            if let Some(copy) = self.copy
                && volume.read(copy + start, bytes.len())? != bytes
            {
                return kept("its two tables differ");
            }
            let fields = Fields(&bytes);
            for index in 0..count {
                let at = index as usize;
                let value = match self.width {
                    Fat12 => u32::from(fields.le16(at * 3 / 2)? >> (4 * (at % 2))) & 0xfff,
                    Fat16 => fields.le16(at * 2)?.into(),
                    Fat32 => fields.le32(at * 4)? & 0x0fff_ffff,
                };
                entry(first + index, value)?;
            }
        }
        Ok(())
    }
}

impl FileSystem for Fat {
    fn describe(&self) -> Described {
        let name = match self.width {
            Fat12 => "FAT12",
            Fat16 => "FAT16",
            Fat32 => "FAT32",
        };
        let uuid = Some(serial_text(self.serial));
        // What stands there without a label.
        let label = if self.label == *b"NO NAME    " { Vec::new() } else { self.label.to_vec() };
        Described { name, label, uuid, size: self.size, free: None }
    }

    fn free(&self, volume: &Volume, free: &mut FreeRanges) -> Found<()> {
        let (dirty, last, bad) = match self.width {
            Fat12 => (0, 0xff8, 0xff7),
            Fat16 => (0xc000, 0xfff8, 0xfff7),
            Fat32 => (0x0c00_0000, 0x0fff_fff8, 0x0fff_fff7),
        };
        if self.copy.is_none() {
            return kept("it has one table, whose damage does not show");
        }
        let is_placed = self.check_numbers(volume)?;
        if self.width == Fat32 {
            if !(2..self.clusters + 2).contains(&self.root_cluster) {
                return kept("its root directory is beyond the end");
            }
            let start = self.data + (self.root_cluster - 2) * self.cluster_size;
            volume.mark_used(start..start + self.cluster_size)?;
        }
        self.entries(volume, |number, value| match number {
            // The media type, and the flags of a clean file system without errors.
            0 if value < last - 8 => kept("the first entry of its table is not valid"),
            1 if value & dirty != dirty => kept("it was not unmounted, or has errors"),
            0 | 1 => Ok(()),
            _ if value == 0 => {
                let start = self.data + (number - 2) * self.cluster_size;
                free.add(start..start + self.cluster_size);
                Ok(())
            }
            _ if !is_placed => kept("it has no directory, which would tell where its clusters begin"),
            _ if u64::from(value) < self.clusters + 2 && value != 1 || value >= bad => Ok(()),
            _ => kept(format!("the entry of cluster {number} is not valid")),
        })
    }
}
