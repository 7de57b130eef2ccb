//! Hand-built images and images written by generated calls, compared with a simple reader.

mod model;

use std::io::Write;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use uuid::Uuid;

use self::model::{Case, Device, Step, naive_guest, open, read};
use super::FORMAT_NAME;
use super::footer::{DiskType, Footer};
use super::geometry::Geometry;
use super::header::{Header, Parent};
use super::reader::Reader;
use crate::driver::{
    CheckKind, CheckMessage, CheckReport, CreateContext, Extent, ExtentKind, FileId, Location, NewBacking, OpenContext,
    SparseRead,
};
use crate::error::Result;
use crate::format::Format;
use crate::identifiers::{Identifiers, ImageIdentifiers};
use crate::info::Value;
use crate::io::{MemFile, PipeTarget, WriteAt};
use crate::limits::{Budget, Limits};
use crate::name::Name;
use crate::options::Options;

/// Blocks of 16 sectors.
const BLOCK: u64 = 8192;
/// Host offset of the table in hand-built images.
const TABLE: u64 = 1536;

/// An image of a disk of `size` bytes in blocks of [`BLOCK`] bytes with these table entries. The footer is at `len`.
fn image(disk_type: DiskType, size: u64, entries: &[u32], len: usize) -> Vec<u8> {
    let footer =
        Footer { current_size: size, geometry: Geometry::from_sectors(size / 512), disk_type, ..Footer::for_tests() };
    let parent = Parent { unique_id: Uuid::from_bytes([9; 16]), name: Name::from("base.vhd"), ..Parent::default() };
    let max_table_entries = entries.len() as u32;
    let header = Header { table_offset: TABLE, max_table_entries, block_size: BLOCK as u32, parent };
    let mut bytes = [&footer.encode()[..], &header.encode()].concat();
    bytes.extend(entries.iter().flat_map(|entry| entry.to_be_bytes()));
    bytes.resize(len, 0);
    bytes.extend(footer.encode());
    bytes
}

fn format() -> Format {
    Format::by_name(FORMAT_NAME).unwrap()
}

fn check(bytes: Vec<u8>) -> (u64, u64, u64) {
    let report = report(bytes);
    (report.corruptions, report.leaks, report.allocated_clusters)
}

fn report(bytes: Vec<u8>) -> CheckReport {
    let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
    format().check(Arc::new(MemFile::from(bytes)), &OpenContext::new(&limits, &budget)).unwrap()
}

#[test]
fn both_names_and_both_footers_are_detected() {
    assert_eq!(Format::by_name("vhd").unwrap(), format());
    assert_eq!(Format::by_extension("VHD"), Some(format()));
    let probe = |head: &[u8], tail: &[u8]| {
        crate::format::Formats::builtin().probe(&crate::driver::Probe { head, tail, len: 1 << 20 }).unwrap()
    };
    let tail = |at: usize| [&vec![0; at][..], b"conectix", &vec![0; 504 - at]].concat();
    assert_eq!(probe(b"conectix", &[0; 512]), format());
    assert_eq!(probe(&[0; 512], &tail(0)), format());
    assert_eq!(probe(&[0; 512], &tail(1)), format());
    assert_eq!(probe(&[0; 512], &tail(2)), Format::RAW);
}

