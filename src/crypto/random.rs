//! Random numbers for keys and salts: always those of the system, never [`Identifiers`](crate::Identifiers), which may be reproducible.

use crate::error::{Error, Result};

/// Fills `bytes` from the source of randomness of the system.
///
/// # Errors
/// If it has none.
pub(crate) fn random(bytes: &mut [u8]) -> Result<()> {
    #[cfg(test)]
    if pinned::fill(bytes) {
        return Ok(());
    }
    getrandom::fill(bytes).map_err(|e| Error::io("getting random numbers from the system", None)(e.into()))
}

/// Runs `code` with pinned numbers in place of random ones, on this thread.
#[cfg(test)]
pub(crate) fn with_pinned_random<T>(code: impl FnOnce() -> T) -> T {
    pinned::STATE.set(Some(1));
    let result = code();
    pinned::STATE.set(None);
    result
}

#[cfg(test)]
mod pinned {
    use std::cell::Cell;

    thread_local! {
        pub(super) static STATE: Cell<Option<u64>> = const { Cell::new(None) };
    }

    pub(super) fn fill(bytes: &mut [u8]) -> bool {
        let Some(mut state) = STATE.get() else { return false };
        for byte in bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        STATE.set(Some(state));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_unless_they_are_pinned() {
        let take = || {
            let mut bytes = [0; 32];
            random(&mut bytes).unwrap();
            bytes
        };
        assert_ne!(take(), take());
        assert_eq!(with_pinned_random(take), with_pinned_random(take));
        assert_ne!(take(), with_pinned_random(take));
    }
}
