//! Checks the block allocation table: overlapping, missing and leaked blocks.
//!
//! All structures are aligned to 1 MiB, so allocations are tracked with one bit per MiB.

use std::iter;
use std::ops::Range;
use std::sync::Arc;

use super::bat::{Bat, BlockState};
use super::structure::Structure;
use super::{FIELDS, MIB};
use crate::driver::{CheckKind, CheckReport, OpenContext};
use crate::error::{Error, Problem, Result};
use crate::format::shared::bits::BitSet;
use crate::format::shared::table::Field;
use crate::io::ReadAt;

/// Checks an image. The parent of a differencing image is not opened.
///
/// # Errors
/// If the headers, the log, the region tables or the metadata are invalid or not supported, or the file cannot be read.
pub(super) fn check(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
    check_structure(&Structure::read(file, cx)?, cx)
}

fn check_structure(structure: &Structure, cx: &OpenContext<'_>) -> Result<CheckReport> {
    let bat = Bat::new(structure, cx.budget)?;
    let mut report = CheckReport { total_clusters: bat.block_count, ..CheckReport::default() };
    // A killed writer can leave a damaged header and a log to replay, but no damaged region table: those are written through the
    // log.
    for note in structure.notes() {
        report.message(CheckKind::Note, || note);
    }
    if let Some(warning) = &structure.table_warning {
        report.corruption(|| warning.clone());
    }
    match Allocations::new(structure, cx) {
        Ok(allocations) => {
            let mut checker =
                Checker { bat: &bat, allocations, report: &mut report, next: None, first_block: u64::MAX };
            checker.blocks()?;
            // A fixed image has space for every block, whatever the states of the blocks are (2.6.2.1). qemu writes zero blocks
            // without a host offset there.
            if !structure.metadata.leave_block_allocated {
                checker.gaps();
            }
            // A file is a multiple of 1 MiB long (2.2).
            let end = structure.ranges().map(|(range, _)| range.end).fold(report.image_end_offset, u64::max);
            report.unused_end = structure.file_len.saturating_sub(end.next_multiple_of(MIB));
        }
        Err(error @ Error::Limit { .. }) => report.limit(&error),
        Err(error) => return Err(error),
    }
    Ok(report)
}

struct Checker<'a> {
    bat: &'a Bat,
    allocations: Allocations,
    report: &'a mut CheckReport,
    /// Host offset after the preceding block.
    next: Option<u64>,
    /// The lowest host offset of a block.
    first_block: u64,
}

