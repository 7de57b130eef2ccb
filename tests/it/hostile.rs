//! Images that are cut off, spoiled, or not what they look like.

use std::fs;

use crate::support::patch::Qcow2;
use crate::support::pattern::Pattern;
use crate::support::{
    TempDir, assert_same, content, convert, format, options, qcow2, qcow2_bytes, qcow2_image, raw, raw_image,
};
use diskimage::{Error, Fault, Image, Limits, OpenOptions, Problem, Result};

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
fn an_image_that_is_cut_off() {
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
    let spoil = |value: u64| {
        let mut image = good.clone();
        image.put_u64(at, value);
        fault(&image)
    };

    let past_the_end = spoil((1 << 63) | (len.next_multiple_of(4096) + 0x10_0000));
    assert_eq!((&*past_the_end.field, past_the_end.at), ("L2 entry", at));
    assert!(matches!(past_the_end.problem, Problem::OutOfBounds { offset, len: 4096, file_len }
        if offset == len.next_multiple_of(4096) + 0x10_0000 && file_len == len));
    let huge = spoil(entry & !0xfff | 0x00ff_ffff_ffff_f000);
    assert!(matches!(huge.problem, Problem::OutOfBounds { .. }), "{huge}");
    let unaligned = spoil(entry + 512);
    assert!(matches!(unaligned.problem, Problem::Misaligned { alignment: 4096, .. }), "{unaligned}");
    let reserved = spoil(entry | 1 << 57);
    assert!(matches!(reserved.problem, Problem::Reserved { bits: 0x0200_0000_0000_0000, .. }), "{reserved}");
    assert_eq!((reserved.at, unaligned.at), (at, at));
    let compressed = spoil(1 << 62 | 0x3f_ffff_ffff);
    assert!(matches!(compressed.problem, Problem::OutOfBounds { .. }), "{compressed}");
}

#[test]
fn l1_entries() {
    let good = plain();
    let at = good.l1_entry(0);
    let len = good.0.len() as u64;
    let spoil = |value: u64| {
        let mut image = good.clone();
        image.put_u64(at, value);
        fault(&image)
    };
    let past_the_end = spoil((1 << 63) | len.next_multiple_of(4096));
    assert_eq!((&*past_the_end.field, past_the_end.at), ("L1 entry", at));
    assert!(matches!(past_the_end.problem, Problem::OutOfBounds { len: 4096, .. }));
    assert!(matches!(spoil((1 << 63) | 512).problem, Problem::Misaligned { .. }));
    assert!(matches!(spoil(1).problem, Problem::Reserved { bits: 1, .. }));
}

#[test]
fn an_entry_is_judged_in_a_run_as_it_is_alone() {
    // Three L2 tables, of which there is the first.
    let mut guest = Pattern::Dense.make(64 << 10);
    guest.resize(6 << 20, 0);
    let mut image = Qcow2(qcow2_bytes(&qcow2("cluster_size=4k"), &guest));
    let at = image.l1_entry(2 * 512);
    image.put_u64(at, 1 << 8);
    assert_eq!(fault(&image).at, at);
    let opened = qcow2_image(&image.0).unwrap();
    let mut byte = [0];
    assert!(opened.read_at(&mut byte, (4 << 20) - 1).is_ok());
    assert_eq!(opened.read_at(&mut byte, 4 << 20).unwrap_err().kind(), "invalid-field");
}

#[test]
fn a_compressed_cluster_that_does_not_decode() {
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
        assert_eq!(error.kind(), "decode");
        assert!(matches!(&error, Error::Guest { range, .. } if *range == (2 << 16..3 << 16)), "{error}");
        // Not by copying the payload, either.
        let source = qcow2_image(&image.0).unwrap();
        let out = std::sync::Arc::new(diskimage::io::MemFile::new());
        let error = qcow2(options).compress(true).convert_to(&source, out).unwrap_err();
        assert_eq!(error.kind(), "decode", "{error}");
    }
}

#[test]
fn two_guest_clusters_in_one_place() {
    let mut image = plain();
    let (first, second) = (image.l2_entry(3), image.l2_entry(9));
    image.put_u64(second, image.u64(first));
    let source = qcow2_image(&image.0).unwrap();
    let out = std::sync::Arc::new(diskimage::io::MemFile::new());
    let error = raw().convert_to(&source, out.clone()).unwrap_err();
    assert_eq!(error.kind(), "overlap", "{error}");
    // Nor the tables as guest bytes.
    let table = image.u64(image.l1_entry(0));
    let mut image = plain();
    let entry = image.l2_entry(3);
    image.put_u64(entry, table);
    let error = raw().convert_to(&qcow2_image(&image.0).unwrap(), out).unwrap_err();
    assert_eq!(error.kind(), "overlap", "{error}");
}

