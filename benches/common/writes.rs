//! The loop that the bench `writes` measures, the same for this crate and for others.

use std::thread::scope;
use std::time::Instant;

/// Bytes of the disk.
pub const SIZE: u64 = 256 << 20;
/// Bytes of a write and of the distance between two writes, which comes back to the start of the disk. Each block is written once. The
/// first distance is a prime number of blocks.
pub const PATTERNS: [(&str, usize, u64); 2] =
    [("4 KiB random", 4 << 10, 10_007 * (4 << 10)), ("1 MiB sequential", 1 << 20, 1 << 20)];

/// Writes the whole disk in `threads` threads by `write`, makes it durable by `flush`, and returns the seconds of both.
pub fn measure(
    (len, step): (usize, u64),
    threads: u64,
    write: impl Fn(&[u8], u64) + Sync,
    flush: impl FnOnce(),
) -> f64 {
    let begin = Instant::now();
    scope(|scope| {
        for thread in 0..threads {
            let write = &write;
            scope.spawn(move || {
                let buf = vec![0x5a; len];
                for index in (thread..SIZE / len as u64).step_by(threads as usize) {
                    write(&buf, index * step % SIZE);
                }
            });
        }
    });
    flush();
    begin.elapsed().as_secs_f64()
}
