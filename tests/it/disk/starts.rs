//! The images that disks start with.

use std::sync::Arc;

use diskimage::io::MemFile;
use diskimage::{Converter, Format, OpenOptions, Secret};

use super::model::{SECRET, Start};
use crate::support::{Random, options};

pub const SIZE: u64 = 600 << 10;

/// All images of all formats that can be written.
pub fn all() -> Vec<Start> {
    let mut starts = vec![raw()];
    #[cfg(feature = "qcow2")]
    starts.extend(qcow2());
    #[cfg(feature = "vdi")]
    starts.extend(super::vdi::starts());
    #[cfg(feature = "vhd")]
    starts.extend(super::vhd::starts());
    #[cfg(feature = "vmdk")]
    starts.extend(super::vmdk::starts());
    #[cfg(feature = "vhdx")]
    starts.extend(super::vhdx::starts());
    #[cfg(feature = "qcow")]
    starts.extend(super::qcow::starts());
    #[cfg(feature = "qed")]
    starts.extend(super::qed::starts());
    #[cfg(feature = "crypto")]
    starts.extend(super::encrypted::starts());
    starts
}

/// Guest data with runs of noise, of compressible bytes and of zeros.
pub fn content(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut content = vec![0; SIZE as usize];
    for _ in 0..6 {
        let (at, len) = (random.below(SIZE) as usize, random.below(60_000) as usize);
        let bytes = match random.below(2) {
            0 => random.bytes(len),
            _ => vec![b'c'; len],
        };
        let end = (at + len).min(content.len());
        content[at..end].copy_from_slice(&bytes[..end - at]);
    }
    content
}

fn raw() -> Start {
    let content = content(1);
    Start {
        name: "raw".into(),
        file: content.clone(),
        backing: None,
        content,
        resizes: true,
        shrinks: true,
        snapshots: false,
    }
}

/// An image of `content` with these options.
pub fn image(format: Format, list: &str, compress: bool, content: &[u8]) -> Vec<u8> {
    let source = OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(content.to_vec()))).unwrap();
    let file = Arc::new(MemFile::new());
    let converter = Converter::new(format).options(options(list)).compress(compress).secret(Secret::new(SECRET));
    converter.convert_to(&source, file.clone()).unwrap();
    file.to_vec()
}

#[cfg(feature = "qcow2")]
fn qcow2() -> Vec<Start> {
    let start = |list: &str, compress| {
        let content = content(list.len() as u64);
        let file = image(Format::QCOW2, list, compress, &content);
        let name = format!("qcow2 {list}{}", if compress { ", compressed" } else { "" });
        // Version 2 cannot be resized with snapshots, and refcounts of one bit cannot have any.
        let is_version_2 = list.starts_with("compat=0.10");
        let snapshots = !list.contains("refcount_bits=1");
        Start { name, file, backing: None, content, resizes: !is_version_2, shrinks: true, snapshots }
    };
    let mut starts = vec![
        start("", false),
        start("cluster_size=4k", true),
        start("cluster_size=512", false),
        start("cluster_size=512,refcount_bits=64", true),
        start("compat=0.10,cluster_size=2k", true),
        start("cluster_size=1k,refcount_bits=1", false),
        start("extended_l2=on,cluster_size=16k", false),
        start("extended_l2=on,cluster_size=32k", true),
        start("preallocation=metadata,cluster_size=8k", false),
    ];
    for list in ["cluster_size=4k", "compat=0.10,cluster_size=4k", "extended_l2=on,cluster_size=16k"] {
        starts.push(overlay(list));
    }
    starts
}

/// An overlay of a raw disk that is longer.
#[cfg(feature = "qcow2")]
fn overlay(list: &str) -> Start {
    let mut backing = content(7);
    backing.resize(backing.len() + 100_000, 5);
    let list = format!("{list},backing_fmt=raw");
    let base = Arc::new(MemFile::from(backing.clone()));
    let base = OpenOptions::new().format(Format::RAW).open_source(base).unwrap();
    let file = Arc::new(MemFile::new());
    let converter = Converter::new(Format::QCOW2).options(options(&list)).backing(base, "base.raw");
    converter.create_to(SIZE, file.clone()).unwrap();
    let file = file.to_vec();
    let content = backing[..SIZE as usize].to_vec();
    // Version 2 has no zero clusters: when the disk grows, its new part is zeroed after the size has changed.
    let resizes = !list.starts_with("compat=0.10");
    Start {
        name: format!("qcow2 overlay {list}"),
        file,
        backing: Some(backing),
        content,
        resizes,
        shrinks: true,
        snapshots: true,
    }
}
