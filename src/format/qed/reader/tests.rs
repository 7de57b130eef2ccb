//! Extents of generated images, compared with a reference that maps one byte at a time.

use proptest::prelude::*;

use super::*;
use crate::driver::{ExtentKind, Location};
use crate::io::{MemFile, WriteAt};
use crate::limits::{Budget, Limits};

const CLUSTER: u64 = 4096;
/// Entries of a table of one cluster.
const ENTRIES: u64 = 512;

/// A description of an image with tables of one cluster.
#[derive(Clone, Debug)]
struct Sample {
    size: u64,
    /// The L1 table: the index of the L2 table, if there is one.
    l1: Vec<Option<usize>>,
    /// Host offsets of L2 tables, and their first entries.
    l2: Vec<(u64, Vec<u64>)>,
    file_len: u64,
}

impl Sample {
    fn file(&self) -> MemFile {
        let file = MemFile::new();
        let header = Header {
            cluster_bits: 12,
            table_size: 1,
            header_size: 1,
            need_check: false,
            l1_table_offset: CLUSTER,
            image_size: self.size,
            backing: None,
        };
        let l1 = self.l1.iter().flat_map(|index| index.map_or(0, |index| self.l2[index].0).to_le_bytes());
        file.write_all_at(&header.encode(), 0).unwrap();
        file.write_all_at(&l1.collect::<Vec<_>>(), CLUSTER).unwrap();
        for (offset, entries) in &self.l2 {
            let bytes: Vec<_> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
            file.write_all_at(&bytes, *offset).unwrap();
        }
        file.set_len(self.file_len.max(2 * CLUSTER)).unwrap();
        file
    }

    /// The extent kind of the byte at guest offset `offset`; the kind of the error of its cluster.
    fn byte(&self, offset: u64) -> Result<ExtentKind, &'static str> {
        let file_len = self.file_len.max(2 * CLUSTER);
        let cluster = offset / CLUSTER;
        let Some(table) = self.l1[(cluster / ENTRIES) as usize] else { return Ok(ExtentKind::Hole) };
        let (at, entries) = &self.l2[table];
        if at + CLUSTER > file_len {
            return Err("out-of-bounds");
        }
        let visible = CLUSTER.min(self.size - cluster * CLUSTER);
        match entries.get((cluster % ENTRIES) as usize).copied().unwrap_or(0) {
            0 => Ok(ExtentKind::Hole),
            1 => Ok(ExtentKind::Zero { allocated: None }),
            host if !host.is_multiple_of(CLUSTER) => Err("invalid-field"),
            host if host + visible > file_len => Err("out-of-bounds"),
            host => Ok(ExtentKind::Data(Location { file: IMAGE, offset: host + offset % CLUSTER })),
        }
    }
}

fn open(file: MemFile) -> Result<Reader> {
    let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
    Reader::open(Arc::new(file), &OpenContext::new(&limits, &budget))
}

fn entries() -> impl Strategy<Value = Vec<u64>> {
    let entry = prop_oneof![
        3 => Just(0u64),
        3 => Just(1),
        8 => (4u64..30).prop_map(|cluster| cluster * CLUSTER),
        1 => 2u64..20_000,
    ];
    // Runs of contiguous clusters are likely.
    prop::collection::vec((entry, 1u64..6), 0..6).prop_map(|runs| {
        let run = |(entry, len): (u64, u64)| (0..len).map(move |n| if entry > 1 { entry + n * CLUSTER } else { entry });
        runs.into_iter().flat_map(run).collect()
    })
}

