//! The memory that images take, compared with the formula of `Limits::peak_memory`.
//!
//! One test, alone in its program: the allocator counts what all threads allocate.

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;

use diskimage::io::{MemFile, ReadAt, WriteAt};
use diskimage::{Converter, Format, Limits, OpenOptions, Options, Secret};
use peak_alloc::PeakAlloc;
use support::{SparseFile, dmg};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const MIB: u64 = 1 << 20;

/// A file that keeps its length only.
#[derive(Default)]
struct Discard(AtomicU64);

impl WriteAt for Discard {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.fetch_max(offset + buf.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn zero_range(&self, _: std::ops::Range<u64>) -> io::Result<()> {
        Ok(())
    }
}

/// A file whose bytes repeat for ever.
struct Repeated {
    piece: Vec<u8>,
    len: u64,
}

impl ReadAt for Repeated {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = (self.len.saturating_sub(offset)).min(buf.len() as u64) as usize;
        for (byte, at) in buf[..len].iter_mut().zip(offset..) {
            *byte = self.piece[(at % self.piece.len() as u64) as usize];
        }
        Ok(len)
    }
}

/// Small limits, so that what does not follow them shows.
fn limits() -> Limits {
    let mut limits = Limits::default();
    (limits.metadata, limits.text_length, limits.window) = (2 * MIB, MIB, MIB);
    (limits.decompressed, limits.argon2_memory) = (256 * MIB, MIB);
    limits
}

/// Files, and the number of compressions and packages around the image.
type Case = (String, Arc<dyn ReadAt>, u64);

fn file(bytes: Vec<u8>) -> Arc<dyn ReadAt> {
    Arc::new(MemFile::from(bytes))
}

/// All images in a directory that are compressed with gzip, with the name of a package if they are of one.
fn stored(directory: &str) -> Vec<Case> {
    let Ok(entries) = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    paths.sort();
    paths.iter().map(|path| (path.display().to_string(), file(fs::read(path).unwrap()), 2)).collect()
}

/// An image of each format that is created.
fn created(size: u64, source: Option<&Arc<dyn ReadAt>>) -> Vec<Case> {
    let image = |format: Format, compress: bool| {
        let out = Arc::new(SparseFile::default());
        let mut converter = Converter::new(format).compress(compress).secret(Secret::new("secret"));
        if format == Format::LUKS {
            let mut options = Options::new();
            options.set("iter-time", "1");
            converter = converter.options(options);
        }
        let done = match source {
            None => converter.create_to(size, out.clone()),
            Some(source) => {
                let disk = OpenOptions::new().format(Format::RAW).open_source(source.clone()).unwrap();
                converter.convert_to(&disk, out.clone())
            }
        };
        done.ok().map(|_| (format!("{format}, {size} bytes, compressed: {compress}"), out as Arc<dyn ReadAt>, 0))
    };
    // An empty volume of LUKS is full of what its zeros decrypt to.
    let formats = Format::all().filter(|format| format.can_create() && (source.is_some() || *format != Format::LUKS));
    formats.flat_map(|format| [image(format, false), image(format, true)]).flatten().collect()
}

/// Files that are made to take memory.
fn hostile() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    // Archives of members without end, and of names without end.
    let member = |name: &str, kind: u8, size: u64| {
        let mut block = vec![0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    };
    for kind in *b"0L5x" {
        let piece = member("name", kind, 0);
        cases.push((format!("tar of {}", char::from(kind)), Arc::new(Repeated { piece, len: 1 << 40 }), 1));
    }
    let long = [member("././@LongLink", b'L', MIB), vec![b'n'; MIB as usize], member("x", b'0', 0)].concat();
    cases.push(("long names".into(), Arc::new(Repeated { piece: long, len: 1 << 40 }), 1));
    // Descriptors of tags, of attributes, and of equals signs.
    let envelope = "<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\">";
    for (what, text) in [("tags", "<a/>"), ("attributes", "<a b=\"\" c=\"\"/>"), ("text", "=====")] {
        let text = format!("{envelope}{}</Envelope>", text.repeat((MIB as usize - 100) / text.len()));
        let package = [member("vm.ovf", b'0', text.len() as u64), text.clone().into_bytes()].concat();
        cases.push((format!("descriptor of {what}"), file(text.into()), 1));
        cases.push((format!("descriptor of {what} in an archive"), file(package), 1));
    }
    // Descriptors of VMDK.
    for (what, line) in [("extents", "RW 1 ZERO\n"), ("entries", "ddb.a = \"1\"\n")] {
        let head = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n";
        let text = format!("{head}{}", line.repeat((MIB as usize - 200) / line.len()));
        cases.push((format!("descriptor of {what}"), file(text.into()), 0));
    }
    // Tables as long as the header can tell, in a file as long.
    let header = |bytes: &[(usize, &[u8])]| {
        let mut header = vec![0; 65536];
        bytes.iter().for_each(|(at, bytes)| header[*at..at + bytes.len()].copy_from_slice(bytes));
        header
    };
    let qcow2 = |size: u64, l1_size: u32, snapshots: u32| {
        header(&[
            (0, b"QFI\xfb\0\0\0\x02"),
            (20, &16u32.to_be_bytes()),
            (24, &size.to_be_bytes()),
            (36, &l1_size.to_be_bytes()),
            (40, &65536u64.to_be_bytes()),
            (48, &65536u64.to_be_bytes()),
            (56, &128u32.to_be_bytes()),
            (60, &snapshots.to_be_bytes()),
            (64, &65536u64.to_be_bytes()),
        ])
    };
    let long = |head: Vec<u8>| {
        let file = SparseFile::default();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(&head, 0).unwrap();
        Arc::new(file) as Arc<dyn ReadAt>
    };
    cases.push(("qcow2 with the largest L1 table".into(), long(qcow2(1 << 51, 4 << 20, 0)), 0));
    cases.push(("qcow2 with the most snapshots".into(), long(qcow2(1 << 30, 2, 65536)), 0));
    let vdi = header(&[
        (64, &0xbeda_107fu32.to_le_bytes()),
        (68, &[1, 0, 1, 0, 0x90, 1, 0, 0, 1]),
        (340, &512u32.to_le_bytes()),
        (344, &(1u32 << 31).to_le_bytes()),
        (360, &512u32.to_le_bytes()),
        (368, &(1u64 << 48).to_le_bytes()),
        (376, &(1u32 << 20).to_le_bytes()),
        (384, &(1u32 << 28).to_le_bytes()),
    ]);
    cases.push(("vdi with a large map".into(), long(vdi), 0));
    // A property list of the largest size.
    let list = format!("{}{}", "<plist version=\"1.0\"><dict>", "<a/>".repeat(MIB as usize / 4));
    cases.push(("dmg with a list of tags".into(), file(dmg::dmg(&[0; 512], &list, 1)), 0));
    cases
}

