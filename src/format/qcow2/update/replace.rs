//! Replacing the reference counts, the tables and the snapshots of an image at once.
//!
//! A snapshot changes the refcounts of all clusters and the flags of all entries that go with them. Changed in place, one would contradict the
//! other after a power cut. So new refcount blocks and new tables are written beside those of the image, which nobody sees, and a single
//! write to the first sector of the header makes them those of the image. Nothing is leaked before and after it.

use std::collections::BTreeSet;

use super::clusters::RefcountTable;
use super::{FIELDS, FORMAT_NAME, NEW, PAGE, Update};
use crate::driver::SparseUpdate;
use crate::error::{Error, Result};
use crate::format::qcow2::entry::{COMPRESSED, COPIED, L2Entry, OFFSET_MASK, parse_l1_entry};
use crate::format::qcow2::header::MAX_REFCOUNT_TABLE;
use crate::format::shared::table;
use crate::format::shared::table_pages::TablePages;

/// The fields of the header that change at once.
pub(super) struct Replacement {
    /// Virtual size in bytes.
    pub size: u64,
    pub l1_table_offset: u64,
    pub l1_size: u32,
    pub snapshot_count: u32,
    pub snapshots_offset: u64,
}

/// A change of refcounts by one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Uses {
    More,
    Less,
}

impl Update {
    /// Makes new refcount blocks by `change`, which also writes new tables, and replaces those of the image. If it fails, the image is as before.
    pub(super) fn replace(&mut self, change: impl FnOnce(&mut Self) -> Result<Replacement>) -> Result<()> {
        self.replace_with_width(self.refcounts.order, change)
    }

    /// As [`replace`](Self::replace), with refcounts of `1 << order` bits.
    pub(super) fn replace_with_width(
        &mut self,
        order: u32,
        change: impl FnOnce(&mut Self) -> Result<Replacement>,
    ) -> Result<()> {
        self.clear_unknown_features()?;
        self.flush()?;
        let l1 = self.l1.clone();
        let replaced = self.copy_refcounts(order).and_then(|()| {
            let replacement = change(self)?;
            self.publish_replacement(&replacement)
        });
        // What is in memory is that of tables that are no longer those of the image, or never were.
        let page_size = self.cluster_size().min(PAGE) as usize;
        self.pages = TablePages::new(self.file.clone(), FORMAT_NAME, page_size);
        self.refcounts = RefcountTable::of(&self.header);
        self.published_refcounts = None;
        self.first_free = 0;
        self.freed.clear();
        match &replaced {
            Err(_) => self.l1 = l1,
            Ok(()) => {
                self.l1.clear();
                self.load_l1(self.header.l1_entries_for(self.header.size))?;
            }
        }
        replaced
    }

