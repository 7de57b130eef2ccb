//! Persistent bitmaps of disks that are written.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use diskimage::driver::BitmapChange;
use diskimage::io::{MemFile, ReadAt, Storage};
use diskimage::{Disk, Format, OpenOptions};

use super::recorder::Recorder;
use super::starts::{SIZE, content, image};
use crate::support::Random;

/// Names, granularities, and whether they record writes.
const BITMAPS: [(&str, u64, bool); 3] = [("fine", 512, true), ("coarse", 32 << 10, true), ("disabled", 512, false)];

/// An image with bitmaps, of which no bit is set.
fn start(list: &str, compress: bool) -> (Vec<u8>, Vec<u8>) {
    let content = content(list.len() as u64);
    let file = Arc::new(MemFile::from(image(Format::QCOW2, list, compress, &content)));
    let disk = OpenOptions::new().open_disk_in(file.clone()).unwrap();
    for (name, granularity, enabled) in BITMAPS {
        disk.change_bitmap(name, BitmapChange::Add { granularity: Some(granularity), enabled }).unwrap();
    }
    disk.close().unwrap();
    (file.to_vec(), content)
}

/// The bitmaps that an image file has, but those that are in use.
fn bitmaps(file: Vec<u8>) -> HashMap<String, Vec<bool>> {
    let image = OpenOptions::new().open_source(Arc::new(MemFile::from(file))).unwrap();
    let bitmaps = image.bitmaps().unwrap().into_iter().filter(|bitmap| !bitmap.inconsistent);
    let bits = bitmaps.map(|bitmap| {
        let mut bytes = vec![0; bitmap.bits.size().unwrap() as usize];
        bitmap.bits.read_exact_at(&mut bytes, 0).unwrap();
        let count = image.virtual_size().div_ceil(bitmap.granularity) as usize;
        let bits = (0..count).map(|bit| bytes[bit / 8] >> (bit % 8) & 1 != 0).collect();
        (bitmap.name.to_string(), bits)
    });
    bits.collect()
}

/// A disk, its content, and which bits must be set.
struct Marked {
    file: Arc<Recorder>,
    disk: Disk,
    content: Vec<u8>,
    bits: HashMap<String, Vec<bool>>,
    random: Random,
}

impl Marked {
    fn open(file: Vec<u8>, content: Vec<u8>, seed: u64) -> Marked {
        let bits = bitmaps(file.clone());
        let file = Arc::new(Recorder::new(file));
        let disk = OpenOptions::new().open_disk_in(file.clone() as Arc<dyn Storage>).unwrap();
        Marked { file, disk, content, bits, random: Random::new(seed) }
    }

    fn step(&mut self, shrinks: bool) {
        let size = self.content.len() as u64;
        let start = self.random.below(size);
        let range = start..(start + 1 + self.random.below(60_000)).min(size);
        match self.random.below(20) {
            0..9 => {
                let bytes = self.random.bytes((range.end - range.start) as usize);
                self.disk.write_all_at(&bytes, start).unwrap();
                self.set(&range);
            }
            9..12 => {
                self.disk.write_zeros(range.clone()).unwrap();
                self.set(&range);
            }
            12..14 => {
                self.disk.discard(range.clone()).unwrap();
                self.set(&range);
            }
            14 => {
                let least = if shrinks { 4096 } else { size };
                let size = (size / 2 + self.random.below(size)).clamp(least, 3 << 20) & !511;
                self.disk.resize(size).unwrap();
                self.content.resize(size as usize, 0);
                for (name, granularity, _) in BITMAPS {
                    self.bits.get_mut(name).unwrap().resize(size.div_ceil(granularity) as usize, false);
                }
            }
            15 => self.reopen(),
            16 => {
                // The bitmaps can be read at any time.
                let coarse =
                    self.disk.bitmaps().unwrap().into_iter().find(|bitmap| bitmap.name.to_string() == "coarse");
                let coarse = coarse.unwrap();
                let mut first = [0];
                coarse.bits.read_exact_at(&mut first, 0).unwrap();
                assert_eq!((first[0] & 1 != 0, coarse.inconsistent), (self.bits["coarse"][0], false));
            }
            _ => self.disk.flush().unwrap(),
        }
        if let Some(read) = self.content.get_mut(range.start as usize..range.end as usize) {
            self.disk.read_exact_at(read, range.start).unwrap();
        }
    }

    fn set(&mut self, range: &Range<u64>) {
        for (name, granularity, _) in BITMAPS.iter().filter(|(.., enabled)| *enabled) {
            let bits = range.start / granularity..range.end.div_ceil(*granularity);
            self.bits.get_mut(*name).unwrap()[bits.start as usize..bits.end as usize].fill(true);
        }
    }

    fn reopen(&mut self) {
        let file = self.file.clone() as Arc<dyn Storage>;
        let other = OpenOptions::new().format(Format::RAW).open_disk_in(Arc::new(MemFile::new())).unwrap();
        std::mem::replace(&mut self.disk, other).close().unwrap();
        assert!(bitmaps(self.file.to_vec()) == self.bits);
        let report = OpenOptions::new().check_source(Arc::new(MemFile::from(self.file.to_vec()))).unwrap();
        assert_eq!((report.corruptions, report.check_errors, report.leaks), (0, 0, 0), "{:?}", report.messages);
        self.disk = OpenOptions::new().open_disk_in(file).unwrap();
    }
}

const IMAGES: [(&str, bool); 4] = [
    ("", false),
    ("cluster_size=512", false),
    ("cluster_size=4k,refcount_bits=1", false),
    ("extended_l2=on,cluster_size=16k", true),
];

