//! Backing chains: written here and read by `qemu-img`, and the reverse.

use std::path::{Path, PathBuf};

use crate::support::pattern::{Pattern, Random};
use crate::support::tools::{check_with_qemu, needs_qemu, qemu_img, qemu_io, read_with_qemu};
use crate::support::{TempDir, assert_same, content, format, open_raw, qcow2};
use diskimage::{Image, OpenOptions, ReferencePolicy};

fn open_chain(path: &Path) -> Image {
    OpenOptions::new().reference_policy(ReferencePolicy::Beside).open(path).unwrap()
}

/// Returns `base`, resized to `size`, with random changes: data or zeros, from bytes to clusters.
pub fn changed(base: &[u8], size: usize, seed: u64) -> Vec<u8> {
    let mut bytes = base.to_vec();
    bytes.resize(size, 0);
    let mut random = Random::new(seed);
    for turn in 0..12 {
        let start = random.below(size as u64) as usize;
        let len = (1 << random.below(18)).min(size - start);
        let part = &mut bytes[start..start + len];
        if turn % 3 == 0 {
            part.fill(0);
        } else {
            part.copy_from_slice(&random.bytes(len));
        }
    }
    bytes
}

/// Creates a base image of `format` with `qemu-img`.
fn base(dir: &TempDir, format: &str, guest: &[u8]) -> PathBuf {
    let source = dir.file("base-source.raw", guest);
    let path = dir.join(&format!("base.{format}"));
    qemu_img(&[&"convert", &"-f", &"raw", &"-O", &format, &source, &path]);
    path
}

#[test]
fn written_overlays() {
    needs_qemu!("written overlays");
    let dir = TempDir::new();
    let base_guest = Pattern::Islands.make(1 << 20);
    let mut seed = 0;
    for base_format in ["raw", "qcow2"] {
        let base = base(&dir, base_format, &base_guest);
        for (options, compress) in [
            ("", false),
            ("", true),
            ("compat=0.10", false),
            ("compat=0.10", true),
            ("cluster_size=4k", false),
            ("cluster_size=2M", false),
            ("extended_l2=on", false),
            ("extended_l2=on", true),
            ("extended_l2=on,cluster_size=16k,preallocation=metadata", false),
            ("compression_type=zstd", true),
            ("lazy_refcounts=on,refcount_bits=1", true),
        ] {
            // As long as the base, longer and shorter.
            for size in [1 << 20, (1 << 20) + 300 * 512, (1 << 20) - 300 * 512] {
                seed += 1;
                let what = format!("{options}, compressed: {compress}, {size} bytes, {base_format} base, seed {seed}");
                let guest = changed(&base_guest, size, seed);
                let source = dir.file("source.raw", &guest);
                let target = dir.join("overlay.qcow2");
                let opened_base = OpenOptions::new().format(format(base_format)).open(&base).unwrap();
                qcow2(options)
                    .compress(compress)
                    .backing(opened_base, base.file_name().unwrap().to_str().unwrap())
                    .convert(&open_raw(&source), &target)
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                check_with_qemu(&target);
                assert_same(&read_with_qemu(&target, &["-f", "qcow2"]), &guest, &what);
                assert_same(&content(&open_chain(&target)).unwrap(), &guest, &what);
            }
        }
    }
}

#[test]
fn an_overlay_stores_differences_only() {
    let dir = TempDir::new();
    let mut guest = Pattern::Dense.make(4 << 20);
    let base = dir.file("base.raw", &guest);
    guest[1 << 20] ^= 1;
    let source = dir.file("source.raw", &guest);
    let target = dir.join("overlay.qcow2");
    let report = qcow2("").backing(open_raw(&base), "base.raw").convert(&open_raw(&source), &target).unwrap();
    assert_eq!(report.data_bytes, 64 << 10, "{report}");
    assert_same(&content(&open_chain(&target)).unwrap(), &guest, "overlay");
}

