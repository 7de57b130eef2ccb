//! The cheapest parse for given costs of symbols, for the highest levels.
//!
//! All matches are found once. From the end of a block, the cheapest way to encode the rest is found for each position; the costs of symbols are
//! those of the parse before, so that a few rounds approach the best codes (as in J. Alakuijala, L. Vandevenne: Data compression using Zopfli, 2013).

use std::ops::Range;

use super::chains::{Chains, Search};
use super::split::{Block, SCALE, log2, split};
use super::symbols::{
    DISTANCE_EXTRA, END_OF_BLOCK, Histogram, LENGTH_EXTRA, LENGTH_SLOT, MIN_MATCH, Match, SLOTS, Token, Tokens,
    distance_slot,
};
use super::window::{HASHED, Window};

/// The longest distance for a match of three bytes in the first parse.
const SHORT_DISTANCE: u16 = 4096;

pub(super) struct Optimal {
    chains: Chains,
    /// Matches of all positions, longer and longer at each, and where those of a position begin.
    matches: Vec<Match>,
    starts: Vec<u32>,
    /// What the data from each position on costs, and the match to begin with.
    costs: Vec<u64>,
    choices: Vec<u32>,
    blocks: Vec<Block>,
}

impl Optimal {
    pub(super) fn new() -> Self {
        Optimal {
            chains: Chains::new(),
            matches: Vec::new(),
            starts: Vec::new(),
            costs: Vec::new(),
            choices: Vec::new(),
            blocks: Vec::new(),
        }
    }

    /// Forgets the data before.
    pub(super) fn reset(&mut self) {
        self.chains.reset();
    }

    /// Finds all matches in `range`, which is after those since the last parse.
    pub(super) fn find(&mut self, data: &Window, range: Range<usize>, search: Search) {
        let end = range.end.saturating_sub(HASHED.into());
        let mut at = range.start;
        while at < end {
            let first = self.matches.len();
            self.starts.push(first as u32);
            self.chains.find(data, at as u16, range.end - at, search, 2, |found| self.matches.push(found));
            at += 1;
            let long =
                self.matches.get(first..).and_then(|matches| matches.last()).filter(|last| last.length >= search.nice);
            if let Some(long) = long.copied() {
                // The rest of it is as good a match as any.
                let next = (at - 1 + usize::from(long.length)).min(end);
                for (inside, rest) in (at..next).zip((MIN_MATCH as u16..long.length).rev()) {
                    self.starts.push(self.matches.len() as u32);
                    self.matches.push(Match { length: rest, ..long });
                    self.chains.insert(inside as u16, data.word(inside as u16));
                }
                at = at.max((at - 1 + usize::from(long.length)).saturating_sub(MIN_MATCH - 1).min(end));
            }
        }
        for _ in at..range.end {
            self.starts.push(self.matches.len() as u32);
        }
    }

    /// Adds the tokens of `data`, the stretch whose matches have been found, after `rounds` rounds.
    pub(super) fn parse(&mut self, data: &[u8], rounds: u16, segment: usize, tokens: &mut Tokens) {
        self.starts.push(self.matches.len() as u32);
        self.first_parse(data, tokens);
        split(tokens.as_slice(), segment, &mut self.blocks);
        for _ in 0..rounds {
            tokens.clear();
            let mut start = 0;
            for index in 0..self.blocks.len() {
                let (costs, len) = (Costs::of(&self.blocks[index].histogram), self.blocks[index].data_len);
                let first = tokens.as_slice().len();
                self.cheapest(data, start..start + len, &costs);
                self.take(data, start..start + len, tokens);
                (self.blocks[index].histogram, _) = Histogram::of(tokens.as_slice().get(first..).unwrap_or_default());
                start += len;
            }
        }
        self.matches.clear();
        self.starts.clear();
    }

    fn matches_at(&self, at: usize) -> &[Match] {
        let range = self.starts.get(at).zip(self.starts.get(at + 1));
        range.and_then(|(start, end)| self.matches.get(*start as usize..*end as usize)).unwrap_or_default()
    }

    /// Takes the longest match of each position unless the next one has a longer one.
    fn first_parse(&self, data: &[u8], tokens: &mut Tokens) {
        let longest = |at: usize| {
            let found = self.matches_at(at).last().copied().unwrap_or(Match::NONE);
            if usize::from(found.length) == MIN_MATCH && found.distance > SHORT_DISTANCE { Match::NONE } else { found }
        };
        let mut at = 0;
        while let Some(literal) = data.get(at) {
            let found = longest(at);
            if found.length == 0 || longest(at + 1).length > found.length {
                tokens.push(Token::literal(*literal));
                at += 1;
            } else {
                tokens.push(Token::matched(found));
                at += usize::from(found.length);
            }
        }
    }

