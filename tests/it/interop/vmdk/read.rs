//! Images written by `qemu-img` and `qemu-io`.

use std::path::Path;

use super::KINDS;
use crate::interop::overlays::write_commands;
use crate::support::pattern::Pattern;
use crate::support::tools::{needs_qemu, qemu_img, qemu_io_as};
use crate::support::{TempDir, assert_same, content, open_beside, raw, vmdk};
use diskimage::{Comparison, Image, Value, compare};

/// Compares the content with what `qemu-img` reads.
fn assert_read(image: &Path, what: &str) -> Image {
    let opened = open_beside(image).unwrap_or_else(|e| panic!("{what}: {e}"));
    let back = image.with_extension("raw");
    raw().convert(&opened, &back).unwrap_or_else(|e| panic!("{what}: {e}"));
    qemu_img(&[&"compare", &"-q", &"-f", &"raw", &"-F", &"vmdk", &back, &image]);
    assert_eq!(std::fs::metadata(&back).unwrap().len(), opened.virtual_size(), "{what}");
    opened
}

fn create(path: &Path, options: &str, size: &str) {
    qemu_img(&[&"create", &"-q", &"-f", &"vmdk", &"-o", &options, &path, &size]);
}

/// Writes, zero writes and discards on disks with several tables and a partial last grain.
#[test]
fn images_written_by_qemu_io() {
    needs_qemu!("VMDKs written by qemu-io");
    let mut seed = 0;
    for kind in ["monolithicSparse", "twoGbMaxExtentSparse", "monolithicFlat", "twoGbMaxExtentFlat"] {
        for options in ["", ",zeroed_grain=on", ",compat6=on", ",hwversion=13,toolsversion=7", ",adapter_type=lsilogic"]
        {
            if kind.ends_with("Flat") && options.contains("zeroed") {
                continue;
            }
            let several_tables = (34 << 20) + 512;
            for size in if options.is_empty() { vec![512, several_tables] } else { vec![(200 << 10) + 512] } {
                seed += 1;
                let what = format!("{kind}{options}, {size} bytes, seed {seed}");
                let dir = TempDir::new();
                let image = dir.join("theirs.vmdk");
                create(&image, &format!("subformat={kind}{options}"), &size.to_string());
                let opened = assert_read(&image, &what);
                assert!(opened.spans(0..u64::MAX).all(|span| span.unwrap().is_zero()) || kind.ends_with("Flat"));
                drop(opened);
                qemu_io_as("vmdk", &image, &write_commands(size, seed, 20));
                let opened = assert_read(&image, &what);
                assert_eq!(opened.virtual_size(), size, "{what}");
                assert!(opened.info().warnings.is_empty() && !opened.info().dirty, "{what}");
                let found = opened.info().specific.iter().find(|(key, _)| *key == "create-type");
                assert_eq!(found, Some(&("create-type", Value::from(kind))), "{what}");
            }
        }
    }
}

#[test]
fn images_written_by_qemu_img() {
    needs_qemu!("VMDKs written by qemu-img");
    let dir = TempDir::new();
    // qemu-img does not create vmfs.
    for kind in &KINDS[..5] {
        for pattern in crate::support::pattern::ALL {
            for size in [512, (300 << 10) + 512] {
                let what = format!("{kind}, {pattern:?}, {size}");
                let guest = pattern.make(size);
                let source = dir.file("source.raw", &guest);
                let image = dir.join("theirs.vmdk");
                qemu_img(&[
                    &"convert",
                    &"-f",
                    &"raw",
                    &"-O",
                    &"vmdk",
                    &"-o",
                    &format!("subformat={kind}"),
                    &source,
                    &image,
                ]);
                let opened = open_beside(&image).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_same(&content(&opened).unwrap(), &guest, &what);
            }
        }
    }
}

/// qemu splits at 2 GiB; VMware and this crate split at 2047 MiB.
#[test]
fn extents_of_2_gib() {
    needs_qemu!("extents of 2 GiB");
    const SPLIT: u64 = 2 << 30;
    for kind in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let dir = TempDir::new();
        let image = dir.join("theirs.vmdk");
        create(&image, &format!("subformat={kind}"), "5G");
        let around = |at: u64, with: u8| format!("write -P {with} {} 128k", at - (64 << 10));
        qemu_io_as("vmdk", &image, &[around(SPLIT, 1), around(2 * SPLIT, 2), around((5 << 30) - (64 << 10), 3)]);
        let opened = open_beside(&image).unwrap();
        assert_eq!(opened.virtual_size(), 5 << 30);
        for (at, with) in [(SPLIT, 1), (2 * SPLIT, 2), ((5 << 30) - (64 << 10), 3)] {
            let mut bytes = vec![9; 192 << 10];
            let start = at - (128 << 10);
            opened.read_exact_at(&mut bytes, start).unwrap();
            let mut expected = vec![0; 192 << 10];
            expected[64 << 10..].fill(with);
            assert_same(&bytes, &expected, kind);
        }
        let ours = dir.join("ours.vmdk");
        vmdk("").convert(&opened, &ours).unwrap();
        qemu_img(&[&"compare", &"-q", &image, &ours]);
        assert_eq!(compare(&opened, &Image::open(&ours).unwrap()).unwrap(), Comparison::Identical);
    }
}

/// The embedded descriptor has the old file name, now the name of another file.
#[test]
fn renamed_files() {
    needs_qemu!("renamed VMDKs");
    let dir = TempDir::new();
    let guest = Pattern::Dense.make(300 << 10);
    let source = dir.file("source.raw", &guest);
    for kind in ["monolithicSparse", "streamOptimized"] {
        let (before, after) = (dir.join("before.vmdk"), dir.join("after.vmdk"));
        qemu_img(&[&"convert", &"-O", &"vmdk", &"-o", &format!("subformat={kind}"), &source, &before]);
        std::fs::rename(&before, &after).unwrap();
        std::fs::write(&before, b"something else").unwrap();
        // The default policy denies referenced files, so the name is ignored.
        assert_same(&content(&Image::open(&after).unwrap()).unwrap(), &guest, kind);
    }
}
