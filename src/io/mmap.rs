//! An image that the caller has mapped into memory.

use std::io;

use memmap2::Mmap;

use super::{ReadAt, read_slice};

/// Reads from a memory map that the caller made.
///
/// Making the map is the caller's `unsafe`, and so is its risk: when another process truncates the file, touching the
/// map kills this process. Plain reads are as fast (see the crate page); this is for callers who have a map anyway.
///
/// # Examples
///
/// ```no_run
/// use diskimage::OpenOptions;
/// use diskimage::io::MapSource;
///
/// let file = std::fs::File::open("disk.qcow2")?;
/// // SAFETY: no other process has access to this file.
/// let map = unsafe { memmap2::Mmap::map(&file) }?;
/// let disk = OpenOptions::new().open_source(std::sync::Arc::new(MapSource::from(map)))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
        Ok(read_slice(&self.0, buf, offset))
    }
}
