//! Features of qcow2: preallocation, compression, snapshots, data files, bitmaps, flags.

use std::path::Path;

use crate::support::patch::Qcow2;
use crate::support::pattern::{Pattern, Random};
use crate::support::tools::{check_with_qemu, needs_qemu, qemu_img, qemu_io, read_with_qemu};
use crate::support::{TempDir, assert_same, content, open_raw, qcow2, qcow2_bytes, raw, raw_image};
use diskimage::driver::{ExtentKind, FileId};
use diskimage::{Error, Image, OpenOptions, ReferencePolicy, Span, Value};

fn spans(image: &Image) -> Vec<Span> {
    image.spans(0..u64::MAX).map(Result::unwrap).collect()
}

fn specific<'a>(image: &'a Image, name: &str) -> Option<&'a Value> {
    image.info().specific.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

#[test]
fn preallocation_by_imgconv() {
    needs_qemu!("preallocation by this crate");
    let dir = TempDir::new();
    for pattern in [Pattern::Empty, Pattern::Islands, Pattern::Tail] {
        let guest = pattern.make(1 << 20);
        let source = dir.file("source.raw", &guest);
        for options in [
            "",
            "extended_l2=on",
            "cluster_size=4k",
            "cluster_size=512,refcount_bits=1",
            "compat=0.10",
            "cluster_size=2M",
        ] {
            for mode in ["metadata", "falloc", "full"] {
                let what = format!("{options},preallocation={mode}, {pattern:?}");
                let target = dir.join("ours.qcow2");
                let list = format!("{options},preallocation={mode}");
                qcow2(&list).convert(&open_raw(&source), &target).unwrap_or_else(|e| panic!("{what}: {e}"));
                check_with_qemu(&target);
                assert_same(&read_with_qemu(&target, &[]), &guest, &what);
                let image = Image::open(&target).unwrap();
                assert_same(&content(&image).unwrap(), &guest, &what);
                let holes = spans(&image).iter().any(|span| span.kind == ExtentKind::Hole);
                assert!(!holes || options == "extended_l2=on", "{what}: every cluster is preallocated");
                let stored = stored_bytes(&target);
                if mode != "metadata" {
                    assert!(stored >= 1 << 20, "{what}: {stored} bytes are allocated");
                }
            }
        }
        for mode in ["off", "falloc", "full"] {
            let target = dir.join("ours.raw");
            raw()
                .options(crate::support::options(&format!("preallocation={mode}")))
                .convert(&open_raw(&source), &target)
                .unwrap();
            assert_same(&std::fs::read(&target).unwrap(), &guest, mode);
            assert!(mode == "off" || stored_bytes(&target) >= guest.len() as u64, "{mode}");
        }
    }
}

fn stored_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn preallocation_by_qemu_img() {
    needs_qemu!("preallocation by qemu-img");
    let dir = TempDir::new();
    for mode in ["metadata", "falloc", "full"] {
        for options in ["", ",extended_l2=on", ",compat=0.10"] {
            let image = dir.join("theirs.qcow2");
            qemu_img(&[
                &"create",
                &"-q",
                &"-f",
                &"qcow2",
                &"-o",
                &format!("preallocation={mode}{options}"),
                &image,
                &"1M",
            ]);
            qemu_io(&image, &["write -P 7 100k 100k".into(), "write -P 8 900k 1k".into()]);
            let theirs = read_with_qemu(&image, &[]);
            assert_same(&content(&Image::open(&image).unwrap()).unwrap(), &theirs, &format!("{mode}{options}"));
        }
    }
}

#[test]
fn lazy_refcounts() {
    needs_qemu!("lazy_refcounts");
    let dir = TempDir::new();
    let guest = Pattern::Sparse.make(1 << 20);
    let target = dir.join("ours.qcow2");
    qcow2("lazy_refcounts=on").convert(&raw_image(&guest), &target).unwrap();
    check_with_qemu(&target);
    assert_eq!(specific(&Image::open(&target).unwrap(), "lazy-refcounts"), Some(&Value::Bool(true)));
    let text = String::from_utf8(qemu_img(&[&"info", &"--output=json", &target])).unwrap();
    assert!(text.contains("\"lazy-refcounts\": true"), "{text}");
}

