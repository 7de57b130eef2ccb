//! DEFLATE streams, alone (RFC 1951) and with the header and checksum of zlib (RFC 1950).

use zlib_rs::adler32::adler32;
use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Status};

use super::{Encode, level};
use crate::codec::{Codec, Encoding, zlib};

struct Deflater {
    deflate: Deflate,
    config: DeflateConfig,
}

pub(super) fn encoder(encoding: &Encoding) -> Box<dyn Encode> {
    let window_bits = i32::from(encoding.window_bits.clamp(9, zlib::MAX_WINDOW_BITS));
    let config = DeflateConfig {
        level: level(encoding),
        // Negative: without the header and checksum of zlib.
        window_bits: if encoding.codec == Codec::Zlib { window_bits } else { -window_bits },
        // The largest number of symbols per block, so that there are fewer tables.
        mem_level: 9,
        ..DeflateConfig::default()
    };
    Box::new(Deflater { deflate: Deflate::new_with_config(config), config })
}

impl Encode for Deflater {
    fn encode(&mut self, data: &[u8], payload: &mut Vec<u8>) -> Option<usize> {
        // The bound of zlib's `deflateBound` for any settings, header and checksum included. A stream that is written in one
        // step never meets the code that resumes a full output.
        let bound = data.len() + data.len() / 8 + data.len() / 64 + 64;
        if payload.len() < bound {
            payload.resize(bound, 0);
        }
        self.deflate.reset();
        let status = self.deflate.compress(data, payload, DeflateFlush::Finish);
        if status != Ok(Status::StreamEnd) {
            // `reset` keeps state of an unfinished stream, which would corrupt the next one.
            self.deflate = Deflate::new_with_config(self.config);
            return None;
        }
        let length = usize::try_from(self.deflate.total_out()).ok()?;
        let is_zlib = self.config.window_bits > 0;
        let stored = zlib::stored_len(data.len()) + if is_zlib { zlib::OVERHEAD } else { 0 };
        if length <= stored {
            return Some(length);
        }
        // Level 1 expands incompressible data beyond that, and some readers have a smaller buffer.
        store(data, is_zlib, payload);
        Some(stored)
    }
}

/// Replaces the DEFLATE stream in `payload` with stored blocks of the same `data`; a zlib header is kept.
fn store(data: &[u8], is_zlib: bool, payload: &mut Vec<u8>) {
    payload.truncate(if is_zlib { zlib::HEADER.len() } else { 0 });
    let blocks = data.len().div_ceil(zlib::MAX_STORED_BLOCK);
    for (index, block) in data.chunks(zlib::MAX_STORED_BLOCK).enumerate() {
        let len = block.len() as u16;
        payload.push((index + 1 == blocks).into());
        payload.extend(len.to_le_bytes());
        payload.extend((!len).to_le_bytes());
        payload.extend(block);
    }
    if is_zlib {
        payload.extend(adler32(zlib::ADLER32_OF_NOTHING, data).to_be_bytes());
    }
}
