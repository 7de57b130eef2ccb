//! Members of gzip that state their lengths (RFC 1952).
//!
//! A member says neither how long it is nor, before its end, how much data it has. The members that are written here have both in a
//! field of their header, which other programs skip, so that a file of them can be decoded in any order.

/// Header with a field of 8 bytes, and trailer.
pub(super) const OVERHEAD: usize = HEADER + 8;
/// Length of such a header in bytes.
pub(crate) const HEADER: usize = 24;
/// ID1, ID2, CM for DEFLATE, FLG with FEXTRA, no time; XFL 0, unknown OS, XLEN; the ID of the field, and its length.
const START: [u8; 16] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 12, 0, b'D', b'I', 8, 0];

/// The header of a member of `member_len` bytes with `data_len` bytes of data.
pub(super) fn header(member_len: u32, data_len: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let fields = START.into_iter().chain(member_len.to_le_bytes()).chain(data_len.to_le_bytes());
    header.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    header
}

/// The length of the member with this header in bytes, and that of its data; `None` for a header of another program.
#[cfg(feature = "compressed")]
pub(crate) fn lengths(header: &[u8; HEADER]) -> Option<(u64, u64)> {
    let (words, _) = header.strip_prefix(&START)?.as_chunks::<4>();
    let [member_len, data_len] = words else { return None };
    Some((u32::from_le_bytes(*member_len).into(), u32::from_le_bytes(*data_len).into()))
}
