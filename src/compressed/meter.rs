//! Limits for what a decoder makes of its input.

use std::io::{self, Read};

use super::input::Input;
use crate::error::Error;
use crate::limits::{LimitName, Limits, RATIO_FROM};

/// The field of an error.
pub(super) const RATIO: &str = "ratio of decompressed to compressed size";
/// Parts without data in a row: empty members, skippable frames. No writer has more than one after another.
const MAX_EMPTY: u64 = 1 << 16;

/// A decoder of one format.
pub(super) trait Decode: Send {
    /// Decodes to the start of `buf`, which is not empty, and returns the number of bytes; 0 only at the end of the file, when all
    /// checksums have been verified.
    fn decode(&mut self, buf: &mut [u8]) -> io::Result<usize>;

    /// The compressed bytes.
    fn input(&self) -> &Input;
}

/// A decoder within its limits. After a failure each read fails, and after the end each read is empty.
pub(super) struct Meter<D> {
    decoder: D,
    out: u64,
    most: u64,
    ratio: u64,
    ended: bool,
    failed: bool,
}

impl<D: Decode> Meter<D> {
    pub fn new(decoder: D, limits: &Limits) -> Self {
        let (most, ratio) = (limits.decompressed, limits.decompression_ratio);
        Meter { decoder, out: 0, most, ratio, ended: false, failed: false }
    }

    fn decode(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.decoder.decode(buf)?;
        self.out += len as u64;
        let input = self.decoder.input();
        if self.out > self.most {
            return Err(input.limit(
                Some(LimitName::Decompressed),
                "decompressed size",
                input.at(),
                self.out,
                self.most,
            ));
        }
        let ratio = self.out / input.at().max(1);
        if self.out > RATIO_FROM && ratio > self.ratio {
            return Err(input.limit(Some(LimitName::DecompressionRatio), RATIO, input.at(), ratio, self.ratio));
        }
        self.ended = len == 0;
        Ok(len)
    }
}

impl<D: Decode> Read for Meter<D> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.failed {
            return Err(Error::Usage("the compressed file failed to decode before".into()).into());
        }
        if self.ended || buf.is_empty() {
            return Ok(0);
        }
        self.decode(buf).inspect_err(|_| self.failed = true)
    }
}

/// Counts parts without data, of which a stream without an end may consist.
#[derive(Default)]
pub(super) struct EmptyParts(u64);

impl EmptyParts {
    /// Notes the end of a part that has `len` bytes of data.
    pub fn note(&mut self, len: u64, input: &Input) -> io::Result<()> {
        self.0 = if len == 0 { self.0 + 1 } else { 0 };
        match self.0 > MAX_EMPTY {
            true => Err(input.limit(None, "number of consecutive parts without data", input.at(), self.0, MAX_EMPTY)),
            false => Ok(()),
        }
    }
}
