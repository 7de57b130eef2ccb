//! Encoding.

#[cfg(feature = "deflate")]
mod deflate;
#[cfg(feature = "deflate")]
mod gzip;
#[cfg(feature = "zstd")]
pub(super) mod zstd;

use std::fmt;

use super::{Encoding, MissingCodec};

/// Encodes units as payloads; keeps its tables from one unit to the next.
///
/// Use one per thread, created by that thread from an [`Encoding`]: the tables of the zstd encoder
/// cannot be sent to another. The same data and `Encoding` always give the same payload, whatever
/// was encoded before.
///
/// ```
/// use diskimage::codec::{Codec, Encoder, Encoding};
///
/// let unit = [7; 65536];
/// let mut encoder = Encoder::new(&Encoding::new(Codec::Zlib))?;
/// assert!(encoder.encode(&unit, unit.len()).is_some_and(|payload| payload.len() < 200));
/// # Ok::<(), diskimage::codec::MissingCodec>(())
/// ```
pub struct Encoder {
    encoder: Box<dyn Encode>,
    payload: Vec<u8>,
}

/// An encoder with the settings of one [`Encoding`].
trait Encode {
    /// Writes the payload of `data` at the beginning of `payload`, and returns its length; `None` if that fails.
    fn encode(&mut self, data: &[u8], payload: &mut Vec<u8>) -> Option<usize>;
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Encoder {
    /// An encoder with the settings of `encoding`.
    ///
    /// # Errors
    /// [`MissingCodec`] if this build does not have the codec, or it is only decoded.
    pub fn new(encoding: &Encoding) -> Result<Self, MissingCodec> {
        Ok(Encoder { encoder: encoder_of(encoding)?, payload: Vec::new() })
    }

    /// Encodes `data` as one DEFLATE stream, zlib stream or zstd frame, and returns it if it is
    /// shorter than `limit` bytes; `None` means that `data` is better stored uncompressed. Without a
    /// limit, `usize::MAX`, there always is a payload, at most [`Encoding::max_len`] bytes long.
    ///
    /// A frame states its content size (RFC 8878, section 3.1.1.1), and has a checksum if [`Encoding::checksum`] asks for it.
    pub fn encode(&mut self, data: &[u8], limit: usize) -> Option<&[u8]> {
        let length = self.encoder.encode(data, &mut self.payload)?;
        self.payload.get(..length).filter(|payload| payload.len() < limit)
    }
}

fn encoder_of(encoding: &Encoding) -> Result<Box<dyn Encode>, MissingCodec> {
    match encoding.codec {
        #[cfg(feature = "deflate")]
        super::Codec::Deflate | super::Codec::Zlib => Ok(deflate::encoder(encoding)),
        #[cfg(feature = "deflate")]
        super::Codec::Gzip => Ok(gzip::encoder(encoding)),
        #[cfg(feature = "zstd")]
        super::Codec::Zstd => Ok(zstd::encoder(encoding)),
        codec => Err(MissingCodec { codec }),
    }
}

/// The level to encode with, within the levels of the codec.
#[cfg(any(feature = "deflate", feature = "zstd"))]
fn level(encoding: &Encoding) -> i32 {
    let levels = Encoding::levels(encoding.codec);
    let level = encoding.level.unwrap_or(Encoding::default_level(encoding.codec));
    i32::from(level.clamp(*levels.start(), *levels.end()))
}
