//! Writes a map of two levels in one pass: L2 tables and clusters in guest order, after the space reserved for the L1 table.

use std::ops::Range;
use std::sync::Arc;

use super::{ENTRY, Shape};
use crate::driver::Placement;
use crate::error::{Error, Result};
use crate::format::shared::written::Written;
use crate::io::WriteAt;

/// Bytes of L1 entries that are written at once.
const FLUSH: usize = 512 << 10;
/// Bytes of empty L1 entries above which they are skipped.
const GAP: u64 = 4096;
/// The largest file offset.
const MAX_FILE_LEN: u64 = i64::MAX as u64;

/// The map of a new image. One L2 table and some of the L1 table are in memory.
pub(crate) struct TwoLevelWriter {
    out: Arc<dyn WriteAt>,
    shape: Shape,
    /// Encoded L1 entries that are not written yet. The last one is that of the open L2 table.
    l1: Vec<u8>,
    /// Number of L1 entries so far, written or not.
    l1_len: u64,
    /// The open L2 table, encoded, up to its last entry that is not 0.
    l2: Vec<u8>,
    /// Host offset of the open L2 table; `None` before the first one.
    l2_offset: Option<u64>,
    /// Host offset of the end of what is allocated.
    next: u64,
    /// What is placed or zeroed.
    written: Written,
}

impl TwoLevelWriter {
    /// A map whose clusters are allocated from host offset `start` on, which is after the L1 table.
    ///
    /// # Errors
    /// Errors of the storage: the header of an old image must not describe the new one while it is incomplete.
    pub fn new(out: Arc<dyn WriteAt>, shape: Shape, start: u64) -> Result<TwoLevelWriter> {
        let (l1, l2) = (Vec::new(), Vec::new());
        let mut writer =
            TwoLevelWriter { out, shape, l1, l1_len: 0, l2, l2_offset: None, next: start, written: Written::default() };
        writer.written.zero_until(&*writer.out, start)?;
        Ok(writer)
    }

    /// Allocates clusters for the start of `guest`, as [`SparseWrite::place`](crate::driver::SparseWrite::place).
    pub fn place(&mut self, guest: &Range<u64>) -> Result<Placement> {
        let (cluster_size, bits) = (self.shape.cluster_size(), self.shape.cluster_bits);
        let (first, end) = (guest.start >> bits, guest.end.div_ceil(cluster_size));
        self.check_range(guest)?;
        self.open(first)?;
        let last = end.min((first / self.shape.l2_entries + 1) * self.shape.l2_entries);
        // Guest ranges ascend, so that only the first cluster may have been placed in part.
        let host = match self.mapped(first) {
            Some(host) => host,
            None => self.allocate_cluster(first)?,
        };
        let mut at = first + 1;
        while at < last && self.next == host + ((at - first) << bits) {
            self.allocate_cluster(at)?;
            at += 1;
        }
        let len = guest.end.min(at << bits) - guest.start;
        let offset = host + guest.start % cluster_size;
        self.written.zero_until(&*self.out, offset)?;
        self.written.advance(offset + len);
        Ok(Placement::new(self.out.clone(), offset, len))
    }

    /// Allocates `len` bytes for the payload of the cluster of guest offset `offset`, whose entry is then `entry(host offset)`.
    pub fn place_payload(
        &mut self,
        guest: &Range<u64>,
        len: u64,
        entry: impl FnOnce(u64) -> Result<u64>,
    ) -> Result<Placement> {
        self.check_range(guest)?;
        let cluster = guest.start >> self.shape.cluster_bits;
        self.open(cluster)?;
        let offset = self.allocate(len, 1)?;
        self.set(cluster, entry(offset)?);
        self.written.zero_until(&*self.out, offset)?;
        self.written.advance(offset + len);
        Ok(Placement::new(self.out.clone(), offset, len))
    }

    /// Sets the entries of the guest clusters in `guest` to `value`.
    pub fn fill(&mut self, guest: &Range<u64>, value: u64) -> Result<()> {
        self.check_range(guest)?;
        for cluster in guest.start >> self.shape.cluster_bits..guest.end.div_ceil(self.shape.cluster_size()) {
            self.open(cluster)?;
            self.set(cluster, value);
        }
        Ok(())
    }

    /// Allocates clusters of zeros for `guest`.
    pub fn place_zeros(&mut self, guest: &Range<u64>) -> Result<()> {
        let mut at = guest.start;
        while at < guest.end {
            let placement = self.place(&(at..guest.end))?;
            at += placement.len;
            if !self.out.starts_zeroed() {
                let range = placement.offset..placement.offset + placement.len;
                self.out.zero_range(range).map_err(Error::io("writing zeros", placement.offset))?;
            }
        }
        Ok(())
    }

