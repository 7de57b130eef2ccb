use super::*;
use crate::io::{MemFile, WriteAt};
use crate::limits::{Budget, Limits};

/// An image of clusters of a sector with a data area from sector 1 on.
fn image(bat: &[u32], parts: &[(u64, u32)], clusters: u64, cut: u64) -> MemFile {
    let file = MemFile::new();
    file.write_all_at(b"WithoutFreeSpace", 0).unwrap();
    let entries = bat.len() as u32;
    for (at, value) in [(16, 2), (28, 2), (32, entries), (36, entries * 2 - 1), (48, 1)].iter().chain(parts) {
        file.write_all_at(&value.to_le_bytes(), *at).unwrap();
    }
    let bat: Vec<u8> = bat.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    file.write_all_at(&bat, 64).unwrap();
    file.set_len(512 + clusters * 1024 - cut).unwrap();
    file
}

fn report(file: MemFile) -> CheckReport {
    report_within(file, 1 << 20)
}

fn report_within(file: MemFile, budget: u64) -> CheckReport {
    let (limits, budget) = (Limits::default(), Budget::new(budget));
    check(Arc::new(file), &OpenContext::new(&limits, &budget)).unwrap()
}

#[test]
fn verdicts() {
    // BAT, clusters in the file, missing bytes; corruptions, leaks, fragmented clusters.
    for (bat, clusters, cut, corruptions, leaks, fragmented) in [
        (&[1, 0, 3][..], 2, 0, 0, 0, 0),
        (&[3, 0, 1], 2, 0, 0, 0, 1),
        // The part of the last cluster beyond the disk may be missing.
        (&[1, 0, 3], 2, 512, 0, 0, 0),
        (&[1, 0, 3], 2, 513, 1, 0, 0),
        (&[1, 1, 0], 1, 0, 1, 0, 1),
        (&[1, 2, 0], 2, 0, 1, 0, 1),
        (&[1, 9, 0], 2, 0, 1, 0, 0),
        (&[1, 0, 0], 3, 0, 0, 2, 0),
        (&[0, 0, 0], 1, 0, 0, 1, 0),
    ] {
        let report = report(image(bat, &[], clusters, cut));
        let found = (report.corruptions, report.leaks, report.fragmented_clusters);
        assert_eq!(found, (corruptions, leaks, fragmented), "{bat:?}: {:?}", report.messages);
        let allocated = bat.iter().filter(|entry| **entry != 0).count() as u64;
        assert_eq!((report.total_clusters, report.allocated_clusters, report.check_errors), (3, allocated, 0));
    }
}

#[test]
fn messages_name_the_entry_and_the_host_offset() {
    let found = report(image(&[1, 1, 4], &[], 2, 0));
    assert_eq!(
        found.messages,
        [
            "ERROR: cluster 1 at host offset 0x200 overlaps another cluster",
            "ERROR: BAT entry at 0x48 is misaligned: 0x800"
        ]
    );
    let found = report(image(&[1, 0], &[(48, 3)], 2, 0));
    assert_eq!(found.messages, ["ERROR: BAT entry at 0x40 points before the data area"]);
    let found = report(image(&[1], &[(44, 0x746f_6e59)], 1, 0));
    assert_eq!(found.messages, ["Note: the image is open for writing, or was not closed"]);
    assert_eq!(found.image_end_offset, 1536);
}

#[test]
fn clusters_of_an_extension_are_not_leaked() {
    assert_eq!(report(image(&[1, 0, 0], &[(56, 3)], 2, 0)).leaks, 0);
}

#[test]
fn the_bitmap_of_clusters_is_limited_by_the_budget() {
    let file = || image(&[1, 0], &[], 65, 0);
    assert_eq!(report_within(file(), 9), report(file()));
    let report = report_within(file(), 8);
    assert_eq!((report.check_errors, report.corruptions), (1, 0));
    assert!(report.messages[0].contains("the bitmap of clusters in use"), "{:?}", report.messages);
}
