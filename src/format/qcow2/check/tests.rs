use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::codec::Codec;
use crate::format::qcow2::entry::{COMPRESSED, COPIED, ZERO, encode_compressed};
use crate::format::qcow2::extension::{BitmapDirectory, Extensions};
use crate::format::qcow2::header::{Autoclear, Compatible, Encryption, V3_WRITTEN_LENGTH};
use crate::format::qcow2::{bitmap, refcount, snapshot};
use crate::info::Value;
use crate::io::{FileSource, MemFile};
use crate::limits::{Budget, Limits};

/// Cluster size of the test images, in bytes.
const CLUSTER: u64 = 512;
const REFCOUNT_BLOCK: u64 = 2 * CLUSTER;
const L1: u64 = 3 * CLUSTER;
const L2: u64 = 4 * CLUSTER;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Clean,
    Corrupt,
    Leaks,
}
use Verdict::*;

fn verdict(report: &CheckReport) -> Verdict {
    assert_eq!(report.check_errors, 0, "{report:?}");
    match (report.corruptions, report.leaks) {
        (0, 0) => Clean,
        (0, _) => Leaks,
        _ => Corrupt,
    }
}

fn check_source(source: Arc<dyn ReadAt>) -> Result<CheckReport> {
    let limits = Limits::default();
    let budget = Budget::new(limits.metadata);
    check(source, &OpenContext::new(&limits, &budget))
}

fn check_bytes(bytes: &[u8]) -> CheckReport {
    check_source(Arc::new(MemFile::from(bytes.to_vec()))).unwrap()
}

fn header() -> Header {
    Header {
        version: 3,
        backing_file: None,
        cluster_bits: 9,
        size: 64 * CLUSTER,
        encryption: Encryption::None,
        l1_size: 1,
        l1_table_offset: L1,
        refcount_table_offset: CLUSTER,
        refcount_table_clusters: 1,
        nb_snapshots: 0,
        snapshots_offset: 0,
        incompatible: Incompatible::empty(),
        compatible: Compatible::empty(),
        autoclear: Autoclear::empty(),
        refcount_order: 4,
        header_length: V3_WRITTEN_LENGTH,
        compression: Codec::Deflate,
        extensions: Extensions::default(),
    }
}

/// Header, refcount table, refcount block, L1 table, L2 table; guest clusters 0 and 1 in clusters 5 and 6, guest clusters 2 and
/// 3 compressed in cluster 7, and guest cluster 4, a zero cluster, preallocated in cluster 8.
fn valid_image() -> Vec<u8> {
    let mut image = vec![0; 9 * CLUSTER as usize];
    set_header(&mut image, &header());
    put(&mut image, CLUSTER, REFCOUNT_BLOCK);
    for cluster in 0..9 {
        set_refcount(&mut image, cluster, 1);
    }
    set_refcount(&mut image, 7, 2);
    put(&mut image, L1, L2 | COPIED);
    put(&mut image, L2, (5 * CLUSTER) | COPIED);
    put(&mut image, L2 + 8, (6 * CLUSTER) | COPIED);
    put(&mut image, L2 + 16, encode_compressed(7 * CLUSTER, 100, 9));
    put(&mut image, L2 + 24, encode_compressed(7 * CLUSTER + 100, 400, 9));
    put(&mut image, L2 + 32, (8 * CLUSTER) | COPIED | ZERO);
    image
}

fn set_header(image: &mut [u8], header: &Header) {
    let bytes = header.encode();
    image[..bytes.len()].copy_from_slice(&bytes);
}

fn put(image: &mut [u8], at: u64, value: u64) {
    image[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
}

fn set_refcount(image: &mut [u8], cluster: usize, count: u64) {
    refcount::set_count(&mut image[REFCOUNT_BLOCK as usize..][..CLUSTER as usize], 4, cluster, count);
}

/// Result of qemu-img check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Qemu {
    Agrees,
    /// qemu-img does not detect the fault.
    SaysClean,
}

