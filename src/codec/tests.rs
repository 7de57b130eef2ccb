//! Every level and size comes back, and damage is survived.

#[cfg(feature = "dmg")]
mod decoded;

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

const CODECS: [Codec; 3] = [Codec::Deflate, Codec::Zlib, Codec::Zstd];

/// Bytes that no codec can shorten.
fn noise(len: usize) -> Vec<u8> {
    crate::testing::noise(len as u64, 0)
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
    Encoder::new(encoding).unwrap().encode(data, usize::MAX).unwrap().to_vec()
}

fn decode(codec: Codec, stored: &[u8], len: usize) -> Result<(Vec<u8>, usize), DecodeError> {
    let mut out = vec![0xAA; len];
    Decoder::new().decode(codec, stored, &mut out).map(|taken| (out, taken))
}

/// Decodes the whole of `stored` to `len` bytes and gives it as one of codec `to`, if that can be.
fn rewrap(from: Codec, stored: &[u8], to: Codec, len: usize) -> Option<Vec<u8>> {
    let (mut decoder, mut decoded, mut out) = (Decoder::new(), vec![0xAA; len], vec![0xBB; 3]);
    decoder.decode(from, stored, &mut decoded).unwrap();
    let done = decoder.rewrap(stored, to, &decoded, &mut out);
    assert_eq!(out[..3], [0xBB; 3]);
    assert_eq!(done, out.len() > 3);
    done.then(|| out.split_off(3))
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
            let mut encoder = Encoder::new(&with_level(codec, level)).unwrap();
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
    for (codec, window_bits) in [Codec::Deflate, Codec::Zlib].into_iter().flat_map(|c| (9..=15).map(move |w| (c, w))) {
        let encoding = Encoding { window_bits, ..Encoding::new(codec) };
        let data = noise((1 << window_bits) + 1).repeat(2);
        let payload = encode(&encoding, &data);
        assert!(payload.len() >= data.len(), "{codec}, {window_bits} bits");
        let data = noise(1 << window_bits).repeat(2);
        let payload = encode(&encoding, &data);
        assert!(payload.len() < data.len() * 5 / 8, "{codec}, {window_bits} bits");
        assert_eq!(decode(codec, &payload, data.len()).unwrap().0, data);
        if codec == Codec::Zlib {
            assert_eq!(payload[0] >> 4, window_bits - 8, "CINFO");
        }
    }
}

#[test]
fn output_that_reaches_the_limit_is_refused() {
    for codec in CODECS {
        let data = records(65_536);
        let length = encode(&Encoding::new(codec), &data).len();
        let mut encoder = Encoder::new(&Encoding::new(codec)).unwrap();
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
                // And its checksum.
                Err(DecodeError::Short { got, want, ended: false, .. }) => assert!(got < want || codec == Codec::Zlib),
                Err(error) => panic!("{codec} cut at {end}: {error}"),
            }
        }
    }
}

#[test]
fn deflate_streams_of_other_lengths() {
    let payload = encode(&Encoding::new(Codec::Deflate), &records(5000));
    let short = DecodeError::Short { codec: Codec::Deflate, got: 5000, want: 5001, ended: true };
    assert_eq!(decode(Codec::Deflate, &payload, 5001), Err(short));
    let (out, taken) = decode(Codec::Deflate, &payload, 4000).unwrap();
    assert_eq!(out, &records(5000)[..4000]);
    assert_eq!(decode(Codec::Deflate, &payload[..taken], 4000).unwrap().0, out);
}

#[test]
fn a_zlib_stream_has_to_end_where_the_unit_does() {
    let codec = Codec::Zlib;
    for data in [records(5000), vec![0; 5000], noise(5000)] {
        let payload = [encode(&Encoding::new(codec), &data), noise(99)].concat();
        assert_eq!(decode(codec, &payload, 5000), Ok((data, payload.len() - 99)));
        for len in [0, 1, 4000, 4742, 4999] {
            assert_eq!(decode(codec, &payload, len), Err(DecodeError::Long { codec, want: len }));
        }
    }
    let bomb = encode(&Encoding::new(codec), &vec![0; 16 << 20]);
    assert_eq!(decode(codec, &bomb, 65_536), Err(DecodeError::Long { codec, want: 65_536 }));
}

