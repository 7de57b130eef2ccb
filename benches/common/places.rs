//! Where the benches that run whole programs find and put things.

#![allow(dead_code, reason = "no bench needs all of it")]

use std::path::{Path, PathBuf};

/// A tmpfs, where there is one.
pub fn tmpfs() -> PathBuf {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() }
}

/// The program of `benches/peers`.
pub fn peers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/target/release/peers")
}
