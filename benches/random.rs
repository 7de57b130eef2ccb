//! Random reads of 4 KiB, as a virtual machine, an NBD client or a file-system reader makes them: the CPU time of each, and the reads of the file
//! that it takes.

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Kind, disk};
use diskimage::io::{MemFile, ReadAt};
use diskimage::{Format, Image, OpenOptions, Secret};

const SIZE: usize = 256 << 20;
const BLOCK: usize = 4096;
const READS: u64 = 20_000;

/// A file in memory that counts its reads.
struct Counted {
    bytes: Vec<u8>,
    reads: AtomicU64,
}

impl ReadAt for Counted {
    fn size(&self) -> io::Result<u64> {
        ReadAt::size(&self.bytes)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        ReadAt::read_at(&self.bytes, buf, offset)
    }
}

/// The CPU time of this thread, or where the system does not tell it, the time.
fn cpu_time(start: Instant) -> Duration {
    let nanos = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = nanos.and_then(|text| text.split_whitespace().next()?.parse().ok());
    nanos.map_or_else(|| start.elapsed(), Duration::from_nanos)
}

/// Reads at random offsets, the same ones in each run, and returns the CPU time of each read.
fn read(image: &Image, seed: u64) -> Duration {
    let (start, mut state, mut block) = (Instant::now(), seed, [0; BLOCK]);
    let before = cpu_time(start);
    for _ in 0..READS {
        // The generator of Knuth's MMIX.
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let offset = (state >> 33) % (SIZE / BLOCK) as u64 * BLOCK as u64;
        image.read_exact_at(&mut block, offset).unwrap();
    }
    cpu_time(start).saturating_sub(before) / READS as u32
}

fn main() {
    println!("{:24} {:>8} {:>11} {:>12}", "4 KiB at random", "1 thread", "2 threads", "reads each");
    for kind in Kind::all() {
        let (raw, file) = (common::open(Format::RAW, MemFile::from(disk(SIZE, |_| true))), Arc::new(MemFile::new()));
        kind.converter().convert_to(&raw, file.clone()).unwrap();
        let counted = Arc::new(Counted { bytes: file.to_vec(), reads: AtomicU64::new(0) });
        let options = OpenOptions::new().format(kind.format).secret(Secret::new("secret"));
        let image = options.open_source(counted.clone()).unwrap();
        read(&image, 1);
        counted.reads.store(0, Ordering::Relaxed);
        let one = read(&image, 2);
        let reads = counted.reads.load(Ordering::Relaxed) as f64 / READS as f64;
        let two = thread::scope(|scope| {
            let threads = [3, 4].map(|seed| {
                scope.spawn({
                    let image = &image;
                    move || read(image, seed)
                })
            });
            threads.map(|thread| thread.join().unwrap()).iter().sum::<Duration>() / 2
        });
        let micros = |time: Duration| time.as_nanos() as f64 / 1000.0;
        println!("{:24} {:>5.2} us {:>8.2} us {:>12.2}", kind.name, micros(one), micros(two), reads);
    }
}