#[test]
fn unwritten_sectors_read_as_zeros_or_from_the_parent() {
    // Block 1 is at sector 4 and has sectors 2, 3 and 15; blocks 0 and 2 are unallocated; the disk ends within block 3, which is
    // at sector 21 and has all sectors.
    let size = 3 * BLOCK + 5 * 512;
    let make = |disk_type| {
        let mut bytes = image(disk_type, size, &[!0, 4, !0, 21, 0], 38 * 512);
        bytes[2048..2050].copy_from_slice(&[0b0011_0000, 1]);
        bytes[21 * 512..21 * 512 + 512].fill(0xff);
        bytes
    };
    let at = |sector: u64| Location { file: FileId(0), offset: sector * 512 };
    for disk_type in [DiskType::Dynamic, DiskType::Differencing] {
        let differencing = disk_type == DiskType::Differencing;
        let zeros = |allocated| if differencing { ExtentKind::Hole } else { ExtentKind::Zero { allocated } };
        let (unallocated, unwritten) = (zeros(None), |location| zeros(Some(location)));
        let reader = open(make(disk_type)).unwrap();
        let extents = [
            (0, 16, unallocated),
            (16, 2, unwritten(at(5))),
            (18, 2, ExtentKind::Data(at(7))),
            (20, 11, unwritten(at(9))),
            (31, 1, ExtentKind::Data(at(20))),
            (32, 16, unallocated),
            (48, 5, ExtentKind::Data(at(22))),
        ];
        for (sector, sectors, kind) in extents {
            let extent = Extent { offset: sector * 512, len: sectors * 512, kind };
            assert_eq!(reader.extent_at(sector * 512..u64::MAX).unwrap(), extent);
            let last = extent.end() - 7;
            assert_eq!(reader.extent_at(last..u64::MAX).unwrap(), extent.clip(last, extent.end()));
        }
        assert_eq!(reader.info().virtual_size, size);
        assert!(reader.extent_at(size..u64::MAX).is_err());
        let mut claimed = Vec::new();
        reader
            .metadata(&mut |_, range| {
                claimed.push(range);
                true
            })
            .unwrap();
        let end = 38 * 512;
        assert_eq!(claimed, [0..512, 512..1536, end..end + 512, 1536..1556, 2048..2560, 21 * 512..22 * 512]);
        assert_eq!(check(make(disk_type)), (0, 0, 2));
    }
    let info = open(make(DiskType::Differencing)).unwrap().info().clone();
    let parent = info.backing.unwrap();
    assert_eq!((parent.role, parent.name), ("parent", Name::from("base.vhd")));
    assert_eq!(parent.format, Some(Name::from("vpc")));
    assert_eq!(parent.identities, [Name::from("UUID 09090909-0909-0909-0909-090909090909")]);
    assert_eq!(info.identities, [Name::from("UUID 07070707-0707-0707-0707-070707070707")]);
}

#[test]
fn data_that_reads_as_zeros_is_told() {
    const MESSAGE: &str =
        "sectors that are not set in the sector bitmaps, and so read as zeros, have data that QEMU reads";
    // Block 0 is at sector 4 and has sectors 0 and 7; block 1 is at sector 21 and has none of the five sectors of the disk in it.
    let make = |disk_type, entries: &[u32], data: &[usize]| {
        let mut bytes = image(disk_type, BLOCK + 5 * 512, entries, 38 * 512);
        bytes[2048] = 0b1000_0001;
        data.iter().for_each(|at| bytes[*at] = 1);
        bytes
    };
    let sound = &[4, 21][..];
    for (disk_type, entries, data, expected) in [
        (DiskType::Dynamic, sound, &[][..], None),
        // In sectors that are set, and after the end of the disk.
        (DiskType::Dynamic, sound, &[5 * 512, 12 * 512 + 511, 27 * 512], None),
        (DiskType::Dynamic, sound, &[6 * 512], Some("in 1 of 2 blocks, the first at file offset 0xc00")),
        (DiskType::Dynamic, sound, &[11 * 512 + 511], Some("in 1 of 2 blocks, the first at file offset 0x1600")),
        (DiskType::Dynamic, sound, &[20 * 512 + 511], Some("in 1 of 2 blocks, the first at file offset 0x2800")),
        (DiskType::Dynamic, sound, &[26 * 512 + 511], Some("in 1 of 2 blocks, the first at file offset 0x3400")),
        (
            DiskType::Dynamic,
            sound,
            &[13 * 512, 14 * 512, 22 * 512],
            Some("in 2 of 2 blocks, the first at file offset 0x1a00"),
        ),
        // These sectors are the parent's.
        (DiskType::Differencing, sound, &[6 * 512], None),
        // Blocks that overlap are not read again and again.
        (DiskType::Dynamic, &[4, 4], &[6 * 512], None),
    ] {
        let report = report(make(disk_type, entries, data));
        let told = report.messages.iter().find(|message| message.kind() == CheckKind::Warning);
        let expected = expected.map(|rest| format!("{MESSAGE}: {rest}"));
        assert_eq!(told.map(CheckMessage::words), expected.as_deref(), "{entries:?} {data:?}");
        assert_eq!(report.corruptions, u64::from(entries != sound));
    }
}

