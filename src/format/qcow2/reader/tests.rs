//! Extents of hand-made images.

use std::sync::Mutex;

use super::super::extent::DATA;
use super::*;
use crate::codec::Codec;
use crate::driver::Compressed;
use crate::format::qcow2::entry::{COMPRESSED, COPIED, ZERO, encode_compressed};
use crate::format::qcow2::refcount::{max_count, set_count};
use crate::io::{MemFile, WriteAt};
use crate::limits::{Budget, Limits};

/// Default cluster size of the test images, in bytes.
const CLUSTER: u64 = 512;
/// Guest bytes per L2 table.
const COVERAGE: u64 = 64 * CLUSTER;
const REFCOUNT_TABLE: u64 = CLUSTER;
const REFCOUNT_BLOCK: u64 = 2 * CLUSTER;
const L1: u64 = 3 * CLUSTER;
const L2: u64 = 4 * CLUSTER;

/// A file that records the offsets of reads.
#[derive(Default)]
struct Recorded {
    file: MemFile,
    reads: Mutex<Vec<u64>>,
}

impl ReadAt for Recorded {
    fn size(&self) -> std::io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.reads.lock().unwrap().push(offset);
        self.file.read_at(buf, offset)
    }
}

fn put(file: &MemFile, at: u64, value: u64) {
    file.write_all_at(&value.to_be_bytes(), at).unwrap();
}

fn put_u32(file: &MemFile, at: u64, value: u32) {
    file.write_all_at(&value.to_be_bytes(), at).unwrap();
}

/// An image of `len` bytes for a disk of `size` bytes, with an L1 table at [`L1`] and `words`: file offset and value of each.
fn image(cluster_bits: u32, size: u64, len: u64, words: &[(u64, u64)]) -> MemFile {
    let file = MemFile::new();
    file.set_len(len).unwrap();
    file.write_all_at(b"QFI\xfb\0\0\0\x03", 0).unwrap();
    let entry_size = if words.contains(&(72, 16)) { 16 } else { 8 };
    let coverage = (1 << (2 * cluster_bits)) / entry_size;
    put_u32(&file, 20, cluster_bits);
    put(&file, 24, size);
    put_u32(&file, 36, size.div_ceil(coverage) as u32);
    put(&file, 40, (L1 / CLUSTER) << cluster_bits);
    put(&file, 48, (REFCOUNT_TABLE / CLUSTER) << cluster_bits);
    put_u32(&file, 56, 1);
    put_u32(&file, 96, 4);
    put_u32(&file, 100, 112);
    words.iter().for_each(|&(at, value)| put(&file, at, value));
    file
}

/// An image of 32 clusters with one L2 table of these entries.
fn mapped(entries: &[u64]) -> MemFile {
    let words = entries.iter().enumerate().map(|(index, entry)| (L2 + index as u64 * 8, *entry));
    let words: Vec<_> = [(L1, L2 | COPIED)].into_iter().chain(words).collect();
    image(9, COVERAGE, 32 * CLUSTER, &words)
}

fn open_with(file: Arc<dyn ReadAt>, snapshot: Option<&str>, other: Option<Arc<dyn ReadAt>>) -> Result<Reader> {
    let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
    let find = |_: &FileReference| Ok(other.clone());
    Reader::open(file, &OpenContext { snapshot, file: &find, ..OpenContext::new(&limits, &budget) })
}

fn open(file: MemFile) -> Reader {
    open_with(Arc::new(file), None, None).unwrap()
}

/// The first `count` extents.
fn extents(reader: &Reader, count: usize) -> Vec<(Range<u64>, ExtentKind)> {
    let mut found = Vec::new();
    let mut at = 0;
    while found.len() < count && at < reader.info.virtual_size {
        let extent = reader.extent_at(at..u64::MAX).unwrap();
        assert_eq!(extent.offset, at);
        at = extent.end();
        found.push((extent.offset..at, extent.kind));
    }
    found
}

fn data(offset: u64) -> ExtentKind {
    ExtentKind::Data(Location { file: IMAGE, offset })
}

fn zero(offset: u64) -> ExtentKind {
    ExtentKind::Zero { allocated: Some(Location { file: IMAGE, offset }) }
}

