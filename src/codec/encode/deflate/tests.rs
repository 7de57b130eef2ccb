//! Each stream is decoded by three decoders: one that is written after the RFC alone, zlib-rs, and miniz_oxide.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::codec::{Codec, Decoder, Encoder};
use crate::testing::noise;

const LEVELS: std::ops::RangeInclusive<u8> = 1..=9;

/// What a stream consists of.
#[derive(Debug, Default)]
struct Stream {
    data: Vec<u8>,
    /// Blocks by type: stored, fixed, dynamic.
    blocks: [usize; 3],
    longest_distance: usize,
    longest_match: usize,
}

/// Reads bits as RFC 1951, section 3.1.1 has them.
struct Bits<'a>(&'a [u8], usize);

impl Bits<'_> {
    fn take(&mut self, count: usize) -> usize {
        let bit = |at: usize| usize::from(self.0[at / 8] >> (at % 8) & 1);
        let value = (0..count).map(|index| bit(self.1 + index) << index).sum();
        self.1 += count;
        value
    }

    /// The next symbol of a code: bit by bit, in order of length, then of symbol (section 3.2.2).
    fn symbol(&mut self, symbols: &[Vec<usize>]) -> usize {
        let (mut code, mut first) = (0, 0);
        for symbols in symbols {
            code = code << 1 | self.take(1);
            if code - first < symbols.len() {
                return symbols[code - first];
            }
            first = (first + symbols.len()) << 1;
        }
        panic!("no symbol has this code");
    }
}

/// The symbols of each length of code, from 1.
fn by_length(lengths: &[usize]) -> Vec<Vec<usize>> {
    (1..=15).map(|length| (0..lengths.len()).filter(|symbol| lengths[*symbol] == length).collect()).collect()
}

fn is_complete(lengths: &[usize]) -> bool {
    lengths.iter().filter(|length| **length > 0).map(|length| 1 << (15 - length)).sum::<usize>() == 1 << 15
}

/// Decodes a stream, which has to end with its last byte.
fn inflate(stream: &[u8]) -> Stream {
    let (mut bits, mut out) = (Bits(stream, 0), Stream::default());
    loop {
        let is_last = bits.take(1);
        let kind = bits.take(2);
        out.blocks[kind] += 1;
        match kind {
            0 => {
                bits.1 = bits.1.next_multiple_of(8);
                let (len, inverse) = (bits.take(16), bits.take(16));
                assert_eq!(len ^ inverse, 0xffff);
                let at = bits.1 / 8;
                out.data.extend(&stream[at..at + len]);
                bits.1 += len * 8;
            }
            1 => {
                let lengths: Vec<_> = (0..288)
                    .map(|symbol| [8, 9, 7, 8][[144, 256, 280].iter().filter(|end| symbol >= **end).count()])
                    .collect();
                symbols(&mut bits, &lengths, &[5; 32], &mut out);
            }
            _ => {
                let (literal_count, distance_count, count) = (bits.take(5) + 257, bits.take(5) + 1, bits.take(4) + 4);
                let mut precode = [0; 19];
                for symbol in [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15].into_iter().take(count)
                {
                    precode[symbol] = bits.take(3);
                }
                assert!(is_complete(&precode));
                let precode = by_length(&precode);
                let mut lengths = Vec::new();
                while lengths.len() < literal_count + distance_count {
                    match bits.symbol(&precode) {
                        16 => lengths.extend(vec![*lengths.last().unwrap(); 3 + bits.take(2)]),
                        17 => lengths.extend(vec![0; 3 + bits.take(3)]),
                        18 => lengths.extend(vec![0; 11 + bits.take(7)]),
                        length => lengths.push(length),
                    }
                }
                assert_eq!(lengths.len(), literal_count + distance_count);
                assert!(literal_count <= 286 && distance_count <= 30);
                let (literals, distances) = lengths.split_at(literal_count);
                assert!(is_complete(literals) && is_complete(distances));
                symbols(&mut bits, literals, distances, &mut out);
            }
        }
        if is_last == 1 {
            assert_eq!(bits.1.div_ceil(8), stream.len());
            return out;
        }
    }
}

