//! Files made by the encoders of the same crates; the integration tests have those of the programs.

use std::io::{self, Cursor, Read, Write};

use proptest::prelude::*;

use super::*;
use crate::error::{Error, ErrorKind, Problem};
use crate::limits::Limits;
use crate::testing::Random;

const ALL: [Compression; 4] = [Compression::Gzip, Compression::Xz, Compression::Bzip2, Compression::Zstd];

/// A file of one part: a member, a stream of one block, a frame.
pub(crate) fn encode(compression: Compression, data: &[u8]) -> Vec<u8> {
    match compression {
        Compression::Gzip => gzip_member(&deflated(data), zlib_rs::crc32::crc32(0, data), data.len() as u32),
        Compression::Xz => xz(data, lzma_rust2::CheckType::Crc64, None),
        Compression::Bzip2 => {
            let mut encoder = ::bzip2::write::BzEncoder::new(Vec::new(), ::bzip2::Compression::fast());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => {
            let mut file = Vec::new();
            let mut encoder: structured_zstd::encoding::FrameCompressor =
                structured_zstd::encoding::FrameCompressor::new(
                    structured_zstd::encoding::CompressionLevel::from_level(1),
                );
            encoder.set_content_checksum(true);
            encoder.compress_independent_frame_into(data, &mut file);
            file
        }
    }
}

/// A stream of blocks of so many bytes.
pub(super) fn xz(data: &[u8], check: lzma_rust2::CheckType, block: Option<u64>) -> Vec<u8> {
    let mut options = lzma_rust2::XzOptions::with_preset(0);
    options.set_check_sum_type(check);
    options.set_block_size(block.and_then(std::num::NonZeroU64::new));
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    writer.write_all(data).unwrap();
    writer.finish().unwrap()
}

fn deflated(data: &[u8]) -> Vec<u8> {
    let mut deflated = vec![0; zlib_rs::compress_bound(data.len()) + 64];
    let mut deflate = zlib_rs::Deflate::new(6, false, 15);
    deflate.compress(data, &mut deflated, zlib_rs::DeflateFlush::Finish).unwrap();
    deflated.truncate(deflate.total_out() as usize);
    deflated
}

/// A file of BGZF, as bgzip writes it: members of up to 65280 bytes, and an empty one at the end.
fn bgzf(data: &[u8]) -> Vec<u8> {
    let member = |part: &[u8]| {
        let deflated = deflated(part);
        let size = (18 + deflated.len() + 8 - 1) as u16;
        let header = [&b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0"[..], &size.to_le_bytes()].concat();
        let trailer = [zlib_rs::crc32::crc32(0, part), part.len() as u32].map(u32::to_le_bytes).concat();
        [header, deflated, trailer].concat()
    };
    data.chunks(65280).chain([&[][..]]).flat_map(member).collect()
}

fn gzip_member(deflated: &[u8], crc: u32, len: u32) -> Vec<u8> {
    let header = b"\x1f\x8b\x08\0\0\0\0\0\0\xff";
    [&header[..], deflated, &crc.to_le_bytes(), &len.to_le_bytes()].concat()
}

pub(super) fn decode_within(compression: Compression, file: &[u8], limits: &Limits) -> Result<Vec<u8>, Error> {
    let mut data = Vec::new();
    match decoder(compression, Box::new(Cursor::new(file.to_vec())), limits).read_to_end(&mut data) {
        Ok(_) => Ok(data),
        Err(error) => Err(error.downcast().expect("a typed error")),
    }
}

fn decode(compression: Compression, file: &[u8]) -> Result<Vec<u8>, Error> {
    decode_within(compression, file, &Limits::default())
}

/// Data that compresses, with runs of zeros.
pub(super) fn sample(len: usize) -> Vec<u8> {
    let mut random = Random::new(len as u64);
    let mut data = Vec::with_capacity(len);
    while data.len() < len {
        match random.below(3) {
            0 => data.resize(data.len() + 1 + random.below(5000) as usize, 0),
            1 => (0..random.below(300)).for_each(|_| data.push(random.below(256) as u8)),
            _ => (0..random.below(900)).for_each(|at| data.push((at % 17) as u8)),
        }
    }
    data.truncate(len);
    data
}

#[test]
fn each_format_is_known_by_its_content() {
    for compression in ALL {
        for data in [&[][..], b"x"] {
            assert_eq!(Compression::of(&encode(compression, data)), Some(compression), "{compression}");
        }
    }
    for head in
        [&b""[..], b"\x1f\x8b", b"\x1f\x8b\x07", b"BZh0", b"BZh9\0\0\0\0\0\0", b"\x28\xb5\x2f", b"\x60\x2a\x4d\x18"]
    {
        assert_eq!(Compression::of(head), None);
    }
}

#[test]
fn joined_parts_are_one_file() {
    for compression in ALL {
        for len in [0, 1, 100_000, 3 << 20] {
            let data = sample(len);
            let part = encode(compression, &data);
            assert_eq!(decode(compression, &part).unwrap(), data, "{compression} {len}");
            let joined = [&part[..], &encode(compression, b""), &part, &encode(compression, b"end")].concat();
            let all = [&data[..], &data, b"end"].concat();
            assert_eq!(decode(compression, &joined).unwrap(), all, "{compression} {len}");
        }
    }
}

#[test]
fn a_truncated_file_is_an_error_at_its_end() {
    for compression in ALL {
        let file = encode(compression, &sample(3000));
        for len in 1..file.len() {
            match decode(compression, &file[..len]).map_err(|error| (error.to_string(), error)) {
                Err((_, Error::Corrupt(fault))) if fault.problem == Problem::Truncated && fault.at == len as u64 => {}
                other => panic!("{compression} {len}: {other:?}"),
            }
        }
    }
}

#[test]
fn zeros_may_follow_and_nothing_else() {
    for compression in ALL {
        let data = sample(5000);
        let file = encode(compression, &data);
        for zeros in [1, 4, 7, 511, 200_000] {
            assert_eq!(decode(compression, &[&file[..], &vec![0; zeros]].concat()).unwrap(), data, "{compression}");
            let garbage = [&file[..], &vec![0; zeros], &[1]].concat();
            let Err(Error::Corrupt(fault)) = decode(compression, &garbage) else { panic!("{compression}") };
            assert_eq!((&*fault.field, fault.at), ("data after the end", (file.len() + zeros) as u64));
        }
        // The start of a further part, which is no longer one.
        for tail in [&b"\x1f"[..], b"BZh9", b"PK\x03\x04", b"garbage"] {
            let error = decode(compression, &[&file[..], tail].concat()).unwrap_err();
            assert!(error.to_string().contains("data after the end"), "{error}");
        }
    }
}

#[test]
fn a_flipped_bit_is_an_error_or_does_not_matter() {
    for compression in ALL {
        let data = sample(2000);
        let file = encode(compression, &data);
        let mut harmless = 0;
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut damaged = file.clone();
                damaged[at] ^= 1 << bit;
                match decode(compression, &damaged) {
                    // Nothing but the checksum of a header covers the time stamp of gzip, for example.
                    Ok(decoded) => {
                        assert_eq!(decoded, data, "{compression} {at}");
                        harmless += 1;
                    }
                    Err(error) => assert!(!matches!(error, Error::Io { .. }), "{compression} {at}: {error}"),
                }
            }
        }
        // The checksums of xz cover all of it.
        let most = if compression == Compression::Xz { 0 } else { 8 * 10 };
        assert!(harmless <= most, "{compression}: {harmless}");
    }
}

