//! Host clusters: refcounts, allocation and release.

use std::ops::Range;

use super::{NEW, PAGE, REFCOUNT_TABLE, Update};
use crate::driver::SparseUpdate;
use crate::error::{Error, Problem, Result};
use crate::format::qcow2::entry::OFFSET_MASK;
use crate::format::qcow2::header::{Header, MAX_REFCOUNT_TABLE};
use crate::format::qcow2::refcount::{count_at, max_count, set_count};
use crate::format::qcow2::{FIELDS, FORMAT_NAME};

/// Where a refcount table is, and how its blocks count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RefcountTable {
    pub offset: u64,
    pub clusters: u32,
    /// Refcounts have `1 << order` bits.
    pub order: u32,
}

impl RefcountTable {
    pub fn of(header: &Header) -> RefcountTable {
        let (offset, clusters) = (header.refcount_table_offset, header.refcount_table_clusters);
        RefcountTable { offset, clusters, order: header.refcount_order }
    }

    /// The number of refcounts in a block.
    pub fn per_block(self, cluster_bits: u32) -> u64 {
        (8 << cluster_bits) >> self.order
    }

    /// The host offset of the eight bytes with refcount number `index` of a block, and its number in them.
    fn position(self, block: u64, index: u64) -> (u64, usize) {
        let per_word = 64 >> self.order;
        (block + index / per_word * 8, (index % per_word) as usize)
    }
}

impl Update {
    /// Allocates up to `wanted` contiguous clusters, each with a refcount of 1; all of them if `whole`.
    pub(super) fn allocate_clusters(&mut self, wanted: u64, whole: bool) -> Result<Range<u64>> {
        loop {
            let run = self.find_free(wanted, whole)?;
            if !self.create_missing_block(&run)? {
                self.check_not_in_use(&run)?;
                for cluster in run.clone() {
                    self.set_refcount(cluster, 1)?;
                }
                if self.first_free == run.start {
                    self.first_free = run.end;
                }
                return Ok(run);
            }
            // The new block may have taken a cluster of the run.
        }
    }

    /// As [`allocate_clusters`](Self::allocate_clusters), in a file that is long enough for them.
    pub(super) fn allocate_in_file(&mut self, wanted: u64, whole: bool) -> Result<Range<u64>> {
        let run = self.allocate_clusters(wanted, whole)?;
        let grown = self.grow_file(run.end << self.header.cluster_bits);
        if grown.is_err() {
            // What cannot be freed is leaked.
            run.clone().for_each(|cluster| _ = self.count_use_less(cluster));
        }
        grown.map(|()| run)
    }

    /// Counts a former use of each of these clusters no longer, now that the tables without them are durable.
    pub(super) fn free_clusters(&mut self) -> Result<()> {
        while let Some(&cluster) = self.freed.last() {
            match self.count_use_less(cluster) {
                // It was not counted: there is nothing to free.
                Ok(()) | Err(Error::Corrupt(_)) => self.freed.pop(),
                Err(error) => return Err(error),
            };
        }
        // What is lost of this is a leak.
        self.pages.write_back(NEW).map(drop)
    }

    /// Counts one use of a cluster less.
    pub(super) fn count_use_less(&mut self, cluster: u64) -> Result<()> {
        let count = self.refcount(cluster)?;
        let Some(less) = count.checked_sub(1) else {
            let finding = "the cluster is in use";
            let offset = cluster << self.header.cluster_bits;
            return Err(FIELDS.at("refcount", offset).fault(Problem::Conflict { value: 0, finding }));
        };
        self.set_refcount(cluster, less)?;
        if less == 0 {
            self.first_free = self.first_free.min(cluster);
            if self.compressed_end >> self.header.cluster_bits == cluster {
                // Its rest goes with it.
                self.compressed_end = 0;
            }
        }
        Ok(())
    }

    /// The refcount of a cluster; 0 without a refcount block.
    pub(super) fn refcount(&mut self, cluster: u64) -> Result<u64> {
        self.refcount_in(self.refcounts, cluster)
    }

    /// Whether a cluster is used neither by the image on the storage nor by what is about to replace it.
    fn is_free(&mut self, cluster: u64) -> Result<bool> {
        let published = match self.published_refcounts {
            Some(table) => self.refcount_in(table, cluster)?,
            None => 0,
        };
        Ok(published == 0 && self.refcount(cluster)? == 0)
    }

    fn refcount_in(&mut self, table: RefcountTable, cluster: u64) -> Result<u64> {
        let per_block = table.per_block(self.header.cluster_bits);
        let Some(block) = self.block_in(table, cluster / per_block)? else { return Ok(0) };
        let (at, index) = table.position(block, cluster % per_block);
        let bytes = self.pages.read_array::<8>(at)?;
        Ok(count_at(&bytes, table.order, index).unwrap_or(0))
    }

