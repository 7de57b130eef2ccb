use proptest::prelude::*;

use super::*;
use crate::io::MemFile;

/// A valid header of a file of [`FILE_LEN`] bytes.
fn sample(kind: Kind) -> Header {
    Header {
        minor_version: 1,
        kind,
        comment: Name::from("a comment"),
        map_offset: 512,
        data_offset: 1024,
        disk_size: 3 << 20,
        block_size: 1 << 20,
        block_extra: 0,
        blocks: 3,
        blocks_allocated: 2,
        uuid: Uuid::from_bytes([1; 16]),
        modification: Uuid::from_bytes([2; 16]),
        linkage: if kind.has_parent() { Uuid::from_bytes([3; 16]) } else { Uuid::nil() },
        parent_modification: Uuid::nil(),
        lchs_sector_size: Some(512),
    }
}

const FILE_LEN: u64 = 4096;

/// Parses `header` with `parts` replaced, each at its offset.
fn patched(header: &Header, parts: &[(usize, &[u8])]) -> Result<Header> {
    let mut bytes = header.encode();
    for (at, part) in parts {
        bytes[*at..at + part.len()].copy_from_slice(part);
    }
    Header::parse(&bytes, FILE_LEN, &Limits::default())
}

#[test]
fn invalid_fields_are_refused_by_name() {
    let word = |at: usize, value: u32, expected: &str| {
        let error = patched(&sample(Kind::Dynamic), &[(at, &value.to_le_bytes())]).unwrap_err();
        assert_eq!(format!("{} {error}", error.kind()), expected);
    };
    let at = "vdi: corrupt image at file offset";
    word(64, 0, &format!("invalid-field {at} 0x40: u32Signature is 0x0, but must be 0xbeda107f"));
    word(68, 2, "unsupported vdi: not supported at file offset 0x44: header version 0.2 (older than 1)");
    word(68, 0x2_0000, "unsupported vdi: not supported at file offset 0x44: header version 2.0");
    word(72, 383, &format!("invalid-field {at} 0x48: cbHeader is 383, outside 384..=4294967295"));
    word(76, 0, &format!("invalid-field {at} 0x4c: u32Type is 0, outside 1..=4"));
    word(76, 5, &format!("invalid-field {at} 0x4c: u32Type is 5, outside 1..=4"));
    word(76, 4, &format!("invalid-field {at} 0x4c: u32Type is 0x4, but must be 1 or 2 if uuidLinkage is nil"));
    word(80, 3, &format!("invalid-field {at} 0x50: fFlags is 0x3, with the reserved bits 0x2 set"));
    word(340, 471, &format!("overlap {at} 0x154: offBlocks points to 0x1d7, which overlaps the header"));
    word(344, 523, &format!("overlap {at} 0x158: offData points to 0x20b, which overlaps the block map"));
    word(376, 0, &format!("invalid-field {at} 0x178: cbBlock is 0, outside 512..=2147483648"));
    word(376, 768, &format!("invalid-field {at} 0x178: cbBlock is 0x300, but must be a power of two"));
    word(376, 1 << 19, &format!("invalid-field {at} 0x170: cbDisk is 3145728, outside 0..=1572864"));
    word(
        384,
        897,
        &format!("out-of-bounds {at} 0x180: cBlocks is out of bounds: 3588 bytes at 0x200, file length 0x1000"),
    );
    word(
        384,
        !0,
        &format!("out-of-bounds {at} 0x180: cBlocks is out of bounds: 17179869180 bytes at 0x200, file length 0x1000"),
    );
    let limits = Limits { virtual_size: (3 << 20) - 1, ..Limits::default() };
    let error = Header::parse(&sample(Kind::Dynamic).encode(), FILE_LEN, &limits).unwrap_err();
    assert_eq!(
        (
            error.kind().as_str(),
            Header::parse(&sample(Kind::Static).encode(), 471, &limits).unwrap_err().kind().as_str()
        ),
        ("limit", "out-of-bounds")
    );
}

#[test]
fn harmless_deviations_are_accepted() {
    let header = sample(Kind::Dynamic);
    // An older header, which ends before the LCHS geometry.
    let old = patched(&header, &[(72, &384u32.to_le_bytes()), (340, &456u32.to_le_bytes())]).unwrap();
    assert_eq!(old, Header { map_offset: 456, lchs_sector_size: None, ..header.clone() });
    assert_eq!(patched(&header, &[(72, &4000u32.to_le_bytes()), (80, &[1]), (0, &[9; 64])]).unwrap(), header);
    assert_eq!(patched(&header, &[(68, &[2])]).unwrap(), Header { minor_version: 2, ..header.clone() });
    assert_eq!(header.warnings(), [""; 0]);
    assert_eq!(patched(&header, &[(388, &[3])]).unwrap().warnings(), [""; 0]);
    for (at, part, warning) in [
        (392, &[0; 16][..], "VirtualBox does not open the image: the UUID is nil"),
        (408, &[0; 16], "VirtualBox does not open the image: the modification UUID is nil"),
        (468, &[0; 4], "VirtualBox does not open the image: the LCHS sector size is not 512"),
        (368, &[0; 8], "VirtualBox does not open the image: the disk is empty"),
        (388, &[4], "VirtualBox does not open the image: more blocks are allocated than the disk has"),
        (424, &[7], "the UUID of a parent is ignored: an image of this type has no parent"),
        (440, &[7], "the UUID of a parent is ignored: an image of this type has no parent"),
    ] {
        assert_eq!(patched(&header, &[(at, part)]).unwrap().warnings(), [warning]);
    }
}

