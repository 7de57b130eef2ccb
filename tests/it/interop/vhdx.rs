//! VHDX: written images are read by `qemu-img`, 7-Zip, dissect and libvhdi, images of qemu are read here, and images built from the
//! specification are read by all of them alike.

use std::fs;
use std::path::{Path, PathBuf};

use super::assert_knows_its_parent;
use super::overlays::{changed, write_commands};
use crate::corpus::unpack_to;
use crate::support::pattern::{Pattern, Random};
use crate::support::tools::{
    DISSECT, LIBYAL, check_with_qemu_as, find, needs_qemu, output, qemu_img, qemu_io_as, read_with_7zip, read_with_qemu,
};
use crate::support::vhdx::{
    Block, Change, KIB, Log, MAKERS, MIB, Maker, NOT_PRESENT, OLD_UNMAPPED, UNMAPPED, Vhdx, ZERO,
};
use crate::support::{TempDir, assert_same, content, format, open_beside, open_raw, qcow2, raw, raw_image, vhdx};
use crate::vhdx::{chain, layer, over};
use diskimage::{Comparison, Image, OpenOptions, compare};

/// Options whose images all programs read.
pub const KINDS: [&str; 7] = [
    "",
    "subformat=fixed",
    "block_size=1M",
    "block_size=256M,block_state_zero=off",
    "block_size=2M,log_size=4M,physical_sector_size=512",
    "subformat=fixed,block_size=8M,block_state_zero=off",
    "block_size=4M,logical_sector_size=512,physical_sector_size=4096",
];

/// qemu refuses logical sectors of 4096 bytes.
pub const KINDS_4K: [&str; 3] = [
    "logical_sector_size=4096",
    "logical_sector_size=4096,block_size=1M,block_state_zero=off",
    "logical_sector_size=4096,subformat=fixed",
];

/// Disks of a sector, of whole blocks, and with a partial block, in sectors of this size.
fn guests(sector_size: usize) -> Vec<(String, Vec<u8>)> {
    let mut guests = Vec::new();
    for (pattern, size) in [
        (Pattern::Dense, sector_size),
        (Pattern::Empty, 3 << 20),
        (Pattern::Islands, 3 << 20),
        (Pattern::Sparse, (5 << 20) + sector_size),
        (Pattern::Incompressible, (2 << 20) + sector_size),
        (Pattern::Tail, 4 << 20),
    ] {
        let mut guest = pattern.make(size);
        guest.truncate(guest.len() / sector_size * sector_size);
        guests.push((format!("{pattern:?}, {size}"), guest));
    }
    guests
}

#[test]
fn written_images_are_valid() {
    needs_qemu!("the VHDXs that we write");
    for kind in KINDS {
        for (what, guest) in guests(512) {
            let dir = TempDir::new();
            let what = format!("{kind}, {what}");
            let source = dir.file("source.raw", &guest);
            let target = dir.join("ours.vhdx");
            vhdx(kind).convert(&open_raw(&source), &target).unwrap_or_else(|e| panic!("{what}: {e}"));
            check_with_qemu_as("vhdx", &target);
            assert_same(&read_with_qemu(&target, &["-f", "vhdx"]), &guest, &what);
            assert_we_read(&target, &guest, &what);
        }
    }
}

#[track_caller]
fn assert_we_read(path: &Path, guest: &[u8], what: &str) {
    let image = Image::open(path).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!((image.info().format, &*image.info().warnings, image.info().dirty), ("vhdx", &[][..], false), "{what}");
    assert_same(&content(&image).unwrap(), guest, what);
    let report = OpenOptions::new().check(path).unwrap();
    assert_eq!((report.corruptions, report.leaks, &*report.messages), (0, 0, &[][..]), "{what}");
}

#[test]
fn seven_zip_reads_written_images() {
    let Some(seven_zip) = find("the VHDXs that we write, 7-Zip reads", &["7zz", "7z"]) else { return };
    for (kinds, sector_size) in [(&KINDS[..], 512), (&KINDS_4K, 4096)] {
        for kind in kinds {
            // 7-Zip refuses an odd number of sectors, in images of qemu-img too.
            for (what, guest) in guests(2 * sector_size) {
                let dir = TempDir::new();
                let target = dir.join("ours.vhdx");
                vhdx(kind).convert(&raw_image(&guest), &target).unwrap();
                let what = format!("{kind}, {what}");
                assert_same(&read_with_7zip(&seven_zip, "vhdx", &target), &guest, &what);
                assert_we_read(&target, &guest, &what);
            }
        }
    }
}

