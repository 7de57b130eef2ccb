//! Zstandard frames (RFC 8878).

use structured_zstd::decoding::errors::FrameDecoderError;
use structured_zstd::decoding::{
    ContentChecksum, FrameDecoder, FrameSizeError, find_frame_compressed_size, frame_header_input_needed,
};

use super::{Decode, DecodeError, Payload};
use crate::codec::Codec;

pub(super) fn decoder() -> Box<dyn Decode> {
    let mut decoder = FrameDecoder::new();
    decoder.set_content_checksum(ContentChecksum::Verify);
    Box::new(decoder)
}

impl Decode for FrameDecoder {
    fn decode(&mut self, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<Payload, DecodeError> {
        let want = out.len();
        let (mut taken, mut got) = (0, 0);
        while got < want {
            let short = DecodeError::Short { codec, got, want, ended: false };
            // The decoder would take the bytes after the last frame for one more, so it is given one frame at a time.
            let rest = stored.get(taken..).unwrap_or_default();
            let frame = first_frame(rest)?.ok_or(short)?;
            let room = out.get_mut(got..).unwrap_or_default();
            got += self.decode_all(frame, room).map_err(|error| match error {
                FrameDecoderError::TargetTooSmall => DecodeError::Long { codec, want },
                error => DecodeError::invalid(codec, error),
            })?;
            taken += frame.len();
        }
        Ok(Payload { codec, length: taken, whole: true })
    }
}

/// The frame that `bytes` start with (section 3.1), skippable or not; `None` when they end within it.
fn first_frame(bytes: &[u8]) -> Result<Option<&[u8]>, DecodeError> {
    match frame_header_input_needed(bytes, false) {
        Ok(header) if header <= bytes.len() => {}
        Ok(_) => return Ok(None),
        Err(error) => return Err(DecodeError::invalid(Codec::Zstd, error)),
    }
    match find_frame_compressed_size(bytes) {
        Ok(length) => Ok(bytes.get(..length)),
        Err(FrameSizeError::Truncated) => Ok(None),
        Err(FrameSizeError::Header(error)) => Err(DecodeError::invalid(Codec::Zstd, error)),
        Err(FrameSizeError::ReservedBlock) => Err(DecodeError::invalid(Codec::Zstd, "reserved block type")),
        Err(FrameSizeError::OversizedBlock) => {
            Err(DecodeError::invalid(Codec::Zstd, "block larger than Block_Maximum_Size"))
        }
    }
}