    /// Finds the cheapest way from each position of `block` to its end.
    ///
    /// A cost has the match it begins with in its low bits, so that one comparison finds the least with its match.
    fn cheapest(&mut self, data: &[u8], block: Range<usize>, costs: &Costs) {
        let data = data.get(block.clone()).unwrap_or_default();
        self.costs.clear();
        self.costs.resize(data.len() + 1, 0);
        self.choices.clear();
        self.choices.resize(data.len(), 0);
        for (at, literal) in data.iter().enumerate().rev() {
            let Some((here, after)) = self.costs.get_mut(at..).and_then(|costs| costs.split_first_mut()) else {
                return;
            };
            let mut best = costs.literals[usize::from(*literal)] + after.first().copied().unwrap_or_default();
            // What follows matches of each length, from the shortest.
            let after = after.get(MIN_MATCH - 1..).unwrap_or_default();
            let mut done = 0;
            let range = self.starts.get(block.start + at).zip(self.starts.get(block.start + at + 1));
            let matches =
                range.and_then(|(start, end)| self.matches.get(*start as usize..*end as usize)).unwrap_or_default();
            for found in matches {
                let distance =
                    costs.distances[distance_slot(found.distance.into()).0 % SLOTS] | u64::from(found.distance);
                let end = (usize::from(found.length) + 1 - MIN_MATCH).min(after.len());
                // Of long matches, the other lengths are seldom better.
                let some = end.min(SHORTER);
                while done < some {
                    best = best.min(distance + costs.lengths[done] + after[done]);
                    done += 1;
                }
                if end > SHORTER {
                    let length = end - 1;
                    best = best.min(distance + costs.lengths[length % 256] + after[length]);
                }
            }
            *here = best & COST;
            if let Some(to) = self.choices.get_mut(at) {
                *to = (best & !COST) as u32;
            }
        }
    }

    /// Adds the tokens of the cheapest way through `block`.
    fn take(&self, data: &[u8], block: Range<usize>, tokens: &mut Tokens) {
        let data = data.get(block).unwrap_or_default();
        let mut at = 0;
        while let Some((choice, literal)) = self.choices.get(at).zip(data.get(at)) {
            if *choice == 0 {
                tokens.push(Token::literal(*literal));
                at += 1;
            } else {
                let found = Match { length: (choice >> 16) as u16, distance: *choice as u16 };
                tokens.push(Token::matched(found));
                at += usize::from(found.length);
            }
        }
    }
}

/// The bits of a cost in which the match is not.
const COST: u64 = !0xffff_ffff;
/// Number of lengths that are tried for each match.
const SHORTER: usize = 8;

/// Bits of symbols with their extra bits, in 2^-[`SCALE`], above a match.
struct Costs {
    literals: [u64; 256],
    /// By length less [`MIN_MATCH`]; with the length.
    lengths: [u64; 256],
    distances: [u64; SLOTS],
}

impl Costs {
    fn of(histogram: &Histogram) -> Self {
        let of = |counts: &[u32]| {
            let all = log2(counts.iter().sum());
            // Half of a symbol that did not occur: it may be useful after all. No code is shorter than one bit.
            move |count: u32, extra: u8| {
                let bits =
                    all.saturating_sub(log2(2 * count)).saturating_add(1 << SCALE).clamp(1 << SCALE, 14 << SCALE);
                u64::from(bits + (u32::from(extra) << SCALE)) << 32
            }
        };
        let (literal, distance) = (of(&histogram.literals), of(&histogram.distances));
        let length = |length: usize| {
            let slot = usize::from(LENGTH_SLOT[length]);
            literal(histogram.literals[END_OF_BLOCK + 1 + slot], LENGTH_EXTRA[slot])
                | ((length + MIN_MATCH) as u64) << 16
        };
        Costs {
            literals: std::array::from_fn(|symbol| literal(histogram.literals[symbol], 0)),
            lengths: std::array::from_fn(length),
            distances: std::array::from_fn(|slot| {
                distance(histogram.distances.get(slot).copied().unwrap_or_default(), DISTANCE_EXTRA[slot])
            }),
        }
    }
}
