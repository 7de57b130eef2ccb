//! A remote file as blocks: the threads that read fetch them, and keep those that were used last.

use std::collections::HashMap;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Remote;
use super::client::{Attempts, Client, Failure, First, Version};
use crate::error::{Error, Result};
use crate::io::ReadAt;

/// Bytes that are kept or fetched as a unit.
const BLOCK: u64 = 256 << 10;
/// Blocks of one request, where the blocks before it are known: of a sequential read.
const RUN: u64 = 8;
/// How many blocks ahead of a read are fetched, by threads that would wait otherwise.
const WINDOW: u64 = 32;
/// Blocks that are kept: 24 MiB.
const KEPT: usize = 96;
/// Requests at once.
const CONNECTIONS: usize = 8;

/// Opens the file of the client.
pub(super) fn open(client: Client) -> Result<Remote> {
    let first = client.retry(|| client.first(BLOCK)).map_err(Error::io("opening", None))?;
    let (version, mut body) = match first {
        First::Whole { size, body } => return Ok(Remote::Stream(Box::new(Whole { body, left: size }))),
        First::Part(version, body) => (version, body),
    };
    let file = RemoteFile { client, version, state: Mutex::default(), progress: Condvar::new() };
    // A failure is met again when the block is read.
    let mut block = Vec::new();
    let len = file.version.size.min(BLOCK);
    if body.by_ref().take(len).read_to_end(&mut block).is_ok() && block.len() as u64 == len && len > 0 {
        file.lock().keep(0, block.into());
    }
    Ok(Remote::File(Arc::new(file)))
}

struct RemoteFile {
    client: Client,
    version: Version,
    state: Mutex<State>,
    /// Signalled when a block has come, or will not come.
    progress: Condvar,
}

#[derive(Default)]
struct State {
    blocks: HashMap<u64, Block>,
    /// Requests that are running.
    requests: usize,
    /// Number of uses of blocks.
    uses: u64,
}

enum Block {
    /// A thread fetches it.
    Claimed,
    /// With the number of its last use.
    Kept(Arc<[u8]>, u64),
}

impl RemoteFile {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn block(&self, index: u64) -> io::Result<Arc<[u8]>> {
        let blocks = self.version.size.div_ceil(BLOCK);
        let mut state = self.lock();
        loop {
            match state.state_of(index) {
                Some(Some(block)) => return Ok(block),
                // The thread that reads `index` meets the failure of another one again, if it concerns it.
                Some(None) => match state.claim_ahead(index, blocks) {
                    Some(run) => {
                        drop(state);
                        let _ = self.fetch(run);
                        state = self.lock();
                    }
                    None => state = self.progress.wait(state).unwrap_or_else(PoisonError::into_inner),
                },
                None => {
                    let run = state.claim(index, blocks);
                    drop(state);
                    self.fetch(run)?;
                    state = self.lock();
                }
            }
        }
    }

    /// Fetches the claimed blocks `run`.
    fn fetch(&self, run: Range<u64>) -> io::Result<()> {
        let mut claim = Claim { file: self, run };
        let end = claim.run.end.saturating_mul(BLOCK).min(self.version.size);
        let (mut attempts, mut block) = (Attempts::default(), Vec::new());
        while !claim.run.is_empty() {
            if self.client.is_cancelled() {
                return Err(Error::Cancelled.into());
            }
            let at = claim.run.start * BLOCK + block.len() as u64;
            let failure = match self.client.range(&(at..end), &self.version) {
                Ok(mut body) => {
                    let (before, answer) = (at, self.receive(&mut *body, &mut claim, &mut block, end));
                    if claim.run.start * BLOCK + block.len() as u64 > before {
                        attempts = Attempts::default();
                    }
                    match answer {
                        Ok(()) => continue,
                        Err(failure) => failure,
                    }
                }
                Err(failure) => failure,
            };
            attempts.next(&self.client, failure)?;
        }
        Ok(())
    }

