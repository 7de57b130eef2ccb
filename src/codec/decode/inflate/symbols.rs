//! The literals and matches of a block (RFC 1951, section 3.2.3).
//!
//! There are two loops. The fast one runs while there is enough input and room for whatever comes next, so that it need not look at either for each
//! symbol; the careful one decodes the others, at the end of the stream and of the output.

use super::bits::{BitReader, refill};
use super::table::{Entry, Tables};
use super::{Fault, Stop};

/// Bytes of input that the fast loop needs: two words, less the bits that are left of the first one.
const INPUT: usize = 16;
/// The most literals in one turn of the fast loop.
const LITERALS: usize = 4;
/// Bytes that are copied for a short match.
const SHORT: usize = 32;
/// Bytes of output that the fast loop needs: literals, a match of 258 bytes, and what is copied beyond it.
const ROOM: usize = LITERALS + 258 + SHORT;

/// Decodes the rest of a block to `out[*made..]`; returns why it stopped before the end of the block, if it did.
pub(super) fn decode(
    tables: &Tables,
    reader: &mut BitReader<'_>,
    out: &mut [u8],
    made: &mut usize,
) -> Result<Option<Stop>, Fault> {
    if decode_fast(tables, reader, out, made)? {
        return Ok(None);
    }
    decode_carefully(tables, reader, out, made)
}

/// Decodes symbols until the block ends, or too little input or room is left; returns whether it ended.
///
/// The comparisons with limits at the beginning of a turn, and before a match, are such that the compiler sees that none of the accesses after them is
/// out of bounds.
// Alone, so that the registers are for it.
#[inline(never)]
fn decode_fast(tables: &Tables, reader: &mut BitReader<'_>, out: &mut [u8], made: &mut usize) -> Result<bool, Fault> {
    let (Some(input_limit), Some(room_limit)) = (reader.input.len().checked_sub(INPUT), out.len().checked_sub(ROOM))
    else {
        return Ok(false);
    };
    let short_limit = out.len() - SHORT;
    if reader.next > input_limit || *made > room_limit {
        return Ok(false);
    }
    // In registers.
    let BitReader { input, mut next, mut bits, mut count } = *reader;
    let mut at = *made;
    refill(input, &mut next, &mut bits, &mut count);
    // The next entry is always loaded before the bits are refilled, which need not be waited for.
    let mut entry = tables.literal(bits);
    let ended = loop {
        if next > input_limit || at > room_limit {
            break false;
        }
        refill(input, &mut next, &mut bits, &mut count);
        let Some(room) = out.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<ROOM>()) else { break false };
        // Of 56 bits, four literals and the next index take 55 at most; three literals, and a length with its extra bits, 53.
        if entry.is_literal() {
            entry.take(&mut bits, &mut count);
            room[0] = entry.literal();
            at += 1;
            entry = tables.literal(bits);
            if entry.is_literal() {
                entry.take(&mut bits, &mut count);
                room[1] = entry.literal();
                at += 1;
                entry = tables.literal(bits);
                if entry.is_literal() {
                    entry.take(&mut bits, &mut count);
                    room[2] = entry.literal();
                    at += 1;
                    entry = tables.literal(bits);
                    if entry.is_literal() {
                        entry.take(&mut bits, &mut count);
                        room[3] = entry.literal();
                        at += 1;
                        entry = tables.literal(bits);
                        continue;
                    }
                }
            }
        }
        let mut length = entry.least();
        if entry.is_special() {
            if entry.is_subtable() {
                entry.take(&mut bits, &mut count);
                entry = tables.literal_in(entry, bits);
                if entry.is_literal() {
                    entry.take(&mut bits, &mut count);
                    out[at] = entry.literal();
                    at += 1;
                    refill(input, &mut next, &mut bits, &mut count);
                    entry = tables.literal(bits);
                    continue;
                }
            }
            match entry.stop() {
                None => length = entry.value_in(bits),
                Some(true) => {
                    entry.take(&mut bits, &mut count);
                    break true;
                }
                Some(false) => return Err(INVALID_LITERAL),
            }
        }
        entry.take(&mut bits, &mut count);
        // A distance takes 15 and 13 bits at most, the next index 11.
        if (count as u8) < 15 + 13 + 11 {
            refill(input, &mut next, &mut bits, &mut count);
        }
        entry = tables.distance(bits);
        if entry.is_special() {
            if entry.is_subtable() {
                entry.take(&mut bits, &mut count);
                entry = tables.distance_in(entry, bits);
            }
            if entry.is_special() {
                return Err(INVALID_DISTANCE);
            }
        }
        let distance = entry.value_in(bits);
        entry.take(&mut bits, &mut count);
        entry = tables.literal(bits);
        // Below 0, it is beyond the limit.
        let from = at.wrapping_sub(distance);
        if from > short_limit {
            return Err(TOO_FAR);
        }
        if length <= SHORT && length <= distance {
            // Never so: three literals fit before.
            if at > short_limit {
                break false;
            }
            copy_chunk::<SHORT>(out, from, at);
        } else {
            copy(out, from, at, length);
        }
        at += length;
    };
    *reader = BitReader { input, next, bits, count: count & 0xff };
    *made = at;
    Ok(ended)
}

