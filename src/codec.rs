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
use zlib_rs::adler32::adler32;
use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Inflate, InflateFlush, Status};

/// How the bytes of a payload are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// One DEFLATE stream (RFC 1951) without the header and checksum of zlib (RFC 1950).
    Deflate,
    /// One zlib stream (RFC 1950): a header of two bytes, DEFLATE, and the Adler-32 of the data.
    Zlib,
    /// Zstandard frames (RFC 8878, section 3.1), one or more, skippable ones included.
    Zstd,
}

impl Codec {
    /// The lower-case name: `"deflate"`, `"zlib"` or `"zstd"`.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::Deflate => "deflate",
            Codec::Zlib => "zlib",
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
    /// The payload ends too early: it is a whole stream of fewer bytes, or the beginning of one.
    ///
    /// The buffer begins with the `got` bytes of the payload. If it `ended`, that is all its data,
    /// and a format whose last unit may be short can take it.
    #[error("the {codec} data {} after {got} of {want} bytes", if *.ended { "ends" } else { "is cut off" })]
    Short {
        /// The codec of the payload.
        codec: Codec,
        /// Bytes decoded; for zstd, those of the frames before the one that is cut off. They can
        /// be as many as `want` if only the end of a zlib stream or its checksum is missing.
        got: usize,
        /// Bytes asked for.
        want: usize,
        /// Whether the stream came to its end, with the right checksum in a zlib one. Never so
        /// for zstd, where a further frame could follow any other.
        ended: bool,
    },
    /// A zlib stream or zstd frame holds more than is asked for, as no writer of whole units
    /// makes it.
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
/// Use one per thread. What decoding returns never depends on what was decoded before.
pub struct Decoder {
    inflate: Option<Inflate>,
    zstd: Option<FrameDecoder>,
    last: Option<Payload>,
}

/// What was decoded.
#[derive(Clone, Copy)]
struct Payload {
    codec: Codec,
    length: usize,
    /// Whether it is known to be whole: the decoded data is all it holds, and nothing is missing.
    whole: bool,
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
        Decoder { inflate: None, zstd: None, last: None }
    }