    /// Goes on with copies of the refcount table and of all refcount blocks, with refcounts of `1 << order` bits. They count what the image uses,
    /// without the old ones.
    fn copy_refcounts(&mut self, order: u32) -> Result<()> {
        let bits = self.header.cluster_bits;
        let old = self.refcounts;
        let per_block = RefcountTable { order, ..old }.per_block(bits);
        let mut former: Vec<u64> = (old.offset >> bits..).take(old.clusters as usize).collect();
        let mut indexes = BTreeSet::new();
        for index in 0..self.table_entries() {
            let Some(block) = self.block(index)? else { continue };
            former.push(block >> bits);
            if order == old.order {
                indexes.insert(index);
            } else {
                self.each_count(index, &mut |cluster, _| {
                    indexes.insert(cluster / per_block);
                    Ok(())
                })?;
            }
        }
        let per_cluster = self.cluster_size() / 8;
        let (region, clusters) = loop {
            // Room for the tables that the change writes.
            let clusters = indexes.last().map_or(0, |last| last / per_cluster + 1) + 1;
            let region = self.find_free(indexes.len() as u64 + clusters, true)?;
            let before = indexes.len();
            indexes.extend(region.start / per_block..region.end.div_ceil(per_block));
            if indexes.len() == before {
                break (region, clusters);
            }
        };
        FIELDS.at("refcount_table_clusters", 56).at_most(clusters << bits, MAX_REFCOUNT_TABLE)?;
        self.check_not_in_use(&region)?;
        self.grow_file(region.end << bits)?;

        let offset = (region.start + indexes.len() as u64) << bits;
        let mut table = vec![0; (clusters << bits) as usize];
        let mut bytes = vec![0; self.cluster_size() as usize];
        for (index, block) in indexes.into_iter().zip(region.start..) {
            match order == old.order {
                true => match self.block(index)? {
                    Some(old) => self.pages.read(&mut bytes, old)?,
                    None => bytes.fill(0),
                },
                false => self.read_counts(index * per_block..(index + 1) * per_block, order, &mut bytes)?,
            }
            let at = block << bits;
            self.file.write_all_at(&bytes, at).map_err(Error::io("writing a refcount block", at))?;
            let entry = index as usize * 8;
            if let Some(entry) = table.get_mut(entry..entry + 8) {
                entry.copy_from_slice(&at.to_be_bytes());
            }
        }
        self.file.write_all_at(&table, offset).map_err(Error::io("writing the refcount table", offset))?;
        self.pages.forget(&(region.start << bits..region.end << bits));

        self.published_refcounts = Some(old);
        self.refcounts = RefcountTable { offset, clusters: clusters as u32, order };
        for cluster in region {
            self.set_refcount(cluster, 1)?;
        }
        former.into_iter().try_for_each(|cluster| self.count_use_less(cluster))
    }

    fn publish_replacement(&mut self, new: &Replacement) -> Result<()> {
        for step in [NEW, super::REFCOUNT_TABLE, super::TABLES] {
            self.pages.write_back(step)?;
        }
        self.sync()?;
        let encryption = (self.header.encryption as u32).to_be_bytes();
        let RefcountTable { offset, clusters, order } = self.refcounts;
        let mut fields = [
            &new.size.to_be_bytes()[..],
            &encryption,
            &new.l1_size.to_be_bytes(),
            &new.l1_table_offset.to_be_bytes(),
            &offset.to_be_bytes(),
            &clusters.to_be_bytes(),
            &new.snapshot_count.to_be_bytes(),
            &new.snapshots_offset.to_be_bytes(),
        ]
        .concat();
        if order != self.header.refcount_order {
            // The features between stay as they are.
            let mut features = [0; 24];
            table::read(&*self.file, &mut features, 72)?;
            fields.extend(features);
            fields.extend(order.to_be_bytes());
        }
        self.write_header(24, &fields)?;
        let header = &mut self.header;
        (header.refcount_table_offset, header.refcount_table_clusters) = (offset, clusters);
        header.refcount_order = order;
        (header.l1_table_offset, header.l1_size) = (new.l1_table_offset, new.l1_size);
        (header.nb_snapshots, header.snapshots_offset) = (new.snapshot_count, new.snapshots_offset);
        (header.size, self.info.virtual_size) = (new.size, new.size);
        Ok(())
    }

    /// Counts the uses of an L1 table, which is `entries`, and of all that it maps.
    pub(super) fn count_tree(&mut self, entries: &[u64], uses: Uses) -> Result<()> {
        for entry in entries {
            let Some(offset) = self.l2_offset(*entry)? else { continue };
            let table = self.read_l2(offset)?;
            self.count_l2(&table, uses)?;
            self.count(offset >> self.header.cluster_bits, uses)?;
        }
        Ok(())
    }

