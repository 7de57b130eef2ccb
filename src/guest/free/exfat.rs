//! exFAT (Microsoft, exFAT file system specification 1.00).

use super::volume::{Fields, Found, FreeRanges, Volume, clear_runs, kept};
use super::{Described, FileSystem, serial_text};

/// Directory entries that are read, those that are not in use included: half a GiB. Of more, the clusters are not counted.
const MOST_ENTRIES: u64 = 16 << 20;
/// Entries of the table that are followed: those of 2 TiB of fragmented files with clusters of 128 KiB.
const MOST_LINKS: u64 = 16 << 20;
/// Directories that are known and not read yet.
const MOST_DIRECTORIES: usize = 1 << 20;
/// Bytes of a directory that are read at once.
const PART: u64 = 4096;
const ENTRY: u64 = 32;
const END_OF_CHAIN: u32 = u32::MAX;

pub(super) struct ExFat {
    size: u64,
    cluster_size: u64,
    clusters: u32,
    /// Offsets in bytes.
    table: u64,
    heap: u64,
    root: u32,
    /// In UTF-8.
    label: Vec<u8>,
    flags: u16,
    serial: [u8; 4],
    checksum_matches: bool,
}

/// Opens the file system, if the volume has one.
pub(super) fn open(volume: &Volume) -> Found<Option<Box<dyn FileSystem>>> {
    match volume.peek::<512>(0)?.filter(|sector| sector[3..].starts_with(b"EXFAT   ")) {
        Some(sector) => Ok(Some(Box::new(ExFat::parse(&sector, volume)?))),
        None => Ok(None),
    }
}

impl ExFat {
    fn parse(sector: &[u8; 512], volume: &Volume) -> Found<ExFat> {
        let fields = Fields(sector);
        let (sector_log, cluster_log) = (fields.u8(108)?, fields.u8(109)?);
        if !(9..=12).contains(&sector_log) || cluster_log > 25 - sector_log {
            return kept("the sizes in its boot sector are not valid");
        }
        let sector_size = 1 << sector_log;
        let cluster_size = sector_size << cluster_log;
        let (sectors, clusters, root) = (fields.le64(72)?, fields.le32(92)?, fields.le32(96)?);
        let tables = u64::from(fields.u8(110)?);
        let (table, table_len) = (u64::from(fields.le32(80)?), u64::from(fields.le32(84)?));
        let heap = u64::from(fields.le32(88)?);
        let flags = fields.le16(106)?;
        let end_of_heap = heap * sector_size + u64::from(clusters) * cluster_size;
        let is_sound = sectors.checked_mul(sector_size).is_some_and(|size| end_of_heap <= size && size <= volume.len())
            && table >= 24
            && (1..=2).contains(&tables)
            && table + tables * table_len <= heap
            && (u64::from(clusters) + 2) * 4 <= table_len * sector_size
            && (2..u64::from(clusters) + 2).contains(&u64::from(root))
            && clusters < u32::MAX - 10;
        if !is_sound {
            return kept("the numbers in its boot sector contradict each other");
        }
        if tables != 1 || flags & 1 != 0 {
            return kept("it has two tables, as for transactions");
        }
        let mut found = ExFat {
            size: sectors * sector_size,
            cluster_size,
            clusters,
            table: table * sector_size,
            heap: heap * sector_size,
            root,
            flags,
            label: Vec::new(),
            serial: fields.bytes(100)?,
            checksum_matches: has_checksum(volume, sector_size)?,
        };
        found.label = found.find_label(volume)?;
        Ok(found)
    }

