//! QED, qcow and Parallels: written images are checked and read by `qemu-img` and 7-Zip; images of qemu are read.

use std::path::Path;

use super::overlays::{changed, write_commands};
use crate::support::pattern::{self, Pattern};
use crate::support::tools::{
    check_with_qemu_as, find, needs_qemu, output, qemu_img, qemu_io_as, read_with_7zip, read_with_qemu, run,
};
use crate::support::{TempDir, assert_same, content, format, open_raw, options, raw_image};
use diskimage::{Converter, Image, OpenOptions, ReferencePolicy};

/// A format, with options that both programs know.
type Kind = (&'static str, &'static str);

const KINDS: [Kind; 11] = [
    ("qed", ""),
    ("qed", "cluster_size=4k,table_size=2"),
    ("qed", "cluster_size=8k,table_size=16"),
    ("qed", "cluster_size=1M,table_size=2"),
    ("qed", "cluster_size=4M,table_size=2"),
    ("qcow", ""),
    ("parallels", ""),
    ("parallels", "cluster_size=4k"),
    ("parallels", "cluster_size=64k"),
    ("parallels", "cluster_size=256k"),
    ("parallels", "cluster_size=64M"),
];

fn to((name, list): Kind) -> Converter {
    Converter::new(format(name)).options(options(list)).sync(false)
}

/// Disks of a sector, of whole clusters, and with a partial cluster.
fn guests() -> Vec<(String, Vec<u8>)> {
    let mut guests = Vec::new();
    for pattern in pattern::ALL {
        guests.extend([512, (2 << 20) + 512].map(|size| (format!("{pattern:?}, {size}"), pattern.make(size))));
    }
    guests
}

/// qemu has no check for qcow.
fn check(format: &str, image: &Path, what: &str) {
    if format != "qcow" {
        check_with_qemu_as(format, image);
        let report = OpenOptions::new().check(image).unwrap();
        assert_eq!((report.corruptions, report.leaks, &*report.messages), (0, 0, &[][..]), "{what}");
    }
}

#[test]
fn written_images_are_valid() {
    needs_qemu!("the QED, qcow and Parallels images that we write");
    for kind in KINDS {
        for (what, guest) in guests() {
            let dir = TempDir::new();
            let what = format!("{kind:?}, {what}");
            let target = dir.join("ours");
            to(kind).convert(&raw_image(&guest), &target).unwrap_or_else(|e| panic!("{what}: {e}"));
            check(kind.0, &target, &what);
            assert_same(&read_with_qemu(&target, &["-f", kind.0]), &guest, &what);
            let image = Image::open(&target).unwrap();
            assert_eq!((image.info().format, &*image.info().warnings), (kind.0, &[][..]), "{what}");
            assert_same(&content(&image).unwrap(), &guest, &what);
        }
    }
}

#[test]
fn images_of_qemu_are_read() {
    needs_qemu!("the QED, qcow and Parallels images that qemu-img writes");
    // Clusters of Parallels have any number of sectors.
    let others = ["512", "32256", "252k", "100000", "1049088"].map(|size| format!("cluster_size={size}"));
    let kinds = KINDS.into_iter().map(|(format, list)| (format, list.to_owned()));
    for (format, list) in kinds.chain(others.map(|list| ("parallels", list))) {
        for (what, guest) in guests() {
            let dir = TempDir::new();
            let what = format!("{format}, {list}, {what}");
            let source = dir.file("source.raw", &guest);
            let image = dir.join("theirs");
            let mut args = vec!["convert", "-f", "raw", "-O", format];
            if !list.is_empty() {
                args.extend(["-o", &list]);
            }
            args.extend([source.to_str().unwrap(), image.to_str().unwrap()]);
            run("qemu-img", &args);
            let opened = Image::open(&image).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_same(&content(&opened).unwrap(), &guest, &what);
            check(format, &image, &what);
        }
    }
}

