//! Every level and size comes back, and damage is survived.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

const CODECS: [Codec; 2] = [Codec::Deflate, Codec::Zstd];

/// Bytes that no codec can shorten.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(step).collect()
}

/// Records with a counter, some noise and some text in each.
fn records(len: usize) -> Vec<u8> {
    let salt = noise(len / 4 + 8);
    let record = |(index, salt): (usize, &[u8])| {
        let mut record = format!("record {index:06}: ").into_bytes();
        record.extend_from_slice(salt);
        record
    };
    let mut bytes: Vec<u8> = salt.chunks(4).enumerate().flat_map(record).collect();
    bytes.truncate(len);
    bytes
}

fn encode(encoding: &Encoding, data: &[u8]) -> Vec<u8> {
    Encoder::new(encoding).encode(data, usize::MAX).unwrap().to_vec()
}

fn decode(codec: Codec, stored: &[u8], len: usize) -> Result<(Vec<u8>, usize), DecodeError> {
    let mut out = vec![0xAA; len];
    Decoder::new().decode(codec, stored, &mut out).map(|taken| (out, taken))
}

fn with_level(codec: Codec, level: u8) -> Encoding {
    Encoding { level: Some(level), ..Encoding::new(codec) }
}

/// A frame without content size or checksum.
fn zstd_frame_of(window: u8, blocks: &[(u32, u32, &[u8])]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, window];
    for (index, (kind, size, body)) in blocks.iter().enumerate() {
        let last = u32::from(index + 1 == blocks.len());
        frame.extend_from_slice(&(last | kind << 1 | size << 3).to_le_bytes()[..3]);
        frame.extend_from_slice(body);
    }
    frame
}

const RAW: u32 = 0;
const RLE: u32 = 1;
/// Window descriptors: 128 KiB and 2 GiB.
const WINDOW: u8 = 7 << 3;
const HUGE_WINDOW: u8 = 21 << 3;

fn skippable(len: u8) -> Vec<u8> {
    let mut frame = vec![0x50, 0x2a, 0x4d, 0x18, len, 0, 0, 0];
    frame.extend(noise(len.into()));
    frame
}

#[test]
fn every_level_and_size_comes_back_whole() {
    for codec in CODECS {
        for level in Encoding::levels(codec) {
            let mut encoder = Encoder::new(&with_level(codec, level));
            let mut decoder = Decoder::new();
            for len in [0, 1, 512, 4096, 65_535, 65_536, 300_000] {
                for data in [vec![0; len], vec![7; len], noise(len), records(len)] {
                    let payload = encoder.encode(&data, usize::MAX).unwrap();
                    let stored = [payload, &noise(600)].concat();
                    let mut out = vec![0xAA; len];
                    let taken = decoder.decode(codec, &stored, &mut out).unwrap();
                    assert!(out == data, "{codec} {level}, {len} bytes");
                    if len > 0 {
                        assert_eq!(taken, payload.len(), "{codec} {level}, {len} bytes");
                    }
                }
            }
        }
    }
}

#[test]
fn a_deflate_window_bounds_every_match() {
    // The second half can only be found from a window as large as the first.
    let data = noise(4096).repeat(2);
    for window_bits in 9..=15 {
        let encoding = Encoding { window_bits, ..Encoding::new(Codec::Deflate) };
        let payload = encode(&encoding, &data);
        assert_eq!(payload.len() < 5000, window_bits > 12, "{window_bits} bits");
        assert_eq!(decode(Codec::Deflate, &payload, data.len()).unwrap().0, data);
    }
}

#[test]
fn what_is_not_shorter_than_the_limit_is_refused() {
    for codec in CODECS {
        let data = records(65_536);
        let length = encode(&Encoding::new(codec), &data).len();
        let mut encoder = Encoder::new(&Encoding::new(codec));
        assert_eq!(encoder.encode(&data, length), None);
        assert!(encoder.encode(&data, length + 1).is_some());
        assert_eq!(encoder.encode(&noise(65_536), 65_536), None);
    }
}

