//! Overlays whose backing files have other data, or other sizes, than they show.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use diskimage::driver::ExtentKind;
use diskimage::io::{MemFile, ReadAt, WriteAt};
use diskimage::{Converter, Format, Image, Name, OpenOptions, RebaseTo, ReferencePolicy};

use super::model::Start;
use super::starts::{self, SIZE, image};
use crate::support::options;
use crate::support::pattern::Pattern;

const MIB: usize = 1 << 20;

/// Options for an overlay whose backing file is this raw disk.
fn over(backing: &[u8]) -> OpenOptions {
    let backing: Arc<dyn ReadAt> = Arc::new(MemFile::from(backing.to_vec()));
    OpenOptions::new().reference_policy(ReferencePolicy::Any).resolver(move |_| Ok(backing.clone()))
}

fn raw(bytes: &[u8]) -> Image {
    OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(bytes.to_vec()))).unwrap()
}

/// An empty overlay of a raw disk.
fn overlay(list: &str, size: usize, backing: &[u8]) -> Vec<u8> {
    let file = Arc::new(MemFile::new());
    let list = options(&format!("{list},backing_fmt=raw"));
    Converter::new(Format::QCOW2)
        .options(list)
        .backing(raw(backing), "base")
        .create_to(size as u64, file.clone())
        .unwrap();
    file.to_vec()
}

fn content(image: &Image) -> Vec<u8> {
    let mut content = vec![0; image.virtual_size() as usize];
    image.read_exact_at(&mut content, 0).unwrap();
    content
}

#[test]
fn a_new_backing_file_does_not_show_through() {
    let new = vec![7; MIB];
    let mut holes = vec![0; MIB];
    holes[..68 << 10].fill(9);
    holes[100 << 10..140 << 10].fill(9);
    for list in ["compat=1.1", "compat=0.10", "extended_l2=on,cluster_size=64k", "cluster_size=4k"] {
        for old in [&holes[..], &vec![8; 262_656], &[]] {
            let file = Arc::new(MemFile::from(overlay(list, MIB, old)));
            let expected = content(&over(old).open_source(file.clone()).unwrap());
            let disk = over(old).open_disk_in(file.clone()).unwrap();
            let (image, name) = (raw(&new), Name::from("new"));
            disk.rebase(Some(RebaseTo { image: &image, name: &name }), &|_, _| {}).unwrap();
            disk.close().unwrap();
            let found = content(&over(&new).open_source(file).unwrap());
            assert!(found == expected, "{list}, {} bytes below", old.len());
        }
    }
}

/// The payloads share clusters, whose uses are counted; what is written over them later gives them up.
#[test]
fn what_a_rebase_keeps_is_compressed() {
    let mut old: Vec<u8> = (0..MIB).map(|at| (at / 5000) as u8).collect();
    // Blocks that do not become smaller, and a last one that is not whole.
    old[300_000..420_000].copy_from_slice(&Pattern::Dense.make(120_000));
    old.extend_from_slice(&[3; 1536]);
    for list in [
        "cluster_size=4k",
        "cluster_size=64k",
        "cluster_size=512,refcount_bits=1",
        "cluster_size=4k,refcount_bits=2,compat=1.1",
        "compat=0.10,cluster_size=128k",
        "extended_l2=on,cluster_size=16k",
        #[cfg(feature = "zstd")]
        "compression_type=zstd,cluster_size=32k",
    ] {
        let file = Arc::new(MemFile::from(overlay(list, old.len(), &old)));
        let disk = over(&old).open_disk_in(file.clone()).unwrap();
        let mut expected = old.clone();
        disk.write_all_at(&[8; 700], 10_000).unwrap();
        expected[10_000..10_700].fill(8);
        disk.rebase_compressed(None, &|_, _| {}).unwrap();
        disk.close().unwrap();
        let check = |what: &str| {
            let report = OpenOptions::new().check_source(file.clone()).unwrap();
            let found = (report.corruptions, report.leaks, report.check_errors);
            assert_eq!(found, (0, 0, 0), "{list}, {what}: {:?}", report.messages);
            report
        };
        let report = check("rebased");
        assert!(report.compressed_clusters > 0, "{list}: nothing is compressed");
        assert!(report.compressed_clusters < report.allocated_clusters, "{list}: noise is compressed");
        assert!(content(&OpenOptions::new().open_source(file.clone()).unwrap()) == expected, "{list}");

        let disk = OpenOptions::new().open_disk_in(file.clone()).unwrap();
        for start in (0..old.len() - 3000).step_by(70_000) {
            disk.write_all_at(&[start as u8 | 1; 3000], start as u64).unwrap();
            expected[start..start + 3000].fill(start as u8 | 1);
        }
        disk.close().unwrap();
        check("written");
        assert!(content(&OpenOptions::new().open_source(file.clone()).unwrap()) == expected, "{list}, written");
    }
}

