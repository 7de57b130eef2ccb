use super::*;
use crate::format::vhdx::bat::state;
use crate::format::vhdx::sample::Sample;
use crate::format::vhdx::structure::Replay;
use crate::limits::{Budget, Limits};

const ZERO: u64 = state::ZERO;

fn full(mib: u64) -> u64 {
    Sample::entry(state::FULLY_PRESENT, mib * MIB)
}

fn partial(mib: u64) -> u64 {
    Sample::entry(state::PARTIALLY_PRESENT, mib * MIB)
}

fn unmapped(mib: u64) -> u64 {
    Sample::entry(state::UNMAPPED, mib * MIB)
}

fn report_of(structure: &Structure, budget: u64) -> CheckReport {
    let (limits, budget) = (Limits::default(), Budget::new(budget));
    let cx = OpenContext::new(&limits, &budget);
    check_structure(structure, &cx).unwrap()
}

fn report(sample: &Sample) -> CheckReport {
    report_of(&sample.structure(), 1 << 20)
}

/// Blocks of 2 MiB; header section, log, metadata and table are in the first 4 MiB of the file.
#[test]
fn verdicts_on_disks_without_a_parent() {
    // Blocks, MiB in the file; corruptions, leaks, allocated blocks, fragmented blocks, end of the last block.
    for (blocks, file_mib, corruptions, leaks, used, fragmented, end) in [
        (&[full(4), full(6), ZERO, full(8)][..], 10, 0, 0, 3, 0, 10),
        (&[full(6), full(4), ZERO, 0], 8, 0, 0, 2, 1, 8),
        // Only the part of the last block beyond the disk may be missing.
        (&[full(4), full(6)], 7, 0, 0, 2, 0, 7),
        (&[full(6), full(4)], 7, 1, 0, 1, 0, 6),
        (&[full(4), full(7)], 7, 1, 0, 1, 0, 6),
        // Blocks that overlap each other, in whole or in part, or metadata.
        (&[full(4), full(4)], 6, 1, 0, 2, 1, 6),
        (&[full(4), full(5)], 7, 1, 0, 2, 1, 7),
        (&[full(0), full(4)], 6, 1, 0, 1, 0, 6),
        (&[full(1), full(4)], 6, 1, 0, 2, 1, 6),
        (&[full(2), full(4)], 6, 1, 0, 2, 0, 6),
        (&[full(3), full(5)], 7, 1, 0, 2, 0, 7),
        // Invalid entries.
        (&[full(4) | 8, full(4)], 6, 1, 0, 1, 0, 6),
        (&[4, full(4)], 6, 1, 0, 1, 0, 6),
        (&[partial(4), full(4)], 6, 1, 0, 1, 0, 6),
        // Space for blocks after the first one, and more than the table reserve before it.
        (&[full(4), full(8), 0], 10, 0, 1, 2, 1, 10),
        (&[full(4), full(7), 0], 10, 0, 0, 2, 1, 9),
        (&[full(4), 0, ZERO], 11, 0, 2, 1, 0, 6),
        (&[full(8), 0, ZERO], 10, 0, 0, 1, 0, 10),
        (&[full(9), 0, ZERO], 11, 0, 0, 1, 0, 11),
        (&[full(10), 0, ZERO], 12, 0, 1, 1, 0, 12),
        (&[0, ZERO], 9, 0, 0, 0, 0, 0),
        (&[0, ZERO], 12, 0, 2, 0, 0, 0),
        // Space of an unmapped block is not leaked, and another block may overlap it.
        (&[unmapped(4), full(6)], 8, 0, 0, 1, 0, 8),
        (&[unmapped(4), full(4)], 6, 0, 0, 1, 0, 6),
        (&[unmapped(100), full(4)], 6, 0, 0, 1, 0, 6),
        (&[unmapped(0), Sample::entry(state::UNDEFINED, 6 * MIB), full(4)], 8, 0, 0, 1, 0, 6),
    ] {
        let mut sample = Sample::new(2 * MIB, false, blocks, file_mib * MIB);
        sample.size -= MIB;
        let report = report(&sample);
        let counts = (report.corruptions, report.leaks, report.check_errors);
        assert_eq!(counts, (corruptions, leaks, 0), "{blocks:x?} {:?}", report.messages);
        assert_eq!(report.total_clusters, blocks.len() as u64);
        assert_eq!((report.allocated_clusters, report.fragmented_clusters), (used, fragmented), "{blocks:x?}");
        assert_eq!(report.image_end_offset, end * MIB, "{blocks:x?}");
    }
}

#[test]
fn a_fixed_image_has_space_for_unallocated_blocks() {
    let mut structure = Sample::new(2 * MIB, false, &[full(4), ZERO, 0, full(4)], 16 * MIB).structure();
    for (fixed, leaks) in [(false, 5), (true, 0)] {
        structure.metadata.leave_block_allocated = fixed;
        let report = report_of(&structure, 1 << 20);
        assert_eq!((report.corruptions, report.leaks, report.check_errors), (1, leaks, 0), "{:?}", report.messages);
    }
}

