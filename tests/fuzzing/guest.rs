//! Looks for what the file systems of a disk do not use.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use diskimage::driver::ExtentKind;
use diskimage::io::ReadAt;
use diskimage::{Format, OpenOptions};

const SECTOR: usize = 512;
/// Bytes of a disk at most.
const LARGEST: u64 = 1 << 30;
/// Most changes to a disk.
const CHANGES: usize = 64;

/// The first byte is 0 before a disk, or the number of one of the [disks that are valid](valid_disks), before changes to that.
pub fn guest(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else { return };
    match usize::from(*choice).checked_sub(1) {
        None => {
            let Some(disk) = Disk::parse(rest) else { return };
            free_space(&disk);
            if let Some(disk) = disk.with_lvm_checksums() {
                free_space(&disk);
            }
        }
        Some(index) => {
            let Some((disk, free)) = VALID.get(index) else { return };
            let changes: Vec<_> = rest.as_chunks::<4>().0.iter().take(CHANGES).collect();
            // Several bits can tell another truth: two of a bitmap leave the number of free blocks as it was. One cannot: what has no checksum has a
            // copy, or is counted twice.
            let Some((first, others)) = changes.split_first() else { return };
            if let Some(found) = free_space(&disk.changed(&[first])) {
                let is_free =
                    |range: &Range<u64>| free.iter().any(|own| own.start <= range.start && range.end <= own.end);
                assert!(found.iter().all(is_free), "{found:x?}, and not {free:x?}");
            }
            if !others.is_empty() {
                free_space(&disk.changed(&changes));
            }
        }
    }
}

/// The ranges that are not in use, unless a volume is kept.
fn free_space(disk: &Disk) -> Option<Vec<Range<u64>>> {
    let mut image = OpenOptions::new().format(Format::RAW).open_source(Arc::new(disk.clone())).unwrap();
    let volumes = image.drop_free_space().unwrap();
    for volume in &volumes {
        assert!(volume.range.end <= disk.len && volume.unused_stored <= volume.unused && volume.unused <= volume.len);
        assert!(volume.kept.is_none() || volume.unused == 0);
    }
    let spans = image.spans(0..disk.len).map(Result::unwrap);
    let free = spans.filter(|span| span.kind == ExtentKind::Zero { allocated: None });
    let free: Vec<_> = free.map(|span| span.offset..span.end()).collect();
    assert!(free.is_sorted_by(|a, b| a.end <= b.start));
    let total = free.iter().map(|range| range.end - range.start).sum::<u64>();
    assert!(total <= volumes.iter().map(|volume| volume.unused).sum());
    volumes.iter().all(|volume| volume.kept.is_none()).then_some(free)
}

/// The folders of seeds. Each has a file `disk`, which is valid.
fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let seeds = if cfg!(fuzzing) { root.join("seeds") } else { root.join("fuzz/seeds") };
    // None in a published package.
    let Ok(folders) = std::fs::read_dir(seeds) else { return Vec::new() };
    let folders = folders.map(|folder| folder.unwrap().path());
    let is_guest = |folder: &PathBuf| folder.file_name().unwrap().to_str().unwrap().starts_with("guest_");
    let mut folders: Vec<_> = folders.filter(is_guest).collect();
    folders.sort();
    folders
}

/// The stored disks, with what is free in them.
static VALID: LazyLock<Vec<(Disk, Vec<Range<u64>>)>> = LazyLock::new(|| {
    let disks = folders().into_iter().map(|folder| {
        let seed = std::fs::read(folder.join("disk")).unwrap();
        let disk = Disk::parse(&seed[1..]).unwrap();
        let free = free_space(&disk).unwrap_or_else(|| panic!("{}: kept", folder.display()));
        assert!(!free.is_empty(), "{}", folder.display());
        (disk, free)
    });
    disks.collect()
});

/// How many disks are stored, and the bytes of each that are.
pub fn valid_disks() -> Vec<usize> {
    VALID.iter().map(|(disk, _)| disk.stored.len()).collect()
}

/// A disk of which few sectors are not zeros.
#[derive(Clone)]
struct Disk {
    len: u64,
    /// Numbers of the sectors that are stored, in ascending order, and their bytes.
    sectors: Vec<u32>,
    stored: Vec<u8>,
}

