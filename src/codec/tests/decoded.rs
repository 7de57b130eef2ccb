//! Codecs that are only decoded.

use std::io::Write;

use lzma_rust2::{CheckType, FilterConfig, XzOptions, XzWriter};

use super::*;
use crate::testing::dmg::adc;

const DECODED: [Codec; 4] = [Codec::Adc, Codec::Bzip2, Codec::Lzfse, Codec::Xz];

fn xz(data: &[u8], set: impl FnOnce(&mut XzOptions)) -> Vec<u8> {
    let mut options = XzOptions::with_preset(0);
    set(&mut options);
    let mut writer = XzWriter::new(Vec::new(), options).unwrap();
    writer.write_all(data).unwrap();
    writer.finish().unwrap()
}

/// Blocks as they are, and LZVN of literals.
fn lzfse(data: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    for (index, block) in data.chunks(1000).enumerate() {
        if index.is_multiple_of(2) {
            stream.extend(b"bvx-");
            stream.extend((block.len() as u32).to_le_bytes());
            stream.extend(block);
        } else {
            stream.extend(lzvn(block.len(), &literals(block)));
        }
    }
    stream.extend(b"bvx$");
    stream
}

/// A block of LZVN with these opcodes, which are decoded to `len` bytes.
fn lzvn(len: usize, opcodes: &[u8]) -> Vec<u8> {
    let opcodes = [opcodes, &[6, 0, 0, 0, 0, 0, 0, 0]].concat();
    let lens = [len, opcodes.len()].map(|len| (len as u32).to_le_bytes()).concat();
    [b"bvxn", &lens[..], &opcodes].concat()
}

fn literals(data: &[u8]) -> Vec<u8> {
    let one = |bytes: &[u8]| match bytes.len() {
        len @ 1..=15 => [&[0xe0 | len as u8], bytes].concat(),
        len => [&[0xe0, (len - 16) as u8], bytes].concat(),
    };
    data.chunks(271).flat_map(one).collect()
}

