use proptest::prelude::*;

use super::*;
use crate::io::MemFile;

const FILE_LEN: u64 = 4096;

/// A valid header of a file of [`FILE_LEN`] bytes.
fn sample() -> Header {
    Header::new(8, 24, 3, 8)
}

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
    let check = |at: usize, part: &[u8], expected: &str| {
        let error = patched(&sample(), &[(at, part)]).unwrap_err();
        assert_eq!(format!("{} {error}", error.kind()), expected);
    };
    let at = "parallels: corrupt image at file offset";
    check(
        15,
        b"!",
        &format!(
            "invalid-field {at} 0x0: magic is 0x46756f6874695700, but must be the start of \"WithoutFreeSpace\" or \"WithouFreSpacExt\""
        )
        .replace("0x46756f6874695700", &format!("{:#x}", u64::from_le_bytes(*b"WithouFr"))),
    );
    check(16, &[3], "unsupported parallels: not supported at file offset 0x10: version 3");
    check(28, &[0], &format!("invalid-field {at} 0x1c: tracks is 0, outside 1..=8388607"));
    check(31, &[1], &format!("invalid-field {at} 0x1c: tracks is 16777224, outside 1..=8388607"));
    check(
        33,
        &[4],
        &format!("out-of-bounds {at} 0x20: nb_bat_entries is out of bounds: 4108 bytes at 0x40, file length 0x1000"),
    );
    check(36, &[25], &format!("invalid-field {at} 0x24: nb_sectors is 25, outside 0..=24"));
    check(
        43,
        &[1],
        "limit parallels: nb_sectors at file offset 0x24 is 72057594037927960, above the limit of 18014398509481983 (virtual-size)",
    );
}

#[test]
fn the_largest_cluster_is_accepted() {
    let largest = patched(&sample(), &[(28, &8_388_607_u32.to_le_bytes())]).unwrap();
    assert_eq!(largest.cluster_size(), 8_388_607 * 512);
}

#[test]
fn a_stated_data_area_is_after_the_bat() {
    let at = |sector| Header::new(8, 8 * 200, 200, sector);
    let end = at(0).bat_end();
    assert!(end > 512);
    // It follows the BAT in a new image, whose file has no cluster yet.
    assert!(at(0).has_data_area(end));
    assert!(!at(1).has_data_area(4096) && !at(8).has_data_area(4095) && at(8).has_data_area(4096));
}

#[test]
fn the_geometry_has_the_cylinders_of_the_disk() {
    let header = Header::new(8, 24 * 512 + 511, 2000, 8);
    assert_eq!(header.encode()[24..28], 24_u32.to_le_bytes());
}

#[test]
fn the_magic_decides_the_unit_of_the_bat_and_the_width_of_the_size() {
    let old = patched(&sample(), &[(0, b"WithoutFreeSpace"), (40, &[0xff; 4]), (28, &[63])]).unwrap();
    assert_eq!((old.unit, old.sectors, old.unit_len(), old.cluster_size()), (Unit::Sectors, 24, 512, 63 * 512));
    assert_eq!((sample().unit_len(), sample().bat_end(), sample().data_offset()), (4096, 76, 4096));
    // Without an offset, the data area follows the BAT.
    assert_eq!(patched(&sample(), &[(48, &[0])]).unwrap().data_offset(), 4096);
    let old = patched(&sample(), &[(0, b"WithoutFreeSpace"), (48, &[0])]).unwrap();
    assert_eq!(old.data_offset(), 512);
}

#[test]
fn states_that_do_not_affect_reading_are_told() {
    assert!(!sample().is_open() && sample().warnings().is_empty());
    let open = patched(&sample(), &[(44, &OPEN.to_le_bytes())]).unwrap();
    assert!(open.is_open() && open.warnings().is_empty());
    let old = patched(&sample(), &[(44, &[0; 4])]).unwrap();
    assert!(!old.is_open() && old.warnings().is_empty());
    for (at, part, warning) in [
        (44, &[1, 0, 0, 0][..], "unknown state of the image: in_use is 0x1"),
        (52, &[1], "the image is marked as empty; the marked clusters are read as they are"),
    ] {
        assert_eq!(patched(&sample(), &[(at, part)]).unwrap().warnings(), [warning]);
    }
}

#[test]
fn a_truncated_file_is_out_of_bounds() {
    let bytes = sample().encode();
    for len in [0, 15, 63, 64, 75] {
        let mut file = bytes.to_vec();
        file.resize(len, 0);
        let error = Header::read(&MemFile::from(file), &Limits::default()).unwrap_err();
        assert_eq!(error.kind().as_str(), "out-of-bounds", "{len}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn encoded_headers_parse(
        is_old in any::<bool>(),
        (cluster_sectors, bat_entries, short) in (1u32..=8_388_607, 1u32..=1000, 0u64..512),
        (in_use, data_sector, flags, extension_sector) in (any::<u32>(), any::<u32>(), any::<u32>(), any::<u64>()),
    ) {
        let unit = if is_old { Unit::Sectors } else { Unit::Clusters };
        let sectors = (u64::from(cluster_sectors) * u64::from(bat_entries)).saturating_sub(short);
        prop_assume!(!is_old || sectors <= u32::MAX.into());
        let header = Header { unit, cluster_sectors, bat_entries, sectors, in_use, data_sector, flags, extension_sector };
        prop_assert_eq!(patched(&header, &[]).unwrap(), header);
    }

    #[test]
    fn arbitrary_fields_do_not_panic(
        parts in prop::collection::vec((4usize..16, prop_oneof![any::<u32>(), Just(!0), Just(0), 0u32..5000]), 0..6),
        file_len in prop_oneof![Just(FILE_LEN), Just(u64::MAX), any::<u64>()],
    ) {
        let mut bytes = sample().encode();
        for (word, value) in parts {
            bytes[word * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
        if let Ok(header) = Header::parse(&bytes, file_len, &Limits::default()) {
            prop_assert!(header.bat_end() <= file_len && header.clusters() <= header.bat_entries.into());
            prop_assert!(header.virtual_size() < 1 << 63);
            prop_assert!(header.data_offset() > 0 && header.warnings().len() <= 2);
        }
    }
}
