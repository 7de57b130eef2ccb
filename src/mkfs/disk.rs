//! A disk in memory that has nothing but the metadata of a file system.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::io::ReadAt;

/// A new disk: what is not metadata of its file system is a hole.
#[derive(Clone)]
pub struct NewDisk {
    size: u64,
    /// What was written, by its offset in bytes. Nothing overlaps. Copies of one piece are in memory once.
    pieces: BTreeMap<u64, Arc<[u8]>>,
}

impl NewDisk {
    pub(super) fn new(size: u64) -> NewDisk {
        NewDisk { size, pieces: BTreeMap::new() }
    }

    /// Whole sectors of 512 bytes.
    pub(super) fn sector_count(&self) -> u64 {
        self.size / 512
    }

    /// Writes what was not written yet.
    pub(super) fn put(&mut self, offset: u64, bytes: impl Into<Arc<[u8]>>) {
        let bytes = bytes.into();
        debug_assert!(offset + bytes.len() as u64 <= self.size);
        debug_assert!(self.piece_at(offset).is_none());
        self.pieces.insert(offset, bytes);
    }

    /// The piece that holds the byte at `offset`, with its own offset.
    fn piece_at(&self, offset: u64) -> Option<(u64, &Arc<[u8]>)> {
        let (start, bytes) = self.pieces.range(..=offset).next_back()?;
        (offset < start + bytes.len() as u64).then_some((*start, bytes))
    }

    /// The range of the first piece that ends after `offset`.
    fn next_piece(&self, offset: u64) -> Option<(Range<u64>, &[u8])> {
        let after = || self.pieces.range(offset..).next().map(|(start, bytes)| (*start, bytes));
        let (start, bytes) = self.piece_at(offset).or_else(after)?;
        Some((start..start + bytes.len() as u64, bytes))
    }
}

impl ReadAt for NewDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = self.size.saturating_sub(offset).min(buf.len() as u64);
        let (buf, end) = (&mut buf[..len as usize], offset + len);
        buf.fill(0);
        let mut at = offset;
        while let Some((range, bytes)) = self.next_piece(at).filter(|(range, _)| range.start < end) {
            let common = range.start.max(offset)..range.end.min(end);
            let from = &bytes[(common.start - range.start) as usize..(common.end - range.start) as usize];
            buf[(common.start - offset) as usize..][..from.len()].copy_from_slice(from);
            at = range.end;
        }
        Ok(len as usize)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok(self.next_piece(offset).map(|(range, _)| range.start.max(offset)..range.end))
    }
}

impl fmt::Debug for NewDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewDisk").field("size", &self.size).finish_non_exhaustive()
    }
}

/// The part of a new disk that a file system has. Offsets are in bytes from its start.
pub(super) struct Volume<'a> {
    disk: &'a mut NewDisk,
    range: Range<u64>,
}

impl Volume<'_> {
    pub fn new(disk: &mut NewDisk, range: Range<u64>) -> Volume<'_> {
        Volume { disk, range }
    }

    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Its offset on the disk.
    pub fn start(&self) -> u64 {
        self.range.start
    }

    /// Writes what was not written yet.
    pub fn put(&mut self, offset: u64, bytes: impl Into<Arc<[u8]>>) {
        self.disk.put(self.range.start + offset, bytes);
    }
}

/// Sets the field at byte `at` of a structure.
pub(super) fn put<const LEN: usize>(structure: &mut [u8], at: usize, field: [u8; LEN]) {
    structure[at..][..LEN].copy_from_slice(&field);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_at_any_offset() {
        let mut disk = NewDisk::new(100);
        disk.put(10, vec![1; 5]);
        disk.put(15, vec![2; 5]);
        disk.put(90, vec![3; 10]);
        let mut all = [0; 100];
        disk.read_exact_at(&mut all, 0).unwrap();
        assert_eq!(
            (&all[9..21], &all[89..]),
            (&[0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0][..], &[0, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3][..])
        );
        for start in 0..=100 {
            for len in [1, 4, 11, 200] {
                let mut part = vec![9; len];
                let n = disk.read_at(&mut part, start).unwrap();
                assert_eq!(n, len.min(100 - start as usize));
                assert_eq!(part[..n], all[start as usize..][..n]);
            }
        }
    }

    #[test]
    fn holes_are_told() {
        let mut disk = NewDisk::new(100);
        disk.put(10, vec![0; 5]);
        disk.put(40, vec![1; 5]);
        let next = |offset| disk.next_data(offset).unwrap();
        assert_eq!(
            [0, 10, 12, 15, 44, 45].map(next),
            [Some(10..15), Some(10..15), Some(12..15), Some(40..45), Some(44..45), None]
        );
    }
}
