//! File systems that say of used blocks that they are free, with the right numbers of free blocks and the right checksums.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use diskimage::io::{MemFile, WriteAt};

use super::{MIB, add_exfat_directory, disk, files, free_ranges, probed};
use crate::support::TempDir;
use crate::support::tools::{find, run};

/// The reason why a file system is kept.
fn reason(path: &Path) -> String {
    free_ranges(probed(path, None)).unwrap_err()
}

/// Swaps the bits of each used cluster and of a free one in the bitmap, which has no checksum. `first` is the offset of the first cluster.
#[track_caller]
fn assert_bitmap_is_checked(path: &Path, first: u64, cluster: u64, clusters: u64) {
    let free = free_ranges(probed(path, None)).unwrap();
    let is_free = |number: &u64| free.iter().any(|range| range.contains(&(first + number * cluster)));
    let mut bitmap = vec![0_u8; (clusters / 8) as usize];
    let whole = 0..clusters / 8 * 8;
    let used: Vec<_> = whole.clone().filter(|number| !is_free(number)).collect();
    used.iter().for_each(|bit| bitmap[(bit / 8) as usize] |= 1 << (bit % 8));
    let bytes = fs::read(path).unwrap();
    let at = bytes.windows(bitmap.len()).position(|window| window == bitmap).unwrap() as u64;
    let disk = Arc::new(MemFile::from(bytes));
    let flip = |bitmap: &mut [u8], bit: u64| {
        let byte = &mut bitmap[(bit / 8) as usize];
        *byte ^= 1 << (bit % 8);
        disk.write_all_at(&[*byte], at + bit / 8).unwrap();
    };
    let other = whole.clone().find(is_free).unwrap();
    flip(&mut bitmap, other);
    assert!(used.len() > 3);
    for number in used {
        flip(&mut bitmap, number);
        let reason = free_ranges(disk.clone()).unwrap_err();
        assert!(reason.contains("is free is in use"), "cluster {number}: {reason}");
        flip(&mut bitmap, number);
    }
}

#[test]
fn of_ntfs() {
    let Some(_) = find("forged free space of NTFS", &["mkfs.ntfs"]) else { return };
    let dir = TempDir::new();
    let (disk, tree) = (disk(&dir, "ntfs", 16 * MIB), files(&dir));
    let path = disk.to_str().unwrap();
    run("mkfs.ntfs", &["-q", "-F", "-f", "-c", "4096", path]);
    for name in ["file3", "file6"] {
        run("ntfscp", &["-q", path, tree.join(name).to_str().unwrap(), name]);
    }
    // The last sector is the copy of the first.
    assert_bitmap_is_checked(&disk, 0, 4096, (16 * MIB - 512) / 4096);
}

#[test]
fn of_exfat() {
    let Some(_) = find("forged free space of exFAT", &["mkfs.exfat"]) else { return };
    let dir = TempDir::new();
    let disk = disk(&dir, "exfat", 16 * MIB);
    run("mkfs.exfat", &["-c", "4K", disk.to_str().unwrap()]);
    add_exfat_directory(&disk);
    let bytes = fs::read(&disk).unwrap();
    let u32_at = |at: usize| u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()));
    assert_bitmap_is_checked(&disk, u32_at(88) << bytes[108], 4096, u32_at(92));
}

#[test]
fn of_fat32() {
    let Some(_) = find("forged free space of FAT32", &["mkfs.vfat"]) else { return };
    let dir = TempDir::new();
    let disk = disk(&dir, "fat", 48 * MIB);
    run("mkfs.vfat", &["-F", "32", "-s", "1", disk.to_str().unwrap()]);
    let mut bytes = fs::read(&disk).unwrap();
    let u16_at = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let (sector, reserved, table) = (u16_at(11), u16_at(14), u16_at(36));
    // The entry of the root directory.
    for first in [reserved, reserved + table] {
        bytes[first * sector + 8..][..4].fill(0);
    }
    fs::write(&disk, bytes).unwrap();
    assert!(reason(&disk).contains("is free is in use"), "{}", reason(&disk));
}

/// debugfs computes checksums, and leaves the numbers of free blocks as they are.
#[test]
fn of_ext4() {
    let Some(_) = find("forged free space of ext4", &["mke2fs"]) else { return };
    let dir = TempDir::new();
    let disk = disk(&dir, "ext", 16 * MIB);
    let path = disk.to_str().unwrap();
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-b", "1024", "-E", "nodiscard", path]);
    let good = fs::read(&disk).unwrap();
    // Superblock, descriptors and reserved ones, bitmaps, and tables of inodes of group 0; the copies in group 1.
    let stats = String::from_utf8(run("dumpe2fs", &[path])).unwrap();
    let number_after = |key: &str| -> u64 {
        let rest = stats.split(key).nth(1).unwrap();
        rest.split(|c: char| !c.is_ascii_digit()).find(|number| !number.is_empty()).unwrap().parse().unwrap()
    };
    let bitmap = number_after("Block bitmap at");
    let inode_bitmap = number_after("Inode bitmap at");
    let inodes = number_after("Inode table at");
    for block in [1, 2, bitmap, inode_bitmap, inodes, inodes + 9, 8193, 8194] {
        let commands = format!("freeb {block}\nsetb {}\n", if block < 8193 { 8000 } else { 16000 });
        let script = dir.file("commands", commands.as_bytes());
        run("debugfs", &["-w", "-f", script.to_str().unwrap(), path]);
        assert!(reason(&disk).contains("is free is in use"), "block {block}: {}", reason(&disk));
        fs::write(&disk, &good).unwrap();
    }
}

/// xfs_db computes checksums.
#[test]
fn of_xfs() {
    let Some(_) = find("forged free space of XFS", &["mkfs.xfs"]) else { return };
    for version in ["crc=1", "crc=0"] {
        let dir = TempDir::new();
        let disk = disk(&dir, "xfs", 320 * MIB);
        let path = disk.to_str().unwrap();
        run("mkfs.xfs", &["-q", "-f", "-K", "-m", version, path]);
        let write = |tree: &str, start: &str| {
            let tree = format!("addr {tree}");
            let record = format!("write -d recs[1].startblock {start}");
            run("xfs_db", &["-x", "-c", "agf 1", "-c", &tree, "-c", &record, path]);
        };
        free_ranges(probed(&disk, None)).unwrap();
        write("bnoroot", "0");
        assert!(reason(&disk).contains("the trees of free extents of group 1 differ"), "{}", reason(&disk));
        write("cntroot", "0");
        assert!(reason(&disk).contains("is free is in use"), "{}", reason(&disk));
    }
}
