//! The limit of the rate at which guest data is written.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The longest sleep: how soon a wait ends when the conversion is cancelled.
const PATIENCE: Duration = Duration::from_millis(50);
/// Time without a write that is made up for, such as the time in which a single thread loads a chunk.
const SAVED: Duration = Duration::from_millis(100);

/// A token bucket that may be overdrawn: a chunk passes as soon as those before it are paid for, even if it is larger than the bucket.
pub(super) struct Throttle {
    bytes_per_second: NonZeroU64,
    clock: Box<dyn Clock>,
    /// When all that has passed is paid for.
    paid_at: Mutex<Duration>,
}

/// Time since some fixed point, and waiting.
pub(super) trait Clock: Send + Sync {
    fn now(&self) -> Duration;
    fn sleep(&self, time: Duration);
}

impl Throttle {
    /// `None` for 0, which is no limit, and on targets without a clock.
    pub fn new(bytes_per_second: u64) -> Option<Throttle> {
        // `Instant::now` panics where there is no clock.
        let has_clock = !cfg!(all(target_family = "wasm", target_os = "unknown"));
        has_clock.then(|| Throttle::with_clock(bytes_per_second, Box::new(SystemClock(Instant::now()))))?
    }

    pub fn with_clock(bytes_per_second: u64, clock: Box<dyn Clock>) -> Option<Throttle> {
        let bytes_per_second = NonZeroU64::new(bytes_per_second)?;
        let paid_at = Mutex::new(clock.now());
        Some(Throttle { bytes_per_second, clock, paid_at })
    }

    /// Waits until `bytes` may be written, or `stop` returns true.
    pub fn pass(&self, bytes: u64, stop: impl Fn() -> bool) {
        if bytes == 0 {
            return;
        }
        let start = self.reserve(bytes);
        while let Some(left) = start.checked_sub(self.clock.now()).filter(|left| !left.is_zero()) {
            if stop() {
                return;
            }
            self.clock.sleep(left.min(PATIENCE));
        }
    }

    /// Returns the time from which on `bytes` may be written.
    fn reserve(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.get());
        let price = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*paid_at).max(self.clock.now().saturating_sub(SAVED));
        *paid_at = start.saturating_add(price);
        start
    }
}

/// Counts from when it was made.
struct SystemClock(Instant);

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, time: Duration) {
        thread::sleep(time);
    }
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B/s", self.bytes_per_second)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::*;
    use crate::convert::tests::{MIB, converted, islands, raw};
    use crate::convert::{Converter, Progress};
    use crate::error::Error;
    use crate::format::Format;
    use crate::io::MemFile;

    /// A clock that only sleeping moves, in nanoseconds.
    #[derive(Default)]
    struct Sleeper(AtomicU64);

    impl Sleeper {
        fn seconds(&self) -> f64 {
            Duration::from_nanos(self.0.load(Ordering::SeqCst)).as_secs_f64()
        }
    }

    impl Clock for Arc<Sleeper> {
        fn now(&self) -> Duration {
            Duration::from_nanos(self.0.load(Ordering::SeqCst))
        }

        fn sleep(&self, time: Duration) {
            assert!(!time.is_zero() && time <= PATIENCE);
            self.0.fetch_add(time.as_nanos() as u64, Ordering::SeqCst);
        }
    }

    fn throttle(bytes_per_second: u64) -> (Throttle, Arc<Sleeper>) {
        let clock = Arc::new(Sleeper::default());
        (Throttle::with_clock(bytes_per_second, Box::new(clock.clone())).unwrap(), clock)
    }

    fn limited(bytes_per_second: u64) -> (Converter, Arc<Sleeper>) {
        let (throttle, clock) = throttle(bytes_per_second);
        // Threads that sleep at once would move the clock together.
        let converter = Converter { rate: Some(Arc::new(throttle)), ..Converter::new(Format::RAW).threads(1) };
        (converter, clock)
    }

    #[test]
    fn a_chunk_waits_for_those_before_it() {
        let (throttle, clock) = throttle(1000);
        for (bytes, seconds) in [(500, 0.0), (0, 0.0), (3000, 0.5), (1, 3.5), (1, 3.501)] {
            throttle.pass(bytes, || false);
            assert_eq!(clock.seconds(), seconds, "{bytes}");
        }
        // A tenth of a second of the pause is made up for.
        clock.0.fetch_add(10_000_000_000, Ordering::SeqCst);
        let resumed = clock.seconds();
        [100, 1000, 1].iter().for_each(|bytes| throttle.pass(*bytes, || false));
        assert!((clock.seconds() - resumed - 1.0).abs() < 1e-6, "{}", clock.seconds() - resumed);
    }

    #[test]
    fn a_rate_of_zero_is_no_limit() {
        assert!(Throttle::new(0).is_none() && Throttle::new(1).is_some());
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let (throttle, _) = throttle(1);
        throttle.pass(u64::MAX, || false);
        throttle.pass(u64::MAX, || true);
        assert_eq!(throttle.reserve(1), Duration::from_nanos(u64::MAX).saturating_mul(2));
    }

    #[test]
    fn only_data_is_limited() {
        let (converter, clock) = limited(MIB);
        let disk = islands(100 * MIB, &[0..2 * MIB, 90 * MIB..93 * MIB]);
        assert_eq!(converted(&converter, &disk).to_vec().len() as u64, 100 * MIB);
        // Five chunks, the first of which does not wait.
        assert_eq!(clock.seconds(), 4.0);
    }

    #[test]
    fn compressed_data_counts_with_its_guest_length() {
        let (converter, clock) = limited(MIB);
        let converter = Converter { format: Format::QCOW2, ..converter }.compress(true);
        converted(&converter, &raw(&vec![7; 3 << 20]));
        assert_eq!(clock.seconds(), 2.0);
    }

    #[test]
    fn conversions_of_one_converter_share_the_rate() {
        let (converter, clock) = limited(MIB);
        let disk = raw(&vec![7; 1 << 20]);
        (0..3).for_each(|_| drop(converted(&converter.clone(), &disk)));
        assert_eq!(clock.seconds(), 2.0);
    }

    #[test]
    fn a_wait_is_cancelled() {
        let (converter, clock) = limited(1);
        let cancel = Arc::new(AtomicBool::new(false));
        let flag = cancel.clone();
        let converter = converter.cancel(cancel).progress(move |progress: Progress| {
            // The second chunk would have to wait for twelve days.
            flag.store(progress.done >= MIB, Ordering::SeqCst);
        });
        let result = converter.convert_to(&raw(&vec![7; 3 << 20]), Arc::new(MemFile::new()));
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        assert_eq!(clock.seconds(), 0.0);
    }
}
