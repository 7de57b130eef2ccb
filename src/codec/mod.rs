//! Compressed payloads: the only place that knows how stored bytes become guest bytes, and back.
//!
//! A *unit* of guest data (a cluster, a grain) is stored as one payload. Drivers allocate payloads and name their [`Codec`];
//! [`Decoder`] and [`Encoder`] are the same for all formats.
//!
//! Payloads are untrusted: decoding writes only into the caller's buffer, allocates nothing by a number that the payload
//! states, and either fills the buffer or fails.
//!
//! [`Codec`], [`Encoding`] and [`Decoder`] exist in every build. The features `deflate` and `zstd` bring their codecs, `dmg` those of
//! Apple's images, `write` brings [`Encoder`]. A codec that was left out is refused with [`MissingCodec`].
//!
//! ```
//! use diskimage::codec::{Codec, Decoder};
//!
//! // A zlib stream with one stored block (RFC 1950, RFC 1951), and a byte that does not belong to it.
//! let stored = b"\x78\x9c\x01\x09\x00\xf6\xffWikipedia\x11\xe6\x03\x98\0";
//! let mut unit = [0; 9];
//! let payload_len = Decoder::new().decode(Codec::Zlib, stored, &mut unit)?;
//! assert_eq!((&unit, payload_len), (b"Wikipedia", stored.len() - 1));
//! # Ok::<(), diskimage::codec::DecodeError>(())
//! ```

mod decode;
#[cfg(feature = "write")]
mod encode;
mod encoding;
pub(crate) mod gzip;
#[cfg(any(feature = "compressed", feature = "dmg"))]
pub(crate) mod xz;
mod zlib;

use std::fmt;

use thiserror::Error;

pub use decode::{DecodeError, Decoder};
#[cfg(feature = "write")]
pub use encode::Encoder;
pub use encoding::Encoding;
pub use zlib::has_zlib_header;

/// How a payload is compressed.
///
/// ```
/// use diskimage::codec::Codec;
///
/// assert_eq!(Codec::Zlib.name(), "zlib");
/// assert_eq!(Codec::Zlib.feature(), "deflate");
/// assert!(Codec::Zstd.check_available().is_ok(), "build with the feature `zstd`");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// One DEFLATE stream (RFC 1951) without the header and checksum of zlib (RFC 1950).
    Deflate,
    /// One zlib stream (RFC 1950): a header of two bytes, DEFLATE, and the Adler-32 of the data.
    Zlib,
    /// One member of gzip (RFC 1952): a header, DEFLATE, the CRC-32 of the data and its length. Written as a file of its own, not as a
    /// unit of an image: [`Decoder`] does not take it.
    Gzip,
    /// Zstandard frames (RFC 8878, section 3.1), one or more, skippable ones included.
    Zstd,
    /// Apple Data Compression: matches and literals, without an end or a checksum. Decoded only.
    Adc,
    /// One bzip2 stream. Decoded only.
    Bzip2,
    /// LZFSE, with its blocks of LZVN. Decoded only.
    Lzfse,
    /// One xz stream (The .xz File Format, section 2.1): LZMA2, and a check. Decoded only.
    Xz,
}

impl Codec {
    /// The lower-case name: `"deflate"`, `"zlib"`, `"gzip"`, `"zstd"`, `"adc"`, `"bzip2"`, `"lzfse"` or `"xz"`.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::Deflate => "deflate",
            Codec::Zlib => "zlib",
            Codec::Gzip => "gzip",
            Codec::Zstd => "zstd",
            Codec::Adc => "adc",
            Codec::Bzip2 => "bzip2",
            Codec::Lzfse => "lzfse",
            Codec::Xz => "xz",
        }
    }

    /// The cargo feature that brings it: `"deflate"`, `"zstd"`, or `"dmg"`.
    pub const fn feature(self) -> &'static str {
        match self {
            Codec::Deflate | Codec::Zlib | Codec::Gzip => "deflate",
            Codec::Zstd => "zstd",
            Codec::Adc | Codec::Bzip2 | Codec::Lzfse | Codec::Xz => "dmg",
        }
    }

    /// Checks that this build has the codec.
    ///
    /// # Errors
    /// [`MissingCodec`] if its feature is off.
    pub const fn check_available(self) -> Result<(), MissingCodec> {
        let available = match self {
            Codec::Deflate | Codec::Zlib | Codec::Gzip => cfg!(feature = "deflate"),
            Codec::Zstd => cfg!(feature = "zstd"),
            Codec::Adc | Codec::Bzip2 | Codec::Lzfse | Codec::Xz => cfg!(feature = "dmg"),
        };
        if available { Ok(()) } else { Err(MissingCodec { codec: self }) }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The error for a codec whose feature is off in this build, or to encode with one that is only decoded.
///
/// ```
/// use diskimage::codec::{Codec, MissingCodec};
///
/// let missing = MissingCodec { codec: Codec::Zstd };
/// assert_eq!(missing.to_string(), "this build has no zstd codec; enable the feature `zstd`");
/// ```
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("{}", MissingCodec::message(*codec))]
pub struct MissingCodec {
    /// The requested codec.
    pub codec: Codec,
}

impl MissingCodec {
    fn message(codec: Codec) -> String {
        let is_only_decoded = matches!(codec, Codec::Adc | Codec::Bzip2 | Codec::Lzfse | Codec::Xz);
        match codec.check_available() {
            Ok(()) if is_only_decoded => format!("there is no encoder for {codec}"),
            _ => format!("this build has no {codec} codec; enable the feature `{}`", codec.feature()),
        }
    }
}

#[cfg(test)]
mod tests;
