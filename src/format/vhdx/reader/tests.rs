//! Extents of generated images, compared with a reference that maps one byte at a time.

use proptest::prelude::*;

use super::*;
use crate::error::{Error, Fault};
use crate::format::vhdx::bat::state;
use crate::format::vhdx::sample::{BAT, METADATA, Sample};

/// Host offset of the blocks of the samples.
const DATA: u64 = 16 * MIB;

impl Sample {
    fn open(&self) -> Reader {
        Reader::new(self.structure(), &Budget::new(0)).unwrap()
    }

    /// The extent kind of the byte at guest offset `offset`; `None` if its block is invalid.
    fn byte(&self, offset: u64) -> Option<ExtentKind> {
        let block_size = u64::from(self.block_size);
        let (block, within) = (offset / block_size, offset % block_size);
        let visible = block_size.min(self.size - block * block_size);
        let (entry, ratio) = (self.blocks[block as usize], self.chunk_ratio() as u64);
        let host_offset = entry >> 20 << 20;
        let in_file = |offset: u64, len: u64| offset >= MIB && offset + len <= self.file_len;
        let payload = || Some(ExtentKind::Data(Location { file: IMAGE, offset: host_offset + within }));
        if entry & 0xf_fff8 != 0 {
            return None;
        }
        match (entry & 7, self.differencing) {
            (0, true) => Some(ExtentKind::Hole),
            (0..=3 | 5, _) => Some(ExtentKind::Zero { allocated: None }),
            (6, _) if in_file(host_offset, visible) => payload(),
            (7, true) if in_file(host_offset, visible) => {
                let bitmap = self.bitmaps[(block / ratio) as usize];
                let bitmap_offset = bitmap >> 20 << 20;
                if bitmap & 0xf_ffff != 6 || !in_file(bitmap_offset, MIB) {
                    return None;
                }
                let sector = (offset - block / ratio * ratio * block_size) / u64::from(self.sector_size);
                let at = bitmap_offset + sector / 8;
                let bits = |(start, bytes): &(u64, Vec<u8>)| bytes.get(at.checked_sub(*start)? as usize).copied();
                let byte = self.bytes.iter().find_map(bits).unwrap_or(0);
                if byte >> (sector % 8) & 1 == 1 { payload() } else { Some(ExtentKind::Hole) }
            }
            _ => None,
        }
    }

    /// Guest offsets at which the extent kind can change.
    fn edges(&self) -> Vec<u64> {
        let block_size = u64::from(self.block_size);
        let mut edges: Vec<_> = (0..self.size).step_by(MIB as usize).collect();
        let data = self.bytes.iter().map(|(start, bytes)| *start..start + bytes.len() as u64);
        for edge in data.flat_map(|range| [range.start, range.end]) {
            for (block, entry) in self.blocks.iter().enumerate() {
                let within = edge.wrapping_sub(entry >> 20 << 20);
                if within < block_size {
                    edges.push(block as u64 * block_size + within);
                }
            }
        }
        for (chunk, bitmap) in self.bitmaps.iter().enumerate() {
            let host_offset = bitmap >> 20 << 20;
            let first = chunk as u64 * (u64::from(self.sector_size) << 23);
            for (start, bytes) in
                self.bytes.iter().filter(|(start, _)| (host_offset..host_offset + MIB).contains(start))
            {
                let sectors = (start - host_offset) * 8..(start - host_offset + bytes.len() as u64) * 8;
                edges.extend(sectors.map(|sector| first + sector * u64::from(self.sector_size)));
            }
        }
        edges.retain(|edge| *edge < self.size);
        edges
    }
}

