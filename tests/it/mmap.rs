//! Images read from a memory map.

use std::fs::File;
use std::sync::Arc;

use diskimage::io::MapSource;
use diskimage::{Comparison, Image, OpenOptions, compare};

use crate::support::pattern::Pattern;
use crate::support::{TempDir, qcow2, qcow2_bytes};

#[test]
fn a_memory_map_reads_like_its_file() {
    let dir = TempDir::new();
    let path = dir.file("disk.qcow2", &qcow2_bytes(&qcow2("").compress(true), &Pattern::Sparse.make(1 << 20)));
    // SAFETY: the file is private to this test, so it does not change while it is mapped.
    let map = unsafe { memmap2::Mmap::map(&File::open(&path).unwrap()) }.unwrap();
    let mapped = OpenOptions::new().open_source(Arc::new(MapSource::from(map))).unwrap();
    assert_eq!(mapped.virtual_size(), 1 << 20);
    assert_eq!(compare(&mapped, &Image::open(&path).unwrap()).unwrap(), Comparison::Identical);
}
