//! Damaged images: what can be read is exact, and the rest is listed.

#![expect(clippy::single_range_in_vec_init, reason = "a list of one range")]

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::patch::Qcow2;
use crate::support::pattern::Pattern;
use crate::support::{
    assert_same, convert, format, open_bytes, options, qcow2, qcow2_bytes, qcow2_image, raw, raw_image, vdi, vhdx,
    vmdk, vpc,
};
use diskimage::driver::ExtentKind;
use diskimage::io::{MemFile, ReadAt};
use diskimage::{Converter, DamageList, ErrorKind, Format, Image, OpenOptions, Report};

const MIB: usize = 1 << 20;
const PATTERN: u8 = 0xa5;

/// A file on a disk with bad sectors.
#[derive(Default)]
struct BadDisk {
    bytes: Vec<u8>,
    bad: Vec<Range<u64>>,
    reads: AtomicU64,
}

impl ReadAt for BadDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let end = (offset + buf.len() as u64).min(self.bytes.len() as u64);
        if self.bad.iter().any(|bad| bad.start < end && offset < bad.end) {
            return Err(io::Error::other("bad sector"));
        }
        let part = &self.bytes[offset as usize..end as usize];
        buf[..part.len()].copy_from_slice(part);
        Ok(part.len())
    }
}

fn open_bad(bytes: &[u8], bad: &[Range<u64>], format: Format) -> (Image, Arc<BadDisk>) {
    let disk = Arc::new(BadDisk { bytes: bytes.to_vec(), bad: bad.to_vec(), reads: AtomicU64::new(0) });
    (OpenOptions::new().format(format).open_source(disk.clone()).unwrap(), disk)
}

/// Converts what can be read with several numbers of threads. Everything else has to be `guest`, and the default an error.
#[track_caller]
fn salvage(image: &Image, guest: &[u8]) -> Report {
    let failed = raw().convert_to(image, Arc::new(MemFile::new()));
    let (bytes, report) = convert(&raw().salvage(true).salvage_pattern(PATTERN).threads(1), image);
    assert_eq!(failed.is_err(), report.unreadable.bytes > 0, "{failed:?}");
    assert_eq!(report.doubtful, DamageList::default());
    let mut expected = guest.to_vec();
    for lost in &report.unreadable.ranges {
        expected[lost.range.start as usize..lost.range.end as usize].fill(PATTERN);
    }
    assert_same(&bytes, &expected, "salvaged");
    assert!(report.unreadable.ranges.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start), "{report:?}");
    let sum = report.unreadable.ranges.iter().map(|lost| lost.range.end - lost.range.start).sum::<u64>();
    assert_eq!(sum, report.unreadable.bytes);
    for threads in [2, 5] {
        let (others, other) = convert(&raw().salvage(true).salvage_pattern(PATTERN).threads(threads), image);
        assert_same(&others, &bytes, "several threads");
        assert_eq!(other, report);
    }
    // With zeros, compressed, with all zeros stored, and to another format.
    for (index, lost) in report.unreadable.ranges.iter().enumerate() {
        assert!(index < 1000 && !lost.message.is_empty());
        expected[lost.range.start as usize..lost.range.end as usize].fill(0);
    }
    for converter in [raw(), raw().sparse(0), qcow2("").compress(true), qcow2("cluster_size=4k"), vdi("")] {
        let (file, other) = convert(&converter.salvage(true), image);
        assert_eq!(&other.unreadable, &report.unreadable);
        let image = open_bytes(&file, other.format).unwrap();
        assert_same(&convert(&raw(), &image).0, &expected, other.format.name());
    }
    report
}

fn ranges(report: &Report) -> Vec<Range<u64>> {
    report.unreadable.ranges.iter().map(|lost| lost.range.clone()).collect()
}

#[test]
fn nothing_is_lost_of_a_sound_image() {
    let guest = Pattern::Islands.make(3 * MIB + 512);
    for converter in [qcow2(""), qcow2("").compress(true), vmdk(""), vpc(""), vhdx(""), vdi("")] {
        let (file, report) = convert(&converter, &raw_image(&guest));
        assert_eq!(salvage(&open_bytes(&file, report.format).unwrap(), &guest).unreadable.ranges, []);
    }
}