const UNALLOCATED_ZERO: ExtentKind = ExtentKind::Zero { allocated: None };

/// Field, file offset and problem of an error.
fn fault(error: Error) -> (String, u64, Problem) {
    match error {
        Error::Corrupt(fault) => (fault.field.into_owned(), fault.at, fault.problem),
        other => panic!("{other}"),
    }
}

#[test]
fn contiguous_clusters_are_one_extent() {
    let entries = [8, 9, 10, 12, 0, 0, 0, 13, 14, 16].map(|cluster| cluster * CLUSTER);
    let mut entries = entries.to_vec();
    entries[4] = ZERO;
    entries[5] = ZERO | (20 * CLUSTER);
    entries[6] = ZERO | (21 * CLUSTER);
    let reader = open(mapped(&entries));
    let at = |cluster: u64| cluster * CLUSTER;
    let expected = [
        (0..at(3), data(at(8))),
        (at(3)..at(4), data(at(12))),
        (at(4)..at(5), UNALLOCATED_ZERO),
        (at(5)..at(7), zero(at(20))),
        (at(7)..at(9), data(at(13))),
        (at(9)..at(10), data(at(16))),
        (at(10)..at(64), ExtentKind::Hole),
    ];
    assert_eq!(extents(&reader, 99), expected);
    let middle = reader.extent_at(700..u64::MAX).unwrap();
    assert_eq!(middle, Extent { offset: 700, len: at(3) - 700, kind: data(at(8) + 700) });
}

#[test]
fn an_extent_ends_with_its_table_and_with_the_disk() {
    let words = [(L1, L2), (L1 + 8, L2 + CLUSTER), (L2 + 63 * 8, 8 * CLUSTER), (L2 + CLUSTER, 9 * CLUSTER)];
    let reader = open(image(9, COVERAGE + 100, 10 * CLUSTER, &words));
    let last = COVERAGE - CLUSTER;
    let expected = [
        (0..last, ExtentKind::Hole),
        (last..COVERAGE, data(8 * CLUSTER)),
        (COVERAGE..COVERAGE + 100, data(9 * CLUSTER)),
    ];
    assert_eq!(extents(&reader, 99), expected);
}

#[test]
fn a_fault_is_reported_at_its_guest_offset_only() {
    let file_len = 32 * CLUSTER;
    for (entry, problem) in [
        (2 | (10 * CLUSTER), Problem::Reserved { value: 2 | (10 * CLUSTER), bits: 2 }),
        (32 * CLUSTER, Problem::OutOfBounds { offset: file_len, len: CLUSTER, file_len }),
        (1 << 55, Problem::OutOfBounds { offset: 1 << 55, len: CLUSTER, file_len }),
        (COMPRESSED | file_len, Problem::OutOfBounds { offset: file_len, len: 512, file_len }),
        (COMPRESSED | COPIED, Problem::Reserved { value: COMPRESSED | COPIED, bits: COPIED }),
    ] {
        let reader = open(mapped(&[8 * CLUSTER, 9 * CLUSTER, entry, 11 * CLUSTER]));
        assert_eq!(extents(&reader, 1), [(0..2 * CLUSTER, data(8 * CLUSTER))], "{entry:#x}");
        let error = reader.extent_at(2 * CLUSTER..u64::MAX).unwrap_err();
        assert_eq!(fault(error), ("L2 entry".to_owned(), L2 + 16, problem), "{entry:#x}");
        assert_eq!(reader.extent_at(3 * CLUSTER..u64::MAX).unwrap().kind, data(11 * CLUSTER));
    }
}