type Case = (&'static str, fn(&mut Vec<u8>), Verdict, Qemu);

/// Single changes to the valid image.
const CASES: &[Case] = &[
    ("nothing", |_| (), Clean, Qemu::Agrees),
    ("refcount too high", |image| set_refcount(image, 7, 3), Leaks, Qemu::Agrees),
    ("unused cluster", |image| put(image, L2 + 32, ZERO), Leaks, Qemu::Agrees),
    ("refcount too low", |image| set_refcount(image, 7, 1), Corrupt, Qemu::Agrees),
    ("refcount 0", |image| set_refcount(image, 6, 0), Corrupt, Qemu::Agrees),
    ("refcount 0 of the header", |image| set_refcount(image, 0, 0), Corrupt, Qemu::Agrees),
    ("refcount 2 with COPIED", |image| set_refcount(image, 5, 2), Corrupt, Qemu::Agrees),
    ("no COPIED in the L1 table", |image| put(image, L1, L2), Corrupt, Qemu::Agrees),
    ("no COPIED in the L2 table", |image| put(image, L2, 5 * CLUSTER), Corrupt, Qemu::Agrees),
    ("no COPIED in a zero entry", |image| put(image, L2 + 32, (8 * CLUSTER) | ZERO), Corrupt, Qemu::Agrees),
    ("COPIED in an empty L1 entry", |image| put(image, L1, COPIED), Corrupt, Qemu::Agrees),
    ("COPIED in a compressed entry", |image| image[L2 as usize + 16] |= 0x80, Corrupt, Qemu::Agrees),
    ("reserved bits in an L1 entry", |image| put(image, L1, L2 | COPIED | 4), Corrupt, Qemu::Agrees),
    ("reserved bits in an L2 entry", |image| put(image, L2, (5 * CLUSTER) | COPIED | 4), Corrupt, Qemu::Agrees),
    ("reserved high bits in an L2 entry", |image| image[L2 as usize] |= 1, Corrupt, Qemu::Agrees),
    ("L2 table far beyond the end", |image| put(image, L1, 1 << 40 | COPIED), Corrupt, Qemu::Agrees),
    ("data beyond the end", |image| put(image, L2, (9 * CLUSTER) | COPIED), Corrupt, Qemu::Agrees),
    ("data far beyond the end", |image| put(image, L2, 1 << 55 | COPIED), Corrupt, Qemu::Agrees),
    ("zeros beyond the end", |image| put(image, L2 + 32, (9 * CLUSTER) | COPIED | ZERO), Corrupt, Qemu::Agrees),
    ("payload beyond the end", |image| put(image, L2 + 16, COMPRESSED | (9 * CLUSTER)), Corrupt, Qemu::Agrees),
    ("payload far beyond the end", |image| put(image, L2 + 16, COMPRESSED | 1 << 50), Corrupt, Qemu::Agrees),
    ("data in the L2 table", |image| put(image, L2, L2 | COPIED), Corrupt, Qemu::Agrees),
    ("payload in the cluster of the header", |image| put(image, L2 + 16, COMPRESSED), Corrupt, Qemu::Agrees),
    ("two entries for one host cluster", |image| put(image, L2, (6 * CLUSTER) | COPIED), Corrupt, Qemu::Agrees),
    ("truncated data", |image| image.truncate(6 * CLUSTER as usize + 100), Corrupt, Qemu::Agrees),
    ("truncated zeros", |image| image.truncate(8 * CLUSTER as usize + 100), Clean, Qemu::Agrees),
    ("wrong offset of the refcount block", |image| put(image, CLUSTER, L1), Corrupt, Qemu::Agrees),
    ("no refcount block", |image| put(image, CLUSTER, 0), Corrupt, Qemu::Agrees),
    ("refcount block far beyond the end", |image| put(image, CLUSTER, 1 << 40), Corrupt, Qemu::Agrees),
    ("reserved bits in the refcount table", |image| put(image, CLUSTER, REFCOUNT_BLOCK | 1), Corrupt, Qemu::Agrees),
    ("refcount block referenced twice", |image| put(image, CLUSTER + 8, REFCOUNT_BLOCK), Corrupt, Qemu::Agrees),
    ("shared data with the right refcount", |image| share_data(image), Clean, Qemu::Agrees),
    ("data in the L2 table with the right refcount", |image| hide_data_in_l2(image), Corrupt, Qemu::SaysClean),
    (
        "payload in a data cluster with the right refcount",
        |image| hide_payload_in_data(image),
        Corrupt,
        Qemu::SaysClean,
    ),
    ("shared L2 table with the right refcount", |image| share_l2(image), Corrupt, Qemu::SaysClean),
    ("visible byte missing", |image| last_bytes(image, 101), Corrupt, Qemu::SaysClean),
    ("all visible bytes present", |image| last_bytes(image, 100), Clean, Qemu::Agrees),
];

fn share_data(image: &mut [u8]) {
    put(image, L2, 6 * CLUSTER);
    put(image, L2 + 8, 6 * CLUSTER);
    set_refcount(image, 5, 0);
    set_refcount(image, 6, 2);
}

fn hide_data_in_l2(image: &mut [u8]) {
    put(image, L1, L2);
    put(image, L2 + 8, L2);
    set_refcount(image, 6, 0);
    set_refcount(image, 4, 2);
}

fn hide_payload_in_data(image: &mut [u8]) {
    put(image, L2, 5 * CLUSTER);
    put(image, L2 + 16, encode_compressed(5 * CLUSTER, 100, 9));
    set_refcount(image, 5, 2);
    set_refcount(image, 7, 1);
}

fn share_l2(image: &mut [u8]) {
    set_header(image, &Header { l1_size: 2, size: 128 * CLUSTER, ..header() });
    put(image, L1, L2);
    put(image, L1 + 8, L2);
    for (cluster, count) in [(4, 2), (5, 2), (6, 2), (7, 4), (8, 2)] {
        set_refcount(image, cluster, count);
    }
    for (index, entry) in [(0, 5 * CLUSTER), (1, 6 * CLUSTER), (4, (8 * CLUSTER) | ZERO)] {
        put(image, L2 + 8 * index, entry);
    }
}

/// Truncates the file 100 bytes into guest cluster 1; `visible` bytes of the cluster are on the disk.
fn last_bytes(image: &mut Vec<u8>, visible: u64) {
    set_header(image, &Header { size: CLUSTER + visible, ..header() });
    (16..40).step_by(8).for_each(|at| put(image, L2 + at, 0));
    image.truncate(6 * CLUSTER as usize + 100);
}

#[test]
fn every_fault_is_detected() {
    for (name, change, expected, _) in CASES {
        let mut image = valid_image();
        change(&mut image);
        let report = check_bytes(&image);
        assert_eq!(verdict(&report), *expected, "{name}: {report:?}");
    }
}

#[test]
fn qemu_img_agrees_on_every_fault() {
    let Some(dir) = Scratch::with_qemu_img() else { return };
    for (name, change, expected, qemu) in CASES {
        let mut image = valid_image();
        change(&mut image);
        let path = dir.file("case.qcow2");
        std::fs::write(&path, &image).unwrap();
        let code = dir.run(&["check", "-f", "qcow2", "case.qcow2"]).status.code();
        let expected = match (qemu, expected) {
            (Qemu::SaysClean, _) | (_, Clean) => 0,
            (_, Corrupt) => 2,
            (_, Leaks) => 3,
        };
        assert_eq!(code, Some(expected), "{name}");
    }
}

#[test]
fn counts_of_a_valid_image() {
    let expected = CheckReport {
        total_clusters: 64,
        allocated_clusters: 5,
        compressed_clusters: 2,
        // The compressed clusters, and cluster 8, which does not follow 6.
        fragmented_clusters: 3,
        image_end_offset: 9 * CLUSTER,
        ..CheckReport::default()
    };
    assert_eq!(check_bytes(&valid_image()), expected);
}

/// The image with one snapshot, which shares the L2 table, and has its own L1 table in cluster 10. The snapshot table is in
/// cluster 9.
fn with_snapshot() -> Vec<u8> {
    let mut image = valid_image();
    image.resize(11 * CLUSTER as usize, 0);
    set_header(&mut image, &Header { nb_snapshots: 1, snapshots_offset: 9 * CLUSTER, ..header() });
    for (cluster, count) in [(4, 2), (5, 2), (6, 2), (7, 4), (8, 2), (9, 1), (10, 1)] {
        set_refcount(&mut image, cluster, count);
    }
    put(&mut image, L1, L2);
    put(&mut image, 10 * CLUSTER, L2);
    for (index, entry) in [(0, 5 * CLUSTER), (1, 6 * CLUSTER), (4, (8 * CLUSTER) | ZERO)] {
        put(&mut image, L2 + 8 * index, entry);
    }
    put(&mut image, 9 * CLUSTER, 10 * CLUSTER);
    put(&mut image, 9 * CLUSTER + 8, 1 << 32 | 1 << 16 | 1);
    put(&mut image, 9 * CLUSTER + 32, 16);
    put(&mut image, 9 * CLUSTER + 48, 64 * CLUSTER);
    image
}

#[test]
fn clusters_of_a_damaged_snapshot_table_are_not_leaked() {
    assert_eq!(verdict(&check_bytes(&with_snapshot())), Clean);
    // Longer than the file, cut off, misaligned, too long.
    let damages: [fn(&mut Vec<u8>); 4] = [
        |image| image[9 * CLUSTER as usize + 36..][..4].fill(0xff),
        |image| set_header(image, &Header { nb_snapshots: 20, snapshots_offset: 9 * CLUSTER, ..header() }),
        |image| set_header(image, &Header { nb_snapshots: 1, snapshots_offset: 9 * CLUSTER + 8, ..header() }),
        |image| set_header(image, &Header { nb_snapshots: u32::MAX, snapshots_offset: 9 * CLUSTER, ..header() }),
    ];
    for (index, damage) in damages.iter().enumerate() {
        let mut image = with_snapshot();
        damage(&mut image);
        let report = check_bytes(&image);
        assert_eq!((report.leaks, report.check_errors), (0, 1), "{index}: {report:?}");
        assert_eq!(report.corruptions, u64::from(index < 3), "{index}: {report:?}");
    }
    // Without the sizes that version 3 requires.
    let mut image = with_snapshot();
    put(&mut image, 9 * CLUSTER + 32, 8);
    let report = check_bytes(&image);
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (1, 0, 0), "{report:?}");
    // An L1 table that cannot be read is a fault of its snapshot.
    let mut image = with_snapshot();
    put(&mut image, 9 * CLUSTER, 1 << 40);
    let report = check_bytes(&image);
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (1, 0, 0), "{report:?}");
}

