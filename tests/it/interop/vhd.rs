//! VHD: written images are read by `qemu-img` and 7-Zip; images of qemu, Windows and VirtualBox are read.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;

use super::assert_knows_its_parent;
use super::overlays::{changed, write_commands};
use crate::corpus::unpack_to;
use crate::support::pattern::{self, Pattern};
use crate::support::tools::{LIBYAL, find, needs_qemu, qemu_img, qemu_io_as, read_with_7zip, read_with_qemu};
use crate::support::{TempDir, assert_same, content, open_beside, open_raw, raw_image, vpc};
use diskimage::Image;

/// Options that change the layout.
const KINDS: [&str; 4] = ["subformat=dynamic", "block_size=512k", "block_size=16M", "subformat=fixed"];

/// Disk sizes: less than a block, and with a partial block.
const SIZES: [usize; 2] = [512, (5 << 20) + 512];

/// Each test case uses its own directory, because replacing a file is slow on some file systems.
fn guests() -> Vec<(String, Vec<u8>)> {
    let mut guests = Vec::new();
    for pattern in pattern::ALL {
        guests.extend(SIZES.map(|size| (format!("{pattern:?}, {size}"), pattern.make(size))));
    }
    guests
}

/// The disk size according to qemu.
fn size_with_qemu(image: &Path) -> u64 {
    let said = qemu_img(&[&"info", &"--output=json", &"-f", &"vpc", &image]);
    serde_json::from_slice::<Value>(&said).unwrap()["virtual-size"].as_u64().unwrap()
}

/// A file that is one hole.
fn sparse_file(path: &Path, len: u64) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    file.set_len(len).unwrap();
    file
}

#[test]
fn written_images_are_valid() {
    needs_qemu!("the VHDs that we write");
    for kind in KINDS {
        for (what, guest) in guests() {
            let dir = TempDir::new();
            let what = format!("{kind}, {what}");
            let source = dir.file("source.raw", &guest);
            let target = dir.join("ours.vhd");
            vpc(kind).convert(&open_raw(&source), &target).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_same(&read_with_qemu(&target, &["-f", "vpc"]), &guest, &what);
            let image = Image::open(&target).unwrap();
            assert_eq!((image.info().format, &*image.info().warnings), ("vpc", &[][..]), "{what}");
            assert_same(&content(&image).unwrap(), &guest, &what);
        }
    }
}

#[test]
fn seven_zip_reads_written_images() {
    let Some(seven_zip) = find("the VHDs that we write, 7-Zip reads", &["7zz", "7z"]) else { return };
    for kind in KINDS {
        for (what, guest) in guests() {
            let dir = TempDir::new();
            let target = dir.join("ours.vhd");
            vpc(kind).convert(&raw_image(&guest), &target).unwrap();
            assert_same(&read_with_7zip(&seven_zip, "vhd", &target), &guest, &format!("{kind}, {what}"));
        }
    }
}

#[test]
fn an_empty_disk() {
    needs_qemu!("VHDs without sectors");
    let dir = TempDir::new();
    for kind in KINDS {
        let target = dir.join("ours.vhd");
        vpc(kind).convert(&raw_image(&[]), &target).unwrap();
        assert_eq!(Image::open(&target).unwrap().virtual_size(), 0, "{kind}");
        // qemu takes a footer at the start of the file for the copy, even in its own empty fixed images.
        if !kind.contains("fixed") {
            assert_eq!(size_with_qemu(&target), 0, "{kind}");
        }
    }
}

/// Sizes are padded to whole sectors and no further.
#[test]
fn the_default_size_is_exact() {
    needs_qemu!("the sizes of the VHDs that we write");
    let dir = TempDir::new();
    let source = dir.join("source.raw");
    for size in [1, 511, 513, (1 << 20) + 1, (1 << 30) + 512, (127 << 30) + 512, 128 << 30, 2040 << 30] {
        sparse_file(&source, size);
        for kind in ["subformat=dynamic", "subformat=fixed"] {
            let target = dir.join("ours.vhd");
            vpc(kind).convert(&open_raw(&source), &target).unwrap();
            let expected = size.next_multiple_of(512);
            assert_eq!(Image::open(&target).unwrap().virtual_size(), expected, "{kind}, {size}");
            assert_eq!(size_with_qemu(&target), expected, "{kind}, {size}");
        }
    }
}

