//! A file in memory, for images that never touch a disk, and for tests.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{ReadAt, WriteAt, read_slice};

/// A growable file in memory that can be read and written.
///
/// # Examples
///
/// ```
/// use diskimage::io::{MemFile, ReadAt, WriteAt};
///
/// # fn main() -> std::io::Result<()> {
/// let file = MemFile::from(b"content".to_vec());
/// file.write_all_at(b"trol", 3)?;
/// assert_eq!((file.size()?, file.to_vec()), (7, b"control".to_vec()));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct MemFile {
    bytes: Mutex<Vec<u8>>,
}

impl MemFile {
    /// Creates an empty file.
    pub fn new() -> Self {
        MemFile::default()
    }

    /// Returns a copy of the content.
    pub fn to_vec(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        // A panic elsewhere cannot leave a half-changed vector.
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Vec<u8>> for MemFile {
    fn from(bytes: Vec<u8>) -> Self {
        MemFile { bytes: Mutex::new(bytes) }
    }
}

impl ReadAt for MemFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.lock().len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(read_slice(&self.lock(), buf, offset))
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let len = self.lock().len() as u64;
        Ok((offset < len).then_some(offset..len))
    }
}

impl WriteAt for MemFile {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = self.lock();
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        if bytes.len() < end {
            let more = end - bytes.len();
            bytes.try_reserve(more).map_err(|_| io::ErrorKind::OutOfMemory)?;
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(buf);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut bytes = self.lock();
        let more = len.saturating_sub(bytes.len());
        bytes.try_reserve(more).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.resize(len, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_beyond_the_end_leaves_zeros_between() {
        let file = MemFile::new();
        file.write_all_at(b"ab", 3).unwrap();
        assert_eq!(file.to_vec(), b"\0\0\0ab");
        let mut buf = [9; 4];
        assert_eq!(file.read_at(&mut buf, 4).unwrap(), 1);
        assert_eq!(file.read_at(&mut buf, 5).unwrap(), 0);
        assert_eq!(file.read_at(&mut buf, u64::MAX).unwrap(), 0);
        assert_eq!(file.read_exact_at(&mut buf, 2).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
