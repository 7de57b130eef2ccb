//! The output does not depend on the number of threads, and a second conversion gives the same bytes.

use std::fs;
use std::os::unix::fs::FileExt;

use crate::support::pattern::{Pattern, Random};
use crate::support::{
    TempDir, assert_same, content, convert, open_beside, open_raw, qcow2, qcow2_bytes, qcow2_image, raw, raw_image,
    vdi, vhdx, vmdk, vpc,
};
use diskimage::{Comparison, Converter, Identifiers, Image, compare};

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
fn output_does_not_depend_on_threads() {
    let source = raw_image(&guest());
    for (options, compress) in OPTIONS {
        same_for_all_threads(&qcow2(options).compress(compress), &source, options);
    }
    same_for_all_threads(&raw(), &source, "raw");
}

#[test]
fn a_second_conversion_gives_the_same_bytes() {
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
fn compressed_clusters_pass_through() {
    let guest = guest();
    for options in ["", "compression_type=zstd", "cluster_size=4k"] {
        let source = qcow2_image(&qcow2_bytes(&qcow2(options).compress(true), &guest)).unwrap();
        let (_, report) = convert(&qcow2(options).compress(true), &source);
        assert!(report.compressed_blocks > 10, "{options}: {report:?}");
        assert_eq!(report.passthrough_blocks, report.compressed_blocks, "{options}");
        // With other counts and other extensions around them, they are the same clusters.
        let other = format!("{options},refcount_bits=8,lazy_refcounts=on");
        let (bytes, report) = convert(&qcow2(&other).compress(true), &source);
        assert_eq!(report.passthrough_blocks, report.compressed_blocks, "{other}");
        assert_same(&content(&qcow2_image(&bytes).unwrap()).unwrap(), &guest, &other);
        // With clusters of another size they are not.
        let other = if options == "cluster_size=4k" {
            "cluster_size=32k".into()
        } else {
            format!("{options},cluster_size=32k")
        };
        let (bytes, report) = convert(&qcow2(&other).compress(true), &source);
        assert_eq!(report.passthrough_blocks, 0, "{other}");
        assert!(report.compressed_blocks > 0, "{other}");
        assert_same(&content(&qcow2_image(&bytes).unwrap()).unwrap(), &guest, &other);
    }
    let zlib = qcow2_image(&qcow2_bytes(&qcow2("").compress(true), &guest)).unwrap();
    let (bytes, report) = convert(&qcow2("compression_type=zstd").compress(true), &zlib);
    assert_eq!(report.passthrough_blocks, 0);
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
fn zero_detection_follows_the_sparse_setting() {
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

const VMDK: [&str; 9] = [
    "",
    "zeroed_grain=on",
    "subformat=streamOptimized",
    "subformat=streamOptimized,compression_level=1",
    "subformat=monolithicFlat",
    "subformat=twoGbMaxExtentSparse",
    "subformat=twoGbMaxExtentFlat",
    "subformat=vmfs",
    "cid=12345678,adapter_type=ide",
];

/// All the files of a VMDK image that is made of `source`, with their names.
fn vmdk_files(converter: &Converter, source: &Image) -> Vec<(String, Vec<u8>)> {
    let dir = TempDir::new();
    converter.convert(source, dir.join("disk.vmdk")).unwrap();
    dir.names().into_iter().map(|name| (name.clone(), fs::read(dir.join(&name)).unwrap())).collect()
}

#[track_caller]
fn assert_same_files(left: &[(String, Vec<u8>)], right: &[(String, Vec<u8>)], what: &str) {
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(left), names(right), "{what}");
    for ((name, left), (_, right)) in left.iter().zip(right) {
        assert_same(left, right, &format!("{what}, {name}"));
    }
}

#[test]
fn vmdk_output_is_deterministic() {
    let guest = guest();
    for list in VMDK {
        let converter = vmdk(list).identifiers(Identifiers::Reproducible { time: 0 });
        let first = vmdk_files(&converter.clone().threads(1), &raw_image(&guest));
        for threads in [2, 3, 8] {
            let others = vmdk_files(&converter.clone().threads(threads), &raw_image(&guest));
            assert_same_files(&others, &first, &format!("{list}, {threads} threads"));
        }
        // A second conversion is a fixed point, whatever its threads.
        let dir = TempDir::new();
        first.iter().for_each(|(name, bytes)| drop(dir.file(name, bytes)));
        let image = open_beside(&dir.join("disk.vmdk")).unwrap();
        assert_same(&content(&image).unwrap(), &guest, list);
        assert_same_files(&vmdk_files(&converter.threads(3), &image), &first, list);
    }
}

#[test]
fn vpc_vdi_and_vhdx_output_is_deterministic() {
    let guest = guest();
    for (converter, list) in ["", "block_size=512k", "subformat=fixed", "timestamp=1000000000"]
        .map(|list| (vpc(list), list))
        .into_iter()
        .chain(["", "block_size=128k", "static=on", "static=on,block_size=4M"].map(|list| (vdi(list), list)))
        .chain(["", "block_size=1M,block_state_zero=off", "subformat=fixed"].map(|list| (vhdx(list), list)))
    {
        let converter = converter.identifiers(Identifiers::Reproducible { time: 1_700_000_000 });
        let first = same_for_all_threads(&converter, &raw_image(&guest), list);
        let open = || {
            let options = diskimage::OpenOptions::new();
            options.open_source(std::sync::Arc::new(diskimage::io::MemFile::from(first.clone()))).unwrap()
        };
        assert_same(&content(&open()).unwrap(), &guest, list);
        assert_same(&same_for_all_threads(&converter, &open(), list), &first, list);
        let random = |from| convert(&converter.clone().identifiers(from), &raw_image(&guest)).0;
        assert!(random(Identifiers::Random) != random(Identifiers::Random), "{list}");
    }
}

#[test]
fn fixed_images_keep_holes_of_the_file() {
    let dir = TempDir::new();
    let mut guest = guest();
    // Some bytes amid a block that is a hole but for them, and others at its end.
    guest[(5 << 20) - (500 << 10)..][..700].fill(7);
    guest[(5 << 20) - 512..5 << 20].fill(8);
    let path = dir.join("image");
    for (converter, list) in ["static=on", "static=on,block_size=4M"]
        .map(|list| (vdi(list), list))
        .into_iter()
        .chain(["subformat=fixed", "subformat=fixed,block_size=4M"].map(|list| (vhdx(list), list)))
    {
        converter.convert(&raw_image(&guest), &path).unwrap();
        let image = Image::open(&path).unwrap();
        assert_same(&convert(&raw(), &image).0, &guest, list);
        assert_same(&content(&image).unwrap(), &guest, list);
        let zeros = image.spans(0..u64::MAX).filter(|span| span.as_ref().unwrap().is_zero()).count();
        assert!(list.ends_with("4M") || zeros > 0, "{list}");
    }
}

#[test]
fn padding_does_not_change_identifiers() {
    let converter = vmdk("").identifiers(Identifiers::Reproducible { time: 0 });
    let (first, _) = convert(&converter, &raw_image(&[1; 700]));
    let (second, _) = convert(&converter, &raw_image(&[[1; 700].as_slice(), &[0; 324]].concat()));
    assert_same(&second, &first, "the last sector");
}

#[test]
fn identifiers_are_random_by_default() {
    let source = raw_image(&[1; 4096]);
    for list in ["", "subformat=streamOptimized", "subformat=monolithicFlat"] {
        let text = |converter: Converter| {
            let file = vmdk_files(&converter, &source).pop().unwrap().1;
            let lines = String::from_utf8_lossy(&file).into_owned();
            ["CID=", "ddb.longContentID", "ddb.uuid"]
                .map(|key| lines.lines().find(|line| line.starts_with(key)).map(str::to_owned).unwrap())
        };
        let make = |from| text(vmdk(list).identifiers(from));
        let [one, two] = [make(Identifiers::Random), make(Identifiers::Random)];
        assert!(one.iter().zip(&two).all(|(one, two)| one != two), "{list}: {one:?}");
        assert_eq!(make(Identifiers::Reproducible { time: 0 }), make(Identifiers::Reproducible { time: 0 }), "{list}");
        let usual = [text(vmdk(list)), text(vmdk(list))];
        let pinned = std::env::var_os("SOURCE_DATE_EPOCH").is_some();
        assert_eq!(usual[0] == usual[1], pinned, "{list}");
        let pinned = format!("{list},cid=00c0ffee");
        let pinned = || text(vmdk(&pinned).identifiers(Identifiers::Random));
        assert_eq!((pinned(), pinned()[0].as_str()), (pinned(), "CID=00c0ffee"));
    }
}

#[test]
fn extent_boundaries_of_split_disks_keep_content() {
    const SPLIT: u64 = 2047 << 20;
    let dir = TempDir::new();
    let path = dir.join("source.raw");
    let file = fs::File::create(&path).unwrap();
    file.set_len(SPLIT + (3 << 20) + 512).unwrap();
    // Over the seam, and at the very end.
    file.write_all_at(&Pattern::Dense.make(3 << 20), SPLIT - (1 << 20) - 4096).unwrap();
    file.write_all_at(&[7; 512], SPLIT + (3 << 20)).unwrap();
    let source = || open_raw(&path);
    let converter = vmdk("subformat=twoGbMaxExtentSparse").identifiers(Identifiers::Reproducible { time: 0 });
    let first = vmdk_files(&converter.clone().threads(1), &source());
    assert_eq!(
        first.iter().map(|file| file.0.as_str()).collect::<Vec<_>>(),
        ["disk-s001.vmdk", "disk-s002.vmdk", "disk.vmdk"]
    );
    assert_same_files(&vmdk_files(&converter.threads(8), &source()), &first, "8 threads");
    let other = TempDir::new();
    first.iter().for_each(|(name, bytes)| drop(other.file(name, bytes)));
    let image = open_beside(&other.join("disk.vmdk")).unwrap();
    assert_eq!(compare(&source(), &image).unwrap(), Comparison::Identical);
}

#[test]
fn deflate_passes_through_between_formats() {
    let guest = guest();
    let qcow2_image = qcow2_image(&qcow2_bytes(&qcow2("").compress(true), &guest)).unwrap();
    let stream = vmdk("subformat=streamOptimized").identifiers(Identifiers::Reproducible { time: 0 });
    let (bytes, report) = convert(&stream, &qcow2_image);
    // What qcow2 keeps as it is, since it does not shrink, is encoded here.
    assert!(report.passthrough_blocks > 10 && report.passthrough_blocks < report.compressed_blocks, "{report:?}");
    let open = || {
        let options = diskimage::OpenOptions::new().format(crate::support::format("vmdk"));
        options.open_stream(std::io::Cursor::new(bytes.clone())).unwrap()
    };
    assert_same(&convert(&raw(), &open()).0, &guest, "stream");
    // What was carried over is what would have been encoded, but for the level that the header of zlib states.
    assert_eq!(convert(&stream, &raw_image(&guest)).0.len(), bytes.len());
    let (back, report) = convert(&qcow2("").compress(true), &open());
    assert!(report.passthrough_blocks > 10, "{report:?}");
    assert_same(&back, &qcow2_bytes(&qcow2("").compress(true), &guest), "back");
    // An explicit level is used.
    let level =
        || vmdk("subformat=streamOptimized,compression_level=9").identifiers(Identifiers::Reproducible { time: 0 });
    let (encoded, report) = convert(&level(), &open());
    assert_eq!(report.passthrough_blocks, 0);
    assert_same(&encoded, &convert(&level(), &raw_image(&guest)).0, "level 9");
}
