//! The same bytes from any number of threads, and from a second conversion.

use crate::support::pattern::{Pattern, Random};
use crate::support::{
    TempDir, assert_same, content, convert, open_raw, qcow2, qcow2_bytes, qcow2_image, raw, raw_image,
};
use diskimage::{Converter, Image};

/// Converts with 1, 2, 3 and 8 threads to the same bytes, which are returned.
#[track_caller]
fn same_for_all_threads(converter: &Converter, source: &Image, what: &str) -> Vec<u8> {
    let (bytes, report) = convert(&converter.clone().threads(1), source);
    for threads in [2, 3, 8] {
        let (others, other_report) = convert(&converter.clone().threads(threads), source);
        assert_same(&others, &bytes, &format!("{what}, {threads} threads"));
        assert_eq!(other_report, report, "{what}, {threads} threads");
    }
    bytes
}

/// Several work ranges, with data of all kinds in them and zeros between.
fn guest() -> Vec<u8> {
    let mut guest = vec![0; 9 << 20];
    for (part, pattern) in
        [Pattern::Dense, Pattern::Islands, Pattern::Sparse, Pattern::Incompressible].iter().enumerate()
    {
        let at = (part + 1) * (2 << 20) - (300 << 10);
        guest[at..at + (400 << 10)].copy_from_slice(&pattern.make(400 << 10));
    }
    guest.extend(Random::new(7).bytes((20 << 10) + 512));
    guest
}

const OPTIONS: [(&str, bool); 9] = [
    ("", false),
    ("", true),
    ("cluster_size=4k", false),
    ("cluster_size=4k,compression_level=1", true),
    ("compression_type=zstd", true),
    ("extended_l2=on", false),
    ("extended_l2=on,preallocation=metadata", false),
    ("preallocation=full,compat=0.10", false),
    ("cluster_size=2M,refcount_bits=1", true),
];

#[test]
fn any_number_of_threads() {
    let source = raw_image(&guest());
    for (options, compress) in OPTIONS {
        same_for_all_threads(&qcow2(options).compress(compress), &source, options);
    }
    same_for_all_threads(&raw(), &source, "raw");
}

#[test]
fn a_result_is_a_fixed_point() {
    let guest = guest();
    for (options, compress) in OPTIONS {
        let converter = qcow2(options).compress(compress);
        let first = qcow2_bytes(&converter, &guest);
        let image = qcow2_image(&first).unwrap();
        assert_same(&content(&image).unwrap(), &guest, options);
        let second = same_for_all_threads(&converter, &image, options);
        assert_same(&second, &first, options);
        assert_same(&convert(&raw(), &image).0, &guest, options);
    }
}

#[test]
fn compressed_clusters_are_copied() {
    let guest = guest();
    for options in ["", "compression_type=zstd", "cluster_size=4k"] {
        let source = qcow2_image(&qcow2_bytes(&qcow2(options).compress(true), &guest)).unwrap();
        let (_, report) = convert(&qcow2(options).compress(true), &source);
        assert!(report.compressed_blocks > 10, "{options}: {report:?}");
        assert_eq!(report.copied_blocks, report.compressed_blocks, "{options}");
        // With other counts and other extensions around them, they are the same clusters.
        let other = format!("{options},refcount_bits=8,lazy_refcounts=on");
        let (bytes, report) = convert(&qcow2(&other).compress(true), &source);
        assert_eq!(report.copied_blocks, report.compressed_blocks, "{other}");
        assert_same(&content(&qcow2_image(&bytes).unwrap()).unwrap(), &guest, &other);
        // With clusters of another size they are not.
        let other = format!("{options},cluster_size=32k");
        let (bytes, report) = convert(&qcow2(&other).compress(true), &source);
        assert_eq!(report.copied_blocks, 0, "{other}");
        assert!(report.compressed_blocks > 0, "{other}");
        assert_same(&content(&qcow2_image(&bytes).unwrap()).unwrap(), &guest, &other);
    }
    let zlib = qcow2_image(&qcow2_bytes(&qcow2("").compress(true), &guest)).unwrap();
    let (bytes, report) = convert(&qcow2("compression_type=zstd").compress(true), &zlib);
    assert_eq!(report.copied_blocks, 0);
    assert_same(&content(&qcow2_image(&bytes).unwrap()).unwrap(), &guest, "zlib to zstd");
}

#[test]
fn overlays() {
    let dir = TempDir::new();
    let base_guest = guest();
    let base = dir.file("base.raw", &base_guest);
    let mut guest = base_guest;
    for at in (0..guest.len()).step_by(777_777) {
        guest[at] ^= 0x55;
    }
    guest[4 << 20..5 << 20].fill(0);
    let source = raw_image(&guest);
    for (options, compress) in [("", false), ("", true), ("extended_l2=on", false), ("compat=0.10", true)] {
        let converter = qcow2(options).compress(compress).backing(open_raw(&base), "base.raw");
        same_for_all_threads(&converter, &source, options);
    }
}

#[test]
fn zero_detection_is_as_fine_as_asked_for() {
    let mut guest = vec![0; 1 << 20];
    for at in (0..guest.len()).step_by(64 << 10) {
        guest[at + 8192..at + 8704].fill(1);
    }
    let source = raw_image(&guest);
    let stored = |sparse: u64| {
        let (bytes, report) = convert(&raw().sparse(sparse), &source);
        assert_same(&bytes, &guest, "sparse");
        report.data_bytes
    };
    assert_eq!(stored(512), 16 * 512);
    assert_eq!(stored(4096), 16 * 4096);
    assert_eq!(stored(64 << 10), 1 << 20);
    assert_eq!(stored(0), 1 << 20);
}
