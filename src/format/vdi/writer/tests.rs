//! Images written by generated calls: read back, and compared with the layout that other programs expect.

use proptest::prelude::*;

use super::*;
use crate::driver::{ExtentKind, NewBacking, OpenContext, SparseRead};
use crate::format::Format;
use crate::format::vdi::reader::Reader;
use crate::info::ImageInfo;
use crate::io::{MemFile, ReadAt};
use crate::limits::{Budget, Limits};
use crate::options::Options;
use crate::testing::{RecordingTarget, assert_header_is_last, place_filled};

/// Size of a device in bytes.
const DEVICE: u64 = 5 << 20;

fn create(size: u64, list: &str, out: Arc<dyn WriteAt>) -> Result<Box<dyn SparseWrite>> {
    let mut options = Options::new();
    options.add_list(list);
    Format::by_name("vdi")?.create(&CreateContext::new(size, &options, out))
}

fn open(file: &MemFile) -> Reader {
    let (limits, budget) = (Limits::default(), Budget::new(0));
    let cx = OpenContext::new(&limits, &budget);
    Reader::open(Arc::new(MemFile::from(file.to_vec())), &cx).unwrap()
}

/// Reads the guest data.
fn read(file: &MemFile) -> Vec<u8> {
    let reader = open(file);
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
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn written_data_reads_back(
        sectors in 1u64..5000,
        shift in 17u32..19,
        is_static in any::<bool>(),
        device in any::<bool>(),
        steps in prop::collection::vec((0u64..900, 1u64..900), 0..8),
    ) {
        let size = sectors * 512;
        let target = if device { RecordingTarget::device(DEVICE) } else { RecordingTarget::file() };
        let list = format!("block_size={},static={}", 1 << shift, if is_static { "on" } else { "off" });
        let mut writer = create(size, &list, target.clone()).unwrap();
        let mut guest = vec![0; size as usize];
        let mut at = 0;
        for (skip, len) in steps {
            let range = (at + skip).min(sectors) * 512..(at + skip + len).min(sectors) * 512;
            at = range.end / 512;
            place_filled(&mut *writer, &mut guest, range);
        }
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
        prop_assert!(read(&target.mem) == guest);

        // The layout of VirtualBox: blocks in guest order, and only those that are needed.
        let file = target.mem.to_vec();
        let blocks = size.div_ceil(1 << shift);
        let used: Vec<_> = guest.chunks(1 << shift).map(|block| is_static || block.iter().any(|&byte| byte != 0)).collect();
        let allocated = used.iter().filter(|used| **used).count() as u32;
        let mut number = 0..;
        for (index, used) in used.iter().enumerate() {
            let expected = if *used { number.next().unwrap() } else { u32::MAX };
            prop_assert_eq!(u32_at(&file, (1 << 20) + index * 4), expected);
        }
        for (at, value) in [(72, 400), (76, 1 + u32::from(is_static)), (340, 1 << 20), (344, 2 << 20), (380, 0), (384, blocks as u32)] {
            prop_assert_eq!(u32_at(&file, at), value);
        }
        prop_assert_eq!((u32_at(&file, 360), u32_at(&file, 388), u32_at(&file, 468)), (512, allocated, 512));
        let end = (2 << 20) + (allocated as usize) * (1 << shift);
        let end = if device { DEVICE as usize } else { end };
        prop_assert_eq!(file.len(), end);
        // No old content of the device is left in the image.
        let used_end = (2 << 20) + allocated as usize * (1 << shift);
        prop_assert!(!file[Header::LEN..used_end].contains(&0xee));

        let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
        let cx = OpenContext::new(&limits, &budget);
        let report = crate::format::vdi::check::check(Arc::new(MemFile::from(file)), &cx).unwrap();
        prop_assert_eq!((report.corruptions, report.leaks, report.fragmented_clusters), (0, 0, 0));
    }
}

#[test]
fn the_header_is_written_last() {
    assert_header_is_last(DEVICE, |target| create(3 << 20, "", target).unwrap());
}

