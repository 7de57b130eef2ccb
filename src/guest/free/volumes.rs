//! The volumes of a disk, and what is free in them.

use std::ops::Range;

use super::lvm::{self, Mapped};
use super::volume::{Fields, kept};
use super::{Described, FILE_SYSTEMS, FileSystem, Found, FreeRanges, FreeSpace, GuestVolume, Kept, Volume};
use crate::error::Result;
use crate::format::shared::table;
use crate::guest::partition::{Partition, PartitionTable};
use crate::guest::{ContentKind, content};
use crate::io::ReadAt;
use crate::limits::Limits;
use crate::name::Name;
use zlib_rs::crc32::crc32;

/// Ranges of a volume, and of all of them, that are kept in memory: 16 MiB. Of more, the shortest stay in use.
const MOST_RANGES: u64 = 1 << 20;

/// Examines the disk. `stored` tells how many bytes of a guest range are stored as data.
///
/// # Errors
/// Errors of the storage where partition tables are. A volume that cannot be read is kept.
pub(crate) fn find(disk: &dyn ReadAt, stored: &dyn Fn(Range<u64>) -> u64, limits: &Limits) -> Result<FreeSpace> {
    let len = table::length(disk)?;
    let most = (limits.metadata / size_of::<Range<u64>>() as u64).min(MOST_RANGES) as usize;
    let whole = Volume::new(disk, 0..len);
    let table = PartitionTable::read(disk)?;
    let is_file_system = content(disk, 0)?.is_some_and(|content| content.kind == ContentKind::FileSystem);
    let mut search = Search { disk, stored, most, free: FreeRanges::new(most), volumes: Vec::new(), parts: Vec::new() };
    match &table {
        // The boot sector of a file system ends as a partition table does.
        Some(table) if table.gpt_sector_size.is_some() || !is_file_system => {
            let doubt = table.gpt_sector_size.and_then(|sector_size| check_gpt(&whole, sector_size).err());
            let partitions = || table.partitions.iter().filter(|partition| !partition.is_extended());
            for partition in partitions() {
                let mut others = partitions().filter(|other| other.number != partition.number);
                let doubt = match others.any(|other| overlap(other, partition)) {
                    true => Some(Kept("it overlaps another partition".into())),
                    false => doubt.clone(),
                };
                search.partition(Some(partition.number), &partition.range, doubt);
            }
        }
        _ => search.partition(None, &whole.range, None),
    }
    search.logical_volumes();
    Ok(search.finish())
}

/// What is found on a disk.
struct Search<'a> {
    disk: &'a dyn ReadAt,
    stored: &'a dyn Fn(Range<u64>) -> u64,
    /// Ranges that are kept in memory of a volume, and of all of them.
    most: usize,
    free: FreeRanges,
    volumes: Vec<GuestVolume>,
    /// Physical volumes of LVM, and the index of each in `volumes`.
    parts: Vec<(usize, lvm::Part)>,
}

/// How many bytes of a volume are not in use, and the guest ranges.
type Unused = (u64, Vec<Range<u64>>);

impl Search<'_> {
    /// Examines a partition, or the whole disk, which is kept if there is a doubt.
    fn partition(&mut self, number: Option<u32>, range: &Range<u64>, doubt: Option<Kept>) {
        let volume = Volume::new(self.disk, range.clone());
        let mut found = GuestVolume { partition: number, ..GuestVolume::new(range.clone()) };
        let unused = match physical_volume(&volume) {
            Ok(Some(physical)) => {
                found.content = Some("LVM");
                found.uuid = Some(physical.id.clone());
                self.parts.push((self.volumes.len(), lvm::Part { range: range.clone(), physical, doubt }));
                return self.volumes.push(found);
            }
            Ok(None) => examine(&volume, self.most, &mut found),
            Err(reason) => {
                found.content = content(self.disk, range.start).ok().flatten().map(|content| content.name);
                Err(reason)
            }
        };
        let unused = doubt.map_or(unused, Err).map(|free| {
            let on_disk = |free: Range<u64>| range.start + free.start..range.start + free.end;
            (free.total(), free.into_ranges().into_iter().map(on_disk).collect())
        });
        let found = self.with_unused(found, unused);
        self.volumes.push(found);
    }

    /// Examines the volume groups that the physical volumes make up.
    fn logical_volumes(&mut self) {
        let (indices, parts): (Vec<_>, Vec<_>) = std::mem::take(&mut self.parts).into_iter().unzip();
        let lvm = lvm::examine(&parts);
        for (index, part) in indices.into_iter().zip(lvm.parts) {
            let Some(found) = self.volumes.get(index) else { continue };
            let mut found = found.clone();
            if let Some((group, size, free)) = part.group {
                found.label = Name::from(group);
                (found.size, found.free) = (Some(size), Some(free));
            }
            let unused = part.free.map(|ranges| (ranges.iter().map(|range| range.end - range.start).sum(), ranges));
            let found = self.with_unused(found, unused);
            self.volumes.iter_mut().skip(index).take(1).for_each(|volume| *volume = found.clone());
        }
        for volume in lvm.volumes {
            let pieces = Mapped::new(self.disk, volume.pieces.iter().flatten().cloned());
            let mut found = GuestVolume {
                logical_volume: Some(Name::from(volume.name)),
                len: volume.len,
                ..GuestVolume::new(pieces.hull())
            };
            let unused = volume.pieces.and_then(|_| {
                let free = examine(&Volume::new(&pieces, 0..volume.len), self.most, &mut found)?;
                let (total, mut on_disk) = (free.total(), FreeRanges::new(self.most));
                let ranges = free.into_ranges();
                ranges.into_iter().flat_map(|range| pieces.on_disk(range)).for_each(|range| on_disk.add(range));
                Ok((total, on_disk.into_ranges()))
            });
            let found = self.with_unused(found, unused);
            self.volumes.push(found);
        }
    }

    /// The volume with what is not in use, which is recorded.
    fn with_unused(&mut self, mut found: GuestVolume, unused: Found<Unused>) -> GuestVolume {
        match unused {
            Ok((total, ranges)) => {
                found.unused = total;
                found.free = found.free.or(Some(total));
                for range in ranges {
                    found.unused_stored += (self.stored)(range.clone());
                    self.free.add(range);
                }
            }
            Err(Kept(reason)) => found.kept = Some(reason),
        }
        found
    }

    fn finish(self) -> FreeSpace {
        let mut free = FreeRanges::new(self.most);
        self.free.into_ranges().into_iter().for_each(|range| free.add(range));
        FreeSpace { ranges: free.into_ranges(), volumes: self.volumes }
    }
}

