//! Extents of generated images, compared with a reference that maps one byte at a time.

use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::driver::Location;
use crate::format::Format;
use crate::format::vdi::header::Kind;
use crate::format::vdi::map::IMAGE;
use crate::io::{MemFile, ReadAt, WriteAt};
use crate::limits::{Budget, Limits};

/// A description of an image of a few small blocks.
#[derive(Clone, Debug)]
struct Sample {
    kind: Kind,
    /// Size of the disk in bytes. It may end within its last block.
    size: u64,
    block_size: u32,
    extra: u32,
    map_offset: u64,
    /// Bytes between the block map and the data.
    gap: u64,
    map: Vec<BlockMapEntry>,
    /// Bytes of the file.
    file_len: u64,
}

impl Sample {
    fn header(&self) -> Header {
        Header {
            minor_version: 1,
            kind: self.kind,
            comment: Name::default(),
            map_offset: self.map_offset,
            data_offset: self.map_offset + self.map.len() as u64 * 4 + self.gap,
            disk_size: self.size,
            block_size: self.block_size,
            block_extra: self.extra,
            blocks: self.map.len() as u32,
            blocks_allocated: 0,
            uuid: Uuid::from_bytes([1; 16]),
            modification: Uuid::from_bytes([2; 16]),
            linkage: if self.kind.has_parent() { Uuid::from_bytes([3; 16]) } else { Uuid::nil() },
            parent_modification: Uuid::nil(),
            lchs_sector_size: Some(512),
        }
    }

    fn file(&self) -> MemFile {
        let file = MemFile::new();
        let header = self.header();
        file.set_len(self.file_len.max(header.data_offset)).unwrap();
        file.write_all_at(&header.encode(), 0).unwrap();
        let map: Vec<u8> = self.map.iter().flat_map(|entry| entry.encode().to_le_bytes()).collect();
        file.write_all_at(&map, self.map_offset).unwrap();
        file
    }

    fn open(&self) -> Reader {
        open(Arc::new(self.file())).unwrap()
    }

    /// The extent kind of the byte at guest offset `offset`; `None` beyond the end of the file.
    fn byte(&self, offset: u64) -> Option<ExtentKind> {
        let (block, within) = (offset / u64::from(self.block_size), offset % u64::from(self.block_size));
        Some(match self.map[block as usize] {
            BlockMapEntry::Free if self.kind.has_parent() => ExtentKind::Hole,
            BlockMapEntry::Free | BlockMapEntry::Zero => ExtentKind::Zero { allocated: None },
            BlockMapEntry::Block(number) => {
                let area = self.header().data_offset + u64::from(number * (self.extra + self.block_size));
                let host_offset = area + u64::from(self.extra) + within;
                if host_offset >= self.file_len.max(self.header().data_offset) {
                    return None;
                }
                ExtentKind::Data(Location { file: IMAGE, offset: host_offset })
            }
        })
    }
}

fn open(file: Arc<dyn ReadAt>) -> Result<Reader> {
    let (limits, budget) = (Limits::default(), Budget::new(0));
    Reader::open(file, &OpenContext::new(&limits, &budget))
}

fn entries() -> impl Strategy<Value = Vec<BlockMapEntry>> {
    let entry =
        prop_oneof![Just(BlockMapEntry::Free), Just(BlockMapEntry::Zero), (0u32..12).prop_map(BlockMapEntry::Block)];
    // Runs of contiguous blocks are likely, so that extents of several blocks are.
    prop::collection::vec((entry, 1usize..4), 1..5).prop_map(|runs| {
        let run = |(entry, len): (BlockMapEntry, usize)| {
            (0..len as u32).map(move |n| {
                if let BlockMapEntry::Block(number) = entry { BlockMapEntry::Block(number + n) } else { entry }
            })
        };
        runs.into_iter().flat_map(run).collect()
    })
}

