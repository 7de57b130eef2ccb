//! A file that is changed for trial: what is written goes to a temporary file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::format::shared::table;
use crate::io::{ReadAt, Storage, WriteAt};
use crate::spool;

/// Bytes that are stored together.
const PAGE: u64 = 4096;

/// A file beside which its changes are kept.
pub(super) struct Trial {
    file: Arc<dyn Storage>,
    file_len: u64,
    changes: File,
    state: Mutex<State>,
}

/// How far the file seems to be changed.
struct State {
    len: u64,
    /// The shortest length so far. What the file has after it is lost.
    kept_len: u64,
    /// Indexes of the pages that were written, and where they are among the changes, as indexes too.
    pages: BTreeMap<u64, u64>,
    /// The number of pages that were ever stored among the changes.
    stored: u64,
}

impl Trial {
    /// Begins with the content of `file`, which must not change meanwhile.
    pub fn new(file: Arc<dyn Storage>, temporary_directory: &Path) -> Result<Trial> {
        let len = table::length(&*file)?;
        let state = Mutex::new(State { len, kept_len: len, pages: BTreeMap::new(), stored: 0 });
        Ok(Trial { file, file_len: len, changes: spool::unnamed_file(temporary_directory)?, state })
    }

    /// The ranges of the file that were changed, in order and in bytes. They end at or before its end.
    pub fn changed(&self) -> Vec<Range<u64>> {
        let state = self.state();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let pages = state.pages.keys().map(|page| page * PAGE..((page + 1) * PAGE).min(state.kept_len));
        for range in pages.chain(std::iter::once(state.kept_len..self.file_len)).filter(|range| !range.is_empty()) {
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        ranges
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a part of a page, all of which is before the end of the file.
    fn read_part(&self, state: &State, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if let Some(index) = state.pages.get(&(offset / PAGE)) {
            return self.changes.read_exact_at(buf, index * PAGE + offset % PAGE);
        }
        let kept = state.kept_len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (kept, added) = buf.split_at_mut(kept);
        added.fill(0);
        self.file.read_exact_at(kept, offset)
    }

    /// Writes a part of a page.
    fn write_part(&self, state: &mut State, buf: &[u8], offset: u64) -> io::Result<()> {
        let page = offset / PAGE;
        let index = match state.pages.get(&page) {
            Some(index) => *index,
            None => {
                let mut bytes = [0; PAGE as usize];
                let len = state.len.saturating_sub(page * PAGE).min(PAGE) as usize;
                self.read_part(state, bytes.get_mut(..len).unwrap_or_default(), page * PAGE)?;
                let index = state.stored;
                self.changes.write_all_at(&bytes, index * PAGE)?;
                state.pages.insert(page, index);
                state.stored += 1;
                index
            }
        };
        self.changes.write_all_at(buf, index * PAGE + offset % PAGE)?;
        state.len = state.len.max(offset + buf.len() as u64);
        Ok(())
    }
}

impl ReadAt for Trial {
    fn size(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.state();
        let len = state.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (mut rest, mut at) = (buf.get_mut(..len).unwrap_or_default(), offset);
        while !rest.is_empty() {
            let (part, after) = rest.split_at_mut(rest.len().min((PAGE - at % PAGE) as usize));
            self.read_part(&state, part, at)?;
            (rest, at) = (after, at + part.len() as u64);
        }
        Ok(len)
    }

    fn name(&self) -> Option<&Path> {
        self.file.name()
    }
}

impl WriteAt for Trial {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        offset.checked_add(buf.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut state = self.state();
        let (mut rest, mut at) = (buf, offset);
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min((PAGE - at % PAGE) as usize));
            self.write_part(&mut state, part, at)?;
            (rest, at) = (after, at + part.len() as u64);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        if len < state.len {
            // The rest of the last page reads as zeros when the file grows again.
            if let Some(index) = state.pages.get(&(len / PAGE)) {
                let zeros = [0; PAGE as usize];
                let start = len % PAGE;
                self.changes.write_all_at(&zeros[start as usize..], index * PAGE + start)?;
            }
            state.pages.split_off(&len.div_ceil(PAGE));
            state.kept_len = state.kept_len.min(len);
        }
        state.len = len;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn starts_zeroed(&self) -> bool {
        self.file.starts_zeroed()
    }

    fn path(&self) -> Option<&Path> {
        self.file.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemFile;
    use crate::testing::{Random, TempDir};

    #[test]
    fn a_trial_behaves_like_the_file_and_leaves_it() {
        let dir = TempDir::new();
        for seed in 0..20 {
            let mut random = Random::new(seed);
            let len = random.below(40_000) as usize;
            let old = random.bytes(len);
            let (file, model) = (Arc::new(MemFile::from(old.clone())), MemFile::from(old.clone()));
            let trial = Trial::new(file.clone(), dir.path()).unwrap();
            assert!(trial.changed().is_empty());
            for _ in 0..60 {
                let (offset, len) = (random.below(50_000), random.below(9000) as usize);
                if random.below(5) == 0 {
                    trial.set_len(offset).and(model.set_len(offset)).unwrap();
                } else {
                    let bytes = random.bytes(len);
                    trial.write_all_at(&bytes, offset).and(model.write_all_at(&bytes, offset)).unwrap();
                }
                let mut found = vec![9; trial.size().unwrap() as usize];
                trial.read_exact_at(&mut found, 0).unwrap();
                assert!(found == model.to_vec(), "seed {seed}");
                assert_eq!(trial.read_at(&mut [0; 10], found.len() as u64).unwrap(), 0);
            }
            assert!(file.to_vec() == old);
            // What is said to be unchanged is.
            let (changed, new) = (trial.changed(), model.to_vec());
            assert!(changed.iter().all(|range| range.end <= old.len() as u64), "seed {seed}: {changed:?}");
            assert!(changed.windows(2).all(|pair| pair[0].end < pair[1].start), "seed {seed}: {changed:?}");
            let mut kept = 0..old.len();
            assert!(
                kept.all(|at| changed.iter().any(|range| range.contains(&(at as u64))) || new.get(at) == old.get(at)),
                "seed {seed}"
            );
        }
    }
}
