//! `convert --for`.

use super::{fail, imgconv, json, succeed};
use crate::support::tools::{needs_qemu, run};
use crate::support::{Random, TempDir, assert_same, open_beside};

#[test]
fn the_image_is_what_the_platform_takes() {
    let dir = TempDir::new();
    let guest = Random::new(1).bytes((20 << 20) + 512);
    dir.file("source.raw", &guest);
    for (platform, name, format, size) in [
        ("azure", "disk.vhd", "vpc", 21 << 20),
        ("aws", "aws.vmdk", "vmdk", guest.len()),
        ("openstack", "disk.qcow2", "qcow2", guest.len()),
        ("esxi", "esxi.vmdk", "vmdk", guest.len()),
        ("hyperv", "disk.vhdx", "vhdx", guest.len()),
        ("virtualbox", "disk.vdi", "vdi", guest.len()),
        ("proxmox", "pve.qcow2", "qcow2", guest.len()),
        ("xcp-ng", "xcp.vhd", "vpc", guest.len()),
    ] {
        succeed(&dir, &["convert", "-q", "--for", platform, "source.raw", name]);
        let image = open_beside(&dir.join(name)).unwrap();
        assert_eq!((image.format().name(), image.virtual_size()), (format, size as u64), "{platform}");
        let mut read = vec![0; guest.len()];
        image.read_exact_at(&mut read, 0).unwrap();
        assert_same(&read, &guest, platform);
    }
    assert_eq!(std::fs::metadata(dir.join("disk.vhd")).unwrap().len(), (21 << 20) + 512);
    assert!(dir.join("esxi-flat.vmdk").exists());
    let report = json(&dir, &["convert", "-q", "--for", "gcp", "--output", "json", "source.raw", "image.tar.gz"]);
    assert_eq!(report["virtual-size"], 1 << 30);
    let listed = String::from_utf8(run("tar", &["-tzf", dir.join("image.tar.gz").to_str().unwrap()])).unwrap();
    assert_eq!(listed, "disk.raw\n");
}

#[test]
fn qemu_img_knows_the_format_of_a_preset() {
    needs_qemu!("presets");
    let dir = TempDir::new();
    dir.file("source.raw", &[7; 1 << 20]);
    for (platform, name, option, format) in
        [("aws", "a.vmdk", "create type: streamOptimized", "vmdk"), ("openstack", "a.qcow2", "compat: 1.1", "qcow2")]
    {
        succeed(&dir, &["convert", "--for", platform, "source.raw", name]);
        let said = String::from_utf8(run("qemu-img", &["info", dir.join(name).to_str().unwrap()])).unwrap();
        assert!(said.contains(option) && said.contains(&format!("file format: {format}")), "{said}");
    }
}

#[test]
fn the_help_names_all_platforms() {
    let help = succeed(&TempDir::new(), &["convert", "--help"]);
    assert!(diskimage::Preset::ALL.iter().all(|preset| help.contains(preset.name())), "{help}");
}

#[test]
fn contradictions_are_refused() {
    let dir = TempDir::new();
    dir.file("source.raw", &[7; 1 << 20]);
    for (args, message) in [
        (&["--for", "azure", "source.raw", "x.vhdx"][..], "the name of an image for azure ends with .vhd"),
        (&["--for", "aws", "source.raw", "x.ova"], "the name of an image for aws ends with .vmdk"),
        (&["--for", "gcp", "source.raw", "x.raw"], "the name of an image for gcp ends with .tar.gz"),
        (&["--for", "aws", "-O", "qcow2", "source.raw", "x.vmdk"], "-O contradicts --for aws"),
        (&["--for", "aws", "-o", "subformat=monolithicFlat", "source.raw", "x.vmdk"], "contradicts the preset aws"),
        (&["--for", "azure", "source.raw", "x.vhd"], "expected 20971520 to 35183298347008 bytes for Azure"),
        (&["--for", "aws", "-B", "source.raw", "source.raw", "x.vmdk"], "cannot be used with"),
        (&["--for", "ec2", "source.raw", "x.vmdk"], "'ec2'"),
    ] {
        let said = fail(&dir, 1, &[&["convert"], args].concat());
        assert!(said.contains(message), "{args:?}: {said}");
        assert_eq!(dir.names(), ["source.raw"], "{args:?}");
    }
    // The same format is no contradiction, and an unknown extension is only noted.
    let done = imgconv(&dir, &["convert", "--for", "aws", "-O", "vmdk", "source.raw", "x.image"]);
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success() && said.contains("x.image: the name of an image for aws ends with .vmdk"), "{said}");
    succeed(&dir, &["convert", "--for", "hyperv", "source.raw", "disk"]);
}
