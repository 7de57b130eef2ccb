//! Writes logs: complete and torn entries, and entries of earlier logs.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use super::super::super::header::Header;
use super::super::{Replayed, replay};
use crate::error::Result;
use crate::io::ReadAt;
use crate::limits::Budget;

pub(super) const SECTOR: u64 = 4096;
/// The log GUID of the header.
pub(super) const LOG_GUID: Uuid = Uuid::from_u128(0x1f1e_1d1c_1b1a_1918_1716_1514_1312_1110);
/// The log GUID of an earlier log.
const OLD_LOG_GUID: Uuid = Uuid::from_u128(0x1f1e_1d1c_1b1a_1918_1716_1514_1312_1111);
/// Host offset of the header.
pub(super) const HEADER_AT: u64 = 0x10000;

/// An entry to be written.
#[derive(Clone, Debug)]
pub(super) struct NewEntry {
    pub log_guid: Uuid,
    pub sequence_number: u64,
    pub tail: u64,
    pub flushed_file_offset: u64,
    pub last_file_offset: u64,
    pub updates: Vec<NewUpdate>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum NewUpdate {
    Zero { at: u64, len: u64 },
    Data { at: u64, seed: u8 },
}

/// The state of a sector after a torn write.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tear {
    /// Not written.
    Missing,
    /// The first n parts of 512 bytes are written.
    Half(u64),
    /// Unrelated content.
    Garbage(u8),
}

/// An image file with a log.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub bytes: Vec<u8>,
    pub log: Range<u64>,
    /// Offset in the log of the next entry.
    pub next: u64,
    /// Offsets in the log of all written entries.
    pub written: Vec<u64>,
}

/// The content of a sector, different for each seed.
pub(super) fn content(seed: u8) -> Vec<u8> {
    (0..SECTOR).map(|at| (at as u8).wrapping_mul(3) ^ (at >> 8) as u8 ^ seed).collect()
}

impl NewEntry {
    /// The first entry of a sequence.
    pub fn first(sequence_number: u64, tail: u64, updates: &[NewUpdate]) -> NewEntry {
        let updates = updates.to_vec();
        let (flushed_file_offset, last_file_offset) = (0, 0);
        NewEntry { log_guid: LOG_GUID, sequence_number, tail, flushed_file_offset, last_file_offset, updates }
    }

    pub fn encode(&self) -> Vec<u8> {
        let number = self.sequence_number.to_le_bytes();
        let mut bytes = [&b"loge"[..], &[0; 8], &(self.tail as u32).to_le_bytes(), &number].concat();
        bytes.extend((self.updates.len() as u64).to_le_bytes());
        bytes.extend(self.log_guid.to_bytes_le());
        bytes.extend(self.flushed_file_offset.to_le_bytes());
        bytes.extend(self.last_file_offset.to_le_bytes());
        for update in &self.updates {
            let at = match *update {
                NewUpdate::Zero { at, len } => {
                    bytes.extend([&b"zero\0\0\0\0"[..], &len.to_le_bytes()].concat());
                    at
                }
                NewUpdate::Data { at, seed } => {
                    let data = content(seed);
                    bytes.extend([b"desc", &data[4092..], &data[..8]].concat());
                    at
                }
            };
            bytes.extend([at.to_le_bytes(), number].concat());
        }
        bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
        for update in &self.updates {
            if let NewUpdate::Data { seed, .. } = *update {
                bytes.extend([b"data", &number[4..], &content(seed)[8..4092], &number[..4]].concat());
            }
        }
        let len = bytes.len() as u32;
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        seal(&mut bytes);
        bytes
    }
}

/// Writes the checksum of an entry.
pub(super) fn seal(entry: &mut [u8]) {
    entry[4..8].fill(0);
    let checksum = crc32c::crc32c(entry);
    entry[4..8].copy_from_slice(&checksum.to_le_bytes());
}

impl Image {
    const BEFORE: u64 = 4;
    const AFTER: u64 = 12;

