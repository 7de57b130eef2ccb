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
        // This level would use a table of 32 KiB. One of 128 KiB costs hardly any time, and units
        // of 64 KiB come out up to 1 % smaller.
        if let Ok(wider) = CompressionParameters::builder(level).hash_log(15).build() {
            compressor.set_parameters(&wider);
        }
    }
    compressor
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const CODECS: [Codec; 2] = [Codec::Deflate, Codec::Zstd];

    /// Bytes that no codec can shorten.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let step = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..len).map(step).collect()
    }

    /// Records with a counter, some noise and some text in each.
    fn records(len: usize) -> Vec<u8> {
        let salt = noise(len / 4 + 8);
        let record = |(index, salt): (usize, &[u8])| {
            let mut record = format!("record {index:06}: ").into_bytes();
            record.extend_from_slice(salt);
            record
        };
        let mut bytes: Vec<u8> = salt.chunks(4).enumerate().flat_map(record).collect();
        bytes.truncate(len);
        bytes
    }

    fn encode(encoding: &Encoding, data: &[u8]) -> Vec<u8> {
        Encoder::new(encoding).encode(data, usize::MAX).unwrap().to_vec()
    }

    fn decode(codec: Codec, stored: &[u8], len: usize) -> Result<(Vec<u8>, usize), DecodeError> {
        let mut out = vec![0xAA; len];
        Decoder::new().decode(codec, stored, &mut out).map(|taken| (out, taken))
    }

    fn with_level(codec: Codec, level: u8) -> Encoding {
        Encoding { level: Some(level), ..Encoding::new(codec) }
    }

    /// A frame without content size or checksum.
    fn zstd_frame_of(window: u8, blocks: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, window];
        for (index, (kind, size, body)) in blocks.iter().enumerate() {
            let last = u32::from(index + 1 == blocks.len());
            frame.extend_from_slice(&(last | kind << 1 | size << 3).to_le_bytes()[..3]);
            frame.extend_from_slice(body);
        }
        frame
    }

    const RAW: u32 = 0;
    const RLE: u32 = 1;
    /// Window descriptors: 128 KiB and 2 GiB.
    const WINDOW: u8 = 7 << 3;
    const HUGE_WINDOW: u8 = 21 << 3;

    fn skippable(len: u8) -> Vec<u8> {
        let mut frame = vec![0x50, 0x2a, 0x4d, 0x18, len, 0, 0, 0];
        frame.extend(noise(len.into()));
        frame
    }

    #[test]
    fn every_level_and_size_comes_back_whole() {
        for codec in CODECS {
            for level in Encoding::levels(codec) {
                let mut encoder = Encoder::new(&with_level(codec, level));
                let mut decoder = Decoder::new();
                for len in [0, 1, 512, 4096, 65_535, 65_536, 300_000] {
                    for data in [vec![0; len], vec![7; len], noise(len), records(len)] {
                        let payload = encoder.encode(&data, usize::MAX).unwrap();
                        let stored = [payload, &noise(600)].concat();
                        let mut out = vec![0xAA; len];
                        let taken = decoder.decode(codec, &stored, &mut out).unwrap();
                        assert!(out == data, "{codec} {level}, {len} bytes");
                        if len > 0 {
                            assert_eq!(taken, payload.len(), "{codec} {level}, {len} bytes");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_deflate_window_bounds_every_match() {
        // The second half can only be found from a window as large as the first.
        let data = noise(4096).repeat(2);
        for window_bits in 9..=15 {
            let encoding = Encoding { window_bits, ..Encoding::new(Codec::Deflate) };
            let payload = encode(&encoding, &data);
            assert_eq!(payload.len() < 5000, window_bits > 12, "{window_bits} bits");
            assert_eq!(decode(Codec::Deflate, &payload, data.len()).unwrap().0, data);
        }
    }

    #[test]
    fn what_is_not_shorter_than_the_limit_is_refused() {
        for codec in CODECS {
            let data = records(65_536);
            let length = encode(&Encoding::new(codec), &data).len();
            let mut encoder = Encoder::new(&Encoding::new(codec));
            assert_eq!(encoder.encode(&data, length), None);
            assert!(encoder.encode(&data, length + 1).is_some());
            assert_eq!(encoder.encode(&noise(65_536), 65_536), None);
        }
    }

    #[test]
    fn settings_out_of_range_are_the_nearest() {
        let data = records(10_000);
        for codec in CODECS {
            let most = *Encoding::levels(codec).end();
            let beyond = Encoding { level: Some(255), window_bits: 99, ..Encoding::new(codec) };
            assert_eq!(encode(&beyond, &data), encode(&with_level(codec, most), &data));
            let below = Encoding { level: Some(0), window_bits: 0, ..Encoding::new(codec) };
            assert_eq!(decode(codec, &encode(&below, &data), 10_000).unwrap().0, data);
        }
    }

    #[test]
    fn a_payload_cut_anywhere_never_passes_for_whole() {
        let data = records(3000);
        for codec in CODECS {
            let payload = encode(&Encoding::new(codec), &data);
            for end in 0..payload.len() {
                match decode(codec, &payload[..end], data.len()) {
                    Ok((out, taken)) => {
                        // Only the end-of-block symbol can be missing from complete data.
                        assert_eq!((codec, taken), (Codec::Deflate, end));
                        assert_eq!(out, data);
                    }
                    Err(DecodeError::Short { got, want, .. }) => assert!(got < want),
                    Err(error) => panic!("{codec} cut at {end}: {error}"),
                }
            }
        }
    }

    #[test]
    fn deflate_streams_of_other_lengths() {
        let payload = encode(&Encoding::new(Codec::Deflate), &records(5000));
        let short = DecodeError::Short { codec: Codec::Deflate, got: 5000, want: 5001 };
        assert_eq!(decode(Codec::Deflate, &payload, 5001), Err(short));
        let (out, taken) = decode(Codec::Deflate, &payload, 4000).unwrap();
        assert_eq!(out, &records(5000)[..4000]);
        assert_eq!(decode(Codec::Deflate, &payload[..taken], 4000).unwrap().0, out);
    }

    #[test]
    fn the_end_of_a_deflate_stream_is_taken_even_when_it_comes_late() {
        // RFC 1951, section 3.2.4: stored blocks, of which the last two are empty.
        let stream = [&[0, 3, 0, 0xfc, 0xff, 1, 2, 3][..], &[0, 0, 0, 0xff, 0xff], &[1, 0, 0, 0xff, 0xff], &[9, 9, 9]];
        assert_eq!(decode(Codec::Deflate, &stream.concat(), 3), Ok((vec![1, 2, 3], 18)));
    }

    #[test]
    fn zstd_payloads_of_several_frames() {
        let data = records(9000);
        let frame = |range: std::ops::Range<usize>| encode(&Encoding::new(Codec::Zstd), &data[range]);
        let mut checked = zstd_compressor(1);
        checked.set_content_checksum(true);
        let payload = [
            skippable(9),
            frame(0..4000),
            zstd_frame_of(WINDOW, &[(RAW, 0, &[])]),
            zstd_frame_of(WINDOW, &[(RAW, 500, &data[4000..4500]), (RAW, 500, &data[4500..5000])]),
            skippable(0),
            checked.compress_independent_frame(&data[5000..]),
        ]
        .concat();
        let stored = [&payload[..], &[0x28, 0xb5, 0x2f, 0xfd]].concat();
        assert_eq!(decode(Codec::Zstd, &stored, 9000), Ok((data, payload.len())));
        for end in 0..payload.len() {
            let error = decode(Codec::Zstd, &payload[..end], 9000).unwrap_err();
            assert!(matches!(error, DecodeError::Short { .. }), "cut at {end}: {error}");
        }
        let mut wrong = payload;
        *wrong.last_mut().unwrap() ^= 1;
        let error = decode(Codec::Zstd, &wrong, 9000).unwrap_err();
        assert!(matches!(error, DecodeError::Invalid { .. }), "{error}");
    }

    #[test]
    fn a_zstd_frame_is_never_believed() {
        let bomb = zstd_frame_of(WINDOW, &[(RLE, 128 << 10, &[7][..]); 5000]);
        let long = DecodeError::Long { codec: Codec::Zstd, want: 65_536 };
        assert_eq!(decode(Codec::Zstd, &bomb, 65_536), Err(long.clone()));

        let huge = zstd_frame_of(HUGE_WINDOW, &[(RLE, 65_536, &[7])]);
        assert_eq!(decode(Codec::Zstd, &huge, 65_536), Ok((vec![7; 65_536], huge.len())));

        // A content size of 1 TiB, and one of 0 (RFC 8878, section 3.1.1.1.4).
        let sized = |size: u64| {
            let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xc0, HUGE_WINDOW];
            frame.extend_from_slice(&size.to_le_bytes());
            frame.extend_from_slice(&zstd_frame_of(0, &[(RLE, 65_536, &[7])])[6..]);
            frame
        };
        assert_eq!(decode(Codec::Zstd, &sized(1 << 40), 65_536), Err(long));
        assert!(decode(Codec::Zstd, &sized(0), 65_536).is_err());

        assert!(decode(Codec::Zstd, &noise(4096), 65_536).is_err());
        let reserved = zstd_frame_of(WINDOW, &[(3, 1, &[0])]);
        assert!(matches!(decode(Codec::Zstd, &reserved, 1), Err(DecodeError::Invalid { .. })));
    }

    #[test]
    fn what_threads_are_given_can_be_sent() {
        fn sent<T: Send>() {}
        sent::<Decoder>();
        sent::<Encoding>();
        sent::<DecodeError>();
    }

    #[test]
    fn errors_read_well() {
        let short = DecodeError::Short { codec: Codec::Zstd, got: 1, want: 2 };
        assert_eq!(short.to_string(), "the zstd data ends after 1 of 2 bytes");
        let error = decode(Codec::Deflate, &[0xff; 9], 1).unwrap_err().to_string();
        assert_eq!(error, "invalid deflate data: invalid block type");
    }

    fn any_codec() -> impl Strategy<Value = Codec> {
        prop::sample::select(CODECS.to_vec())
    }

    proptest! {
        #[test]
        fn what_was_done_before_leaves_no_trace(
            codec in any_codec(),
            level in 1_u8..10,
            before in vec((vec(0_u8..4, 0..5000), 0_usize..3000), 0..4),
            data in vec(0_u8..4, 1..5000),
            garbage in vec(any::<u8>(), 0..200),
        ) {
            let encoding = with_level(codec, level);
            let mut encoder = Encoder::new(&encoding);
            for (data, limit) in &before {
                encoder.encode(data, *limit);
            }
            let payload = encoder.encode(&data, usize::MAX).unwrap();
            prop_assert_eq!(payload, encode(&encoding, &data));

            let mut decoder = Decoder::new();
            let mut out = vec![0xAA; data.len()];
            let _ = decoder.decode(codec, &garbage, &mut out);
            let _ = decoder.decode(codec, &payload[..payload.len() / 2], &mut out);
            prop_assert_eq!(decoder.decode(codec, payload, &mut out), Ok(payload.len()));
            prop_assert_eq!(out, data);
        }

        #[test]
        fn damage_is_survived(
            codec in any_codec(),
            level in 1_u8..10,
            marks in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            len in 1_usize..20_000,
        ) {
            let mut payload = encode(&with_level(codec, level), &records(10_000));
            for (at, value) in marks {
                let at = at.index(payload.len());
                payload[at] = value;
            }
            if let Ok((_, taken)) = decode(codec, &payload, len) {
                prop_assert!(taken <= payload.len());
            }
        }

        #[test]
        fn noise_is_survived(codec in any_codec(), bytes in vec(any::<u8>(), 0..300)) {
            let _ = decode(codec, &bytes, 4096);
            // The same as the inside of a compressed block.
            let size = bytes.len() as u32;
            let frame = zstd_frame_of(HUGE_WINDOW, &[(2, size, &bytes), (RAW, 1, &[1])]);
            let _ = decode(Codec::Zstd, &frame, 4096);
        }
    }
}