fn samples() -> impl Strategy<Value = Sample> {
    let kind = prop::sample::select(vec![Kind::Dynamic, Kind::Static, Kind::Undo, Kind::Differencing]);
    let extra = prop_oneof![Just(0u32), Just(512), Just(7)];
    let gap = prop_oneof![Just(0u64), Just(3000), 0u64..600];
    (kind, entries(), extra, 472u64..600, gap, 9u32..12, 0u64..3000, 0u64..40_000).prop_map(
        |(kind, map, extra, map_offset, gap, shift, short, file_len)| {
            let size = ((map.len() as u64) << shift).saturating_sub(short).max(1);
            Sample { kind, size, block_size: 1 << shift, extra, map_offset, gap, map, file_len }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn extents_match_the_kind_of_each_byte(sample in samples(), start in any::<prop::sample::Index>()) {
        let reader = sample.open();
        let mut at = start.index(sample.size as usize) as u64;
        while at < sample.size {
            // A block is missing as a whole if any of its visible bytes is.
            let block = u64::from(sample.block_size);
            let end = (at / block + 1) * block;
            let whole = sample.byte(end.min(sample.size) - 1).is_some();
            match reader.extent_at(at..u64::MAX) {
                Ok(extent) => {
                    prop_assert!(whole && extent.offset == at && extent.len > 0 && extent.end() <= sample.size);
                    for by in 0..extent.len {
                        prop_assert_eq!(sample.byte(at + by), Some(extent.kind.advance(by)), "{}", at + by);
                    }
                    // The extent is maximal: the next block does not continue it, or is missing.
                    if extent.end() < sample.size {
                        prop_assert!(extent.end() % block == 0);
                        let next_last = (extent.end() + block).min(sample.size) - 1;
                        let next = sample.byte(extent.end()).filter(|_| sample.byte(next_last).is_some());
                        prop_assert!(next.is_none_or(|next| !extent.kind.continues(extent.len, next)));
                    }
                    at = extent.end();
                }
                Err(error) => {
                    prop_assert!(!whole, "{error}");
                    prop_assert_eq!(error.kind().as_str(), "out-of-bounds");
                    at = end;
                }
            }
        }
        prop_assert_eq!(reader.extent_at(sample.size..u64::MAX).unwrap_err().kind().as_str(), "usage");
    }

    /// Neither two blocks nor a block and metadata share a unit of the alignment.
    #[test]
    fn host_offsets_of_blocks_are_aligned(sample in samples()) {
        let reader = sample.open();
        let unit = reader.host_alignment().unwrap();
        prop_assert!(unit.is_power_of_two() && u64::from(sample.block_size) % unit == 0);
        for number in 0..12 {
            prop_assert_eq!(reader.map.host_offset(number) % unit, 0);
        }
        prop_assert!(reader.map.host_offset(0) / unit * unit >= sample.map_offset + sample.map.len() as u64 * 4);
    }

    #[test]
    fn nothing_panics(
        sample in samples(),
        words in prop::collection::vec((16u64..140, prop_oneof![any::<u32>(), Just(0xffff_fffd), 0u32..5000]), 0..5),
        offsets in prop::collection::vec(any::<u64>(), 1..4),
    ) {
        let file = sample.file();
        for (word, value) in words {
            file.write_all_at(&value.to_le_bytes(), word * 4).unwrap();
        }
        if let Ok(reader) = open(Arc::new(file)) {
            let size = reader.info().virtual_size;
            for offset in offsets.into_iter().flat_map(|offset| [offset, offset % size.max(1)]) {
                if let Ok(extent) = reader.extent_at(offset..u64::MAX) {
                    prop_assert!(extent.offset == offset && extent.len > 0 && extent.end() <= size);
                }
            }
        }
    }
}

#[test]
fn a_long_map_is_read_in_pages() {
    let count = 10_000;
    let mut map = vec![BlockMapEntry::Free; count];
    (map[5000], map[9999]) = (BlockMapEntry::Block(0), BlockMapEntry::Block(0xffff_fffd));
    let sample = Sample {
        kind: Kind::Dynamic,
        size: count as u64 * 512,
        block_size: 512,
        extra: 0,
        map_offset: 512,
        gap: 0,
        map,
        file_len: 1 << 20,
    };
    let reader = sample.open();
    let lens = |range: Range<u64>| {
        let mut lens = Vec::new();
        let mut at = range.start * 512;
        while at < range.end * 512 {
            let extent = reader.extent_at(at..u64::MAX).unwrap();
            lens.push(extent.len / 512);
            at = extent.end();
        }
        lens
    };
    assert_eq!(lens(0..9999), [4096, 904, 1, 3191, 1807]);
    assert_eq!(reader.extent_at(9999 * 512..u64::MAX).unwrap_err().kind().as_str(), "out-of-bounds");
    assert_eq!(lens(8000..8001), [192]);
}

#[test]
fn the_parent_is_identified_by_its_uuid() {
    let uuid = "03030303-0303-0303-0303-030303030303";
    let info = |kind| {
        let map = vec![BlockMapEntry::Free];
        let sample = Sample { kind, size: 512, block_size: 512, extra: 0, map_offset: 512, gap: 0, map, file_len: 0 };
        sample.open().info().clone()
    };
    for kind in [Kind::Undo, Kind::Differencing] {
        let info = info(kind);
        let parent = info.backing.unwrap();
        assert_eq!((parent.role, parent.name), ("parent", Name::from(format!("{{{uuid}}}.vdi"))));
        assert_eq!((parent.beside, parent.format), (Some("vdi"), Some(Name::from("vdi"))));
        assert_eq!(parent.identities, [Name::from(format!("UUID {uuid}"))]);
        assert_eq!(info.identities, [Name::from("UUID 01010101-0101-0101-0101-010101010101")]);
        assert!(info.specific.contains(&("parent-uuid", uuid.into())));
    }
    assert_eq!(info(Kind::Dynamic).backing, None);
    assert_eq!(info(Kind::Static).specific.first(), Some(&("type", "static".into())));
}

#[test]
fn properties_are_those_that_the_image_has() {
    let map = vec![BlockMapEntry::Free];
    let sample =
        Sample { kind: Kind::Dynamic, size: 512, block_size: 512, extra: 0, map_offset: 512, gap: 0, map, file_len: 0 };
    let names = |header: &Header| describe(header).specific.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let plain = sample.header();
    assert_eq!(names(&plain), ["type", "uuid", "modification-uuid", "blocks-allocated"]);
    let comment = Header { comment: Name::from("a comment"), block_extra: 1, ..plain };
    assert_eq!(names(&comment), ["type", "uuid", "modification-uuid", "comment", "block-extra", "blocks-allocated"]);
}

#[test]
fn internal_snapshots_are_not_supported() {
    let (limits, budget) = (Limits::default(), Budget::new(0));
    let cx = OpenContext { snapshot: Some("1"), ..OpenContext::new(&limits, &budget) };
    let error = Format::by_name("vdi").unwrap().open(Arc::new(MemFile::new()), &cx).err().unwrap();
    assert_eq!(error.kind().as_str(), "unsupported");
}
