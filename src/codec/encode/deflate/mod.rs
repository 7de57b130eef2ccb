//! DEFLATE streams, alone (RFC 1951) and with the header and checksum of zlib (RFC 1950).
//!
//! An encoder for units that are whole in memory, and independent of each other: nothing is streamed, and no state is kept but memory. A unit is
//! encoded in stretches, each in these steps:
//!
//! - [`sample`] tells what is compressed already, which is parsed at the fastest level.
//! - [`levels`] parses it, into literals and matches ([`symbols`]). The bytes are in a [`window`]; matches are found in [`buckets`] or [`chains`], and
//!   chosen by a [`greedy`], [`lazy`] or [`optimal`] parse.
//! - [`split`] cuts the parse into blocks.
//! - [`block`] writes them, with codes of [`huffman`], as [`bits`].

mod bits;
mod block;
mod buckets;
mod chains;
mod greedy;
mod huffman;
mod lazy;
mod levels;
mod optimal;
mod sample;
mod split;
mod symbols;
mod window;

use zlib_rs::adler32::adler32;

use self::bits::{BitWriter, SLACK};
use self::levels::Level;
use self::split::Block;
use self::symbols::{CAPACITY, Tokens};
use super::{Encode, level};
use crate::codec::{Codec, Encoding, zlib};

struct Deflater {
    level: Level,
    /// The fastest level, for what looks incompressible; made when it is needed first.
    fastest: Option<Box<Level>>,
    window: u16,
    tokens: Tokens,
    blocks: Vec<Block>,
    /// The header of zlib, if there is one.
    header: Option<[u8; 2]>,
}

pub(super) fn encoder(encoding: &Encoding) -> Box<dyn Encode> {
    let (level, window_bits) = (level(encoding), encoding.window_bits.clamp(9, zlib::MAX_WINDOW_BITS));
    Box::new(Deflater {
        level: Level::new(level, 1 << window_bits),
        fastest: None,
        window: 1 << window_bits,
        tokens: Tokens::new(),
        blocks: Vec::new(),
        header: (encoding.codec == Codec::Zlib).then(|| zlib::header(level, window_bits)),
    })
}

impl Encode for Deflater {
    fn encode(&mut self, data: &[u8], payload: &mut Vec<u8>) -> Option<usize> {
        // Only those of a longer unit than all before are set.
        let bound = zlib::stored_len(data.len()) + zlib::OVERHEAD + SLACK;
        if payload.len() < bound {
            payload.resize(bound, 0);
        }
        let header: &[u8] = self.header.as_ref().map_or(&[], |header| header);
        let (start, rest) = payload.split_at_mut_checked(header.len())?;
        start.copy_from_slice(header);
        let len = match self.deflate(data, rest) {
            Some(len) if len <= zlib::stored_len(data.len()) => len,
            _ => store(data, rest)?,
        };
        if self.header.is_none() {
            return Some(len);
        }
        let checksum = adler32(zlib::ADLER32_OF_NOTHING, data).to_be_bytes();
        *rest.get_mut(len..)?.first_chunk_mut()? = checksum;
        Some(start.len() + len + checksum.len())
    }
}

impl Deflater {
    /// Writes the DEFLATE stream of `data`, and returns its length; `None` if it does not fit.
    fn deflate(&mut self, data: &[u8], out: &mut [u8]) -> Option<usize> {
        if sample::looks_incompressible(data) {
            let fastest = self.fastest.get_or_insert_with(|| Box::new(Level::new(1, self.window)));
            let len = write(fastest, &mut self.tokens, &mut self.blocks, data, out);
            // The sample was right.
            if len.is_none_or(|len| len >= data.len() - data.len() / WORTHWHILE) {
                return len;
            }
        }
        write(&mut self.level, &mut self.tokens, &mut self.blocks, data, out)
    }
}

/// A unit is incompressible if the fastest level saves less than this part of it.
const WORTHWHILE: usize = 64;

/// Writes the DEFLATE stream of `data` at `level`, and returns its length; `None` if it does not fit.
fn write(
    level: &mut Level,
    tokens: &mut Tokens,
    blocks: &mut Vec<Block>,
    data: &[u8],
    out: &mut [u8],
) -> Option<usize> {
    let mut writer = BitWriter::new(out);
    level.reset();
    let mut start = 0;
    loop {
        let end = data.len().min(start + CAPACITY);
        level.parse(data, start..end, tokens);
        let (mut tokens, mut rest) = (tokens.as_slice(), data.get(start..end)?);
        split::split(tokens, level.segment, blocks);
        for (index, block) in blocks.iter().enumerate() {
            let (block_tokens, block_data);
            (block_tokens, tokens) = tokens.split_at_checked(block.token_count)?;
            (block_data, rest) = rest.split_at_checked(block.data_len)?;
            let is_last = end == data.len() && index + 1 == blocks.len();
            block::write(&mut writer, block_data, block_tokens, &block.histogram, is_last);
        }
        start = end;
        if start == data.len() {
            return writer.finish();
        }
    }
}

/// Writes `data` as stored blocks alone, and returns their length.
fn store(data: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut writer = BitWriter::new(out);
    block::write_stored(&mut writer, data, true);
    writer.finish()
}

#[cfg(test)]
mod tests;
