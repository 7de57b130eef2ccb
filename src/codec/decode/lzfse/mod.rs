//! LZFSE: blocks of literals and matches, coded by finite state entropy, or in the simpler way of LZVN.
//!
//! | magic | block |
//! |---|---|
//! | `bvx-` | the number of bytes; the bytes |
//! | `bvxn` | the number of bytes, that of the payload; the payload, in LZVN |
//! | `bvx2` | the number of bytes, packed fields, compressed frequencies; literals and matches |
//! | `bvx1` | the same with frequencies that are not compressed; the encoder keeps it in memory only, and it is refused |
//! | `bvx$` | the end |
//!
//! Numbers are little-endian. There is no checksum. The source is Apple's reference implementation, whose `lzfse_internal.h` describes the blocks.
//!
//! The decoder is our own: it has no `unsafe` code, writes into the unit only, and a crate that decodes to a vector of any length would
//! have to be told where to stop.

mod fse;
mod lzvn;

use super::lz::{Fault, Input, Output};
use super::{Decode, DecodeError, Payload};
use crate::codec::Codec;

pub(super) struct Lzfse {
    fse: fse::Fse,
}

impl Lzfse {
    pub fn new() -> Self {
        Lzfse { fse: fse::Fse::new() }
    }

    /// Decodes blocks up to the end of the stream.
    fn blocks(&mut self, input: &mut Input<'_>, output: &mut Output<'_>) -> Result<(), Fault> {
        loop {
            let magic = input.array()?;
            if magic == *b"bvx$" {
                return Ok(());
            }
            let len = input.u32()? as usize;
            let end = output.got.checked_add(len).ok_or(Fault::Long)?;
            let bytes = output.bytes.get_mut(..end).ok_or(Fault::Long)?;
            let mut block = Output { bytes, got: output.got };
            let result = match &magic {
                b"bvx-" => input.take(len).and_then(|stored| block.literals(stored)),
                b"bvxn" => lzvn::block(input, &mut block),
                b"bvx2" => self.fse.block(input, &mut block),
                b"bvx1" => Err(Fault::Invalid("a block whose frequencies are not compressed")),
                _ => Err(Fault::Invalid("unknown block")),
            };
            output.got = block.got;
            match result {
                Ok(()) if output.got == end => {}
                Ok(()) | Err(Fault::Long) => return Err(Fault::Invalid("a block has another length than it states")),
                Err(fault) => return Err(fault),
            }
        }
    }
}

impl Decode for Lzfse {
    fn decode(&mut self, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<Payload, DecodeError> {
        let want = out.len();
        let mut input = Input(stored);
        let mut output = Output { bytes: out, got: 0 };
        match self.blocks(&mut input, &mut output) {
            Ok(()) if output.got == want => Ok(Payload { codec, length: stored.len() - input.0.len(), whole: true }),
            Ok(()) => Err(DecodeError::Short { codec, got: output.got, want, ended: true }),
            Err(fault) => Err(fault.error(codec, output.got, want)),
        }
    }
}