#[test]
fn deflate_window() {
    needs_qemu!("deflate window");
    let dir = TempDir::new();
    // Matches at a distance of 20,000 bytes, out of reach of a window of 4 KiB.
    let block = Random::new(1).bytes(20_000);
    let guest: Vec<u8> = block.iter().cycle().take(1 << 20).copied().collect();
    let mut lengths = Vec::new();
    for window in ["9", "12", "15"] {
        let target = dir.join("ours.qcow2");
        let report = qcow2(&format!("window={window}")).compress(true).convert(&raw_image(&guest), &target).unwrap();
        check_with_qemu(&target);
        assert_same(&read_with_qemu(&target, &[]), &guest, window);
        lengths.push(report.written_bytes);
    }
    assert!(lengths[2] < lengths[1] / 2, "{lengths:?}");
    for (compression, levels) in [("zlib", 1..=9), ("zstd", 1..=22)] {
        for level in levels.step_by(3) {
            let target = dir.join("ours.qcow2");
            let options = format!("compression_type={compression},compression_level={level},cluster_size=16k");
            let guest = [Pattern::Incompressible, Pattern::Dense].map(|pattern| pattern.make(200 << 10)).concat();
            qcow2(&options).compress(true).convert(&raw_image(&guest), &target).unwrap();
            check_with_qemu(&target);
            assert_same(&read_with_qemu(&target, &[]), &guest, &options);
        }
    }
}

#[test]
fn payloads_straddle_clusters() {
    needs_qemu!("payloads that straddle clusters");
    let dir = TempDir::new();
    let guest = Pattern::Dense.make(1 << 20);
    let source = dir.file("source.raw", &guest);
    for cluster_size in [4096, 65536] {
        let straddling = |path: &Path| {
            let image = Image::open(path).unwrap();
            assert_same(&content(&image).unwrap(), &guest, "straddling payloads");
            let straddles = |span: &Span| match span.kind {
                // The stored length is rounded up to sectors: the payload is at most one sector shorter.
                ExtentKind::Compressed(unit) => {
                    let (first, last) =
                        (unit.at.offset, unit.at.offset + u64::from(unit.stored_len).saturating_sub(512));
                    first / cluster_size != last / cluster_size
                }
                _ => false,
            };
            spans(&image).iter().filter(|span| straddles(span)).count()
        };
        let [ours, theirs] = ["ours.qcow2", "theirs.qcow2"].map(|name| dir.join(name));
        qcow2(&format!("cluster_size={cluster_size}")).compress(true).convert(&open_raw(&source), &ours).unwrap();
        check_with_qemu(&ours);
        assert_same(&read_with_qemu(&ours, &[]), &guest, "straddling payloads");
        let options = format!("cluster_size={cluster_size}");
        qemu_img(&[&"convert", &"-c", &"-O", &"qcow2", &"-o", &options, &source, &theirs]);
        assert!(straddling(&ours) > 0 && straddling(&theirs) > 0);
    }
}

#[test]
fn compressed_and_uncompressed_clusters() {
    needs_qemu!("compressed and uncompressed clusters in one image");
    let dir = TempDir::new();
    for options in ["cluster_size=4k", "cluster_size=16k,extended_l2=on", "compression_type=zstd", "compat=0.10"] {
        let image = dir.join("theirs.qcow2");
        let source = dir.file("source.raw", &Pattern::Dense.make(1 << 20));
        qemu_img(&[&"convert", &"-c", &"-O", &"qcow2", &"-o", &options, &source, &image]);
        qemu_io(&image, &super::overlays::write_commands(1 << 20, 5, 20));
        let theirs = read_with_qemu(&image, &[]);
        assert_same(&content(&Image::open(&image).unwrap()).unwrap(), &theirs, options);
        for compress in [false, true] {
            let ours = dir.join("ours.qcow2");
            qcow2(options).compress(compress).convert(&Image::open(&image).unwrap(), &ours).unwrap();
            check_with_qemu(&ours);
            assert_same(&read_with_qemu(&ours, &[]), &theirs, options);
        }
    }
}