    /// Sets the refcount of a cluster that has a refcount block.
    pub(super) fn set_refcount(&mut self, cluster: u64, count: u64) -> Result<()> {
        let table = self.refcounts;
        let order = table.order;
        if count > max_count(order) {
            let limit = max_count(order);
            return Err(Error::limit(FORMAT_NAME, "refcount", count, limit));
        }
        let per_block = self.counts_per_block();
        let Some(block) = self.block(cluster / per_block)? else {
            let finding = "the cluster has no refcount block";
            let offset = cluster << self.header.cluster_bits;
            return Err(FIELDS.at("refcount", offset).fault(Problem::Conflict { value: count, finding }));
        };
        let (at, index) = table.position(block, cluster % per_block);
        let mut bytes = self.pages.read_array::<8>(at)?;
        set_count(&mut bytes, order, index, count);
        self.pages.write(&bytes, at, NEW)
    }

    /// The number of refcounts in a block.
    pub(super) fn counts_per_block(&self) -> u64 {
        self.refcounts.per_block(self.header.cluster_bits)
    }

    /// Host offset of a refcount block, if there is one.
    pub(super) fn block(&mut self, index: u64) -> Result<Option<u64>> {
        self.block_in(self.refcounts, index)
    }

    fn block_in(&mut self, table: RefcountTable, index: u64) -> Result<Option<u64>> {
        if index >= self.entries_of(table) {
            return Ok(None);
        }
        let at = table.offset + index * 8;
        let entry = u64::from_be_bytes(self.pages.read_array(at)?);
        if entry == 0 {
            return Ok(None);
        }
        let field = FIELDS.at("refcount table entry", at);
        field.aligned(entry, self.cluster_size())?;
        match entry > OFFSET_MASK {
            true => Err(field.fault(Problem::Range { value: entry, min: 0, max: OFFSET_MASK })),
            false => field.within(entry, self.cluster_size(), self.file_len).map(|()| Some(entry)),
        }
    }

    pub(super) fn table_entries(&self) -> u64 {
        self.entries_of(self.refcounts)
    }

    fn entries_of(&self, table: RefcountTable) -> u64 {
        u64::from(table.clusters) * (self.cluster_size() / 8)
    }

    /// Finds free clusters: the first ones, or the first `wanted` contiguous ones.
    pub(super) fn find_free(&mut self, wanted: u64, whole: bool) -> Result<Range<u64>> {
        let mut at = self.first_free;
        loop {
            let start = self.next_free(at)?;
            if at == self.first_free {
                self.first_free = start;
            }
            let mut end = start + 1;
            while end - start < wanted && self.is_free(end)? {
                end += 1;
            }
            let limit = OFFSET_MASK >> self.header.cluster_bits;
            if end > limit {
                return Err(Error::limit(FORMAT_NAME, "host cluster", end, limit));
            }
            if end - start == wanted || !whole {
                return Ok(start..end);
            }
            at = end + 1;
        }
    }

    /// The first free cluster from `cluster` on.
    fn next_free(&mut self, mut cluster: u64) -> Result<u64> {
        let (order, per_block) = (self.refcounts.order, self.counts_per_block());
        let page_size = PAGE.min(self.cluster_size());
        let mut bytes = vec![0; page_size as usize];
        let per_page = (page_size * 8) >> order;
        loop {
            let Some(block) = self.block(cluster / per_block)? else { return Ok(cluster) };
            let page = cluster % per_block / per_page;
            self.pages.read(&mut bytes, block + page * page_size)?;
            let first = cluster % per_page;
            let free = (first..per_page).find(|index| count_at(&bytes, order, *index as usize) == Some(0));
            cluster -= first;
            match free {
                Some(index) if self.is_free(cluster + index)? => return Ok(cluster + index),
                Some(index) => cluster += index + 1,
                None => cluster += per_page,
            }
        }
    }

