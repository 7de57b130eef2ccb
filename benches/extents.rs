//! Walks over the extents of large disks with little data, in formats with small clusters.

mod common;

use std::sync::Arc;

use common::{Kind, open};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use diskimage::io::{MemFile, ReadAt};
use diskimage::{Format, Image, OpenOptions};

/// A raw disk of 1 TiB with 64 KiB of data, always the same, in each 64 MiB.
struct Sparse;

const SIZE: u64 = 1 << 40;
const DATA: u64 = 64 << 10;
const EVERY: u64 = 64 << 20;

impl ReadAt for Sparse {
    fn size(&self) -> std::io::Result<u64> {
        Ok(SIZE)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        buf.fill(u8::from(offset % EVERY < DATA));
        Ok(buf.len())
    }

    fn next_data(&self, offset: u64) -> std::io::Result<Option<std::ops::Range<u64>>> {
        let start = if offset % EVERY < DATA { offset } else { offset.next_multiple_of(EVERY) };
        Ok((start < SIZE).then(|| start..start / EVERY * EVERY + DATA))
    }
}

fn walk(image: &Image) -> u64 {
    image.spans(0..u64::MAX).map(|span| span.unwrap()).filter(|span| !span.is_zero()).map(|span| span.len).sum()
}

fn extents(c: &mut Criterion) {
    let mut group = c.benchmark_group("extents");
    let raw = OpenOptions::new().format(Format::RAW).open_source(Arc::new(Sparse)).unwrap();
    group.throughput(Throughput::Elements(SIZE / EVERY));
    group.bench_function("raw", |b| b.iter(|| walk(&raw)));
    // An L2 table maps 512 MiB here, so this reads 2048 of them.
    for kind in ["qcow2", "qcow2-zstd"].map(Kind::by_name) {
        let file = Arc::new(MemFile::new());
        kind.converter().convert_to(&raw, file.clone()).unwrap();
        let image = open(kind.format, MemFile::from(file.to_vec()));
        assert_eq!(walk(&image), walk(&raw));
        group.bench_function(kind.name, |b| b.iter(|| walk(&image)));
    }
    group.finish();
}

criterion_group!(benches, extents);
criterion_main!(benches);
