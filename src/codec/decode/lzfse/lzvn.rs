//! LZVN: bytes that begin with an opcode of literals, of a match, or of both.
//!
//! L is a number of literals, which follow the opcode; M is the length of a match; D is its distance.
//!
//! | opcode | L | M | D |
//! |---|---|---|---|
//! | `LLMMMDDD` + 1 byte | L | M + 3 | DDD and the byte, big-endian; DDD is below 6 |
//! | `LLMMM110` | L | M + 3 | as before |
//! | `LLMMM111` + 2 bytes | L | M + 3 | the bytes |
//! | `101LLMMM` + 2 bytes | L | MMM, and the lowest two bits of the bytes, + 3 | the other 14 bits |
//! | `1110LLLL` | L | 0 | |
//! | `11100000` + 1 byte | the byte + 16 | 0 | |
//! | `1111MMMM` | 0 | M | as before |
//! | `11110000` + 1 byte | 0 | the byte + 16 | as before |
//! | `00001110`, `00010110` | 0 | 0 | |
//! | `00000110` + 7 bytes | the end | | |
//!
//! The other opcodes are invalid: `0111xxxx`, `1101xxxx`, and `00xxx110`.

use crate::codec::decode::lz::{Fault, Input, Output};

/// Decodes the block whose header has been read up to the number of bytes.
pub(super) fn block(input: &mut Input<'_>, output: &mut Output<'_>) -> Result<(), Fault> {
    let len = input.u32()? as usize;
    let mut payload = Input(input.take(len)?);
    let mut distance = 0;
    loop {
        let opcode = payload.byte()?;
        let bits = usize::from(opcode);
        let (literals, len) = match opcode {
            0x06 => return payload.take(7).map(drop),
            0x0e | 0x16 => continue,
            0x70..=0x7f | 0xd0..=0xdf => return Err(UNDEFINED),
            0xa0..=0xbf => {
                let low = usize::from(u16::from_le_bytes(payload.array()?));
                distance = low >> 2;
                (bits >> 3 & 3, ((bits & 7) << 2 | low & 3) + 3)
            }
            0xe0 => (usize::from(payload.byte()?) + 16, 0),
            0xe1..=0xef => (bits & 15, 0),
            0xf0 => (0, usize::from(payload.byte()?) + 16),
            0xf1..=0xff => (0, bits & 15),
            _ => {
                match opcode & 7 {
                    6 if opcode < 0x40 => return Err(UNDEFINED),
                    6 => {}
                    7 => distance = usize::from(u16::from_le_bytes(payload.array()?)),
                    high => distance = usize::from(high) << 8 | usize::from(payload.byte()?),
                }
                (bits >> 6, (bits >> 3 & 7) + 3)
            }
        };
        output.literals(payload.take(literals)?)?;
        if len > 0 {
            output.copy(distance, len)?;
        }
    }
}

const UNDEFINED: Fault = Fault::Invalid("undefined opcode");
