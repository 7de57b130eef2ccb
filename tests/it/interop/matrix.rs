//! Every valid combination of cluster size, version, compression, extended L2 entries and content, and all refcount widths,
//! written here and checked and read by `qemu-img`, and the reverse.

use std::fmt;
use std::path::Path;

use crate::support::pattern::{self, Pattern};
use crate::support::tools::{check_with_qemu, find, needs_qemu, output, qemu_img, read_with_qemu};
use crate::support::{TempDir, assert_same, content, open_raw, qcow2, raw};
use diskimage::Image;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Zlib,
    Zstd,
}

use Compression::{None as Plain, Zlib, Zstd};

#[derive(Clone, Copy, Debug)]
struct Cell {
    cluster_size: usize,
    version: u32,
    compression: Compression,
    extended: bool,
    refcount_bits: u32,
    pattern: Pattern,
}

impl Cell {
    fn is_valid(&self) -> bool {
        let needs_version_3 = self.extended || self.compression == Zstd || self.refcount_bits != 16;
        (self.version == 3 || !needs_version_3) && (!self.extended || self.cluster_size >= 16 << 10)
    }

    fn compresses(&self) -> bool {
        self.compression != Plain
    }

    /// Options in the syntax of both programs.
    fn options(&self) -> String {
        let mut options =
            format!("cluster_size={},compat={}", self.cluster_size, ["0.10", "1.1"][self.version as usize - 2]);
        if self.version == 3 {
            options += &format!(",refcount_bits={}", self.refcount_bits);
            options += if self.compression == Zstd { ",compression_type=zstd" } else { "" };
            options += if self.extended { ",extended_l2=on" } else { "" };
        }
        options
    }

    /// Content of some clusters and a part of one.
    fn guest(&self) -> Vec<u8> {
        let size = match self.cluster_size {
            512 => 100 << 10,
            4096 => 300 << 10,
            65536 => 700 << 10,
            _ => 3 << 20,
        };
        self.pattern.make(size)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {:?}, {:?}", self.options(), self.compression, self.pattern)
    }
}

/// The cells with this cluster size and refcounts of 16 bits.
fn cells(cluster_size: usize) -> Vec<Cell> {
    let mut cells = Vec::new();
    for version in [2, 3] {
        for compression in [Plain, Zlib, Zstd] {
            for extended in [false, true] {
                for pattern in pattern::ALL {
                    cells.push(Cell { cluster_size, version, compression, extended, refcount_bits: 16, pattern });
                }
            }
        }
    }
    cells.retain(Cell::is_valid);
    cells
}

/// The cells with this cluster size and refcounts of other widths.
fn refcount_cells(cluster_size: usize) -> Vec<Cell> {
    let mut cells = Vec::new();
    for refcount_bits in [1, 2, 4, 8, 32, 64] {
        for compression in [Plain, Zlib, Zstd] {
            let pattern = if refcount_bits % 3 == 1 { Pattern::Dense } else { Pattern::Islands };
            cells.push(Cell { cluster_size, version: 3, compression, extended: false, refcount_bits, pattern });
        }
    }
    cells
}

/// Written here, read by qemu-img.
fn write_and_read_with_qemu(cells: &[Cell]) {
    needs_qemu!("written here, read by qemu-img");
    let dir = TempDir::new();
    for cell in cells {
        let guest = cell.guest();
        let source = dir.file("source.raw", &guest);
        let target = dir.join("ours.qcow2");
        let converter = qcow2(&cell.options()).compress(cell.compresses());
        let report = converter.convert(&open_raw(&source), &target).unwrap_or_else(|e| panic!("{cell}: {e}"));
        if cell.compresses() && cell.pattern == Pattern::Dense {
            assert!(report.compressed_blocks > 0, "{cell}: {report}");
        }
        check_with_qemu(&target);
        assert_same(&read_with_qemu(&target, &["-f", "qcow2"]), &guest, &cell.to_string());
        assert_same(&content(&Image::open(&target).unwrap()).unwrap(), &guest, &cell.to_string());
        check(&target, cell);
    }
}

/// Written by qemu-img, read here.
fn write_with_qemu_and_read(cells: &[Cell]) {
    needs_qemu!("written by qemu-img, read here");
    let dir = TempDir::new();
    for cell in cells {
        let guest = cell.guest();
        let source = dir.file("source.raw", &guest);
        let image = dir.join("theirs.qcow2");
        let compress: &[&str] = if cell.compresses() { &["-c"] } else { &[] };
        let options = cell.options();
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", &options];
        args.extend(compress);
        args.extend([source.to_str().unwrap(), image.to_str().unwrap()]);
        crate::support::tools::run("qemu-img", &args);
        let opened = Image::open(&image).unwrap_or_else(|e| panic!("{cell}: {e}"));
        assert_same(&content(&opened).unwrap(), &guest, &cell.to_string());
        let back = dir.join("back.raw");
        raw().convert(&opened, &back).unwrap_or_else(|e| panic!("{cell}: {e}"));
        assert_same(&std::fs::read(&back).unwrap(), &guest, &cell.to_string());
        check(&image, cell);
    }
}