#[test]
fn settings_out_of_range_are_the_nearest() {
    let data = records(10_000);
    for codec in CODECS {
        let most = *Encoding::levels(codec).end();
        let beyond = Encoding { level: Some(255), window_bits: 99, ..Encoding::new(codec) };
        assert_eq!(encode(&beyond, &data), encode(&with_level(codec, most), &data));
        let below = Encoding { level: Some(0), window_bits: 0, ..Encoding::new(codec) };
        assert_eq!(decode(codec, &encode(&below, &data), 10_000).unwrap().0, data);
    }
}

#[test]
fn a_payload_cut_anywhere_never_passes_for_whole() {
    let data = records(3000);
    for codec in CODECS {
        let payload = encode(&Encoding::new(codec), &data);
        for end in 0..payload.len() {
            match decode(codec, &payload[..end], data.len()) {
                Ok((out, taken)) => {
                    // Only the end-of-block symbol can be missing from complete data.
                    assert_eq!((codec, taken), (Codec::Deflate, end));
                    assert_eq!(out, data);
                }
                Err(DecodeError::Short { got, want, .. }) => assert!(got < want),
                Err(error) => panic!("{codec} cut at {end}: {error}"),
            }
        }
    }
}

#[test]
fn deflate_streams_of_other_lengths() {
    let payload = encode(&Encoding::new(Codec::Deflate), &records(5000));
    let short = DecodeError::Short { codec: Codec::Deflate, got: 5000, want: 5001 };
    assert_eq!(decode(Codec::Deflate, &payload, 5001), Err(short));
    let (out, taken) = decode(Codec::Deflate, &payload, 4000).unwrap();
    assert_eq!(out, &records(5000)[..4000]);
    assert_eq!(decode(Codec::Deflate, &payload[..taken], 4000).unwrap().0, out);
}

#[test]
fn the_end_of_a_deflate_stream_is_taken_even_when_it_comes_late() {
    // RFC 1951, section 3.2.4: stored blocks, of which the last two are empty.
    let stream = [&[0, 3, 0, 0xfc, 0xff, 1, 2, 3][..], &[0, 0, 0, 0xff, 0xff], &[1, 0, 0, 0xff, 0xff], &[9, 9, 9]];
    assert_eq!(decode(Codec::Deflate, &stream.concat(), 3), Ok((vec![1, 2, 3], 18)));
}

#[test]
fn zstd_payloads_of_several_frames() {
    let data = records(9000);
    let frame = |range: std::ops::Range<usize>| encode(&Encoding::new(Codec::Zstd), &data[range]);
    let mut checked = zstd_compressor(1);
    checked.set_content_checksum(true);
    let payload = [
        skippable(9),
        frame(0..4000),
        zstd_frame_of(WINDOW, &[(RAW, 0, &[])]),
        zstd_frame_of(WINDOW, &[(RAW, 500, &data[4000..4500]), (RAW, 500, &data[4500..5000])]),
        skippable(0),
        checked.compress_independent_frame(&data[5000..]),
    ]
    .concat();
    let stored = [&payload[..], &[0x28, 0xb5, 0x2f, 0xfd]].concat();
    assert_eq!(decode(Codec::Zstd, &stored, 9000), Ok((data, payload.len())));
    for end in 0..payload.len() {
        let error = decode(Codec::Zstd, &payload[..end], 9000).unwrap_err();
        assert!(matches!(error, DecodeError::Short { .. }), "cut at {end}: {error}");
    }
    let mut wrong = payload;
    *wrong.last_mut().unwrap() ^= 1;
    let error = decode(Codec::Zstd, &wrong, 9000).unwrap_err();
    assert!(matches!(error, DecodeError::Invalid { .. }), "{error}");
}

