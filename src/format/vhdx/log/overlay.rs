//! An in-memory overlay of a file.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use super::entry::{Data, is_data_sector};
use super::ring::SECTOR;
use crate::error::Result;
use crate::format::shared::table::Field;
use crate::io::{ReadAt, Storage};
use crate::limits::Budget;

/// A file with zeros and sectors from its log. Bytes beyond the end of the file on disk are zeros.
pub(in super::super) struct Overlay {
    file: Arc<dyn ReadAt>,
    /// Length of the file on disk in bytes.
    disk_len: u64,
    /// Length with the changes in bytes.
    len: u64,
    /// Changed sectors by host offset.
    sectors: BTreeMap<u64, Data>,
    /// Start and end of zeroed ranges. They overlap neither each other nor the sectors.
    zeros: BTreeMap<u64, u64>,
    /// Number of sectors and zeroed ranges charged to the budget.
    charged: usize,
}

/// The new content of a range of the file.
#[derive(Clone, Copy)]
pub(super) enum Content {
    Zeros,
    /// One sector.
    Data(Data),
}

impl Overlay {
    /// An overlay of `file`, which has `disk_len` bytes, without changes.
    pub fn new(file: Arc<dyn ReadAt>, disk_len: u64) -> Overlay {
        let (sectors, zeros) = (BTreeMap::new(), BTreeMap::new());
        Overlay { file, disk_len, len: disk_len, sectors, zeros, charged: 0 }
    }

    /// Replaces `len` bytes at `offset`. Both are multiples of a sector, and their sum does not overflow. `field` is the field of
    /// the change, for messages.
    pub(super) fn put(&mut self, offset: u64, len: u64, content: Content, field: Field, budget: &Budget) -> Result<()> {
        // The nodes of a tree are at least half full.
        const COST: u64 = 2 * size_of::<(u64, Data)>() as u64;
        let range = offset..offset.saturating_add(len);
        self.grow(range.end);
        if range.is_empty() {
            return Ok(());
        }
        self.discard(&range);
        match content {
            Content::Zeros => drop(self.zeros.insert(range.start, range.end)),
            Content::Data(data) => drop(self.sectors.insert(range.start, data)),
        }
        let changes = self.sectors.len() + self.zeros.len();
        if changes > self.charged {
            budget.take((changes - self.charged) as u64 * COST, field.format, "log descriptors", field.at)?;
            self.charged = changes;
        }
        Ok(())
    }

    /// Discards the changes of a range.
    fn discard(&mut self, range: &Range<u64>) {
        self.sectors.extract_if(range.clone(), |_, _| true).for_each(drop);
        for at in [range.start, range.end] {
            // Splits a zeroed range that crosses an end of the range.
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

    /// Writes the changes to the file itself. The log is as before.
    pub fn write_to(&self, file: &dyn Storage) -> io::Result<()> {
        if self.len > self.disk_len {
            file.set_len(self.len)?;
        }
        for (start, end) in &self.zeros {
            file.zero_range(*start..*end)?;
        }
        self.sectors.iter().try_for_each(|(at, data)| file.write_all_at(&self.sector(*data)?, *at))
    }

    /// Number of changed bytes.
    pub fn changed(&self) -> u64 {
        let zeros: u64 = self.zeros.iter().map(|(start, end)| end - start).sum();
        self.sectors.len() as u64 * SECTOR + zeros
    }

    /// The end of the zeroed range that contains `offset`.
    fn zeros_end(&self, offset: u64) -> Option<u64> {
        self.zeros.range(..=offset).next_back().map(|(_, end)| *end).filter(|end| *end > offset)
    }

    /// The start of the first change at or after `offset`, or the end of the file.
    fn next_change(&self, offset: u64) -> u64 {
        let sector = self.sectors.range(offset..).next().map(|(start, _)| *start);
        let zeros = self.zeros.range(offset..).next().map(|(start, _)| *start);
        sector.into_iter().chain(zeros).min().unwrap_or(self.len)
    }

    /// Reads the new content of a sector from its data sector. Another program can replay the log and overwrite the data sector.
    fn sector(&self, data: Data) -> io::Result<[u8; SECTOR as usize]> {
        let mut sector = [0; SECTOR as usize];
        self.file.read_exact_at(&mut sector, data.host_offset)?;
        if !is_data_sector(&sector, data.sequence_number) {
            return Err(io::Error::other(format!("the log has changed at file offset {:#x}", data.host_offset)));
        }
        sector[..8].copy_from_slice(&data.leading_bytes);
        sector[4092..].copy_from_slice(&data.trailing_bytes);
        Ok(sector)
    }
}

impl ReadAt for Overlay {
    /// The length at the time of the replay. It does not show later changes of the file on disk.
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let within = offset % SECTOR;
        if let Some(data) = self.sectors.get(&(offset - within)) {
            let sector = self.sector(*data)?;
            let rest = sector.iter().skip(within as usize);
            return Ok(buf.iter_mut().zip(rest).map(|(byte, new)| *byte = *new).count());
        }
        let zeros = self.zeros_end(offset);
        let end = zeros.unwrap_or_else(|| self.next_change(offset));
        let on_disk = zeros.is_none() && offset < self.disk_len;
        let end = if on_disk { end.min(self.disk_len) } else { end };
        let len = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let buf = buf.get_mut(..len).unwrap_or_default();
        if on_disk {
            return self.file.read_at(buf, offset);
        }
        buf.fill(0);
        Ok(len)
    }

    /// Zeroed ranges are holes, and so are bytes beyond the end of the file on disk. An untrusted log can zero a million ranges
    /// of data, and every block of the disk can query them: after a few ranges the next one counts as data.
    fn next_data(&self, mut offset: u64) -> io::Result<Option<Range<u64>>> {
        const MAX_SKIPPED: usize = 32;
        let mut skipped = 0;
        loop {
            let data = if offset < self.disk_len { self.file.next_data(offset)? } else { None };
            let data = data.map(|run| run.start.max(offset)..run.end.min(self.disk_len));
            let data = data.filter(|run| !run.is_empty());
            let sector = self.sectors.range(offset / SECTOR * SECTOR..).next().map(|(start, _)| *start);
            if let Some(start) = sector.filter(|start| data.as_ref().is_none_or(|run| *start <= run.start)) {
                return Ok(Some(start.max(offset)..start + SECTOR));
            }
            let Some(data) = data else { return Ok(None) };
            match self.zeros_end(data.start) {
                None => return Ok(Some(data.start..data.end.min(self.next_change(data.start)))),
                Some(end) if skipped == MAX_SKIPPED => return Ok(Some(data.start..data.end.min(end))),
                Some(end) => offset = end,
            }
            skipped += 1;
        }
    }
}
