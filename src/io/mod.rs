//! Files as this crate sees them: positioned reads and writes, shared by threads, no cursor.

mod directory;
mod file;
mod mem;
#[cfg(feature = "mmap")]
mod mmap;
#[cfg(test)]
pub(crate) mod noted;
mod pipe;

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;

pub use directory::{MemDirectory, TargetDirectory};
pub use file::{FileIdentity, FileSource, FileTarget};
pub use mem::MemFile;
#[cfg(feature = "mmap")]
pub use mmap::MapSource;
pub use pipe::PipeTarget;

/// A file that is read at offsets.
pub trait ReadAt: Send + Sync {
    /// Length in bytes, asked of the file each time.
    fn size(&self) -> io::Result<u64>;

    /// Reads up to `buf.len()` bytes at `offset` and returns how many; 0 only at the end or for an empty `buf`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] when the file ends before.
    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match self.read_at(buf, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    buf = buf.get_mut(n..).unwrap_or_default();
                    offset += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// What tells this file from every other one on this machine, where the storage can say so.
    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        Ok(None)
    }

    /// Space that the file takes up in its storage in bytes, where that is known.
    fn allocated(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Returns the next range of data at or after `offset`; `None` if only a hole follows. The range may extend beyond the end
    /// of the file. By default everything is data, without a query of the length, which a remote storage would have to answer.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok(Some(offset..u64::MAX))
    }
}

/// A file that is written at offsets.
pub trait WriteAt: Send + Sync {
    /// Writes all of `buf` at `offset`; the file grows where that is needed.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the file `len` bytes long. What is new reads as zeros. A device keeps its size and fails when it is too small.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns when everything written is on stable storage.
    fn sync(&self) -> io::Result<()>;

    /// Whether bytes that were never written read as zeros. False for a device, which has old content.
    fn starts_zeroed(&self) -> bool {
        true
    }

    /// The name that it has, or will have when all is written.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// Whether it can be written in any order, and more than once. False for a pipe.
    fn seeks(&self) -> bool {
        true
    }

    /// Says that something will not be written, for whoever waits for it.
    fn abandon(&self) {}

    /// Makes `range` read as zeros, in the cheapest way there is.
    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        write_zeros(self, range)
    }

    /// Sets space aside for `range`, without writing it, where the file can do that.
    fn allocate(&self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }
}

/// Writes zeros as bytes, so that space is taken and not only zeros are read.
pub(crate) fn write_zeros<W: WriteAt + ?Sized>(file: &W, range: Range<u64>) -> io::Result<()> {
    const ZEROS: &[u8] = &[0; 256 << 10];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..len as usize], at)?;
        at += len;
    }
    Ok(())
}

impl fmt::Debug for dyn ReadAt + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadAt")
    }
}

impl fmt::Debug for dyn WriteAt + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WriteAt")
    }
}