impl Checker<'_> {
    fn blocks(&mut self) -> Result<()> {
        for chunk in 0..self.bat.chunk_count() {
            let partial = self.payload_blocks(chunk)?;
            self.sector_bitmap(chunk, partial)?;
        }
        Ok(())
    }

    /// Checks the payload blocks of a chunk. Returns whether one is partially present.
    fn payload_blocks(&mut self, chunk: u64) -> Result<bool> {
        let ratio = self.bat.chunk_ratio;
        let mut partial = false;
        let mut block = chunk * ratio;
        while block < ((chunk + 1) * ratio).min(self.bat.block_count) {
            let page = self.bat.page(block)?;
            for block in page.entries.indexes.clone() {
                match page.block_state(block) {
                    Ok(BlockState::NotPresent | BlockState::Zero) => {}
                    // The space is neither leaked nor in use: another block may overlap it.
                    Ok(BlockState::Unmapped(host_offset)) => self.allocations.reserve(host_offset, self.bat.block_size),
                    Ok(state @ (BlockState::FullyPresent(host_offset) | BlockState::PartiallyPresent(host_offset))) => {
                        partial |= matches!(state, BlockState::PartiallyPresent(_));
                        self.report.allocated_clusters += 1;
                        let follows = self.next.is_none_or(|next| next == host_offset);
                        self.report.fragmented_clusters += u64::from(!follows);
                        self.next = Some(host_offset + self.bat.block_size);
                        self.allocate(host_offset, self.bat.block_size, page.field(block));
                    }
                    Err(error) => self.report.corrupt(|| error),
                }
            }
            block = page.entries.indexes.end;
        }
        Ok(partial)
    }

    /// Checks the sector bitmap block of a chunk. It is needed if a payload block of the chunk is partially present.
    fn sector_bitmap(&mut self, chunk: u64, needed: bool) -> Result<()> {
        if chunk + 1 == self.bat.chunk_count() && !self.bat.differencing {
            // The table ends before its entry.
            return Ok(());
        }
        match self.bat.sector_bitmap(chunk) {
            Ok((None, field)) if needed => self.report.corrupt(|| Bat::missing_bitmap(field)),
            Ok((None, _)) => {}
            Ok((Some(host_offset), field)) => {
                self.allocate(host_offset, MIB, field);
                if !needed {
                    self.report.leak(|| {
                        format!(
                            "the sector bitmap block of chunk {chunk} at file offset {host_offset:#x} is not needed"
                        )
                    });
                }
            }
            Err(error @ Error::Corrupt(_)) => self.report.corrupt(|| error),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Records a block, and reports an overlap.
    fn allocate(&mut self, host_offset: u64, len: u64, field: Field) {
        let end = host_offset.saturating_add(len).min(self.allocations.file_len);
        self.first_block = self.first_block.min(host_offset);
        self.report.image_end_offset = self.report.image_end_offset.max(end);
        if let Some(offset) = self.allocations.allocate(&(host_offset..end)) {
            let allocations = &self.allocations;
            self.report.corruption(|| {
                let with = allocations.content_at(offset);
                field.fault(Problem::Overlap { offset, with }).to_string()
            });
        }
    }

    /// Reports unused space as leaked blocks.
    fn gaps(self) {
        let first_block = self.first_block;
        for gap in self.allocations.gaps() {
            // Writers leave space for tables to grow before the first block: qemu up to 4 MiB.
            let reserve = if gap.end <= first_block { Allocations::TABLE_RESERVE } else { 0 };
            // A gap smaller than a block is not a leaked block.
            let blocks = (gap.end - gap.start).saturating_sub(reserve) / self.bat.block_size;
            if blocks > 0 {
                let Range { start, .. } = gap;
                self.report.leak(|| format!("space for {blocks} blocks at file offset {start:#x} is not referenced"));
                self.report.leaks += blocks - 1;
            }
        }
    }
}

/// The allocated host ranges of a file.
struct Allocations {
    file_len: u64,
    /// Host ranges outside the blocks, and their content.
    metadata: Vec<(Range<u64>, &'static str)>,
    /// Indexes of the MiB in use.
    used: BitSet,
    /// Indexes of the MiB that unmapped blocks reserve.
    reserved: BitSet,
}

impl Allocations {
    /// Unused bytes before the first block that are not leaked.
    const TABLE_RESERVE: u64 = 4 * MIB;

    /// The allocations outside the blocks.
    ///
    /// # Errors
    /// If the file is so long that the bitmaps exceed the budget.
    fn new(structure: &Structure, cx: &OpenContext<'_>) -> Result<Allocations> {
        let file_len = structure.file_len;
        let bound = file_len.div_ceil(MIB);
        let Field { format, at, .. } = FIELDS.at("file", 0);
        cx.budget.take(2 * bound.div_ceil(8), format, "the allocation bitmap", at)?;
        let metadata: Vec<_> = structure.ranges().collect();
        let (used, reserved) = (BitSet::new(bound), BitSet::new(bound));
        let mut allocations = Allocations { file_len, metadata: Vec::new(), used, reserved };
        for (range, _) in &metadata {
            allocations.allocate(range);
        }
        Ok(Allocations { metadata, ..allocations })
    }

    /// Allocates a range. Returns the host offset of the first MiB that was in use already.
    fn allocate(&mut self, range: &Range<u64>) -> Option<u64> {
        let mut first = None;
        for mib in range.start / MIB..range.end.div_ceil(MIB) {
            if self.used.insert(mib) == Some(true) {
                first = first.or(Some(mib * MIB));
            }
        }
        first
    }

    /// Reserves the `len` bytes at `host_offset`, up to the end of the file.
    fn reserve(&mut self, host_offset: u64, len: u64) {
        for mib in host_offset / MIB..host_offset.saturating_add(len).min(self.file_len).div_ceil(MIB) {
            self.reserved.insert(mib);
        }
    }

    /// The content at a host offset in use.
    fn content_at(&self, offset: u64) -> &'static str {
        self.metadata.iter().find(|(range, _)| range.contains(&offset)).map_or("another block", |(_, content)| content)
    }

    /// Ranges of whole MiB that are neither in use nor reserved.
    fn gaps(self) -> impl Iterator<Item = Range<u64>> {
        let Allocations { file_len, mut used, reserved, .. } = self;
        used.union_with(&reserved);
        let mut at = 0;
        iter::from_fn(move || {
            while at < file_len / MIB {
                let start = at;
                let (is_used, next) = used.run(start, file_len / MIB);
                at = next;
                if !is_used {
                    return Some(start * MIB..next * MIB);
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests;