#[test]
fn a_cluster_with_two_uses_is_one_corruption() {
    let mut image = valid_image();
    put(&mut image, L2, L2);
    set_refcount(&mut image, 5, 0);
    let report = check_bytes(&image);
    // And bit 63 of the L1 entry is right: the refcount is 1.
    assert_eq!((report.corruptions, report.leaks), (2, 0), "{report:?}");
}

/// Each table has 100 entries, in two clusters.
#[test]
fn l1_tables_do_not_overlap() {
    for (active, snapshots, overlaps) in
        [(12, [14, 16], 0), (20, [14, 14], 0), (12, [13, 16], 1), (13, [12, 16], 1), (20, [14, 15], 1)]
    {
        let mut image = valid_image();
        image.resize(22 * CLUSTER as usize, 0);
        let (l1_table_offset, snapshots_offset) = (active * CLUSTER, 9 * CLUSTER);
        set_header(
            &mut image,
            &Header { l1_size: 100, l1_table_offset, nb_snapshots: 2, snapshots_offset, ..header() },
        );
        for (table, at) in snapshots.into_iter().zip([snapshots_offset, snapshots_offset + 56]) {
            put(&mut image, at, table * CLUSTER);
            put(&mut image, at + 8, 100 << 32);
            put(&mut image, at + 32, 16);
            put(&mut image, at + 48, 64 * CLUSTER);
        }
        let report = check_bytes(&image);
        let found = report.messages.iter().filter(|text| text.contains("another L1 table")).count();
        assert_eq!(found, overlaps, "{active} {snapshots:?}: {report:?}");
    }
}

