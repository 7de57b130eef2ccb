//! Writes images by scripts; verifies data and refcounts with a simple reader and with qemu-img.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::codec::{Decoder, Encoder};
use crate::driver::{CreateContext, NewBacking};
use crate::driver::{SparseWrite, WriteSpec};
use crate::error::Result;
use crate::format::qcow2::FORMAT_NAME;
use crate::format::qcow2::entry::{COPIED, L2Entry, OFFSET_MASK};
use crate::format::qcow2::header::Header;
use crate::format::qcow2::options::OPTIONS;
use crate::format::qcow2::refcount::count_at;
use crate::format::qcow2::writer::Writer;
use crate::identifiers::ImageIdentifiers;
use crate::info::ImageInfo;
use crate::io::WriteAt;
use crate::limits::Limits;
use crate::name::Name;
use crate::options::Options;
use crate::testing::{RecordingTarget, noise, place};

pub(super) const BACKING_NAME: &str = "base.raw";

/// A new image: its options and the steps of writing it.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub size: u64,
    pub options: String,
    pub compress: bool,
    pub backing: bool,
    pub device: bool,
    pub steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Skip(u64),
    Place(u64),
    Compress(u64),
    Zero(u64),
}

/// A written image and its expected content.
pub(super) struct Written {
    pub file: Vec<u8>,
    pub backing: Vec<u8>,
    pub guest: Vec<u8>,
}

impl Case {
    pub fn new(size: u64, options: &str, steps: &[Step]) -> Case {
        let (options, steps) = (options.to_owned(), steps.to_vec());
        Case { size, options, compress: false, backing: false, device: false, steps }
    }

    pub fn create(&self, out: Arc<dyn WriteAt>) -> Result<Writer> {
        let mut options = Options::new();
        options.add_list(&self.options);
        options.check(FORMAT_NAME, OPTIONS)?;
        let info = ImageInfo { format: "raw", ..ImageInfo::default() };
        let backing = self.backing.then(|| NewBacking::new(Name::from(BACKING_NAME), &info));
        let plain = CreateContext::new(self.size, &options, out);
        Writer::create(&CreateContext { compress: self.compress, backing, ..plain })
    }

    /// Runs the steps. Lengths are rounded up to granules and clipped to the disk.
    pub fn write(&self) -> Written {
        let mem = target(self.device);
        let mut writer = self.create(mem.clone()).unwrap();
        let WriteSpec { virtual_size: size, block_size, granule, encoding, .. } = writer.spec().clone();
        let backing = if self.backing { noise(size, 99) } else { vec![0; size as usize] };
        let mut guest = backing.clone();
        let mut at = 0u64;
        for (seed, step) in self.steps.iter().enumerate() {
            let (Step::Skip(len) | Step::Place(len) | Step::Compress(len) | Step::Zero(len)) = *step;
            let unit = if matches!(step, Step::Compress(_)) { block_size } else { granule };
            at = at.next_multiple_of(unit).min(size);
            let end = (at + len.next_multiple_of(unit)).min(size);
            match step {
                _ if at == end => {}
                Step::Skip(_) => {}
                Step::Place(_) => {
                    let bytes = &mut guest[at as usize..end as usize];
                    bytes.copy_from_slice(&noise(end - at, seed as u64));
                    place(&mut writer, at, bytes);
                }
                Step::Zero(_) => {
                    guest[at as usize..end as usize].fill(0);
                    writer.zero(at..end).unwrap();
                }
                Step::Compress(_) => {
                    let mut encoder = Encoder::new(encoding.as_ref().unwrap()).unwrap();
                    for block in (at..end).step_by(block_size as usize) {
                        let block = block..(block + block_size).min(end);
                        let bytes = &mut guest[block.start as usize..block.end as usize];
                        // Payloads of all lengths, up to incompressible ones.
                        let random = noise(block.end - block.start, block.start + seed as u64);
                        let len = block.start * 7 % (bytes.len() as u64 * 5 / 4);
                        bytes.fill(seed as u8);
                        bytes.iter_mut().zip(&random).take(len as usize).for_each(|(byte, random)| *byte = *random);
                        let mut whole = bytes.to_vec();
                        whole.resize(block_size as usize, 0);
                        match encoder.encode(&whole, whole.len()) {
                            None => place(&mut writer, block.start, bytes),
                            Some(payload) => {
                                let placement = writer.place_compressed(block, payload.len() as u32).unwrap();
                                assert_eq!(placement.len, payload.len() as u64);
                                placement.out.write_all_at(payload, placement.offset).unwrap();
                            }
                        }
                    }
                }
            }
            at = end;
        }
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
        Written { file: mem.mem.to_vec(), backing, guest }
    }

