//! Work ranges, exactly.

// A list with one range is intended: an image with one island of data.
#![allow(clippy::single_range_in_vec_init)]

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::convert::tests::{KIB, MIB, islands, job, qcow2};
use crate::driver::{ExtentKind, FileId, Location};

/// Guest ranges.
type Ranges = Vec<Range<u64>>;

/// All work ranges, with the data of the source and of the backing image in each.
fn plan(job: &Job<'_>) -> Vec<(Range<u64>, Ranges, Ranges)> {
    let settings = qcow2("");
    let mut planner = Planner::new(job, &settings).unwrap();
    let mut found = Vec::new();
    while let Some(work) = planner.next().unwrap() {
        assert_eq!(work.seq, found.len() as u64);
        let ranges = |spans: &[Span]| -> Ranges {
            spans.iter().for_each(|span| {
                let place = Location { file: FileId(0), offset: span.offset };
                assert_eq!((span.kind, span.layer), (ExtentKind::Data(place), 0));
            });
            spans.iter().map(|span| span.offset..span.end()).collect()
        };
        found.push((work.range, ranges(&work.source), ranges(&work.base)));
    }
    assert!(planner.next().unwrap().is_none());
    found
}

/// As [`plan`], without a backing image.
fn plan_alone(job: &Job<'_>) -> Vec<(Range<u64>, Ranges)> {
    plan(job).into_iter().map(|(range, source, base)| (range, source, base.is_empty())).map(|it| (it.0, it.1)).collect()
}

#[test]
fn an_island_is_one_work_range() {
    let at = 5 * MIB + 12 * KIB;
    let source = islands(64 * MIB, &[at..at + 4 * KIB]);
    let expected = [(5 * MIB..6 * MIB, vec![at..at + 4 * KIB])];
    assert_eq!(plan_alone(&job(&source, None, 64 * KIB)), expected);
    assert_eq!(plan_alone(&job(&islands(64 * MIB, &[]), None, 64 * KIB)), []);
}

#[test]
fn runs_are_cut_at_chunks() {
    let source = islands(4 * MIB + 100, &[MIB - 1..3 * MIB + 1, 3 * MIB + 5..3 * MIB + 6, 4 * MIB + 99..4 * MIB + 100]);
    let expected = [
        (0..MIB, vec![MIB - 1..MIB]),
        (MIB..2 * MIB, vec![MIB..2 * MIB]),
        (2 * MIB..3 * MIB, vec![2 * MIB..3 * MIB]),
        (3 * MIB..4 * MIB, vec![3 * MIB..3 * MIB + 1, 3 * MIB + 5..3 * MIB + 6]),
        // To the end of the new disk, which is longer.
        (4 * MIB..4 * MIB + 512, vec![4 * MIB + 99..4 * MIB + 100]),
    ];
    assert_eq!(plan_alone(&job(&source, None, 64 * KIB)), expected);
    // Chunks are at least a block, and as long as the requested minimum of zeros.
    let found = plan_alone(&job(&source, None, 2 * MIB));
    assert_eq!(
        found.iter().map(|(range, _)| range.clone()).collect::<Vec<_>>(),
        [0..2 * MIB, 2 * MIB..4 * MIB, 4 * MIB..4 * MIB + 512]
    );
    let found = plan_alone(&Job { sparse: 16 * MIB, ..job(&source, None, 512) });
    assert_eq!(found.iter().map(|(range, _)| range.clone()).collect::<Vec<_>>(), [0..4 * MIB + 512]);
}

#[test]
fn a_dense_image_has_work_ranges_for_the_whole_disk() {
    let source = islands(3 * MIB, &[MIB..MIB + 1]);
    let expected = [(0..MIB, vec![]), (MIB..2 * MIB, vec![MIB..MIB + 1]), (2 * MIB..3 * MIB, vec![])];
    let sparse = job(&source, None, 64 * KIB);
    let mut dense = job(&source, None, 64 * KIB);
    dense.spec.dense = true;
    assert_eq!(plan_alone(&dense), expected);
    assert_eq!(plan_alone(&Job { sparse: 0, ..sparse }), expected);
}

#[test]
fn data_of_only_the_backing_image_is_not_skipped() {
    let source = islands(16 * MIB, &[2 * MIB..2 * MIB + 1, 12 * MIB..12 * MIB + 1]);
    // Longer than the source: data after the end of the source is ignored.
    let base = islands(32 * MIB, &[9 * MIB - 1..9 * MIB + 1, 12 * MIB + 5..12 * MIB + 6, 20 * MIB..21 * MIB]);
    let expected = [
        (2 * MIB..3 * MIB, vec![2 * MIB..2 * MIB + 1], vec![]),
        (8 * MIB..9 * MIB, vec![], vec![9 * MIB - 1..9 * MIB]),
        (9 * MIB..10 * MIB, vec![], vec![9 * MIB..9 * MIB + 1]),
        (12 * MIB..13 * MIB, vec![12 * MIB..12 * MIB + 1], vec![12 * MIB + 5..12 * MIB + 6]),
    ];
    assert_eq!(plan(&job(&source, Some(&base), 64 * KIB)), expected);
    // A base that ends within a chunk before the source does.
    let short = islands(12 * MIB + 6, &[12 * MIB + 5..12 * MIB + 6]);
    let source = islands(16 * MIB, &[14 * MIB..14 * MIB + 1]);
    let expected = [
        (12 * MIB..13 * MIB, vec![], vec![12 * MIB + 5..12 * MIB + 6]),
        (14 * MIB..15 * MIB, vec![14 * MIB..14 * MIB + 1], vec![]),
    ];
    assert_eq!(plan(&job(&source, Some(&short), 64 * KIB)), expected);
}

#[test]
fn looking_for_data_can_be_cancelled() {
    let source = islands(64 * MIB, &[MIB..MIB + 1]);
    let job = job(&source, None, 64 * KIB);
    let settings = qcow2("").cancel(Arc::new(AtomicBool::new(true)));
    let error = Planner::new(&job, &settings).unwrap().next().err().unwrap();
    assert_eq!(error.kind().as_str(), "cancelled");
}
