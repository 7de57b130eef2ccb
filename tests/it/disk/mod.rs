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
