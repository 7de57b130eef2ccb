//! Images of formats besides qcow2: written in turns with qemu, and read by other libraries after that.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use diskimage::io::{FileStorage, ReadAt, Storage, WriteAt};
use diskimage::{Converter, Format, OpenOptions, ReferencePolicy};

use crate::support::tools::{
    DISSECT, LIBYAL, check_with_qemu_as, find, needs_qemu, qemu_img, qemu_io_as, read_with_7zip, read_with_qemu,
};
use crate::support::{Random, TempDir, options};

const SIZE: u64 = 5 << 20;

/// Formats and options of qemu's images, and whether `qemu-img check` and the libraries take them.
const KINDS: &[(&str, &str)] = &[
    ("vdi", ""),
    ("vdi", "static=on"),
    ("vpc", "subformat=dynamic,force_size=on"),
    ("vpc", "subformat=fixed,force_size=on"),
    ("vmdk", "subformat=monolithicSparse"),
    ("vmdk", "subformat=monolithicSparse,zeroed_grain=on"),
    ("vmdk", "subformat=monolithicFlat"),
    ("vmdk", "subformat=twoGbMaxExtentSparse"),
    ("vmdk", "subformat=twoGbMaxExtentFlat"),
    ("vhdx", "subformat=dynamic,block_size=1M"),
    ("vhdx", "subformat=dynamic,block_size=2M,block_state_zero=off"),
    ("vhdx", "subformat=fixed"),
    ("qed", ""),
    ("qed", "cluster_size=4k,table_size=2"),
    ("qcow", ""),
];

fn format(name: &str) -> Format {
    name.parse().unwrap()
}

fn open(name: &str) -> OpenOptions {
    OpenOptions::new().format(format(name)).reference_policy(ReferencePolicy::Beside)
}

/// Writes a pattern, or zeros.
fn by_qemu(format: &str, path: &Path, range: &Range<u64>, pattern: u8) {
    qemu_io_as(format, path, &[format!("write -P {pattern} {} {}", range.start, range.end - range.start)]);
}

fn by_us(format: &str, path: &Path, range: &Range<u64>, pattern: u8) {
    let disk = open(format).open_disk(path).unwrap();
    match pattern {
        0 => disk.write_zeros(range.clone()).unwrap(),
        _ => disk.write_all_at(&vec![pattern; (range.end - range.start) as usize], range.start).unwrap(),
    }
    disk.close().unwrap();
}

/// What both programs and the checks see.
fn check(format: &str, path: &Path, content: &[u8]) {
    if matches!(format, "vdi" | "vmdk" | "vhdx" | "qed") {
        check_with_qemu_as(format, path);
    }
    // There is nothing to check in images of qcow.
    if format != "qcow" {
        let report = open(format).check(path).unwrap();
        let counts = (report.corruptions, report.leaks, report.check_errors);
        assert_eq!(counts, (0, 0, 0), "{format}: {:?}", report.messages);
    }
    let image = open(format).open(path).unwrap();
    let mut ours = vec![0; content.len()];
    image.read_exact_at(&mut ours, 0).unwrap();
    assert!(ours == content, "{format}: we read something else");
    assert!(read_with_qemu(path, &["-f", format]) == content, "{format}: qemu reads something else");
}

/// A library reads the same.
fn check_with_libraries(format: &str, path: &Path, content: &[u8]) {
    let image = [(PathBuf::from(path), content.to_vec())];
    let what = format!("{format} that is written in place");
    // libvhdi shows a VHD with its original size.
    let takes = match format {
        "vpc" => content.len() as u64 == SIZE,
        _ => matches!(format, "vhdx" | "vmdk"),
    };
    if takes && LIBYAL.is_there(&what) {
        LIBYAL.assert_reads(format, &image);
    }
    if !matches!(format, "qed" | "qcow") && DISSECT.is_there(&what) {
        DISSECT.assert_reads(format, &image);
    }
}

fn take_turns(format: &str, path: &Path, seed: u64) -> Vec<u8> {
    let mut content = vec![0; SIZE as usize];
    let mut random = Random::new(seed);
    for round in 0..8 {
        let start = random.below(SIZE / 512) * 512;
        let range = start..(start + (random.below(3000) + 1) * 512).min(SIZE);
        let pattern = random.below(5) as u8;
        match round % 2 {
            0 => by_us(format, path, &range, pattern),
            _ => by_qemu(format, path, &range, pattern),
        }
        content[range.start as usize..range.end as usize].fill(pattern);
        check(format, path, &content);
    }
    content
}