    pub fn verify(&self) -> Written {
        let written = self.write();
        written.verify(self);
        written
    }
}

impl Written {
    /// Verifies the image. `case` is for messages.
    pub fn verify(&self, case: impl Debug) {
        check_refcounts(&self.file);
        assert!(read(self) == self.guest, "wrong guest data: {case:?}");
        if have_qemu() {
            check_with_qemu(&case, self);
        }
    }
}

/// A new file, or a device with more bytes than any image here.
pub(super) fn target(device: bool) -> Arc<RecordingTarget> {
    if device { RecordingTarget::device(12 << 20) } else { RecordingTarget::file() }
}

pub(super) fn header_of(file: &[u8]) -> Header {
    Header::parse(&file[..file.len().min(2 << 20)], file.len() as u64, &Limits::default()).unwrap()
}

pub(super) fn u64_at(file: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(file[at as usize..at as usize + 8].try_into().unwrap())
}

/// Index, L2 entry and subcluster bitmap of each guest cluster.
pub(super) fn entries(file: &[u8], header: &Header) -> Vec<(u64, u64, u64)> {
    let mut entries = Vec::new();
    for l1 in 0..u64::from(header.l1_size) {
        let table = u64_at(file, header.l1_table_offset + l1 * 8) & OFFSET_MASK;
        for l2 in (0..header.l2_entries()).filter(|_| table != 0) {
            let at = table + l2 * header.l2_entry_size();
            let bitmap = if header.extended_l2() { u64_at(file, at + 8) } else { 0 };
            entries.push((l1 * header.l2_entries() + l2, u64_at(file, at), bitmap));
        }
    }
    entries
}

/// Checks that the refcounts of the image equal the number of uses.
pub(super) fn check_refcounts(file: &[u8]) {
    let header = header_of(file);
    let bits = header.cluster_bits;
    let mut counts = BTreeMap::<u64, u64>::new();
    let mut count_uses = |offset: u64, len: u64| {
        (offset >> bits..=(offset + len - 1) >> bits).for_each(|cluster| *counts.entry(cluster).or_default() += 1);
    };
    count_uses(0, 1);
    if header.l1_size > 0 {
        count_uses(header.l1_table_offset, u64::from(header.l1_size) * 8);
    }
    for l1 in 0..u64::from(header.l1_size) {
        let entry = u64_at(file, header.l1_table_offset + l1 * 8);
        if entry != 0 {
            assert_ne!(entry & COPIED, 0, "L1 entry {l1}");
            count_uses(entry & OFFSET_MASK, 1);
        }
    }
    for (cluster, entry, bitmap) in entries(file, &header) {
        match L2Entry::parse(entry, bitmap, &header).unwrap() {
            L2Entry::Compressed { host, len } => count_uses(host, len.into()),
            _ if entry & OFFSET_MASK != 0 => {
                assert_ne!(entry & COPIED, 0, "guest cluster {cluster}");
                count_uses(entry & OFFSET_MASK, 1);
            }
            _ => assert_eq!(entry & COPIED, 0, "guest cluster {cluster}"),
        }
    }
    let table_len = u64::from(header.refcount_table_clusters) << bits;
    count_uses(header.refcount_table_offset, table_len);
    let blocks: Vec<u64> = (0..table_len / 8).map(|i| u64_at(file, header.refcount_table_offset + i * 8)).collect();
    blocks.iter().filter(|&&block| block != 0).for_each(|&block| count_uses(block, 1));
    let last = *counts.keys().last().unwrap();
    let per_block = header.refcount_block_entries();
    for (block, &at) in (0..).zip(&blocks).filter(|(_, at)| **at != 0) {
        let bytes = &file[at as usize..at as usize + (1 << bits)];
        // After the last cluster in use, refcounts are 0.
        let end = ((block + 1) * per_block).min(last + 1);
        for cluster in block * per_block..end {
            let found = count_at(bytes, header.refcount_order, (cluster % per_block) as usize).unwrap();
            assert_eq!(found, counts.remove(&cluster).unwrap_or_default(), "refcount of cluster {cluster}");
        }
        let rest = (end - block * per_block) << header.refcount_order;
        assert!(
            bytes[rest.div_ceil(8) as usize..].iter().all(|&byte| byte == 0),
            "refcounts beyond the end of the file"
        );
    }
    assert!(counts.is_empty(), "clusters without a refcount block: {counts:?}");
    assert!(file.len() as u64 >= (last + 1) << bits, "the last cluster is truncated");
}