/// Asserts that the check of this crate finds nothing.
fn check(image: &Path, cell: &Cell) {
    let report = diskimage::OpenOptions::new().check(image).unwrap();
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0), "{cell}: {:?}", report.messages);
    assert!(report.messages.is_empty(), "{cell}: {:?}", report.messages);
}

macro_rules! matrix {
    ($($name:ident: $cells:expr;)*) => { $(
        mod $name {
            use super::*;

            #[test]
            fn ours() {
                write_and_read_with_qemu(&$cells);
            }

            #[test]
            fn theirs() {
                write_with_qemu_and_read(&$cells);
            }
        }
    )* };
}

matrix! {
    clusters_of_512: cells(512);
    clusters_of_4k: cells(4 << 10);
    clusters_of_64k: cells(64 << 10);
    clusters_of_2m: cells(2 << 20);
    refcounts_512: refcount_cells(512);
    refcounts_4k: refcount_cells(4 << 10);
    refcounts_64k: refcount_cells(64 << 10);
    refcounts_2m: refcount_cells(2 << 20);
}

#[test]
fn seven_zip_reads_our_images() {
    let Some(seven_zip) = find("written here, read by 7-Zip", &["7zz", "7z"]) else { return };
    let dir = TempDir::new();
    let mut read = 0;
    for cell in [512, 4 << 10, 64 << 10, 2 << 20].into_iter().flat_map(cells) {
        // 7-Zip supports neither zstd nor extended L2 entries, and lists no file for an empty disk.
        if cell.extended || cell.compression == Zstd || cell.pattern == Pattern::Empty {
            continue;
        }
        let guest = cell.guest();
        let source = dir.file("source.raw", &guest);
        let image = dir.join("ours.qcow2");
        qcow2(&cell.options()).compress(cell.compresses()).convert(&open_raw(&source), &image).unwrap();
        let done = output(&seven_zip, &["x", "-so", "-tqcow", image.to_str().unwrap()]);
        assert!(done.status.success(), "{cell}: {}", String::from_utf8_lossy(&done.stderr));
        assert_same(&done.stdout, &guest, &cell.to_string());
        read += 1;
    }
    assert!(read > 50, "{read}");
}

#[test]
fn sizes_are_padded_to_sectors() {
    needs_qemu!("sizes that are not multiples of sectors");
    let dir = TempDir::new();
    for len in [1, 511, 513, 65535, 65537, 1_000_001] {
        let guest = pattern::Random::new(len as u64).bytes(len);
        let source = dir.file("source.raw", &guest);
        for (compress, converter) in [false, true].map(|compress| (compress, qcow2("").compress(compress))) {
            let target = dir.join("ours.qcow2");
            let report = converter.convert(&open_raw(&source), &target).unwrap();
            assert_eq!(report.padding, (512 - len as u64 % 512) % 512, "{len}");
            assert!(report.to_string().contains("bytes of zeros"), "{report}");
            check_with_qemu(&target);
            let read = read_with_qemu(&target, &[]);
            assert_same(&read[..len], &guest, &format!("{len} bytes, compressed: {compress}"));
            assert!(read[len..].iter().all(|&byte| byte == 0) && read.len() == len.next_multiple_of(512), "{len}");
        }
        let copy = dir.join("copy.raw");
        raw().convert(&open_raw(&source), &copy).unwrap();
        assert_same(&std::fs::read(copy).unwrap(), &guest, "raw to raw");
    }
}

#[test]
fn qemu_img_compares_as_we_do() {
    needs_qemu!("compare");
    let dir = TempDir::new();
    let guest = Pattern::Sparse.make(1 << 20);
    let mut other = guest.clone();
    let at = 777_777;
    other[at] ^= 1;
    let [a, b] = [("a", &guest), ("b", &other)].map(|(name, bytes)| {
        let (source, image) = (dir.file("source.raw", bytes), dir.join(name));
        qcow2("").compress(true).convert(&open_raw(&source), &image).unwrap();
        image
    });
    let compare = |x: &Path, y: &Path| diskimage::compare(&Image::open(x).unwrap(), &Image::open(y).unwrap()).unwrap();
    assert_eq!(compare(&a, &a), diskimage::Comparison::Identical);
    assert_eq!(compare(&a, &b), diskimage::Comparison::Different { offset: at as u64 });
    qemu_img(&[&"compare", &"-q", &a, &dir.join("a")]);
    let done =
        output("qemu-img", &[&"compare" as &dyn AsRef<std::ffi::OsStr>, &a, &b].map(|arg| arg.as_ref().to_owned()));
    assert_eq!(done.status.code(), Some(1));
}