#[test]
fn images_of_qemu_are_written_in_turns() {
    needs_qemu!("writing other formats in turns with qemu");
    for (index, (format, list)) in KINDS.iter().enumerate() {
        let dir = TempDir::new();
        let path = dir.join(&format!("disk.{format}"));
        let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"create", &"-q", &"-f", format];
        if !list.is_empty() {
            args.extend([&"-o" as &dyn AsRef<std::ffi::OsStr>, list]);
        }
        let size = SIZE.to_string();
        args.extend([&path as &dyn AsRef<std::ffi::OsStr>, &size]);
        qemu_img(&args);
        let content = take_turns(format, &path, index as u64);
        check_with_libraries(format, &path, &content);
    }
}

#[test]
fn our_images_are_written_in_turns_and_grow() {
    needs_qemu!("writing images of other formats in turns with qemu");
    for (format, list) in [
        ("vdi", "block_size=1M"),
        ("vpc", "block_size=2M"),
        ("vpc", "subformat=fixed"),
        ("vmdk", ""),
        ("vmdk", "subformat=monolithicFlat"),
        ("vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vmdk", "subformat=twoGbMaxExtentFlat"),
        ("vhdx", "block_size=1M"),
        ("qed", "cluster_size=4k,table_size=2"),
    ] {
        let dir = TempDir::new();
        let path = dir.join(&format!("disk.{format}"));
        Converter::new(self::format(format)).options(options(list)).create(SIZE, &path).unwrap();
        let mut content = take_turns(format, &path, list.len() as u64 + 50);
        grow(format, &path, &mut content, SIZE + (3 << 20) + 8192);
        check_with_libraries(format, &path, &content);
    }
}

/// The disk grows, and its end is written to.
fn grow(format: &str, path: &Path, content: &mut Vec<u8>, new: u64) {
    let disk = open(format).open_disk(path).unwrap();
    disk.resize(new).unwrap();
    disk.write_all_at(&[7; 5000], new - 5000).unwrap();
    disk.close().unwrap();
    content.resize(new as usize - 5000, 0);
    content.resize(new as usize, 7);
    check(format, path, content);
}

/// From one grain table to three, and flat extents, which qemu goes on with.
#[test]
fn vmdk_images_of_qemu_grow() {
    needs_qemu!("growing images of qemu");
    for kind in ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let dir = TempDir::new();
        let path = dir.join("disk.vmdk");
        let options = format!("subformat={kind}");
        qemu_img(&[&"create", &"-q", &"-f", &"vmdk", &"-o", &options, &path, &SIZE.to_string()]);
        let mut content = take_turns("vmdk", &path, 3);
        grow("vmdk", &path, &mut content, 70 << 20);
        let range = 68 << 20..(68 << 20) + 9000;
        content[range.start as usize..range.end as usize].fill(9);
        by_qemu("vmdk", &path, &range, 9);
        check("vmdk", &path, &content);
        let info = String::from_utf8(qemu_img(&[&"info", &path])).unwrap();
        assert!(info.contains("70 MiB"), "{info}");
        check_with_libraries("vmdk", &path, &content);
        if let (true, Some(program)) = (kind == "monolithicSparse", find("a VMDK that grew", &["7zz", "7z"])) {
            assert!(read_with_7zip(&program, "vmdk", &path) == content, "7-Zip reads something else");
        }
    }
}

/// The BAT region has 1 MiB, and the disk needs another one.
#[test]
fn a_vhdx_outgrows_its_bat() {
    needs_qemu!("growing a VHDX");
    let dir = TempDir::new();
    let path = dir.join("disk.vhdx");
    qemu_img(&[&"create", &"-q", &"-f", &"vhdx", &"-o", &"block_size=1M", &path, &SIZE.to_string()]);
    let size: u64 = 300 << 30;
    let disk = open("vhdx").open_disk(&path).unwrap();
    disk.write_all_at(&[5; 9000], SIZE - 9000).unwrap();
    disk.resize(size).unwrap();
    disk.write_all_at(&[6; 9000], size - 9000).unwrap();
    disk.close().unwrap();
    check_with_qemu_as("vhdx", &path);
    let report = open("vhdx").check(&path).unwrap();
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0), "{:?}", report.messages);
    let [first, last] = [SIZE - 9000, size - 9000].map(|at| at.to_string());
    let reads = [format!("read -P 5 {first} 9000"), format!("read -P 6 {last} 9000"), format!("read -P 0 {SIZE} 2M")];
    qemu_io_as("vhdx", &path, &reads);
    qemu_io_as("vhdx", &path, &[format!("write -P 8 {} 1M", size / 2)]);
    if LIBYAL.is_there("a VHDX that grew") {
        assert_eq!(LIBYAL.sizes("vhdx", std::slice::from_ref(&path)), [size]);
    }
    let mut bytes = [0; 9000];
    open("vhdx").open(&path).unwrap().read_exact_at(&mut bytes, size / 2).unwrap();
    assert_eq!(bytes, [8; 9000]);
}