#[test]
fn uuids_are_never_nil_and_can_be_set() {
    let header = |list: &str| {
        let target = RecordingTarget::file();
        create(512, list, target.clone()).unwrap().finish(&ImageIdentifiers::pinned(0)).unwrap();
        Header::read(&target.mem, &Limits::default()).unwrap()
    };
    let plain = header("");
    assert!(![plain.uuid, plain.modification].contains(&Uuid::nil()) && plain.uuid != plain.modification);
    assert_eq!([plain.uuid, plain.modification].map(|uuid| uuid.get_version_num()), [4; 2]);
    assert_eq!((plain.linkage, plain.parent_modification), (Uuid::nil(), Uuid::nil()));
    let pinned = header("uuid={6a37380f-5548-4359-90f4-3bcea33d6cdb}");
    assert_eq!(pinned.uuid.to_string(), "6a37380f-5548-4359-90f4-3bcea33d6cdb");
    assert_eq!(pinned, header("uuid=6A37380F-5548-4359-90F4-3BCEA33D6CDB"));
    assert_ne!(pinned.modification, header("uuid=6a37380f-5548-4359-90f4-3bcea33d6cdc").modification);
    assert!(!format!("{:?}", pinned.warnings()).contains("VirtualBox"));
}

#[test]
fn unsupported_requests_are_refused() {
    let error = |size, list| create(size, list, RecordingTarget::file()).err().unwrap();
    for (size, list, kind) in [
        (0, "", "unsupported"),
        (512, "block_size=64k", "option"),
        (512, "block_size=256M", "option"),
        (512, "block_size=1536k", "option"),
        (512, "static=maybe", "option"),
        (512, "uuid=00000000-0000-0000-0000-000000000000", "option"),
        (512, "uuid=1", "option"),
        (512, "uuid={6a37380f-5548-4359-90f4-3bcea33d6cdb", "option"),
        (512, "backing_file=x", "option"),
        (u64::MAX, "", "limit"),
        (1 << 62, "block_size=128M", "limit"),
    ] {
        assert_eq!(error(size, list).kind().as_str(), kind, "{size} {list}");
    }
    // The limit in the message is the largest disk.
    let Error::Limit { limit, .. } = error(1 << 60, "") else { panic!() };
    assert!(
        create(limit, "", RecordingTarget::file()).is_ok() && create(limit + 1, "", RecordingTarget::file()).is_err()
    );

    let options = Options::new();
    let plain = CreateContext::new(512, &options, RecordingTarget::file());
    let kind = |cx: CreateContext<'_>| Format::by_name("vdi").unwrap().create(&cx).err().unwrap().kind().as_str();
    assert_eq!(kind(CreateContext { compress: true, ..plain.clone() }), "unsupported");
    let info = ImageInfo::default();
    let backing = Some(NewBacking::new(Name::from("base"), &info));
    assert_eq!(kind(CreateContext { backing, ..plain }), "unsupported");
    // A device that is too small is refused before anything is written.
    let device = RecordingTarget::device(DEVICE);
    assert_eq!(create(DEVICE - (2 << 20) + 512, "static=on", device.clone()).err().unwrap().kind().as_str(), "io");
    assert_eq!(device.mem.to_vec(), vec![0xee; DEVICE as usize]);
}

#[test]
fn calls_out_of_order_are_usage_errors() {
    let mut writer = create(4 << 20, "", RecordingTarget::file()).unwrap();
    writer.place(2 << 20..3 << 20).unwrap();
    assert_eq!(writer.place(0..512).unwrap_err().kind().as_str(), "usage");
    assert_eq!(writer.place(4 << 20..(4 << 20) + 512).unwrap_err().kind().as_str(), "usage");
    assert_eq!(writer.place(3 << 20..3 << 20).unwrap_err().kind().as_str(), "usage");
}

#[test]
fn a_long_map_is_written_in_parts() {
    let target = RecordingTarget::file();
    let blocks = 3 * FLUSH as u64 + 5;
    let mut writer = create(blocks << 17, "block_size=128k", target.clone()).unwrap();
    let last = (blocks - 1) << 17;
    for guest in [0, (FLUSH as u64) << 17, last] {
        writer.place(guest..guest + 512).unwrap();
    }
    writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
    let reader = open(&target.mem);
    let mut numbers = Vec::new();
    let mut at = 0;
    while at < blocks << 17 {
        let extent = reader.extent_at(at..u64::MAX).unwrap();
        if let ExtentKind::Data(location) = extent.kind {
            numbers.push((extent.offset >> 17, extent.len >> 17, (location.offset - (2 << 20)) >> 17));
        }
        at = extent.end();
    }
    assert_eq!(numbers, [(0, 1, 0), (FLUSH as u64, 1, 1), (blocks - 1, 1, 2)]);
}