    /// Writes what is left of the tables, and sets the file length, a multiple of `alignment`. The header is not written.
    pub fn finish(&mut self, alignment: u64) -> Result<()> {
        self.flush_l2()?;
        self.flush_l1()?;
        let end = self.next.next_multiple_of(alignment);
        self.written.zero_until(&*self.out, end)?;
        self.out.set_len(end).map_err(Error::io("setting the length", end))?;
        self.sync()
    }

    /// Writes and syncs `header` at the start of the file.
    pub fn write_header(&self, header: &[u8]) -> Result<()> {
        self.write(header, 0, "writing the header")?;
        self.sync()
    }

    /// Opens the L2 table of guest cluster `cluster`, which must not be before the last one.
    fn open(&mut self, cluster: u64) -> Result<()> {
        let index = cluster / self.shape.l2_entries;
        let is_open = self.l2_offset.is_some() && index + 1 == self.l1_len;
        // The last cluster may be placed in several parts.
        if index < self.l1_len && !(is_open && self.at(cluster) + ENTRY as usize >= self.l2.len()) {
            return Err(Error::Usage("guest offsets must ascend when an image is written".into()));
        }
        if is_open {
            return Ok(());
        }
        self.flush_l2()?;
        self.add_l1(index)?;
        let offset = self.allocate(self.shape.l2_len(), self.shape.cluster_size())?;
        self.l1.extend((self.shape.encode)(offset));
        self.l1_len += 1;
        self.l2_offset = Some(offset);
        Ok(())
    }

    /// Adds empty L1 entries until there are `len`. The table is zeros already, so that many of them are skipped.
    fn add_l1(&mut self, len: u64) -> Result<()> {
        if (len - self.l1_len) * ENTRY > GAP || self.l1.len() >= FLUSH {
            self.flush_l1()?;
            self.l1_len = len;
        } else {
            self.l1.resize(self.l1.len() + ((len - self.l1_len) * ENTRY) as usize, 0);
            self.l1_len = len;
        }
        Ok(())
    }

    fn flush_l1(&mut self) -> Result<()> {
        if self.l1.is_empty() {
            return Ok(());
        }
        let at = self.shape.l1_offset + self.l1_len * ENTRY - self.l1.len() as u64;
        self.write(&self.l1, at, "writing the L1 table")?;
        self.l1.clear();
        Ok(())
    }

    fn flush_l2(&mut self) -> Result<()> {
        if let Some(offset) = self.l2_offset.take() {
            // The rest of it is zeros.
            self.written.zero_until(&*self.out, offset + self.shape.l2_len())?;
            self.write(&self.l2, offset, "writing an L2 table")?;
            self.l2.clear();
        }
        Ok(())
    }

    /// The host offset of guest cluster `cluster`, whose L2 table is open, if it is allocated.
    fn mapped(&self, cluster: u64) -> Option<u64> {
        let entry = self.l2.get(self.at(cluster)..).and_then(|rest| rest.first_chunk().copied());
        entry.map(self.shape.decode).filter(|host| *host != 0)
    }

    /// Sets the entry of guest cluster `cluster`, which is not before the last one of the open L2 table.
    fn set(&mut self, cluster: u64, value: u64) {
        let at = self.at(cluster);
        self.l2.resize(at, 0);
        self.l2.extend((self.shape.encode)(value));
    }

    /// Byte offset of the entry of `cluster` in the open L2 table.
    fn at(&self, cluster: u64) -> usize {
        (cluster % self.shape.l2_entries * ENTRY) as usize
    }

    fn allocate_cluster(&mut self, cluster: u64) -> Result<u64> {
        let host = self.allocate(self.shape.cluster_size(), self.shape.cluster_size())?;
        self.set(cluster, host);
        Ok(host)
    }

    fn allocate(&mut self, len: u64, alignment: u64) -> Result<u64> {
        let start = self.next.next_multiple_of(alignment);
        let end = start + len;
        if end > MAX_FILE_LEN {
            return Err(Error::limit(self.shape.format, "file length", end, MAX_FILE_LEN));
        }
        self.next = end;
        Ok(start)
    }

    fn check_range(&self, guest: &Range<u64>) -> Result<()> {
        if guest.start < guest.end && guest.end <= self.shape.virtual_size {
            return Ok(());
        }
        Err(Error::Usage(format!("guest range {guest:x?} is not within the disk")))
    }

    fn write(&self, bytes: &[u8], offset: u64, action: &'static str) -> Result<()> {
        self.out.write_all_at(bytes, offset).map_err(Error::io(action, offset))
    }

    fn sync(&self) -> Result<()> {
        self.out.sync().map_err(Error::io("syncing", None))
    }
}
