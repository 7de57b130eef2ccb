//! Written images are read by libyal and dissect, through their bindings for Python.

use std::path::PathBuf;

use super::overlays::changed;
use super::vhdx;
use super::vmdk::KINDS;
use crate::support::pattern::{ALL, Pattern};
use crate::support::tools::{DISSECT, LIBYAL, Reader};
use crate::support::{self, TempDir, open_beside, raw_image, vdi, vmdk, vpc};
use diskimage::Converter;

/// Images of each option list with each of these sizes and patterns, each in a directory of its own within `dir`.
fn images(
    dir: &TempDir,
    kinds: &[&str],
    sizes: &[usize],
    make: fn(&str) -> Converter,
    name: &str,
) -> Vec<(PathBuf, Vec<u8>)> {
    let mut images = Vec::new();
    for kind in kinds {
        for size in sizes {
            for pattern in ALL {
                // Of sizes that the readers take.
                let mut guest = pattern.make(*size);
                guest.truncate(*size);
                let own = dir.join(&format!("{kind} {size} {pattern:?}"));
                std::fs::create_dir(&own).unwrap();
                let image = own.join(name);
                make(kind).convert(&raw_image(&guest), &image).unwrap_or_else(|e| panic!("{kind}, {size}: {e}"));
                images.push((image, guest));
            }
        }
    }
    images
}

fn vmdk_of_kind(kind: &str) -> Converter {
    vmdk(&format!("subformat={kind}"))
}

/// dissect fails on sizes that are not a multiple of 8 KiB.
const VMDK_SIZES: [usize; 3] = [8 << 10, 304 << 10, (5 << 20) + (8 << 10)];

#[test]
fn libvmdk_reads_each_vmdk() {
    if LIBYAL.is_there("the VMDKs that we write, libvmdk reads") {
        let dir = TempDir::new();
        LIBYAL.assert_reads("vmdk", &images(&dir, &KINDS, &VMDK_SIZES, vmdk_of_kind, "ours.vmdk"));
    }
}

#[test]
fn dissect_reads_each_vmdk() {
    if DISSECT.is_there("the VMDKs that we write, dissect reads") {
        let dir = TempDir::new();
        DISSECT.assert_reads("vmdk", &images(&dir, &KINDS, &VMDK_SIZES, vmdk_of_kind, "ours.vmdk"));
    }
}

#[test]
fn libvhdi_and_dissect_read_each_vhd() {
    for reader in [LIBYAL, DISSECT] {
        if reader.is_there("the VHDs that we write, libvhdi and dissect read") {
            let dir = TempDir::new();
            let kinds = ["subformat=dynamic", "block_size=512k", "block_size=16M", "subformat=fixed"];
            let sizes = [512, (5 << 20) + 512];
            reader.assert_reads("vpc", &images(&dir, &kinds, &sizes, vpc, "ours.vhd"));
        }
    }
}

#[test]
fn dissect_reads_each_vdi() {
    if DISSECT.is_there("the VDIs that we write, dissect reads") {
        let dir = TempDir::new();
        let kinds = ["static=off", "static=on", "block_size=128k", "static=on,block_size=512k", "block_size=4M"];
        let sizes = [512, (5 << 20) + 512];
        DISSECT.assert_reads("vdi", &images(&dir, &kinds, &sizes, vdi, "ours.vdi"));
    }
}

#[test]
fn libvhdi_and_dissect_read_each_vhdx() {
    let there = |reader: &Reader| reader.is_there("the VHDXs that we write, libvhdi and dissect read");
    for (kinds, sector_size) in [(&vhdx::KINDS[..], 512), (&vhdx::KINDS_4K, 4096)] {
        let dir = TempDir::new();
        let images = images(&dir, kinds, &[(3 << 20) + sector_size], support::vhdx, "ours.vhdx");
        for reader in [LIBYAL, DISSECT].iter().filter(|reader| there(reader)) {
            reader.assert_reads("vhdx", &images);
        }
    }
}

/// A reader that always agrees would be none.
#[test]
fn a_changed_byte_changes_the_digest() {
    for reader in [LIBYAL, DISSECT] {
        if reader.is_there("readers that disagree") {
            let dir = TempDir::new();
            let mut images = images(&dir, &["subformat=fixed"], &[8 << 10], vpc, "ours.vhd");
            images.iter_mut().for_each(|(_, guest)| guest[5000] ^= 1);
            let disagrees = |reader: &Reader| reader.assert_reads("vpc", &images);
            std::panic::catch_unwind(|| disagrees(&reader)).expect_err("it has not read it");
            assert_eq!(reader.sizes("vpc", &[images[0].0.clone()]), [8 << 10]);
        }
    }
}

/// Differencing VHDs written by this crate. With blocks of 512 KiB, libvhdi reads some sectors from the parent that the
/// bitmap marks as present in the child; 7-Zip and VirtualBox do not.
#[test]
fn libvhdi_reads_a_chain() {
    if !LIBYAL.is_there("VHDs over others, libvhdi reads") {
        return;
    }
    let dir = TempDir::new();
    let mut guest = Pattern::Islands.make((5 << 20) + 512);
    let paths = ["base.vhd", "child.vhd", "grandchild.vhd"].map(|name| dir.join(name));
    vpc("").convert(&raw_image(&guest), &paths[0]).unwrap();
    for (seed, pair) in paths.windows(2).enumerate() {
        guest = changed(&guest, guest.len(), seed as u64 + 90);
        let name = pair[0].file_name().unwrap().to_str().unwrap();
        vpc("").backing(open_beside(&pair[0]).unwrap(), name).convert(&raw_image(&guest), &pair[1]).unwrap();
    }
    let [base, child, grandchild] = paths;
    LIBYAL.assert_reads_chain("vpc", &[grandchild, child, base], &guest);
}
