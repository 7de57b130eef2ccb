//! Corrupt VHDX images.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::hostile::{conversion_fails, open_as};
use crate::support::vhdx::{Block, FULLY_PRESENT, Log, MIB, Vhdx};
use crate::support::{TempDir, convert, format, qcow2};
use diskimage::io::MemFile;
use diskimage::{Image, Limits, OpenOptions};

#[test]
fn overlapping_blocks_are_refused() {
    // 64 GiB in 5 MiB.
    let dir = TempDir::new();
    let path = dir.join("bomb.vhdx");
    let mut bomb = Vhdx::new(64 << 30, MIB, 512);
    bomb.blocks = vec![Block::Entry(FULLY_PRESENT + 4 * MIB); 65536];
    bomb.blocks[0] = Block::Full(vec![(0, vec![7; 1 << 20])]);
    bomb.write(&path);
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 5 << 20);
    conversion_fails("vhdx", &bytes, "overlap");
    let check = OpenOptions::new().format(format("vhdx")).check_source(Arc::new(MemFile::from(bytes))).unwrap();
    assert!(check.corruptions > 0, "{check:?}");
}

#[test]
fn table_sizes_are_limited() {
    let started = Instant::now();
    let dir = TempDir::new();
    let path = dir.join("image.vhdx");
    // An empty disk of 64 TiB in 6 MiB.
    Vhdx::new(64 << 40, 256 * MIB, 512).write(&path);
    let image = Image::open(&path).unwrap();
    assert_eq!(image.virtual_size(), 64 << 40);
    assert_eq!(convert(&qcow2("cluster_size=2M"), &image).1.data_bytes, 0);
    let mut limits = Limits::default();
    limits.virtual_size = (64 << 40) - 1;
    assert_eq!(OpenOptions::new().limits(limits).open(&path).err().unwrap().kind().as_str(), "limit");
    // Nothing is believed that is not in the file.
    for (size, block_size, kind) in [
        ((64 << 40) + 512, 256 * MIB, "invalid-field"),
        (u64::MAX / 512 * 512, 256 * MIB, "invalid-field"),
        (MIB + 1, MIB, "invalid-field"),
        (MIB, MIB / 2, "invalid-field"),
        (MIB, 3 * MIB, "invalid-field"),
        (MIB, 512 * MIB, "invalid-field"),
        (64 << 40, MIB, "invalid-field"),
    ] {
        // The table fits a disk of one block of 1 MiB.
        let small = Vhdx::new(MIB, MIB, 512);
        let places = small.write(&path);
        let mut bytes = fs::read(&path).unwrap();
        let items = places.metadata as usize + (64 << 10);
        bytes[items..items + 4].copy_from_slice(&(block_size as u32).to_le_bytes());
        bytes[items + 8..items + 16].copy_from_slice(&size.to_le_bytes());
        let error = open_as("vhdx", &bytes).err().unwrap();
        assert!(error.kind().as_str() == kind || error.kind().as_str() == "limit", "{size} {block_size}: {error}");
    }
    // A long sparse log without entries.
    let mut image = Vhdx::new(MIB, MIB, 512);
    image.log_len = 511 * MIB;
    let places = image.write(&path);
    Log::new(Vec::new()).write(&path, &image, &places);
    assert_eq!(Image::open(&path).unwrap().virtual_size(), MIB);
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}