#[test]
fn an_image_without_compressed_blocks_refuses_a_compressed_rebase() {
    let file = Arc::new(MemFile::from(vec![7; 1024]));
    let disk = OpenOptions::new().format(Format::RAW).open_disk_in(file.clone()).unwrap();
    assert_eq!(disk.rebase_compressed(None, &|_, _| {}).unwrap_err().kind().as_str(), "unsupported");
    assert!(file.to_vec() == [7; 1024]);
}

/// An image without a backing file gets one.
#[test]
fn a_first_backing_file_does_not_show_through() {
    let file = Arc::new(MemFile::new());
    Converter::new(Format::QCOW2).create_to(MIB as u64, file.clone()).unwrap();
    let disk = OpenOptions::new().open_disk_in(file.clone()).unwrap();
    disk.write_all_at(&[5; 1000], 70_000).unwrap();
    let (new, name) = (vec![7; MIB + 512], Name::from("new"));
    disk.rebase(Some(RebaseTo { image: &raw(&new), name: &name }), &|_, _| {}).unwrap();
    disk.close().unwrap();
    let mut expected = vec![0; MIB];
    expected[70_000..71_000].fill(5);
    assert!(content(&over(&new).open_source(file).unwrap()) == expected);
}

/// Storage that is full after a number of writes.
struct Full {
    file: MemFile,
    left: AtomicUsize,
}

impl Full {
    fn count(&self) -> io::Result<()> {
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.map(|_| ()).map_err(|_| io::ErrorKind::StorageFull.into())
    }
}

impl ReadAt for Full {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
}