/// With `force_size=off` the size is rounded up to the same geometry as in qemu.
#[test]
fn force_size_off_rounds_as_qemu_does() {
    needs_qemu!("the sizes of VHDs with force_size=off");
    let dir = TempDir::new();
    let (source, ours, theirs) = (dir.join("source.raw"), dir.join("ours.vhd"), dir.join("theirs.vhd"));
    for size in [512, 1 << 20, (1 << 20) + 512, 504 << 20, 1 << 30, 10 << 30, 31 << 30, 100 << 30, 127 << 30, 128 << 30]
    {
        let file = sparse_file(&source, size);
        file.write_all_at(&[7; 512], size - 512).unwrap();
        vpc("force_size=off").convert(&open_raw(&source), &ours).unwrap();
        qemu_img(&[&"create", &"-q", &"-f", &"vpc", &theirs, &size.to_string()]);
        let rounded = size_with_qemu(&theirs);
        let image = Image::open(&ours).unwrap();
        assert_eq!((image.virtual_size(), size_with_qemu(&ours)), (rounded, rounded), "{size}");
        let mut last = [0; 1024];
        image.read_exact_at(&mut last[..(rounded - size + 512).min(1024) as usize], size - 512).unwrap();
        assert!(last[..512] == [7; 512] && last[512..] == [0; 512], "{size}");
        // It ignores zeros after the end.
        if size < 1 << 30 {
            qemu_img(&[&"compare", &"-q", &"-f", &"raw", &"-F", &"vpc", &source, &ours]);
        }
    }
}

#[test]
fn images_of_qemu_are_read() {
    needs_qemu!("the VHDs that qemu-img writes");
    let dir = TempDir::new();
    for kind in ["dynamic", "fixed"] {
        for force_size in ["on", "off"] {
            for (what, guest) in guests() {
                let options = format!("subformat={kind},force_size={force_size}");
                let what = format!("{options}, {what}");
                let source = dir.file("source.raw", &guest);
                let image = dir.join("theirs.vhd");
                qemu_img(&[&"convert", &"-f", &"raw", &"-O", &"vpc", &"-o", &options, &source, &image]);
                let opened = Image::open(&image).unwrap_or_else(|e| panic!("{what}: {e}"));
                let theirs = read_with_qemu(&image, &["-f", "vpc"]);
                assert_same(&content(&opened).unwrap(), &theirs, &what);
                assert_same(&theirs[..guest.len()], &guest, &what);
                assert!(force_size == "off" || theirs.len() == guest.len(), "{what}: {}", theirs.len());
                let said: Vec<_> = opened.info().specific.iter().filter(|(key, _)| *key == "subformat").collect();
                assert_eq!(said, [&("subformat", kind.into())], "{what}");
            }
        }
    }
}

#[test]
fn images_changed_by_qemu_are_read() {
    needs_qemu!("the VHDs that qemu-io writes");
    let dir = TempDir::new();
    for (seed, kind) in ["dynamic", "dynamic,force_size=on", "fixed", "fixed,force_size=on"].into_iter().enumerate() {
        for by_us in [false, true] {
            let size = (9 << 20) + 512;
            let image = dir.join("image.vhd");
            let options = format!("subformat={kind}");
            if by_us {
                vpc(&options).convert(&raw_image(&Pattern::Islands.make(size)), &image).unwrap();
            } else {
                qemu_img(&[&"create", &"-q", &"-f", &"vpc", &"-o", &options, &image, &size.to_string()]);
            }
            qemu_io_as("vpc", &image, &write_commands(size as u64, seed as u64 + 30, 20));
            let opened = Image::open(&image).unwrap();
            assert_eq!(opened.info().warnings.len(), 0, "{kind}: {:?}", opened.info().warnings);
            let theirs = read_with_qemu(&image, &["-f", "vpc"]);
            assert_same(&content(&opened).unwrap(), &theirs, &format!("{kind}, by us: {by_us}"));
        }
    }
}

