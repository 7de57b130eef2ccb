//! The bodies of the fuzz targets, with input of property testing.

#[path = "../fuzzing/mod.rs"]
mod targets;

#[cfg(unix)]
mod mutants;

use std::sync::Arc;
use std::thread;

use diskimage::io::MemFile;
use diskimage::{Converter, Format, OpenOptions, Options, Secret};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::support::pattern::Pattern;
use crate::support::{content, convert, open_beside, raw_image};

/// Options, and whether to compress.
type Kind = (&'static str, bool);

/// The kinds of seeds of a format, and the offset below which most of its tables are.
fn kinds(format: Format) -> (&'static [Kind], usize) {
    match format.name() {
        "qcow2" => (
            &[
                ("cluster_size=512", false),
                ("cluster_size=512,compat=0.10", true),
                ("cluster_size=4k", true),
                ("cluster_size=4k,compression_type=zstd", true),
                ("cluster_size=16k,extended_l2=on", false),
                ("cluster_size=16k,extended_l2=on", true),
            ],
            8192,
        ),
        "vmdk" => (&[("", false), ("zeroed_grain=on", false), ("subformat=streamOptimized", false)], 80 << 10),
        "vpc" => (&[("block_size=512k", false), ("subformat=fixed", false)], 4096),
        "vdi" => (&[("block_size=128k", false)], 1024),
        "luks" => (&[("iter-time=1", false), ("iter-time=1,cipher-mode=cbc,cipher-alg=aes-128", false)], 592),
        "qcow" => (&[("", false), ("cluster_size=512", true), ("cluster_size=16k", true)], 8192),
        "qed" => (&[("cluster_size=4k,table_size=2", false), ("cluster_size=8k,table_size=4", false)], 24 << 10),
        "parallels" => (&[("cluster_size=4k", false), ("cluster_size=64k", false)], 512),
        // Only read: there are only the stored ones.
        _ if !format.can_create() => (&[], 256),
        _ => (&[("", false)], 8192),
    }
}

/// Small valid images to start from: the crate's own, the stored ones and, of qcow2, some of the corpus.
fn seeds(format: Format) -> Vec<Vec<u8>> {
    let guest = match format.name() {
        "qcow2" => [Pattern::Islands, Pattern::Dense].map(|pattern| pattern.make(32 << 10)).concat(),
        "luks" => Pattern::Islands.make(16 << 10),
        _ => [Pattern::Islands.make(90 << 10), vec![0; 200 << 10], Pattern::Dense.make(40 << 10)].concat(),
    };
    let own = kinds(format).0.iter().map(|(list, compress)| {
        let mut options = Options::new();
        options.add_list(list);
        let converter = Converter::new(format).options(options).compress(*compress).sync(false);
        let converter = converter.secret(Secret::new(targets::SECRET));
        convert(&converter, &raw_image(&guest)).0
    });
    let corpus: &[&str] = match format.name() {
        "qcow2" => &["iot-061-1.qcow2", "iot-303-1.qcow2", "iot-112-4.qcow2", "iot-271-2.qcow2"],
        _ => &[],
    };
    own.chain(stored(format.name())).chain(corpus.iter().map(|name| crate::corpus::unpacked(name))).collect()
}

/// An input for VHDX: one of its images, and numbers in it that are changed.
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

/// The VHDX images that the inputs change are valid, so the changes alone cause errors.
#[test]
fn vhdx_images_without_changes_are_valid() {
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

/// The stored seeds of a format; none in a published package.
fn stored(format: &str) -> Vec<Vec<u8>> {
    let folder = format!("{}/fuzz/seeds/{format}", env!("CARGO_MANIFEST_DIR"));
    let Ok(files) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Inputs for the target of a format.
fn inputs(format: Format) -> BoxedStrategy<Vec<u8>> {
    match format.name() {
        "vhdx" => vhdx_input().boxed(),
        _ => damaged(seeds(format), kinds(format).1).boxed(),
    }
}

/// A valid image with some bytes changed, most of them in the tables, and sometimes truncated.
fn damaged(seeds: Vec<Vec<u8>>, near: usize) -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![Just(0u64), Just(u64::MAX), any::<u64>(), (0u64..64).prop_map(|bit| 1 << bit)];
    // Some offsets are from the end.
    let offset =
        prop_oneof![0usize..112, 0usize..near, any::<usize>(), (1usize..1600).prop_map(|end| usize::MAX - end)];
    let changes = prop::collection::vec((offset, value, 0u32..4), 0..6);
    // A published package has no stored seeds.
    let seeds = if seeds.is_empty() { vec![Vec::new()] } else { seeds };
    (0..seeds.len(), changes, prop::option::weighted(0.1, any::<usize>())).prop_map(move |(seed, changes, cut)| {
        let mut bytes = seeds[seed].clone();
        for (offset, value, width) in changes {
            let width = 1 << width;
            let room = bytes.len().saturating_sub(8).max(1);
            let offset =
                if offset > usize::MAX - 1600 { room.saturating_sub(usize::MAX - offset) } else { offset % room };
            let at = offset / width * width;
            // Each single bit is among the values, in whatever order the bytes are read.
            if let Some(field) = bytes.get_mut(at..at + width) {
                field.copy_from_slice(&value.to_be_bytes()[8 - width..]);
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut % bytes.len().max(1));
        }
        bytes
    })
}

/// An input for packages: a valid one with changes.
#[cfg(feature = "packages")]
fn package_input() -> impl Strategy<Value = Vec<u8>> {
    let text = br#"<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"><References>
        <File href="a.img" id="f" size="1024" chunkSize="1024"/><File href="b" id="g"/></References><DiskSection>
        <Disk capacity="2" capacityAllocationUnits="byte * 2^10" diskId="d" fileRef="f"/><Disk diskId="e" fileRef="g"/></DiskSection>
        <VirtualHardwareSection><Item><HostResource>ovf:/disk/e</HostResource><ResourceType>17</ResourceType></Item></VirtualHardwareSection></Envelope>"#;
    let manifest = format!("SHA1(a.img)= {}\r\nSHA256 (vm.ovf) = {}\n", "0".repeat(40), "a".repeat(64));
    let disk = Pattern::Islands.make(4096);
    let archive = targets::packages::archive(&[("x/box.img", &disk), ("x/metadata.json", b"{}")]);
    let seeds = [(0, archive), (1, text.to_vec()), (2, text.to_vec()), (3, manifest.into_bytes())];
    let changes = prop::collection::vec(
        (any::<usize>(), prop_oneof![any::<u8>(), Just(0), Just(b'<'), Just(b'"'), Just(b'7')]),
        0..5,
    );
    (prop::sample::select(seeds.to_vec()), changes, prop::option::weighted(0.1, any::<usize>())).prop_map(
        |((choice, mut bytes), changes, cut)| {
            let len = bytes.len();
            for (at, byte) in changes {
                bytes[at % len.min(2000)] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut % len);
            }
            [vec![choice], bytes].concat()
        },
    )
}

/// The stored disks with file systems.
#[cfg(feature = "sparsify")]
fn disks_of_guests() -> Vec<Vec<u8>> {
    let names = "btrfs exfat ext2 ext4 fat12 fat16 fat32 lvm ntfs swap xfs4 xfs5";
    names.split(' ').flat_map(|name| stored(&format!("guest_{name}"))).collect()
}

/// They are valid: in each something is not in use.
#[cfg(feature = "sparsify")]
#[test]
fn seeds_of_guests_are_valid() {
    // None in a published package.
    let count = targets::guest::valid_disks().len();
    assert!(count == 12 && disks_of_guests().len() == 24 || disks_of_guests().is_empty(), "{count}");
    disks_of_guests().iter().for_each(|input| targets::guest::guest(input));
}

/// An input for file systems of a guest: one of the stored disks with bits changed.
#[cfg(feature = "sparsify")]
fn guest_input(changes: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    // In a published package there are none.
    let sizes: Vec<_> = targets::guest::valid_disks().into_iter().enumerate().collect();
    let sizes = if sizes.is_empty() { vec![(0, 1)] } else { sizes };
    let changes = prop::collection::vec(any::<prop::sample::Index>(), changes);
    (prop::sample::select(sizes), changes).prop_map(|((index, len), changes)| {
        let change = |at: prop::sample::Index| (at.index(len * 8) as u32).to_le_bytes();
        [vec![index as u8 + 1], changes.into_iter().flat_map(change).collect()].concat()
    })
}

/// Few cases: the fuzz targets try many more of the same, optimized.
fn config() -> ProptestConfig {
    ProptestConfig { cases: 50, failure_persistence: None, ..ProptestConfig::default() }
}

#[test]
fn damaged_images_of_every_format() {
    thread::scope(|scope| {
        for format in Format::all() {
            scope.spawn(move || {
                let target = |bytes: Vec<u8>| {
                    targets::open(Some(format), &bytes);
                    targets::open(None, &bytes);
                    Ok(())
                };
                let result = TestRunner::new(config()).run(&inputs(format), target);
                assert!(result.is_ok(), "{format}: {}", result.unwrap_err());
            });
        }
    });
}

/// Damaged images that are written to, each by a random script.
#[cfg(feature = "disk")]
#[test]
fn damaged_images_that_are_written() {
    thread::scope(|scope| {
        for format in Format::all().filter(Format::can_update) {
            scope.spawn(move || {
                let input = (inputs(format), prop::collection::vec(any::<u8>(), 240));
                let target = |(image, script): (Vec<u8>, Vec<u8>)| {
                    targets::disk::disk(Some(format), &[image, script].concat());
                    Ok(())
                };
                let result = TestRunner::new(config()).run(&input, target);
                assert!(result.is_ok(), "{format}: {}", result.unwrap_err());
            });
        }
    });
}

/// Every format has valid seeds, so mutations start from valid images.
#[test]
fn seeds_of_every_format_can_be_opened() {
    for format in Format::all() {
        // Of a format that is only read, all are stored, and each kind of them is valid.
        let opened = if format.can_create() { kinds(format).0.len() } else { usize::MAX };
        for seed in seeds(format).iter().take(opened) {
            let options = OpenOptions::new().format(format).secret(Secret::new(targets::SECRET));
            let image = options.open_source(Arc::new(MemFile::from(seed.clone()))).unwrap();
            assert_eq!(image.format(), format);
        }
    }
}

/// The mutator of the fuzz targets changes one number, and reaches every place and bit of a small file.
#[test]
fn damage_is_one_number() {
    let image: Vec<u8> = (0..24).collect();
    let mut changed = vec![0; image.len()];
    for seed in 0..20_000 {
        let mut damaged = image.clone();
        targets::damage(&mut damaged, seed);
        let places: Vec<_> = (0..image.len()).filter(|at| damaged[*at] != image[*at]).collect();
        assert!(places.is_empty() || places[places.len() - 1] / 8 == places[0] / 8, "{seed}: {places:?}");
        places.iter().for_each(|at| changed[*at] |= damaged[*at] ^ image[*at]);
    }
    assert!(changed.iter().all(|bits| *bits == 0xff), "{changed:x?}");
    targets::damage(&mut [], 1);
}

/// The stored inputs are valid packages, whose disk can be opened.
#[cfg(feature = "packages")]
#[test]
fn seeds_of_packages_can_be_opened() {
    let seeds = stored("package");
    assert!(seeds.len() >= 10);
    for seed in seeds {
        targets::packages::package(&seed);
        if let Some(archive) = seed.strip_prefix(&[0]) {
            crate::support::open_detected(archive).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn arbitrary_bytes_in_every_format(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        targets::open(None, &bytes);
        for format in Format::all() {
            targets::open(Some(format), &bytes);
        }
    }

    #[cfg(feature = "packages")]
    #[test]
    fn packages(input in package_input()) {
        targets::packages::package(&input);
    }

    /// One bit that is wrong makes nothing free that is in use.
    #[cfg(feature = "sparsify")]
    #[test]
    fn guests_with_a_wrong_bit(inputs in prop::collection::vec(guest_input(1..2), 20)) {
        inputs.iter().for_each(|input| targets::guest::guest(input));
    }

    #[cfg(feature = "sparsify")]
    #[test]
    fn guests(changed in guest_input(2..9), damaged in damaged(disks_of_guests(), 4096)) {
        targets::guest::guest(&changed);
        targets::guest::guest(&damaged);
    }

    #[test]
    fn roundtrip(bytes in prop::collection::vec(any::<u8>(), targets::roundtrip::CHOICE_LEN..600)) {
        targets::roundtrip(&bytes);
    }

    #[test]
    fn deflate(bytes in prop::collection::vec(any::<u8>(), 0..600), few in prop::collection::vec(0_u8..4, 2..600)) {
        targets::deflate(&bytes);
        targets::deflate(&few);
    }

    #[test]
    fn inflate(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        targets::inflate(&bytes);
    }

    #[cfg(feature = "nbd")]
    #[test]
    fn nbd_servers(input in damaged(stored("nbd_client"), 400)) {
        targets::nbd::client(&input);
    }

    #[cfg(feature = "nbd")]
    #[test]
    fn nbd_clients(input in damaged(stored("nbd_server"), 400)) {
        targets::nbd::server(&input);
    }

    /// Compressed files with some bytes changed, and cut off.
    #[cfg(feature = "compressed")]
    #[test]
    fn compressed(
        which in 0..crate::compressed::seeds().len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = crate::compressed::seeds().swap_remove(which);
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        file.truncate(cut.map_or(file.len(), |cut| cut.index(file.len())));
        targets::compressed(&file);
    }
}