/// Chunks of 16 blocks.
#[test]
fn verdicts_on_sector_bitmap_blocks() {
    let partial_at = |block: u64| (0..20).map(|index| if index == block { partial(6) } else { 0 }).collect::<Vec<_>>();
    // Whether the disk has a parent, the partially present block, bitmap entries; corruptions, leaks.
    for (differencing, block, bitmaps, corruptions, leaks) in [
        (true, 0, [full(4), 0], 0, 0),
        (true, 15, [full(4), 0], 0, 0),
        (true, 16, [0, full(4)], 0, 0),
        (true, 16, [full(4), full(5)], 0, 1),
        (true, 16, [full(4), 0], 1, 1),
        (true, 0, [0, 0], 1, 0),
        (true, 0, [3, 0], 1, 0),
        (true, 0, [partial(4), 0], 1, 0),
        (true, 0, [full(4) | 64, 0], 1, 0),
        (true, 0, [full(3), 0], 1, 0),
        (true, 0, [full(0), 0], 1, 0),
        (true, 0, [full(300), 0], 1, 0),
        (true, 0, [full(7), 0], 1, 0),
        (true, 99, [0, 0], 0, 0),
        (false, 99, [0, 0], 0, 0),
        (false, 99, [full(4), 0], 0, 1),
        (false, 99, [5, 0], 1, 0),
    ] {
        let mut sample = Sample::new(256 * MIB, differencing, &partial_at(block), 262 * MIB);
        sample.bitmaps = bitmaps.to_vec();
        if block == 99 {
            sample.file_len = 8 * MIB;
        }
        let report = report(&sample);
        let counts = (report.corruptions, report.leaks, report.check_errors);
        assert_eq!(counts, (corruptions, leaks, 0), "{block} {bitmaps:x?} {:?}", report.messages);
        assert_eq!(report.fragmented_clusters, 0);
    }
}

#[test]
fn messages_name_the_entry_and_the_overlap() {
    let blocks = [full(1), full(2), full(3), full(4), full(4), full(0), full(50)];
    let mut structure = Sample::new(MIB, false, &blocks, 9 * MIB).structure();
    structure.regions.others.push(structure.regions.metadata.clone());
    structure.regions.others[0].range = 5 * MIB..6 * MIB;
    let at = |entry: u64| {
        format!("ERROR: vhdx: corrupt image at file offset {:#x}: payload BAT entry", 0x30_0000 + entry * 8)
    };
    let expected = [
        format!("{} points to 0x100000, which overlaps the log", at(0)),
        format!("{} points to 0x200000, which overlaps the metadata region", at(1)),
        format!("{} points to 0x300000, which overlaps the BAT region", at(2)),
        format!("{} points to 0x400000, which overlaps another block", at(4)),
        format!("{} points to 0x0, which overlaps the header section", at(5)),
        format!("{} is out of bounds: 1048576 bytes at 0x3200000, file length 0x900000", at(6)),
        "Leaked: space for 3 blocks at file offset 0x600000 is not referenced".to_owned(),
    ];
    assert_eq!(report_of(&structure, 1 << 20).messages, expected);
}

#[test]
fn traces_of_a_killed_writer_are_notes() {
    let mut structure = Sample::new(MIB, false, &[full(4)], 5 * MIB).structure();
    structure.header_warning = Some("a header".to_owned());
    structure.replay = Some(Replay { entries: 5, bytes: 4096, skipped: 1 });
    assert_eq!(structure.notes().last().unwrap(), "1 newer log entries of incomplete sequences are ignored");
    structure.replay = Some(Replay { entries: 5, bytes: 4096, skipped: 0 });
    let report = report_of(&structure, 1 << 20);
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0));
    let replay = "Note: the log is not empty; it is replayed in memory, and the file is not changed";
    assert_eq!(report.messages, ["Note: a header", replay]);

    structure.table_warning = Some("a table".to_owned());
    let report = report_of(&structure, 1 << 20);
    assert_eq!((report.corruptions, &*report.messages[2]), (1, "ERROR: a table"));
}

#[test]
fn the_allocation_bitmap_is_limited_by_the_budget() {
    let sample = Sample::new(MIB, false, &[full(4)], 1 << 60);
    let report = report(&sample);
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 1));
    assert!(
        report.messages[0].starts_with("Not checked: vhdx: size in memory of the allocation bitmap"),
        "{:?}",
        report.messages
    );
    // Two bits for each MiB.
    let report = report_of(&Sample::new(MIB, false, &[full(4)], 5 << 40).structure(), 5 << 18);
    assert_eq!((report.check_errors, report.leaks), (0, (5 << 20) - 5));
}
