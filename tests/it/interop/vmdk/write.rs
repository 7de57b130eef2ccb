//! Images by this crate, checked and read by `qemu-img` and read by 7-Zip.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{KINDS, read_text};
use crate::support::pattern::{self, Pattern, Random};
use crate::support::tools::{check_with_qemu_as, find, needs_qemu, output, qemu_img, read_with_qemu};
use crate::support::{TempDir, assert_same, content, open_beside, open_raw, raw_image, vmdk};
use diskimage::{Comparison, Format, Image, OpenOptions, compare};

/// Returns guest data of each pattern, smaller than a grain and with a partial last grain.
fn guests() -> Vec<(String, Vec<u8>)> {
    let mut guests = Vec::new();
    for pattern in pattern::ALL {
        for size in [512, (300 << 10) + 512] {
            guests.push((format!("{pattern:?}, {size}"), pattern.make(size)));
        }
    }
    guests
}

/// Converts to an image of subformat `kind`, checks it and compares its content.
fn write_and_compare(dir: &TempDir, source: &Path, kind: &str, what: &str) {
    let target = dir.join("ours.vmdk");
    let report = vmdk(&format!("subformat={kind}"))
        .convert(&open_raw(source), &target)
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(report.compressed_blocks > 0, kind == "streamOptimized" && report.data_bytes > 0, "{what}: {report}");
    check_with_qemu_as("vmdk", &target);
    qemu_img(&[&"compare", &"-q", &"-f", &"raw", &"-F", &"vmdk", &source, &target]);
    let image = open_beside(&target).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(image.virtual_size(), std::fs::metadata(source).unwrap().len(), "{what}");
    assert!(image.info().warnings.is_empty(), "{what}: {:?}", image.info().warnings);
    assert_eq!(compare(&open_raw(source), &image).unwrap(), Comparison::Identical, "{what}");
}

/// Writes images of subformat `kind` with all patterns.
fn write_all_patterns(kind: &str) {
    needs_qemu!("written VMDKs");
    let dir = TempDir::new();
    for (what, guest) in guests() {
        let source = dir.file("source.raw", &guest);
        write_and_compare(&dir, &source, kind, &format!("{kind}, {what}"));
    }
    // Several grain tables, some of them empty.
    let source = dir.file("source.raw", &Pattern::Sparse.make((70 << 20) + 512));
    write_and_compare(&dir, &source, kind, &format!("{kind}, several tables"));
}

#[test]
fn monolithic_sparse() {
    write_all_patterns("monolithicSparse");
}

#[test]
fn stream_optimized() {
    write_all_patterns("streamOptimized");
}

#[test]
fn monolithic_flat() {
    write_all_patterns("monolithicFlat");
}

#[test]
fn two_gb_max_extent_sparse() {
    write_all_patterns("twoGbMaxExtentSparse");
}

#[test]
fn two_gb_max_extent_flat() {
    write_all_patterns("twoGbMaxExtentFlat");
}

#[test]
fn vmfs() {
    write_all_patterns("vmfs");
}

#[test]
fn seven_zip_reads_every_subformat() {
    let Some(seven_zip) = find("written VMDKs with 7-Zip", &["7zz", "7z"]) else { return };
    let dir = TempDir::new();
    let mut read = 0;
    for (what, guest) in guests() {
        for kind in KINDS {
            let what = format!("{kind}, {what}");
            let target = dir.join("ours.vmdk");
            vmdk(&format!("subformat={kind}")).convert(&raw_image(&guest), &target).unwrap();
            let done = output(&seven_zip, &["x", "-so", "-tvmdk", target.to_str().unwrap()]);
            assert!(done.status.success(), "{what}: {}", String::from_utf8_lossy(&done.stderr));
            assert_same(&done.stdout, &guest, &what);
            read += 1;
        }
    }
    assert_eq!(read, 72);
}

/// A split disk: all extents except the last have 2047 MiB, with data across their boundaries.
#[test]
fn extents_of_2047_mib() {
    needs_qemu!("extents of 2047 MiB");
    const SIZE: u64 = 5 << 30;
    const SPLIT: u64 = 2047 << 20;
    let dir = TempDir::new();
    let source = dir.join("source.raw");
    let file = File::create(&source).unwrap();
    file.set_len(SIZE).unwrap();
    for (seed, at) in
        [0, SPLIT - 100_000, 2 * SPLIT - 512, (2 * SPLIT) + (64 << 10), SIZE - 65536].into_iter().enumerate()
    {
        let len = 200_000.min(SIZE - at) as usize;
        file.write_all_at(&Random::new(seed as u64).bytes(len), at).unwrap();
    }
    for (kind, letter) in [("twoGbMaxExtentSparse", 's'), ("twoGbMaxExtentFlat", 'f')] {
        write_and_compare(&dir, &source, kind, kind);
        let files: Vec<_> = (1..=3).map(|number| format!("ours-{letter}00{number}.vmdk")).collect();
        assert!(files.iter().all(|name| dir.names().contains(name)), "{:?}", dir.names());
        let text = read_text(&dir.join("ours.vmdk"));
        let sectors = text.lines().filter_map(|line| line.strip_prefix("RW ")?.split(' ').next()?.parse().ok());
        assert_eq!(sectors.collect::<Vec<u64>>(), [4192256, 4192256, 2101248], "{text}");
        if letter == 'f' {
            for (name, len) in files.iter().zip([SPLIT, SPLIT, SIZE - 2 * SPLIT]) {
                assert_eq!(std::fs::metadata(dir.join(name)).unwrap().len(), len, "{name}");
            }
        }
    }
    write_and_compare(&dir, &source, "monolithicSparse", "5 GiB");
    write_and_compare(&dir, &source, "streamOptimized", "5 GiB");
}

