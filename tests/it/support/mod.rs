//! Helpers of the integration tests.

#[path = "../../support/mod.rs"]
mod shared;

pub mod gzip;
pub mod patch;
pub mod pattern;
#[cfg(feature = "remote")]
pub mod server;
#[cfg(feature = "packages")]
pub mod tar;
pub mod tools;
pub mod vhdx;

use std::path::Path;
use std::sync::Arc;

use diskimage::io::MemFile;
use diskimage::{Converter, Format, Image, OpenOptions, Options, ReferencePolicy, Report, Result};
pub use shared::{Calls, Random, SparseFile, TempDir, dmg};

pub fn format(name: &str) -> Format {
    Format::by_name(name).unwrap()
}

pub fn options(list: &str) -> Options {
    let mut options = Options::new();
    options.add_list(list);
    options
}

/// Makes qcow2 images with these options, not durable.
pub fn qcow2(list: &str) -> Converter {
    Converter::new(format("qcow2")).options(options(list)).sync(false)
}

/// Makes VMDK images with these options, not durable.
pub fn vmdk(list: &str) -> Converter {
    Converter::new(format("vmdk")).options(options(list)).sync(false)
}

/// Makes VHD images with these options, not durable.
pub fn vpc(list: &str) -> Converter {
    Converter::new(format("vpc")).options(options(list)).sync(false)
}

/// Makes VDI images with these options, not durable.
pub fn vdi(list: &str) -> Converter {
    Converter::new(format("vdi")).options(options(list)).sync(false)
}

/// Makes VHDX images with these options, not durable.
pub fn vhdx(list: &str) -> Converter {
    Converter::new(format("vhdx")).options(options(list)).sync(false)
}

/// Makes QED images with these options, not durable.
pub fn qed(list: &str) -> Converter {
    Converter::new(format("qed")).options(options(list)).sync(false)
}

/// Makes qcow images with these options, not durable.
pub fn qcow(list: &str) -> Converter {
    Converter::new(format("qcow")).options(options(list)).sync(false)
}

/// Makes Parallels images with these options, not durable.
pub fn parallels(list: &str) -> Converter {
    Converter::new(format("parallels")).options(options(list)).sync(false)
}

/// Makes raw images, not durable.
pub fn raw() -> Converter {
    Converter::new(format("raw")).sync(false)
}

/// Opens an image with the files beside it that it names.
pub fn open_beside(path: &Path) -> Result<Image> {
    OpenOptions::new().reference_policy(ReferencePolicy::Beside).open(path)
}

/// Opens a file of raw bytes, whatever is in it.
pub fn open_raw(path: &Path) -> Image {
    OpenOptions::new().format(format("raw")).open(path).unwrap()
}

/// The bytes as a raw disk.
pub fn raw_image(bytes: &[u8]) -> Image {
    OpenOptions::new().format(format("raw")).open_source(Arc::new(MemFile::from(bytes.to_vec()))).unwrap()
}

/// Opens the bytes of an image.
pub fn open_bytes(bytes: &[u8], format: Format) -> Result<Image> {
    OpenOptions::new().format(format).open_source(Arc::new(MemFile::from(bytes.to_vec())))
}

/// Opens the bytes of a file whose format is detected.
pub fn open_detected(bytes: &[u8]) -> Result<Image> {
    OpenOptions::new().open_source(Arc::new(MemFile::from(bytes.to_vec())))
}

/// Opens the bytes of a qcow2 image.
pub fn qcow2_image(bytes: &[u8]) -> Result<Image> {
    OpenOptions::new().format(format("qcow2")).open_source(Arc::new(MemFile::from(bytes.to_vec())))
}

/// All guest bytes.
pub fn content(image: &Image) -> Result<Vec<u8>> {
    let mut bytes = vec![0xee; image.virtual_size() as usize];
    image.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Converts in memory.
pub fn convert(converter: &Converter, source: &Image) -> (Vec<u8>, Report) {
    let out = Arc::new(MemFile::new());
    let report = converter.convert_to(source, out.clone()).unwrap();
    (out.to_vec(), report)
}

/// A qcow2 image of these guest bytes.
pub fn qcow2_bytes(converter: &Converter, guest: &[u8]) -> Vec<u8> {
    convert(converter, &raw_image(guest)).0
}

/// The first difference is enough: `assert_eq` would print all of both.
#[track_caller]
pub fn assert_same(left: &[u8], right: &[u8], what: &str) {
    // At the speed of memory, also where tests are not optimized.
    if left == right {
        return;
    }
    let different = left.iter().zip(right).position(|(a, b)| a != b);
    assert_eq!(different.map(|at| format!("{at:#x}")), None, "{what}: first different byte");
    assert_eq!(left.len(), right.len(), "{what}: length");
}
