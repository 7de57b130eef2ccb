//! A volume: a partition, or the whole disk, as its file system sees it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;

use crate::io::ReadAt;

/// The reason why all of a volume is kept: its file system is not clean, not understood, or contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::guest) struct Kept(pub Cow<'static, str>);

pub(super) type Found<T> = Result<T, Kept>;

/// The error for a volume that is kept for this reason.
pub(super) fn kept<T>(reason: impl Into<Cow<'static, str>>) -> Found<T> {
    Err(Kept(reason.into()))
}

/// A range of the disk. Offsets are in bytes from its start.
pub(in crate::guest) struct Volume<'a> {
    pub disk: &'a dyn ReadAt,
    pub range: Range<u64>,
    /// What was read, and what is known to be in use.
    in_use: RefCell<InUse>,
}

impl<'a> Volume<'a> {
    pub fn new(disk: &'a dyn ReadAt, range: Range<u64>) -> Volume<'a> {
        Volume { disk, range, in_use: RefCell::default() }
    }

    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Reads `len` bytes of metadata at `offset`, which are in use. Callers ask for no more than a block of the file system, or a part of a
    /// table.
    pub fn read(&self, offset: u64, len: usize) -> Found<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_into(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `bytes` from `offset`, as [`read`](Self::read) does.
    pub fn read_into(&self, offset: u64, bytes: &mut [u8]) -> Found<()> {
        self.fill(offset, bytes)?;
        self.mark_used(offset..offset + bytes.len() as u64)
    }

    fn fill(&self, offset: u64, bytes: &mut [u8]) -> Found<()> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.len()) {
            return kept(format!("metadata at byte {offset:#x} is beyond the end of the volume"));
        }
        let read = self.disk.read_exact_at(bytes, self.range.start + offset);
        read.map_err(|error| Kept(format!("reading metadata at byte {offset:#x}: {error}").into()))
    }

    /// The bytes at `offset`, if the volume has that many. They need not be metadata.
    pub fn peek<const LEN: usize>(&self, offset: u64) -> Found<Option<[u8; LEN]>> {
        if offset + LEN as u64 > self.len() {
            return Ok(None);
        }
        let mut bytes = [0; LEN];
        self.fill(offset, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Notes that a range is in use, whatever the file system says.
    pub fn mark_used(&self, range: Range<u64>) -> Found<()> {
        self.in_use.borrow_mut().add(range)
    }

    /// Compares what the file system says is free with its own metadata.
    pub fn check_used(&self, free: &FreeRanges) -> Found<()> {
        self.in_use.borrow().ranges.iter().try_for_each(|range| free.check_used(range.clone()))
    }
}

/// Ranges in use, in any order.
#[derive(Default)]
struct InUse {
    ranges: Vec<Range<u64>>,
    /// Of these, how many are merged: in ascending order, without overlaps.
    merged: usize,
}

impl InUse {
    /// Ranges that are kept in memory.
    const MOST: usize = 1 << 20;

    fn add(&mut self, range: Range<u64>) -> Found<()> {
        match self.ranges.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
        // Not again before there are twice as many.
        if self.ranges.len() >= Self::MOST.min(1024.max(self.merged * 2)) {
            self.merge();
            if self.ranges.len() >= Self::MOST / 2 {
                return kept("its metadata is in more places than are looked at");
            }
        }
        Ok(())
    }

    fn merge(&mut self) {
        self.ranges.sort_unstable_by_key(|range| range.start);
        self.ranges.dedup_by(|next, last| {
            let touches = next.start <= last.end;
            if touches {
                last.end = last.end.max(next.end);
            }
            touches
        });
        self.merged = self.ranges.len();
    }
}

/// Fields of a structure on the disk.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn bytes<const LEN: usize>(self, at: usize) -> Found<[u8; LEN]> {
        let bytes = self.0.get(at..).and_then(<[u8]>::first_chunk);
        bytes.copied().ok_or(Kept("a structure of the file system is cut off".into()))
    }