    /// The label, which is one of the first entries of the root directory.
    fn find_label(&self, volume: &Volume) -> Found<Vec<u8>> {
        let part = volume.read(self.offset(self.root), self.cluster_size.min(4096) as usize)?;
        let Some(entry) = part.chunks_exact(ENTRY as usize).find(|entry| entry.first() == Some(&LABEL)) else {
            return Ok(Vec::new());
        };
        let units = entry.get(2..24).unwrap_or_default().as_chunks().0.iter().map(|unit| u16::from_le_bytes(*unit));
        let units = units.take(Fields(entry).u8(1)?.into());
        let text: String = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        Ok(text.into_bytes())
    }

    /// Offset in bytes of a cluster, which is in bounds.
    fn offset(&self, cluster: u32) -> u64 {
        self.heap + u64::from(cluster - 2) * self.cluster_size
    }

    /// The cluster after another one; `None` at the end.
    fn next(&self, volume: &Volume, cluster: u32) -> Found<Option<u32>> {
        // The table is before the clusters.
        let next = volume.peek(self.table + u64::from(cluster) * 4)?.map(u32::from_le_bytes);
        match next {
            Some(END_OF_CHAIN) => Ok(None),
            Some(next @ 2..) if next - 2 < self.clusters => Ok(Some(next)),
            _ => kept("a chain of clusters leaves the volume"),
        }
    }

    /// Clusters that hold so many bytes.
    fn clusters_of(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size)
    }

    /// The root directory, which has no entry that would tell its length.
    fn root(&self, volume: &Volume) -> Found<Chain> {
        let (mut clusters, mut end) = (0, Some(self.root));
        while let Some(cluster) = end {
            clusters += 1;
            if clusters > u64::from(self.clusters).min(MOST_LINKS) {
                return kept("a chain of clusters has no end");
            }
            end = self.next(volume, cluster)?;
        }
        Ok(Chain { first: self.root, clusters, is_contiguous: false })
    }

    /// Reads the directories from `first` on, and counts the clusters of everything that they name, none of which may be `free`. Without what is free, the
    /// first one alone is read.
    fn walk(&self, volume: &Volume, first: Chain, free: Option<&FreeRanges>) -> Found<Walk> {
        let mut walk = Walk { bitmap: None, clusters: first.clusters, entries: 0, links: 0, directories: Vec::new() };
        let mut next = Some(first);
        while let Some(directory) = next {
            self.walk_directory(volume, directory, free, &mut walk)?;
            next = free.and_then(|_| walk.directories.pop());
        }
        Ok(walk)
    }

    /// Makes sure that none of the clusters of a chain is free.
    fn check_used(&self, volume: &Volume, chain: Chain, free: &FreeRanges, walk: &mut Walk) -> Found<()> {
        if chain.is_contiguous && chain.clusters > 0 {
            let start = self.offset(self.checked(chain.first)?);
            return free.check_used(start..start.saturating_add(chain.clusters.saturating_mul(self.cluster_size)));
        }
        walk.links = walk.links.saturating_add(chain.clusters);
        if walk.links > MOST_LINKS {
            return kept("it has too many files to follow their clusters");
        }
        let mut next = (chain.clusters > 0).then_some(chain.first);
        for _ in 0..chain.clusters {
            let Some(cluster) = next else { return kept("a file is cut off") };
            let start = self.offset(self.checked(cluster)?);
            free.check_used(start..start + self.cluster_size)?;
            next = self.next(volume, cluster)?;
        }
        Ok(())
    }

    fn walk_directory(
        &self,
        volume: &Volume,
        directory: Chain,
        free: Option<&FreeRanges>,
        walk: &mut Walk,
    ) -> Found<()> {
        let mut cluster = directory.first;
        let mut set = None;
        for index in 0..directory.clusters {
            for at in (0..self.cluster_size).step_by(PART as usize) {
                let part = volume.read(self.offset(cluster) + at, (self.cluster_size - at).min(PART) as usize)?;
                walk.entries += part.len() as u64 / ENTRY;
                if walk.entries > MOST_ENTRIES || walk.directories.len() > MOST_DIRECTORIES {
                    return kept("it has too many files to count their clusters");
                }
                for entry in part.chunks_exact(ENTRY as usize) {
                    if entry.first() == Some(&0) {
                        return if set.is_none() { Ok(()) } else { kept("a directory is cut off") };
                    }
                    let found = self.walk_entry(Fields(entry), &mut set, walk)?;
                    if let (Some(chain), Some(free)) = (found, free) {
                        self.check_used(volume, chain, free, walk)?;
                    }
                }
            }
            if index + 1 < directory.clusters {
                cluster = match directory.is_contiguous {
                    true => self.checked(cluster + 1)?,
                    false => match self.next(volume, cluster)? {
                        Some(next) => next,
                        None => return kept("a directory is cut off"),
                    },
                };
            }
        }
        if set.is_none() { Ok(()) } else { kept("a directory is cut off") }
    }

    /// Adds an entry, which may continue the `set` of entries of a file (section 6). Returns the clusters that it names.
    fn walk_entry(&self, entry: Fields, set: &mut Option<Set>, walk: &mut Walk) -> Found<Option<Chain>> {
        let kind = entry.u8(0)?;
        if let Some(mut own) = set.take() {
            own.add(entry)?;
            match kind {
                STREAM if own.stream.is_none() => {
                    let (first, len) = (entry.le32(20)?, entry.le64(24)?);
                    let chain =
                        Chain { first, clusters: self.clusters_of(len), is_contiguous: entry.u8(1)? & NO_CHAIN != 0 };
                    own.stream = Some(chain);
                }
                // Others could have clusters too.
                NAME => {}
                _ => return kept("an entry of a directory is not known"),
            }
            if own.left > 0 {
                *set = Some(own);
                return Ok(None);
            }
            return own.end(self, walk).map(Some);
        }
        match kind {
            FILE => *set = Some(Set::new(entry)?),
            BITMAP | UPCASE_TABLE => {
                let (first, len) = (entry.le32(20)?, entry.le64(24)?);
                let clusters = self.clusters_of(len);
                walk.clusters = walk.clusters.saturating_add(clusters);
                if kind == BITMAP && walk.bitmap.replace((self.checked(first)?, len)).is_some() {
                    return kept("it has several bitmaps");
                }
                return Ok(Some(Chain { first, clusters, is_contiguous: false }));
            }
            // What is not in use, a label, a GUID.
            ..=0x7f | LABEL | GUID => {}
            _ => return kept("an entry of a directory is not known"),
        }
        Ok(None)
    }

    /// The number of a cluster, if there is such a one.
    fn checked(&self, cluster: u32) -> Found<u32> {
        match cluster {
            2.. if cluster - 2 < self.clusters => Ok(cluster),
            _ => kept("a cluster is beyond the end of the volume"),
        }
    }
}

