//! The loop that the bench `random` measures, the same for this crate and for others.

#[path = "cpu.rs"]
mod cpu;

use std::fmt;
use std::str::FromStr;
use std::thread::scope;
use std::time::Instant;

use cpu::cpu;

/// Bytes of a read.
pub const LEN: usize = 4 << 10;

/// The time of a read.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Microseconds of all cores.
    pub cpu: f64,
    /// Microseconds from one read to the next one of any thread.
    pub elapsed: f64,
}

/// Calls `read` in `threads` threads for `reads` blocks at random of a disk of `size` bytes, always the same ones.
pub fn measure(size: u64, threads: u64, reads: u64, read: impl Fn(&mut [u8], u64) + Sync) -> Cost {
    let run = |thread: u64, count: u64| {
        let (mut buf, mut state) = (vec![0; LEN], (thread + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for _ in 0..count {
            // Xorshift, of Marsaglia.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            read(&mut buf, state % (size / LEN as u64) * LEN as u64);
        }
    };
    // Tables are in their caches then, as far as those reach.
    run(threads, reads / 4);
    let (begin, before) = (Instant::now(), cpu());
    scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || run(thread, reads / threads));
        }
    });
    Cost { cpu: (cpu() - before) / reads as f64, elapsed: begin.elapsed().as_secs_f64() * 1e6 / reads as f64 }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} {:.3}", self.cpu, self.elapsed)
    }
}

impl FromStr for Cost {
    type Err = ();

    fn from_str(text: &str) -> Result<Cost, ()> {
        let (cpu, elapsed) = text.trim().split_once(' ').ok_or(())?;
        Ok(Cost { cpu: cpu.parse().map_err(drop)?, elapsed: elapsed.parse().map_err(drop)? })
    }
}
