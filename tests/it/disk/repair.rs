//! Repairs of wrong refcounts.

use std::sync::Arc;

use diskimage::io::{MemFile, Storage};
use diskimage::{Converter, ErrorKind, Format, OpenOptions, Repair};

use super::starts;
use crate::support::{Random, TempDir};

const REFCOUNT_TABLE: usize = 48;

fn offset_at(file: &[u8], at: usize) -> usize {
    u64::from_be_bytes(file[at..at + 8].try_into().unwrap()) as usize
}

/// Refcounts of 16 bits in the first block are changed at random; the repair makes them right, and changes nothing else that can be seen.
#[test]
fn wrong_refcounts_are_repaired() {
    let starts = starts::all()
        .into_iter()
        .filter(|start| start.name.starts_with("qcow2") && !start.name.contains("refcount_bits"));
    for start in starts {
        for seed in 0..8 {
            let mut random = Random::new(seed);
            let mut file = start.file.clone();
            let table = offset_at(&file, REFCOUNT_TABLE);
            let block = offset_at(&file, table);
            for _ in 0..random.below(6) + 1 {
                let at = block + random.below(60) as usize * 2;
                file[at..at + 2].copy_from_slice(&(random.below(3) as u16).to_be_bytes());
            }
            let storage = Arc::new(MemFile::from(file));
            let before = OpenOptions::new().check_source(storage.clone()).unwrap();
            let report = start.options().repair_storage(storage.clone() as Arc<dyn Storage>, Repair::All).unwrap();
            assert_eq!(report.before, before, "{}", start.name);
            let counts = |report: &diskimage::CheckReport| (report.corruptions, report.leaks, report.check_errors);
            assert_eq!(counts(&report.after), (0, 0, 0), "{}: {:?}", start.name, report.after.messages);
            assert_eq!(report.leaks_fixed, before.leaks, "{}", start.name);
            // A flag may be right once the refcount is.
            assert!(report.corruptions_fixed <= before.corruptions, "{}", start.name);
            assert!(start.read(storage.to_vec()) == start.content, "{}", start.name);
        }
    }
}

/// All counts of the blocks are lost; the new blocks count themselves.
#[test]
fn missing_refcount_blocks_are_made_anew() {
    let starts = starts::all().into_iter().filter(|start| start.name.starts_with("qcow2"));
    for start in starts {
        let table = offset_at(&start.file, REFCOUNT_TABLE);
        let clusters = u32::from_be_bytes(start.file[56..60].try_into().unwrap()) as usize;
        let len = clusters << u32::from_be_bytes(start.file[20..24].try_into().unwrap());
        for lost in [table..table + 8, table..table + len] {
            let mut file = start.file.clone();
            file[lost.clone()].fill(0);
            let storage = Arc::new(MemFile::from(file.clone()));
            let report = start.options().repair_storage(storage.clone() as Arc<dyn Storage>, Repair::Leaks).unwrap();
            assert!(report.before.corruptions > 0, "{}", start.name);
            assert_eq!(report.corruptions_fixed, 0, "{}", start.name);
            let storage = Arc::new(MemFile::from(file));
            let report = start.options().repair_storage(storage.clone() as Arc<dyn Storage>, Repair::All).unwrap();
            let after = (report.after.corruptions, report.after.leaks, report.after.check_errors);
            assert_eq!(after, (0, 0, 0), "{} {lost:?}: {:?}", start.name, report.after.messages);
            assert!(start.read(storage.to_vec()) == start.content, "{}", start.name);
        }
    }
}

/// A damaged entry leaves clusters that only seem to be unused.
#[test]
fn nothing_is_freed_while_an_entry_is_damaged() {
    let start = starts::all().into_iter().find(|start| start.name.contains("qcow2 cluster_size=512")).unwrap();
    let mut file = start.file.clone();
    let l1 = offset_at(&file, 40);
    let l2 = offset_at(&file, l1) & 0x00ff_ffff_ffff_fe00;
    // A reserved bit.
    let entry = (l2..l2 + 512).step_by(8).find(|at| file[*at] != 0).unwrap();
    file[entry + 7] |= 2;
    let storage = Arc::new(MemFile::from(file.clone()));
    let report = OpenOptions::new().repair_storage(storage.clone() as Arc<dyn Storage>, Repair::All).unwrap();
    assert!(report.before.leaks > 0 && report.before.corruptions > 0, "{:?}", report.before);
    assert_eq!((report.leaks_fixed, &report.after), (0, &report.before));
    assert!(storage.to_vec() == file);
}

