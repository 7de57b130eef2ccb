//! Partition tables: MBR (a table of four entries, and a chain of further ones) and GPT (UEFI specification 2.10, chapter 5).

use std::ops::Range;

use crate::error::Result;
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::name::Name;

/// A partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartitionTable {
    /// In the order of the table.
    pub partitions: Vec<Partition>,
    /// Bytes in a sector of a GPT; `None` for an MBR.
    pub gpt_sector_size: Option<u64>,
}

/// A partition, which lies within the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// As operating systems count: entries of the table from 1, logical partitions of an MBR from 5.
    pub number: u32,
    /// In bytes.
    pub range: Range<u64>,
    pub kind: PartitionType,
    /// The label in a GPT.
    pub label: Name,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartitionType {
    Mbr(u8),
    /// A GUID as it is stored.
    Gpt([u8; 16]),
}

use PartitionType::{Gpt, Mbr};

static NAMES: &[(PartitionType, &str)] = &[
    (Mbr(0x01), "FAT"),
    (Mbr(0x04), "FAT"),
    (Mbr(0x05), "extended"),
    (Mbr(0x06), "FAT"),
    (Mbr(0x07), "NTFS or exFAT"),
    (Mbr(0x0b), "FAT"),
    (Mbr(0x0c), "FAT"),
    (Mbr(0x0e), "FAT"),
    (Mbr(0x0f), "extended"),
    (Mbr(0x27), "Windows recovery"),
    (Mbr(0x82), "Linux swap"),
    (Mbr(0x83), "Linux"),
    (Mbr(0x85), "extended"),
    (Mbr(0x8e), "LVM"),
    (Mbr(0xa5), "FreeBSD"),
    (Mbr(0xef), "EFI system"),
    (Mbr(0xfd), "Linux RAID"),
    (gpt(0xc12a7328, 0xf81f, 0x11d2, 0xba4b00a0c93ec93b), "EFI system"),
    (gpt(0x21686148, 0x6449, 0x6e6f, 0x744e656564454649), "BIOS boot"),
    (gpt(0x0fc63daf, 0x8483, 0x4772, 0x8e793d69d8477de4), "Linux"),
    (gpt(0x4f68bce3, 0xe8cd, 0x4db1, 0x96e7fbcaf984b709), "Linux root (x86-64)"),
    (gpt(0xb921b045, 0x1df0, 0x41c3, 0xaf444c6f280d3fae), "Linux root (arm64)"),
    (gpt(0xbc13c2ff, 0x59e6, 0x4262, 0xa352b275fd6f7172), "Linux extended boot"),
    (gpt(0x0657fd6d, 0xa4ab, 0x43c4, 0x84e50933c84b4f4f), "Linux swap"),
    (gpt(0xe6d6d379, 0xf507, 0x44c2, 0xa23c238f2a3df928), "LVM"),
    (gpt(0xa19d880f, 0x05fc, 0x4d3b, 0xa006743f0f84911e), "Linux RAID"),
    (gpt(0xebd0a0a2, 0xb9e5, 0x4433, 0x87c068b6b72699c7), "Microsoft basic data"),
    (gpt(0xe3c9e316, 0x0b5c, 0x4db8, 0x817df92df00215ae), "Microsoft reserved"),
    (gpt(0xde94bba4, 0x06d1, 0x4d40, 0xa16abfd50179d6ac), "Windows recovery"),
    (gpt(0x516e7cb6, 0x6ecf, 0x11d6, 0x8ff800022d09712b), "FreeBSD UFS"),
    (gpt(0x516e7cba, 0x6ecf, 0x11d6, 0x8ff800022d09712b), "FreeBSD ZFS"),
];

/// A GUID from its five groups, of which the last two are one number here: stored with the first three groups little-endian.
const fn gpt(a: u32, b: u16, c: u16, rest: u64) -> PartitionType {
    let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let [d0, d1, d2, d3, d4, d5, d6, d7] = rest.to_be_bytes();
    Gpt([a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7])
}

impl Partition {
    /// The meaning of its type, if that is known, and the type.
    pub fn type_name(&self) -> Name {
        let value = match self.kind {
            Mbr(value) => format!("{value:#04x}"),
            Gpt([a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, node @ ..]) => {
                let (a, b) = (u32::from_le_bytes([a0, a1, a2, a3]), u16::from_le_bytes([b0, b1]));
                let (c, d) = (u16::from_le_bytes([c0, c1]), u16::from_be_bytes([d0, d1]));
                let node: String = node.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{a:08x}-{b:04x}-{c:04x}-{d:04x}-{node}")
            }
        };
        let name = NAMES.iter().find(|(kind, _)| *kind == self.kind);
        Name::from(name.map_or_else(|| value.clone(), |(_, name)| format!("{name} ({value})")))
    }