fn samples() -> impl Strategy<Value = Sample> {
    let l1 = prop::collection::vec(prop::option::of(0usize..2), 1..4);
    let l2 = (entries(), entries()).prop_map(|(a, b)| vec![(2 * CLUSTER, a), (3 * CLUSTER, b)]);
    (l1, l2, 0u64..40, 8u64..200).prop_map(|(l1, l2, short, file_sectors)| {
        let size = l1.len() as u64 * ENTRIES * CLUSTER - short * 512;
        Sample { size, l1, l2, file_len: file_sectors * 512 }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn extents_match_the_kind_of_each_byte(sample in samples(), start in any::<prop::sample::Index>()) {
        let reader = open(sample.file()).unwrap();
        let mut at = start.index(sample.size as usize) as u64;
        while at < sample.size {
            let next_cluster = (at / CLUSTER + 1) * CLUSTER;
            match reader.extent_at(at..u64::MAX) {
                Ok(extent) => {
                    prop_assert!(extent.offset == at && extent.len > 0 && extent.end() <= sample.size);
                    // Both ends of each cluster; the kinds between follow.
                    let ends = (at / CLUSTER..extent.end().div_ceil(CLUSTER))
                        .flat_map(|cluster| [cluster * CLUSTER, (cluster + 1) * CLUSTER - 1]);
                    for byte in ends.map(|byte| byte.clamp(at, extent.end() - 1)) {
                        prop_assert_eq!(sample.byte(byte), Ok(extent.kind.advance(byte - at)), "{}", byte);
                    }
                    // The extent is maximal within its L2 table.
                    if extent.end() < sample.size {
                        prop_assert!(extent.end().is_multiple_of(CLUSTER));
                        let next = sample.byte(extent.end()).ok();
                        let same_table = (extent.end() / CLUSTER).is_multiple_of(ENTRIES);
                        prop_assert!(same_table || next.is_none_or(|next| !extent.kind.continues(extent.len, next)));
                    }
                    at = extent.end();
                }
                Err(error) => {
                    prop_assert_eq!(sample.byte(at), Err(error.kind().as_str()));
                    at = next_cluster;
                }
            }
        }
        prop_assert_eq!(reader.extent_at(sample.size..u64::MAX).unwrap_err().kind().as_str(), "usage");
    }
}

#[test]
fn a_range_may_start_within_a_cluster() {
    let l2 = vec![(2 * CLUSTER, vec![4 * CLUSTER, 5 * CLUSTER])];
    let sample = Sample { size: 2 * CLUSTER, l1: vec![Some(0)], l2, file_len: 6 * CLUSTER };
    let extent = open(sample.file()).unwrap().extent_at(1000..u64::MAX).unwrap();
    let data = ExtentKind::Data(Location { file: IMAGE, offset: 4 * CLUSTER + 1000 });
    assert_eq!(extent, Extent::new(1000..2 * CLUSTER, data));
}

#[test]
fn the_metadata_is_claimed() {
    let sample = |tables: [u64; 2]| Sample {
        size: 2 * ENTRIES * CLUSTER,
        l1: vec![Some(0), Some(1)],
        l2: tables.map(|at| (at, Vec::new())).to_vec(),
        file_len: 5 * CLUSTER,
    };
    let claims = |tables| {
        let mut claims: Vec<Range<u64>> = Vec::new();
        let result = open(sample(tables).file()).unwrap().metadata(&mut |_, range| {
            let is_free = claims.iter().all(|other| other.end <= range.start || range.end <= other.start);
            claims.push(range);
            is_free
        });
        result.map(|()| claims.iter().map(|range| (range.start / CLUSTER, range.end / CLUSTER)).collect::<Vec<_>>())
    };
    assert_eq!(claims([2 * CLUSTER, 4 * CLUSTER]).unwrap(), [(0, 1), (1, 2), (2, 3), (4, 5)]);
    for tables in [[2 * CLUSTER; 2], [CLUSTER, 2 * CLUSTER]] {
        assert_eq!(claims(tables).unwrap_err().kind().as_str(), "overlap");
    }
}

#[test]
fn the_state_and_the_backing_file_are_described() {
    let header = Header {
        cluster_bits: 16,
        table_size: 4,
        header_size: 1,
        need_check: true,
        l1_table_offset: 65536,
        image_size: 512,
        backing: Some(Backing { name: Name::from("base"), is_raw: true }),
    };
    let info = describe(&header);
    assert_eq!((info.format, info.virtual_size, info.block_size, info.dirty), ("qed", 512, Some(65536), true));
    let backing = info.backing.unwrap();
    assert_eq!((backing.role, backing.name, backing.format), ("backing file", "base".into(), Some("raw".into())));
    let header = Header { backing: Some(Backing { name: Name::from("base"), is_raw: false }), ..header };
    assert_eq!(describe(&header).backing.unwrap().format, None);
}
