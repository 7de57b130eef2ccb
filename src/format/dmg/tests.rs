use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::codec::Codec;
use crate::driver::{Compressed, Extent, ExtentKind, FileId, Location, OpenContext, SparseRead};
use crate::error::Result;
use crate::format::Format;
use crate::io::{MemFile, WriteAt};
use crate::limits::{Budget, Limits};
use crate::testing::SparseFile;
use crate::testing::dmg::{
    self, ADC, BZIP2, COMMENT, DATA_FORK, DmgBuilder, DmgRun, END, LZFSE, RAW, UNUSED, XZ, ZEROS, ZLIB,
};

fn open(bytes: Vec<u8>) -> Result<Reader> {
    let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
    Reader::open(Arc::new(MemFile::from(bytes)), &OpenContext::new(&limits, &budget))
}

/// The kind and the text of the error.
fn error(bytes: Vec<u8>) -> String {
    let error = open(bytes).err().unwrap();
    format!("{} {error}", error.kind())
}

/// An image of one table with these entries, in a data fork of 4 KiB.
fn of_runs(first: u64, data: u64, runs: &[DmgRun], sectors: u64) -> Vec<u8> {
    let table = dmg::block_table(first, sectors, data, 0, runs);
    dmg::dmg(&[1; 4096], &dmg::property_list(&[table]), sectors)
}

fn run(kind: u32, sector: u64, count: u64, offset: u64, len: u64) -> DmgRun {
    DmgRun { kind, sector, count, offset, len }
}

#[test]
fn each_type_of_run_is_mapped() {
    let mut image = DmgBuilder::default();
    image.run(RAW, 1, &[1; 512]).run(ZEROS, 2, &[]).run(UNUSED, 3, &[]).run(COMMENT, 0, &[]).end_partition(0);
    image.run(ADC, 2, &[4; 10]).run(ZLIB, 2, &[5; 11]).run(BZIP2, 2, &[6; 12]);
    image.run(LZFSE, 2, &[7; 13]).run(XZ, 2, &[8; 14]).run(RAW, 2, &[2; 1024]).end_partition(0);
    let reader = open(image.build()).unwrap();
    assert_eq!(reader.info().virtual_size, 18 * 512);
    let at = |offset| Location { file: FileId(0), offset: DATA_FORK + offset };
    let unit = |sector: u64, codec, offset, stored_len| {
        ExtentKind::Compressed(Compressed {
            at: at(offset),
            stored_len,
            codec,
            unit: sector * 512,
            unit_len: 1024,
            min_len: 1024,
        })
    };
    let zeros = ExtentKind::Zero { allocated: None };
    for (sectors, kind) in [
        (0..1, ExtentKind::Data(at(0))),
        (1..3, zeros),
        (2..3, zeros),
        (3..6, zeros),
        (6..8, unit(6, Codec::Adc, 512, 10)),
        (7..8, unit(6, Codec::Adc, 512, 10)),
        (8..10, unit(8, Codec::Zlib, 522, 11)),
        (10..12, unit(10, Codec::Bzip2, 533, 12)),
        (12..14, unit(12, Codec::Lzfse, 545, 13)),
        (14..16, unit(14, Codec::Xz, 558, 14)),
        (16..18, ExtentKind::Data(at(572))),
        (17..18, ExtentKind::Data(at(572 + 512))),
    ] {
        let range = sectors.start * 512..sectors.end * 512;
        assert_eq!(reader.extent_at(range.clone()).unwrap(), Extent::new(range, kind), "{sectors:?}");
    }
    assert_eq!(reader.extent_at(18 * 512..18 * 512 + 1).unwrap_err().kind().as_str(), "usage");
}

