//! Apple Data Compression.
//!
//! A sequence of literals and matches, without a header, a checksum or an end. The first byte of each tells its kind:
//!
//! | first byte | meaning | length | distance |
//! |---|---|---|---|
//! | `1nnnnnnn` | literals, which follow | n + 1 | |
//! | `01nnnnnn` | match, two bytes follow | n + 4 | the bytes, big-endian, + 1 |
//! | `00nnnndd` | match, one byte follows | n + 3 | d and the byte, big-endian, + 1 |
//!
//! No specification exists. 7-Zip, dmg2img and libmodi, and so Apple's images, agree on this.

use super::lz::{Fault, Input, Output};
use super::{Decode, DecodeError, Payload};
use crate::codec::Codec;

pub(super) struct Adc;

impl Decode for Adc {
    fn decode(&mut self, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<Payload, DecodeError> {
        let want = out.len();
        let mut input = Input(stored);
        let mut output = Output { bytes: out, got: 0 };
        while output.got < want {
            if let Err(fault) = step(&mut input, &mut output) {
                return Err(fault.error(codec, output.got, want));
            }
        }
        Ok(Payload { codec, length: stored.len() - input.0.len(), whole: true })
    }
}

/// Decodes the next literals or the next match.
fn step(input: &mut Input<'_>, output: &mut Output<'_>) -> Result<(), Fault> {
    let first = usize::from(input.byte()?);
    match first >> 6 {
        0 => {
            let low = usize::from(input.byte()?);
            output.copy(((first & 3) << 8 | low) + 1, (first >> 2) + 3)
        }
        1 => {
            let distance = usize::from(u16::from_be_bytes(input.array()?));
            output.copy(distance + 1, (first & 0x3f) + 4)
        }
        _ => output.literals(input.take((first & 0x7f) + 1)?),
    }
}