#[test]
fn snapshots() {
    needs_qemu!("snapshots");
    for (compat, grow) in [("0.10", false), ("1.1", true)] {
        let dir = TempDir::new();
        let image = dir.join("image.qcow2");
        qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &"-o", &format!("compat={compat}"), &image, &"1M"]);
        qemu_io(&image, &["write -P 1 0 200k".into()]);
        qemu_img(&[&"snapshot", &"-c", &"first", &image]);
        qemu_io(&image, &["write -P 2 100k 200k".into()]);
        qemu_img(&[&"snapshot", &"-c", &"second", &image]);
        if grow {
            qemu_img(&[&"resize", &"-q", &image, &"3M"]);
        }
        qemu_io(&image, &["write -P 3 0 64k".into(), "write -z 128k 64k".into()]);

        let now = Image::open(&image).unwrap();
        assert_same(&content(&now).unwrap(), &read_with_qemu(&image, &[]), "now");
        let names: Vec<_> = now.info().snapshots.iter().map(|snapshot| snapshot.name.to_string()).collect();
        assert_eq!(names, ["first", "second"]);
        for (wanted, theirs) in [
            ("first", "snapshot.name=first"),
            ("1", "snapshot.id=1"),
            ("second", "snapshot.name=second"),
            ("2", "snapshot.id=2"),
        ] {
            let past = OpenOptions::new().snapshot(wanted).open(&image).unwrap();
            assert_eq!(past.virtual_size(), 1 << 20, "{wanted}");
            let mut theirs = read_with_qemu(&image, &["-l", theirs]);
            // qemu-img pads a snapshot to the current size.
            theirs.truncate(1 << 20);
            assert_same(&content(&past).unwrap(), &theirs, wanted);
            let copy = dir.join("copy.qcow2");
            qcow2("").convert(&past, &copy).unwrap();
            check_with_qemu(&copy);
            assert_same(&read_with_qemu(&copy, &[]), &theirs, wanted);
        }
        let error = OpenOptions::new().snapshot("third").open(&image).err().unwrap();
        assert_eq!(error.kind().as_str(), "usage");
        assert!(error.to_string().contains("first, second"), "{error}");
    }
}

#[test]
fn data_files() {
    needs_qemu!("data files");
    for (raw_flag, options) in [("on", ""), ("off", ""), ("on", ",extended_l2=on"), ("off", ",preallocation=metadata")]
    {
        let dir = TempDir::new();
        let (image, data) = (dir.join("image.qcow2"), dir.join("data.raw"));
        // qemu-img resolves the data file against the working directory when creating, against the image when opening.
        let list = format!("data_file={},data_file_raw={raw_flag}{options}", data.display());
        qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &"-o", &list, &image, &"1M"]);
        qemu_io(&image, &super::overlays::write_commands(1 << 20, 9, 20));

        let refused = Image::open(&image).err().unwrap();
        assert!(matches!(refused.root(), Error::Reference { role: "data file", .. }), "{refused}");
        let opened = OpenOptions::new().reference_policy(ReferencePolicy::Beside).open(&image).unwrap();
        assert_same(&content(&opened).unwrap(), &read_with_qemu(&image, &[]), &list);
        assert_eq!(specific(&opened, "data-file-raw"), Some(&Value::Bool(raw_flag == "on")));
        assert_eq!(opened.file_path(0, FileId(1)), Some(&*data));
        let copy = dir.join("copy.qcow2");
        qcow2("").convert(&opened, &copy).unwrap();
        check_with_qemu(&copy);
        qemu_img(&[&"compare", &"-q", &copy, &image]);

        // The data file is an input file, too.
        let error = raw().convert(&opened, &data).unwrap_err();
        assert_eq!(error.kind().as_str(), "usage");
        // Mapped data must be within the data file.
        let file = std::fs::OpenOptions::new().write(true).open(&data).unwrap();
        file.set_len(4096).unwrap();
        let opened = OpenOptions::new().reference_policy(ReferencePolicy::Beside).open(&image).unwrap();
        assert_eq!(content(&opened).unwrap_err().kind().as_str(), "out-of-bounds");
    }
}

