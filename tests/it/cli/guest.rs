//! New disks with a file system, and what the program tells of them.

use std::fs;
use std::os::unix::fs::FileExt;

use super::{fail, json, succeed};
use crate::support::TempDir;

const EPOCH: &str = "1700000000";

/// A disk with ext4 in a partition, in which a file that was deleted left its data.
fn disk_with_deleted_data(dir: &TempDir) {
    succeed(dir, &["create", "-q", "--fs", "ext4", "--label", "data", "--partition", "gpt", "disk.raw", "100M"]);
    let disk = fs::OpenOptions::new().write(true).open(dir.join("disk.raw")).unwrap();
    disk.write_all_at(&vec![7; 4 << 20], 80 << 20).unwrap();
}

#[test]
fn disks_come_formatted() {
    let dir = TempDir::new();
    assert_eq!(
        succeed(&dir, &["create", "--fs", "ext4", "--label", "data", "disk.qcow2", "1G"]),
        "Created disk.qcow2: qcow2 with ext4, 1 GiB (1073741824 bytes)\n"
    );
    let created = json(&dir, &["create", "--output", "json", "--fs", "vfat", "--partition", "mbr", "disk.vdi", "64M"]);
    assert_eq!((&created["format"], &created["file-system"]), (&"vdi".into(), &"vfat".into()));
    let guest = &json(&dir, &["info", "--output", "json", "--guest", "disk.qcow2"])["guest"];
    assert_eq!((&guest[0]["content"], &guest[0]["label"]), (&"ext4".into(), &"data".into()));
    succeed(&dir, &["check", "disk.qcow2"]);
}

#[test]
fn what_a_formatted_disk_cannot_be() {
    let dir = TempDir::new();
    for (args, expected) in [
        (&["--fs", "xfs", "d", "1G"][..], "unknown file system 'xfs': expected ext4, vfat or swap"),
        (
            &["--fs", "ext4", "--partition", "apm", "d", "1G"],
            "unknown partition table 'apm': expected gpt, mbr or none",
        ),
        (&["--fs", "vfat", "--label", "twelve chars", "d", "1G"], "invalid label 'twelve chars' for vfat"),
        (&["--fs", "ext4", "d", "1M"], "too small for a file system"),
        (&["--label", "x", "d", "1G"], "--fs"),
        (&["--fs", "ext4", "-B", "base", "d"], "cannot be used with"),
    ] {
        let message = fail(&dir, 1, &[&["create", "-f", "raw"], args].concat());
        assert!(message.contains(expected), "{message}");
        assert!(!dir.join("d").exists());
    }
}

#[test]
fn a_formatted_disk_is_reproducible() {
    let dir = TempDir::new();
    for name in ["a.qcow2", "b.qcow2"] {
        let args = ["create", "-q", "--fs", "ext4", "--partition", "gpt", name, "64M"];
        let mut imgconv = std::process::Command::new(super::IMGCONV);
        assert!(imgconv.args(args).current_dir(dir.path()).env("SOURCE_DATE_EPOCH", EPOCH).status().unwrap().success());
    }
    assert!(fs::read(dir.join("a.qcow2")).unwrap() == fs::read(dir.join("b.qcow2")).unwrap());
}

#[test]
fn info_tells_of_the_file_systems_of_the_guest() {
    let dir = TempDir::new();
    disk_with_deleted_data(&dir);
    let text = succeed(&dir, &["info", "--guest", "disk.raw"]);
    let line = text.lines().skip_while(|line| *line != "Guest volumes:").nth(1).unwrap();
    assert!(line.starts_with("    partition 1: ext4, label data, UUID ") && line.ends_with(" free"), "{text}");
    let info = json(&dir, &["info", "--output", "json", "--guest", "disk.raw"]);
    let volume = &info["guest"][0];
    assert_eq!((volume["partition"].as_u64(), volume["start"].as_u64()), (Some(1), Some(1 << 20)));
    assert_eq!(volume["size"].as_u64(), Some(98 << 20));
    assert!(volume["free"].as_u64().unwrap() > 80 << 20 && volume.get("kept").is_none(), "{volume}");
    assert!(json(&dir, &["info", "--output", "json", "disk.raw"]).get("guest").is_none());
}

#[test]
fn deleted_data_is_left_out_measured_and_not_compared() {
    let dir = TempDir::new();
    disk_with_deleted_data(&dir);
    for (name, args) in [("by-option", &["convert", "--sparsify"][..]), ("by-name", &["sparsify"])] {
        let image = format!("{name}.qcow2");
        let done = super::imgconv(&dir, &[args, &["disk.raw", &image]].concat());
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let said = String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap();
        assert!(said.contains("partition 1: ext4, 98 MiB"), "{said}");
    }
    assert!(fs::read(dir.join("by-option.qcow2")).unwrap() == fs::read(dir.join("by-name.qcow2")).unwrap());
    let compare = |args: &[&str]| super::imgconv(&dir, &[args, &["disk.raw", "by-name.qcow2"]].concat()).status.code();
    assert_eq!((compare(&["compare"]), compare(&["compare", "--guest"])), (Some(1), Some(0)));
    let required = |args: &[&str]| {
        json(&dir, &[&["measure", "--output", "json", "-O", "qcow2"], args, &["disk.raw"]].concat())["required"]
            .as_u64()
    };
    let (whole, sparse) = (required(&[]).unwrap(), required(&["--sparsify"]).unwrap());
    assert_eq!(whole - sparse, 4 << 20);
    let written = fs::metadata(dir.join("by-name.qcow2")).unwrap().len();
    assert!(written <= sparse, "{written} of {sparse}");
}