/// A snapshot with an L2 table and a data cluster of its own, in clusters 11 and 12.
#[test]
fn only_the_active_state_has_copied_bits() {
    let mut image = valid_image();
    image.resize(13 * CLUSTER as usize, 0);
    set_header(&mut image, &Header { nb_snapshots: 1, snapshots_offset: 9 * CLUSTER, ..header() });
    (9..13).for_each(|cluster| set_refcount(&mut image, cluster, 1));
    put(&mut image, 9 * CLUSTER, 10 * CLUSTER);
    put(&mut image, 9 * CLUSTER + 8, 1 << 32);
    put(&mut image, 9 * CLUSTER + 32, 16);
    put(&mut image, 9 * CLUSTER + 48, 64 * CLUSTER);
    put(&mut image, 10 * CLUSTER, 11 * CLUSTER);
    put(&mut image, 11 * CLUSTER, 12 * CLUSTER);
    let report = check_bytes(&image);
    assert_eq!((verdict(&report), report.allocated_clusters), (Clean, 5), "{report:?}");
}

/// The image with a bitmap: its directory is in cluster 9, its table in cluster 10, its bits in cluster 11.
fn with_bitmap(flags: u64) -> Vec<u8> {
    let mut image = valid_image();
    image.resize(12 * CLUSTER as usize, 0);
    let directory = BitmapDirectory { count: 1, len: 32, offset: 9 * CLUSTER, at: 0 };
    let extensions = Extensions { bitmaps: Some(Ok(directory)), ..Extensions::default() };
    set_header(&mut image, &Header { autoclear: Autoclear::BITMAPS, extensions, ..header() });
    put(&mut image, 9 * CLUSTER, 10 * CLUSTER);
    put(&mut image, 9 * CLUSTER + 8, 1 << 32 | flags);
    put(&mut image, 9 * CLUSTER + 16, 0x0110_0001 << 32);
    put(&mut image, 9 * CLUSTER + 24, 0x62 << 56);
    put(&mut image, 10 * CLUSTER, 11 * CLUSTER);
    (9..12).for_each(|cluster| set_refcount(&mut image, cluster, 1));
    image
}

