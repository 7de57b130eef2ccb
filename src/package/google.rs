//! An image of Google Compute Engine: an archive of old GNU tar, compressed with gzip, whose only file is `disk.raw`. The size of the disk is in
//! whole GiB (Compute Engine documentation, "Manually import boot disks").

use std::ops::Range;

use super::tar::{BLOCK, encode_file};

/// Name of the format.
pub(crate) const FORMAT_NAME: &str = "gcp";
/// The size of a disk is a multiple of this.
pub(crate) const ALIGNMENT: u64 = 1 << 30;
const MEMBER: &str = "disk.raw";
/// GNU tar fills archives up with zeros to a multiple of this.
const RECORD: u64 = 20 * BLOCK;

/// What is before the data of a disk of `size` bytes of which `runs` are stored, and what is after it.
pub(crate) fn envelope(size: u64, runs: &[Range<u64>], time: u64) -> (Vec<u8>, Vec<u8>) {
    let head = encode_file(MEMBER, size, runs, time);
    let stored: u64 = runs.iter().map(|run| run.end - run.start).sum();
    let end = (head.len() as u64).saturating_add(stored);
    // Two blocks of zeros, after the padding of the file.
    let len = (end.next_multiple_of(BLOCK) + 2 * BLOCK).next_multiple_of(RECORD);
    (head, vec![0; (len - end) as usize])
}
