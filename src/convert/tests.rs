//! Whole conversions, and the support of the other tests.

use std::io;
use std::ops::Range;

use super::*;
use crate::compare::{Comparison, compare};
use crate::error::ErrorKind;
use crate::image::{OpenOptions, ReferencePolicy};
use crate::io::{MemDirectory, MemFile, ReadAt};
use crate::testing::TempDir;
pub(super) use crate::testing::noise;

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;

/// A sparse file of ones in these ranges.
pub(super) struct Islands {
    pub len: u64,
    pub data: Vec<Range<u64>>,
}

impl ReadAt for Islands {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        for (at, byte) in (offset..).zip(&mut buf[..n]) {
            *byte = self.data.iter().any(|range| range.contains(&at)).into();
        }
        Ok(n)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok(self.data.iter().find(|range| offset < range.end).map(|range| range.start.max(offset)..range.end))
    }
}

/// A raw image of `len` bytes with these islands.
pub(super) fn islands(len: u64, data: &[Range<u64>]) -> Image {
    open(Arc::new(Islands { len, data: data.to_vec() }), "raw")
}

pub(super) fn open(source: Arc<dyn ReadAt>, format: &str) -> Image {
    OpenOptions::new().format(Format::by_name(format).unwrap()).open_source(source).unwrap()
}

pub(super) fn raw(bytes: &[u8]) -> Image {
    open(Arc::new(MemFile::from(bytes.to_vec())), "raw")
}

/// An uncompressed conversion with blocks of `block_size`.
pub(super) fn job<'a>(source: &'a Image, base: Option<&'a Image>, block_size: u64) -> Job<'a> {
    let spec = WriteSpec {
        virtual_size: source.virtual_size().next_multiple_of(512),
        block_size,
        granule: if base.is_some() { block_size } else { 512 },
        over_backing: base.is_some(),
        ..WriteSpec::default()
    };
    Job {
        source,
        base,
        complete: false,
        spec,
        sparse: 4096,
        starts_zeroed: true,
        digests: false,
        verifies: false,
        #[cfg(feature = "hash")]
        hashes: &[],
        salvage: None,
        reflinks: None,
        target: None,
    }
}

/// Compressible data without repetitions of whole blocks.
pub(super) fn text(len: u64) -> Vec<u8> {
    (0..len.div_ceil(32)).flat_map(|line| format!("{line:>31}\n").into_bytes()).take(len as usize).collect()
}

pub(super) fn qcow2(options: &str) -> Converter {
    let mut list = Options::new();
    list.add_list(options);
    Converter::new(Format::QCOW2).options(list).sync(false)
}

/// Converts `source`, and returns the image.
pub(super) fn converted(converter: &Converter, source: &Image) -> Arc<MemFile> {
    let file = Arc::new(MemFile::new());
    converter.convert_to(source, file.clone()).unwrap();
    file
}

