//! The bodies of the fuzz targets, with input that property testing makes up.

#[path = "../fuzzing/mod.rs"]
mod targets;

use std::sync::OnceLock;

use proptest::prelude::*;

use crate::support::pattern::Pattern;
use crate::support::{content, convert, open_beside, qcow2, qcow2_bytes, raw_image, vdi, vmdk, vpc};

/// Small sound images to start from.
fn seeds() -> &'static [Vec<u8>] {
    static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let guest = [Pattern::Islands, Pattern::Dense].map(|pattern| pattern.make(32 << 10)).concat();
        let image = |options: &str, compress| qcow2_bytes(&qcow2(options).compress(compress), &guest);
        let mut seeds = vec![
            image("cluster_size=512", false),
            image("cluster_size=512,compat=0.10", true),
            image("cluster_size=4k", true),
            image("cluster_size=4k,compression_type=zstd", true),
            image("cluster_size=16k,extended_l2=on", false),
            image("cluster_size=16k,extended_l2=on", true),
        ];
        for name in ["iot-061-1.qcow2", "iot-303-1.qcow2", "iot-112-4.qcow2", "iot-271-2.qcow2"] {
            seeds.push(crate::corpus::unpacked(name));
        }
        seeds
    })
}

/// The same of VMDK, the last bytes too: they may hold the footer.
fn vmdk_seeds() -> &'static [Vec<u8>] {
    static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let guest = [Pattern::Islands.make(90 << 10), vec![0; 200 << 10], Pattern::Dense.make(40 << 10)].concat();
        let lists = ["", "zeroed_grain=on", "subformat=streamOptimized"];
        let own = lists.iter().map(|list| convert(&vmdk(list), &raw_image(&guest)).0);
        own.chain(stored("open_vmdk")).collect()
    })
}

/// The same of VHD and VDI. Most are the stored ones: what the crate writes has blocks, or a map, of a MiB and more.
fn vpc_seeds() -> &'static [Vec<u8>] {
    static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let guest = Pattern::Islands.make(90 << 10);
        let own = ["block_size=512k", "subformat=fixed"].map(|list| convert(&vpc(list), &raw_image(&guest)).0);
        own.into_iter().chain(stored("open_vpc")).collect()
    })
}

fn vdi_seeds() -> &'static [Vec<u8>] {
    static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let guest = Pattern::Islands.make(90 << 10);
        [convert(&vdi("block_size=128k"), &raw_image(&guest)).0].into_iter().chain(stored("open_vdi")).collect()
    })
}

/// An input of the target for VHDX: one of its images, and numbers in it that are changed.
fn vhdx_input() -> impl Strategy<Value = Vec<u8>> {
    const KIB: u32 = 1 << 10;
    let place = prop_oneof![
        // Headers, region tables, the metadata table and its items, the BAT, the log.
        (prop::sample::select(vec![64 * KIB, 128 * KIB]), 0u32..80),
        (prop::sample::select(vec![192 * KIB, 256 * KIB]), 0u32..88),
        (Just(2048 * KIB), 0u32..224),
        (Just(2112 * KIB), 0u32..256),
        (prop::sample::select(vec![3072 * KIB, 3104 * KIB]), 0u32..24),
        (prop::sample::select(vec![2044 * KIB, 1028 * KIB]), 0u32..128),
        (Just(0), 0u32..9 << 20),
    ];
    let value = prop_oneof![Just(0u64), Just(u64::MAX), any::<u64>(), (0u64..64).prop_map(|bit| 1 << bit)];
    let changes = prop::collection::vec((place, value, 0u32..4), 0..4);
    let cut = prop::option::weighted(0.1, 0u32..9 << 20);
    // Small disks are converted to all formats.
    let small = prop::bool::weighted(0.1);
    (0u8..8, small, changes, cut).prop_map(|(choice, small, changes, cut)| {
        let mut input = vec![choice | u8::from(small) << 3];
        for ((start, at), value, width) in changes {
            let width = 1 << width;
            input.extend((start + at / width * width).to_le_bytes());
            input.push(width as u8);
            input.extend(&value.to_le_bytes()[..width as usize]);
        }
        if let Some(cut) = cut {
            input.extend(cut.to_le_bytes());
            input.push(0);
        }
        input
    })
}

