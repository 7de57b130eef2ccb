//! Images written by generated calls: read back, and compared with the layout that the specification demands.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::driver::{ExtentKind, NewBacking, OpenContext, SparseRead};
use crate::format::Format;
use crate::format::qed::check::check;
use crate::format::qed::reader::Reader;
use crate::info::ImageInfo;
use crate::io::{MemFile, ReadAt, WriteAt};
use crate::limits::{Budget, Limits};
use crate::name::Name;
use crate::options::Options;
use crate::testing::{RecordingTarget, assert_header_is_last, place_filled};

/// Size of a device in bytes.
const DEVICE: u64 = 6 << 20;

fn create(size: u64, list: &str, backing: bool, out: Arc<dyn WriteAt>) -> Result<Box<dyn SparseWrite>> {
    let mut options = Options::new();
    options.add_list(list);
    let info = ImageInfo { format: "raw", ..ImageInfo::default() };
    let backing = backing.then(|| NewBacking::new(Name::from("base"), &info));
    Format::by_name("qed")?.create(&CreateContext { backing, ..CreateContext::new(size, &options, out) })
}

fn open(file: &MemFile) -> Reader {
    let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
    Reader::open(Arc::new(MemFile::from(file.to_vec())), &OpenContext::new(&limits, &budget)).unwrap()
}

/// Reads the guest data over a backing file of these bytes.
fn read(file: &MemFile, backing: u8) -> Vec<u8> {
    let reader = open(file);
    let mut guest = vec![backing; reader.info().virtual_size as usize];
    let mut at = 0;
    while at < guest.len() as u64 {
        let extent = reader.extent_at(at..u64::MAX).unwrap();
        let part = &mut guest[at as usize..extent.end() as usize];
        match extent.kind {
            ExtentKind::Data(location) => file.read_exact_at(part, location.offset).unwrap(),
            ExtentKind::Zero { .. } => part.fill(0),
            _ => {}
        }
        at = extent.end();
    }
    guest
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn written_data_reads_back(
        sectors in 1u64..9000,
        (cluster_bits, table_bits) in (12u32..15, 1u32..3),
        device in any::<bool>(),
        steps in prop::collection::vec((0u64..1500, 1u64..1500), 0..8),
    ) {
        let size = sectors * 512;
        let target = if device { RecordingTarget::device(DEVICE) } else { RecordingTarget::file() };
        let list = format!("cluster_size={},table_size={}", 1 << cluster_bits, 1 << table_bits);
        let mut writer = create(size, &list, false, target.clone()).unwrap();
        let mut guest = vec![0; size as usize];
        let mut at = 0;
        for (skip, len) in steps {
            let range = (at + skip).min(sectors) * 512..(at + skip + len).min(sectors) * 512;
            at = range.end / 512;
            place_filled(&mut *writer, &mut guest, range);
        }
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
        prop_assert!(read(&target.mem, 0) == guest);

        // Only clusters and tables that are needed, in the order of the guest.
        let cluster = 1usize << cluster_bits;
        let table = cluster << table_bits;
        let used = guest.chunks(cluster).filter(|part| part.iter().any(|&byte| byte != 0)).count();
        let tables = guest.chunks(cluster * table / 8).filter(|part| part.iter().any(|&byte| byte != 0)).count();
        let end = cluster + table + tables * table + used * cluster;
        let file = target.mem.to_vec();
        prop_assert_eq!(file.len(), if device { DEVICE as usize } else { end });
        // No old content of the device is left in the image.
        prop_assert!(!file[Header::LEN..end].contains(&0xee));

        let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
        let report = check(Arc::new(MemFile::from(file[..end].to_vec())), &OpenContext::new(&limits, &budget)).unwrap();
        prop_assert_eq!((report.corruptions, report.leaks, report.image_end_offset), (0, 0, end as u64));
        prop_assert_eq!(report.allocated_clusters, used as u64);
    }

    #[test]
    fn an_overlay_has_zero_clusters(
        clusters in 1u64..1200,
        device in any::<bool>(),
        steps in prop::collection::vec((0u64..300, 1u64..300, any::<bool>()), 0..8),
    ) {
        let size = clusters * 4096 - 512;
        let target = if device { RecordingTarget::device(DEVICE) } else { RecordingTarget::file() };
        let mut writer = create(size, "cluster_size=4k,table_size=2", true, target.clone()).unwrap();
        let mut guest = vec![7; size as usize];
        let mut at = 0;
        for (skip, len, zero) in steps {
            let range = (at + skip).min(clusters) * 4096..(at + skip + len).min(clusters) * 4096;
            at = range.end / 4096;
            let range = range.start.min(size)..range.end.min(size);
            if range.is_empty() {
                continue;
            }
            if zero {
                writer.zero(range.clone()).unwrap();
                guest[range.start as usize..range.end as usize].fill(0);
            } else {
                place_filled(&mut *writer, &mut guest, range);
            }
        }
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
        prop_assert!(read(&target.mem, 7) == guest);
        prop_assert_eq!(open(&target.mem).info().backing.clone().unwrap().format, Some(Name::from("raw")));
    }
}

