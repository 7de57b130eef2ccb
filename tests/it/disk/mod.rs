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
        for seed in 0..3 {
            let mut model = Model::new(&start, seed);
            (0..150).for_each(|_| _ = model.step());
        }
    }
}