#[test]
fn sizes_are_padded_to_whole_sectors() {
    needs_qemu!("VHDXs of sizes that are no whole sectors");
    let dir = TempDir::new();
    for len in [1, 511, 513, (1 << 20) - 1, (1 << 20) + 1] {
        for kind in ["subformat=dynamic", "subformat=fixed", "logical_sector_size=4096"] {
            let guest = Random::new(len as u64).bytes(len);
            let target = dir.join("ours.vhdx");
            let sector_size = if kind.ends_with("4096") { 4096 } else { 512 };
            vhdx(kind).convert(&raw_image(&guest), &target).unwrap();
            let mut padded = guest;
            padded.resize(len.next_multiple_of(sector_size), 0);
            assert_we_read(&target, &padded, kind);
            if sector_size == 512 {
                check_with_qemu_as("vhdx", &target);
                assert_same(&read_with_qemu(&target, &["-f", "vhdx"]), &padded, &format!("{kind}, {len}"));
            }
        }
    }
}

/// A fixed image contains the disk and the structures of the document only; those of qemu-img have gaps.
#[test]
fn fixed_images_have_the_minimum_length() {
    let dir = TempDir::new();
    let target = dir.join("ours.vhdx");
    for size in [MIB, 3 * MIB, 12 * MIB, 12 * MIB + 512] {
        vhdx("subformat=fixed").convert(&raw_image(&vec![1; size as usize]), &target).unwrap();
        let len = fs::metadata(&target).unwrap().len();
        assert_eq!(len, size.next_multiple_of(MIB) + 4 * MIB, "{size}");
    }
}

#[test]
fn images_of_qemu_are_read() {
    needs_qemu!("the VHDXs that qemu-img writes");
    for kind in [
        "",
        "subformat=fixed",
        "subformat=fixed,block_state_zero=off",
        "block_state_zero=off,block_size=1M",
        "block_size=64M,log_size=3M",
    ] {
        for (what, guest) in guests(512) {
            let dir = TempDir::new();
            let what = format!("{kind}, {what}");
            let source = dir.file("source.raw", &guest);
            let image = dir.join("theirs.vhdx");
            let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"convert", &"-f", &"raw", &"-O", &"vhdx"];
            if !kind.is_empty() {
                args.extend([&"-o" as &dyn AsRef<std::ffi::OsStr>, &kind]);
            }
            args.extend([&source as &dyn AsRef<std::ffi::OsStr>, &image]);
            qemu_img(&args);
            // Checks that qemu did not change the size.
            assert_same(&read_with_qemu(&image, &["-f", "vhdx"]), &guest, &what);
            assert_we_read(&image, &guest, &what);
        }
    }
}

/// Blocks in the order of the writes.
#[test]
fn images_changed_by_qemu_are_read() {
    needs_qemu!("the VHDXs that qemu-io writes");
    let dir = TempDir::new();
    for (seed, kind) in
        ["block_size=1M", "block_size=4M,block_state_zero=off", "subformat=fixed"].into_iter().enumerate()
    {
        for by_us in [false, true] {
            let what = format!("{kind}, by us: {by_us}");
            let size = (30 << 20) + 512;
            let image = dir.join("image.vhdx");
            if by_us {
                vhdx(kind).convert(&raw_image(&Pattern::Sparse.make(size)), &image).unwrap();
            } else {
                qemu_img(&[&"create", &"-q", &"-f", &"vhdx", &"-o", &kind, &image, &size.to_string()]);
            }
            qemu_io_as("vhdx", &image, &write_commands(size as u64, seed as u64 + 60, 20));
            check_with_qemu_as("vhdx", &image);
            let opened = Image::open(&image).unwrap();
            assert_same(&content(&opened).unwrap(), &read_with_qemu(&image, &["-f", "vhdx"]), &what);
            // qemu can leave space between blocks.
            let report = OpenOptions::new().check(&image).unwrap();
            assert_eq!(report.corruptions, 0, "{what}: {:?}", report.messages);
        }
    }
}

/// qemu opens an image with a log only after it has repaired it; we open it unchanged. 7-Zip, dissect and libvhdi do not replay
/// logs.
#[test]
fn a_log_of_windows_is_replayed() {
    needs_qemu!("a log that Windows left");
    let dir = TempDir::new();
    let path = unpack_to(&dir, "vhdx-log-replay.vhdx");
    assert_replayed_as_by_qemu(&path, "left by Windows");
}