#[test]
fn after_a_failure_each_read_fails() {
    for compression in ALL {
        let file = encode(compression, &sample(100_000));
        let mut reader =
            decoder(compression, Box::new(Cursor::new(file[..file.len() - 1].to_vec())), &Limits::default());
        let mut buf = [0; 1000];
        while reader.read(&mut buf).is_ok_and(|n| n > 0) {}
        assert!(reader.read(&mut buf).is_err(), "{compression}");
    }
}

#[test]
fn errors_of_the_stream_are_passed_on() {
    struct Failing(Cursor<Vec<u8>>);
    impl Read for Failing {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let most = buf.len().min(777);
            match self.0.read(&mut buf[..most])? {
                0 => Err(io::ErrorKind::ConnectionReset.into()),
                n => Ok(n),
            }
        }
    }
    for compression in ALL {
        let file = encode(compression, &sample(100_000));
        let half = Failing(Cursor::new(file[..file.len() / 2].to_vec()));
        let error = decoder(compression, Box::new(half), &Limits::default()).read_to_end(&mut Vec::new()).unwrap_err();
        let error: Error = error.downcast().unwrap();
        assert!(matches!(&error, Error::Io { cause, .. } if cause.kind() == io::ErrorKind::ConnectionReset), "{error}");
    }
}

