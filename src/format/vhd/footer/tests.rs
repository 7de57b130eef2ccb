//! Footers written by qemu-img and Windows, single invalid fields, and damaged footers.

use proptest::prelude::*;
use uuid::uuid;

use super::*;
use crate::io::MemFile;

/// `qemu-img create -f vpc g.vhd 1000M` (10.0.2), up to the padding.
const QEMU: &str = "636f6e6563746978 00000002 00010000 0000000000000200 3292fa83 71656d75 00050003 5769326b 000000003e820000 \
                    000000003e820000 07f0 10 3f 00000003 ffffec72 c5b6f16501a74c8a92f543347027bd63 00";

/// A differencing disk of Windows 10, up to the padding.
const WINDOWS: &str = "636f6e6563746978 00000002 00010000 0000000000000200 2715ab13 77696e20 000a0000 5769326b 0000000000400000 \
                       0000000000400000 0078 04 11 00000004 ffffefc4 722fa4e259c4c6458456ddb430ac4a19 00";

pub(in crate::format::vhd) fn from_hex<const LEN: usize>(hex: &str) -> [u8; LEN] {
    let digits: Vec<u8> = hex.bytes().filter_map(|digit| char::from(digit).to_digit(16)).map(|it| it as u8).collect();
    let mut bytes = [0; LEN];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    bytes
}

fn parse(bytes: &[u8; 512]) -> Result<Footer> {
    Footer::parse(bytes, 0x1000, &Limits::default())
}

#[test]
fn a_qemu_footer() {
    let bytes = from_hex(QEMU);
    let expected = Footer {
        data_offset: 512,
        timestamp: 0x3292_fa83,
        creator_app: *b"qemu",
        creator_version: 0x0005_0003,
        creator_os: *b"Wi2k",
        original_size: 1_048_707_072,
        current_size: 1_048_707_072,
        geometry: Geometry { cylinders: 2032, heads: 16, sectors_per_track: 63 },
        disk_type: DiskType::Dynamic,
        unique_id: uuid!("c5b6f165-01a7-4c8a-92f5-43347027bd63"),
        saved_state: false,
    };
    assert_eq!(parse(&bytes).unwrap(), expected);
    assert_eq!(expected.encode(), bytes);
    assert_eq!(expected.geometry, Geometry::from_sectors(expected.current_size / 512));
}

#[test]
fn a_windows_footer() {
    let bytes = from_hex(WINDOWS);
    let footer = parse(&bytes).unwrap();
    assert_eq!((footer.disk_type, footer.current_size), (DiskType::Differencing, 4 << 20));
    assert_eq!(footer.geometry, Geometry::from_sectors(8192));
    assert_eq!(footer.unique_id.to_string(), "722fa4e2-59c4-c645-8456-ddb430ac4a19");
    assert_eq!(footer.encode(), bytes);
}

