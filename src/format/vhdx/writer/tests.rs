//! Images written by generated calls, and read back by a literal implementation of the document.

use std::io;
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::driver::{NewBacking, OpenContext};
use crate::format::Format;
use crate::info::{ImageInfo, Value};
use crate::io::MemFile;
use crate::limits::{Budget, Limits};
use crate::name::Name;
use crate::options::Options;
use crate::testing::{RecordingTarget, place_filled};

fn create(size: u64, list: &str, out: Arc<dyn WriteAt>) -> Result<Box<dyn SparseWrite>> {
    let mut options = Options::new();
    options.add_list(list);
    Format::by_name("vhdx")?.create(&CreateContext::new(size, &options, out))
}

fn create_over(
    parent: &ImageInfo,
    name: &str,
    size: u64,
    list: &str,
    out: Arc<dyn WriteAt>,
) -> Result<Box<dyn SparseWrite>> {
    let mut options = Options::new();
    options.add_list(list);
    let backing = Some(NewBacking::new(Name::from(name), parent));
    Format::by_name("vhdx")?.create(&CreateContext { backing, ..CreateContext::new(size, &options, out) })
}

const PARENT_GUID: &str = "7584f8fb-36d3-4091-afb5-b1afe587bfa8";
const DISK_ID: &str = "6a37380f-5548-4359-90f4-3bcea33d6cdb";

/// The properties of a parent.
fn parent(virtual_size: u64, sector_size: u64) -> ImageInfo {
    let specific = vec![
        ("data-write-guid", Value::from(PARENT_GUID)),
        ("virtual-disk-id", Value::from(DISK_ID)),
        ("logical-sector-size", Value::from(sector_size)),
        ("physical-sector-size", Value::from(4096)),
    ];
    ImageInfo { format: "vhdx", virtual_size, specific, ..ImageInfo::default() }
}

fn u32_at(file: &[u8], at: u64) -> u32 {
    u32::from_le_bytes(*file[at as usize..].first_chunk().unwrap())
}

fn u64_at(file: &[u8], at: u64) -> u64 {
    u64::from_le_bytes(*file[at as usize..].first_chunk().unwrap())
}

/// The host offset of the entry with `guid` in a table of entries of 32 bytes.
fn entry_of(file: &[u8], first: u64, guid: &str) -> u64 {
    let guid = Uuid::parse_str(guid).unwrap().to_bytes_le();
    (0..8).map(|n| first + n * 32).find(|&at| file[at as usize..].starts_with(&guid)).unwrap()
}

/// An image, read by the letter of the document.
struct Disk<'a> {
    file: &'a [u8],
    size: u64,
    block_size: u64,
    flags: u32,
    sector_sizes: (u32, u32),
    bat: u64,
    bat_len: u32,
}

