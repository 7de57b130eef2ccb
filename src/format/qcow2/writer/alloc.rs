//! Allocates host clusters and writes refcounts (qcow2 specification, "Host cluster management").

use std::ops::Range;
use std::sync::Arc;

use super::{write, write_table};
use crate::error::{Error, Result};
use crate::format::qcow2::FORMAT_NAME;
use crate::format::qcow2::header::MAX_REFCOUNT_TABLE;
use crate::format::qcow2::refcount::{count_at, max_count, set_count};
use crate::io::WriteAt;
use crate::options::wrong;

/// Host offsets in table entries have 56 bits.
const MAX_FILE_LEN: u64 = 1 << 56;

/// Allocates host clusters in ascending order and counts their uses.
///
/// A refcount block covers one *stretch* of the file and is its first cluster, or its second in the first stretch, after the
/// header. So only the block of the last stretch is in memory.
pub(super) struct Allocator {
    out: Arc<dyn WriteAt>,
    cluster_bits: u32,
    order: u32,
    /// Index of the first free cluster; all later ones are free.
    next: u64,
    /// Refcount block of the last stretch.
    block: Vec<u8>,
    /// Refcount table: host offsets of the blocks, including the one in memory.
    table: Vec<u64>,
}

/// Location of the tables at the end of the file; offsets and length in bytes.
pub(super) struct Tail {
    pub l1_offset: u64,
    pub table_offset: u64,
    pub table_clusters: u64,
    pub file_len: u64,
}

impl Allocator {
    /// Creates an allocator for a file with a header and the first refcount block.
    pub fn new(out: Arc<dyn WriteAt>, cluster_bits: u32, order: u32) -> Allocator {
        let mut block = vec![0; 1 << cluster_bits];
        set_count(&mut block, order, 0, 1);
        set_count(&mut block, order, 1, 1);
        Allocator { out, cluster_bits, order, next: 2, block, table: vec![1 << cluster_bits] }
    }

    /// Allocates between one and `wanted` contiguous clusters. Returns their host range in bytes.
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

    /// Host offset of the next allocation.
    pub fn next_offset(&self) -> u64 {
        let block = u64::from(self.next == self.stretch_end());
        (self.next + block) << self.cluster_bits
    }

    /// Increments the refcount of the cluster at `offset`. Returns `false` if it is at the maximum or already written.
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

    /// Allocates an L1 table of `l1_clusters`, the refcount table and the refcount blocks that cover them, and writes the
    /// remaining refcounts.
    pub fn close(&mut self, l1_clusters: u64) -> Result<Tail> {
        let counts = self.counts_per_block();
        let known = self.table.len() as u64;
        let RefcountArea { table_clusters, blocks, end } =
            RefcountArea::after(self.next + l1_clusters, known, self.cluster_bits, self.order);
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

    /// Clusters needed for a table of `entries` 64-bit entries.
    pub fn entries_in_clusters(&self, entries: u64) -> u64 {
        entries_in_clusters(entries, self.cluster_bits)
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

    /// Sets the refcounts of these clusters of the last stretch to 1.
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
        counts_per_block(self.cluster_bits, self.order)
    }

    fn check_table(&self, blocks: u64) -> Result<()> {
        if blocks * 8 <= MAX_REFCOUNT_TABLE {
            return Ok(());
        }
        let problem = "too small: with this refcount_bits the refcount table would exceed its limit";
        Err(wrong(FORMAT_NAME, "cluster_size", problem))
    }

    fn check_len(&self, clusters: u64) -> Result<()> {
        match clusters.checked_mul(1 << self.cluster_bits) {
            Some(len) if len <= MAX_FILE_LEN => Ok(()),
            len => Err(Error::limit(FORMAT_NAME, "file length", len.unwrap_or(u64::MAX), MAX_FILE_LEN)),
        }
    }
}

/// The refcount table and the refcount blocks that are not written yet, at the end of a file.
pub(super) struct RefcountArea {
    pub table_clusters: u64,
    /// Number of all refcount blocks.
    pub blocks: u64,
    /// End of the file in clusters.
    pub end: u64,
}

impl RefcountArea {
    /// The area after `used` clusters, among which are `known` refcount blocks. All clusters of the file have a reference count.
    pub fn after(used: u64, known: u64, cluster_bits: u32, order: u32) -> RefcountArea {
        let (mut table_clusters, mut blocks) = (1, known);
        // The table needs blocks and the blocks a longer table: find the smallest fixed point.
        loop {
            let end = used + table_clusters + (blocks - known);
            let needed_blocks = end.div_ceil(counts_per_block(cluster_bits, order));
            let needed = (entries_in_clusters(needed_blocks, cluster_bits), needed_blocks);
            if needed == (table_clusters, blocks) {
                return RefcountArea { table_clusters, blocks, end };
            }
            (table_clusters, blocks) = needed;
        }
    }
}

/// Clusters needed for a table of `entries` 64-bit entries.
pub(super) fn entries_in_clusters(entries: u64, cluster_bits: u32) -> u64 {
    entries.div_ceil(1 << (cluster_bits - 3))
}

/// Reference counts in a refcount block.
fn counts_per_block(cluster_bits: u32, order: u32) -> u64 {
    8 << cluster_bits >> order
}
