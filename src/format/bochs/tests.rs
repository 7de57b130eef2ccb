//! Generated images, compared with a reference that maps one sector at a time.

use proptest::prelude::*;

use super::*;
use crate::format::Format;
use crate::io::{MemFile, WriteAt};
use crate::limits::Budget;

/// The header as `bximage` writes it.
fn encode(header: &Header, version: u32) -> [u8; 512] {
    let mut bytes = [0; 512];
    for (at, text) in [(0, "Bochs Virtual HD Image"), (32, "Redolog"), (48, "Growing")] {
        bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    for (at, number) in [
        (64, version << 16),
        (68, header.header_size),
        (72, header.catalog_entries),
        (76, header.bitmap_size),
        (80, header.extent_size),
    ] {
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    let disk_at = if version == 1 { 84 } else { 88 };
    bytes[disk_at..disk_at + 8].copy_from_slice(&header.disk_size.to_le_bytes());
    bytes
}

fn sample() -> Header {
    Header { header_size: 512, catalog_entries: 128, bitmap_size: 1, extent_size: 4096, disk_size: 3 << 16 }
}

/// Parses the sample with `parts` replaced, each at its offset.
fn patched(parts: &[(usize, &[u8])]) -> Result<Header> {
    let mut bytes: [u8; Header::LEN] = *encode(&sample(), 2).first_chunk().unwrap();
    for (at, part) in parts {
        bytes[*at..at + part.len()].copy_from_slice(part);
    }
    Header::parse(&bytes, 4096, &Limits::default())
}

#[test]
fn invalid_fields_are_refused_by_name() {
    let check = |at: usize, part: &[u8], expected: &str| {
        let error = patched(&[(at, part)]).unwrap_err();
        assert_eq!(format!("{} {error}", error.kind()), expected);
    };
    let at = "bochs: corrupt image at file offset";
    check(32, b"Rawdisk", "unsupported bochs: not supported at file offset 0x20: type Rawdisk Growing");
    check(48, b"Undoable", "unsupported bochs: not supported at file offset 0x20: type Redolog Undoable");
    // Types that fill their fields have no zero at the end.
    check(
        32,
        b"sixteen letters.sixteen letters!!",
        "unsupported bochs: not supported at file offset 0x20: type sixteen letters. sixteen letters!",
    );
    check(66, &[3], "unsupported bochs: not supported at file offset 0x40: version 3.0");
    check(68, &[95, 0], &format!("invalid-field {at} 0x44: header size is 95, outside 96..=4294967295"));
    check(
        73,
        &[4],
        &format!("out-of-bounds {at} 0x48: catalog entries is out of bounds: 4608 bytes at 0x200, file length 0x1000"),
    );
    check(76, &[0], &format!("invalid-field {at} 0x4c: bitmap size is 0, outside 1..=4294967295"));
    check(81, &[1], &format!("invalid-field {at} 0x50: extent size is 256, outside 512..=8388608"));
    check(81, &[0x30], &format!("invalid-field {at} 0x50: extent size is 0x3000, but must be a power of two"));
    check(91, &[1], &format!("invalid-field {at} 0x58: disk size is 16973824, outside 0..=524288"));
    assert_eq!(patched(&[(68, &[96, 0])]).unwrap().header_size, 96);
    let mut bytes = [0; Header::LEN];
    bytes[0] = 1;
    assert_eq!(Header::parse(&bytes, 4096, &Limits::default()).unwrap_err().kind().as_str(), "invalid-field");
}

#[test]
fn both_versions_are_read() {
    for version in [1, 2] {
        let file = MemFile::from([&encode(&sample(), version)[..], &[0xff; 512]].concat());
        assert_eq!(Header::read(&file, &Limits::default()).unwrap(), sample());
        for len in [0, 95, 1023] {
            let cut = MemFile::from(file.to_vec()[..len].to_vec());
            assert_eq!(Header::read(&cut, &Limits::default()).unwrap_err().kind().as_str(), "out-of-bounds");
        }
    }
}

#[derive(Clone, Debug)]
struct Sample {
    header: Header,
    /// The number of each extent in the file.
    catalog: Vec<Option<u32>>,
    /// The bitmap of each extent in the file.
    bitmaps: Vec<Vec<u8>>,
    file_len: u64,
}

impl Sample {
    fn open(&self) -> Reader {
        let file = MemFile::from(encode(&self.header, 2).to_vec());
        let catalog = self.catalog.iter().flat_map(|entry| entry.unwrap_or(u32::MAX).to_le_bytes());
        file.write_all_at(&catalog.collect::<Vec<_>>(), 512).unwrap();
        for (number, bitmap) in self.bitmaps.iter().enumerate() {
            file.write_all_at(bitmap, self.bitmap_at(number as u64)).unwrap();
        }
        file.set_len(self.file_len).unwrap();
        let (limits, budget) = (Limits::default(), Budget::new(0));
        Reader::open(Arc::new(file), &OpenContext::new(&limits, &budget)).unwrap()
    }

    fn bitmap_at(&self, number: u64) -> u64 {
        512 + self.catalog.len() as u64 * 4 + number * (512 + u64::from(self.header.extent_size))
    }

    /// The kind of the sector at guest offset `offset`, and the least length of the file that has it.
    fn sector(&self, offset: u64) -> (ExtentKind, u64) {
        let extent = u64::from(self.header.extent_size);
        let zero = ExtentKind::Zero { allocated: None };
        let Some(number) = self.catalog[(offset / extent) as usize] else { return (zero, 0) };
        let at = self.bitmap_at(number.into());
        let sector = offset % extent / 512;
        let bitmap_end = at + self.bitmaps[number as usize].len() as u64;
        if self.bitmaps[number as usize][sector as usize / 8] >> (sector % 8) & 1 == 0 {
            return (zero, bitmap_end);
        }
        let host = at + 512 + offset % extent;
        (ExtentKind::Data(Location { file: IMAGE, offset: host }), host + 512)
    }
}

fn samples() -> impl Strategy<Value = Sample> {
    (9u32..15, 1usize..6).prop_flat_map(|(bits, stored)| {
        let bitmap_len = (1usize << bits >> 9).div_ceil(8);
        let byte = prop_oneof![Just(0u8), Just(0xff), any::<u8>()];
        let bitmaps = prop::collection::vec(prop::collection::vec(byte, bitmap_len), stored);
        let catalog = prop::collection::vec(prop::option::of(0..stored as u32), 1..8);
        (bitmaps, catalog, 0u64..16, 0u64..40_000).prop_map(move |(bitmaps, catalog, short, cut)| {
            let size = ((catalog.len() as u64) << bits).saturating_sub(short * 512).max(512);
            let header = Header {
                header_size: 512,
                catalog_entries: catalog.len() as u32,
                bitmap_size: bitmap_len as u32,
                extent_size: 1 << bits,
                disk_size: size,
            };
            let mut sample = Sample { header, catalog, bitmaps, file_len: 0 };
            let tables = sample.bitmap_at(0);
            sample.file_len = sample.bitmap_at(stored as u64).saturating_sub(cut).max(tables);
            sample
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn extents_match_the_kind_of_each_sector(sample in samples(), start in any::<prop::sample::Index>()) {
        let reader = sample.open();
        let size = sample.header.disk_size;
        let mut at = start.index(size as usize) as u64;
        while at < size {
            match reader.extent_at(at..u64::MAX) {
                Ok(extent) => {
                    prop_assert!(extent.offset == at && extent.len > 0 && extent.end() <= size);
                    for sector in (at / 512 * 512..extent.end()).step_by(512) {
                        let byte = sector.max(at);
                        let (kind, needed) = sample.sector(sector);
                        prop_assert_eq!(kind.advance(byte - sector), extent.kind.advance(byte - at), "{}", byte);
                        prop_assert!(needed <= sample.file_len);
                    }
                    at = extent.end();
                }
                Err(error) => {
                    prop_assert_eq!(error.kind().as_str(), "out-of-bounds");
                    // A run of sectors is missing if its last one is.
                    let end = (at / u64::from(sample.header.extent_size) + 1) * u64::from(sample.header.extent_size);
                    let run = (at / 512 * 512..end.min(size)).step_by(512).map(|sector| sample.sector(sector));
                    prop_assert!(run.into_iter().any(|(_, needed)| needed > sample.file_len));
                    at = end;
                }
            }
        }
        prop_assert_eq!(reader.extent_at(size..size + 1).unwrap_err().kind().as_str(), "usage");
    }

    #[test]
    fn arbitrary_fields_do_not_panic(
        parts in prop::collection::vec((16usize..24, prop_oneof![any::<u32>(), Just(!0), Just(0), 0u32..5000]), 0..6),
        file_len in prop_oneof![Just(4096), Just(u64::MAX), any::<u64>()],
    ) {
        let mut bytes: [u8; Header::LEN] = *encode(&sample(), 2).first_chunk().unwrap();
        for (word, value) in parts {
            bytes[word * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
        if let Ok(header) = Header::parse(&bytes, file_len, &Limits::default()) {
            prop_assert!(header.data_offset() <= file_len);
            prop_assert!(u64::from(header.catalog_entries) * u64::from(header.extent_size) >= header.disk_size);
        }
    }
}

#[test]
fn neighboring_unallocated_extents_are_one() {
    let header = Header { catalog_entries: 4, disk_size: 4 * 4096, ..sample() };
    let bitmaps = vec![vec![0xff], vec![0xff]];
    let mut image = Sample { header, catalog: vec![None, None, Some(0), None], bitmaps, file_len: 0 };
    image.file_len = image.bitmap_at(1);
    let reader = image.open();
    let ends = [0, 4096, 5000, 3 * 4096].map(|at| reader.extent_at(at..u64::MAX).unwrap().end());
    assert_eq!(ends, [2 * 4096, 2 * 4096, 2 * 4096, 4 * 4096]);
}

#[test]
fn images_are_only_read() {
    assert!(!Format::BOCHS.can_create() && !Format::BOCHS.can_check());
    let (limits, budget) = (Limits::default(), Budget::new(0));
    let cx = OpenContext { snapshot: Some("1"), ..OpenContext::new(&limits, &budget) };
    let error = Format::BOCHS.open(Arc::new(MemFile::new()), &cx).err().unwrap();
    assert_eq!(error.kind().as_str(), "unsupported");
}