#[test]
fn reserved_bitmap_flags_are_reported() {
    assert_eq!(verdict(&check_bytes(&with_bitmap(2))), Clean);
    assert_eq!(verdict(&check_bytes(&with_bitmap(8))), Corrupt);
}

#[test]
fn clusters_of_bitmaps_are_counted() {
    for cluster in 9..12 {
        for (count, expected) in [(0, Corrupt), (1, Clean), (2, Leaks)] {
            let mut image = with_bitmap(2);
            set_refcount(&mut image, cluster, count);
            assert_eq!(verdict(&check_bytes(&image)), expected, "{cluster} {count}");
        }
    }
    for (entry, expected) in [(0, Leaks), (1, Leaks), (2, Corrupt), (12 * CLUSTER, Corrupt), (L2, Corrupt)] {
        let mut image = with_bitmap(2);
        put(&mut image, 10 * CLUSTER, entry);
        assert_eq!(verdict(&check_bytes(&image)), expected, "{entry:#x}");
    }
    // What a table cannot say is not a leak.
    let mut image = with_bitmap(2);
    put(&mut image, 9 * CLUSTER, 1 << 40);
    let report = check_bytes(&image);
    assert_eq!((report.corruptions, report.leaks), (1, 0), "{report:?}");
}

#[test]
fn a_luks_image_without_its_header_is_corrupt() {
    let mut image = valid_image();
    set_header(&mut image, &Header { encryption: Encryption::Luks, ..header() });
    assert_eq!(verdict(&check_bytes(&image)), Corrupt);
}

#[test]
fn dirty_and_corrupt_bits_are_reported() {
    let mut image = valid_image();
    set_header(&mut image, &Header { incompatible: Incompatible::DIRTY | Incompatible::CORRUPT, ..header() });
    let report = check_bytes(&image);
    assert_eq!((verdict(&report), report.messages.len()), (Clean, 2));
}

#[test]
fn truncated_images() {
    let image = valid_image();
    for len in 0..image.len() {
        let source: Arc<dyn ReadAt> = Arc::new(MemFile::from(image[..len].to_vec()));
        match check_source(source) {
            Ok(report) => {
                let expected = if len > 8 * CLUSTER as usize { Clean } else { Corrupt };
                assert_eq!(verdict(&report), expected, "{len}: {report:?}");
            }
            Err(error) => {
                assert_eq!(error.kind().as_str(), "out-of-bounds", "{len}");
                assert!(len <= L1 as usize, "{len}: {error}");
            }
        }
    }
}

