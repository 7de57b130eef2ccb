//! What `info` tells of the content of a file: kernels, ramdisks, and the names of OpenStack.

use serde_json::json as value;

use super::{fail, json, succeed};
use crate::support::tar::archive;
use crate::support::{TempDir, raw_image, vmdk};

/// An archive of a ramdisk, as far as its first header.
fn cpio() -> Vec<u8> {
    [&b"070701"[..], &[b'0'; 104], b"TRAILER!!!\0", &[0; 500]].concat()
}

#[test]
fn a_ramdisk_is_named_but_not_converted() {
    let dir = TempDir::new();
    dir.file("initrd", &cpio());
    // Microcode comes first, and is not compressed.
    dir.file("initrd.microcode", &[&cpio()[..], b"\x28\xb5\x2f\xfdrest"].concat());
    for name in ["initrd", "initrd.microcode"] {
        let info = json(&dir, &["info", "--output=json", name]);
        assert_eq!(info["format-specific"]["data"]["content"], "cpio", "{name}");
        assert_eq!(info["glance"], value!({ "disk_format": "ari", "container_format": "ari" }), "{name}");
        let text = succeed(&dir, &["info", name]);
        assert!(text.contains("\nfor OpenStack Glance: disk_format ari, container_format ari\n"), "{text}");
        assert!(fail(&dir, 1, &["convert", name, "disk.qcow2"]).contains("cpio: archive, not a disk"), "{name}");
        assert!(fail(&dir, 1, &["check", name]).contains("cpio: archive"), "{name}");
    }
    succeed(&dir, &["convert", "-q", "-f", "raw", "initrd", "disk.qcow2"]);
    // The format in which no kernel reads it.
    dir.file("old", b"070707");
    assert!(fail(&dir, 1, &["info", "old"]).contains("cpio: archive"));
}

#[cfg(feature = "compressed")]
#[test]
fn compressed_ramdisks_and_disks_are_named() {
    use std::sync::Arc;

    use diskimage::io::MemFile;
    use diskimage::{Converter, Format, OpenOptions, OutputCompression};

    let dir = TempDir::new();
    let compressed = |bytes: Vec<u8>, compression| {
        let source = OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(bytes))).unwrap();
        let file = Arc::new(MemFile::new());
        let converter = Converter::new(Format::RAW).compress_output(Some(compression));
        converter.convert_to(&source, file.clone()).unwrap();
        file.to_vec()
    };
    let mut kernel = vec![0; 4096];
    kernel[56..60].copy_from_slice(b"ARM\x64");
    let mut disc = vec![0; 0x9000];
    disc[0x8001..0x8006].copy_from_slice(b"CD001");
    let mut file_system = vec![0; 0x9000];
    file_system[0x438..0x43a].copy_from_slice(b"\x53\xef");
    for (bytes, disk_format, container_format) in [
        (cpio(), "ari", "ari"),
        (kernel, "aki", "aki"),
        (disc, "iso", "compressed"),
        (file_system, "raw", "compressed"),
        (vec![0; 4096], "raw", "compressed"),
    ] {
        for compression in [OutputCompression::Gzip, OutputCompression::Zstd] {
            dir.file("file", &compressed(bytes.clone(), compression));
            let info = json(&dir, &["info", "--output=json", "file"]);
            let expected = value!({ "disk_format": disk_format, "container_format": container_format });
            assert_eq!(info["glance"], expected, "{compression:?}");
        }
    }
}

#[test]
fn a_package_and_its_disks_are_named() {
    let dir = TempDir::new();
    let disk = crate::support::convert(&vmdk("subformat=streamOptimized"), &raw_image(&[7; 4096])).0;
    let text = r#"<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"><References><File id="f" href="a.vmdk"/></References>
        <DiskSection><Disk diskId="d" fileRef="f"/></DiskSection></Envelope>"#;
    dir.file("vm.ova", &archive(&[("vm.ovf", text.as_bytes()), ("a.vmdk", &disk)]));
    let info = json(&dir, &["info", "--output=json", "vm.ova"]);
    assert_eq!(info["glance"], value!({ "disk_format": "vmdk", "container_format": "ova" }));
    assert_eq!(info["disks"][0]["image"]["glance"], value!({ "disk_format": "vmdk", "container_format": "bare" }));
    // Other archives have no name, the disk in them does.
    dir.file("disk.tar", &archive(&[("disk.raw", &[7; 4096])]));
    let info = json(&dir, &["info", "--output=json", "disk.tar"]);
    assert_eq!(info.get("glance"), None);
    assert_eq!(info["disks"][0]["image"]["glance"], value!({ "disk_format": "raw", "container_format": "bare" }));
}

#[test]
fn a_disk_in_several_files_has_no_name() {
    let dir = TempDir::new();
    succeed(&dir, &["create", "-q", "base.qcow2", "1M"]);
    succeed(&dir, &["create", "-q", "-B", "base.qcow2", "overlay.qcow2"]);
    succeed(&dir, &["create", "-q", "-o", "subformat=monolithicFlat", "flat.vmdk", "1M"]);
    for name in ["overlay.qcow2", "flat.vmdk"] {
        assert_eq!(json(&dir, &["info", "--output=json", name]).get("glance"), None, "{name}");
        assert!(!succeed(&dir, &["info", name]).contains("glance"), "{name}");
    }
    assert!(
        succeed(&dir, &["info", "base.qcow2"])
            .contains("for OpenStack Glance: disk_format qcow2, container_format bare")
    );
}
