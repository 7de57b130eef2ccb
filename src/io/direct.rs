//! Reading and writing that bypasses the page cache. Such I/O is of whole blocks, from memory that is aligned too.

use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

use super::sys;

/// Alignment of memory, and of reads, in bytes: a multiple of the sectors of all devices.
const BLOCK: usize = 4096;
/// Alignment of writes in bytes. What is written through the page cache beside them must not share a page with them, and no system has
/// larger pages.
const PAGE: u64 = 64 << 10;
/// Most bytes of a read or a write.
const MOST: usize = 1 << 20;
/// Most buffers that are kept.
const KEPT: usize = 16;

/// A file that was opened again, to bypass the page cache.
#[derive(Debug)]
pub(super) struct DirectFile {
    file: File,
    buffers: Buffers,
}

impl DirectFile {
    /// Opens `file` again.
    ///
    /// # Errors
    /// Those of the system: not every file system can do this.
    pub fn open(file: &File, write: bool) -> io::Result<Self> {
        Ok(DirectFile { file: sys::open_direct(file, write)?, buffers: Buffers::default() })
    }

    /// Reads up to `buf.len()` bytes at `offset`, through the page cache by `cached` if the system refuses.
    pub fn read_at(&self, cached: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.buffers.read_at(buf, offset, |buf, offset| sys::read_at(&self.file, buf, offset)) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => sys::read_at(cached, buf, offset),
            result => result,
        }
    }

    /// Writes all of `buf` at `offset`; what is no whole page through the page cache by `cached`.
    pub fn write_all_at(&self, cached: &File, buf: &[u8], offset: u64) -> io::Result<()> {
        let through_cache = |buf: &[u8], offset| sys::write_all_at(cached, buf, offset);
        let direct = |buf: &[u8], offset| match sys::write_all_at(&self.file, buf, offset) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => through_cache(buf, offset),
            result => result,
        };
        self.buffers.write_all_at(buf, offset, direct, through_cache)
    }
}

/// Aligned memory of reads and writes that are over.
#[derive(Debug, Default)]
struct Buffers(Mutex<Vec<Buffer>>);

/// Memory of which an aligned part is used.
#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffers {
    /// Reads by `direct` what is in whole blocks around the range.
    fn read_at(
        &self,
        buf: &mut [u8],
        offset: u64,
        direct: impl Fn(&mut [u8], u64) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let skip = (offset % BLOCK as u64) as usize;
        let wanted = buf.len().min(MOST - skip);
        if skip == 0 && is_aligned(buf) {
            return direct(buf, offset);
        }
        let mut buffer = self.take();
        let blocks = buffer.part((skip + wanted).next_multiple_of(BLOCK));
        let read = direct(blocks, offset - skip as u64)?.min(skip + wanted).saturating_sub(skip);
        if let (Some(to), Some(from)) = (buf.get_mut(..read), blocks.get(skip..skip + read)) {
            to.copy_from_slice(from);
        }
        self.put_back(buffer);
        Ok(read)
    }

    /// Writes whole pages by `direct`, and what is before and after them by `cached`.
    fn write_all_at(
        &self,
        buf: &[u8],
        offset: u64,
        direct: impl Fn(&[u8], u64) -> io::Result<()>,
        cached: impl Fn(&[u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let len = buf.len() as u64;
        let before = (offset.next_multiple_of(PAGE) - offset).min(len);
        let pages = (len - before) / PAGE * PAGE;
        let (head, rest) = buf.split_at(before as usize);
        let (middle, tail) = rest.split_at(pages as usize);
        if !head.is_empty() {
            cached(head, offset)?;
        }
        if middle.is_empty() {
        } else if is_aligned(middle) {
            direct(middle, offset + before)?;
        } else {
            let mut buffer = self.take();
            for (part, at) in middle.chunks(MOST).zip((offset + before..).step_by(MOST)) {
                let blocks = buffer.part(part.len());
                blocks.copy_from_slice(part);
                direct(blocks, at)?;
            }
            self.put_back(buffer);
        }
        if tail.is_empty() { Ok(()) } else { cached(tail, offset + before + pages) }
    }

    fn take(&self) -> Buffer {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_else(Buffer::new)
    }

    fn put_back(&self, buffer: Buffer) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(buffer);
        }
    }
}

impl Buffer {
    fn new() -> Buffer {
        let bytes = vec![0; MOST + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK).min(BLOCK);
        Buffer { bytes, start }
    }

    /// The first `len` aligned bytes, at most [`MOST`].
    fn part(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + len]
    }
}

