//! Uses `diskimage` as another crate does: public API only.

mod format;
mod storage;

#[allow(dead_code, reason = "shared with the tests of the crate itself")]
#[path = "../../support/random.rs"]
mod random;

use std::sync::Arc;

use diskimage::io::MemFile;
use diskimage::{Format, Image, OpenOptions, Result};

/// The bytes as a raw disk.
fn raw_image(bytes: &[u8]) -> Image {
    OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(bytes.to_vec()))).unwrap()
}

/// All guest bytes.
fn content(image: &Image) -> Result<Vec<u8>> {
    let mut bytes = vec![0xee; image.virtual_size() as usize];
    image.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// A disk of 1 MiB + 512 bytes: noise, zeros of many clusters, noise up to the end in the middle of a cluster.
fn disk() -> Vec<u8> {
    let mut disk = random::noise(300_000, 1);
    disk.resize((1 << 20) - 70_000, 0);
    disk.extend(random::noise(70_512, 2));
    disk
}
