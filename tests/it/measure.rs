//! Measuring images: never less than what a conversion writes.

use std::fs;
use std::sync::Arc;

use crate::support::pattern::Pattern;
use crate::support::{SparseFile, TempDir, format, open_raw, options};
use diskimage::io::WriteAt;
use diskimage::{Converter, Image, Measure, OpenOptions};

/// Formats and options whose images all have holes, or all none.
const TARGETS: &[(&str, &str)] = &[
    ("raw", ""),
    ("qcow2", ""),
    ("qcow2", "cluster_size=512"),
    ("qcow2", "cluster_size=2M,extended_l2=on,refcount_bits=64"),
    ("qcow2", "preallocation=metadata"),
    ("qcow2", "preallocation=full,cluster_size=4k"),
    ("vdi", ""),
    ("vdi", "static=on"),
    ("vmdk", ""),
    ("vmdk", "subformat=monolithicFlat"),
    ("vmdk", "subformat=twoGbMaxExtentSparse"),
    ("vmdk", "subformat=twoGbMaxExtentFlat"),
    ("vmdk", "subformat=streamOptimized"),
    ("vpc", ""),
    ("vpc", "subformat=fixed"),
    ("vhdx", ""),
    ("vhdx", "subformat=fixed"),
    #[cfg(feature = "qed")]
    ("qed", ""),
    #[cfg(feature = "qcow")]
    ("qcow", ""),
    #[cfg(feature = "parallels")]
    ("parallels", ""),
];

fn converter(name: &str, list: &str) -> Converter {
    Converter::new(format(name)).options(options(list)).sync(false)
}

/// The length of all files that the conversion makes.
fn converted(converter: &Converter, source: Option<&Image>, size: u64, name: &str) -> u64 {
    let dir = TempDir::new();
    // The longest name possible: descriptors have it in them.
    let target = dir.join(&format!("{}.{name}", "x".repeat(200)));
    match source {
        Some(source) => converter.convert(source, &target).unwrap(),
        None => converter.create(size, &target).unwrap(),
    };
    fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn no_conversion_writes_more_than_was_measured() {
    let dir = TempDir::new();
    for pattern in [Pattern::Empty, Pattern::Islands, Pattern::Tail, Pattern::Incompressible] {
        let guest = pattern.make((3 << 20) + 512);
        let source = open_raw(&dir.file("source.raw", &guest));
        for (name, list) in TARGETS {
            let converter = converter(name, list);
            let what = format!("{name} {list} {pattern:?}");
            let measure = converter.measure(&source).unwrap();
            let written = converted(&converter, Some(&source), 0, name);
            assert!(written <= measure.required, "{what}: {written} bytes, {measure:?}");
            assert!(measure.required <= measure.fully_allocated, "{what}: {measure:?}");
            // With descriptors, tables and frames that are counted as if they were needed.
            let slack = 65536 + 16 * 1024 + guest.len() as u64 / 100;
            let is_exact = pattern == Pattern::Incompressible && !list.contains("2M");
            assert!(!is_exact || measure.required - written <= slack, "{what}: {written} bytes, {measure:?}");
        }
    }
}

#[test]
fn an_empty_image_is_as_long_as_measured() {
    for size in [0, 512, 1_000_000, 5 << 30] {
        for (name, list) in TARGETS {
            // Images of several files have names in them; qemu counts tables that the writer leaves out.
            let has_other_rule =
                *name == "qcow2" || list.contains("Flat") || list.contains("2Gb") || list.contains("twoGb");
            if list.contains("full") || (size == 0 && !matches!(*name, "raw" | "qcow2")) {
                continue;
            }
            let converter = converter(name, list);
            let measure = converter.measure_size(size).unwrap();
            let written = converted(&converter, None, size, name);
            let what = format!("{name} {list} of {size} bytes: {written} bytes, {measure:?}");
            match (has_other_rule, *name) {
                (true, _) if list.contains("metadata") => assert!(measure.fully_allocated >= written, "{what}"),
                (true, _) => assert!(measure.required >= written, "{what}"),
                (false, "raw") => assert_eq!(measure.required, size.next_multiple_of(512), "{what}"),
                (false, _) => assert_eq!(measure.required, written, "{what}"),
            }
        }
    }
}

#[test]
fn the_whole_disk_is_as_long_as_measured() {
    for (name, list) in TARGETS.iter().filter(|(_, list)| !list.contains("streamOptimized")) {
        let dir = TempDir::new();
        let source = open_raw(&dir.file("source.raw", &Pattern::Incompressible.make(2 << 20)));
        let converter = converter(name, list);
        let measure = converter.measure_size(2 << 20).unwrap();
        assert_eq!(measure.fully_allocated, converter.measure(&source).unwrap().required, "{name} {list}");
    }
}

#[test]
fn no_guest_data_is_read() {
    let file = Arc::new(SparseFile::default());
    file.set_len(1 << 40).unwrap();
    file.write_all_at(&[1; 5000], 7 << 30).unwrap();
    let source = OpenOptions::new().format(format("raw")).open_source(file.clone()).unwrap();
    file.take_calls();
    let measure = converter("qcow2", "cluster_size=4k").measure(&source).unwrap();
    assert_eq!(file.take_calls().reads, 0);
    let empty = converter("qcow2", "cluster_size=4k").measure_size(1 << 40).unwrap();
    assert_eq!(measure.required - empty.required, 8192);
    assert_eq!(measure.fully_allocated, empty.fully_allocated);
    let vdi = converter("vdi", "").measure(&source).unwrap();
    assert_eq!(vdi.required - converter("vdi", "").measure_size(1 << 40).unwrap().required, 1 << 20);
    assert_eq!(file.take_calls().reads, 0);
}

#[test]
fn options_are_checked_and_secrets_are_not_needed() {
    let kind = |name, list| converter(name, list).measure_size(1 << 20).map_err(|error| error.kind().as_str());
    assert_eq!(kind("qcow2", "cluster_size=5"), Err("option"));
    assert_eq!(kind("raw", "cluster_size=512"), Err("option"));
    assert_eq!(kind("raw", "preallocation=some"), Err("option"));
    assert_eq!(kind("vdi", "no=1"), Err("option"));
    let huge = converter("raw", "").measure_size(u64::MAX).unwrap_err();
    assert_eq!(huge.kind().as_str(), "limit");
    if cfg!(feature = "crypto") {
        let luks = |list| converter("luks", list).measure_size(1 << 20).unwrap().required - (1 << 20);
        assert_eq!((luks(""), luks("version=2"), luks("cipher-mode=cbc")), (4040 * 512, 16 << 20, 2056 * 512));
        let plain = converter("qcow2", "").measure_size(1 << 20).unwrap();
        let encrypted = converter("qcow2", "encrypt.format=luks").measure_size(1 << 20).unwrap();
        assert_eq!(encrypted.required - plain.required, 32 * 65536);
    }
}

#[test]
fn an_overlay_is_measured_as_if_all_data_differed() {
    let dir = TempDir::new();
    let base = dir.file("base.raw", &Pattern::Islands.make(1 << 20));
    let Measure { required, fully_allocated, .. } =
        converter("qcow2", "").backing(open_raw(&base), "base.raw").measure(&open_raw(&base)).unwrap();
    assert_eq!(required, fully_allocated);
}