impl<'a> Disk<'a> {
    fn new(file: &'a [u8]) -> Disk<'a> {
        let region = |guid| entry_of(file, (192 << 10) + 16, guid);
        let metadata = u64_at(file, region("8b7ca206-4790-4b9a-b8fe-575f050f886e") + 16);
        let item = |guid| metadata + u64::from(u32_at(file, entry_of(file, metadata + 32, guid) + 16));
        let parameters = item("caa16737-fa36-4d43-b3b6-33f0aa44e76b");
        let logical = u32_at(file, item("8141bf1d-a96f-4709-ba47-f233a8faab5f"));
        let bat = region("2dc27766-f623-4200-9d64-115e9bfd4a08");
        Disk {
            file,
            size: u64_at(file, item("2fa54224-cd1b-4876-b211-5dbed83bf4b8")),
            block_size: u32_at(file, parameters).into(),
            flags: u32_at(file, parameters + 4),
            sector_sizes: (logical, u32_at(file, item("cda348c7-445d-4471-9cc9-e9885251c556"))),
            bat: u64_at(file, bat + 16),
            bat_len: u32_at(file, bat + 24),
        }
    }

    fn ratio(&self) -> u64 {
        (u64::from(self.sector_sizes.0) << 23) / self.block_size
    }

    /// State of a block, and its host offset in MiB.
    fn entry(&self, index: u64) -> (u64, u64) {
        assert!(index < u64::from(self.bat_len) / 8);
        let entry = u64_at(self.file, self.bat + index * 8);
        assert_eq!(entry & 0xffff8, 0, "reserved");
        (entry & 7, entry >> 20)
    }

    fn block(&self, block: u64) -> (u64, u64) {
        self.entry(block + block / self.ratio())
    }

    fn sector_bitmap(&self, chunk: u64) -> (u64, u64) {
        self.entry(chunk * (self.ratio() + 1) + self.ratio())
    }

    fn blocks(&self) -> Vec<(u64, u64)> {
        (0..self.size.div_ceil(self.block_size)).map(|block| self.block(block)).collect()
    }

    /// Reads the guest data, with the guest data of the parent.
    fn read(&self, parent: &[u8]) -> Vec<u8> {
        let mut guest = vec![0; self.size as usize];
        let sector_size = u64::from(self.sector_sizes.0);
        for (block, bytes) in (0..).zip(guest.chunks_mut(self.block_size as usize)) {
            let (state, at) = self.block(block);
            let at = (at << 20) as usize;
            let start = (block * self.block_size) as usize;
            match state {
                0 if self.flags & 2 != 0 => bytes.copy_from_slice(&parent[start..start + bytes.len()]),
                0 | 2 => {}
                6 => bytes.copy_from_slice(&self.file[at..at + bytes.len()]),
                7 => {
                    let (6, map) = self.sector_bitmap(block / self.ratio()) else { panic!("no sector bitmap") };
                    let first = block % self.ratio() * self.block_size / sector_size;
                    for (n, sector) in (0..).zip(bytes.chunks_mut(sector_size as usize)) {
                        let bit = first + n;
                        let within = (n * sector_size) as usize;
                        let present = self.file[((map << 20) + bit / 8) as usize] >> (bit % 8) & 1 == 1;
                        let from = if present { &self.file[at + within..] } else { &parent[start + within..] };
                        sector.copy_from_slice(&from[..sector.len()]);
                    }
                }
                state => panic!("state {state} of block {block}"),
            }
        }
        guest
    }
}

/// Checks that the blocks are in bounds, without overlaps and without gaps.
fn check_tiling(disk: &Disk<'_>, len: u64) {
    let chunks = disk.size.div_ceil(disk.block_size).div_ceil(disk.ratio());
    let blocks = disk.blocks().into_iter().filter(|(state, _)| *state >= 6).map(|(_, at)| (at, disk.block_size >> 20));
    let maps =
        (0..chunks).map(|chunk| disk.sector_bitmap(chunk)).filter(|(state, _)| *state != 0).map(|(_, at)| (at, 1));
    let mut used: Vec<_> = blocks.chain(maps).collect();
    used.sort_unstable();
    let mut end = (disk.bat + u64::from(disk.bat_len)) >> 20;
    for (at, len) in used {
        assert_eq!(at, end);
        end += len;
    }
    assert_eq!(end << 20, len);
}

/// Checks that `check` finds nothing in an image.
fn check_clean(file: &[u8]) {
    let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
    let cx = OpenContext::new(&limits, &budget);
    let report = crate::format::vhdx::check::check(Arc::new(MemFile::from(file.to_vec())), &cx).unwrap();
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0), "{:?}", report.messages);
}