fn content(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The payloads of both are at the same host offsets, and a unit of each reaches over several chunks and blocks of the target.
#[test]
fn units_of_source_and_backing_image_at_one_offset_stay_apart() {
    const UNIT: u64 = 2 * MIB;
    let ours = text(2 * UNIT);
    let mut theirs = ours.clone();
    // In each half of the first unit, and at the end of the second.
    let changes = [5, MIB + 70 * KIB, 2 * UNIT - 1];
    changes.iter().for_each(|&at| theirs[at as usize] ^= 0xff);

    let dir = TempDir::new();
    let [base, source] = [("base.qcow2", theirs), ("source.qcow2", ours.clone())].map(|(name, bytes)| {
        let path = dir.join(name);
        qcow2("cluster_size=2M").compress(true).convert(&raw(&bytes), &path).unwrap();
        move || Image::open(&path).unwrap()
    });
    let first = |image: &Image| image.spans(0..UNIT).next().unwrap().unwrap().kind;
    assert_eq!(first(&source()), first(&base()), "the payloads are at different host offsets");

    for compress in [false, true] {
        for options in ["cluster_size=64k", "cluster_size=4k", "extended_l2=on"] {
            let overlay = dir.join("overlay.qcow2");
            let converter = qcow2(options).compress(compress).backing(base(), "base.qcow2");
            let report = converter.convert(&source(), &overlay).unwrap();
            let image = OpenOptions::new().reference_policy(ReferencePolicy::Beside).open(&overlay).unwrap();
            assert_eq!(image.layer_count(), 2);
            assert!(content(&image) == ours, "{options}, {compress}");
            let granule = if options == "cluster_size=64k" || compress && options == "extended_l2=on" { 64 } else { 4 };
            assert_eq!(report.data_bytes, 3 * granule * KIB, "{options}, {compress}");
        }
    }
}

#[test]
fn a_report_counts_data_and_blocks() {
    // Two blocks that compress, one that does not, one of zeros, and 100 bytes.
    let bytes = [text(128 * KIB), noise(64 * KIB, 1), vec![0; 64 << 10], vec![7; 100]].concat();
    let source = raw(&bytes);
    let converter = qcow2("").compress(true);
    let file = Arc::new(MemFile::new());
    let report = converter.convert_to(&source, file.clone()).unwrap();
    let expected = Report {
        source_format: Some(Format::RAW),
        format: Format::QCOW2,
        virtual_size: 256 * KIB + 512,
        padding: 412,
        data_bytes: 192 * KIB + 512,
        compressed_blocks: 3,
        compressed_bytes: 128 * KIB + 512,
        passthrough_blocks: 0,
        passthrough_bytes: 0,
        written_bytes: report.written_bytes,
        ..Report::new(None, Format::QCOW2, 0, 0)
    };
    assert_eq!(report, expected);
    assert_eq!(report.zero_bytes(), 64 * KIB);
    assert!((64 * KIB..80 * KIB).contains(&report.written_bytes), "{report:?}");

    let again = converter.convert_to(&open(file.clone(), "qcow2"), Arc::new(MemFile::new())).unwrap();
    let (source_format, passthrough_bytes) = (Some(Format::QCOW2), report.compressed_bytes);
    let expected = Report { source_format, padding: 0, passthrough_blocks: 3, passthrough_bytes, ..report };
    assert_eq!(again, expected);
}

#[test]
fn what_cannot_be_read_back_is_not_said_to_be_verified() {
    let source = raw(&[7; 512]);
    let verified = qcow2("").verify(true);
    assert_eq!(verified.convert_to(&source, Arc::new(MemFile::new())).unwrap_err().kind().as_str(), "usage");
    let existing = Converter::new(Format::RAW).verify(true);
    let file = Arc::new(MemFile::from(vec![0; 512]));
    assert_eq!(existing.convert_into_existing(&source, file.clone()).unwrap_err().kind().as_str(), "usage");
    assert_eq!(file.to_vec(), [0; 512]);
}

#[test]
fn the_smallest_run_of_zeros_is_a_power_of_two_within_bounds() {
    for (asked, kept) in [(0, 0), (1, 512), (4095, 2048), (4096, 4096), (u64::MAX, MAX_SPARSE)] {
        assert_eq!(Converter::new(Format::RAW).sparse(asked).sparse, Some(kept));
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let mut bytes = text(9 * MIB + 300);
    bytes[MIB as usize..5 * MIB as usize].fill(0);
    let source = raw(&bytes);
    for converter in [qcow2(""), qcow2("cluster_size=4k").compress(true), Converter::new(Format::RAW)] {
        let one = converted(&converter.clone().threads(1), &source).to_vec();
        for threads in [2, 7] {
            assert!(converted(&converter.clone().threads(threads), &source).to_vec() == one, "{threads}");
        }
    }
}

/// A sequential target that records syncs.
#[derive(Default)]
struct Forward(std::sync::Mutex<(Vec<u8>, usize)>);

impl WriteAt for Forward {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut written = self.0.lock().unwrap();
        assert_eq!(offset, written.0.len() as u64, "a step back or ahead");
        written.0.extend_from_slice(buf);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut written = self.0.lock().unwrap();
        assert!(len >= written.0.len() as u64, "a step back");
        written.0.resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.lock().unwrap().1 += 1;
        Ok(())
    }

    fn seeks(&self) -> bool {
        false
    }
}

#[test]
fn metadata_before_a_block_is_written_before_it() {
    let stream = |list: &str| {
        let mut options = Options::new();
        options.add_list(list);
        let vmdk = Converter::new(Format::by_name("vmdk").unwrap());
        vmdk.options(options).identifiers(Identifiers::Reproducible { time: 0 }).threads(1)
    };
    // Tables come between the blocks of several work ranges, and after a run of zeros.
    let mut bytes = text(3 * MIB + 300);
    bytes.resize(70 * MIB as usize, 0);
    bytes.extend(noise(200 * KIB, 1));
    let source = raw(&bytes);
    let out = Arc::new(Forward::default());
    // The identifiers in a pipe do not follow from the content.
    let pinned = stream("subformat=streamOptimized,cid=1");
    let report = pinned.convert_to(&source, out.clone()).unwrap();
    let written = std::mem::take(&mut *out.0.lock().unwrap());
    assert!(written.0 == converted(&pinned, &source).to_vec());
    assert_eq!(written.1, 1, "a pipe is flushed at the end");
    assert_eq!(report.compressed_blocks, 49 + 4);
    assert!(report.written_bytes < written.0.len() as u64);
    for converter in [stream(""), qcow2(""), qcow2("").compress(true)] {
        let out = Arc::new(Forward::default());
        let converter = converter.identifiers(Identifiers::Reproducible { time: 0 });
        converter.convert_to(&source, out.clone()).unwrap();
        assert!(out.0.lock().unwrap().0 == converted(&converter, &source).to_vec(), "as to a file, from a copy");
    }
}

/// Converts `source` into a directory in memory, and opens the result from there.
fn through_memory(converter: &Converter, source: &Image, name: &str) -> (Arc<MemDirectory>, Image) {
    let directory = Arc::new(MemDirectory::new());
    converter.convert_into(source, &*directory, name).unwrap();
    let image = open_in(&directory, name, ReferencePolicy::Beside).unwrap();
    (directory, image)
}

fn open_in(directory: &Arc<MemDirectory>, name: &str, policy: ReferencePolicy) -> crate::Result<Image> {
    let file = directory.open(name).unwrap();
    let directory = directory.clone();
    OpenOptions::new().reference_policy(policy).resolver(move |request| directory.open(request.path)).open_source(file)
}

fn names(directory: &MemDirectory) -> Vec<String> {
    directory.names().into_iter().map(|name| name.into_string().unwrap()).collect()
}

#[test]
fn images_of_several_files_are_written_to_and_read_from_memory() {
    let bytes = [text(1 << 20), vec![0; 1 << 20], noise(1 << 20, 3)].concat();
    let source = raw(&bytes);
    for (subformat, data_file) in [("monolithicFlat", "disk-flat.vmdk"), ("twoGbMaxExtentSparse", "disk-s001.vmdk")] {
        let mut options = Options::new();
        options.set("subformat", subformat);
        let converter = Converter::new(Format::VMDK).options(options);
        let (directory, image) = through_memory(&converter, &source, "disk.vmdk");
        assert_eq!(names(&directory), [data_file, "disk.vmdk"]);
        assert_eq!(compare(&source, &image).unwrap(), Comparison::Identical, "{subformat}");
        let denied = open_in(&directory, "disk.vmdk", ReferencePolicy::Deny).unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::Reference);
        // Without a directory there is only one file.
        let single = converter.convert_to(&source, Arc::new(MemFile::new())).unwrap_err();
        assert_eq!(single.kind(), ErrorKind::Unsupported);
        let created = converter.create_into(5 << 20, &*directory, "empty.vmdk").unwrap();
        assert_eq!((created.source_format, created.virtual_size), (None, 5 << 20));
        for name in ["a/b.vmdk", "..", ""] {
            assert_eq!(converter.create_into(512, &*directory, name).unwrap_err().kind(), ErrorKind::Usage, "{name}");
        }
    }
}

#[test]
fn a_backing_chain_is_read_from_memory() {
    let bytes = text(1 << 20);
    let (directory, base) = through_memory(&qcow2(""), &raw(&bytes), "base.qcow2");
    let mut changed = bytes.clone();
    changed[300_000..300_512].fill(7);
    let middle = qcow2("backing_fmt=qcow2").backing(base, "base.qcow2");
    middle.convert_into(&raw(&changed), &*directory, "middle.qcow2").unwrap();
    let middle = open_in(&directory, "middle.qcow2", ReferencePolicy::Beside).unwrap();
    let top = qcow2("backing_fmt=qcow2").backing(middle, "middle.qcow2");
    top.create_into(1 << 20, &*directory, "top.qcow2").unwrap();
    let image = open_in(&directory, "top.qcow2", ReferencePolicy::Beside).unwrap();
    assert_eq!(image.layer_count(), 3);
    assert_eq!(compare(&image, &raw(&changed)).unwrap(), Comparison::Identical);
    let denied = open_in(&directory, "top.qcow2", ReferencePolicy::Deny).unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::Reference);
}
