//! The structures of an xz stream, as bytes (The .xz File Format, version 1.2.1). What reads them from a file is above.

pub(crate) mod check;
mod header;

pub(crate) use check::Check;
pub(crate) use header::BlockHeader;

use zlib_rs::crc32::crc32;

/// Length of the header and of the footer of a stream in bytes.
pub(crate) const STREAM_HEADER: u64 = 12;
pub(crate) const HEADER_MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
/// Alignment of blocks, of the index and of stream padding in bytes.
pub(crate) const ALIGNMENT: u64 = 4;

/// What is wrong with a header. Offsets are in bytes from its start.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It breaks a rule.
    Invalid { field: &'static str, reason: &'static str },
    /// A checksum is that of other bytes.
    Mismatch { field: &'static str, at: u64, stored: u32 },
    /// It is valid, and of a kind that is not decoded.
    Unsupported { feature: String, at: u64 },
}

/// Parses the header of a stream (section 2.1.1): the flags and the check.
pub(crate) fn stream_header(header: &[u8; STREAM_HEADER as usize]) -> Result<([u8; 2], Check), Fault> {
    let [magic @ .., f0, f1, c0, c1, c2, c3] = header;
    let stored = u32::from_le_bytes([*c0, *c1, *c2, *c3]);
    if *magic != HEADER_MAGIC {
        return Err(Fault::Invalid { field: "stream header", reason: "wrong magic" });
    }
    if crc32(0, &[*f0, *f1]) != stored {
        return Err(Fault::Mismatch { field: "CRC32 of the stream header", at: 8, stored });
    }
    let check = if *f0 == 0 { Check::from_id(*f1) } else { None };
    check.map(|check| ([*f0, *f1], check)).ok_or_else(|| {
        let feature = format!("stream flags {:#06x}", u16::from_be_bytes([*f0, *f1]));
        Fault::Unsupported { feature, at: 6 }
    })
}