#[test]
fn gzip_headers_and_trailers_are_verified() {
    let deflated = [3, 0];
    let with = |flags: u8, fields: &[u8]| {
        let mut file = vec![0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 3];
        file.extend(fields);
        file.extend(deflated);
        file.extend([0; 8]);
        decode(Compression::Gzip, &file).map_err(|error| error.to_string())
    };
    assert_eq!(with(0, b""), Ok(vec![]));
    assert_eq!(with(4 | 8 | 16, b"\x03\0abcname\0comment\0"), Ok(vec![]));
    let crc = zlib_rs::crc32::crc32(0, b"\x1f\x8b\x08\x02\x01\x02\x03\x04\x00\x03") as u16;
    assert_eq!(with(2, &crc.to_le_bytes()), Ok(vec![]));
    assert!(with(2, &(crc ^ 1).to_le_bytes()).unwrap_err().contains("CRC-16 of the header"));
    assert!(with(0x20, b"").unwrap_err().contains("FLG"));
    assert!(with(8, &vec![b'a'; 2 << 20]).unwrap_err().contains("length of the header"));
    for (crc, len, field) in [(1, 0, "CRC32"), (0, 1, "ISIZE")] {
        let Err(Error::Corrupt(fault)) = decode(Compression::Gzip, &gzip_member(&deflated, crc, len)) else { panic!() };
        assert_eq!((&*fault.field, fault.problem.to_string().contains("another")), (field, true));
    }
}

#[test]
fn xz_checks_and_blocks_of_all_kinds() {
    use lzma_rust2::CheckType;

    let data = sample(300_000);
    for check in [CheckType::None, CheckType::Crc32, CheckType::Crc64, CheckType::Sha256] {
        for block in [None, Some(1 << 16)] {
            let file = xz(&data, check, block);
            assert_eq!(decode(Compression::Xz, &file).unwrap(), data);
            // In the middle of a stream padding is an error, as is a length that is not a multiple of 4 before another stream.
            let padded = |zeros: usize| [&file[..], &vec![0; zeros], &file].concat();
            assert_eq!(decode(Compression::Xz, &padded(8)).unwrap(), [&data[..], &data].concat());
            assert!(decode(Compression::Xz, &padded(6)).is_err());
            if check != CheckType::None {
                let mut damaged = file.clone();
                damaged[file.len() / 2] ^= 1;
                assert!(decode(Compression::Xz, &damaged).is_err());
            }
        }
    }
}

/// An xz stream with another index or footer, whose checksums are right.
fn xz_with(file: &[u8], change: impl Fn(&mut [u8], &mut [u8])) -> Vec<u8> {
    let mut file = file.to_vec();
    let footer_at = file.len() - 12;
    let (rest, footer) = file.split_at_mut(footer_at);
    let index_len = (u32::from_le_bytes(footer[4..8].try_into().unwrap()) as usize + 1) * 4;
    let (_, index) = rest.split_at_mut(footer_at - index_len);
    change(index, footer);
    let crc = |bytes: &[u8]| zlib_rs::crc32::crc32(0, bytes).to_le_bytes();
    let sum = crc(&index[..index_len - 4]);
    index[index_len - 4..].copy_from_slice(&sum);
    let sum = crc(&footer[4..10]);
    footer[..4].copy_from_slice(&sum);
    file
}