/// Whether old content of a device is left. Checksums and GUIDs can contain single bytes of it.
fn has_old_content(file: &[u8]) -> bool {
    file.as_chunks().0.contains(&[0xee; 16])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn written_data_reads_back(
        sectors in 1u64..14000,
        shift in 20u32..22,
        fixed in any::<bool>(),
        large_sectors in any::<bool>(),
        zero in any::<bool>(),
        device in any::<bool>(),
        steps in prop::collection::vec((0u64..5000, 1u64..3000), 0..5),
    ) {
        let logical = if large_sectors { 4096 } else { 512 };
        let size = (sectors * 512).next_multiple_of(logical);
        let target = if device { RecordingTarget::device(14 << 20) } else { RecordingTarget::file() };
        let list = format!(
            "block_size={},subformat={},logical_sector_size={logical},block_state_zero={}",
            1 << shift,
            if fixed { "fixed" } else { "dynamic" },
            if zero { "on" } else { "off" },
        );
        let mut writer = create(sectors * 512, &list, target.clone()).unwrap();
        prop_assert_eq!(writer.spec().virtual_size, size);
        let mut guest = vec![0; size as usize];
        let mut at = 0;
        for (skip, len) in steps {
            let range = (at + skip).min(sectors) * 512..(at + skip + len).min(sectors) * 512;
            at = range.end / 512;
            place_filled(&mut *writer, &mut guest, range);
        }
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();

        let file = target.mem.to_vec();
        let disk = Disk::new(&file);
        prop_assert!(disk.read(&[]) == guest);
        prop_assert_eq!((disk.size, disk.block_size, disk.flags), (size, 1 << shift, u32::from(fixed)));
        prop_assert_eq!(disk.sector_sizes, (logical as u32, 4096));
        prop_assert_eq!((disk.bat, disk.bat_len), (3 << 20, 1 << 20));
        // Blocks are in guest order, and only those that are needed.
        let mut next = 4;
        for (block, entry) in guest.chunks(1 << shift).zip(disk.blocks()) {
            let expected = if fixed || block.iter().any(|&byte| byte != 0) {
                next += 1 << (shift - 20);
                (6, next - (1 << (shift - 20)))
            } else {
                (if zero { 2 } else { 0 }, 0)
            };
            prop_assert_eq!(entry, expected);
        }
        check_tiling(&disk, next << 20);
        prop_assert_eq!(file.len(), if device { 14 << 20 } else { (next as usize) << 20 });
        // No old content of the device is left in the image.
        prop_assert!(!has_old_content(&file[..(next as usize) << 20]));
        check_clean(&file[..(next as usize) << 20]);
    }

    #[test]
    fn data_written_over_a_parent_reads_back(
        sectors in 1u64..14000,
        large_sectors in any::<bool>(),
        device in any::<bool>(),
        steps in prop::collection::vec((prop::sample::select(&[0u64, 0, 1, 700, 3000][..]), 1u64..5000, any::<bool>()), 0..6),
    ) {
        let logical = if large_sectors { 4096 } else { 512 };
        let size = (sectors * 512).next_multiple_of(logical);
        let target = if device { RecordingTarget::device(16 << 20) } else { RecordingTarget::file() };
        let info = parent(size, logical);
        let mut writer = create_over(&info, "p.vhdx", size, "block_size=1M", target.clone()).unwrap();
        prop_assert!(writer.spec().over_backing);
        let parent_bytes = vec![0xdd; size as usize];
        let mut guest = parent_bytes.clone();
        let (mut at, sectors) = (0, size / logical);
        // Sectors that are placed or zeros, and blocks with placed sectors.
        let mut covered = vec![false; sectors as usize];
        let mut placed = vec![false; size.div_ceil(1 << 20) as usize];
        for (skip, len, zero) in steps {
            let range = (at + skip).min(sectors) * logical..(at + skip + len).min(sectors) * logical;
            at = range.end / logical;
            if range.is_empty() {
                continue;
            }
            covered[(range.start / logical) as usize..at as usize].fill(true);
            if zero {
                writer.zero(range.clone()).unwrap();
                guest[range.start as usize..range.end as usize].fill(0);
            } else {
                place_filled(&mut *writer, &mut guest, range.clone());
                placed[(range.start >> 20) as usize..range.end.div_ceil(1 << 20) as usize].fill(true);
            }
        }
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();

        let file = target.mem.to_vec();
        let disk = Disk::new(&file);
        prop_assert!(disk.read(&parent_bytes) == guest);
        prop_assert_eq!((disk.flags, disk.sector_sizes), (2, (logical as u32, 4096)));
        let mut end = 4;
        for ((sectors, placed), (state, _)) in covered.chunks((1 << 20) / logical as usize).zip(placed).zip(disk.blocks()) {
            let all = sectors.iter().all(|covered| *covered);
            let expected = match (all, placed) {
                (true, true) => 6,
                (true, false) => 2,
                _ if sectors.contains(&true) => 7,
                _ => 0,
            };
            prop_assert_eq!(state, expected);
            end += u64::from(state >= 6);
        }
        let partial = disk.blocks().iter().any(|(state, _)| *state == 7);
        prop_assert_eq!(disk.sector_bitmap(0).0, if partial { 6 } else { 0 });
        end += u64::from(partial);
        check_tiling(&disk, end << 20);
        prop_assert!(!has_old_content(&file[..(end as usize) << 20]));
        check_clean(&file[..(end as usize) << 20]);
    }
}

