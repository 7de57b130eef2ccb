//! The virtual size, and the L1 table.

use std::ops::Range;

use super::{Update, mapping::Entry};
use crate::driver::SparseUpdate;
use crate::error::{Error, Result};
use crate::format::qcow2::FORMAT_NAME;
use crate::format::qcow2::entry::parse_l1_entry;
use crate::format::qcow2::header::MAX_L1_ENTRIES;
use crate::format::shared::{table, whole_sectors};

/// Most guest bytes that are allocated at a time.
const PIECE: u64 = 64 << 20;

impl Update {
    /// Sets the virtual size, rounded up to sectors. Lower layers have `below` bytes.
    pub(super) fn set_size(&mut self, size: u64, below: u64) -> Result<()> {
        let size = whole_sectors(FORMAT_NAME, size)?;
        if self.header.version == 2 && self.header.nb_snapshots > 0 {
            return Err(Error::unsupported(FORMAT_NAME, "resizing an image of version 2 with internal snapshots"));
        }
        let (old, needed) = (self.info.virtual_size, self.header.l1_entries_for(size));
        if needed > MAX_L1_ENTRIES {
            let limit = MAX_L1_ENTRIES.saturating_mul(self.header.l2_coverage());
            return Err(Error::limit(FORMAT_NAME, "virtual size", size, limit));
        }
        let bitmaps = self.bitmaps_to_resize(size)?;
        self.begin()?;
        if size > old {
            let prepared = self.prepare_growth(old, size, below);
            if prepared.is_err() {
                self.l1.truncate(self.header.l1_entries_for(old) as usize);
            }
            prepared?;
        }
        self.flush()?;
        match bitmaps.is_empty() {
            true => self.write_header(24, &size.to_be_bytes())?,
            false => self.resize_bitmaps(bitmaps, size)?,
        }
        self.header.size = size;
        self.info.virtual_size = size;
        if size < old {
            self.clear(size.next_multiple_of(self.cluster_size())..old)?;
            self.l1.truncate(needed as usize);
            self.flush()?;
        }
        self.grow_raw_data_file()
    }

    /// Makes what is beyond the end of the disk read as zeros, and has L1 entries for it.
    fn prepare_growth(&mut self, old: u64, size: u64, below: u64) -> Result<()> {
        let needed = self.header.l1_entries_for(size);
        self.load_l1(needed.min(self.header.l1_size.into()))?;
        // What a shrinking that was interrupted has left.
        let end = old.next_multiple_of(self.cluster_size());
        self.clear(end..size)?;
        self.flush()?;
        self.grow_l1(needed)?;
        self.l1.resize(needed as usize, 0);
        let mut range = old.next_multiple_of(self.granule())..below.min(size).next_multiple_of(self.cluster_size());
        if self.header.extended_l2() {
            range.end = range.end.max(end);
        }
        let has_backing = self.header.backing_file.is_some();
        let has_zero_clusters = self.header.version > 2 || !has_backing;
        while range.start < range.end {
            range.start = match has_zero_clusters {
                true => range.start + self.zero_clusters(range.clone(), false, has_backing)?.len(),
                false => self.allocate_zeros(range.clone())?,
            };
            self.begin()?;
        }
        Ok(())
    }

    /// Allocates clusters of zeros for the start of a guest range beyond the end of the disk, and returns the end of that part. For overlays of
    /// version 2, which has no other zeros.
    fn allocate_zeros(&mut self, guest: Range<u64>) -> Result<u64> {
        let allocation = self.place(guest.start..guest.end.min(guest.start.saturating_add(PIECE)))?;
        let start = allocation.at.offset;
        let end = start + (allocation.guest.end - allocation.guest.start);
        let zeroed = if allocation.reads_as_zeros { Ok(()) } else { self.disk.zero_range(start..end) };
        let stored = zeroed.map_err(Error::io("writing zeros", start)).and_then(|()| self.point_to(&allocation));
        if stored.is_err() {
            self.give_up(&allocation);
        }
        stored.map(|()| allocation.guest.end)
    }

