//! FAT (Microsoft, FAT32 File System Specification 1.03), with the sizes that mkfs.fat(8) chooses.

use super::disk::{Volume, put};
use super::{checked_label, too_large};
use crate::error::{Error, Result};
use crate::identifiers::ImageIdentifiers;
use crate::name::Name;

const SECTOR: u64 = 512;
const FAT_COUNT: u64 = 2;
/// Entries of the root directory of FAT12 and FAT16.
const ROOT_ENTRIES: u64 = 512;
/// A hard disk.
const MEDIA: u8 = 0xf8;
/// Code of a boot sector that tells the firmware to try the next disk: `int 18h`, and a loop should that return.
const BOOT_CODE: [u8; 5] = [0xcd, 0x18, 0xf4, 0xeb, 0xfd];

/// Options of a new FAT file system: FAT32 from 512 MiB on, else FAT16, or FAT12 if it has less than 4085 clusters.
///
/// ```
/// use diskimage::mkfs::{DiskOptions, PartitionScheme, VfatOptions};
///
/// let disk = DiskOptions::new(VfatOptions::new().label("CIDATA")).build(16 << 20)?;
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VfatOptions {
    pub(super) label: String,
}

impl VfatOptions {
    /// No label.
    pub fn new() -> Self {
        VfatOptions::default()
    }

    /// Sets the label, at most 11 ASCII characters without `*?.,;:/\|+=<>[]"` and not a space first. Some systems show lowercase letters wrongly.
    #[must_use]
    pub fn label(self, label: impl Into<String>) -> Self {
        VfatOptions { label: label.into() }
    }
}

pub(super) fn write(options: &VfatOptions, volume: &mut Volume, identifiers: &ImageIdentifiers) -> Result<()> {
    let label = label(&options.label)?;
    let layout = Layout::new(volume.len())?;
    let boot = boot_sector(&layout, label.unwrap_or(*b"NO NAME    "), volume.start(), identifiers);
    let root = label.map(|label| label_entry(label, identifiers.time));
    match layout.width {
        Width::Fat32 => {
            let info = file_system_info(&layout);
            // A backup in sectors 6 and 7.
            for copy in [0, 6] {
                volume.put(copy * SECTOR, boot.clone());
                volume.put((copy + 1) * SECTOR, info.clone());
            }
        }
        Width::Fat12 | Width::Fat16 => volume.put(0, boot),
    }
    for index in 0..FAT_COUNT {
        volume.put((layout.reserved + index * layout.fat_sectors) * SECTOR, layout.first_entries());
    }
    if let Some(root) = root {
        // Of FAT32, the root directory is the first cluster.
        volume.put((layout.reserved + FAT_COUNT * layout.fat_sectors) * SECTOR, root);
    }
    Ok(())
}

/// The label as it is stored, if there is one.
fn label(label: &str) -> Result<Option<[u8; 11]>> {
    let bytes = checked_label(label, "vfat", 11)?;
    let is_allowed = |byte: &u8| byte.is_ascii() && !b"*?.,;:/\\|+=<>[]\"".contains(byte);
    if bytes.starts_with(b" ") || !bytes.iter().all(is_allowed) {
        let label = Name::from(bytes);
        let rule = "ASCII characters without *?.,;:/\\|+=<>[]\", not a space first";
        return Err(Error::Usage(format!("invalid label '{label}' for vfat: expected {rule}")));
    }
    let mut stored = [b' '; 11];
    stored[..bytes.len()].copy_from_slice(bytes);
    Ok((!bytes.is_empty()).then_some(stored))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
}

impl Width {
    /// Half-bytes of an entry of a FAT.
    fn nibbles(self) -> u64 {
        match self {
            Width::Fat12 => 3,
            Width::Fat16 => 4,
            Width::Fat32 => 8,
        }
    }

    /// Whether readers take a FAT with so many clusters for one of this width (page 14).
    fn has(self, clusters: u64) -> bool {
        match self {
            Width::Fat12 => (1..4085).contains(&clusters),
            Width::Fat16 => (4085..65525).contains(&clusters),
            Width::Fat32 => (65525..0x0fff_fff6).contains(&clusters),
        }
    }
}

/// Sizes in sectors.
#[derive(Clone, Copy, Debug)]
struct Layout {
    width: Width,
    total: u64,
    heads: u16,
    sectors_per_track: u16,
    reserved: u64,
    sectors_per_cluster: u64,
    fat_sectors: u64,
    clusters: u64,
}

