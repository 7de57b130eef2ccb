//! Reads the refcounts in the image (qcow2 specification, "Host cluster management").

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

/// Largest read of a refcount block, in bytes.
const CHUNK: u64 = 64 << 10;

/// The refcount table, with 0 for missing and invalid blocks.
pub(super) struct Refcounts {
    file: Arc<dyn ReadAt>,
    table: Vec<u64>,
    order: u32,
    /// Refcounts per block.
    per_block: u64,
}

impl Refcounts {
    /// Reads the refcount table. Invalid entries are added to `findings` and dropped.
    pub fn read(
        file: &Arc<dyn ReadAt>,
        file_len: u64,
        header: &Header,
        budget: &Budget,
        findings: &mut Findings,
    ) -> Result<Refcounts> {
        let offset = header.refcount_table_offset;
        let len = u64::from(header.refcount_table_clusters) << header.cluster_bits;
        let entries = len.min(file_len.saturating_sub(offset)) / 8;
        let field = FIELDS.at("refcount table", 48);
        let mut table = match entries {
            0 => Vec::new(),
            _ => table::read_table_u64_be(&**file, offset, entries, field, budget)?,
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
        Ok(Refcounts {
            file: file.clone(),
            table,
            order: header.refcount_order,
            per_block: header.refcount_block_entries(),
        })
    }

    /// Host offsets of the refcount blocks.
    pub fn blocks(&self) -> impl Iterator<Item = u64> {
        self.table.iter().copied().filter(|block| *block != 0)
    }

    /// First cluster from `cluster` on that a refcount block covers.
    pub fn next_covered(&self, cluster: u64) -> Option<u64> {
        let first = usize::try_from(cluster / self.per_block).ok()?;
        let skipped = self.table.get(first..)?.iter().position(|block| *block != 0)?;
        Some(((first + skipped) as u64).saturating_mul(self.per_block).max(cluster))
    }

    /// Calls `visit` with each of `clusters` and its refcount.
    pub fn for_each(&self, clusters: Range<u64>, work: &mut Work, mut visit: impl FnMut(u64, u64)) -> Result<()> {
        // A power of two, so that no step crosses the end of a block.
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
    // In the specification, an offset here has all bits from 9 to 63, others only those to 55.
    if entry > OFFSET_MASK || entry != 0 && entry.saturating_add(cluster_size) > file_len {
        return Err(Problem::OutOfBounds { offset: entry, len: cluster_size, file_len });
    }
    Ok(())
}
