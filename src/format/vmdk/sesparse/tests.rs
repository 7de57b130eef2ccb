//! The layout of ESXi as reported, single invalid fields, and table entries.

use proptest::prelude::*;

use super::*;
use crate::error::Error;

/// Returns the constant and the volatile header of a disk of `capacity` sectors. As in ESXi, regions are consecutive
/// and multiples of 1 MiB.
pub(crate) fn encode(capacity: u64) -> (SeSparseHeader, [u8; 512], [u8; 512]) {
    const MIB: u64 = 2048;
    let tables = (capacity * SECTOR).div_ceil(TABLE_COVERAGE);
    let directory = (tables * 8).div_ceil(SECTOR).next_multiple_of(MIB);
    let table_sectors = (tables * 64).next_multiple_of(MIB);
    let bitmap = capacity.div_ceil(8).div_ceil(8).div_ceil(SECTOR).next_multiple_of(MIB);
    let mut fields = vec![MAGIC, VERSION, capacity, 8, 64, 0, 0, 0, 0, 0, 1, 1, 2, 2, MIB, MIB];
    let mut end = 2 * MIB;
    for size in [directory, table_sectors, bitmap, table_sectors, capacity] {
        fields.extend([end, size]);
        end += size;
    }
    let bytes_of = |pair: usize| fields[pair] * SECTOR..(fields[pair] + fields[pair + 1]) * SECTOR;
    let header = SeSparseHeader {
        capacity,
        volatile_header: SECTOR..2 * SECTOR,
        grain_directory: bytes_of(16),
        grain_tables: bytes_of(18),
        grains: bytes_of(24),
    };
    (header, words(&fields), words(&[VOLATILE_MAGIC, 0, 1, 0]))
}

