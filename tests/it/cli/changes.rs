//! Commands that change an image in place.

use diskimage::{OpenOptions, ReferencePolicy};
use serde_json::Value;

use super::{fail, imgconv, json, succeed};
use crate::support::pattern::Pattern;
use crate::support::{TempDir, content, open_beside};

#[test]
fn a_disk_is_resized() {
    let dir = TempDir::new();
    let disk = Pattern::Islands.make(1 << 20);
    dir.file("disk.raw", &disk);
    succeed(&dir, &["convert", "disk.raw", "disk.qcow2"]);
    for name in ["disk.raw", "disk.qcow2"] {
        let sizes = json(&dir, &["resize", "--output", "json", name, "+1M"]);
        assert_eq!((&sizes["previous-virtual-size"], &sizes["virtual-size"]), (&(1 << 20).into(), &(2 << 20).into()));
        assert!(fail(&dir, 1, &["resize", name, "1M"]).contains("use --shrink"));
        assert!(fail(&dir, 1, &["resize", "--shrink", name, "-2M"]).contains("more than 0 bytes"));
        assert!(succeed(&dir, &["resize", "--shrink", name, "-512K"]).contains("2097152 -> 1572864"));
        assert_eq!(succeed(&dir, &["resize", "-q", "--preallocation", "full", name, "1.75M"]), "");
        let image = open_beside(&dir.join(name)).unwrap();
        let now = content(&image).unwrap();
        assert!(
            now.len() == 7 << 18 && now.starts_with(&disk) && now[1 << 20..].iter().all(|byte| *byte == 0),
            "{name}"
        );
    }
    succeed(&dir, &["create", "disk.vmdk", "1M"]);
    fail(&dir, 1, &["resize", "-f", "qed", "disk.vmdk", "2M"]);
}

#[test]
fn an_overlay_is_committed() {
    let dir = TempDir::new();
    dir.file("base.raw", &[1; 1 << 20]);
    succeed(&dir, &["create", "--references", "beside", "-B", "base.raw", "overlay.qcow2", "2M"]);
    write(&dir, "overlay.qcow2");
    let before = content(&open_beside(&dir.join("overlay.qcow2")).unwrap()).unwrap();
    assert!(fail(&dir, 1, &["commit", "overlay.qcow2"]).contains("--references"));
    assert!(fail(&dir, 1, &["commit", "base.raw"]).contains("no backing file"));
    assert_eq!(succeed(&dir, &["commit", "--references", "beside", "overlay.qcow2"]), "");
    assert!(std::fs::read(dir.join("base.raw")).unwrap() == before);
    let map = json(&dir, &["map", "--references", "beside", "--output", "json", "overlay.qcow2"]);
    assert!(map.as_array().unwrap().iter().all(|range| range["depth"] != 0), "{map}");
    assert!(content(&open_beside(&dir.join("overlay.qcow2")).unwrap()).unwrap() == before);
}

/// Writes data and zeros that differ from a base of ones.
fn write(dir: &TempDir, name: &str) {
    let options = OpenOptions::new().reference_policy(ReferencePolicy::Beside);
    let disk = options.open_disk(dir.join(name)).unwrap();
    disk.write_all_at(&[7; 1000], 500).unwrap();
    disk.write_zeros(100_000..300_000).unwrap();
    disk.close().unwrap();
}

#[test]
fn a_backing_file_is_changed() {
    let dir = TempDir::new();
    let (old, new) = (vec![1; 1 << 20], Pattern::Islands.make(1 << 20));
    dir.file("old.raw", &old);
    dir.file("new.raw", &new);
    let backing = |name: &str| json(&dir, &["info", "--output", "json", name])["backing-filename"].clone();
    let disk = |name: &str| content(&open_beside(&dir.join(name)).unwrap()).unwrap();
    for (name, compress) in [("plain.qcow2", false), ("compressed.qcow2", true)] {
        succeed(&dir, &["create", "--references", "beside", "-B", "old.raw", name]);
        write(&dir, name);
        let before = disk(name);
        assert!(fail(&dir, 1, &["rebase", "-b", "new.raw", name]).contains("--references"));
        let mut args = vec!["rebase", "--references", "beside", "-b", "new.raw", name];
        args.extend(compress.then_some("-c"));
        assert_eq!(succeed(&dir, &args), "");
        assert_eq!(backing(name), "new.raw");
        assert!(disk(name) == before, "{name}");
        // Only the name, and what was copied is still there.
        assert!(fail(&dir, 1, &["rebase", "-u", "-b", "old.raw", name]).contains("-F"));
        succeed(&dir, &["rebase", "-u", "-b", "old.raw", "-F", "raw", name]);
        assert_eq!(backing(name), "old.raw");
        assert!(disk(name) == before, "{name}: new.raw differs from old.raw everywhere");
        succeed(&dir, &["rebase", "--references", "beside", "-b", "", name]);
        assert!(backing(name).is_null());
        assert!(disk(name) == before, "{name}");
    }
    let map = json(&dir, &["map", "--output", "json", "compressed.qcow2"]);
    assert!(map.as_array().unwrap().iter().any(|range| range["compressed"] == true), "{map}");
    assert!(fail(&dir, 1, &["rebase", "-b", "", "-F", "raw", "plain.qcow2"]).contains("-F needs"));
    assert!(fail(&dir, 1, &["rebase", "-b", "new.raw", "old.raw"]).contains("not supported"));
}

