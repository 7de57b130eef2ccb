//! Reproducible identifiers follow from the content.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use crate::support::pattern::Pattern;
use crate::support::{
    TempDir, convert, format, open_beside, open_bytes, open_raw, options, qcow2, qcow2_bytes, qcow2_image, raw_image,
    vdi,
};
use diskimage::{Converter, ErrorKind, Identifiers, Image, OpenOptions};

/// Every writer with identifiers.
const KINDS: [(&str, &str); 12] = [
    ("vdi", ""),
    ("vdi", "static=on"),
    ("vpc", ""),
    ("vpc", "subformat=fixed"),
    ("vpc", "force_size=off"),
    ("vhdx", ""),
    ("vhdx", "subformat=fixed"),
    ("vmdk", ""),
    ("vmdk", "subformat=streamOptimized"),
    ("vmdk", "subformat=monolithicFlat"),
    ("vmdk", "subformat=twoGbMaxExtentSparse"),
    ("vmdk", "subformat=twoGbMaxExtentFlat"),
];

fn reproducible(name: &str, list: &str) -> Converter {
    let converter = Converter::new(format(name)).options(options(list)).sync(false);
    converter.identifiers(Identifiers::Reproducible { time: 1 })
}

/// The files of an image made of `source`, and its identifiers.
fn make(converter: &Converter, source: &Image) -> (Vec<Vec<u8>>, Vec<String>) {
    let dir = TempDir::new();
    converter.convert(source, dir.join("disk")).unwrap();
    let files = dir.names().into_iter().map(|name| fs::read(dir.join(&name)).unwrap());
    (files.collect(), identifiers(&dir.join("disk")))
}

fn identifiers(path: &Path) -> Vec<String> {
    const KEYS: [&str; 6] =
        ["uuid", "modification-uuid", "virtual-disk-id", "data-write-guid", "file-write-guid", "cid"];
    let info = OpenOptions::new().inspect(path).unwrap().info;
    let values = info.specific.iter().filter(|(key, _)| KEYS.contains(key));
    let mut found: Vec<_> = values.map(|(key, value)| format!("{key} {value:?}")).collect();
    // The others of VMDK are in the descriptor only, which is at the start of its file.
    let bytes = fs::read(path).unwrap();
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(64 << 10)]).into_owned();
    let others = text.lines().filter(|line| line.starts_with("ddb.longContentID") || line.starts_with("ddb.uuid"));
    found.extend(others.map(str::to_owned));
    assert!(!found.is_empty());
    found
}

fn guest() -> Vec<u8> {
    let mut guest = vec![0; 5 << 20];
    guest[100 << 10..300 << 10].copy_from_slice(&Pattern::Dense.make(200 << 10));
    guest[3 << 20..4 << 20].copy_from_slice(&Pattern::Islands.make(1 << 20));
    guest
}

#[test]
fn they_depend_neither_on_threads_nor_on_the_source() {
    let guest = guest();
    let stored =
        |options: &str, compress| qcow2_image(&qcow2_bytes(&qcow2(options).compress(compress), &guest)).unwrap();
    let vdi = open_bytes(&convert(&vdi(""), &raw_image(&guest)).0, format("vdi")).unwrap();
    let sources = [raw_image(&guest), stored("cluster_size=4k", false), stored("", true), stored("", false), vdi];
    for (name, list) in KINDS {
        let converter = reproducible(name, list);
        let (files, first) = make(&converter.clone().threads(1), &sources[0]);
        for source in &sources {
            let (others, other) = make(&converter.clone().threads(3), source);
            assert_eq!(other, first, "{name} {list} of {:?}", source.format());
            // Compressed clusters are copied, and need not be what this encoder writes.
            assert!(others == files || list == "subformat=streamOptimized", "{name} {list} of {:?}", source.format());
        }
        // With all zeros stored, it is the same content.
        assert_eq!(make(&converter.sparse(0), &sources[0]).1, first, "{name} {list}");
        // A created image has the content of a disk of zeros.
        let dir = TempDir::new();
        reproducible(name, list).create(1 << 20, dir.join("disk")).unwrap();
        let zeros = make(&reproducible(name, list), &raw_image(&[0; 1 << 20])).1;
        assert_eq!(identifiers(&dir.join("disk")), zeros, "{name} {list}");
    }
}