#[test]
fn images_changed_by_qemu_are_read() {
    needs_qemu!("the QED, qcow and Parallels images that qemu-io writes");
    for (seed, kind) in KINDS.into_iter().enumerate() {
        for by_us in [false, true] {
            let dir = TempDir::new();
            let what = format!("{kind:?}, by us: {by_us}");
            let size = (30 << 20) + 512;
            let image = dir.join("image");
            if by_us {
                to(kind).convert(&raw_image(&Pattern::Sparse.make(size)), &image).unwrap();
            } else {
                let list = format!("size={size}{}{}", if kind.1.is_empty() { "" } else { "," }, kind.1);
                qemu_img(&[&"create", &"-q", &"-f", &kind.0, &"-o", &list, &image]);
            }
            qemu_io_as(kind.0, &image, &write_commands(size as u64, seed as u64 + 60, 20));
            let opened = Image::open(&image).unwrap();
            assert_eq!(opened.virtual_size(), size as u64, "{what}");
            assert_same(&content(&opened).unwrap(), &read_with_qemu(&image, &["-f", kind.0]), &what);
            if kind.0 != "qcow" {
                let report = OpenOptions::new().check(&image).unwrap();
                assert_eq!(report.corruptions, 0, "{what}: {:?}", report.messages);
            }
        }
    }
}

#[test]
fn compressed_qcow_images() {
    needs_qemu!("compressed qcow images");
    for (what, guest) in guests() {
        let dir = TempDir::new();
        for list in [
            "",
            "cluster_size=512",
            "cluster_size=64k",
            "window=12,compression_level=9",
            "cluster_size=16k,compression_level=1",
        ] {
            let what = format!("{list}, {what}");
            let target = dir.join("ours.qcow");
            let report = to(("qcow", list)).compress(true).convert(&raw_image(&guest), &target).unwrap();
            if what.contains("Dense, 2") && list != "cluster_size=512" {
                assert!(report.compressed_blocks > 0, "{what}: {report}");
            }
            assert_same(&read_with_qemu(&target, &["-f", "qcow"]), &guest, &what);
            assert_same(&content(&Image::open(&target).unwrap()).unwrap(), &guest, &what);
        }
        // qemu-img 10.0.2 fails without a message, after it has written everything unless a cluster did not become smaller.
        let (source, image) = (dir.file("source.raw", &guest), dir.join("theirs.qcow"));
        let args = ["convert", "-c", "-f", "raw", "-O", "qcow", source.to_str().unwrap(), image.to_str().unwrap()];
        let done = output("qemu-img", &args);
        if !done.status.success() && what.contains("Incompressible") {
            continue;
        }
        let opened = Image::open(&image).unwrap();
        assert_same(&content(&opened).unwrap(), &guest, &what);
        // Their payloads are copied to an image with clusters of the same size.
        let copy = dir.join("copy.qcow");
        let report = to(("qcow", "")).compress(true).convert(&opened, &copy).unwrap();
        assert_eq!(report.passthrough_blocks, report.compressed_blocks, "{what}");
        assert_same(&read_with_qemu(&copy, &["-f", "qcow"]), &guest, &what);
    }
}

/// 7-Zip reads no compressed clusters of this format, and lists no file for an empty disk.
#[test]
fn seven_zip_reads_qcow_images() {
    let Some(seven_zip) = find("the qcow images that we write, 7-Zip reads", &["7zz", "7z"]) else { return };
    for (what, guest) in guests().into_iter().filter(|(_, guest)| guest.iter().any(|byte| *byte != 0)) {
        for list in ["", "cluster_size=512", "cluster_size=64k"] {
            let dir = TempDir::new();
            let target = dir.join("ours.qcow");
            to(("qcow", list)).convert(&raw_image(&guest), &target).unwrap();
            assert_same(&read_with_7zip(&seven_zip, "qcow", &target), &guest, &format!("{list}, {what}"));
        }
    }
}

/// Opens an overlay whose backing file has this format.
fn open_chain(path: &Path, backing_format: &str) -> Image {
    let options = OpenOptions::new().reference_policy(ReferencePolicy::Beside).backing_format(format(backing_format));
    options.open(path).unwrap()
}

