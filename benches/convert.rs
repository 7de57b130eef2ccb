//! Conversions from memory to a target that discards everything: the cost of reading, decoding, zero detection, encoding and
//! allocation. Every format is converted from raw, to raw and to itself; some with several numbers of threads.

mod common;

use std::sync::Arc;

use common::{Density, Kind, Null, disk};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use diskimage::Format;

const SIZE: usize = 16 << 20;

fn convert(c: &mut Criterion) {
    let densities: [Density; 3] = [
        ("dense", |_| true),
        // One in eight runs of 256 KiB.
        ("sparse", |block| block / 64 % 8 == 0),
        // A quarter of each cluster, block by block.
        ("islands", |block| block % 4 == 0),
    ];
    let kinds = Kind::all();
    for (density, holds_data) in densities {
        let mut group = c.benchmark_group(format!("convert/{density}"));
        group.throughput(Throughput::Bytes(SIZE as u64)).sample_size(10);
        for source in &kinds {
            let image = source.image(disk(SIZE, holds_data));
            let pairs = |target: &&Kind| {
                [source.format, target.format].contains(&Format::RAW) || source.format == target.format
            };
            for target in kinds.iter().filter(pairs) {
                let converter = target.converter();
                group.bench_function(format!("{} to {}", source.name, target.name), |b| {
                    b.iter(|| converter.convert_to(&image, Arc::new(Null)).unwrap());
                });
            }
        }
        group.finish();
    }
}

/// The same data with more threads: on a machine with fewer cores, what the locks and the switches between threads cost.
fn threads(c: &mut Criterion) {
    const SIZE: usize = 128 << 20;
    let mut group = c.benchmark_group("threads");
    group.throughput(Throughput::Bytes(SIZE as u64)).sample_size(10);
    for (source, target) in [("raw", "qcow2"), ("qcow2", "raw"), ("vmdk", "raw")] {
        let image = Kind::by_name(source).image(disk(SIZE, |_| true));
        for threads in [1, 2, 4, 8, 16] {
            let converter = Kind::by_name(target).converter().threads(threads);
            group.bench_function(format!("{source} to {target}, {threads}"), |b| {
                b.iter(|| converter.convert_to(&image, Arc::new(Null)).unwrap());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, convert, threads);
criterion_main!(benches);