#[test]
fn the_layout_matches_windows() {
    let target = RecordingTarget::file();
    let mut writer = create((5 << 20) + 512, "log_size=2M,block_size=2M", target.clone()).unwrap();
    place_filled(&mut *writer, &mut vec![0; 6 << 20], (3 << 20)..(3 << 20) + 512);
    writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
    let file = target.mem.to_vec();
    assert_eq!(file.len(), 7 << 20);
    assert!(file.starts_with(b"vhdxfiled\0i\0s\0k\0i\0m\0a\0g\0e\0\0\0"));
    for (at, sequence_number) in [(64 << 10, 1), (128 << 10, 2)] {
        assert_eq!((&file[at..at + 4], u64_at(&file, at as u64 + 8)), (&b"head"[..], sequence_number));
        // The log is empty, has version 0 and 2 MiB at 1 MiB.
        assert_eq!(file[at + 48..at + 64], [0; 16]);
        assert_eq!((u32_at(&file, at as u64 + 64), u32_at(&file, at as u64 + 68)), (1 << 16, 2 << 20));
        assert_eq!(u64_at(&file, at as u64 + 72), 1 << 20);
    }
    assert!(file[64 << 10 | 16..64 << 10 | 48] == file[128 << 10 | 16..128 << 10 | 48], "the same GUIDs");
    assert!(file[192 << 10..256 << 10] == file[256 << 10..320 << 10], "two region tables");
    assert!(file[192 << 10..].starts_with(b"regi") && file[3 << 20..].starts_with(b"metadata"));
    let disk = Disk::new(&file);
    assert_eq!((disk.bat, disk.bat_len), (4 << 20, 1 << 20));
    assert_eq!(disk.blocks(), [(2, 0), (6, 5), (2, 0)]);
    assert!(
        file[5 << 20..6 << 20] == [0; 1 << 20] && file[6 << 20..(6 << 20) + 512] == [(3 * 2048 % 200) as u8 + 1; 512]
    );
}

#[test]
fn default_block_sizes_match_windows() {
    for (size, list, block_size) in [
        (512, "", 32),
        (1 << 40, "", 32),
        (64 << 40, "", 32),
        (2 << 20, "subformat=fixed", 2),
        (3 << 20, "subformat=fixed", 1),
        (512, "subformat=fixed", 1),
        (1 << 20, "subformat=fixed,block_size=256M", 256),
    ] {
        let mut options = Options::new();
        options.add_list(list);
        let settings = Settings::parse(&CreateContext::new(size, &options, RecordingTarget::file())).unwrap();
        assert_eq!(settings.metadata.block_size, block_size << 20, "{size} {list}");
    }
}

/// A target that keeps only its length.
#[derive(Default)]
struct Length(Mutex<u64>);

