//! Headers written by qemu-img and VirtualBox, single invalid fields, and truncation.

use proptest::prelude::*;

use super::*;

/// Header by `qemu-img create -f vmdk a.vmdk 1000M` (10.0.2), without the padding.
const SPARSE: &str = "4b444d56 01000000 03000000 00401f0000000000 8000000000000000 0100000000000000 1400000000000000 \
                      00020000 1500000000000000 9600000000000000 8001000000000000 00 0a200d0a 0000";

/// Header by `qemu-img create -f vmdk -o zeroed_grain=on z.vmdk 10M`, without the padding.
const ZEROED: &str = "4b444d56 02000000 07000000 0050000000000000 8000000000000000 0100000000000000 1400000000000000 \
                      00020000 1500000000000000 1a00000000000000 8000000000000000 00 0a200d0a 0000";

/// Header of a stream of 5 GiB exported by VirtualBox 7. Its footer differs only in `gdOffset`, which is 1024.
const STREAM: &str = "4b444d56 03000000 01000300 0000a00000000000 8000000000000000 0100000000000000 0200000000000000 \
                      00020000 0000000000000000 ffffffffffffffff 8000000000000000 00 0a200d0a 0100";

fn bytes(hex: &str) -> [u8; 512] {
    let digits: Vec<u8> = hex.bytes().filter_map(|digit| char::from(digit).to_digit(16)).map(|it| it as u8).collect();
    let mut bytes = [0; 512];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    bytes
}

fn parse(bytes: &[u8]) -> Result<Header> {
    Header::parse(bytes, 0, &Limits::default())
}

#[test]
fn qemu_sparse_header() {
    let header = parse(&bytes(SPARSE)).unwrap();
    let expected = Header {
        version: 1,
        flags: Flags::NEWLINE_TEST | Flags::REDUNDANT,
        capacity: 2_048_000,
        grain_size: 128,
        descriptor: Some(512..21 * 512),
        entries_per_table: 512,
        redundant_directory: Some(Directory::At(21)),
        directory: Directory::At(150),
        overhead: 384,
        unclean: false,
    };
    assert_eq!(header, expected);
    assert_eq!(header.encode(), bytes(SPARSE));
    assert_eq!((header.grain_bytes(), header.table_bytes(0), header.table_coverage()), (65536, 2048, 32 << 20));
    // 1000 MiB in tables of 32 MiB.
    assert_eq!((header.directory_entries(), header.redundant_directory_sector()), (32, Some(21)));
    assert_eq!([30, 31, 32, u64::MAX].map(|index| header.table_bytes(index)), [2048, 128 * 4, 0, 0]);
    assert!(!header.is_compressed());
}

#[test]
fn qemu_zeroed_grain_header() {
    let header = parse(&bytes(ZEROED)).unwrap();
    assert_eq!((header.version, header.flags), (2, Flags::NEWLINE_TEST | Flags::REDUNDANT | Flags::ZEROED_GRAIN));
    assert_eq!(header.encode(), bytes(ZEROED));
}

#[test]
fn virtualbox_stream_header_and_footer() {
    let header = parse(&bytes(STREAM)).unwrap();
    assert_eq!((header.version, header.capacity, header.descriptor.clone()), (3, 10_485_760, Some(512..1536)));
    assert_eq!((header.directory, header.redundant_directory), (Directory::AtEnd, None));
    assert!(header.is_compressed());
    assert_eq!(header.encode(), bytes(STREAM));
    let footer = Header { directory: Directory::At(1024), ..header };
    assert_eq!(Header::parse(&footer.encode(), 0x80000, &Limits::default()).unwrap(), footer);
}

/// The kind of an error and the file offset of its field.
fn blame(error: &Error) -> (&'static str, Option<u64>) {
    let at = match error {
        Error::Corrupt(fault) => Some(fault.at),
        Error::Limit { at, .. } | Error::Unsupported { at, .. } => *at,
        _ => None,
    };
    (error.kind().as_str(), at)
}

/// Parses the header at file offset `at` with changes, each `(offset, width, value)`.
fn parse_changed(hex: &str, changes: &[(usize, usize, u64)], at: u64) -> Result<Header> {
    let mut image = bytes(hex);
    for &(offset, width, value) in changes {
        image[offset..offset + width].copy_from_slice(&value.to_le_bytes()[..width]);
    }
    Header::parse(&image, at, &Limits::default())
}