#[test]
fn single_invalid_fields() {
    let with = |at: usize, value: &[u8]| {
        let mut bytes: [u8; 512] = from_hex(QEMU);
        bytes[at..at + value.len()].copy_from_slice(value);
        let sum = checksum(&bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
        parse(&bytes)
    };
    for (at, value, expected) in [
        (
            0,
            &b"Conectix"[..],
            "vpc: corrupt image at file offset 0x1000: cookie is 0x436f6e6563746978, but must be \"conectix\"",
        ),
        (12, &[0, 2, 0, 0], "vpc: not supported at file offset 0x100c: version 2.0"),
        (60, &[0, 0, 0, 1], "vpc: corrupt image at file offset 0x103c: disk type is 1, outside 2..=4"),
        (60, &[0, 0, 0, 5], "vpc: corrupt image at file offset 0x103c: disk type is 5, outside 2..=4"),
        (48, &[0xff; 8], "vpc: current size at file offset 0x1030 is 18446744073709551615, above the limit of"),
    ] {
        let error = with(at, value).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    // Ignored fields.
    for (at, value) in [(8, &[0, 0, 0, 3][..]), (14, &[0, 1]), (36, &[0; 4]), (400, &[1])] {
        with(at, value).unwrap();
    }
    let mut bytes = from_hex(QEMU);
    bytes[511] ^= 1;
    assert!(parse(&bytes).unwrap_err().to_string().contains("checksum"));
}

proptest! {
    #[test]
    fn encoded_footers_parse(
        sizes in (0..i64::MAX as u64 & !511, any::<u64>()),
        numbers in (any::<u64>(), any::<u32>(), any::<u32>(), any::<u16>()),
        words in any::<([u8; 4], [u8; 4], [u8; 16], u8, u8, bool)>(),
        disk_type in prop_oneof![Just(DiskType::Dynamic), Just(DiskType::Differencing)],
    ) {
        let footer = Footer {
            data_offset: numbers.0,
            timestamp: numbers.1,
            creator_app: words.0,
            creator_version: numbers.2,
            creator_os: words.1,
            original_size: sizes.1,
            current_size: sizes.0,
            geometry: Geometry { cylinders: numbers.3, heads: words.3, sectors_per_track: words.4 },
            disk_type,
            unique_id: Uuid::from_bytes(words.2),
            saved_state: words.5,
        };
        prop_assert_eq!(parse(&footer.encode()).unwrap(), footer);
    }
}

/// Reads the footers of a file that starts with `first` and ends with `last`, with other bytes in between.
fn read(first: &[u8], last: &[u8]) -> Result<Footers> {
    let bytes = [first, &[1; 4096], last].concat();
    let len = bytes.len() as u64;
    Footers::read(&MemFile::from(bytes), len, &Limits::default())
}

#[test]
fn one_damaged_footer_is_replaced_by_the_other() {
    let footer = Footer::for_tests();
    let good = footer.encode();
    let (mut damaged, mut gone) = (good, good);
    damaged[100] = 1;
    gone.fill(0);
    for (first, last, at, end, warning) in [
        (&good, &good, 4608, Some(4608), None),
        (&damaged, &good, 4608, Some(4608), Some("the copy of the footer at the start of the file is damaged")),
        (&gone, &good, 4608, Some(4608), Some("the copy of the footer at the start of the file is damaged")),
        (&good, &damaged, 0, None, Some("the footer is damaged, its copy at the start of the file is used")),
        (&good, &gone, 0, None, Some("the file does not end with a footer, the copy at the start of the file is used")),
    ] {
        let footers = read(first, last).unwrap();
        assert_eq!((footers.footer, footers.at, footers.end, footers.warning), (footer.clone(), at, end, warning));
    }
    for (first, last) in [(&damaged, &damaged), (&gone, &gone), (&damaged, &gone), (&gone, &damaged)] {
        assert_eq!(read(first, last).unwrap_err().kind().as_str(), "invalid-field");
    }
}

/// A newer version, say, is not read as an older one.
#[test]
fn an_invalid_footer_without_damage_is_not_replaced() {
    let good = Footer::for_tests().encode();
    let mut newer = good;
    newer[13] = 2;
    let sum = checksum(&newer, CHECKSUM_AT);
    newer[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
    for (first, last) in [(&good, &newer), (&newer, &good)] {
        assert_eq!(read(first, last).unwrap_err().kind().as_str(), "unsupported");
    }
}

#[test]
fn contradictory_footers_are_refused() {
    let footer = Footer::for_tests();
    let others = [
        Footer { current_size: 2 << 20, ..footer.clone() },
        Footer { disk_type: DiskType::Fixed, ..footer.clone() },
        Footer { data_offset: 1024, ..footer.clone() },
        Footer { unique_id: Uuid::from_bytes([8; 16]), ..footer.clone() },
        Footer { geometry: Geometry::MAX, ..footer.clone() },
    ];
    for other in others {
        assert_eq!(read(&footer.encode(), &other.encode()).unwrap_err().kind().as_str(), "invalid-field", "{other:?}");
    }
    let conflict = Footer { current_size: 2 << 20, ..footer.clone() };
    let error = read(&footer.encode(), &conflict.encode()).unwrap_err();
    assert!(error.to_string().contains("file offset 0x1230: current size is 0x200000"), "{error}");
    // Fields that may differ.
    for other in [Footer { saved_state: true, ..footer.clone() }, Footer { timestamp: 1, ..footer.clone() }] {
        read(&footer.encode(), &other.encode()).unwrap();
    }
}

#[test]
fn a_fixed_disk_has_one_footer_of_512_bytes_or_511() {
    let fixed = Footer { disk_type: DiskType::Fixed, data_offset: !0, ..Footer::for_tests() };
    let bytes = fixed.encode();
    for (first, last, at) in [(&[][..], &bytes[..], 4096), (&[], &bytes[..511], 4096), (b"conectix", &bytes, 4104)] {
        let footers = read(first, last).unwrap();
        assert_eq!((footers.footer, footers.at, footers.end, footers.warning), (fixed.clone(), at, Some(at), None));
    }
    // Its header offset has no meaning.
    let other = Footer { data_offset: 512, ..fixed.clone() };
    assert_eq!(read(&other.encode(), &bytes).unwrap().footer, fixed);
    // A fixed disk that holds a dynamic image, and one without its footer.
    assert_eq!(read(&Footer::for_tests().encode(), &bytes).unwrap_err().kind().as_str(), "invalid-field");
    assert_eq!(read(&bytes, &[]).unwrap_err().kind().as_str(), "invalid-field");
    for len in [0, 8, 510] {
        let cut = MemFile::from(bytes[..len].to_vec());
        let error = Footers::read(&cut, len as u64, &Limits::default()).unwrap_err();
        assert_eq!(error.kind().as_str(), "out-of-bounds");
    }
    let alone = Footers::read(&MemFile::from(bytes.to_vec()), 512, &Limits::default()).unwrap();
    assert_eq!((alone.at, alone.warning), (0, None));
}