impl WriteAt for Full {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.count()?;
        self.file.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.count()?;
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The backing file is longer than the overlay, which ends within a cluster.
#[test]
fn an_interrupted_growth_exposes_nothing() {
    let (old, new) = (MIB / 4 + 512, MIB);
    let backing = vec![7; MIB];
    let mut grown = vec![0; new];
    grown[..old].fill(7);
    for list in ["compat=1.1", "compat=0.10,cluster_size=4k", "compat=0.10", "extended_l2=on,cluster_size=64k"] {
        let image = overlay(list, old, &backing);
        let mut failures = 0;
        for writes in 0.. {
            let file = Arc::new(Full { file: MemFile::from(image.clone()), left: writes.into() });
            let disk = over(&backing).open_disk_in(file.clone()).unwrap();
            let resized = disk.resize(new as u64);
            assert!(resized.is_ok() || disk.size() == old as u64, "{list}, {writes} writes");
            // Nothing else is written, as if the program were killed.
            file.left.store(0, Ordering::Relaxed);
            drop(disk);
            let cut = Arc::new(MemFile::from(file.file.to_vec()));
            let found = content(&over(&backing).open_source(cut.clone()).unwrap());
            assert!(found == grown || found == grown[..old], "{list}, {writes} writes");
            if resized.is_ok() {
                assert!(found == grown, "{list}");
                break;
            }
            failures += 1;
            // A second attempt has the same result as one that was not interrupted.
            let disk = over(&backing).open_disk_in(cut.clone()).unwrap();
            disk.resize(new as u64).unwrap();
            disk.close().unwrap();
            assert!(content(&over(&backing).open_source(cut.clone()).unwrap()) == grown, "{list}, {writes} writes");
            let report = over(&backing).check_source(cut).unwrap();
            assert_eq!((report.corruptions, report.check_errors), (0, 0), "{list}: {:?}", report.messages);
        }
        assert!(failures > 5, "{list}: {failures} failures");
    }
}

/// The base becomes longer, and its tables change, while the chain is read.
#[cfg(unix)]
#[test]
fn a_commit_reads_nothing_that_it_has_written() {
    use diskimage::Commit;

    use crate::support::TempDir;

    const BASE: usize = 1_635_328;
    for has_short_layer in [false, true] {
        let dir = TempDir::new();
        let path = |name: &str| dir.path().join(name);
        let options = OpenOptions::new().reference_policy(ReferencePolicy::Beside);
        let create = |name: &str, size: usize, backing: &str| {
            let image = options.open(path(backing)).unwrap();
            let list = crate::support::options(&format!("backing_fmt={}", image.format().name()));
            let converter = Converter::new(Format::QCOW2).options(list).backing(image, backing);
            let file = Arc::new(MemFile::new());
            converter.create_to(size as u64, file.clone()).unwrap();
            std::fs::write(path(name), file.to_vec()).unwrap();
        };
        let write = |name: &str, byte: u8, at: usize| {
            let disk = options.open_disk(path(name)).unwrap();
            disk.write_all_at(&[byte; 64 << 10], at as u64).unwrap();
            disk.close().unwrap();
        };
        std::fs::write(path("lowest.raw"), vec![1; 2 * MIB]).unwrap();
        create("base.qcow2", BASE, "lowest.raw");
        write("base.qcow2", 3, MIB);
        let below = if has_short_layer { "short.qcow2" } else { "base.qcow2" };
        if has_short_layer {
            create("short.qcow2", MIB / 2 + 512, "base.qcow2");
        }
        create("top.qcow2", 3 * MIB, below);
        write("top.qcow2", 5, 0);
        write("top.qcow2", 6, 2 * MIB);
        let expected = content(&options.open(path("top.qcow2")).unwrap());
        Commit::new(options.clone()).base(path("base.qcow2")).run(path("top.qcow2")).unwrap();
        let base = options.open(path("base.qcow2")).unwrap();
        assert!(content(&base) == expected, "short layer: {has_short_layer}");
        let report = options.check(path("base.qcow2")).unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.messages);
    }
}

/// Version 2 has no zero clusters: they are unallocated then, or data where the backing file would show through.
#[test]
fn an_image_becomes_one_of_version_2_with_its_content() {
    let version_3 = |start: &Start| {
        let others = ["compat", "extended_l2", "refcount_bits", "encrypt"];
        start.name.starts_with("qcow2") && !others.iter().any(|option| start.name.contains(option))
    };
    let (mut plain, mut overlays) = (0, 0);
    for start in starts::all().into_iter().filter(version_3) {
        let file = Arc::new(MemFile::from(start.file.clone()));
        let disk = start.options().open_disk_in(file.clone()).unwrap();
        let mut expected = start.content.clone();
        for range in [1000..200_000, 300_000..SIZE as usize] {
            disk.write_zeros(range.start as u64..range.end as u64).unwrap();
            expected[range].fill(0);
        }
        disk.amend(&options("compat=0.10")).unwrap();
        disk.close().unwrap();
        let bytes = file.to_vec();
        assert_eq!(bytes[4..8], [0, 0, 0, 2], "{}", start.name);
        assert!(start.read(bytes) == expected, "{}", start.name);
        let report = OpenOptions::new().check_source(file).unwrap();
        assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0), "{}: {report:?}", start.name);
        *if start.backing.is_some() { &mut overlays } else { &mut plain } += 1;
    }
    assert!(plain > 1 && overlays > 0);
}