#[test]
fn each_byte_counts() {
    let (first, second) = (guest(), [0, 150 << 10, (2 << 20) + 511, (5 << 20) - 1]);
    for (name, list) in KINDS {
        let converter = reproducible(name, list);
        let (files, one) = make(&converter, &raw_image(&first));
        let mut seen: HashSet<_> = one.iter().cloned().collect();
        for at in second {
            let mut changed = first.clone();
            changed[at] ^= 1;
            let (_, other) = make(&converter, &raw_image(&changed));
            assert_eq!(other.len(), one.len());
            other.into_iter().for_each(|id| assert!(seen.insert(id.clone()), "{name} {list}: {id} again"));
        }
        // Both copies have the final identifier.
        if (name, list) == ("vpc", "") {
            assert_eq!(files[0][..512], files[0][files[0].len() - 512..]);
        }
    }
}

#[test]
fn options_that_set_them_win() {
    const UUID: &str = "12345678-1234-4234-8234-123456789abc";
    for (name, list) in [
        ("vdi", format!("uuid={UUID}")),
        ("vpc", format!("uuid={UUID}")),
        ("vpc", format!("subformat=fixed,uuid={UUID}")),
        ("vhdx", format!("uuid={UUID}")),
        ("vmdk", "cid=12345678".to_owned()),
        ("vmdk", "subformat=streamOptimized,cid=12345678".to_owned()),
    ] {
        let made = [1, 2].map(|byte| make(&reproducible(name, &list), &raw_image(&[byte; 4096])).1);
        assert_eq!(made[0], made[1], "{name} {list}");
        let random = make(&reproducible(name, &list).identifiers(Identifiers::Random), &raw_image(&[1; 4096])).1;
        assert_eq!(made[0], random, "{name} {list}");
    }
}

#[test]
fn another_disk_in_the_place_of_a_parent_is_noticed() {
    let (one, other) = (Pattern::Dense.make(1 << 20), Pattern::Incompressible.make(1 << 20));
    for name in ["vmdk", "vpc", "vhdx"] {
        let dir = TempDir::new();
        let (base, overlay) = (dir.join("base"), dir.join("overlay"));
        let mut children = Vec::new();
        for content in [&one, &other] {
            reproducible(name, "").convert(&raw_image(content), &base).unwrap();
            let parent = OpenOptions::new().open(&base).unwrap();
            reproducible(name, "").backing(parent, "base").create(1 << 20, &overlay).unwrap();
            open_beside(&overlay).unwrap();
            children.push(OpenOptions::new().inspect(&overlay).unwrap().info.identities);
        }
        // Overlays without data over different parents are different disks.
        assert_ne!(children[0], children[1], "{name}");
        reproducible(name, "").convert(&raw_image(&one), &base).unwrap();
        assert_eq!(open_beside(&overlay).unwrap_err().kind(), ErrorKind::Reference, "{name}");
        // The same disk again is the same parent.
        reproducible(name, "").convert(&raw_image(&other), &base).unwrap();
        open_beside(&overlay).unwrap();
    }
}

#[test]
fn zeros_over_a_parent_count() {
    let dir = TempDir::new();
    let (base, overlay) = (dir.join("base"), dir.join("overlay"));
    let content = Pattern::Dense.make(1 << 20);
    for name in ["vmdk", "vpc", "vhdx"] {
        reproducible(name, "").convert(&raw_image(&content), &base).unwrap();
        let identities: HashSet<_> = [0..0, 0..64 << 10, 64 << 10..128 << 10, 0..128 << 10]
            .map(|zeros: std::ops::Range<usize>| {
                let mut changed = content.clone();
                changed[zeros].fill(0);
                let parent = OpenOptions::new().open(&base).unwrap();
                reproducible(name, "").backing(parent, "base").convert(&raw_image(&changed), &overlay).unwrap();
                format!("{:?}", OpenOptions::new().inspect(&overlay).unwrap().info.identities)
            })
            .into();
        assert_eq!(identities.len(), 4, "{name}");
    }
}

#[test]
fn a_second_conversion_is_the_same_for_rounded_sizes() {
    let dir = TempDir::new();
    let source = dir.file("source.raw", &Pattern::Dense.make(1_000_700));
    for (name, list) in KINDS {
        let converter = reproducible(name, list);
        converter.convert(&open_raw(&source), dir.join("disk")).unwrap();
        let first = identifiers(&dir.join("disk"));
        let again = make(&converter, &open_beside(&dir.join("disk")).unwrap());
        assert_eq!(again.1, first, "{name} {list}");
    }
}
