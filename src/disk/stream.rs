//! Guest data as a stream that is read and written.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Deref;

use super::Disk;

/// A disk as [`Read`], [`Write`] and [`Seek`], for crates of file systems and partition tables. The disk does not grow.
///
/// A `DiskStream<&Disk>` borrows the disk; a `DiskStream<Arc<Disk>>` owns it. [`Write::flush`] makes the data durable.
///
/// ```
/// use std::io::{Read, Seek, SeekFrom, Write};
/// use std::sync::Arc;
///
/// use diskimage::io::MemFile;
/// use diskimage::{DiskStream, Format, OpenOptions};
///
/// let file = Arc::new(MemFile::from(vec![0; 1024]));
/// let disk = OpenOptions::new().format(Format::RAW).open_disk_in(file)?;
/// let mut stream = DiskStream::new(&disk);
/// stream.seek(SeekFrom::Start(510))?;
/// stream.write_all(b"\x55\xaa")?;
/// stream.flush()?;
/// stream.seek(SeekFrom::Current(-1))?;
/// let mut byte = [0];
/// stream.read_exact(&mut byte)?;
/// assert_eq!(byte, [0xaa]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct DiskStream<D> {
    disk: D,
    /// It may be beyond the end.
    position: u64,
}

impl<D: Deref<Target = Disk>> DiskStream<D> {
    /// The whole disk, at position 0.
    pub fn new(disk: D) -> Self {
        DiskStream { disk, position: 0 }
    }

    /// The disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// How many of `len` bytes there are at the position.
    fn available(&self, len: usize) -> usize {
        self.disk.size().saturating_sub(self.position).min(len as u64) as usize
    }
}

impl<D: Deref<Target = Disk>> Read for DiskStream<D> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.available(buf.len());
        self.disk.read_exact_at(&mut buf[..len], self.position.min(self.disk.size()))?;
        self.position += len as u64;
        Ok(len)
    }
}

impl<D: Deref<Target = Disk>> Write for DiskStream<D> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let len = self.available(buf.len());
        self.disk.write_all_at(&buf[..len], self.position.min(self.disk.size()))?;
        self.position += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(self.disk.flush()?)
    }
}

impl<D: Deref<Target = Disk>> Seek for DiskStream<D> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(by) => self.disk.size().checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