/// Whether memory can be read into and written from as it is.
fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().align_offset(BLOCK) == 0 && bytes.len().is_multiple_of(BLOCK)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;
    use crate::io::{MemFile, ReadAt, WriteAt};

    /// A file that takes only aligned I/O on one side, and counts it.
    #[derive(Default)]
    struct Recorder {
        file: MemFile,
        direct: RefCell<Vec<(u64, usize)>>,
        cached: RefCell<Vec<(u64, usize)>>,
    }

    impl Recorder {
        fn write(&self, buffers: &Buffers, buf: &[u8], offset: u64) {
            let direct = |buf: &[u8], offset: u64| {
                assert!(is_aligned(buf) && offset.is_multiple_of(PAGE) && buf.len().is_multiple_of(PAGE as usize));
                self.direct.borrow_mut().push((offset, buf.len()));
                self.file.write_all_at(buf, offset)
            };
            let cached = |buf: &[u8], offset| {
                self.cached.borrow_mut().push((offset, buf.len()));
                self.file.write_all_at(buf, offset)
            };
            buffers.write_all_at(buf, offset, direct, cached).unwrap();
        }

        fn read(&self, buffers: &Buffers, buf: &mut [u8], offset: u64) -> usize {
            let direct = |buf: &mut [u8], offset: u64| {
                assert!(is_aligned(buf) && offset.is_multiple_of(BLOCK as u64));
                self.direct.borrow_mut().push((offset, buf.len()));
                self.file.read_at(buf, offset)
            };
            buffers.read_at(buf, offset, direct).unwrap()
        }
    }

    #[test]
    fn only_the_ends_of_a_write_are_cached() {
        const P: usize = PAGE as usize;
        for (offset, len, direct, cached) in [
            (0, 2 * P, vec![(0, 2 * P)], vec![]),
            (512, P, vec![], vec![(512, P - 512), (PAGE, 512)]),
            (512, 2 * P, vec![(PAGE, P)], vec![(512, P - 512), (2 * PAGE, 512)]),
            (PAGE, P + 1, vec![(PAGE, P)], vec![(2 * PAGE, 1)]),
            (5, 9, vec![], vec![(5, 9)]),
            (0, 2 * MOST + P, vec![(0, MOST), (MOST as u64, MOST), (2 * MOST as u64, P)], vec![]),
        ] {
            // From memory that is not aligned.
            let bytes: Vec<u8> = (0..=len).map(|at| (at % 251) as u8).collect();
            let start = usize::from(is_aligned(&bytes[..len - len % BLOCK]));
            let bytes = &bytes[start..start + len];
            let (recorder, buffers) = (Recorder::default(), Buffers::default());
            recorder.write(&buffers, bytes, offset);
            assert_eq!(recorder.direct.take(), direct, "{offset} {len}");
            assert_eq!(recorder.cached.take(), cached, "{offset} {len}");
            assert_eq!(&recorder.file.to_vec()[offset as usize..], bytes);
        }
    }

    #[test]
    fn a_read_is_of_the_blocks_around_it() {
        let recorder = Recorder { file: MemFile::from(vec![7; 10_000]), ..Recorder::default() };
        for (offset, len, read, blocks) in [
            (1, 100, 100, (0, BLOCK)),
            (4095, 2, 2, (0, 2 * BLOCK)),
            (9999, 5, 1, (8192, BLOCK)),
            (10_000, 5, 0, (8192, BLOCK)),
            (20_000, 1, 0, (16384, BLOCK)),
            (1, 2 * MOST, 9999, (0, MOST)),
            (4096, MOST, 5904, (4096, MOST)),
        ] {
            let mut buf = vec![0; len];
            assert_eq!(recorder.read(&Buffers::default(), &mut buf, offset), read, "{offset} {len}");
            assert_eq!(recorder.direct.take(), [blocks]);
            assert!(buf[..read].iter().all(|byte| *byte == 7) && buf[read..].iter().all(|byte| *byte == 0));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(offset in 0..300_000u64, len in 0..300_000usize, seed: u8) {
            let bytes: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect();
            let (recorder, buffers) = (Recorder::default(), Buffers::default());
            recorder.write(&buffers, &bytes, offset);
            let (mut back, mut done) = (vec![0; len], 0);
            while done < len {
                let read = recorder.read(&buffers, &mut back[done..], offset + done as u64);
                prop_assert!(read > 0);
                done += read;
            }
            prop_assert_eq!(bytes, back);
        }
    }
}
