//! The formats that are not on by default: deterministic output, untrusted images, large disks, and backing files.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use crate::hostile::{conversion_fails, open_as};
use crate::support::pattern::Pattern;
use crate::support::{
    TempDir, assert_same, content, convert, format, open_raw, options, parallels, qcow, qed, raw_image,
};
use diskimage::io::MemFile;
use diskimage::{Comparison, Converter, Error, Image, OpenOptions, ReferencePolicy, ReferenceProblem, compare};

/// Every way of writing.
fn converters() -> Vec<(&'static str, Converter)> {
    vec![
        ("qed", qed("")),
        ("qed", qed("cluster_size=4k,table_size=2")),
        ("qcow", qcow("")),
        ("qcow", qcow("").compress(true)),
        ("qcow", qcow("cluster_size=64k,compression_level=1").compress(true)),
        ("parallels", parallels("")),
        ("parallels", parallels("cluster_size=4k")),
    ]
}

/// Several work ranges with data of all kinds.
fn guest() -> Vec<u8> {
    let mut guest = vec![0; 5 << 20];
    for (part, pattern) in [Pattern::Dense, Pattern::Islands, Pattern::Incompressible].iter().enumerate() {
        let at = (part + 1) * (1 << 20) + (700 << 10);
        guest[at..at + (400 << 10)].copy_from_slice(&pattern.make(400 << 10));
    }
    guest.extend(Pattern::Incompressible.make(20 << 10));
    guest
}

#[test]
fn output_depends_neither_on_threads_nor_on_how_the_source_is_stored() {
    let guest = guest();
    for (name, converter) in converters() {
        let (first, report) = convert(&converter.clone().threads(1), &raw_image(&guest));
        let image = open_as(name, &first).unwrap();
        assert_same(&content(&image).unwrap(), &guest, name);
        for threads in [2, 5] {
            let (other, other_report) = convert(&converter.clone().threads(threads), &raw_image(&guest));
            assert_same(&other, &first, name);
            assert_eq!(other_report, report, "{name}");
            assert_same(&convert(&converter.clone().threads(threads), &image).0, &first, name);
        }
    }
}

#[test]
fn payloads_of_qcow_and_qcow2_are_the_same() {
    let source = raw_image(&guest());
    let list = "cluster_size=64k";
    let compressed = |name: &str, list| Converter::new(format(name)).options(options(list)).compress(true);
    let (old, report) = convert(&compressed("qcow", list), &source);
    assert!(report.compressed_blocks > 10, "{report}");
    let (new, converted) = convert(&compressed("qcow2", list), &open_as("qcow", &old).unwrap());
    assert_eq!(converted.passthrough_blocks, report.compressed_blocks);
    let (back, converted) = convert(&compressed("qcow", list), &open_as("qcow2", &new).unwrap());
    assert_eq!(converted.passthrough_blocks, report.compressed_blocks);
    assert_same(&back, &old, "there and back");
}

#[test]
fn truncated_images_are_refused() {
    let guest = Pattern::Islands.make(300 << 10);
    for (name, converter) in converters() {
        let (whole, _) = convert(&converter, &raw_image(&guest));
        let mut errors = 0;
        for len in (0..1024).chain((1024..whole.len()).step_by(4095)).chain([whole.len() - 1]) {
            match open_as(name, &whole[..len]).and_then(|image| content(&image)) {
                // No guest sees the end of the last cluster.
                Ok(read) => assert_same(&read, &guest, &format!("{name}, cut to {len}")),
                Err(error) => {
                    let kind = error.kind();
                    assert!(matches!(kind.as_str(), "invalid-field" | "out-of-bounds"), "{name}, {len}: {error}");
                    errors += 1;
                }
            }
        }
        assert!(errors > 1024, "{name}: {errors}");
    }
}

/// Corruptions that the check finds.
fn corruptions(name: &str, bytes: &[u8]) -> u64 {
    let options = OpenOptions::new().format(format(name));
    options.check_source(Arc::new(MemFile::from(bytes.to_vec()))).unwrap().corruptions
}

