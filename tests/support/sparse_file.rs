//! A sparse file in memory that counts the calls of readers.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use diskimage::io::{ReadAt, WriteAt};

/// A file in memory that stores only the blocks that were written.
#[derive(Debug, Default)]
pub struct SparseFile {
    state: Mutex<State>,
    reads: AtomicU64,
    queries: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    len: u64,
    /// By their numbers.
    blocks: BTreeMap<u64, Box<[u8; BLOCK as usize]>>,
}

const BLOCK: u64 = 512;

/// Numbers of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// Calls of [`ReadAt::read_at`].
    pub reads: u64,
    /// Calls of [`ReadAt::next_data`].
    pub queries: u64,
}

impl SparseFile {
    /// The calls since this was called last.
    pub fn take_calls(&self) -> Calls {
        Calls { reads: self.reads.swap(0, Ordering::Relaxed), queries: self.queries.swap(0, Ordering::Relaxed) }
    }

    /// Number of runs of data.
    pub fn data_runs(&self) -> u64 {
        let mut next = None;
        let numbers = self.state.lock().unwrap().blocks.keys().copied().collect::<Vec<_>>();
        numbers.into_iter().filter(|number| next.replace(number + 1) != Some(*number)).count() as u64
    }
}

impl ReadAt for SparseFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.state.lock().unwrap().len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let state = self.state.lock().unwrap();
        let len = state.len.saturating_sub(offset).min(buf.len() as u64);
        buf[..len as usize].fill(0);
        let end = offset + len;
        for (number, bytes) in state.blocks.range(offset / BLOCK..end.div_ceil(BLOCK)) {
            let start = number * BLOCK;
            let (from, to) = (start.max(offset), (start + BLOCK).min(end));
            buf[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
        }
        Ok(len as usize)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        let state = self.state.lock().unwrap();
        let mut blocks = state.blocks.range(offset / BLOCK..).map(|(number, _)| *number);
        let Some(first) = blocks.next() else { return Ok(None) };
        let end = blocks.zip(first + 1..).take_while(|(number, next)| number == next).count() as u64 + first + 1;
        Ok(Some((first * BLOCK).max(offset)..end * BLOCK))
    }
}

impl WriteAt for SparseFile {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let end = offset + buf.len() as u64;
        for number in offset / BLOCK..end.div_ceil(BLOCK) {
            let block = state.blocks.entry(number).or_insert_with(|| Box::new([0; BLOCK as usize]));
            let start = number * BLOCK;
            let (from, to) = (start.max(offset), (start + BLOCK).min(end));
            block[(from - start) as usize..(to - start) as usize]
                .copy_from_slice(&buf[(from - offset) as usize..(to - offset) as usize]);
        }
        state.len = state.len.max(end);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.len = len;
        state.blocks.split_off(&len.div_ceil(BLOCK));
        if let Some(last) = state.blocks.get_mut(&(len / BLOCK)) {
            last[(len % BLOCK) as usize..].fill(0);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