#[test]
fn holes_span_empty_l1_entries_and_end_at_invalid_ones() {
    let (size, file_len) = (5 * COVERAGE - 100, 6 * CLUSTER);
    let words = [(L1 + 8, COPIED), (L1 + 16, L2), (L2 + 8, ZERO)];
    let reader = open(image(9, size, file_len, &words));
    let (table, end) = (2 * COVERAGE, 3 * COVERAGE);
    let expected = [
        (0..table, ExtentKind::Hole),
        (table..table + CLUSTER, ExtentKind::Hole),
        (table + CLUSTER..table + 2 * CLUSTER, UNALLOCATED_ZERO),
        (table + 2 * CLUSTER..end, ExtentKind::Hole),
        (end..size, ExtentKind::Hole),
    ];
    assert_eq!(extents(&reader, 99), expected);
    assert_eq!(reader.extent_at(5..u64::MAX).unwrap().len, 2 * COVERAGE - 5);
    for (entry, problem) in [
        (1, Problem::Reserved { value: 1, bits: 1 }),
        (file_len, Problem::OutOfBounds { offset: file_len, len: CLUSTER, file_len }),
    ] {
        let reader = open(image(9, size, file_len, &[(L1 + 8, entry)]));
        assert_eq!(extents(&reader, 1), [(0..COVERAGE, ExtentKind::Hole)]);
        let error = reader.extent_at(COVERAGE..u64::MAX).unwrap_err();
        assert_eq!(fault(error), ("L1 entry".to_owned(), L1 + 8, problem));
    }
}

#[test]
fn holes_are_merged_up_to_the_requested_end() {
    let entries = 5000;
    let reader = open(image(9, entries * COVERAGE, L1 + entries * 8, &[]));
    assert_eq!(extents(&reader, 99), [(0..entries * COVERAGE, ExtentKind::Hole)]);
    for (range, end) in [(0..1, COVERAGE), (COVERAGE - 1..COVERAGE, COVERAGE), (5..COVERAGE + 1, 2 * COVERAGE)] {
        assert_eq!(reader.extent_at(range).unwrap().end(), end);
    }
}

#[test]
fn compressed_clusters_are_not_merged_and_may_end_with_the_file() {
    let host = 31 * CLUSTER + 5;
    let file = mapped(&[encode_compressed(8 * CLUSTER, 300, 9), encode_compressed(host, 400, 9)]);
    file.set_len(host + 10).unwrap();
    let reader = open(file);
    let kind = |offset, stored_len, unit| {
        let (at, unit_len) = (Location { file: IMAGE, offset }, CLUSTER as u32);
        ExtentKind::Compressed(Compressed { at, stored_len, codec: Codec::Deflate, unit, unit_len, min_len: unit_len })
    };
    let expected = [(0..CLUSTER, kind(8 * CLUSTER, 512, 0)), (CLUSTER..2 * CLUSTER, kind(host, 10, CLUSTER))];
    assert_eq!(extents(&reader, 2), expected);
    let middle = Extent { offset: 600, len: 2 * CLUSTER - 600, kind: kind(host, 10, CLUSTER) };
    assert_eq!(reader.extent_at(600..u64::MAX).unwrap(), middle);
}

#[test]
fn subclusters_in_all_states() {
    const CLUSTER: u64 = 16 << 10;
    const SUB: u64 = 512;
    let l2 = 4 * CLUSTER;
    let entries = [
        // Hole, data, data, zero, holes, zero.
        (5 * CLUSTER, 1 << 63 | 1 << 35 | 0b110),
        (0, 0xffff_ffff << 32),
        // Contiguous with the next cluster.
        (6 * CLUSTER, 0xffff_fff0),
        (7 * CLUSTER, 0xffff_ffff),
        // Preallocated, without allocated subclusters.
        (8 * CLUSTER, 0),
    ];
    let mut words = vec![(72, 16), (3 * CLUSTER, l2)];
    for (index, (entry, bitmap)) in entries.into_iter().enumerate() {
        words.extend([(l2 + index as u64 * 16, entry), (l2 + index as u64 * 16 + 8, bitmap)]);
    }
    let reader = open(image(14, 4 * CLUSTER + 700, 9 * CLUSTER, &words));
    assert_eq!(reader.host_alignment(), Some(SUB));
    let expected = [
        (0..SUB, ExtentKind::Hole),
        (SUB..3 * SUB, data(5 * CLUSTER + SUB)),
        (3 * SUB..4 * SUB, zero(5 * CLUSTER + 3 * SUB)),
        (4 * SUB..31 * SUB, ExtentKind::Hole),
        (31 * SUB..CLUSTER, zero(5 * CLUSTER + 31 * SUB)),
        (CLUSTER..2 * CLUSTER, UNALLOCATED_ZERO),
        (2 * CLUSTER..2 * CLUSTER + 4 * SUB, ExtentKind::Hole),
        (2 * CLUSTER + 4 * SUB..4 * CLUSTER, data(6 * CLUSTER + 4 * SUB)),
        (4 * CLUSTER..4 * CLUSTER + 700, ExtentKind::Hole),
    ];
    assert_eq!(extents(&reader, 99), expected);
    let middle = Extent { offset: SUB + 9, len: 2 * SUB - 9, kind: data(5 * CLUSTER + SUB + 9) };
    assert_eq!(reader.extent_at(SUB + 9..u64::MAX).unwrap(), middle);
}

