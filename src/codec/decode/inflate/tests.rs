//! Streams of three encoders, damaged ones, and some made by hand, decoded in comparison with zlib-rs.

#[allow(dead_code, reason = "the fuzz target is for others")]
#[path = "../../../../tests/fuzzing/inflate.rs"]
mod twin;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use self::twin::compare;
use crate::codec::{Codec, Encoder, Encoding};

/// Who encodes.
#[derive(Clone, Copy, Debug)]
enum By {
    Own { level: u8, window_bits: u8 },
    Zlib { level: i32, window_bits: i32, strategy: zlib_rs::Strategy },
    Miniz { level: u8 },
}

fn encoder() -> impl Strategy<Value = By> {
    use zlib_rs::Strategy::*;
    let strategies = prop::sample::select(vec![Default, Filtered, HuffmanOnly, Rle, Fixed]);
    prop_oneof![
        (1_u8..=9, 9_u8..=15).prop_map(|(level, window_bits)| By::Own { level, window_bits }),
        (0..=9, 9..=15, strategies).prop_map(|(level, window_bits, strategy)| By::Zlib {
            level,
            window_bits,
            strategy
        }),
        (0_u8..=10).prop_map(|level| By::Miniz { level }),
    ]
}

fn encode(by: By, codec: Codec, data: &[u8]) -> Vec<u8> {
    match by {
        By::Own { level, window_bits } => {
            let encoding = Encoding { level: Some(level), window_bits, ..Encoding::new(codec) };
            Encoder::new(&encoding).unwrap().encode(data, usize::MAX).unwrap().to_vec()
        }
        By::Zlib { level, window_bits, strategy } => {
            let window_bits = if codec == Codec::Zlib { window_bits } else { -window_bits };
            let config = zlib_rs::DeflateConfig { level, window_bits, strategy, ..Default::default() };
            let mut deflate = zlib_rs::Deflate::new_with_config(config);
            let mut out = vec![0; data.len() * 2 + 1000];
            deflate.compress(data, &mut out, zlib_rs::DeflateFlush::Finish).unwrap();
            out.truncate(deflate.total_out() as usize);
            out
        }
        By::Miniz { level } if codec == Codec::Zlib => miniz_oxide::deflate::compress_to_vec_zlib(data, level),
        By::Miniz { level } => miniz_oxide::deflate::compress_to_vec(data, level),
    }
}

fn codec() -> impl Strategy<Value = Codec> {
    prop_oneof![Just(Codec::Deflate), Just(Codec::Zlib)]
}

/// Literals, runs, and copies from near and far.
fn data() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        vec(any::<u8>(), 1..200).prop_map(|bytes| (bytes, 1)),
        vec(0_u8..8, 1..2000).prop_map(|bytes| (bytes, 1)),
        (vec(any::<u8>(), 1..40), 1_usize..400),
    ];
    (vec(piece, 0..12), vec((any::<Index>(), 1_usize..600), 0..40)).prop_map(|(pieces, copies)| {
        let mut data: Vec<u8> = pieces.into_iter().flat_map(|(bytes, times)| bytes.repeat(times)).collect();
        for (from, len) in copies {
            if !data.is_empty() {
                let from = from.index(data.len());
                data.extend_from_within(from..data.len().min(from + len));
            }
        }
        data
    })
}

/// A block of the fixed codes (RFC 1951, section 3.2.6), with these literals and lengths, each with that many bits of `extra` after it: the distance of
/// a length and the extra bits of both, or bits of anything.
fn fixed_block(symbols: &[(u16, u8, u32)]) -> Vec<u8> {
    let (mut stream, mut bits, mut count) = (Vec::new(), 0b011_u64, 3);
    let mut put = |value: u64, width: u32| {
        bits |= value << count;
        count += width;
        while count >= 8 {
            stream.push(bits as u8);
            bits >>= 8;
            count -= 8;
        }
    };
    for (symbol, width, extra) in symbols {
        let (code, len) = match *symbol {
            symbol @ ..144 => (0x30 + symbol, 8),
            symbol @ ..256 => (0x190 + symbol - 144, 9),
            symbol @ ..280 => (symbol - 256, 7),
            symbol => (0xc0 + symbol - 280, 8),
        };
        put((code.reverse_bits() >> (16 - len)).into(), len);
        put(u64::from(*extra) & ((1 << width) - 1), (*width).into());
    }
    put(0, 7);
    stream
}

/// Two symbols have a code and no meaning.
#[test]
fn a_symbol_without_meaning_is_refused() {
    for symbol in [286, 287] {
        let symbols: Vec<_> = (0..100).map(|at| (if at == 10 { symbol } else { 97 }, 0, 0)).collect();
        for codec in [Codec::Deflate, Codec::Zlib] {
            let stream = [if codec == Codec::Zlib { &[0x78, 0x9c][..] } else { &[] }, &fixed_block(&symbols)].concat();
            assert_eq!(compare(codec, &stream, 99), None);
            assert_eq!(compare(codec, &stream, 400), None);
        }
    }
}

proptest! {
    #[test]
    fn symbols_of_the_fixed_codes(
        symbols in vec((prop_oneof![4 => 0_u16..256, 2 => 257_u16..280, 1 => 256_u16..288], 0_u8..19, any::<u32>()), 1..300),
        len in 0_usize..4000,
    ) {
        // Literals have no bits after them.
        let symbols: Vec<_> =
            symbols.into_iter().map(|(symbol, width, extra)| (symbol, if symbol < 256 { 0 } else { width }, extra)).collect();
        compare(Codec::Deflate, &fixed_block(&symbols), len);
    }

    #[test]
    fn a_stream_is_decoded_whole(by in encoder(), codec in codec(), data in data(), after in vec(any::<u8>(), 0..40)) {
        let stream = encode(by, codec, &data);
        let followed = [&stream[..], &after].concat();
        prop_assert!(compare(codec, &stream, data.len()).is_some_and(|decoded| decoded == data));
        prop_assert!(compare(codec, &followed, data.len()).is_some_and(|decoded| decoded == data));
    }

    #[test]
    fn a_stream_for_an_output_of_another_length(by in encoder(), codec in codec(), data in data(), len in any::<Index>()) {
        let stream = encode(by, codec, &data);
        let len = len.index(data.len() + 300);
        let decoded = compare(codec, &stream, len);
        prop_assert_eq!(decoded.is_some(), len == data.len() || (len < data.len() && codec == Codec::Deflate));
    }

    #[test]
    fn a_truncated_stream_is_refused(by in encoder(), codec in codec(), data in data(), end in any::<Index>()) {
        let stream = encode(by, codec, &data);
        // The end of the last block may be missing from complete data.
        let decoded = compare(codec, &stream[..end.index(stream.len())], data.len());
        prop_assert!(decoded.is_none_or(|decoded| codec == Codec::Deflate && decoded == data));
    }

    #[test]
    fn a_damaged_stream(
        by in encoder(), codec in codec(), data in data(), marks in vec((any::<Index>(), any::<u8>()), 1..4), more in 0_usize..500,
    ) {
        let mut stream = encode(by, codec, &data);
        for (at, value) in marks {
            let at = at.index(stream.len());
            stream[at] = value;
        }
        compare(codec, &stream, data.len() + more);
    }

    #[test]
    fn noise_as_a_stream(codec in codec(), kind in 0_u8..8, stream in vec(any::<u8>(), 1..400), len in 0_usize..2000) {
        compare(codec, &stream, len);
        // Of each type of block, the last one or not.
        let stream = [&[stream[0] & !7 | kind], &stream[1..]].concat();
        compare(Codec::Deflate, &stream, len);
    }
}