#[test]
fn the_last_block_needs_only_what_the_disk_has_of_it() {
    // A bitmap and one sector of the third block.
    let mut bytes = image(DiskType::Dynamic, 2 * BLOCK + 512, &[!0, !0, 4], 6 * 512);
    bytes[4 * 512] = 0xff;
    let extent = open(bytes.clone()).unwrap().extent_at(2 * BLOCK..u64::MAX).unwrap();
    let data = ExtentKind::Data(Location { file: FileId(0), offset: 5 * 512 });
    assert_eq!(extent, Extent::new(2 * BLOCK..2 * BLOCK + 512, data));
    assert_eq!(check(bytes).0, 0);
}

#[test]
fn invalid_entries_are_reported() {
    let end = 40 * 512;
    for (entries, wrong, kind) in [
        (&[0, !0][..], 0, "overlap"),
        (&[!0, 41], 1, "out-of-bounds"),
        (&[34, !0], 0, "out-of-bounds"),
        (&[0xffff_fffe, !0], 0, "out-of-bounds"),
    ] {
        let mut bytes = image(DiskType::Dynamic, 2 * BLOCK, entries, end);
        bytes[34 * 512] = 1;
        let reader = open(bytes.clone()).unwrap();
        let error = reader.extent_at(wrong * BLOCK + 7 * 512..u64::MAX).unwrap_err();
        assert_eq!(error.kind().as_str(), kind, "{error}");
        assert!(reader.extent_at((1 - wrong) * BLOCK..u64::MAX).is_ok());
        assert_eq!(check(bytes).0, 1);
    }
    // Blocks that overlap the header, each other and the footer; and blocks with space for another one between them.
    let make = |entries: &[u32]| image(DiskType::Dynamic, 2 * BLOCK, entries, 60 * 512);
    for (entries, found) in [
        ([2, !0], (1, 2, 1)),
        ([4, 5], (1, 2, 2)),
        ([4, 4], (1, 2, 2)),
        ([44, !0], (1, 2, 1)),
        ([4, 43], (0, 1, 2)),
        ([43, 4], (0, 1, 2)),
        ([21, 4], (0, 1, 2)),
    ] {
        assert_eq!(check(make(&entries)), found, "{entries:?}");
    }
    for (entries, fragments, message) in [
        ([4, 21], 0, None),
        ([4, 22], 0, None),
        ([4, 37], 1, None),
        ([21, 4], 1, None),
        ([2, !0], 0, Some("overlaps other metadata")),
        ([4, 5], 1, Some("overlaps another block")),
    ] {
        let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
        let file = Arc::new(MemFile::from(make(&entries)));
        let report = format().check(file, &OpenContext::new(&limits, &budget)).unwrap();
        assert_eq!(report.fragmented_clusters, fragments, "{entries:?}");
        let found = report.messages.iter().find(|text| text.contains("overlaps"));
        assert_eq!(found.is_some(), message.is_some(), "{report:?}");
        assert!(found.zip(message).is_none_or(|(found, message)| found.contains(message)), "{report:?}");
    }
    for entries in [[2, !0], [4, 4]] {
        let mut claimed: Vec<std::ops::Range<u64>> = Vec::new();
        let claim = open(make(&entries)).unwrap().metadata(&mut |_, range| {
            let free = claimed.iter().all(|other| other.end <= range.start || range.end <= other.start);
            claimed.push(range);
            free
        });
        assert_eq!(claim.unwrap_err().kind().as_str(), "overlap");
    }
}