/// Reads the guest data.
pub(super) fn read(written: &Written) -> Vec<u8> {
    let (file, header) = (&written.file, header_of(&written.file));
    let cluster_size = header.cluster_size() as usize;
    let mut guest = written.backing.clone();
    guest.resize(guest.len().next_multiple_of(cluster_size), 0);
    for (cluster, entry, bitmap) in entries(file, &header) {
        let start = usize::try_from(cluster * cluster_size as u64).unwrap_or(usize::MAX);
        let Some(bytes) = guest.get_mut(start..).and_then(|g| g.get_mut(..cluster_size)) else {
            assert_eq!((entry, bitmap), (0, 0), "an entry beyond the end of the disk");
            continue;
        };
        match L2Entry::parse(entry, bitmap, &header).unwrap() {
            L2Entry::Unallocated => {}
            L2Entry::Zero { .. } => bytes.fill(0),
            L2Entry::Data { host } => bytes.copy_from_slice(&file[host as usize..][..cluster_size]),
            L2Entry::Compressed { host, len } => {
                let payload = &file[host as usize..][..len as usize];
                Decoder::new().decode(header.compression, payload, bytes).unwrap();
            }
            L2Entry::Subclusters { host, allocated, zero } => {
                let subcluster = cluster_size / 32;
                for (index, bytes) in bytes.chunks_mut(subcluster).enumerate() {
                    if zero >> index & 1 != 0 {
                        bytes.fill(0);
                    } else if allocated >> index & 1 != 0 {
                        bytes.copy_from_slice(&file[host.unwrap() as usize + index * subcluster..][..subcluster]);
                    }
                }
            }
        }
    }
    guest.truncate(header.size as usize);
    guest
}

pub(super) fn have_qemu() -> bool {
    static REPORTED: AtomicBool = AtomicBool::new(false);
    let have = Command::new("qemu-img").arg("--version").output().is_ok();
    if !have && !REPORTED.swap(true, Ordering::Relaxed) {
        eprintln!("SKIPPED: qemu-img is not installed");
    }
    have
}

pub(super) fn check_with_qemu(case: &dyn Debug, written: &Written) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("diskimage-writer-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("image"), &written.file).unwrap();
    std::fs::write(dir.join(BACKING_NAME), &written.backing).unwrap();
    std::fs::write(dir.join("guest"), &written.guest).unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new("qemu-img").args(arguments).current_dir(&dir).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "qemu-img {arguments:?}: {text}\n{case:?}");
        text.into_owned()
    };
    let text = run(&["check", "-f", "qcow2", "image"]);
    assert!(text.contains("No errors were found"), "{text}\n{case:?}");
    run(&["compare", "-f", "qcow2", "-F", "raw", "image", "guest"]);
    std::fs::remove_dir_all(&dir).unwrap();
}
