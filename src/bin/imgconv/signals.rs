//! Signals that end the program: the work is cancelled and cleaned up, and the exit code is 128 plus the signal. And SIGUSR1, which
//! asks for the progress.

#[cfg(any(unix, windows))]
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use diskimage::Error;
#[cfg(unix)]
use signal_hook::consts::{SIGHUP, SIGUSR1, SIGXFSZ};
#[cfg(any(unix, windows))]
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

use crate::failure::Failure;

/// The signals that end the program.
#[cfg(unix)]
const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];
/// Ctrl-C is SIGINT here.
#[cfg(windows)]
const SIGNALS: [i32; 2] = [SIGINT, SIGTERM];

/// The flag that a caught signal sets. Signals are those of the process, so there is only one.
pub fn cancelled() -> Arc<AtomicBool> {
    static CANCELLED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
    Arc::clone(&CANCELLED)
}

/// Whether a signal asked the program to end, and which.
#[derive(Debug)]
pub struct Interrupt {
    cancelled: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    /// From now on the first SIGINT, SIGTERM or SIGHUP only sets a flag; a second one ends the program at once. A signal that
    /// the program was started to ignore, as under nohup, stays ignored.
    pub fn register() -> Result<Self, Failure> {
        Self::catch_all(&Arc::default())
    }

    /// From now on the first such signal ends the program at once.
    pub fn at_once() -> Result<Self, Failure> {
        Self::catch_all(&Arc::new(AtomicBool::new(true)))
    }

    /// WASI has no signals.
    #[cfg(not(any(unix, windows)))]
    fn catch_all(_at_once: &Arc<AtomicBool>) -> Result<Self, Failure> {
        Ok(Interrupt { cancelled: Arc::default(), signal: Arc::default() })
    }

    /// Catches the signals; one that finds `at_once` set ends the program.
    #[cfg(any(unix, windows))]
    fn catch_all(at_once: &Arc<AtomicBool>) -> Result<Self, Failure> {
        let interrupt = Interrupt { cancelled: cancelled(), signal: Arc::default() };
        let ignored = ignored_signals();
        for signal in SIGNALS {
            if ignored & signal_bit(signal) == 0 {
                interrupt.catch(signal, at_once).map_err(Error::io("catching signals", None))?;
            }
        }
        // Without a handler, writing beyond the limit of `ulimit -f` kills; with one, the write fails and is reported.
        #[cfg(unix)]
        flag::register(SIGXFSZ, Arc::default()).map_err(Error::io("catching signals", None))?;
        Ok(interrupt)
    }

    #[cfg(any(unix, windows))]
    fn catch(&self, signal: i32, at_once: &Arc<AtomicBool>) -> io::Result<()> {
        // In the order of registration: the flag is still down when the first signal looks at it.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(at_once))?;
        flag::register_usize(signal, Arc::clone(&self.signal), signal.unsigned_abs() as usize)?;
        flag::register(signal, Arc::clone(&self.cancelled))?;
        flag::register(signal, Arc::clone(at_once))?;
        Ok(())
    }

    /// The flag that the work has to look at.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    /// What work that ended with `error` comes to: one that a signal cancelled has an exit code of its own.
    pub fn failure(&self, error: Error) -> Failure {
        let signal = self.signal.load(Ordering::Relaxed);
        match (error.root(), u8::try_from(128 + signal)) {
            (cause, Ok(code)) if signal > 0 && is_cancelled(cause) => {
                Failure::new(Error::Cancelled.kind().as_str(), format!("cancelled by signal {signal}")).exit(code)
            }
            _ => error.into(),
        }
    }
}

/// A flag that SIGUSR1 sets from now on, instead of ending the program. It is never set where the system has no such signal.
pub fn progress_requests() -> Result<Arc<AtomicBool>, Failure> {
    let requested = Arc::new(AtomicBool::new(false));
    #[cfg(unix)]
    flag::register(SIGUSR1, Arc::clone(&requested)).map_err(Error::io("catching signals", None))?;
    Ok(requested)
}

/// A blocking read was cancelled by a signal.
#[derive(Debug, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

fn is_cancelled(error: &Error) -> bool {
    match error {
        Error::Cancelled => true,
        Error::Io { cause, .. } => cause.get_ref().is_some_and(|cause| cause.is::<Cancelled>()),
        _ => false,
    }
}

/// The signals that the program was started to ignore, as a mask; none where the system does not tell.
#[cfg(any(unix, windows))]
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(any(unix, windows))]
fn signal_bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn ignored_signals_are_known() {
        use signal_hook::consts::SIGPIPE;

        // The Rust runtime ignores SIGPIPE.
        assert_ne!(ignored_signals() & signal_bit(SIGPIPE), 0);
        assert_eq!(ignored_signals() & signal_bit(SIGTERM), 0);
    }

    #[test]
    fn only_work_that_a_signal_cancelled_has_its_exit_code() {
        let code = |signal, error| {
            let interrupt = Interrupt { cancelled: Arc::default(), signal: Arc::new(AtomicUsize::new(signal)) };
            interrupt.failure(error).exit_code()
        };
        assert_eq!(code(15, Error::Cancelled), 143);
        assert_eq!(code(15, Error::Usage("wrong".into())), 1);
        assert_eq!(code(0, Error::Cancelled), 1);
        assert_eq!(code(2, Error::io("reading", 0)(io::Error::other(Cancelled))), 130);
        assert_eq!(code(2, Error::io("reading", 0)(io::Error::other("broken"))), 1);
    }
}