#[test]
fn the_table_is_in_the_file_and_covers_the_disk() {
    let make = |change: fn(&mut Footer, &mut Header)| {
        let mut footer = Footer { current_size: 4 * BLOCK, ..Footer::for_tests() };
        let parent = Parent::default();
        let mut header = Header { table_offset: TABLE, max_table_entries: 4, block_size: BLOCK as u32, parent };
        change(&mut footer, &mut header);
        let bytes = [&footer.encode()[..], &header.encode(), &[0xff; 512], &footer.encode()].concat();
        open(bytes).map(drop).map_err(|error| error.kind().as_str())
    };
    assert_eq!(make(|_, _| ()), Ok(()));
    assert_eq!(make(|_, header| header.max_table_entries = 3), Err("invalid-field"));
    assert_eq!(make(|_, header| header.max_table_entries = 257), Err("out-of-bounds"));
    assert_eq!(make(|_, header| header.max_table_entries = !0), Err("out-of-bounds"));
    assert_eq!(make(|_, header| header.table_offset = u64::MAX - 3), Err("out-of-bounds"));
    assert_eq!(make(|footer, _| footer.data_offset = 0), Err("overlap"));
    assert_eq!(make(|footer, _| footer.data_offset = 1537), Err("out-of-bounds"));
    assert_eq!(make(|footer, _| footer.data_offset = !0), Err("out-of-bounds"));
    assert_eq!(make(|footer, _| footer.data_offset = 1024), Err("invalid-field"));
}

proptest! {
    #[test]
    fn extents_match_a_simple_reader(
        differencing in any::<bool>(),
        blocks in prop::collection::vec(prop::option::of(prop::collection::vec(any::<bool>(), 16)), 1..6),
        order in any::<u64>(),
        cut in 0u64..16,
    ) {
        // Contiguous blocks in any order from sector 4.
        let mut slots: Vec<u32> = (0..blocks.len() as u32).collect();
        slots.sort_by_key(|slot| (u64::from(*slot) + 1).wrapping_mul(order | 1));
        let entry = |index: usize| 4 + slots[index] * 17;
        let entries: Vec<u32> = (0..blocks.len()).map(|index| blocks[index].as_ref().map_or(!0, |_| entry(index))).collect();
        let disk_type = if differencing { DiskType::Differencing } else { DiskType::Dynamic };
        let size = blocks.len() as u64 * BLOCK - cut * 512;
        let mut bytes = image(disk_type, size, &entries, (4 + blocks.len() * 17) * 512);
        for (index, bits) in blocks.iter().enumerate() {
            for (sector, _) in bits.iter().flatten().enumerate().filter(|(_, bit)| **bit) {
                bytes[entry(index) as usize * 512 + sector / 8] |= 0x80 >> (sector % 8);
            }
        }
        let reader = open(bytes).unwrap();
        let mut at = 0;
        while at < size {
            let extent = reader.extent_at(at..u64::MAX).unwrap();
            prop_assert_eq!(extent.offset, at);
            for sector in at / 512..extent.end() / 512 {
                let (index, within) = ((sector / 16) as usize, sector % 16);
                let location = Location { file: FileId(0), offset: (u64::from(entry(index)) + 1 + within) * 512 };
                let expected = match &blocks[index] {
                    Some(bits) if bits[within as usize] => ExtentKind::Data(location),
                    _ if differencing => ExtentKind::Hole,
                    Some(_) => ExtentKind::Zero { allocated: Some(location) },
                    None => ExtentKind::Zero { allocated: None },
                };
                prop_assert_eq!(extent.kind.advance(sector * 512 - at), expected);
            }
            at = extent.end();
        }
        prop_assert_eq!(at, size);
    }

    #[test]
    fn arbitrary_images_do_not_panic(
        changes in prop::collection::vec((0usize..2600, any::<u8>()), 0..6),
        sums in any::<bool>(),
        cut in 0usize..4000,
        differencing in any::<bool>(),
    ) {
        let disk_type = if differencing { DiskType::Differencing } else { DiskType::Dynamic };
        let mut bytes = image(disk_type, 3 * BLOCK - 512, &[4, !0, 21, 0], 38 * 512);
        bytes[2048..2560].fill(0xa5);
        for (at, value) in changes {
            bytes[at] = value;
        }
        if sums {
            // Correct checksums, so that the fields are parsed.
            let footer = super::checksum(&bytes[..512], 64);
            bytes[64..68].copy_from_slice(&footer.to_be_bytes());
            let header = super::checksum(&bytes[512..1536], 36);
            bytes[548..552].copy_from_slice(&header.to_be_bytes());
            let end = bytes.len() - 512;
            bytes.copy_within(..512, end);
        }
        bytes.truncate(bytes.len() - cut.saturating_sub(2000));
        if let Ok(reader) = open(bytes.clone()) {
            let mut at = 0;
            for _ in 0..100 {
                match reader.extent_at(at..u64::MAX) {
                    Ok(extent) => {
                        prop_assert!(extent.offset == at && extent.len > 0 && extent.end() <= reader.info().virtual_size);
                        at = extent.end();
                    }
                    Err(_) => at += 512,
                }
                if at >= reader.info().virtual_size {
                    break;
                }
            }
            let _ = reader.metadata(&mut |_, range| range.start < range.end);
            let (limits, budget) = (Limits::default(), Budget::new(1000));
            let cx = OpenContext::new(&limits, &budget);
            let _ = format().check(Arc::new(MemFile::from(bytes)), &cx);
        }
    }

    #[test]
    fn written_data_reads_back(case in model::case()) {
        let written = case.write();
        prop_assert_eq!(naive_guest(&written.file, &written.parent), written.guest.clone(), "{:?}", case);
        prop_assert_eq!(read(&open(written.file.clone()).unwrap(), &written.file, &written.parent), written.guest);
        let (corruptions, leaks, _) = check(written.file.clone());
        prop_assert_eq!((corruptions, leaks), (0, 0));
    }
}

