//! Backups of what a repair changes.

use std::fs;

use diskimage::{Format, OpenOptions, Repair};

use super::starts::{self, content, image};
use crate::support::{Random, TempDir};

/// Images of these formats with damage that is repaired.
fn damaged() -> Vec<(&'static str, Vec<u8>)> {
    let mut vhd = image(Format::VHD, "block_size=512k", false, &content(3));
    let footer = vhd.len() - 512;
    vhd[footer..].fill(0x55);
    let mut vdi = image(Format::VDI, "block_size=128k", false, &content(3));
    vdi[388] -= 1;
    let mut vmdk = image(Format::VMDK, "", false, &content(3));
    let directory = u64::from_le_bytes(vmdk[56..64].try_into().unwrap()) as usize * 512;
    vmdk[directory..directory + 4].fill(0);
    vec![("vhd", vhd), ("vdi", vdi), ("vmdk", vmdk)]
}

/// Images of qcow2 with random refcounts, or without refcount blocks, which are made anew at the end of the file.
fn damaged_qcow2() -> Vec<(String, Vec<u8>)> {
    let starts = starts::all().into_iter().filter(|start| start.name.starts_with("qcow2") && start.backing.is_none());
    let mut all = Vec::new();
    for start in starts.filter(|start| !start.name.contains("encrypt")) {
        let offset = |at: usize| u64::from_be_bytes(start.file[at..at + 8].try_into().unwrap()) as usize;
        let table = offset(48);
        let mut counts = start.file.clone();
        let mut random = Random::new(1);
        let block = offset(table);
        counts[block..block + 100].iter_mut().for_each(|byte| *byte = random.below(2) as u8);
        let mut lost = start.file.clone();
        lost[table..table + 8].fill(0);
        all.extend([(start.name.clone(), counts), (format!("{}, lost", start.name), lost)]);
    }
    all
}

#[test]
fn a_repair_is_undone() {
    let dir = TempDir::new();
    let images = damaged().into_iter().map(|(name, file)| (name.to_owned(), file)).chain(damaged_qcow2());
    for (index, (name, file)) in images.enumerate() {
        let path = dir.file(&format!("disk {index}"), &file);
        let (backup, again) = (dir.join(&format!("{index}.backup")), dir.join("again"));
        let repaired = OpenOptions::new().repair_with_backup(&path, Repair::All, &backup).unwrap();
        assert!(repaired.leaks_fixed + repaired.corruptions_fixed > 0, "{name}");
        assert_eq!((repaired.after.leaks, repaired.after.corruptions), (0, 0), "{name}: {:?}", repaired.after);
        assert_eq!(OpenOptions::new().check(&path).unwrap(), repaired.after, "{name}");
        assert!(fs::read(&path).unwrap() != file, "{name}");
        // There is nothing left to repair.
        OpenOptions::new().repair_with_backup(&path, Repair::All, &again).unwrap();
        assert!(!again.exists(), "{name}");

        let len = fs::metadata(&backup).unwrap().len();
        assert!(len < 80_000, "{name}: {len}");
        OpenOptions::new().restore_backup(&path, &backup).unwrap();
        assert!(fs::read(&path).unwrap() == file, "{name}");
    }
}

#[test]
fn a_backup_replaces_no_file_and_nothing_is_repaired_without_it() {
    let dir = TempDir::new();
    for (name, file) in damaged() {
        let (path, backup) = (dir.file(name, &file), dir.file("backup", b"old"));
        for wrong in [&backup, &dir.join("absent/backup"), &path] {
            let refused = OpenOptions::new().repair_with_backup(&path, Repair::All, wrong);
            assert!(refused.is_err(), "{name}, {}", wrong.display());
            assert!(fs::read(&path).unwrap() == file, "{name}");
        }
        assert_eq!(fs::read(&backup).unwrap(), b"old");
        assert!(OpenOptions::new().restore_backup(&path, &backup).is_err());
    }
}
