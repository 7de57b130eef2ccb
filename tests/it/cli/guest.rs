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
    assert!(
        line.starts_with("    partition 1: ext4, label data, UUID ") && line.ends_with(" of that stored"),
        "{text}"
    );
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
    let compare = |args: &[&str]| super::imgconv(&dir, &[args, &["disk.raw", "by-name.qcow2"]].concat());
    assert_eq!(compare(&["compare"]).status.code(), Some(1));
    let compared = compare(&["compare", "--guest"]);
    assert_eq!(compared.status.code(), Some(0));
    assert_eq!(compared.stdout, b"Images are identical, but for what their file systems do not use.\n");
    assert_eq!(String::from_utf8_lossy(&compared.stderr), "");
    let required = |args: &[&str]| {
        json(&dir, &[&["measure", "--output", "json", "-O", "qcow2"], args, &["disk.raw"]].concat())["required"]
            .as_u64()
    };
    let (whole, sparse) = (required(&[]).unwrap(), required(&["--sparsify"]).unwrap());
    assert_eq!(whole - sparse, 4 << 20);
    let written = fs::metadata(dir.join("by-name.qcow2")).unwrap().len();
    assert!(written <= sparse, "{written} of {sparse}");
}

/// Commands that leave out what is not used say where they do not.
#[test]
fn what_is_kept_has_a_reason() {
    let dir = TempDir::new();
    dir.file("disk.raw", &[7; 1 << 16]);
    for args in [
        &["measure", "--sparsify", "-O", "qcow2", "disk.raw"][..],
        &["compare", "--guest", "disk.raw", "disk.raw"],
        &["map", "--plot", "--guest", "disk.raw"],
    ] {
        let done = super::imgconv(&dir, args);
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(said.starts_with("imgconv: disk.raw: the whole disk: unknown content, kept: "), "{args:?}: {said}");
    }
    assert_eq!(super::imgconv(&dir, &["compare", "-q", "--guest", "disk.raw", "disk.raw"]).stderr, b"");
    let strict = super::imgconv(&dir, &["sparsify", "--sparsify=strict", "disk.raw", "small.qcow2"]);
    let said = String::from_utf8(strict.stderr).unwrap();
    assert!(!strict.status.success() && said.contains("the whole disk cannot be sparsified: "), "{said}");
}

/// A file that was deleted is dropped; what was a hole before is not counted again.
#[test]
fn only_what_was_stored_is_said_to_be_dropped() {
    let dir = TempDir::new();
    disk_with_deleted_data(&dir);
    let info = &json(&dir, &["info", "--output", "json", "--guest", "disk.raw"])["guest"][0];
    assert!(info["unused"].as_u64().unwrap() > 80 << 20);
    // Blocks of the file system that holds the image are larger than those of the guest.
    let stored = info["unused-stored"].as_u64().unwrap();
    assert!((4 << 20..(4 << 20) + (1 << 17)).contains(&stored), "{stored}");
    let done = super::imgconv(&dir, &["sparsify", "disk.raw", "small.qcow2"]);
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(said.contains(" free, 4") && said.contains(" of that was stored and is dropped"), "{said}");
    let done = super::imgconv(&dir, &["sparsify", "--output", "json", "disk.raw", "again.qcow2"]);
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["volumes"][0]["unused-stored"].as_u64(), Some(stored));
}

#[test]
fn every_file_system_that_is_made_can_be_sparsified() {
    let dir = TempDir::new();
    // FAT16, FAT32.
    for (kind, size) in [("ext4", "64M"), ("vfat", "64M"), ("vfat", "1G"), ("swap", "64M")] {
        succeed(&dir, &["create", "-q", "-f", "raw", "--fs", kind, "disk", size]);
        let done = super::imgconv(&dir, &["sparsify", "--sparsify=strict", "disk", "small.qcow2"]);
        assert!(done.status.success(), "{kind} {size}: {}", String::from_utf8_lossy(&done.stderr));
        ["disk", "small.qcow2"].iter().for_each(|file| fs::remove_file(dir.join(file)).unwrap());
    }
}