#[test]
fn a_new_dynamic_disk_is_laid_out_as_documented() {
    let case = Case::new(3 << 20, "block_size=512k", &[Step::Skip(1 << 20), Step::Data(512 << 10), Step::Data(5000)]);
    let file = case.write().file;
    let (first, second) = (4096 - 512, 2 * 4096 - 512 + (512 << 10));
    assert_eq!(file[512..520], *b"cxsparse");
    let entries: Vec<u32> =
        file[1536..2048].chunks(4).map(|entry| u32::from_be_bytes(entry.try_into().unwrap())).collect();
    let mut expected = vec![!0; 128];
    (expected[2], expected[3]) = (first / 512, second / 512);
    assert_eq!(entries, expected);
    for block in [first, second].map(|block| block as usize) {
        assert!(file[block..block + 512].iter().all(|byte| *byte == 0xff));
        assert!((block + 512).is_multiple_of(4096));
    }
    assert_eq!(file.len(), second as usize + 512 + (512 << 10) + 512);
    assert_eq!(file[..512], file[file.len() - 512..]);
    let footer = Footer::parse(file[..512].try_into().unwrap(), 0, &Limits::default()).unwrap();
    assert_eq!((&footer.creator_app, footer.current_size, footer.original_size), (b"win ", 3 << 20, 3 << 20));
    assert_eq!(footer.geometry, Geometry::from_sectors(6144));
    // One extent per block.
    let reader = open(file).unwrap();
    let lens: Vec<_> = [0, 1 << 20, 3 << 19, 2 << 20].map(|at| reader.extent_at(at..u64::MAX).unwrap().len).into();
    assert_eq!(lens, [1 << 20, 512 << 10, 512 << 10, 1 << 20]);
}

struct Stream(Arc<Mutex<Vec<u8>>>);

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn fixed_disks_are_written_to_files_and_pipes() {
    let steps = [Step::Skip(3000), Step::Data(5000), Step::Zero(1024), Step::Data(512)];
    let list = "subformat=fixed,timestamp=946684801,uuid=00112233-4455-6677-8899-aabbccddeeff";
    let file = Case::new(20_000, list, &steps).write();
    assert_eq!(file.file.len(), 20_480 + 512);
    assert_eq!(file.file[..20_480], file.guest);
    let footer = Footer::parse(file.file[20_480..].try_into().unwrap(), 0, &Limits::default()).unwrap();
    assert_eq!((footer.disk_type, footer.timestamp, footer.data_offset), (DiskType::Fixed, 1, !0));
    assert_eq!(footer.unique_id.to_string(), "00112233-4455-6677-8899-aabbccddeeff");

    // A pipe gets all data, zeros included.
    let mut options = Options::new();
    options.add_list(list);
    let piped = Arc::new(Mutex::new(Vec::new()));
    let pipe = Arc::new(PipeTarget::new(Stream(piped.clone())));
    let mut writer = format().create(&CreateContext::new(20_000, &options, pipe.clone())).unwrap();
    assert!(writer.spec().dense && writer.spec().sequential);
    let placement = writer.place(0..20_480).unwrap();
    placement.out.write_all_at(&file.guest, placement.offset).unwrap();
    writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
    assert!(*piped.lock().unwrap() == file.file);
    let mut empty =
        format().create(&CreateContext::new(1 << 20, &options, Arc::new(PipeTarget::new(Vec::new())))).unwrap();
    empty.finish(&ImageIdentifiers::pinned(0)).unwrap();
}

