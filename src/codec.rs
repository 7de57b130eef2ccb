//! The only place that knows how stored bytes become guest bytes.
//!
//! A *unit* of guest data (a cluster, a grain, a block) is stored as one payload. Formats place
//! payloads and name their [`Codec`]; what is inside is decided here, for all of them alike.
//!
//! Payloads come from images, so nothing is believed: decoding writes only into the caller's
//! buffer, allocates nothing by a number the payload states, and either fills the buffer or fails.

use std::fmt;
use std::ops::RangeInclusive;

use structured_zstd::decoding::errors::FrameDecoderError;
use structured_zstd::decoding::{
    ContentChecksum, FrameDecoder, FrameSizeError, find_frame_compressed_size, frame_header_input_needed,
};
use structured_zstd::encoding::{CompressionLevel, CompressionParameters, FrameCompressor};
use thiserror::Error;
use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Inflate, InflateFlush, Status};

/// How the bytes of a payload are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// One DEFLATE stream (RFC 1951) without the header and checksum of zlib (RFC 1950).
    Deflate,
    /// Zstandard frames (RFC 8878, section 3.1), one or more, skippable ones included.
    Zstd,
}

impl Codec {
    /// The lower-case name: `"deflate"` or `"zstd"`.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::Deflate => "deflate",
            Codec::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a payload does not give the bytes that were asked of it.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// The payload breaks the rules of its codec, or a checksum in it does not match.
    #[error("invalid {codec} data: {reason}")]
    Invalid {
        /// The codec of the payload.
        codec: Codec,
        /// Which rule, in the words of the decoder.
        reason: String,
    },
    /// The payload ends too early.
    #[error("the {codec} data ends after {got} of {want} bytes")]
    Short {
        /// The codec of the payload.
        codec: Codec,
        /// Bytes decoded; for zstd, those of the frames before the one that is cut off.
        got: usize,
        /// Bytes asked for.
        want: usize,
    },
    /// A zstd frame holds more than is asked for, as no writer of whole units makes it.
    #[error("the {codec} data holds more than {want} bytes")]
    Long {
        /// The codec of the payload.
        codec: Codec,
        /// Bytes asked for.
        want: usize,
    },
}

impl DecodeError {
    fn invalid(codec: Codec, reason: impl fmt::Display) -> Self {
        DecodeError::Invalid { codec, reason: reason.to_string() }
    }
}

/// Decodes payloads; holds the tables that are worth keeping from one to the next.
///
/// Use one per thread. What it returns never depends on what it decoded before.
pub struct Decoder {
    inflate: Option<Inflate>,
    zstd: Option<FrameDecoder>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    /// A decoder of every codec; nothing is allocated before its first use.
    pub const fn new() -> Self {
        Decoder { inflate: None, zstd: None }
    }

    /// Decodes `stored` until `out` is full and returns how many bytes of `stored` that took.
    ///
    /// The bytes after those are ignored: formats that know the length of a payload only in
    /// sectors hand over what happens to follow it. The returned length spans the end of the
    /// stream if `stored` does, so `stored[..length]` is a whole payload and may be stored again.
    ///
    /// * [`Codec::Deflate`]: any window, up to 32 KiB (RFC 1951, section 2). A stream that goes
    ///   on after `out` is full is accepted, as other readers do.
    /// * [`Codec::Zstd`]: frames are decoded until `out` is full, which has to be at the end of a
    ///   frame; its checksum is verified if it has one (RFC 8878, section 3.1.1). Since frames
    ///   are decoded into `out` itself, windows of up to 2 GiB are accepted and none is allocated.
    ///
    /// # Errors
    ///
    /// [`DecodeError`]; what `out` then holds is unspecified.
    pub fn decode(&mut self, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<usize, DecodeError> {
        match codec {
            Codec::Deflate => self.inflate(stored, out),
            Codec::Zstd => self.unzstd(stored, out),
        }
    }

    fn inflate(&mut self, stored: &[u8], out: &mut [u8]) -> Result<usize, DecodeError> {
        let inflate = self.inflate.get_or_insert_with(|| Inflate::new(false, MAX_WINDOW_BITS));
        inflate.reset(false);
        match inflate.decompress(stored, out, InflateFlush::Finish) {
            // Complete, cut off, or more than fits: the length tells.
            Ok(Status::StreamEnd | Status::Ok | Status::BufError) => {}
            Err(error) => {
                let reason = inflate.error_message().unwrap_or(error.as_str());
                return Err(DecodeError::invalid(Codec::Deflate, reason));
            }
        }
        match usize::try_from(inflate.total_out()) {
            Ok(got) if got < out.len() => Err(DecodeError::Short { codec: Codec::Deflate, got, want: out.len() }),
            _ => Ok(usize::try_from(inflate.total_in()).unwrap_or(stored.len())),
        }
    }

    fn unzstd(&mut self, stored: &[u8], out: &mut [u8]) -> Result<usize, DecodeError> {
        let decoder = self.zstd.get_or_insert_with(|| {
            let mut decoder = FrameDecoder::new();
            decoder.set_content_checksum(ContentChecksum::Verify);
            decoder
        });
        let want = out.len();
        let (mut taken, mut got) = (0, 0);
        while got < want {
            let short = DecodeError::Short { codec: Codec::Zstd, got, want };
            // The decoder would take what follows the last frame for one more, so it is given
            // one at a time.
            let rest = stored.get(taken..).unwrap_or_default();
            let frame = zstd_frame(rest)?.ok_or(short)?;
            let room = out.get_mut(got..).unwrap_or_default();
            got += decoder.decode_all(frame, room).map_err(|error| match error {
                FrameDecoderError::TargetTooSmall => DecodeError::Long { codec: Codec::Zstd, want },
                error => DecodeError::invalid(Codec::Zstd, error),
            })?;
            taken += frame.len();
        }
        Ok(taken)
    }
}

/// The largest window of DEFLATE, as a power of two (RFC 1951, section 2).
const MAX_WINDOW_BITS: u8 = 15;

/// The frame that `bytes` start with (RFC 8878, section 3.1), skippable or not; `None` when they
/// end within it.
fn zstd_frame(bytes: &[u8]) -> Result<Option<&[u8]>, DecodeError> {
    match frame_header_input_needed(bytes, false) {
        Ok(header) if header <= bytes.len() => {}
        Ok(_) => return Ok(None),
        Err(error) => return Err(DecodeError::invalid(Codec::Zstd, error)),
    }
    match find_frame_compressed_size(bytes) {
        Ok(length) => Ok(bytes.get(..length)),
        Err(FrameSizeError::Truncated) => Ok(None),
        Err(FrameSizeError::Header(error)) => Err(DecodeError::invalid(Codec::Zstd, error)),
        Err(FrameSizeError::ReservedBlock) => Err(DecodeError::invalid(Codec::Zstd, "reserved block type")),
        Err(FrameSizeError::OversizedBlock) => {
            Err(DecodeError::invalid(Codec::Zstd, "block larger than Block_Maximum_Size"))
        }
    }
}

/// How payloads are to be written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Encoding {
    /// The codec.
    pub codec: Codec,
    /// Effort, within [`Encoding::levels`] (a level outside is taken as the nearest); `None` is
    /// [`Encoding::default_level`].
    pub level: Option<u8>,
    /// The base-2 logarithm of the DEFLATE window, 9..=15 (a value outside is taken as the
    /// nearest): no match reaches further back than that many bytes. Zstd does not look at it.
    pub window_bits: u8,
}

