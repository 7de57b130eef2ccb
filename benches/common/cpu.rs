//! CPU time.

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// Microseconds of CPU time of this process so far.
pub fn cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("the system counts the time of a process");
    (usage.user_time() + usage.system_time()).num_microseconds() as f64
}
