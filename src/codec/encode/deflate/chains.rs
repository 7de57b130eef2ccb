//! Hash chains: all positions of a hash value, however many.

use super::symbols::{MAX_MATCH, MIN_MATCH, Match};
use super::window::{HASHED, RING, Window, hash, short_hash};

const BITS: u32 = 15;
const SHORT_BITS: u32 = 14;

pub(super) struct Chains {
    /// The last position of a hash value. All are position 0 at first, which is before any other.
    heads: Box<[u16; 1 << BITS]>,
    /// The position before each one. Only those are read that were written after the last reset.
    previous: Box<[u16; RING]>,
    /// The last position of three bytes.
    short: Box<[u16; 1 << SHORT_BITS]>,
}

impl Chains {
    pub(super) fn new() -> Self {
        Chains { heads: Box::new([0; 1 << BITS]), previous: Box::new([0; RING]), short: Box::new([0; 1 << SHORT_BITS]) }
    }

    /// Forgets all positions, so that matches do not depend on what was encoded before.
    pub(super) fn reset(&mut self) {
        self.heads.fill(0);
        self.short.fill(0);
    }

    /// Adds position `at`, and returns the last positions of the four and the three bytes there.
    #[inline(always)]
    pub(super) fn insert(&mut self, at: u16, here: u32) -> (u16, u16) {
        let head = std::mem::replace(&mut self.heads[hash(here, BITS)], at);
        self.previous[usize::from(at)] = head;
        (head, std::mem::replace(&mut self.short[short_hash(here, SHORT_BITS)], at))
    }

    /// Adds position `at`, and calls `found` with matches there, each longer than the one before, the first longer than `least`: the nearest of three
    /// bytes, and those among `depth` positions of the chain. Stops at a match of `nice` bytes.
    ///
    /// `left` bytes follow `at`, four at least.
    #[inline(always)]
    pub(super) fn find(
        &mut self,
        data: &Window,
        at: u16,
        left: usize,
        search: Search,
        least: u16,
        mut found: impl FnMut(Match),
    ) {
        let here = data.word(at);
        let (mut position, short) = self.insert(at, here);
        let max = left.min(MAX_MATCH) as u16;
        let mut best_len = least;
        if max <= best_len {
            return;
        }
        if best_len < MIN_MATCH as u16 {
            let distance = at.wrapping_sub(short);
            if distance.wrapping_sub(1) < search.window && (data.word(short) ^ here) << 8 == 0 {
                best_len = MIN_MATCH as u16;
                found(Match { length: best_len, distance });
            }
        }
        let mut tail_at = best_len.max(HASHED - 1) + 1 - HASHED;
        let mut tail = data.word(at.wrapping_add(tail_at));
        let mut last_distance = 0;
        for _ in 0..search.depth {
            let distance = at.wrapping_sub(position);
            // A chain that does not lead away is of positions that have been replaced.
            if distance <= last_distance || distance > search.window {
                return;
            }
            last_distance = distance;
            if data.word(position.wrapping_add(tail_at)) == tail && data.word(position) == here {
                let length = data.match_len(position, at, HASHED, max);
                if length > best_len {
                    best_len = length;
                    found(Match { length, distance });
                    if length >= search.nice || length == max {
                        return;
                    }
                    tail_at = best_len + 1 - HASHED;
                    tail = data.word(at.wrapping_add(tail_at));
                }
            }
            position = self.previous[usize::from(position)];
        }
    }
}

/// How a finder searches.
#[derive(Clone, Copy)]
pub(super) struct Search {
    /// The longest distance, at most 32768.
    pub(super) window: u16,
    /// Number of positions that are compared.
    pub(super) depth: u16,
    /// A match of this length is long enough.
    pub(super) nice: u16,
    /// No better match is looked for at the positions after one of this length.
    pub(super) lazy: u16,
}