/// Empty disks, which qemu does not read.
#[test]
fn empty_disks_are_refused() {
    for kind in KINDS {
        let dir = TempDir::new();
        let converter = vmdk(&format!("subformat={kind}"));
        let convert = converter.convert(&raw_image(&[]), dir.join("ours.vmdk"));
        for refused in [convert, converter.create(0, dir.join("ours.vmdk"))] {
            assert_eq!(refused.unwrap_err().kind().as_str(), "unsupported", "{kind}");
        }
        assert_eq!(std::fs::read_dir(dir.join(".")).unwrap().count(), 0);
    }
}

/// The owner of an image that is created empty writes to it.
#[test]
fn qemu_writes_to_created_images() {
    needs_qemu!("writing to created VMDKs");
    for kind in KINDS.into_iter().filter(|kind| *kind != "vmfs") {
        let dir = TempDir::new();
        let target = dir.join("ours.vmdk");
        vmdk(&format!("subformat={kind}")).create(3 << 30, &target).unwrap();
        // In separate runs, as the owner's sessions.
        let mut guest = vec![0; 3 << 20];
        for (at, byte) in [(0, 1), (2 << 20, 2), (1 << 20, 3)] {
            let write = format!("write -P {byte} {at} 64k");
            let done = std::process::Command::new("qemu-io").args(["-f", "vmdk", "-c", &write]).arg(&target).output();
            assert!(done.is_ok_and(|done| done.status.success()), "{kind}: {write}");
            guest[at..at + (64 << 10)].fill(byte);
        }
        check_with_qemu_as("vmdk", &target);
        let image = open_beside(&target).unwrap();
        let mut read = vec![0xee; guest.len()];
        image.read_exact_at(&mut read, 0).unwrap();
        assert_same(&read, &guest, kind);
        if kind == "streamOptimized" {
            let stream = OpenOptions::new().format(Format::VMDK).open_stream(File::open(&target).unwrap());
            let out = std::sync::Arc::new(diskimage::io::MemFile::new());
            vmdk("subformat=streamOptimized").convert_to(&stream.unwrap(), out.clone()).unwrap();
            let again = OpenOptions::new().open_source(out).unwrap();
            again.read_exact_at(&mut read, 0).unwrap();
            assert_same(&read, &guest, "from a pipe");
        }
    }
}

#[test]
fn options() {
    needs_qemu!("options of written VMDKs");
    let dir = TempDir::new();
    let guest = Pattern::Islands.make(1 << 20);
    let source = dir.file("source.raw", &guest);
    let info = |target: &Path| String::from_utf8(qemu_img(&[&"info", &"--output=json", &target])).unwrap();
    for kind in KINDS {
        for adapter in ["lsilogic", "ide", "buslogic", "legacyESX"] {
            let target = dir.join("ours.vmdk");
            let list = format!("subformat={kind},adapter_type={adapter},hwversion=14,toolsversion=12345,cid=1234abcd");
            vmdk(&list).convert(&open_raw(&source), &target).unwrap();
            check_with_qemu_as("vmdk", &target);
            assert_same(&read_with_qemu(&target, &["-f", "vmdk"]), &guest, &list);
            let info = info(&target);
            let cid = format!("\"cid\": {}", 0x1234_abcd);
            let create_type = format!("\"create-type\": \"{kind}\"");
            assert!(info.contains(&cid) && info.contains(&create_type), "{list}: {info}");
            let text = read_text(&target);
            for line in [
                format!("ddb.adapterType = \"{adapter}\""),
                "ddb.virtualHWVersion = \"14\"".into(),
                "ddb.toolsVersion = \"12345\"".into(),
                "encoding=\"UTF-8\"".into(),
            ] {
                assert!(text.contains(&line), "{list}: no {line} in {text}");
            }
        }
    }
    let target = dir.join("ours.vmdk");
    for kind in ["monolithicSparse", "twoGbMaxExtentSparse"] {
        vmdk(&format!("subformat={kind},zeroed_grain=on")).convert(&open_raw(&source), &target).unwrap();
        check_with_qemu_as("vmdk", &target);
        assert_same(&read_with_qemu(&target, &["-f", "vmdk"]), &guest, "zeroed_grain=on");
    }
    let lengths = [1, 9].map(|level| {
        vmdk(&format!("subformat=streamOptimized,compression_level={level}"))
            .convert(&open_raw(&source), &target)
            .unwrap();
        check_with_qemu_as("vmdk", &target);
        assert_same(&read_with_qemu(&target, &["-f", "vmdk"]), &guest, "compression_level");
        std::fs::metadata(&target).unwrap().len()
    });
    assert!(lengths[1] < lengths[0], "{lengths:?}");
    assert_same(&content(&Image::open(&target).unwrap()).unwrap(), &guest, "ours");
}
