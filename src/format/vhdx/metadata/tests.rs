use proptest::prelude::*;

use super::*;
use crate::format::vhdx::sample::from_hex;
use crate::io::MemFile;

/// The table and the items of a fixed disk created by Windows 10.
const WINDOWS_TABLE: &str = "
    6d65746164617461 0000 0500 0000000000000000000000000000000000000000
    3767a1ca36fa434db3b633f0aa44e76b 00000100 08000000 04000000 00000000
    2442a52f1bcd7648b2115dbed83bf4b8 08000100 08000000 06000000 00000000
    1dbf41816fa90947ba47f233a8faab5f 10000100 04000000 06000000 00000000
    c748a3cd5d4471449cc9e9885251c556 14000100 04000000 06000000 00000000
    ab12cabee6b2234593ef c309e000c746 18000100 10000000 06000000 00000000";
const WINDOWS_ITEMS: &str = "00002000 01000000 0000400000000000 00020000 00100000 cc1823d6ce56e242898d16e1d1c9843e";

const START: u64 = 2 * MIB;
const ITEMS: u64 = START + Table::LEN as u64;
const OTHER: Uuid = uuid!("11111111-2222-3333-4444-555555555555");

fn sample() -> Metadata {
    Metadata {
        block_size: 2 << 20,
        leave_block_allocated: true,
        virtual_disk_size: 4 << 20,
        virtual_disk_id: uuid!("d62318cc-56ce-42e2-898d-16e1d1c9843e"),
        logical_sector_size: 512,
        physical_sector_size: 4096,
        parent: None,
        ignores_locator: false,
        block_size_at: ITEMS,
        virtual_disk_size_at: ITEMS + 8,
    }
}

fn child() -> Metadata {
    let entries = [("parent_linkage", "{7584f8fb-36d3-4091-afb5-b1afe587bfa8}"), ("relative_path", ".\\base.vhdx")];
    let entries = entries.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    Metadata { leave_block_allocated: false, parent: Some(ParentLocator { entries }), ..sample() }
}

/// Reads a metadata region of 2 MiB that starts with `bytes`.
fn read(bytes: &[u8], limits: &Limits) -> Result<Metadata> {
    let mut file = vec![0; (START + 2 * MIB) as usize];
    file[START as usize..][..bytes.len()].copy_from_slice(bytes);
    let region = Region { range: START..START + 2 * MIB, at: 0x30030 };
    Metadata::read(&MemFile::from(file), &region, limits, &Budget::new(1 << 20))
}

/// Reads `metadata` with `parts` replaced, each at its offset.
fn patched(metadata: &Metadata, parts: &[(usize, &[u8])]) -> Result<Metadata> {
    let mut bytes = metadata.encode();
    for (at, part) in parts {
        bytes.resize(bytes.len().max(at + part.len()), 0);
        bytes[*at..at + part.len()].copy_from_slice(part);
    }
    read(&bytes, &Limits::default())
}

/// An entry of the table.
fn entry(id: Uuid, offset: u32, len: u32, flags: u32) -> Vec<u8> {
    let words = [offset, len, flags, 0].map(u32::to_le_bytes);
    [&id.to_bytes_le()[..], words.as_flattened()].concat()
}

#[test]
fn windows_metadata() {
    let bytes = [from_hex(WINDOWS_TABLE, Table::LEN), from_hex(WINDOWS_ITEMS, 40)].concat();
    assert_eq!(read(&bytes, &Limits::default()).unwrap(), sample());
    assert_eq!(sample().encode(), bytes);
}

