//! Disks that are written: against a plain array, after power cuts, and in turns with qemu.
//!
//! The tests of a format are a list of [images to start with](model::Start); the rest is the same for all of them.

mod crash;
mod model;
mod recorder;
mod starts;

use model::Model;

#[test]
fn a_disk_behaves_like_an_array() {
    for start in starts::all() {
        for seed in 0..rounds(3) {
            let mut model = Model::new(&start, seed);
            (0..150).for_each(|_| _ = model.step());
        }
    }
}

/// The number of rounds with each image: more of them if the environment says so.
fn rounds(usual: u64) -> u64 {
    std::env::var("DISKIMAGE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(usual)
}