/// With extended L2 entries, a host cluster is needed up to the end of its last allocated subcluster.
#[test]
fn a_truncated_cluster_needs_its_allocated_subclusters() {
    const CLUSTER: u64 = 16 << 10;
    const REFCOUNT_BLOCK: usize = 2 * CLUSTER as usize;
    const L1: u64 = 3 * CLUSTER;
    const L2: u64 = 4 * CLUSTER;
    const DATA: u64 = 5 * CLUSTER;
    let with_subclusters = |bitmap: u64, len: u64| {
        let mut image = vec![0; (6 * CLUSTER) as usize];
        let header = Header {
            cluster_bits: 14,
            size: CLUSTER,
            l1_table_offset: L1,
            refcount_table_offset: CLUSTER,
            incompatible: Incompatible::EXTENDED_L2,
            ..header()
        };
        set_header(&mut image, &header);
        put(&mut image, CLUSTER, REFCOUNT_BLOCK as u64);
        for cluster in 0..6 {
            refcount::set_count(&mut image[REFCOUNT_BLOCK..][..CLUSTER as usize], 4, cluster, 1);
        }
        put(&mut image, L1, L2 | COPIED);
        put(&mut image, L2, DATA | COPIED);
        put(&mut image, L2 + 8, bitmap);
        image.truncate(len as usize);
        verdict(&check_bytes(&image))
    };
    for (bitmap, last) in [(1, 1), (0b1010, 4), (1 << 32 | 0b10, 2), (0xfffe << 32 | 1, 1), (1 << 31, 32)] {
        let end = DATA + last * 512;
        assert_eq!(with_subclusters(bitmap, end), Clean, "{bitmap:#x}");
        assert_eq!(with_subclusters(bitmap, end - 1), Corrupt, "{bitmap:#x}");
    }
    // Subclusters of zeros need nothing of a cluster, but that it begins in the file.
    for bitmap in [0, 0b11 << 32] {
        assert_eq!(with_subclusters(bitmap, DATA + 1), Clean, "{bitmap:#x}");
        assert_eq!(with_subclusters(bitmap, DATA), Corrupt, "{bitmap:#x}");
    }
}

/// A file of zeros with `parts` at given offsets.
struct Sparse {
    len: u64,
    parts: Vec<(u64, Vec<u8>)>,
}

impl ReadAt for Sparse {
    fn size(&self) -> std::io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let len = buf.len().min(self.len.saturating_sub(offset) as usize);
        buf[..len].fill(0);
        for (start, bytes) in &self.parts {
            let (from, to) = (offset.max(*start), (offset + len as u64).min(start + bytes.len() as u64));
            if from < to {
                let source = &bytes[(from - start) as usize..(to - start) as usize];
                buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
            }
        }
        Ok(len)
    }
}

/// Host offset in the second window.
const FAR: u64 = 5 << 30;

const TABLE: u64 = 16;
const TABLE_CLUSTERS: u64 = 700;

/// An image with a refcount of `count` for the first cluster of the second window, and its refcount block, after two for the refcount
/// table, at host offset `blocks_at`. Guest cluster 0 is in that cluster, if `is_used`.
fn two_windows(count: u64, is_used: bool, blocks_at: u64) -> Sparse {
    let header =
        Header { refcount_table_offset: TABLE * CLUSTER, refcount_table_clusters: TABLE_CLUSTERS as u32, ..header() };
    let per_block = header.refcount_block_entries();
    let mut start = valid_image();
    set_header(&mut start, &header);
    if is_used {
        put(&mut start, L2, FAR | COPIED);
        set_refcount(&mut start, 5, 0);
    }
    let blocks = [REFCOUNT_BLOCK, blocks_at, blocks_at + CLUSTER, blocks_at + 2 * CLUSTER];
    let mut table = vec![0; (TABLE_CLUSTERS * CLUSTER) as usize];
    for (index, block) in [0, 1, 2, FAR / CLUSTER / per_block].into_iter().zip(blocks) {
        put(&mut table, 8 * index, block);
    }
    let mut far = vec![0; 3 * CLUSTER as usize];
    let mut set = |cluster: u64, count| {
        let index = (cluster % per_block) as usize;
        match cluster / per_block {
            0 => set_refcount(&mut start, index, count),
            1 => refcount::set_count(&mut far[..CLUSTER as usize], 4, index, count),
            2 => refcount::set_count(&mut far[CLUSTER as usize..][..CLUSTER as usize], 4, index, count),
            _ => refcount::set_count(&mut far[2 * CLUSTER as usize..], 4, index, count),
        }
    };
    (TABLE..TABLE + TABLE_CLUSTERS).for_each(|cluster| set(cluster, 1));
    set(1, 0);
    (0..3).for_each(|block| set(blocks_at / CLUSTER + block, 1));
    set(FAR / CLUSTER, count);
    Sparse { len: FAR + 4 * CLUSTER, parts: vec![(0, start), (TABLE * CLUSTER, table), (blocks_at, far)] }
}

