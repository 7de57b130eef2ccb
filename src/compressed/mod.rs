//! Compressed files: gzip, xz, bzip2 and zstd, detected by their content.
//!
//! A compressed file is a sequence of parts that are decoded one after the other: members of gzip, streams of xz and bzip2, frames of
//! zstd. [`decoder`] decodes all of them and verifies their checksums; it reports the end only after the last one.
//!
//! | | joined | after the end | checksums |
//! |---|---|---|---|
//! | gzip (RFC 1952) | members | zeros | CRC-32, length |
//! | xz (The .xz File Format 1.2.1) | streams, with padding | zeros | CRC-32, CRC-64 or SHA-256 of each block; CRC-32 of all metadata |
//! | bzip2 | streams | zeros | CRC-32 of each block and stream |
//! | zstd (RFC 8878) | frames, skippable ones | zeros | XXH64 of each frame, where stored |
//!
//! Data of any other kind after the end is an error: it is the rest of a damaged file, or another file.

#[cfg(feature = "compressed")]
mod bzip2;
#[cfg(feature = "compressed")]
mod gzip;
#[cfg(feature = "compressed")]
mod index;
#[cfg(feature = "compressed")]
mod input;
#[cfg(feature = "compressed")]
mod meter;
#[cfg(feature = "compressed")]
mod open;
#[cfg(all(test, feature = "compressed"))]
pub(crate) mod tests;
#[cfg(feature = "compressed")]
mod units;
#[cfg(feature = "compressed")]
mod xz;
#[cfg(feature = "compressed")]
mod zstd;

use std::fmt;

#[cfg(feature = "compressed")]
pub(crate) use open::{OneStream, Sequential, open};

/// The format of a compressed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Xz,
    Bzip2,
    Zstd,
}

impl Compression {
    /// Detects the format by the first bytes of the file, of which the longest signature takes 10.
    pub fn of(head: &[u8]) -> Option<Compression> {
        match head {
            [0x1f, 0x8b, 8, ..] => Some(Compression::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Compression::Xz),
            // The level, then the magic of a block, or of the end of an empty file.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => Some(Compression::Bzip2),
            // A frame, or a skippable frame, which pzstd writes first.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Compression::Zstd),
            _ => None,
        }
    }

    /// The name for messages.
    pub const fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Xz => "xz",
            Compression::Bzip2 => "bzip2",
            Compression::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Decodes a whole compressed file, from the current position of `stream` to its end.
///
/// The errors of the reader are [`Error`](crate::error::Error)s inside of [`io::Error`](std::io::Error)s, with offsets in `stream`: corrupt
/// data, also data after the end that is not zeros; truncated data; and a limit. After an error each further read fails.
#[cfg(feature = "compressed")]
pub(crate) fn decoder(
    compression: Compression,
    stream: Box<dyn std::io::Read + Send>,
    limits: &crate::limits::Limits,
) -> Box<dyn std::io::Read + Send> {
    use meter::Meter;

    let input = input::Input::new(compression, stream, 0);
    match compression {
        Compression::Gzip => Box::new(Meter::new(gzip::Gzip::new(input), limits)),
        Compression::Xz => Box::new(Meter::new(xz::Xz::new(input, limits), limits)),
        Compression::Bzip2 => Box::new(Meter::new(bzip2::Bzip2::new(input), limits)),
        Compression::Zstd => Box::new(Meter::new(zstd::Zstd::new(input, limits), limits)),
    }
}
