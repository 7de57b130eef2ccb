//! Decoding, and passing decoded payloads through.

#[cfg(feature = "dmg")]
mod adc;
#[cfg(feature = "dmg")]
mod bzip2;
#[cfg(feature = "deflate")]
mod deflate;
#[cfg(feature = "deflate")]
mod inflate;
#[cfg(feature = "dmg")]
mod lz;
#[cfg(feature = "dmg")]
mod lzfse;
#[cfg(feature = "dmg")]
mod xz;
#[cfg(feature = "zstd")]
mod zstd;

use std::fmt;

use thiserror::Error;

use super::{Codec, MissingCodec};

/// The reason why a payload does not decode to the expected bytes.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// The payload breaks a rule of its codec, or a checksum in it does not match.
    #[error("invalid {codec} data: {reason}")]
    Invalid {
        /// The codec of the payload.
        codec: Codec,
        /// The decoder's message.
        reason: String,
    },
    /// The payload is too short: it is a whole stream of fewer bytes, or the beginning of one.
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
        /// Bytes expected.
        want: usize,
        /// Whether the stream came to its end, with the right checksum in a zlib one. Never so
        /// for zstd, where a further frame could follow any other.
        ended: bool,
    },
    /// A zlib stream or zstd frame holds more bytes than expected, which no writer of whole units produces.
    #[error("the {codec} data holds more than {want} bytes")]
    Long {
        /// The codec of the payload.
        codec: Codec,
        /// Bytes expected.
        want: usize,
    },
    /// This build does not have the codec.
    #[error(transparent)]
    Missing(#[from] MissingCodec),
}

#[cfg(any(feature = "deflate", feature = "zstd"))]
impl DecodeError {
    fn invalid(codec: Codec, reason: impl fmt::Display) -> Self {
        DecodeError::Invalid { codec, reason: reason.to_string() }
    }
}

/// Decodes payloads; keeps the tables of each codec from one payload to the next.
///
/// Use one per thread. The result never depends on what was decoded before.
pub struct Decoder {
    deflate: Option<Box<dyn Decode>>,
    zstd: Option<Box<dyn Decode>>,
    /// The decoder of the other codec that was used last.
    other: Option<(Codec, Box<dyn Decode>)>,
    last: Option<Payload>,
}

/// A decoder of one codec, or of several that share their tables.
trait Decode: Send {
    fn decode(&mut self, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<Payload, DecodeError>;

    /// Appends `payload`, which holds `decoded`, with the wrapper of codec `to`; `false` if it has no other wrapper.
    fn rewrap(&self, _payload: &[u8], _to: Codec, _decoded: &[u8], _out: &mut Vec<u8>) -> bool {
        false
    }
}

/// The last decoded payload.
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
    /// A decoder of every codec of this build; allocates nothing before its first use.
    pub const fn new() -> Self {
        Decoder { deflate: None, zstd: None, other: None, last: None }
    }

    /// Decodes `stored` until `out` is full and returns the number of bytes of `stored` used.
    ///
    /// The bytes after those are ignored: formats that know the length of a payload only in
    /// sectors pass what happens to follow it. The returned length spans the end of the
    /// stream if `stored` does, so `stored[..length]` is a whole payload and may be stored again.
    ///
    /// * [`Codec::Deflate`]: any window, up to 32 KiB (RFC 1951, section 2). A stream that goes
    ///   on after `out` is full is accepted, as other readers do.
    /// * [`Codec::Zlib`]: a stream that has to end where `out` is full; its header and checksum are
    ///   verified, and it cannot ask for a preset dictionary (RFC 1950, section 2.3).
    /// * [`Codec::Zstd`]: frames are decoded until `out` is full, which has to be at the end of a
    ///   frame; its checksum is verified if it has one (RFC 8878, section 3.1.1). Since frames
    ///   are decoded into `out` itself, windows of up to 2 GiB are accepted and none is allocated.
    /// * [`Codec::Bzip2`], [`Codec::Xz`]: a stream that has to end where `out` is full; its checksums are verified. The index
    ///   of an xz stream is neither read nor counted. The dictionary is no larger than `out`.
    /// * [`Codec::Lzfse`]: a stream that has to end where `out` is full.
    /// * [`Codec::Adc`]: until `out` is full, which has to be at the end of a match or of literals.
    ///
    /// # Errors
    ///
    /// [`DecodeError`]; but for [`DecodeError::Short`], the content of `out` is unspecified then.
    pub fn decode(&mut self, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<usize, DecodeError> {
        self.last = None;
        let payload = self.decoder(codec)?.decode(codec, stored, out)?;
        self.last = Some(payload);
        Ok(payload.length)
    }

    fn decoder(&mut self, codec: Codec) -> Result<&mut Box<dyn Decode>, MissingCodec> {
        let slot = match codec {
            Codec::Deflate | Codec::Zlib | Codec::Gzip => &mut self.deflate,
            Codec::Zstd => &mut self.zstd,
            Codec::Adc | Codec::Bzip2 | Codec::Lzfse | Codec::Xz => {
                let same = self.other.take().filter(|(last, _)| *last == codec);
                let decoder = same.map_or_else(|| decoder_of(codec), |(_, decoder)| Ok(decoder))?;
                return Ok(&mut self.other.insert((codec, decoder)).1);
            }
        };
        match slot {
            Some(decoder) => Ok(decoder),
            None => Ok(slot.insert(decoder_of(codec)?)),
        }
    }

    /// Appends to `out` the payload that was decoded last, as one of codec `to`, without
    /// re-encoding it; returns `false`, and appends nothing, if that is impossible.
    ///
    /// `stored` and `decoded` are the input and output of the last [`decode`](Self::decode). The
    /// same codec is always possible; [`Codec::Deflate`] and [`Codec::Zlib`] differ only in the
    /// wrapper, so each can be converted to the other. A DEFLATE stream that continues after
    /// `decoded`, or is truncated, cannot: the result would not be a valid zlib stream.
    pub(crate) fn rewrap(&self, stored: &[u8], to: Codec, decoded: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(Payload { codec, length, whole }) = self.last else { return false };
        let Some(payload) = stored.get(..length) else { return false };
        if codec == to {
            out.extend_from_slice(payload);
            return true;
        }
        let decoder = match codec {
            Codec::Deflate | Codec::Zlib | Codec::Gzip => self.deflate.as_ref(),
            // These have no other wrapper.
            _ => None,
        };
        whole && decoder.is_some_and(|decoder| decoder.rewrap(payload, to, decoded, out))
    }
}

fn decoder_of(codec: Codec) -> Result<Box<dyn Decode>, MissingCodec> {
    match codec {
        #[cfg(feature = "deflate")]
        Codec::Deflate | Codec::Zlib | Codec::Gzip => Ok(deflate::decoder()),
        #[cfg(feature = "zstd")]
        Codec::Zstd => Ok(zstd::decoder()),
        #[cfg(feature = "dmg")]
        Codec::Adc => Ok(Box::new(adc::Adc)),
        #[cfg(feature = "dmg")]
        Codec::Bzip2 => Ok(Box::new(bzip2::Bzip2)),
        #[cfg(feature = "dmg")]
        Codec::Lzfse => Ok(Box::new(lzfse::Lzfse::new())),
        #[cfg(feature = "dmg")]
        Codec::Xz => Ok(Box::new(xz::Xz)),
        #[cfg(not(all(feature = "deflate", feature = "zstd", feature = "dmg")))]
        codec => Err(MissingCodec { codec }),
    }
}