#[test]
fn a_short_payload_is_decoded_as_far_as_it_goes() {
    let data = records(5000);
    for codec in [Codec::Deflate, Codec::Zlib] {
        let payload = encode(&Encoding::new(codec), &data);
        for (end, ended) in [(payload.len(), true), (payload.len() - 7, false), (payload.len() / 2, false)] {
            let mut out = vec![0xAA; 5001];
            match Decoder::new().decode(codec, &payload[..end], &mut out) {
                Err(DecodeError::Short { got, ended: claimed, .. }) => {
                    assert_eq!((claimed, &out[..got]), (ended, &data[..got]));
                    assert!(got > 1000 && (got == 5000) >= ended, "{got} bytes");
                }
                result => panic!("{codec} cut at {end}: {result:?}"),
            }
        }
    }
}

#[test]
fn zlib_headers_and_checksums_are_verified() {
    let data = records(3000);
    let payload = encode(&Encoding::new(Codec::Zlib), &data);
    let damaged = |at: usize, bit: u32| {
        let mut payload = payload.clone();
        payload[at] ^= 1 << bit;
        decode(Codec::Zlib, &payload, data.len()).unwrap_err().to_string()
    };
    for bit in 0..8 {
        assert_eq!(damaged(1, bit), "invalid zlib data: incorrect header check");
        for at in payload.len() - 4..payload.len() {
            assert_eq!(damaged(at, bit), "invalid zlib data: incorrect data check");
        }
    }
    // A stream that ends too early is not known to be whole unless its sum is right.
    let mut wrong = payload.clone();
    *wrong.last_mut().unwrap() ^= 1;
    assert!(matches!(decode(Codec::Zlib, &wrong, 3001), Err(DecodeError::Invalid { .. })));

    // RFC 1950, section 2.2: another method, too large a window, a preset dictionary.
    for (header, reason) in [
        ([0x79, 0x18], "unknown compression method"),
        ([0x88, 0x1c], "invalid window size"),
        ([0x78, 0xbb], "need dictionary"),
    ] {
        let stored = [&header[..], &payload[2..]].concat();
        let error = decode(Codec::Zlib, &stored, data.len()).unwrap_err();
        assert_eq!(error.to_string(), format!("invalid zlib data: {reason}"));
        assert!(!has_zlib_header(header));
    }
}

#[test]
fn a_zlib_header_distinguishes_zlib_from_deflate() {
    for level in Encoding::levels(Codec::Zlib) {
        for window_bits in 9..=15 {
            for data in [vec![0; 512], noise(4096), records(65_536)] {
                let start = |codec| {
                    let payload = encode(&Encoding { level: Some(level), window_bits, ..Encoding::new(codec) }, &data);
                    [payload[0], payload[1]]
                };
                assert!(has_zlib_header(start(Codec::Zlib)));
                assert!(!has_zlib_header(start(Codec::Deflate)));
            }
        }
    }
    // Every header there is: eight windows and four levels.
    assert_eq!((0..=u16::MAX).filter(|start| has_zlib_header(start.to_be_bytes())).count(), 32);
    assert!([[0x78, 0x01], [0x78, 0x5e], [0x78, 0x9c], [0x78, 0xda]].into_iter().all(has_zlib_header));
}

