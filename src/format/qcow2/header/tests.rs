//! Headers written by qemu-img, single invalid fields and truncations.

use proptest::prelude::*;

use super::*;
use crate::format::qcow2::extension::{BitmapDirectory, CryptoHeader, Feature};
use crate::io::MemFile;

/// `qemu-img create -f qcow2 -b base.raw -F raw -o cluster_size=4k,refcount_bits=32,lazy_refcounts=on v3.qcow2 1M`
/// (10.0.2), up to the end of the name; the file has [`V3_FILE_LEN`] bytes.
const V3: &str = "514649fb00000003000000000000008800000008 0000000c 0000000000100000 00000000 00000001 0000000000003000 \
                  0000000000001000 00000001 00000000 0000000000000000 0000000000000000 0000000000000001 \
                  0000000000000000 00000005 00000070 0000000000000000 e2792aca00000003 7261770000000000 \
                  0000000000000000 626173652e726177";
const V3_FILE_LEN: u64 = 0x3200;
const V3_L1: u64 = 0x3000;

/// `qemu-img create -f qcow2 -b base.raw -F raw -o cluster_size=512,compat=0.10 v2.qcow2 1M`, likewise.
const V2: &str = "514649fb00000002000000000000006000000008 00000009 0000000000100000 00000000 00000020 0000000000000600 \
                  0000000000000200 00000001 00000000 0000000000000000 e2792aca00000003 7261770000000000 \
                  0000000000000000 626173652e726177";

/// `qemu-img create -f qcow2 -o extended_l2=on,compression_type=zstd full.qcow2 3G`, then `qemu-img bitmap --add full.qcow2 b0`
/// and `qemu-img snapshot -c s full.qcow2`, up to the feature name table, exclusive.
const FULL: &str = "514649fb00000003000000000000000000000000 00000010 00000000c0000000 00000000 0000000c 0000000000030000 \
                    0000000000010000 00000001 00000001 0000000000070000 0000000000000018 0000000000000000 \
                    0000000000000001 00000004 00000070 0100000000000000";
