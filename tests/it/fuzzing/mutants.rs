//! Damaged images, as qemu-img reads them: where both accept one, both read the same disk.
//!
//! `DISKIMAGE_MUTANTS` in the environment is the number of images of each format; 40 without it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use diskimage::{Comparison, Converter, Format, Image, OpenOptions, compare};
use proptest::strategy::{BoxedStrategy, Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::{damaged, inputs, kinds, seeds, targets};
use crate::support::pattern::Pattern;
use crate::support::{TempDir, convert, open_raw, raw_image, tools};

/// Largest disk in bytes that is compared.
const LARGEST: u64 = 16 << 20;

/// The formats that both read from one file without a secret.
const FORMATS: [&str; 9] = ["qcow2", "qcow", "qed", "vmdk", "vpc", "vdi", "vhdx", "parallels", "bochs"];

/// What came of a damaged image.
enum Outcome {
    /// A program refused it, or it is known that they differ.
    Refused,
    Same,
    Different(String),
}

/// Damaged images of a kind that qemu-img reads: it has one block size of VDI.
fn of_qemu(format: Format) -> BoxedStrategy<Vec<u8>> {
    match format.name() {
        "vdi" => {
            let disk = Pattern::Islands.make(3 << 20);
            damaged(vec![convert(&Converter::new(format), &raw_image(&disk)).0], 1024).boxed()
        }
        // The stored ones have blocks of two sectors, and no geometry.
        "vpc" => damaged(seeds(format).into_iter().take(kinds(format).0.len()).collect(), 4096).boxed(),
        _ => inputs(format),
    }
}

/// Whether it is known that qemu-img reads another disk, and why:
///
/// - It counts sectors, and leaves out the rest of a disk.
/// - The size of a VHD is that of the geometry, unless a program of its list has created the image, whereas the field `Current Size` is the size.
/// - It takes no notice of the sector bitmaps of a VHD, by which sectors are zeros.
/// - A grain directory of VMDK that is the header, or beyond the end of the file, is read as one, whereas the redundant directory is used here,
///   with a warning.
/// - The capacity in the header of a VMDK may be the size in the descriptor rounded up to a grain, which is the size for qemu-img.
fn is_known(image: &Image, own: &Image, other: &Image, found: Comparison) -> bool {
    let size = own.virtual_size();
    match (image.format().name(), found) {
        _ if !size.is_multiple_of(512) => true,
        ("vpc", _) if size != other.virtual_size() => true,
        ("vpc", Comparison::Different { offset }) => {
            let mut byte = [0xee];
            own.read_exact_at(&mut byte, offset).is_ok() && byte == [0]
        }
        ("vmdk", Comparison::Identical) if size < other.virtual_size() => true,
        ("vmdk", _) => !image.info().warnings.is_empty(),
        _ => false,
    }
}

/// Stores the image that `input` describes.
fn store(format: Format, input: &[u8], path: &Path) -> bool {
    if format.name() != "vhdx" {
        fs::write(path, input).unwrap();
        return true;
    }
    match targets::vhdx::files(input) {
        Some((file, None)) => file.with_checksums().store(path).is_ok(),
        _ => false,
    }
}

/// Converts with both programs.
fn judge(format: Format, path: &Path, dir: &TempDir) -> Outcome {
    let (own, other) = (dir.join("own.raw"), dir.join("other.raw"));
    let Ok(image) = OpenOptions::new().format(format).open(path) else { return Outcome::Refused };
    if image.virtual_size() > LARGEST
        || Converter::new(Format::RAW).threads(1).sync(false).convert(&image, &own).is_err()
    {
        return Outcome::Refused;
    }
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", format.name(), "-O", "raw"]).arg(path).arg(&other);
    let done = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    if !done.success() {
        return Outcome::Refused;
    }
    let (own, other) = (open_raw(&own), open_raw(&other));
    let found = compare(&own, &other).unwrap();
    let sizes = (own.virtual_size(), other.virtual_size());
    match found {
        Comparison::Identical if sizes.0 == sizes.1 => Outcome::Same,
        _ if is_known(&image, &own, &other, found) => Outcome::Refused,
        _ => Outcome::Different(format!("{found:?}, sizes {sizes:?}")),
    }
}

#[test]
fn damaged_images_that_qemu_img_reads_too() {
    if tools::find("damaged_images_that_qemu_img_reads_too", &["qemu-img"]).is_none() {
        return;
    }
    let count = std::env::var("DISKIMAGE_MUTANTS").ok().and_then(|count| count.parse().ok()).unwrap_or(40);
    let differences = thread::scope(|scope| {
        let of_format = |name: &'static str| {
            let format = Format::by_name(name).unwrap();
            let (dir, mut runner) = (TempDir::new(), TestRunner::deterministic());
            let inputs = of_qemu(format);
            let (mut same, mut different) = (0, Vec::new());
            for number in 0..count {
                let path = dir.join(&format!("{number}.{name}"));
                let input = inputs.new_tree(&mut runner).unwrap().current();
                if !store(format, &input, &path) {
                    continue;
                }
                match judge(format, &path, &dir) {
                    Outcome::Refused => {}
                    Outcome::Same => same += 1,
                    Outcome::Different(how) => {
                        if let Some(kept) = std::env::var_os("DISKIMAGE_KEEP") {
                            fs::copy(&path, Path::new(&kept).join(format!("{number}.{name}"))).unwrap();
                        }
                        different.push(format!("{name} {number}: {how}"));
                    }
                }
                fs::remove_file(&path).unwrap();
            }
            // Damage that no one minds is frequent, except of VHDX, which has checksums.
            assert!(same > 0 || count < 100 && name == "vhdx", "{name}: none of {count} images is read by both");
            different
        };
        let threads: Vec<_> = FORMATS.iter().map(|name| scope.spawn(move || of_format(name))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(differences.is_empty(), "{differences:#?}");
}
