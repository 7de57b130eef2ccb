use proptest::prelude::*;
use uuid::uuid;

use super::*;
use crate::format::vhdx::sample::from_hex;
use crate::io::MemFile;

/// The header of a differencing disk created by Windows 10.
const WINDOWS: &str = "
    68656164 158ecde6 0a00000000000000 e91ff4f4c966e040872d649490a31073 c8bb5a30f4ceea45aee842ee5c891b06
    00000000000000000000000000000000 0000 0100 00001000 0000100000000000";
const FILE_LEN: u64 = 4 * MIB;

fn sample() -> Header {
    Header {
        sequence_number: 7,
        file_write_guid: Uuid::from_u128(1),
        data_write_guid: Uuid::from_u128(2),
        log_guid: Uuid::from_u128(3),
        log: MIB..2 * MIB,
    }
}

/// The sample with `parts` replaced, each at its offset, and a correct checksum.
fn patched(parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = sample().encode();
    for (at, part) in parts {
        bytes[*at..at + part.len()].copy_from_slice(part);
    }
    seal(&mut bytes);
    bytes
}

fn parse(bytes: &[u8]) -> Result<Header> {
    Header::parse(bytes.first_chunk().unwrap(), HEADERS_AT[0], FILE_LEN)
}

/// Reads a file with these two headers.
fn read(first: &[u8], second: &[u8]) -> Result<Headers> {
    let mut file = encode_identifier("a program");
    file.resize(FILE_LEN as usize, 0);
    for (at, header) in HEADERS_AT.into_iter().zip([first, second]) {
        file[at as usize..][..header.len()].copy_from_slice(header);
    }
    Headers::read(&MemFile::from(file), FILE_LEN)
}

#[test]
fn a_windows_header() {
    let bytes = from_hex(WINDOWS, Header::LEN);
    let header = Header {
        sequence_number: 10,
        file_write_guid: uuid!("f4f41fe9-66c9-40e0-872d-649490a31073"),
        data_write_guid: uuid!("305abbc8-cef4-45ea-aee8-42ee5c891b06"),
        log_guid: Uuid::nil(),
        log: MIB..2 * MIB,
    };
    assert_eq!(parse(&bytes).unwrap(), header);
    assert_eq!(header.encode(), bytes);
}

#[test]
fn invalid_fields_are_refused_by_name() {
    let refused = |parts: &[(usize, &[u8])], expected: &str| {
        let error = parse(&patched(parts)).unwrap_err();
        assert_eq!(format!("{} {error}", error.kind()), expected);
    };
    let at = "vhdx: corrupt image at file offset";
    refused(&[(0, b"HEAD")], &format!("invalid-field {at} 0x10000: Signature is 0x44414548, but must be \"head\""));
    refused(&[(66, &[2])], "unsupported vhdx: not supported at file offset 0x10042: format version 2");
    refused(&[(66, &[0])], "unsupported vhdx: not supported at file offset 0x10042: format version 0");
    refused(&[(64, &[1])], "unsupported vhdx: not supported at file offset 0x10040: log version 1");
    refused(
        &[(68, &[0, 0, 0x10, 1])],
        &format!(
            "out-of-bounds {at} 0x10048: LogOffset is out of bounds: 17825792 bytes at 0x100000, file length 0x400000"
        ),
    );
    refused(&[(68, &[1])], &format!("invalid-field {at} 0x10044: LogLength is 0x100001, not a multiple of 1048576"));
    refused(
        &[(68, &[0; 4])],
        &format!("invalid-field {at} 0x10044: LogLength is 0x0, but must not be 0 unless LogGuid is nil"),
    );
    refused(&[(73, &[2])], &format!("invalid-field {at} 0x10048: LogOffset is 0x100200, not a multiple of 1048576"));
    refused(
        &[(72, &[0; 8])],
        &format!("overlap {at} 0x10048: LogOffset points to 0x0, which overlaps the header section"),
    );
    refused(
        &[(72, &[0, 0, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff])],
        &format!(
            "out-of-bounds {at} 0x10048: LogOffset is out of bounds: 1048576 bytes at 0xfffffffffff00000, file length 0x400000"
        ),
    );

    let mut bytes = sample().encode();
    bytes[4095] = 1;
    let error = parse(&bytes).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{at} 0x10004: Checksum is 0x")), "{error}");
    assert!(error.ends_with(": checksum mismatch"), "{error}");
}

#[test]
fn harmless_deviations_are_accepted() {
    assert_eq!(parse(&patched(&[(80, &[0xff; 4016])])).unwrap(), sample());
    assert_eq!(parse(&patched(&[(68, &[0, 0, 0x30])])).unwrap(), Header { log: MIB..4 * MIB, ..sample() });
    // An empty log.
    let unused = Header { log_guid: Uuid::nil(), ..sample() };
    assert_eq!(parse(&patched(&[(48, &[0; 16]), (64, &[1])])).unwrap(), unused);
    assert_eq!(parse(&patched(&[(48, &[0; 16]), (68, &[0; 12])])).unwrap(), Header { log: 0..0, ..unused });
}