#[test]
fn an_unfinished_image_has_no_footer() {
    let old = Case::new(1 << 20, "", &[Step::Data(1 << 20)]).write().file;
    let device = Arc::new(Device::holding(&old, 4 << 20));
    let options = Options::new();
    let mut writer = format().create(&CreateContext::new(1 << 20, &options, device.clone())).unwrap();
    writer.place(0..1 << 20).unwrap();
    assert_ne!(device.to_vec()[..8], *b"conectix");
    writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
    let end = 4096 + (2 << 20);
    assert_eq!(device.to_vec()[end..end + 8], *b"conectix");
}

#[test]
fn a_fixed_disk_is_not_written_to_a_device() {
    // An old footer at the end of the device would describe the new image.
    let old = Case::new(1 << 20, "subformat=fixed", &[Step::Data(1 << 20)]).write().file;
    let device = Arc::new(Device::holding(&old, old.len()));
    let mut options = Options::new();
    options.add_list("subformat=fixed");
    let result = format().create(&CreateContext::new(1 << 19, &options, device.clone()));
    assert_eq!(result.err().unwrap().kind().as_str(), "unsupported");
    assert!(device.to_vec() == old);
}

/// The disk size of a new image, or the kind of the error.
fn size_of(size: u64, list: &str) -> Result<u64, &'static str> {
    let mut options = Options::new();
    options.add_list(list);
    let cx = CreateContext::new(size, &options, Arc::new(Null));
    format().create(&cx).map(|writer| writer.spec().virtual_size).map_err(|error| error.kind().as_str())
}

/// A target that discards all writes.
struct Null;

impl WriteAt for Null {
    fn write_all_at(&self, _buf: &[u8], _offset: u64) -> std::io::Result<()> {
        Ok(())
    }

