//! Repairs of formats without refcounts, and what needs none.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use diskimage::io::{MemFile, ReadAt, Storage, WriteAt};
use diskimage::{CheckReport, Converter, Format, OpenOptions, Repair, RepairReport};

use super::starts::{SIZE, content, image};
use crate::support::options;

fn repair(format: Format, file: &Arc<MemFile>, what: Repair) -> RepairReport {
    OpenOptions::new().format(format).repair_storage(file.clone() as Arc<dyn Storage>, what).unwrap()
}

fn read(format: Format, file: &Arc<MemFile>) -> (Vec<u8>, usize) {
    let image = OpenOptions::new().format(format).open_source(file.clone()).unwrap();
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_exact_at(&mut bytes, 0).unwrap();
    (bytes, image.info().warnings.len())
}

fn counts(report: &CheckReport) -> (u64, u64, u64) {
    (report.corruptions, report.leaks, report.check_errors)
}

const COUNT: usize = 388;

/// The count is too low, too high, right.
#[test]
fn the_count_of_blocks_of_a_vdi_is_repaired() {
    let content = content(3);
    let good = image(Format::VDI, "block_size=128k", false, &content);
    let count = u32::from_le_bytes(good[COUNT..COUNT + 4].try_into().unwrap());
    for (wrong, leaks, all) in [(count - 1, (0, 0), (0, 1)), (count + 1, (1, 0), (1, 0)), (count, (0, 0), (0, 0))] {
        for (what, fixed) in [(Repair::Leaks, leaks), (Repair::All, all)] {
            let mut bytes = good.clone();
            bytes[COUNT..COUNT + 4].copy_from_slice(&wrong.to_le_bytes());
            let file = Arc::new(MemFile::from(bytes.clone()));
            let report = repair(Format::VDI, &file, what);
            assert_eq!((report.leaks_fixed, report.corruptions_fixed), fixed, "{wrong} of {count}, {what:?}");
            assert_eq!(file.to_vec() == good, wrong == count || fixed != (0, 0), "{wrong} of {count}, {what:?}");
            assert_eq!(file.to_vec() == bytes, fixed == (0, 0), "{wrong} of {count}, {what:?}");
            if file.to_vec() == good {
                assert_eq!(counts(&report.after), (0, 0, 0));
            }
        }
    }
    // With a damaged entry, nothing is known to be unused.
    let mut bytes = good.clone();
    let map = u32::from_le_bytes(bytes[340..344].try_into().unwrap()) as usize;
    bytes[map..map + 4].copy_from_slice(&1000u32.to_le_bytes());
    let file = Arc::new(MemFile::from(bytes.clone()));
    for what in [Repair::Leaks, Repair::All] {
        assert!(repair(Format::VDI, &file, what).before.corruptions > 0);
        assert!(file.to_vec() == bytes);
    }
}

/// All blocks of the data area are counted, and the map uses some of them.
#[test]
fn blocks_of_a_vdi_that_nothing_uses_are_allocated() {
    let mut content = content(3);
    let mut bytes = image(Format::VDI, "block_size=128k,static=on", false, &content);
    let map = u32::from_le_bytes(bytes[340..344].try_into().unwrap()) as usize;
    for index in [1, 3] {
        bytes[map + index * 4..map + index * 4 + 4].fill(0xff);
        content[index << 17..(index + 1) << 17].fill(0);
    }
    let file = Arc::new(MemFile::from(bytes));
    let disk = OpenOptions::new().open_disk_in(file.clone()).unwrap();
    for at in [(3 << 17) + 1000, (1 << 17) + 5, 0] {
        disk.write_all_at(&[8; 3000], at as u64).unwrap();
        content[at..at + 3000].fill(8);
    }
    disk.close().unwrap();
    let report = OpenOptions::new().check_source(file.clone()).unwrap();
    assert_eq!(counts(&report), (0, 0, 0), "{:?}", report.messages);
    assert!(read(Format::VDI, &file).0 == content);
}

/// The directory of a VMDK is at the sector in bytes 56 to 63, the redundant one at that in bytes 48 to 55.
#[cfg(feature = "vmdk")]
#[test]
fn the_directory_of_a_vmdk_follows_from_the_redundant_one() {
    let content = content(3);
    let good = image(Format::VMDK, "", false, &content);
    let directory = u64::from_le_bytes(good[56..64].try_into().unwrap()) as usize * 512;
    for entry in [0, 0xffff_fff0_u32] {
        let mut bytes = good.clone();
        bytes[directory..directory + 4].copy_from_slice(&entry.to_le_bytes());
        let file = Arc::new(MemFile::from(bytes.clone()));
        assert!(OpenOptions::new().open_disk_in(file.clone()).is_err());
        let report = repair(Format::VMDK, &file, Repair::Leaks);
        assert!(report.before.corruptions > 0 && file.to_vec() == bytes, "{report:?}");
        let report = repair(Format::VMDK, &file, Repair::All);
        assert_eq!((report.corruptions_fixed, counts(&report.after)), (1, (0, 0, 0)), "{:?}", report.after.messages);
        assert!(read(Format::VMDK, &file) == (content.clone(), 0));
        let disk = OpenOptions::new().open_disk_in(file.clone()).unwrap();
        disk.write_all_at(&content[..5000], 0).unwrap();
        disk.close().unwrap();
        assert_eq!(counts(&OpenOptions::new().check_source(file.clone()).unwrap()), (0, 0, 0));
        assert!(read(Format::VMDK, &file).0 == content);
    }
}

