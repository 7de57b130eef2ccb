//! Refcounts of another width.

use std::ops::Range;

use super::replace::Replacement;
use super::{FORMAT_NAME, Update};
use crate::error::{Error, Result};
use crate::format::qcow2::refcount::{count_at, max_count, set_count};

impl Update {
    /// Replaces the refcounts by those of `1 << order` bits, all at once.
    pub(super) fn set_refcount_width(&mut self, order: u32) -> Result<()> {
        self.replace_with_width(order, |image| {
            let header = &image.header;
            Ok(Replacement {
                size: header.size,
                l1_table_offset: header.l1_table_offset,
                l1_size: header.l1_size,
                snapshot_count: header.nb_snapshots,
                snapshots_offset: header.snapshots_offset,
            })
        })
    }

    /// Calls `each` with the clusters that refcount block number `index` counts as used, and their refcounts.
    pub(super) fn each_count(&mut self, index: u64, each: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
        let Some(block) = self.block(index)? else { return Ok(()) };
        let mut bytes = vec![0; self.cluster_size() as usize];
        self.pages.read(&mut bytes, block)?;
        let per_block = self.counts_per_block();
        for at in 0..per_block {
            let count = count_at(&bytes, self.refcounts.order, at as usize).unwrap_or(0);
            if count > 0 {
                each(index * per_block + at, count)?;
            }
        }
        Ok(())
    }

    /// Fills a refcount block for these clusters, whose refcounts have `1 << order` bits.
    pub(super) fn read_counts(&mut self, clusters: Range<u64>, order: u32, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        let (per_block, cluster_bits) = (self.counts_per_block(), self.header.cluster_bits);
        for index in clusters.start / per_block..clusters.end.div_ceil(per_block) {
            self.each_count(index, &mut |cluster, count| {
                if count > max_count(order) {
                    let (bits, offset) = (1 << order, cluster << cluster_bits);
                    let feature = format!("refcounts of {bits} bits: the cluster at {offset:#x} is used {count} times");
                    return Err(Error::unsupported(FORMAT_NAME, feature));
                }
                if clusters.contains(&cluster) {
                    set_count(bytes, order, (cluster - clusters.start) as usize, count);
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}
