use proptest::prelude::*;

use super::*;
use crate::io::MemFile;

const FILE_LEN: u64 = 1 << 20;

/// A valid header of a file of [`FILE_LEN`] bytes.
fn sample() -> Header {
    Header { backing_file: None, size: 3 << 20, cluster_bits: 12, l2_bits: 9, is_encrypted: false, l1_table_offset: 48 }
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
    let at = "qcow: corrupt image at file offset";
    check(3, &[0], &format!("invalid-field {at} 0x0: magic is 0x51464900, but must be 0x514649fb"));
    check(7, &[2], "unsupported qcow: not supported at file offset 0x4: version 2");
    check(
        24,
        &[0xff; 8],
        &format!(
            "limit qcow: size at file offset 0x18 is {}, above the limit of {} (virtual-size)",
            u64::MAX,
            i64::MAX as u64 & !511
        ),
    );
    check(32, &[8], &format!("invalid-field {at} 0x20: cluster_bits is 8, outside 9..=16"));
    check(32, &[17], &format!("invalid-field {at} 0x20: cluster_bits is 17, outside 9..=16"));
    check(33, &[5], &format!("invalid-field {at} 0x21: l2_bits is 5, outside 6..=13"));
    check(33, &[14], &format!("invalid-field {at} 0x21: l2_bits is 14, outside 6..=13"));
    check(39, &[2], "unsupported qcow: not supported at file offset 0x24: encryption method 2");
    check(47, &[47], &format!("overlap {at} 0x28: l1_table_offset points to 0x2f, which overlaps the header"));
    check(
        40,
        &[0x80],
        &format!(
            "out-of-bounds {at} 0x28: l1_table_offset is out of bounds: 16 bytes at 0x8000000000000030, file length 0x100000"
        ),
    );
    // An L1 table of a disk of 512 TiB, and of 2 PiB.
    check(
        25,
        &[1, 0xff],
        &format!(
            "out-of-bounds {at} 0x28: l1_table_offset is out of bounds: 2143289360 bytes at 0x30, file length 0x100000"
        ),
    );
    check(
        25,
        &[8],
        "limit qcow: number of L1 entries for the size at file offset 0x18 is 1073741826, above the limit of 268435455",
    );
}

#[test]
fn backing_file_names_are_within_the_file() {
    let name = Name::from("base");
    let header = Header { backing_file: Some(name), l1_table_offset: 56, ..sample() };
    assert_eq!(patched(&header, &[]).unwrap(), header);
    let none = Header { backing_file: None, ..header.clone() };
    for part in [(15, &[0][..]), (19, &[0])] {
        assert_eq!(patched(&header, &[part]).unwrap(), none);
    }
    // The longest name.
    assert!(patched(&header, &[(18, &[3, 0xff])]).is_ok());
    for (at, part, kind) in [
        (18, &[4][..], "invalid-field"),
        (8, &[0x80], "out-of-bounds"),
        (13, &[0x0f, 0xff, 0xfd], "out-of-bounds"),
        (15, &[47], "overlap"),
    ] {
        assert_eq!(patched(&header, &[(at, part)]).unwrap_err().kind().as_str(), kind, "{at} {part:?}");
    }
}

#[test]
fn encryption_and_the_time_are_not_needed() {
    assert_eq!(patched(&sample(), &[(39, &[1])]).unwrap(), Header { is_encrypted: true, ..sample() });
    assert_eq!(patched(&sample(), &[(20, &[0xff; 4]), (34, &[0xff; 2])]).unwrap(), sample());
    let empty = Header { size: 0, l1_table_offset: 0, ..sample() };
    assert_eq!(patched(&empty, &[]).unwrap(), empty);
}

#[test]
fn a_truncated_file_is_out_of_bounds() {
    let bytes = sample().encode();
    for len in [0, 3, 47, 48, 63] {
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
        cluster_bits in CLUSTER_BITS,
        l2_bits in L2_BITS,
        (is_encrypted, size, l1_table_offset) in (any::<bool>(), 0u64..1 << 30, 48u64..500_000),
        backing_file in prop::option::of("[a-z]{1,1000}"),
    ) {
        let backing_file = backing_file.map(Name::from);
        let header = Header { backing_file, size, cluster_bits, l2_bits, is_encrypted, l1_table_offset };
        prop_assert_eq!(patched(&header, &[]).unwrap(), header);
    }

    #[test]
    fn arbitrary_fields_do_not_panic(
        parts in prop::collection::vec((2usize..12, prop_oneof![any::<u32>(), Just(!0), Just(0), 0u32..5000]), 0..6),
        file_len in prop_oneof![Just(FILE_LEN), Just(u64::MAX), any::<u64>()],
    ) {
        let mut bytes: [u8; Header::LEN] = sample().encode().try_into().unwrap();
        for (word, value) in parts {
            bytes[word * 4..][..4].copy_from_slice(&value.to_be_bytes());
        }
        if let Ok(header) = Header::parse(&bytes, file_len, &Limits::default()) {
            prop_assert!(header.l1_table_offset + header.shape().l1_entries() * 8 <= file_len);
            let _ = backing_name(&bytes, file_len);
        }
    }
}