impl Disk {
    /// Parses the length in sectors, and the runs of sectors: the number of the first one, how many there are, and their bytes; or only the first byte, which
    /// all of them have, if the top bit of their number is set.
    fn parse(bytes: &[u8]) -> Option<Disk> {
        let (len, mut rest) = bytes.split_first_chunk()?;
        let len = u64::from(u32::from_le_bytes(*len)) * SECTOR as u64;
        let mut disk = Disk { len, sectors: Vec::new(), stored: Vec::new() };
        while let Some(([a, b, c, d, low, high], payload)) = rest.split_first_chunk() {
            let (first, count) = (u32::from_le_bytes([*a, *b, *c, *d]), u16::from_le_bytes([*low, *high]));
            let (is_run, count) = (count & 0x8000 != 0, usize::from(count & 0x7fff));
            let (payload, after) = payload.split_at_checked(if is_run { 1 } else { count * SECTOR })?;
            rest = after;
            if disk.sectors.last().is_some_and(|last| *last >= first) {
                return None;
            }
            disk.sectors.extend((0..count as u32).map(|index| first.saturating_add(index)));
            match is_run {
                true => disk.stored.extend(vec![payload[0]; count * SECTOR]),
                false => disk.stored.extend(payload),
            }
            if disk.stored.len() > 4 << 20 {
                return None;
            }
        }
        (len <= LARGEST).then_some(disk)
    }

    /// With a bit changed for each position, which is in bits of what is stored.
    fn changed(&self, changes: &[&[u8; 4]]) -> Disk {
        let mut disk = self.clone();
        for position in changes {
            let at = u32::from_le_bytes(**position) as usize % (disk.stored.len() * 8);
            disk.stored[at / 8] ^= 1 << (at % 8);
        }
        disk
    }

    /// The position of a range in what is stored, if all of it is.
    fn position(&self, at: u64, len: usize) -> Option<Range<usize>> {
        let (first, skipped) = ((at / SECTOR as u64) as u32, at as usize % SECTOR);
        let index = self.sectors.binary_search(&first).ok()?;
        let count = (skipped + len).div_ceil(SECTOR);
        let is_contiguous =
            self.sectors.get(index..index + count)?.iter().zip(first..).all(|(own, sector)| *own == sector);
        is_contiguous.then(|| index * SECTOR + skipped..index * SECTOR + skipped + len)
    }

    /// With the checksums of LVM, if the disk is a physical volume with one metadata area, as pvcreate makes it.
    fn with_lvm_checksums(&self) -> Option<Disk> {
        const AREA: u64 = 4096;
        let mut disk = self.clone();
        let label = disk.position(512, SECTOR)?;
        disk.stored[label.clone()].starts_with(b"LABELONE").then_some(())?;
        let header = disk.position(AREA, SECTOR)?;
        let u64_at = |at: usize| u64::from_le_bytes(disk.stored[header.start + at..][..8].try_into().unwrap());
        let (offset, len) = (u64_at(40), u64_at(48));
        if let Some(text) = disk.position(AREA.checked_add(offset)?, usize::try_from(len.min(1 << 20)).unwrap()) {
            let sum = lvm_checksum(&disk.stored[text]);
            disk.stored[header.start + 56..][..4].copy_from_slice(&sum.to_le_bytes());
        }
        for (sector, at, covered) in [(&header, 0, 4), (&label, 16, 20)] {
            let sum = lvm_checksum(&disk.stored[sector.clone()][covered..]);
            disk.stored[sector.start + at..][..4].copy_from_slice(&sum.to_le_bytes());
        }
        Some(disk)
    }
}

fn lvm_checksum(bytes: &[u8]) -> u32 {
    let step = |sum: u32| if sum & 1 == 0 { sum >> 1 } else { sum >> 1 ^ 0xedb8_8320 };
    bytes.iter().fold(0xf597_a6cf, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum)))
}

impl ReadAt for Disk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = self.len.saturating_sub(offset).min(buf.len() as u64);
        let buf = &mut buf[..len as usize];
        buf.fill(0);
        let first = (offset / SECTOR as u64) as u32;
        let from = self.sectors.partition_point(|sector| *sector < first);
        for (sector, bytes) in self.sectors.iter().zip(self.stored.as_chunks::<SECTOR>().0).skip(from) {
            let start = u64::from(*sector) * SECTOR as u64;
            if start >= offset + len {
                break;
            }
            let (skipped, at) = (offset.saturating_sub(start) as usize, start.saturating_sub(offset) as usize);
            let part = &bytes[skipped..];
            let part = &part[..part.len().min(buf.len() - at)];
            buf[at..at + part.len()].copy_from_slice(part);
        }
        Ok(buf.len())
    }
}