#[test]
fn invalid_fields_of_the_trailer_are_refused_by_name() {
    let good = of_runs(0, 0, &[run(RAW, 0, 8, 0, 4096)], 8);
    let end = good.len();
    assert!(open(good.clone()).is_ok());
    let patched = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[end - 512 + at..][..bytes.len()].copy_from_slice(bytes);
        error(image)
    };
    let at = |offset: usize| format!("at file offset {:#x}:", end - 512 + offset);
    let corrupt = |kind: &str, offset, what: &str| format!("{kind} dmg: corrupt image {} {what}", at(offset));
    for (offset, bytes, expected) in [
        (0, &b"k0ly"[..], corrupt("invalid-field", 0, "trailer is missing, or is of another type")),
        (7, &[5], format!("unsupported dmg: not supported {} version 5", at(4))),
        (10, &[4], corrupt("invalid-field", 8, "length of the trailer is 0x400, but must be 512")),
        (63, &[2], format!("unsupported dmg: not supported {} an image of 2 segments", at(60))),
        (
            492,
            &[0xff; 8],
            "limit dmg: virtual size is 18446744073709551615, above the limit of 9223372036854775296 (virtual-size)"
                .into(),
        ),
        (504, b"cdsaencr", "unsupported dmg: not supported: encrypted images".into()),
    ] {
        assert_eq!(patched(offset, bytes), expected);
    }
    let mut fork = good.clone();
    fork[end - 512 + 224..][..8].fill(0);
    fork[end - 512 + 40..][..8].copy_from_slice(&(end as u64 - 512).to_be_bytes());
    fork[end - 512 + 55] = 1;
    let error_of_fork = error(fork);
    assert!(error_of_fork.starts_with("out-of-bounds") && error_of_fork.contains("resource fork"), "{error_of_fork}");
    for (offset, name) in [(24, "data fork"), (32, "data fork"), (216, "property list"), (224, "property list")] {
        for bytes in [[0xff; 8], ((end - 511) as u64).to_be_bytes()] {
            let error = patched(offset, &bytes);
            assert!(error.starts_with("out-of-bounds") && error.contains(name), "{error}");
        }
    }
    assert_eq!(error(b"encrcdsa and more".to_vec()), "unsupported dmg: not supported: encrypted images");
    for len in [0, 100, 511] {
        let error = error(good[end - len..].to_vec());
        assert!(error.contains("trailer is missing"), "{error}");
    }
}

/// The limit of the tables counts their bytes, not what precedes them.
#[test]
fn the_property_list_may_be_far_into_the_file() {
    const FAR: u64 = 64 << 20;
    let small = of_runs(0, 0, &[run(RAW, 0, 8, 0, 4096)], 8);
    let (data, rest) = small.split_at(DATA_FORK as usize + 4096);
    let mut rest = rest.to_vec();
    let list = rest.len() - 512 + 216;
    rest[list..list + 8].copy_from_slice(&(FAR + data.len() as u64).to_be_bytes());
    let file = SparseFile::default();
    file.write_all_at(data, 0).unwrap();
    file.write_all_at(&rest, FAR + data.len() as u64).unwrap();
    let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
    let reader = Reader::open(Arc::new(file), &OpenContext::new(&limits, &budget)).unwrap();
    assert_eq!(reader.info().virtual_size, 8 * 512);
}