    /// The fields from byte `at` on.
    pub fn from(self, at: usize) -> Fields<'a> {
        Fields(self.0.get(at..).unwrap_or_default())
    }

    pub fn u8(self, at: usize) -> Found<u8> {
        self.bytes::<1>(at).map(|[byte]| byte)
    }

    pub fn le16(self, at: usize) -> Found<u16> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    pub fn le32(self, at: usize) -> Found<u32> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    pub fn le64(self, at: usize) -> Found<u64> {
        self.bytes(at).map(u64::from_le_bytes)
    }

    pub fn be16(self, at: usize) -> Found<u16> {
        self.bytes(at).map(u16::from_be_bytes)
    }

    pub fn be32(self, at: usize) -> Found<u32> {
        self.bytes(at).map(u32::from_be_bytes)
    }

    pub fn be64(self, at: usize) -> Found<u64> {
        self.bytes(at).map(u64::from_be_bytes)
    }
}

/// Free ranges of a volume, or of the whole disk.
#[derive(Debug)]
pub(in crate::guest) struct FreeRanges {
    ranges: Vec<Range<u64>>,
    /// Bytes of all ranges that were added.
    total: u64,
    /// Shorter ranges are not kept in memory: they stay in use.
    shortest: u64,
    most: usize,
}

impl FreeRanges {
    /// No ranges, and room for `most` of them.
    pub fn new(most: usize) -> FreeRanges {
        FreeRanges { ranges: Vec::new(), total: 0, shortest: 1, most: most.max(2) }
    }

    /// Adds a range that is free.
    pub fn add(&mut self, range: Range<u64>) {
        let len = range.end.saturating_sub(range.start);
        self.total = self.total.saturating_add(len);
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if len < self.shortest => {}
            _ => self.ranges.push(range),
        }
        while self.ranges.len() > self.most {
            self.shortest = self.shortest.saturating_mul(2);
            let shortest = self.shortest;
            self.ranges.retain(|range| range.end - range.start >= shortest);
        }
    }

    /// Fails if a part of a range that is in use was added, and is kept in memory. All have been added, in ascending order.
    pub fn check_used(&self, range: Range<u64>) -> Found<()> {
        let next = self.ranges.partition_point(|free| free.end <= range.start);
        match self.ranges.get(next).is_some_and(|free| free.start < range.end) {
            true => kept(format!("what it says is free is in use: bytes {:#x} to {:#x}", range.start, range.end)),
            false => Ok(()),
        }
    }

    /// Bytes of all ranges that were added.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The ranges, in ascending order.
    pub fn into_ranges(mut self) -> Vec<Range<u64>> {
        self.ranges.sort_unstable_by_key(|range| range.start);
        self.ranges
    }
}

/// Calls `free` with each run of clear bits of `bitmap`, of which the first `count` bits count, the lowest of a byte first. Returns how many
/// are clear.
pub(super) fn clear_runs(bitmap: &[u8], count: u64, mut free: impl FnMut(Range<u64>)) -> u64 {
    let (mut at, mut start, mut clear) = (0, None, 0);
    let mut end_run = |start: &mut Option<u64>, end: u64| {
        if let Some(start) = start.take() {
            clear += end - start;
            free(start..end);
        }
    };
    for byte in bitmap {
        if at >= count {
            break;
        }
        match *byte {
            0 if count - at >= 8 => {
                start.get_or_insert(at);
            }
            0xff => end_run(&mut start, at),
            byte => {
                for bit in (0..8).take_while(|bit| at + bit < count) {
                    if byte >> bit & 1 == 0 {
                        start.get_or_insert(at + bit);
                    } else {
                        end_run(&mut start, at + bit);
                    }
                }
            }
        }
        at += 8;
    }
    end_run(&mut start, at.min(count));
    clear
}