#[test]
fn overlapping_qed_clusters_are_refused() {
    // An image of the clusters 9 and 10, after an L1 table and an L2 table of 4 clusters each.
    let (image, _) = convert(&qed(""), &raw_image(&[7; 128 << 10]));
    let cluster = |index: u64| index << 16;
    let put = |bytes: &mut Vec<u8>, at: u64, value: u64| {
        bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
    };
    let l2 = cluster(5);
    assert_eq!(image.len() as u64, cluster(11));
    // 64 TiB in 704 KiB: the L2 table is that of all entries of the L1 table.
    let mut bomb = image.clone();
    put(&mut bomb, 48, 64 << 40);
    (0..32768).for_each(|index| put(&mut bomb, cluster(1) + index * 8, l2));
    conversion_fails("qed", &bomb, "overlap");
    assert_eq!(corruptions("qed", &bomb), 32767);
    // 2 GiB: all entries of the L2 table are the same cluster.
    let mut bomb = image.clone();
    put(&mut bomb, 48, 2 << 30);
    (0..32768).for_each(|index| put(&mut bomb, l2 + index * 8, cluster(9)));
    conversion_fails("qed", &bomb, "overlap");
    assert_eq!(corruptions("qed", &bomb), 32767);
    for (at, value, kind) in [
        (l2 + 8, cluster(1), "overlap"),
        (l2 + 8, cluster(6), "overlap"),
        (l2 + 8, cluster(11), "out-of-bounds"),
        (l2 + 8, !0xffff, "out-of-bounds"),
        (l2 + 8, cluster(10) + 512, "invalid-field"),
        (cluster(1), cluster(1), "overlap"),
        (cluster(1), cluster(8), "out-of-bounds"),
    ] {
        let mut bytes = image.clone();
        put(&mut bytes, at, value);
        conversion_fails("qed", &bytes, kind);
        assert!(corruptions("qed", &bytes) > 0, "{at:#x} {value:#x}");
    }
}

#[test]
fn overlapping_qcow_clusters_are_refused() {
    // The L1 table in the first cluster, the L2 table in the second.
    let (image, _) = convert(&qcow(""), &raw_image(&[7; 1 << 20]));
    let put = |bytes: &mut Vec<u8>, at: u64, value: u64| {
        bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
    };
    for (at, value, kind) in [
        (4096 + 8, 8192, "overlap"),
        (4096 + 8, 4096, "overlap"),
        (4096 + 8, 1 << 40, "out-of-bounds"),
        (4096 + 8, 8192 + 512, "invalid-field"),
        (4096 + 8, 1 << 63 | 8192, "invalid-field"),
        (4096 + 8, 1 << 63 | 100 << 51 | 5000, "overlap"),
        (4096 + 8, 1 << 63 | 100 << 51 | 1 << 40, "out-of-bounds"),
        (48, 48, "invalid-field"),
        (48, 1 << 60, "out-of-bounds"),
    ] {
        let mut bytes = image.clone();
        put(&mut bytes, at, value);
        conversion_fails("qcow", &bytes, kind);
    }
    // A payload that all clusters share.
    let (mut bytes, _) = convert(&qcow("").compress(true), &raw_image(&[7; 1 << 20]));
    let entry = u64::from_be_bytes(bytes[4096..4104].try_into().unwrap());
    assert_eq!(entry >> 63, 1);
    (0..256).for_each(|index| put(&mut bytes, 4096 + index * 8, entry));
    conversion_fails("qcow", &bytes, "overlap");
    // An L2 table that is used twice, and an L1 table of a disk that no file is large enough for.
    let mut bytes = image.clone();
    put(&mut bytes, 24, 4 << 20);
    put(&mut bytes, 56, 4096);
    conversion_fails("qcow", &bytes, "overlap");
    put(&mut bytes, 24, 1 << 48);
    conversion_fails("qcow", &bytes, "out-of-bounds");
    put(&mut bytes, 24, 1 << 62);
    conversion_fails("qcow", &bytes, "limit");
}

