//! The bodies of the fuzz targets, which the tests run as well. Each takes any bytes, and panics when the crate breaks a
//! promise.
//!
//! They iterate the registry, so a new format needs no change here. Code for single formats only improves their
//! input.

pub mod deflate;
#[cfg(any(fuzzing, feature = "disk"))]
pub mod disk;
#[cfg(any(fuzzing, feature = "sparsify"))]
pub mod guest;
pub mod inflate;
#[cfg(any(fuzzing, feature = "nbd"))]
pub mod nbd;
#[cfg(any(fuzzing, feature = "packages"))]
pub mod packages;
pub mod roundtrip;
pub mod vhdx;

use std::io::Cursor;
use std::sync::Arc;

use diskimage::driver::ExtentKind;
use diskimage::io::{MemFile, ReadAt};
use diskimage::{
    CheckReport, Comparison, Converter, Error, Format, Image, Limits, OpenOptions, Options, ReferencePolicy, Result,
    Secret, compare,
};

pub use deflate::deflate;
pub use inflate::inflate;
pub use roundtrip::roundtrip;

/// The secret of encrypted seeds.
pub const SECRET: &str = "123456";
/// Guest bytes that are read of an image.
const READ: u64 = 1 << 20;
/// Spans that are looked up in an image.
const SPANS: usize = 10_000;

/// Opens the bytes as an image of `format`, or of the format that is detected.
pub fn open(format: Option<Format>, data: &[u8]) {
    let options = format.map_or_else(limited, |format| limited().format(format));
    match format.map(|format| format.name()) {
        Some("vhdx") => return open_vhdx(&options, data),
        Some("vpc") => explore(&options, file(&with_vhd_checksums(data))),
        Some("raw") => read_raw(&options, data),
        _ => {}
    }
    explore(&options, file(data));
    if format.is_some_and(|format| format.can_stream()) && is_in_order(data) {
        open_stream(&options, data);
    }
}

/// Changes a number of 1, 2, 4 or 8 bytes, as those of headers and tables: at a multiple of its length, in the first KiB, the last KiB, or
/// anywhere. It becomes 0, all ones, a power of two, a random number, or a little more or less than it was. For mutators of fuzzers.
pub fn damage(image: &mut [u8], seed: u32) {
    let mut state = u64::from(seed);
    // splitmix64, by Sebastiano Vigna.
    let mut random = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    let width = 1 << (random() % 4);
    let places = (image.len() / width) as u64;
    if places == 0 {
        return;
    }
    let near = (1024 / width as u64).min(places);
    let place = match random() % 4 {
        0 | 1 => random() % near,
        2 => places - 1 - random() % near,
        _ => random() % places,
    };
    let field = &mut image[place as usize * width..][..width];
    let old = field.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let new = match random() % 6 {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << (random() % 64),
        3 => random(),
        4 => old.wrapping_add(1 + random() % 8),
        _ => old.wrapping_sub(1 + random() % 8),
    };
    let bytes = if random() % 2 == 0 { new.to_be_bytes() } else { new.swap_bytes().to_be_bytes() };
    field.copy_from_slice(if random() % 2 == 0 { &bytes[8 - width..] } else { &bytes[..width] });
}

/// Whether the bytes may be those of a streamOptimized VMDK, by its flags. Others are copied from the pipe to a file, and opened as one.
fn is_in_order(data: &[u8]) -> bool {
    data.get(10).is_some_and(|flags| flags & 3 == 3)
}

/// Opens the bytes as a compressed file, and as a stream; both ways agree on the data.
#[cfg(any(fuzzing, feature = "compressed"))]
pub fn compressed(data: &[u8]) {
    let mut limits = Limits::default();
    (limits.decompressed, limits.window) = (16 << 20, 1 << 20);
    let options = OpenOptions::new().limits(limits);
    let (image, stream) = (options.open_source(file(data)), options.open_stream(Cursor::new(data.to_vec())));
    let read = |image: &Image| {
        let mut guest = vec![0; image.virtual_size().min(READ) as usize];
        image.read_exact_at(&mut guest, 0).map(|()| guest)
    };
    match (&image, &stream) {
        (Ok(a), Ok(b)) if a.virtual_size() == b.virtual_size() && a.format() == b.format() => {
            // What the index tells is verified as it is read.
            if let (Ok(a), Ok(b)) = (read(a), read(b)) {
                assert_eq!(a, b);
            }
        }
        (Err(error), _) | (_, Err(error)) => describe(error),
        _ => {}
    }
}

/// Opens the bytes as they come through a pipe.
fn open_stream(options: &OpenOptions, data: &[u8]) {
    let stream = || options.open_stream(Cursor::new(data.to_vec()));
    match stream() {
        Ok(image) => walk_once(&image),
        Err(error) => return describe(&error),
    }
    let image = stream().unwrap();
    if image.virtual_size() <= READ {
        match convert(&Converter::new(Format::RAW).threads(2), &image) {
            Ok(bytes) => assert_eq!(bytes.len() as u64, image.virtual_size()),
            Err(error) => describe(&error),
        }
    }
}