/// The last cluster of a disk may end after it.
#[test]
fn discarded_clusters_are_freed() {
    const CLUSTER: u64 = 64 << 10;
    const LAST: u64 = SIZE / CLUSTER * CLUSTER;
    const { assert!(LAST < SIZE) };
    for list in ["", "compat=0.10", "extended_l2=on"] {
        let bytes = image(Format::QCOW2, list, false, &vec![7; SIZE as usize]);
        for (range, freed) in [
            (0..SIZE, 0..SIZE),
            (CLUSTER..SIZE, CLUSTER..SIZE),
            (LAST..SIZE, LAST..SIZE),
            (CLUSTER - 1..SIZE - 1, CLUSTER..LAST),
            (1..CLUSTER, 0..0),
        ] {
            let file = Arc::new(MemFile::from(bytes.clone()));
            let disk = OpenOptions::new().open_disk_in(file.clone()).unwrap();
            disk.discard(range.clone()).unwrap();
            disk.close().unwrap();
            let disk = OpenOptions::new().open_source(file.clone()).unwrap();
            for span in disk.spans(0..SIZE) {
                let span = span.unwrap();
                let is_freed = freed.contains(&span.offset);
                assert_eq!(span.kind == ExtentKind::Hole, is_freed, "{list}: {range:?}: {span:?}");
            }
            let report = OpenOptions::new().check_source(file).unwrap();
            assert_eq!((report.corruptions, report.leaks), (0, 0), "{list}: {range:?}: {report:?}");
        }
    }
}

/// Without an L2 table nothing has to be changed, up to the first cluster that another table maps.
#[test]
fn the_next_table_is_changed_after_one_that_is_missing() {
    // With clusters of 512 bytes.
    const TABLE: u64 = 32 << 10;
    const START: u64 = TABLE + TABLE / 2;
    let mut content = vec![7; SIZE as usize];
    content[TABLE as usize..2 * TABLE as usize].fill(0);
    let bytes = image(Format::QCOW2, "cluster_size=512", false, &content);
    content[START as usize..].fill(0);
    for is_discard in [false, true] {
        let file = Arc::new(MemFile::from(bytes.clone()));
        let disk = OpenOptions::new().open_disk_in(file.clone()).unwrap();
        match is_discard {
            true => disk.discard(START..SIZE).unwrap(),
            false => disk.write_zeros(START..SIZE).unwrap(),
        }
        disk.close().unwrap();
        let disk = OpenOptions::new().open_source(file).unwrap();
        assert!(self::content(&disk) == content, "discard: {is_discard}");
        let mut spans = disk.spans(TABLE..SIZE).map(Result::unwrap);
        assert!(spans.all(|span| span.is_zero()), "discard: {is_discard}");
    }
}

/// Subclusters that nobody wrote to are not copied from the backing file.
#[test]
fn a_write_into_an_overlay_takes_its_subclusters_only() {
    const SUBCLUSTER: u64 = 2 << 10;
    let base = vec![5; MIB];
    let file = Arc::new(MemFile::from(overlay("extended_l2=on,cluster_size=64k", MIB, &base)));
    let disk = over(&base).open_disk_in(file.clone()).unwrap();
    for at in [100_000, 101_000] {
        disk.write_all_at(&[1; 100], at).unwrap();
    }
    disk.close().unwrap();
    let image = over(&base).open_source(file).unwrap();
    let spans = image.spans(0..MIB as u64).map(Result::unwrap).filter(|span| span.layer == 0);
    let stored: Vec<_> =
        spans.filter(|span| span.kind != ExtentKind::Hole).map(|span| (span.offset, span.len)).collect();
    let first = 100_000 / SUBCLUSTER * SUBCLUSTER;
    assert_eq!(stored, [(first, 2 * SUBCLUSTER)]);
}