#[test]
fn the_header_is_written_last() {
    assert_header_is_last(DEVICE, |target| create(3 << 20, "", false, target).unwrap());
}

#[test]
fn a_long_l1_table_is_written_in_parts() {
    // 2 MiB for each entry of the L1 table, of which there are more than are written at once.
    let size = 200_000 << 21;
    let target = RecordingTarget::file();
    let shape = crate::format::shared::two_level::Shape {
        format: FORMAT_NAME,
        cluster_bits: 12,
        l2_entries: 512,
        l1_offset: 4096,
        virtual_size: size,
        decode: u64::from_le_bytes,
        encode: u64::to_le_bytes,
    };
    let start = 4096 + 200_000 * 8;
    let mut map = TwoLevelWriter::new(target.clone(), shape, start).unwrap();
    let entries = [0, 500, 70_000, 199_999];
    for index in entries {
        map.place(&(index << 21..(index << 21) + 512)).unwrap();
    }
    map.finish(4096).unwrap();
    let file = target.mem.to_vec();
    let entry = |at: u64| u64::from_le_bytes(*file[at as usize..].first_chunk().unwrap());
    let first = u64::next_multiple_of(start, 4096);
    for index in 0..200_000 {
        let number = entries.iter().position(|other| *other == index);
        assert_eq!(entry(4096 + index * 8), number.map_or(0, |number| first + number as u64 * 8192), "{index}");
    }
    assert_eq!(file.len() as u64, first + 4 * 8192);
    // Of the L1 table, only where it is not zeros.
    let written = |event: &crate::testing::TargetEvent| match event {
        crate::testing::TargetEvent::Write(range) if range.start < start => range.end - range.start,
        _ => 0,
    };
    assert_eq!(target.events.lock().unwrap().iter().map(written).sum::<u64>(), (501 + 2) * 8);
}

#[test]
fn unsupported_requests_are_refused() {
    let error = |size, list| create(size, list, false, RecordingTarget::file()).err().unwrap().kind().as_str();
    for (size, list, kind) in [
        (512, "cluster_size=2k", "option"),
        (512, "cluster_size=5000", "option"),
        (512, "cluster_size=8M,table_size=2", "option"),
        (512, "cluster_size=4M,table_size=4", "option"),
        (512, "cluster_size=2M,table_size=16", "option"),
        (512, "table_size=1", "option"),
        (512, "table_size=3", "option"),
        (512, "table_size=32", "option"),
        (512, "backing_file=x", "option"),
        (512, "backing_fmt=raw", "option"),
        (512, "backing_file=nbd:x,backing_fmt=raw", "option"),
        ((64 << 40) + 1, "", "option"),
        (u64::MAX, "", "limit"),
    ] {
        assert_eq!(error(size, list), kind, "{size} {list}");
    }
    for list in ["", "cluster_size=4k,table_size=2"] {
        let largest = if list.is_empty() { 64 << 40 } else { 4 << 30 };
        assert!(create(largest, list, false, RecordingTarget::file()).is_ok());
        assert!(create(largest + 512, list, false, RecordingTarget::file()).is_err());
    }
    let name = "x".repeat(1024);
    assert_eq!(error(512, &format!("backing_file={name},backing_fmt=raw")), "option");
    assert!(
        create(512, &format!("backing_file={},backing_fmt=raw", &name[1..]), false, RecordingTarget::file()).is_ok()
    );
    let options = Options::new();
    let cx = CreateContext { compress: true, ..CreateContext::new(512, &options, RecordingTarget::file()) };
    assert_eq!(Format::QED.create(&cx).err().unwrap().kind().as_str(), "unsupported");
}

#[test]
fn calls_out_of_order_are_usage_errors() {
    let mut writer = create(4 << 20, "", false, RecordingTarget::file()).unwrap();
    writer.place(2 << 20..3 << 20).unwrap();
    for range in [0..512, (2 << 20)..(2 << 20) + 512, 4 << 20..(4 << 20) + 512, 3 << 20..3 << 20] {
        assert_eq!(writer.place(range.clone()).unwrap_err().kind().as_str(), "usage", "{range:?}");
    }
}
