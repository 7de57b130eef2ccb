//! Digests of the guest data in the same pass, by the workers themselves.
//!
//! After a worker has written its work range, it adds the bytes to each digest in guest order, while the other workers load and write
//! theirs. So no bytes are copied, and none are kept longer than a work range of each worker. Several digests are a line of stations:
//! each has another work range at a time. What does not depend on the order, the subtrees of BLAKE3, is done before its turn.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::hash::{Digest, HashAlgorithm, Hasher};

/// The digests of one conversion.
pub(super) struct Hashing {
    stations: Vec<Station>,
    /// Size of the disk in bytes.
    total: u64,
}

struct Station {
    algorithm: HashAlgorithm,
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    /// Sequence number of the work range to be added next.
    seq: u64,
    hasher: Hasher,
    /// Whether a work range will never come.
    stopped: bool,
}

impl Hashing {
    pub fn new(algorithms: &[HashAlgorithm], total: u64) -> Hashing {
        let station = |&algorithm: &HashAlgorithm| Station {
            algorithm,
            state: Mutex::new(State { seq: 0, hasher: Hasher::new(algorithm), stopped: false }),
            moved: Condvar::new(),
        };
        Hashing { stations: algorithms.iter().map(station).collect(), total }
    }

    /// Adds the bytes of work range `seq`, which begins at guest offset `start`. Returns false if the digests will never be complete.
    pub fn add(&self, seq: u64, start: u64, bytes: &[u8]) -> bool {
        self.stations.iter().all(|station| {
            let part = Hasher::part(station.algorithm, bytes, start, self.total);
            let mut state = station.lock();
            while state.seq != seq && !state.stopped {
                state = station.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stopped {
                return false;
            }
            state.hasher.add(part);
            state.seq += 1;
            drop(state);
            station.moved.notify_all();
            true
        })
    }

    /// Lets everybody go who waits.
    pub fn stop(&self) {
        for station in &self.stations {
            station.lock().stopped = true;
            station.moved.notify_all();
        }
    }

    pub fn finish(self) -> Vec<Digest> {
        let state = |station: Station| station.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.stations.into_iter().map(|station| state(station).hasher.finish()).collect()
    }
}

impl Station {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
