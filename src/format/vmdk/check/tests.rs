use std::io;
use std::process::Command;

use byteorder::{ByteOrder, LittleEndian};
use proptest::prelude::*;

use super::*;
use crate::driver::SparseRead;
use crate::format::vmdk::header::{Directory, Header};
use crate::format::vmdk::reader::Reader;
use crate::format::vmdk::reader::tests::build::{Built, Content, Order, Sparse, file, with_files};
use crate::format::vmdk::sesparse;
use crate::image::overlap::OverlapTracker;
use crate::testing::TempDir;

const DESCRIPTOR: &str = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
                          createType=\"monolithicSparse\"\nRW 80 SPARSE \"case.vmdk\"\n";
/// Sectors in a grain of the test images.
const GRAIN: u32 = 8;
/// Entries in a grain table of the test images.
const ENTRIES: usize = 4;

fn check_bytes(bytes: &[u8]) -> Result<CheckReport> {
    with_files(&[], |cx| check(file(bytes), cx))
}

/// Ten grains in three tables with redundant copies.
fn sound() -> Built {
    Sparse { descriptor: Some(DESCRIPTOR.into()), ..Sparse::plain(10) }.build()
}

fn u32_at(built: &Built, at: usize) -> u32 {
    LittleEndian::read_u32(&built.file[at..])
}

fn put(built: &mut Built, at: usize, value: u32) {
    LittleEndian::write_u32(&mut built.file[at..], value);
}

/// File offset of the entry of a table in one of the directories.
fn table_entry(built: &Built, directory: usize, table: usize) -> usize {
    built.directories[directory] + table * 4
}

fn grain_entry(built: &Built, directory: usize, grain: usize) -> usize {
    u32_at(built, table_entry(built, directory, grain / ENTRIES)) as usize * 512 + grain % ENTRIES * 4
}

/// Changes the entry of a grain in its table and in the redundant copy.
fn put_grain(built: &mut Built, grain: usize, sector: u32) {
    for directory in 0..2 {
        let at = grain_entry(built, directory, grain);
        put(built, at, sector);
    }
}

fn put_table(built: &mut Built, directory: usize, table: usize, sector: u32) {
    let at = table_entry(built, directory, table);
    put(built, at, sector);
}

/// Marks the image as not closed, with another entry in the redundant copy.
fn put_unclean_copy(built: &mut Built, entry: u32) {
    built.file[72] = 1;
    put(built, grain_entry(built, 1, 6), entry);
}

/// Sector of a grain.
fn grain_sector(built: &Built, grain: usize) -> u32 {
    built.places[grain].0
}

/// The result of `qemu-img check`, which finds only grains out of bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Qemu {
    Passes,
    Fails,
}

/// A change to a valid image, the expected number of corruptions and leaks, and the text of one message.
type Case = (&'static str, fn(&mut Built), u64, u64, &'static str, Qemu);

