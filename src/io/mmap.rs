//! An image that the caller has mapped into memory.

use std::io;

use memmap2::Mmap;

use super::ReadAt;

/// Reads from a memory map that the caller made.
///
/// Making the map is the caller's `unsafe`, and so is its risk: when another process truncates the file, touching the
/// map kills this process. Plain reads are as fast (see the crate page); this is for callers who have a map anyway.
#[derive(Debug)]
pub struct MapSource(Mmap);

impl From<Mmap> for MapSource {
    fn from(map: Mmap) -> Self {
        MapSource(map)
    }
}

impl ReadAt for MapSource {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}
