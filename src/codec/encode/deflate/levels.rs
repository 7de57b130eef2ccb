//! What each level searches, from greedy parses to optimal ones.

use std::ops::Range;

use super::buckets::Buckets;
use super::chains::{Chains, Search};
use super::lazy::ShortBuckets;
use super::optimal::Optimal;
use super::symbols::{CAPACITY, Tokens};
use super::window::{MAX_WINDOW, RING, Window};
use super::{greedy, lazy};

/// A way to find matches and choose among them.
enum Parser {
    Greedy2(Buckets<u32, { 1 << 13 }>),
    Greedy4(Buckets<u64, { 1 << 13 }>),
    Lazy4(ShortBuckets<u64, { 1 << 13 }>),
    Lazy8(ShortBuckets<u128, { 1 << 12 }>),
    LazyChains(Chains),
    Optimal(Optimal),
}

/// The parser of a level, with its settings.
pub(super) struct Level {
    parser: Parser,
    search: Search,
    /// Positions that are tried for a better match, or rounds of the optimal parse.
    tries: u16,
    /// Tokens in the segments of which blocks are made.
    pub(super) segment: usize,
    data: Window,
}

impl Level {
    /// The parser of `level`, 1 to 9; no match reaches further back than `window` bytes.
    pub(super) fn new(level: i32, window: u16) -> Self {
        let settings = |parser, tries, depth, nice, lazy, segment| Level {
            parser,
            search: Search { window, depth, nice, lazy },
            tries,
            segment,
            data: Window::new(),
        };
        match level {
            ..=1 => settings(Parser::Greedy2(Buckets::new()), 0, 0, 32, 0, 5000),
            2 => settings(Parser::Greedy4(Buckets::new()), 0, 0, 32, 0, 4000),
            3 => settings(Parser::Greedy4(Buckets::new()), 0, 0, 64, 0, 2000),
            4 => settings(Parser::Lazy4(ShortBuckets::new()), 0, 0, 32, 0, 2500),
            5 => settings(Parser::Lazy4(ShortBuckets::new()), 1, 0, 32, 5, 2500),
            6 => settings(Parser::Lazy8(ShortBuckets::new()), 1, 0, 48, 16, 1500),
            7 => settings(Parser::LazyChains(Chains::new()), 1, 16, 128, 128, 1000),
            8 => settings(Parser::LazyChains(Chains::new()), 2, 40, 128, 128, 1000),
            9.. => settings(Parser::Optimal(Optimal::new()), 1, 12, 32, 0, 1000),
        }
    }

    /// Forgets the unit before.
    pub(super) fn reset(&mut self) {
        match &mut self.parser {
            Parser::Greedy2(buckets) => buckets.reset(),
            Parser::Greedy4(buckets) => buckets.reset(),
            Parser::Lazy4(buckets) => buckets.reset(),
            Parser::Lazy8(buckets) => buckets.reset(),
            Parser::LazyChains(chains) => chains.reset(),
            Parser::Optimal(optimal) => optimal.reset(),
        }
    }

    /// Replaces `tokens` by those of `stretch`, at most [`CAPACITY`] bytes of `unit`; those before it have been parsed.
    pub(super) fn parse(&mut self, unit: &[u8], stretch: Range<usize>, tokens: &mut Tokens) {
        debug_assert!(stretch.len() <= CAPACITY);
        tokens.clear();
        let mut start = stretch.start;
        while start < stretch.end {
            // The ring always has the largest window before what is new.
            let end = stretch.end.min(if start == 0 { RING } else { start + MAX_WINDOW });
            self.data.load(unit, start, end);
            let (data, range, search) = (&self.data, start..end, self.search);
            match &mut self.parser {
                Parser::Greedy2(buckets) => greedy::parse(buckets, data, range, search, tokens),
                Parser::Greedy4(buckets) => greedy::parse(buckets, data, range, search, tokens),
                Parser::Lazy4(buckets) => lazy::parse(buckets, data, range, search, self.tries, tokens),
                Parser::Lazy8(buckets) => lazy::parse(buckets, data, range, search, self.tries, tokens),
                Parser::LazyChains(chains) => lazy::parse(chains, data, range, search, self.tries, tokens),
                Parser::Optimal(optimal) => optimal.find(data, range, search),
            }
            start = end;
        }
        if let Parser::Optimal(optimal) = &mut self.parser {
            optimal.parse(unit.get(stretch).unwrap_or_default(), self.tries, self.segment, tokens);
        }
    }
}
