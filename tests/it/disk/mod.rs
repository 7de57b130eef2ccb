//! Disks that are written: against a plain array, after power cuts, and in turns with qemu.
//!
//! The tests of a format are a list of [images to start with](model::Start); the rest is the same for all of them.

#[cfg(all(not(target_family = "wasm"), feature = "qcow2", feature = "vdi", feature = "vhd", feature = "vmdk"))]
mod backups;
#[cfg(feature = "qcow2")]
mod bitmaps;
mod crash;
#[cfg(feature = "crypto")]
mod encrypted;
#[cfg(feature = "vmdk")]
mod extents;
#[cfg(feature = "qcow2")]
mod faults;
#[cfg(any(feature = "vmdk", feature = "vhdx"))]
mod growth;
#[cfg(all(
    unix,
    feature = "vdi",
    feature = "vhd",
    feature = "vmdk",
    feature = "vhdx",
    feature = "qed",
    feature = "qcow"
))]
mod interop;
mod model;
#[cfg(feature = "qcow2")]
mod overlays;
#[cfg(all(feature = "vmdk", feature = "vhdx", feature = "vhd"))]
mod parents;
#[cfg(feature = "qcow")]
mod qcow;
#[cfg(feature = "qed")]
mod qed;
mod recorder;
#[cfg(feature = "qcow2")]
mod repair;
#[cfg(all(feature = "vdi", feature = "vhd"))]
mod repairs;
#[cfg(all(not(target_family = "wasm"), feature = "qcow2"))] // WASI has no threads.
mod requests;
mod starts;
#[cfg(all(unix, feature = "qcow2"))]
mod turns;
#[cfg(feature = "vdi")]
mod vdi;
#[cfg(feature = "vhd")]
mod vhd;
#[cfg(feature = "vhdx")]
mod vhdx;
#[cfg(feature = "vmdk")]
mod vmdk;
#[cfg(feature = "qcow2")]
mod widths;

use std::ops::Range;
use std::sync::Arc;

use diskimage::io::{MemFile, Storage};
use diskimage::{Disk, ImageInfo};
use model::Model;

#[test]
fn a_disk_behaves_like_an_array() {
    for start in starts::all() {
        for seed in seeds(1) {
            let mut model = Model::new(&start, seed);
            (0..150).for_each(|_| _ = model.step());
        }
    }
}

/// What a caller is told of a disk is what the next one finds in the file.
#[test]
fn properties_are_those_of_the_file() {
    for start in starts::all() {
        let file: Arc<dyn Storage> = Arc::new(MemFile::from(start.file.clone()));
        let open = || start.options().open_disk_in(file.clone()).unwrap();
        let properties = |disk: &Disk| {
            let ImageInfo { virtual_size, backing, identities, snapshots, specific, .. } = disk.info();
            (virtual_size, backing, identities, snapshots, specific)
        };
        let disk = open();
        disk.write_all_at(&[1; 3000], 5000).unwrap();
        if start.snapshots {
            disk.create_snapshot("one").unwrap();
        }
        disk.write_all_at(&[2; 3000], 100_000).unwrap();
        if start.resizes && !start.snapshots {
            disk.resize(disk.size() + 70_000).unwrap();
        }
        let told = properties(&disk);
        disk.close().unwrap();
        assert_eq!(told, properties(&open()), "{}", start.name);
    }
}

/// Runs of data begin anywhere, and are longer than what is copied at a time. What follows the end of the source remains.
#[cfg(feature = "qcow2")]
#[test]
fn a_source_is_written_into_a_disk() {
    use crate::support::Random;
    use diskimage::{Converter, Format, OpenOptions};

    const CLUSTER: usize = 64 << 10;
    const MIB: usize = 1 << 20;
    let mut content = Random::new(6).bytes(5 * MIB + 512);
    for zeros in [0..3 * CLUSTER, 3 * MIB..3 * MIB + CLUSTER, 4 * MIB + 1000..4 * MIB + 200_000] {
        content[zeros].fill(0);
    }
    let source = Arc::new(MemFile::from(starts::image(Format::QCOW2, "", false, &content)));
    let source = OpenOptions::new().open_source(source).unwrap();
    let old = vec![9; 6 * MIB];
    for format in [Format::RAW, Format::QCOW2] {
        let file: Arc<dyn Storage> = Arc::new(MemFile::from(starts::image(format, "", false, &old)));
        let disk = OpenOptions::new().format(format).open_disk_in(file).unwrap();
        Converter::new(format).convert_into_disk(&source, &disk).unwrap();
        let mut found = vec![0; old.len()];
        disk.read_exact_at(&mut found, 0).unwrap();
        let (new, rest) = found.split_at(content.len());
        assert!(new == content && *rest == old[content.len()..], "{format}");
    }
}

/// Each thread has every fourth range of the disk, of a length that is no multiple of a block.
#[cfg(not(target_family = "wasm"))] // WASI has no threads.
#[test]
fn threads_write_at_the_same_time() {
    const RANGE: usize = 3000;
    const THREADS: usize = 4;
    for start in starts::all() {
        let file: Arc<dyn Storage> = Arc::new(MemFile::from(start.file.clone()));
        let disk = start.options().open_disk_in(file.clone()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (disk, len) = (&disk, start.content.len());
                scope.spawn(move || {
                    for (index, at) in (0..len - RANGE).step_by(RANGE).enumerate().skip(thread).step_by(THREADS) {
                        let bytes = [index as u8 + 1; RANGE];
                        disk.write_all_at(&bytes, at as u64).unwrap();
                        let mut read = [0; RANGE];
                        disk.read_exact_at(&mut read, at as u64).unwrap();
                        assert!(read == bytes, "{at}");
                        if index % 16 == 0 {
                            disk.flush().unwrap();
                        }
                    }
                });
            }
        });
        disk.close().unwrap();
        let mut written = vec![0; file.size().unwrap() as usize];
        file.read_exact_at(&mut written, 0).unwrap();
        let content = start.read(written);
        let ranges = content[..content.len() - content.len() % RANGE].chunks(RANGE).enumerate();
        for (index, range) in ranges.filter(|(index, _)| (index + 1) * RANGE < content.len()) {
            assert!(range.iter().all(|byte| *byte == index as u8 + 1), "{}: range {index}", start.name);
        }
    }
}

/// Seeds for the rounds with each image: as many as usual, or more of them, and from another one on, if the environment says so.
fn seeds(usual: u64) -> Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let first = number("DISKIMAGE_SEED").unwrap_or(0);
    first..first + number("DISKIMAGE_ROUNDS").unwrap_or(usual)
}