const CASES: &[Case] = &[
    ("nothing", |_| (), 0, 0, "", Qemu::Passes),
    ("unclean", |image| image.file[72] = 1, 0, 0, "Note: not closed cleanly", Qemu::Passes),
    ("grain out of bounds", |i| put_grain(i, 0, 1 << 20), 1, 1, "0x20000000, file length", Qemu::Fails),
    ("last grain truncated by a byte", |i| drop_end(i, 1), 1, 0, "out of bounds: 4096 bytes", Qemu::Passes),
    ("last grain truncated", |i| drop_end(i, 4096), 1, 0, "out of bounds: 4096 bytes", Qemu::Fails),
    ("grain used twice", |i| put_grain(i, 0, grain_sector(i, 1)), 1, 1, "overlaps another grain", Qemu::Passes),
    ("grain on two others", |i| put_grain(i, 0, grain_sector(i, 1) + 1), 2, 1, "overlaps another grain", Qemu::Passes),
    ("grain on the descriptor", |i| put_grain(i, 3, 1), 1, 1, "overlaps metadata", Qemu::Passes),
    ("grain on a table", |i| put_grain(i, 3, u32_at(i, table_entry(i, 0, 2))), 1, 1, "overlaps metadata", Qemu::Passes),
    ("unreferenced grain", |i| put_grain(i, 5, 0), 0, 1, "Leaked: unreferenced grains at file offset", Qemu::Passes),
    ("unused space", |i| i.file.resize(i.file.len() + 8191, 0), 0, 1, "Leaked: unreferenced grains", Qemu::Passes),
    ("copy changed", |i| put(i, grain_entry(i, 1, 6), 9), 1, 0, "differ from the redundant copy is 0x1", Qemu::Passes),
    ("copy removed", |i| put(i, grain_entry(i, 1, 6), 0), 1, 0, "differ from the redundant copy is 0x1", Qemu::Passes),
    // The copies are written after the tables.
    ("unclean, copy removed", |i| put_unclean_copy(i, 0), 0, 0, "Note: not closed cleanly", Qemu::Passes),
    ("unclean, copy changed", |i| put_unclean_copy(i, 9), 1, 0, "differ from the redundant copy is 0x1", Qemu::Passes),
    ("entry removed", |i| put(i, grain_entry(i, 0, 6), 0), 1, 1, "entries of grain table 1 that differ", Qemu::Passes),
    ("table missing", |i| put_table(i, 0, 1, 0), 1, 0, "the redundant grain directory has", Qemu::Passes),
    ("redundant table missing", |i| put_table(i, 1, 1, 0), 1, 0, "the grain directory has", Qemu::Passes),
    (
        "table out of bounds",
        |i| put_table(i, 0, 1, 1 << 20),
        1,
        0,
        "directory entry is out of bounds: 16 bytes",
        Qemu::Passes,
    ),
    (
        "copy out of bounds",
        |i| put_table(i, 1, 1, 1 << 20),
        1,
        0,
        "directory entry is out of bounds: 16 bytes",
        Qemu::Passes,
    ),
    ("both out of bounds", |i| (0..2).for_each(|copy| put_table(i, copy, 1, 1 << 20)), 2, 4, "16 bytes", Qemu::Passes),
    ("table used twice", |i| put_table(i, 0, 1, u32_at(i, table_entry(i, 0, 0))), 1, 0, "grain table 1", Qemu::Passes),
    ("table shared", |i| put_table(i, 1, 1, u32_at(i, table_entry(i, 0, 1))), 0, 0, "", Qemu::Passes),
    // Four grains out of bounds, one on the table, and a redundant copy that differs; the grains of the actual table
    // are leaked.
    ("table on a grain", |i| put_table(i, 0, 1, grain_sector(i, 9)), 6, 4, "overlaps metadata", Qemu::Fails),
    ("directory out of bounds", |i| put(i, 56, 1 << 20), 1, 0, "gdOffset is out of bounds", Qemu::Passes),
    ("redundant directory out of bounds", |i| put(i, 48, 1 << 20), 1, 0, "rgdOffset is out of bounds", Qemu::Passes),
];

fn drop_end(built: &mut Built, bytes: usize) {
    built.file.truncate(built.file.len() - bytes);
}

#[test]
fn single_changes_are_found() {
    for (name, change, corruptions, leaks, message, _) in CASES {
        let mut image = sound();
        change(&mut image);
        let report = check_bytes(&image.file).unwrap();
        assert_eq!(
            (report.corruptions, report.leaks, report.check_errors),
            (*corruptions, *leaks, 0),
            "{name}: {report:?}"
        );
        assert_eq!(report.messages.is_empty(), message.is_empty(), "{name}: {report:?}");
        assert!(message.is_empty() || report.messages.iter().any(|text| text.contains(message)), "{name}: {report:?}");
    }
}

#[test]
fn qemu_img_reports_no_other_errors() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        eprintln!("SKIPPED: qemu-img is not installed");
        return;
    }
    let dir = TempDir::new();
    for (name, change, corruptions, _, _, qemu) in CASES {
        let mut image = sound();
        change(&mut image);
        let path = dir.file("case.vmdk", &image.file);
        let output = Command::new("qemu-img").args(["check", "-f", "vmdk"]).arg(path).output().unwrap();
        // qemu-img exits with 1 at the first invalid grain.
        assert_eq!(output.status.code(), Some(i32::from(*qemu == Qemu::Fails)), "{name}: {output:?}");
        assert!(*corruptions > 0 || *qemu == Qemu::Passes, "{name}");
    }
}