#[test]
fn overlays_of_qemu_img() {
    needs_qemu!("overlays of qemu-img");
    let dir = TempDir::new();
    let base_guest = Pattern::Islands.make(1 << 20);
    for base_format in ["raw", "qcow2"] {
        let base = base(&dir, base_format, &base_guest);
        for options in [
            "",
            "compat=0.10",
            "cluster_size=512",
            "cluster_size=2M",
            "extended_l2=on",
            "extended_l2=on,cluster_size=16k",
        ] {
            for size in [1 << 20, (1 << 20) + 300 * 512, (1 << 20) - 300 * 512] {
                let what = format!("{options}, {size} bytes, {base_format} base");
                let [middle, top] = ["middle.qcow2", "top.qcow2"].map(|name| dir.join(name));
                let create = |path: &Path, backing: &Path, backing_format: &str, size: u64| {
                    let options = format!(
                        "backing_file={},backing_fmt={backing_format},{options}",
                        backing.file_name().unwrap().to_str().unwrap()
                    );
                    qemu_img(&[
                        &"create",
                        &"-q",
                        &"-f",
                        &"qcow2",
                        &"-o",
                        &options.trim_end_matches(','),
                        &path,
                        &size.to_string(),
                    ]);
                };
                // The middle layer is the shortest: the base must not show beyond its end.
                create(&middle, &base, base_format, 700 << 10);
                create(&top, &middle, "qcow2", size);
                qemu_io(&middle, &write_commands(700 << 10, size, 10));
                qemu_io(&top, &write_commands(size, size + 1, 10));
                let image = open_chain(&top);
                assert_eq!(image.layer_count(), 3, "{what}");
                assert_same(&content(&image).unwrap(), &read_with_qemu(&top, &[]), &what);
                assert_eq!(image.virtual_size(), size, "{what}");
                let flat = dir.join("flat.qcow2");
                qcow2("").convert(&image, &flat).unwrap();
                qemu_img(&[&"compare", &"-q", &flat, &top]);
            }
        }
    }
}

/// Random writes, zero writes and discards for `qemu-io`, aligned to sectors.
pub fn write_commands(size: u64, seed: u64, count: usize) -> Vec<String> {
    let mut random = Random::new(seed);
    let mut commands = Vec::new();
    while commands.len() < count {
        let start = random.below(size / 512) * 512;
        let len = ((1 + random.below(256)) * 512).min(size - start);
        commands.push(match random.below(5) {
            0 => format!("write -z {start} {len}"),
            1 => format!("write -z -u {start} {len}"),
            2 => format!("discard {start} {len}"),
            _ => format!("write -P {} {start} {len}", 1 + random.below(255)),
        });
    }
    commands
}

#[test]
fn subclusters_in_all_states() {
    needs_qemu!("subclusters");
    let dir = TempDir::new();
    let size = 512 << 10;
    let base = base(&dir, "raw", &Pattern::Dense.make(size as usize));
    for seed in 0..24 {
        for backing in [None, Some(&base)] {
            let image = dir.join("image.qcow2");
            let cluster_size = ["16k", "32k", "64k", "2M"][seed as usize % 4];
            let mut options = format!("extended_l2=on,cluster_size={cluster_size}");
            if seed % 3 == 0 && backing.is_none() {
                options += ",preallocation=metadata";
            }
            if backing.is_some() {
                options += ",backing_file=base.raw,backing_fmt=raw";
            }
            qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &"-o", &options, &image, &size.to_string()]);
            qemu_io(&image, &write_commands(size, seed, 40));
            let what = format!("{options}, seed {seed}");
            let theirs = read_with_qemu(&image, &[]);
            let opened = open_chain(&image);
            assert_same(&content(&opened).unwrap(), &theirs, &what);
            // Copied to extended L2 entries, too.
            let copy = dir.join("copy.qcow2");
            qcow2("extended_l2=on,cluster_size=16k").convert(&opened, &copy).unwrap();
            check_with_qemu(&copy);
            assert_same(&read_with_qemu(&copy, &[]), &theirs, &what);
        }
    }
}