#[test]
fn overlays_of_both_programs() {
    needs_qemu!("QED and qcow overlays");
    let base_guest = Pattern::Islands.make(1 << 20);
    let mut seed = 100;
    for base_format in ["raw", "qcow2"] {
        let dir = TempDir::new();
        let source = dir.file("base-source.raw", &base_guest);
        let base = dir.join("base");
        qemu_img(&[&"convert", &"-f", &"raw", &"-O", &base_format, &source, &base]);
        for (kind, compress) in [
            (("qed", ""), false),
            (("qed", "cluster_size=4k,table_size=2"), false),
            (("qcow", ""), false),
            (("qcow", ""), true),
            (("qcow", "cluster_size=8k"), true),
        ] {
            // As long as the base, longer and shorter.
            for size in [1 << 20, (1 << 20) + 300 * 512, (1 << 20) - 300 * 512] {
                seed += 1;
                let what = format!("{kind:?}, compressed: {compress}, {size} bytes, {base_format} base, seed {seed}");
                let guest = changed(&base_guest, size, seed);
                let source = dir.file("source.raw", &guest);
                let target = dir.join("overlay");
                let opened_base = OpenOptions::new().format(format(base_format)).open(&base).unwrap();
                let converter = to(kind).compress(compress).backing(opened_base, "base");
                converter.convert(&open_raw(&source), &target).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_same(&content(&open_chain(&target, base_format)).unwrap(), &guest, &what);
                check(kind.0, &target, &what);
                // qemu detects a format that is not stated.
                assert_same(&read_with_qemu(&target, &["-f", kind.0]), &guest, &what);
            }
        }
        for format in ["qed", "qcow"] {
            let overlay = dir.join("theirs");
            let size = (1 << 20) + 300 * 512;
            let list = format!("backing_file=base,backing_fmt={base_format},size={size}");
            qemu_img(&[&"create", &"-q", &"-f", &format, &"-o", &list, &overlay]);
            qemu_io_as(format, &overlay, &write_commands(size, seed, 20));
            let image = open_chain(&overlay, base_format);
            assert_eq!((image.layer_count(), image.virtual_size()), (2, size));
            assert_same(&content(&image).unwrap(), &read_with_qemu(&overlay, &["-f", format]), format);
        }
    }
}

#[test]
fn images_of_bochs_are_read() {
    let Some(bximage) = find("the growing images that bximage writes", &["bximage"]) else { return };
    for size in [512, 3 << 20, (5 << 20) + 512] {
        let dir = TempDir::new();
        let guest = Pattern::Sparse.make(size);
        let (source, image) = (dir.file("source.raw", &guest), dir.join("image.bochs"));
        let paths = [source.to_str().unwrap(), image.to_str().unwrap()];
        run(&bximage, &["-q", "-func=convert", "-imgmode=growing", paths[0], paths[1]]);
        let opened = Image::open(&image).unwrap();
        assert_eq!(opened.format().name(), "bochs");
        // bximage rounds the size of a disk to whole cylinders.
        let mut read = content(&opened).unwrap();
        read.resize(guest.len().max(read.len()), 0);
        let common = guest.len().min(opened.virtual_size() as usize);
        assert_same(&read[..common], &guest[..common], &size.to_string());
        if find("growing images of Bochs, read by qemu-img", &["qemu-img"]).is_some() {
            assert_same(&content(&opened).unwrap(), &read_with_qemu(&image, &["-f", "bochs"]), &size.to_string());
        }
    }
}

#[test]
fn images_of_cloop_are_read() {
    let Some(program) = find("the images that create_compressed_fs writes", &["create_compressed_fs"]) else { return };
    for (size, block) in [(3 << 20, "65536"), ((5 << 20) + 512, "131072"), (1 << 20, "4096")] {
        for pattern in [Pattern::Sparse, Pattern::Incompressible] {
            let dir = TempDir::new();
            let guest = pattern.make(size);
            let (source, image) = (dir.file("source.raw", &guest), dir.join("image.cloop"));
            let paths = [source.to_str().unwrap(), image.to_str().unwrap()];
            run(&program, &["-q", "-B", block, "-r", paths[0], paths[1]]);
            let opened = Image::open(&image).unwrap();
            assert_eq!(opened.format().name(), "cloop");
            let read = content(&opened).unwrap();
            // The last block is filled up.
            assert_same(&read[..size], &guest, block);
            assert!(read[size..].iter().all(|byte| *byte == 0));
            if find("images of cloop, read by qemu-img", &["qemu-img"]).is_some() {
                assert_same(&read, &read_with_qemu(&image, &["-f", "cloop"]), block);
            }
        }
    }
}