    /// An image with an empty log of `log_sectors` sectors. Every third sector outside the log is zeros.
    pub fn new(log_sectors: u64) -> Image {
        let log = Self::BEFORE * SECTOR..(Self::BEFORE + log_sectors) * SECTOR;
        let sector = |index| if index % 3 == 0 { vec![0; SECTOR as usize] } else { content(0x40 + index as u8) };
        let mut bytes: Vec<u8> = (0..Self::BEFORE).flat_map(sector).collect();
        bytes.resize(log.end as usize, 0);
        bytes.extend((0..Self::AFTER).flat_map(sector));
        Image { bytes, log, next: 0, written: Vec::new() }
    }

    pub fn log_len(&self) -> u64 {
        self.log.end - self.log.start
    }

    /// Writes an entry after the last one.
    pub fn append(&mut self, entry: &NewEntry) -> &mut Image {
        self.append_torn(entry, &[])
    }

    /// Writes an entry after the last one, with torn sectors.
    pub fn append_torn(&mut self, entry: &NewEntry, tears: &[(u64, Tear)]) -> &mut Image {
        let bytes = entry.encode();
        for (index, sector) in bytes.chunks(SECTOR as usize).enumerate() {
            let at = (self.log.start + (self.next + index as u64 * SECTOR) % self.log_len()) as usize;
            let old = &mut self.bytes[at..at + SECTOR as usize];
            match tears.iter().find(|(torn, _)| torn % (bytes.len() as u64 / SECTOR) == index as u64) {
                None => old.copy_from_slice(sector),
                Some((_, Tear::Missing)) => {}
                Some((_, Tear::Half(parts))) => {
                    old[..*parts as usize * 512].copy_from_slice(&sector[..*parts as usize * 512]);
                }
                Some((_, Tear::Garbage(seed))) => old.copy_from_slice(&content(*seed)),
            }
        }
        self.written.push(self.next);
        self.next = (self.next + bytes.len() as u64) % self.log_len();
        self
    }

    /// Damages a byte of the log.
    pub fn flip(&mut self, offset: u64, bits: u8) {
        let at = self.log.start + offset % self.log_len();
        self.bytes[at as usize] ^= bits;
    }

    /// Replaces bytes of the entry at an offset of the log, and corrects its checksum.
    pub fn edit(&mut self, offset: u64, at: usize, new: &[u8]) {
        let (start, len) = (offset as usize, self.log_len() as usize);
        let log = &mut self.bytes[self.log.start as usize..][..len];
        log.rotate_left(start);
        if let Some(old) = log.get_mut(at..at + new.len()) {
            old.copy_from_slice(new);
        }
        let entry_length = u32::from_le_bytes(log[8..12].try_into().unwrap()) as usize;
        if (8..=len).contains(&entry_length) {
            seal(&mut log[..entry_length]);
        }
        log.rotate_right(start);
    }

    pub fn replay(&self) -> Result<Replayed> {
        self.replay_within(&Budget::new(1 << 20), &[])
    }

    pub fn replay_within(&self, budget: &Budget, fixed: &[(Range<u64>, &'static str)]) -> Result<Replayed> {
        let file: Arc<dyn ReadAt> = Arc::new(Holes(self.bytes.clone()));
        let header = header(LOG_GUID, self.log.clone());
        let replayed = replay(&file, self.bytes.len() as u64, (&header, HEADER_AT), fixed, budget);
        Ok(replayed?.expect("the GUID is not nil"))
    }
}

pub(super) fn header(log_guid: Uuid, log: Range<u64>) -> Header {
    let guid = Uuid::nil();
    Header { sequence_number: 1, file_write_guid: guid, data_write_guid: guid, log_guid, log }
}

/// A file that reports all zero sectors as holes.
struct Holes(Vec<u8>);

impl ReadAt for Holes {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = self.0.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let hole = |(_, sector): &(usize, &[u8])| sector.iter().all(|&byte| byte == 0);
        let sectors = || self.0.chunks(SECTOR as usize).enumerate().skip((offset / SECTOR) as usize);
        let Some((first, _)) = sectors().find(|sector| !hole(sector)) else { return Ok(None) };
        let end = sectors().skip_while(hole).find(hole).map_or(self.0.len(), |(end, _)| end * SECTOR as usize);
        Ok(Some(offset.max(first as u64 * SECTOR)..end as u64))
    }
}

/// A sequence of log writes and crashes.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub log_sectors: u64,
    pub first_sector: u64,
    pub first_number: u64,
    pub steps: Vec<Step>,
}

