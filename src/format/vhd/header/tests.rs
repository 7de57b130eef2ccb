//! A header written by qemu-img, and single invalid fields.

use proptest::prelude::*;

use super::*;
use crate::format::vhd::footer::from_hex;

/// `qemu-img create -f vpc g.vhd 1000M` (10.0.2), up to the padding.
const QEMU: &str = "6378737061727365 ffffffffffffffff 0000000000000600 00010000 000001f5 00200000 fffff381";

#[test]
fn a_qemu_header() {
    let bytes = from_hex(QEMU);
    let header = Header::parse(&bytes, 512).unwrap();
    let expected =
        Header { table_offset: 1536, max_table_entries: 501, block_size: 2 << 20, parent: Parent::default() };
    assert_eq!(header, expected);
    assert_eq!(header.encode(), bytes);
    assert_eq!((header.table_len(), header.bitmap_len(), header.capacity()), (2004, 512, 1002 << 20));
}

#[test]
fn bitmaps_are_whole_sectors() {
    for (block_size, bitmap_len) in [(512, 512), (512 << 10, 512), (2 << 20, 512), (4 << 20, 1024), (256 << 20, 65536)]
    {
        let header = Header { table_offset: 0, max_table_entries: 0, block_size, parent: Parent::default() };
        assert_eq!(header.bitmap_len(), bitmap_len);
    }
}

#[test]
fn single_invalid_fields() {
    for (at, value, expected) in [
        (0, &b"cxSparse"[..], "vpc: corrupt image at file offset 0x200: cookie is"),
        (24, &[0, 0, 0, 9], "vpc: not supported at file offset 0x218: header version 0.9"),
        (32, &[0; 4], "vpc: corrupt image at file offset 0x220: block size is 0, outside 512..=268435456"),
        (32, &[0, 0, 1, 0], "vpc: corrupt image at file offset 0x220: block size is 256, outside"),
        (32, &[0x20, 0, 0, 0], "vpc: corrupt image at file offset 0x220: block size is 536870912, outside"),
        (
            32,
            &[0, 0x30, 0, 0],
            "vpc: corrupt image at file offset 0x220: block size is 0x300000, but must be a power of two",
        ),
    ] {
        let mut bytes: [u8; 1024] = from_hex(QEMU);
        bytes[at..at + value.len()].copy_from_slice(value);
        let sum = checksum(&bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
        let error = Header::parse(&bytes, 512).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let mut bytes = from_hex(QEMU);
    bytes[1023] = 1;
    assert!(Header::parse(&bytes, 512).unwrap_err().to_string().contains("checksum"));
}

proptest! {
    #[test]
    fn encoded_headers_parse(
        (table_offset, max_table_entries, timestamp, unique_id) in any::<(u64, u32, u32, [u8; 16])>(),
        shift in 9u32..=28,
        name in "[a-zäß\u{1f4be}]{0,120}",
        locators in prop::collection::vec(any::<([u8; 4], u32, u32, u64)>(), 0..=8),
    ) {
        let locators = locators.into_iter().enumerate().map(|(index, (platform, space, len, offset))| {
            let platform = platform.map(|byte| byte | 1);
            Locator { platform, space, len: len.max(1), offset, at: 512 + 576 + index as u64 * 24 }
        });
        let parent = Parent {
            unique_id: Uuid::from_bytes(unique_id),
            timestamp,
            name: Name::from(name.as_str()),
            locators: locators.collect(),
        };
        let header = Header { table_offset, max_table_entries, block_size: 1 << shift, parent };
        prop_assert_eq!(Header::parse(&header.encode(), 512).unwrap(), header);
    }
}