#[test]
fn counts_of_a_valid_image() {
    let mut sparse = Sparse { order: Order::Descending, ..Sparse::plain(10) };
    sparse.grains[2] = Content::None;
    sparse.grains[7] = Content::Zero;
    let built = sparse.build();
    let expected = CheckReport {
        total_clusters: 10,
        allocated_clusters: 8,
        // All but the first.
        fragmented_clusters: 7,
        image_end_offset: built.file.len() as u64,
        ..CheckReport::default()
    };
    assert_eq!(check_bytes(&built.file).unwrap(), expected);
    // The last table and the last grain end with the disk.
    let short = Sparse { capacity: 77, short: true, ..Sparse::plain(10) }.build();
    assert_eq!(short.file.len() % 4096, (77 * 512 + short.places[0].0 as usize * 512) % 4096);
    assert_eq!(check_bytes(&short.file).unwrap().messages, [""; 0]);
}

#[test]
fn single_changes_to_streams_are_found() {
    type Case = (&'static str, fn(&mut Built), u64, &'static str);
    let cases: &[Case] = &[
        ("nothing", |_| (), 0, ""),
        ("invalid payload, which is not read", |i| fill_payload(i, 3), 0, ""),
        ("no end marker", |i| drop_end(i, 512), 0, "Note: the stream has no end-of-stream marker"),
        ("no footer", |i| drop_end(i, 1536), 1, "the file does not end with a footer"),
        (
            "capacity changed in the footer",
            |i| {
                let at = i.file.len() - 1024 + 12;
                put(i, at, 79)
            },
            1,
            "must match the header",
        ),
        (
            "marker of another grain",
            |i| {
                let at = grain_sector(i, 3) as usize * 512;
                put(i, at, 8)
            },
            1,
            "lba is 0x8",
        ),
        ("one marker for two grains", |i| put_stream(i, 1, grain_sector(i, 0)), 1, "overlaps another grain"),
        ("metadata marker", |i| put_stream(i, 1, i.directories[0] as u32 / 512 - 1), 1, "must not be 0"),
        ("grain on a table", |i| put_stream(i, 1, i.directories[0] as u32 / 512), 1, "overlaps metadata"),
        (
            "payload length above the limit",
            |i| {
                let at = grain_sector(i, 0) as usize * 512 + 8;
                put(i, at, 1 << 20)
            },
            1,
            "size is 1048576",
        ),
        (
            "payload overlapping the next grain",
            |i| {
                let at = grain_sector(i, 0) as usize * 512 + 8;
                put(i, at, 4600)
            },
            1,
            "overlaps another grain",
        ),
        ("grain out of bounds", |i| put_stream(i, 1, 1 << 20), 1, "0x20000000, file length"),
    ];
    for (name, change, corruptions, message) in cases {
        let mut image = Sparse::stream(10).build();
        change(&mut image);
        let report = check_bytes(&image.file).unwrap();
        assert_eq!((report.corruptions, report.leaks, report.check_errors), (*corruptions, 0, 0), "{name}: {report:?}");
        let found = report.messages.iter().any(|text| text.contains(message));
        assert!(if message.is_empty() { report.messages.is_empty() } else { found }, "{name}: {report:?}");
    }
    let report = check_bytes(&Sparse { footer: Some(5000), ..Sparse::stream(10) }.build().file).unwrap();
    assert_eq!((report.allocated_clusters, report.compressed_clusters, report.fragmented_clusters), (10, 10, 0));
}

fn put_stream(built: &mut Built, grain: usize, sector: u32) {
    let at = grain_entry(built, 0, grain);
    put(built, at, sector);
}

fn fill_payload(built: &mut Built, grain: usize) {
    let (sector, len) = built.places[grain];
    built.file[sector as usize * 512 + 12..][..len].fill(0xff);
}