/// The images that the inputs change are sound, so that the changes are what is tried out.
#[test]
fn images_of_the_target_for_vhdx() {
    let block = 1 << 20;
    for choice in (0u8..16).filter(|choice| choice & 3 != 3) {
        let (file, parent) = targets::vhdx::files(&[choice]).unwrap();
        let folder = targets::vhdx::Folder::new();
        file.store(&folder.0.join("child.vhdx")).unwrap();
        if let Some(parent) = &parent {
            parent.store(&folder.0.join("parent.vhdx")).unwrap();
        }
        let image = open_beside(&folder.0.join("child.vhdx")).unwrap();
        let guest = content(&image).unwrap();
        assert_eq!(guest.len(), if choice & 8 != 0 { block - 4096 } else { 3 * block }, "{choice}");
        let is_child = parent.is_some();
        let replayed = choice & 4 != 0;
        // Of the child, sector 0 is its own, and sector 1 is the parent's.
        let own = if replayed { 3 } else { 1 | u8::from(is_child) << 4 };
        let other = if replayed && !is_child { 3 } else { 1 };
        assert_eq!((guest[0], guest[600]), (own, other), "{choice}");
        if choice & 8 == 0 {
            assert_eq!((guest[block], guest[2 * block]), (0, 2 | u8::from(is_child) << 4), "{choice}");
        }
    }
}

/// The seeds of a target in `fuzz`; none in the package.
fn stored(target: &str) -> Vec<Vec<u8>> {
    let folder = format!("{}/fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
    let Ok(files) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// A sound image with some bytes changed, most of them in the tables, and perhaps cut off.
fn spoiled(seeds: fn() -> &'static [Vec<u8>], near: usize) -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![Just(0u64), Just(u64::MAX), any::<u64>(), (0u64..64).prop_map(|bit| 1 << bit)];
    // Counted from the end, some of them.
    let place = prop_oneof![0usize..112, 0usize..near, any::<usize>(), (1usize..1600).prop_map(|end| usize::MAX - end)];
    let changes = prop::collection::vec((place, value, 0u32..4), 0..6);
    (0..seeds().len(), changes, prop::option::weighted(0.1, any::<usize>())).prop_map(move |(seed, changes, cut)| {
        let mut bytes = seeds()[seed].clone();
        for (place, value, width) in changes {
            let width = 1 << width;
            let room = bytes.len() - 8;
            let place = if place > usize::MAX - 1600 { room.saturating_sub(usize::MAX - place) } else { place % room };
            let at = place / width * width;
            // Each single bit is among the values, in whatever order the bytes are read.
            bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut % bytes.len());
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn open_qcow2(bytes in spoiled(seeds, 8192)) {
        targets::open_qcow2(&bytes);
        targets::open_any(&bytes);
    }

    #[test]
    fn open_vmdk(bytes in spoiled(vmdk_seeds, 80 << 10)) {
        targets::open_vmdk(&bytes);
        targets::open_any(&bytes);
    }

    #[test]
    fn open_vpc(bytes in spoiled(vpc_seeds, 4096)) {
        targets::open_vpc(&bytes);
        targets::open_any(&bytes);
    }

    #[test]
    fn open_vhdx(input in vhdx_input()) {
        targets::open_vhdx(&input);
    }

    #[test]
    fn open_vdi(bytes in spoiled(vdi_seeds, 1024)) {
        targets::open_vdi(&bytes);
        targets::open_any(&bytes);
    }

    #[test]
    fn open_any(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        targets::open_any(&bytes);
        targets::open_raw(&bytes);
        targets::open_vmdk(&bytes);
    }

    #[test]
    fn roundtrip(bytes in prop::collection::vec(any::<u8>(), 8..600)) {
        targets::roundtrip(&bytes);
    }
}
