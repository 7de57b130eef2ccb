//! How often images are read and queried for holes: the costs that tests on any machine measure exactly.

use std::sync::Arc;

use diskimage::io::WriteAt;
use diskimage::{Converter, Format, Image, OpenOptions, Options};

use crate::support::{Calls, SparseFile};

/// Allocation units with data.
const UNITS: u64 = 10_000;
/// Bytes of a table that drivers read at once.
const PAGE: u64 = 16 << 10;

/// A disk with one sector of data in each unit.
fn disk(unit: u64) -> Image {
    let file = SparseFile::default();
    for index in 0..UNITS {
        file.write_all_at(&[index as u8 | 1; 512], index * unit).unwrap();
    }
    file.set_len(UNITS * unit).unwrap();
    OpenOptions::new().format(Format::RAW).open_source(Arc::new(file)).unwrap()
}

/// The disk as an image, and the same file.
fn convert(format: &str, options: &str, disk: &Image) -> (Image, Arc<SparseFile>) {
    let mut list = Options::new();
    list.add_list(options);
    let format = Format::by_name(format).unwrap();
    let file = Arc::new(SparseFile::default());
    Converter::new(format).options(list).convert_to(disk, file.clone()).unwrap();
    file.take_calls();
    (OpenOptions::new().format(format).open_source(file.clone()).unwrap(), file)
}

/// A format, the size of an allocation unit, and the reads of metadata that mapping all units takes.
struct Case {
    format: &'static str,
    options: &'static str,
    unit: u64,
    tables: u64,
}

fn pages(entry_len: u64) -> u64 {
    (UNITS * entry_len).div_ceil(PAGE)
}

fn cases() -> Vec<Case> {
    // Grain tables have 512 entries.
    let grain_tables = UNITS.div_ceil(512);
    let mut cases = vec![
        Case { format: "raw", options: "", unit: 64 << 10, tables: 0 },
        Case { format: "qcow2", options: "cluster_size=64k", unit: 64 << 10, tables: pages(8) },
        Case { format: "vmdk", options: "subformat=monolithicSparse", unit: 64 << 10, tables: grain_tables },
        // The marker before each grain has its length.
        Case { format: "vmdk", options: "subformat=streamOptimized", unit: 64 << 10, tables: grain_tables + UNITS },
        // Each block has a bitmap of its sectors.
        Case { format: "vpc", options: "subformat=dynamic,block_size=512k", unit: 512 << 10, tables: pages(4) + UNITS },
        Case { format: "vpc", options: "subformat=fixed", unit: 64 << 10, tables: 0 },
        Case { format: "vhdx", options: "subformat=dynamic,block_size=1M", unit: 1 << 20, tables: pages(8) },
        Case { format: "vhdx", options: "subformat=fixed,block_size=1M", unit: 1 << 20, tables: pages(8) },
        Case { format: "vdi", options: "block_size=128k", unit: 128 << 10, tables: pages(4) },
    ];
    if cfg!(feature = "cli") {
        cases.extend([
            // An L1 table.
            Case { format: "qcow", options: "cluster_size=64k", unit: 64 << 10, tables: 1 + pages(8) },
            Case { format: "qed", options: "", unit: 64 << 10, tables: 1 + pages(8) },
            Case { format: "parallels", options: "cluster_size=64k", unit: 64 << 10, tables: pages(4) },
        ]);
    }
    cases
}

#[test]
fn a_map_reads_each_table_and_queries_each_run_once() {
    for Case { format, options, unit, tables } in cases() {
        let (image, file) = convert(format, options, &disk(unit));
        let opening = file.take_calls();
        let data = image.spans(0..u64::MAX).filter(|span| !span.as_ref().unwrap().is_zero()).count() as u64;
        let Calls { reads, queries } = file.take_calls();
        assert!(opening.reads <= 20 && opening.queries <= 1, "{format} {options}: {opening:?}");
        assert!(data >= UNITS, "{format} {options}: {data}");
        assert_eq!(reads, tables, "{format} {options}");
        assert!(queries <= file.data_runs() + 1, "{format} {options}: {queries}");
    }
}