#[test]
fn differing_entries_are_counted_from_the_first_one() {
    let mut image = sound();
    for grain in [5, 6] {
        let copy = grain_entry(&image, 1, grain);
        put(&mut image, copy, 9);
    }
    let report = check_bytes(&image.file).unwrap();
    let expected = format!(
        "file offset {:#x}: number of entries of grain table 1 that differ from the redundant copy is 0x2, but must be 0",
        grain_entry(&image, 0, 5)
    );
    assert!(report.messages.iter().any(|text| text.contains(&expected)), "{report:?}");
}

#[test]
fn messages_name_the_extent() {
    let line = |name: &str, kind: &str| format!("RW 80 {kind} \"{name}\"\n");
    let descriptor =
        |lines: &[String]| format!("version=1\nCID=1\ncreateType=\"custom\"\n{}", lines.concat()).into_bytes();
    let mut damaged = Sparse::plain(10).build();
    put_grain(&mut damaged, 0, 1 << 20);
    let cowd = Sparse::plain(10);
    let mut damaged_cowd = cowd.build_cowd();
    let table = u32_at(&damaged_cowd, 2048) as usize * 512;
    put(&mut damaged_cowd, table, cowd.build_cowd().places[1].0);
    let files = [
        ("sound", file(&Sparse::plain(10).build().file)),
        ("damaged", file(&damaged.file)),
        ("no-header", file(&[0; 4096])),
        ("flat", file(&[0; 80 * 512])),
        ("short", file(&[0; 80 * 512 - 1])),
        ("cowd", file(&cowd.build_cowd().file)),
        ("damaged-cowd", file(&damaged_cowd.file)),
    ];
    let report = |lines: &[String]| with_files(&files, |cx| check(file(&descriptor(lines)), cx)).unwrap();
    let sound = [line("sound", "SPARSE"), line("flat", "FLAT"), line("cowd", "VMFSSPARSE"), "RW 80 ZERO\n".into()];
    let expected = CheckReport { total_clusters: 20, allocated_clusters: 20, ..CheckReport::default() };
    assert_eq!(report(&sound), expected);
    for (lines, messages) in [
        (vec![line("damaged", "SPARSE"), line("short", "FLAT")], vec!["extent damaged", "extent short"]),
        (vec![line("no-header", "SPARSE"), line("damaged-cowd", "VMFSSPARSE")], vec!["no-header", "damaged-cowd"]),
        (vec![line("flat", "FLAT"), line("flat", "FLAT")], vec!["overlaps another extent"]),
        (vec![line("cowd", "VMFSSPARSE"), line("cowd", "VMFSSPARSE")], vec!["extent cowd: file range points to 0x0"]),
    ] {
        let report = report(&lines);
        let errors: Vec<_> = report.messages.iter().filter(|text| text.starts_with("ERROR")).collect();
        assert_eq!((report.corruptions as usize, errors.len()), (messages.len(), messages.len()), "{report:?}");
        assert!(errors.iter().zip(messages).all(|(text, part)| text.contains(part)), "{report:?}");
    }
    // Parts of one file.
    let parts = |second: u64| {
        let line = |offset| format!("RW 40 FLAT \"flat\" {offset}\n");
        report(&[line(second), line(40 - second)])
    };
    assert_eq!((parts(0).corruptions, parts(40).corruptions), (0, 0));
    let overlapping = report(&["RW 40 FLAT \"flat\" 0\n".into(), "RW 40 FLAT \"flat\" 39\n".into()]);
    assert!(overlapping.messages[0].contains("file range points to 0x4e00, which overlaps another extent"));
    let refuse = |_: &FileReference| Err(Error::Cancelled);
    let limits = crate::limits::Limits::default();
    let budget = crate::limits::Budget::new(limits.metadata);
    let cx = OpenContext { file: &refuse, ..OpenContext::new(&limits, &budget) };
    assert!(matches!(check(file(&descriptor(&sound)), &cx), Err(Error::Cancelled)));
}

