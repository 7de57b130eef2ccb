//! Zero detection, through which every uncompressed byte passes.

mod common;

use std::hint::black_box;

use common::{Density, disk};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use diskimage::zero::{data_runs, is_zero};

fn zero(c: &mut Criterion) {
    let mut group = c.benchmark_group("is_zero");
    for len in [4096, 64 << 10, 2 << 20] {
        let zeros = vec![0; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("{len} bytes"), |b| b.iter(|| is_zero(black_box(&zeros))));
    }
    group.finish();

    let mut group = c.benchmark_group("data_runs");
    let buffers: [Density; 3] = [("zeros", |_| false), ("islands", |block| block % 4 == 0), ("data", |_| true)];
    for (name, holds_data) in buffers {
        let bytes = disk(2 << 20, holds_data);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |b| b.iter(|| data_runs(black_box(&bytes), 4096).count()));
    }
    group.finish();
}

criterion_group!(benches, zero);
criterion_main!(benches);
