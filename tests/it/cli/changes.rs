//! Commands that change an image in place.

use super::{fail, json, succeed};
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
