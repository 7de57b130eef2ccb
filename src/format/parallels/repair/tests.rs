use super::*;
use crate::driver::OpenContext;
use crate::io::{MemFile, WriteAt};
use crate::limits::{Budget, Limits};

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

fn repaired(file: &Arc<MemFile>, what: Repair) -> RepairReport {
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
