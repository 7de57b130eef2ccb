//! Untrusted images: truncated, corrupt, or inconsistent.

use std::fs;
use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::patch::Qcow2;
use crate::support::pattern::Pattern;
use crate::support::{
    TempDir, assert_same, content, convert, format, open_bytes, options, qcow2, qcow2_bytes, qcow2_image, raw,
    raw_image, vdi, vhdx, vmdk, vpc,
};
use diskimage::io::MemFile;
use diskimage::{Error, Fault, Image, Limits, OpenOptions, Problem, ReferencePolicy, Result};

/// Reads and converts; both have to tell the same.
fn read(bytes: &[u8]) -> Result<Vec<u8>> {
    let image = qcow2_image(bytes)?;
    let read = content(&image);
    let out = std::sync::Arc::new(diskimage::io::MemFile::new());
    match (read, raw().threads(1).convert_to(&image, out.clone())) {
        (Ok(read), Ok(_)) => {
            assert_same(&out.to_vec(), &read, "read and converted");
            Ok(read)
        }
        (Err(error), Err(_)) => Err(error),
        (read, converted) => panic!("{:?}, {converted:?}", read.map(|bytes| bytes.len())),
    }
}

#[test]
fn truncated_images_are_refused() {
    let guest = Pattern::Islands.make(40 << 10);
    for (options, compress) in [
        ("cluster_size=512", false),
        ("cluster_size=512", true),
        ("cluster_size=4k", false),
        ("cluster_size=4k,compression_type=zstd", true),
        ("cluster_size=16k,extended_l2=on", false),
        ("cluster_size=4k,compat=0.10", true),
    ] {
        let whole = qcow2_bytes(&qcow2(options).compress(compress), &guest);
        let header = (0..1024).filter(|len| *len < whole.len());
        let sectors = (0..whole.len()).step_by(512);
        let around = sectors.clone().flat_map(|len| [len.saturating_sub(1), len + 1]);
        let mut errors = 0;
        for len in header.chain(sectors).chain(around) {
            match read(&whole[..len.min(whole.len())]) {
                Err(error) => {
                    assert!(matches!(error.root(), Error::Corrupt(_) | Error::Io { .. }), "{options}, {len}: {error}");
                    errors += 1;
                }
                Ok(read) => assert_same(&read, &guest, &format!("{options}, cut to {len}")),
            }
        }
        assert!(errors > 1024, "{options}: {errors}");
        // Where data is gone, nothing is left of the attempt.
        let dir = TempDir::new();
        for part in [4, 2] {
            let source = dir.file("cut.qcow2", &whole[..whole.len() / part]);
            for converter in [raw(), qcow2("")] {
                let result = Image::open(&source).and_then(|image| converter.convert(&image, dir.join("new")));
                assert!(result.is_err(), "{options}, 1/{part}");
                assert_eq!(dir.names(), ["cut.qcow2"]);
            }
        }
    }
}

/// A plain image of 64 clusters of 4 KiB, one L2 table.
fn plain() -> Qcow2 {
    Qcow2(qcow2_bytes(&qcow2("cluster_size=4k"), &Pattern::Dense.make(256 << 10)))
}

