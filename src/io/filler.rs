//! Files without holes.

use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::sys;
use super::write_zeros;

/// Writes a new file so that it never has a hole: what lies between the writes is allocated, or written as zeros where the
/// system cannot allocate.
///
/// Without allocation, a write far ahead of the others makes the bytes before it be written twice.
#[derive(Debug, Default)]
pub(super) struct Filler(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Length of the file. It has no hole before that.
    filled: u64,
    /// The length that was set. Zeros up to it are written at the end, since most of them would be overwritten.
    len: u64,
}

impl Filler {
    /// Writes all of `buf` at `offset` by `write`.
    pub fn write_all_at(
        &self,
        file: &File,
        buf: &[u8],
        offset: u64,
        write: impl FnOnce(&[u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        let mut state = self.lock();
        if end <= state.filled {
            drop(state);
            return write(buf, offset);
        }
        state.fill(file, offset)?;
        // Still with the lock, or a write after this one could be ahead of it.
        write(buf, offset)?;
        state.filled = end;
        Ok(())
    }

    /// Allocates the bytes before `end`.
    pub fn fill(&self, file: &File, end: u64) -> io::Result<()> {
        self.lock().fill(file, end)
    }

    pub fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        if len < state.filled {
            file.set_len(len)?;
            state.filled = len;
        } else {
            // Fails at once where the space is known to be missing.
            state.allocate(file, len)?;
        }
        state.len = len;
        Ok(())
    }

    /// Fills the file up to its length.
    pub fn finish(&self, file: &File) -> io::Result<()> {
        let mut state = self.lock();
        let len = state.len;
        state.fill(file, len)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fill(&mut self, file: &File, end: u64) -> io::Result<()> {
        if !self.allocate(file, end)? {
            write_zeros(file, self.filled..end)?;
            self.filled = end;
        }
        Ok(())
    }

    /// Allocates the bytes before `end`, or returns false where the system cannot.
    fn allocate(&mut self, file: &File, end: u64) -> io::Result<bool> {
        if end <= self.filled {
            return Ok(true);
        }
        match sys::allocate(file, &(self.filled..end)) {
            Ok(()) => {
                self.filled = end;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::io::{FileSource, FileTarget, WriteAt};
    use crate::testing::TempDir;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_file_written_in_any_order_has_no_holes() {
        let dir = TempDir::new();
        // Set before the writes, after them, or at no time.
        for (first, last) in [(Some(8 * MIB), None), (None, Some(8 * MIB)), (Some(9 * MIB), Some(8 * MIB))] {
            let path = dir.join("new");
            let target = FileTarget::create_new(&path).unwrap().without_holes().unwrap();
            target.set_len(0).unwrap();
            first.into_iter().for_each(|len| target.set_len(len).unwrap());
            let mut expected = vec![0; 8 * MIB as usize];
            for (offset, byte) in [(3 * MIB + 7, 1), (MIB, 2), (6 * MIB, 3), (5 * MIB - 9, 4)] {
                let bytes = [byte; 70_000];
                target.write_all_at(&bytes, offset).unwrap();
                expected[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
            }
            target.zero_range(6 * MIB + 5..7 * MIB).unwrap();
            target.allocate(7 * MIB..7 * MIB + 3).unwrap();
            expected[6 * MIB as usize + 5..7 * MIB as usize].fill(0);
            last.into_iter().for_each(|len| target.set_len(len).unwrap());
            target.sync().unwrap();
            assert!(fs::read(&path).unwrap() == expected, "{first:?} {last:?}");
            target.close().unwrap();
            let allocated = FileSource::open(&path).unwrap().allocated().unwrap();
            assert!(allocated >= 8 * MIB, "{first:?} {last:?}: {allocated}");
            fs::remove_file(&path).unwrap();
        }
    }
}
