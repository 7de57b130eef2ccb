//! What RFC 1950 and RFC 1951 state about streams as a whole.

/// Base-2 logarithm of the largest window of DEFLATE (RFC 1951, section 2).
pub(super) const MAX_WINDOW_BITS: u8 = 15;

/// Header of a zlib stream with the largest window and of unknown level (RFC 1950, section 2.2), as most have it.
#[cfg(feature = "deflate")]
pub(super) const HEADER: [u8; 2] = [0x78, 0x9c];

/// Header of a zlib stream (RFC 1950, section 2.2) for a window of 2^`window_bits` bytes, 8 to 15, with the FLEVEL that zlib has for `level`.
#[cfg(all(feature = "deflate", feature = "write"))]
pub(super) fn header(level: i32, window_bits: u8) -> [u8; 2] {
    let cmf = (window_bits.saturating_sub(8) & 7) << 4 | 8;
    let flevel = match level {
        ..=1 => 0,
        2..=5 => 1,
        6 => 2,
        7.. => 3,
    };
    let flg = flevel << 6;
    // FCHECK makes the header a multiple of 31.
    let rest = (u16::from_be_bytes([cmf, flg]) % 31) as u8;
    [cmf, flg + (31 - rest) % 31]
}

/// Bytes of the header and the checksum of zlib.
pub(super) const OVERHEAD: usize = 6;

/// The most bytes in a stored block (RFC 1951, section 3.2.4).
pub(super) const MAX_STORED_BLOCK: usize = 0xffff;

/// The Adler-32 of no bytes (RFC 1950, section 2.2).
#[cfg(feature = "deflate")]
pub(super) const ADLER32_OF_NOTHING: u32 = 1;

/// Length of a DEFLATE stream of stored blocks (RFC 1951, section 3.2.4) for `len` bytes.
pub(super) fn stored_len(len: usize) -> usize {
    len + len.div_ceil(MAX_STORED_BLOCK).max(1) * 5
}

/// Returns whether a payload with these first bytes can be zlib (RFC 1950, section 2.2): CM and CINFO say DEFLATE with a
/// valid window, FDICT is clear, and FCHECK is right.
///
/// For formats whose writers disagree about the wrapper. A DEFLATE stream with these bytes would start with a stored block
/// that is not the last, with bits set in the padding, which no encoder writes.
///
/// ```
/// use diskimage::codec::has_zlib_header;
///
/// assert!(has_zlib_header([0x78, 0x9c]));
/// assert!(!has_zlib_header([0xed, 0xc1]));
/// ```
pub fn has_zlib_header(start: [u8; 2]) -> bool {
    let [cmf, flg] = start;
    cmf & 0x0f == 8 && cmf >> 4 <= 7 && flg & 0x20 == 0 && u16::from_be_bytes(start).is_multiple_of(31)
}
