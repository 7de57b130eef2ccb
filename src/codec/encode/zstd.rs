//! Zstandard frames (RFC 8878).

use structured_zstd::encoding::{CompressionLevel, CompressionParameters, FrameCompressor};

use super::{Encode, level};
use crate::codec::Encoding;

pub(super) fn encoder(encoding: &Encoding) -> Box<dyn Encode> {
    let mut compressor = compressor(level(encoding));
    compressor.set_content_checksum(encoding.checksum);
    Box::new(compressor)
}

impl Encode for FrameCompressor {
    fn encode(&mut self, data: &[u8], payload: &mut Vec<u8>) -> Option<usize> {
        self.compress_independent_frame_into(data, payload);
        Some(payload.len())
    }
}

pub(in crate::codec) fn compressor(level: i32) -> FrameCompressor {
    // The encoder of these levels (version 0.2.6) writes frames that decode to other data on big-endian machines.
    let level = if cfg!(target_endian = "big") && matches!(level, 3 | 4) { 5 } else { level };
    let level = CompressionLevel::from_level(level);
    let mut compressor = FrameCompressor::new(level);
    if level == CompressionLevel::from_level(1) {
        // This level would use a table of 32 KiB. One of 64 KiB costs hardly any time, and units
        // of 64 KiB come out up to 1 % smaller.
        if let Ok(wider) = CompressionParameters::builder(level).hash_log(14).build() {
            compressor.set_parameters(&wider);
        }
    }
    compressor
}