#[test]
fn invalid_table_fields_are_refused_by_name() {
    let refused = |parts: &[(usize, &[u8])], expected: &str| {
        let error = patched(&sample(), parts).unwrap_err();
        assert_eq!(format!("{} {error}", error.kind()), expected);
    };
    // A sixth entry.
    let sixth = |entry: &[u8], expected: &str| refused(&[(10, &[6]), (192, entry)], expected);
    let at = "vhdx: corrupt image at file offset";
    refused(
        &[(0, b"M")],
        &format!("invalid-field {at} 0x200000: Signature is 0x617461646174654d, but must be \"metadata\""),
    );
    refused(&[(10, &[0, 8])], &format!("invalid-field {at} 0x20000a: EntryCount is 2048, outside 0..=2047"));
    for (count, missing) in
        [(0, "File Parameters"), (1, "Logical Sector Size"), (3, "Physical Sector Size"), (4, "Virtual Disk ID")]
    {
        let expected = format!("invalid-field {at} 0x20000a: EntryCount is {count:#x}: the item {missing} is missing");
        refused(&[(10, &[count])], &expected);
    }
    refused(
        &[(64, OTHER.as_bytes()), (88, &[0])],
        &format!("invalid-field {at} 0x20000a: EntryCount is 0x5: the item Virtual Disk Size is missing"),
    );
    let unknown = "required metadata item 11111111-2222-3333-4444-555555555555";
    let unsupported = format!("unsupported vhdx: not supported at file offset 0x2000c0: {unknown}");
    sixth(&entry(OTHER, 0, 0, IS_REQUIRED), &unsupported);
    sixth(&entry(OTHER, 0, 0, IS_REQUIRED | IS_USER), &unsupported);
    // User metadata with the ID of a system item is not that item.
    sixth(
        &entry(VIRTUAL_DISK_ID.id, 0, 0, IS_REQUIRED | IS_USER),
        "unsupported vhdx: not supported at file offset 0x2000c0: required metadata item beca12ab-b2e6-4523-93ef-c309e000c746",
    );
    sixth(
        &entry(OTHER, 0, 0, 0x12),
        &format!("invalid-field {at} 0x2000d8: IsRequired is 0x12, with the reserved bits 0x10 set"),
    );
    sixth(
        &entry(VIRTUAL_DISK_ID.id, 0, 0, 0),
        &format!("invalid-field {at} 0x2000c0: ItemID is 0xbeca12ab: another entry has the same ID"),
    );
    sixth(
        &entry(OTHER, 0x1_0000, 0x10_0001, 0),
        &format!("invalid-field {at} 0x2000d4: Length is 1048577, outside 0..=1048576"),
    );
    for offset in [0, 0xffff, 0x1f_fff9, !0] {
        let expected = format!("invalid-field {at} 0x2000d0: Offset is {offset}, outside 65536..=2097144");
        sixth(&entry(OTHER, offset, 8, 0), &expected);
    }
    sixth(
        &entry(OTHER, 0x1_0027, 8, IS_USER),
        &format!("overlap {at} 0x2000d0: Offset points to 0x210027, which overlaps another metadata item"),
    );
    refused(
        &[(52, &[9])],
        &format!("overlap {at} 0x200050: Offset points to 0x210008, which overlaps another metadata item"),
    );
    for (at_byte, len) in [(52, 8), (84, 8), (116, 4), (148, 4), (180, 16)] {
        let expected =
            format!("invalid-field {at} {:#x}: Length is 0, outside {len}..={len}", START as usize + at_byte);
        refused(&[(at_byte, &[0])], &expected);
    }
}

#[test]
fn invalid_items_are_refused_by_name() {
    let word = |at: usize, value: u32, expected: &str| {
        let error = patched(&sample(), &[(Table::LEN + at, &value.to_le_bytes())]).unwrap_err();
        assert_eq!(format!("{} {error}", error.kind()), expected);
    };
    let at = "vhdx: corrupt image at file offset";
    for size in [0, 1, 512 << 10, 257 << 20, !0] {
        word(0, size, &format!("invalid-field {at} 0x210000: BlockSize is {size}, outside 1048576..=268435456"));
    }
    word(0, 3 << 20, &format!("invalid-field {at} 0x210000: BlockSize is 0x300000, but must be a power of two"));
    word(4, 5, &format!("invalid-field {at} 0x210004: File Parameters is 0x5, with the reserved bits 0x4 set"));
    word(
        4,
        2,
        &format!(
            "invalid-field {at} 0x20000a: EntryCount is 0x5: HasParent is set and the item Parent Locator is missing"
        ),
    );
    word(8, 513, &format!("invalid-field {at} 0x210008: VirtualDiskSize is 0x201, not a multiple of 512"));
    word(
        12,
        0x4001,
        &format!("invalid-field {at} 0x210008: VirtualDiskSize is 70373043339264, outside 0..=70368744177664"),
    );
    for size in [0, 511, 1024, !0] {
        let rule = "must be 512 or 4096";
        word(16, size, &format!("invalid-field {at} 0x210010: LogicalSectorSize is {size:#x}, but {rule}"));
        word(20, size, &format!("invalid-field {at} 0x210014: PhysicalSectorSize is {size:#x}, but {rule}"));
    }
    let odd = Metadata { logical_sector_size: 4096, virtual_disk_size: 4096 + 512, ..sample() };
    assert_eq!(
        patched(&odd, &[]).unwrap_err().to_string(),
        format!("{at} 0x210008: VirtualDiskSize is 0x1200, not a multiple of 4096")
    );
    let limits = Limits { virtual_size: (4 << 20) - 1, ..Limits::default() };
    let error = read(&sample().encode(), &limits).unwrap_err();
    assert_eq!(
        format!("{} {error}", error.kind()),
        "limit vhdx: VirtualDiskSize at file offset 0x210008 is 4194304, above the limit of 4194303 (virtual-size)"
    );
}