#[test]
fn a_zlib_stream_as_the_specification_has_it() {
    // A stored block, and the sum of "Wikipedia" as it is published.
    let deflate = [&[1, 9, 0, 0xf6, 0xff][..], b"Wikipedia"].concat();
    let zlib = [&[0x78, 0x9c][..], &deflate, &[0x11, 0xe6, 0x03, 0x98]].concat();
    assert_eq!(decode(Codec::Zlib, &zlib, 9), Ok((b"Wikipedia".to_vec(), zlib.len())));
    assert_eq!(rewrap(Codec::Deflate, &deflate, Codec::Zlib, 9).as_ref(), Some(&zlib));
    assert_eq!(rewrap(Codec::Zlib, &zlib, Codec::Deflate, 9), Some(deflate));
}

#[test]
fn only_whole_streams_get_another_wrapper() {
    let payload = encode(&Encoding::new(Codec::Deflate), &records(5000));
    assert!(rewrap(Codec::Deflate, &payload, Codec::Zlib, 5000).is_some());
    // A stream that continues, and one whose end-of-block symbol is missing.
    assert_eq!(rewrap(Codec::Deflate, &payload, Codec::Zlib, 4000), None);
    let cut = (0..payload.len()).find(|end| decode(Codec::Deflate, &payload[..*end], 5000).is_ok()).unwrap();
    assert_eq!(rewrap(Codec::Deflate, &payload[..cut], Codec::Zlib, 5000), None);
    assert!(rewrap(Codec::Deflate, &payload[..cut], Codec::Deflate, 5000).is_some());

    for codec in [Codec::Deflate, Codec::Zlib] {
        assert_eq!(rewrap(codec, &encode(&Encoding::new(codec), &[7; 512]), Codec::Zstd, 512), None);
        assert_eq!(rewrap(Codec::Zstd, &encode(&Encoding::new(Codec::Zstd), &[7; 512]), codec, 512), None);
    }

    // What could not be decoded is nothing to store again, whatever was decoded before.
    let (mut decoder, mut decoded, mut out) = (Decoder::new(), vec![0; 5001], Vec::new());
    assert!(!decoder.rewrap(&payload, Codec::Deflate, &decoded, &mut out));
    decoder.decode(Codec::Deflate, &payload, &mut decoded[..5000]).unwrap();
    assert!(decoder.decode(Codec::Deflate, &payload, &mut decoded).is_err());
    assert!(!decoder.rewrap(&payload, Codec::Deflate, &decoded, &mut out));
    assert!(out.is_empty());
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
    let mut checked = encode::zstd::compressor(1);
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
    let read = decode(Codec::Zstd, &huge, 65_536);
    // The decoder refuses windows above 1 GiB where addresses have 32 bits.
    if cfg!(target_pointer_width = "32") {
        assert!(matches!(read, Err(DecodeError::Invalid { .. })));
    } else {
        assert_eq!(read, Ok((vec![7; 65_536], huge.len())));
    }

    // A content size of 1 TiB, and one of 0 (RFC 8878, section 3.1.1.1.4).
    let sized = |size: u64| {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xc0, HUGE_WINDOW];
        frame.extend_from_slice(&size.to_le_bytes());
        frame.extend_from_slice(&zstd_frame_of(0, &[(RLE, 65_536, &[7])])[6..]);
        frame
    };
    let read = decode(Codec::Zstd, &sized(1 << 40), 65_536);
    assert!(read == Err(long) || cfg!(target_pointer_width = "32") && matches!(read, Err(DecodeError::Invalid { .. })));
    assert!(decode(Codec::Zstd, &sized(0), 65_536).is_err());

    assert!(decode(Codec::Zstd, &noise(4096), 65_536).is_err());
    let reserved = zstd_frame_of(WINDOW, &[(3, 1, &[0])]);
    assert!(matches!(decode(Codec::Zstd, &reserved, 1), Err(DecodeError::Invalid { .. })));
}

#[test]
fn decoders_encodings_and_errors_are_send() {
    fn sent<T: Send>() {}
    sent::<Decoder>();
    sent::<Encoding>();
    sent::<DecodeError>();
}

