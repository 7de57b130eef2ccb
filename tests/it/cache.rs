//! Cache modes: reads and writes that bypass the page cache, or with each write synced.

use std::path::Path;

use diskimage::io::{CacheMode, FileSource, ReadAt};
use diskimage::{Comparison, Converter, Format, Image, OpenOptions, Options, compare};

use crate::support::{Random, TempDir};

const MODES: [CacheMode; 5] =
    [CacheMode::Writeback, CacheMode::None, CacheMode::Writethrough, CacheMode::Directsync, CacheMode::Unsafe];

/// A disk with data at many alignments, whose end is in the middle of a block.
fn disk(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; (6 << 20) + 1536];
    for (at, len) in [(512, 3 << 20), (4 << 20, 65536), ((5 << 20) + 4096, 70_000), ((6 << 20) + 1000, 500)] {
        bytes[at..at + len].copy_from_slice(&Random::new(at as u64).bytes(len));
    }
    std::fs::write(path, &bytes).unwrap();
    bytes
}

fn open(path: &Path, format: Format, cache: CacheMode) -> Image {
    OpenOptions::new().format(format).cache(cache).open(path).unwrap()
}

/// Whether files in this directory can bypass the page cache.
fn can_bypass(path: &Path) -> bool {
    FileSource::open(path).unwrap().with_cache(CacheMode::None).bypasses_cache()
}

#[test]
fn images_are_the_same_in_every_mode() {
    let dir = TempDir::new();
    let source = dir.join("source.raw");
    let bytes = disk(&source);
    let can_bypass = can_bypass(&source);
    for (format, options) in [
        ("raw", ""),
        ("qcow2", ""),
        ("qcow2", "preallocation=full"),
        ("vmdk", ""),
        ("vpc", ""),
        ("vpc", "subformat=fixed"),
        ("vhdx", ""),
        ("vdi", ""),
    ] {
        let format = Format::by_name(format).unwrap();
        let mut list = Options::new();
        list.add_list(options);
        let converter =
            Converter::new(format).options(list).identifiers(diskimage::Identifiers::Reproducible { time: 0 });
        let mut first = None;
        for mode in MODES {
            let target = dir.join("target");
            let report = converter.clone().cache(mode).convert(&open(&source, Format::RAW, mode), &target).unwrap();
            assert_eq!(report.cache_refused, mode.bypasses() && !can_bypass, "{format} {options}, {mode:?}");
            let written = std::fs::read(&target).unwrap();
            assert!(*first.get_or_insert_with(|| written.clone()) == written, "{format} {options}, {mode:?}");
            let image = open(&target, format, mode);
            assert_eq!(image.bypasses_cache(), mode.bypasses() && can_bypass);
            let mut back = vec![0; bytes.len()];
            image.read_exact_at(&mut back, 0).unwrap();
            assert!(back == bytes, "{format} {options}, {mode:?}");
            assert_eq!(compare(&image, &open(&source, Format::RAW, mode)).unwrap(), Comparison::Identical);
        }
    }
}

#[test]
fn existing_files_and_those_without_holes_bypass_it_too() {
    let dir = TempDir::new();
    let (source, target) = (dir.join("source.raw"), dir.join("target.raw"));
    let bytes = disk(&source);
    for (sparse, in_place) in [(0, false), (4096, true), (0, true)] {
        std::fs::write(&target, [7; 100_000]).unwrap();
        let converter = Converter::new(Format::RAW).sparse(sparse).in_place(in_place).cache(CacheMode::None);
        converter.convert(&open(&source, Format::RAW, CacheMode::None), &target).unwrap();
        assert!(std::fs::read(&target).unwrap() == bytes, "{sparse} {in_place}");
    }
}

/// A file system that holds its files in memory, such as the proc file system, has nothing to bypass the cache to.
#[cfg(target_os = "linux")]
#[test]
fn a_file_that_cannot_bypass_it_is_read_through_it() {
    let path = Path::new("/proc/self/exe").canonicalize().unwrap();
    let status = FileSource::open(Path::new("/proc/self/status")).unwrap().with_cache(CacheMode::None);
    assert!(!status.bypasses_cache());
    let mut name = [0; 5];
    status.read_exact_at(&mut name, 0).unwrap();
    assert_eq!(&name, b"Name:");
    // One that is being executed can.
    let mut magic = [0; 3];
    FileSource::open(&path).unwrap().with_cache(CacheMode::None).read_exact_at(&mut magic, 1).unwrap();
    assert_eq!(&magic, b"ELF");
}
