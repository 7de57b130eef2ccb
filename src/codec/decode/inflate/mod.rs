//! A decoder of DEFLATE (RFC 1951) for streams and outputs that are whole in memory.
//!
//! Nothing is streamed, and nothing but memory is kept from one stream to the next. [`table`] has what each code stands for; [`symbols`] decodes a block.

mod bits;
mod symbols;
mod table;

use self::bits::BitReader;
use self::table::Tables;

/// The order in which the lengths of the code for code lengths are stated (section 3.2.7).
const PRECODE_ORDER: [u8; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
/// The most literals and lengths, and the most distances, of which a block may state code lengths.
const MAX_LITERALS: usize = 286;
const MAX_DISTANCES: usize = 30;

/// A decoder, with its tables.
pub(super) struct Inflater {
    tables: Box<Tables>,
}

/// How far a stream was decoded.
pub(super) struct Inflated {
    /// Bytes of the stream that were read.
    pub(super) taken: usize,
    /// Bytes of the output.
    pub(super) made: usize,
    pub(super) stop: Stop,
}

/// Why decoding stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The stream ended.
    End,
    /// The output is full, and the stream has more data.
    Full,
    /// The stream is truncated.
    Truncated,
}

/// The rule that a stream breaks, in the words of zlib.
pub(super) type Fault = &'static str;

impl Inflater {
    pub(super) fn new() -> Self {
        Inflater { tables: Tables::new() }
    }

    /// Decodes `stream` until it ends, or has more data than fits in `out`.
    pub(super) fn inflate(&mut self, stream: &[u8], out: &mut [u8]) -> Result<Inflated, Fault> {
        let (mut reader, mut made) = (BitReader::new(stream), 0);
        let stop = loop {
            let Some(header) = reader.take(3) else { break Stop::Truncated };
            let stop = match header >> 1 {
                0 => copy_stored(&mut reader, out, &mut made)?,
                1 => {
                    self.set_fixed_codes()?;
                    symbols::decode(&self.tables, &mut reader, out, &mut made)?
                }
                2 if self.read_codes(&mut reader)?.is_none() => Some(Stop::Truncated),
                2 => symbols::decode(&self.tables, &mut reader, out, &mut made)?,
                _ => return Err("invalid block type"),
            };
            let is_last = header & 1 == 1;
            if let Some(stop) = stop.or(is_last.then_some(Stop::End)) {
                break stop;
            }
        };
        // What is missing may have begun.
        let taken = if stop == Stop::Truncated { stream.len() } else { reader.taken() };
        Ok(Inflated { taken, made, stop })
    }

    /// The codes of section 3.2.6.
    fn set_fixed_codes(&mut self) -> Result<(), Fault> {
        let mut lengths = [8; 288];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        self.set_codes(&lengths, &[5; 32])
    }

    fn set_codes(&mut self, literals: &[u8], distances: &[u8]) -> Result<(), Fault> {
        self.tables.set_literals(literals).map_err(|_| "invalid literal/lengths set")?;
        self.tables.set_distances(distances).map_err(|_| "invalid distances set")
    }

    /// Reads the codes of a block (section 3.2.7); `None` if they are truncated.
    fn read_codes(&mut self, reader: &mut BitReader<'_>) -> Result<Option<()>, Fault> {
        let Some(header) = reader.take(14) else { return Ok(None) };
        let literal_count = (header & 31) as usize + 257;
        let distance_count = (header >> 5 & 31) as usize + 1;
        let precode_count = (header >> 10) as usize + 4;
        if literal_count > MAX_LITERALS || distance_count > MAX_DISTANCES {
            return Err("too many length or distance symbols");
        }
        let mut precode = [0; PRECODE_ORDER.len()];
        for symbol in PRECODE_ORDER.iter().take(precode_count) {
            let Some(length) = reader.take(3) else { return Ok(None) };
            precode[usize::from(*symbol)] = length as u8;
        }
        if precode.iter().all(|length| *length == 0) {
            // zlib takes each bit for a length of 0, and misses the code that ends a block after that.
            let missing = (0..literal_count + distance_count).any(|_| reader.take(1).is_none());
            return if missing { Ok(None) } else { Err("invalid code -- missing end-of-block") };
        }
        self.tables.set_precode(&precode).map_err(|_| "invalid code lengths set")?;

        let mut lengths = [0; MAX_LITERALS + MAX_DISTANCES];
        let lengths = &mut lengths[..literal_count + distance_count];
        let mut at = 0;
        while at < lengths.len() {
            reader.refill();
            let entry = self.tables.code_length(reader.bits);
            if !reader.consume(entry.bits()) {
                return Ok(None);
            }
            let (least, extra, repeated) = match entry.least() {
                16 => match at.checked_sub(1) {
                    Some(last) => (3, 2, lengths[last]),
                    None if reader.count < 2 => return Ok(None),
                    None => return Err("invalid bit length repeat"),
                },
                17 => (3, 3, 0),
                18 => (11, 7, 0),
                length => (1, 0, length as u8),
            };
            let Some(more) = reader.take(extra) else { return Ok(None) };
            let end = at + least + more as usize;
            lengths.get_mut(at..end).ok_or("invalid bit length repeat")?.fill(repeated);
            at = end;
        }
        let (literals, distances) = lengths.split_at(literal_count);
        if literals[256] == 0 {
            return Err("invalid code -- missing end-of-block");
        }
        self.set_codes(literals, distances).map(Some)
    }
}

/// Copies a stored block (section 3.2.4); returns why it stopped before the end of the block, if it did.
fn copy_stored(reader: &mut BitReader<'_>, out: &mut [u8], made: &mut usize) -> Result<Option<Stop>, Fault> {
    reader.align();
    let Some(header) = reader.take(32) else { return Ok(Some(Stop::Truncated)) };
    let (len, inverse) = (header & 0xffff, header >> 16);
    if len ^ inverse != 0xffff {
        return Err("invalid stored block lengths");
    }
    let (len, data) = (len as usize, reader.align());
    let room = out.get_mut(*made..).unwrap_or_default();
    let copied = len.min(data.len()).min(room.len());
    room[..copied].copy_from_slice(&data[..copied]);
    reader.next += copied;
    *made += copied;
    Ok(match len {
        _ if copied == len => None,
        _ if copied == data.len() => Some(Stop::Truncated),
        _ => Some(Stop::Full),
    })
}

#[cfg(test)]
mod tests;