/// Storage that loses what is written to a range, as if the power had failed before.
struct Forgets {
    file: FileStorage,
    lost: Range<u64>,
}

impl ReadAt for Forgets {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
}

impl WriteAt for Forgets {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if self.lost.contains(&offset) { Ok(()) } else { self.file.write_all_at(buf, offset) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        WriteAt::set_len(&self.file, len)
    }

    fn sync(&self) -> io::Result<()> {
        WriteAt::sync(&self.file)
    }
}

/// A VHDX whose tables are in the log only: qemu replays it, and so does this crate. (libvhdi and dissect ignore the log.)
#[test]
fn qemu_replays_the_log_of_a_vhdx() {
    needs_qemu!("replaying a log that we write");
    let dir = TempDir::new();
    let path = dir.join("disk.vhdx");
    Converter::new(Format::VHDX).options(options("block_size=1M")).create(SIZE, &path).unwrap();
    let mut content = vec![0; SIZE as usize];
    // The regions are a log of 1 MiB, the metadata and the BAT, in this order.
    let file: Arc<dyn Storage> = Arc::new(Forgets { file: FileStorage::open(&path).unwrap(), lost: 2 << 20..4 << 20 });
    let disk = OpenOptions::new().format(Format::VHDX).open_disk_in(file).unwrap();
    for (offset, pattern) in [(4000, 1), (3 << 20, 2), ((1 << 20) + 700, 3)] {
        disk.write_all_at(&[pattern; 9000], offset as u64).unwrap();
        content[offset..offset + 9000].fill(pattern);
    }
    disk.flush().unwrap();
    // As it is after a power cut: closing would empty the log.
    let after = dir.join("after.vhdx");
    std::fs::copy(&path, &after).unwrap();
    drop(disk);

    let image = OpenOptions::new().open(&after).unwrap();
    assert!(image.info().dirty);
    let mut ours = vec![0; content.len()];
    image.read_exact_at(&mut ours, 0).unwrap();
    assert!(ours == content, "we read something else");
    drop(image);
    // Opened for writing, the log is applied to the file.
    let applied = dir.join("applied.vhdx");
    std::fs::copy(&after, &applied).unwrap();
    OpenOptions::new().open_disk(&applied).unwrap().close().unwrap();
    check("vhdx", &applied, &content);
    assert!(!OpenOptions::new().open(&applied).unwrap().info().dirty);
    qemu_img(&[&"check", &"-q", &"-r", &"all", &"-f", &"vhdx", &after]);
    check("vhdx", &after, &content);
}

/// What cannot be written in place is refused with the reason.
#[test]
fn images_that_cannot_be_changed_are_refused() {
    let dir = TempDir::new();
    let path = dir.join("disk.vmdk");
    let converter = Converter::new(Format::VMDK).options(options("subformat=streamOptimized"));
    converter.create(SIZE, &path).unwrap();
    let error = OpenOptions::new().open_disk(&path).unwrap_err();
    assert!(error.to_string().contains("streamOptimized"), "{error}");
}

/// What has no data can be cut off, and reads as zeros when the disk grows again.
#[test]
fn disks_become_smaller_where_they_have_no_data() {
    for (format, list) in [
        (Format::VDI, "block_size=1M"),
        (Format::VHD, "block_size=1M"),
        (Format::VHDX, "block_size=1M"),
        (Format::QED, ""),
    ] {
        let dir = TempDir::new();
        let path = dir.join("disk");
        Converter::new(format).options(options(list)).create(SIZE, &path).unwrap();
        let disk = OpenOptions::new().open_disk(&path).unwrap();
        let mut content = vec![0; SIZE as usize];
        disk.write_all_at(&[5; 700_000], 600_000).unwrap();
        content[600_000..1_300_000].fill(5);
        let size = 1_000_448;
        assert_eq!(disk.resize(size).unwrap_err().kind().as_str(), "unsupported", "{format}");
        assert_eq!(disk.size(), SIZE);
        let size = if format == Format::QED { 1_300_992 } else { 1_048_576 + 100_352 };
        disk.resize(size).unwrap();
        assert_eq!(disk.size(), size, "{format}");
        content[size.min(SIZE) as usize..].fill(0);
        disk.close().unwrap();
        let report = OpenOptions::new().check(&path).unwrap();
        assert_eq!(
            (report.corruptions, report.leaks, report.check_errors),
            (0, 0, 0),
            "{format}: {:?}",
            report.messages
        );
        let disk = OpenOptions::new().open_disk(&path).unwrap();
        disk.resize(SIZE).unwrap();
        disk.close().unwrap();
        let mut now = vec![9; SIZE as usize];
        OpenOptions::new().open(&path).unwrap().read_exact_at(&mut now, 0).unwrap();
        assert!(now == content, "{format}");
    }
}