#[test]
fn a_conversion_reads_each_unit_once() {
    for Case { format, options, unit, tables } in cases() {
        let (image, file) = convert(format, options, &disk(unit));
        file.take_calls();
        let target = Arc::new(SparseFile::default());
        Converter::new(Format::RAW).threads(2).convert_to(&image, target.clone()).unwrap();
        let Calls { reads, queries } = file.take_calls();
        // qcow2 also reads its refcount table, which is metadata that data must not overlap.
        assert!((UNITS + tables..=UNITS + tables + 1).contains(&reads), "{format} {options}: {reads}");
        assert!(queries <= file.data_runs() + 1, "{format} {options}: {queries}");
    }
}

/// One read in each unit, in an order that jumps from table to table, and all of them again.
#[test]
fn reads_at_random_read_each_table_once() {
    for Case { format, options, unit, tables } in cases() {
        let (image, file) = convert(format, options, &disk(unit));
        // The length of a compressed grain is before its payload, and is not kept; nor are the bitmaps of so many blocks.
        let is_kept = !options.contains("streamOptimized") && !options.contains("subformat=dynamic,block_size=512k");
        file.take_calls();
        for (round, metadata) in [tables, if is_kept { 0 } else { UNITS }].into_iter().enumerate() {
            let mut block = [0; 4096];
            for step in 0..UNITS {
                let index = step * 7919 % UNITS;
                image.read_exact_at(&mut block, index * unit).unwrap();
                assert_eq!((block[0], block[4095]), (index as u8 | 1, 0), "{format} {options}");
            }
            assert_eq!(file.take_calls().reads, UNITS + metadata, "{format} {options}, round {round}");
        }
    }
}

/// The first read in a compressed cluster decodes its start, the second one all of it, and later ones nothing.
#[test]
fn a_compressed_unit_is_read_twice_at_most() {
    let unit = 64 << 10;
    for compression_type in ["zlib", "zstd"] {
        let mut options = Options::new();
        options.set("compression_type", compression_type);
        let file = Arc::new(SparseFile::default());
        let converter = Converter::new(Format::QCOW2).options(options).compress(true);
        converter.convert_to(&disk(unit), file.clone()).unwrap();
        let image = OpenOptions::new().format(Format::QCOW2).open_source(file.clone()).unwrap();
        for (index, blocks) in [[0, 1, 2, 15], [15, 0, 14, 1], [3, 2, 1, 0]].into_iter().enumerate() {
            let index = index as u64;
            // Reads the table.
            image.read_exact_at(&mut [0], (index + 9) * unit).unwrap();
            file.take_calls();
            for number in blocks {
                let mut block = [9; 4096];
                image.read_exact_at(&mut block, index * unit + number * 4096).unwrap();
                let first = if number == 0 { index as u8 | 1 } else { 0 };
                assert_eq!((block[0], block[4095]), (first, 0), "{compression_type}");
            }
            // A payload of zstd cannot be left before its end.
            let is_partial = compression_type == "zlib" && blocks[0] < 3;
            assert_eq!(file.take_calls().reads, 1 + u64::from(is_partial), "{compression_type}, {blocks:?}");
        }
    }
}

/// Runs that begin anywhere, shorter than a chunk, as long, and longer: each is in two work ranges or more.
#[cfg(feature = "dmg")]
#[test]
fn a_conversion_reads_each_compressed_run_once() {
    use crate::support::dmg::{ADC, DmgBuilder, ZEROS, adc};

    for (sectors, runs) in [(100, 200), (2048, 10), (5000, 5)] {
        let mut builder = DmgBuilder::default();
        builder.run(ZEROS, 40, &[]);
        for run in 0..runs {
            builder.run(ADC, sectors, &adc(&vec![run as u8 | 1; sectors as usize * 512]));
        }
        let bytes = builder.end_partition(0).build();
        for (format, compress, threads) in [(Format::RAW, false, 1), (Format::RAW, false, 3), (Format::QCOW2, true, 3)]
        {
            let file = Arc::new(SparseFile::default());
            file.write_all_at(&bytes, 0).unwrap();
            let image = OpenOptions::new().format(Format::DMG).open_source(file.clone()).unwrap();
            file.take_calls();
            let target = Arc::new(SparseFile::default());
            let report = Converter::new(format).compress(compress).threads(threads).convert_to(&image, target);
            assert!(report.is_ok());
            assert_eq!(file.take_calls().reads, runs, "{sectors} sectors, {format}, {threads} threads");
        }
    }
}