    /// Counts the uses of what an L2 table maps.
    pub(super) fn count_l2(&mut self, table: &[u8], uses: Uses) -> Result<()> {
        if self.header.has_data_file() {
            return Ok(());
        }
        let bits = self.header.cluster_bits;
        for words in table.chunks_exact(self.header.l2_entry_size() as usize) {
            let (entry, bitmap) = (word(words, 0), word(words, 8));
            if entry & (COMPRESSED | OFFSET_MASK) == 0 {
                continue;
            }
            match L2Entry::parse(entry, bitmap, &self.header) {
                Ok(L2Entry::Compressed { host, len }) => {
                    (host >> bits..=(host + u64::from(len) - 1) >> bits)
                        .try_for_each(|cluster| self.count(cluster, uses))?;
                }
                Ok(_) => self.count((entry & OFFSET_MASK) >> bits, uses)?,
                Err(problem) => return Err(Error::corrupt(FORMAT_NAME, "L2 entry", 0, problem)),
            }
        }
        Ok(())
    }

    /// Counts a use of a cluster.
    pub(super) fn count(&mut self, cluster: u64, uses: Uses) -> Result<()> {
        self.make_room()?;
        match uses {
            Uses::Less => self.count_use_less(cluster),
            Uses::More => {
                let count = self.refcount(cluster)?;
                self.set_refcount(cluster, count.saturating_add(1))
            }
        }
    }

    /// Nothing points to the changed tables, so that they may be written at any time.
    pub(super) fn make_room(&mut self) -> Result<()> {
        if self.pages.is_full() {
            self.pages.write_back(NEW)?;
            self.pages.write_back(super::REFCOUNT_TABLE)?;
        }
        Ok(())
    }

    /// A copy of an L2 table in which the flags "the refcount is 1" are right; `None` if they are right in the table itself.
    pub(super) fn with_flags(&mut self, table: &[u8]) -> Result<Option<Vec<u8>>> {
        let (mut copy, mut is_changed) = (table.to_vec(), false);
        let size = self.header.l2_entry_size() as usize;
        for words in copy.chunks_exact_mut(size) {
            let entry = word(words, 0);
            if entry & COMPRESSED != 0 || entry & OFFSET_MASK == 0 || self.header.has_data_file() {
                continue;
            }
            let is_one = self.refcount((entry & OFFSET_MASK) >> self.header.cluster_bits)? == 1;
            let right = if is_one { entry | COPIED } else { entry & !COPIED };
            is_changed |= right != entry;
            if let Some(first) = words.first_chunk_mut() {
                *first = right.to_be_bytes();
            }
        }
        Ok(is_changed.then_some(copy))
    }

    /// Writes a table to new clusters, and returns its host offset.
    pub(super) fn write_table(&mut self, bytes: &[u8], what: &'static str) -> Result<u64> {
        let bits = self.header.cluster_bits;
        let len = (bytes.len() as u64).max(1).next_multiple_of(self.cluster_size());
        let run = self.allocate_clusters(len >> bits, true)?;
        let offset = run.start << bits;
        self.pages.forget(&(offset..offset + len));
        self.grow_file(offset + len)?;
        let mut whole = bytes.to_vec();
        whole.resize(len as usize, 0);
        self.file.write_all_at(&whole, offset).map_err(Error::io(format!("writing {what}"), offset))?;
        Ok(offset)
    }

    /// Counts the clusters of a table no longer.
    pub(super) fn drop_table(&mut self, offset: u64, len: u64) -> Result<()> {
        let bits = self.header.cluster_bits;
        (offset >> bits..(offset + len).div_ceil(self.cluster_size()))
            .try_for_each(|cluster| self.count(cluster, Uses::Less))
    }

    pub(super) fn l2_offset(&self, entry: u64) -> Result<Option<u64>> {
        let field = FIELDS.at("L1 entry", 0);
        let offset = parse_l1_entry(entry, &self.header).map_err(|problem| field.fault(problem))?;
        offset.map_or(Ok(()), |offset| field.within(offset, self.cluster_size(), self.file_len))?;
        Ok(offset)
    }

    pub(super) fn read_l2(&self, offset: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.cluster_size() as usize];
        table::read(&*self.file, &mut bytes, offset)?;
        Ok(bytes)
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_be_bytes)
}