#[test]
fn overlapping_parallels_clusters_are_refused() {
    // A header with so many entries of the BAT, all of them the same.
    let image = |magic: &[u8], tracks: u32, entries: u32, entry: u32, len: usize| {
        let mut bytes = vec![0; 64];
        bytes[..16].copy_from_slice(magic);
        for (at, number) in [(16, 2), (28, tracks), (32, entries)] {
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        bytes[36..44].copy_from_slice(&(u64::from(tracks) * u64::from(entries)).to_le_bytes());
        bytes.extend(entry.to_le_bytes().repeat(entries as usize));
        bytes.resize(len, 7);
        bytes
    };
    let (old, new) = (b"WithoutFreeSpace", b"WithouFreSpacExt");
    // A TiB in 6 MiB.
    let bomb = image(new, 2048, 1 << 20, 5, 6 << 20);
    conversion_fails("parallels", &bomb, "overlap");
    assert_eq!(corruptions("parallels", &bomb), (1 << 20) - 1);
    for (magic, tracks, entries, entry, kind) in [
        // Clusters of 63 sectors, in sectors.
        (old, 63, 2, 1, "overlap"),
        (old, 63, 200, 1, "overlap"),
        (old, 63, 1, 1000, "out-of-bounds"),
        (new, 1, 200, 1, "overlap"),
        (new, 8, 1, u32::MAX, "out-of-bounds"),
    ] {
        let bytes = image(magic, tracks, entries, entry, 64 << 10);
        conversion_fails("parallels", &bytes, kind);
        assert!(corruptions("parallels", &bytes) > 0);
    }
}

#[test]
fn disks_of_64_tib_and_back() {
    let tmpfs = std::path::Path::new("/dev/shm");
    let dir = if tmpfs.is_dir() { TempDir::under(tmpfs) } else { TempDir::new() };
    let (source, image, flat) = (dir.join("source.raw"), dir.join("image"), dir.join("flat.raw"));
    let file = std::fs::File::create(&source).unwrap();
    if let Err(error) = file.set_len(64 << 40) {
        eprintln!("SKIPPED: old formats of 64 TiB: no place for a sparse file of 64 TiB: {error}");
        return;
    }
    let stored = |path| std::fs::metadata(path).unwrap().blocks() * 512;
    for (name, converter) in
        [("qed", qed("")), ("qcow", qcow("cluster_size=64k")), ("parallels", parallels("cluster_size=64M"))]
    {
        for stored_bytes in [0, 65536] {
            file.set_len(0).unwrap();
            file.set_len(64 << 40).unwrap();
            file.write_all_at(&vec![0xab; stored_bytes], (64 << 40) - stored_bytes as u64).unwrap();
            converter.convert(&open_raw(&source), &image).unwrap();
            // Tables are as sparse as the disk.
            assert!(stored(&image) <= 1 << 20, "{name}: {}", stored(&image));
            let opened = Image::open(&image).unwrap();
            assert_eq!((opened.format().name(), opened.virtual_size()), (name, 64 << 40));
            crate::support::raw().convert(&opened, &flat).unwrap();
            assert_eq!((std::fs::metadata(&flat).unwrap().len(), stored(&flat)), (64 << 40, stored_bytes as u64));
            assert_eq!(compare(&open_raw(&source), &opened).unwrap(), Comparison::Identical, "{name}");
        }
    }
}

#[test]
fn a_backing_file_of_another_format_than_raw_has_to_be_stated() {
    let dir = TempDir::new();
    let base_guest = Pattern::Dense.make(1 << 20);
    let mut guest = base_guest.clone();
    guest[300 << 10..400 << 10].fill(0);
    guest[500 << 10] ^= 1;
    for base_format in ["raw", "qcow2"] {
        let base = dir.join("base");
        Converter::new(format(base_format)).convert(&raw_image(&base_guest), &base).unwrap();
        for (name, converter) in [("qed", qed("")), ("qcow", qcow(""))] {
            let opened_base = OpenOptions::new().format(format(base_format)).open(&base).unwrap();
            let overlay = dir.join("overlay");
            let converter = converter.backing(opened_base, "base");
            let report = converter.convert(&raw_image(&guest), &overlay).unwrap();
            assert!(report.data_bytes <= 192 << 10, "{name}: {report}");
            assert!(Image::open(&overlay).is_err());
            let beside = OpenOptions::new().reference_policy(ReferencePolicy::Beside);
            if base_format == "raw" {
                assert_same(&content(&beside.open(&overlay).unwrap()).unwrap(), &guest, name);
            } else {
                let error = beside.open(&overlay).err().unwrap();
                let problem = ReferenceProblem::FormatNotStated("qcow2");
                assert!(
                    matches!(error.root(), Error::Reference { problem: found, .. } if *found == problem),
                    "{error}"
                );
            }
            let stated = beside.backing_format(format(base_format));
            assert_same(&content(&stated.open(&overlay).unwrap()).unwrap(), &guest, name);
        }
    }
    // What a guest writes to a raw base is not detected where the image says that it is raw.
    let mut guest = b"QFI\xfb\0\0\0\x03".to_vec();
    guest.resize(64 << 10, 1);
    let base = dir.file("base", &guest);
    for (name, converter, kind) in [("qed", qed(""), None), ("qcow", qcow(""), Some("reference"))] {
        let overlay = dir.join("overlay");
        converter.backing(open_raw(&base), "base").create(64 << 10, &overlay).unwrap();
        let opened = OpenOptions::new().reference_policy(ReferencePolicy::Beside).open(&overlay);
        assert_eq!(opened.err().map(|error| error.kind().as_str()), kind, "{name}");
    }
}

#[test]
fn encrypted_qcow_images_are_inspected_but_not_opened_without_a_secret() {
    let (mut bytes, _) = convert(&qcow(""), &raw_image(&[7; 4096]));
    bytes[39] = 1;
    let error = open_as("qcow", &bytes).err().unwrap();
    assert_eq!(error.to_string(), "qcow: the image is encrypted, and no secret is given");
    let inspection = OpenOptions::new().inspect_source(Arc::new(MemFile::from(bytes))).unwrap();
    assert_eq!((inspection.format.name(), inspection.info.encryption), ("qcow", Some("AES")));
}
