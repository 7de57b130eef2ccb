//! Extents of generated images, compared with a reference that maps one byte at a time.

use proptest::prelude::*;

use super::*;
use crate::format::Format;
use crate::format::parallels::header::Unit;
use crate::io::{MemFile, WriteAt};
use crate::limits::{Budget, Limits};

/// A description of an image of a few small clusters.
#[derive(Clone, Debug)]
struct Sample {
    unit: Unit,
    cluster_sectors: u32,
    sectors: u64,
    bat: Vec<u32>,
    file_len: u64,
}

impl Sample {
    fn header(&self) -> Header {
        Header { unit: self.unit, ..Header::new(self.cluster_sectors, self.sectors, self.bat.len() as u32, 1) }
    }

    fn open(&self) -> Reader {
        let file = MemFile::new();
        file.write_all_at(&self.header().encode(), 0).unwrap();
        let bat: Vec<u8> = self.bat.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        file.write_all_at(&bat, 64).unwrap();
        file.set_len(self.file_len).unwrap();
        open(file).unwrap()
    }

    /// The extent kind of the byte at guest offset `offset`; the kind of the error of its cluster.
    fn byte(&self, offset: u64) -> Result<ExtentKind, &'static str> {
        let cluster = u64::from(self.cluster_sectors) * 512;
        let index = offset / cluster;
        let host = match (self.bat[index as usize], self.unit) {
            (0, _) => return Ok(ExtentKind::Hole),
            (entry, Unit::Sectors) => u64::from(entry) * 512,
            (entry, Unit::Clusters) => u64::from(entry) * cluster,
        };
        if host + cluster.min(self.sectors * 512 - index * cluster) > self.file_len {
            Err("out-of-bounds")
        } else if host < 64 + self.bat.len() as u64 * 4 {
            Err("overlap")
        } else {
            Ok(ExtentKind::Data(Location { file: IMAGE, offset: host + offset % cluster }))
        }
    }
}

fn open(file: MemFile) -> Result<Reader> {
    let (limits, budget) = (Limits::default(), Budget::new(0));
    Reader::open(Arc::new(file), &OpenContext::new(&limits, &budget))
}