fn samples() -> impl Strategy<Value = Sample> {
    let shape = (prop::sample::select(vec![1u64, 2, 32, 256]), prop::sample::select(vec![512u32, 4096]), any::<bool>());
    let entry = (
        prop_oneof![8 => 0u64..4, 1 => Just(5u64), 8 => Just(6u64), 8 => Just(7u64), 1 => Just(4u64)],
        // Most blocks are in guest order.
        prop_oneof![3 => Just(None), 1 => (0u64..40).prop_map(Some)],
        prop_oneof![40 => Just(0u64), 1 => 0u64..2 << 17],
    );
    let entries = prop::collection::vec(entry, 1..40);
    let bitmaps = prop::collection::vec((prop_oneof![5 => Just(6u64), 1 => 0u64..8], any::<u64>()), 40);
    // Bits of a bitmap, with the index of their first byte.
    let bits = prop::collection::vec(
        (0u64..64, prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 1..50)),
        1..8,
    );
    (shape, entries, bitmaps, bits, 0u64..9, prop_oneof![4 => Just(0), 1 => 0u64..20 << 20]).prop_map(
        |((mib, sector_size, differencing), entries, bitmaps, bits, cut, short)| {
            let block_size = mib * MIB;
            let slot = |slot: u64| DATA + slot * block_size;
            let blocks: Vec<_> = (0..)
                .zip(&entries)
                .map(|(block, &(state, index, reserved))| slot(index.unwrap_or(block)) | state | (reserved & !1) << 2)
                .collect();
            let file_len = slot(40) - short;
            let mut sample = Sample::new(block_size, differencing, &blocks, file_len);
            sample.sector_size = sector_size;
            sample.size -= cut * u64::from(sector_size);
            sample.bitmaps = vec![0; blocks.len().div_ceil(sample.chunk_ratio())];
            for ((chunk, entry), (state, _)) in (0..).zip(&mut sample.bitmaps).zip(bitmaps) {
                // Between the table and the data.
                *entry = Sample::entry(state, (4 + chunk) * MIB);
                let host_offset = (4 + chunk) * MIB;
                let mut end = 0;
                for (at, bytes) in &bits {
                    // Around the starts of blocks and bitmap pages.
                    let start = (at * 16 * 1024).saturating_sub(bytes.len() as u64 / 2);
                    if start >= end {
                        end = start + bytes.len() as u64;
                        sample.bytes.push((host_offset + start, bytes.clone()));
                    }
                }
            }
            sample
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn extents_match_the_kind_of_each_byte(sample in samples()) {
        let reader = sample.open();
        let mut edges = sample.edges();
        let mut at = 0;
        let mut extents = Vec::new();
        while at < sample.size {
            match reader.extent_at(at..u64::MAX) {
                Ok(extent) => {
                    prop_assert!(extent.offset == at && extent.len > 0 && extent.end() <= sample.size);
                    edges.extend([at, extent.end() - 1]);
                    at = extent.end();
                    extents.push(extent);
                }
                Err(error) => {
                    prop_assert!(matches!(error, Error::Corrupt(_)), "{error}");
                    prop_assert_eq!(sample.byte(at), None, "at {:#x}", at);
                    at = (at / u64::from(sample.block_size) + 1) * u64::from(sample.block_size);
                }
            }
        }
        let kind = |at: u64| {
            let next = extents.partition_point(|extent| extent.end() <= at);
            extents.get(next).filter(|extent| extent.offset <= at).map(|extent| extent.kind.advance(at - extent.offset))
        };
        for edge in edges {
            for at in [edge, edge.saturating_sub(1)] {
                prop_assert_eq!(kind(at), sample.byte(at), "at {:#x}", at);
                // An extent can be requested from any byte.
                let extent = reader.extent_at(at..u64::MAX).ok();
                prop_assert_eq!(extent.map(|extent| extent.kind), sample.byte(at), "from {:#x}", at);
            }
        }
        // Data never ends within a unit of the alignment.
        let unit = reader.host_alignment().unwrap();
        for extent in &extents {
            if let ExtentKind::Data(location) = extent.kind {
                prop_assert!(location.offset.is_multiple_of(unit));
                prop_assert!(extent.end().is_multiple_of(unit) || extent.end() == sample.size);
            }
        }
    }
}

#[test]
fn an_empty_disk_has_few_extents() {
    for (block_size, state) in [(32 * MIB, state::NOT_PRESENT), (32 * MIB, state::ZERO), (MIB, state::ZERO)] {
        let blocks = vec![state; ((4 << 40) / block_size) as usize];
        let sample = Sample::new(block_size, false, &blocks, 1 << 30);
        let reader = sample.open();
        let (mut at, mut count) = (0, 0);
        while at < sample.size {
            let extent = reader.extent_at(at..u64::MAX).unwrap();
            assert_eq!(extent.kind, ExtentKind::Zero { allocated: None });
            (at, count) = (extent.end(), count + 1);
        }
        // One per chunk or table page.
        assert!(count <= 2048, "{count}");
    }
}

#[test]
fn contiguous_blocks_are_one_extent() {
    let full = |mib: u64| Sample::entry(state::FULLY_PRESENT, mib * MIB);
    let sample = Sample::new(MIB, false, &[full(4), full(5), full(6), full(8), 0, state::ZERO, full(9)], 20 * MIB);
    let reader = sample.open();
    let extents: Vec<_> = [0, 3, 4, 6]
        .map(|mib| reader.extent_at(mib * MIB..u64::MAX).map(|extent| (extent.kind, extent.len / MIB)).unwrap())
        .into();
    let data = |mib: u64| ExtentKind::Data(Location { file: IMAGE, offset: mib * MIB });
    let zero = ExtentKind::Zero { allocated: None };
    assert_eq!(extents, [(data(4), 3), (data(8), 1), (zero, 2), (data(9), 1)]);
}

/// A chunk of 4096 blocks has more entries than a page of the table.
#[test]
fn blocks_of_later_chunks_and_pages_are_found() {
    let mut blocks = vec![0; 3 * 4096];
    let present = [0, 2047, 2048, 4095, 4096, 4096 + 3000, 2 * 4096 + 4095];
    for (index, host) in present.iter().zip((DATA..).step_by(2 * MIB as usize)) {
        blocks[*index as usize] = Sample::entry(state::FULLY_PRESENT, host);
    }
    let reader = Sample::new(MIB, false, &blocks, DATA + 20 * MIB).open();
    for (index, host) in present.iter().zip((DATA..).step_by(2 * MIB as usize)) {
        let extent = reader.extent_at(index * MIB..u64::MAX).unwrap();
        let data = ExtentKind::Data(Location { file: IMAGE, offset: host });
        assert_eq!((extent.kind, extent.len), (data, MIB), "{index}");
    }
}

#[test]
fn invalid_entries() {
    let full = |mib: u64| Sample::entry(state::FULLY_PRESENT, mib * MIB);
    let partial = Sample::entry(state::PARTIALLY_PRESENT, 6 * MIB);
    let bitmap_at = BAT + 4096 * 8;
    for (differencing, entry, bitmap, at, problem) in [
        (false, full(0), 0, BAT, Problem::Overlap { offset: 0, with: "the header section" }),
        (false, full(7), 0, BAT, Problem::OutOfBounds { offset: 7 * MIB, len: MIB, file_len: 7 * MIB }),
        (
            false,
            u64::MAX << 20 | 6,
            0,
            BAT,
            Problem::OutOfBounds { offset: u64::MAX << 20, len: MIB, file_len: 7 * MIB },
        ),
        (false, full(6) | 1 << 19, 0, BAT, Problem::Reserved { value: full(6) | 1 << 19, bits: 1 << 19 }),
        (false, full(6) | 8, 0, BAT, Problem::Reserved { value: full(6) | 8, bits: 8 }),
        (true, 4, 0, BAT, Problem::Rule { value: 4, rule: "must not be in the reserved state 4" }),
        (
            false,
            partial,
            full(4),
            BAT,
            Problem::Rule { value: partial, rule: "must not be partially present without a parent" },
        ),
        (
            true,
            partial,
            0,
            bitmap_at,
            Problem::Rule { value: 0, rule: "must be present for a partially present block" },
        ),
        (true, partial, 1, bitmap_at, Problem::Rule { value: 1, rule: "must be in state 0 or 6" }),
        (true, partial, full(0), bitmap_at, Problem::Overlap { offset: 0, with: "the header section" }),
        (true, partial, full(7), bitmap_at, Problem::OutOfBounds { offset: 7 * MIB, len: MIB, file_len: 7 * MIB }),
        (true, partial, full(4) | 16, bitmap_at, Problem::Reserved { value: full(4) | 16, bits: 16 }),
    ] {
        let mut sample = Sample::new(MIB, differencing, &[entry], 7 * MIB);
        sample.bitmaps = vec![bitmap];
        match sample.open().extent_at(0..u64::MAX) {
            Err(Error::Corrupt(Fault { at: found, problem: reported, .. })) => {
                assert_eq!((found, reported), (at, problem))
            }
            other => panic!("{other:?}, not {problem:?}"),
        }
    }
}

#[test]
fn the_table_has_an_entry_for_each_block() {
    // 131072 entries take 1 MiB. With blocks of 1 MiB, every 4096 entries are followed by one for the sector bitmap.
    for (blocks, differencing, entries) in
        [(131_040, false, 131_071), (131_072, false, 131_103), (126_976, true, 127_007), (131_041, true, 131_104)]
    {
        let mut structure = Sample::new(MIB, differencing, &vec![0; blocks], 1 << 30).structure();
        structure.regions.bat.range.end = BAT + MIB;
        match Bat::new(&structure, &Budget::new(0)) {
            Ok(_) => assert!(entries <= 131_072, "{blocks}"),
            Err(Error::Corrupt(Fault { at, problem, .. })) => {
                let (value, min, max) = (MIB, entries * 8, u32::MAX.into());
                assert_eq!((at, problem), (0x3_0028, Problem::Range { value, min, max }));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn metadata_ranges_are_reported() {
    let bitmap = |mib: u64| Sample::entry(state::FULLY_PRESENT, mib * MIB);
    let claimed = |bitmaps: [u64; 3], differencing| {
        let blocks = [Sample::entry(state::PARTIALLY_PRESENT, 100 * MIB); 48];
        let mut sample = Sample::new(256 * MIB, differencing, &blocks, 200 * MIB);
        assert_eq!(sample.chunk_ratio(), 16);
        sample.bitmaps = bitmaps.to_vec();
        let mut claimed = Vec::new();
        let mut claim = |file, range: Range<u64>| {
            assert_eq!(file, IMAGE);
            let free = claimed.iter().all(|other: &Range<u64>| other.end <= range.start || range.end <= other.start);
            claimed.push(range);
            free
        };
        let result = sample.open().metadata(&mut claim).map_err(|error| error.to_string());
        result.map(|()| claimed)
    };
    let known = vec![0..MIB, MIB..2 * MIB, METADATA..METADATA + MIB, BAT..BAT + MIB];
    assert_eq!(claimed([0; 3], true).unwrap(), known);
    // Sector bitmaps are not used without a parent. One out of bounds is reported when a block needs it.
    assert_eq!(claimed([bitmap(3); 3], false).unwrap(), known);
    let two = [known, vec![4 * MIB..5 * MIB, 6 * MIB..7 * MIB]].concat();
    assert_eq!(claimed([bitmap(4), bitmap(900), bitmap(6)], true).unwrap(), two);
    let at = BAT + (17 * 2 + 16) * 8;
    let message = format!(
        "vhdx: corrupt image at file offset {at:#x}: sector bitmap BAT entry points to 0x300000, which overlaps other metadata"
    );
    assert_eq!(claimed([0, 0, bitmap(3)], true), Err(message));
}

#[test]
fn image_properties() {
    let info = Sample::new(MIB, false, &[0], 4 * MIB).open().info;
    assert_eq!((info.virtual_size, info.block_size, info.backing, info.dirty), (MIB, Some(MIB as u32), None, false));
    assert_eq!(info.identities, [Name::from("data write GUID 00000000-0000-0000-0000-000000000003")]);
    assert_eq!(info.warnings, [""; 0]);
    let get =
        |info: &ImageInfo, key| info.specific.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone());
    let info = |change: fn(&mut Structure)| {
        let mut structure = Sample::new(MIB, false, &[0], 4 * MIB).structure();
        change(&mut structure);
        Reader::new(structure, &Budget::new(0)).unwrap()
    };
    let fixed = info(|structure| structure.metadata.leave_block_allocated = true).info;
    assert_eq!(get(&fixed, "subformat"), Some("fixed".into()));
    assert_eq!(get(&fixed, "log-entries-replayed"), None);
    let child_without_flag = info(|structure| structure.metadata.ignores_locator = true).info;
    assert_eq!((&*child_without_flag.warnings, child_without_flag.backing), (&[IGNORED_LOCATOR.into()][..], None));
    let replayed = info(|structure| {
        structure.replay = Some(Replay { entries: 5, bytes: 4096, skipped: 0 });
        structure.header_warning = Some("a header".to_owned());
        structure.table_warning = Some("a table".to_owned());
    });
    assert!(replayed.image_file().is_some());
    let info = replayed.info;
    assert!(info.dirty);
    assert_eq!(get(&info, "subformat"), Some("dynamic".into()));
    assert_eq!(get(&info, "log-entries-replayed"), Some(5.into()));
    assert_eq!(
        info.warnings,
        ["a header", "the log is not empty; it is replayed in memory, and the file is not changed", "a table"]
    );
}
