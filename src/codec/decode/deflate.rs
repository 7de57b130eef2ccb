//! DEFLATE streams, alone (RFC 1951) and with the header and checksum of zlib (RFC 1950).

use zlib_rs::adler32::adler32;
use zlib_rs::{Inflate, InflateFlush, Status};

use super::{Decode, DecodeError, Payload};
use crate::codec::{Codec, zlib};

pub(super) fn decoder() -> Box<dyn Decode> {
    Box::new(Inflate::new(false, zlib::MAX_WINDOW_BITS))
}

impl Decode for Inflate {
    fn decode(&mut self, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<Payload, DecodeError> {
        if codec == Codec::Gzip {
            return Err(DecodeError::invalid(codec, "a unit of an image is not a member of gzip"));
        }
        let zlib = codec == Codec::Zlib;
        self.reset(zlib);
        let mut ended = inflate(self, codec, stored, out)?;
        let want = out.len();
        let got = usize::try_from(self.total_out()).unwrap_or(want);
        if zlib && !ended && got == want {
            // A stream that continues yields one more byte; a truncated one does not.
            let taken = usize::try_from(self.total_in()).unwrap_or(stored.len());
            let result = inflate(self, codec, stored.get(taken..).unwrap_or_default(), &mut [0]);
            if self.total_out() > want as u64 {
                return Err(DecodeError::Long { codec, want });
            }
            ended = result?;
        }
        if got < want || (zlib && !ended) {
            return Err(DecodeError::Short { codec, got, want, ended });
        }
        let length = usize::try_from(self.total_in()).unwrap_or(stored.len());
        Ok(Payload { codec, length, whole: ended })
    }

    fn rewrap(&self, payload: &[u8], to: Codec, decoded: &[u8], out: &mut Vec<u8>) -> bool {
        match to {
            Codec::Zlib => {
                out.extend_from_slice(&zlib::HEADER);
                out.extend_from_slice(payload);
                out.extend_from_slice(&adler32(zlib::ADLER32_OF_NOTHING, decoded).to_be_bytes());
                true
            }
            Codec::Deflate => {
                let deflate = payload.get(zlib::HEADER.len()..).and_then(|rest| rest.split_last_chunk::<4>());
                let Some((deflate, _adler32)) = deflate else { return false };
                out.extend_from_slice(deflate);
                true
            }
            _ => false,
        }
    }
}

/// Decodes as much of `stored` as fits in `out`, and returns whether the stream ended there.
fn inflate(inflate: &mut Inflate, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<bool, DecodeError> {
    match inflate.decompress(stored, out, InflateFlush::Finish) {
        Ok(status) => Ok(status == Status::StreamEnd),
        Err(error) => Err(DecodeError::invalid(codec, inflate.error_message().unwrap_or(error.as_str()))),
    }
}
