//! A linear logical volume as a disk of its own.

use std::io;
use std::ops::Range;

use crate::io::ReadAt;

/// Pieces of a disk, one after the other.
pub(in super::super) struct Mapped<'a> {
    disk: &'a dyn ReadAt,
    /// The offset of each piece, and its range of the disk. Not empty, each not empty, in ascending order without gaps.
    pieces: Vec<(u64, Range<u64>)>,
    len: u64,
}

impl<'a> Mapped<'a> {
    pub fn new(disk: &'a dyn ReadAt, ranges: impl Iterator<Item = Range<u64>>) -> Mapped<'a> {
        let mut mapped = Mapped { disk, pieces: Vec::new(), len: 0 };
        for range in ranges {
            let len = range.end - range.start;
            mapped.pieces.push((mapped.len, range));
            mapped.len += len;
        }
        mapped
    }

    /// The range of the disk from its first byte to its last one.
    pub fn hull(&self) -> Range<u64> {
        let start = self.pieces.iter().map(|(_, range)| range.start).min();
        let end = self.pieces.iter().map(|(_, range)| range.end).max();
        start.unwrap_or_default()..end.unwrap_or_default()
    }

    /// Where the range is on the disk, in the order of the volume.
    pub fn on_disk(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.pieces.partition_point(|(at, piece)| at + (piece.end - piece.start) <= range.start);
        let pieces = self.pieces.get(first..).unwrap_or_default().iter();
        pieces.take_while(move |(at, _)| *at < range.end).map(move |(at, piece)| {
            let start = piece.start + range.start.saturating_sub(*at);
            start..(piece.start + (range.end - at)).min(piece.end)
        })
    }
}

impl ReadAt for Mapped<'_> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = self.len.saturating_sub(offset).min(buf.len() as u64);
        let Some(range) = self.on_disk(offset..offset.saturating_add(len)).next().filter(|_| len > 0) else {
            return Ok(0);
        };
        let buf = buf.get_mut(..(range.end - range.start) as usize).unwrap_or_default();
        self.disk.read_at(buf, range.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemFile;

    #[test]
    fn pieces_are_read_as_one_disk() {
        let disk = MemFile::from((0..100).collect::<Vec<u8>>());
        let mapped = Mapped::new(&disk, [40..50, 0..7, 90..100].into_iter());
        assert_eq!((mapped.size().unwrap(), mapped.hull()), (27, 0..100));
        let whole: Vec<u8> = (40..50).chain(0..7).chain(90..100).collect();
        for start in 0..=27 {
            for end in start..=27 {
                let mut bytes = vec![0xff; end - start];
                mapped.read_exact_at(&mut bytes, start as u64).unwrap();
                assert_eq!(bytes, whole[start..end]);
                let places: Vec<_> = mapped.on_disk(start as u64..end as u64).flatten().map(|at| at as u8).collect();
                assert_eq!(places, whole[start..end]);
            }
        }
        assert!(mapped.read_exact_at(&mut [0; 2], 26).is_err());
        assert_eq!(mapped.read_at(&mut [0], u64::MAX).unwrap(), 0);
    }
}