/// An image with two snapshots: ID "1", name "2", a disk of one L2 table; ID "2", name "f", a disk of two.
fn with_snapshots() -> MemFile {
    let table = 8 * CLUSTER;
    let l2_of = |l1: u64| l1 + CLUSTER;
    let (l1_a, l1_b) = (10 * CLUSTER, 12 * CLUSTER);
    let words = [
        (56, 1 << 32 | 2),
        (64, table),
        (l1_a, l2_of(l1_a)),
        (l1_b, l2_of(l1_b)),
        (l2_of(l1_a), 20 * CLUSTER),
        (l2_of(l1_b), 21 * CLUSTER),
    ];
    let file = image(9, COVERAGE, 32 * CLUSTER, &words);
    for (at, l1, size, names) in [(table, l1_a, COVERAGE, b"12"), (table + 64, l1_b, 2 * COVERAGE - 5, b"2f")] {
        put(&file, at, l1);
        put_u32(&file, at + 8, 2);
        put_u32(&file, at + 12, 1 << 16 | 1);
        put_u32(&file, at + 36, 16);
        put(&file, at + 48, size);
        file.write_all_at(names, at + 56).unwrap();
    }
    file
}

#[test]
fn version_2_has_fewer_properties() {
    let properties = |version: u32| {
        let file = mapped(&[]);
        put_u32(&file, 4, version);
        open(file).info().specific.clone()
    };
    let text = |value: &str| Value::from(value);
    let (compression, refcounts) = (("compression-type", text("zlib")), ("refcount-bits", 16.into()));
    assert_eq!(properties(2), [("compat", text("0.10")), compression.clone(), refcounts.clone()]);
    assert_eq!(
        properties(3),
        [
            ("compat", text("1.1")),
            compression,
            ("lazy-refcounts", false.into()),
            refcounts,
            ("corrupt", false.into()),
            ("extended-l2", false.into()),
        ]
    );
}