    /// Decodes `stored` until `out` is full and returns how many bytes of `stored` that took.
    ///
    /// The bytes after those are ignored: formats that know the length of a payload only in
    /// sectors hand over what happens to follow it. The returned length spans the end of the
    /// stream if `stored` does, so `stored[..length]` is a whole payload and may be stored again.
    ///
    /// * [`Codec::Deflate`]: any window, up to 32 KiB (RFC 1951, section 2). A stream that goes
    ///   on after `out` is full is accepted, as other readers do.
    /// * [`Codec::Zlib`]: a stream that has to end where `out` is full; its header and checksum are
    ///   verified, and it cannot ask for a preset dictionary (RFC 1950, section 2.3).
    /// * [`Codec::Zstd`]: frames are decoded until `out` is full, which has to be at the end of a
    ///   frame; its checksum is verified if it has one (RFC 8878, section 3.1.1). Since frames
    ///   are decoded into `out` itself, windows of up to 2 GiB are accepted and none is allocated.
    ///
    /// # Errors
    ///
    /// [`DecodeError`]; but for [`DecodeError::Short`], what `out` then holds is unspecified.
    pub fn decode(&mut self, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<usize, DecodeError> {
        self.last = None;
        let payload = match codec {
            Codec::Deflate | Codec::Zlib => self.inflate(codec, stored, out)?,
            Codec::Zstd => self.unzstd(stored, out)?,
        };
        self.last = Some(payload);
        Ok(payload.length)
    }

    /// Appends to `out` the payload that was decoded last, as one of codec `to`, without encoding
    /// it again; `false`, and nothing appended, if that cannot be.
    ///
    /// `stored` and `decoded` are what [`decode`](Self::decode) was given and what it gave. The
    /// same codec always can be; [`Codec::Deflate`] and [`Codec::Zlib`] only differ in what is
    /// around the stream, so each can become the other. But not a DEFLATE stream that goes on
    /// after `decoded`, or whose end is missing: it would be no valid zlib stream.
    pub(crate) fn rewrap(&self, stored: &[u8], to: Codec, decoded: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(Payload { codec, length, whole }) = self.last else { return false };
        let Some(payload) = stored.get(..length) else { return false };
        match (codec, to) {
            (from, to) if from == to => out.extend_from_slice(payload),
            (Codec::Deflate, Codec::Zlib) if whole => {
                out.extend_from_slice(&ZLIB_HEADER);
                out.extend_from_slice(payload);
                out.extend_from_slice(&adler32(ADLER32_OF_NOTHING, decoded).to_be_bytes());
            }
            (Codec::Zlib, Codec::Deflate) => {
                let deflate = payload.get(ZLIB_HEADER.len()..).and_then(|rest| rest.split_last_chunk::<4>());
                let Some((deflate, _adler32)) = deflate else { return false };
                out.extend_from_slice(deflate);
            }
            _ => return false,
        }
        true
    }

    fn inflate(&mut self, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<Payload, DecodeError> {
        let zlib = codec == Codec::Zlib;
        let inflate = self.inflate.get_or_insert_with(|| Inflate::new(zlib, MAX_WINDOW_BITS));
        inflate.reset(zlib);
        let mut ended = inflate_some(inflate, codec, stored, out)?;
        let want = out.len();
        let got = usize::try_from(inflate.total_out()).unwrap_or(want);
        if zlib && !ended && got == want {
            // A stream that goes on has one byte more; one that is cut off has not.
            let taken = usize::try_from(inflate.total_in()).unwrap_or(stored.len());
            let result = inflate_some(inflate, codec, stored.get(taken..).unwrap_or_default(), &mut [0]);
            if inflate.total_out() > want as u64 {
                return Err(DecodeError::Long { codec, want });
            }
            ended = result?;
        }
        if got < want || (zlib && !ended) {
            return Err(DecodeError::Short { codec, got, want, ended });
        }
        let length = usize::try_from(inflate.total_in()).unwrap_or(stored.len());
        Ok(Payload { codec, length, whole: ended })
    }

    fn unzstd(&mut self, stored: &[u8], out: &mut [u8]) -> Result<Payload, DecodeError> {
        let decoder = self.zstd.get_or_insert_with(|| {
            let mut decoder = FrameDecoder::new();
            decoder.set_content_checksum(ContentChecksum::Verify);
            decoder
        });
        let want = out.len();
        let (mut taken, mut got) = (0, 0);
        while got < want {
            let short = DecodeError::Short { codec: Codec::Zstd, got, want, ended: false };
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
        Ok(Payload { codec: Codec::Zstd, length: taken, whole: true })
    }
}

/// Decodes as much of `stored` as there is room for, and returns whether the stream ended there.
fn inflate_some(inflate: &mut Inflate, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<bool, DecodeError> {
    match inflate.decompress(stored, out, InflateFlush::Finish) {
        Ok(status) => Ok(status == Status::StreamEnd),
        Err(error) => Err(DecodeError::invalid(codec, inflate.error_message().unwrap_or(error.as_str()))),
    }
}

/// The largest window of DEFLATE, as a power of two (RFC 1951, section 2).
const MAX_WINDOW_BITS: u8 = 15;

/// The header of a zlib stream with the largest window and of unknown level (RFC 1950, section
/// 2.2), as most have it.
const ZLIB_HEADER: [u8; 2] = [0x78, 0x9c];

/// Bytes of the header and the checksum of zlib.
const ZLIB_OVERHEAD: usize = 6;

/// The most bytes in a stored block (RFC 1951, section 3.2.4).
const MAX_STORED_BLOCK: usize = 0xffff;

/// The Adler-32 of no bytes (RFC 1950, section 2.2).
const ADLER32_OF_NOTHING: u32 = 1;

/// Whether a payload that starts so can be zlib (RFC 1950, section 2.2): CM and CINFO say DEFLATE
/// with a valid window, FDICT is clear, and FCHECK is right.
///
/// What [`Codec::Deflate`] encoders write practically never passes for it: by its first three bits
/// such a stream would start with a stored block that is not the last, with bits set in the padding.
pub(crate) fn has_zlib_header(start: [u8; 2]) -> bool {
    let [cmf, flg] = start;
    cmf & 0x0f == 8 && cmf >> 4 <= 7 && flg & 0x20 == 0 && u16::from_be_bytes(start).is_multiple_of(31)
}

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
            Codec::Deflate | Codec::Zlib => 1..=9,
            Codec::Zstd => 1..=22,
        }
    }

    /// The level that `codec` is written with when none is asked for.
    pub const fn default_level(codec: Codec) -> u8 {
        match codec {
            Codec::Deflate | Codec::Zlib => 5,
            Codec::Zstd => 1,
        }
    }

    /// The longest payload of so many bytes that [`Encoder::encode`] makes without a limit; for zstd there is no such promise.
    pub fn max_len(&self, len: usize) -> usize {
        match self.codec {
            Codec::Deflate => stored_len(len),
            Codec::Zlib => stored_len(len) + ZLIB_OVERHEAD,
            Codec::Zstd => usize::MAX,
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
            Codec::Deflate | Codec::Zlib => {
                let window_bits = i32::from(encoding.window_bits.clamp(9, MAX_WINDOW_BITS));
                let config = DeflateConfig {
                    level,
                    // Negative: without the header and checksum of zlib.
                    window_bits: if encoding.codec == Codec::Zlib { window_bits } else { -window_bits },
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

    /// Encodes `data` as one DEFLATE stream, zlib stream or zstd frame, and returns it if it is
    /// shorter than `limit` bytes; `None` says that `data` is better stored as it is. Without a
    /// limit, `usize::MAX`, there always is a payload, at most [`Encoding::max_len`] bytes long.
    ///
    /// A frame states its content size and carries no checksum (RFC 8878, section 3.1.1.1).
    pub fn encode(&mut self, data: &[u8], limit: usize) -> Option<&[u8]> {
        let length = match &mut self.state {
            State::Deflate { deflate, config } => {
                // The bound of zlib's `deflateBound` for any settings, header and checksum
                // included. A stream that is written in one step never meets the code that
                // resumes a full output.
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
                let length = usize::try_from(deflate.total_out()).ok()?;
                let stored = stored_len(data.len()) + if config.window_bits > 0 { ZLIB_OVERHEAD } else { 0 };
                if length > stored {
                    // Level 1 makes noise longer than that, and some readers have no room for it.
                    store(data, config.window_bits > 0, &mut self.payload);
                    stored
                } else {
                    length
                }
            }
            State::Zstd(compressor) => {
                compressor.compress_independent_frame_into(data, &mut self.payload);
                self.payload.len()
            }
        };
        self.payload.get(..length).filter(|payload| payload.len() < limit)
    }
}

/// Length of a DEFLATE stream of stored blocks (RFC 1951, section 3.2.4) for so many bytes.
fn stored_len(len: usize) -> usize {
    len + len.div_ceil(MAX_STORED_BLOCK).max(1) * 5
}

/// Replaces the DEFLATE stream in `payload` by one of stored blocks for the same `data`; the header of zlib before it stays.
fn store(data: &[u8], zlib: bool, payload: &mut Vec<u8>) {
    payload.truncate(if zlib { ZLIB_HEADER.len() } else { 0 });
    let blocks = data.len().div_ceil(MAX_STORED_BLOCK);
    for (index, block) in data.chunks(MAX_STORED_BLOCK).enumerate() {
        let len = block.len() as u16;
        payload.push((index + 1 == blocks).into());
        payload.extend(len.to_le_bytes());
        payload.extend((!len).to_le_bytes());
        payload.extend(block);
    }
    if zlib {
        payload.extend(adler32(ADLER32_OF_NOTHING, data).to_be_bytes());
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
