//! Images written by generated calls: read back, and compared with the layout that qemu expects.

use proptest::prelude::*;

use super::*;
use crate::driver::{ExtentKind, NewBacking, OpenContext, SparseRead};
use crate::format::Format;
use crate::format::parallels::check::check;
use crate::format::parallels::reader::Reader;
use crate::info::ImageInfo;
use crate::io::{MemFile, ReadAt};
use crate::limits::{Budget, Limits};
use crate::name::Name;
use crate::options::Options;
use crate::testing::{RecordingTarget, assert_header_is_last, place_filled};

/// Size of a device in bytes.
const DEVICE: u64 = 5 << 20;

fn create(size: u64, list: &str, out: Arc<dyn WriteAt>) -> Result<Box<dyn SparseWrite>> {
    let mut options = Options::new();
    options.add_list(list);
    Format::by_name("parallels")?.create(&CreateContext::new(size, &options, out))
}

/// Reads the guest data.
fn read(file: &MemFile) -> Vec<u8> {
    let (limits, budget) = (Limits::default(), Budget::new(0));
    let copy = Arc::new(MemFile::from(file.to_vec()));
    let reader = Reader::open(copy, &OpenContext::new(&limits, &budget)).unwrap();
    let mut guest = vec![0; reader.info().virtual_size as usize];
    let mut at = 0;
    while at < guest.len() as u64 {
        let extent = reader.extent_at(at..u64::MAX).unwrap();
        if let ExtentKind::Data(location) = extent.kind {
            file.read_exact_at(&mut guest[at as usize..extent.end() as usize], location.offset).unwrap();
        }
        at = extent.end();
    }
    guest
}

fn u32_at(file: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*file[at..].first_chunk().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn written_data_reads_back(
        sectors in 1u64..5000,
        shift in 12u32..17,
        device in any::<bool>(),
        steps in prop::collection::vec((0u64..900, 1u64..900), 0..8),
    ) {
        let size = sectors * 512;
        let target = if device { RecordingTarget::device(DEVICE) } else { RecordingTarget::file() };
        let mut writer = create(size, &format!("cluster_size={}", 1 << shift), target.clone()).unwrap();
        let mut guest = vec![0; size as usize];
        let mut at = 0;
        for (skip, len) in steps {
            let range = (at + skip).min(sectors) * 512..(at + skip + len).min(sectors) * 512;
            at = range.end / 512;
            place_filled(&mut *writer, &mut guest, range);
        }
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
        prop_assert!(read(&target.mem) == guest);

        // Clusters in the order of the guest, and only those that are needed.
        let file = target.mem.to_vec();
        let start = (64 + size.div_ceil(1 << shift) * 4).div_ceil(1 << shift) as u32;
        let mut number = start..;
        for (index, cluster) in guest.chunks(1 << shift).enumerate() {
            let used = cluster.iter().any(|&byte| byte != 0);
            prop_assert_eq!(u32_at(&file, 64 + index * 4), if used { number.next().unwrap() } else { 0 });
        }
        prop_assert_eq!(&file[..16], b"WithouFreSpacExt");
        for (at, value) in [(16, 2), (20, 16), (28, 1 << (shift - 9)), (36, sectors as u32), (40, 0), (48, start << (shift - 9))] {
            prop_assert_eq!(u32_at(&file, at), value);
        }
        let end = (number.start as usize) << shift;
        prop_assert_eq!(file.len(), if device { DEVICE as usize } else { end });
        // No old content of the device is left in the image.
        prop_assert!(!file[(start as usize) << shift..end].contains(&0xee));

        let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
        let report = check(Arc::new(MemFile::from(file[..end].to_vec())), &OpenContext::new(&limits, &budget)).unwrap();
        prop_assert_eq!((report.corruptions, report.leaks, report.fragmented_clusters), (0, 0, 0));
    }
}

#[test]
fn the_header_is_written_last() {
    assert_header_is_last(DEVICE, |target| create(3 << 20, "", target).unwrap());
}

#[test]
fn unsupported_requests_are_refused() {
    let error = |size, list| create(size, list, RecordingTarget::file()).err().unwrap();
    for (size, list, kind) in [
        (512, "cluster_size=2k", "option"),
        (512, "cluster_size=128M", "option"),
        (512, "cluster_size=1536k", "option"),
        (512, "backing_file=x", "option"),
        (u64::MAX, "", "limit"),
        (1 << 62, "cluster_size=64M", "limit"),
    ] {
        assert_eq!(error(size, list).kind().as_str(), kind, "{size} {list}");
    }
    // The limit in the message is a disk that can be written.
    for list in ["", "cluster_size=4k", "cluster_size=64M"] {
        let Error::Limit { limit, .. } = error(1 << 62, list) else { panic!() };
        assert!(create(limit, list, RecordingTarget::file()).is_ok(), "{list}: {limit}");
    }
    let options = Options::new();
    let plain = CreateContext::new(512, &options, RecordingTarget::file());
    let kind = |cx: CreateContext<'_>| Format::PARALLELS.create(&cx).err().unwrap().kind().as_str();
    assert_eq!(kind(CreateContext { compress: true, ..plain.clone() }), "unsupported");
    let info = ImageInfo::default();
    let backing = Some(NewBacking::new(Name::from("base"), &info));
    assert_eq!(kind(CreateContext { backing, ..plain }), "unsupported");
}

#[test]
fn calls_out_of_order_are_usage_errors() {
    let mut writer = create(4 << 20, "", RecordingTarget::file()).unwrap();
    writer.place(2 << 20..3 << 20).unwrap();
    for range in [0..512, 4 << 20..(4 << 20) + 512, 3 << 20..3 << 20] {
        assert_eq!(writer.place(range).unwrap_err().kind().as_str(), "usage");
    }
}

#[test]
fn a_long_table_is_written_in_parts() {
    const PART: u64 = FLUSH as u64 / 4;
    let target = RecordingTarget::file();
    let clusters = 2 * PART + 5;
    let mut writer = create(clusters << 12, "cluster_size=4k", target.clone()).unwrap();
    for index in [0, 1000, PART, clusters - 1] {
        writer.place(index << 12..(index << 12) + 512).unwrap();
    }
    writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
    let file = target.mem.to_vec();
    let entries: Vec<_> = (0..clusters as usize)
        .map(|index| u32_at(&file, 64 + index * 4))
        .enumerate()
        .filter(|entry| entry.1 != 0)
        .collect();
    // The table has 512 KiB and 84 bytes.
    assert_eq!(entries, [(0, 129), (1000, 130), (PART as usize, 131), (clusters as usize - 1, 132)]);
}
