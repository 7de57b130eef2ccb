//! Refcounts of another width.

use std::sync::Arc;

use diskimage::io::{MemFile, Storage};
use diskimage::{Disk, ErrorKind, OpenOptions, Options, Result};

use super::starts;

fn amend(disk: &Disk, list: &str) -> Result<()> {
    let mut options = Options::new();
    options.add_list(list);
    disk.amend(&options)
}

/// Version 2 becomes version 3 at the same time.
#[test]
fn refcounts_get_another_width() {
    for start in starts::all().into_iter().filter(|start| start.name.starts_with("qcow2")) {
        let file = Arc::new(MemFile::from(start.file.clone()));
        let disk = start.options().open_disk_in(file.clone() as Arc<dyn Storage>).unwrap();
        let mut content = start.content.clone();
        for (index, bits) in [64u64, 1, 32, 2, 4, 16, 8].into_iter().enumerate() {
            match amend(&disk, &format!("compat=1.1,refcount_bits={bits}")) {
                // Several payloads in one cluster.
                Err(error) if bits < 8 && start.name.contains("compressed") => {
                    assert_eq!(error.kind(), ErrorKind::Unsupported, "{}: {error}", start.name);
                }
                amended => {
                    amended.unwrap();
                    assert!(disk.info().specific.contains(&("refcount-bits", bits.into())), "{}", start.name);
                }
            }
            let at = 70_000 * index;
            disk.write_all_at(&[bits as u8; 3000], at as u64).unwrap();
            content[at..at + 3000].fill(bits as u8);
            disk.flush().unwrap();
            assert!(start.read(file.to_vec()) == content, "{}, {bits} bits", start.name);
            let report = OpenOptions::new().check_source(Arc::new(MemFile::from(file.to_vec()))).unwrap();
            let counts = (report.corruptions, report.leaks, report.check_errors);
            assert_eq!(counts, (0, 0, 0), "{}, {bits} bits: {:?}", start.name, report.messages);
        }
        disk.close().unwrap();
    }
}

#[test]
fn what_counts_more_than_a_width_can_hold_keeps_its_own() {
    let start = starts::all().into_iter().find(|start| start.name == "qcow2 ").unwrap();
    let file = Arc::new(MemFile::from(start.file.clone()));
    let disk = start.options().open_disk_in(file.clone() as Arc<dyn Storage>).unwrap();
    disk.create_snapshot("one").unwrap();
    disk.create_snapshot("two").unwrap();
    for list in ["refcount_bits=1", "refcount_bits=8,compat=0.10"] {
        assert_eq!(amend(&disk, list).unwrap_err().kind(), ErrorKind::Unsupported, "{list}");
    }
    assert_eq!(amend(&disk, "refcount_bits=3").unwrap_err().kind(), ErrorKind::Option);
    amend(&disk, "refcount_bits=2").unwrap();
    assert!(disk.create_snapshot("three").is_err(), "a refcount of 4");
    disk.delete_snapshot("one").unwrap();
    disk.close().unwrap();
    assert!(start.read(file.to_vec()) == start.content);
    let report = OpenOptions::new().check_source(file).unwrap();
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0), "{:?}", report.messages);
}
