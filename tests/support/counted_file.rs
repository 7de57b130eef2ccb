//! A file in memory that counts the bytes that are read.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use diskimage::io::ReadAt;

/// A file in memory that counts the bytes that are read.
pub struct CountedFile {
    bytes: Vec<u8>,
    read: AtomicU64,
}

impl CountedFile {
    /// The bytes that all reads have returned, in any order.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

impl From<Vec<u8>> for CountedFile {
    fn from(bytes: Vec<u8>) -> Self {
        CountedFile { bytes, read: AtomicU64::new(0) }
    }
}

impl ReadAt for CountedFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.bytes.read_at(buf, offset)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}