#[test]
fn hostile_runs_are_refused() {
    let kind = |first, data, runs: &[DmgRun], sectors| match open(of_runs(first, data, runs, sectors)) {
        Ok(_) => "",
        Err(error) => error.kind().as_str(),
    };
    // What the file has after the data fork.
    let rest = (of_runs(0, 0, &[run(RAW, 0, 1, 0, 512)], 1).len() - 4096 - 512) as u64 - DATA_FORK;
    let max = u64::MAX;
    for (first, data, entry, sectors, expected) in [
        (0, 0, run(RAW, 0, 1, 0, 512), 1, ""),
        (0, 0, run(RAW, 0, 1, 4096 + rest - 512, 512), 1, ""),
        (0, 0, run(RAW, 0, 1, 4096 + rest - 511, 512), 1, "out-of-bounds"),
        (0, 1, run(RAW, 0, 1, 4096 + rest - 512, 512), 1, "out-of-bounds"),
        (0, 0, run(RAW, 0, 1, max, 512), 1, "out-of-bounds"),
        (0, max, run(RAW, 0, 1, 0, 512), 1, "out-of-bounds"),
        (0, 0, run(RAW, 0, 1, 0, 511), 1, "invalid-field"),
        (0, 0, run(RAW, 0, 1, 0, 0), 1, "invalid-field"),
        (0, 0, run(RAW, 0, 1, 0, max), 1, "out-of-bounds"),
        (0, 0, run(ZLIB, 0, 1, 0, 1), 1, ""),
        (0, 0, run(ZLIB, 0, 1, 0, 0), 1, "invalid-field"),
        (0, 0, run(ZLIB, 0, 1, 4096 + rest, 1), 1, "out-of-bounds"),
        (0, 0, run(ZLIB, 0, 1, 1, max), 1, "out-of-bounds"),
        (0, 0, run(XZ, 0, 131072, 0, 1), 131072, ""),
        (0, 0, run(XZ, 131072, 131072, 0, 1), 262144, ""),
        (0, 0, run(XZ, 0, 131073, 0, 1), 131073, "limit"),
        (0, 0, run(ZEROS, 0, 1 << 54, 0, 0), (1 << 54) - 1, "invalid-field"),
        (0, 0, run(ZEROS, 0, (1 << 54) - 1, 0, 0), (1 << 54) - 1, ""),
        (0, 0, run(ZEROS, 0, max, 0, 0), 1, "invalid-field"),
        (0, 0, run(ZEROS, max, 1, 0, 0), 1, "invalid-field"),
        (0, 0, run(ZEROS, 1, 1, 0, 0), 1, "invalid-field"),
        (1, 0, run(ZEROS, 0, 1, 0, 0), 1, "invalid-field"),
        (max, 0, run(ZEROS, 1, 1, 0, 0), 1, "invalid-field"),
        (0, 0, run(0x8000_0003, 0, 1, 0, 512), 1, "unsupported"),
        (0, 0, run(3, 0, 1, 0, 512), 1, "unsupported"),
        // Without sectors, nothing else counts.
        (0, 0, run(3, max, 0, max, max), 1, ""),
    ] {
        assert_eq!(kind(first, data, &[entry], sectors), expected, "{first} {data} {entry:?}");
    }
    let zeros = run(ZEROS, 0, 2, 0, 0);
    for (runs, expected) in [
        ([zeros, run(RAW, 2, 1, 0, 512)], ""),
        ([zeros, run(RAW, 1, 1, 0, 512)], "invalid-field"),
        ([run(RAW, 1, 1, 0, 512), zeros], "invalid-field"),
        ([zeros, zeros], "invalid-field"),
        ([run(RAW, 0, 1, 0, 512), run(RAW, 1, 1, 512, 512)], ""),
        ([run(RAW, 0, 1, 512, 512), run(RAW, 1, 1, 0, 512)], ""),
        ([run(RAW, 0, 1, 0, 512), run(RAW, 1, 1, 511, 512)], "overlap"),
        ([run(ZLIB, 0, 1, 0, 20), run(ZLIB, 1, 1, 0, 20)], "overlap"),
        ([run(ZLIB, 0, 1, 19, 20), run(RAW, 1, 1, 38, 512)], "overlap"),
        ([run(END, 0, 0, 0, 0), run(RAW, 0, 1, 0, 0)], ""),
    ] {
        assert_eq!(kind(0, 0, &runs, 3), expected, "{runs:?}");
    }
}

#[test]
fn a_sector_without_a_run_is_an_error_where_it_is_read() {
    let reader = open(of_runs(0, 0, &[run(RAW, 1, 1, 0, 512), run(ZEROS, 3, 1, 0, 0)], 5)).unwrap();
    for sector in 0..5 {
        let extent = reader.extent_at(sector * 512..5 * 512).map_err(|error| error.to_string());
        match sector {
            1 | 3 => assert_eq!(extent.unwrap().end(), (sector + 1) * 512),
            _ => assert!(extent.unwrap_err().ends_with(&format!("sector is {sector:#x}: no run has this sector"))),
        }
    }
}