/// A snapshot is lost whose clusters are still counted: those of the disk have a count of 2, and no flag that says 1.
#[test]
fn flags_follow_from_refcounts_that_were_lowered() {
    let file = Arc::new(MemFile::new());
    Converter::new(Format::QCOW2).create_to(1 << 20, file.clone()).unwrap();
    let disk = OpenOptions::new().open_disk_in(file.clone()).unwrap();
    disk.write_all_at(&[7; 200_000], 1000).unwrap();
    disk.create_snapshot("lost").unwrap();
    disk.close().unwrap();
    let mut bytes = file.to_vec();
    // nb_snapshots and snapshots_offset.
    bytes[60..72].fill(0);
    for what in [Repair::Leaks, Repair::All] {
        let storage = Arc::new(MemFile::from(bytes.clone()));
        let report = OpenOptions::new().repair_storage(storage.clone() as Arc<dyn Storage>, what).unwrap();
        assert!(report.leaks_fixed > 0, "{report:?}");
        assert_eq!((report.after.leaks, report.after.corruptions, report.corruptions_fixed), (0, 0, 0), "{report:?}");
        let image = OpenOptions::new().open_source(storage).unwrap();
        let mut data = [0; 200_000];
        image.read_exact_at(&mut data, 1000).unwrap();
        assert!(data.iter().all(|byte| *byte == 7));
    }
}

/// What changes an image takes the lock, whatever is read without one.
#[test]
#[cfg(target_os = "linux")]
fn no_two_programs_change_an_image() {
    let dir = TempDir::new();
    let path = dir.join("disk.qcow2");
    Converter::new(Format::QCOW2).create(1 << 20, &path).unwrap();
    let disk = OpenOptions::new().open_disk(&path).unwrap();
    let shared = OpenOptions::new().force_share(true);
    assert_eq!(shared.open_disk(&path).unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(shared.repair(&path, Repair::All).unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(shared.open(&path).unwrap().virtual_size(), 1 << 20);
    disk.close().unwrap();
    shared.open_disk(&path).unwrap().close().unwrap();
}

/// The refcount table points to a table or to guest data in place of a refcount block: nothing is written there.
#[test]
fn a_refcount_block_that_is_something_else_is_not_written() {
    const L1_TABLE: usize = 40;
    let starts = starts::all().into_iter().filter(|start| start.name.starts_with("qcow2") && start.backing.is_none());
    let mut tried = 0;
    for start in starts {
        let table = offset_at(&start.file, REFCOUNT_TABLE);
        let (l1, mask) = (offset_at(&start.file, L1_TABLE), 0x00ff_ffff_ffff_fe00);
        let l2 = offset_at(&start.file, l1) & mask;
        for other in [l1, l2].into_iter().filter(|other| *other > 0) {
            let mut file = start.file.clone();
            file[table..table + 8].copy_from_slice(&(other as u64).to_be_bytes());
            let storage = Arc::new(MemFile::from(file));
            // An image that is not opened is not changed either.
            let Ok(report) = start.options().repair_storage(storage.clone() as Arc<dyn Storage>, Repair::All) else {
                continue;
            };
            assert!(report.after.corruptions > 0, "{}: {other:#x}", start.name);
            assert!(start.read(storage.to_vec()) == start.content, "{}: {other:#x}", start.name);
            tried += 1;
        }
    }
    assert!(tried > 4);
}

/// An entry that points beyond the end of the file would point to a new refcount block there.
#[test]
fn no_refcount_block_is_created_where_an_entry_points_to() {
    let file = Arc::new(MemFile::new());
    Converter::new(Format::QCOW2).create_to(8 << 20, file.clone()).unwrap();
    let disk = OpenOptions::new().open_disk_in(file.clone()).unwrap();
    disk.write_all_at(&[0xaa; 4 << 20], 0).unwrap();
    disk.close().unwrap();
    let mut bytes = file.to_vec();
    bytes.truncate(3 << 20);
    let table = offset_at(&bytes, REFCOUNT_TABLE);
    bytes[table..table + 8].fill(0);
    let storage = Arc::new(MemFile::from(bytes.clone()));
    let report = OpenOptions::new().repair_storage(storage.clone() as Arc<dyn Storage>, Repair::All).unwrap();
    assert!(report.after.corruptions > 0);
    assert!(storage.to_vec() == bytes);
}