fn symbols(bits: &mut Bits<'_>, literals: &[usize], distances: &[usize], out: &mut Stream) {
    let (literals, distances) = (by_length(literals), by_length(distances));
    loop {
        match bits.symbol(&literals) {
            literal @ 0..=255 => out.data.push(literal as u8),
            256 => return,
            symbol => {
                // The tables of section 3.2.5, as formulas.
                let length = match symbol - 257 {
                    rest @ 0..=7 => rest + 3,
                    28 => 258,
                    rest => ((4 + rest % 4) << (rest / 4 - 1)) + 3 + bits.take(rest / 4 - 1),
                };
                let distance = match bits.symbol(&distances) {
                    rest @ 0..=3 => rest + 1,
                    rest => ((2 + rest % 2) << (rest / 2 - 1)) + 1 + bits.take(rest / 2 - 1),
                };
                out.longest_distance = out.longest_distance.max(distance);
                out.longest_match = out.longest_match.max(length);
                for _ in 0..length {
                    out.data.push(out.data[out.data.len() - distance]);
                }
            }
        }
    }
}

fn encoding(level: u8, window_bits: u8) -> Encoding {
    Encoding { level: Some(level), window_bits, ..Encoding::new(Codec::Deflate) }
}

fn encode(level: u8, window_bits: u8, data: &[u8]) -> Vec<u8> {
    Encoder::new(&encoding(level, window_bits)).unwrap().encode(data, usize::MAX).unwrap().to_vec()
}

/// Encodes `data`, decodes it with the decoders of two crates, and returns the stream.
fn round_trip(level: u8, window_bits: u8, data: &[u8]) -> Vec<u8> {
    let stream = encode(level, window_bits, data);
    let what = || format!("level {level}, {window_bits} bits, {} bytes", data.len());
    assert!(stream.len() <= Encoding::new(Codec::Deflate).max_len(data.len()), "{}", what());
    let mut decoded = vec![0xAA; data.len()];
    // A decoder of no bytes need not read the stream.
    if !data.is_empty() {
        assert_eq!(Decoder::new().decode(Codec::Deflate, &stream, &mut decoded), Ok(stream.len()), "{}", what());
        assert!(decoded == data, "{}", what());
    }
    assert!(miniz_oxide::inflate::decompress_to_vec(&stream).is_ok_and(|decoded| decoded == data), "{}", what());
    stream
}

/// And with the one after the RFC, which is slow.
fn inspect(level: u8, window_bits: u8, data: &[u8]) -> Stream {
    let stream = inflate(&round_trip(level, window_bits, data));
    assert!(stream.data == data, "level {level}, {window_bits} bits, {} bytes", data.len());
    assert!(stream.longest_distance <= 1 << window_bits);
    stream
}

/// A sequence in which every word of `order` symbols of `count` occurs once: no match is longer (N. G. de Bruijn, 1946). Made of Lyndon words.
fn de_bruijn(count: u8, order: usize) -> Vec<u8> {
    let (mut out, mut word) = (Vec::new(), vec![0_u8]);
    while !word.is_empty() {
        if order.is_multiple_of(word.len()) {
            out.extend(&word);
        }
        word = word.iter().copied().cycle().take(order).collect();
        while word.last() == Some(&(count - 1)) {
            word.pop();
        }
        if let Some(last) = word.last_mut() {
            *last += 1;
        }
    }
    out
}

/// Symbols whose frequencies are Fibonacci numbers, which have the longest codes, in an order without matches.
fn fibonacci(symbols: u8) -> Vec<u8> {
    let mut pair = (1_usize, 1);
    let mut all = Vec::new();
    for symbol in 0..symbols {
        all.extend(std::iter::repeat_n(symbol, pair.0));
        pair = (pair.1, pair.0 + pair.1);
    }
    let mut random = crate::testing::Random::new(1);
    for at in (1..all.len()).rev() {
        all.swap(at, random.below(at as u64 + 1) as usize);
    }
    all
}