impl WriteAt for Length {
    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        *self.0.lock().unwrap() = len;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_fixed_image_has_the_size_of_the_disk_and_the_tables() {
    for (size, table, data) in [
        (512, 1, 1),
        (1 << 20, 1, 1),
        ((1 << 20) + 512, 1, 2),
        (2 << 20, 1, 2),
        ((7 << 20) + 512, 1, 8),
        (8 << 40, 33, 8 << 20),
        ((1 << 40) + 512, 9, (1 << 20) + 1),
    ] {
        let target = Arc::new(Length::default());
        let mut writer = create(size, "subformat=fixed", target.clone()).unwrap();
        assert_eq!(*target.0.lock().unwrap(), (3 + table + data) << 20, "{size}, at creation");
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
        assert_eq!(*target.0.lock().unwrap(), (3 + table + data) << 20, "{size}");
    }
}

#[test]
fn headers_are_written_last() {
    for device in [false, true] {
        let target = if device { RecordingTarget::device(40 << 20) } else { RecordingTarget::file() };
        let mut writer = create(3 << 20, "", target.clone()).unwrap();
        place_filled(&mut *writer, &mut vec![0; 3 << 20], 1 << 20..2 << 20);
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
        let events = target.writes_and_syncs();
        let (early, late) = events.split_at(events.len() - 5);
        let headers = [("write", 0), ("write", 64 << 10), ("write", 128 << 10)];
        assert_eq!(late, [&[("sync", 0)][..], &headers, &[("sync", 0)]].concat());
        let cleared = early.iter().filter(|event| **event == ("write", 0)).count();
        assert_eq!(cleared, usize::from(device), "a device is zeroed first");
        assert!(early.ends_with(&[("write", 192 << 10), ("write", 256 << 10)]));
    }
}

/// File write GUID, data write GUID and virtual disk id.
fn guids(file: &[u8]) -> [Uuid; 3] {
    let guid = |at: usize| Uuid::from_bytes_le(*file[at..].first_chunk().unwrap());
    let item = entry_of(file, (2 << 20) + 32, "beca12ab-b2e6-4523-93ef-c309e000c746");
    [guid(64 << 10 | 16), guid(64 << 10 | 32), guid((2 << 20) + u32_at(file, item + 16) as usize)]
}

#[test]
fn guids_are_never_nil_and_can_be_set() {
    let written = |list: &str, over: Option<&ImageInfo>| {
        let target = RecordingTarget::file();
        let writer = match over {
            Some(info) => create_over(info, "p", 1 << 20, list, target.clone()),
            None => create(1 << 20, list, target.clone()),
        };
        writer.unwrap().finish(&ImageIdentifiers::pinned(0)).unwrap();
        target.mem.to_vec()
    };
    let plain = guids(&written("", None));
    assert!(!plain.contains(&Uuid::nil()) && plain[0] != plain[1] && plain[1] != plain[2] && plain[0] != plain[2]);
    let pinned = written("uuid={6a37380f-5548-4359-90f4-3bcea33d6cdb}", None);
    assert_eq!(guids(&pinned)[2].to_string(), DISK_ID);
    assert!(pinned == written("uuid=6A37380F-5548-4359-90F4-3BCEA33D6CDB", None), "the same file");
    let others = guids(&written("uuid=6a37380f-5548-4359-90f4-3bcea33d6cdc", None));
    assert!(guids(&pinned).iter().zip(others).all(|(guid, other)| *guid != other));
    // A child has the disk ID of its parent, but no other GUID of it, even with the same options.
    let info = parent(1 << 20, 512);
    for list in ["", "uuid=6a37380f-5548-4359-90f4-3bcea33d6cdb"] {
        let (child, alone) = (guids(&written(list, Some(&info))), guids(&written(list, None)));
        assert_eq!(child[2].to_string(), DISK_ID);
        assert!(child[0] != alone[0] && child[1] != alone[1]);
        assert_eq!(written(list, Some(&info)), written(list, Some(&info)));
    }
}

#[test]
fn parent_paths_are_windows_paths() {
    let info = parent(1 << 20, 512);
    let paths = |name| {
        let options = Options::new();
        let backing = Some(NewBacking::new(Name::from(name), &info));
        let cx = CreateContext { backing, ..CreateContext::new(1 << 20, &options, RecordingTarget::file()) };
        Settings::parse(&cx).map(|settings| settings.metadata.parent.unwrap().entries)
    };
    for (name, key, path) in [
        ("p.vhdx", "relative_path", ".\\p.vhdx"),
        ("./a/p.vhdx", "relative_path", ".\\a\\p.vhdx"),
        ("../p.vhdx", "relative_path", "..\\p.vhdx"),
        ("..p/ö", "relative_path", ".\\..p\\ö"),
        ("/a/p.vhdx", "absolute_win32_path", "\\a\\p.vhdx"),
    ] {
        let linkage = ("parent_linkage".to_owned(), format!("{{{PARENT_GUID}}}"));
        assert_eq!(paths(name).unwrap(), [linkage, (key.to_owned(), path.to_owned())]);
    }
    let long = "a".repeat(32766);
    assert!(paths(&long[1..]).is_ok());
    for name in ["a\\b", "", &long] {
        assert_eq!(paths(name).unwrap_err().kind().as_str(), "option", "{name}");
    }
}

#[test]
fn unsupported_requests_are_refused() {
    let error = |size, list| create(size, list, RecordingTarget::file()).err().unwrap();
    for (size, list, kind) in [
        (0, "", "unsupported"),
        (512, "block_size=512k", "option"),
        (512, "block_size=512M", "option"),
        (512, "block_size=3M", "option"),
        (512, "subformat=differencing", "option"),
        (512, "log_size=0", "option"),
        (512, "log_size=1536k", "option"),
        (512, "log_size=4G", "option"),
        (512, "logical_sector_size=1024", "option"),
        (512, "logical_sector_size=4096,physical_sector_size=512", "option"),
        (512, "block_state_zero=maybe", "option"),
        (512, "uuid=00000000-0000-0000-0000-000000000000", "option"),
        (512, "uuid=1", "option"),
        (512, "backing_file=x", "option"),
        (512, "backing_fmt=vhdx", "option"),
        ((64 << 40) + 1, "", "limit"),
        (u64::MAX, "", "limit"),
    ] {
        assert_eq!(error(size, list).kind().as_str(), kind, "{size} {list}");
    }
    let options = Options::new();
    let plain = CreateContext::new(512, &options, RecordingTarget::file());
    let compressed = CreateContext { compress: true, ..plain };
    assert_eq!(Format::by_name("vhdx").unwrap().create(&compressed).err().unwrap().kind().as_str(), "unsupported");
    assert_eq!(
        create(512, "", RecordingTarget::file()).unwrap().place_compressed(0..512, 1).unwrap_err().kind().as_str(),
        "unsupported"
    );
    // A device that is too small is refused before anything is written.
    let device = RecordingTarget::device(8 << 20);
    assert_eq!(create((4 << 20) + 512, "subformat=fixed", device.clone()).err().unwrap().kind().as_str(), "io");
    assert_eq!(device.mem.to_vec(), vec![0xee; 8 << 20]);
}

#[test]
fn incompatible_parents_are_refused() {
    let over = |info: &ImageInfo, size, list| {
        create_over(info, "p", size, list, RecordingTarget::file()).map(|_| ()).map_err(|error| error.kind().as_str())
    };
    let info = parent(1 << 20, 512);
    for (list, result) in [
        ("", Ok(())),
        ("logical_sector_size=512,physical_sector_size=4096", Ok(())),
        ("backing_file=p,backing_fmt=vhdx", Ok(())),
        ("backing_file=q", Err("option")),
        ("backing_fmt=vpc", Err("option")),
        ("subformat=fixed", Err("option")),
        ("logical_sector_size=4096", Err("option")),
        ("physical_sector_size=512", Err("option")),
    ] {
        assert_eq!(over(&info, 1 << 20, list), result, "{list}");
    }
    assert_eq!(over(&info, (1 << 20) - 511, ""), Ok(()), "the size of the parent in whole sectors");
    assert_eq!(over(&info, (1 << 20) + 1, ""), Err("option"));
    assert_eq!(over(&info, (1 << 20) - 512, ""), Err("option"));
    assert_eq!(over(&parent(1 << 20, 4096), (1 << 20) - 4095, ""), Ok(()));
    for name in 0..4 {
        let mut info = parent(1 << 20, 512);
        info.specific.remove(name);
        assert_eq!(over(&info, 1 << 20, ""), Err("option"), "{name}");
    }
    let nil = ("data-write-guid", Value::from("00000000-0000-0000-0000-000000000000"));
    let specific = [&[nil], &info.specific[1..]].concat();
    assert_eq!(over(&ImageInfo { specific, ..info.clone() }, 1 << 20, ""), Err("option"));
    assert_eq!(over(&ImageInfo { format: "vpc", ..info }, 1 << 20, ""), Err("option"));
}

#[test]
fn calls_out_of_order_are_usage_errors() {
    let mut writer = create(4 << 20, "", RecordingTarget::file()).unwrap();
    writer.place(2 << 20..3 << 20).unwrap();
    for range in [0..512, 4 << 20..(4 << 20) + 512, 3 << 20..3 << 20, (3 << 20) + 1..4 << 20] {
        assert_eq!(writer.place(range).unwrap_err().kind().as_str(), "usage");
    }
    writer.place(3 << 20..4 << 20).unwrap();
    let mut writer = create_over(&parent(4 << 20, 4096), "p", 4 << 20, "", RecordingTarget::file()).unwrap();
    writer.zero(1 << 20..2 << 20).unwrap();
    assert_eq!(writer.place(0..4096).unwrap_err().kind().as_str(), "usage");
    assert_eq!(writer.zero(2 << 20..(2 << 20) + 512).unwrap_err().kind().as_str(), "usage");
}

#[test]
fn a_long_table_is_written_in_parts() {
    for (list, unwritten) in [("block_size=1M", 2), ("block_size=1M,block_state_zero=off", 0)] {
        let target = RecordingTarget::file();
        let blocks = 3 * table::FLUSH as u64 + 5;
        let mut writer = create(blocks << 20, list, target.clone()).unwrap();
        // Some blocks are at the ends of chunks.
        let placed = [0, 4095, 4096, table::FLUSH as u64, 2 * table::FLUSH as u64 + 4095, blocks - 1];
        for block in placed {
            writer.place(block << 20..(block << 20) + 512).unwrap();
        }
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
        let file = target.mem.to_vec();
        let disk = Disk::new(&file);
        let mut next = 5;
        for (block, entry) in (0..).zip(disk.blocks()) {
            if placed.contains(&block) {
                assert_eq!(entry, (6, next));
                next += 1;
            } else {
                assert_eq!(entry, (unwritten, 0), "{block}");
            }
        }
        assert!((0..blocks.div_ceil(4096)).all(|chunk| disk.sector_bitmap(chunk) == (0, 0)));
        check_tiling(&disk, next << 20);
    }
}

#[test]
fn chunks_have_sector_bitmaps_only_if_needed() {
    // Chunks of 4 GiB. The first one has a fully present block; in the second, the first and the last block are partially
    // present; the third has zeros only; the fourth, a partial chunk, has zeros in its last sector.
    let size = (13 << 30) + 512;
    let target = RecordingTarget::file();
    let mut writer = create_over(&parent(size, 512), "p", size, "block_size=1M", target.clone()).unwrap();
    let mut place = |range: Range<u64>| assert_eq!(writer.place(range.clone()).unwrap().len, range.end - range.start);
    place(7 << 20..8 << 20);
    place(4 << 30..(4 << 30) + 1024);
    place((8 << 30) - 512..8 << 30);
    writer.zero((8 << 30) + 512..(8 << 30) + (3 << 20)).unwrap();
    writer.zero(13 << 30..size).unwrap();
    writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
    let file = target.mem.to_vec();
    let disk = Disk::new(&file);
    let entries: Vec<_> = (0..).zip(disk.blocks()).filter(|(_, entry)| *entry != (0, 0)).collect();
    let expected =
        [(7, (6, 4)), (4096, (7, 5)), (8191, (7, 7)), (8192, (7, 8)), (8193, (2, 0)), (8194, (2, 0)), (13312, (2, 0))];
    assert_eq!(entries, expected);
    let maps: Vec<_> = (0..4).map(|chunk| disk.sector_bitmap(chunk)).collect();
    assert_eq!(maps, [(0, 0), (6, 6), (6, 9), (0, 0)]);
    let bits = |at: usize| file[at << 20..(at + 1) << 20].iter().map(|byte| byte.count_ones()).sum::<u32>();
    assert_eq!((bits(6), file[6 << 20], file[(7 << 20) - 1]), (3, 3, 0x80));
    // Zero blocks have no bits set.
    assert_eq!((bits(9), file[9 << 20]), (2048 - 1, 0xfe));
    check_tiling(&disk, 10 << 20);
}
