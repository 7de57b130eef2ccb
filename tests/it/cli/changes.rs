//! Commands that change an image in place.

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
    {
        let options = diskimage::OpenOptions::new().reference_policy(diskimage::ReferencePolicy::Beside);
        let disk = options.open_disk(dir.join("overlay.qcow2")).unwrap();
        disk.write_all_at(&[7; 1000], 500).unwrap();
        disk.write_zeros(100_000..300_000).unwrap();
        disk.close().unwrap();
    }
    let before = content(&open_beside(&dir.join("overlay.qcow2")).unwrap()).unwrap();
    assert!(fail(&dir, 1, &["commit", "overlay.qcow2"]).contains("--references"));
    assert!(fail(&dir, 1, &["commit", "base.raw"]).contains("no backing file"));
    assert_eq!(succeed(&dir, &["commit", "--references", "beside", "overlay.qcow2"]), "");
    assert!(std::fs::read(dir.join("base.raw")).unwrap() == before);
    let map = json(&dir, &["map", "--references", "beside", "--output", "json", "overlay.qcow2"]);
    assert!(map.as_array().unwrap().iter().all(|range| range["depth"] != 0), "{map}");
    assert!(content(&open_beside(&dir.join("overlay.qcow2")).unwrap()).unwrap() == before);
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

    let done = imgconv(&dir, &["check", "--restore", "old", "disk.vdi"]);
    assert_eq!(done.status.code(), Some(2));
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