/// Copies of earlier bytes at all distances, with some noise.
fn mixture(len: usize, seed: u64) -> Vec<u8> {
    let mut random = crate::testing::Random::new(seed);
    let mut data = random.bytes(16);
    while data.len() < len {
        let (distance, length) = (1 + random.below(data.len() as u64) as usize, 1 + random.below(40) as usize);
        for _ in 0..length {
            data.push(data[data.len() - distance]);
        }
        let literals = random.below(6) as usize;
        data.extend(random.bytes(literals));
    }
    data.truncate(len);
    data
}

#[test]
fn every_short_length_comes_back_at_every_level() {
    for level in LEVELS {
        for len in (0..40).chain([255, 256, 257, 258, 259, 260, 261, 262, 515, 516, 517]) {
            for data in
                [vec![7; len], noise(len as u64, 1), mixture(len, 2), (0..len).map(|at| (at % 3) as u8).collect()]
            {
                inspect(level, 15, &data);
            }
        }
    }
}

#[test]
fn adversarial_units_come_back_at_every_level() {
    let units = [
        vec![0; 70_000],
        [vec![1; 40_000], vec![2; 30_000]].concat(),
        de_bruijn(2, 14),
        de_bruijn(10, 4),
        noise(20_000, 1).iter().map(|byte| byte & 1).collect(),
        fibonacci(20),
        noise(70_000, 2),
        noise(300, 3).repeat(100),
        mixture(80_000, 4),
    ];
    for level in LEVELS {
        for unit in &units {
            inspect(level, 15, unit);
        }
    }
}

#[test]
fn units_that_are_longer_than_the_ring_and_than_a_stretch_come_back() {
    for level in LEVELS {
        for len in
            [(64 << 10) - 1, (64 << 10) + 1, (96 << 10) + 2, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, 300_001]
        {
            round_trip(level, 15, &mixture(len, level.into()));
        }
    }
    for data in [mixture(2 << 20, 5), noise(2 << 20, 6), vec![0; 2 << 20]] {
        round_trip(5, 15, &data);
        round_trip(1, 12, &data);
    }
}

#[test]
fn matches_reach_the_end_of_the_window_and_not_beyond() {
    for (level, window_bits) in LEVELS.flat_map(|level| (9..=15).map(move |bits| (level, bits))) {
        let window = 1_usize << window_bits;
        for distance in [window - 1, window, window + 1] {
            // A text that occurs again at this distance, with noise between.
            let text = b"a text that is long enough to be found at any level, whatever is left out";
            let data = [&text[..], &noise((distance - text.len()) as u64, distance as u64), text, &[0; 20]].concat();
            let stream = inspect(level, window_bits, &data);
            let is_found = stream.longest_match >= text.len() / 2;
            assert_eq!(is_found, distance <= window, "level {level}, {window_bits} bits, distance {distance}");
        }
    }
}

#[test]
fn matches_reach_back_into_earlier_stretches() {
    // Noise with a period of nearly the largest window: only the first period cannot be found.
    let data = noise(32_000, 1).repeat(10);
    for level in LEVELS {
        let len = round_trip(level, 15, &data).len();
        assert!(len < 45_000, "level {level}: {len}");
    }
}

#[test]
fn each_type_of_block_is_written_where_it_is_shortest() {
    for level in LEVELS {
        assert_eq!(inspect(level, 15, b"").blocks, [0, 1, 0]);
        assert_eq!(inspect(level, 15, b"ab").blocks, [0, 1, 0]);
        assert_eq!(inspect(level, 15, &noise(1000, 1)).blocks, [1, 0, 0]);
        assert_eq!(inspect(level, 15, &noise(70_000, 1)).blocks, [2, 0, 0]);
        assert_eq!(
            inspect(level, 15, &noise(5000, 1).iter().map(|byte| byte & 63).collect::<Vec<_>>()).blocks,
            [0, 0, 1]
        );
    }
}