#[test]
fn block_tables_are_checked() {
    let table = dmg::block_table(0, 1, 0, 0, &[run(ZEROS, 0, 1, 0, 0)]);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut table = table.clone();
        change(&mut table);
        open(dmg::dmg(&[], &dmg::property_list(&[table]), 1)).map_err(|error| error.to_string()).map(drop)
    };
    assert_eq!(with(&|_| {}), Ok(()));
    for (change, expected) in [
        (
            &(|table: &mut Vec<u8>| table[0] = b'M') as &dyn Fn(&mut Vec<u8>),
            "is 0x4d697368, but must begin with 'mish'",
        ),
        (&|table| table[7] = 2, "version 2 of block tables"),
        (&|table| table.truncate(203), "is truncated"),
        (&|table| table.truncate(243), "is truncated"),
        (&|table| table[203] = 2, "is truncated"),
        (&|table| table[200..204].fill(0xff), "is truncated"),
        (&|table| table.clear(), "is truncated"),
    ] {
        let error = with(change).unwrap_err();
        assert!(error.ends_with(expected), "{error}");
    }
    // More than the budget of 1 MiB.
    let runs = vec![run(END, 0, 0, 0, 0); 25_000];
    let list = dmg::property_list(&[dmg::block_table(0, 1, 0, 0, &runs)]);
    assert!(error(dmg::dmg(&[], &list, 1)).starts_with("limit dmg: size in memory of property list"));
    let runs = vec![run(END, 0, 0, 0, 0); 14_000];
    let list = dmg::property_list(&[dmg::block_table(0, 1, 0, 0, &runs)]);
    assert!(error(dmg::dmg(&[], &list, 1)).starts_with("limit dmg: size in memory of block table"));
}

#[test]
fn property_lists_of_other_writers() {
    let table = dmg::base64(&dmg::block_table(0, 1, 0, 0, &[run(ZEROS, 0, 1, 0, 0)]));
    let kind = |list: &str| match open(dmg::dmg(&[], list, 1)) {
        Ok(_) => "".into(),
        Err(error) => error.to_string(),
    };
    let entry = format!("<dict><key>Data</key><data>{table}</data></dict>");
    let list = |before: &str, entries: &str| {
        format!(
            "{before}<plist><dict><key>resource-fork</key><dict><key>blkx</key><array>{entries}</array></dict></dict></plist>"
        )
    };
    let doctype = "<!DOCTYPE plist SYSTEM \"file://localhost/System/Library/DTDs/PropertyList.dtd\">";
    for good in [
        list("", &entry),
        list(doctype, &entry),
        list(&format!("<?xml version='1.0'?>{doctype}"), &entry),
        list("<!-- comment -->", &format!("<!-- comment -->{entry}<!-- -->")),
        list(
            "",
            &format!("<dict><key>Name</key><string>Data</string><key>Data</key>\n<data>\r\n{table}\r\n</data></dict>"),
        ),
    ] {
        assert_eq!(kind(&good), "", "{good}");
    }
    let bomb = "<!DOCTYPE plist [<!ENTITY a \"b\">]>";
    for (bad, expected) in [
        (list(bomb, &entry), "a document type with declarations"),
        (list(&format!("<!-- -->{bomb}"), &entry), "a document type with declarations"),
        (list("<!-- --><!DOCTYPE plist>", &entry), "a document type definition"),
        (list("", "").replace("blkx", "blkz"), "blkx is missing, or is of another type"),
        (list("", &entry).replace("resource-fork", "other"), "resource-fork is missing, or is of another type"),
        (list("", &entry).replace("array", "dict"), "blkx is missing, or is of another type"),
        (list("", &entry).replace("plist", "list"), "plist is missing, or is of another type"),
        (list("", &entry.replace("data", "string")), "Data is missing, or is of another type"),
        (list("", &entry.replace("Data", "Date")), "Data is missing, or is of another type"),
        (list("", &entry.replace(&table, "@@@@")), "not base64"),
        (list("", &entry.replace(&table, "bWlzaA")), "not base64"),
        (list("", &entry.replace(&table, "")), "is truncated"),
        (list("", &entry.replace("</dict>", "")), "not well-formed XML"),
        ("<!DOCTYPE".into(), "is truncated"),
        ("koly".into(), "not well-formed XML"),
    ] {
        let error = kind(&bad);
        assert!(error.ends_with(expected), "{bad}: {error}");
    }
    let deep = format!("{}{}", "<array>".repeat(300), "</array>".repeat(300));
    assert!(kind(&list("", &deep)).contains("depth of the elements"));
    let text = dmg::dmg(&[0xff], "\u{7f}", 1);
    let invalid = text.iter().map(|byte| if *byte == 0x7f { 0xff } else { *byte }).collect();
    assert!(error(invalid).ends_with("not UTF-8"));
}

