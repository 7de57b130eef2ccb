//! Builds the L1 and L2 tables (qcow2 specification, "Cluster mapping").

use std::ops::Range;
use std::sync::Arc;

use byteorder::{BigEndian, ByteOrder};

use super::alloc::Allocator;
use super::{write, write_table};
use crate::error::{Error, Result};
use crate::format::qcow2::entry::{COMPRESSED, COPIED, OFFSET_MASK, SUBCLUSTERS};
use crate::format::qcow2::header::Header;
use crate::io::WriteAt;

/// The L1 table and the current L2 table.
pub(super) struct Mapping {
    out: Arc<dyn WriteAt>,
    cluster_bits: u32,
    entry_size: u64,
    l1: Vec<u64>,
    /// The open L2 table, encoded.
    l2: Vec<u8>,
    /// Guest clusters of the open L2 table; empty before the first one.
    mapped: Range<u64>,
}

impl Mapping {
    pub fn new(out: Arc<dyn WriteAt>, header: &Header) -> Mapping {
        Mapping {
            out,
            cluster_bits: header.cluster_bits,
            entry_size: header.l2_entry_size(),
            l1: vec![0; header.l1_size as usize],
            l2: vec![0; header.cluster_size() as usize],
            mapped: 0..0,
        }
    }

    /// Opens the L2 table of guest cluster `cluster`, which must not be before the open one.
    pub fn open(&mut self, cluster: u64, alloc: &mut Allocator) -> Result<()> {
        if self.mapped.contains(&cluster) {
            return Ok(());
        }
        if cluster < self.mapped.end {
            return Err(Error::Usage("guest offsets must ascend when an image is written".into()));
        }
        self.flush()?;
        let entries = self.l2.len() as u64 / self.entry_size;
        let index = cluster / entries;
        let Some(entry) = self.l1.get_mut(index as usize) else {
            return Err(Error::Usage(format!("guest cluster {cluster} is beyond the virtual size")));
        };
        *entry = alloc.take(1)?.start | COPIED;
        self.l2.fill(0);
        self.mapped = index * entries..(index + 1) * entries;
        Ok(())
    }

    /// Guest clusters of the open L2 table.
    pub fn mapped(&self) -> &Range<u64> {
        &self.mapped
    }

    /// Host offset of guest cluster `cluster`, if allocated.
    pub fn host(&self, cluster: u64) -> Option<u64> {
        let entry = BigEndian::read_u64(&self.l2[self.at(cluster)..]);
        debug_assert_eq!(entry & COMPRESSED, 0, "guest cluster {cluster} is already compressed");
        Some(entry & OFFSET_MASK).filter(|&host| host != 0)
    }

    /// Maps the guest clusters from `cluster` on to the host range `run`.
    pub fn set_run(&mut self, cluster: u64, run: Range<u64>) {
        for (cluster, host) in (cluster..).zip(run.step_by(1 << self.cluster_bits)) {
            self.set(cluster, host | COPIED);
        }
    }

    pub fn set(&mut self, cluster: u64, entry: u64) {
        let at = self.at(cluster);
        BigEndian::write_u64(&mut self.l2[at..], entry);
    }

    /// Marks the subclusters of the guest range as allocated.
    pub fn set_allocated(&mut self, guest: Range<u64>) {
        self.update_bitmaps(guest, |bitmap, bits| bitmap & !(bits << 32) | bits);
    }

    /// Marks the subclusters of the guest range as zeros.
    pub fn set_zero(&mut self, guest: Range<u64>) {
        self.update_bitmaps(guest, |bitmap, bits| bitmap & !bits | bits << 32);
    }

    fn update_bitmaps(&mut self, guest: Range<u64>, update: impl Fn(u64, u64) -> u64) {
        let cluster_size = 1 << self.cluster_bits;
        let subcluster = cluster_size / u64::from(SUBCLUSTERS);
        for cluster in guest.start >> self.cluster_bits..guest.end.div_ceil(cluster_size) {
            let start = cluster << self.cluster_bits;
            let from = guest.start.saturating_sub(start) / subcluster;
            let to = (guest.end - start).min(cluster_size).div_ceil(subcluster);
            let at = self.at(cluster) + 8;
            let bitmap = BigEndian::read_u64(&self.l2[at..]);
            BigEndian::write_u64(&mut self.l2[at..], update(bitmap, (1 << to) - (1 << from)));
        }
    }

    /// Writes the open L2 table.
    pub fn flush(&mut self) -> Result<()> {
        if self.mapped.is_empty() {
            return Ok(());
        }
        let entries = self.mapped.end - self.mapped.start;
        let entry = self.l1.get((self.mapped.start / entries) as usize).copied().unwrap_or_default();
        write(&*self.out, &self.l2, entry & OFFSET_MASK)
    }

    /// Number of L1 entries.
    pub fn l1_len(&self) -> u64 {
        self.l1.len() as u64
    }

    /// Writes the L1 table at `offset`, zero-padded to `len` bytes.
    pub fn write_l1(&self, offset: u64, len: u64) -> Result<()> {
        write_table(&*self.out, &self.l1, offset, len)
    }

    /// Byte offset of the entry of `cluster` in the open L2 table.
    fn at(&self, cluster: u64) -> usize {
        ((cluster - self.mapped.start) * self.entry_size) as usize
    }
}
