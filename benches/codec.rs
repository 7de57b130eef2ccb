//! Each codec at each level that is in use, on units of 64 KiB.

mod common;

use common::content;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use diskimage::codec::{Codec, Decoder, Encoder, Encoding};

const UNIT: usize = 64 << 10;
const LEN: usize = 4 << 20;

fn codec(c: &mut Criterion) {
    let disk = content(LEN);
    for (codec, levels) in [Codec::Deflate, Codec::Zlib, Codec::Zstd].map(|codec| (codec, [1, 3, 6, 9])) {
        let mut group = c.benchmark_group(codec.name());
        group.throughput(Throughput::Bytes(LEN as u64)).sample_size(10);
        for level in levels {
            let mut encoder = Encoder::new(&Encoding { level: Some(level), ..Encoding::new(codec) }).unwrap();
            let mut encode = |unit: &[u8]| encoder.encode(unit, usize::MAX).map(<[u8]>::to_vec).unwrap();
            let units: Vec<_> = disk.chunks(UNIT).map(&mut encode).collect();
            let size = units.iter().map(Vec::len).sum::<usize>() * 100 / LEN;
            group.bench_function(format!("encode, level {level}, to {size} %"), |b| {
                b.iter(|| disk.chunks(UNIT).map(|unit| encode(unit).len()).sum::<usize>());
            });
            let (mut decoder, mut out) = (Decoder::new(), vec![0; UNIT]);
            group.bench_function(format!("decode, level {level}"), |b| {
                b.iter(|| units.iter().map(|unit| decoder.decode(codec, unit, &mut out).unwrap()).sum::<usize>());
            });
        }
        group.finish();
    }
}

criterion_group!(benches, codec);
criterion_main!(benches);
