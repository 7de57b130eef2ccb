use byteorder::{ByteOrder, LittleEndian};

use super::*;
use crate::io::{MemFile, WriteAt};
use crate::limits::{Budget, Limits};

const BLOCK: u32 = 512;
const MAP: u64 = 512;
const DATA: u64 = 1024;
const FREE: u32 = !0;
const ZERO: u32 = !1;

/// An image with the block map `map` and `data_blocks` blocks of data, truncated by `cut` bytes.
fn image(map: &[u32], allocated: u32, data_blocks: u64, cut: u64) -> MemFile {
    let file = MemFile::new();
    file.set_len(DATA + data_blocks * u64::from(BLOCK) - cut).unwrap();
    let mut header = [0; Header::LEN];
    for (at, value) in [
        (64, 0xbeda_107f),
        (68, 0x1_0001),
        (72, 400),
        (76, 1),
        (340, MAP as u32),
        (344, DATA as u32),
        (368, map.len() as u32 * BLOCK - 100),
        (376, BLOCK),
        (384, map.len() as u32),
        (388, allocated),
    ] {
        LittleEndian::write_u32(&mut header[at..], value);
    }
    file.write_all_at(&header, 0).unwrap();
    let map: Vec<u8> = map.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    file.write_all_at(&map, MAP).unwrap();
    file
}

fn report(file: MemFile) -> CheckReport {
    report_within(file, 1 << 20)
}

fn report_within(file: MemFile, budget: u64) -> CheckReport {
    let (limits, budget) = (Limits::default(), Budget::new(budget));
    let cx = OpenContext::new(&limits, &budget);
    check(Arc::new(file), &cx).unwrap()
}

#[test]
fn verdicts() {
    // Map, cBlocksAllocated, blocks in the file, missing bytes; corruptions, leaks, fragmented blocks.
    for (map, allocated, data_blocks, cut, corruptions, leaks, fragmented) in [
        (&[0, FREE, ZERO, 1][..], 2, 2, 0, 0, 0, 0),
        // The part of the last block beyond the disk may be missing.
        (&[0, FREE, ZERO, 1], 2, 2, 100, 0, 0, 0),
        (&[0, FREE, ZERO, 1], 2, 2, 101, 1, 0, 0),
        (&[1, FREE, ZERO, 0], 2, 2, 0, 0, 0, 1),
        (&[1, FREE, ZERO, 0], 2, 2, 1, 1, 0, 1),
        (&[0, FREE, ZERO, 0], 1, 1, 0, 1, 0, 1),
        (&[0, 2, 1, 3], 4, 4, 0, 0, 0, 3),
        // Leaked blocks.
        (&[0, FREE, ZERO, 1], 3, 3, 0, 0, 1, 0),
        (&[0, FREE, ZERO, 2], 3, 3, 0, 0, 1, 1),
        (&[FREE, FREE, FREE, FREE], 4, 0, 0, 0, 4, 0),
        // A writer would allocate a block that is in use.
        (&[0, FREE, ZERO, 1], 1, 2, 0, 1, 0, 0),
        (&[0, FREE, ZERO, 9], 2, 10, 0, 1, 1, 1),
        (&[0, 1, 2, 3], 5, 5, 0, 1, 1, 0),
    ] {
        let report = report(image(map, allocated, data_blocks, cut));
        let found = (report.corruptions, report.leaks, report.fragmented_clusters);
        assert_eq!(found, (corruptions, leaks, fragmented), "{map:?} {allocated}: {:?}", report.messages);
        let blocks = map.iter().filter(|entry| **entry < ZERO).count() as u64;
        assert_eq!((report.total_clusters, report.allocated_clusters, report.check_errors), (4, blocks, 0));
    }
}

#[test]
fn messages_name_the_block_and_its_host_offset() {
    let found = report(image(&[0, FREE, 1, 1], 1, 2, 0));
    assert_eq!(
        found.messages,
        [
            "ERROR: block 3 at file offset 0x600 overlaps another block",
            "ERROR: cBlocksAllocated at file offset 0x184 is 1, but block 1 of the data area is in use",
        ]
    );
    assert_eq!((found.image_end_offset, found.unused_end), (DATA + 1024, 0));
    let found = report(image(&[7], 8, 1, 0));
    assert_eq!(
        found.messages,
        [
            "ERROR: vdi: corrupt image at file offset 0x200: block map entry is out of bounds: 412 bytes at 0x1200, file length 0x600",
            "ERROR: cBlocksAllocated at file offset 0x184 is 8, but the disk has 1 blocks"
        ]
    );
}

#[test]
fn the_bitmap_of_blocks_is_limited_by_the_budget() {
    let file = || image(&[0, FREE], 1, 65, 0);
    assert_eq!(report_within(file(), 9), report(file()));
    let report = report_within(file(), 8);
    assert_eq!((report.check_errors, report.corruptions, report.unused_end), (1, 0, 0));
    assert!(report.messages[0].contains("the bitmap of blocks in use"), "{:?}", report.messages);
}
