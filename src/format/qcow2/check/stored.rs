//! The reference counts that the image states (qcow2 specification, "Host cluster management").

use std::ops::Range;
use std::sync::Arc;

use super::{Findings, Work};
use crate::error::{Problem, Result};
use crate::format::qcow2::entry::OFFSET_MASK;
use crate::format::qcow2::header::Header;
use crate::format::qcow2::{FIELDS, refcount};
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::limits::Budget;

/// Bytes of refcount blocks that are read at once.
const CHUNK: u64 = 64 << 10;

/// The refcount table, with 0 for the blocks that are missing or unusable.
pub(super) struct Stored {
    file: Arc<dyn ReadAt>,
    table: Vec<u64>,
    order: u32,
    /// Counts in a block.
    per_block: u64,
}

impl Stored {
    /// Reads the refcount table. What is wrong with it goes to `findings`; what is left is usable.
    pub fn read(
        file: &Arc<dyn ReadAt>,
        file_len: u64,
        header: &Header,
        budget: &Budget,
        findings: &mut Findings,
    ) -> Result<Stored> {
        let offset = header.refcount_table_offset;
        let len = u64::from(header.refcount_table_clusters) << header.cluster_bits;
        let there = len.min(file_len.saturating_sub(offset)) / 8;
        let name = FIELDS.at("refcount table", 48);
        let mut table = match there {
            0 => Vec::new(),
            entries => table::read_table_u64_be(&**file, offset, entries, name, budget)?,
        };
        for (at, entry) in (offset..).step_by(8).zip(&mut table) {
            if let Err(problem) = check_entry(*entry, file_len, header) {
                findings.fault("refcount table entry", at, problem);
                *entry = 0;
            }
        }
        let mut sorted = table.clone();
        sorted.sort_unstable();
        let shared: Vec<u64> =
            sorted.windows(2).filter(|pair| pair[0] == pair[1] && pair[0] != 0).map(|pair| pair[0]).collect();
        for (at, entry) in (offset..).step_by(8).zip(&mut table) {
            if shared.binary_search(entry).is_ok() {
                findings.fault(
                    "refcount table entry",
                    at,
                    Problem::Overlap { offset: *entry, with: "another refcount block" },
                );
                *entry = 0;
            }
        }
        Ok(Stored {
            file: file.clone(),
            table,
            order: header.refcount_order,
            per_block: header.refcount_block_entries(),
        })
    }

    /// Offsets of the refcount blocks.
    pub fn blocks(&self) -> impl Iterator<Item = u64> {
        self.table.iter().copied().filter(|block| *block != 0)
    }

    /// The first cluster, from `cluster` on, for which there is a refcount block.
    pub fn next_counted(&self, cluster: u64) -> Option<u64> {
        let first = usize::try_from(cluster / self.per_block).ok()?;
        let skipped = self.table.get(first..)?.iter().position(|block| *block != 0)?;
        Some(((first + skipped) as u64).saturating_mul(self.per_block).max(cluster))
    }

    /// Calls `visit` with each of the `clusters` and its count.
    pub fn for_each(&self, clusters: Range<u64>, work: &mut Work, mut visit: impl FnMut(u64, u64)) -> Result<()> {
        // A power of two, so that a step never crosses the end of a block.
        let step = self.per_block.min((CHUNK * 8) >> self.order);
        let mut bytes = vec![0; CHUNK as usize];
        let mut at = clusters.start;
        while at < clusters.end {
            let begin = at / step * step;
            let end = clusters.end.min(begin.saturating_add(step));
            work.spend(end - at)?;
            let block = usize::try_from(at / self.per_block).ok().and_then(|index| self.table.get(index));
            match block {
                None | Some(0) => (at..end).for_each(|cluster| visit(cluster, 0)),
                Some(block) => {
                    let position = ((begin % self.per_block) << self.order) / 8;
                    let len = (((end - begin) << self.order).div_ceil(8) as usize).min(bytes.len());
                    table::read(&*self.file, &mut bytes[..len], block + position)?;
                    for cluster in at..end {
                        let index = (cluster - begin) as usize;
                        visit(cluster, refcount::count_at(&bytes, self.order, index).unwrap_or(0));
                    }
                }
            }
            at = end;
        }
        Ok(())
    }
}

fn check_entry(entry: u64, file_len: u64, header: &Header) -> Result<(), Problem> {
    let cluster_size = header.cluster_size();
    let bits = entry & 511;
    if bits != 0 {
        return Err(Problem::Reserved { value: entry, bits });
    }
    if !entry.is_multiple_of(cluster_size) {
        return Err(Problem::Misaligned { value: entry, alignment: cluster_size });
    }
    // The specification lets an offset here have all the bits that others have not.
    if entry > OFFSET_MASK || entry != 0 && entry.saturating_add(cluster_size) > file_len {
        return Err(Problem::OutOfBounds { offset: entry, len: cluster_size, file_len });
    }
    Ok(())
}