#[test]
fn a_truncated_file_is_out_of_bounds() {
    let bytes = sample(Kind::Dynamic).encode();
    for len in [0, 63, 75, 76, 455, 471, 472, 511, 523] {
        let mut file = bytes.to_vec();
        file.resize(len, 0);
        let error = Header::read(&MemFile::from(file), &Limits::default()).unwrap_err();
        assert_eq!(error.kind().as_str(), "out-of-bounds", "{len}: {error}");
    }
    let mut file = bytes.to_vec();
    file.resize(524, 0);
    assert_eq!(Header::read(&MemFile::from(file), &Limits::default()).unwrap(), sample(Kind::Dynamic));
}

#[test]
fn the_comment_ends_at_the_first_nul() {
    for (text, len) in [(&b"abc\0def"[..], 3), (b"\0", 0), (&[b'x'; 256], 256)] {
        let header = patched(&sample(Kind::Static), &[(84, text)]).unwrap();
        let expected = if len == 3 { &b"abc"[..] } else { &[b'x'; 256][..len] };
        assert_eq!(header.comment.as_bytes(), expected);
    }
    // What follows a comment that fills its field is not part of it.
    let full = patched(&sample(Kind::Static), &[(84, &[b'x'; 256]), (340, &513u32.to_le_bytes())]).unwrap();
    assert_eq!(full.comment.as_bytes(), [b'x'; 256]);
    // A comment is written with a zero at its end, at the expense of its last byte.
    assert_eq!(full.encode()[84 + 254..][..2], *b"x\0");
}

#[test]
fn uuids_are_shown_as_in_virtualbox() {
    let text = "6a37380f-5548-4359-90f4-3bcea33d6cdb";
    let on_disk = [0x0f, 0x38, 0x37, 0x6a, 0x48, 0x55, 0x59, 0x43, 0x90, 0xf4, 0x3b, 0xce, 0xa3, 0x3d, 0x6c, 0xdb];
    let mut bytes = sample(Kind::Dynamic).encode();
    bytes[392..408].copy_from_slice(&on_disk);
    let header = Header::parse(&bytes, FILE_LEN, &Limits::default()).unwrap();
    assert_eq!(header.uuid.to_string(), text);
    assert_eq!(header.encode(), bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn encoded_headers_parse(
        kind in prop::sample::select(Kind::ALL.to_vec()),
        (shift, blocks, allocated, extra) in (9u32..=31, 1u32..=800, any::<u32>(), any::<u32>()),
        (map, gap) in (472u64..800, 0u64..1 << 31),
        short in 0u64..512,
        uuids in any::<[[u8; 16]; 4]>(),
        comment in "[a-z]{0,255}",
    ) {
        let [uuid, modification, linkage, parent_modification] = uuids.map(Uuid::from_bytes);
        prop_assume!(!linkage.is_nil());
        let header = Header {
            kind,
            comment: Name::from(comment),
            map_offset: map,
            data_offset: map + u64::from(blocks) * 4 + gap,
            disk_size: (u64::from(blocks) << shift) - short,
            block_size: 1 << shift,
            block_extra: extra,
            blocks,
            blocks_allocated: allocated,
            uuid,
            modification,
            linkage,
            parent_modification,
            ..sample(kind)
        };
        prop_assert_eq!(Header::parse(&header.encode(), FILE_LEN, &Limits::default()).unwrap(), header);
    }

    #[test]
    fn arbitrary_fields_do_not_panic(
        kind in prop::sample::select(Kind::ALL.to_vec()),
        parts in prop::collection::vec((16usize..118, prop_oneof![any::<u32>(), Just(!0), Just(0), 0u32..5000]), 0..6),
        file_len in prop_oneof![Just(FILE_LEN), Just(u64::MAX), any::<u64>()],
    ) {
        let mut bytes = sample(kind).encode();
        for (word, value) in parts {
            bytes[word * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
        if let Ok(header) = Header::parse(&bytes, file_len, &Limits::default()) {
            prop_assert!(header.map_offset + header.map_len() <= header.data_offset.min(file_len));
            prop_assert!(u64::from(header.blocks) * u64::from(header.block_size) >= header.disk_size);
            header.warnings();
        }
    }
}