/// A disk of 10 GiB and a sector is rounded up to 1 MiB, as Azure requires.
#[test]
fn preset_azure() {
    needs_qemu!("VHD images for Azure");
    let dir = TempDir::new();
    let (source, target) = (dir.join("source.raw"), dir.join("azure.vhd"));
    let file = sparse_file(&source, (10 << 30) + 512);
    let (first, last) = (pattern::Random::new(1).bytes(100_000), [5; 512]);
    file.write_all_at(&first, 1 << 20).unwrap();
    file.write_all_at(&last, 10 << 30).unwrap();
    vpc("preset=azure").convert(&open_raw(&source), &target).unwrap();
    let size = (10 << 30) + (1 << 20);
    assert_eq!(fs::metadata(&target).unwrap().len(), size + 512);
    assert_eq!(size_with_qemu(&target), size);
    let image = Image::open(&target).unwrap();
    assert_eq!((image.info().format, image.virtual_size()), ("vpc", size));
    for (bytes, at) in [(&first[..], 1 << 20), (&last, 10 << 30), (&[0; 4096], size - 4096)] {
        let mut read = vec![1; bytes.len()];
        image.read_exact_at(&mut read, at).unwrap();
        assert_same(&read, bytes, "azure");
    }
    drop(image);
    // The file is sparse.
    use std::os::unix::fs::MetadataExt;
    assert!(fs::metadata(&target).unwrap().blocks() * 512 < 4 << 20);
    if LIBYAL.is_there("VHD images for Azure, read by libvhdi") {
        assert_eq!(LIBYAL.sizes("vpc", std::slice::from_ref(&target)), [size]);
    }
    for size in [19 << 20, (32767 << 30) + 512] {
        let error = vpc("preset=azure").create(size, &target).err().unwrap();
        assert!(error.to_string().contains("Azure"), "{error}");
    }
}

/// Differencing images of Windows are refused without the parent, and the error names it.
#[test]
fn windows_differencing_images() {
    let dir = TempDir::new();
    for (child, parent) in [("ntfs-differential.vhd", "ntfs-parent.vhd"), ("win8-child.vhd", "win8.vhd")] {
        let (path, parent) = (unpack_to(&dir, child), dir.join(parent));
        assert_knows_its_parent(&path, &parent, &vpc(""), |guest| {
            if LIBYAL.is_there("Windows differencing images, read by libvhdi") {
                LIBYAL.assert_reads_chain("vpc", &[path.clone(), parent.clone()], guest);
            }
            if let Some(seven_zip) = find("Windows differencing images, read by 7-Zip", &["7zz", "7z"]) {
                assert_same(&read_with_7zip(&seven_zip, "vhd", &path), guest, child);
            }
        });
    }
}

#[test]
fn virtualbox_snapshots() {
    let dir = TempDir::new();
    let path = unpack_to(&dir, "virtualbox-grandchild.vhd");
    let error = Image::open(&path).err().unwrap();
    assert!(error.kind().as_str() == "reference" && error.to_string().contains("virtualbox-child.vhd"), "{error}");
    let opened = open_beside(&path).unwrap();
    assert_eq!(opened.layer_count(), 3);
    let guest = content(&opened).unwrap();
    if LIBYAL.is_there("VirtualBox snapshots, read by libvhdi") {
        let chain = ["grandchild", "child", "dynamic"].map(|name| dir.join(&format!("virtualbox-{name}.vhd")));
        LIBYAL.assert_reads_chain("vpc", &chain, &guest);
    }
    if let Some(seven_zip) = find("VirtualBox snapshots, read by 7-Zip", &["7zz", "7z"]) {
        assert_same(&read_with_7zip(&seven_zip, "vhd", &path), &guest, "VirtualBox");
    }
}