#[test]
fn only_bad_sectors_are_lost() {
    let guest = Pattern::Incompressible.make(5 * MIB + 512);
    let len = guest.len() as u64;
    let bad = [512..1024, (1 << 20) - 512..(1 << 20) + 512, (3 << 20) + 4096..(3 << 20) + 12_288, len - 512..len];
    let (image, disk) = open_bad(&guest, &bad, Format::RAW);
    let report = salvage(&image, &guest);
    assert_eq!(ranges(&report), bad);
    assert_eq!(report.unreadable.ranges[0].kind, ErrorKind::Io);
    assert!(report.unreadable.ranges[0].message.contains("bad sector"), "{report:?}");
    // A retry costs reads of the pieces around the bad sector only.
    disk.reads.store(0, Ordering::Relaxed);
    convert(&raw().salvage(true).threads(1), &image);
    let reads = disk.reads.load(Ordering::Relaxed);
    assert!(reads < 6 + 5 * (16 + 16 + 8) + 8, "{reads}");
}

#[test]
fn the_rest_of_a_truncated_image_is_read() {
    let guest = Pattern::Incompressible.make(6 * MIB);
    for (converter, unit) in [
        (vmdk(""), 64 << 10),
        (vpc("block_size=512k"), 512 << 10),
        (vhdx("block_size=1M"), MIB),
        (vdi(""), MIB),
        (vdi("block_size=128k"), 128 << 10),
    ] {
        let (mut file, report) = convert(&converter, &raw_image(&guest));
        let name = report.format.name();
        file.truncate(file.len() - MIB - 5000);
        let report = salvage(&open_bytes(&file, report.format).unwrap(), &guest);
        assert_eq!(report.unreadable.ranges.len(), 1, "{name}: {report:?}");
        let lost = &report.unreadable.ranges[0];
        assert_eq!(lost.range.end, guest.len() as u64);
        assert!(report.unreadable.bytes <= (MIB + 5000 + unit) as u64, "{name}: {report:?}");
        assert!(report.unreadable.bytes >= MIB as u64, "{name}: {report:?}");
    }
    // Files that shrink after they were opened, or whose end cannot be read.
    let raw_end = guest.len() as u64 - 5000;
    let end = (raw_end / 512 * 512)..guest.len() as u64;
    let (image, _) = open_bad(&guest, &[raw_end..guest.len() as u64], Format::RAW);
    assert_eq!(ranges(&salvage(&image, &guest)), [end]);
}

/// Host offsets of the data of each guest cluster.
fn host_offsets(image: &Image) -> Vec<u64> {
    let spans = image.spans(0..u64::MAX).map(|span| span.unwrap());
    spans
        .filter_map(|span| match span.kind {
            ExtentKind::Compressed(unit) => Some(unit.at.offset),
            ExtentKind::Data(at) => Some(at.offset),
            _ => None,
        })
        .collect()
}

#[test]
fn a_compressed_cluster_is_lost_as_a_whole() {
    let guest = Pattern::Dense.make(4 * MIB);
    for (converter, unit) in [
        (qcow2("").compress(true), 64 << 10),
        (qcow2("compression_type=zstd,cluster_size=2M").compress(true), 2 << 20),
        (vmdk("subformat=streamOptimized"), 64 << 10),
    ] {
        let (mut file, report) = convert(&converter, &raw_image(&guest));
        let at = host_offsets(&open_bytes(&file, report.format).unwrap())[1] as usize;
        file[at..at + 40].fill(0xff);
        let image = open_bytes(&file, report.format).unwrap();
        let report = salvage(&image, &guest);
        assert_eq!(ranges(&report), [unit..2 * unit], "{report:?}");
        assert_eq!(report.unreadable.ranges[0].kind, ErrorKind::Decode);
        // Compressed again, the other clusters are copied.
        let (_, again) = convert(&converter.salvage(true), &image);
        assert_eq!(ranges(&again), ranges(&report));
        assert!(again.passthrough_blocks > 0 || unit == 2 << 20, "{again:?}");
    }
}

