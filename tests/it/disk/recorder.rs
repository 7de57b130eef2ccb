//! Storage that records what is done to it, and shows what a power cut may leave.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// A file in memory with the events since it was made.
pub struct Recorder {
    file: MemFile,
    start: Vec<u8>,
    events: Mutex<Vec<Event>>,
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
        Recorder { file: MemFile::from(bytes.clone()), start: bytes, events: Mutex::default() }
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
        let events = self.events();
        let mut random = Random::new(seed);
        let (mut durable, mut synced) = (self.start.clone(), 0);
        for count in 0..=events.len() {
            let pending = &events[synced..count];
            let mut cuts = vec![Cut::Prefix];
            if pending.len() > 1 {
                cuts.extend([Cut::Sectors(random.next()), Cut::Sectors(random.next())]);
                cuts.push(Cut::Without(random.below(pending.len() as u64) as usize));
            }
            for cut in cuts {
                let mut bytes = durable.clone();
                apply(&mut bytes, pending, cut);
                check(count, cut, bytes);
            }
            if let Some(Event::Sync) = events.get(count) {
                apply(&mut durable, pending, Cut::Prefix);
                synced = count + 1;
            }
        }
    }

    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn apply(file: &mut Vec<u8>, events: &[Event], cut: Cut) {
    let mut random = match cut {
        Cut::Sectors(seed) => Some(Random::new(seed)),
        _ => None,
    };
    for (index, event) in events.iter().enumerate() {
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
        events.push(Event::Write(start, sectors));
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.events().push(Event::SetLen(len));
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.events().push(Event::Sync);
        Ok(())
    }
}