fn words(words: &[u64]) -> [u8; 512] {
    let mut bytes = [0; 512];
    for (chunk, word) in bytes.chunks_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Capacity in sectors: 150 GiB.
const CAPACITY: u64 = 150 << 21;

fn parse_changed(at: usize, value: u64) -> Result<SeSparseHeader> {
    let (_, mut bytes, _) = encode(CAPACITY);
    LittleEndian::write_u64(&mut bytes[at..], value);
    SeSparseHeader::parse(&bytes, &Limits::default())
}

fn blame(error: &Error) -> (&'static str, Option<u64>) {
    let at = match error {
        Error::Corrupt(fault) => Some(fault.at),
        Error::Limit { at, .. } | Error::Unsupported { at, .. } => *at,
        _ => None,
    };
    (error.kind().as_str(), at)
}

#[test]
fn esxi_layout() {
    let (header, bytes, volatile) = encode(CAPACITY);
    assert_eq!(SeSparseHeader::parse(&bytes, &Limits::default()).unwrap(), header);
    header.check_volatile(&volatile).unwrap();
    assert_eq!(header.directory_entries(), 9600);
    assert_eq!(header.grain_directory, 2 << 20..3 << 20);
    assert_eq!(header.table_offset(0).unwrap(), 3 << 20);
    assert_eq!(header.table_offset(9599).unwrap() + TABLE, header.grain_tables.end);
    assert!(header.table_offset(9600).is_err() && header.table_offset(u64::MAX).is_err());
}

#[test]
fn invalid_fields_are_refused() {
    let out_of_range = MAX_SECTORS + 1;
    let mut cases = vec![
        (0, VOLATILE_MAGIC, "invalid-field", 0),
        (8, 0x2_0000_0002, "unsupported", 8),
        (8, 1, "unsupported", 8),
        (16, out_of_range, "invalid-field", 16),
        (16, (16 << 30) * 9, "invalid-field", 136),
        (24, 16, "unsupported", 24),
        (32, 0, "unsupported", 32),
        (40, 1, "unsupported", 40),
        (48, 1, "unsupported", 48),
        (72, 1 << 63, "unsupported", 79),
        (88, 0, "invalid-field", 88),
        (136, 149, "invalid-field", 136),
        (208, 1, "unsupported", 208),
        (504, 1 << 63, "unsupported", 511),
    ];
    for pair in (80..208).step_by(16) {
        cases.push((pair, out_of_range, "invalid-field", pair as u64));
        cases.push((pair + 8, out_of_range - 1, "invalid-field", pair as u64 + 8));
        cases.push((pair + 8, u64::MAX, "invalid-field", pair as u64 + 8));
    }
    for (at, value, kind, blamed) in cases {
        let error = parse_changed(at, value).unwrap_err();
        assert_eq!(blame(&error), (kind, Some(blamed)), "{value:#x} at {at}: {error}");
    }
    for (at, value) in [(136, 150), (88, 2), (16, 0), (152, 0), (200, 0)] {
        parse_changed(at, value).unwrap();
    }
    let (_, bytes, _) = encode(CAPACITY);
    let limits = Limits { virtual_size: CAPACITY * 512 - 1, ..Limits::default() };
    assert_eq!(blame(&SeSparseHeader::parse(&bytes, &limits).unwrap_err()), ("limit", Some(16)));
    for len in 0..512 {
        let error = SeSparseHeader::parse(&bytes[..len], &Limits::default()).unwrap_err();
        assert_eq!(error.kind().as_str(), "out-of-bounds", "{len}");
    }
}

#[test]
fn a_journal_to_replay_is_refused() {
    let (header, bytes, mut volatile) = encode(CAPACITY);
    volatile[24] = 1;
    let error = header.check_volatile(&volatile).unwrap_err();
    assert_eq!(blame(&error), ("unsupported", Some(512 + 24)));
    assert!(error.to_string().contains("journal"), "{error}");
    assert_eq!(blame(&header.check_volatile(&bytes).unwrap_err()), ("invalid-field", Some(512)));
    assert_eq!(blame(&header.check_volatile(&volatile[..511]).unwrap_err()), ("out-of-bounds", Some(512)));
}

#[test]
fn table_entries_are_parsed() {
    assert_eq!(parse_directory_entry(0), Ok(None));
    assert_eq!(parse_directory_entry(0x1000_0000_0000_0000), Ok(Some(0)));
    assert_eq!(parse_directory_entry(0x1000_0000_1234_5678), Ok(Some(0x1234_5678)));
    for wrong in [1, 0x2000_0000_0000_0000, 0x1000_0001_0000_0000, u64::MAX] {
        assert!(matches!(parse_directory_entry(wrong), Err(Problem::Rule { value, .. }) if value == wrong));
    }
    assert_eq!(SeSparseEntry::parse(0), Ok(SeSparseEntry::Unallocated));
    assert_eq!(SeSparseEntry::parse(0x1000_0000_0000_0000), Ok(SeSparseEntry::Unmapped));
    assert_eq!(SeSparseEntry::parse(0x2000_0000_0000_0001), Ok(SeSparseEntry::Zero));
    assert_eq!(SeSparseEntry::parse(0x3000_0000_0000_0000), Ok(SeSparseEntry::Data(0)));
    assert_eq!(SeSparseEntry::parse(0x3abc_1234_5678_9def), Ok(SeSparseEntry::Data(0x0123_4567_89de_fabc)));
    assert_eq!(SeSparseEntry::parse(5), Err(Problem::Reserved { value: 5, bits: 5 }));
    for wrong in [0x4000_0000_0000_0000, u64::MAX] {
        assert!(matches!(SeSparseEntry::parse(wrong), Err(Problem::Rule { value, .. }) if value == wrong));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn headers_round_trip(capacity in 0u64..1 << 40) {
        let (header, bytes, _) = encode(capacity);
        prop_assert_eq!(SeSparseHeader::parse(&bytes, &Limits::default()).unwrap(), header);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(
        capacity in 0..=MAX_SECTORS, parts in prop::collection::vec(any::<(u64, u64)>(), 8),
        shift in 0u32..64, entry in any::<u64>(), cut in 0usize..=512, volatile in any::<[u8; 32]>(),
    ) {
        let mut fields = vec![MAGIC, VERSION, capacity >> shift, 8, 64, 0, 0, 0, 0, 0];
        fields.extend(parts.iter().flat_map(|(offset, size)| [offset >> (shift + 2).min(63), size >> (shift + 2).min(63)]));
        let cut = if entry.is_multiple_of(4) { cut } else { 512 };
        if let Ok(header) = SeSparseHeader::parse(&words(&fields)[..cut], &Limits::default()) {
            prop_assert!(header.directory_entries() * 8 <= header.grain_directory.end - header.grain_directory.start);
            let _ = header.check_volatile(&volatile);
            if let Ok(table) = header.table_offset(entry) {
                prop_assert!(table + TABLE <= header.grain_tables.end);
            }
        }
        let _ = (parse_directory_entry(entry), SeSparseEntry::parse(entry));
    }
}