// Types of directory entries (section 7).
const BITMAP: u8 = 0x81;
const UPCASE_TABLE: u8 = 0x82;
const LABEL: u8 = 0x83;
const FILE: u8 = 0x85;
const GUID: u8 = 0xa0;
const STREAM: u8 = 0xc0;
const NAME: u8 = 0xc1;

/// The flag of a file whose clusters follow each other.
const NO_CHAIN: u8 = 2;
/// The attribute of a directory.
const DIRECTORY: u16 = 0x10;

/// What the directories name.
struct Walk {
    /// The first cluster and the length in bytes.
    bitmap: Option<(u32, u64)>,
    clusters: u64,
    /// Entries that were read.
    entries: u64,
    /// Entries of the table that were followed.
    links: u64,
    /// Those that are left.
    directories: Vec<Chain>,
}

/// Clusters of a file or a directory.
#[derive(Clone, Copy)]
struct Chain {
    first: u32,
    clusters: u64,
    is_contiguous: bool,
}

/// The entries of a file, which have a checksum together.
struct Set {
    left: u8,
    expected: u16,
    sum: u16,
    is_directory: bool,
    stream: Option<Chain>,
}

impl Set {
    fn new(entry: Fields) -> Found<Set> {
        let (left, expected) = (entry.u8(1)?, entry.le16(2)?);
        let is_directory = entry.le16(4)? & DIRECTORY != 0;
        let mut set = Set { left, expected, sum: 0, is_directory, stream: None };
        if left < 2 {
            return kept("an entry of a directory is not valid");
        }
        for at in (0..ENTRY as usize).filter(|at| !matches!(at, 2 | 3)) {
            set.sum = set.sum.rotate_right(1).wrapping_add(entry.u8(at)?.into());
        }
        Ok(set)
    }