#[test]
fn an_xz_stream_agrees_with_its_index_and_its_footer() {
    let file = xz(&sample(100), lzma_rust2::CheckType::Crc32, None);
    assert_eq!(xz_with(&file, |_, _| ()), file);
    let error =
        |change: fn(&mut [u8], &mut [u8])| decode(Compression::Xz, &xz_with(&file, change)).unwrap_err().to_string();
    // The uncompressed size follows the indicator, the number of records and the size of the block.
    let record = error(|index, _| index[index.iter().position(|byte| *byte == 100).unwrap()] += 1);
    assert!(record.contains("the stream has other blocks"), "{record}");
    assert!(error(|index, _| index[1] = 0).contains("the stream has other blocks"));
    assert!(error(|_, footer| footer[4] += 1).contains("the index has another length"));
    assert!(error(|_, footer| footer[9] ^= 1).contains("the stream header has others"));
}

#[test]
fn frames_with_dictionaries_are_refused() {
    let frame = |id| [b"\x28\xb5\x2f\xfd\x21", &[id, 3][..], b"\x19\0\0abc"].concat();
    assert_eq!(decode(Compression::Zstd, &frame(0)).unwrap(), b"abc");
    for id in [1, 2] {
        let error = decode(Compression::Zstd, &frame(id)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
}

#[test]
fn limits_are_errors_of_their_own() {
    let limits = |set: fn(&mut Limits)| {
        let mut limits = Limits::default();
        set(&mut limits);
        limits
    };
    let small = limits(|limits| limits.decompressed = 99_999);
    let narrow = limits(|limits| limits.window = 4096);
    for compression in ALL {
        let file = encode(compression, &sample(100_000));
        let error = decode_within(compression, &file, &small).unwrap_err();
        assert!(matches!(&error, Error::Limit { limit: 99_999, field, .. } if field == "decompressed size"), "{error}");
        let narrow = decode_within(compression, &file, &narrow).map_err(|error| error.kind());
        let expected =
            if matches!(compression, Compression::Xz | Compression::Zstd) { Err(ErrorKind::Limit) } else { Ok(()) };
        assert_eq!(narrow.map(drop), expected, "{compression}");
    }
}

/// Counts what it is read, and never ends.
struct Endless(Vec<u8>, usize);

impl Read for Endless {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        for byte in buf.iter_mut() {
            *byte = self.0[self.1 % self.0.len()];
            self.1 += 1;
        }
        Ok(buf.len())
    }
}

#[test]
fn parts_without_data_come_to_an_end() {
    let skippable = b"\x50\x2a\x4d\x18\x01\0\0\0x".to_vec();
    let files = ALL.map(|compression| (compression, encode(compression, b"")));
    for (compression, part) in files.into_iter().chain([(Compression::Zstd, skippable)]) {
        let mut reader = decoder(compression, Box::new(Endless(part, 0)), &Limits::default());
        let error: Error = reader.read(&mut [0; 10]).unwrap_err().downcast().unwrap();
        assert_eq!(error.kind(), ErrorKind::Limit, "{compression}: {error}");
    }
}

#[test]
fn a_bomb_meets_the_ratio() {
    // bzip2 alone exceeds the ratio, with blocks of 45 MB of zeros in 46 bytes: RLE1 makes 900 kB of them.
    let zeros = vec![0; 45_000_000];
    let mut encoder = ::bzip2::write::BzEncoder::new(Vec::new(), ::bzip2::Compression::best());
    encoder.write_all(&zeros).unwrap();
    let stream = encoder.finish().unwrap();
    let mut reader = decoder(Compression::Bzip2, Box::new(Endless(stream, 0)), &Limits::default());
    let mut buf = vec![0; 4 << 20];
    let mut len = 0;
    let error = loop {
        match reader.read(&mut buf) {
            Ok(n) => len += n as u64,
            Err(error) => break error.downcast::<Error>().unwrap(),
        }
    };
    assert!(len < (1 << 30) + (8 << 20), "{len}");
    assert!(matches!(&error, Error::Limit { field, limit: 100_000, .. } if field.starts_with("ratio")), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_encoded_is_decoded(parts in prop::collection::vec((0..4usize, 0..200_000usize), 1..4), step in 1..70_000usize) {
        for compression in ALL {
            let parts: Vec<_> = parts.iter().map(|(_, len)| sample(*len)).collect();
            let file: Vec<u8> = parts.iter().flat_map(|part| encode(compression, part)).collect();
            let mut reader = decoder(compression, Box::new(Cursor::new(file)), &Limits::default());
            let (mut data, mut buf) = (Vec::new(), vec![0; step]);
            loop {
                match reader.read(&mut buf).unwrap() {
                    0 => break,
                    n => data.extend_from_slice(&buf[..n]),
                }
            }
            prop_assert!(data == parts.concat());
        }
    }

    #[test]
    fn garbage_never_panics(which in 0..4usize, cut in any::<prop::sample::Index>(), noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let file = encode(ALL[which], &sample(4000));
        let _ = decode(ALL[which], &[&file[..cut.index(file.len())], &noise].concat());
    }
}

mod files {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use super::*;
    use crate::io::ReadAt;
    use crate::testing::{CountedFile, TempDir};

    /// Files of several parts of known sizes: xz blocks in two streams with padding, zstd frames without and with a seek table, BGZF.
    fn indexed(data: &[u8]) -> Vec<(&'static str, Compression, Vec<u8>)> {
        let half = data.len() / 2 / 4 * 4;
        let check = lzma_rust2::CheckType::Crc32;
        let block = Some(1 << 20);
        let xz = [xz(&data[..half], check, block), vec![0; 8], xz(&data[half..], check, block), vec![0; 4]].concat();
        let frames: Vec<_> = data.chunks(700_000).map(|part| (part.len(), encode(Compression::Zstd, part))).collect();
        let plain: Vec<u8> = frames.iter().flat_map(|(_, frame)| frame.clone()).collect();
        let skipped = [b"\x51\x2a\x4d\x18\x02\0\0\0ab", &plain[..], b"\x5f\x2a\x4d\x18\0\0\0\0"].concat();
        let mut table = Vec::new();
        for (len, frame) in &frames {
            table.extend((frame.len() as u32).to_le_bytes());
            table.extend((*len as u32).to_le_bytes());
        }
        let table_len = table.len() as u32 + 9;
        let footer = [&(frames.len() as u32).to_le_bytes()[..], &[0], &0x8f92_eab1_u32.to_le_bytes()].concat();
        let seekable = [&plain[..], b"\x5e\x2a\x4d\x18", &table_len.to_le_bytes(), &table, &footer].concat();
        vec![
            ("xz", Compression::Xz, xz),
            ("frames", Compression::Zstd, skipped),
            ("seekable", Compression::Zstd, seekable),
            ("bgzf", Compression::Gzip, bgzf(data)),
        ]
    }

    fn open_in(dir: &TempDir, compression: Compression, file: Vec<u8>) -> Result<Arc<dyn ReadAt>, Error> {
        open(Arc::new(file), compression, dir.path(), &Limits::default())
    }

    #[test]
    fn an_index_needs_no_temporary_file() {
        let data = sample(5 << 20);
        for (name, compression, file) in indexed(&data) {
            assert_eq!(decode(compression, &file).unwrap(), data, "{name}");
            // In a directory that does not exist, a temporary file is an error.
            let nowhere = TempDir::new().join("missing");
            let source = Arc::new(CountedFile::from(file.clone()));
            let opened = open(source.clone(), compression, &nowhere, &Limits::default()).unwrap();
            assert_eq!(opened.size().unwrap(), data.len() as u64, "{name}");
            let before = source.bytes_read();
            let mut buf = [0; 100];
            opened.read_exact_at(&mut buf, 3 << 20).unwrap();
            assert_eq!(buf, data[3 << 20..][..100]);
            let one_unit = source.bytes_read() - before;
            assert!(one_unit < file.len() as u64 / 2, "{name}: {one_unit} of {}", file.len());
            let mut all = vec![0; data.len()];
            opened.read_exact_at(&mut all, 0).unwrap();
            assert!(all == data, "{name}");
            opened.verify().unwrap();
        }
    }

    #[test]
    fn threads_that_read_in_order_decode_each_unit_once() {
        let data = sample(12 << 20);
        for (name, compression, file) in indexed(&data) {
            let source = Arc::new(CountedFile::from(file.clone()));
            let opened =
                open(source.clone(), compression, &TempDir::new().join("missing"), &Limits::default()).unwrap();
            let before = source.bytes_read();
            let next = AtomicU64::new(0);
            const STEP: u64 = 300_000;
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let mut buf = vec![0; STEP as usize];
                        loop {
                            let at = next.fetch_add(STEP, Ordering::Relaxed);
                            let Some(rest) = data.get(at as usize..).filter(|rest| !rest.is_empty()) else { break };
                            let len = rest.len().min(buf.len());
                            opened.read_exact_at(&mut buf[..len], at).unwrap();
                            assert!(buf[..len] == rest[..len], "{name} {at}");
                        }
                    });
                }
            });
            let read = source.bytes_read() - before;
            // A thread that does not get its turn for long may find that the others have read on, and its unit dropped; without
            // any order, four threads would decode each unit four times.
            assert!(read <= file.len() as u64 * 3 / 2, "{name}: {read} of {}", file.len());
        }
    }

    #[test]
    fn reading_at_random_ends_in_a_temporary_file() {
        let data = sample(30 << 20);
        let (_, compression, file) = indexed(&data).remove(0);
        let dir = TempDir::new();
        let source = Arc::new(CountedFile::from(file.clone()));
        let opened = open(source.clone(), compression, dir.path(), &Limits::default()).unwrap();
        let mut random = Random::new(1);
        for _ in 0..2000 {
            let at = random.below(data.len() as u64 - 100);
            let mut buf = [0; 100];
            opened.read_exact_at(&mut buf, at).unwrap();
            assert!(buf == data[at as usize..][..100]);
        }
        assert!(source.bytes_read() < 5 * file.len() as u64, "units are not decoded again and again");
    }

    #[test]
    fn damage_of_a_unit_is_an_error_of_its_reads() {
        let data = sample(5 << 20);
        for (name, compression, mut file) in indexed(&data) {
            let at = file.len() / 2;
            file[at] ^= 0x10;
            let opened = open_in(&TempDir::new(), compression, file).unwrap();
            let mut buf = vec![0; 1000];
            opened.read_exact_at(&mut buf, 0).unwrap();
            assert_eq!(buf, data[..1000], "{name}");
            let mut all = vec![0; data.len()];
            let error: Error = opened.read_exact_at(&mut all, 0).unwrap_err().downcast().unwrap();
            assert!(matches!(error, Error::Corrupt(_)), "{name}: {error}");
        }
    }

    #[test]
    fn what_was_read_in_part_is_verified_at_the_end() {
        let data = sample(5 << 20);
        let (_, compression, mut file) = indexed(&data).remove(0);
        // The check of the first block: its compressed data is intact.
        let index = index::read(
            &(Arc::new(file.clone()) as Arc<dyn ReadAt>),
            file.len() as u64,
            compression,
            &Limits::default(),
        );
        let first = index.unwrap().units()[0];
        file[(first.at + first.stored) as usize - 4] ^= 1;
        let opened = open_in(&TempDir::new(), compression, file).unwrap();
        let mut buf = [0; 100];
        opened.read_exact_at(&mut buf, 0).map_err(drop).unwrap_or_default();
        assert!(opened.verify().is_err());
    }

    #[test]
    fn a_wrong_index_is_an_error() {
        let data = sample(3 << 20);
        let (_, _, mut file) = indexed(&data).remove(2);
        // The sizes of the first frame in the seek table: one more, and of the second: one less.
        let table = file.len() - 9 - 5 * 8;
        for (entry, delta) in [(0, 1_u32), (1, 1_u32.wrapping_neg())] {
            let at = table + entry * 8 + 4;
            let len = u32::from_le_bytes(file[at..at + 4].try_into().unwrap()).wrapping_add(delta);
            file[at..at + 4].copy_from_slice(&len.to_le_bytes());
        }
        let opened = open_in(&TempDir::new(), Compression::Zstd, file).unwrap();
        let error: Error = opened.read_exact_at(&mut vec![0; 3 << 20], 0).unwrap_err().downcast().unwrap();
        assert!(error.to_string().contains("uncompressed size in the index"), "{error}");
    }

    /// Offset, stored length and length of each unit.
    fn units(compression: Compression, file: &[u8], limits: &Limits) -> Option<Vec<(u64, u64, u64)>> {
        let source: Arc<dyn ReadAt> = Arc::new(file.to_vec());
        let index = index::read(&source, file.len() as u64, compression, limits)?;
        Some(index.units().iter().map(|unit| (unit.at, unit.stored, unit.len)).collect())
    }

    /// Frames of a single segment, of one byte that is repeated and of plain blocks (RFC 8878, section 3.1.1).
    const REPEATED: &[u8] = b"\x28\xb5\x2f\xfd\x20\xc8\x43\x06\0a";
    const PLAIN: &[u8] = b"\x28\xb5\x2f\xfd\x20\x06\x18\0\0abc\x19\0\0def";

    #[test]
    fn frames_are_found_by_the_headers_of_their_blocks() {
        let checked = encode(Compression::Zstd, &sample(1000));
        let file = [REPEATED, PLAIN, &checked, b"\x50\x2a\x4d\x18\x01\0\0\0x", PLAIN].concat();
        let len = checked.len() as u64;
        let expected = [(0, 10, 200), (10, 18, 6), (28, len, 1000), (28 + len + 9, 18, 6)];
        assert_eq!(units(Compression::Zstd, &file, &Limits::default()).unwrap(), expected);
        let data = [&[b'a'; 200], &b"abcdef"[..], &sample(1000), b"abcdef"].concat();
        assert_eq!(decode(Compression::Zstd, &file).unwrap(), data);
        for cut in 1..file.len() - 28 - checked.len() {
            let found = units(Compression::Zstd, &file[..file.len() - cut], &Limits::default());
            assert_eq!(found.is_some(), [18, 27].contains(&cut), "{cut}");
        }
    }

    #[test]
    fn a_seek_table_tells_what_a_unit_is() {
        let frames = [REPEATED, PLAIN].concat();
        // One entry for both frames, without and with a checksum.
        let with = |descriptor: u8, entry: &[u8], frame: &[u8], magic: &[u8], more: u32| {
            let len = (entry.len() as u32 + 9 + more).to_le_bytes();
            let table = [frame, &len, entry, &[1, 0, 0, 0, descriptor], magic].concat();
            units(Compression::Zstd, &[&frames[..], &table].concat(), &Limits::default())
        };
        let (frame, magic) = (b"\x5e\x2a\x4d\x18", b"\xb1\xea\x92\x8f");
        let entry = b"\x1c\0\0\0\xce\0\0\0";
        let checked = [&entry[..], b"sum."].concat();
        assert_eq!(with(0, entry, frame, magic, 0).unwrap(), [(0, 28, 206)]);
        assert_eq!(with(3, entry, frame, magic, 0).unwrap(), [(0, 28, 206)]);
        assert_eq!(with(0x80, &checked, frame, magic, 0).unwrap(), [(0, 28, 206)]);
        // Anything else is no seek table, but may be a frame that is skipped.
        let scanned = vec![(0, 10, 200), (10, 18, 6)];
        for (descriptor, entry, frame, magic, more, expected) in [
            (4, &entry[..], frame, magic, 0, Some(&scanned)),
            (0x80, entry, frame, magic, 0, Some(&scanned)),
            (0, b"\x1b\0\0\0\xce\0\0\0", frame, magic, 0, Some(&scanned)),
            (0, entry, b"\x5f\x2a\x4d\x18", magic, 0, Some(&scanned)),
            (0, entry, frame, b"\xb1\xea\x92\x90", 0, Some(&scanned)),
            (0, entry, frame, magic, 1, None),
        ] {
            assert_eq!(with(descriptor, entry, frame, magic, more).as_ref(), expected, "{descriptor} {more}");
        }
    }

    #[test]
    fn an_index_counts_against_the_memory_for_metadata() {
        let file = [PLAIN, PLAIN].concat();
        let unit = size_of::<index::Unit>() as u64;
        let within = |metadata| units(Compression::Zstd, &file, &Limits { metadata, ..Limits::default() });
        assert!(within(2 * unit).is_some() && within(2 * unit - 1).is_none());
    }

    #[test]
    fn absurd_indexes_are_not_taken() {
        let limits = Limits::default();
        let read = |compression, file: Vec<u8>| {
            let len = file.len() as u64;
            index::read(&(Arc::new(file) as Arc<dyn ReadAt>), len, compression, &limits)
        };
        let small = xz(&sample(1000), lzma_rust2::CheckType::Crc32, None);
        assert!(read(Compression::Xz, small.clone()).is_some());
        for len in 1..small.len() {
            assert_eq!(read(Compression::Xz, small[..len].to_vec()), None);
        }
        for at in 0..small.len() {
            let mut damaged = small.clone();
            damaged[at] ^= 0x40;
            let _ = read(Compression::Xz, damaged);
        }
        // A seek table of 2^32 - 1 frames, and one that is longer than the file.
        for count in [u32::MAX, 1000] {
            let footer = [&count.to_le_bytes()[..], &[0], &0x8f92_eab1_u32.to_le_bytes()].concat();
            assert_eq!(read(Compression::Zstd, [&[0; 64][..], &footer].concat()), None);
        }
        assert_eq!(read(Compression::Zstd, vec![]), Some(index::Index::default()));
        assert_eq!(read(Compression::Xz, vec![0; 100]), None);
        // Members of BGZF that are cut off, or whose sizes are wrong.
        let file = bgzf(&sample(100_000));
        assert_eq!(read(Compression::Gzip, file.clone()).unwrap().units().len(), 2);
        let is_whole = |len: &usize| read(Compression::Gzip, file[..*len].to_vec()).is_some();
        assert_eq!((1..file.len()).filter(is_whole).count(), 2, "at the end of a member");
        for size in [0, 17, u16::MAX] {
            let mut damaged = file.clone();
            damaged[16..18].copy_from_slice(&size.to_le_bytes());
            assert_eq!(read(Compression::Gzip, damaged), None, "{size}");
        }
    }

    #[test]
    fn a_file_of_one_part_is_decoded_once_in_one_pass() {
        let data = sample(4 << 20);
        for compression in [Compression::Gzip, Compression::Zstd, Compression::Xz] {
            let file = encode(compression, &data);
            let source = Arc::new(CountedFile::from(file.clone()));
            let stream = OneStream::open(source.clone(), compression, &Limits::default()).unwrap().unwrap();
            assert_eq!(stream.head, data[..8192]);
            let end = data[data.len() - 512..].to_vec();
            let check = move |found: &[u8]| {
                assert_eq!(found, end);
                Ok(())
            };
            let dir = TempDir::new();
            let opened =
                stream.into_file(&dir.join("missing"), &Limits::default(), Box::new(check)).unwrap().expect("a size");
            let mut all = vec![0; data.len()];
            opened.read_exact_at(&mut all, 0).unwrap();
            assert!(all == data, "{compression}");
            opened.verify().unwrap();
            assert!(source.bytes_read() < file.len() as u64 + 8192, "{compression}: read once");
            // The beginning is no longer in memory unless it is recent; in another directory, a temporary file is made.
            let stream = OneStream::open(source, compression, &Limits::default()).unwrap().unwrap();
            let opened = stream.into_file(dir.path(), &Limits::default(), Box::new(|_| Ok(()))).unwrap().unwrap();
            opened.read_exact_at(&mut all[..1], 3 << 20).unwrap();
            opened.read_exact_at(&mut all, 0).unwrap();
            assert!(all == data, "{compression}");
        }
    }

    #[test]
    fn a_size_that_is_wrong_is_noticed() {
        // Joined members: the last one states only its own size.
        for lens in [[1 << 20, 512], [512, 1 << 20]] {
            let file: Vec<u8> = lens.iter().flat_map(|len| encode(Compression::Gzip, &sample(*len))).collect();
            let stream = OneStream::open(Arc::new(file), Compression::Gzip, &Limits::default()).unwrap().unwrap();
            let dir = TempDir::new();
            let opened = stream.into_file(dir.path(), &Limits::default(), Box::new(|_| Ok(()))).unwrap();
            let Some(opened) = opened else { continue };
            let mut all = vec![0; opened.size().unwrap() as usize];
            let read = opened.read_exact_at(&mut all, 0).and_then(|()| opened.verify());
            let error: Error = read.unwrap_err().downcast().unwrap();
            assert!(matches!(error, Error::NotOnePass { .. }), "{error}");
        }
    }
}