    /// Reads the L1 entries up to this number.
    pub(super) fn load_l1(&mut self, entries: u64) -> Result<()> {
        while (self.l1.len() as u64) < entries {
            let at = self.header.l1_table_offset + self.l1.len() as u64 * 8;
            self.l1.push(u64::from_be_bytes(self.pages.read_array(at)?));
        }
        Ok(())
    }

    /// Moves the L1 table to clusters that hold this many entries.
    fn grow_l1(&mut self, entries: u64) -> Result<()> {
        if entries <= self.header.l1_size.into() {
            return Ok(());
        }
        let bits = self.header.cluster_bits;
        let run = self.allocate_clusters((entries * 8).div_ceil(self.cluster_size()), true)?;
        let (offset, len) = (run.start << bits, (run.end - run.start) << bits);
        self.pages.forget(&(offset..offset + len));
        self.grow_file(offset + len)?;
        let mut bytes = vec![0; len as usize];
        for (place, entry) in bytes.as_chunks_mut().0.iter_mut().zip(&self.l1) {
            *place = entry.to_be_bytes();
        }
        self.file.write_all_at(&bytes, offset).map_err(Error::io("writing the L1 table", offset))?;
        // The table and its refcounts are durable before it is used.
        self.flush()?;
        self.write_header(36, &[&(entries as u32).to_be_bytes()[..], &offset.to_be_bytes()].concat())?;
        let (old, old_end) =
            (self.header.l1_table_offset, self.header.l1_table_offset + u64::from(self.header.l1_size) * 8);
        self.pages.forget(&(old..old_end.next_multiple_of(self.cluster_size())));
        self.freed.extend(old >> bits..old_end.div_ceil(self.cluster_size()));
        (self.header.l1_table_offset, self.header.l1_size) = (offset, entries as u32);
        Ok(())
    }

    /// Removes the mapping of a guest range of whole clusters.
    pub(super) fn clear(&mut self, guest: Range<u64>) -> Result<()> {
        let (coverage, cluster_size) = (self.header.l2_coverage(), self.cluster_size());
        let mut at = guest.start;
        while at < guest.end {
            let index = at / coverage;
            let end = guest.end.min((index + 1).saturating_mul(coverage));
            let entry = self.l1.get(index as usize).copied().unwrap_or(0);
            if entry == 0 {
                at = end;
                continue;
            }
            if at.is_multiple_of(coverage) {
                self.drop_l2_table(index, entry)?;
            } else {
                for offset in (at..end).step_by(cluster_size as usize) {
                    let Entry { entry, bitmap, .. } = self.entry(offset)?;
                    if entry | bitmap != 0 {
                        self.set_entry(offset, 0, 0)?;
                    }
                }
            }
            if self.freed.len() >= super::MAX_FREED || self.pages.is_full() {
                self.flush()?;
            }
            at = end;
        }
        Ok(())
    }

    /// Removes an L2 table, which is wholly beyond the end of the disk, with all that it maps. A snapshot that shares it keeps it.
    fn drop_l2_table(&mut self, index: u64, entry: u64) -> Result<()> {
        let field = crate::format::qcow2::FIELDS.at("L1 entry", self.header.l1_table_offset + index * 8);
        let offset = parse_l1_entry(entry, &self.header).map_err(|problem| field.fault(problem))?;
        self.set_l1_entry(index, 0)?;
        let Some(offset) = offset else { return Ok(()) };
        let entry_size = self.header.l2_entry_size() as usize;
        let mut bytes = vec![0; self.cluster_size() as usize];
        self.pages.read(&mut bytes, offset)?;
        for entry in bytes.chunks_exact(entry_size) {
            let word =
                |at: usize| entry.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_be_bytes);
            self.drop_entry(Entry { entry: word(0), bitmap: word(8), at: None });
        }
        self.freed.push(offset >> self.header.cluster_bits);
        Ok(())
    }

    /// A raw data file is as long as the disk.
    fn grow_raw_data_file(&mut self) -> Result<()> {
        let size = self.info.virtual_size;
        match &self.data_file {
            Some(data_file) if self.is_raw_data_file() && table::length(&**data_file)? < size => {
                data_file.set_len(size).map_err(Error::io("setting the length of the data file", size))?;
                self.data_file_len = size;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
