//! The writer, verified by a simple reader, a simple check and qemu-img.

mod model;

use std::collections::BTreeMap;
use std::io;

use proptest::prelude::*;

use self::model::{BACKING_NAME, Case, Step, Written, check_refcounts, header_of};
use super::*;
use crate::io::MemFile;
use crate::name::Name;
use crate::options::Options;
use crate::testing::{RecordingTarget, TargetEvent as Call, noise, place};

const MIB: u64 = 1 << 20;

/// Cases with all valid combinations of options.
fn cases() -> impl Strategy<Value = Case> {
    let cluster_bits = prop_oneof![4 => Just(9u32), 2 => Just(10), 2 => Just(12), 3 => 14u32..=16, 1 => 17u32..=21];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let words = (prop::sample::select(vec!["off", "off", "metadata", "falloc", "full"]), 0u32..=6, any::<bool>());
    let steps = prop::collection::vec((0..4, any::<bool>(), 1u64..40), 0..60);
    (cluster_bits, flags, words, 1..6 * MIB, steps).prop_map(|(bits, flags, words, size, steps)| {
        let (compress, backing, device, old) = flags;
        let (preallocation, order, extended) = words;
        let old = old && order > 4;
        let extended = extended && bits >= 14 && !old;
        let mut options = format!("cluster_size={}", 1 << bits);
        options += if old { ",compat=0.10" } else { ",lazy_refcounts=on,refcount_bits=" };
        options += &if old { String::new() } else { (1 << order).to_string() };
        options += if extended { ",extended_l2=on" } else { "" };
        options += if compress && order % 2 == 0 && !old { ",compression_type=zstd" } else { "" };
        if !compress && (extended || !backing) {
            options += &format!(",preallocation={preallocation}");
        }
        let steps = steps.into_iter().map(|(kind, small, count)| {
            let len = if small { 512 } else { 1 << bits } * count;
            match kind {
                0 => Step::Skip(len),
                1 => Step::Zero(len),
                2 if compress => Step::Compress(len.min(20 << bits)),
                _ => Step::Place(len),
            }
        });
        Case { size, options, compress, backing, device, steps: steps.collect() }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_image_reads_back_and_refcounts_are_exact(case in cases()) {
        case.verify();
    }
}

#[test]
fn empty_images_of_any_size() {
    for size in [0, 1, 512, 64 << 10, 1 << 30] {
        for cluster_size in ["512", "64k", "2M"] {
            let case = Case::new(size, &format!("cluster_size={cluster_size}"), &[]);
            let file = RecordingTarget::file();
            let mut writer = case.create(file.clone()).unwrap();
            assert_eq!(writer.spec().virtual_size, size.next_multiple_of(512));
            writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
            check_refcounts(&file.mem.to_vec());
        }
    }
    Case::new(0, "", &[]).verify();
}

#[test]
fn a_refcount_table_of_several_clusters() {
    // A refcount block covers 64 clusters, a cluster of the refcount table 64 blocks: 2 MiB.
    let written = Case::new(5 * MIB, "cluster_size=512,refcount_bits=64", &[Step::Place(5 * MIB)]).verify();
    assert_eq!(header_of(&written.file).refcount_table_clusters, 3);
    // Almost no data, and an L1 table of many refcount blocks.
    let case = Case { compress: true, ..Case::new(1 << 36, "cluster_size=512,refcount_bits=64", &[]) };
    let file = RecordingTarget::file();
    case.create(file.clone()).unwrap().finish(&ImageIdentifiers::pinned(0)).unwrap();
    check_refcounts(&file.mem.to_vec());
}

#[test]
fn refcounts_at_any_end_of_the_file() {
    // The file ends before, at and after the end of a stretch, also where one more block makes the table longer.
    for clusters in (0..150).chain(3945..3985) {
        let case = Case::new(3 * MIB, "cluster_size=512,refcount_bits=64", &[Step::Place(clusters * 512)]);
        check_refcounts(&case.write().file);
    }
}

#[test]
fn refcount_width_limits_shared_clusters() {
    for (refcount_bits, most) in [(1, 1), (2, 3), (4, 15), (16, 41)] {
        let options = format!("cluster_size=4k,refcount_bits={refcount_bits}");
        let case = Case { compress: true, ..Case::new(MIB, &options, &[]) };
        let file = RecordingTarget::file();
        let mut writer = case.create(file.clone()).unwrap();
        let mut starts = BTreeMap::<u64, u64>::new();
        for block in 0..200 {
            let placement = writer.place_compressed(block * 4096..(block + 1) * 4096, 100).unwrap();
            *starts.entry(placement.offset / 4096).or_default() += 1;
        }
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
        check_refcounts(&file.mem.to_vec());
        assert_eq!(starts.values().max(), Some(&most), "{refcount_bits} bits");
    }
}

#[test]
fn payloads_are_packed_without_gaps() {
    let case = Case { compress: true, ..Case::new(64 * MIB, "", &[]) };
    let mut writer = case.create(Arc::new(MemFile::new())).unwrap();
    let mut expected = 3u64 << 16;
    for block in 0..100 {
        let placement = writer.place_compressed(block << 16..(block + 1) << 16, 10_007).unwrap();
        assert_eq!(placement.offset, expected);
        expected += 10_007;
    }
    // After an uncompressed cluster: a payload that fits is still added to the open cluster, others start a new one.
    let room = expected.next_multiple_of(1 << 16) - expected;
    let plain = writer.place(100 << 16..101 << 16).unwrap().offset;
    assert_eq!(plain, expected + room);
    let fits = writer.place_compressed(101 << 16..102 << 16, room as u32 - 1).unwrap().offset;
    assert_eq!(fits, expected);
    assert_eq!(writer.place_compressed(102 << 16..103 << 16, 2).unwrap().offset, plain + (1 << 16));
    for len in [0, 65537] {
        assert_eq!(writer.place_compressed(103 << 16..104 << 16, len).unwrap_err().kind().as_str(), "usage");
    }
}

#[test]
fn zeros_over_a_backing_file_cross_l2_tables() {
    let steps = [Step::Place(700), Step::Zero(16 * MIB), Step::Place(MIB / 2), Step::Skip(5000), Step::Zero(MIB)];
    for options in [
        "extended_l2=on,cluster_size=16k",
        "extended_l2=on,cluster_size=16k,preallocation=metadata",
        "extended_l2=on,cluster_size=16k,preallocation=full",
        "cluster_size=4k",
        "cluster_size=4k,compat=0.10",
    ] {
        for device in [false, true] {
            Case { backing: true, device, ..Case::new(18 * MIB, options, &steps) }.verify();
        }
    }
}

#[test]
fn a_range_is_one_placement_within_an_l2_table() {
    let case = Case::new(2 << 30, "", &[]);
    let mut writer = case.create(Arc::new(MemFile::new())).unwrap();
    assert_eq!(writer.spec().granule, 512);
    let boundary = 512 * MIB;
    let first = writer.place(0..1024).unwrap();
    assert_eq!((first.offset, first.len), (3 << 16, 1024));
    // Contiguous with the rest of the cluster.
    let second = writer.place(4096..2 * MIB).unwrap();
    assert_eq!((second.offset, second.len), ((3 << 16) + 4096, 2 * MIB - 4096));
    assert_eq!(writer.place(boundary - MIB..boundary + MIB).unwrap().len, MIB);
    assert_eq!(writer.place(boundary..boundary + MIB).unwrap().len, MIB);
    assert_eq!(writer.place(0..512).unwrap_err().kind().as_str(), "usage");
    for range in [5..512, 0..0, (2 << 30)..(2 << 30) + 512] {
        assert_eq!(writer.place(range.clone()).unwrap_err().kind().as_str(), "usage", "{range:?}");
    }
}

#[test]
fn a_gap_over_l2_tables_is_preallocated_before_zeros() {
    let options = "extended_l2=on,cluster_size=16k,preallocation=metadata";
    let steps = [Step::Place(700), Step::Skip(16 * MIB), Step::Zero(MIB)];
    Case { backing: true, ..Case::new(18 * MIB, options, &steps) }.verify();
}

#[test]
fn data_replaces_zeros() {
    let options = "extended_l2=on,cluster_size=16k,preallocation=metadata";
    let file = RecordingTarget::file();
    let mut writer = Case { backing: true, ..Case::new(MIB, options, &[]) }.create(file.clone()).unwrap();
    writer.zero(0..MIB).unwrap();
    let bytes = noise(1024, 0);
    place(&mut writer, 512, &bytes);
    writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
    let mut guest = vec![0; MIB as usize];
    guest[512..1536].copy_from_slice(&bytes);
    Written { file: file.mem.to_vec(), backing: noise(MIB, 1), guest }.verify("zeros, then data");
}

#[test]
fn old_content_after_the_end_of_the_disk_is_zeroed() {
    for options in ["", "extended_l2=on"] {
        let case = Case { device: true, ..Case::new(MIB + 512, options, &[Step::Place(MIB + 512)]) };
        let written = case.verify();
        let last = written.file.windows(512).rposition(|bytes| bytes == &written.guest[MIB as usize..]).unwrap();
        assert!(written.file[last + 512..(last + 1).next_multiple_of(1 << 16)].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn granules() {
    for (options, backing, device, granule) in [
        ("", false, false, 512),
        ("", true, false, 65536),
        ("", false, true, 65536),
        ("extended_l2=on", false, false, 2048),
        ("extended_l2=on", true, true, 2048),
    ] {
        let case = Case { backing, device, ..Case::new(MIB, options, &[]) };
        let writer = case.create(model::target(device)).unwrap();
        assert_eq!(writer.spec().granule, granule, "{case:?}");
        assert!(!writer.spec().dense);
    }
}

#[test]
fn the_header_is_written_last_and_no_byte_twice() {
    let steps = [Step::Place(100 << 10), Step::Skip(7 << 10), Step::Place(MIB), Step::Zero(MIB), Step::Place(5 << 10)];
    for options in ["cluster_size=512,refcount_bits=64", "", "preallocation=full", "preallocation=falloc"] {
        let case = Case::new(4 * MIB, options, &[]);
        let file = RecordingTarget::file();
        let mut writer = case.create(file.clone()).unwrap();
        let mut at = 0;
        for step in steps {
            let (Step::Skip(len) | Step::Place(len) | Step::Compress(len) | Step::Zero(len)) = step;
            if matches!(step, Step::Place(_)) {
                place(&mut writer, at, &noise(len, at));
            }
            at += len;
        }
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
        let calls = file.events.lock().unwrap().clone();
        let [.., Call::SetLen(len), Call::Sync, Call::Write(header), Call::Sync] = calls.as_slice() else {
            panic!("{calls:?}");
        };
        assert_eq!((header.start, *len), (0, file.mem.to_vec().len() as u64));
        let mut writes: Vec<_> =
            calls.iter().filter_map(|call| if let Call::Write(range) = call { Some(range) } else { None }).collect();
        writes.sort_by_key(|range| range.start);
        assert!(writes.is_sorted_by(|a, b| a.end <= b.start), "{options}: {writes:?}");
        let allocated: u64 =
            calls.iter().map(|call| if let Call::Allocate(range) = call { range.end - range.start } else { 0 }).sum();
        assert_eq!(allocated, if options.ends_with("falloc") { 4 * MIB } else { 0 });
        if options.ends_with("full") {
            let written: u64 = writes.iter().map(|range| range.end - range.start).sum();
            assert!(written >= 4 * MIB - (7 << 10), "{written}");
        }
    }
}

#[test]
fn write_errors_are_reported() {
    struct Full;
    impl WriteAt for Full {
        fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn set_len(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }
    let error =
        Case::new(MIB, "", &[]).create(Arc::new(Full)).unwrap().finish(&ImageIdentifiers::pinned(0)).unwrap_err();
    assert_eq!(error.to_string(), "writing 65536 bytes at file offset 0x10000: no storage space");
}

#[test]
fn the_header_has_the_options() {
    let case = Case { backing: true, ..Case::new(MIB, "lazy_refcounts=on,compression_type=zstd,extended_l2=on", &[]) };
    let written = case.verify();
    let header = header_of(&written.file);
    assert_eq!(header.incompatible, Incompatible::COMPRESSION_TYPE | Incompatible::EXTENDED_L2);
    assert_eq!(header.compatible, Compatible::LAZY_REFCOUNTS);
    assert_eq!(header.backing_file, Some(Name::from(BACKING_NAME)));
    assert_eq!(header.extensions.backing_format, Some(Name::from("raw")));
    assert_eq!(header.extensions.features, Feature::known());
    let header = header_of(&Case::new(MIB, "compat=0.10", &[]).verify().file);
    assert_eq!((header.version, header.header_length, header.refcount_order), (2, 72, 4));
    assert_eq!(header.extensions, Extensions::default());
    let header = header_of(&Case::new(MIB, "cluster_size=4k", &[]).verify().file);
    assert_eq!(header.extensions, Extensions::default());
}

#[test]
fn invalid_options() {
    let long = format!("backing_file={},backing_fmt=raw", "x".repeat(1024));
    let crowded = format!("cluster_size=512,backing_file={},backing_fmt=raw", "x".repeat(400));
    for (options, size, name) in [
        ("cluster_size=256", 0, "cluster_size"),
        ("cluster_size=4M", 0, "cluster_size"),
        ("cluster_size=3k", 0, "cluster_size"),
        ("cluster_size=512", (128 << 30) + 1, "cluster_size"),
        ("compat=1.0", 0, "compat"),
        ("refcount_bits=3", 0, "refcount_bits"),
        ("refcount_bits=128", 0, "refcount_bits"),
        ("compat=v2,refcount_bits=8", 0, "refcount_bits"),
        ("compat=v2,extended_l2=on", 0, "extended_l2"),
        ("extended_l2=on,cluster_size=8k", 0, "extended_l2"),
        ("compat=v2,lazy_refcounts", 0, "lazy_refcounts"),
        ("compat=v2,compression_type=zstd", 0, "compression_type"),
        ("compression_type=lzma", 0, "compression_type"),
        ("compression_level=10", 0, "compression_level"),
        ("compression_type=zstd,compression_level=23", 0, "compression_level"),
        ("window=8", 0, "window"),
        ("compression_type=zstd,window=12", 0, "window"),
        ("preallocation=all", 0, "preallocation"),
        ("preallocation=full,backing_file=a,backing_fmt=raw", 0, "preallocation"),
        ("backing_file=a", 0, "backing_file"),
        ("backing_fmt=raw", 0, "backing_fmt"),
        ("backing_file=a,backing_fmt=", 0, "backing_fmt"),
        (&long, 0, "backing_file"),
        (&crowded, 0, "backing_file"),
    ] {
        match Case::new(size, options, &[]).create(Arc::new(MemFile::new())).map(drop).unwrap_err() {
            Error::Option { name: found, problem, .. } => assert_eq!(found, name, "{options}: {problem}"),
            other => panic!("{options}: {other}"),
        }
    }
    let compressed = Case { compress: true, ..Case::new(MIB, "preallocation=metadata", &[]) };
    assert_eq!(compressed.create(Arc::new(MemFile::new())).map(drop).unwrap_err().kind().as_str(), "option");
}

#[test]
fn largest_disks() {
    let error = |size, options: &str| {
        let case = Case::new(size, options, &[]);
        case.create(Arc::new(MemFile::new())).map(drop).unwrap_err()
    };
    assert!(Case::new(128 << 30, "cluster_size=512", &[]).create(Arc::new(MemFile::new())).is_ok());
    let message = error((128 << 30) + 1, "cluster_size=512").to_string();
    assert!(message.contains("option cluster_size: 512 is too small") && message.contains("use 1024 or"), "{message}");
    assert_eq!(error(1 << 62, "cluster_size=2M").kind().as_str(), "limit");
    assert_eq!(error(u64::MAX, "").kind().as_str(), "limit");
}

#[test]
fn settings_from_options() {
    let mut options = Options::new();
    options.add_list("compression_type=zlib,compression_level=9,window=12,backing_file=a,,b,backing_fmt=qcow2");
    let out = Arc::new(MemFile::new());
    let cx = CreateContext { compress: true, ..CreateContext::new(1000, &options, out) };
    let settings = Settings::parse(&cx).unwrap();
    assert_eq!(settings.virtual_size, 1024);
    let encoding = settings.encoding.unwrap();
    assert_eq!((encoding.level, encoding.window_bits), (Some(9), 12));
    assert_eq!(settings.backing.unwrap().file, Name::from("a,b"));
    assert_eq!(Settings::parse(&CreateContext { compress: false, ..cx }).unwrap().encoding, None);
}