#[test]
fn info_tells_of_the_disks_of_packages() {
    let dir = TempDir::new();
    succeed(&dir, &["create", "-q", "--fs", "ext4", "--label", "first", "a.raw", "64M"]);
    succeed(&dir, &["create", "-q", "--fs", "swap", "--label", "second", "b.raw", "64M"]);
    succeed(&dir, &["convert", "a.raw", "one.ova"]);
    succeed(&dir, &["convert", "a.raw", "b.raw", "two.ova"]);
    for (package, labels) in [("one.ova", &["first"][..]), ("two.ova", &["first", "second"])] {
        let disks = json(&dir, &["info", "--output", "json", "--guest", package])["disks"].clone();
        let found: Vec<_> = disks.as_array().unwrap().iter().map(|disk| disk["guest"][0]["label"].clone()).collect();
        assert_eq!(found, labels);
        let text = succeed(&dir, &["info", "--guest", package]);
        assert!(labels.iter().all(|label| text.contains(&format!("label {label}"))), "{text}");
        assert_eq!(text.matches("Guest volumes:").count(), labels.len());
    }
    assert_eq!(
        json(&dir, &["info", "--output", "json", "--guest", "--disk", "2", "two.ova"])["guest"][0]["label"],
        "second"
    );
}

#[test]
fn the_map_can_be_drawn() {
    let dir = TempDir::new();
    disk_with_deleted_data(&dir);
    succeed(&dir, &["convert", "-c", "disk.raw", "disk.qcow2"]);
    let plot = json(&dir, &["map", "--plot", "--output", "json", "disk.qcow2"]);
    let sum =
        |kind: &str| plot["cells"].as_array().unwrap().iter().map(|cell| cell[kind].as_u64().unwrap_or(0)).sum::<u64>();
    let total = |kind: &str| plot["total"][kind].as_u64().unwrap_or(0);
    for kind in ["data", "compressed", "zero", "unallocated"] {
        assert_eq!(sum(kind), total(kind), "{kind}");
    }
    assert_eq!(total("compressed") + total("data") + total("zero") + total("unallocated"), 100 << 20);
    assert!(total("compressed") > 4 << 20, "{plot}");
    let guest = json(&dir, &["map", "--plot", "--guest", "--output", "json", "disk.qcow2"])["total"].clone();
    let free = json(&dir, &["info", "--guest", "--output", "json", "disk.qcow2"])["guest"][0]["unused"].clone();
    assert_eq!(guest["free"], free);

    let mut imgconv = std::process::Command::new(super::IMGCONV);
    imgconv.args(["map", "--plot", "--guest", "disk.qcow2"]).current_dir(dir.path()).env("COLUMNS", "50");
    let text = String::from_utf8(imgconv.output().unwrap().stdout).unwrap();
    let rows: Vec<_> = text.lines().take_while(|line| !line.is_empty()).collect();
    assert_eq!(rows.len(), 16);
    assert!(rows.iter().all(|row| row.chars().count() <= 50 && row.ends_with('|')), "{text}");
    // At 80 MiB were deleted files.
    assert!(rows[13].contains(" MiB ·····"), "{text}");
    assert!(text.contains("\n▓ compressed: ") && text.contains("\n· not used by the guest: "), "{text}");

    fail(&dir, 1, &["map", "--guest", "disk.qcow2"]);
    fail(&dir, 1, &["map", "--plot=svg", "--output", "json", "disk.qcow2"]);
}

#[test]
fn a_drawing_is_an_svg_that_others_read() {
    use crate::support::tools::{find, run};
    let Some(xmllint) = find("maps as SVG", &["xmllint"]) else { return };
    let dir = TempDir::new();
    let name = "a<b>&\"c\u{1}.qcow2";
    succeed(&dir, &["create", "-q", "--fs", "ext4", name, "64M"]);
    let svg = succeed(&dir, &["map", "--plot=svg", name]);
    assert_eq!(succeed(&dir, &["map", "--plot=svg", name]), svg);
    let file = dir.file("disk.svg", svg.as_bytes());
    let title = run(&xmllint, &["--xpath", "string(//*[local-name()='title'])", file.to_str().unwrap()]);
    assert!(String::from_utf8(title).unwrap().starts_with("a<b>&\"c"), "{svg}");
}