fn encode(codec: Codec, data: &[u8]) -> Vec<u8> {
    match codec {
        Codec::Adc => adc(data),
        Codec::Bzip2 => {
            let mut encoder = ::bzip2::write::BzEncoder::new(Vec::new(), ::bzip2::Compression::fast());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Lzfse => lzfse(data),
        _ => xz(data, |_| {}),
    }
}

#[test]
fn each_size_comes_back_whole() {
    let mut decoder = Decoder::new();
    for len in [1, 2, 3, 512, 4096, 65_536, 300_000] {
        for data in [vec![0; len], noise(len), records(len)] {
            // In turn, with what follows in the file.
            for codec in DECODED {
                let payload = encode(codec, &data);
                let mut out = vec![0xaa; len];
                let taken = decoder.decode(codec, &[&payload[..], &noise(600)].concat(), &mut out).unwrap();
                assert!(out == data, "{codec}, {len} bytes");
                // Less the index and the footer.
                let expected =
                    if codec == Codec::Xz { payload.len() - 24..payload.len() - 12 } else { taken..taken + 1 };
                assert!(expected.contains(&taken) && taken <= payload.len(), "{codec}, {len} bytes");
            }
        }
    }
}

#[test]
fn a_payload_ends_where_the_unit_does() {
    let data = records(5000);
    for codec in DECODED {
        let payload = encode(codec, &data);
        let bomb = encode(codec, &vec![0; 1 << 20]);
        for (payload, len) in [(&payload, 4999), (&payload, 1), (&bomb, 65_536)] {
            match decode(codec, payload, len) {
                Err(DecodeError::Long { want, .. }) => assert_eq!(want, len, "{codec}"),
                // It may also end with a match or literals.
                Ok(_) => assert_eq!(codec, Codec::Adc),
                Err(error) => panic!("{codec}, {len}: {error}"),
            }
        }
        let ended = codec != Codec::Adc;
        let short = DecodeError::Short { codec, got: 5000, want: 5001, ended };
        assert_eq!(decode(codec, &payload, 5001), Err(short));
        for end in 0..payload.len() {
            match decode(codec, &payload[..end], 5000) {
                Err(DecodeError::Short { ended: false, .. }) => {}
                // What follows the last block is not read.
                Ok(_) if codec == Codec::Xz => assert!(end >= payload.len() - 24),
                result => panic!("{codec} cut at {end}: {result:?}"),
            }
        }
    }
}

#[test]
fn checksums_are_verified() {
    let data = records(5000);
    for check in [CheckType::Crc32, CheckType::Crc64, CheckType::Sha256] {
        let payload = xz(&data, |options| options.set_check_sum_type(check));
        let index = decode(Codec::Xz, &payload, 5000).unwrap().1;
        for at in (0..30).chain(index - 4..index) {
            let mut damaged = payload.clone();
            damaged[at] ^= 1;
            assert!(decode(Codec::Xz, &damaged, 5000).is_err(), "{at}");
        }
    }
    let payload = encode(Codec::Bzip2, &data);
    for at in (0..payload.len()).step_by(7).chain(payload.len() - 5..payload.len() - 1) {
        let mut damaged = payload.clone();
        damaged[at] ^= 4;
        assert!(decode(Codec::Bzip2, &damaged, 5000).is_err(), "{at}");
    }
}

#[test]
fn xz_streams_of_all_kinds() {
    let data = records(200_000);
    let filter = FilterConfig::new_delta(4);
    for stream in [
        xz(&data, |options| options.set_check_sum_type(CheckType::None)),
        xz(&data, |options| options.set_block_size(std::num::NonZeroU64::new(65_536))),
        xz(&data, |options| options.prepend_pre_filter(filter.filter_type, filter.property)),
        xz(&noise(200_000), |_| {}),
    ] {
        let (decoded, _) = decode(Codec::Xz, &stream, data.len()).unwrap();
        assert!(decoded == data || decoded == noise(200_000));
    }
    // The dictionary is no larger than the unit either, so that data that goes on is invalid as well.
    let blocks = xz(&data, |options| options.set_block_size(std::num::NonZeroU64::new(65_536)));
    for len in [1, 65_535, 65_536, 65_537, 199_999] {
        let error = decode(Codec::Xz, &blocks, len).unwrap_err();
        assert!(matches!(error, DecodeError::Long { .. } | DecodeError::Invalid { .. }), "{error}");
    }
}

#[test]
fn opcodes_of_adc() {
    let decode = |stored: &[u8], len| decode(Codec::Adc, stored, len);
    // Literals; a match of two bytes with the distance 3, one of three bytes with the distance 2.
    let stored = [0x82, b'a', b'b', b'c', 0x04, 0x02, 0x40, 0, 1];
    assert_eq!(decode(&stored, 11), Ok((b"abcabcacaca".to_vec(), stored.len())));
    for (stored, reason) in
        [(&[0, 0][..], "a match begins before the data"), (&[0x80, 1, 0x40, 0, 1], "a match begins before the data")]
    {
        let reason = reason.to_owned();
        assert_eq!(decode(stored, 20), Err(DecodeError::Invalid { codec: Codec::Adc, reason }));
    }
}

#[test]
fn opcodes_of_lzvn() {
    let stream = |len, opcodes: &[u8]| [&lzvn(len, opcodes)[..], b"bvx$"].concat();
    let decoded = |opcodes: &[u8], len| decode(Codec::Lzfse, &stream(len, opcodes), len).map(|(decoded, _)| decoded);
    let abcd = |opcodes: &[u8]| [&[0xe4, b'a', b'b', b'c', b'd'], opcodes].concat();
    for (opcodes, expected) in [
        // One literal, then a match of 3 + 1 with the distance 5 of eleven bits.
        (&[0b01_001_000, 5, b'e'][..], "abcdeabcd"),
        (&[0b01_001_111, 2, 0, b'e'], "abcdedede"),
        // Two literals; a match of 3 + 4 * 1 + 2 with the distance 6 of 14 bits.
        (&[0b1011_0001, 6 << 2 | 2, 0, b'e', b'f'], "abcdefabcdefabc"),
        // The distance of the match before, with a literal and without.
        (&[0b00_000_000, 4, 0b01_000_110, b'x', 0xf2], "abcdabcxabcxa"),
        (&[0b00_000_000, 4, 0xf0, 1], "abcdabcdabcdabcdabcdabcd"),
        (&[0x0e, 0x16, 0xe1, b'z'], "abcdz"),
    ] {
        let decoded = decoded(&abcd(opcodes), expected.len()).unwrap();
        assert_eq!(String::from_utf8(decoded).unwrap(), expected, "{opcodes:x?}");
    }
    for opcode in (0x70..0x80).chain(0xd0..0xe0).chain([0x1e, 0x26, 0x2e, 0x36, 0x3e]) {
        let error = decoded(&abcd(&[opcode, 1, 1, 1, 1]), 20).unwrap_err();
        assert_eq!(error.to_string(), "invalid lzfse data: undefined opcode");
    }
    for (opcodes, len, reason) in [
        (abcd(&[0xf1]), 5, "a match begins before the data"),
        (abcd(&[0, 5]), 7, "a match begins before the data"),
        (abcd(&[0, 0]), 7, "a match begins before the data"),
        (abcd(&[]), 5, "a block has another length than it states"),
        (abcd(&[]), 3, "a block has another length than it states"),
    ] {
        let error = decoded(&opcodes, len).unwrap_err();
        assert_eq!(error.to_string(), format!("invalid lzfse data: {reason}"), "{opcodes:x?}");
    }
    for magic in [b"bvx1", b"bvx3", b"\0\0\0\0"] {
        let error = decode(Codec::Lzfse, &[&magic[..], &[1, 0, 0, 0, 9]].concat(), 1).unwrap_err();
        assert!(matches!(error, DecodeError::Invalid { .. }), "{error}");
    }
}

/// Every third number from 0 on, in lines, cut to 5000 bytes, as the reference implementation encodes it; and its first 1000 bytes, for which
/// that takes LZVN.
const LZFSE_TEXT: &[u8] = include_bytes!("text.lzfse");
const LZVN_TEXT: &[u8] = include_bytes!("text.lzvn");

#[test]
fn streams_of_the_reference_implementation() {
    let text: Vec<u8> = (0..4000).step_by(3).flat_map(|number| format!("{number}\n").into_bytes()).take(5000).collect();
    for (stream, magic, len) in [(LZFSE_TEXT, b"bvx2", 5000), (LZVN_TEXT, b"bvxn", 1000)] {
        assert!(stream.starts_with(magic));
        assert_eq!(decode(Codec::Lzfse, stream, len), Ok((text[..len].to_vec(), stream.len())));
        assert_eq!(
            decode(Codec::Lzfse, stream, len - 1),
            Err(DecodeError::Long { codec: Codec::Lzfse, want: len - 1 })
        );
        let short = DecodeError::Short { codec: Codec::Lzfse, got: len, want: len + 1, ended: true };
        assert_eq!(decode(Codec::Lzfse, stream, len + 1), Err(short));
        for end in 0..stream.len() {
            let error = decode(Codec::Lzfse, &stream[..end], len).unwrap_err();
            assert!(matches!(error, DecodeError::Short { ended: false, .. }), "{end}: {error}");
        }
    }
    // Two streams give what each gives alone, though they share tables.
    let mut decoder = Decoder::new();
    for stream in [LZFSE_TEXT, LZVN_TEXT, LZFSE_TEXT] {
        let mut out = vec![0; if stream == LZFSE_TEXT { 5000 } else { 1000 }];
        decoder.decode(Codec::Lzfse, stream, &mut out).unwrap();
        assert!(out == text[..out.len()]);
    }
}

#[test]
fn there_is_no_encoder() {
    for codec in DECODED {
        let error = Encoder::new(&Encoding::new(codec)).err().unwrap();
        assert_eq!(error.to_string(), format!("there is no encoder for {codec}"));
        assert_eq!(Encoding::levels(codec), 0..=0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn data_comes_back(data in vec(any::<u8>(), 1..300), copies in 1usize..30, codec in prop::sample::select(&DECODED[..])) {
        let data = data.repeat(copies);
        prop_assert_eq!(decode(codec, &encode(codec, &data), data.len()).unwrap().0, data);
    }

    #[test]
    fn damage_is_survived(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), len in 1usize..9000, codec in prop::sample::select(&DECODED[..]), fixture in any::<bool>()) {
        let mut payload = if codec == Codec::Lzfse && fixture { LZFSE_TEXT.to_vec() } else { encode(codec, &records(5000)) };
        for (index, value) in changes {
            let at = index.index(payload.len());
            payload[at] = value;
        }
        if let Ok((_, taken)) = decode(codec, &payload, len) {
            prop_assert!(taken <= payload.len());
        }
    }

    #[test]
    fn noise_is_survived(codec in prop::sample::select(&DECODED[..]), bytes in vec(any::<u8>(), 0..600)) {
        let _ = decode(codec, &bytes, 4096);
        // The same after the header of a block.
        let _ = decode(Codec::Lzfse, &[b"bvx2\0\x10\0\0", &bytes[..]].concat(), 4096);
        let _ = decode(Codec::Lzfse, &[b"bvxn\0\x10\0\0\0\x02\0\0", &bytes[..]].concat(), 4096);
    }
}