#[test]
fn bitmaps_are_listed() {
    needs_qemu!("bitmaps");
    let dir = TempDir::new();
    let image = dir.join("image.qcow2");
    qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &image, &"1M"]);
    qemu_img(&[&"bitmap", &"--add", &image, &"monday"]);
    qemu_img(&[&"bitmap", &"--add", &"--disable", &"-g", &"4k", &image, &"tuesday"]);
    let opened = Image::open(&image).unwrap();
    let map = |name: &str, granularity: u64, flags: &[&str]| {
        Value::Map(vec![
            ("flags", Value::List(flags.iter().map(|flag| Value::from(*flag)).collect())),
            ("name", Value::from(name)),
            ("granularity", Value::from(granularity)),
        ])
    };
    let expected = Value::List(vec![map("monday", 65536, &["auto"]), map("tuesday", 4096, &[])]);
    assert_eq!(specific(&opened, "bitmaps"), Some(&expected));
    let report = OpenOptions::new().check(&image).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.messages);
}

#[test]
fn dirty_and_corrupt_images_are_read_and_reported() {
    let guest = Pattern::Islands.make(300 << 10);
    let bytes = qcow2_bytes(&qcow2("lazy_refcounts=on"), &guest);
    for (bit, dirty, corrupt) in [(0, false, false), (1, true, false), (2, false, true), (3, true, true)] {
        let mut image = Qcow2(bytes.clone());
        image.put(79, &[bit]);
        let opened = crate::support::qcow2_image(&image.0).unwrap();
        assert_eq!((opened.info().dirty, opened.info().corrupt), (dirty, corrupt));
        assert_same(&content(&opened).unwrap(), &guest, "dirty");
        // The copy has neither bit.
        let copy = crate::support::convert(&qcow2(""), &opened).0;
        assert_eq!(copy[72..80], [0; 8]);
    }
}

#[test]
fn unclosed_images() {
    needs_qemu!("unclosed images");
    let dir = TempDir::new();
    let image = dir.join("image.qcow2");
    qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &"-o", &"lazy_refcounts=on", &image, &"1M"]);
    // The last command kills qemu-io before it clears the dirty bit.
    let commands = ["-c", "write -P 5 100k 300k", "-c", "flush", "-c", "sigraise 9"];
    let args: Vec<&str> = ["-f", "qcow2"].into_iter().chain(commands).chain([image.to_str().unwrap()]).collect();
    crate::support::tools::output("qemu-io", &args);
    let opened = Image::open(&image).unwrap();
    assert!(opened.info().dirty);
    let mut guest = vec![0; 1 << 20];
    guest[100 << 10..400 << 10].fill(5);
    assert_same(&content(&opened).unwrap(), &guest, "dirty");
}

#[test]
fn zero_clusters() {
    needs_qemu!("zero clusters");
    let dir = TempDir::new();
    let base = dir.file("base.raw", &Pattern::Dense.make(1 << 20));
    let image = dir.join("image.qcow2");
    qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &"-F", &"raw", &"-b", &base.file_name().unwrap(), &image]);
    // A preallocated zero cluster, an unallocated one and a discarded one.
    qemu_io(
        &image,
        &["write -P 1 0 256k".into(), "write -z 64k 64k".into(), "write -z 512k 64k".into(), "discard 128k 64k".into()],
    );
    let opened = OpenOptions::new().reference_policy(ReferencePolicy::Beside).open(&image).unwrap();
    assert_same(&content(&opened).unwrap(), &read_with_qemu(&image, &[]), "zero clusters");
    let kinds: Vec<_> = spans(&opened).iter().map(|span| span.kind).collect();
    assert!(kinds.iter().any(|kind| matches!(kind, ExtentKind::Zero { allocated: Some(_) })), "{kinds:?}");
    assert!(kinds.iter().any(|kind| matches!(kind, ExtentKind::Zero { allocated: None })), "{kinds:?}");
}
