//! Disks that outgrow the tables of their image.

use std::sync::Arc;

use diskimage::io::{MemFile, Storage};
use diskimage::{Format, OpenOptions};

use super::recorder::Recorder;
use super::starts::{SIZE, content, image};

const END: usize = 70_000;

/// The first bytes of the disk, and the last ones.
fn ends(file: Vec<u8>, context: &dyn Fn() -> String) -> (u64, Vec<u8>, Vec<u8>) {
    let image = OpenOptions::new().open_source(Arc::new(MemFile::from(file)));
    let image = image.unwrap_or_else(|error| panic!("{}: {error}", context()));
    let (mut first, mut last) = (vec![0; SIZE as usize], vec![0; END]);
    image.read_exact_at(&mut first, 0).unwrap();
    image.read_exact_at(&mut last, image.virtual_size() - END as u64).unwrap();
    (image.virtual_size(), first, last)
}

#[test]
fn a_power_cut_while_tables_move_leaves_the_old_or_the_new_size() {
    let content = content(4);
    let cases = [
        #[cfg(feature = "vhdx")]
        (Format::VHDX, "block_size=1M,log_size=1M", 200 << 30),
        #[cfg(feature = "vmdk")]
        (Format::VMDK, "", 100 << 20),
        #[cfg(feature = "vmdk")]
        (Format::VMDK, "zeroed_grain=on", (32 << 20) + 512),
        #[cfg(feature = "vmdk")]
        (Format::VMDK, "", 5 << 30),
    ];
    for (format, list, size) in cases {
        let file = Arc::new(Recorder::new(image(format, list, false, &content)));
        let disk = OpenOptions::new().open_disk_in(file.clone() as Arc<dyn Storage>).unwrap();
        disk.write_all_at(&content[..1000], 0).unwrap();
        disk.flush().unwrap();
        let before = file.count();
        disk.resize(size).unwrap();
        let resized = file.count();
        disk.write_all_at(&[7; END], size - END as u64).unwrap();
        disk.close().unwrap();
        let events = file.count();
        let mut sizes = [false; 2];
        file.replay(size, |count, cut, file| {
            let context = || format!("{format} {list}, {count} of {events} events, {cut:?}");
            let (found, first, last) = ends(file.clone(), &context);
            assert!(first == content, "{}", context());
            assert!(found == size || found == SIZE && count < resized, "{}: {found}", context());
            assert!(found == SIZE || count > before, "{}", context());
            sizes[usize::from(found == size)] = true;
            if found == size {
                assert!(last.iter().all(|byte| *byte == 0 || *byte == 7 && count > resized), "{}", context());
            }
            let report = OpenOptions::new().check_source(Arc::new(MemFile::from(file))).unwrap();
            assert_eq!((report.corruptions, report.check_errors), (0, 0), "{}: {:?}", context(), report.messages);
        });
        assert_eq!(sizes, [true; 2]);
        let (found, _, last) = ends(file.to_vec(), &|| format.to_string());
        assert!((found, last) == (size, vec![7; END]), "{format}");
    }
}

/// A new grain directory keeps the tables that are full; the last one, which gets more entries, is copied.
#[cfg(feature = "vmdk")]
#[test]
fn a_new_directory_has_the_tables_of_the_old_one() {
    // What a grain table maps.
    const TABLE: u64 = 32 << 20;
    const GROWN: u64 = 5 << 30;
    let file = Arc::new(MemFile::new());
    diskimage::Converter::new(Format::VMDK).create_to(2 * TABLE + (1 << 20), file.clone()).unwrap();
    let disk = OpenOptions::new().open_disk_in(file.clone() as Arc<dyn Storage>).unwrap();
    let old = [0, TABLE, 2 * TABLE];
    let new = [2 * TABLE + (16 << 20), 3 * TABLE, 4 * TABLE, 7 * TABLE, GROWN - 4096];
    let write = |(number, at): (usize, &u64)| disk.write_all_at(&[number as u8 + 1; 4096], *at).unwrap();
    old.iter().enumerate().for_each(write);
    disk.resize(GROWN).unwrap();
    new.iter().enumerate().map(|(number, at)| (old.len() + number, at)).for_each(write);
    disk.close().unwrap();
    let report = OpenOptions::new().check_source(file.clone()).unwrap();
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0), "{:?}", report.messages);
    let image = OpenOptions::new().open_source(file).unwrap();
    for (number, at) in old.iter().chain(&new).enumerate() {
        let mut found = [0; 4096];
        image.read_exact_at(&mut found, *at).unwrap();
        assert_eq!(found, [number as u8 + 1; 4096], "{at:#x}");
    }
}
