//! The toy format beside the built-in ones.

use std::sync::Arc;

use diskimage::io::MemFile;
use diskimage::{
    Comparison, Converter, Error, Fault, Format, Formats, Image, Limits, OpenOptions, Options, Problem, Result, compare,
};
use toy::TOY;

use crate::{content, disk, raw_image};

const CLUSTER: u64 = 4096;
const TIB: u64 = 1 << 40;
const TABLE: usize = 4096;

fn toy(list: &str) -> Converter {
    let mut options = Options::new();
    options.add_list(list);
    Converter::new(TOY).options(options)
}

/// Detects the format among all.
fn detecting() -> OpenOptions {
    OpenOptions::new().formats(Formats::builtin().with(TOY))
}

fn open(bytes: &[u8]) -> Result<Image> {
    detecting().open_source(Arc::new(MemFile::from(bytes.to_vec())))
}

fn converted(converter: &Converter, source: &Image) -> Vec<u8> {
    let out = Arc::new(MemFile::new());
    converter.convert_to(source, out.clone()).unwrap();
    out.to_vec()
}

/// The disk in clusters of 4 KiB.
fn image_bytes() -> Vec<u8> {
    converted(&toy("cluster_size=4k"), &raw_image(&disk()))
}

/// The image after a change of its header, with the right checksum.
fn with_header(at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = image_bytes();
    bytes[at..at + value.len()].copy_from_slice(value);
    let sum: u32 =
        bytes[..4096].iter().enumerate().filter(|(at, _)| !(4..8).contains(at)).map(|(_, b)| u32::from(*b)).sum();
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The image after a change of the table entry of a guest cluster.
fn with_entry(cluster: usize, entry: u32) -> Vec<u8> {
    let mut bytes = image_bytes();
    bytes[TABLE + cluster * 4..][..4].copy_from_slice(&entry.to_le_bytes());
    bytes
}

#[track_caller]
fn fault<T>(result: Result<T>) -> Fault {
    match result.map(drop).unwrap_err().root() {
        Error::Corrupt(fault) => fault.clone(),
        other => panic!("{other}"),
    }
}

#[test]
fn is_listed_and_found_by_name_and_extension() {
    let formats = Formats::builtin().with(TOY);
    assert_eq!(formats.iter().count(), Format::all().count() + 1);
    assert_eq!(formats.by_name("toy").unwrap(), TOY);
    assert_eq!(formats.by_name("toyimage").unwrap(), TOY);
    assert_eq!(formats.by_extension("TOY"), Some(TOY));
    assert!(matches!(Format::by_name("toy"), Err(Error::UnknownFormat(_))), "only where it was added");
    assert!(TOY.can_create() && TOY.can_check() && !TOY.can_stream());
    assert_eq!(TOY.options().iter().map(|option| option.name).collect::<Vec<_>>(), ["cluster_size"]);
}

#[test]
fn is_detected_only_where_it_was_added() {
    let bytes = image_bytes();
    let image = open(&bytes).unwrap();
    assert_eq!((image.format(), image.info().block_size), (TOY, Some(4096)));
    let file = Arc::new(MemFile::from(bytes));
    assert_eq!(detecting().inspect_source(file.clone()).unwrap().format, TOY);
    assert_eq!(OpenOptions::new().open_source(file.clone()).unwrap().format(), Format::RAW);
    assert_eq!(OpenOptions::new().format(TOY).open_source(file).unwrap().format(), TOY);
}

#[test]
fn converts_to_and_from_every_format() {
    let guest = disk();
    for cluster_size in ["4k", "64k", "2M"] {
        let converter = toy(&format!("cluster_size={cluster_size}"));
        for format in Format::all().filter(Format::can_create) {
            let other = converted(&Converter::new(format), &raw_image(&guest));
            let other = OpenOptions::new().format(format).open_source(Arc::new(MemFile::from(other))).unwrap();
            let bytes = converted(&converter, &other);
            let image = open(&bytes).unwrap();
            assert_eq!(content(&image).unwrap()[..guest.len()], guest, "{format} to toy, {cluster_size}");
            for compress in [false, true] {
                let back = Arc::new(MemFile::new());
                match Converter::new(format).compress(compress).convert_to(&image, back.clone()) {
                    Err(Error::Unsupported { .. }) if compress => continue,
                    result => drop(result.unwrap()),
                }
                let back = OpenOptions::new().format(format).open_source(back).unwrap();
                assert_eq!(compare(&image, &back).unwrap(), Comparison::Identical, "toy to {format}, {cluster_size}");
            }
        }
    }
}

#[test]
fn output_depends_neither_on_threads_nor_on_a_second_conversion() {
    let bytes = image_bytes();
    for threads in [1, 2, 7] {
        assert!(converted(&toy("cluster_size=4k").threads(threads), &open(&bytes).unwrap()) == bytes, "{threads}");
    }
    // 74 clusters of noise at the start, 19 at the end; header and table in front.
    let clusters = 74 + 19;
    assert_eq!(bytes.len() as u64, (2 + clusters) * CLUSTER);
}

#[test]
fn empty_images_are_created() {
    for (size, rounded) in [(0, 0), (1, 512), (10 << 20, 10 << 20)] {
        let out = Arc::new(MemFile::new());
        let report = toy("").create_to(size, out.clone()).unwrap();
        assert_eq!((report.format, report.virtual_size), (TOY, rounded));
        let image = detecting().open_source(out.clone()).unwrap();
        assert!(image.spans(0..u64::MAX).all(|span| span.unwrap().is_zero()));
        assert_eq!(detecting().check_source(out).unwrap().allocated_clusters, 0);
    }
}

#[test]
fn images_in_files_are_opened_and_checked_by_path() {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = dir.join(format!("external-{}.toy", std::process::id()));
    let source = raw_image(&disk());
    toy("").convert(&source, &path).unwrap();
    assert_eq!(compare(&detecting().open(&path).unwrap(), &source).unwrap(), Comparison::Identical);
    assert_eq!(detecting().inspect(&path).unwrap().format, TOY);
    assert_eq!(detecting().check(&path).unwrap().corruptions, 0);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_sound_image_passes_the_check() {
    let report = detecting().check_source(Arc::new(MemFile::from(image_bytes()))).unwrap();
    assert_eq!((report.format, report.corruptions, report.leaks, report.check_errors), ("toy", 0, 0, 0));
    assert_eq!((report.total_clusters, report.allocated_clusters), (257, 93), "{report:?}");
}

/// A damaged image, the field at fault with its offset, and what is wrong with it.
type Damage = (Vec<u8>, &'static str, u64, fn(&Problem) -> bool);

#[test]
fn damaged_headers_are_refused_with_field_and_offset() {
    let mut wrong_sum = image_bytes();
    wrong_sum[100] ^= 1;
    let conflict = |problem: &Problem| matches!(problem, Problem::Conflict { .. });
    let rule = |problem: &Problem| matches!(problem, Problem::Rule { .. });
    let out_of_bounds = |problem: &Problem| matches!(problem, Problem::OutOfBounds { offset: TIB, len: 1028, .. });
    let cases: [Damage; 4] = [
        (wrong_sum, "checksum", 4, conflict),
        (with_header(16, &5000u32.to_le_bytes()), "cluster size", 16, rule),
        (with_header(20, &1u32.to_le_bytes()), "number of table entries", 20, rule),
        (with_header(24, &TIB.to_le_bytes()), "table offset", 24, out_of_bounds),
    ];
    for (bytes, field, at, expected) in cases {
        for fault in [fault(open(&bytes)), fault(detecting().check_source(Arc::new(MemFile::from(bytes.clone()))))] {
            assert_eq!((fault.format, &*fault.field, fault.at), ("toy", field, at));
            assert!(expected(&fault.problem), "{fault}");
        }
    }
}

#[test]
fn a_table_entry_out_of_bounds_is_refused() {
    let bytes = with_entry(3, 5000);
    let file_len = bytes.len() as u64;
    let image = open(&bytes).unwrap();
    let fault = fault(content(&image));
    assert_eq!((&*fault.field, fault.at), ("table entry", 4096 + 12));
    assert_eq!(fault.problem, Problem::OutOfBounds { offset: 5000 * CLUSTER, len: CLUSTER, file_len });
    let mut before = [0; 3 * CLUSTER as usize];
    image.read_exact_at(&mut before, 0).unwrap();
    assert_eq!(before, disk()[..before.len()], "the rest can be read");
    let report = detecting().check_source(Arc::new(MemFile::from(bytes))).unwrap();
    assert_eq!((report.corruptions, report.leaks), (1, 1), "{report:?}");
    assert_eq!(report.messages[0], "ERROR: table entry at 0x100c points beyond the end of the file");
}

#[test]
fn overlapping_clusters_are_refused_by_conversions() {
    // Guest cluster 3 in the host cluster of guest cluster 2, and in that of the table.
    for entry in [4, 1] {
        let bytes = with_entry(3, entry);
        let image = open(&bytes).unwrap();
        let error = Converter::new(Format::QCOW2).convert_to(&image, Arc::new(MemFile::new())).unwrap_err();
        assert!(matches!(error.root(), Error::Corrupt(Fault { problem: Problem::Overlap { .. }, .. })), "{error}");
        let report = detecting().check_source(Arc::new(MemFile::from(bytes))).unwrap();
        assert_eq!((report.corruptions, report.leaks), (1, 1), "{report:?}");
    }
}

#[test]
fn truncated_images_are_refused() {
    let whole = image_bytes();
    for len in [4, 4095, 4096, 5000, 8192, whole.len() - 4096] {
        let result = open(&whole[..len]).and_then(|image| content(&image));
        assert!(matches!(result.unwrap_err().root(), Error::Corrupt(_) | Error::Io { .. }), "{len}");
    }
}

#[test]
fn limits_and_options_hold_for_it_too() {
    let file = Arc::new(MemFile::from(image_bytes()));
    let limited = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        detecting().limits(limits).open_source(file.clone()).unwrap_err()
    };
    let error = limited(|limits| limits.metadata = 1000);
    assert!(matches!(error.root(), Error::Limit { format: "toy", value: 1028, limit: 1000, .. }), "{error}");
    let error = limited(|limits| limits.virtual_size = 1 << 20);
    assert!(matches!(error.root(), Error::Limit { format: "toy", .. }), "{error}");
    for (list, name) in [("cluster_size=5000", "cluster_size"), ("subformat=fixed", "subformat")] {
        let error = toy(list).create_to(1 << 20, Arc::new(MemFile::new())).unwrap_err();
        assert!(matches!(error.root(), Error::Option { format: "toy", name: told, .. } if told == name), "{error}");
    }
}

#[test]
fn is_the_backing_file_of_a_qcow2_overlay() {
    let guest = disk();
    let base = Arc::new(MemFile::from(image_bytes()));
    let opened = detecting().open_source(base.clone()).unwrap();
    let mut changed = guest.clone();
    changed[500_000..500_600].fill(7);
    let mut options = Options::new();
    options.add_list("backing_file=base.toy,backing_fmt=toy");
    let overlay = Arc::new(MemFile::new());
    let converter = Converter::new(Format::QCOW2).options(options).backing(opened, "base.toy");
    converter.convert_to(&raw_image(&changed), overlay.clone()).unwrap();
    let options = detecting().reference_policy(diskimage::ReferencePolicy::Beside).resolver(move |_| Ok(base.clone()));
    let image = options.open_source(overlay).unwrap();
    assert_eq!(image.layers().map(|info| info.format).collect::<Vec<_>>(), ["qcow2", "toy"]);
    assert!(content(&image).unwrap() == changed);
}
