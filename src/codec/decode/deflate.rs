//! DEFLATE streams, alone (RFC 1951) and with the header and checksum of zlib (RFC 1950).

use zlib_rs::adler32::adler32;

use super::inflate::{Inflated, Inflater, Stop};
use super::{Decode, DecodeError, Payload};
use crate::codec::{Codec, zlib};

pub(super) fn decoder() -> Box<dyn Decode> {
    Box::new(Inflater::new())
}

impl Decode for Inflater {
    fn decode(&mut self, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<Payload, DecodeError> {
        let want = out.len();
        let short = |got, ended| DecodeError::Short { codec, got, want, ended };
        let invalid = |fault: &str| DecodeError::invalid(codec, fault);
        match codec {
            Codec::Gzip => Err(invalid("a unit of an image is not a member of gzip")),
            Codec::Zlib => {
                let Some((header, rest)) = stored.split_first_chunk() else { return Err(short(0, false)) };
                verify_header(*header).map_err(invalid)?;
                let Inflated { taken, made, stop } = self.inflate(rest, out).map_err(invalid)?;
                if stop == Stop::Full {
                    return Err(DecodeError::Long { codec, want });
                }
                let checksum = rest.get(taken..).and_then(|rest| rest.first_chunk());
                let Some(checksum) = checksum.filter(|_| stop == Stop::End) else { return Err(short(made, false)) };
                let decoded = out.get(..made).unwrap_or_default();
                if adler32(zlib::ADLER32_OF_NOTHING, decoded) != u32::from_be_bytes(*checksum) {
                    return Err(invalid("incorrect data check"));
                }
                if made < want {
                    return Err(short(made, true));
                }
                Ok(Payload { codec, length: header.len() + taken + checksum.len(), whole: true })
            }
            _ => {
                let Inflated { taken, made, stop } = self.inflate(stored, out).map_err(invalid)?;
                if made < want {
                    return Err(short(made, stop == Stop::End));
                }
                Ok(Payload { codec, length: taken, whole: stop == Stop::End })
            }
        }
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

/// Verifies the header of a zlib stream (RFC 1950, section 2.2); the words are those of zlib.
fn verify_header(header: [u8; 2]) -> Result<(), &'static str> {
    let [cmf, flg] = header;
    if !u16::from_be_bytes(header).is_multiple_of(31) {
        return Err("incorrect header check");
    }
    if cmf & 0x0f != 8 {
        return Err("unknown compression method");
    }
    if cmf >> 4 > 7 {
        return Err("invalid window size");
    }
    if flg & 0x20 != 0 {
        return Err("need dictionary");
    }
    Ok(())
}