impl Layout {
    fn new(len: u64) -> Result<Layout> {
        // The number of sectors has 32 bits. What is less than a track is left over.
        const LARGEST: u64 = SECTOR << 32;
        if len > LARGEST {
            return Err(too_large("vfat", len, LARGEST));
        }
        let sectors = len / SECTOR;
        let (heads, sectors_per_track) = geometry(sectors);
        let total = sectors / u64::from(sectors_per_track) * u64::from(sectors_per_track);
        let base = Layout {
            width: Width::Fat32,
            total,
            heads,
            sectors_per_track,
            reserved: 0,
            sectors_per_cluster: 0,
            fat_sectors: 0,
            clusters: 0,
        };
        let found = match len < 512 << 20 {
            false => base.with(
                Width::Fat32,
                match len >> 20 {
                    0..=8192 => 8,
                    8193..=16384 => 16,
                    16385..=32768 => 32,
                    _ => 64,
                },
            ),
            true => [4, 8, 16, 32]
                .into_iter()
                .find_map(|cluster| base.with(Width::Fat16, cluster).or_else(|| base.with(Width::Fat12, cluster))),
        };
        found.ok_or_else(|| Error::Usage(format!("a volume of {len} bytes cannot have a FAT file system")))
    }

    /// With FATs of this width and clusters of so many sectors, if their number is right for the width.
    fn with(self, width: Width, sectors_per_cluster: u64) -> Option<Layout> {
        // FATs, and so clusters, begin at multiples of a cluster, for the sake of flash memory.
        let minimum = if width == Width::Fat32 { 32 } else { 1_u64 };
        let reserved = minimum.next_multiple_of(sectors_per_cluster);
        let rest = self.total.checked_sub(reserved + width.root_sectors())?;
        // Each cluster has an entry in each FAT; two more entries have no cluster.
        let fat = ((rest + 2 * sectors_per_cluster) * width.nibbles())
            .div_ceil(2 * SECTOR * sectors_per_cluster + FAT_COUNT * width.nibbles());
        let fat_sectors = fat.next_multiple_of(sectors_per_cluster);
        let clusters = rest.checked_sub(FAT_COUNT * fat_sectors)? / sectors_per_cluster;
        width.has(clusters).then_some(Layout { width, reserved, sectors_per_cluster, fat_sectors, clusters, ..self })
    }

    /// The entries of a FAT without a cluster, and that of the root directory of FAT32.
    fn first_entries(&self) -> Vec<u8> {
        let mut sector = vec![0; SECTOR as usize];
        match self.width {
            Width::Fat12 => put(&mut sector, 0, [MEDIA, 0xff, 0xff]),
            Width::Fat16 => put(&mut sector, 0, [MEDIA, 0xff, 0xff, 0xff]),
            Width::Fat32 => {
                put(&mut sector, 0, [MEDIA, 0xff, 0xff, 0x0f, 0xff, 0xff, 0xff, 0x0f, MEDIA, 0xff, 0xff, 0x0f])
            }
        }
        sector
    }
}

impl Width {
    /// Sectors of a root directory of fixed size.
    fn root_sectors(self) -> u64 {
        if self == Width::Fat32 { 0 } else { ROOT_ENTRIES * 32 / SECTOR }
    }
}

/// Heads, and sectors per track (SD Association, Part 2: File System Specification, annex C).
fn geometry(sectors: u64) -> (u16, u16) {
    match sectors {
        0..=32_768 => (2, 32),
        32_769..=65_536 => (4, 32),
        65_537..=262_144 => (8, 32),
        262_145..=524_288 => (16, 32),
        524_289..=1_032_192 => (16, 63),
        1_032_193..=2_064_384 => (32, 63),
        2_064_385..=4_128_768 => (64, 63),
        4_128_769..=8_257_536 => (128, 63),
        _ => (255, 63),
    }
}

