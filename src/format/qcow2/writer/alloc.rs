//! Host clusters and their reference counts (qcow2 specification, "Host cluster management").

use std::ops::Range;
use std::sync::Arc;

use super::{write, write_table};
use crate::error::{Error, Result};
use crate::format::qcow2::FORMAT_NAME;
use crate::format::qcow2::header::MAX_REFCOUNT_TABLE;
use crate::format::qcow2::refcount::{count_at, max_count, set_count};
use crate::io::WriteAt;
use crate::options::wrong;

/// Table entries hold offsets of 56 bits.
const MAX_FILE_LEN: u64 = 1 << 56;

/// Hands out host clusters in ascending order and counts their references.
///
/// A refcount block counts one *stretch* of the file and is the first cluster of it; the first block, whose stretch begins
/// with the header, is the second. So only the block of the last stretch is ever in memory.
pub(super) struct Allocator {
    out: Arc<dyn WriteAt>,
    cluster_bits: u32,
    order: u32,
    /// Index of the first cluster that is free, as are all after it.
    next: u64,
    /// The counts of the last stretch.
    block: Vec<u8>,
    /// Where the blocks lie, that in memory included.
    table: Vec<u64>,
}

/// What lies after everything else in a file.
pub(super) struct Tail {
    pub l1_offset: u64,
    pub table_offset: u64,
    pub table_clusters: u64,
    pub file_len: u64,
}

impl Allocator {
    /// All clusters are free but that of the header.
    pub fn new(out: Arc<dyn WriteAt>, cluster_bits: u32, order: u32) -> Allocator {
        let mut block = vec![0; 1 << cluster_bits];
        set_count(&mut block, order, 0, 1);
        set_count(&mut block, order, 1, 1);
        Allocator { out, cluster_bits, order, next: 2, block, table: vec![1 << cluster_bits] }
    }

    /// Takes at least one and at most `wanted` clusters that follow each other, and returns their byte range.
    pub fn take(&mut self, wanted: u64) -> Result<Range<u64>> {
        if self.next == self.stretch_end() {
            self.begin_stretch()?;
        }
        let first = self.next;
        self.next = self.stretch_end().min(first.saturating_add(wanted));
        self.check_len(self.next)?;
        self.count_once(first..self.next);
        Ok(first << self.cluster_bits..self.next << self.cluster_bits)
    }

    /// Where the next cluster that is taken begins.
    pub fn next_offset(&self) -> u64 {
        let block = u64::from(self.next == self.stretch_end());
        (self.next + block) << self.cluster_bits
    }

    /// Counts one more reference to the cluster at `offset`, unless its count is at the maximum or has been written.
    pub fn share(&mut self, offset: u64) -> bool {
        let Some(index) = (offset >> self.cluster_bits).checked_sub(self.stretch_end() - self.counts_per_block())
        else {
            return false;
        };
        match count_at(&self.block, self.order, index as usize) {
            Some(count) if count < max_count(self.order) => {
                set_count(&mut self.block, self.order, index as usize, count + 1);
                true
            }
            _ => false,
        }
    }

    /// Ends the file with room for an L1 table of `l1_clusters`, the refcount table and the blocks that count these; writes
    /// what is left of the counts.
    pub fn close(&mut self, l1_clusters: u64) -> Result<Tail> {
        let counts = self.counts_per_block();
        let known = self.table.len() as u64;
        let (mut table_clusters, mut blocks) = (1, known);
        // More blocks need a longer table, and both more blocks: the smallest solution.
        let end = loop {
            let end = self.next + l1_clusters + table_clusters + (blocks - known);
            let needed = (self.entries_in_clusters(end.div_ceil(counts)), end.div_ceil(counts));
            if needed == (table_clusters, blocks) {
                break end;
            }
            (table_clusters, blocks) = needed;
        };
        self.check_len(end)?;
        self.check_table(blocks)?;
        let table_start = self.next + l1_clusters;
        let block_start = table_start + table_clusters;
        self.count_once(self.next..end.min(known * counts));
        self.write_block()?;
        for index in known..blocks {
            self.table.push((block_start + index - known) << self.cluster_bits);
            self.block.fill(0);
            self.count_once(self.next.max(index * counts)..end.min((index + 1) * counts));
            self.write_block()?;
        }
        let tail = Tail {
            l1_offset: self.next << self.cluster_bits,
            table_offset: table_start << self.cluster_bits,
            table_clusters,
            file_len: end << self.cluster_bits,
        };
        write_table(&*self.out, &self.table, tail.table_offset, table_clusters << self.cluster_bits)?;
        Ok(tail)
    }

    /// Clusters that a table of `entries` 64-bit entries fills.
    pub fn entries_in_clusters(&self, entries: u64) -> u64 {
        entries.div_ceil(1 << (self.cluster_bits - 3))
    }

    fn begin_stretch(&mut self) -> Result<()> {
        self.write_block()?;
        self.check_table(self.table.len() as u64 + 1)?;
        self.check_len(self.next + 1)?;
        self.table.push(self.next << self.cluster_bits);
        self.block.fill(0);
        self.count_once(self.next..self.next + 1);
        self.next += 1;
        Ok(())
    }

    /// Counts one reference to each of these clusters, which are of the last stretch and had none.
    fn count_once(&mut self, clusters: Range<u64>) {
        let per_block = self.counts_per_block();
        for cluster in clusters {
            set_count(&mut self.block, self.order, (cluster % per_block) as usize, 1);
        }
    }

    fn write_block(&self) -> Result<()> {
        match self.table.last() {
            Some(&offset) => write(&*self.out, &self.block, offset),
            None => Ok(()),
        }
    }

    /// The first cluster after the last stretch.
    fn stretch_end(&self) -> u64 {
        self.table.len() as u64 * self.counts_per_block()
    }

    fn counts_per_block(&self) -> u64 {
        8 << self.cluster_bits >> self.order
    }

    fn check_table(&self, blocks: u64) -> Result<()> {
        if blocks * 8 <= MAX_REFCOUNT_TABLE {
            return Ok(());
        }
        let problem = "too small for this much data with this refcount_bits: the refcount table would be too large";
        Err(wrong(FORMAT_NAME, "cluster_size", problem))
    }

    fn check_len(&self, clusters: u64) -> Result<()> {
        match clusters.checked_mul(1 << self.cluster_bits) {
            Some(len) if len <= MAX_FILE_LEN => Ok(()),
            len => Err(Error::Limit {
                format: FORMAT_NAME,
                field: "length of the file".into(),
                at: None,
                value: len.unwrap_or(u64::MAX),
                limit: MAX_FILE_LEN,
            }),
        }
    }
}