#[test]
fn a_damaged_table_loses_what_it_maps() {
    // An L2 table of 512-byte clusters maps 32 KiB.
    let guest = Pattern::Incompressible.make(300 << 10);
    let file = qcow2_bytes(&qcow2("cluster_size=512"), &guest);
    let table = |cluster| Qcow2(file.clone()).l2_entry(cluster);
    let (second, third) = (table(64), table(128));
    assert!(second.is_multiple_of(512) && third.is_multiple_of(512));
    let lost = |start: u64, end: u64| start << 10..end << 10;

    let (image, disk) = open_bad(&file, &[second..second + 512], format("qcow2"));
    let report = salvage(&image, &guest);
    assert_eq!(ranges(&report), [lost(32, 64)]);
    disk.reads.store(0, Ordering::Relaxed);
    convert(&raw().salvage(true), &image);
    assert!(disk.reads.load(Ordering::Relaxed) < 700, "one read a cluster, a table, and some steps");

    // Adjacent tables with faults of one kind are one range.
    let (image, _) = open_bad(&file, &[second..second + 1, third..third + 1], format("qcow2"));
    assert_eq!(ranges(&salvage(&image, &guest)), [lost(32, 96)]);

    // An L1 entry out of bounds, an L2 entry with reserved bits and one out of bounds.
    let mut patched = Qcow2(file.clone());
    patched.put_u64(patched.l2_entry(5), 1 << 63 | 1 << 60);
    patched.put_u64(patched.l2_entry(9), 1 << 63 | 1 << 40);
    patched.put_u64(patched.l1_entry(128), 1 << 63 | 1 << 50);
    let report = salvage(&qcow2_image(&patched.0).unwrap(), &guest);
    assert_eq!(ranges(&report), [5 * 512..6 * 512, 9 * 512..10 * 512, lost(64, 96)]);
    let kinds: Vec<_> = report.unreadable.ranges.iter().map(|lost| lost.kind).collect();
    assert_eq!(kinds, [ErrorKind::InvalidField, ErrorKind::OutOfBounds, ErrorKind::OutOfBounds]);
}

#[test]
fn a_huge_unreadable_range_takes_few_steps() {
    // Each L2 table maps 512 MiB of 8 TiB; all of them are at the same place beyond the end of the file.
    let out = Arc::new(MemFile::new());
    Converter::new(format("qcow2")).sync(false).create_to(8 << 40, out.clone()).unwrap();
    let mut image = Qcow2(out.to_vec());
    for table in 0..16_384 {
        image.put_u64(image.l1_entry(table * 8192), 1 << 63 | 1 << 50);
    }
    let (image, disk) = open_bad(&image.0, &[], format("qcow2"));
    let (_, report) = convert(&qcow2("").salvage(true), &image);
    assert_eq!((ranges(&report), report.unreadable.bytes), (vec![0..8 << 40], 8 << 40));
    assert!(disk.reads.load(Ordering::Relaxed) < 100);
}

#[test]
fn tables_of_all_formats() {
    let guest = Pattern::Incompressible.make(4 * MIB);
    for (converter, table) in [
        (vdi("block_size=128k"), 1 << 20..(1 << 20) + 4),
        (vpc("block_size=512k"), 1536..1540),
        (vhdx("block_size=1M"), 3 << 20..(3 << 20) + 8),
        (vmdk(""), 0..0),
    ] {
        let (file, report) = convert(&converter, &raw_image(&guest));
        let name = report.format.name();
        let bad: Vec<_> = [table.clone()].into_iter().filter(|table| !table.is_empty()).collect();
        let (image, _) = open_bad(&file, &bad, report.format);
        let report = salvage(&image, &guest);
        // The table is a single page.
        let whole = if bad.is_empty() { vec![] } else { vec![0..guest.len() as u64] };
        assert_eq!(ranges(&report), whole, "{name}");
    }
}

#[test]
fn a_damaged_layer_hides_what_is_below_it() {
    let dir = crate::support::TempDir::new();
    let base = Pattern::Dense.make(2 * MIB);
    let mut guest = base.clone();
    guest[512 << 10..576 << 10].fill(7);
    guest[MIB..MIB + 512].fill(8);
    dir.file("base.raw", &base);
    let open_base = || crate::support::open_raw(&dir.join("base.raw"));
    let overlay = dir.join("overlay.qcow2");
    qcow2("").backing(open_base(), "base.raw").convert(&raw_image(&guest), &overlay).unwrap();
    let mut file = Qcow2(std::fs::read(&overlay).unwrap());
    file.put_u64(file.l2_entry(16), 1 << 63 | 1 << 40);
    std::fs::write(&overlay, &file.0).unwrap();
    let image = crate::support::open_beside(&overlay).unwrap();
    let report = salvage(&image, &guest);
    assert_eq!(ranges(&report), [MIB as u64..(MIB + (64 << 10)) as u64]);
    assert_eq!(report.unreadable.ranges[0].path.as_deref(), Some(&*overlay));
    // To an overlay, what is lost is stored: the backing file has data there.
    let again = dir.join("again.qcow2");
    qcow2("").salvage(true).backing(open_base(), "base.raw").convert(&image, &again).unwrap();
    guest[MIB..MIB + (64 << 10)].fill(0);
    assert_same(&convert(&raw(), &crate::support::open_beside(&again).unwrap()).0, &guest, "overlay");
    // A missing backing file is an error.
    std::fs::remove_file(dir.join("base.raw")).unwrap();
    assert!(crate::support::open_beside(&overlay).is_err());
}

