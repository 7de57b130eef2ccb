//! A hash table whose buckets have the last positions of a hash value.
//!
//! Unlike a chain, a bucket is one load for all its positions, and the candidates do not depend on each other.

use super::symbols::{MAX_MATCH, Match};
use super::window::{HASHED, Window, hash};

/// Positions, the last one first, in one number, which is stored at once.
pub(super) trait Bucket: Copy {
    /// No positions but the first of all, which is before any other.
    const EMPTY: Self;
    /// Number of positions.
    const WAYS: usize;

    /// Puts a position in front, and drops the last.
    fn push(self, position: u16) -> Self;

    fn get(self, index: usize) -> u16;
}

macro_rules! bucket {
    ($number:ty) => {
        impl Bucket for $number {
            const EMPTY: Self = 0;
            const WAYS: usize = size_of::<Self>() / 2;

            #[inline(always)]
            fn push(self, position: u16) -> Self {
                self << 16 | Self::from(position)
            }

            #[inline(always)]
            fn get(self, index: usize) -> u16 {
                (self >> (16 * index)) as u16
            }
        }
    };
}

bucket!(u32);
bucket!(u64);
bucket!(u128);

/// `COUNT` buckets, a power of two.
pub(super) struct Buckets<B, const COUNT: usize> {
    rows: Box<[B; COUNT]>,
}

impl<B: Bucket, const COUNT: usize> Buckets<B, COUNT> {
    pub(super) fn new() -> Self {
        let rows = vec![B::EMPTY; COUNT].into_boxed_slice();
        Buckets { rows: rows.try_into().unwrap_or_else(|_| unreachable!()) }
    }

    /// Forgets all positions, so that matches do not depend on what was encoded before.
    pub(super) fn reset(&mut self) {
        self.rows.fill(B::EMPTY);
    }

    /// Adds position `at`, with a word there, and returns those before it.
    #[inline(always)]
    pub(super) fn insert(&mut self, at: u16, word: u32) -> B {
        let row = &mut self.rows[hash(word, COUNT.ilog2()) % COUNT];
        let old = *row;
        *row = old.push(at);
        old
    }

    /// Adds position `at`, and returns the longest match there that is longer than `least`, which is 3 or more; of several the nearest.
    ///
    /// `left` bytes follow `at`, four at least.
    #[inline(always)]
    pub(super) fn find(&mut self, data: &Window, at: u16, left: usize, window: u16, least: u16, nice: u16) -> Match {
        let here = data.word(at);
        let old = self.insert(at, here);
        // Without a branch for each candidate. That they are in the window is seen when they have been found equal, which few are.
        let mut candidates = 0_u32;
        for way in 0..B::WAYS {
            candidates |= u32::from(data.word(old.get(way)) == here) << way;
        }
        let mut best = Match::NONE;
        if candidates == 0 {
            return best;
        }
        let mut best_len = least;
        let max = left.min(MAX_MATCH) as u16;
        if max <= best_len {
            return best;
        }
        let mut tail = data.word(at.wrapping_add(best_len + 1 - HASHED));
        while candidates != 0 {
            let position = old.get(candidates.trailing_zeros() as usize);
            candidates &= candidates - 1;
            let is_in_window = at.wrapping_sub(position).wrapping_sub(1) < window;
            if !is_in_window || data.word(position.wrapping_add(best_len + 1 - HASHED)) != tail {
                continue;
            }
            let length = data.match_len(position, at, HASHED, max);
            if length > best_len {
                (best_len, best) = (length, Match { length, distance: at.wrapping_sub(position) });
                if length >= nice || length == max {
                    break;
                }
                tail = data.word(at.wrapping_add(best_len + 1 - HASHED));
            }
        }
        best
    }
}