#[test]
fn the_header_with_the_higher_number_is_the_current_one() {
    let numbered = |number| Header { sequence_number: number, log_guid: Uuid::nil(), ..sample() };
    for (first, second, current) in [(1, 2, 1), (2, 1, 0), (u64::MAX, 0, 0), (0, 1 << 63, 1), (5, 5, 0)] {
        let headers = read(&numbered(first).encode(), &numbered(second).encode()).unwrap();
        assert_eq!((headers.at, headers.warning), (HEADERS_AT[current], None));
        assert_eq!(headers.header, numbered([first, second][current]));
        assert_eq!(headers.creator, Name::from("a program"));
    }
    let other = Header { file_write_guid: Uuid::from_u128(9), ..numbered(5) };
    let error = read(&numbered(5).encode(), &other.encode()).unwrap_err();
    assert_eq!(
        format!("{} {error}", error.kind()),
        "invalid-field vhdx: corrupt image at file offset 0x20008: SequenceNumber is 0x5: the other header has the \
         same number and differs"
    );
}

#[test]
fn one_header_may_be_damaged() {
    let torn = {
        let mut bytes = Header { sequence_number: 100, ..sample() }.encode();
        bytes[512..].fill(0xaa);
        bytes
    };
    let whole = sample().encode();
    for (first, second, current, warning) in [
        (&torn[..], &whole[..], 1, "at file offset 0x10004: Checksum is 0x"),
        (&whole, &torn, 0, "at file offset 0x20004: Checksum is 0x"),
        (&[0; 80], &whole, 1, "at file offset 0x10000: Signature is 0x0, but must be \"head\""),
        (&whole, &[0; 80], 0, "at file offset 0x20000: Signature is 0x0, but must be \"head\""),
    ] {
        let headers = read(first, second).unwrap();
        assert_eq!((headers.at, &headers.header), (HEADERS_AT[current], &sample()));
        let found = headers.warning.unwrap();
        let expected = format!("one of the two headers is damaged, the other one is used: {warning}");
        assert!(found.starts_with(&expected), "{found}");
    }
    let error = read(&torn, &[]).unwrap_err();
    assert!(matches!(&error, Error::Corrupt(fault) if fault.at == 0x10004), "{error}");
}

#[test]
fn an_invalid_current_header_is_not_replaced_by_the_other_one() {
    let newer = patched(&[(8, &[8]), (66, &[2])]);
    assert_eq!(read(&newer, &sample().encode()).unwrap_err().kind().as_str(), "unsupported");
    assert_eq!(read(&sample().encode(), &newer).unwrap_err().kind().as_str(), "unsupported");
    let older = patched(&[(8, &[6]), (66, &[2])]);
    assert_eq!(read(&older, &sample().encode()).unwrap().at, HEADERS_AT[1]);
}

#[test]
fn a_file_without_its_header_section_is_out_of_bounds() {
    let mut file = encode_identifier("");
    for len in [0, 7, 519, 520, 64 << 10, (1 << 20) - 1] {
        file.resize(len, 0);
        let error = Headers::read(&MemFile::from(file.clone()), len as u64).unwrap_err();
        assert_eq!(error.kind().as_str(), "out-of-bounds", "{len}: {error}");
    }
}

#[test]
fn the_file_identifier() {
    let read = |bytes: &[u8]| {
        let mut file = bytes.to_vec();
        file.resize(1 << 20, 0);
        read_creator(&MemFile::from(file))
    };
    let creator = "Größe \u{1f4be}";
    assert_eq!(read(&encode_identifier(creator)).unwrap(), Name::from(creator));
    assert_eq!(read(b"vhdxfileQ\0E\0\0\0U\0").unwrap(), Name::from("QE"));
    assert_eq!(read(b"vhdxfile\x00\xd8Q\0").unwrap(), Name::from("\u{fffd}Q"));
    // The creator has at most 256 characters.
    let full = [&b"vhdxfile"[..], &[b'x', 0].repeat(300)].concat();
    assert_eq!(read(&full).unwrap(), Name::from("x".repeat(256)));
    assert_eq!(
        read(b"vhdxFile").unwrap_err().to_string(),
        "vhdx: corrupt image at file offset 0x0: Signature is 0x656c694678646876, but must be \"vhdxfile\""
    );
}

proptest! {
    #[test]
    fn encoded_headers_parse(
        sequence_number: u64,
        guids: [u128; 3],
        start in 1u64..1 << 40,
        len in 1u64..4096,
    ) {
        let [file_write_guid, data_write_guid, log_guid] = guids.map(Uuid::from_u128);
        let log = start * MIB..(start + len) * MIB;
        let header = Header { sequence_number, file_write_guid, data_write_guid, log_guid, log };
        let bytes = header.encode();
        prop_assert_eq!(Header::parse(bytes.first_chunk().unwrap(), HEADERS_AT[1], header.log.end).unwrap(), header.clone());
        let error = Header::parse(bytes.first_chunk().unwrap(), HEADERS_AT[1], header.log.end - 1).unwrap_err();
        prop_assert_eq!(error.kind().as_str(), "out-of-bounds");
    }

    #[test]
    fn any_fields_are_parsed_or_refused(fields in prop::collection::vec(any::<u8>(), 72)) {
        if let Ok(header) = parse(&patched(&[(8, &fields)])) {
            prop_assert!(header.log.end <= FILE_LEN && header.log.start <= header.log.end);
        }
    }
}