/// Checks that a GPT has its checksums (UEFI specification 2.10, section 5.3.2), and that the MBR has no partition but that which protects it.
fn check_gpt(whole: &Volume, sector_size: u64) -> Found<()> {
    const MOST_BYTES: u64 = 1 << 20;
    let wrong = "the checksums of the GPT are wrong";
    let mut sector = whole.read(sector_size, sector_size as usize)?;
    let fields = Fields(&sector);
    let (len, own, of_entries) = (fields.le32(12)? as usize, fields.le32(16)?, fields.le32(88)?);
    let entries =
        (fields.le64(72)?.saturating_mul(sector_size), u64::from(fields.le32(80)?) * u64::from(fields.le32(84)?));
    // The header counts as zeros in its own checksum.
    sector.iter_mut().skip(16).take(4).for_each(|byte| *byte = 0);
    let header = sector.get(..len).filter(|header| header.len() >= 92);
    if header.is_none_or(|header| crc32(0, header) != own) || entries.1 > MOST_BYTES {
        return kept(wrong);
    }
    if crc32(0, &whole.read(entries.0, entries.1 as usize)?) != of_entries {
        return kept(wrong);
    }
    let mbr = whole.read(0, 512)?;
    for entry in 0..4 {
        if !matches!(Fields(&mbr).u8(446 + 16 * entry + 4)?, 0 | 0xee) {
            return kept("the disk has partitions in its MBR as well");
        }
    }
    Ok(())
}

fn overlap(one: &Partition, other: &Partition) -> bool {
    one.range.start < other.range.end && other.range.start < one.range.end
}

/// Opens the physical volume of LVM, unless the volume is something else as well.
fn physical_volume(volume: &Volume) -> Found<Option<lvm::Physical>> {
    let physical = lvm::open(volume)?;
    if physical.is_some() {
        check_raid(volume)?;
        for open in FILE_SYSTEMS {
            if open(volume)?.is_some() {
                return kept("it has the signatures of LVM and of a file system");
            }
        }
    }
    Ok(physical)
}

/// Describes a volume, and returns what its file system does not use, in offsets from its start.
fn examine(volume: &Volume, most: usize, found: &mut GuestVolume) -> Found<FreeRanges> {
    found.content = content(volume.disk, volume.range.start).ok().flatten().map(|content| content.name);
    let system = open(volume)?;
    let Described { name, label, uuid, size, free: stated } = system.describe();
    found.content = Some(name);
    found.label = Name::from(label.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii_end());
    (found.uuid, found.size, found.free) = (uuid, Some(size), stated);
    check_raid(volume)?;
    let mut free = FreeRanges::new(most);
    // Signatures of other file systems were looked for where this one may have free space.
    let volume = Volume::new(volume.disk, volume.range.clone());
    system.free(&volume, &mut free)?;
    volume.check_used(&free)?;
    Ok(free)
}

/// The only file system that the volume has the signature of.
fn open(volume: &Volume) -> Found<Box<dyn FileSystem>> {
    let mut found = None;
    for open in FILE_SYSTEMS {
        match (open(volume)?, &found) {
            (None, _) => {}
            (Some(system), None) => found = Some(system),
            (Some(_), Some(_)) => return kept("it has the signatures of several file systems"),
        }
    }
    found.map_or_else(|| kept("no known file system"), Ok)
}

/// Refuses a member of a RAID of Linux, which has its superblock at the start or at the end (md(4)).
fn check_raid(volume: &Volume) -> Found<()> {
    const MAGIC: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();
    let len = volume.len();
    let at_end = |back: u64, alignment: u64| len.checked_sub(back).map(|at| at / alignment * alignment);
    for at in [Some(4096), at_end(8192, 4096), at_end(65536, 65536)].into_iter().flatten() {
        if volume.peek::<4>(at)? == Some(MAGIC) {
            return kept("it is a member of a RAID");
        }
    }
    Ok(())
}