#[test]
fn a_zstd_frame_is_never_believed() {
    let bomb = zstd_frame_of(WINDOW, &[(RLE, 128 << 10, &[7][..]); 5000]);
    let long = DecodeError::Long { codec: Codec::Zstd, want: 65_536 };
    assert_eq!(decode(Codec::Zstd, &bomb, 65_536), Err(long.clone()));

    let huge = zstd_frame_of(HUGE_WINDOW, &[(RLE, 65_536, &[7])]);
    assert_eq!(decode(Codec::Zstd, &huge, 65_536), Ok((vec![7; 65_536], huge.len())));

    // A content size of 1 TiB, and one of 0 (RFC 8878, section 3.1.1.1.4).
    let sized = |size: u64| {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xc0, HUGE_WINDOW];
        frame.extend_from_slice(&size.to_le_bytes());
        frame.extend_from_slice(&zstd_frame_of(0, &[(RLE, 65_536, &[7])])[6..]);
        frame
    };
    assert_eq!(decode(Codec::Zstd, &sized(1 << 40), 65_536), Err(long));
    assert!(decode(Codec::Zstd, &sized(0), 65_536).is_err());

    assert!(decode(Codec::Zstd, &noise(4096), 65_536).is_err());
    let reserved = zstd_frame_of(WINDOW, &[(3, 1, &[0])]);
    assert!(matches!(decode(Codec::Zstd, &reserved, 1), Err(DecodeError::Invalid { .. })));
}

#[test]
fn what_threads_are_given_can_be_sent() {
    fn sent<T: Send>() {}
    sent::<Decoder>();
    sent::<Encoding>();
    sent::<DecodeError>();
}

#[test]
fn errors_read_well() {
    let short = DecodeError::Short { codec: Codec::Zstd, got: 1, want: 2 };
    assert_eq!(short.to_string(), "the zstd data ends after 1 of 2 bytes");
    let error = decode(Codec::Deflate, &[0xff; 9], 1).unwrap_err().to_string();
    assert_eq!(error, "invalid deflate data: invalid block type");
}

fn any_codec() -> impl Strategy<Value = Codec> {
    prop::sample::select(CODECS.to_vec())
}

proptest! {
    #[test]
    fn what_was_done_before_leaves_no_trace(
        codec in any_codec(),
        level in 1_u8..10,
        before in vec((vec(0_u8..4, 0..5000), 0_usize..3000), 0..4),
        data in vec(0_u8..4, 1..5000),
        garbage in vec(any::<u8>(), 0..200),
    ) {
        let encoding = with_level(codec, level);
        let mut encoder = Encoder::new(&encoding);
        for (data, limit) in &before {
            encoder.encode(data, *limit);
        }
        let payload = encoder.encode(&data, usize::MAX).unwrap();
        prop_assert_eq!(payload, encode(&encoding, &data));

        let mut decoder = Decoder::new();
        let mut out = vec![0xAA; data.len()];
        let _ = decoder.decode(codec, &garbage, &mut out);
        let _ = decoder.decode(codec, &payload[..payload.len() / 2], &mut out);
        prop_assert_eq!(decoder.decode(codec, payload, &mut out), Ok(payload.len()));
        prop_assert_eq!(out, data);
    }

    #[test]
    fn damage_is_survived(
        codec in any_codec(),
        level in 1_u8..10,
        marks in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        len in 1_usize..20_000,
    ) {
        let mut payload = encode(&with_level(codec, level), &records(10_000));
        for (at, value) in marks {
            let at = at.index(payload.len());
            payload[at] = value;
        }
        if let Ok((_, taken)) = decode(codec, &payload, len) {
            prop_assert!(taken <= payload.len());
        }
    }

    #[test]
    fn noise_is_survived(codec in any_codec(), bytes in vec(any::<u8>(), 0..300)) {
        let _ = decode(codec, &bytes, 4096);
        // The same as the inside of a compressed block.
        let size = bytes.len() as u32;
        let frame = zstd_frame_of(HUGE_WINDOW, &[(2, size, &bytes), (RAW, 1, &[1])]);
        let _ = decode(Codec::Zstd, &frame, 4096);
    }
}