#[test]
fn snapshots_are_found_by_id_first_and_then_by_name() {
    let file = Arc::new(with_snapshots());
    let first = |wanted| {
        let reader = open_with(file.clone(), wanted, None)?;
        Ok::<_, Error>((reader.extent_at(0..u64::MAX)?.kind, reader.info.virtual_size))
    };
    assert_eq!(first(None).unwrap(), (ExtentKind::Hole, COVERAGE));
    assert_eq!(first(Some("1")).unwrap(), (data(20 * CLUSTER), COVERAGE));
    assert_eq!(first(Some("2")).unwrap(), (data(21 * CLUSTER), 2 * COVERAGE - 5));
    assert_eq!(first(Some("f")).unwrap(), (data(21 * CLUSTER), 2 * COVERAGE - 5));
    let error = first(Some("3")).unwrap_err();
    assert_eq!(error.kind().as_str(), "usage");
    assert_eq!(error.to_string(), r#"qcow2: unknown snapshot "3"; available: 2, f"#);
    // A fault in the L1 table of a snapshot affects this snapshot only.
    put(&file, 10 * CLUSTER, 3);
    let error = first(Some("1")).unwrap_err();
    assert_eq!(fault(error), ("L1 entry".to_owned(), 10 * CLUSTER, Problem::Reserved { value: 3, bits: 3 }));
    put(&file, 8 * CLUSTER, 0);
    assert_eq!(first(Some("1")).unwrap_err().kind().as_str(), "overlap");
    assert!(first(Some("2")).is_ok());
}

#[test]
fn tables_are_cached() {
    let words: Vec<_> = (0..6).map(|index| (L1 + index * 8, L2 + index * CLUSTER)).collect();
    let file = Arc::new(Recorded { file: image(9, 6 * COVERAGE, 16 * CLUSTER, &words), ..Recorded::default() });
    let reader = open_with(file.clone(), None, None).unwrap();
    file.reads.lock().unwrap().clear();
    for table in [0, 0, 1, 2, 3, 0, 4, 0, 2, 1, 3] {
        reader.extent_at(table * COVERAGE + 77..u64::MAX).unwrap();
    }
    // Each is read once, since all of them fit.
    let expected = [0, 1, 2, 3, 4].map(|table| L2 + table * CLUSTER);
    assert_eq!(*file.reads.lock().unwrap(), expected);
}

#[test]
fn refcounts() {
    for order in 0..=6 {
        let file = mapped(&[]);
        put_u32(&file, 96, order);
        put(&file, REFCOUNT_TABLE, REFCOUNT_BLOCK);
        let mut block = vec![0; CLUSTER as usize];
        set_count(&mut block, order, 9, 1);
        set_count(&mut block, order, 11, max_count(order));
        file.write_all_at(&block, REFCOUNT_BLOCK).unwrap();
        let reader = open(file);
        let counts = [8, 9, 10, 11].map(|cluster| reader.refcount(cluster * CLUSTER + 511));
        assert_eq!(counts, [0, 1, 0, max_count(order)], "order {order}");
        // Without a refcount block, and beyond the refcount table.
        assert_eq!((reader.refcount(1 << 30), reader.refcount(u64::MAX)), (1, 1));
    }
}

#[test]
fn metadata_ranges_and_overlapping_l2_tables() {
    let words = [(L1, L2), (L1 + 16, L2 + CLUSTER), (L1 + 24, 1), (REFCOUNT_TABLE, REFCOUNT_BLOCK)];
    let file = Arc::new(image(9, 4 * COVERAGE, 16 * CLUSTER, &words));
    let claim = || {
        let mut claimed = Vec::<Range<u64>>::new();
        let free = |claimed: &[Range<u64>], range: &Range<u64>| {
            claimed.iter().all(|other| other.end <= range.start || range.end <= other.start)
        };
        let reader = open_with(file.clone(), None, None).unwrap();
        let result = reader.metadata(&mut |_, range| {
            let is_free = free(&claimed, &range);
            claimed.push(range);
            is_free
        });
        result.map(|()| claimed)
    };
    let cluster = |at| at..at + CLUSTER;
    let expected =
        [cluster(0), L1..L1 + 32, cluster(L2), cluster(L2 + CLUSTER), cluster(REFCOUNT_TABLE), cluster(REFCOUNT_BLOCK)];
    assert_eq!(claim().unwrap(), expected);
    for offset in [L2, L1] {
        put(&file, L1 + 16, offset);
        let problem = Problem::Overlap { offset, with: "other metadata" };
        assert_eq!(fault(claim().unwrap_err()), ("L1 entry".to_owned(), L1 + 16, problem));
    }
}

#[test]
fn clusters_of_a_data_file_are_at_their_guest_offset() {
    let file = mapped(&[COPIED, COPIED | CLUSTER, COPIED | (5 * CLUSTER), 3 * CLUSTER, COPIED | ZERO | (9 * CLUSTER)]);
    put(&file, 72, 4);
    let file = Arc::new(file);
    let other = |len: u64| Some(Arc::new(MemFile::from(vec![1; len as usize])) as Arc<dyn ReadAt>);
    let reader = open_with(file.clone(), None, other(4 * CLUSTER)).unwrap();
    assert_eq!(reader.info.files.len(), 1);
    let at = |offset| Location { file: DATA, offset };
    assert_eq!(extents(&reader, 1), [(0..2 * CLUSTER, ExtentKind::Data(at(0)))]);
    let (field, at_byte, problem) = fault(reader.extent_at(2 * CLUSTER + 7..u64::MAX).unwrap_err());
    assert_eq!((&*field, at_byte), ("L2 entry", L2 + 16));
    assert!(matches!(problem, Problem::Rule { value, .. } if value == 5 * CLUSTER + 7), "{problem}");
    let kind = |offset| reader.extent_at(offset..u64::MAX).unwrap().kind;
    assert_eq!(kind(3 * CLUSTER), ExtentKind::Data(at(3 * CLUSTER)));
    assert_eq!(kind(4 * CLUSTER), ExtentKind::Zero { allocated: Some(at(9 * CLUSTER)) });
    // Bounds are checked against the length of the data file, if it is open.
    let reader = open_with(file.clone(), None, other(4 * CLUSTER - 1)).unwrap();
    let problem = Problem::OutOfBounds { offset: 3 * CLUSTER, len: CLUSTER, file_len: 4 * CLUSTER - 1 };
    assert_eq!(fault(reader.extent_at(3 * CLUSTER..u64::MAX).unwrap_err()), ("L2 entry".to_owned(), L2 + 24, problem));
    let reader = open_with(file, None, None).unwrap();
    assert_eq!(reader.extent_at(3 * CLUSTER..u64::MAX).unwrap().kind, ExtentKind::Data(at(3 * CLUSTER)));
}

#[test]
fn the_bit_of_a_raw_data_file_needs_a_data_file() {
    let with_bits = |incompatible, autoclear| {
        let file = mapped(&[]);
        put(&file, 72, incompatible);
        put(&file, 88, autoclear);
        open(file).info.warnings
    };
    assert_eq!(with_bits(4, 2), [""; 0]);
    assert_eq!(with_bits(0, 2), [RAW_WITHOUT_DATA_FILE]);
    assert_eq!(with_bits(0, 4), [""; 0]);
}

#[test]
fn damage_that_does_not_affect_the_active_state_is_a_warning() {
    let warnings = |change: &dyn Fn(&MemFile)| {
        let file = with_snapshots();
        change(&file);
        let reader = open_with(Arc::new(file), None, None).unwrap();
        assert!(reader.extent_at(0..COVERAGE).is_ok());
        assert_eq!(reader.info.snapshots_unreadable, reader.info.snapshots.is_empty());
        (reader.info.snapshots.len(), reader.info.warnings.clone())
    };
    assert_eq!(warnings(&|_| ()), (2, Vec::new()));
    let damages: [&dyn Fn(&MemFile); 4] = [
        &|file| put_u32(file, 60, 1000),
        &|file| put_u32(file, 60, u32::MAX),
        &|file| put(file, 64, 1 << 50),
        &|file| put(file, 64, 1),
    ];
    for damage in damages {
        let (snapshots, warnings) = warnings(damage);
        assert_eq!((snapshots, warnings.len()), (0, 1));
        assert!(warnings[0].starts_with("internal snapshots are not listed: qcow2: "), "{warnings:?}");
        // The reason, not that there is no such snapshot.
        let file = with_snapshots();
        damage(&file);
        let error = open_with(Arc::new(file), Some("1"), None).err().unwrap();
        assert!(warnings[0].ends_with(&error.to_string()), "{error}");
    }
    // A table that exceeds the memory for metadata, which the active state does not need.
    let limits = Limits::default();
    let budget = Budget::new(8);
    let reader = Reader::open(Arc::new(with_snapshots()), &OpenContext::new(&limits, &budget)).unwrap();
    assert!(reader.info.warnings[0].contains("above the limit"), "{:?}", reader.info.warnings);
}

/// The bitmaps extension with these numbers, after a version 3 header.
const BITMAPS: [(u64, u64); 6] =
    [(88, 1), (112, 0x2385_2875 << 32 | 24), (120, 1 << 32), (128, 32), (136, 6 * CLUSTER), (144, 0)];

#[test]
fn a_damaged_bitmap_directory_is_a_warning() {
    let info = |changes: &[(u64, u64)]| {
        let words: Vec<_> = BITMAPS.iter().chain(changes).copied().collect();
        open(image(9, COVERAGE, 32 * CLUSTER, &words)).info
    };
    let entry = [(6 * CLUSTER + 8, 1 << 32), (6 * CLUSTER + 16, 0x0110_0001 << 32), (6 * CLUSTER + 24, 0x62 << 56)];
    let valid = info(&entry);
    assert!(valid.warnings.is_empty() && valid.property("bitmaps").is_some(), "{:?}", valid.warnings);
    // An invalid entry, a directory out of bounds, too many bitmaps, and an extension of the wrong length.
    for change in [(6 * CLUSTER + 16, 0), (136, 1 << 50), (120, u64::MAX), (112, 0x2385_2875 << 32 | 16)] {
        let info = info(&[&entry[..], &[change]].concat());
        assert_eq!(info.warnings.len(), 1, "{change:?}");
        assert!(info.warnings[0].starts_with("bitmaps are not listed: qcow2: "), "{:?}", info.warnings);
        assert_eq!(info.property("bitmaps"), None);
    }
    // Out of date: not looked at.
    assert!(info(&[(88, 0), (136, 1 << 50)]).warnings.is_empty());
}

#[test]
fn luks_headers() {
    const HEADER: u64 = 8 * CLUSTER;
    let extension = [(112, 0x0537_be77 << 32 | 16), (120, HEADER), (128, 4 * CLUSTER), (136, 0)];
    let info = |words: &[(u64, u64)], luks: &[u8]| {
        let file = image(9, COVERAGE, 32 * CLUSTER, words);
        put_u32(&file, 32, 2);
        file.write_all_at(luks, HEADER).unwrap();
        let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
        let cx = OpenContext { inspect: true, ..OpenContext::new(&limits, &budget) };
        Reader::open(Arc::new(file), &cx).unwrap().info
    };
    let mut luks = [&b"LUKS\xba\xbe\0\x01"[..], &[0; 584]].concat();
    for (at, text) in [(8, "aes"), (40, "xts-plain64"), (72, "sha256"), (168, "a-uuid")] {
        luks[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    for (at, number) in [(104, 4040u32), (108, 64), (164, 1000)] {
        luks[at..at + 4].copy_from_slice(&number.to_be_bytes());
    }
    for (slot, words) in [[0x00ac_71f3u32, 2000, 8, 4000], [0x0000_dead, 0, 512, 4000]].iter().enumerate() {
        for (at, number) in [0, 4, 40, 44].into_iter().zip(words) {
            luks[208 + 48 * slot + at..][..4].copy_from_slice(&number.to_be_bytes());
        }
    }
    let valid = info(&extension, &luks);
    assert_eq!((valid.encryption, valid.warnings.len()), (Some("LUKS"), 0), "{:?}", valid.warnings);
    let Some(Value::Map(properties)) = valid.property("encrypt") else { panic!() };
    let get = |name: &str| properties.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone()).unwrap();
    for (name, text) in [
        ("ivgen-alg", "plain64"),
        ("hash-alg", "sha256"),
        ("cipher-alg", "aes-256"),
        ("cipher-mode", "xts"),
        ("uuid", "a-uuid"),
        ("format", "luks"),
    ] {
        assert_eq!(get(name), text.into());
    }
    assert_eq!((get("payload-offset"), get("master-key-iters")), ((4040u64 * 512).into(), 1000u64.into()));
    let Value::List(slots) = get("slots") else { panic!() };
    let active = vec![
        ("active", true.into()),
        ("iters", 2000u64.into()),
        ("key-offset", 4096u64.into()),
        ("stripes", 4000u64.into()),
    ];
    assert_eq!(slots.len(), 8);
    assert_eq!(
        slots[..2],
        [Value::Map(active), Value::Map(vec![("active", false.into()), ("key-offset", 262_144u64.into())])]
    );

    for (words, luks, reason) in [
        (&[][..], &luks[..], "encryption header extension with the offset of the LUKS header is missing"),
        (&[(112, 0x0537_be77 << 32 | 8)], &luks, "encryption header is 8"),
        (&[extension[0], (120, HEADER), (128, 1 << 40)], &luks, "is out of bounds"),
        (&[extension[0], (120, 1 << 40), (128, 4096)], &luks, "is out of bounds"),
        (&extension, b"void", "LUKS magic"),
        (&extension, b"LUKS\xba\xbe\0\x02", "LUKS version"),
    ] {
        let info = info(words, luks);
        assert_eq!((info.encryption, info.warnings.len()), (Some("LUKS"), 1));
        let warning = &info.warnings[0];
        assert!(warning.starts_with("the LUKS header is not valid: ") && warning.contains(reason), "{warning}");
        assert_eq!(info.property("encrypt"), Some(&Value::Map(vec![("format", "luks".into())])));
    }
}