const FULL_BITMAPS: &str = "2385287500000018 0000000100000000 0000000000000020 0000000000090000 0000000000000000";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter_map(|digit| char::from(digit).to_digit(16)).map(|it| it as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Parses a header in a cluster of `1 << bits` bytes of a file of `file_len` bytes.
fn parse(header: &[u8], bits: u32, file_len: u64) -> Result<Header> {
    let mut cluster = header.to_vec();
    cluster.resize(1 << bits, 0);
    Header::parse(&cluster, file_len, &Limits::default())
}

#[test]
fn version_3_of_qemu() {
    let header = parse(&bytes(V3), 12, V3_FILE_LEN).unwrap();
    let expected = Header {
        version: 3,
        backing_file: Some(Name::from("base.raw")),
        cluster_bits: 12,
        size: 1 << 20,
        encryption: Encryption::None,
        l1_size: 1,
        l1_table_offset: V3_L1,
        refcount_table_offset: 0x1000,
        refcount_table_clusters: 1,
        nb_snapshots: 0,
        snapshots_offset: 0,
        incompatible: Incompatible::empty(),
        compatible: Compatible::LAZY_REFCOUNTS,
        autoclear: Autoclear::empty(),
        refcount_order: 5,
        header_length: 112,
        compression: Codec::Deflate,
        extensions: Extensions { backing_format: Some(Name::from("raw")), ..Extensions::default() },
    };
    assert_eq!(header, expected);
    assert_eq!(header.encode(), bytes(V3));
}

#[test]
fn version_2_of_qemu() {
    let header = parse(&bytes(V2), 9, 2048).unwrap();
    assert_eq!((header.version, header.refcount_order, header.l1_size), (2, 4, 32));
    assert_eq!(header.extensions.backing_format, Some(Name::from("raw")));
    assert_eq!(header.encode(), bytes(V2));
}

#[test]
fn all_features_of_qemu() {
    let records: [(u8, u8, &str); 8] = [
        (0, 0, "dirty bit"),
        (0, 1, "corrupt bit"),
        (0, 2, "external data file"),
        (0, 3, "compression type"),
        (0, 4, "extended L2 entries"),
        (1, 0, "lazy refcounts"),
        (2, 0, "bitmaps"),
        (2, 1, "raw external data"),
    ];
    let mut image = [bytes(FULL), bytes("6803f85700000180")].concat();
    for (kind, bit, name) in records {
        let record = image.len();
        image.extend([kind, bit]);
        image.extend(name.bytes());
        image.resize(record + 48, 0);
    }
    image.extend(bytes(FULL_BITMAPS));
    let header = parse(&image, 16, 590_336).unwrap();
    assert_eq!(header.incompatible, Incompatible::COMPRESSION_TYPE | Incompatible::EXTENDED_L2);
    assert_eq!((header.compression, header.nb_snapshots, header.snapshots_offset), (Codec::Zstd, 1, 0x70000));
    assert_eq!(header.extensions.features, Feature::known());
    let bitmaps = BitmapDirectory { count: 1, len: 0x20, offset: 0x90000, at: 0x200 };
    assert_eq!(header.extensions.bitmaps, Some(Ok(bitmaps)));
    assert_eq!(header.encode(), image);
}

/// Kind of an error and file offset of the field.
fn kind_and_offset(error: &Error) -> (&'static str, Option<u64>) {
    let at = match error {
        Error::Corrupt(fault) => Some(fault.at),
        Error::Limit { at, .. } | Error::Unsupported { at, .. } => *at,
        _ => None,
    };
    (error.kind().as_str(), at)
}

/// Parses [`V3`] with some fields changed: offset, width in bytes and value of each.
fn changed(changes: &[(usize, usize, u64)]) -> Result<Header> {
    let mut image = bytes(V3);
    for &(at, width, value) in changes {
        image[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
    }
    parse(&image, 12, V3_FILE_LEN)
}

#[test]
fn invalid_fields() {
    for (at, width, value, kind, offset) in [
        (0, 4, 0, "invalid-field", 0),
        (4, 4, 1, "unsupported", 4),
        (4, 4, 4, "unsupported", 4),
        (8, 8, 104, "invalid-field", 8),
        (8, 8, 4089, "out-of-bounds", 8),
        (8, 8, u64::MAX, "out-of-bounds", 8),
        (16, 4, 1024, "invalid-field", 16),
        (20, 4, 8, "invalid-field", 20),
        (20, 4, 22, "invalid-field", 20),
        (24, 8, 1 << 63, "limit", 24),
        (24, 8, (2 << 20) + 1, "invalid-field", 36),
        (32, 4, 3, "invalid-field", 32),
        (36, 4, 0, "invalid-field", 36),
        (36, 4, MAX_L1_ENTRIES + 1, "limit", 36),
        (40, 8, 0, "overlap", 40),
        (40, 8, 0x2e00, "invalid-field", 40),
        (40, 8, 0x4000, "out-of-bounds", 40),
        (48, 8, 0x1200, "invalid-field", 48),
        (48, 8, i64::MAX as u64 & !4095, "out-of-bounds", 48),
        (56, 4, 2049, "limit", 56),
        (72, 8, 1 << 3, "invalid-field", 104),
        (72, 8, 1 << 4, "invalid-field", 20),
        (72, 8, 1 << 5, "unsupported", 72),
        (72, 8, 1 << 63, "unsupported", 72),
        (96, 4, 7, "invalid-field", 96),
        (100, 4, 96, "invalid-field", 100),
        (100, 4, 100, "invalid-field", 100),
        (100, 4, 108, "invalid-field", 100),
        (100, 4, 4104, "invalid-field", 100),
        (104, 1, 1, "invalid-field", 104),
        (104, 1, 2, "unsupported", 104),
        // The backing format extension becomes a data file name, and too long.
        (112, 4, 0x4441_5441, "invalid-field", 72),
        (116, 4, 17, "out-of-bounds", 116),
    ] {
        let error = changed(&[(at, width, value)]).unwrap_err();
        assert_eq!(kind_and_offset(&error), (kind, Some(offset)), "{value:#x} at {at}: {error}");
    }
}

#[test]
fn largest_and_smallest_valid_values() {
    for (at, width, value) in [
        (8, 8, 0),
        (8, 8, 112),
        (8, 8, 4088),
        (16, 4, 1023),
        (16, 4, 0),
        (24, 8, 2 << 20),
        (24, 8, 0),
        (36, 4, MAX_L1_ENTRIES),
        (48, 8, i64::MAX as u64 & !0x1fff),
        (56, 4, 2048),
        // The snapshot table and the bitmaps are not needed for the active state.
        (60, 4, u32::MAX.into()),
        (64, 8, u64::MAX),
        (112, 4, 0x2385_2875),
        (72, 8, 0b11),
        (80, 8, u64::MAX),
        (88, 8, u64::MAX),
        (96, 4, 6),
        (105, 4, u64::MAX),
        (116, 4, 16),
    ] {
        changed(&[(at, width, value)]).unwrap();
    }
    // A header as long as its cluster, with no room for a name.
    changed(&[(8, 8, 0), (100, 4, 4096)]).unwrap();
    let short_name = changed(&[(16, 4, 1)]).unwrap().backing_file;
    assert_eq!(short_name, Some(Name::from("b")));
    let small_clusters = changed(&[(72, 8, 1 << 4), (20, 4, 13), (40, 8, 0x2000)]).unwrap_err();
    assert_eq!(kind_and_offset(&small_clusters), ("invalid-field", Some(20)));
    // A disk of size 0 needs no L1 table.
    changed(&[(24, 8, 0), (36, 4, 0), (40, 8, 0)]).unwrap();
    changed(&[(72, 8, 1 << 3), (104, 1, 1)]).unwrap();
}

#[test]
fn unknown_features_have_the_name_in_the_image() {
    let mut header = parse(&bytes(V3), 12, V3_FILE_LEN).unwrap();
    header.incompatible = Incompatible::from_bits_retain(0x60);
    header.extensions.features = vec![
        Feature { kind: 1, bit: 6, name: "other kind".into() },
        Feature { kind: 0, bit: 5, name: "time\n".into() },
    ];
    let error = parse(&header.encode(), 12, V3_FILE_LEN).unwrap_err();
    assert_eq!(kind_and_offset(&error), ("unsupported", Some(72)));
    assert!(error.to_string().ends_with(r"incompatible feature 5 (time\n), 6"), "{error}");
}

#[test]
fn truncated_headers_are_refused() {
    let mut image = bytes(V3);
    let header_len = image.len();
    image.resize(V3_FILE_LEN as usize, 0);
    let read = |len: u64| {
        let file: Arc<dyn ReadAt> = Arc::new(MemFile::from(image[..len as usize].to_vec()));
        Header::read(&file, &Limits::default()).map_err(|error| error.kind().as_str())
    };
    for len in 0..V3_L1 + 8 {
        assert_eq!(read(len), Err("out-of-bounds"), "{len}");
    }
    read(V3_L1 + 8).unwrap();
    for len in 0..header_len {
        let error = Header::parse(&image[..len], V3_FILE_LEN, &Limits::default()).unwrap_err();
        assert_eq!(error.kind().as_str(), "out-of-bounds", "{len}");
    }
    Header::parse(&image[..header_len], V3_FILE_LEN, &Limits::default()).unwrap();
}

#[test]
fn a_header_of_version_2_has_72_bytes() {
    let mut header = bytes(V2);
    header[8..20].fill(0);
    let parse = |len| Header::parse(&header[..len], 2048, &Limits::default()).map_err(|error| error.kind().as_str());
    assert_eq!(parse(71).unwrap_err(), "out-of-bounds");
    assert_eq!(parse(72).unwrap().version, 2);
}

fn names(max_len: usize) -> impl Strategy<Value = Option<Name>> {
    prop::option::of(prop::collection::vec(1u8.., 1..=max_len).prop_map(|name| Name::from(&name[..])))
}

prop_compose! {
    fn extensions()(
        backing_format in names(15),
        data_file in names(60),
        crypto in prop::option::of((any::<u64>(), any::<u64>()).prop_map(|(offset, len)| Ok(CryptoHeader { offset, len, at: 0 }))),
        features in prop::collection::vec((any::<u8>(), any::<u8>(), names(46)), 0..4),
        bitmaps in prop::option::of((any::<u32>(), any::<u64>(), any::<u64>())),
    ) -> Extensions {
        let named = |(kind, bit, name): (u8, u8, Option<Name>)| Feature { kind, bit, name: name.unwrap_or_default() };
        Extensions {
            backing_format,
            data_file,
            crypto,
            features: features.into_iter().map(named).collect(),
            bitmaps: bitmaps.map(|(count, len, offset)| Ok(BitmapDirectory { count, len, offset, at: 0 })),
        }
    }
}

prop_compose! {
    /// Valid headers, with tables below 1 << 40.
    fn headers()(
        (version, cluster_bits, refcount_order) in (2u32..=3, 10u32..=21, 0u32..=6),
        (size, more_l1, backing_file) in (0u64..1 << 34, 0u32..1000, names(300)),
        (encryption, longer, zstd) in (0usize..3, 0u32..4, any::<bool>()),
        tables in prop::array::uniform3(1u64..1 << 19),
        (refcount_table_clusters, nb_snapshots) in (0u32..4, 0u32..=65536),
        (incompatible, compatible, autoclear) in any::<(u64, u64, u64)>(),
        mut extensions in extensions(),
    ) -> Header {
        let version_3 = version == 3;
        let mut incompatible = Incompatible::from_bits_retain(if version_3 { incompatible & 0b10111 } else { 0 });
        incompatible.set(Incompatible::COMPRESSION_TYPE, version_3 && zstd && longer > 0);
        incompatible.set(Incompatible::EXTENDED_L2, incompatible.contains(Incompatible::EXTENDED_L2) && cluster_bits > 13);
        extensions.data_file = extensions.data_file.filter(|_| incompatible.contains(Incompatible::DATA_FILE));
        let header_length = if version_3 { V3_LENGTH + 8 * longer } else { V2_LENGTH };
        let end = u64::from(header_length) + extensions.encode().len() as u64;
        extensions.locate(end);
        let only_3 = |bits: u64| if version_3 { bits } else { 0 };
        let mut header = Header {
            version,
            backing_file,
            cluster_bits,
            size,
            encryption: [Encryption::None, Encryption::Aes, Encryption::Luks][encryption],
            l1_size: 0,
            l1_table_offset: tables[0] << cluster_bits,
            refcount_table_offset: tables[1] << cluster_bits,
            refcount_table_clusters,
            nb_snapshots,
            snapshots_offset: tables[2] << cluster_bits,
            incompatible,
            compatible: Compatible::from_bits_retain(only_3(compatible)),
            autoclear: Autoclear::from_bits_retain(only_3(autoclear)),
            refcount_order: if version_3 { refcount_order } else { 4 },
            header_length,
            compression: if incompatible.contains(Incompatible::COMPRESSION_TYPE) { Codec::Zstd } else { Codec::Deflate },
            extensions,
        };
        header.l1_size = (header.l1_entries_for(size) as u32 + more_l1).min(MAX_L1_ENTRIES as u32);
        header
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn headers_round_trip(header in headers()) {
        let image = header.encode();
        let back = parse(&image, header.cluster_bits, 1 << 41).unwrap();
        prop_assert_eq!(&back, &header);
        prop_assert_eq!(back.encode(), image);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(
        at in 0usize..200, value in any::<u64>(), cut in 0usize..4096, full in any::<bool>(),
    ) {
        let mut image = bytes(if full { FULL } else { V3 });
        image.resize(4096, 0);
        image[at..at + 8].copy_from_slice(&value.to_be_bytes());
        if let Ok(header) = Header::parse(&image[..cut], value, &Limits::default()) {
            header.encode();
        }
    }
}