/// A large file whose data is at its start.
struct Far {
    start: Vec<u8>,
    len: u64,
}

impl ReadAt for Far {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = buf.len().min(self.len.saturating_sub(offset).min(1 << 20) as usize);
        for (at, byte) in (offset..).zip(&mut buf[..len]) {
            *byte = usize::try_from(at).ok().and_then(|at| self.start.get(at)).copied().unwrap_or(0);
        }
        Ok(len)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok((offset < self.start.len() as u64).then_some(offset..self.start.len() as u64))
    }
}

fn check_far(start: Vec<u8>, len: u64) -> CheckReport {
    with_files(&[], |cx| check(Arc::new(Far { start, len }), cx)).unwrap()
}

#[test]
fn all_windows_are_checked() {
    let window = sectors::SectorTracker::WINDOW as u32;
    let mut image = sound();
    // Grains across and after window boundaries, the last of which overlaps the one before.
    let far = [window - 4, window + 100, window * 2 - 1, window * 3, window * 3 + 7];
    far.iter().enumerate().for_each(|(grain, sector)| put_grain(&mut image, grain, *sector));
    let report = check_far(image.file, 4 * u64::from(window) * SECTOR);
    let errors: Vec<_> = report.messages.iter().filter(|text| text.starts_with("ERROR")).collect();
    let wrong = format!("{:#x}", u64::from(window * 3 + 7) * SECTOR);
    assert!(report.corruptions == 1 && errors[0].contains(&wrong), "{report:?}");
    assert_eq!(report.image_end_offset, u64::from(window * 3 + 7 + GRAIN) * SECTOR);
    assert_eq!(report.allocated_clusters, 10);
    // The previous space of the first five grains, and the gaps around their new positions.
    let near_end = grain_sector(&sound(), 9) + GRAIN;
    let gaps = [5 * GRAIN, window - 4 - near_end, 96, window - 109, window - 7, window - 15];
    assert_eq!(report.leaks, gaps.iter().map(|gap| u64::from(gap / GRAIN)).sum::<u64>());
}

#[test]
fn a_table_used_repeatedly_is_checked_once() {
    let mut image = Sparse { redundant: false, ..Sparse::plain(4) }.build();
    let table = u32_at(&image, image.directories[0]);
    let tables = 1_000_000;
    let mut header = Header::parse(&image.file, 0, &crate::limits::Limits::default()).unwrap();
    header.capacity = tables * ENTRIES as u64 * u64::from(GRAIN);
    header.directory = Directory::At(image.file.len() as u64 / SECTOR);
    image.file[..512].copy_from_slice(&header.encode());
    image.file.extend(std::iter::repeat_n(table.to_le_bytes(), tables as usize).flatten());
    let report = check_bytes(&image.file).unwrap();
    assert_eq!((report.corruptions, report.messages.len()), (tables - 1, CheckReport::MESSAGES));
    assert_eq!(report.allocated_clusters, 4);
}

#[test]
fn holes_are_not_read() {
    let mut image = Sparse { redundant: false, ..Sparse::plain(4) }.build();
    // 2^13 tables of 4 MiB: 32 GiB of zeros.
    let (tables, entries) = (1u32 << 13, 1u32 << 20);
    let mut header = Header::parse(&image.file, 0, &crate::limits::Limits::default()).unwrap();
    header.entries_per_table = entries;
    header.capacity = u64::from(tables) * u64::from(entries) * u64::from(GRAIN);
    header.directory = Directory::At(image.file.len() as u64 / SECTOR);
    header.overhead = 0;
    image.file[..512].copy_from_slice(&header.encode());
    let step = entries * 4 / 512;
    let first = 1 << 16;
    image.file.extend((0..tables).flat_map(|table| (first + table * step).to_le_bytes()));
    let len = (u64::from(first) + u64::from(tables) * u64::from(step)) * SECTOR;
    let report = check_far(image.file, len);
    assert_eq!((report.corruptions, report.check_errors, report.allocated_clusters), (0, 0, 0), "{report:?}");
}

