//! Decodes DEFLATE and zlib with the decoder of this crate, and with that of zlib-rs.

use diskimage::codec::{Codec, DecodeError, Decoder};
use zlib_rs::{Inflate, InflateFlush, Status};

/// The first byte is the wrapper, the next two are the length of the output; the others are the stream.
pub fn inflate(input: &[u8]) {
    let [wrapper, low, high, stream @ ..] = input else { return };
    let codec = if wrapper & 1 == 0 { Codec::Deflate } else { Codec::Zlib };
    compare(codec, stream, usize::from(u16::from_le_bytes([*low, *high])));
}

/// Decodes `stored` to `len` bytes with both decoders, which have to agree; returns the data, if they accept it.
pub fn compare(codec: Codec, stored: &[u8], len: usize) -> Option<Vec<u8>> {
    let (mut own, mut other) = (vec![0xAA; len], vec![0xAA; len]);
    let own_result = Decoder::new().decode(codec, stored, &mut own);
    let other_result = by_zlib(codec, stored, &mut other);
    match (&own_result, &other_result) {
        (Ok(own_taken), Ok((taken, ended))) => {
            assert!(own == other);
            // Of a stream that goes on, so much has to be taken that it can be decoded again.
            if *ended {
                assert_eq!(own_taken, taken);
            } else {
                assert_eq!(Decoder::new().decode(codec, &stored[..*own_taken], &mut other), Ok(*own_taken));
                assert!(own == other);
            }
        }
        (Err(own_error @ DecodeError::Short { got, .. }), Err(error @ DecodeError::Short { .. })) => {
            assert_eq!(own_error, error);
            assert!(own[..*got] == other[..*got]);
        }
        // Of what follows the data, one may look at more than the other.
        (Err(DecodeError::Invalid { .. }), Ok((_, false))) | (Ok(_), Err(DecodeError::Invalid { .. }))
            if codec == Codec::Deflate =>
        {
            assert!(own == other);
        }
        // What is wrong first in a stream that breaks two rules is not always the same.
        (Err(_), Err(_)) => {}
        _ => panic!("{own_result:?} and {other_result:?}"),
    }
    own_result.is_ok().then_some(own)
}

/// Decodes with zlib-rs, as [`Decoder::decode`] is defined; returns the bytes taken, and whether the stream ended.
fn by_zlib(codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<(usize, bool), DecodeError> {
    let want = out.len();
    let is_zlib = codec == Codec::Zlib;
    let mut inflate = Inflate::new(is_zlib, 15);
    let mut ended = step(&mut inflate, codec, stored, out)?;
    let got = inflate.total_out() as usize;
    if is_zlib && !ended && got == want {
        // A stream that continues yields one more byte; a truncated one does not.
        let rest = &stored[inflate.total_in() as usize..];
        let result = step(&mut inflate, codec, rest, &mut [0]);
        if inflate.total_out() > want as u64 {
            return Err(DecodeError::Long { codec, want });
        }
        ended = result?;
    }
    if got < want || (is_zlib && !ended) {
        return Err(DecodeError::Short { codec, got, want, ended });
    }
    Ok((inflate.total_in() as usize, ended))
}

/// Decodes as much of `stored` as fits in `out`, and returns whether the stream ended there.
fn step(inflate: &mut Inflate, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<bool, DecodeError> {
    match inflate.decompress(stored, out, InflateFlush::Finish) {
        Ok(status) => Ok(status == Status::StreamEnd),
        Err(error) => {
            let reason = inflate.error_message().unwrap_or(error.as_str()).to_owned();
            Err(DecodeError::Invalid { codec, reason })
        }
    }
}