#[test]
fn a_file_of_several_windows() {
    const { assert!(FAR / CLUSTER > WINDOW) };
    let report = |count| check_source(Arc::new(two_windows(count, true, FAR + CLUSTER))).unwrap();
    let valid = report(1);
    assert_eq!(verdict(&valid), Clean, "{valid:?}");
    assert_eq!((valid.allocated_clusters, valid.image_end_offset), (5, FAR + 4 * CLUSTER));
    let missing = report(0);
    // Too low a refcount, and bit 63 set in the entry.
    assert_eq!((missing.corruptions, missing.leaks), (2, 0), "{missing:?}");
    let copied = report(2);
    assert_eq!((copied.corruptions, copied.leaks), (1, 1), "{copied:?}");
}

/// Only a refcount block in the first window knows of the second one.
#[test]
fn leaks_are_found_where_nothing_is_used() {
    for (count, expected) in [(0, Clean), (1, Leaks)] {
        let image = two_windows(count, false, (TABLE + TABLE_CLUSTERS) * CLUSTER);
        let report = check_source(Arc::new(image)).unwrap();
        assert_eq!((verdict(&report), report.leaks), (expected, count), "{report:?}");
    }
}

#[test]
fn tables_with_many_references_are_read_once() {
    const SNAPSHOTS: u64 = 65536;
    const ENTRIES: u64 = 1 << 18;
    let (l1, snapshots) = (16 * CLUSTER, 16 * CLUSTER + 8 * ENTRIES);
    let mut image = valid_image();
    let nb_snapshots = SNAPSHOTS as u32;
    let size = ENTRIES * 64 * CLUSTER;
    let l1_size = ENTRIES as u32;
    let header = Header { size, l1_size, l1_table_offset: l1, nb_snapshots, snapshots_offset: snapshots, ..header() };
    set_header(&mut image, &header);
    image.resize((snapshots + 56 * SNAPSHOTS) as usize, 0);
    (0..ENTRIES).for_each(|index| put(&mut image, l1 + 8 * index, L2 | COPIED));
    for index in 0..SNAPSHOTS {
        let at = snapshots + 56 * index;
        // Half of the tables are the same, the others overlap their successors.
        let overlap = CLUSTER * (index / 2 % 64);
        put(&mut image, at, if index % 2 == 0 { l1 } else { l1 + overlap });
        put(&mut image, at + 8, (ENTRIES - index / 2 % 64 * 64) << 32);
        put(&mut image, at + 32, 16);
        put(&mut image, at + 48, CLUSTER);
    }
    let start = std::time::Instant::now();
    let report = check_bytes(&image);
    assert_eq!(verdict(&report), Corrupt);
    assert_eq!(report.messages.len(), CheckReport::MESSAGES);
    assert!(report.messages.iter().any(|text| text.contains("another L1 table")), "{:?}", &report.messages[..9]);
    // A table for each snapshot would take hours.
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

#[test]
fn work_is_limited() {
    let mut work = Work::default();
    assert!(work.spend(Work::LIMIT).is_ok());
    assert_eq!(work.spend(1).unwrap_err().kind().as_str(), "limit");
}

#[test]
fn qemu_img_counts_the_same_in_its_images() {
    let Some(dir) = Scratch::with_qemu_img() else { return };
    // Dense, incompressible, compressible, zeros, and 4 KiB islands.
    let mut disk = vec![0; 3_000_320];
    let mut state = 1u32;
    for (index, byte) in disk.iter_mut().enumerate() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = match index >> 18 {
            0 | 1 => (state >> 24) as u8,
            2 | 3 => (index >> 9) as u8,
            7 | 8 if index % 100_000 < 4096 => 7,
            11 => (state >> 24) as u8 | 1,
            _ => 0,
        };
    }
    std::fs::write(dir.file("disk.raw"), &disk).unwrap();
    for options in [
        "compat=1.1",
        "compat=0.10",
        "compat=0.10,cluster_size=512",
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=1",
        "cluster_size=2M",
        "refcount_bits=4",
        "refcount_bits=64,cluster_size=4k",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16k",
        "preallocation=metadata",
        "preallocation=metadata,extended_l2=on",
        "preallocation=full",
        "lazy_refcounts=on",
        "compression_type=zstd",
        "cluster_size=4k,data_file=data.raw",
    ] {
        for compress in [false, true] {
            if compress && (options.contains("preallocation") || options.contains("data_file")) {
                continue;
            }
            let name = format!("{options} compressed: {compress}");
            let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options, "disk.raw", "image.qcow2"];
            if compress {
                args.insert(1, "-c");
            }
            dir.succeed(&args);
            dir.assert_same_report(&name);
        }
    }
    dir.succeed(&["convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", "disk.raw", "image.qcow2"]);
    dir.succeed(&["snapshot", "-c", "first", "image.qcow2"]);
    dir.succeed(&["snapshot", "-c", "second one", "image.qcow2"]);
    dir.assert_same_report("snapshots");
    dir.succeed(&["resize", "-f", "qcow2", "image.qcow2", "20M"]);
    dir.succeed(&["bitmap", "--add", "-g", "4k", "image.qcow2", "some"]);
    dir.succeed(&["bitmap", "--add", "--disable", "-g", "64k", "image.qcow2", "other"]);
    dir.assert_same_report("snapshots and bitmaps");

    let file: Arc<dyn ReadAt> = Arc::new(FileSource::open(&dir.file("image.qcow2")).unwrap());
    let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
    let header = Header::read(&file, &limits).unwrap();
    let snapshots = snapshot::read_snapshots(&file, &header, &Limits::default(), &budget).unwrap();
    let names: Vec<_> =
        snapshots.iter().map(|entry| (entry.info.id.to_string(), entry.info.name.to_string())).collect();
    assert_eq!(names, [("1".into(), "first".into()), ("2".into(), "second one".to_owned())]);
    for entry in &snapshots {
        assert_eq!(entry.info.virtual_size, 3_000_320);
        assert_eq!((entry.info.vm_state_size, entry.info.icount), (0, Some(0)));
        assert!(entry.info.date.0 > 1_700_000_000);
        entry.check(&header, file.size().unwrap()).unwrap();
    }
    let bitmaps = bitmap::read_bitmaps(&file, &header, &budget).unwrap();
    let values: Vec<_> = bitmaps.iter().map(bitmap::Bitmap::to_value).collect();
    let value = |flags: &[&str], name: &str, granularity: u64| {
        let flags = Value::List(flags.iter().map(|flag| Value::from(*flag)).collect());
        Value::Map(vec![("flags", flags), ("name", name.into()), ("granularity", granularity.into())])
    };
    assert_eq!(values, [value(&["auto"], "some", 4096), value(&[], "other", 65536)]);
}