/// The write of an entry.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// The entry belongs to an earlier log.
    pub old: bool,
    /// Starts a new sequence after skipping this number of sequence numbers.
    pub restart: Option<u64>,
    /// Number of entries at the tail that have been applied to the file.
    pub flushed: usize,
    /// Whether `FlushedFileOffset` is beyond the end of the file.
    pub truncated: bool,
    /// `LastFileOffset` in sectors.
    pub last_sector: u64,
    pub updates: Vec<NewUpdate>,
    pub tears: Vec<(u64, Tear)>,
}

pub(super) fn case() -> impl Strategy<Value = Case> {
    let log_sectors = prop_oneof![2 => 1u64..8, 6 => 8u64..40, 1 => 140u64..280];
    let first_number = prop_oneof![1u64..9, u64::from(u32::MAX) - 5..=u64::from(u32::MAX), Just(u64::MAX - 200)];
    (log_sectors, any::<u64>(), first_number, prop::collection::vec(step(), 1..16)).prop_map(
        |(log_sectors, first_sector, first_number, steps)| Case {
            log_sectors,
            first_sector: first_sector % log_sectors,
            first_number,
            steps,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let sector = || (0u64..60).prop_map(|sector| sector * SECTOR);
    let zero = || (sector(), 0..12 * SECTOR).prop_map(|(at, len)| NewUpdate::Zero { at, len: len / SECTOR * SECTOR });
    let data = || (sector(), any::<u8>()).prop_map(|(at, seed)| NewUpdate::Data { at, seed });
    let any_update = || prop_oneof![data(), zero()];
    let updates = prop_oneof![
        12 => prop::collection::vec(any_update(), 0..6),
        1 => prop::collection::vec(zero(), 120..260),
        1 => prop::collection::vec(data(), 120..132),
        1 => prop::collection::vec(prop_oneof![1 => data(), 40 => zero()], 250..260),
    ];
    let tear = prop_oneof![Just(Tear::Missing), (1u64..8).prop_map(Tear::Half), any::<u8>().prop_map(Tear::Garbage)];
    let tears = prop_oneof![7 => Just(Vec::new()), 1 => prop::collection::vec((0u64..300, tear), 1..3)];
    let restart = prop::option::weighted(0.15, 1u64..5);
    let flushed = prop_oneof![3 => Just(0usize), 1 => 1usize..4];
    let numbers = (prop::bool::weighted(0.1), restart, flushed, prop::bool::weighted(0.03), 0u64..80);
    (numbers, updates, tears).prop_map(|((old, restart, flushed, truncated, last_sector), updates, tears)| Step {
        old,
        restart,
        flushed,
        truncated,
        last_sector,
        updates,
        tears,
    })
}

impl Case {
    /// Writes all entries. Entries at the tail are flushed to make space.
    pub fn image(&self) -> Image {
        let mut image = Image::new(self.log_sectors);
        image.next = self.first_sector * SECTOR;
        let mut number = self.first_number;
        let mut live: VecDeque<(u64, u64)> = VecDeque::new();
        for step in &self.steps {
            if let Some(skipped) = step.restart {
                number += skipped;
                live.clear();
            }
            live.drain(..step.flushed.min(live.len()));
            let log_guid = if step.old { OLD_LOG_GUID } else { LOG_GUID };
            let file_len = image.bytes.len() as u64;
            let mut entry = NewEntry {
                log_guid,
                sequence_number: number,
                tail: 0,
                flushed_file_offset: file_len + u64::from(step.truncated),
                last_file_offset: step.last_sector * SECTOR,
                updates: step.updates.clone(),
            };
            let len = entry.encode().len() as u64;
            if len > image.log_len() {
                continue;
            }
            while live.iter().map(|(_, len)| len).sum::<u64>() + len > image.log_len() {
                live.pop_front();
            }
            live.push_back((image.next, len));
            entry.tail = live[0].0;
            image.append_torn(&entry, &step.tears);
            number += 1;
        }
        image
    }
}
