//! How payloads are to be written.

use std::ops::RangeInclusive;

use super::{Codec, gzip, zlib};

/// How payloads are to be written: a codec and its settings.
///
/// ```
/// use diskimage::codec::{Codec, Encoding};
///
/// let best = Encoding { level: Some(*Encoding::levels(Codec::Zstd).end()), ..Encoding::new(Codec::Zstd) };
/// assert_eq!(best.level, Some(22));
/// assert!(!best.is_default());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Encoding {
    /// The codec.
    pub codec: Codec,
    /// Effort, within [`Encoding::levels`] (a level outside is taken as the nearest); `None` is
    /// [`Encoding::default_level`].
    pub level: Option<u8>,
    /// Base-2 logarithm of the DEFLATE window in bytes, 9..=15 (a value outside is taken as the nearest): no match reaches
    /// further back. Ignored for zstd.
    pub window_bits: u8,
    /// Whether a zstd frame has a checksum of its content (RFC 8878, section 3.1.1). gzip always has one; the other codecs have none, or their own.
    pub checksum: bool,
}

impl Encoding {
    /// `codec` with its default level and largest window.
    pub const fn new(codec: Codec) -> Self {
        Encoding { codec, level: None, window_bits: zlib::MAX_WINDOW_BITS, checksum: false }
    }

    /// The levels of `codec`, from the fastest to the smallest; 0 alone for a codec that is only decoded.
    pub const fn levels(codec: Codec) -> RangeInclusive<u8> {
        match codec {
            Codec::Deflate | Codec::Zlib | Codec::Gzip => 1..=9,
            Codec::Zstd => 1..=22,
            Codec::Adc | Codec::Bzip2 | Codec::Lzfse | Codec::Xz => 0..=0,
        }
    }

    /// The default level of `codec`.
    pub const fn default_level(codec: Codec) -> u8 {
        match codec {
            Codec::Deflate | Codec::Zlib | Codec::Gzip => 5,
            Codec::Zstd => 1,
            Codec::Adc | Codec::Bzip2 | Codec::Lzfse | Codec::Xz => 0,
        }
    }

    /// Length in bytes of the longest payload for `len` bytes that the encoder makes without a limit; for zstd, and for codecs that
    /// are only decoded, there is no bound, `usize::MAX`.
    pub fn max_len(&self, len: usize) -> usize {
        match self.codec {
            Codec::Deflate => zlib::stored_len(len),
            Codec::Zlib => zlib::stored_len(len) + zlib::OVERHEAD,
            Codec::Gzip => zlib::stored_len(len) + gzip::OVERHEAD,
            Codec::Zstd | Codec::Adc | Codec::Bzip2 | Codec::Lzfse | Codec::Xz => usize::MAX,
        }
    }

    /// Whether all settings are the defaults of the codec, so that any payload of that codec will do.
    pub fn is_default(&self) -> bool {
        *self == Encoding::new(self.codec)
    }
}
