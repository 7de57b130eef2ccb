//! Takes each match where it is found: the fastest parse.

use std::ops::Range;

use super::buckets::{Bucket, Buckets};
use super::chains::Search;
use super::symbols::{Token, Tokens};
use super::window::{HASHED, Window};

/// Literals in a row after which positions are left out, one more for each so many, and the most of them.
const SKIP_AFTER: usize = 256;
const MOST_SKIPPED: usize = 7;

/// Adds the tokens of `range`; the finder knows of what comes before.
pub(super) fn parse<B: Bucket, const COUNT: usize>(
    buckets: &mut Buckets<B, COUNT>,
    data: &Window,
    range: Range<usize>,
    search: Search,
    tokens: &mut Tokens,
) {
    let (mut at, mut run) = (range.start, range.start);
    // Bytes that follow each position: enough for a word to compare.
    let end = range.end.saturating_sub(HASHED.into());
    while at < end {
        let found = buckets.find(data, at as u16, range.end - at, search.window, HASHED - 1, search.nice);
        if found.length == 0 {
            tokens.push(Token::literal(data.byte(at as u16)));
            at += 1;
            if at - run >= SKIP_AFTER {
                let next = (at + ((at - run) / SKIP_AFTER).min(MOST_SKIPPED)).min(range.end);
                tokens.extend((at..next).map(|literal| Token::literal(data.byte(literal as u16))));
                at = next;
            }
            continue;
        }
        tokens.push(Token::matched(found));
        for inside in 1..HASHED {
            let inside = inside.wrapping_add(at as u16);
            buckets.insert(inside, data.word(inside));
        }
        at += usize::from(found.length);
        if found.length > 5 {
            let last = (at - 1) as u16;
            buckets.insert(last, data.word(last));
            let last = (at - 2) as u16;
            buckets.insert(last, data.word(last));
        }
        run = at;
    }
    for literal in at..range.end {
        tokens.push(Token::literal(data.byte(literal as u16)));
    }
}