#[test]
fn bitmaps_record_writes_and_follow_the_size() {
    for (list, compress) in IMAGES {
        for seed in super::seeds(1) {
            let (file, content) = start(list, compress);
            let mut marked = Marked::open(file, content, seed);
            (0..150).for_each(|_| marked.step(true));
            marked.reopen();
        }
    }
}

#[test]
fn a_power_cut_leaves_no_bitmap_that_lacks_a_change() {
    for (list, compress) in IMAGES {
        for seed in super::seeds(1) {
            let (file, content) = start(list, compress);
            let mut marked = Marked::open(file, content.clone(), seed);
            (0..40).for_each(|_| marked.step(false));
            marked.reopen();
            let mut usable = 0;
            marked.file.replay(seed, |events, cut, file| {
                let context = || format!("{list}, seed {seed}, {events} events, {cut:?}");
                let image = OpenOptions::new().open_source(Arc::new(MemFile::from(file.clone()))).unwrap();
                let mut now = vec![0; image.virtual_size() as usize];
                image.read_exact_at(&mut now, 0).unwrap();
                let mut before = content.clone();
                before.resize(now.len(), 0);
                let changed = |range: Range<usize>| before[range.clone()] != now[range];
                let found = bitmaps(file.clone());
                for (name, granularity, _) in BITMAPS.iter().filter(|(.., enabled)| *enabled) {
                    let Some(bits) = found.get(*name) else { continue };
                    usable += 1;
                    for (index, at) in (0..now.len()).step_by(*granularity as usize).enumerate() {
                        let end = (at + *granularity as usize).min(now.len());
                        assert!(bits[index] || !changed(at..end), "{}: {name}, bit {index}", context());
                    }
                }
                let report = OpenOptions::new().check_source(Arc::new(MemFile::from(file))).unwrap();
                assert_eq!((report.corruptions, report.check_errors), (0, 0), "{}: {:?}", context(), report.messages);
            });
            assert!(usable > 0, "{list}");
        }
    }
}

/// What a guest writes does not depend on a bitmap whose table is damaged.
#[test]
fn a_bitmap_that_cannot_be_updated_stays_in_use() {
    let (mut file, _) = start("", false);
    // The extension has the directory at byte 16, which begins with the offset of a table.
    let number = |file: &[u8], at: usize| u64::from_be_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    let extension = file.windows(4).position(|bytes| bytes == [0x23, 0x85, 0x28, 0x75]).unwrap();
    let directory = number(&file, extension + 8 + 16);
    let table = number(&file, directory);
    file[table + 7] = 2;
    let storage = Arc::new(MemFile::from(file));
    let disk = OpenOptions::new().open_disk_in(storage.clone()).unwrap();
    disk.write_all_at(&[7; 1000], 1000).unwrap();
    assert!(disk.resize(SIZE * 2).is_err());
    disk.close().unwrap();
    let image = OpenOptions::new().open_source(storage).unwrap();
    let states: Vec<_> = image.bitmaps().unwrap().iter().map(|bitmap| bitmap.inconsistent).collect();
    assert_eq!(states, [true, false, false]);
}

/// The autoclear bit of bitmaps stays, as they are kept up to date. What an unknown bit stands for is not.
#[test]
fn the_first_change_clears_unknown_autoclear_bits() {
    const AUTOCLEAR: std::ops::Range<usize> = 88..96;
    const BITMAPS: u64 = 1;
    const UNKNOWN: u64 = 1 << 63;
    let (mut bytes, _) = start("cluster_size=4k", false);
    bytes[AUTOCLEAR].copy_from_slice(&(UNKNOWN | BITMAPS).to_be_bytes());
    let changes: [fn(&Disk); 4] = [
        |disk| disk.write_all_at(&[1; 512], 0).unwrap(),
        |disk| disk.discard(0..SIZE).unwrap(),
        |disk| disk.resize(SIZE + 4096).unwrap(),
        |disk| disk.create_snapshot("one").unwrap(),
    ];
    let after = |change: &dyn Fn(&Disk)| {
        let file = Arc::new(MemFile::from(bytes.clone()));
        let disk = OpenOptions::new().open_disk_in(file.clone()).unwrap();
        change(&disk);
        disk.close().unwrap();
        u64::from_be_bytes(file.to_vec()[AUTOCLEAR].try_into().unwrap())
    };
    assert_eq!(after(&|disk| disk.read_exact_at(&mut [0; 512], 0).unwrap()), UNKNOWN | BITMAPS);
    for (index, change) in changes.iter().enumerate() {
        assert_eq!(after(change), BITMAPS, "{index}");
    }
}

#[test]
fn the_properties_have_the_bitmaps_as_changed() {
    let file = Arc::new(MemFile::from(start("cluster_size=4k", false).0));
    let changes = [
        ("coarse", BitmapChange::Remove),
        ("new", BitmapChange::Add { granularity: None, enabled: false }),
        ("fine", BitmapChange::Disable),
        ("disabled", BitmapChange::Enable),
    ];
    for (name, change) in changes {
        let disk = OpenOptions::new().open_disk_in(file.clone()).unwrap();
        let before = disk.info().specific;
        disk.change_bitmap(name, change).unwrap();
        let told = disk.info().specific;
        assert!(told != before, "{change:?}");
        disk.close().unwrap();
        let found = OpenOptions::new().open_disk_in(file.clone()).unwrap().info().specific;
        assert_eq!(told, found, "{change:?}");
    }
}
