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