#[test]
fn invalid_fields_are_refused() {
    for (at, width, value, kind, blamed) in [
        (0, 4, 0, "invalid-field", 0),
        (4, 4, 0, "unsupported", 4),
        (4, 4, 4, "unsupported", 4),
        (8, 4, 1 << 18, "unsupported", 8),
        (8, 4, 1 << 31, "unsupported", 8),
        (8, 4, 1 << 17, "unsupported", 8),
        (8, 4, 1 << 16, "invalid-field", 77),
        (8, 4, 3 << 16, "invalid-field", 77),
        (12, 8, u64::MAX, "invalid-field", 12),
        (12, 8, MAX_SECTORS + 1, "invalid-field", 12),
        (20, 8, 0, "invalid-field", 20),
        (20, 8, 96, "invalid-field", 20),
        (20, 8, u64::MAX, "invalid-field", 20),
        (20, 8, MAX_GRAIN_SIZE * 2, "limit", 20),
        (20, 8, 1 << 63, "limit", 20),
        (28, 8, MAX_SECTORS + 1, "invalid-field", 28),
        (28, 8, u64::MAX, "invalid-field", 28),
        (36, 8, MAX_SECTORS, "invalid-field", 36),
        (36, 8, u64::MAX, "invalid-field", 36),
        (44, 4, 0, "invalid-field", 44),
        (44, 4, u32::MAX.into(), "invalid-field", 44),
        (44, 4, (1 << 20) + 1, "invalid-field", 44),
        (48, 8, MAX_SECTORS + 1, "invalid-field", 48),
        (56, 8, MAX_SECTORS + 1, "invalid-field", 56),
        (56, 8, u64::MAX - 1, "invalid-field", 56),
        (73, 1, 0x0d, "invalid-field", 73),
        (73, 4, 0x0a0a_200a, "invalid-field", 73),
        (76, 1, 0, "invalid-field", 73),
        (77, 2, 1, "invalid-field", 77),
        (77, 2, 2, "unsupported", 77),
    ] {
        // The same in a footer.
        for base in [0, 0x12_3400] {
            let error = parse_changed(SPARSE, &[(at, width, value)], base).unwrap_err();
            assert_eq!(blame(&error), (kind, Some(base + blamed)), "{value:#x} at {at}: {error}");
        }
    }
    for (at, width, value, kind) in [(20, 8, 8192, "limit"), (77, 2, 0, "invalid-field"), (77, 2, 3, "unsupported")] {
        let error = parse_changed(STREAM, &[(at, width, value)], 0).unwrap_err();
        assert_eq!(blame(&error), (kind, Some(at as u64)), "{value:#x} at {at}: {error}");
    }
    let limits = Limits { virtual_size: 2_048_000 * 512 - 1, ..Limits::default() };
    let error = Header::parse(&bytes(SPARSE), 0, &limits).unwrap_err();
    assert_eq!(blame(&error), ("limit", Some(12)));
}

#[test]
fn limits_of_valid_fields() {
    for (at, width, value) in [
        (4, 4, 3),
        (8, 4, 0xffff),
        (12, 8, 0),
        (12, 8, MAX_SECTORS),
        (20, 8, 1),
        (20, 8, MAX_GRAIN_SIZE),
        (28, 8, MAX_SECTORS - 20),
        (36, 8, MAX_SECTORS - 1),
        (44, 4, 1),
        (44, 4, 1 << 20),
        (48, 8, u64::MAX),
        (48, 8, MAX_SECTORS),
        (56, 8, u64::MAX),
        (56, 8, MAX_SECTORS),
        (64, 8, u64::MAX),
        (500, 8, u64::MAX),
    ] {
        parse_changed(SPARSE, &[(at, width, value)], 0).unwrap();
    }
    parse_changed(STREAM, &[(20, 8, 4096)], 0).unwrap();
    // Compressed grains without markers are unusual, but valid.
    parse_changed(STREAM, &[(8, 4, 0x10001)], 0).unwrap();
    // VirtualBox sets both directory offsets to all ones.
    let stream = parse_changed(STREAM, &[(8, 4, 0x30003), (48, 8, u64::MAX)], 0).unwrap();
    assert_eq!((stream.redundant_directory, stream.redundant_directory_sector()), (Some(Directory::AtEnd), None));
    // Without their flags, the newline test and the redundant directory are ignored.
    let bare = parse_changed(SPARSE, &[(8, 4, 0), (48, 8, 1 << 60), (73, 4, 0)], 0).unwrap();
    assert_eq!(bare.redundant_directory, None);
    // An empty disk has no directory, so any offset is valid.
    let empty = parse_changed(SPARSE, &[(12, 8, 0), (56, 8, 0)], 0).unwrap();
    assert_eq!(empty.directory_entries(), 0);
    let no_descriptor = parse_changed(SPARSE, &[(28, 8, 0), (36, 8, u64::MAX)], 0).unwrap();
    assert_eq!(no_descriptor.descriptor, None);
    assert!(parse_changed(SPARSE, &[(72, 1, 0xff)], 0).unwrap().unclean);
    // The largest possible directory.
    let largest = parse_changed(SPARSE, &[(12, 8, MAX_SECTORS), (20, 8, 1), (44, 4, 1)], 0).unwrap();
    assert_eq!(largest.directory_entries(), MAX_SECTORS);
}