#[test]
fn snapshots_are_changed() {
    let dir = TempDir::new();
    succeed(&dir, &["create", "disk.qcow2", "1M"]);
    let names = || {
        let list = json(&dir, &["snapshot", "-l", "--output", "json", "disk.qcow2"]);
        list.as_array().unwrap().iter().map(|snapshot| snapshot["name"].to_string()).collect::<Vec<_>>()
    };
    succeed(&dir, &["snapshot", "-c", "empty", "disk.qcow2"]);
    write(&dir, "disk.qcow2");
    succeed(&dir, &["snapshot", "-c", "written", "disk.qcow2"]);
    assert_eq!(names(), ["\"empty\"", "\"written\""]);
    let disk = || content(&open_beside(&dir.join("disk.qcow2")).unwrap()).unwrap();
    let written = disk();
    succeed(&dir, &["snapshot", "-a", "empty", "disk.qcow2"]);
    assert!(disk() == [0; 1 << 20]);
    succeed(&dir, &["snapshot", "-a", "2", "disk.qcow2"]);
    assert!(disk() == written);
    succeed(&dir, &["snapshot", "-d", "empty", "disk.qcow2"]);
    assert_eq!(names(), ["\"written\""]);
    assert!(fail(&dir, 1, &["snapshot", "-d", "empty", "disk.qcow2"]).contains("unknown snapshot"));
    assert!(fail(&dir, 1, &["snapshot", "-c", "a", "-l", "disk.qcow2"]).contains("cannot be used with"));
}

#[test]
fn bitmaps_and_options_are_changed() {
    let dir = TempDir::new();
    succeed(&dir, &["create", "disk.qcow2", "1M"]);
    let bitmaps =
        || json(&dir, &["info", "--output", "json", "disk.qcow2"])["format-specific"]["data"]["bitmaps"].clone();
    let change = |args: &[&str]| {
        let mut words = vec!["bitmap", "disk.qcow2"];
        words.extend(args);
        succeed(&dir, &words)
    };
    change(&["--add", "all"]);
    write(&dir, "disk.qcow2");
    change(&["--add", "-g", "128K", "coarse"]);
    change(&["--merge", "all", "coarse"]);
    change(&["--disable", "all"]);
    let bits = OpenOptions::new().open(dir.join("disk.qcow2")).unwrap().bitmaps().unwrap();
    let of = |index: usize| {
        let mut byte = [0];
        bits[index].bits.read_exact_at(&mut byte, 0).unwrap();
        byte[0]
    };
    // 64 KiB of 0, 100_000 to 300_000; 128 KiB of the same.
    assert_eq!((of(0), of(1)), (0b1_1111, 0b111));
    drop(bits);
    let listed = bitmaps();
    assert_eq!((&listed[0]["flags"], &listed[1]["granularity"]), (&Value::Array(Vec::new()), &(128 << 10).into()));
    assert!(fail(&dir, 1, &["bitmap", "--merge", "none", "disk.qcow2", "all"]).contains("no bitmap"));
    assert!(fail(&dir, 1, &["bitmap", "--clear", "-g", "64K", "disk.qcow2", "all"]).contains("--add"));
    assert!(fail(&dir, 1, &["bitmap", "--clear", "-b", "disk.qcow2", "disk.qcow2", "all"]).contains("--merge"));
    change(&["--remove", "all"]);
    change(&["--remove", "coarse"]);

    succeed(&dir, &["amend", "-o", "lazy_refcounts=on", "disk.qcow2"]);
    let info = json(&dir, &["info", "--output", "json", "disk.qcow2"]);
    assert_eq!(info["format-specific"]["data"]["lazy-refcounts"], true);
    succeed(&dir, &["amend", "-o", "lazy_refcounts=off,compat=0.10", "disk.qcow2"]);
    let info = json(&dir, &["info", "--output", "json", "disk.qcow2"]);
    assert_eq!(info["format-specific"]["data"]["compat"], "0.10");
    assert!(fail(&dir, 1, &["amend", "-o", "cluster_size=4k", "disk.qcow2"]).contains("cluster_size"));
}

/// The number of blocks in the header of a VDI.
const VDI_BLOCKS: usize = 388;