#[test]
fn errors_read_well() {
    let short = |ended| DecodeError::Short { codec: Codec::Zlib, got: 1, want: 2, ended }.to_string();
    assert_eq!(short(true), "the zlib data ends after 1 of 2 bytes");
    assert_eq!(short(false), "the zlib data is cut off after 1 of 2 bytes");
    let error = decode(Codec::Deflate, &[0xff; 9], 1).unwrap_err().to_string();
    assert_eq!(error, "invalid deflate data: invalid block type");
}

fn any_codec() -> impl Strategy<Value = Codec> {
    prop::sample::select(CODECS.to_vec())
}

proptest! {
    #[test]
    fn results_do_not_depend_on_earlier_calls(
        codec in any_codec(),
        other in any_codec(),
        level in 1_u8..10,
        before in vec((vec(0_u8..4, 0..5000), 0_usize..3000), 0..4),
        data in vec(0_u8..4, 1..5000),
        garbage in vec(any::<u8>(), 0..200),
    ) {
        let encoding = with_level(codec, level);
        let mut encoder = Encoder::new(&encoding).unwrap();
        for (data, limit) in &before {
            encoder.encode(data, *limit);
        }
        let payload = encoder.encode(&data, usize::MAX).unwrap();
        prop_assert_eq!(payload, encode(&encoding, &data));

        let mut decoder = Decoder::new();
        let mut out = vec![0xAA; data.len()];
        let _ = decoder.decode(codec, &garbage, &mut out);
        let _ = decoder.decode(codec, &payload[..payload.len() / 2], &mut out);
        let _ = decoder.decode(codec, payload, &mut out[..data.len() / 2]);
        let _ = decoder.decode(other, payload, &mut out);
        prop_assert_eq!(decoder.decode(codec, payload, &mut out), Ok(payload.len()));
        prop_assert_eq!(out, data);
    }

    #[test]
    fn a_wrapper_can_be_changed_and_changed_back(
        from in any_codec(),
        to in any_codec(),
        level in 1_u8..10,
        data in prop_oneof![vec(any::<u8>(), 1..3000), vec(0_u8..4, 1..20_000)],
        slack in vec(any::<u8>(), 0..600),
    ) {
        let payload = encode(&with_level(from, level), &data);
        let stored = [&payload[..], &slack].concat();
        let rewrapped = rewrap(from, &stored, to, data.len());
        prop_assert_eq!(rewrapped.is_some(), from == to || (from != Codec::Zstd && to != Codec::Zstd));
        if let Some(rewrapped) = rewrapped {
            prop_assert_eq!(decode(to, &rewrapped, data.len()), Ok((data.clone(), rewrapped.len())));
            let mut back = rewrap(to, &rewrapped, from, data.len()).unwrap();
            if from == Codec::Zlib && to != from {
                // The level it was encoded with has been forgotten.
                prop_assert!(has_zlib_header([back[0], back[1]]));
                back[..2].copy_from_slice(&payload[..2]);
            }
            prop_assert_eq!(back, payload);
        }
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

/// What deflate would make longer is stored in blocks, so that no payload is longer than it has to be.
#[test]
fn noise_is_stored() {
    let data = noise(65536);
    for codec in [Codec::Deflate, Codec::Zlib] {
        for level in Encoding::levels(codec) {
            let encoding = Encoding { level: Some(level), ..Encoding::new(codec) };
            let payload = Encoder::new(&encoding).unwrap().encode(&data, usize::MAX).unwrap().to_vec();
            assert!(payload.len() <= encoding.max_len(data.len()), "{codec} {level}: {}", payload.len());
            let mut decoded = vec![0; data.len()];
            assert_eq!(Decoder::new().decode(codec, &payload, &mut decoded), Ok(payload.len()));
            assert!(decoded == data);
        }
    }
    assert_eq!(Encoding::new(Codec::Zlib).max_len(65536), 65552);
}