#[test]
fn header_fields() {
    let good = plain();
    let len = good.0.len() as u64;
    type Spoil = fn(&mut Qcow2, u64);
    let cases: [(&str, &str, u64, Spoil); 21] = [
        ("version", "unsupported", 4, |image, _| image.put_u32(4, 4)),
        ("magic", "invalid-field", 0, |image, _| image.put_u32(0, 0)),
        ("cluster_bits", "invalid-field", 20, |image, _| image.put_u32(20, 40)),
        ("cluster_bits", "invalid-field", 20, |image, _| image.put_u32(20, 8)),
        ("cluster_bits", "invalid-field", 20, |image, _| image.put_u32(20, u32::MAX)),
        ("size", "limit", 24, |image, _| image.put_u64(24, u64::MAX)),
        ("l1_size", "invalid-field", 36, |image, _| image.put_u64(24, 1 << 50)),
        ("crypt_method", "invalid-field", 32, |image, _| image.put_u32(32, 3)),
        ("encryption", "unsupported", 0, |image, _| image.put_u32(32, 1)),
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
        ("snapshots_offset", "invalid-field", 64, |image, _| {
            image.put(60, &[&[0, 0, 0, 1][..], &100u64.to_be_bytes()].concat())
        }),
    ];
    for (field, kind, at, spoil) in cases {
        let mut image = good.clone();
        spoil(&mut image, len);
        let error = read(&image.0).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), kind, "{field}: {text}");
        assert!(text.contains(field), "{field}: {text}");
        assert!(at == 0 || text.contains(&format!("file offset {at:#x}")), "{field}: {text}");
    }
}

#[test]
fn encryption_is_named_and_the_image_still_described() {
    let dir = TempDir::new();
    for (method, name) in [(1, "AES"), (2, "LUKS")] {
        let mut image = plain();
        image.put_u32(32, method);
        let path = dir.file("encrypted.qcow2", &image.0);
        let error = Image::open(&path).err().unwrap();
        assert_eq!(error.kind(), "unsupported");
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(OpenOptions::new().inspect(&path).unwrap().info.encryption, Some(name));
    }
}

#[test]
fn limits_are_kept() {
    let dir = TempDir::new();
    let path = dir.join("image.qcow2");
    qcow2("cluster_size=2M").create(1 << 50, &path).unwrap();
    let open = |set: fn(&mut Limits)| {
        let mut limits = Limits::default();
        set(&mut limits);
        OpenOptions::new().limits(limits).open(&path)
    };
    assert!(open(|_| {}).is_ok());
    assert_eq!(open(|limits| limits.virtual_size = (1 << 50) - 1).err().unwrap().kind(), "limit");
    assert_eq!(open(|limits| limits.metadata = 4096).err().unwrap().kind(), "limit");
}

#[test]
fn signatures() {
    let dir = TempDir::new();
    let mut footer = vec![0; 4096];
    footer[3584..3592].copy_from_slice(b"conectix");
    let mut vdi = vec![0; 512];
    vdi[0x40..0x44].copy_from_slice(&0xbeda_107f_u32.to_le_bytes());
    let old_qcow = [b"QFI\xfb\0\0\0\x01".to_vec(), vec![0; 100]].concat();
    for (name, bytes) in [
        ("vpc", footer.clone()),
        ("vdi", vdi),
        ("vhdx", b"vhdxfile".to_vec()),
        ("vmdk", b"KDMV\x01\0\0\0".to_vec()),
        ("vmdk", b"# Disk DescriptorFile\nversion=1\n".to_vec()),
        ("qed", b"QED\0".to_vec()),
        ("parallels", b"WithouFreSpacExt".to_vec()),
        ("qcow", old_qcow),
    ] {
        let path = dir.file("image", &bytes);
        let error = Image::open(&path).err().unwrap();
        assert!(matches!(error.root(), Error::Unreadable(format) if *format == name), "{name}: {error}");
        let as_stated = OpenOptions::new().format(format("raw")).open(&path).unwrap();
        assert_eq!(content(&as_stated).unwrap(), bytes, "{name}");
    }
    // A qcow2 image that ends as a VHD does.
    let both = [plain().0, footer].concat();
    let path = dir.file("image", &both);
    let error = Image::open(&path).err().unwrap();
    assert!(matches!(error.root(), Error::Ambiguous(formats) if *formats == ["qcow2", "vpc"]), "{error}");
    assert!(OpenOptions::new().format(format("qcow2")).open(&path).is_ok());
}

#[test]
fn files_without_content() {
    let dir = TempDir::new();
    let empty = dir.file("empty", b"");
    let image = Image::open(&empty).unwrap();
    assert_eq!((image.virtual_size(), image.format().name()), (0, "raw"));
    for converter in [raw(), qcow2(""), qcow2("preallocation=full"), qcow2("compat=0.10").compress(true)] {
        let target = dir.join("target");
        converter.convert(&image, &target).unwrap();
        assert_eq!(Image::open(&target).unwrap().virtual_size(), 0);
    }
    // A magic and nothing else is an image that is cut off, not a raw disk.
    let magic = dir.file("magic", b"QFI\xfb\0\0\0\x03");
    assert_eq!(Image::open(&magic).err().unwrap().kind(), "out-of-bounds");
    assert!(Image::open(dir.join("absent")).err().unwrap().to_string().contains("absent"));
    assert!(Image::open(dir.path()).is_err());
}

#[test]
fn options_that_cannot_be() {
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
    assert_eq!(raw().options(options("cluster_size=4k")).convert_to(&source, out).unwrap_err().kind(), "option");
}

#[test]
fn the_source_is_never_written() {
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