fn samples() -> impl Strategy<Value = Sample> {
    let unit = prop::sample::select(vec![Unit::Sectors, Unit::Clusters]);
    (unit, prop::sample::select(vec![1u32, 2, 3, 8, 63])).prop_flat_map(|(unit, cluster_sectors)| {
        let step = if unit == Unit::Sectors { cluster_sectors } else { 1 };
        let entry =
            prop_oneof![2 => Just(0u32), 5 => (0u32..40).prop_map(move |number| 1 + number * step), 1 => 0u32..3000];
        // Runs of contiguous clusters are likely.
        let runs = prop::collection::vec((entry, 1u32..5), 1..6);
        (runs, 0u64..64, 500u64..200_000).prop_map(move |(runs, short, file_len)| {
            let run = |(entry, len): (u32, u32)| (0..len).map(move |n| if entry > 0 { entry + n * step } else { 0 });
            let bat: Vec<u32> = runs.into_iter().flat_map(run).collect();
            let sectors = (bat.len() as u64 * u64::from(cluster_sectors)).saturating_sub(short).max(1);
            Sample { unit, cluster_sectors, sectors, bat, file_len }
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn extents_match_the_kind_of_each_byte(sample in samples(), start in any::<prop::sample::Index>()) {
        let reader = sample.open();
        let (size, cluster) = (sample.sectors * 512, u64::from(sample.cluster_sectors) * 512);
        let mut at = start.index(size as usize) as u64;
        while at < size {
            match reader.extent_at(at..u64::MAX) {
                Ok(extent) => {
                    prop_assert!(extent.offset == at && extent.len > 0 && extent.end() <= size);
                    for by in (0..extent.len).step_by(512).chain([extent.len - 1]) {
                        prop_assert_eq!(sample.byte(at + by), Ok(extent.kind.advance(by)), "{}", at + by);
                    }
                    // The extent is maximal: the next cluster does not continue it, or is missing.
                    if extent.end() < size {
                        prop_assert!(extent.end() % cluster == 0);
                        let next = sample.byte(extent.end()).ok();
                        prop_assert!(next.is_none_or(|next| !extent.kind.continues(extent.len, next)));
                    }
                    at = extent.end();
                }
                Err(error) => {
                    prop_assert_eq!(sample.byte(at), Err(error.kind().as_str()), "{}", error);
                    at = (at / cluster + 1) * cluster;
                }
            }
        }
        prop_assert_eq!(reader.extent_at(size..u64::MAX).unwrap_err().kind().as_str(), "usage");
    }

    /// Neither two clusters nor a cluster and the BAT share a unit of the alignment.
    #[test]
    fn host_offsets_of_clusters_are_aligned(sample in samples()) {
        let reader = sample.open();
        let unit = reader.host_alignment().unwrap();
        let cluster = u64::from(sample.cluster_sectors) * 512;
        prop_assert!(unit.is_power_of_two() && cluster % unit == 0);
        for index in 0..sample.bat.len().min(sample.sectors.div_ceil(sample.cluster_sectors.into()) as usize) as u64 {
            if let Ok(ExtentKind::Data(at)) = sample.byte(index * cluster) {
                prop_assert!(at.offset % unit == 0 && at.offset >= 64 + sample.bat.len() as u64 * 4);
            }
        }
    }
}

#[test]
fn a_cluster_does_not_overlap_the_bat() {
    let mut bat = vec![0; 200];
    (bat[0], bat[1]) = (1, 2);
    let sample = Sample { unit: Unit::Sectors, cluster_sectors: 1, sectors: 200, bat, file_len: 4096 };
    let reader = sample.open();
    assert_eq!(reader.extent_at(0..512).unwrap_err().kind().as_str(), "overlap");
    assert!(reader.extent_at(512..1024).is_ok());
}

#[test]
fn a_list_of_bitmaps_is_shown_if_there_is_one() {
    let open = |extension_sector, words: &[u64]| {
        let file = MemFile::new();
        let header = Header { extension_sector, ..Header::new(8, 8, 1, 8) };
        file.write_all_at(&header.encode(), 0).unwrap();
        file.set_len(8192).unwrap();
        file.write_all_at(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>(), 4096).unwrap();
        let info = open(file).unwrap().info().clone();
        assert_eq!(info.warnings, [""; 0]);
        info.property("bitmaps").is_some()
    };
    let magic = 0xab23_4cef_23dc_ea87;
    let bitmap = [0x20385fae252cb34a, 0, 32, 8, 7, 7, 8 | 1 << 32, 0];
    let listed = [&[magic, 0, 0][..], &bitmap, &[0; 3]].concat();
    assert!(open(8, &listed) && !open(8, &[magic, 0, 0]) && !open(0, &[]));
}

#[test]
fn damaged_bitmaps_are_a_warning() {
    let file = MemFile::new();
    let header = Header { extension_sector: 8, ..Header::new(8, 8, 1, 8) };
    file.write_all_at(&header.encode(), 0).unwrap();
    file.set_len(8192).unwrap();
    let reader = open(file).unwrap();
    let info = reader.info();
    assert!(info.warnings[0].starts_with("bitmaps are not listed: parallels: corrupt image at file offset 0x1000"));
    assert_eq!((info.format, info.virtual_size, info.block_size, info.dirty), ("parallels", 4096, Some(4096), false));
    let mut claims = Vec::new();
    let mut claim = |_, range| {
        claims.push(range);
        true
    };
    reader.metadata(&mut claim).unwrap();
    assert_eq!(claims, [0..68, 4096..8192]);
}

#[test]
fn internal_snapshots_are_not_supported() {
    let (limits, budget) = (Limits::default(), Budget::new(0));
    let cx = OpenContext { snapshot: Some("1"), ..OpenContext::new(&limits, &budget) };
    let error = Format::PARALLELS.open(Arc::new(MemFile::new()), &cx).err().unwrap();
    assert_eq!(error.kind().as_str(), "unsupported");
}