impl Encoding {
    /// `codec` with its default level and largest window.
    pub const fn new(codec: Codec) -> Self {
        Encoding { codec, level: None, window_bits: MAX_WINDOW_BITS }
    }

    /// The levels `codec` offers, from the fastest to the smallest.
    pub const fn levels(codec: Codec) -> RangeInclusive<u8> {
        match codec {
            Codec::Deflate => 1..=9,
            Codec::Zstd => 1..=22,
        }
    }

    /// The level that `codec` is written with when none is asked for.
    pub const fn default_level(codec: Codec) -> u8 {
        match codec {
            Codec::Deflate => 5,
            Codec::Zstd => 1,
        }
    }

    /// Whether nothing but the codec was asked for, so that any payload of that codec will do.
    pub fn is_default(&self) -> bool {
        *self == Encoding::new(self.codec)
    }

    fn effective_level(&self) -> i32 {
        let levels = Self::levels(self.codec);
        let level = self.level.unwrap_or(Self::default_level(self.codec));
        i32::from(level.clamp(*levels.start(), *levels.end()))
    }
}

/// Encodes units as payloads; holds the tables that are worth keeping from one to the next.
///
/// Use one per thread, made by that thread from an [`Encoding`]: the tables of the zstd encoder
/// cannot be sent to another. The same data and `Encoding` always give the same payload, whatever
/// was encoded before.
pub struct Encoder {
    state: State,
    payload: Vec<u8>,
}

enum State {
    Deflate { deflate: Deflate, config: DeflateConfig },
    Zstd(Box<FrameCompressor>),
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Encoder {
    /// An encoder as `encoding` asks for.
    pub fn new(encoding: &Encoding) -> Self {
        let level = encoding.effective_level();
        let state = match encoding.codec {
            Codec::Deflate => {
                let config = DeflateConfig {
                    level,
                    // Negative: without the zlib header.
                    window_bits: -i32::from(encoding.window_bits.clamp(9, MAX_WINDOW_BITS)),
                    // The most symbols per block: fewer tables to make.
                    mem_level: 9,
                    ..DeflateConfig::default()
                };
                State::Deflate { deflate: Deflate::new_with_config(config), config }
            }
            Codec::Zstd => State::Zstd(Box::new(zstd_compressor(level))),
        };
        Encoder { state, payload: Vec::new() }
    }

    /// Encodes `data` as one DEFLATE stream or one zstd frame, and returns it if it is shorter
    /// than `limit` bytes; `None` says that `data` is better stored as it is.
    ///
    /// A frame states its content size and carries no checksum (RFC 8878, section 3.1.1.1).
    pub fn encode(&mut self, data: &[u8], limit: usize) -> Option<&[u8]> {
        let length = match &mut self.state {
            State::Deflate { deflate, config } => {
                // The bound of zlib's `deflateBound` for any settings. A stream that is written
                // in one step never meets the code that resumes a full output.
                let bound = data.len() + data.len() / 8 + data.len() / 64 + 64;
                if self.payload.len() < bound {
                    self.payload.resize(bound, 0);
                }
                deflate.reset();
                let status = deflate.compress(data, &mut self.payload, DeflateFlush::Finish);
                if status != Ok(Status::StreamEnd) {
                    // `reset` leaves traces of an unfinished stream, which would spoil the next.
                    *deflate = Deflate::new_with_config(*config);
                    return None;
                }
                usize::try_from(deflate.total_out()).ok()?
            }
            State::Zstd(compressor) => {
                compressor.compress_independent_frame_into(data, &mut self.payload);
                self.payload.len()
            }
        };
        self.payload.get(..length).filter(|payload| payload.len() < limit)
    }
}

fn zstd_compressor(level: i32) -> FrameCompressor {
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

#[cfg(test)]
mod tests;
