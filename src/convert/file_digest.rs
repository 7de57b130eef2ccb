//! Digests of the files that are written: of a pipe while it is written, of other files by reading them back when they are complete, since
//! they are written in any order.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Converter;
use crate::error::{Error, Result};
use crate::hash::{Digest, HashAlgorithm, Hasher, Part};
use crate::io::{FileSource, ReadAt, WriteAt};

/// Bytes read at once.
const PIECE: usize = 1 << 20;

/// The digest of a file of a new image.
///
/// ```
/// use diskimage::Report;
///
/// fn print(report: &Report) {
///     for file in &report.file_digests {
///         println!("{} ({}): {}", file.digest.algorithm(), file.path.display(), file.digest);
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileDigest {
    /// The path of the file; of a pipe its name for messages.
    pub path: PathBuf,
    /// The digest of its bytes.
    pub digest: Digest,
}

impl Converter {
    /// Reads the complete file at `path`, which is going to be called `name`.
    pub(super) fn digests_of_file(&self, path: &Path, name: &Path) -> Result<Vec<FileDigest>> {
        if self.file_hashes.is_empty() {
            return Ok(Vec::new());
        }
        let read = || {
            let file = FileSource::open(path).map_err(Error::io("opening the new file", None))?;
            let len = file.size().map_err(Error::io("reading the file length", None))?;
            let mut hashers = hashers(&self.file_hashes);
            let mut piece = vec![0; PIECE];
            let mut at = 0;
            while at < len {
                if self.is_cancelled() {
                    return Err(Error::Cancelled);
                }
                piece.truncate((len - at).min(PIECE as u64) as usize);
                file.read_exact_at(&mut piece, at).map_err(Error::io("reading the new file back", at))?;
                add(&mut hashers, &piece);
                at += piece.len() as u64;
            }
            Ok(finish(hashers, name))
        };
        read().map_err(|error| error.in_file(name))
    }
}

fn hashers(algorithms: &[HashAlgorithm]) -> Vec<Hasher> {
    algorithms.iter().copied().map(Hasher::new).collect()
}

fn add(hashers: &mut [Hasher], bytes: &[u8]) {
    hashers.iter_mut().for_each(|hasher| hasher.add(Part::Bytes(bytes)));
}

fn finish(hashers: Vec<Hasher>, name: &Path) -> Vec<FileDigest> {
    hashers.into_iter().map(|hasher| FileDigest { path: name.to_owned(), digest: hasher.finish() }).collect()
}

/// A pipe with the digests of what is written to it.
pub(super) struct HashedPipe {
    out: Arc<dyn WriteAt>,
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    hashers: Vec<Hasher>,
    /// Bytes written.
    position: u64,
    /// The length that was set: zeros up to there are written by the pipe.
    len: u64,
    /// Whether a write will never come.
    stopped: bool,
}

impl HashedPipe {
    pub fn new(out: Arc<dyn WriteAt>, algorithms: &[HashAlgorithm]) -> HashedPipe {
        let state = State { hashers: hashers(algorithms), position: 0, len: 0, stopped: false };
        HashedPipe { out, state: Mutex::new(state), moved: Condvar::new() }
    }

    /// The digests of all that was written.
    pub fn digests(&self) -> Vec<FileDigest> {
        let hashers = std::mem::take(&mut self.lock().hashers);
        finish(hashers, self.out.path().unwrap_or(Path::new("")))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.moved.notify_all();
    }
}

impl WriteAt for HashedPipe {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.lock();
        // The pipe says what is wrong with a write that comes too late.
        while state.position < offset && !state.stopped {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        self.out.write_all_at(buf, offset).inspect_err(|_| self.stop())?;
        let mut state = self.lock();
        add(&mut state.hashers, buf);
        state.position += buf.len() as u64;
        drop(state);
        self.moved.notify_all();
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.out.set_len(len)?;
        self.lock().len = len;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.out.sync()?;
        let mut state = self.lock();
        let zeros = vec![0; PIECE];
        while state.position < state.len {
            let len = (state.len - state.position).min(PIECE as u64);
            add(&mut state.hashers, zeros.get(..len as usize).unwrap_or_default());
            state.position += len;
        }
        drop(state);
        self.moved.notify_all();
        Ok(())
    }

    fn starts_zeroed(&self) -> bool {
        self.out.starts_zeroed()
    }

    fn path(&self) -> Option<&Path> {
        self.out.path()
    }

    fn seeks(&self) -> bool {
        self.out.seeks()
    }

    fn abandon(&self) {
        self.stop();
        self.out.abandon();
    }
}
