//! Unpacking `.gz` files (RFC 1952), with the crate's own inflater.

use diskimage::codec::{Codec, Decoder};

/// Unpacks a file of one member.
pub fn unpack(gz: &[u8]) -> Vec<u8> {
    assert_eq!(gz[..3], [0x1f, 0x8b, 8], "not a gzip file");
    let flags = gz[3];
    let mut at = 10;
    if flags & 4 != 0 {
        at += 2 + usize::from(u16::from_le_bytes([gz[at], gz[at + 1]]));
    }
    // Name and comment, each up to a zero byte.
    for flag in [8, 16] {
        if flags & flag != 0 {
            at += gz[at..].iter().position(|&byte| byte == 0).unwrap() + 1;
        }
    }
    if flags & 2 != 0 {
        at += 2;
    }
    let (body, trailer) = gz.split_at(gz.len() - 8);
    let mut out = vec![0; u32::from_le_bytes(trailer[4..].try_into().unwrap()) as usize];
    let used = Decoder::new().decode(Codec::Deflate, &body[at..], &mut out).unwrap();
    assert_eq!(at + used, body.len(), "bytes past the end of the gzip stream");
    assert_eq!(crc32fast::hash(&out).to_le_bytes(), trailer[..4], "the check sum");
    out
}