    /// Whether it holds the logical partitions of an MBR.
    pub fn is_extended(&self) -> bool {
        is_extended(self.kind)
    }
}

fn is_extended(kind: PartitionType) -> bool {
    matches!(kind, Mbr(0x05 | 0x0f | 0x85))
}

impl PartitionTable {
    /// Reads the table of a disk: a GPT, else an MBR. `None` if it has neither, or an invalid one.
    pub fn read(disk: &dyn ReadAt) -> Result<Option<PartitionTable>> {
        let len = table::length(disk)?;
        let Some(sector) = read(disk, 0, 512, len)? else { return Ok(None) };
        let Some(mbr) = MbrEntry::parse(&sector) else { return Ok(None) };
        for sector_size in [512, 4096] {
            if let Some(gpt) = read_gpt(disk, len, sector_size)? {
                return Ok(Some(gpt));
            }
        }
        // A boot sector without a table has code here.
        let plausible = mbr.iter().all(|entry| matches!(entry.flags, 0 | 0x80))
            && mbr.iter().all(|entry| entry.kind == 0 || entry.range(0, len).is_some())
            && mbr.iter().any(|entry| entry.kind != 0);
        if !plausible {
            return Ok(None);
        }
        let mut partitions = Vec::new();
        for (number, entry) in (1..).zip(&mbr) {
            if let Some(range) = entry.range(0, len).filter(|_| entry.kind != 0) {
                partitions.push(Partition { number, range, kind: Mbr(entry.kind), label: Name::default() });
            }
        }
        for extended in mbr.iter().filter(|entry| is_extended(Mbr(entry.kind))) {
            read_logical(disk, len, extended.first, &mut partitions)?;
        }
        Ok(Some(PartitionTable { partitions, gpt_sector_size: None }))
    }
}

/// Reads `len` bytes at `offset`; `None` if they are not all on the disk.
fn read(disk: &dyn ReadAt, offset: u64, len: usize, disk_len: u64) -> Result<Option<Vec<u8>>> {
    if offset.checked_add(len as u64).is_none_or(|end| end > disk_len) {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    table::read(disk, &mut bytes, offset)?;
    Ok(Some(bytes))
}

/// An entry of an MBR, or of a sector with the same layout before a logical partition.
#[derive(Clone, Copy)]
struct MbrEntry {
    flags: u8,
    kind: u8,
    /// In sectors of 512 bytes, relative to a sector that depends on the table.
    first: u64,
    count: u64,
}

impl MbrEntry {
    /// The entries of a sector with the signature of a table.
    fn parse(sector: &[u8]) -> Option<[MbrEntry; 4]> {
        let (entries, signature) = sector.get(446..512)?.split_at_checked(64)?;
        if signature != [0x55, 0xaa] {
            return None;
        }
        let u32_at =
            |bytes: &[u8], at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).copied().map(u32::from_le_bytes);
        let entry = |index: usize| {
            let bytes = entries.get(index * 16..)?;
            let (first, count) = (u32_at(bytes, 8)?.into(), u32_at(bytes, 12)?.into());
            Some(MbrEntry { flags: *bytes.first()?, kind: *bytes.get(4)?, first, count })
        };
        Some([entry(0)?, entry(1)?, entry(2)?, entry(3)?])
    }

    /// Its range in bytes, if it is on a disk of `len` bytes. Its first sector counts from sector `base`.
    fn range(&self, base: u64, len: u64) -> Option<Range<u64>> {
        let start = (base + self.first) * 512;
        let end = start + self.count * 512;
        (self.count > 0 && self.first > 0 && end <= len).then_some(start..end)
    }
}

/// Adds the logical partitions in the extended partition at sector `extended`: a chain of tables, each with a partition
/// relative to the table, and with the next table relative to the extended partition.
fn read_logical(disk: &dyn ReadAt, len: u64, extended: u64, partitions: &mut Vec<Partition>) -> Result<()> {
    const MOST: u32 = 128;
    let mut base = extended;
    for number in 5..5 + MOST {
        let Some([logical, next, ..]) = read(disk, base * 512, 512, len)?.as_deref().and_then(MbrEntry::parse) else {
            return Ok(());
        };
        if let Some(range) = logical.range(base, len).filter(|_| logical.kind != 0) {
            partitions.push(Partition { number, range, kind: Mbr(logical.kind), label: Name::default() });
        }
        // Tables are in ascending order, so that a loop ends.
        if !is_extended(Mbr(next.kind)) || extended + next.first <= base {
            return Ok(());
        }
        base = extended + next.first;
    }
    Ok(())
}