/// Opens the bytes as changes to a VHDX image (see [`vhdx`]), as they are and with the checksums corrected. The crate does
/// not verify checksums when it is built by a fuzzer.
fn open_vhdx(options: &OpenOptions, data: &[u8]) {
    let Some((file, parent)) = vhdx::files(data) else { return };
    let files = if cfg!(fuzzing) { vec![file] } else { vec![file.clone(), file.with_checksums()] };
    for file in files {
        if let Some(parent) = &parent {
            let folder = vhdx::Folder::new();
            let path = folder.0.join("child.vhdx");
            file.store(&path).unwrap();
            parent.store(&folder.0.join("parent.vhdx")).unwrap();
            match options.clone().reference_policy(ReferencePolicy::Beside).open(path) {
                Ok(image) => examine(&image),
                Err(error) => describe(&error),
            }
        }
        explore(options, Arc::new(file));
    }
}

/// Reads the bytes as a raw disk, which is always valid.
fn read_raw(options: &OpenOptions, data: &[u8]) {
    let image = options.open_source(file(data)).unwrap();
    let mut bytes = vec![0xee; data.len()];
    image.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, data);
}

fn limited() -> OpenOptions {
    let mut limits = Limits::default();
    limits.metadata = 4 << 20;
    limits.pbkdf2_iterations = 20_000;
    limits.argon2_memory = 1 << 20;
    limits.argon2_work = 4 << 20;
    OpenOptions::new().limits(limits).secret(Secret::new(SECRET))
}

fn file(data: &[u8]) -> Arc<dyn ReadAt> {
    Arc::new(MemFile::from(data.to_vec()))
}

fn convert(converter: &Converter, source: &Image) -> Result<Vec<u8>> {
    let out = Arc::new(MemFile::new());
    converter.convert_to(source, out.clone())?;
    Ok(out.to_vec())
}

/// Corrects the checksums of the footer, its copy and the header of a VHD image, where there are any.
fn with_vhd_checksums(data: &[u8]) -> Vec<u8> {
    fn seal(bytes: &mut [u8], at: usize, len: usize, checksum_at: usize, cookie: &[u8]) -> Option<()> {
        let part = bytes.get_mut(at..at.checked_add(len)?).filter(|part| part.starts_with(cookie))?;
        part[checksum_at..checksum_at + 4].fill(0);
        let sum = part.iter().fold(0, |sum: u32, &byte| sum.wrapping_add(byte.into()));
        part[checksum_at..checksum_at + 4].copy_from_slice(&(!sum).to_be_bytes());
        Some(())
    }
    let mut bytes = data.to_vec();
    let len = bytes.len();
    for (at, len) in [(0, 512), (len.saturating_sub(512), 512), (len.saturating_sub(511), 511)] {
        if seal(&mut bytes, at, len, 64, b"conectix").is_some()
            && let Some(header_at) = bytes.get(at + 16..).and_then(|rest| rest.first_chunk().copied())
        {
            seal(&mut bytes, u64::from_be_bytes(header_at) as usize, 1024, 36, b"cxsparse");
        }
    }
    bytes
}

/// Checks, opens and reads an image in one file, with its first snapshots.
fn explore(options: &OpenOptions, file: Arc<dyn ReadAt>) {
    check(options, file.clone());
    let image = match options.open_source(file.clone()) {
        Ok(image) => image,
        Err(error) => return describe(&error),
    };
    for snapshot in image.info().snapshots.iter().take(4) {
        match options.clone().snapshot(snapshot.id.to_text()).open_source(file.clone()) {
            Ok(past) => walk(&past),
            Err(error) => describe(&error),
        }
    }
    hosts(&image, file.size().unwrap());
    examine(&image);
}

/// Host ranges are within the file; of an image that can be converted they are disjoint, too, where there are no reference counts.
fn hosts(image: &Image, file_len: u64) {
    // A log can make the file longer.
    if image.format().name() == "vhdx" {
        return;
    }
    let mut ranges = Vec::new();
    for span in image.spans(0..u64::MAX).take(SPANS) {
        let Ok(span) = span else { return };
        // A unit has several spans.
        let range = match (span.kind, span.location()) {
            (ExtentKind::Compressed(unit), Some(at)) => at.offset..at.offset + u64::from(unit.stored_len),
            (_, Some(at)) => at.offset..at.offset + span.len,
            (_, None) => continue,
        };
        // The place of zeros is not read. It can be beyond the end until something is written there.
        assert!(range.end <= file_len || span.is_zero(), "{span:?} is not within {file_len} bytes");
        if ranges.last() != Some(&range) {
            ranges.push(range);
        }
    }
    let is_counted = image.format() == Format::QCOW2;
    if !is_counted && image.virtual_size() <= READ && convert(&Converter::new(Format::RAW).threads(1), image).is_ok() {
        ranges.sort_by_key(|range| range.start);
        ranges.dedup();
        for pair in ranges.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:?} overlap, and the image is converted");
        }
    }
}

