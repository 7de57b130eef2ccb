//! zstd: one or more frames, and skippable frames (RFC 8878, section 3.1).

use std::io::{self, Read};

use structured_zstd::decoding::{BlockDecodingStrategy, ContentChecksum, FrameDecoder, read_frame_header_info};

use super::Compression;
use super::input::Input;
use super::meter::{Decode, EmptyParts};
use crate::limits::Limits;

/// Length in bytes of the longest header of a frame (section 3.1.1.1).
const MAX_HEADER: usize = 18;
/// Bytes decoded at once, unless the window makes it more.
const STEP: usize = 256 << 10;
/// Windows that the format allows in bytes, at most (section 3.1.1.1.2).
const MAX_WINDOW: u64 = 1 << 31;

pub(super) struct Zstd {
    input: Input,
    decoder: FrameDecoder,
    state: State,
    /// Bytes of the frame that were decoded.
    len: u64,
    max_window: u64,
    empty: EmptyParts,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first frame.
    Start,
    Frame,
    Between,
    Ended,
}

impl Zstd {
    pub fn new(input: Input, limits: &Limits) -> Zstd {
        let max_window = limits.window.clamp(1 << 10, MAX_WINDOW);
        let mut decoder = FrameDecoder::new();
        decoder.set_content_checksum(ContentChecksum::Verify);
        // The window was checked against the limit before; if this one cannot be set, the decoder's own one holds.
        let _ = decoder.set_max_window_size(max_window);
        Zstd { input, decoder, state: State::Start, len: 0, max_window, empty: EmptyParts::default() }
    }

    /// Opens the next frame or moves past a skippable one; finds the end of the file.
    fn next_frame(&mut self) -> io::Result<()> {
        let at = self.input.at();
        let head = self.input.peek(MAX_HEADER)?;
        match head {
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                self.input.consume(4);
                let len = u32::from_le_bytes(self.input.array()?);
                self.input.skip(len.into())?;
                self.state = State::Between;
                self.empty.note(0, &self.input)
            }
            _ if self.state == State::Between && Compression::of(head).is_none() => {
                self.input.only_zeros_follow()?;
                self.state = State::Ended;
                Ok(())
            }
            _ => {
                match read_frame_header_info(head, false) {
                    Ok(info) if info.dictionary_id.is_some_and(|id| id != 0) => {
                        return Err(self.input.unsupported("dictionaries", at));
                    }
                    Ok(info) if info.window_size > self.max_window => {
                        return Err(self.input.limit("window size", at, info.window_size, self.max_window));
                    }
                    Ok(_) => {}
                    Err(_) if head.len() < MAX_HEADER => {
                        let rest = head.len();
                        self.input.consume(rest);
                        return Err(self.input.truncated());
                    }
                    Err(error) => return Err(self.input.invalid(error.to_string())),
                }
                if let Err(error) = self.decoder.reset(&mut self.input) {
                    return Err(self.input.failure(error.to_string()));
                }
                (self.state, self.len) = (State::Frame, 0);
                Ok(())
            }
        }
    }

    /// Decodes data of the frame; 0 at its end, with its checksum verified.
    fn decode_frame(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.decoder.read(buf) {
                Ok(0) => {}
                Ok(len) => {
                    self.len += len as u64;
                    return Ok(len);
                }
                Err(error) => return Err(self.input.invalid(error.to_string())),
            }
            if self.decoder.is_finished() {
                let verified = self.decoder.verify_content_size().and_then(|()| self.decoder.verify_content_checksum());
                if let Err(error) = verified {
                    return Err(self.input.invalid(error.to_string()));
                }
                self.state = State::Between;
                self.empty.note(self.len, &self.input)?;
                return Ok(0);
            }
            let step = BlockDecodingStrategy::UptoBytes(STEP);
            if let Err(error) = self.decoder.decode_blocks(&mut self.input, step) {
                return Err(self.input.failure(error.to_string()));
            }
        }
    }
}

impl Decode for Zstd {
    fn decode(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.state {
                State::Start | State::Between => self.next_frame()?,
                State::Frame => match self.decode_frame(buf)? {
                    0 => {}
                    len => return Ok(len),
                },
                State::Ended => return Ok(0),
            }
        }
    }

    fn input(&self) -> &Input {
        &self.input
    }
}