/// Copies `length` bytes, 258 at most, from `from` to `to`, which is after it, and some more beyond them, which will be overwritten.
#[inline(never)]
fn copy(out: &mut [u8], from: usize, to: usize, length: usize) {
    let (distance, end) = (to - from, to + length);
    if distance >= 16 {
        copy_chunks::<16>(out, from, to, end, 16);
    } else if distance == 1 {
        let byte = out[from];
        out[to..end].fill(byte);
    } else {
        // Of the eight bytes of a chunk, only so many have been written.
        copy_chunks::<8>(out, from, to, end, distance.min(8));
    }
}

/// Copies chunks of `N` bytes that are `step` bytes apart.
#[inline(always)]
fn copy_chunks<const N: usize>(out: &mut [u8], mut from: usize, mut to: usize, end: usize, step: usize) {
    while to < end {
        copy_chunk::<N>(out, from, to);
        (from, to) = (from + step, to + step);
    }
}

/// Copies `N` bytes, as they are before.
#[inline(always)]
fn copy_chunk<const N: usize>(out: &mut [u8], from: usize, to: usize) {
    let chunk: Option<[u8; N]> = out.get(from..).and_then(|rest| rest.first_chunk()).copied();
    let room = out.get_mut(to..).and_then(|rest| rest.first_chunk_mut());
    if let (Some(chunk), Some(room)) = (chunk, room) {
        *room = chunk;
    }
}

/// Decodes symbols until the block ends, the output is full, or the input is truncated.
fn decode_carefully(
    tables: &Tables,
    reader: &mut BitReader<'_>,
    out: &mut [u8],
    made: &mut usize,
) -> Result<Option<Stop>, Fault> {
    loop {
        let next = take(reader, |bits| tables.literal(bits), |subtable, bits| tables.literal_in(subtable, bits));
        let Some((entry, length)) = next else { return Ok(Some(Stop::Truncated)) };
        match entry.stop() {
            Some(true) => return Ok(None),
            Some(false) => return Err(INVALID_LITERAL),
            None => {}
        }
        if entry.is_literal() {
            let Some(to) = out.get_mut(*made) else { return Ok(Some(Stop::Full)) };
            *to = entry.literal();
            *made += 1;
            continue;
        }
        let next = take(reader, |bits| tables.distance(bits), |subtable, bits| tables.distance_in(subtable, bits));
        let Some((entry, distance)) = next else { return Ok(Some(Stop::Truncated)) };
        if entry.is_special() {
            return Err(INVALID_DISTANCE);
        }
        if *made == out.len() {
            return Ok(Some(Stop::Full));
        }
        let from = made.checked_sub(distance).ok_or(TOO_FAR)?;
        let copied = length.min(out.len() - *made);
        for at in from..from + copied {
            out[at + distance] = out[at];
        }
        *made += copied;
        if copied < length {
            return Ok(Some(Stop::Full));
        }
    }
}

/// Takes a code with its extra bits: its entry, in a table or in a subtable of it, and its value; `None` if bits are missing.
fn take(
    reader: &mut BitReader<'_>,
    in_table: impl Fn(u64) -> Entry,
    in_subtable: impl Fn(Entry, u64) -> Entry,
) -> Option<(Entry, usize)> {
    reader.refill();
    let mut entry = in_table(reader.bits);
    if entry.is_subtable() {
        if !reader.consume(entry.bits()) {
            return None;
        }
        entry = in_subtable(entry, reader.bits);
    }
    let value = entry.value_in(reader.bits);
    reader.consume(entry.bits()).then_some((entry, value))
}

const INVALID_LITERAL: Fault = "invalid literal/length code";
const INVALID_DISTANCE: Fault = "invalid distance code";
const TOO_FAR: Fault = "invalid distance too far back";