/// A temporary directory, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    /// `None`, with a message, without qemu-img.
    fn with_qemu_img() -> Option<Self> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        if Command::new("qemu-img").arg("--version").output().is_err() {
            eprintln!("SKIPPED: qemu-img is not installed");
            return None;
        }
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("diskimage-check-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Some(Scratch(dir))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn run(&self, args: &[&str]) -> std::process::Output {
        Command::new("qemu-img").args(args).current_dir(&self.0).output().unwrap()
    }

    fn succeed(&self, args: &[&str]) {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Compares the reports.
    fn assert_same_report(&self, name: &str) {
        let output = self.run(&["check", "-f", "qcow2", "--output", "json", "image.qcow2"]);
        let json = String::from_utf8_lossy(&output.stdout).into_owned();
        let number = |key: &str| -> u64 {
            let Some((_, rest)) = json.split_once(&format!("\"{key}\": ")) else { return 0 };
            rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
        };
        let expected = CheckReport {
            total_clusters: number("total-clusters"),
            allocated_clusters: number("allocated-clusters"),
            compressed_clusters: number("compressed-clusters"),
            fragmented_clusters: number("fragmented-clusters"),
            image_end_offset: number("image-end-offset"),
            ..CheckReport::default()
        };
        assert!(output.status.success() && expected.image_end_offset > 0, "{name}: {json}");
        let source = FileSource::open(&self.file("image.qcow2")).unwrap();
        assert_eq!(check_source(Arc::new(source)).unwrap(), expected, "{name}");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
