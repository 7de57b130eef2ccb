//! Each codec at each level that is in use, on units of 64 KiB, and the levels of DEFLATE beside those of zlib-rs.
//!
//! `CODEC_CORPUS=<file> cargo bench --bench codec` takes the units from a file. Of 64 MiB, taken evenly from a file system with the programs, libraries
//! and texts of a Debian system, with one thread of a Xeon of 2023 (MB/s, and the length of the output per byte; the fastest of three rounds):
//!
//! | level | own | | zlib-rs | |
//! |---|---|---|---|---|
//! | 1 | 225 | .333 | 261 | .399 |
//! | 2 | 194 | .328 | | |
//! | 3 | 189 | .327 | 110 | .327 |
//! | 4 | 160 | .323 | | |
//! | 5 | 152 | .320 | 93 | .318 |
//! | 6 | 113 | .315 | 73 | .318 |
//! | 7 | 84 | .309 | | |
//! | 8 | 61 | .308 | | |
//! | 9 | 24 | .305 | 27 | .310 |

mod common;

use std::time::{Duration, Instant};

use common::content;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use diskimage::codec::{Codec, Decoder, Encoder, Encoding};

const UNIT: usize = 64 << 10;
const LEN: usize = 4 << 20;

/// Rounds of the comparison.
const ROUNDS: usize = 5;

fn disk() -> Vec<u8> {
    std::env::var_os("CODEC_CORPUS").map_or_else(|| content(LEN), |path| std::fs::read(path).unwrap())
}

/// Both encoders take turns, so that other load on the machine disturbs them equally; the fastest round counts.
fn deflate(_: &mut Criterion) {
    let disk = disk();
    let mut rows = Vec::new();
    for level in Encoding::levels(Codec::Deflate) {
        let mut own = Encoder::new(&Encoding { level: Some(level), ..Encoding::new(Codec::Deflate) }).unwrap();
        rows.push((format!("level {level}, own"), run(move |unit, _| own.encode(unit, usize::MAX).unwrap().len())));
        let config =
            zlib_rs::DeflateConfig { level: level.into(), window_bits: -15, mem_level: 9, ..Default::default() };
        let mut other = zlib_rs::Deflate::new_with_config(config);
        let other = run(move |unit, out| {
            other.reset();
            other.compress(unit, out, zlib_rs::DeflateFlush::Finish).unwrap();
            other.total_out() as usize
        });
        rows.push((format!("level {level}, zlib-rs"), other));
    }
    let mut best = vec![(Duration::MAX, 0); rows.len()];
    for _ in 0..ROUNDS {
        for ((_, encode), best) in rows.iter_mut().zip(&mut best) {
            *best = encode(&disk).min(*best);
        }
    }
    for ((name, _), (time, len)) in rows.iter().zip(best) {
        let speed = disk.len() as f64 / 1e6 / time.as_secs_f64();
        println!("{name:20} {speed:6.1} MB/s  {:.4}", len as f64 / disk.len() as f64);
    }
}

type Run = Box<dyn FnMut(&[u8]) -> (Duration, usize)>;

/// Encodes a disk with `encode`; returns the time and the length.
fn run(mut encode: impl FnMut(&[u8], &mut [u8]) -> usize + 'static) -> Run {
    let mut out = vec![0; 2 * UNIT];
    Box::new(move |disk| {
        let start = Instant::now();
        let len = disk.chunks(UNIT).map(|unit| encode(unit, &mut out)).sum();
        (start.elapsed(), len)
    })
}

fn codec(c: &mut Criterion) {
    let mut disk = disk();
    disk.truncate(LEN);
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

criterion_group!(benches, deflate, codec);
criterion_main!(benches);
