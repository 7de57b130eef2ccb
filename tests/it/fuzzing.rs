//! The bodies of the fuzz targets, with input that property testing makes up.

#[path = "../fuzzing/mod.rs"]
mod targets;

use std::sync::OnceLock;

use proptest::prelude::*;

use crate::support::pattern::Pattern;
use crate::support::{convert, qcow2, qcow2_bytes, raw_image, vdi, vmdk, vpc};

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
