//! The volumes of a disk, and what is free in them.

use std::ops::Range;

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

/// Examines the disk.
///
/// # Errors
/// Errors of the storage where partition tables are. A volume that cannot be read is kept.
pub(crate) fn find(disk: &dyn ReadAt, limits: &Limits) -> Result<FreeSpace> {
    let len = table::length(disk)?;
    let most = (limits.metadata / size_of::<Range<u64>>() as u64).min(MOST_RANGES) as usize;
    let whole = Volume { disk, range: 0..len };
    let table = PartitionTable::read(disk)?;
    let is_file_system = content(disk, 0)?.is_some_and(|content| content.kind == ContentKind::FileSystem);
    let mut space = FreeSpace::default();
    let mut all = Vec::new();
    let partitions = match &table {
        // The boot sector of a file system ends as a partition table does.
        Some(table) if table.gpt_sector_size.is_some() || !is_file_system => &table.partitions[..],
        _ => {
            let (volume, ranges) = examine(&whole, None, most)?;
            space.volumes.push(volume);
            space.ranges = ranges;
            return Ok(space);
        }
    };
    let sector_size = table.as_ref().and_then(|table| table.gpt_sector_size);
    let doubt = sector_size.and_then(|sector_size| check_gpt(&whole, sector_size).err());
    for partition in partitions.iter().filter(|partition| !partition.is_extended()) {
        let volume = Volume { disk, range: partition.range.clone() };
        let (mut found, ranges) = examine(&volume, Some(partition.number), most)?;
        let others = || partitions.iter().filter(|other| other.number != partition.number && !other.is_extended());
        let reason = match others().any(|other| overlap(other, partition)) {
            true => Some(Kept("it overlaps another partition".into())),
            false => doubt.clone(),
        };
        if let Some(Kept(reason)) = reason {
            (found.kept, found.unused) = (Some(reason), 0);
        } else {
            all.extend(ranges);
        }
        space.volumes.push(found);
    }
    // Each volume alone has no more than these; of all together, the longest.
    all.sort_unstable_by_key(|range| range.start);
    let mut free = FreeRanges::new(most);
    all.into_iter().for_each(|range| free.add(range));
    space.ranges = free.into_ranges();
    Ok(space)
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

/// Describes a volume, and returns it with what is free, in guest offsets.
fn examine(volume: &Volume, partition: Option<u32>, most: usize) -> Result<(GuestVolume, Vec<Range<u64>>)> {
    let content = content(volume.disk, volume.range.start)?.map(|content| content.name);
    let mut found = GuestVolume {
        partition,
        range: volume.range.clone(),
        content,
        label: Name::default(),
        uuid: None,
        size: None,
        free: None,
        unused: 0,
        kept: None,
    };
    let mut free = FreeRanges::new(most);
    let result = open(volume).and_then(|system| {
        let Described { name, label, uuid, size, free: stated } = system.describe();
        found.content = Some(name);
        found.label = Name::from(label.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii_end());
        (found.uuid, found.size, found.free) = (uuid, Some(size), stated);
        check_raid(volume)?;
        system.free(volume, &mut free)
    });
    match result {
        Ok(()) => {
            found.unused = free.total();
            found.free = found.free.or(Some(free.total()));
            let start = volume.range.start;
            let ranges = free.into_ranges().into_iter().map(|range| start + range.start..start + range.end);
            Ok((found, ranges.collect()))
        }
        Err(Kept(reason)) => {
            found.kept = Some(reason);
            Ok((found, Vec::new()))
        }
    }
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
