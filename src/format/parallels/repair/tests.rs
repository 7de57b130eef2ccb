use super::*;
use crate::driver::OpenContext;
use crate::io::{MemFile, WriteAt};
use crate::limits::{Budget, Limits};
use crate::testing::{RecordingTarget, TargetEvent};

/// An image of clusters of two sectors that entries count in, with three entries. The BAT takes the first cluster; the others are filled with their number.
fn image(bat: [u32; 3], data_sector: u32, clusters: u8) -> Arc<MemFile> {
    let file = Arc::new(MemFile::new());
    let header = Header::new(2, 6, 3, data_sector);
    file.write_all_at(&header.encode(), 0).unwrap();
    file.write_all_at(&bat.map(u32::to_le_bytes).concat(), 64).unwrap();
    file.set_len(1024).unwrap();
    for number in 1..=clusters {
        file.write_all_at(&[number; 1024], u64::from(number) * 1024).unwrap();
    }
    file
}

fn repaired<S: Storage + 'static>(file: &Arc<S>, what: Repair) -> RepairReport {
    let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
    repair(file.clone(), &UpdateContext::new(OpenContext::new(&limits, &budget)), what).unwrap()
}

fn bat(file: &MemFile) -> [u32; 3] {
    [64, 68, 72].map(|at| u32::from_le_bytes(file.to_vec()[at..at + 4].try_into().unwrap()))
}

#[test]
fn shared_clusters_are_copied() {
    let file = image([1, 1, 1], 2, 1);
    assert_eq!(repaired(&file, Repair::Leaks).corruptions_fixed, 0);
    let report = repaired(&file, Repair::All);
    assert_eq!((report.before.corruptions, report.corruptions_fixed, report.after.corruptions), (2, 2, 0));
    assert_eq!(bat(&file), [1, 2, 3]);
    assert!(file.to_vec().len() == 4096 && file.to_vec()[1024..].iter().all(|&byte| byte == 1));
}

/// What has been there may be all that is left of a damaged entry.
#[test]
fn leaked_clusters_are_not_overwritten() {
    let file = image([1, 1, 3], 2, 3);
    let report = repaired(&file, Repair::All);
    assert_eq!((report.corruptions_fixed, report.after.corruptions, report.after.leaks), (1, 0, 1));
    assert_eq!(report.after.messages, ["Leaked: 1 clusters between others are not referenced"]);
    assert_eq!((bat(&file), file.to_vec()[2048]), ([1, 4, 3], 2));
}

#[test]
fn the_end_is_cut_off_where_nothing_is_damaged() {
    for (what, entry, leaks_fixed, len) in [
        (Repair::Leaks, 2, 2, 3072),
        (Repair::All, 2, 2, 3072),
        // It points out of the file, and stays.
        (Repair::All, 99, 0, 5120),
    ] {
        let file = image([1, entry, 0], 2, 4);
        let report = repaired(&file, what);
        assert_eq!((report.leaks_fixed, report.corruptions_fixed, report.after.leaks), (leaks_fixed, 0, 0));
        assert_eq!((bat(&file), file.to_vec().len()), ([1, entry, 0], len));
    }
}

#[test]
fn the_data_area_follows_the_table() {
    for data_sector in [u32::MAX, 0] {
        let file = image([1, 2, 0], data_sector, 2);
        let report = repaired(&file, Repair::All);
        let wrong = u64::from(data_sector != 0);
        assert_eq!((report.before.corruptions, report.corruptions_fixed, report.after.corruptions), (wrong, wrong, 0));
        let found = u32::from_le_bytes(file.to_vec()[48..52].try_into().unwrap());
        assert_eq!(found, if data_sector == 0 { 0 } else { 2 });
    }
}

/// Clusters larger than what is copied at a time.
#[test]
fn a_large_cluster_is_copied_whole() {
    const SECTORS: u32 = 5000;
    let len = SECTORS as usize * 512;
    let data: Vec<u8> = (0..len).map(|at| (at / 512 % 251) as u8).collect();
    let file = Arc::new(MemFile::new());
    file.write_all_at(&Header::new(SECTORS, 3 * u64::from(SECTORS), 3, SECTORS).encode(), 0).unwrap();
    file.write_all_at(&[1_u32, 0, 1].map(u32::to_le_bytes).concat(), 64).unwrap();
    file.write_all_at(&data, len as u64).unwrap();
    let report = repaired(&file, Repair::All);
    assert_eq!((report.corruptions_fixed, report.after.corruptions, report.after.leaks), (1, 0, 0));
    assert_eq!(bat(&file), [1, 0, 2]);
    let bytes = file.to_vec();
    assert!(bytes.len() == 3 * len && bytes[len..2 * len] == data && bytes[2 * len..] == data);
}

/// After a power cut no entry points to a copy that is not there. Copies are not synced one by one.
#[test]
fn copies_are_durable_before_their_entries() {
    const SECTOR: u64 = super::SECTOR;
    const ENTRIES: u32 = 10_000;
    const FIRST: u32 = 80;
    let file = RecordingTarget::file();
    file.mem.write_all_at(&Header::new(1, ENTRIES.into(), ENTRIES, FIRST).encode(), 0).unwrap();
    file.mem.write_all_at(&FIRST.to_le_bytes().repeat(ENTRIES as usize), 64).unwrap();
    file.mem.write_all_at(&[7; SECTOR as usize], u64::from(FIRST) * SECTOR).unwrap();
    let report = repaired(&file, Repair::All);
    let wrong = u64::from(ENTRIES) - 1;
    assert_eq!((report.corruptions_fixed, report.after.corruptions, report.after.leaks), (wrong, 0, 0));

    let bytes = file.mem.to_vec();
    let entry = |at: u64| u32::from_le_bytes(bytes[at as usize..][..4].try_into().unwrap());
    let entries: Vec<_> = (0..ENTRIES).map(|index| entry(64 + 4 * u64::from(index))).collect();
    assert!(entries.into_iter().eq(FIRST..FIRST + ENTRIES));
    assert!(bytes[(u64::from(FIRST) * SECTOR) as usize..].iter().all(|&byte| byte == 7));
    let (mut copied, mut durable, mut syncs) = (0, u64::from(FIRST + 1) * SECTOR, 0);
    for event in file.events.lock().unwrap().iter() {
        match event {
            TargetEvent::Write(range) if range.start >= u64::from(FIRST) * SECTOR => copied = range.end,
            TargetEvent::Write(range) => assert!((u64::from(entry(range.start)) + 1) * SECTOR <= durable, "{range:?}"),
            TargetEvent::Sync => (durable, syncs) = (copied, syncs + 1),
            TargetEvent::SetLen(_) | TargetEvent::Allocate(_) => {}
        }
    }
    assert!(syncs < 10 && matches!(file.events.lock().unwrap().last(), Some(TargetEvent::Sync)), "{syncs}");
}