/// Checks that we read an image as qemu reads a repaired copy.
#[track_caller]
fn assert_replayed_as_by_qemu(image: &Path, what: &str) {
    let before = fs::read(image).unwrap();
    let refused = output("qemu-img", &["info", "-f", "vhdx", image.to_str().unwrap()]);
    assert!(!refused.status.success(), "{what}: qemu-img reads it");
    let (repaired, flat) = (image.with_extension("repaired"), image.with_extension("raw"));
    fs::copy(image, &repaired).unwrap();
    qemu_img(&[&"check", &"-q", &"-r", &"all", &"-f", &"vhdx", &repaired]);
    let opened = Image::open(image).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(opened.info().dirty, "{what}");
    raw().convert(&opened, &flat).unwrap();
    qemu_img(&[&"compare", &"-q", &"-f", &"raw", &"-F", &"vhdx", &flat, &repaired]);
    assert_same(&fs::read(image).unwrap(), &before, &format!("{what}: the source"));
    let repaired = OpenOptions::new().format(format("vhdx")).open(&repaired).unwrap();
    assert!(!repaired.info().dirty, "{what}");
    assert_eq!(compare(&opened, &repaired).unwrap(), Comparison::Identical, "{what}");
}

/// Differencing images of Windows are refused without the parent, and the error names it.
#[test]
fn windows_differencing_images() {
    let dir = TempDir::new();
    for (child, parent) in [("512-child.vhdx", "base.vhdx"), ("ntfs-differential.vhdx", "ntfs-parent.vhdx")] {
        let (path, parent) = (unpack_to(&dir, child), dir.join(parent));
        assert_knows_its_parent(&path, &parent, &vhdx(""), |guest| {
            assert_others_read_chain(&[path.clone(), parent.clone()], guest);
        });
    }
}

/// A qcow2 overlay with a VHDX backing file.
#[test]
fn backing_files() {
    needs_qemu!("qcow2 overlays of VHDX");
    let dir = TempDir::new();
    let base_guest = Pattern::Islands.make(3 << 20);
    for (seed, kind) in ["block_size=1M", "subformat=fixed"].into_iter().enumerate() {
        let (base, overlay) = (dir.join("base.vhdx"), dir.join("overlay.qcow2"));
        vhdx(kind).convert(&raw_image(&base_guest), &base).unwrap();
        let guest = changed(&base_guest, base_guest.len(), seed as u64 + 70);
        let converter = qcow2("").backing(Image::open(&base).unwrap(), "base.vhdx");
        converter.convert(&raw_image(&guest), &overlay).unwrap();
        assert_same(&read_with_qemu(&overlay, &["-f", "qcow2"]), &guest, kind);
        assert_same(&content(&open_beside(&overlay).unwrap()).unwrap(), &guest, kind);
    }
}

#[test]
fn written_overlays_are_valid() {
    for (seed, (base_kind, kind)) in [
        ("block_size=1M", ""),
        ("subformat=fixed", "block_size=1M"),
        ("", "block_size=32M"),
        ("logical_sector_size=4096,block_size=1M", ""),
        ("logical_sector_size=4096,subformat=fixed", "block_size=1M"),
    ]
    .into_iter()
    .enumerate()
    {
        let dir = TempDir::new();
        let what = format!("{kind}, parent {base_kind}");
        let [base, overlay] = ["base.vhdx", "overlay.vhdx"].map(|name| dir.join(name));
        let base_guest = Pattern::Islands.make((5 << 20) + 8192);
        vhdx(base_kind).convert(&raw_image(&base_guest), &base).unwrap();
        let guest = changed(&base_guest, base_guest.len(), seed as u64 + 50);
        let converter = vhdx(kind).backing(Image::open(&base).unwrap(), "base.vhdx");
        converter.convert(&raw_image(&guest), &overlay).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(open_beside(&overlay).unwrap().layer_count(), 2, "{what}");
        assert_same(&content(&open_beside(&overlay).unwrap()).unwrap(), &guest, &what);
        let report = OpenOptions::new().check(&overlay).unwrap();
        assert_eq!((report.corruptions, report.leaks, &*report.messages), (0, 0, &[][..]), "{what}");
        assert_others_read_chain(&[overlay, base], &guest);
    }
}

/// Checks that the programs that support parents read a chain.
#[track_caller]
fn assert_others_read_chain(chain: &[PathBuf], guest: &[u8]) {
    for reader in [LIBYAL, DISSECT] {
        if reader.is_there("differencing VHDX images") {
            reader.assert_reads_chain("vhdx", chain, guest);
        }
    }
    if let Some(seven_zip) = find("differencing VHDX images, read by 7-Zip", &["7zz", "7z"]) {
        assert_same(&read_with_7zip(&seven_zip, "vhdx", &chain[0]), guest, &format!("{chain:?}"));
    }
}