#[test]
fn written_overlays_are_valid() {
    let Some(seven_zip) = find("VHDs over others that we write", &["7zz", "7z"]) else { return };
    let base_guest = Pattern::Islands.make((5 << 20) + 512);
    for (seed, base_kind) in KINDS.into_iter().enumerate() {
        for block_size in ["512k", "2M"] {
            let dir = TempDir::new();
            let what = format!("block size {block_size}, parent {base_kind}");
            let base = dir.join("base.vhd");
            vpc(base_kind).convert(&raw_image(&base_guest), &base).unwrap();
            let guest = changed(&base_guest, base_guest.len(), seed as u64 + 50);
            let target = dir.join("overlay.vhd");
            vpc(&format!("block_size={block_size}"))
                .backing(Image::open(&base).unwrap(), "base.vhd")
                .convert(&raw_image(&guest), &target)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(open_beside(&target).unwrap().layer_count(), 2, "{what}");
            assert_same(&content(&open_beside(&target).unwrap()).unwrap(), &guest, &what);
            assert_same(&read_with_7zip(&seven_zip, "vhd", &target), &guest, &what);
        }
    }
}

#[cfg(feature = "cli")]
mod program {
    use super::*;
    use crate::cli::{imgconv, succeed};

    #[test]
    fn info_detects_fixed_disks() {
        let dir = TempDir::new();
        unpack_to(&dir, "node-vhd-fixed.vhd");
        unpack_to(&dir, "virtualbox-fixed.vhd");
        dir.file("source.raw", &Pattern::Dense.make((1 << 20) + 512));
        succeed(&dir, &["convert", "-O", "vpc", "-o", "subformat=fixed", "source.raw", "ours.vhd"]);
        // Without an extension.
        fs::rename(dir.join("ours.vhd"), dir.join("ours")).unwrap();
        for (image, size) in
            [("node-vhd-fixed.vhd", 10 << 20), ("virtualbox-fixed.vhd", 5248000), ("ours", (1 << 20) + 512)]
        {
            let said = succeed(&dir, &["info", "--output", "json", image]);
            let info: Value = serde_json::from_str(&said).unwrap();
            assert_eq!(info["format"], "vpc", "{said}");
            assert_eq!(info["virtual-size"], size, "{said}");
            assert_eq!(info["format-specific"]["data"]["subformat"], "fixed", "{said}");
            let said = succeed(&dir, &["info", image]);
            assert!(said.contains("file format: vpc") && said.contains("subformat: fixed"), "{said}");
            assert!(said.contains(&format!("({size} bytes)")), "{said}");
        }
    }

    #[test]
    fn output_to_a_pipe_equals_output_to_a_file() {
        let dir = TempDir::new();
        let pinned = "uuid=6a37380f-5548-4359-90f4-3bcea33d6cdb,timestamp=1000000000";
        for (pattern, size) in
            [(Pattern::Sparse, 5 << 20), (Pattern::Tail, 1 << 20), (Pattern::Empty, 3 << 20), (Pattern::Empty, 0)]
        {
            dir.file("source.raw", &pattern.make(size));
            for options in ["subformat=fixed", "subformat=fixed,force_size=off", "preset=azure", "subformat=dynamic"] {
                if options == "preset=azure" {
                    sparse_file(&dir.join("source.raw"), (21 << 20) + 512);
                }
                let options = format!("{options},{pinned}");
                let args = ["convert", "-O", "vpc", "-o", &options, "source.raw", "file.vhd"];
                assert!(imgconv(&dir, &args).status.success(), "{options}");
                let file = fs::read(dir.join("file.vhd")).unwrap();
                for threads in ["1", "5"] {
                    let args = ["convert", "-m", threads, "-O", "vpc", "-o", &options, "source.raw", "-"];
                    let done = imgconv(&dir, &args);
                    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
                    assert_same(&done.stdout, &file, &format!("{options}, {pattern:?}, {size}, {threads} threads"));
                }
            }
        }
    }
}
