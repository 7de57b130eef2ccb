use super::*;
use crate::io::{MemFile, WriteAt};
use crate::limits::{Budget, Limits};

const CLUSTER: u64 = 4096;

/// An image with tables of one cluster, the L2 tables at these host clusters with these entries, and `clusters` clusters.
fn image(features: u64, tables: &[(u64, &[u64])], clusters: u64, cut: u64) -> MemFile {
    let file = MemFile::new();
    file.set_len(clusters * CLUSTER - cut).unwrap();
    let mut header = [0; 64];
    header[..4].copy_from_slice(b"QED\0");
    for (at, value) in [(4, 4096u32), (8, 1), (12, 1)] {
        header[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    // The last cluster has one sector.
    let size = tables.len() as u64 * 512 * CLUSTER - CLUSTER + 512;
    for (at, value) in [(16, features), (40, CLUSTER), (48, size)] {
        header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    file.write_all_at(&header, 0).unwrap();
    for (index, (at, entries)) in tables.iter().enumerate() {
        file.write_all_at(&at.to_le_bytes(), CLUSTER + index as u64 * 8).unwrap();
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        if (CLUSTER..clusters * CLUSTER).contains(at) {
            file.write_all_at(&bytes, *at).unwrap();
        }
    }
    file
}

fn report(file: MemFile) -> CheckReport {
    report_within(file, 1 << 20)
}

fn report_within(file: MemFile, budget: u64) -> CheckReport {
    let (limits, budget) = (Limits::default(), Budget::new(budget));
    check(Arc::new(file), &OpenContext::new(&limits, &budget)).unwrap()
}

fn at(cluster: u64) -> u64 {
    cluster * CLUSTER
}

#[test]
fn l1_entries_beyond_the_disk_are_checked() {
    // The disk needs the first entry.
    for (entry, corruptions) in [(at(3), 0), (at(2), 1), (at(9), 1), (at(3) + 512, 1), (u64::MAX - 4095, 1)] {
        for index in [1, 511] {
            let file = image(0, &[(at(2), &[])], 4, 0);
            file.write_all_at(&entry.to_le_bytes(), CLUSTER + index * 8).unwrap();
            let report = report(file);
            assert_eq!((report.corruptions, report.leaks), (corruptions, 0), "{entry:#x}: {:?}", report.messages);
        }
    }
}

#[test]
fn verdicts() {
    // Entries of the only L2 table at cluster 2, clusters in the file, missing bytes; corruptions, leaks, fragmented clusters.
    for (entries, clusters, cut, corruptions, leaks, fragmented) in [
        (&[at(3), 0, 1, at(4)][..], 5, 0, 0, 0, 0),
        (&[], 3, 0, 0, 0, 0),
        (&[at(4), at(3)], 5, 0, 0, 0, 1),
        (&[at(4)], 7, 0, 0, 3, 0),
        // Used twice, within other metadata, misaligned, beyond the end.
        (&[at(3), at(3)], 4, 0, 1, 0, 1),
        (&[at(2)], 3, 0, 1, 0, 0),
        (&[at(1)], 4, 0, 1, 0, 0),
        (&[at(3) + 512], 5, 0, 1, 0, 0),
        (&[at(9)], 4, 0, 1, 0, 0),
        (&[at(3)], 4, 1, 1, 0, 0),
        (&[u64::MAX - 4095], 4, 0, 1, 0, 0),
    ] {
        let report = report(image(0, &[(at(2), entries)], clusters, cut));
        let found = (report.corruptions, report.leaks, report.fragmented_clusters);
        assert_eq!(found, (corruptions, leaks, fragmented), "{entries:x?} {clusters}: {:?}", report.messages);
        let data = entries.iter().filter(|entry| **entry > 1).count() as u64;
        assert_eq!((report.total_clusters, report.allocated_clusters, report.check_errors), (512, data, 0));
    }
}

#[test]
fn the_last_cluster_may_end_with_the_disk() {
    let entries: Vec<u64> = (0..512).map(|index| if index == 511 { at(3) } else { 0 }).collect();
    assert_eq!(report(image(0, &[(at(2), &entries)], 4, 4096 - 512)).corruptions, 0);
    assert_eq!(report(image(0, &[(at(2), &entries)], 4, 4096 - 511)).corruptions, 1);
}

#[test]
fn tables_are_used_once() {
    let twice = report(image(0, &[(at(2), &[at(3)]), (at(2), &[at(3)])], 4, 0));
    assert_eq!((twice.corruptions, twice.allocated_clusters), (1, 1));
    assert_eq!(twice.messages, ["ERROR: an L2 table at host offset 0x2000 overlaps other clusters in use"]);
    let wrong = report(image(0, &[(at(2) + 8, &[]), (at(7), &[]), (at(1), &[])], 4, 0));
    assert_eq!((wrong.corruptions, wrong.leaks), (3, 0), "{:?}", wrong.messages);
}

#[test]
fn an_image_that_needs_a_check_is_noted() {
    let report = report(image(2, &[(at(2), &[at(3)])], 4, 0));
    assert_eq!(report.corruptions, 0);
    assert_eq!(report.messages, ["Note: the image was not closed cleanly"]);
    assert_eq!(report.image_end_offset, at(4));
}

#[test]
fn leaks_are_told_by_their_range() {
    let report = report(image(0, &[(at(2), &[at(4)])], 8, 0));
    assert_eq!(
        report.messages,
        [
            "Leaked: 1 clusters at host offset 0x3000 are not in use",
            "Leaked: 3 clusters at host offset 0x5000 are not in use"
        ]
    );
}

#[test]
fn the_bitmap_of_clusters_is_limited_by_the_budget() {
    let file = || image(0, &[(at(2), &[at(3)])], 70, 0);
    assert_eq!(report_within(file(), 9), report(file()));
    let report = report_within(file(), 8);
    assert_eq!((report.check_errors, report.corruptions), (1, 0));
    assert!(report.messages[0].contains("the bitmap of clusters in use"), "{:?}", report.messages);
}