/// Reads the whole map and checks it for overlaps.
fn read_map(bytes: &[u8]) -> Result<()> {
    let reader = with_files(&[], |cx| Reader::open(file(bytes), cx))?;
    let mut overlaps = OverlapTracker::new(&reader, [bytes.len() as u64].into_iter())?;
    let mut at = 0;
    while at < reader.info().virtual_size {
        let extent = reader.extent_at(at..u64::MAX)?;
        overlaps.claim(&reader, &extent)?;
        at = extent.end();
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// The converse does not hold: readers ignore damage of redundant tables.
    #[test]
    fn images_that_pass_the_check_are_readable(
        kind in 0..3, order in prop::sample::select(vec![Order::Ascending, Order::Descending, Order::Interleaved]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u32..8), 1..4), cut in 0usize..3000,
    ) {
        let sparse = match kind {
            0 => Sparse::plain(10),
            1 => Sparse::stream(10),
            _ => Sparse { footer: None, redundant: true, ..Sparse::stream(10) },
        };
        let Built { mut file, .. } = Sparse { order, ..sparse }.build();
        for (at, byte, shift) in &changes {
            // Metadata is at both ends of the file.
            let (len, near) = (file.len(), at.index(6000));
            let at = if byte % 2 == 0 { near } else { len.saturating_sub(near + 1) };
            if let Some(target) = file.get_mut(at) {
                *target = if *shift == 0 { *byte } else { *target ^ 1 << shift };
            }
        }
        if cut < 1500 {
            file.truncate(file.len() - cut);
        }
        if let Ok(report) = check_bytes(&file) && report.corruptions + report.check_errors == 0 {
            let read = read_map(&file);
            prop_assert!(read.is_ok(), "{read:?} {report:?}");
        }
    }
}

#[test]
fn space_efficient_sparse() {
    let capacity = 2 * sesparse::TABLE_COVERAGE / SECTOR + 5;
    let (header, constant, volatile) = sesparse::tests::encode(capacity);
    let mut sound = vec![0; header.grains.start as usize + 4 * 4096];
    sound[..512].copy_from_slice(&constant);
    sound[header.volatile_header.start as usize..][..512].copy_from_slice(&volatile);
    let (directory, tables) = (header.grain_directory.start as usize, header.grain_tables.start as usize);
    let put = |bytes: &mut Vec<u8>, at: usize, value: u64| LittleEndian::write_u64(&mut bytes[at..], value);
    let data = |number: u64| 3 << 60 | (number & 0xfff) << 48 | number >> 12;
    put(&mut sound, directory, 0x1000_0000 << 32 | 1);
    put(&mut sound, directory + 16, 0x1000_0000 << 32);
    let table = tables + sesparse::TABLE as usize;
    for (index, entry) in [(0, data(1)), (1, data(0)), (2, 1 << 60), (4095, data(2))] {
        put(&mut sound, table + index * 8, entry);
    }
    put(&mut sound, tables, data(3));
    let text = format!("version=1\ncreateType=\"seSparse\"\nRW {capacity} SESPARSE \"s\"\n");
    for (at, value, messages) in [
        (table, data(1), vec![]),
        (table + 8, data(1), vec!["overlaps another grain"]),
        (table + 8, data(4), vec!["file length"]),
        (table + 8, 5, vec!["with the reserved bits"]),
        (directory + 8, 0x1000_0000 << 32, vec!["overlaps other metadata"]),
        (directory + 8, 0x1000_0000 << 32 | 9999, vec!["must be less than the number of grain tables"]),
        (directory + 8, 1, vec!["must be 0 or"]),
    ] {
        let mut bytes = sound.clone();
        put(&mut bytes, at, value);
        let report = with_files(&[("s", file(&bytes))], |cx| check(file(text.as_bytes()), cx)).unwrap();
        assert_eq!((report.corruptions as usize, report.leaks), (messages.len(), 0), "{report:?}");
        assert!(report.messages.iter().zip(messages).all(|(text, part)| text.contains(part)), "{report:?}");
        assert_eq!(report.total_clusters, capacity.div_ceil(8));
    }
}