/// Reads the GPT of a disk with sectors of `sector_size` bytes (5.3).
fn read_gpt(disk: &dyn ReadAt, len: u64, sector_size: u64) -> Result<Option<PartitionTable>> {
    const MOST_BYTES: u64 = 1 << 20;
    let Some(header) = read(disk, sector_size, 92, len)? else { return Ok(None) };
    let u64_at =
        |bytes: &[u8], at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u64::from_le_bytes);
    let u32_at = |at: usize| header.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u32::from_le_bytes);
    let (entry_count, entry_size) = (u64::from(u32_at(80)), u64::from(u32_at(84)));
    let is_valid = header.starts_with(b"EFI PART")
        && u64_at(&header, 24) == 1
        && entry_size >= 128
        && entry_size.is_multiple_of(128)
        && entry_count.saturating_mul(entry_size) <= MOST_BYTES;
    if !is_valid {
        return Ok(None);
    }
    let Some(at) = u64_at(&header, 72).checked_mul(sector_size) else { return Ok(None) };
    let Some(entries) = read(disk, at, (entry_count * entry_size) as usize, len)? else { return Ok(None) };
    let partitions = (1..).zip(entries.chunks_exact(entry_size as usize)).filter_map(|(number, entry)| {
        let kind = entry.first_chunk::<16>().copied().filter(|kind| *kind != [0; 16])?;
        let start = u64_at(entry, 32).checked_mul(sector_size)?;
        let end = u64_at(entry, 40).checked_add(1)?.checked_mul(sector_size)?;
        (start < end && end <= len).then(|| Partition {
            number,
            range: start..end,
            kind: Gpt(kind),
            label: label(entry),
        })
    });
    Ok(Some(PartitionTable { partitions: partitions.collect(), gpt_sector_size: Some(sector_size) }))
}