#[test]
fn harmless_deviations_are_accepted() {
    let sample = sample();
    // Reserved bytes, and bytes after the entries.
    assert_eq!(patched(&sample, &[(8, &[1]), (12, &[9; 20]), (60, &[9; 4]), (192, &[9; 65_344])]).unwrap(), sample);
    // Unknown items, an empty one, and user metadata with the ID of a system item.
    let others = [
        entry(OTHER, 0x10_0000, 0x10_0000, IS_VIRTUAL_DISK),
        entry(Uuid::nil(), !0, 0, 0),
        entry(VIRTUAL_DISK_SIZE.id, 0x1_0028, 8, IS_USER),
    ];
    assert_eq!(patched(&sample, &[(10, &[8]), (192, &others.concat())]).unwrap(), sample);
    // A locator without HasParent.
    let unused = entry(PARENT_LOCATOR.id, 0x1_0028, 8, IS_REQUIRED);
    let ignoring = Metadata { ignores_locator: true, ..sample.clone() };
    assert_eq!(patched(&sample, &[(10, &[6]), (192, &unused)]).unwrap(), ignoring);
    // The largest disk.
    let size: u64 = 64 << 40;
    let largest = patched(&sample, &[(Table::LEN + 8, &size.to_le_bytes())]).unwrap();
    assert_eq!(largest.virtual_disk_size, size);
    // A differencing disk is not fixed.
    let child = child();
    assert_eq!(patched(&child, &[(Table::LEN + 4, &[3])]).unwrap(), child);
    assert_eq!(patched(&sample, &[(Table::LEN + 8, &[0; 8])]).unwrap().payload_block_count(), 0);
}

#[test]
fn items_may_be_in_any_order() {
    let mut bytes = sample().encode();
    bytes[32..192].rotate_left(64);
    bytes.resize(0x1_2000, 0);
    bytes.copy_within(0x1_0000..0x1_0008, 0x1_1003);
    let at = bytes.chunks(16).position(|id| id == FILE_PARAMETERS.id.to_bytes_le()).unwrap() * 16;
    bytes[at + 16..at + 20].copy_from_slice(&0x1_1003u32.to_le_bytes());
    let expected = Metadata { block_size_at: START + 0x1_1003, ..sample() };
    assert_eq!(read(&bytes, &Limits::default()).unwrap(), expected);
}

#[test]
fn user_metadata_has_at_most_1024_items() {
    for (count, valid) in [(1024, true), (1025, false)] {
        let entries: Vec<_> = (0..count).flat_map(|number| entry(Uuid::from_u128(number), 0, 0, IS_USER)).collect();
        let total = (count as u16 + 5).to_le_bytes();
        let result = patched(&sample(), &[(10, &total), (192, &entries)]);
        assert_eq!(result.is_ok(), valid, "{result:?}");
        let named = result.err().is_none_or(|error| error.to_string().contains("0x20000a: EntryCount"));
        assert!(named);
    }
    // All entries of the table: the others are of the disk.
    let flags = |number| if number < 1024 { IS_USER } else { IS_VIRTUAL_DISK };
    let entries: Vec<_> = (0..2042).flat_map(|number| entry(Uuid::from_u128(number), 0, 0, flags(number))).collect();
    assert_eq!(patched(&sample(), &[(10, &2047u16.to_le_bytes()), (192, &entries)]).unwrap(), sample());
}

