//! Segments and the parts of them that are shared. That file systems share them is tested with the program.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::*;
use crate::format::Format;
use crate::image::OpenOptions;
use crate::io::{FileSource, MemFile, ReadAt};
use crate::options::Options;
use crate::testing::{TempDir, noise};

const UNIT: u64 = 4096;

/// A file in memory that "shares" blocks by copying them, up to a number of times.
struct Sharing {
    file: MemFile,
    calls: Mutex<Vec<(u64, Range<u64>)>>,
    most: usize,
}

impl Sharing {
    fn new(most: usize) -> Arc<Self> {
        Arc::new(Sharing { file: MemFile::new(), calls: Mutex::default(), most })
    }
}

impl WriteAt for Sharing {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn clone_unit(&self, _source: &File) -> Option<u64> {
        Some(UNIT)
    }

    fn clone_range(&self, source: &File, offset: u64, range: Range<u64>) -> io::Result<()> {
        let mut calls = self.calls.lock().unwrap();
        if calls.len() == self.most {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        assert!([offset, range.start, range.end].iter().all(|at| at.is_multiple_of(UNIT)), "{offset} {range:?}");
        let mut bytes = vec![0; (range.end - range.start) as usize];
        source.read_exact_at(&mut bytes, offset)?;
        self.file.write_all_at(&bytes, range.start)?;
        calls.push((offset, range));
        Ok(())
    }
}

/// 5 MiB of data and a last block that is not a whole one, in a file of the system.
fn disk(dir: &TempDir) -> (PathBuf, Vec<u8>) {
    let path = dir.path().join("disk.raw");
    let data = noise((5 << 20) + 1536, 1);
    fs::write(&path, &data).unwrap();
    (path, data)
}

fn open(path: &Path, format: Format) -> Image {
    OpenOptions::new().format(format).open_source(Arc::new(FileSource::open(path).unwrap())).unwrap()
}

fn read(file: &MemFile, format: Format, size: usize) -> Vec<u8> {
    let image = OpenOptions::new().format(format).open_source(Arc::new(MemFile::from(file.to_vec()))).unwrap();
    let mut guest = vec![0; size];
    image.read_exact_at(&mut guest, 0).unwrap();
    guest
}

#[test]
#[cfg_attr(miri, ignore)]
fn aligned_data_is_cloned_and_the_rest_copied() {
    let dir = TempDir::new();
    let (path, data) = disk(&dir);
    for (format, options) in [("raw", ""), ("qcow2", ""), ("qcow2", "cluster_size=4k"), ("vdi", ""), ("vhdx", "")] {
        for threads in [1, 3] {
            let mut list = Options::new();
            list.add_list(options);
            let (format, out) = (Format::by_name(format).unwrap(), Sharing::new(usize::MAX));
            let converter = Converter::new(format).options(list).threads(threads).reflink(Reflink::Always);
            let report = converter.convert_to(&open(&path, Format::RAW), out.clone()).unwrap();
            assert_eq!(read(&out.file, format, data.len()), data, "{format} {options}");
            // The last block is not a whole one.
            let copied = data.len() as u64 - report.cloned_bytes;
            assert!(copied < 64 << 10 && report.data_bytes >= data.len() as u64, "{format} {options}: {report:?}");
            assert_eq!(report.written_bytes + report.cloned_bytes, report.data_bytes);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore)]
fn what_cannot_be_cloned_after_all_is_copied_unless_it_must_be_cloned() {
    let dir = TempDir::new();
    let (path, data) = disk(&dir);
    for most in 0..4 {
        let out = Sharing::new(most);
        let report = Converter::new(Format::RAW).convert_to(&open(&path, Format::RAW), out.clone()).unwrap();
        assert_eq!(out.file.to_vec(), data);
        assert_eq!(report.cloned_bytes, (most as u64) << 20);
        let always = Converter::new(Format::RAW).reflink(Reflink::Always);
        let error = always.convert_to(&open(&path, Format::RAW), Sharing::new(most)).unwrap_err();
        assert!(error.to_string().contains("sharing 1048576 bytes"), "{error}");
    }
}

#[test]
#[cfg_attr(miri, ignore)]
fn what_has_to_be_read_is_not_cloned() {
    let dir = TempDir::new();
    let (path, data) = disk(&dir);
    let cloned = |converter: Converter| {
        let out = Sharing::new(usize::MAX);
        let report = converter.convert_to(&open(&path, Format::RAW), out.clone()).map(|report| report.cloned_bytes);
        report.inspect(|_| assert_eq!(read(&out.file, converter.format, data.len()), data))
    };
    let raw = || Converter::new(Format::RAW);
    let compressed = Converter::new(Format::QCOW2).compress(true);
    for converter in [raw().sparse(4096), raw().sparse(0), raw().reflink(Reflink::Never), compressed] {
        assert_eq!(cloned(converter.clone()).unwrap(), 0);
        if converter.reflink != Reflink::Never && converter.sparse != Some(4096) {
            let error = cloned(converter.reflink(Reflink::Always)).unwrap_err();
            assert!(error.to_string().contains("cannot share blocks"), "{error}");
        }
    }
    assert_eq!(cloned(raw()).unwrap(), 5 << 20);
    assert_eq!(cloned(raw().sparse(4096).reflink(Reflink::Always)).unwrap(), 5 << 20);
}

#[test]
#[cfg_attr(miri, ignore)]
fn segments_are_split_at_aligned_offsets() {
    let dir = TempDir::new();
    let (path, _) = disk(&dir);
    let source = open(&path, Format::RAW);
    let (layer, file) = source.system_files().next().unwrap();
    let reflinks = Reflinks {
        source: &source,
        files: HashMap::from([(layer, (file, UNIT))]),
        unit: UNIT,
        block: UNIT,
        always: false,
    };
    let data = |offset: u64, len: u64, host: u64| Span {
        len,
        kind: crate::driver::ExtentKind::Data(crate::driver::Location { file: FileId(0), offset: host }),
        ..Span::hole(offset..offset + len)
    };
    let split = |spans: &[Span], segment: Range<u64>| {
        let parts = reflinks.split(spans, &segment);
        let shown = parts.iter().map(|part| match part {
            Part::Copy(guest) => (guest.start / 512, guest.end / 512, None),
            Part::Clone(guest, _, offset) => (guest.start / 512, guest.end / 512, Some(offset / 512)),
        });
        shown.collect::<Vec<_>>()
    };
    let whole = data(0, 8 * UNIT, 16 * UNIT);
    assert_eq!(split(&[whole], 0..8 * UNIT), [(0, 64, Some(128))]);
    assert_eq!(split(&[whole], 2 * UNIT..4 * UNIT), [(16, 32, Some(144))]);
    assert_eq!(split(&[], 0..UNIT), [(0, 8, None)]);
    // Its host offset is not aligned as its guest offset is.
    assert_eq!(split(&[data(0, 8 * UNIT, 512)], 0..8 * UNIT), [(0, 64, None)]);
    // Two spans that are contiguous, and a third one that is not.
    let spans = [data(512, UNIT, 512), data(512 + UNIT, 2 * UNIT, 512 + UNIT), data(512 + 3 * UNIT, UNIT, UNIT)];
    assert_eq!(split(&spans, 0..5 * UNIT), [(0, 8, None), (8, 24, Some(8)), (24, 40, None)]);
}