    fn add(&mut self, entry: Fields) -> Found<()> {
        for at in 0..ENTRY as usize {
            self.sum = self.sum.rotate_right(1).wrapping_add(entry.u8(at)?.into());
        }
        self.left -= 1;
        Ok(())
    }

    /// Counts the clusters after the last entry, and returns them.
    fn end(self, system: &ExFat, walk: &mut Walk) -> Found<Chain> {
        if self.sum != self.expected {
            return kept("the checksum of a directory entry is wrong");
        }
        let Some(chain) = self.stream else { return kept("an entry of a directory is not valid") };
        walk.clusters = walk.clusters.saturating_add(chain.clusters);
        if chain.clusters > 0 {
            system.checked(chain.first)?;
        }
        if self.is_directory && chain.clusters > 0 {
            walk.directories.push(chain);
        }
        Ok(chain)
    }
}

/// Whether the checksum of the boot sectors matches, which leaves out the fields that change.
fn has_checksum(volume: &Volume, sector_size: u64) -> Found<bool> {
    let bytes = volume.read(0, 11 * sector_size as usize)?;
    let covered = bytes.iter().enumerate().filter(|(at, _)| !matches!(at, 106 | 107 | 112));
    let sum = covered.fold(0_u32, |sum, (_, byte)| sum.rotate_right(1).wrapping_add((*byte).into()));
    Ok(volume.read(11 * sector_size, 4)? == sum.to_le_bytes())
}

impl FileSystem for ExFat {
    fn describe(&self) -> Described {
        let uuid = Some(serial_text(self.serial));
        Described { name: "exFAT", label: self.label.clone(), uuid, size: self.size, free: None }
    }

    fn free(&self, volume: &Volume, free: &mut FreeRanges) -> Found<()> {
        if self.flags & 6 != 0 {
            return kept("it was not unmounted, or has errors");
        }
        if !self.checksum_matches {
            return kept("the checksum of its boot sectors is wrong");
        }
        let root = self.root(volume)?;
        let Some((first, len)) = self.walk(volume, root, None)?.bitmap else {
            return kept("its root directory has no bitmap");
        };
        let bytes = u64::from(self.clusters).div_ceil(8);
        if len != bytes {
            return kept("its bitmap has another length than its clusters need");
        }
        let (mut cluster, mut at, mut free_clusters) = (first, 0, 0);
        loop {
            let part = volume.read(self.offset(cluster), self.cluster_size.min(bytes - at) as usize)?;
            let start = at * 8;
            free_clusters += clear_runs(&part, u64::from(self.clusters) - start, |run| {
                let offset = |index: u64| self.heap + (start + index) * self.cluster_size;
                free.add(offset(run.start)..offset(run.end));
            });
            at += part.len() as u64;
            if at == bytes {
                break;
            }
            cluster = match self.next(volume, cluster)? {
                Some(next) => next,
                None => return kept("its bitmap is cut off"),
            };
        }
        // The bitmap has neither a checksum nor a count.
        let walk = self.walk(volume, root, Some(free))?;
        match u64::from(self.clusters).checked_sub(walk.clusters) == Some(free_clusters) {
            true => Ok(()),
            false => kept("its bitmap has another number of clusters than its directories name"),
        }
    }
}
