use proptest::prelude::*;

use super::*;
use crate::format::Format;
use crate::io::MemFile;
use crate::limits::{Budget, Limits};

/// An image of blocks of `block_size` bytes with these offsets, of `file_len` bytes.
fn image(block_size: u32, offsets: &[u64], file_len: usize) -> Vec<u8> {
    let mut bytes =
        b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\nexit $?\n".to_vec();
    bytes.resize(128, 0);
    bytes.extend(block_size.to_be_bytes());
    bytes.extend((offsets.len() as u32 - 1).to_be_bytes());
    bytes.extend(offsets.iter().flat_map(|offset| offset.to_be_bytes()));
    bytes.resize(file_len, 0);
    bytes
}

fn open(bytes: Vec<u8>) -> Result<Reader> {
    let (limits, budget) = (Limits::default(), Budget::new(0));
    Reader::open(Arc::new(MemFile::from(bytes)), &OpenContext::new(&limits, &budget))
}

#[test]
fn invalid_fields_are_refused_by_name() {
    let error = |bytes: Vec<u8>| {
        let error = open(bytes).err().unwrap();
        format!("{} {error}", error.kind())
    };
    let at = "cloop: corrupt image at file offset";
    let good = image(512, &[152, 160], 200);
    assert!(open(good.clone()).is_ok());
    let mut other = good.clone();
    other[12] = b'3';
    assert_eq!(error(other), "unsupported cloop: not supported: versions other than 2.0");
    assert_eq!(
        error(good[..135].to_vec()),
        format!("out-of-bounds {at} 0x0: header is out of bounds: 136 bytes at 0x0, file length 0x87")
    );
    assert_eq!(
        error(good[..151].to_vec()),
        format!("out-of-bounds {at} 0x84: number of blocks is out of bounds: 16 bytes at 0x88, file length 0x97")
    );
    for (size, message) in [
        (0, "block size is 0, outside 512..=67108864"),
        (513, "block size is 0x201, not a multiple of 512"),
        ((64 << 20) + 512, "block size is 67109376, outside 512..=67108864"),
    ] {
        assert_eq!(error(image(size, &[152, 160], 200)), format!("invalid-field {at} 0x80: {message}"));
    }
}

#[test]
fn payloads_ascend_and_are_within_the_file() {
    let kind = |offsets: &[u64]| {
        let reader = open(image(512, offsets, 4096)).unwrap();
        reader.extent_at(0..1).map_err(|error| error.kind().as_str()).map(|extent| extent.kind)
    };
    for (offsets, error) in [
        ([152, 152], "invalid-field"),
        ([160, 152], "invalid-field"),
        ([151, 160], "overlap"),
        ([0, 160], "overlap"),
        ([4000, 4097], "out-of-bounds"),
        ([4097, 4097], "out-of-bounds"),
        ([u64::MAX, 0], "out-of-bounds"),
        ([152, u64::MAX], "out-of-bounds"),
    ] {
        assert_eq!(kind(&offsets), Err(error), "{offsets:?}");
    }
    assert!(kind(&[152, 4096]).is_ok());
    // The longest payload of a block, and one that is longer by a byte.
    let longest = 152 + 512 + EXPANSION;
    let ending_at = |end| open(image(512, &[152, end], 2 << 20)).unwrap().extent_at(0..1);
    assert!(ending_at(longest).is_ok());
    assert_eq!(
        ending_at(longest + 1).unwrap_err().to_string(),
        format!("cloop: corrupt image at file offset 0x90: block offset is {}, outside 153..={longest}", longest + 1)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 32, ..ProptestConfig::default() })]

    /// A page of the table has 2048 entries.
    #[test]
    fn each_block_is_a_unit(lens in prop::collection::vec(1u64..5, 1..5000), start in any::<prop::sample::Index>()) {
        let first = 136 + (lens.len() as u64 + 1) * 8;
        let mut offsets = vec![first];
        lens.iter().for_each(|len| offsets.push(offsets.last().unwrap() + len));
        let reader = open(image(1024, &offsets, *offsets.last().unwrap() as usize)).unwrap();
        let size = lens.len() as u64 * 1024;
        prop_assert_eq!(reader.info().virtual_size, size);
        let start = start.index(size as usize) as u64;
        for at in [start, 0, size - 1].into_iter().chain((0..size).step_by(1024 * 97)) {
            let index = (at / 1024) as usize;
            let unit = Compressed {
                at: Location { file: FileId(0), offset: offsets[index] },
                stored_len: lens[index] as u32,
                codec: Codec::Zlib,
                unit: at / 1024 * 1024,
                unit_len: 1024,
                min_len: 1024,
            };
            let extent = reader.extent_at(at..u64::MAX).unwrap();
            prop_assert_eq!(extent, Extent::new(at..(at / 1024 + 1) * 1024, ExtentKind::Compressed(unit)));
        }
        prop_assert_eq!(reader.extent_at(size..size + 1).unwrap_err().kind().as_str(), "usage");
    }
}

#[test]
fn images_are_only_read() {
    assert!(!Format::CLOOP.can_create() && !Format::CLOOP.can_check());
    let (limits, budget) = (Limits::default(), Budget::new(0));
    let cx = OpenContext { snapshot: Some("1"), ..OpenContext::new(&limits, &budget) };
    let error = Format::CLOOP.open(Arc::new(MemFile::new()), &cx).err().unwrap();
    assert_eq!(error.kind().as_str(), "unsupported");
}
