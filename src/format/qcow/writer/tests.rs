//! Images written by generated calls: read back, and compared with the layout that qemu expects.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::driver::{ExtentKind, NewBacking, OpenContext, SparseRead};
use crate::format::Format;
use crate::format::qcow::reader::Reader;
use crate::info::ImageInfo;
use crate::io::{MemFile, ReadAt, WriteAt};
use crate::limits::{Budget, Limits};
use crate::name::Name;
use crate::options::Options;
use crate::testing::{RecordingTarget, assert_header_is_last, place_filled};

/// Size of a device in bytes.
const DEVICE: u64 = 6 << 20;
/// The payload that the test places for a cluster.
const PAYLOAD: &[u8] = b"a payload";

fn create(size: u64, list: &str, backing: bool, out: Arc<dyn WriteAt>) -> Result<Box<dyn SparseWrite>> {
    let mut options = Options::new();
    options.add_list(list);
    let info = ImageInfo { format: "raw", ..ImageInfo::default() };
    let backing = backing.then(|| NewBacking::new(Name::from("base"), &info));
    let cx = CreateContext { backing, compress: true, ..CreateContext::new(size, &options, out) };
    Format::by_name("qcow")?.create(&cx)
}

/// Reads the guest data over a backing file of these bytes. Payloads stand for clusters of nines.
fn read(file: &MemFile, backing: u8) -> Vec<u8> {
    let (limits, budget) = (Limits::default(), Budget::new(0));
    let copy = Arc::new(MemFile::from(file.to_vec()));
    let reader = Reader::open(copy, &OpenContext::new(&limits, &budget)).unwrap();
    let mut guest = vec![backing; reader.info().virtual_size as usize];
    let mut at = 0;
    while at < guest.len() as u64 {
        let extent = reader.extent_at(at..u64::MAX).unwrap();
        let part = &mut guest[at as usize..extent.end() as usize];
        match extent.kind {
            ExtentKind::Data(location) => file.read_exact_at(part, location.offset).unwrap(),
            ExtentKind::Compressed(unit) => {
                let mut payload = vec![0; unit.stored_len as usize];
                file.read_exact_at(&mut payload, unit.at.offset).unwrap();
                assert_eq!(payload, PAYLOAD);
                part.fill(9);
            }
            _ => {}
        }
        at = extent.end();
    }
    guest
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Skip,
    Place,
    Payload,
    Zero,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn written_data_reads_back(
        sectors in 1u64..6000,
        cluster_bits in 9u32..14,
        (device, backing) in (any::<bool>(), any::<bool>()),
        steps in prop::collection::vec((prop::sample::select(vec![Step::Skip, Step::Place, Step::Payload, Step::Zero]), 1u64..600), 0..16),
    ) {
        let size = sectors * 512;
        let cluster = 1u64 << cluster_bits;
        let target = if device { RecordingTarget::device(DEVICE) } else { RecordingTarget::file() };
        let mut writer = create(size, &format!("cluster_size={cluster}"), backing, target.clone()).unwrap();
        let background = if backing { 7 } else { 0 };
        let mut guest = vec![background; size as usize];
        let mut at = 0;
        for (step, sectors) in steps {
            let unit = if backing { cluster } else { 512 };
            let end = (at + sectors * 512).next_multiple_of(unit);
            let range = at.min(size)..end.min(size);
            if range.is_empty() {
                break;
            }
            match step {
                Step::Skip => {}
                Step::Place => place_filled(&mut *writer, &mut guest, range.clone()),
                Step::Zero => {
                    writer.zero(range.clone()).unwrap();
                    guest[range.start as usize..range.end as usize].fill(0);
                }
                Step::Payload => {
                    // Whole clusters.
                    let first = range.start.next_multiple_of(cluster);
                    for start in (first..size).step_by(cluster as usize).take(3) {
                        let end = (start + cluster).min(size);
                        let placement = writer.place_compressed(start..end, PAYLOAD.len() as u32).unwrap();
                        target.write_all_at(PAYLOAD, placement.offset).unwrap();
                        guest[start as usize..end as usize].fill(9);
                        at = end;
                    }
                    continue;
                }
            }
            at = range.end;
        }
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
        prop_assert!(read(&target.mem, background) == guest);
        let file = target.mem.to_vec();
        let l2_bits = cluster_bits.max(if backing { 15 } else { 12 }) - 3;
        prop_assert_eq!(&file[..8], b"QFI\xfb\0\0\0\x01");
        prop_assert_eq!((u32::from(file[32]), u32::from(file[33])), (cluster_bits, l2_bits));
    }
}

#[test]
fn payloads_follow_each_other_without_gaps() {
    let target = RecordingTarget::file();
    let mut writer = create(1 << 20, "", false, target.clone()).unwrap();
    let mut at = |guest: u64, len: Option<u32>| {
        let guest = guest * 4096..(guest + 1) * 4096;
        let placement = match len {
            Some(len) => writer.place_compressed(guest, len),
            None => writer.place(guest),
        };
        placement.unwrap().offset
    };
    // The L1 table ends at 56, the L2 table is the second cluster.
    assert_eq!((at(0, Some(100)), at(1, Some(4095)), at(2, Some(1))), (8192, 8292, 12387));
    assert_eq!((at(3, None), at(4, None), at(5, Some(7)), at(7, Some(7))), (16384, 20480, 24576, 24583));
    writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
    assert_eq!(target.mem.to_vec().len(), 25088);
}

#[test]
fn the_header_is_written_last() {
    assert_header_is_last(DEVICE, |target| create(3 << 20, "", false, target).unwrap());
}

#[test]
fn unsupported_requests_are_refused() {
    let error = |size, list| create(size, list, false, RecordingTarget::file()).err().unwrap().kind().as_str();
    for (size, list, kind) in [
        (0, "", "unsupported"),
        (512, "cluster_size=256", "option"),
        (512, "cluster_size=128k", "option"),
        (512, "compression_level=0", "option"),
        (512, "window=8", "option"),
        (512, "backing_file=x", "option"),
        (512, "backing_fmt=raw", "option"),
        (u64::MAX, "", "limit"),
        (1 << 63, "", "limit"),
        (1 << 50, "", "option"),
    ] {
        assert_eq!(error(size, list), kind, "{size} {list}");
    }
    let mut writer = create(1 << 20, "", false, RecordingTarget::file()).unwrap();
    for (guest, len) in [(0..4096, 0), (0..4096, 4096), (512..4096, 7), (0..8192, 7)] {
        assert_eq!(writer.place_compressed(guest, len).unwrap_err().kind().as_str(), "usage");
    }
    writer.place(8192..12288).unwrap();
    assert_eq!(writer.place_compressed(4096..8192, 7).unwrap_err().kind().as_str(), "usage");
}
