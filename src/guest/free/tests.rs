use std::ops::Range;

use proptest::prelude::*;

use super::volume::clear_runs;
use super::*;
use crate::io::MemFile;
use crate::limits::Limits;

proptest! {
    #[test]
    fn clear_bits_are_found_as_one_by_one(bitmap in prop::collection::vec(prop_oneof![Just(0_u8), Just(0xff), any::<u8>()], 0..40), count in 0..330_u64) {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let clear = clear_runs(&bitmap, count, |run| runs.push(run));
        let found: Vec<u64> = runs.iter().cloned().flatten().collect();
        let bits = (0..count.min(bitmap.len() as u64 * 8)).filter(|bit| bitmap[(bit / 8) as usize] >> (bit % 8) & 1 == 0);
        prop_assert_eq!(&found, &bits.collect::<Vec<_>>());
        prop_assert_eq!(clear, found.len() as u64);
        prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
    }

    #[test]
    fn garbage_never_panics(kind in 0..8_usize, noise in prop::collection::vec((0..2048_usize, any::<u8>()), 0..64)) {
        let mut disk = vec![0; 300 << 10];
        let magics: [(usize, &[u8]); 8] = [
            (1024 + 0x38, b"\x53\xef"), (0, b"XFSB"), (0x10040, b"_BHRfS_M"), (3, b"NTFS    "), (54, b"FAT16   "), (82, b"FAT32   "),
            (4086, b"SWAPSPACE2"), (3, b"EXFAT   "),
        ];
        let base = [1024, 0, 0x10000, 0, 0, 0, 1024, 0][kind];
        noise.iter().for_each(|(at, byte)| disk[base + at] = *byte);
        if (3..6).contains(&kind) {
            disk[..3].copy_from_slice(b"\xeb\x58\x90");
            disk[510..512].copy_from_slice(b"\x55\xaa");
        }
        let (at, magic) = magics[kind];
        disk[at..at + magic.len()].copy_from_slice(magic);
        let space = find(&MemFile::from(disk), &|_| 0, &Limits::default()).unwrap();
        prop_assert!(space.ranges.iter().all(|range| range.start < range.end && range.end <= 300 << 10));
    }
}

#[test]
fn what_was_read_is_not_free() {
    let disk = MemFile::from(vec![0; 1 << 20]);
    let volume = Volume::new(&disk, 4096..1 << 20);
    let mut random = crate::testing::Random::new(1);
    // In any order, some twice, and more than are merged at once.
    let mut used: Vec<_> = (0..5000).map(|_| random.below(20_000) * 32).collect();
    used.iter().try_for_each(|at| volume.mark_used(*at..at + 16)).unwrap();
    volume.mark_used(7..7).unwrap();
    volume.read(700_000, 100).unwrap();
    volume.peek::<64>(800_000).unwrap();
    used.sort_unstable();
    let check = |range: Range<u64>| {
        let mut free = FreeRanges::new(10);
        free.add(range);
        volume.check_used(&free)
    };
    for at in (0..20_000).map(|at| at * 32) {
        let is_used = used.binary_search(&at).is_ok();
        assert_eq!((check(at + 15..at + 17).is_err(), check(at + 16..at + 32).is_ok()), (is_used, true), "{at}");
    }
    assert!(check(700_099..700_200).is_err() && check(700_100..900_000).is_ok());
}

#[test]
fn of_more_ranges_than_are_kept_the_longest_stay() {
    let mut free = FreeRanges::new(4);
    let lens = [1_u64, 9, 3, 20, 2, 30, 5, 40];
    let mut at = 0;
    for len in lens {
        free.add(at..at + len);
        at += len + 1;
    }
    assert_eq!(free.total(), lens.iter().sum::<u64>());
    let kept: Vec<u64> = free.into_ranges().iter().map(|range| range.end - range.start).collect();
    assert_eq!(kept, [9, 20, 30, 40]);
}

#[test]
fn a_disk_without_a_known_file_system_is_kept() {
    for disk in [vec![], vec![0; 512], vec![7; 8192]] {
        let len = disk.len() as u64;
        let space = find(&MemFile::from(disk), &|_| 0, &Limits::default()).unwrap();
        assert!(space.ranges.is_empty() && space.at(0) == Err(u64::MAX));
        let [volume] = space.volumes.as_slice() else { panic!("{:?}", space.volumes) };
        assert_eq!((volume.range.clone(), volume.kept.as_deref()), (0..len, Some("no known file system")));
    }
}

#[test]
fn absurd_numbers_in_the_boot_sector_of_ntfs() {
    let sector = |per_cluster: u8, record: u8, table: u64| {
        let mut disk = vec![0; 64 << 10];
        disk[3..11].copy_from_slice(b"NTFS    ");
        // Sectors of 512 bytes, and 100 of them.
        (disk[12], disk[13], disk[40], disk[64]) = (2, per_cluster, 100, record);
        disk[48..56].copy_from_slice(&table.to_le_bytes());
        disk
    };
    for (per_cluster, record, table) in
        [(0xc1, 0x7f, 4), (0xc1, 0x80, 4), (1, 2, u64::MAX), (1, 2, u64::MAX >> 9), (1, 0x7f, 4), (0, 0, 4)]
    {
        let disk = MemFile::from(sector(per_cluster, record, table));
        let space = find(&disk, &|_| 0, &Limits::default()).unwrap();
        let reason = space.volumes[0].kept.as_deref().unwrap();
        assert_eq!(reason, "the numbers in its boot sector are not valid", "{per_cluster:#x} {record:#x} {table:#x}");
    }
}
