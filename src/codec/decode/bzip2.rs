//! One stream of bzip2. The decoder verifies the checksum of each block and of the stream.

use bzip2::{Decompress, Status};

use super::{Decode, DecodeError, Payload};
use crate::codec::Codec;

pub(super) struct Bzip2;

impl Decode for Bzip2 {
    fn decode(&mut self, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<Payload, DecodeError> {
        let want = out.len();
        let mut stream = Decompress::new(false);
        let position = |stream: &Decompress| {
            let (taken, got) = (usize::try_from(stream.total_in()), usize::try_from(stream.total_out()));
            (taken.unwrap_or(usize::MAX), got.unwrap_or(usize::MAX))
        };
        // A stream that continues yields one more byte; one that ends has its checksums verified meanwhile.
        let mut spare = [0];
        loop {
            let (taken, got) = position(&stream);
            let rest = stored.get(taken..).unwrap_or_default();
            let room = out.get_mut(got..).filter(|room| !room.is_empty()).unwrap_or(&mut spare);
            let status = stream.decompress(rest, room);
            let (length, now) = position(&stream);
            match status {
                _ if now > want => return Err(DecodeError::Long { codec, want }),
                Ok(Status::StreamEnd) if now == want => return Ok(Payload { codec, length, whole: true }),
                Ok(Status::StreamEnd) => return Err(DecodeError::Short { codec, got: now, want, ended: true }),
                Ok(Status::MemNeeded) => return Err(DecodeError::invalid(codec, "out of memory")),
                Ok(_) if (length, now) == (taken, got) => {
                    return Err(DecodeError::Short { codec, got, want, ended: false });
                }
                Ok(_) => {}
                Err(error) => return Err(DecodeError::invalid(codec, error)),
            }
        }
    }
}
