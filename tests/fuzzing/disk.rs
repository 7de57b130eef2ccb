//! Guest writes, and changes in place, of damaged images.

use std::io;
use std::sync::Arc;

use diskimage::io::{MemFile, ReadAt, WriteAt};
use diskimage::{Disk, Format, Result};

use super::{describe, limited};

/// Length in bytes of the script at the end of the input, at most.
const SCRIPT: usize = 240;
/// Bytes of the script for an operation.
const STEP: usize = 6;
/// Largest file in bytes. A damaged image may have its next free cluster anywhere.
const LARGEST: u64 = 32 << 20;

/// Opens the bytes as an image, but the last ones, which are a script of operations on it: each succeeds or returns an error.
pub fn disk(format: Option<Format>, data: &[u8]) {
    let (image, script) = data.split_at(data.len() - SCRIPT.min(data.len() / 4));
    let options = format.map_or_else(limited, |format| limited().format(format));
    let file = Arc::new(Bounded(MemFile::from(image.to_vec())));
    let disk = match options.open_disk_in(file) {
        Ok(disk) => disk,
        Err(error) => return describe(&error),
    };
    for step in script.chunks_exact(STEP) {
        if let Err(error) = apply(&disk, step) {
            describe(&error);
        }
    }
    if let Err(error) = disk.close() {
        describe(&error);
    }
}

fn apply(disk: &Disk, step: &[u8]) -> Result<()> {
    let size = disk.size();
    let number = |at: usize| u64::from(step[at]);
    // In sectors, and bytes beside them.
    let offset = ((number(1) << 8 | number(2)) * 512 + number(4) % 3).min(size);
    let len = (number(3) * 700 + number(4)).min(size - offset);
    let range = offset..offset + len;
    let mut buf = vec![step[5]; len as usize];
    match step[0] % 11 {
        0..=2 => disk.write_all_at(&buf, offset),
        3 => disk.write_zeros(range),
        4 => disk.discard(range),
        5 => disk.read_exact_at(&mut buf, offset),
        6 => disk.flush(),
        7 => disk.resize(number(1) << 12 | number(2) << 9),
        8 => disk.create_snapshot("snapshot"),
        9 => disk.apply_snapshot("snapshot"),
        _ => disk.delete_snapshot(if step[5] < 128 { "1" } else { "snapshot" }),
    }
}

/// A file that does not grow for ever.
struct Bounded(MemFile);

impl Bounded {
    fn check(end: u64) -> io::Result<()> {
        if end <= LARGEST { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }
}

impl ReadAt for Bounded {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }
}

impl WriteAt for Bounded {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        Bounded::check(offset.saturating_add(buf.len() as u64))?;
        self.0.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Bounded::check(len)?;
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn zero_range(&self, range: std::ops::Range<u64>) -> io::Result<()> {
        Bounded::check(range.end)?;
        self.0.zero_range(range)
    }
}
