//! Conversions from memory to nowhere: what reading, decoding, finding zeros, encoding and placing cost.

mod common;

use std::sync::Arc;

use common::{Density, Kind, Null, disk};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const SIZE: usize = 16 << 20;

fn convert(c: &mut Criterion) {
    let densities: [Density; 3] = [
        ("dense", |_| true),
        // One in eight runs of 256 KiB.
        ("sparse", |block| block / 64 % 8 == 0),
        // A quarter of each cluster, block by block.
        ("islands", |block| block % 4 == 0),
    ];
    for (density, holds_data) in densities {
        let mut group = c.benchmark_group(format!("convert/{density}"));
        group.throughput(Throughput::Bytes(SIZE as u64)).sample_size(10);
        for source in Kind::ALL {
            let image = source.image(disk(SIZE, holds_data));
            for target in Kind::ALL {
                let converter = target.converter();
                group.bench_function(format!("{} to {}", source.0, target.0), |b| {
                    b.iter(|| converter.convert_to(&image, Arc::new(Null)).unwrap());
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, convert);
criterion_main!(benches);