#[test]
fn block_tables_are_found_in_a_resource_fork() {
    let runs = |sector| dmg::block_table(sector, 2, 0, 0, &[run(ZEROS, 0, 2, 0, 0)]);
    let fork = dmg::resource_fork(&[runs(0), runs(2)]);
    let with = |fork: &[u8]| open(dmg::dmg_with_resources(&[1; 100], fork, 4));
    assert_eq!(walk(&with(&fork).unwrap()).unwrap().len(), 2);
    let kinds: Vec<_> = (0..fork.len())
        .map(|len| match with(&fork[..len]) {
            // Without a byte of it, the data fork is the disk; without the end of the last reference, it is whole.
            Err(error) => error.kind().as_str(),
            Ok(_) => "",
        })
        .collect();
    assert!(kinds[..fork.len() - 4].iter().all(|kind| matches!(*kind, "out-of-bounds" | "invalid-field")), "{kinds:?}");
    let other = fork.iter().map(|byte| if *byte == b'x' { b'y' } else { *byte }).collect::<Vec<_>>();
    let error = with(&other).err().unwrap().to_string();
    assert!(error.ends_with("blkx is missing, or is of another type"), "{error}");
    for at in 0..fork.len() {
        for byte in [0, 0x7f, 0xff] {
            let mut damaged = fork.clone();
            damaged[at] = byte;
            let _ = with(&damaged).map(|reader| walk(&reader));
        }
    }
}

#[test]
fn an_image_without_tables_is_its_data_fork() {
    let image = |data: &[u8], sectors| dmg::dmg(data, "", sectors);
    let reader = open(image(&[3; 1024], 2)).unwrap();
    let at = Location { file: FileId(0), offset: DATA_FORK + 512 };
    assert_eq!(reader.extent_at(512..1024).unwrap(), Extent::new(512..1024, ExtentKind::Data(at)));
    // A size that is not stated.
    assert_eq!(open(image(&[3; 1500], 0)).unwrap().info().virtual_size, 1024);
    assert!(error(image(&[3; 1500], 3)).starts_with("out-of-bounds"));
    // Runs tell it too.
    let with_runs = |runs: &[DmgRun]| {
        let table = dmg::block_table(1, 0, 0, 0, runs);
        open(dmg::dmg(&[], &dmg::property_list(&[table]), 0)).map(|reader| reader.info().virtual_size)
    };
    assert_eq!(with_runs(&[run(ZEROS, 4, 2, 0, 0)]).unwrap(), 7 * 512);
    assert_eq!(with_runs(&[]).unwrap_err().kind().as_str(), "invalid-field");
    assert_eq!(with_runs(&[run(ZEROS, 0, 1 << 60, 0, 0)]).unwrap_err().kind().as_str(), "invalid-field");
}

#[test]
fn images_are_only_read() {
    assert!(!Format::DMG.can_create());
    let (limits, budget) = (Limits::default(), Budget::new(0));
    let cx = OpenContext { snapshot: Some("1"), ..OpenContext::new(&limits, &budget) };
    let error = Format::DMG.open(Arc::new(MemFile::new()), &cx).err().unwrap();
    assert_eq!(error.kind().as_str(), "unsupported");
}

#[test]
fn a_check_verifies_the_data_fork() {
    let mut image = DmgBuilder::default();
    image.run(RAW, 1, &[1; 512]).run(ZEROS, 2, &[]).run(ZLIB, 2, &[5; 11]).end_partition(0);
    let good = image.build();
    let check = |bytes: Vec<u8>| {
        let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
        Format::DMG.check(Arc::new(MemFile::from(bytes)), &OpenContext::new(&limits, &budget)).unwrap()
    };
    let report = check(good.clone());
    assert_eq!((report.corruptions, report.leaks, report.messages.len()), (0, 0, 0));
    assert_eq!((report.total_clusters, report.allocated_clusters, report.compressed_clusters), (3, 2, 1));
    assert_eq!((report.fragmented_clusters, report.image_end_offset), (0, DATA_FORK + 523));
    for at in [0, 511, 522] {
        let mut damaged = good.clone();
        damaged[DATA_FORK as usize + at] ^= 1;
        let report = check(damaged);
        assert_eq!(report.corruptions, 1, "{at}");
        assert!(report.messages[0].starts_with("ERROR: the CRC-32 of the data fork is 0x"), "{:?}", report.messages);
    }
    let mut without = good.clone();
    without[good.len() - 512 + 83] = 0;
    assert_eq!(check(without).messages, ["Not checked: the image has no checksum of a known kind"]);
}

