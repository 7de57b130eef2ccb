//! Looks for a better match at the next positions before it takes one.

use std::ops::Range;

use super::buckets::{Bucket, Buckets};
use super::chains::{Chains, Search};
use super::symbols::{MAX_MATCH, MIN_MATCH, Match, Token, Tokens};
use super::window::{HASHED, Window, short_hash};

/// The longest distances for a match of three bytes. Beyond, it takes about as much as three literals; to look further for it costs time.
const SHORT_DISTANCE: u16 = 1024;
const SHORT_CHAIN_DISTANCE: u16 = 4096;
/// The most positions that are left out.
const MOST_SKIPPED: usize = 3;

/// A match finder for this parse.
pub(super) trait Finder {
    /// The most positions inside a match that are added: those at its beginning and at its end.
    const INSIDE: usize;
    /// Literals in a row after which positions are left out, one more for each so many.
    const SKIP_AFTER: usize;

    /// Adds position `at`.
    fn insert(&mut self, data: &Window, at: u16);

    /// Adds position `at`, and returns the best match there that is longer than `least`, or as long as that if it is of three bytes.
    fn find(&mut self, data: &Window, at: u16, left: usize, search: Search, least: u16) -> Match;
}

impl Finder for Chains {
    const INSIDE: usize = MAX_MATCH;
    const SKIP_AFTER: usize = 512;

    #[inline(always)]
    fn insert(&mut self, data: &Window, at: u16) {
        Chains::insert(self, at, data.word(at));
    }

    #[inline(always)]
    fn find(&mut self, data: &Window, at: u16, left: usize, search: Search, least: u16) -> Match {
        let mut best = Match::NONE;
        let least = if usize::from(least) <= MIN_MATCH { 2 } else { least };
        Chains::find(self, data, at, left, search, least, |found| best = found);
        if usize::from(best.length) == MIN_MATCH && best.distance > SHORT_CHAIN_DISTANCE { Match::NONE } else { best }
    }
}

/// Base-2 logarithm of the number of entries for matches of three bytes.
const SHORT_BITS: u32 = 12;

/// Buckets for matches of four bytes and more, and the last position of three bytes.
pub(super) struct ShortBuckets<B, const COUNT: usize> {
    buckets: Buckets<B, COUNT>,
    short: Box<[u16; 1 << SHORT_BITS]>,
}

impl<B: Bucket, const COUNT: usize> ShortBuckets<B, COUNT> {
    pub(super) fn new() -> Self {
        ShortBuckets { buckets: Buckets::new(), short: Box::new([0; 1 << SHORT_BITS]) }
    }

    pub(super) fn reset(&mut self) {
        self.buckets.reset();
        self.short.fill(0);
    }
}

impl<B: Bucket, const COUNT: usize> Finder for ShortBuckets<B, COUNT> {
    const INSIDE: usize = 16;
    const SKIP_AFTER: usize = 64;

    #[inline(always)]
    fn insert(&mut self, data: &Window, at: u16) {
        let here = data.word(at);
        self.buckets.insert(at, here);
    }

    #[inline(always)]
    fn find(&mut self, data: &Window, at: u16, left: usize, search: Search, least: u16) -> Match {
        let here = data.word(at);
        let short = std::mem::replace(&mut self.short[short_hash(here, SHORT_BITS)], at);
        let found = self.buckets.find(data, at, left, search.window, least, search.nice);
        if found.length == 0 && usize::from(least) <= MIN_MATCH {
            let distance = at.wrapping_sub(short);
            if distance.wrapping_sub(1) < search.window.min(SHORT_DISTANCE) && (data.word(short) ^ here) << 8 == 0 {
                return Match { length: MIN_MATCH as u16, distance };
            }
        }
        found
    }
}

/// Bits that a match saves, roughly.
#[inline(always)]
fn gain(found: Match) -> u32 {
    (u32::from(found.length) * 4 + 16).saturating_sub(found.distance.max(1).ilog2())
}

/// Adds the tokens of `range`; the finder knows of what comes before. `tries` positions are tried for a better match.
pub(super) fn parse<F: Finder>(
    finder: &mut F,
    data: &Window,
    range: Range<usize>,
    search: Search,
    tries: u16,
    tokens: &mut Tokens,
) {
    let (mut at, mut run) = (range.start, range.start);
    // Bytes that follow each position: enough for a word to compare.
    let end = range.end.saturating_sub(HASHED.into());
    while at < end {
        let mut best = finder.find(data, at as u16, range.end - at, search, MIN_MATCH as u16);
        if best.length == 0 {
            tokens.push(Token::literal(data.byte(at as u16)));
            at += 1;
            if at - run >= F::SKIP_AFTER {
                let next = (at + ((at - run) / F::SKIP_AFTER).min(MOST_SKIPPED)).min(range.end);
                tokens.extend((at..next).map(|literal| Token::literal(data.byte(literal as u16))));
                at = next;
            }
            continue;
        }
        let mut next = at + 1;
        let mut tries_left = tries;
        while tries_left > 0 && best.length < search.lazy && next < end {
            tries_left -= 1;
            let found = finder.find(data, next as u16, range.end - next, search, best.length);
            next += 1;
            if found.length > 0 && gain(found) > gain(best) + 2 {
                tokens.extend((at..next - 1).map(|literal| Token::literal(data.byte(literal as u16))));
                (best, at) = (found, next - 1);
                tries_left = tries;
            }
        }
        tokens.push(Token::matched(best));
        at += usize::from(best.length);
        let last = at.min(end);
        if last.saturating_sub(next) > F::INSIDE {
            for inside in next..next + F::INSIDE / 2 {
                finder.insert(data, inside as u16);
            }
            next = last - F::INSIDE / 2;
        }
        for inside in next..last {
            finder.insert(data, inside as u16);
        }
        run = at;
    }
    tokens.extend((at..range.end).map(|literal| Token::literal(data.byte(literal as u16))));
}