#[test]
fn a_region_smaller_than_the_table_is_refused() {
    let file = MemFile::from(vec![0; 4 << 20]);
    for (len, expected) in [
        (0, "0x30048: Length is 0x0, but must be at least 64 KiB"),
        (0xffff, "0x30048: Length is 0xffff, but must be at least 64 KiB"),
        (0x1_0000, "0x200000: Signature is 0x0, but must be \"metadata\""),
    ] {
        let region = Region { range: START..START + len, at: 0x30030 };
        let error = Metadata::read(&file, &region, &Limits::default(), &Budget::new(0)).unwrap_err();
        assert_eq!(error.to_string(), format!("vhdx: corrupt image at file offset {expected}"));
    }
}

#[test]
fn an_item_is_not_longer_than_its_region() {
    let mut file = vec![0; START as usize];
    file.extend(sample().encode());
    file[START as usize + 10] = 6;
    file[START as usize + 192..][..32].copy_from_slice(&entry(OTHER, 0x1_0000, 0x1_3000, 0));
    file.resize(4 << 20, 0);
    let region = Region { range: START..START + 0x1_2000, at: 0 };
    let error = Metadata::read(&MemFile::from(file), &region, &Limits::default(), &Budget::new(0)).unwrap_err();
    assert!(error.to_string().ends_with("0x2000d4: Length is 77824, outside 0..=8192"), "{error}");
}

#[test]
fn the_locator_is_limited_by_the_budget() {
    let mut file = vec![0; START as usize];
    file.extend(child().encode());
    file.resize(3 << 20, 0);
    let region = Region { range: START..3 * MIB, at: 0 };
    let len = child().parent.unwrap().encode().len() as u64;
    let read = |budget| Metadata::read(&MemFile::from(file.clone()), &region, &Limits::default(), &Budget::new(budget));
    assert_eq!(read(len).unwrap(), child());
    assert_eq!(read(len - 1).unwrap_err().kind().as_str(), "limit");
}

#[test]
fn chunks() {
    let chunk_ratio =
        |logical_sector_size, block_size| Metadata { logical_sector_size, block_size, ..sample() }.chunk_ratio();
    assert_eq!([chunk_ratio(512, 1 << 20), chunk_ratio(512, 32 << 20), chunk_ratio(512, 256 << 20)], [4096, 128, 16]);
    assert_eq!([chunk_ratio(4096, 1 << 20), chunk_ratio(4096, 256 << 20)], [32768, 128]);
    let blocks = |virtual_disk_size| Metadata { virtual_disk_size, ..sample() }.payload_block_count();
    assert_eq!([blocks(0), blocks(512), blocks(2 << 20), blocks((2 << 20) + 512)], [0, 1, 1, 2]);
}

proptest! {
    #[test]
    fn encoded_metadata_parses(
        block in 20u32..=28,
        sectors in 0u64..=1 << 34,
        id: u128,
        large: [bool; 2],
        kind in 0..3,
    ) {
        let [logical_sector_size, physical_sector_size] = large.map(|large| if large { 4096 } else { 512 });
        let metadata = Metadata {
            block_size: 1 << block,
            leave_block_allocated: kind == 1,
            virtual_disk_size: sectors * u64::from(logical_sector_size),
            virtual_disk_id: Uuid::from_u128(id),
            logical_sector_size,
            physical_sector_size,
            parent: child().parent.filter(|_| kind == 2),
            ..sample()
        };
        prop_assert_eq!(patched(&metadata, &[]).unwrap(), metadata);
    }

    #[test]
    fn any_change_is_parsed_or_refused(
        changes in prop::collection::vec((0usize..224 + 160, any::<u8>()), 1..8),
    ) {
        // The table's entries, and the items.
        let offset = |at: usize| if at < 224 { at } else { Table::LEN + at - 224 };
        let changes: Vec<_> = changes.into_iter().map(|(at, byte)| (offset(at), [byte])).collect();
        let parts: Vec<_> = changes.iter().map(|(at, byte)| (*at, &byte[..])).collect();
        if let Ok(metadata) = patched(&child(), &parts) {
            prop_assert!(metadata.block_size.is_power_of_two() && metadata.chunk_ratio() >= 16);
            prop_assert!(metadata.virtual_disk_size <= MAX_DISK_SIZE);
        }
    }
}
