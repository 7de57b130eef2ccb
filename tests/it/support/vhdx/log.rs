//! Logs that have to be replayed (2.3).

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{KIB, MIB, Places, Vhdx, guid, header, seal};
use crate::support::pattern::Random;

/// A change that is in the log and not in its place.
#[derive(Clone, Debug)]
pub enum Change {
    /// The 4 KiB at this offset of the file go into the log, and junk takes their place.
    Move(u64),
    /// The zeros at this range of the file become a descriptor, and junk takes their place.
    Clear(Range<u64>),
    /// These 4 KiB are to be written there, and the file stays as it is: something later must make it good again.
    Write(u64, Vec<u8>),
    /// So is the whole range to be cleared.
    Wipe(Range<u64>),
}

/// A log that has to be replayed (2.3).
#[derive(Clone, Debug)]
pub struct Log {
    /// Offset in the ring at which it begins.
    pub start: u64,
    /// Number of the first entry.
    pub sequence: u64,
    /// The changes of each entry.
    pub entries: Vec<Vec<Change>>,
    /// Number of entries that are already written to their destination and not replayed: the tail is after them.
    pub done: usize,
    /// Whether the last entry did not get all of its sectors.
    pub torn: bool,
    /// As the last entry has it, where that is not the length of the file.
    pub flushed: Option<u64>,
    /// As the last entry has it, where that is not the length of the file.
    pub last: Option<u64>,
}

const LOG_GUID: &str = "10901090-1090-4109-8109-010901090109";

impl Log {
    pub fn new(entries: Vec<Vec<Change>>) -> Log {
        Log { start: 0, sequence: 1, entries, done: 0, torn: false, flushed: None, last: None }
    }

    /// Puts the log into an image, whose headers tell of it then. Returns where the entries are, as offsets in the ring.
    pub fn write(&self, path: &Path, image: &Vhdx, places: &Places) -> Vec<u64> {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let ring = places.log.end - places.log.start;
        let mut at = self.start;
        let mut offsets = Vec::new();
        for (number, changes) in self.entries.iter().enumerate() {
            offsets.push(at % ring);
            let tail = offsets[self.done.min(number)];
            let mut entry = self.entry(&file, places, changes, self.sequence + number as u64, tail);
            if self.torn && number + 1 == self.entries.len() {
                let whole = entry.len();
                entry.truncate(whole - 4096);
                entry.extend(Random::new(1).bytes(4096));
            }
            for sector in entry.chunks(4096) {
                file.write_all_at(sector, places.log.start + at % ring).unwrap();
                at += 4096;
            }
        }
        assert!(at - self.start <= ring, "the log is too small");
        for (number, header_at) in [64 * KIB, 128 * KIB].into_iter().enumerate() {
            let header = header(7 + number as u64, &image.data_write_guid, &guid(LOG_GUID), &places.log);
            file.write_all_at(&header, header_at).unwrap();
        }
        offsets
    }

    fn entry(&self, file: &File, places: &Places, changes: &[Change], sequence: u64, tail: u64) -> Vec<u8> {
        let mut descriptors = Vec::new();
        let mut data = Vec::new();
        for change in changes {
            let sector = match change {
                Change::Move(at) => {
                    let mut sector = vec![0; 4096];
                    // There is nothing to copy after the end of the file.
                    let stored = (file.metadata().unwrap().len() - at).min(4096) as usize;
                    file.read_exact_at(&mut sector[..stored], *at).unwrap();
                    file.write_all_at(&Random::new(*at).bytes(stored), *at).unwrap();
                    Some((*at, sector))
                }
                Change::Write(at, sector) => Some((*at, sector.clone())),
                Change::Clear(range) => {
                    file.write_all_at(&Random::new(range.start).bytes((range.end - range.start) as usize), range.start)
                        .unwrap();
                    None
                }
                Change::Wipe(_) => None,
            };
            match (sector, change) {
                (Some((at, sector)), _) => {
                    descriptors.push(
                        [b"desc", &sector[4092..], &sector[..8], &at.to_le_bytes(), &sequence.to_le_bytes()].concat(),
                    );
                    let [high, low] = [(sequence >> 32) as u32, sequence as u32].map(u32::to_le_bytes);
                    data.extend([b"data", &high[..], &sector[8..4092], &low].concat());
                }
                (None, Change::Clear(range) | Change::Wipe(range)) => {
                    let len = range.end - range.start;
                    let fields = [len, range.start, sequence].map(u64::to_le_bytes).concat();
                    descriptors.push([&b"zero\0\0\0\0"[..], &fields].concat());
                }
                (None, _) => unreachable!(),
            }
        }
        let count = descriptors.len() as u32;
        let descriptors = descriptors.concat();
        let sectors = (64 + descriptors.len()).div_ceil(4096);
        let len = (sectors * 4096 + data.len()) as u32;
        let mut entry = [&b"loge"[..], &[0; 4], &len.to_le_bytes(), &(tail as u32).to_le_bytes()].concat();
        entry.extend(sequence.to_le_bytes());
        entry.extend([count, 0].map(u32::to_le_bytes).concat());
        entry.extend(guid(LOG_GUID));
        entry.extend(
            [self.flushed, self.last].map(|len| len.unwrap_or(places.len.next_multiple_of(MIB)).to_le_bytes()).concat(),
        );
        entry.extend(descriptors);
        entry.resize(sectors * 4096, 0);
        entry.extend(data);
        seal(entry)
    }
}
