//! bzip2: one or more streams. The decoder verifies the checksum of each block and of each stream.

use std::io;

use bzip2::{Decompress, Status};

use super::Compression;
use super::input::Input;
use super::meter::{Decode, EmptyParts};

pub(super) struct Bzip2 {
    input: Input,
    /// The decoder of the current stream; `None` between streams.
    stream: Option<Decompress>,
    started: bool,
    ended: bool,
    empty: EmptyParts,
}

impl Bzip2 {
    pub fn new(input: Input) -> Bzip2 {
        Bzip2 { input, stream: None, started: false, ended: false, empty: EmptyParts::default() }
    }

    /// Opens the next stream, or finds the end of the file.
    fn next_stream(&mut self) -> io::Result<()> {
        if !self.started || Compression::of(self.input.peek(10)?) == Some(Compression::Bzip2) {
            self.started = true;
            self.stream = Some(Decompress::new(false));
        } else {
            self.input.only_zeros_follow()?;
            self.ended = true;
        }
        Ok(())
    }
}

impl Decode for Bzip2 {
    fn decode(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while !self.ended {
            let Some(stream) = &mut self.stream else {
                self.next_stream()?;
                continue;
            };
            let (taken, made) = (stream.total_in(), stream.total_out());
            let data = self.input.data()?;
            let is_last = data.is_empty();
            let result = stream.decompress(data, buf);
            let taken = stream.total_in().wrapping_sub(taken) as usize;
            let made = stream.total_out().wrapping_sub(made) as usize;
            let total = stream.total_out();
            self.input.consume(taken);
            match result {
                Ok(Status::StreamEnd) => {
                    self.stream = None;
                    self.empty.note(total, &self.input)?;
                }
                Ok(Status::MemNeeded) => return Err(io::ErrorKind::OutOfMemory.into()),
                Ok(_) => {}
                Err(error) => return Err(self.input.invalid(error.to_string())),
            }
            if made > 0 {
                return Ok(made);
            }
            if is_last && self.stream.is_some() {
                return Err(self.input.truncated());
            }
        }
        Ok(0)
    }

    fn input(&self) -> &Input {
        &self.input
    }
}
