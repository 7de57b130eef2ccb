//! The bodies of the fuzz targets, with input that property testing makes up.

#[path = "../fuzzing/mod.rs"]
mod targets;

use std::sync::OnceLock;

use proptest::prelude::*;

use crate::support::pattern::Pattern;
use crate::support::{qcow2, qcow2_bytes};

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

/// A sound image with some bytes changed, most of them in the tables, and perhaps cut off.
fn spoiled() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![Just(0u64), Just(u64::MAX), any::<u64>(), (0u64..64).prop_map(|bit| 1 << bit)];
    let place = prop_oneof![0usize..112, 0usize..8192, any::<usize>()];
    let changes = prop::collection::vec((place, value, 0u32..4), 0..6);
    (0..seeds().len(), changes, prop::option::weighted(0.1, any::<usize>())).prop_map(|(seed, changes, cut)| {
        let mut bytes = seeds()[seed].clone();
        for (place, value, width) in changes {
            let width = 1 << width;
            let at = place % (bytes.len() - 8) / width * width;
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
    fn open_qcow2(bytes in spoiled()) {
        targets::open_qcow2(&bytes);
        targets::open_any(&bytes);
    }

    #[test]
    fn open_any(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        targets::open_any(&bytes);
        targets::open_raw(&bytes);
    }

    #[test]
    fn roundtrip(bytes in prop::collection::vec(any::<u8>(), 8..600)) {
        targets::roundtrip(&bytes);
    }
}