/// An extent that was not closed lacks an entry in the redundant table only.
#[cfg(feature = "vmdk")]
#[test]
fn a_vmdk_that_was_not_closed_is_completed() {
    let content = content(3);
    let good = image(Format::VMDK, "", false, &content);
    let redundant = u64::from_le_bytes(good[48..56].try_into().unwrap()) as usize * 512;
    let table = u32::from_le_bytes(good[redundant..redundant + 4].try_into().unwrap()) as usize * 512;
    let entry = (table..table + 2048).step_by(4).find(|at| good[*at..at + 4] != [0; 4]).unwrap();
    let mut bytes = good.clone();
    bytes[72] = 1;
    bytes[entry..entry + 4].fill(0);
    let file = Arc::new(MemFile::from(bytes));
    let report = repair(Format::VMDK, &file, Repair::All);
    assert_eq!((report.corruptions_fixed, counts(&report.after)), (1, (0, 0, 0)), "{:?}", report.after.messages);
    assert!(file.to_vec() == good);
}

#[test]
fn the_footer_of_a_vhd_is_written_from_its_copy() {
    let content = content(3);
    let good = image(Format::VHD, "block_size=512k", false, &content);
    let end = good.len();
    for damaged in [end - 512..end, end - 400..end - 390, 0..512, 80..90] {
        let mut bytes = good.clone();
        bytes[damaged.clone()].iter_mut().for_each(|byte| *byte ^= 0x55);
        let file = Arc::new(MemFile::from(bytes.clone()));
        assert_eq!(read(Format::VHD, &file).1, 1, "{damaged:?}");
        assert_eq!(repair(Format::VHD, &file, Repair::Leaks).corruptions_fixed, 0);
        assert!(file.to_vec() == bytes);
        let report = repair(Format::VHD, &file, Repair::All);
        assert_eq!((report.corruptions_fixed, counts(&report.after)), (1, (0, 0, 0)), "{damaged:?}");
        assert!(read(Format::VHD, &file) == (content.clone(), 0), "{damaged:?}");
        assert!(file.to_vec().ends_with(&good[end - 512..]) && file.to_vec().starts_with(&good[..512]));
        assert_eq!(repair(Format::VHD, &file, Repair::All).corruptions_fixed, 0);
    }
}

/// Storage on a file system that is full.
struct Limited {
    file: MemFile,
    /// Longest file in bytes.
    limit: AtomicU64,
}

impl ReadAt for Limited {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
}

impl WriteAt for Limited {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        match offset + buf.len() as u64 <= self.limit.load(Ordering::Relaxed) {
            true => self.file.write_all_at(buf, offset),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match len <= self.limit.load(Ordering::Relaxed) {
            true => self.file.set_len(len),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The guest tries again and again while the storage grows by less than a block.
#[test]
fn a_full_storage_leaks_nothing() {
    let formats = [
        (Format::VDI, "block_size=128k"),
        (Format::VHD, "block_size=512k"),
        #[cfg(feature = "qcow2")]
        (Format::QCOW2, "cluster_size=4k"),
        #[cfg(feature = "qed")]
        (Format::QED, "cluster_size=4k,table_size=2"),
        #[cfg(feature = "vhdx")]
        (Format::VHDX, "block_size=1M"),
        #[cfg(feature = "vmdk")]
        (Format::VMDK, ""),
    ];
    for (format, list) in formats {
        let empty = Arc::new(MemFile::new());
        Converter::new(format).options(options(list)).create_to(SIZE, empty.clone()).unwrap();
        let len = empty.to_vec().len() as u64;
        let file = Arc::new(Limited { file: MemFile::from(empty.to_vec()), limit: len.into() });
        let disk = OpenOptions::new().open_disk_in(file.clone() as Arc<dyn Storage>).unwrap();
        let (mut failures, mut at) = (0, 0);
        while at < SIZE {
            match disk.write_all_at(&[9; 1000], at) {
                Ok(()) => at += 60_000,
                Err(error) => {
                    assert!(failures < 10_000, "{format}: {error}");
                    failures += 1;
                    file.limit.fetch_add(3000, Ordering::Relaxed);
                }
            }
        }
        disk.close().unwrap();
        assert!(failures > 10, "{format}: {failures}");
        let report = OpenOptions::new().check_source(Arc::new(MemFile::from(file.file.to_vec()))).unwrap();
        assert_eq!(counts(&report), (0, 0, 0), "{format}: {:?}", report.messages);
    }
}