/// All extents, up to the first error.
fn walk(reader: &Reader) -> Result<Vec<Extent>> {
    let (mut at, mut extents) = (0, Vec::new());
    while at < reader.info().virtual_size {
        let extent = reader.extent_at(at..reader.info().virtual_size)?;
        assert!(extent.offset == at && extent.end() > at);
        at = extent.end();
        extents.push(extent);
    }
    Ok(extents)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    /// Runs come back in the order of the disk, whatever the order of the tables.
    #[test]
    fn runs_come_back(parts in prop::collection::vec(prop::collection::vec((0usize..4, 1u64..9), 1..20), 1..6), rotate in 0usize..6) {
        let mut data = Vec::new();
        let (mut sector, mut tables, mut expected) = (0, Vec::new(), Vec::new());
        for part in &parts {
            let (first, start) = (sector, data.len() as u64);
            let mut runs = Vec::new();
            for (kind, count) in part {
                let offset = data.len() as u64;
                let (kind, len) = [(ZEROS, 0), (RAW, count * 512), (ZLIB, 5), (LZFSE, 6)][*kind];
                data.resize((offset + len) as usize, kind as u8);
                runs.push(run(kind, sector - first, *count, offset - start, len));
                expected.push((sector * 512, count * 512, kind, DATA_FORK + offset));
                sector += count;
            }
            let middle = runs.len() / 2;
            runs.rotate_left(middle);
            tables.push(dmg::block_table(first, sector - first, start, 0, &runs));
        }
        let count = tables.len();
        tables.rotate_left(rotate % count);
        let reader = open(dmg::dmg(&data, &dmg::property_list(&tables), sector)).unwrap();
        let found: Vec<_> = walk(&reader).unwrap().into_iter().map(|extent| {
            let (kind, at) = match extent.kind {
                ExtentKind::Data(at) => (RAW, at.offset),
                ExtentKind::Compressed(unit) if unit.codec == Codec::Zlib => (ZLIB, unit.at.offset),
                ExtentKind::Compressed(unit) => (LZFSE, unit.at.offset),
                _ => (ZEROS, 0),
            };
            (extent.offset, extent.len, kind, at)
        }).collect();
        let expected: Vec<_> = expected.into_iter().map(|(offset, len, kind, at)| (offset, len, kind, if kind == ZEROS { 0 } else { at })).collect();
        prop_assert_eq!(found, expected);
    }

    /// Nothing panics, and no extent is beyond the file.
    #[test]
    fn damaged_images_are_survived(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), in_table in any::<bool>()) {
        let mut image = DmgBuilder::default();
        image.run(RAW, 1, &[1; 512]).run(ZLIB, 4, &[5; 11]).run(ZEROS, 2, &[]).end_partition(0);
        image.run(XZ, 3, &[8; 14]).run(RAW, 2, &[2; 1024]).end_partition(0);
        let mut bytes = image.build();
        // Digits of base64 stay digits, so that runs change too.
        let digits: Vec<usize> = (0..bytes.len() - 512).filter(|at| bytes[*at].is_ascii_alphanumeric()).collect();
        for (index, value) in changes {
            if in_table {
                let at = digits[index.index(digits.len())];
                bytes[at] = b"ABCDabcdwxyz0189/+"[usize::from(value) % 18];
            } else {
                let at = bytes.len() - 512 + index.index(512);
                bytes[at] = value;
            }
        }
        let len = bytes.len() as u64;
        if let Ok(reader) = open(bytes) {
            // The disk may be large, and its parts few.
            for extent in walk(&reader).unwrap_or_default() {
                match extent.kind {
                    ExtentKind::Data(at) => prop_assert!(at.offset + extent.len <= len),
                    ExtentKind::Compressed(unit) => prop_assert!(unit.at.offset + u64::from(unit.stored_len) <= len),
                    _ => {}
                }
            }
        }
    }
}
