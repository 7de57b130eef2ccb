//! Extents of generated images, compared with a reference that maps one byte at a time.

use proptest::prelude::*;

use super::*;
use crate::codec::Codec;
use crate::driver::Compressed;
use crate::format::Format;
use crate::io::{MemFile, WriteAt};
use crate::limits::{Budget, Limits};

const CLUSTER: u64 = 512;
/// Entries of an L2 table, which has the size of a cluster.
const ENTRIES: u64 = 64;
const L1: u64 = 512;

/// A description of an image.
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
            backing_file: None,
            size: self.size,
            cluster_bits: 9,
            l2_bits: 6,
            is_encrypted: false,
            l1_table_offset: L1,
        };
        let l1 = self.l1.iter().flat_map(|index| index.map_or(0, |index| self.l2[index].0).to_be_bytes());
        file.write_all_at(&header.encode(), 0).unwrap();
        file.write_all_at(&l1.collect::<Vec<_>>(), L1).unwrap();
        for (offset, entries) in &self.l2 {
            let bytes: Vec<_> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            file.write_all_at(&bytes, *offset).unwrap();
        }
        file.set_len(self.file_len).unwrap();
        file
    }

    /// The extent kind of the byte at guest offset `offset`; the kind of the error of its cluster.
    fn byte(&self, offset: u64) -> Result<ExtentKind, &'static str> {
        let cluster = offset / CLUSTER;
        let Some(table) = self.l1[(cluster / ENTRIES) as usize] else { return Ok(ExtentKind::Hole) };
        let (at, entries) = &self.l2[table];
        if at + ENTRIES * 8 > self.file_len {
            return Err("out-of-bounds");
        }
        let entry = entries.get((cluster % ENTRIES) as usize).copied().unwrap_or(0);
        if entry == 0 {
            return Ok(ExtentKind::Hole);
        }
        if entry >> 63 == 1 {
            // 9 bits of length, 54 bits of offset.
            let (len, host) = (entry << 1 >> 55, entry << 10 >> 10);
            return match len {
                0 => Err("invalid-field"),
                _ if host + len > self.file_len => Err("out-of-bounds"),
                _ => {
                    let at = Location { file: IMAGE, offset: host };
                    let (unit, unit_len) = (cluster * CLUSTER, CLUSTER as u32);
                    let codec = Codec::Deflate;
                    let min_len = unit_len;
                    Ok(ExtentKind::Compressed(Compressed {
                        at,
                        stored_len: len as u32,
                        codec,
                        unit,
                        unit_len,
                        min_len,
                    }))
                }
            };
        }
        let visible = CLUSTER.min(self.size - cluster * CLUSTER);
        match entry {
            host if !host.is_multiple_of(CLUSTER) => Err("invalid-field"),
            host if host + visible > self.file_len => Err("out-of-bounds"),
            host => Ok(ExtentKind::Data(Location { file: IMAGE, offset: host + offset % CLUSTER })),
        }
    }
}

fn open(file: MemFile) -> Result<Reader> {
    let (limits, budget) = (Limits::default(), Budget::new(0));
    Reader::open(Arc::new(file), &OpenContext::new(&limits, &budget))
}

fn entries() -> impl Strategy<Value = Vec<u64>> {
    let entry = prop_oneof![
        3 => Just(0u64),
        8 => (4u64..30).prop_map(|cluster| cluster * CLUSTER),
        3 => (0u64..512, 0u64..20_000).prop_map(|(len, host)| 1 << 63 | len << 54 | host),
        1 => 1u64..20_000,
    ];
    // Runs of contiguous clusters are likely.
    prop::collection::vec((entry, 1u64..6), 0..6).prop_map(|runs| {
        let run = |(entry, len): (u64, u64)| (0..len).map(move |n| if entry > 0 { entry + n * CLUSTER } else { entry });
        runs.into_iter().flat_map(run).collect()
    })
}

fn samples() -> impl Strategy<Value = Sample> {
    let l1 = prop::collection::vec(prop::option::of(0usize..2), 1..6);
    let l2 = (entries(), entries()).prop_map(|(a, b)| vec![(2 * CLUSTER, a), (3 * CLUSTER, b)]);
    (l1, l2, 0u64..1500, 1024u64..20_000).prop_map(|(l1, l2, short, file_len)| {
        let size = l1.len() as u64 * ENTRIES * CLUSTER - short;
        Sample { size, l1, l2, file_len }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn extents_match_the_kind_of_each_byte(sample in samples(), start in any::<prop::sample::Index>()) {
        let reader = open(sample.file()).unwrap();
        let mut at = start.index(sample.size as usize) as u64;
        while at < sample.size {
            match reader.extent_at(at..u64::MAX) {
                Ok(extent) => {
                    prop_assert!(extent.offset == at && extent.len > 0 && extent.end() <= sample.size);
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
                    prop_assert_eq!(sample.byte(at), Err(error.kind().as_str()), "{}", error);
                    at = (at / CLUSTER + 1) * CLUSTER;
                }
            }
        }
        prop_assert_eq!(reader.extent_at(sample.size..u64::MAX).unwrap_err().kind().as_str(), "usage");
    }
}

#[test]
fn a_long_l1_table_is_read_page_by_page() {
    // 5000 entries; a page has 2048. The last L2 table maps its first cluster.
    let sample = Sample {
        size: 5000 * ENTRIES * CLUSTER,
        l1: (0..5000).map(|index| (index == 4999).then_some(0)).collect(),
        l2: vec![(80 * CLUSTER, vec![81 * CLUSTER])],
        file_len: 82 * CLUSTER,
    };
    let reader = open(sample.file()).unwrap();
    let mut ends = Vec::new();
    let mut at = 0;
    while at < sample.size {
        let extent = reader.extent_at(at..u64::MAX).unwrap();
        assert_eq!(sample.byte(at), Ok(extent.kind));
        at = extent.end();
        ends.push(at / CLUSTER);
    }
    assert_eq!(ends, [2048 * 64, 4096 * 64, 4999 * 64, 4999 * 64 + 1, 5000 * 64]);
    // Only as far as is asked for.
    assert_eq!(reader.extent_at(0..1).unwrap().len, ENTRIES * CLUSTER);
}

#[test]
fn encryption_and_the_backing_file_are_described() {
    let header = Header {
        backing_file: Some("base".into()),
        size: 512,
        cluster_bits: 12,
        l2_bits: 9,
        is_encrypted: true,
        l1_table_offset: 56,
    };
    let info = describe(&header);
    assert_eq!((info.format, info.virtual_size, info.block_size), ("qcow", 512, Some(4096)));
    assert_eq!(info.encryption, Some("AES"));
    let backing = info.backing.unwrap();
    assert_eq!((backing.role, backing.name, backing.format), ("backing file", "base".into(), None));
}

#[test]
fn internal_snapshots_are_not_supported() {
    let (limits, budget) = (Limits::default(), Budget::new(0));
    let cx = OpenContext { snapshot: Some("1"), ..OpenContext::new(&limits, &budget) };
    let error = Format::QCOW.open(Arc::new(MemFile::new()), &cx).err().unwrap();
    assert_eq!(error.kind().as_str(), "unsupported");
}