#[test]
fn blocks_end_where_the_statistics_change() {
    // Two alphabets without a common symbol: a code for both at once would take a bit more for each.
    let noise = noise(60_000, 1);
    let two: Vec<u8> = noise.iter().enumerate().map(|(at, byte)| byte & 0xfe | u8::from(at < 30_000)).collect();
    let one: Vec<u8> = noise.iter().map(|byte| byte & 0xfe).collect();
    for level in LEVELS {
        assert_eq!(inspect(level, 15, &one).blocks[2], 1, "level {level}");
        let blocks = inspect(level, 15, &two).blocks[2];
        assert!((2..=3).contains(&blocks), "level {level}: {blocks} blocks");
    }
}

#[test]
fn higher_levels_are_smaller() {
    let text = include_bytes!("tests.rs");
    let lens: Vec<_> = LEVELS.map(|level| round_trip(level, 15, text).len()).collect();
    assert!(lens.is_sorted_by(|a, b| a >= b) && lens[8] * 100 < lens[0] * 95, "{lens:?}");
}

#[test]
fn a_stream_does_not_depend_on_units_before() {
    for level in LEVELS {
        let mut encoder = Encoder::new(&encoding(level, 15)).unwrap();
        for (len, seed) in [(100_000, 1), (20_000, 2), (70_000, 1), (5, 3), (140_000, 4)] {
            let data = mixture(len, seed);
            assert!(
                encoder.encode(&data, usize::MAX).unwrap() == encode(level, 15, &data),
                "level {level}, {len} bytes"
            );
            encoder.encode(&noise(30_000, seed), usize::MAX);
        }
    }
}

#[test]
fn a_sample_that_misleads_is_corrected() {
    // Looks like noise wherever it is sampled, and is found to repeat.
    let data = noise(2048, 1).repeat(32);
    for level in LEVELS {
        assert!(round_trip(level, 15, &data).len() < 4000);
    }
}

/// Pieces of data: bytes to repeat, how often, and what is added to each.
fn any_unit() -> impl Strategy<Value = Vec<u8>> {
    let piece = (vec(any::<u8>(), 1..80), 1_usize..60, 0_u8..3);
    vec(piece, 0..12).prop_map(|pieces| {
        let bytes = |(bytes, count, step): (Vec<u8>, usize, u8)| -> Vec<u8> {
            (0..count)
                .flat_map(|turn| bytes.iter().map(move |byte| byte.wrapping_add(step * turn as u8)).collect::<Vec<_>>())
                .collect()
        };
        pieces.into_iter().flat_map(bytes).collect()
    })
}

proptest! {
    #[test]
    fn any_unit_comes_back(level in LEVELS, window_bits in 9_u8..=15, data in any_unit()) {
        inspect(level, window_bits, &data);
    }

    #[test]
    fn it_agrees_with_zlib_in_its_wrapper(level in LEVELS, window_bits in 9_u8..=15, data in vec(any::<u8>(), 0..300)) {
        let encoding = Encoding { codec: Codec::Zlib, ..encoding(level, window_bits) };
        let own = Encoder::new(&encoding).unwrap().encode(&data, usize::MAX).unwrap().to_vec();
        let config = zlib_rs::DeflateConfig { level: level.into(), window_bits: window_bits.into(), ..Default::default() };
        let mut other = vec![0; 1000];
        let mut deflate = zlib_rs::Deflate::new_with_config(config);
        deflate.compress(&data, &mut other, zlib_rs::DeflateFlush::Finish).unwrap();
        other.truncate(deflate.total_out() as usize);
        prop_assert_eq!(&own[..2], &other[..2]);
        prop_assert_eq!(own.last_chunk::<4>(), other.last_chunk::<4>());
        prop_assert_eq!(miniz_oxide::inflate::decompress_to_vec_zlib(&own).unwrap(), data);
    }
}