    fn set_len(&self, _len: u64) -> std::io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn sizes_are_exact_unless_an_option_rounds_them_up() {
    const GIB: u64 = 1 << 30;
    for (size, list, expected) in [
        (0, "", Ok(0)),
        (1, "", Ok(512)),
        (10 * GIB + 512, "", Ok(10 * GIB + 512)),
        (10 * GIB, "force_size=off", Ok(10_737_893_376)),
        (2040 * GIB, "", Ok(2040 * GIB)),
        (2040 * GIB + 1, "", Err("limit")),
        (2040 * GIB, "block_size=512k", Err("limit")),
        (2030 * GIB, "block_size=512k", Ok(2030 * GIB)),
        (9000 * GIB, "subformat=fixed", Ok(9000 * GIB)),
        (i64::MAX as u64, "subformat=fixed", Err("limit")),
        (10 * GIB + 512, "preset=azure", Ok(10 * GIB + (1 << 20))),
        ((19 << 20) + 1, "preset=azure,subformat=fixed", Ok(20 << 20)),
        (19 << 20, "preset=azure", Err("option")),
        (32767 * GIB, "preset=azure", Ok(32767 * GIB)),
        (32767 * GIB + 1, "preset=azure", Err("option")),
        (GIB, "preset=azure,subformat=dynamic", Err("option")),
        (GIB, "preset=azure,force_size=off", Err("option")),
        (GIB, "preset=azure,block_size=2M", Err("option")),
        (GIB, "subformat=fixed,block_size=2M", Err("option")),
        (GIB, "block_size=768k", Err("option")),
        (GIB, "block_size=32M", Err("option")),
        (GIB, "uuid=00000000-0000-0000-0000-000000000000", Err("option")),
        (GIB, "uuid=0011", Err("option")),
        (GIB, "timestamp=946684799", Err("option")),
        (GIB, "backing_file=base.vhd", Err("option")),
    ] {
        assert_eq!(size_of(size, list), expected, "{size} {list}");
    }
}

#[test]
fn identifiers_and_timestamps_come_from_the_caller() {
    let options = Options::new();
    let footer = |identifiers: Identifiers| {
        let out = Arc::new(MemFile::new());
        let identifiers = identifiers.for_image(FORMAT_NAME, 512, &options);
        let cx = CreateContext { identifiers, ..CreateContext::new(512, &options, out.clone()) };
        format().create(&cx).unwrap().finish(&identifiers).unwrap();
        Footer::parse(out.to_vec()[..512].try_into().unwrap(), 0, &Limits::default()).unwrap()
    };
    let fixed = |time| footer(Identifiers::Reproducible { time });
    assert_eq!(fixed(946_684_800 + 77), fixed(946_684_800 + 77));
    assert_eq!([0, 946_684_805, u64::MAX].map(|time| fixed(time).timestamp), [0, 5, u32::MAX]);
    let (one, two) = (footer(Identifiers::Random), footer(Identifiers::Random));
    assert!(one.unique_id != two.unique_id && !one.unique_id.is_nil());
    assert_eq!(one.unique_id.get_version_num(), 4);
    // Later than this test was written, and not in the far future.
    assert!((800_000_000..4_000_000_000).contains(&one.timestamp));
}

#[test]
fn a_differencing_disk_names_its_parent() {
    let parent = open(image(DiskType::Dynamic, 4 * BLOCK, &[!0; 4], 2048)).unwrap().info().clone();
    let create = |name: &str, info, list: &str, size| {
        let mut options = Options::new();
        options.add_list(list);
        let out = Arc::new(MemFile::new());
        let backing = Some(NewBacking::new(Name::from(name), info));
        let mut writer =
            format().create(&CreateContext { backing, ..CreateContext::new(size, &options, out.clone()) })?;
        writer.finish(&ImageIdentifiers::pinned(0))?;
        Ok(open(out.to_vec())?.info().clone())
    };
    let child = |name: &str| create(name, &parent, "", 4 * BLOCK).unwrap().backing.unwrap();
    let names = |name: &str| {
        let reference = child(name);
        [reference.name].iter().chain(&reference.alternatives).map(|name| name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names("base.vhd"), ["base.vhd"]);
    assert_eq!(names("./sub/bäse.vhd"), ["sub/bäse.vhd", "bäse.vhd"]);
    assert_eq!(names("../base.vhd"), ["../base.vhd", "base.vhd"]);
    assert_eq!(names("/images/base.vhd"), ["/images/base.vhd", "base.vhd"]);
    assert_eq!(child("x").identities, parent.identities);
    let kind = |result: Result<_>| result.map(drop).map_err(|error| error.kind().as_str());
    assert_eq!(kind(create("x", &parent, "subformat=fixed", 4 * BLOCK)), Err("option"));
    assert_eq!(kind(create("x", &parent, "backing_file=y", 4 * BLOCK)), Err("option"));
    assert_eq!(kind(create("x", &parent, "backing_fmt=qcow2", 4 * BLOCK)), Err("option"));
    for format in ["vpc", "vhd"] {
        assert_eq!(kind(create("x", &parent, &format!("backing_file=x,backing_fmt={format}"), 4 * BLOCK)), Ok(()));
    }
    assert_eq!(kind(create("x", &parent, "", 5 * BLOCK)), Err("option"));
    let mut other = parent.clone();
    other.format = "raw";
    assert_eq!(kind(create("x", &other, "", 4 * BLOCK)), Err("option"));
}

#[test]
fn info_has_both_sizes() {
    let reader: Reader = open(image(DiskType::Dynamic, 4 << 20, &[!0; 512], 8192)).unwrap();
    let info = reader.info();
    let value = |name| info.specific.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone()).unwrap();
    assert_eq!(value("current-size"), Value::Number(4 << 20));
    assert_eq!(value("chs-size"), Value::Number(120 * 4 * 17 * 512));
    assert_eq!(value("subformat"), Value::from("dynamic"));
    assert_eq!(value("creator-application"), Value::from("win"));
    assert_eq!(value("creator-version"), Value::from("10.0"));
    assert_eq!((info.block_size, info.backing.as_ref()), (Some(BLOCK as u32), None));
}
