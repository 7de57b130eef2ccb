//! VDI: written images are checked and read by `qemu-img` and 7-Zip; images of qemu and VirtualBox are read.

use super::overlays::write_commands;
use crate::corpus::unpack_to;
use crate::support::pattern::{self, Pattern};
use crate::support::tools::{
    DISSECT, check_with_qemu_as, find, needs_qemu, qemu_img, qemu_io_as, read_with_7zip, read_with_qemu,
};
use crate::support::{TempDir, assert_same, content, open_beside, open_raw, raw_image, vdi};
use diskimage::{Image, OpenOptions};

/// Options whose images all programs read.
const KINDS: [&str; 2] = ["static=off", "static=on"];

/// Disks of a sector, of whole blocks, and with a partial block.
///
/// Each test case uses its own directory, because replacing a file is slow on some file systems.
fn guests() -> Vec<(String, Vec<u8>)> {
    let mut guests = Vec::new();
    for pattern in pattern::ALL {
        guests.extend([512, 3 << 20, (5 << 20) + 512].map(|size| (format!("{pattern:?}, {size}"), pattern.make(size))));
    }
    guests
}

#[test]
fn written_images_are_valid() {
    needs_qemu!("the VDIs that we write");
    for kind in KINDS {
        for (what, guest) in guests() {
            let dir = TempDir::new();
            let what = format!("{kind}, {what}");
            let source = dir.file("source.raw", &guest);
            let target = dir.join("ours.vdi");
            vdi(kind).convert(&open_raw(&source), &target).unwrap_or_else(|e| panic!("{what}: {e}"));
            check_with_qemu_as("vdi", &target);
            assert_same(&read_with_qemu(&target, &["-f", "vdi"]), &guest, &what);
            let image = Image::open(&target).unwrap();
            assert_eq!((image.info().format, &*image.info().warnings), ("vdi", &[][..]), "{what}");
            assert_same(&content(&image).unwrap(), &guest, &what);
            let report = OpenOptions::new().check(&target).unwrap();
            assert_eq!((report.corruptions, report.leaks, &*report.messages), (0, 0, &[][..]), "{what}");
        }
    }
}

#[test]
fn seven_zip_reads_written_images() {
    let Some(seven_zip) = find("the VDIs that we write, 7-Zip reads", &["7zz", "7z"]) else { return };
    for kind in KINDS {
        for (what, guest) in guests() {
            let dir = TempDir::new();
            let target = dir.join("ours.vdi");
            vdi(kind).convert(&raw_image(&guest), &target).unwrap();
            assert_same(&read_with_7zip(&seven_zip, "vdi", &target), &guest, &format!("{kind}, {what}"));
        }
    }
}

#[test]
fn an_empty_disk_is_refused() {
    let dir = TempDir::new();
    for kind in KINDS {
        let error = vdi(kind).convert(&raw_image(&[]), dir.join("ours.vdi")).err().unwrap();
        assert_eq!(error.kind().as_str(), "unsupported", "{error}");
        assert!(dir.names().is_empty(), "{:?}", dir.names());
    }
}

#[test]
fn sizes_are_padded_to_whole_sectors() {
    needs_qemu!("VDIs of sizes that are no whole sectors");
    let dir = TempDir::new();
    for len in [1, 511, 513, (1 << 20) - 1, (1 << 20) + 1] {
        let guest = pattern::Random::new(len as u64).bytes(len);
        let target = dir.join("ours.vdi");
        vdi("").convert(&raw_image(&guest), &target).unwrap();
        check_with_qemu_as("vdi", &target);
        let mut padded = guest;
        padded.resize(len.next_multiple_of(512), 0);
        assert_same(&read_with_qemu(&target, &["-f", "vdi"]), &padded, &len.to_string());
    }
}

#[test]
fn images_of_qemu_are_read() {
    needs_qemu!("the VDIs that qemu-img writes");
    let dir = TempDir::new();
    for kind in ["static=off", "static=on"] {
        for (what, guest) in guests() {
            let what = format!("{kind}, {what}");
            let source = dir.file("source.raw", &guest);
            let image = dir.join("theirs.vdi");
            qemu_img(&[&"convert", &"-f", &"raw", &"-O", &"vdi", &"-o", &kind, &source, &image]);
            let opened = Image::open(&image).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_same(&content(&opened).unwrap(), &guest, &what);
        }
    }
}

/// Blocks in the order of the writes.
#[test]
fn images_changed_by_qemu_are_read() {
    needs_qemu!("the VDIs that qemu-io writes");
    let dir = TempDir::new();
    for (seed, kind) in KINDS.into_iter().enumerate() {
        for by_us in [false, true] {
            let what = format!("{kind}, by us: {by_us}");
            let size = (30 << 20) + 512;
            let image = dir.join("image.vdi");
            if by_us {
                vdi(kind).convert(&raw_image(&Pattern::Sparse.make(size)), &image).unwrap();
            } else {
                qemu_img(&[&"create", &"-q", &"-f", &"vdi", &"-o", &kind, &image, &size.to_string()]);
            }
            qemu_io_as("vdi", &image, &write_commands(size as u64, seed as u64 + 40, 20));
            check_with_qemu_as("vdi", &image);
            let opened = Image::open(&image).unwrap();
            assert_eq!(opened.virtual_size(), size as u64, "{what}");
            assert_same(&content(&opened).unwrap(), &read_with_qemu(&image, &["-f", "vdi"]), &what);
            let report = OpenOptions::new().check(&image).unwrap();
            assert_eq!(report.corruptions, 0, "{what}: {:?}", report.messages);
        }
    }
}

/// VirtualBox snapshots refer to their parents by UUID.
#[test]
fn virtualbox_snapshots() {
    let dir = TempDir::new();
    let path = unpack_to(&dir, "virtualbox-grandchild.vdi");
    let error = Image::open(&path).err().unwrap();
    assert!(
        error.kind().as_str() == "reference" && error.to_string().contains("the parent {ec42e474-7f96-4b50"),
        "{error}"
    );
    let opened = open_beside(&path).unwrap();
    assert_eq!(opened.layer_count(), 3);
    let guest = content(&opened).unwrap();
    let base = content(&Image::open(dir.join("virtualbox-dynamic.vdi")).unwrap()).unwrap();
    assert!(guest != base && guest[1 << 20..] == base[1 << 20..]);
    if DISSECT.is_there("VirtualBox snapshots, read by dissect") {
        let chain = ["grandchild", "child", "dynamic"].map(|name| dir.join(&format!("virtualbox-{name}.vdi")));
        DISSECT.assert_reads_chain("vdi", &chain, &guest);
    }
}