#[test]
fn a_transfer_in_text_mode_is_detected() {
    let text: Vec<u8> =
        bytes(SPARSE).iter().flat_map(|&byte| if byte == b'\n' { vec![b'\r', byte] } else { vec![byte] }).collect();
    let error = parse(&text).unwrap_err();
    assert!(error.to_string().contains("text mode"), "{error}");
    assert!(error.to_string().contains("0xd0a200d"), "{error}");
}

#[test]
fn truncated_headers_are_refused() {
    for len in 0..512 {
        assert_eq!(parse(&bytes(SPARSE)[..len]).unwrap_err().kind().as_str(), "out-of-bounds", "{len}");
    }
}

fn directories() -> impl Strategy<Value = Directory> {
    prop_oneof![(1..=MAX_SECTORS).prop_map(Directory::At), Just(Directory::AtEnd)]
}

prop_compose! {
    fn headers()(
        (version, flags, compressed, markers) in (1u32..=3, any::<u16>(), any::<bool>(), any::<bool>()),
        (capacity, grain_bits, entries_per_table) in (0..=MAX_SECTORS, 0u32..=21, 1..=MAX_TABLE_ENTRIES),
        descriptor in prop::option::of((1..MAX_SECTORS / 2, 1..MAX_SECTORS / 2)),
        (redundant, directory) in (prop::option::of(directories()), directories()),
        (overhead, unclean) in any::<(u64, bool)>(),
    ) -> Header {
        let mut flags = Flags::from_bits_retain(flags.into());
        flags.set(Flags::COMPRESSED, compressed);
        flags.set(Flags::MARKERS, compressed && markers);
        Header {
            version,
            flags,
            capacity,
            grain_size: 1 << if compressed { grain_bits.min(12) } else { grain_bits },
            descriptor: descriptor.map(|(start, len)| start * SECTOR..(start + len) * SECTOR),
            entries_per_table,
            redundant_directory: redundant.filter(|_| flags.contains(Flags::REDUNDANT)),
            directory,
            overhead,
            unclean,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn headers_round_trip(header in headers()) {
        let image = header.encode();
        let back = parse(&image).unwrap();
        let last = back.directory_entries().saturating_sub(1);
        prop_assert_eq!(back.table_bytes(last) == 0, back.capacity == 0);
        prop_assert_eq!(back.table_bytes(last + 1), 0);
        prop_assert_eq!(&back, &header);
        prop_assert_eq!(back.encode(), image);
        prop_assert!(u128::from(back.directory_entries()) * u128::from(back.table_coverage()) >= u128::from(back.capacity_bytes()));
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(
        fields in any::<[u8; 80]>(), from in 0usize..80, stream in any::<bool>(), at in any::<u32>(),
    ) {
        let mut image = bytes(if stream { STREAM } else { SPARSE });
        image[from..80].copy_from_slice(&fields[from..]);
        if let Ok(header) = Header::parse(&image, at.into(), &Limits::default()) {
            prop_assert_eq!(Header::parse(&header.encode(), 0, &Limits::default()).unwrap(), header);
        }
    }

    #[test]
    fn arbitrary_fields_do_not_panic(at in 0usize..80, value in any::<u64>(), shift in 0u32..64) {
        if let Ok(header) = parse_changed(SPARSE, &[(at, 8, value >> shift)], 0) {
            prop_assert_eq!(parse(&header.encode()).unwrap(), header);
        }
    }
}