#[track_caller]
fn fault(bytes: &Qcow2) -> Fault {
    let error = read(&bytes.0).unwrap_err();
    match error.root() {
        Error::Corrupt(fault) => {
            let text = error.to_string();
            assert!(text.contains("qcow2: corrupt image at file offset 0x"), "{text}");
            fault.clone()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn l2_entries() {
    let good = plain();
    let at = good.l2_entry(5);
    let entry = good.u64(at);
    let len = good.0.len() as u64;
    let damage = |value: u64| {
        let mut image = good.clone();
        image.put_u64(at, value);
        fault(&image)
    };

    let past_the_end = damage((1 << 63) | (len.next_multiple_of(4096) + 0x10_0000));
    assert_eq!((&*past_the_end.field, past_the_end.at), ("L2 entry", at));
    assert!(matches!(past_the_end.problem, Problem::OutOfBounds { offset, len: 4096, file_len }
        if offset == len.next_multiple_of(4096) + 0x10_0000 && file_len == len));
    let huge = damage(entry & !0xfff | 0x00ff_ffff_ffff_f000);
    assert!(matches!(huge.problem, Problem::OutOfBounds { .. }), "{huge}");
    let unaligned = damage(entry + 512);
    assert!(matches!(unaligned.problem, Problem::Misaligned { alignment: 4096, .. }), "{unaligned}");
    let reserved = damage(entry | 1 << 57);
    assert!(matches!(reserved.problem, Problem::Reserved { bits: 0x0200_0000_0000_0000, .. }), "{reserved}");
    assert_eq!((reserved.at, unaligned.at), (at, at));
    let compressed = damage(1 << 62 | 0x3f_ffff_ffff);
    assert!(matches!(compressed.problem, Problem::OutOfBounds { .. }), "{compressed}");
}

#[test]
fn l1_entries() {
    let good = plain();
    let at = good.l1_entry(0);
    let len = good.0.len() as u64;
    let damage = |value: u64| {
        let mut image = good.clone();
        image.put_u64(at, value);
        fault(&image)
    };
    let past_the_end = damage((1 << 63) | len.next_multiple_of(4096));
    assert_eq!((&*past_the_end.field, past_the_end.at), ("L1 entry", at));
    assert!(matches!(past_the_end.problem, Problem::OutOfBounds { len: 4096, .. }));
    assert!(matches!(damage((1 << 63) | 512).problem, Problem::Misaligned { .. }));
    assert!(matches!(damage(1).problem, Problem::Reserved { bits: 1, .. }));
}

#[test]
fn an_entry_gives_the_same_error_in_a_run_and_alone() {
    // Three L2 tables, only the first of which is allocated.
    let mut guest = Pattern::Dense.make(64 << 10);
    guest.resize(6 << 20, 0);
    let mut image = Qcow2(qcow2_bytes(&qcow2("cluster_size=4k"), &guest));
    let at = image.l1_entry(2 * 512);
    image.put_u64(at, 1 << 8);
    assert_eq!(fault(&image).at, at);
    let opened = qcow2_image(&image.0).unwrap();
    let mut byte = [0];
    assert!(opened.read_exact_at(&mut byte, (4 << 20) - 1).is_ok());
    assert_eq!(opened.read_exact_at(&mut byte, 4 << 20).unwrap_err().kind().as_str(), "invalid-field");
}

#[test]
fn undecodable_compressed_clusters_are_refused() {
    let guest = Pattern::Dense.make(256 << 10);
    for options in ["", "compression_type=zstd"] {
        let bytes = qcow2_bytes(&qcow2(options).compress(true), &guest);
        let mut image = Qcow2(bytes);
        let entry = image.u64(image.l2_entry(2));
        assert_ne!(entry >> 62, 0b10, "it is compressed");
        let host = entry & ((1 << 54) - 1);
        image.put(host, &[0xff; 24]);
        let fault = fault(&image);
        assert!(matches!(fault.problem, Problem::Decode { offset, .. } if offset == host), "{fault}");
        assert_eq!(fault.at, host);
        let error = read(&image.0).unwrap_err();
        assert_eq!(error.kind().as_str(), "decode");
        assert!(matches!(&error, Error::Guest { range, .. } if *range == (2 << 16..3 << 16)), "{error}");
        // Not by copying the payload, either.
        let source = qcow2_image(&image.0).unwrap();
        let out = std::sync::Arc::new(diskimage::io::MemFile::new());
        let error = qcow2(options).compress(true).convert_to(&source, out).unwrap_err();
        assert_eq!(error.kind().as_str(), "decode", "{error}");
    }
}

#[test]
fn overlapping_clusters_are_refused() {
    let mut image = plain();
    let (first, second) = (image.l2_entry(3), image.l2_entry(9));
    image.put_u64(second, image.u64(first));
    let source = qcow2_image(&image.0).unwrap();
    let out = std::sync::Arc::new(diskimage::io::MemFile::new());
    let error = raw().convert_to(&source, out.clone()).unwrap_err();
    assert_eq!(error.kind().as_str(), "overlap", "{error}");
    // Nor the tables as guest bytes.
    let table = image.u64(image.l1_entry(0));
    let mut image = plain();
    let entry = image.l2_entry(3);
    image.put_u64(entry, table);
    let error = raw().convert_to(&qcow2_image(&image.0).unwrap(), out).unwrap_err();
    assert_eq!(error.kind().as_str(), "overlap", "{error}");
}

#[test]
fn header_fields() {
    let good = plain();
    let len = good.0.len() as u64;
    type Spoil = fn(&mut Qcow2, u64);
    let cases: [(&str, &str, u64, Spoil); 20] = [
        ("version", "unsupported", 4, |image, _| image.put_u32(4, 4)),
        ("magic", "invalid-field", 0, |image, _| image.put_u32(0, 0)),
        ("cluster_bits", "invalid-field", 20, |image, _| image.put_u32(20, 40)),
        ("cluster_bits", "invalid-field", 20, |image, _| image.put_u32(20, 8)),
        ("cluster_bits", "invalid-field", 20, |image, _| image.put_u32(20, u32::MAX)),
        ("size", "limit", 24, |image, _| image.put_u64(24, u64::MAX)),
        ("l1_size", "invalid-field", 36, |image, _| image.put_u64(24, 1 << 50)),
        ("crypt_method", "invalid-field", 32, |image, _| image.put_u32(32, 3)),
        ("encrypted", "secret", 0, |image, _| image.put_u32(32, 1)),
        ("l1_size", "invalid-field", 36, |image, _| image.put_u32(36, 0)),
        ("l1_size", "limit", 36, |image, _| image.put_u32(36, u32::MAX)),
        ("l1_table_offset", "out-of-bounds", 40, |image, len| image.put_u64(40, len.next_multiple_of(4096))),
        ("l1_table_offset", "invalid-field", 40, |image, _| image.put_u64(40, 4097)),
        ("l1_table_offset", "overlap", 40, |image, _| image.put_u64(40, 0)),
        ("refcount_table_offset", "invalid-field", 48, |image, _| image.put_u64(48, 1)),
        ("refcount_order", "invalid-field", 96, |image, _| image.put_u32(96, 7)),
        ("header_length", "invalid-field", 100, |image, _| image.put_u32(100, 8192)),
        ("header_length", "invalid-field", 100, |image, _| image.put_u32(100, 100)),
        ("compression_type", "invalid-field", 104, |image, _| image.put(104, &[1])),
        ("incompatible feature", "unsupported", 72, |image, _| image.put_u64(72, 1 << 40)),
    ];
    for (field, kind, at, damage) in cases {
        let mut image = good.clone();
        damage(&mut image, len);
        let error = read(&image.0).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind().as_str(), kind, "{field}: {text}");
        assert!(text.contains(field), "{field}: {text}");
        assert!(at == 0 || text.contains(&format!("file offset {at:#x}")), "{field}: {text}");
    }
}

#[test]
fn a_damaged_snapshot_table_does_not_hide_the_disk() {
    let dir = TempDir::new();
    let good = plain();
    let guest = read(&good.0).unwrap();
    // Misaligned, out of bounds, too many snapshots.
    for (count, offset) in [(1u32, 100u64), (1, 1 << 40), (u32::MAX, 4096)] {
        let mut image = good.clone();
        image.put(60, &[&count.to_be_bytes()[..], &offset.to_be_bytes()].concat());
        assert_same(&read(&image.0).unwrap(), &guest, "the active state");
        let path = dir.file("image.qcow2", &image.0);
        let info = OpenOptions::new().inspect(&path).unwrap().info;
        assert!(info.warnings[0].contains("snapshots"), "{:?}", info.warnings);
        let error = OpenOptions::new().snapshot("1").open(&path).err().unwrap();
        assert!(error.to_string().contains("snapshot"), "{error}");
        let report = OpenOptions::new().check(&path).unwrap();
        assert_eq!((report.leaks, report.check_errors), (0, 1), "{report:?}");
    }
}

#[test]
fn encrypted_images_are_inspected_but_not_opened() {
    let dir = TempDir::new();
    // Without a LUKS header.
    for (method, name, kind) in [(1, "AES", "secret"), (2, "LUKS", "invalid-field")] {
        let mut image = plain();
        image.put_u32(32, method);
        let path = dir.file("encrypted.qcow2", &image.0);
        let error = Image::open(&path).err().unwrap();
        assert_eq!(error.kind().as_str(), kind, "{error}");
        assert_eq!(OpenOptions::new().inspect(&path).unwrap().info.encryption, Some(name));
    }
}

#[test]
fn limits_are_enforced() {
    let dir = TempDir::new();
    let path = dir.join("image.qcow2");
    qcow2("cluster_size=2M").create(1 << 50, &path).unwrap();
    let open = |set: fn(&mut Limits)| {
        let mut limits = Limits::default();
        set(&mut limits);
        OpenOptions::new().limits(limits).open(&path)
    };
    assert!(open(|_| {}).is_ok());
    assert_eq!(open(|limits| limits.virtual_size = (1 << 50) - 1).err().unwrap().kind().as_str(), "limit");
    assert_eq!(open(|limits| limits.metadata = 4096).err().unwrap().kind().as_str(), "limit");
}

#[test]
fn signatures() {
    let dir = TempDir::new();
    let mut footer = vec![0; 4096];
    footer[3584..3592].copy_from_slice(b"conectix");
    let ewf = b"EVF\x09\x0d\x0a\xff\0";
    let path = dir.file("image", ewf);
    let error = Image::open(&path).err().unwrap();
    assert!(matches!(error.root(), Error::Unreadable { format: "ewf", .. }), "{error}");
    let as_stated = OpenOptions::new().format(format("raw")).open(&path).unwrap();
    assert_eq!(content(&as_stated).unwrap(), ewf);
    // A qcow2 image that ends as a VHD does.
    let both = [plain().0, footer].concat();
    let path = dir.file("image", &both);
    let error = Image::open(&path).err().unwrap();
    assert!(matches!(error.root(), Error::Ambiguous(formats) if *formats == ["qcow2", "vpc"]), "{error}");
    assert!(OpenOptions::new().format(format("qcow2")).open(&path).is_ok());
}

#[test]
fn empty_and_tiny_files() {
    let dir = TempDir::new();
    let empty = dir.file("empty", b"");
    let image = Image::open(&empty).unwrap();
    assert_eq!((image.virtual_size(), image.format().name()), (0, "raw"));
    for converter in [raw(), qcow2(""), qcow2("preallocation=full"), qcow2("compat=0.10").compress(true)] {
        let target = dir.join("target");
        converter.convert(&image, &target).unwrap();
        assert_eq!(Image::open(&target).unwrap().virtual_size(), 0);
    }
    // A signature alone is a truncated image, not a raw disk.
    for magic in [&b"QFI\xfb\0\0\0\x03"[..], b"vhdxfile"] {
        let magic = dir.file("magic", magic);
        assert_eq!(Image::open(&magic).err().unwrap().kind().as_str(), "out-of-bounds");
    }
    assert!(Image::open(dir.join("absent")).err().unwrap().to_string().contains("absent"));
    assert!(Image::open(dir.path()).is_err());
}

#[test]
fn invalid_options_are_refused() {
    let source = raw_image(&[0; 512]);
    for (list, option) in [
        ("cluster_size=1000", "cluster_size"),
        ("cluster_size=256", "cluster_size"),
        ("cluster_size=4M", "cluster_size"),
        ("refcount_bits=3", "refcount_bits"),
        ("refcount_bits=128", "refcount_bits"),
        ("compat=0.10,refcount_bits=8", "refcount_bits"),
        ("compat=0.10,extended_l2=on", "extended_l2"),
        ("cluster_size=8k,extended_l2=on", "extended_l2"),
        ("compat=0.10,lazy_refcounts=on", "lazy_refcounts"),
        ("compat=0.10,compression_type=zstd", "compression_type"),
        ("compat=2", "compat"),
        ("compression_level=0", "compression_level"),
        ("compression_type=zstd,window=12", "window"),
        ("preallocation=some", "preallocation"),
        ("backing_file=x", "backing_file"),
        ("colour=blue", "colour"),
    ] {
        let out = std::sync::Arc::new(diskimage::io::MemFile::new());
        let error = qcow2(list).convert_to(&source, out.clone()).unwrap_err();
        assert!(matches!(&error, Error::Option { name, .. } if name == option), "{list}: {error}");
        assert!(out.to_vec().is_empty(), "{list}");
    }
    let out = std::sync::Arc::new(diskimage::io::MemFile::new());
    assert_eq!(
        raw().options(options("cluster_size=4k")).convert_to(&source, out).unwrap_err().kind().as_str(),
        "option"
    );
}

#[test]
fn sources_are_never_written() {
    let dir = TempDir::new();
    let bytes = plain().0;
    let path = dir.file("source.qcow2", &bytes);
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    let image = Image::open(&path).unwrap();
    convert(&raw(), &image);
    OpenOptions::new().check(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    assert_same(&fs::read(&path).unwrap(), &bytes, "source");
}

fn vmdk_options() -> OpenOptions {
    OpenOptions::new().format(format("vmdk"))
}

fn vmdk_image(bytes: &[u8]) -> Result<Image> {
    vmdk_options().open_source(Arc::new(MemFile::from(bytes.to_vec())))
}

#[test]
fn truncated_vmdks_are_refused() {
    let guest = Pattern::Islands.make(300 << 10);
    for list in ["", "subformat=streamOptimized"] {
        let (whole, _) = convert(&vmdk(list), &raw_image(&guest));
        assert_same(&content(&vmdk_image(&whole).unwrap()).unwrap(), &guest, list);
        let lens = (0..1024).chain((0..whole.len()).step_by(512)).chain((1..whole.len()).step_by(4095));
        for len in lens {
            let file = vmdk_image(&whole[..len]).and_then(|image| content(&image));
            let pipe = vmdk_options().open_stream(Cursor::new(whole[..len].to_vec())).and_then(|image| {
                let out = Arc::new(MemFile::new());
                raw().threads(1).convert_to(&image, out.clone()).map(|_| out.to_vec())
            });
            for (way, result) in [("file", file), ("pipe", pipe)] {
                match result {
                    Err(error) if way == "pipe" && len == 0 => assert_eq!(error.kind().as_str(), "usage"),
                    // The marker of the end may be missing, and what no guest sees of the last grain. What has no markers is copied to a file.
                    Ok(read)
                        if (way == "file" || list.is_empty())
                            && whole.len() - len <= if list.is_empty() { 65536 } else { 512 } =>
                    {
                        assert_same(&read, &guest, "all that matters");
                    }
                    Ok(_) => panic!("{list}, {way}, cut to {len}"),
                    Err(error) => {
                        let kind = error.kind().as_str();
                        let expected = matches!(kind, "invalid-field" | "out-of-bounds");
                        assert!(expected || list.is_empty() && kind == "unsupported", "{list}, {way}, {len}: {error}");
                    }
                }
            }
        }
    }
}

/// A hosted sparse extent that begins so, with its directory in sector 1.
fn vmdk_header(version: u32, flags: u32, capacity: u64, grain: u64, entries: u32) -> Vec<u8> {
    let mut bytes = [&b"KDMV"[..], &version.to_le_bytes(), &flags.to_le_bytes()].concat();
    [capacity, grain, 0, 0].iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    bytes.extend(entries.to_le_bytes());
    [0u64, 1, 1].iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    bytes.extend(b"\0\n \r\n");
    bytes.extend(((flags >> 16 & 1) as u16).to_le_bytes());
    bytes.resize(512, 0);
    bytes
}

/// 32-bit entries, up to the end of a sector.
fn entries(entries: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries.into_iter().flat_map(u32::to_le_bytes).collect();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[track_caller]
fn not_converted(bytes: &[u8], kind: &str) {
    let started = Instant::now();
    for converter in [qcow2(""), vmdk("subformat=streamOptimized")] {
        let image = vmdk_image(bytes).unwrap();
        let error = converter.convert_to(&image, Arc::new(MemFile::new())).unwrap_err();
        assert_eq!(error.kind().as_str(), kind, "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn overlapping_vmdk_grains_are_refused() {
    // 2 GiB in 68 KiB, and all grains of a terabyte in one that does not compress to nothing.
    let table = entries(std::iter::repeat_n(64 + 4, 512));
    let tables = [vmdk_header(1, 1, 512 * 128, 128, 512), entries([2]), table].concat();
    let plain = [tables, vec![7; (62 + 128) * 512]].concat();
    not_converted(&plain, "overlap");
    let mut in_table = plain.clone();
    in_table[2 * 512..2 * 512 + 4].copy_from_slice(&2u32.to_le_bytes());
    not_converted(&in_table, "overlap");
    // Compressed without markers nothing says to whom a payload belongs.
    let payload = [&[1][..], &512u16.to_le_bytes(), &(!512u16).to_le_bytes(), &[7; 512]].concat();
    let bare = [vmdk_header(1, 0x10001, 128, 1, 128), entries([2]), entries(std::iter::repeat_n(3, 128)), payload];
    not_converted(&bare.concat(), "overlap");
    // With markers it does.
    let marker = [&0u64.to_le_bytes()[..], &517u32.to_le_bytes()].concat();
    let marked = [vmdk_header(3, 0x30001, 128, 1, 128), entries([2]), bare[2].clone(), marker, bare[3].clone()];
    not_converted(&marked.concat(), "invalid-field");
}

#[test]
fn overlapping_vmdk_tables_are_refused() {
    // 16 TiB in three sectors.
    let header = vmdk_header(1, 1, 1 << 35, 1 << 21, 128);
    let same = [header, entries(std::iter::repeat_n(2, 128)), entries([0; 128])].concat();
    not_converted(&same, "overlap");
    let image = vmdk_image(&same).unwrap();
    assert_eq!(image.virtual_size(), 16 << 40);
    assert!(image.spans(0..u64::MAX).all(|span| span.unwrap().is_zero()));
    // The directory as its own table.
    let own = [vmdk_header(1, 1, 1 << 35, 1 << 21, 128), entries(std::iter::repeat_n(1, 128))].concat();
    not_converted(&own, "overlap");
}

#[test]
fn a_vmdk_of_16_tib_in_a_few_kib_is_refused() {
    let started = Instant::now();
    for (version, grain, per_table, flags, entry) in
        [(1, 1 << 21, 128, 1, 0), (1, 128, 1 << 20, 1, 0), (2, 1 << 21, 128, 5, 1)]
    {
        let mut bytes = vmdk_header(version, flags, 1 << 35, grain, per_table);
        let tables = (1u64 << 35).div_ceil(grain * u64::from(per_table)) as u32;
        let there = entry != 0;
        bytes.extend(entries((0..tables).map(|table| if there { 2 + table } else { 0 })));
        (0..tables).filter(|_| there).for_each(|_| bytes.extend(entries([entry; 128])));
        assert!(bytes.len() < 80 << 10);
        let image = vmdk_image(&bytes).unwrap();
        assert_eq!(image.virtual_size(), 16 << 40);
        for converter in [qcow2("cluster_size=2M"), vmdk("subformat=streamOptimized")] {
            let (small, report) = convert(&converter, &image);
            assert!(report.data_bytes == 0 && small.len() < 64 << 20, "{}", small.len());
        }
    }
    // A stream of nothing but a header and an end, from a pipe.
    let mut stream = vmdk_header(3, 0x30001, 1 << 35, 128, 512);
    stream[56..64].fill(0xff);
    let footer = [&[1][..], &[0; 11], &[3], &[0; 499 + 512]].concat();
    let image = vmdk_options().open_stream(Cursor::new([stream, footer, vec![0; 512]].concat())).unwrap();
    assert_eq!(convert(&qcow2("cluster_size=2M"), &image).1.data_bytes, 0);
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn vmdk_directory_sizes_are_limited() {
    // Nothing is allocated for what is not in the file, nor for more than the limit.
    let largest = i64::MAX as u64 / 512;
    for (capacity, grain, per_table) in [(largest, 1, 1), (largest, 128, 512), (1 << 35, 1, 1), (1 << 35, 128, 512)] {
        let error = vmdk_image(&vmdk_header(1, 1, capacity, grain, per_table)).err().unwrap();
        assert!(matches!(error.kind().as_str(), "out-of-bounds" | "limit"), "{error}");
        let dir = TempDir::new();
        let path = dir.file("image.vmdk", &vmdk_header(1, 1, capacity, grain, per_table));
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8 << 40).unwrap();
        let started = Instant::now();
        match Image::open(&path) {
            Ok(image) => assert!(image.virtual_size() <= 16 << 40),
            Err(error) => assert!(matches!(error.kind().as_str(), "out-of-bounds" | "limit"), "{error}"),
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
}

#[test]
fn oversized_descriptors_are_refused() {
    let start = "# Disk DescriptorFile\nversion=1\ncreateType=\"custom\"\n";
    let of = |lines: &str, times: usize| vmdk_image(format!("{start}{}", lines.repeat(times)).as_bytes());
    let started = Instant::now();
    let image = of("RW 1 ZERO\n", 8192).unwrap();
    assert_eq!(content(&image).unwrap(), vec![0; 8192 * 512]);
    for (lines, times) in [
        ("RW 1 ZERO\n", 8193),
        ("RW 1 ZERO\n", 100_000),
        ("RW 1 FLAT \"a\" 0\n", 100_000),
        ("# a comment\n", 64 << 20 >> 3),
        ("ddb.a = \"b\"\n", 64 << 20 >> 3),
    ] {
        let error = of(lines, times).err().unwrap();
        assert_eq!(error.kind().as_str(), "limit", "{lines}: {error}");
    }
    // As large as it may be, of lines that are looked at.
    for lines in ["# a comment\n", "a=b\n", "ddb.a = \"b\"\n", "\n", "RW 0 ZERO\n"] {
        let image = of(lines, (4 << 20) / lines.len() - 100);
        assert!(image.is_err(), "{lines}");
    }
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    assert_eq!(of("RW 9000000000000000 ZERO\n", 8192).err().unwrap().kind().as_str(), "invalid-field");
    // The room for a descriptor inside an extent is in the file, or not believed.
    let mut bytes = vmdk_header(1, 1, 8, 8, 1);
    bytes[28..36].copy_from_slice(&1u64.to_le_bytes());
    bytes[36..44].copy_from_slice(&(64u64 << 11).to_le_bytes());
    bytes.resize(8192, 0);
    assert_eq!(vmdk_image(&bytes).err().unwrap().kind().as_str(), "out-of-bounds");
    bytes.resize((64 << 20) + 512, 0);
    assert_eq!(vmdk_image(&bytes).err().unwrap().kind().as_str(), "limit");
}

#[test]
fn descriptors_with_loops_or_forbidden_names_are_refused() {
    let dir = TempDir::new();
    let text = |line: &str| format!("# Disk DescriptorFile\nversion=1\ncreateType=\"custom\"\n{line}\n");
    let path = dir.join("disk.vmdk");
    fs::create_dir(dir.join("sub")).unwrap();
    let secret = dir.file("sub/secret", &[1; 512]);
    std::os::unix::fs::symlink(&secret, dir.join("link")).unwrap();
    for (line, references) in [
        ("RW 1 FLAT \"disk.vmdk\" 0", ReferencePolicy::Any),
        ("RW 1 FLAT \"./disk.vmdk\" 0", ReferencePolicy::Any),
        ("RW 1 FLAT \"sub/secret\" 0", ReferencePolicy::Beside),
        ("RW 1 FLAT \"../x\" 0", ReferencePolicy::Beside),
        ("RW 1 FLAT \"link\" 0", ReferencePolicy::Beside),
        ("RW 1 FLAT \"disk.vmdk\" 0", ReferencePolicy::Deny),
    ] {
        fs::write(&path, text(line)).unwrap();
        let error = OpenOptions::new().reference_policy(references).open(&path).err().unwrap();
        assert!(matches!(error.kind().as_str(), "reference" | "io"), "{line}: {} {error}", error.kind().as_str());
    }
    fs::write(&path, text("RW 1 FLAT \"sub/secret\" 0")).unwrap();
    let image = OpenOptions::new().reference_policy(ReferencePolicy::Any).open(&path).unwrap();
    assert_eq!(content(&image).unwrap(), [1; 512]);
}

pub fn open_as(name: &str, bytes: &[u8]) -> Result<Image> {
    OpenOptions::new().format(format(name)).open_source(Arc::new(MemFile::from(bytes.to_vec())))
}

/// The kind of error that converting ends with, soon.
#[track_caller]
pub fn conversion_fails(name: &str, bytes: &[u8], kind: &str) {
    let started = Instant::now();
    for converter in [qcow2(""), vmdk("subformat=streamOptimized")] {
        let result = open_as(name, bytes).and_then(|image| converter.convert_to(&image, Arc::new(MemFile::new())));
        let error = result.unwrap_err();
        assert_eq!(error.kind().as_str(), kind, "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn truncated_vhds_vdis_and_vhdxs_are_refused() {
    let guest = Pattern::Islands.make(300 << 10);
    // What comes first in the file, before the bytes of the disk; without its last byte a fixed VHD is one from before Virtual PC 2004.
    for (name, converter, before) in [
        ("vpc", vpc("block_size=512k"), Some(4096)),
        ("vpc", vpc("subformat=fixed"), None),
        ("vdi", vdi(""), Some(2 << 20)),
        ("vhdx", vhdx("block_size=1M"), Some(4 << 20)),
    ] {
        let (whole, _) = convert(&converter, &raw_image(&guest));
        let needed = before.map_or(whole.len() - 1, |before| before + guest.len());
        assert_same(&content(&open_as(name, &whole).unwrap()).unwrap(), &guest, name);
        for len in (0..2048).chain((0..whole.len()).step_by(4095)).chain([needed - 1, needed, whole.len() - 1]) {
            match open_as(name, &whole[..len]).and_then(|image| content(&image)) {
                Ok(read) => {
                    assert!(len >= needed, "{name}, cut to {len}");
                    assert_same(&read, &guest, name);
                }
                Err(error) => {
                    assert!(
                        matches!(error.kind().as_str(), "invalid-field" | "out-of-bounds"),
                        "{name}, {len}: {error}"
                    );
                }
            }
        }
    }
}

/// A VHD of nothing but the copy of the footer, the header, and `table`.
fn vhd(size: u64, max_table_entries: u32, block_size: u32, table: &[u8]) -> Vec<u8> {
    let seal = |bytes: &mut [u8], at: usize| {
        let sum = bytes.iter().fold(0, |sum: u32, &byte| sum + u32::from(byte));
        bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
    };
    let mut footer =
        [&b"conectix\0\0\0\x02\0\x01\0\0\0\0\0\0\0\0\x02\0\0\0\0\0win \0\x0a\0\0Wi2k"[..], &[0; 472]].concat();
    footer[48..56].copy_from_slice(&size.to_be_bytes());
    footer[63] = 3;
    seal(&mut footer, 64);
    let mut header = [&b"cxsparse"[..], &[0xff; 8], &1536u64.to_be_bytes(), &[0, 1, 0, 0], &[0; 996]].concat();
    header[28..32].copy_from_slice(&max_table_entries.to_be_bytes());
    header[32..36].copy_from_slice(&block_size.to_be_bytes());
    seal(&mut header, 36);
    [&footer, &header, table].concat()
}

#[test]
fn overlapping_vhd_blocks_are_refused() {
    // 2040 GiB in 6 MiB: all blocks are the same one.
    let table = 8192u32.to_be_bytes().repeat(1_044_480);
    let mut bomb = vhd(2040 << 30, 1_044_480, 2 << 20, &table);
    bomb.resize(4 << 20, 0);
    bomb.resize((4 << 20) + 512, 0xff);
    bomb.resize((6 << 20) + 512, 7);
    conversion_fails("vpc", &bomb, "overlap");
    let check = OpenOptions::new().format(format("vpc")).check_source(Arc::new(MemFile::from(bomb))).unwrap();
    assert!(check.corruptions > 0, "{check:?}");
    // A block over the table, over the header, over the footer, and over the bitmap of another.
    for (entries, kind) in [
        ([3, !0], "overlap"),
        ([1, !0], "overlap"),
        ([0, !0], "overlap"),
        ([4, 5], "overlap"),
        ([9, 4], "out-of-bounds"),
    ] {
        let table: Vec<u8> = entries.iter().flat_map(|entry: &u32| entry.to_be_bytes()).collect();
        let mut bytes = vhd(2048, 2, 1024, &table);
        bytes.resize(8 * 512, 0xff);
        conversion_fails("vpc", &bytes, kind);
    }
}

#[test]
fn vhd_table_sizes_are_limited() {
    let started = Instant::now();
    // Nothing is allocated for what is not in the file.
    for (size, entries, block_size, kind) in [
        (1 << 20, u32::MAX, 2 << 20, "out-of-bounds"),
        (64 << 40, u32::MAX, 256 << 20, "out-of-bounds"),
        (64 << 40, 1, 256 << 20, "invalid-field"),
        (u64::MAX, 1, 512, "limit"),
        (512, 1, 512 << 20, "invalid-field"),
        (512, 1, 3 << 20, "invalid-field"),
        (512, 1, 256, "invalid-field"),
    ] {
        let error = open_as("vpc", &vhd(size, entries, block_size, &[0xff; 512])).err().unwrap();
        assert_eq!(error.kind().as_str(), kind, "{size} {entries} {block_size}: {error}");
    }
    // 64 TiB of nothing in a MiB.
    let bytes = vhd(64 << 40, 1 << 18, 256 << 20, &[0xff; 1 << 20]);
    let image = open_as("vpc", &bytes).unwrap();
    assert_eq!(image.virtual_size(), 64 << 40);
    assert_eq!(convert(&qcow2("cluster_size=2M"), &image).1.data_bytes, 0);
    // A table of zeros, which a file can have for nothing.
    let dir = TempDir::new();
    let path = dir.file("image.vhd", &vhd(64 << 30, u32::MAX, 512, &[0xff; 512]));
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1536 + (16 << 30)).unwrap();
    let image = Image::open(&path).unwrap();
    assert_eq!(qcow2("").convert(&image, dir.join("out")).unwrap_err().kind().as_str(), "overlap");
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

/// A VDI of a header and `map`, followed by the data.
fn vdi_of(size: u64, block_size: u32, extra: u32, blocks: u32, map: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    for (at, number) in [
        (64, 0xbeda_107f),
        (68, 0x1_0001),
        (72, 400),
        (76, 1),
        (340, 512),
        (344, 512 + map.len().next_multiple_of(512) as u32),
        (376, block_size),
        (380, extra),
        (384, blocks),
        (392, 1),
        (408, 1),
        (468, 512u32),
    ] {
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    bytes[368..376].copy_from_slice(&size.to_le_bytes());
    bytes.extend(map);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn overlapping_vdi_blocks_are_refused() {
    // A TiB in 6 MiB.
    let mut bomb = vdi_of(1 << 40, 1 << 20, 0, 1 << 20, &[0; 4 << 20]);
    bomb.resize(bomb.len() + (1 << 20), 7);
    conversion_fails("vdi", &bomb, "overlap");
    let check = OpenOptions::new().format(format("vdi")).check_source(Arc::new(MemFile::from(bomb))).unwrap();
    assert!(check.corruptions > 0, "{check:?}");
    // Also where blocks are at odd places, and the last of them overlaps nothing but itself.
    let mut odd = vdi_of(1 << 20, 1 << 19, 1, 2, &[0; 8]);
    odd.resize(odd.len() + (1 << 20), 7);
    conversion_fails("vdi", &odd, "overlap");
}

#[test]
fn vdi_map_sizes_are_limited() {
    let started = Instant::now();
    for (size, block_size, extra, blocks, kind) in [
        (1 << 20, 1 << 20, 0, u32::MAX, "out-of-bounds"),
        (64 << 40, 1 << 31, 0, 1, "invalid-field"),
        (u64::MAX, 1 << 31, u32::MAX, 128, "limit"),
        (512, 256, 0, 1, "invalid-field"),
        (512, 3 << 20, 0, 1, "invalid-field"),
    ] {
        let error = open_as("vdi", &vdi_of(size, block_size, extra, blocks, &[0xff; 512])).err().unwrap();
        assert_eq!(error.kind().as_str(), kind, "{size} {block_size} {extra} {blocks}: {error}");
    }
    // 64 TiB of nothing, and of zeros, in 128 KiB; and blocks that are nowhere near the file.
    for entry in [!0u32, !1] {
        let image =
            open_as("vdi", &vdi_of(64 << 40, 1 << 31, 0, 1 << 15, &entry.to_le_bytes().repeat(1 << 15))).unwrap();
        assert_eq!(image.virtual_size(), 64 << 40);
        assert_eq!(convert(&qcow2("cluster_size=2M"), &image).1.data_bytes, 0);
    }
    conversion_fails("vdi", &vdi_of(512, 1 << 31, u32::MAX, 1, &(!2u32).to_le_bytes()), "out-of-bounds");
    // A map of zeros, which a file can have for nothing.
    let dir = TempDir::new();
    let path = dir.file("image.vdi", &vdi_of(64 << 30, 512, 0, 1 << 27, &[]));
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &(513u32 << 20).to_le_bytes(), 344).unwrap();
    let image = Image::open(&path).unwrap();
    assert_eq!(qcow2("").convert(&image, dir.join("out")).unwrap_err().kind().as_str(), "overlap");
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

/// A block of zeros within another one, whose bitmap happens to be zeros there.
#[test]
fn overlapping_blocks_of_a_vhd_are_refused() {
    let mut guest = vec![0; 6 << 20];
    guest[..512].fill(1);
    guest[(2 << 20)..(2 << 20) + 512].fill(2);
    guest[(4 << 20) + 4096..][..512].fill(3);
    let (file, _) = convert(&vpc(""), &raw_image(&guest));
    let table = u64::from_be_bytes(file[512 + 16..][..8].try_into().unwrap()) as usize;
    let entry = |index: usize| u32::from_be_bytes(file[table + index * 4..][..4].try_into().unwrap());
    for (block, other) in [(0, 1), (1, 0), (1, 2), (2, 1), (0, 2)] {
        for delta in [1, 2, 9, 100, 2048, 4096] {
            let mut damaged = file.clone();
            damaged[table + block * 4..][..4].copy_from_slice(&(entry(other) + delta).to_be_bytes());
            let image = open_bytes(&damaged, format("vpc")).unwrap();
            let error = raw().convert_to(&image, Arc::new(MemFile::new())).unwrap_err();
            assert!(matches!(error.root(), Error::Corrupt(_)), "{block} in {other} at {delta}: {error}");
        }
    }
}
