//! Guest ranges that requests have to themselves.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How a request uses its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Together with others that read.
    Read,
    /// Alone.
    Change,
}

/// The ranges of the requests under way. A request that reads keeps others from freeing, and using again, what it is reading; one
/// that changes a part of a block has the block to itself.
///
/// A request holds one range at a time, so that none waits for another for ever.
#[derive(Debug, Default)]
pub(super) struct RangeLocks {
    held: Mutex<Held>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct Held {
    ranges: Vec<(Range<u64>, Use)>,
    /// The number of requests that wait. Waking costs a system call, also if there are none.
    waiting: usize,
}

impl RangeLocks {
    /// Waits until no other request contradicts.
    pub fn lock(&self, range: Range<u64>, used: Use) -> RangeGuard<'_> {
        let mut held = self.held();
        let contradicts = |(other, use_of_other): &(Range<u64>, Use)| {
            (used == Use::Change || *use_of_other == Use::Change) && range.start < other.end && other.start < range.end
        };
        while held.ranges.iter().any(contradicts) {
            held.waiting += 1;
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
            held.waiting -= 1;
        }
        held.ranges.push((range.clone(), used));
        RangeGuard { locks: self, range, used }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // A panic elsewhere cannot leave a half-changed list.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds a range until it is dropped.
#[derive(Debug)]
pub(super) struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    range: Range<u64>,
    used: Use,
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held();
        let ranges = &mut held.ranges;
        if let Some(index) = ranges.iter().position(|(range, used)| *range == self.range && *used == self.used) {
            ranges.swap_remove(index);
        }
        let is_awaited = held.waiting > 0;
        drop(held);
        if is_awaited {
            self.locks.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(not(target_family = "wasm"))] // WASI has no threads.
    fn a_change_excludes_others_in_its_range_only() {
        let locks = RangeLocks::default();
        let order = Mutex::new(Vec::new());
        let note = |step: &'static str| order.lock().unwrap().push(step);
        let change = locks.lock(0..100, Use::Change);
        // Neither waits.
        drop((locks.lock(100..200, Use::Change), locks.lock(200..300, Use::Read), locks.lock(250..300, Use::Read)));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _read = locks.lock(99..101, Use::Read);
                note("read");
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            note("changed");
            drop(change);
        });
        assert_eq!(order.into_inner().unwrap(), ["changed", "read"]);
        assert!(locks.held().ranges.is_empty());
    }
}