/// Compressed files: of zeros, with large windows, with many units.
fn compressed() -> Vec<Case> {
    use lzma_rust2::{XzOptions, XzWriter};

    let xz = |bytes: &[u8], dictionary: u32, block: Option<u64>| {
        let mut options = XzOptions::with_preset(0);
        options.lzma_options.dict_size = dictionary;
        options.set_block_size(block.and_then(std::num::NonZeroU64::new));
        let mut writer = XzWriter::new(Vec::new(), options).unwrap();
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    };
    let disk: Vec<u8> = (0..8 * MIB).map(|at| (at >> 9) as u8).collect();
    let mut image = Vec::new();
    for (name, dictionary, block) in
        [("one block", 1 << 20, None), ("a large dictionary", 64 << 20, None), ("small blocks", 1 << 16, Some(1 << 16))]
    {
        image.push((format!("xz with {name}"), xz(&disk, dictionary, block)));
    }
    let zeros = vec![0; 16 << 20];
    image.push(("xz of zeros".into(), xz(&zeros, 1 << 20, None)));
    let twice = xz(&image[0].1, 1 << 20, None);
    let mut cases: Vec<Case> = image.into_iter().map(|(name, bytes)| (name, file(bytes), 1)).collect();
    cases.push(("xz of xz".into(), file(twice), 2));
    cases
}

/// The most memory that `work` takes.
fn peak(work: impl FnOnce()) -> u64 {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    work();
    ALLOCATOR.peak_usage().saturating_sub(before) as u64
}

/// The most memory that opening and checking the file takes, and that converting it takes. What is refused has taken memory before.
fn peaks(source: &Arc<dyn ReadAt>, limits: &Limits, threads: usize) -> [u64; 2] {
    let options = OpenOptions::new().limits(limits.clone()).secret(Secret::new("secret"));
    let opening = peak(|| {
        let _ = options.check_source(source.clone());
        let _ = options.inspect_source(source.clone());
        let _ = options.package_source(source.clone());
        let _ = options.open_source(source.clone());
    });
    let converting = peak(|| {
        let Ok(image) = options.open_source(source.clone()) else { return };
        for (format, compress) in [(Format::RAW, false), (Format::QCOW2, true)] {
            let converter = Converter::new(format).compress(compress).threads(threads);
            let _ = converter.convert_to(&image, Arc::new(Discard::default()));
        }
    });
    [opening, converting]
}

#[test]
fn memory_follows_the_formula() {
    const THREADS: usize = 2;
    let limits = limits();
    let threads = THREADS.max(available_parallelism().map_or(1, usize::from)) as u64;
    let dense: Arc<dyn ReadAt> =
        Arc::new(Repeated { piece: (0..7919).map(|at| (at * at) as u8).collect(), len: 6 * MIB });
    let cases = [stored("testdata/good"), stored("testdata/bad"), stored("testdata/packages"), hostile(), compressed()];
    let cases = cases.into_iter().chain([created(256 << 30, None), created(6 * MIB, Some(&dense))]).flatten();
    let (mut failures, mut largest) = (Vec::new(), 0);
    for (name, source, layers) in cases {
        let found = peaks(&source, &limits, THREADS);
        let most = [0, threads].map(|threads| limits.peak_memory(threads, MIB, layers));
        largest = largest.max(found[1]);
        if std::env::var_os("DISKIMAGE_MEMORY").is_some() {
            eprintln!(
                "{:>7} of {:>7}, {:>7} of {:>7} KiB: {name}",
                found[0] >> 10,
                most[0] >> 10,
                found[1] >> 10,
                most[1] >> 10
            );
        }
        if found[0] > most[0] || found[1] > most[1] {
            failures.push(format!("{name}: {found:?}, at most {most:?}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    // The allocator counts: buffers of a conversion were seen.
    assert!(largest > 4 * MIB, "{largest}");
}