#[test]
fn an_image_is_repaired_and_restored() {
    let dir = TempDir::new();
    dir.file("disk.raw", &Pattern::Islands.make(3 << 20));
    succeed(&dir, &["convert", "disk.raw", "disk.vdi"]);
    let mut damaged = std::fs::read(dir.join("disk.vdi")).unwrap();
    damaged[VDI_BLOCKS] -= 1;
    dir.file("disk.vdi", &damaged);

    let done = imgconv(&dir, &["check", "disk.vdi"]);
    assert_eq!(done.status.code(), Some(2));
    // A leak is not what is wrong.
    let done = imgconv(&dir, &["check", "-r", "leaks", "--backup", "old", "disk.vdi"]);
    assert_eq!((done.status.code(), dir.join("old").exists()), (Some(2), false));
    let done = imgconv(&dir, &["check", "-r", "all", "--backup", "old", "disk.vdi"]);
    let (text, messages) = (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
    assert!(done.status.success() && text.starts_with("Repaired: 1 errors, 0 leaked clusters\nNo errors"), "{text}");
    assert!(messages.starts_with("imgconv: ERROR: "), "{messages}");
    succeed(&dir, &["compare", "disk.raw", "disk.vdi"]);
    succeed(&dir, &["check", "disk.vdi"]);

    // The metadata that the repair changed is changed again.
    let mut used = std::fs::read(dir.join("disk.vdi")).unwrap();
    used[VDI_BLOCKS] += 1;
    dir.file("used.vdi", &used);
    assert!(fail(&dir, 1, &["check", "--restore", "old", "used.vdi"]).contains("changed after the repair"));
    assert!(succeed(&dir, &["check", "--restore", "old", "disk.vdi"]).contains("as before the repair"));
    assert!(std::fs::read(dir.join("disk.vdi")).unwrap() == damaged);
    assert!(fail(&dir, 1, &["check", "-r", "all", "--backup", "old", "disk.vdi"]).contains("old: "));
    let repaired = json(&dir, &["check", "-r", "all", "--output", "json", "disk.vdi"]);
    assert_eq!((&repaired["corruptions-fixed"], repaired.get("corruptions")), (&1.into(), None), "{repaired}");
    assert!(fail(&dir, 63, &["check", "-r", "all", "-f", "raw", "disk.raw"]).contains("repairs are not supported"));
    fail(&dir, 1, &["check", "--restore", "disk.raw", "disk.vdi"]);
}

/// What only the tables of the image say stays: a snapshot, encryption, the name of the backing file.
#[test]
fn an_existing_image_is_written_as_by_a_guest() {
    const OBJECT: &str = "secret,id=key,file=key";
    let dir = TempDir::new();
    dir.file("disk.raw", &Pattern::Islands.make(1 << 20));
    dir.file("base.raw", &[9; 2 << 20]);
    dir.file("key", b"secret");
    succeed(&dir, &["create", "snapshot.qcow2", "2M"]);
    let disk = diskimage::OpenOptions::new().open_disk(dir.join("snapshot.qcow2")).unwrap();
    disk.create_snapshot("before").unwrap();
    disk.close().unwrap();
    succeed(
        &dir,
        &["create", "--object", OBJECT, "-o", "encrypt.format=luks,encrypt.iter-time=10", "secret.qcow2", "2M"],
    );
    succeed(&dir, &["create", "--references", "beside", "-B", "base.raw", "-F", "raw", "overlay.qcow2"]);

    for name in ["snapshot.qcow2", "secret.qcow2", "overlay.qcow2"] {
        let options = ["--object", OBJECT, "--references", "beside"];
        let with = |command: &[&'static str], files: &[&'static str]| [command, &options, files].concat();
        let done = imgconv(&dir, &with(&["convert", "-q", "-n"], &["disk.raw", name]));
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
        let read = imgconv(&dir, &with(&["convert", "-q"], &[name, "read.raw"]));
        assert!(read.status.success(), "{name}: {}", String::from_utf8_lossy(&read.stderr));
        let (read, written) =
            (std::fs::read(dir.join("read.raw")).unwrap(), std::fs::read(dir.join("disk.raw")).unwrap());
        let rest = if name == "overlay.qcow2" { 9 } else { 0 };
        assert!(read.starts_with(&written) && read[1 << 20..].iter().all(|byte| *byte == rest), "{name}");
        succeed(&dir, &["check", "-q", name]);
    }
    assert!(succeed(&dir, &["snapshot", "-l", "snapshot.qcow2"]).contains("before"));
    let done = imgconv(&dir, &["convert", "-q", "-n", "disk.raw", "secret.qcow2"]);
    assert!(!done.status.success() && String::from_utf8_lossy(&done.stderr).contains("secret"), "{done:?}");
}
