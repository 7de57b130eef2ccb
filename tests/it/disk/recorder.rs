//! Storage that records what is done to it, and shows what a power cut may leave.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use diskimage::io::{MemFile, ReadAt, WriteAt};

use crate::support::Random;

/// What storage writes as a whole.
const SECTOR: usize = 512;

/// A call that changes the file, or makes changes durable.
#[derive(Clone)]
pub enum Event {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

/// A file in memory. What is done to it, and to others with the same log, is recorded.
pub struct Recorder {
    file: MemFile,
    /// Its number in the log.
    index: usize,
    log: Arc<Log>,
}

/// The events of several files, in the order of the calls.
struct Log {
    /// The files as they were at the start.
    start: Vec<Vec<u8>>,
    events: Mutex<Vec<(usize, Event)>>,
}

/// Which of the events since the last sync have reached the storage at a power cut.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// All of them.
    Prefix,
    /// Each one or not, and of those that have, each sector or not.
    Sectors(u64),
    /// None of the first, and all of the rest: the order is not that of the calls.
    Without(usize),
}

impl Recorder {
    pub fn new(bytes: Vec<u8>) -> Recorder {
        Recorder::several(vec![bytes]).remove(0)
    }

    /// Files whose events have one order.
    pub fn several(files: Vec<Vec<u8>>) -> Vec<Recorder> {
        let log = Arc::new(Log { start: files.clone(), events: Mutex::default() });
        let files = files.into_iter().enumerate();
        files.map(|(index, bytes)| Recorder { file: MemFile::from(bytes), index, log: log.clone() }).collect()
    }

    /// The number of events so far.
    pub fn count(&self) -> usize {
        self.events().len()
    }

    pub fn to_vec(&self) -> Vec<u8> {
        self.file.to_vec()
    }

    /// Calls `check` with what the file may be after a power cut, for each number of events: the number, the cut and the bytes.
    pub fn replay(&self, seed: u64, mut check: impl FnMut(usize, Cut, Vec<u8>)) {
        self.replay_all(seed, |count, cut, mut files| check(count, cut, files.swap_remove(self.index)));
    }

    /// As [`replay`](Self::replay), with all files of the log. A sync makes the events of its own file durable only.
    pub fn replay_all(&self, seed: u64, mut check: impl FnMut(usize, Cut, Vec<Vec<u8>>)) {
        let events = self.events();
        let mut random = Random::new(seed);
        let mut durable = self.log.start.clone();
        let mut pending: Vec<&(usize, Event)> = Vec::new();
        for count in 0..=events.len() {
            let mut cuts = vec![Cut::Prefix];
            if pending.len() > 1 {
                cuts.extend([Cut::Sectors(random.next()), Cut::Sectors(random.next())]);
                cuts.push(Cut::Without(random.below(pending.len() as u64) as usize));
            }
            for cut in cuts {
                let mut files = durable.clone();
                apply(&mut files, &pending, cut);
                check(count, cut, files);
            }
            match events.get(count) {
                Some((synced, Event::Sync)) => {
                    let (done, rest) = pending.iter().partition(|(index, _)| index == synced);
                    pending = rest;
                    apply(&mut durable, &done, Cut::Prefix);
                }
                Some(event) => pending.push(event),
                None => {}
            }
        }
    }

    fn events(&self) -> MutexGuard<'_, Vec<(usize, Event)>> {
        self.log.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn apply(files: &mut [Vec<u8>], events: &[&(usize, Event)], cut: Cut) {
    let mut random = match cut {
        Cut::Sectors(seed) => Some(Random::new(seed)),
        _ => None,
    };
    for (index, (file, event)) in events.iter().enumerate() {
        let file = &mut files[*file];
        if matches!(cut, Cut::Without(skipped) if skipped == index) {
            continue;
        }
        let mut happens = || random.as_mut().is_none_or(|random| random.below(2) == 0);
        match event {
            Event::Write(offset, bytes) => {
                let mut at = *offset as usize;
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (part, after) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
                    if happens() {
                        file.resize(file.len().max(at + part.len()), 0);
                        file[at..at + part.len()].copy_from_slice(part);
                    }
                    (at, rest) = (at + part.len(), after);
                }
            }
            // The length is in the journal of a file system, with other metadata: it may be lost, but not a part of it.
            Event::SetLen(len) if happens() => file.resize(*len as usize, 0),
            Event::SetLen(_) | Event::Sync => {}
        }
    }
}

impl ReadAt for Recorder {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
}

impl WriteAt for Recorder {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut events = self.events();
        self.file.write_all_at(buf, offset)?;
        // Whole sectors: a part of one reaches the storage with the rest of it.
        let start = offset - offset % SECTOR as u64;
        let end = (offset + buf.len() as u64).next_multiple_of(SECTOR as u64).min(self.file.size()?);
        let mut sectors = vec![0; (end - start) as usize];
        self.file.read_exact_at(&mut sectors, start)?;
        events.push((self.index, Event::Write(start, sectors)));
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.events().push((self.index, Event::SetLen(len)));
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.events().push((self.index, Event::Sync));
        Ok(())
    }
}