#[test]
fn shared_clusters_are_read_as_the_table_says() {
    let guest = Pattern::Incompressible.make(MIB);
    let mut file = Qcow2(qcow2_bytes(&qcow2(""), &guest));
    let entry = file.u64(file.l2_entry(3));
    file.put_u64(file.l2_entry(7), entry);
    let image = qcow2_image(&file.0).unwrap();
    assert!(raw().convert_to(&image, Arc::new(MemFile::new())).is_err());
    let (bytes, report) = convert(&raw().salvage(true), &image);
    assert_eq!(report.unreadable.ranges, []);
    assert_same(&bytes[7 << 16..8 << 16], &guest[3 << 16..4 << 16], "cluster 7");
    let [doubt] = &report.doubtful.ranges[..] else { panic!("{report:?}") };
    assert_eq!((doubt.range.clone(), report.doubtful.bytes), (7 << 16..8 << 16, 1 << 16));
    assert!(doubt.message.contains("another guest range") && doubt.message.contains("0x70000"), "{report:?}");
    // One that cannot be read before it, and metadata in place of data.
    file.put_u64(file.l2_entry(2), 1 << 63 | 1 << 40);
    let l2_table = file.l2_entry(0);
    file.put_u64(file.l2_entry(9), 1 << 63 | l2_table);
    let (_, report) = convert(&raw().salvage(true), &qcow2_image(&file.0).unwrap());
    let doubts: Vec<_> = report.doubtful.ranges.iter().map(|doubt| doubt.range.clone()).collect();
    assert_eq!((ranges(&report), doubts), (vec![2 << 16..3 << 16], vec![7 << 16..8 << 16, 9 << 16..10 << 16]));
}

#[test]
fn the_list_is_bounded_and_the_sum_is_not() {
    let guest = Pattern::Incompressible.make(3 * MIB);
    let bad: Vec<_> = (0..3000).map(|n| n * 1024..n * 1024 + 512).collect();
    let (image, _) = open_bad(&guest, &bad, Format::RAW);
    let (_, report) = convert(&raw().salvage(true), &image);
    assert_eq!((report.unreadable.ranges.len(), report.unreadable.bytes), (DamageList::RANGES, 3000 * 512));
    assert_eq!(ranges(&report), bad[..1000]);
}

#[cfg(feature = "cli")]
#[test]
fn the_program_has_an_exit_code_for_it() {
    use crate::cli::{fail, imgconv, succeed};

    let dir = crate::support::TempDir::new();
    let guest = Pattern::Incompressible.make(2 * MIB);
    let converter = Converter::new(format("vdi")).options(options("")).sync(false);
    converter.convert(&raw_image(&guest), dir.join("good.vdi")).unwrap();
    let mut file = std::fs::read(dir.join("good.vdi")).unwrap();
    file.truncate(file.len() - MIB);
    dir.file("bad.vdi", &file);

    fail(&dir, 1, &["convert", "bad.vdi", "out.raw"]);
    assert!(!dir.names().contains(&"out.raw".into()));
    assert_eq!(succeed(&dir, &["convert", "--salvage", "good.vdi", "out.raw"]), "");
    let done = imgconv(&dir, &["convert", "--salvage", "--output", "json", "bad.vdi", "out.raw"]);
    assert_eq!(done.status.code(), Some(3));
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&report["unreadable-bytes"], &report["unreadable"][0]["start"]), (&MIB.into(), &MIB.into()));
    assert_eq!(
        (&report["unreadable"][0]["kind"], &report["unreadable"][0]["path"]),
        (&"out-of-bounds".into(), &"bad.vdi".into())
    );
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(said.contains("0x100000 to 0x200000") && said.lines().count() == 2, "{said}");
    assert_same(&std::fs::read(dir.join("out.raw")).unwrap()[..MIB], &guest[..MIB], "the first block");
    let done = imgconv(&dir, &["convert", "-q", "--salvage", "--salvage-pattern", "0xff", "bad.vdi", "out.raw"]);
    assert_eq!(done.status.code(), Some(3));
    assert_same(&std::fs::read(dir.join("out.raw")).unwrap()[MIB..], &[0xff; MIB], "the second block");
    fail(&dir, 1, &["convert", "--salvage-pattern", "1", "good.vdi", "out.raw"]);
    fail(&dir, 1, &["convert", "--salvage", "-f", "vmdk", "-", "out.raw"]);
}