/// Other programs read the synthetic images of the tests as intended.
mod synthetic {
    use super::*;

    fn with_all_states(maker: Maker, sector_size: u64) -> Vhdx {
        let mut random = Random::new(maker as u64 + sector_size);
        let mut image = Vhdx::new(9 * MIB + 2 * sector_size, 2 * MIB, sector_size);
        image.maker = maker;
        image.blocks = [NOT_PRESENT, ZERO, UNMAPPED].map(Block::Without).to_vec();
        image.blocks.extend((0..2).map(|_| Block::Full(vec![(512, random.bytes(70_000)), (MIB, random.bytes(4096))])));
        image
    }

    #[test]
    fn blocks() {
        let dir = TempDir::new();
        let mut images = Vec::new();
        for (number, maker) in MAKERS.into_iter().enumerate() {
            for sector_size in [512, 4096] {
                let image = with_all_states(maker, sector_size);
                let path = dir.join(&format!("{number}-{sector_size}.vhdx"));
                image.write(&path);
                images.push((path, over(Vec::new(), &image)));
            }
        }
        for reader in [LIBYAL, DISSECT] {
            if reader.is_there("synthetic VHDX images, read by libvhdi and dissect") {
                reader.assert_reads("vhdx", &images);
            }
        }
        if let Some(seven_zip) = find("synthetic VHDX images, read by 7-Zip", &["7zz", "7z"]) {
            for (path, guest) in &images {
                assert_same(&read_with_7zip(&seven_zip, "vhdx", path), guest, &path.display().to_string());
            }
        }
        needs_qemu!("synthetic VHDX images, read by qemu-img");
        for (path, guest) in images.iter().filter(|(path, _)| path.to_str().unwrap().ends_with("512.vhdx")) {
            check_with_qemu_as("vhdx", path);
            assert_same(&read_with_qemu(path, &["-f", "vhdx"]), guest, &path.display().to_string());
        }
    }

    /// A backing chain, the base first.
    fn layers(seed: u64, count: u64, sector_size: u64) -> Vec<Vhdx> {
        let mut random = Random::new(seed);
        let layers = (0..count).map(|depth| {
            let mut image = layer(&mut random, 4 * MIB, MIB, sector_size, depth > 0);
            // A state of an earlier version of the document.
            image.blocks.retain(|block| !matches!(block, Block::Without(OLD_UNMAPPED)));
            image
        });
        layers.collect()
    }

    #[test]
    fn parents() {
        for seed in 0..4 {
            let dir = TempDir::new();
            let chain = chain(&dir, layers(seed + 30, 2, [512, 4096][seed as usize % 2]));
            let paths: Vec<_> = chain.paths.iter().rev().cloned().collect();
            assert_others_read_chain(&paths, &chain.guest);
        }
    }

    /// With three layers, dissect reads too few bytes of the second bitmap, 7-Zip reports a loop for some chains, and libvhdi
    /// reads wrong data with sectors of 4096 bytes.
    #[test]
    fn parents_of_parents() {
        if !LIBYAL.is_there("synthetic VHDX chains of three layers, read by libvhdi") {
            return;
        }
        for seed in [38, 40, 42, 44] {
            let dir = TempDir::new();
            let chain = chain(&dir, layers(seed, 3, 512));
            let paths: Vec<_> = chain.paths.iter().rev().cloned().collect();
            LIBYAL.assert_reads_chain("vhdx", &paths, &chain.guest);
        }
    }

    #[test]
    fn logs() {
        needs_qemu!("synthetic VHDX logs, replayed by qemu-img");
        let dir = TempDir::new();
        let path = dir.join("image.vhdx");
        for (what, start, done) in
            [("from the start", 0, 0), ("wrapped around", MIB - 8192, 0), ("with a tail", 4096, 1)]
        {
            let image = with_all_states(Maker::Windows, 512);
            let places = image.write(&path);
            let log = Log {
                start,
                done,
                ..Log::new(vec![
                    vec![Change::Write(places.bat, vec![0; 4096])],
                    vec![Change::Wipe(places.metadata..places.metadata + 64 * KIB)],
                    vec![Change::Move(places.metadata), Change::Clear(places.bat + 4096..places.bat + 16 * KIB)],
                    vec![Change::Move(places.bat), Change::Move(places.metadata + 64 * KIB)],
                ])
            };
            log.write(&path, &image, &places);
            assert_replayed_as_by_qemu(&path, what);
            assert_same(&content(&Image::open(&path).unwrap()).unwrap(), &over(Vec::new(), &image), what);
        }
    }
}
