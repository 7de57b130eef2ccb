use proptest::prelude::*;

use super::*;
use crate::io::MemFile;

const FILE_LEN: u64 = 1 << 20;

/// A valid header of a file of [`FILE_LEN`] bytes.
fn sample() -> Header {
    Header {
        cluster_bits: 12,
        table_size: 2,
        header_size: 1,
        need_check: false,
        l1_table_offset: 4096,
        image_size: 3 << 20,
        backing: None,
    }
}

/// Reads `header` with `parts` replaced, each at its offset.
fn patched(header: &Header, parts: &[(usize, &[u8])]) -> Result<Header> {
    let mut bytes = header.encode();
    bytes.resize(FILE_LEN as usize, 0);
    for (at, part) in parts {
        bytes[*at..at + part.len()].copy_from_slice(part);
    }
    Header::read(&MemFile::from(bytes), &Limits::default())
}

#[test]
fn invalid_fields_are_refused_by_name() {
    let check = |at: usize, part: &[u8], expected: &str| {
        let error = patched(&sample(), &[(at, part)]).unwrap_err();
        assert_eq!(format!("{} {error}", error.kind()), expected);
    };
    let at = "qed: corrupt image at file offset";
    check(0, b"QEDX", &format!("invalid-field {at} 0x0: magic is 0x58444551, but must be 0x444551"));
    check(4, &[0; 4], &format!("invalid-field {at} 0x4: cluster_size is 0, outside 4096..=67108864"));
    check(4, &[0, 0x30, 0, 0], &format!("invalid-field {at} 0x4: cluster_size is 0x3000, but must be a power of two"));
    check(4, &[0, 0, 0, 8], &format!("invalid-field {at} 0x4: cluster_size is 134217728, outside 4096..=67108864"));
    check(8, &[0], &format!("invalid-field {at} 0x8: table_size is 0, outside 1..=16"));
    check(8, &[3], &format!("invalid-field {at} 0x8: table_size is 0x3, but must be a power of two"));
    check(8, &[32], &format!("invalid-field {at} 0x8: table_size is 32, outside 1..=16"));
    check(12, &[0], &format!("invalid-field {at} 0xc: header_size is 0, outside 1..=4294967295"));
    check(12, &[2], &format!("overlap {at} 0x28: l1_table_offset points to 0x1000, which overlaps the header"));
    check(16, &[8], "unsupported qed: not supported at file offset 0x10: features 0x8");
    check(23, &[0x80], "unsupported qed: not supported at file offset 0x10: features 0x8000000000000000");
    check(40, &[1], &format!("invalid-field {at} 0x28: l1_table_offset is 0x1001, not a multiple of 4096"));
    check(
        40,
        &[0, 0xf0, 0x0f],
        &format!(
            "out-of-bounds {at} 0x28: l1_table_offset is out of bounds: 8192 bytes at 0xff000, file length 0x100000"
        ),
    );
    check(48, &[1], &format!("invalid-field {at} 0x30: image_size is 0x300001, not a multiple of 512"));
    // 1024 entries of the L1 table, of the L2 tables, and clusters of 4 KiB.
    check(53, &[1], &format!("invalid-field {at} 0x30: image_size is 1099514773504, outside 0..=4294967296"));
    let largest = patched(&sample(), &[(48, &(4_u64 << 30).to_le_bytes())]).unwrap();
    assert_eq!(largest.image_size, 4 << 30);
    check(
        55,
        &[0x80],
        "limit qed: image_size at file offset 0x30 is 9223372036857921536, above the limit of 9223372036854775296 (virtual-size)",
    );
}

#[test]
fn backing_file_names_are_within_the_header() {
    let header = Header { backing: Some(Backing { name: Name::from("base"), is_raw: true }), ..sample() };
    assert_eq!(patched(&header, &[]).unwrap(), header);
    let other = Header { backing: Some(Backing { name: Name::from("base"), is_raw: false }), ..sample() };
    assert_eq!(patched(&header, &[(16, &[1])]).unwrap(), other);
    // The name is there, but the feature is not.
    assert_eq!(patched(&header, &[(16, &[4])]).unwrap(), sample());
    for (at, part, kind) in [
        (60, &[0; 4][..], "invalid-field"),
        (60, &[0, 4], "invalid-field"),
        (56, &[0xfd, 0x0f], "out-of-bounds"),
        (56, &[0xff; 4], "out-of-bounds"),
        (56, &[63], "overlap"),
    ] {
        assert_eq!(patched(&header, &[(at, part)]).unwrap_err().kind().as_str(), kind, "{at} {part:?}");
    }
    assert!(patched(&header, &[(56, &[0xfc, 0x0f])]).is_ok());
    // The longest name, and no name.
    assert!(patched(&header, &[(60, &[0xff, 3])]).is_ok());
    assert_eq!(sample().encode()[56..64], [0; 8]);
}

#[test]
fn unknown_compatible_features_are_ignored() {
    assert_eq!(patched(&sample(), &[(24, &[0xff; 16])]).unwrap(), sample());
    assert_eq!(patched(&sample(), &[(16, &[2])]).unwrap(), Header { need_check: true, ..sample() });
}

#[test]
fn a_truncated_file_is_out_of_bounds() {
    let bytes = sample().encode();
    for len in [0, 3, 63, 64, 4096, 3 * 4096 - 1] {
        let mut file = bytes.clone();
        file.resize(len, 0);
        let error = Header::read(&MemFile::from(file), &Limits::default()).unwrap_err();
        assert_eq!(error.kind().as_str(), "out-of-bounds", "{len}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn encoded_headers_parse(
        (cluster_bits, table_bits, header_size) in (12u32..=14, 0u32..=3, 1u32..=3),
        (need_check, gap, sectors) in (any::<bool>(), 0u64..10, 0u64..1 << 20),
        backing in prop::option::of(("[a-z]{1,1000}", any::<bool>())),
    ) {
        let header = Header {
            cluster_bits,
            table_size: 1 << table_bits,
            header_size,
            need_check,
            l1_table_offset: (u64::from(header_size) + gap) << cluster_bits,
            image_size: sectors * 512,
            backing: backing.map(|(name, is_raw)| Backing { name: Name::from(name), is_raw }),
        };
        prop_assert_eq!(patched(&header, &[]).unwrap(), header);
    }

    #[test]
    fn arbitrary_fields_do_not_panic(
        parts in prop::collection::vec((1usize..16, prop_oneof![any::<u32>(), Just(!0), Just(0), 0u32..5000]), 0..6),
        file_len in prop_oneof![Just(FILE_LEN), Just(u64::MAX), any::<u64>()],
    ) {
        let mut bytes: [u8; Header::LEN] = sample().encode().try_into().unwrap();
        for (word, value) in parts {
            bytes[word * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
        if let Ok(header) = Header::parse(&bytes, file_len, &Limits::default()) {
            let shape = header.shape();
            prop_assert!(header.l1_table_offset + shape.l2_len() <= file_len);
            prop_assert!(u128::from(shape.l2_coverage()) * u128::from(shape.l2_entries) >= header.image_size.into());
            let _ = header.backing_name(&bytes, file_len);
        }
    }
}
