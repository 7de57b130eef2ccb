use proptest::prelude::*;

use super::*;
use crate::format::vhdx::sample::from_hex;
use crate::io::MemFile;

/// The region table that Windows 10 writes for a small BAT.
const WINDOWS: &str = "
    72656769 ae8c6bc6 02000000 00000000
    6677c22d23f600429d64115e9bfd4a08 0000300000000000 00001000 01000000
    06a27c8b90479a4bb8fe575f050f886e 0000200000000000 00001000 01000000";
const FILE_LEN: u64 = 8 * MIB;
const LOG: Range<u64> = MIB..2 * MIB;
const OTHER: Uuid = uuid!("11111111-2222-3333-4444-555555555555");

type Entry = (Uuid, u64, u32, u32);

const VALID: [Entry; 2] = [(BAT, 3 * MIB, MIB as u32, 1), (METADATA, 2 * MIB, MIB as u32, 1)];

/// A table with these entries, encoded independently of [`Regions::encode`].
fn table(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = [&b"regi\0\0\0\0"[..], &(entries.len() as u64).to_le_bytes()].concat();
    for (guid, start, len, required) in entries {
        bytes.extend(guid.to_bytes_le());
        bytes.extend(start.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(required.to_le_bytes());
    }
    bytes.resize(TABLE_LEN, 0);
    seal(&mut bytes);
    bytes
}

/// Reads a file with these two tables.
fn read_both(first: &[u8], second: &[u8]) -> Result<(Regions, Option<String>)> {
    let mut file = vec![0; TABLES_AT[0] as usize];
    file.extend(first);
    file.extend(second);
    Regions::read(&MemFile::from(file), FILE_LEN, &LOG)
}

fn read(entries: &[Entry]) -> Result<Regions> {
    let table = table(entries);
    let (regions, warning) = read_both(&table, &table)?;
    assert_eq!(warning, None);
    Ok(regions)
}

fn region(index: u64, range: Range<u64>) -> Region {
    Region { range: range.start * MIB..range.end * MIB, at: TABLES_AT[0] + 16 + index * 32 }
}

#[test]
fn a_windows_table() {
    let bytes = from_hex(WINDOWS, TABLE_LEN);
    let regions = Regions { bat: region(0, 3..4), metadata: region(1, 2..3), others: Vec::new() };
    assert_eq!(read_both(&bytes, &bytes).unwrap(), (regions.clone(), None));
    assert_eq!(regions.encode(), bytes);
}

#[test]
fn invalid_entries_are_refused_by_name() {
    let refused = |entries: &[Entry], expected: &str| {
        let error = read(entries).unwrap_err();
        assert_eq!(format!("{} {error}", error.kind()), expected);
    };
    let [bat, metadata] = VALID;
    let bat_at = |start| (BAT, start, MIB as u32, 1);
    let at = "vhdx: corrupt image at file offset";
    refused(&[bat], &format!("invalid-field {at} 0x30008: EntryCount is 0x1: the metadata region is missing"));
    refused(&[metadata], &format!("invalid-field {at} 0x30008: EntryCount is 0x1: the BAT region is missing"));
    refused(
        &[bat, metadata, bat],
        &format!("invalid-field {at} 0x30050: Guid is 0x2dc27766: another entry has the same GUID"),
    );
    refused(
        &[bat, (OTHER, 4 * MIB, MIB as u32, 1), metadata],
        "unsupported vhdx: not supported at file offset 0x30030: required region 11111111-2222-3333-4444-555555555555",
    );
    refused(
        &[bat_at(3 * MIB + 4096), metadata],
        &format!("invalid-field {at} 0x30020: FileOffset is 0x301000, not a multiple of 1048576"),
    );
    refused(
        &[(BAT, 3 * MIB, 4096, 1), metadata],
        &format!("invalid-field {at} 0x30028: Length is 0x1000, not a multiple of 1048576"),
    );
    refused(
        &[bat_at(0), metadata],
        &format!("overlap {at} 0x30020: FileOffset points to 0x0, which overlaps the header section"),
    );
    refused(
        &[bat_at(FILE_LEN), metadata],
        &format!(
            "out-of-bounds {at} 0x30020: FileOffset is out of bounds: 1048576 bytes at 0x800000, file length 0x800000"
        ),
    );
    refused(
        &[(BAT, 0xffff_ffff_fff0_0000, 2 << 20, 1), metadata],
        &format!(
            "out-of-bounds {at} 0x30020: FileOffset is out of bounds: 2097152 bytes at 0xfffffffffff00000, file length 0x800000"
        ),
    );
    refused(
        &[bat_at(MIB), metadata],
        &format!("overlap {at} 0x30020: FileOffset points to 0x100000, which overlaps the log"),
    );
    refused(
        &[bat_at(2 * MIB), metadata],
        &format!("overlap {at} 0x30040: FileOffset points to 0x200000, which overlaps the BAT"),
    );
    refused(
        &[bat, (METADATA, 2 * MIB, 2 << 20, 1)],
        &format!("overlap {at} 0x30020: FileOffset points to 0x300000, which overlaps the metadata region"),
    );
    refused(
        &[bat, metadata, (OTHER, 3 * MIB, 1 << 20, 0)],
        &format!("overlap {at} 0x30060: FileOffset points to 0x300000, which overlaps the BAT"),
    );
}

#[test]
fn a_region_that_overlaps_the_start_of_the_log_is_refused() {
    let mut file = vec![0; TABLES_AT[0] as usize];
    file.extend(table(&[(BAT, 2 * MIB, 2 << 20, 1), (METADATA, 5 * MIB, 1 << 20, 1)]).repeat(2));
    let error = Regions::read(&MemFile::from(file), FILE_LEN, &(3 * MIB..5 * MIB)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "vhdx: corrupt image at file offset 0x30020: FileOffset points to 0x300000, which overlaps the log"
    );
}

#[test]
fn unknown_regions_are_accepted_unless_required() {
    let [bat, metadata] = VALID;
    let other = (OTHER, 4 * MIB, 2 << 20, 0);
    // Known regions need not be marked as required: qemu does not.
    let regions = read(&[(METADATA, metadata.1, metadata.2, 0), other, (BAT, bat.1, bat.2, 0)]).unwrap();
    assert_eq!(regions, Regions { bat: region(2, 3..4), metadata: region(0, 2..3), others: vec![region(1, 4..6)] });
}

#[test]
fn a_table_has_at_most_2047_entries() {
    let mut entries: Vec<Entry> = (0..2045).map(|number| (Uuid::from_u128(number), 4 * MIB, 0, 0)).collect();
    entries.extend(VALID);
    assert_eq!(read(&entries).unwrap().others.len(), 2045);
    let full = table(&entries);
    for (count, expected) in [(2048, "is 2048, outside 0..=2047"), (!0u32, "is 4294967295, outside 0..=2047")] {
        let mut table = full.clone();
        table[8..12].copy_from_slice(&count.to_le_bytes());
        seal(&mut table);
        let error = read_both(&table, &table).unwrap_err();
        assert_eq!(error.to_string(), format!("vhdx: corrupt image at file offset 0x30008: EntryCount {expected}"));
        // The first table is valid and is used.
        assert!(read_both(&full, &table).unwrap().1.is_some());
    }
}

#[test]
fn one_table_may_be_damaged() {
    let whole = table(&VALID);
    let mut torn = whole.clone();
    torn[512..].fill(0xaa);
    let zeros = vec![0; TABLE_LEN];
    let mut far = table(&[(BAT, 4 * MIB, MIB as u32, 1), VALID[1]]);
    let damaged = "one of the two region tables is damaged, the other one is used: at file offset";
    for (first, second, at, warning) in [
        (&torn, &whole, TABLES_AT[1], format!("{damaged} 0x30004: Checksum is 0x")),
        (&whole, &torn, TABLES_AT[0], format!("{damaged} 0x40004: Checksum is 0x")),
        (&zeros, &whole, TABLES_AT[1], format!("{damaged} 0x30000: Signature is 0x0, but must be")),
        (&whole, &zeros, TABLES_AT[0], format!("{damaged} 0x40000: Signature is 0x0, but must be")),
        (&whole, &far, TABLES_AT[0], "the two region tables differ, the first one is used".to_owned()),
    ] {
        let (regions, found) = read_both(first, second).unwrap();
        assert_eq!(regions.bat, Region { range: 3 * MIB..4 * MIB, at: at + 16 });
        assert!(found.as_ref().is_some_and(|found| found.starts_with(&warning)), "{found:?}");
    }
    assert!(matches!(read_both(&torn, &zeros).unwrap_err(), Error::Corrupt(fault) if fault.at == 0x30004));
    // Bytes after the entries may differ.
    far = whole.clone();
    far[80..].fill(7);
    seal(&mut far);
    assert_eq!(read_both(&whole, &far).unwrap().1, None);
}

/// Damage that the log repairs or leaves is not of the log.
#[test]
fn a_log_must_not_damage_a_table() {
    let whole = table(&VALID);
    let mut torn = whole.clone();
    torn[512..].fill(0xaa);
    let file = |second: &[u8]| MemFile::from([&vec![0; TABLES_AT[0] as usize][..], &whole, second].concat());
    for (before, after, at) in
        [(&whole, &whole, None), (&torn, &whole, None), (&torn, &torn, None), (&whole, &torn, Some(TABLES_AT[1] + 4))]
    {
        let refused = refuse_damage(&file(before), &file(after)).err().map(|error| match error {
            Error::Corrupt(fault) => fault.at,
            error => panic!("{error}"),
        });
        assert_eq!(refused, at);
    }
}

proptest! {
    #[test]
    fn encoded_tables_parse(mut cuts in prop::array::uniform4(2u64..1 << 43), first_is_bat: bool) {
        cuts.sort_unstable();
        let [a, b, c, d] = cuts;
        let (first, second) = (a..a + (b - a).min(4095), c..c + (d - c).min(4095));
        let (bat, metadata) = if first_is_bat { (first, second) } else { (second, first) };
        let regions = Regions { bat: region(0, bat), metadata: region(1, metadata), others: Vec::new() };
        let mut file = vec![0; TABLES_AT[0] as usize];
        file.extend(regions.encode().repeat(2));
        let read = Regions::read(&MemFile::from(file), d * MIB, &LOG).unwrap();
        prop_assert_eq!(read, (regions, None));
    }

    #[test]
    fn any_entries_are_parsed_or_refused(
        entries in prop::collection::vec((0usize..3, 0u64..10, 0u32..10, 0u32..2), 0..5),
    ) {
        let guids = [BAT, METADATA, OTHER];
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(guid, start, len, required)| (guids[guid], start * MIB, len << 20, required))
            .collect();
        if let Ok(Regions { bat, metadata, others }) = read(&entries) {
            let mut taken = [0; 8];
            taken[..2].fill(1);
            for region in others.iter().chain([&bat, &metadata]) {
                for mib in region.range.start / MIB..region.range.end / MIB {
                    taken[mib as usize] += 1;
                }
            }
            prop_assert!(taken.iter().all(|count| *count <= 1));
        }
    }
}
