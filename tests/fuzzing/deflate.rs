//! Encodes with DEFLATE, and decodes with two decoders.

use diskimage::codec::{Codec, Decoder, Encoder, Encoding};

/// The first two bytes are the level and the window; the others are repeated in part, so that there is something to find.
pub fn deflate(input: &[u8]) {
    let [level, window_bits, data @ ..] = input else { return };
    let codec = if level & 0x80 == 0 { Codec::Deflate } else { Codec::Zlib };
    let encoding = Encoding { level: Some(level % 10), window_bits: 9 + window_bits % 7, ..Encoding::new(codec) };
    let copies = usize::from(window_bits / 7);
    let unit = [data, &data[data.len() / 2..].repeat(copies), data].concat();

    let mut encoder = Encoder::new(&encoding).unwrap();
    let stream = encoder.encode(&unit, usize::MAX).unwrap().to_vec();
    assert!(stream.len() <= encoding.max_len(unit.len()));
    let mut decoded = vec![0; unit.len()];
    let taken = Decoder::new().decode(codec, &stream, &mut decoded).unwrap();
    assert!(decoded == unit && (taken == stream.len() || unit.is_empty()));
    let decoded = match codec {
        Codec::Zlib => miniz_oxide::inflate::decompress_to_vec_zlib(&stream),
        _ => miniz_oxide::inflate::decompress_to_vec(&stream),
    };
    assert!(decoded.is_ok_and(|decoded| decoded == unit));
    // The encoder keeps nothing of a unit.
    assert!(encoder.encode(&unit, usize::MAX) == Some(&stream[..]));
}