fn boot_sector(layout: &Layout, label: [u8; 11], start: u64, identifiers: &ImageIdentifiers) -> Vec<u8> {
    let mut sector = vec![0; SECTOR as usize];
    let s = &mut sector;
    put(s, 3, *b"imgconv ");
    put(s, 11, (SECTOR as u16).to_le_bytes());
    s[13] = layout.sectors_per_cluster as u8;
    put(s, 14, (layout.reserved as u16).to_le_bytes());
    s[16] = FAT_COUNT as u8;
    s[21] = MEDIA;
    put(s, 24, layout.sectors_per_track.to_le_bytes());
    put(s, 26, layout.heads.to_le_bytes());
    // Sectors of the disk before the volume.
    put(s, 28, ((start / SECTOR) as u32).to_le_bytes());
    match u16::try_from(layout.total) {
        Ok(total) => put(s, 19, total.to_le_bytes()),
        Err(_) => put(s, 32, (layout.total as u32).to_le_bytes()),
    }
    let (rest, code, name) = match layout.width {
        Width::Fat12 => (36, 0x3c, *b"FAT12   "),
        Width::Fat16 => (36, 0x3c, *b"FAT16   "),
        Width::Fat32 => (64, 0x58, *b"FAT32   "),
    };
    put(s, 0, [0xeb, code, 0x90]);
    if layout.width == Width::Fat32 {
        put(s, 36, (layout.fat_sectors as u32).to_le_bytes());
        // The root directory, the sector with the number of free clusters, the backup.
        put(s, 44, 2_u32.to_le_bytes());
        put(s, 48, 1_u16.to_le_bytes());
        put(s, 50, 6_u16.to_le_bytes());
    } else {
        put(s, 17, (ROOT_ENTRIES as u16).to_le_bytes());
        put(s, 22, (layout.fat_sectors as u16).to_le_bytes());
    }
    // The first hard disk, and the signature of the fields that follow.
    put(s, rest, [0x80, 0, 0x29]);
    s[rest + 3..rest + 7].copy_from_slice(&identifiers.bytes("serial number")[..4]);
    put(s, rest + 7, label);
    put(s, rest + 18, name);
    put(s, 2 + usize::from(code), BOOT_CODE);
    put(s, 510, [0x55, 0xaa]);
    sector
}

/// The sector with the number of free clusters (page 21).
fn file_system_info(layout: &Layout) -> Vec<u8> {
    let mut sector = vec![0; SECTOR as usize];
    put(&mut sector, 0, *b"RRaA");
    put(&mut sector, 484, *b"rrAa");
    put(&mut sector, 488, (layout.clusters as u32 - 1).to_le_bytes());
    put(&mut sector, 492, 2_u32.to_le_bytes());
    put(&mut sector, 508, [0, 0, 0x55, 0xaa]);
    sector
}

/// The entry of the root directory that holds the label.
fn label_entry(label: [u8; 11], time: u64) -> Vec<u8> {
    let mut sector = vec![0; SECTOR as usize];
    let (date, time) = dos_time(time);
    put(&mut sector, 0, label);
    sector[11] = 0x08;
    for (at, field) in [(14, time), (16, date), (18, date), (22, time), (24, date)] {
        put(&mut sector, at, field.to_le_bytes());
    }
    sector
}

/// Date and time of FAT, in UTC, which reach from 1980 to 2107.
fn dos_time(time: u64) -> (u16, u16) {
    const FIRST: u64 = 315_532_800;
    const LAST: u64 = 4_354_819_198;
    let time = time.clamp(FIRST, LAST);
    let (mut days, seconds) = ((time - FIRST) / 86_400, time % 86_400);
    let year_length = |year: u64| if year.is_multiple_of(4) && year != 2100 { 366 } else { 365 };
    let mut year = 1980;
    while days >= year_length(year) {
        days -= year_length(year);
        year += 1;
    }
    let february = year_length(year) - 337;
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let date = (year - 1980) << 9 | month << 5 | (days + 1);
    let time = (seconds / 3600) << 11 | (seconds / 60 % 60) << 5 | (seconds % 60 / 2);
    (date as u16, time as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_fat() {
        let fields = |time| {
            let (date, time) = dos_time(time);
            (1980 + (date >> 9), date >> 5 & 15, date & 31, time >> 11, time >> 5 & 63, time & 31)
        };
        assert_eq!(fields(0), (1980, 1, 1, 0, 0, 0));
        assert_eq!(fields(1_700_000_000), (2023, 11, 14, 22, 13, 10));
        assert_eq!(fields(951_782_400), (2000, 2, 29, 0, 0, 0));
        assert_eq!(fields(4_107_542_400), (2100, 3, 1, 0, 0, 0));
        assert_eq!(fields(u64::MAX), (2107, 12, 31, 23, 59, 29));
    }

    #[test]
    fn each_size_has_a_fat_that_fits() {
        for mib in (6..600).chain([1 << 10, 8192, 8193, 20_000, 33_000, 1 << 20, 2 << 20]) {
            for more in [0, 512, 700, 4096, 123 << 10] {
                let len = (mib << 20) + more;
                if len > 2 << 40 {
                    continue;
                }
                let layout = Layout::new(len).unwrap();
                let data = layout.reserved + FAT_COUNT * layout.fat_sectors + layout.width.root_sectors();
                assert!(layout.width.has(layout.clusters), "{len}: {layout:?}");
                assert!((layout.clusters + 2) * layout.width.nibbles() <= 2 * SECTOR * layout.fat_sectors, "{len}");
                assert!(data + layout.clusters * layout.sectors_per_cluster <= layout.total, "{len}");
                assert!(layout.total * SECTOR <= len && u32::try_from(layout.total).is_ok(), "{len}");
            }
        }
    }
}
