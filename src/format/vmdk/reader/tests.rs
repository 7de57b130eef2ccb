//! Generated images, whose map and content are compared with the input of the generator.

pub(in crate::format::vmdk) mod build;

use byteorder::{ByteOrder, LittleEndian};
use proptest::prelude::*;

use self::build::{Built, Content as Grain, Order, Sparse, file, with_files};
use super::*;
use crate::codec::Codec;
use crate::driver::{Compressed, Location};
use crate::format::Format;
use crate::format::vmdk::grains::Framing;
use crate::format::vmdk::header::{Directory, Header};
use crate::format::vmdk::{FORMAT_NAME, sesparse};
use crate::image::{Image, Layer, SourceFile};
use crate::limits::Limits;

fn open(bytes: &[u8]) -> Result<Reader> {
    with_files(&[], |cx| Reader::open(file(bytes), cx))
}

/// Returns the guest data, read through [`Image`].
fn content(image: &Image) -> Result<Vec<u8>> {
    let mut bytes = vec![0xee; image.virtual_size() as usize];
    image.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Returns the guest data of a descriptor with these files, and walks its spans as a conversion does.
fn read(descriptor: &str, files: &[(&str, Vec<u8>)]) -> Result<Vec<u8>> {
    let main = file(descriptor.as_bytes());
    let files: Vec<_> = files.iter().map(|(name, bytes)| (*name, file(bytes))).collect();
    let reader = with_files(&files, |cx| Reader::open(main.clone(), cx))?;
    // In the order of the references.
    let named = reader.info.files.iter().map(|reference| {
        files.iter().find(|(name, _)| name.as_bytes() == reference.name.as_bytes()).unwrap().1.clone()
    });
    let sources =
        std::iter::once(main).chain(named).map(|source| SourceFile::from_file(source, None).unwrap()).collect();
    let format = Format::by_name(FORMAT_NAME).unwrap();
    let image = Image::new(vec![Layer { reader: Box::new(reader), format, files: sources }]);
    let bytes = content(&image)?;
    image.spans_exclusive()?.try_for_each(|span| span.map(drop))?;
    Ok(bytes)
}

/// Returns the guest data of an image in one file.
fn read_one(bytes: &[u8]) -> Result<Vec<u8>> {
    let options = crate::image::OpenOptions::new().format(Format::by_name(FORMAT_NAME).unwrap());
    content(&options.open_source(file(bytes))?)
}

/// Returns the expected kind of the extent at guest offset `offset`.
fn expected(sparse: &Sparse, built: &Built, offset: u64) -> ExtentKind {
    let grain = sparse.grain * SECTOR;
    let index = offset / grain;
    let (sector, len) = built.places[index as usize];
    let host_offset = u64::from(sector) * SECTOR;
    match (sparse.grains[index as usize], sparse.framing) {
        (Grain::None, _) => ExtentKind::Hole,
        (Grain::Zero, _) => ExtentKind::Zero { allocated: None },
        (Grain::Data(_), None) => ExtentKind::Data(Location { file: IMAGE, offset: host_offset + offset % grain }),
        (Grain::Data(_), Some((framing, codec))) => ExtentKind::Compressed(Compressed {
            at: Location { file: IMAGE, offset: host_offset + if framing == Framing::Marked { 12 } else { 0 } },
            stored_len: len as u32,
            codec,
            unit: index * grain,
            unit_len: grain as u32,
            min_len: grain.min(sparse.capacity * SECTOR - index * grain) as u32,
        }),
    }
}

/// Compares the extents with the expected kind of each sector, starting at various offsets.
fn verify(sparse: &Sparse, built: &Built) {
    let reader = open(&built.file).unwrap();
    let size = sparse.capacity * SECTOR;
    assert_eq!(reader.info().virtual_size, size);
    let check = |extent: Extent, at: u64| {
        let expected = expected(sparse, built, at);
        match (extent.kind.advance(at - extent.offset), expected) {
            (ExtentKind::Compressed(mut found), ExtentKind::Compressed(wanted)) => {
                // The length of a bare payload is not stored.
                assert!(found.stored_len >= wanted.stored_len);
                assert!(found.at.offset + u64::from(found.stored_len) <= built.file.len() as u64);
                if matches!(sparse.framing, Some((Framing::Bare, _))) {
                    found.stored_len = wanted.stored_len;
                }
                assert_eq!(found, wanted);
            }
            (found, wanted) => assert_eq!(found, wanted, "at {at:#x} of {extent:?}"),
        }
    };
    let table = u64::from(sparse.entries) * sparse.grain * SECTOR;
    let mut last: Option<Extent> = None;
    let mut at = 0;
    while at < size {
        let extent = reader.extent_at(at..u64::MAX).unwrap();
        assert_eq!(extent.offset, at);
        assert!(extent.len > 0 && extent.end() <= size);
        (at..extent.end()).step_by(512).for_each(|at| check(extent, at));
        let in_table = at % table / (sparse.grain * SECTOR);
        if let Some(last) = last.filter(|_| !in_table.is_multiple_of(4096)) {
            assert!(!last.kind.continues(last.len, extent.kind), "{last:?} and {extent:?} are not merged");
        }
        (at, last) = (extent.end(), Some(extent));
    }
    for at in (0..size).step_by(512 * 7).chain([size - 1]) {
        let extent = reader.extent_at(at..u64::MAX).unwrap();
        assert!(extent.offset == at && extent.len > 0 && extent.end() <= size);
        check(extent, at);
        check(extent, extent.end() - 1);
    }
    assert!(reader.extent_at(size..u64::MAX).is_err());
    assert!(read_one(&built.file).unwrap() == sparse.guest(), "the content");
}

fn extents() -> impl Strategy<Value = Sparse> {
    let sizes = prop_oneof![
        3 => (Just(1u64), 1u64..40),
        1 => (Just(1u64), 4000u64..9000),
        2 => (Just(8), 1u64..30),
        2 => (Just(128), 1u64..10),
        1 => (Just(2048), 1u64..4),
    ];
    let entries = prop::sample::select(vec![1u32, 3, 512, 4096, 8192]);
    let content = prop_oneof![2 => Just(None), 1 => Just(Some(false)), 4 => Just(Some(true))];
    let runs = prop::collection::vec((content, 1u64..9), 1..12);
    let codec = prop_oneof![Just(Codec::Zlib), Just(Codec::Deflate)];
    let framing = prop::option::of((prop_oneof![Just(Framing::Marked), Just(Framing::Bare)], codec));
    let order = prop_oneof![Just(Order::Ascending), Just(Order::Descending), Just(Order::Interleaved)];
    let flags = (any::<bool>(), any::<bool>(), prop::option::of(0usize..3));
    (sizes, any::<prop::sample::Index>(), entries, runs, framing, order, flags).prop_map(
        |((grain, count), tail, entries, runs, framing, order, (short, redundant, footer))| {
            let kinds = runs.iter().flat_map(|&(kind, len)| (0..len).map(move |_| kind)).cycle();
            let grains = kinds.take(count as usize).enumerate().map(|(index, kind)| match kind {
                None => Grain::None,
                Some(false) => Grain::Zero,
                Some(true) => Grain::Data(index as u8),
            });
            // The large counts test table pages. Compressing so many grains would take long.
            let framing = framing.filter(|_| count < 1000);
            // Only streams have tables at the end.
            let footer = footer.filter(|_| matches!(framing, Some((Framing::Marked, _)))).map(|sectors| sectors * 700);
            Sparse {
                capacity: (count - 1) * grain + 1 + tail.index(grain as usize) as u64,
                grain,
                entries,
                grains: grains.collect(),
                framing,
                short: short && (framing.is_some() || order == Order::Ascending),
                redundant: redundant && footer.is_none(),
                footer,
                order,
                descriptor: None,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hosted_extents_are_mapped(sparse in extents()) {
        verify(&sparse, &sparse.build());
    }

    #[test]
    fn cowd_extents_are_mapped(sparse in extents()) {
        // The grain size of COWD extents need not be a power of two.
        let grain = if sparse.grain == 8 { 7 } else { sparse.grain };
        let count = sparse.grains.len() as u64;
        let grains = sparse.grains.iter().map(|kind| if *kind == Grain::Zero { Grain::None } else { *kind });
        let sparse = Sparse {
            grain,
            capacity: sparse.capacity.clamp((count - 1) * grain + 1, count * grain),
            grains: grains.collect(),
            framing: None,
            short: false,
            entries: 4096,
            ..sparse
        };
        verify(&sparse, &sparse.build_cowd());
    }
}

#[test]
fn contiguous_grains_are_merged() {
    let sparse = Sparse { entries: 512, ..Sparse::plain(600) };
    let reader = open(&sparse.build().file).unwrap();
    let lens: Vec<_> = [0, 5, 512 * 4096].map(|at| reader.extent_at(at..u64::MAX).unwrap().len).into();
    assert_eq!(lens, [512 * 4096, 512 * 4096 - 5, 88 * 4096]);
}

#[test]
fn unallocated_tables_are_merged() {
    let mut sparse = Sparse { entries: 1, ..Sparse::plain(30) };
    sparse.grains[1..29].fill(Grain::None);
    let reader = open(&sparse.build().file).unwrap();
    let hole = reader.extent_at(4096..u64::MAX).unwrap();
    assert_eq!(hole, Extent { offset: 4096, len: 28 * 4096, kind: ExtentKind::Hole });
    verify(&sparse, &sparse.build());
}

/// A page has 4096 entries. The last table ends with its second one, and the disk in it.
#[test]
fn tables_are_read_in_pages() {
    let mut sparse = Sparse { entries: 8192, grain: 1, capacity: 13_000, ..Sparse::plain(13_000) };
    sparse.grains.fill(Grain::None);
    for (index, seed) in [(4095, 1), (4096, 2), (4200, 3), (8191, 4), (8192, 5), (12_999, 6)] {
        sparse.grains[index] = Grain::Data(seed);
    }
    verify(&sparse, &sparse.build());
}

/// Of the last table, the two entries are needed that the disk has.
#[test]
fn the_file_may_end_within_the_last_table() {
    let mut sparse = Sparse { entries: 4096, grain: 1, capacity: 4098, redundant: false, ..Sparse::plain(4098) };
    sparse.grains[..4096].fill(Grain::None);
    for built in [sparse.build(), sparse.build_cowd()] {
        let table = LittleEndian::read_u32(&built.file[built.directories[0] + 4..]) as usize * 512;
        let mut bytes = built.file[..table + 8].to_vec();
        bytes[table..].fill(0);
        assert!(read_one(&bytes).unwrap() == [0; 4098 * 512]);
        bytes.pop();
        assert_eq!(open(&bytes).err().unwrap().kind().as_str(), "out-of-bounds");
    }
}

/// Damages an image. Returns the number of warnings and whether the guest data is correct.
fn with_damage(sparse: &Sparse, damage: impl Fn(&mut Vec<u8>, &Built)) -> Result<(usize, bool)> {
    let built = sparse.build();
    let mut bytes = built.file.clone();
    damage(&mut bytes, &built);
    let warnings = open(&bytes)?.info.warnings;
    let count = warnings.iter().filter(|text| text.contains("redundant")).count();
    Ok((count, read_one(&bytes)? == sparse.guest()))
}

#[test]
fn the_redundant_directory_replaces_a_damaged_one() {
    let sparse = Sparse::plain(10);
    let put = |bytes: &mut [u8], at: usize, value: u32| LittleEndian::write_u32(&mut bytes[at..], value);
    type Damage<'a> = &'a dyn Fn(&mut Vec<u8>, &Built);
    let damages: [(&str, Damage<'_>); 6] = [
        ("directory on the header", &|bytes, _| put(bytes, 56, 0)),
        ("directory out of bounds", &|bytes, _| put(bytes, 56, 1 << 20)),
        ("first table out of bounds", &|bytes, built| put(bytes, built.directories[0], 1 << 20)),
        ("last table out of bounds", &|bytes, built| put(bytes, built.directories[0] + 8, u32::MAX)),
        ("table missing", &|bytes, built| put(bytes, built.directories[0] + 4, 0)),
        ("all tables missing", &|bytes, built| bytes[built.directories[0]..][..12].fill(0)),
    ];
    for (what, damage) in damages {
        assert_eq!(with_damage(&sparse, damage).unwrap(), (1, true), "{what}");
        // Without a redundant directory, the data is not correct.
        let alone = with_damage(&Sparse { redundant: false, ..sparse.clone() }, damage);
        assert!(!matches!(alone, Ok((_, true))), "{what}");
        // Damage to the tables of the redundant directory has no effect.
        let second = |bytes: &mut Vec<u8>, built: &Built| {
            let mirrored = Built { directories: [built.directories[1], 0], file: Vec::new(), places: Vec::new() };
            damage(bytes, &mirrored);
        };
        if !what.starts_with("directory") {
            assert_eq!(with_damage(&sparse, second).unwrap(), (0, true), "{what}");
        }
        let both = with_damage(&sparse, |bytes, built| {
            damage(bytes, built);
            put(bytes, 48, 1 << 20);
        });
        assert!(!matches!(both, Ok((_, true))), "{what}");
    }
    assert_eq!(with_damage(&sparse, |_, _| {}).unwrap(), (0, true));
    // A table in only one of the directories must not be lost.
    let each = with_damage(&sparse, |bytes, built| {
        put(bytes, built.directories[0], 0);
        put(bytes, built.directories[1] + 4, 0);
    });
    assert!(matches!(each, Err(_) | Ok((1, true))), "{each:?}");
}

#[test]
fn an_empty_table_with_a_redundant_copy_is_refused() {
    let sparse = Sparse::plain(10);
    let built = sparse.build();
    let table = |which: usize| {
        let entry = built.directories[which];
        LittleEndian::read_u32(&built.file[entry..]) as usize * 512
    };
    let mut bytes = built.file.clone();
    bytes[table(0)..][..16].fill(0);
    let error = read_one(&bytes).unwrap_err();
    assert!(error.to_string().contains("redundant grain table has allocated grains"), "{error}");
    // Pages are compared, not only the first one of a table.
    let mut paged = Sparse { entries: 8192, grain: 1, capacity: 5000, ..Sparse::plain(5000) };
    paged.grains.fill(Grain::None);
    paged.grains[4097] = Grain::Data(1);
    let large = paged.build();
    let table_at = LittleEndian::read_u32(&large.file[large.directories[0]..]) as usize * 512;
    let mut bytes = large.file.clone();
    bytes[table_at + 4 * 4097..][..4].fill(0);
    let error = read_one(&bytes).unwrap_err();
    assert!(error.to_string().contains("redundant grain table has allocated grains"), "{error}");
    // An empty redundant table has no effect.
    let mut bytes = built.file.clone();
    bytes[table(1)..][..16].fill(0);
    assert!(read_one(&bytes).unwrap() == sparse.guest());
}

#[test]
fn footers_are_found_and_validated() {
    let sparse = Sparse::stream(10);
    for padding in [0, 512, 1024, 100, 511, 64 << 10, 1 << 19] {
        let built = Sparse { footer: Some(padding), ..sparse.clone() }.build();
        assert!(read_one(&built.file).unwrap() == sparse.guest(), "{padding} bytes of padding");
    }
    let whole = sparse.build().file;
    let footer = whole.len() - 1024;
    let kind = |bytes: &[u8]| open(bytes).err().map(|error| error.kind().as_str());
    // The end-of-stream marker may be missing, but not the footer or its marker.
    assert_eq!(kind(&whole[..whole.len() - 512]), None);
    assert_eq!(kind(&whole[..footer]), Some("invalid-field"));
    for len in (512..footer).step_by(512) {
        assert_eq!(kind(&whole[..len]), Some("invalid-field"), "cut to {len}");
    }
    let changed = |at: usize, value: u64| {
        let mut bytes = whole.clone();
        LittleEndian::write_u64(&mut bytes[at..], value);
        kind(&bytes)
    };
    assert_eq!(changed(footer - 512, 7), None, "the marker's size is not used");
    for (at, value, expected) in [
        (footer, 0, "invalid-field"),
        (footer - 512 + 8, 0, "invalid-field"),
        (footer + 12, 81, "invalid-field"),
        (footer + 20, 16, "invalid-field"),
        (footer + 56, u64::MAX, "invalid-field"),
        (footer + 56, 1 << 30, "out-of-bounds"),
    ] {
        assert_eq!(changed(at, value), Some(expected), "{value} at {at}");
    }
    // More padding than the search limit.
    let built = Sparse { footer: Some(3 << 20), ..sparse.clone() }.build();
    assert!(read_one(&built.file).unwrap() == sparse.guest());
}

#[test]
fn bytes_after_a_stream_are_ignored_with_a_warning() {
    let sparse = Sparse::stream(10);
    let whole = sparse.build().file;
    let warnings = |bytes: &[u8]| {
        assert!(read_one(bytes).unwrap() == sparse.guest());
        open(bytes).unwrap().info().warnings.clone()
    };
    assert_eq!(warnings(&whole), [NO_DESCRIPTOR]);
    let warning =
        |trailing| [NO_DESCRIPTOR.to_owned(), format!("{trailing} bytes after the end of the stream are ignored")];
    for trailing in [vec![0; 10240], vec![7], vec![7; 512], vec![b'x'; 3 << 20], [vec![0; 5000], vec![1; 512]].concat()]
    {
        assert_eq!(warnings(&[&whole[..], &trailing].concat()), warning(trailing.len()));
    }
    // Another stream, whose footer counts sectors from its own header.
    let other = Sparse::stream(9).build().file;
    assert_eq!(warnings(&[&whole[..], &other].concat()), warning(other.len()));
    // Without an end-of-stream marker.
    let end = whole.len() - 512;
    assert_eq!(warnings(&[&whole[..end], &[7; 700]].concat()), warning(700));
    // A truncated stream is refused, although what a guest wrote looks like the end of a stream.
    let cut = sparse.build().places[7].0 as usize * 512;
    let forged = [&whole[..cut], &[0xee; 512], &whole[end - 1024..], &[7; 512]].concat();
    assert_eq!(open(&forged).err().map(|error| error.kind().as_str()), Some("invalid-field"));
}

#[test]
fn invalid_entries_are_refused() {
    for (framing, cases) in [
        (None, [(0u32, 1u32 << 30, "out-of-bounds"), (3, u32::MAX, "out-of-bounds"), (9, 1 << 24, "out-of-bounds")]),
        (Some(Framing::Bare), [(0, 1 << 30, "out-of-bounds"), (3, u32::MAX, "out-of-bounds"), (5, 0, "decode")]),
        (Some(Framing::Marked), [(0, 1 << 30, "out-of-bounds"), (3, 0, "invalid-field"), (9, 0, "invalid-field")]),
    ] {
        let sparse = Sparse { framing: framing.map(|framing| (framing, Codec::Zlib)), ..Sparse::plain(10) };
        let built = sparse.build();
        for (grain, entry, kind) in cases {
            // 0 means the entry of another grain, or the directory, neither of which is a payload.
            let entry = match (entry, framing) {
                (0, Some(Framing::Marked)) => built.places[grain as usize - 1].0,
                (0, _) => built.directories[0] as u32 / 512,
                (entry, _) => entry,
            };
            let table = LittleEndian::read_u32(&built.file[built.directories[0] + grain as usize / 4 * 4..]);
            let at = table as usize * 512 + grain as usize % 4 * 4;
            let mut bytes = built.file.clone();
            LittleEndian::write_u32(&mut bytes[at..], entry);
            let error = read_one(&bytes).unwrap_err();
            assert_eq!(error.kind().as_str(), kind, "{framing:?}, grain {grain}: {error}");
            // Preceding grains are mapped.
            let reader = open(&bytes).unwrap();
            assert!((0..grain).all(|before| reader.extent_at(u64::from(before) * 4096..u64::MAX).is_ok()));
        }
    }
}

#[test]
fn payload_lengths_are_validated() {
    let sparse = Sparse::stream(4);
    let built = sparse.build();
    let at = built.places[2].0 as usize * 512;
    for (size, kind) in [(1 << 20, "invalid-field"), (u32::MAX, "invalid-field"), (0, "invalid-field"), (3, "decode")] {
        let mut bytes = built.file.clone();
        LittleEndian::write_u32(&mut bytes[at + 8..], size);
        let error = read_one(&bytes).unwrap_err();
        assert_eq!(error.kind().as_str(), kind, "{size}: {error}");
    }
}

/// Returns a descriptor with these extent lines.
fn descriptor(lines: &[&str]) -> String {
    let lines = lines.join("\n");
    format!("# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"custom\"\n{lines}\n")
}

fn filled(byte: u8, sectors: usize) -> Vec<u8> {
    (0..sectors * 512).map(|at| byte ^ (at / 512) as u8).collect()
}

#[test]
fn extents_in_several_files() {
    let sparse = Sparse { capacity: 77, ..Sparse::plain(10) };
    let stream = Sparse { capacity: 13, ..Sparse::stream(2) };
    let cowd = Sparse { grain: 3, capacity: 28, ..Sparse::plain(10) };
    let flat = filled(0x40, 100);
    let text = descriptor(&[
        "RW 10 FLAT \"flat\" 5",
        "RDONLY 77 SPARSE \"sparse\"",
        "NOACCESS 3 ZERO",
        "RW 0 FLAT \"flat\" 100",
        "RW 28 VMFSSPARSE \"cowd\"",
        "RW 20 VMFS \"flat\" 60",
        "RW 13 SPARSE \"stream\"",
    ]);
    let files = [
        ("sparse", sparse.build().file),
        ("flat", flat.clone()),
        ("cowd", cowd.build_cowd().file),
        ("stream", stream.build().file),
    ];
    let parts = [
        flat[5 * 512..15 * 512].to_vec(),
        sparse.guest(),
        vec![0; 3 * 512],
        cowd.guest(),
        flat[60 * 512..80 * 512].to_vec(),
        stream.guest(),
    ];
    assert!(read(&text, &files).unwrap() == parts.concat());
    let twice = descriptor(&["RW 77 SPARSE \"sparse\"", "RW 77 SPARSE \"sparse\""]);
    assert_eq!(read(&twice, &files).unwrap_err().kind().as_str(), "overlap");
    // A file that is used twice is opened once. File ids follow the order of the descriptor.
    let opened: Vec<_> = files.iter().map(|(name, bytes)| (*name, file(bytes))).collect();
    let reader = with_files(&opened, |cx| Reader::open(file(text.as_bytes()), cx)).unwrap();
    let names: Vec<_> = reader.info.files.iter().map(|reference| reference.name.to_text().into_owned()).collect();
    assert_eq!(names, ["flat", "sparse", "cowd", "stream"]);
    let second = reader.extent_at((10 + 77 + 3 + 28) * 512..u64::MAX).unwrap();
    let at = Location { file: FileId(1), offset: 60 * 512 };
    assert_eq!(second, Extent { offset: 118 * 512, len: 20 * 512, kind: ExtentKind::Data(at) });
    // Units are guest offsets, not offsets in the extent.
    let last = reader.extent_at(150 * 512..u64::MAX).unwrap();
    let ExtentKind::Compressed(unit) = last.kind else { panic!("{last:?}") };
    assert_eq!((unit.at.file, unit.unit, unit.unit_len, unit.min_len), (FileId(4), 146 * 512, 4096, 5 * 512));
}

#[test]
fn extents_may_be_shorter_than_their_files() {
    let sparse = Sparse { entries: 3, ..Sparse::plain(10) };
    let files = [("a", sparse.build().file), ("b", filled(1, 10))];
    for sectors in [1, 8, 9, 24, 79, 80] {
        let text = descriptor(&[&format!("RW {sectors} SPARSE \"a\""), "RW 10 FLAT \"b\" 0"]);
        let expected = [&sparse.guest()[..sectors * 512], &filled(1, 10)].concat();
        assert!(read(&text, &files).unwrap() == expected, "{sectors}");
    }
    for (line, kind) in [
        ("RW 81 SPARSE \"a\"", "invalid-field"),
        ("RW 11 FLAT \"b\" 0", "out-of-bounds"),
        ("RW 1 FLAT \"b\" 10", "out-of-bounds"),
        ("RW 1 SPARSE \"b\"", "invalid-field"),
        ("RW 1 VMFSSPARSE \"a\"", "invalid-field"),
        ("RW 1 SESPARSE \"a\"", "invalid-field"),
    ] {
        let error = read(&descriptor(&[line]), &files).unwrap_err();
        assert_eq!(error.kind().as_str(), kind, "{line}: {error}");
    }
    // A flat file may hold several extents, a sparse extent is a whole file.
    read(&descriptor(&["RW 4 FLAT \"b\" 0", "RW 6 FLAT \"b\" 4"]), &files).unwrap();
    let error = read(&descriptor(&["RW 8 SPARSE \"a\"", "RW 8 SPARSE \"a\""]), &files).unwrap_err();
    assert_eq!(error.kind().as_str(), "overlap", "{error}");
}

#[test]
fn overlaps_are_tracked_by_file() {
    let files = [("a", filled(1, 10)), ("b", filled(2, 10))];
    let both =
        |first: &str, second: &str| read(&descriptor(&[first, second]), &files).map_err(|error| error.kind().as_str());
    assert!(both("RW 10 FLAT \"a\" 0", "RW 10 FLAT \"b\" 0").is_ok());
    assert!(both("RW 5 FLAT \"a\" 0", "RW 5 FLAT \"a\" 5").is_ok());
    assert_eq!(both("RW 5 FLAT \"a\" 0", "RW 5 FLAT \"a\" 4"), Err("overlap"));
    // One sparse file in two extents.
    let files = [("a", Sparse::plain(10).build().file)];
    let twice = read(&descriptor(&["RW 80 SPARSE \"a\"", "RW 80 SPARSE \"a\""]), &files);
    assert_eq!(twice.unwrap_err().kind().as_str(), "overlap");
}

#[test]
fn space_efficient_sparse() {
    let capacity = 2 * sesparse::TABLE_COVERAGE / 512 + 5;
    let (header, constant, volatile) = sesparse::tests::encode(capacity);
    let mut bytes = vec![0; header.grains.start as usize];
    bytes[..512].copy_from_slice(&constant);
    bytes[header.volatile_header.start as usize..][..512].copy_from_slice(&volatile);
    let put = |bytes: &mut Vec<u8>, at: u64, value: u64| LittleEndian::write_u64(&mut bytes[at as usize..], value);
    // Table 2 is stored first, table 1 is unallocated.
    let directory = header.grain_directory.start;
    put(&mut bytes, directory, 0x1000_0000 << 32 | 1);
    put(&mut bytes, directory + 16, 0x1000_0000 << 32);
    let (table_0, table_2) = (header.grain_tables.start + sesparse::TABLE, header.grain_tables.start);
    let data = |number: u64| 3 << 60 | (number & 0xfff) << 48 | number >> 12;
    for (index, entry) in [(0, data(1)), (1, data(2)), (2, 1 << 60), (3, 2 << 60), (4, data(0)), (4095, data(5000))] {
        put(&mut bytes, table_0 + index * 8, entry);
    }
    put(&mut bytes, table_2, data(3));
    bytes.resize(bytes.len() + 5001 * 4096, 0);
    for grain in [0u64, 1, 2, 3, 5000] {
        bytes[header.grains.start as usize + grain as usize * 4096..][..4096].fill(grain as u8 + 1);
    }
    let text = descriptor(&[&format!("RW {capacity} SESPARSE \"s\"")]);
    let guest = read(&text, &[("s", bytes.clone())]).unwrap();
    let mut expected = vec![0; capacity as usize * 512];
    for (grain, value) in [(0, 2), (1, 3), (4, 1), (4095, (5001 & 0xff) as u8)] {
        expected[grain * 4096..][..4096].fill(value);
    }
    expected[2 * sesparse::TABLE_COVERAGE as usize..].fill(4);
    assert!(guest == expected);
    let opened = [("s", file(&bytes))];
    let reader = with_files(&opened, |cx| Reader::open(file(text.as_bytes()), cx)).unwrap();
    // A table is read in two pages.
    let found: Vec<_> = [0, 2 * 4096, 4 * 4096, 5 * 4096].map(|at| reader.extent_at(at..u64::MAX).unwrap()).into();
    assert_eq!(found.iter().map(|extent| extent.len / 4096).collect::<Vec<_>>(), [2, 2, 1, 2043]);
    assert_eq!(found[1].kind, ExtentKind::Zero { allocated: None });
    assert_eq!(found[3].kind, ExtentKind::Hole);
    // Grains out of bounds, invalid entries, and the extent without its descriptor.
    let kind = |at: u64, value: u64| {
        let mut bytes = bytes.clone();
        put(&mut bytes, at, value);
        read(&text, &[("s", bytes)]).unwrap_err().kind().as_str()
    };
    assert_eq!(kind(table_0, data(capacity)), "out-of-bounds");
    assert_eq!(kind(table_0, data((1 << 60) - 1)), "out-of-bounds");
    assert_eq!(kind(table_0, 4 << 60), "invalid-field");
    assert_eq!(kind(directory, 0x1000_0000 << 32 | 5000), "invalid-field");
    assert_eq!(open(&bytes).err().unwrap().kind().as_str(), "unsupported");
}

#[test]
fn properties_need_no_extent_files() {
    let text = descriptor(&["RW 10 FLAT \"a\" 0", "RW 3 ZERO", "RW 80 SPARSE \"b\""]);
    let (limits, budget) = (Limits::default(), crate::limits::Budget::new(1 << 20));
    let cx = OpenContext::new(&limits, &budget);
    let reader = Reader::open(file(text.as_bytes()), &cx).unwrap();
    assert_eq!(reader.info().virtual_size, 93 * 512);
    assert_eq!(reader.info().files.len(), 2);
    assert_eq!(reader.extent_at(0..u64::MAX).unwrap_err().kind().as_str(), "usage");
    assert_eq!(reader.extent_at(10 * 512..u64::MAX).unwrap().kind, ExtentKind::Zero { allocated: None });
    assert_eq!(reader.extent_at(13 * 512..u64::MAX).unwrap_err().kind().as_str(), "usage");
    // VMDK has no internal snapshots.
    assert!(Reader::open(file(text.as_bytes()), &OpenContext { snapshot: Some("1"), ..cx }).is_err());
    // The grain size is in the file of the extent, and names are relative to the image.
    let extents = |cx: &OpenContext<'_>| {
        let cx = OpenContext { path: Some(std::path::Path::new("/vm/disk.vmdk")), ..*cx };
        let reader = Reader::open(file(text.as_bytes()), &cx).unwrap();
        let Some(Value::List(extents)) = reader.info().property("extents").cloned() else { panic!() };
        extents
            .into_iter()
            .map(|extent| {
                let Value::Map(extent) = extent else { panic!() };
                let get = |name| extent.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
                (get("filename"), get("cluster-size"))
            })
            .collect::<Vec<_>>()
    };
    let beside =
        |name: &str| Some(Value::Text(Name::from(&*std::path::Path::new("/vm/disk.vmdk").with_file_name(name))));
    let names = [beside("a"), None, beside("b")];
    assert_eq!(extents(&cx), names.clone().map(|name| (name, None)));
    let files = [("a", file(&[0; 5120])), ("b", file(&Sparse { descriptor: None, ..Sparse::plain(10) }.build().file))];
    let [a, zero, b] = names;
    assert_eq!(with_files(&files, extents), [(a, None), (zero, None), (b, Some(4096.into()))]);
}

#[test]
fn embedded_descriptors() {
    let with = |lines: &[&str]| {
        let text = descriptor(lines);
        assert!(text.len() <= 512);
        Sparse { descriptor: Some(text), ..Sparse::plain(10) }
    };
    // The file name is ignored.
    let sparse = with(&["RW 80 SPARSE \"/etc/passwd\""]);
    let reader = open(&sparse.build().file).unwrap();
    assert_eq!(reader.info().identities, [content_id(0x1234_5678)]);
    let extent = |name: &str| {
        let names =
            vec![("virtual-size", (80 * SECTOR).into()), ("filename", name.into()), ("cluster-size", 4096.into())];
        let kind = vec![("format", "SPARSE".into()), ("access", "RW".into())];
        Some(Value::List(vec![Value::Map([names, kind].concat())]))
    };
    assert_eq!(reader.info().property("extents").cloned(), extent("/etc/passwd"));
    let path = Some(std::path::Path::new("/vm/disk.vmdk"));
    let renamed = with_files(&[], |cx| Reader::open(file(&sparse.build().file), &OpenContext { path, ..*cx })).unwrap();
    assert_eq!(renamed.info().property("extents").cloned(), extent("/vm/disk.vmdk"));
    assert!(reader.info().warnings.is_empty() && reader.info().files.is_empty());
    verify(&sparse, &sparse.build());
    // VirtualBox rounds the capacity up to a whole grain.
    let rounded = with(&["RW 75 SPARSE \"a\""]).build().file;
    assert!(read_one(&rounded).unwrap() == sparse.guest()[..75 * 512]);
    // A larger difference is not rounding.
    assert_eq!(open(&with(&["RW 64 SPARSE \"a\""]).build().file).unwrap().info().virtual_size, 80 * 512);
    for (lines, kind) in [
        (&["RW 81 SPARSE \"a\""][..], "invalid-field"),
        (&["RW 80 FLAT \"a\" 0"], "invalid-field"),
        (&["RW 40 SPARSE \"a\"", "RW 40 SPARSE \"b\""], "unsupported"),
    ] {
        let error = open(&with(lines).build().file).err().unwrap();
        assert_eq!(error.kind().as_str(), kind, "{lines:?}: {error}");
    }
    // Extents of split disks have zeros instead of a descriptor.
    let whole = sparse.build().file;
    let mut file = whole.clone();
    file[512..1024].fill(0);
    let reader = open(&file).unwrap();
    assert_eq!(reader.info().warnings, [NO_DESCRIPTOR]);
    // A damaged descriptor is an error, since it may name a parent.
    let mut file = whole.clone();
    file[512..516].copy_from_slice(b"void");
    assert_eq!(open(&file).err().map(|error| error.kind().as_str()), Some("invalid-field"));
    // The length of the descriptor is limited.
    let mut file = whole;
    file.resize(6 << 20, 0);
    let most = Limits::default().text_length;
    LittleEndian::write_u64(&mut file[36..], most / 512);
    assert!(open(&file).is_ok());
    LittleEndian::write_u64(&mut file[36..], most / 512 + 1);
    assert_eq!(open(&file).err().map(|error| error.kind().as_str()), Some("limit"));
}

#[test]
fn empty_disks_are_read() {
    for sparse in [Sparse::plain(0), Sparse::stream(0)] {
        let built = sparse.build();
        assert!(read_one(&built.file).unwrap().is_empty());
    }
    assert!(read_one(&Sparse::plain(0).build_cowd().file).unwrap().is_empty());
    assert!(read(&descriptor(&["RW 0 FLAT \"a\" 0"]), &[("a", Vec::new())]).unwrap().is_empty());
}

#[test]
fn unclean_extents_are_reported() {
    let sparse = Sparse::plain(2);
    let mut bytes = sparse.build().file;
    let mut header = Header::parse(&bytes[..512], 0, &Limits::default()).unwrap();
    assert!(!open(&bytes).unwrap().info().dirty);
    assert!(matches!(header.directory, Directory::At(_)));
    header.unclean = true;
    bytes[..512].copy_from_slice(&header.encode());
    assert!(open(&bytes).unwrap().info().dirty);
    let text = descriptor(&["RW 16 SPARSE \"a\""]);
    let reader = with_files(&[("a", file(&bytes))], |cx| Reader::open(file(text.as_bytes()), cx)).unwrap();
    assert!(reader.info().dirty);
    assert_eq!(reader.info().block_size, Some(4096));
    let text = descriptor(&["RW 16 VMFSSPARSE \"a\""]);
    for unclean in [false, true] {
        let mut bytes = sparse.build_cowd().file;
        bytes[1648] = unclean.into();
        let reader = with_files(&[("a", file(&bytes))], |cx| Reader::open(file(text.as_bytes()), cx)).unwrap();
        assert_eq!(reader.info().dirty, unclean);
    }
}

#[test]
fn truncated_metadata_is_refused() {
    let whole = Sparse { descriptor: Some(descriptor(&["RW 80 SPARSE \"a\""])), ..Sparse::plain(10) }.build().file;
    for len in 0..whole.len().min(5000) {
        match open(&whole[..len]) {
            Ok(_) => assert!(len > 1024, "{len}"),
            Err(error) => assert!(matches!(error.kind().as_str(), "out-of-bounds" | "invalid-field"), "{len}: {error}"),
        }
    }
}