    /// Creates the first refcount block that a run of free clusters needs. Returns whether one was missing.
    fn create_missing_block(&mut self, run: &Range<u64>) -> Result<bool> {
        let per_block = self.counts_per_block();
        for index in run.start / per_block..run.end.div_ceil(per_block) {
            if index >= self.table_entries() {
                self.grow_refcount_table(index)?;
                return Ok(true);
            }
            if self.block(index)?.is_none() {
                self.create_block(index)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Creates the refcount block `index` in the first of the clusters that it counts, which are all free.
    fn create_block(&mut self, index: u64) -> Result<()> {
        let cluster = index * self.counts_per_block();
        self.check_not_in_use(&(cluster..cluster + 1))?;
        let offset = cluster << self.header.cluster_bits;
        self.pages.create(offset..offset + self.cluster_size(), NEW);
        self.grow_file(offset + self.cluster_size())?;
        let entry = self.refcounts.offset + index * 8;
        self.pages.write(&offset.to_be_bytes(), entry, REFCOUNT_TABLE)?;
        self.set_refcount(cluster, 1)
    }

    /// Replaces the refcount table by a larger one, with the entry `index` at least. The new one, and the refcount blocks that count it, are in
    /// the first clusters that the old one has no entries for.
    fn grow_refcount_table(&mut self, index: u64) -> Result<()> {
        if self.published_refcounts.is_some() {
            let finding = "it cannot take more entries";
            return Err(FIELDS
                .at("refcount table", self.refcounts.offset)
                .fault(Problem::Conflict { value: index, finding }));
        }
        self.flush()?;
        let (bits, per_block) = (self.header.cluster_bits, self.counts_per_block());
        let (old, old_clusters) = (self.refcounts.offset, u64::from(self.refcounts.clusters));
        let first_index = self.table_entries();
        let first = first_index * per_block;
        // The table and the blocks need entries and blocks themselves.
        let per_cluster = self.cluster_size() / 8;
        let (mut clusters, mut blocks) = (old_clusters + old_clusters / 2 + 1, 1);
        loop {
            let needed_blocks = (blocks + clusters).div_ceil(per_block);
            let entries = (first_index + needed_blocks).max(index + 1);
            let needed_clusters = entries.div_ceil(per_cluster);
            if needed_blocks <= blocks && needed_clusters <= clusters {
                break;
            }
            (blocks, clusters) = (blocks.max(needed_blocks), clusters.max(needed_clusters));
        }
        FIELDS.at("refcount_table_clusters", 56).at_most(clusters << bits, MAX_REFCOUNT_TABLE)?;
        self.check_not_in_use(&(first..first + blocks + clusters))?;

        let mut table = vec![0; (clusters << bits) as usize];
        let (kept, added) = table.split_at_mut((old_clusters << bits) as usize);
        self.pages.read(kept, old)?;
        for (entry, block) in added.as_chunks_mut::<8>().0.iter_mut().zip(first..first + blocks) {
            *entry = (block << bits).to_be_bytes();
        }
        let offset = (first + blocks) << bits;
        self.pages.forget(&(first << bits..offset + (clusters << bits)));
        self.grow_file(offset + (clusters << bits))?;
        self.file.write_all_at(&table, offset).map_err(Error::io("writing the refcount table", offset))?;
        let order = self.refcounts.order;
        for block in 0..blocks {
            let mut counts = vec![0; self.cluster_size() as usize];
            let used = (blocks + clusters).saturating_sub(block * per_block).min(per_block);
            (0..used).for_each(|index| set_count(&mut counts, order, index as usize, 1));
            let offset = (first + block) << bits;
            self.file.write_all_at(&counts, offset).map_err(Error::io("writing a refcount block", offset))?;
        }
        self.sync()?;

        let fields = [&offset.to_be_bytes()[..], &(clusters as u32).to_be_bytes()].concat();
        self.write_header(48, &fields)?;
        self.refcounts = RefcountTable { offset, clusters: clusters as u32, order };
        (self.header.refcount_table_offset, self.header.refcount_table_clusters) = (offset, clusters as u32);
        self.pages.forget(&(old..old + (old_clusters << bits)));
        (old >> bits..(old >> bits) + old_clusters).try_for_each(|cluster| self.count_use_less(cluster))
    }

    /// Refuses to allocate a cluster of a table that every image has: its refcount is wrong.
    pub(super) fn check_not_in_use(&self, run: &Range<u64>) -> Result<()> {
        match self.fixed_table_in(run) {
            None => Ok(()),
            Some(with) => {
                let offset = run.start << self.header.cluster_bits;
                Err(FIELDS.at("refcount", offset).fault(Problem::Overlap { offset, with }))
            }
        }
    }

    /// The header, the L1 table or the refcount table, if it is in one of these clusters.
    pub(super) fn fixed_table_in(&self, run: &Range<u64>) -> Option<&'static str> {
        let (header, bits) = (&self.header, self.header.cluster_bits);
        let tables = [
            (0, 1, "the header"),
            (header.l1_table_offset, u64::from(header.l1_size) * 8, "the L1 table"),
            (header.refcount_table_offset, u64::from(header.refcount_table_clusters) << bits, "the refcount table"),
        ];
        let is_hit = |(offset, len, _): &&(u64, u64, &'static str)| {
            *len > 0 && run.start < (offset + len).div_ceil(1 << bits) && offset >> bits < run.end
        };
        tables.iter().find(is_hit).map(|(.., name)| *name)
    }
}