/// Inspects, walks, reads and converts an opened image.
fn examine(image: &Image) {
    let info = format!("{:?}", image.info());
    assert!(!info.is_empty());
    walk(image);
    read(image);
    if image.virtual_size() <= READ {
        reconvert(image);
    }
}

/// A check ends with a report or an error.
fn check(options: &OpenOptions, file: Arc<dyn ReadAt>) {
    match options.check_source(file) {
        Ok(report) => {
            assert!(report.messages.len() <= CheckReport::MESSAGES);
            assert!(report.compressed_clusters <= report.allocated_clusters, "{report:?}");
            assert!(report.messages.iter().all(|message| !message.contains(char::is_control)), "{report:?}");
        }
        Err(error) => describe(&error),
    }
}

/// Spans are contiguous from the start of the disk to its end, or to an error.
fn walk(image: &Image) {
    let mut at = 0;
    for span in image.spans(0..u64::MAX).take(SPANS) {
        match span {
            Ok(span) => {
                assert_eq!(span.offset, at);
                assert!(span.len > 0);
                at = span.end();
                assert!(at <= image.virtual_size());
            }
            Err(error) => return describe(&error),
        }
    }
}

/// As [`walk`], for an image that can be read once.
fn walk_once(image: &Image) {
    let mut at = 0;
    let mut first = [0xee; 1];
    for span in image.spans(0..u64::MAX).take(SPANS) {
        let result = span.and_then(|span| {
            assert_eq!(span.offset, at);
            at = span.end();
            assert!(span.len > 0 && at <= image.virtual_size());
            image.read_exact_at(&mut first, span.offset)
        });
        if let Err(error) = result {
            return describe(&error);
        }
    }
}

/// One large read gives the same bytes as small ones, of sectors and of other lengths; where it fails, so does one of them.
fn read(image: &Image) {
    let mut whole = vec![0; image.virtual_size().min(READ) as usize];
    let result = image.read_exact_at(&mut whole, 0);
    for (len, step) in [(512, 1), (4096 + 512, 1), (777, 13), (65_537, 1)] {
        let mut part = vec![0xee; len];
        let mut failed = false;
        // All pieces are needed to find the one that fails.
        let step = if result.is_ok() { step } else { 1 };
        for (index, chunk) in whole.chunks(len).enumerate().step_by(step) {
            let part = &mut part[..chunk.len()];
            match (image.read_exact_at(part, (index * len) as u64), &result) {
                (Ok(()), Ok(())) => assert!(part == chunk, "{len} bytes at {}", index * len),
                (Ok(()), Err(_)) => {}
                (Err(error), Ok(())) => panic!("{len} bytes at {}: {error}", index * len),
                (Err(_), Err(_)) => {
                    failed = true;
                    break;
                }
            }
        }
        assert_eq!(failed, result.is_err(), "pieces of {len} bytes");
    }
    if let Err(error) = result {
        describe(&error);
    }
}

/// A conversion fails, or gives a valid image with the same guest data.
fn reconvert(image: &Image) {
    for (format, converter) in targets(image.virtual_size()) {
        match convert(&converter.threads(1), image) {
            Ok(bytes) => {
                let copy = limited().format(format).open_source(file(&bytes)).unwrap();
                assert_eq!(compare(image, &copy).unwrap(), Comparison::Identical);
            }
            Err(error) => describe(&error),
        }
    }
}

/// Every format, uncompressed and compressed. Of those with blocks of a configurable size, which take at least a MiB and
/// hence more time, one is chosen by the size of the disk, with its smallest blocks.
fn targets(size: u64) -> Vec<(Format, Converter)> {
    let smallest_block = |format: &Format| {
        let spec = format.options().iter().find(|option| option.name == "block_size")?;
        roundtrip::values(spec).first().cloned()
    };
    let formats = Format::all().filter(Format::can_create);
    let (large, small): (Vec<_>, Vec<_>) = formats.partition(|format| smallest_block(format).is_some());
    let mut targets: Vec<_> = small.into_iter().map(|format| (format, Converter::new(format))).collect();
    for (format, converter) in targets.clone() {
        targets.push((format, converter.compress(true)));
    }
    if let Some(format) = large.get((size / 512) as usize % large.len().max(1)) {
        let mut options = Options::new();
        options.set("block_size", smallest_block(format).unwrap());
        targets.push((*format, Converter::new(*format).options(options)));
    }
    // A fixed VHD is as small as the disk.
    let mut options = Options::new();
    options.set("subformat", "fixed");
    targets.push((Format::VHD, Converter::new(Format::VHD).options(options)));
    targets
}

/// An error has a message of one line, whatever text the image put into it.
fn describe(error: &Error) {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.contains(char::is_control), "{text:?}");
    assert_ne!(error.kind().as_str(), "context");
}
