//! A file with changes that are not written to it.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use super::entry::{Data, is_data_sector};
use super::ring::SECTOR;
use crate::error::Result;
use crate::format::shared::table::Field;
use crate::io::ReadAt;
use crate::limits::Budget;

/// A file, and over it zeros and sectors from its log. Behind the end of what is stored there are zeros.
pub(super) struct Overlay {
    file: Arc<dyn ReadAt>,
    /// Bytes that are stored.
    stored_len: u64,
    /// Bytes that there are with the changes.
    len: u64,
    /// By their offsets.
    sectors: BTreeMap<u64, Data>,
    /// Where they begin and end. They overlap neither each other nor the sectors.
    zeros: BTreeMap<u64, u64>,
    /// How many of both the budget has been asked for.
    paid: usize,
}

/// What a range of the file changes to.
#[derive(Clone, Copy)]
pub(super) enum Content {
    Zeros,
    /// One sector.
    Data(Data),
}

impl Overlay {
    /// `file`, of which `stored_len` bytes are stored, without changes.
    pub fn new(file: Arc<dyn ReadAt>, stored_len: u64) -> Overlay {
        let (sectors, zeros) = (BTreeMap::new(), BTreeMap::new());
        Overlay { file, stored_len, len: stored_len, sectors, zeros, paid: 0 }
    }

    /// Changes `len` bytes at `offset`, whatever they were changed to before. Both are multiples of a sector, and their sum
    /// is an offset. `field` is what says so.
    pub fn put(&mut self, offset: u64, len: u64, content: Content, field: Field, budget: &Budget) -> Result<()> {
        // The nodes of a tree are at least half full.
        const COST: u64 = 2 * size_of::<(u64, Data)>() as u64;
        let range = offset..offset.saturating_add(len);
        self.grow(range.end);
        if range.is_empty() {
            return Ok(());
        }
        self.forget(&range);
        match content {
            Content::Zeros => drop(self.zeros.insert(range.start, range.end)),
            Content::Data(data) => drop(self.sectors.insert(range.start, data)),
        }
        let pieces = self.sectors.len() + self.zeros.len();
        if pieces > self.paid {
            budget.take((pieces - self.paid) as u64 * COST, field.format, "log descriptors", field.at)?;
            self.paid = pieces;
        }
        Ok(())
    }

    /// Forgets the changes of a range.
    fn forget(&mut self, range: &Range<u64>) {
        self.sectors.extract_if(range.clone(), |_, _| true).for_each(drop);
        for at in [range.start, range.end] {
            // Zeros that reach over an end of it become two.
            if let Some((_, end)) = self.zeros.range_mut(..at).next_back()
                && *end > at
            {
                let rest = mem::replace(end, at);
                self.zeros.insert(at, rest);
            }
        }
        self.zeros.extract_if(range.clone(), |_, _| true).for_each(drop);
    }

    /// Makes the file at least `len` bytes long.
    pub fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// How many bytes change.
    pub fn changed(&self) -> u64 {
        let zeros: u64 = self.zeros.iter().map(|(start, end)| end - start).sum();
        self.sectors.len() as u64 * SECTOR + zeros
    }

    /// Where the zeros end that `offset` lies in.
    fn zeros_end(&self, offset: u64) -> Option<u64> {
        self.zeros.range(..=offset).next_back().map(|(_, end)| *end).filter(|end| *end > offset)
    }

    /// Where the first change behind `offset` begins, or the file ends.
    fn next_change(&self, offset: u64) -> u64 {
        let sector = self.sectors.range(offset..).next().map(|(start, _)| *start);
        let zeros = self.zeros.range(offset..).next().map(|(start, _)| *start);
        sector.into_iter().chain(zeros).min().unwrap_or(self.len)
    }

    /// The sector of the file that a data sector stands for. A program that replays the log meanwhile may use its place again.
    fn sector(&self, data: Data) -> io::Result<[u8; SECTOR as usize]> {
        let mut sector = [0; SECTOR as usize];
        self.file.read_exact_at(&mut sector, data.place)?;
        if !is_data_sector(&sector, data.sequence_number) {
            return Err(io::Error::other(format!("the log has changed at file offset {:#x}", data.place)));
        }
        sector[..8].copy_from_slice(&data.leading_bytes);
        sector[4092..].copy_from_slice(&data.trailing_bytes);
        Ok(sector)
    }
}

impl ReadAt for Overlay {
    /// That of the file when it was replayed: whoever asks whether it has changed has to ask the stored file.
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let within = offset % SECTOR;
        if let Some(data) = self.sectors.get(&(offset - within)) {
            let sector = self.sector(*data)?;
            let rest = sector.iter().skip(within as usize);
            return Ok(buf.iter_mut().zip(rest).map(|(byte, stored)| *byte = *stored).count());
        }
        let zeros = self.zeros_end(offset);
        let end = zeros.unwrap_or_else(|| self.next_change(offset));
        let stored = zeros.is_none() && offset < self.stored_len;
        let end = if stored { end.min(self.stored_len) } else { end };
        let len = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let buf = buf.get_mut(..len).unwrap_or_default();
        if stored {
            return self.file.read_at(buf, offset);
        }
        buf.fill(0);
        Ok(len)
    }

    /// Zeros of the log are holes, as is what lies behind the stored file. But a hostile log can have a million ranges of zeros
    /// over what is stored, and each block of the disk may ask what follows: after a few of them the next one counts as data.
    fn next_data(&self, mut offset: u64) -> io::Result<Option<Range<u64>>> {
        const MOST: usize = 32;
        let mut passed = 0;
        loop {
            let stored = if offset < self.stored_len { self.file.next_data(offset)? } else { None };
            let stored = stored.map(|run| run.start.max(offset)..run.end.min(self.stored_len));
            let stored = stored.filter(|run| !run.is_empty());
            let sector = self.sectors.range(offset / SECTOR * SECTOR..).next().map(|(start, _)| *start);
            if let Some(start) = sector.filter(|start| stored.as_ref().is_none_or(|run| *start <= run.start)) {
                return Ok(Some(start.max(offset)..start + SECTOR));
            }
            let Some(stored) = stored else { return Ok(None) };
            match self.zeros_end(stored.start) {
                None => return Ok(Some(stored.start..stored.end.min(self.next_change(stored.start)))),
                Some(end) if passed == MOST => return Ok(Some(stored.start..stored.end.min(end))),
                Some(end) => offset = end,
            }
            passed += 1;
        }
    }
}