/// The label of an entry: UTF-16, up to the first zero.
fn label(entry: &[u8]) -> Name {
    let units = entry.get(56..128).unwrap_or_default().as_chunks().0;
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit)).take_while(|unit| *unit != 0);
    Name::from(char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemFile;

    const MIB: u64 = 1 << 20;

    /// Number, range, type and label.
    type Row = (u32, Range<u64>, String, String);

    fn table(disk: &[u8]) -> Option<Vec<Row>> {
        let table = PartitionTable::read(&MemFile::from(disk.to_vec())).unwrap()?;
        let text = |name: &Name| name.to_text().into_owned();
        let row = |p: &Partition| (p.number, p.range.clone(), text(&p.type_name()), text(&p.label));
        Some(table.partitions.iter().map(row).collect())
    }

    fn put(sector: &mut [u8], index: usize, kind: u8, first: u32, count: u32) {
        let entry = &mut sector[446 + index * 16..][..16];
        entry[4] = kind;
        entry[8..12].copy_from_slice(&first.to_le_bytes());
        entry[12..16].copy_from_slice(&count.to_le_bytes());
        sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    }

    fn mbr() -> Vec<u8> {
        let mut disk = vec![0; 8 << 20];
        put(&mut disk, 0, 0x0c, 2048, 2048);
        put(&mut disk, 3, 0x05, 4096, 12288);
        put(&mut disk[4096 * 512..], 0, 0x83, 64, 1000);
        put(&mut disk[4096 * 512..], 1, 0x05, 4096, 8192);
        put(&mut disk[8192 * 512..], 0, 0x82, 64, 2000);
        disk
    }

    fn row(number: u32, range: Range<u64>, kind: &str) -> Row {
        (number, range, kind.into(), String::new())
    }

    #[test]
    fn mbr_with_logical_partitions() {
        let expected = [
            row(1, MIB..2 * MIB, "FAT (0x0c)"),
            row(4, 2 * MIB..8 * MIB, "extended (0x05)"),
            row(5, 4160 * 512..5160 * 512, "Linux (0x83)"),
            row(6, 8256 * 512..10256 * 512, "Linux swap (0x82)"),
        ];
        assert_eq!(table(&mbr()).unwrap(), expected);
    }

    #[test]
    fn a_chain_that_loops_or_leaves_the_disk_ends() {
        for next in [0, 4096, 1 << 31, u32::MAX] {
            let mut disk = mbr();
            put(&mut disk[8192 * 512..], 1, 0x05, next, 8192);
            assert_eq!(table(&disk).unwrap().len(), 4, "{next}");
        }
    }

    #[test]
    fn a_chain_has_at_most_128_partitions() {
        let mut disk = vec![0; 8 << 20];
        put(&mut disk, 0, 0x05, 4096, 12288);
        for index in 0..130 {
            let sector = &mut disk[(4096 + 64 * index as usize) * 512..];
            put(sector, 0, 0x01, 1, 1);
            put(sector, 1, 0x05, 64 * (index + 1), 64);
        }
        let rows = table(&disk).unwrap();
        assert_eq!((rows.len(), rows[128].0), (129, 132));
    }

    #[test]
    fn a_partition_has_a_type_a_start_and_sectors() {
        let with = |kind, first, count| {
            let mut disk = mbr();
            put(&mut disk, 1, kind, first, count);
            table(&disk).map(|rows| rows.len())
        };
        assert_eq!((with(0x01, 1, 1), with(0, 0, 0)), (Some(5), Some(4)));
        assert_eq!((with(0x01, 0, 1), with(0x01, 1, 0)), (None, None));
    }

    #[test]
    fn what_is_no_table() {
        assert_eq!(table(&[]), None);
        assert_eq!(table(&[0; 4096]), None);
        let mut disk = mbr();
        disk[511] = 0;
        assert_eq!(table(&disk), None, "without a signature");
        let mut disk = mbr();
        // Code of a boot sector.
        disk[446] = 0x7c;
        assert_eq!(table(&disk), None);
        let mut disk = mbr();
        put(&mut disk, 1, 0x83, 2048, u32::MAX);
        assert_eq!(table(&disk), None, "beyond the end");
        let mut disk = vec![0; 512];
        disk[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(table(&disk), None, "empty");
    }

    fn gpt_disk(sector_size: usize) -> Vec<u8> {
        let mut disk = vec![0; 4 << 20];
        put(&mut disk, 0, 0xee, 1, 8191);
        let header = &mut disk[sector_size..];
        header[..8].copy_from_slice(b"EFI PART");
        header[24] = 1;
        header[72] = 2;
        header[80] = 4;
        header[84] = 128;
        let entry = &mut disk[2 * sector_size + 128..][..128];
        let Gpt(linux) = gpt(0x0fc63daf, 0x8483, 0x4772, 0x8e793d69d8477de4) else { unreachable!() };
        entry[..16].copy_from_slice(&linux);
        entry[32..40].copy_from_slice(&((MIB as usize / sector_size) as u64).to_le_bytes());
        entry[40..48].copy_from_slice(&((2 * MIB as usize / sector_size - 1) as u64).to_le_bytes());
        entry[56..60].copy_from_slice(&[b'/', 0, 0xe9, 0]);
        disk
    }

    #[test]
    fn gpt_with_both_sector_sizes() {
        for sector_size in [512, 4096] {
            let (kind, label) = ("Linux (0fc63daf-8483-4772-8e79-3d69d8477de4)".to_owned(), "/é".to_owned());
            assert_eq!(table(&gpt_disk(sector_size)).unwrap(), [(2, MIB..2 * MIB, kind, label)]);
        }
    }

    #[test]
    fn a_gpt_with_absurd_numbers_is_none() {
        for (at, value) in
            [(24, u64::MAX), (72, u64::MAX), (72, 1 << 60), (80, 0xffff_ffff), (80, 1 << 32 | 4), (84, 0)]
        {
            let mut disk = gpt_disk(512);
            disk[512 + at..][..8].copy_from_slice(&value.to_le_bytes());
            // The protective MBR is left.
            let rows = table(&disk).unwrap();
            assert!(rows.iter().all(|(number, ..)| *number == 1) && rows.len() <= 1, "{at} {rows:?}");
        }
        // To the end of the disk.
        let mut disk = gpt_disk(512);
        disk[1024 + 128 + 40..][..8].copy_from_slice(&8191_u64.to_le_bytes());
        assert_eq!(table(&disk).unwrap()[0].1, MIB..4 * MIB);
        for (at, value) in [(32, u64::MAX), (40, u64::MAX), (40, 0), (40, 2047), (40, 8192)] {
            let mut disk = gpt_disk(512);
            disk[1024 + 128 + at..][..8].copy_from_slice(&value.to_le_bytes());
            assert_eq!(table(&disk).unwrap(), [], "{at}");
        }
    }

    #[test]
    fn guids_are_written_as_usual() {
        let kind = gpt(0xc12a7328, 0xf81f, 0x11d2, 0xba4b00a0c93ec93b);
        let partition = Partition { number: 1, range: 0..1, kind, label: Name::default() };
        assert_eq!(partition.type_name().to_text(), "EFI system (c12a7328-f81f-11d2-ba4b-00a0c93ec93b)");
        assert_eq!(kind, Gpt(*b"\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b"));
    }
}