    /// Reads an answer up to the offset `end`, and hands out its blocks.
    fn receive(
        &self,
        body: &mut dyn Read,
        claim: &mut Claim<'_>,
        block: &mut Vec<u8>,
        end: u64,
    ) -> Result<(), Failure> {
        while !claim.run.is_empty() {
            let start = claim.run.start * BLOCK;
            let missing = BLOCK.min(end - start) - block.len() as u64;
            body.take(missing).read_to_end(block).map_err(Failure::Transient)?;
            if (block.len() as u64) < BLOCK.min(end - start) {
                return Err(Failure::Transient(io::ErrorKind::UnexpectedEof.into()));
            }
            let mut state = self.lock();
            state.keep(claim.run.start, std::mem::take(block).into());
            claim.run.start += 1;
            drop(state);
            self.progress.notify_all();
            if self.client.is_cancelled() {
                return Err(Failure::Final(Error::Cancelled.into()));
            }
        }
        // The end of the answer, after which the connection can be used again. What is more than was asked for is not read.
        match body.read(&mut [0]) {
            Ok(0) | Err(_) => Ok(()),
            Ok(_) => Err(Failure::Final(io::Error::other("the server answers with more than was asked for"))),
        }
    }
}

impl ReadAt for RemoteFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.version.size)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if buf.is_empty() || offset >= self.version.size {
            return Ok(0);
        }
        let block = self.block(offset / BLOCK)?;
        let mut rest = block.get((offset % BLOCK) as usize..).unwrap_or_default();
        rest.read(buf)
    }
}

impl State {
    /// The block, `Some(None)` while it is fetched, or `None`.
    fn state_of(&mut self, index: u64) -> Option<Option<Arc<[u8]>>> {
        self.uses += 1;
        Some(match self.blocks.get_mut(&index)? {
            Block::Claimed => None,
            Block::Kept(bytes, used) => {
                *used = self.uses;
                Some(bytes.clone())
            }
        })
    }

    /// Claims a block that is not there, and if it is one of a sequential read, those after it.
    fn claim(&mut self, index: u64, blocks: u64) -> Range<u64> {
        let is_sequential = index.checked_sub(1).is_some_and(|before| self.blocks.contains_key(&before));
        let most = if is_sequential { RUN } else { 1 };
        let run = index
            ..index + (index..blocks).take(most as usize).take_while(|at| !self.blocks.contains_key(at)).count() as u64;
        run.clone().for_each(|at| _ = self.blocks.insert(at, Block::Claimed));
        self.requests += 1;
        run
    }

    /// Claims what a sequential read needs after `index`, for which the thread waits.
    fn claim_ahead(&mut self, index: u64, blocks: u64) -> Option<Range<u64>> {
        let is_sequential = index.checked_sub(1).is_some_and(|before| self.blocks.contains_key(&before));
        if !is_sequential || self.requests >= CONNECTIONS {
            return None;
        }
        let next = (index + 1..blocks.min(index + WINDOW)).find(|at| !self.blocks.contains_key(at))?;
        Some(self.claim(next, blocks))
    }

    /// Keeps a block, in place of the one that was not used for the longest time.
    fn keep(&mut self, index: u64, bytes: Arc<[u8]>) {
        self.uses += 1;
        self.blocks.insert(index, Block::Kept(bytes, self.uses));
        let kept = self.blocks.iter().filter_map(|(index, block)| match block {
            Block::Kept(_, used) => Some((*used, *index)),
            Block::Claimed => None,
        });
        let (mut count, mut oldest) = (0, None::<(u64, u64)>);
        for entry in kept {
            count += 1;
            oldest = Some(oldest.map_or(entry, |other| other.min(entry)));
        }
        if let Some((_, index)) = oldest.filter(|_| count > KEPT) {
            self.blocks.remove(&index);
        }
    }
}

/// The blocks that a thread fetches. Those that have not come are given back.
struct Claim<'a> {
    file: &'a RemoteFile,
    run: Range<u64>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.file.lock();
        state.requests -= 1;
        self.run.clone().for_each(|index| _ = state.blocks.remove(&index));
        drop(state);
        self.file.progress.notify_all();
    }
}

/// The answer of a server without ranges.
struct Whole {
    body: Box<dyn Read + Send>,
    /// Bytes that have to come, if the server stated the length.
    left: Option<u64>,
}

impl Read for Whole {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.body.read(buf)?;
        if let Some(left) = &mut self.left {
            if read == 0 && *left > 0 && !buf.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            *left = left.saturating_sub(read as u64);
        }
        Ok(read)
    }
}
