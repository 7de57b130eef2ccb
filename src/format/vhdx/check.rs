//! The examination of the block allocation table: has each block a place of its own in the file, and is each place used?
//!
//! Everything in a file lies in whole MiB, so that a bit for each of them tells what is taken.

use std::iter;
use std::ops::Range;
use std::sync::Arc;

use super::bat::{Bat, Payload};
use super::structure::Structure;
use super::{FIELDS, MIB};
use crate::driver::{CheckReport, OpenContext};
use crate::error::{Error, Problem, Result};
use crate::format::shared::bits::BitSet;
use crate::format::shared::table::Field;
use crate::io::ReadAt;

/// Examines an image. The parent of a differencing one is not needed.
///
/// # Errors
/// When the headers, the log, the region tables or the metadata are not those of an image which this crate reads, and when the file
/// cannot be read.
pub(super) fn check(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
    examine(&Structure::read(file, cx)?, cx)
}

fn examine(structure: &Structure, cx: &OpenContext<'_>) -> Result<CheckReport> {
    let bat = Bat::new(structure)?;
    let mut report = CheckReport { total_clusters: bat.blocks, ..CheckReport::default() };
    // A writer that was killed leaves a header and the log like that, but no region table: it writes those through the log.
    for note in structure.notes() {
        report.message("Note", || note);
    }
    if let Some(warning) = &structure.table_warning {
        report.corruption(|| warning.clone());
    }
    match Places::new(structure, cx) {
        Ok(places) => {
            let mut examination =
                Examination { bat: &bat, places, report: &mut report, next: None, first_block: u64::MAX };
            examination.blocks()?;
            // A fixed file keeps room for every block, whatever the states of the blocks are (2.6.2.1); qemu writes zero
            // blocks like that, which name no place.
            if !structure.metadata.leave_block_allocated {
                examination.gaps();
            }
        }
        Err(error @ Error::Limit { .. }) => {
            report.check_errors += 1;
            report.message("Not examined", || error.to_string());
        }
        Err(error) => return Err(error),
    }
    Ok(report)
}

struct Examination<'a> {
    bat: &'a Bat,
    places: Places,
    report: &'a mut CheckReport,
    /// Where the block would be that follows the one before it.
    next: Option<u64>,
    /// Of those in the file.
    first_block: u64,
}

impl Examination<'_> {
    fn blocks(&mut self) -> Result<()> {
        for chunk in 0..self.bat.chunks() {
            let partial = self.payload_blocks(chunk)?;
            self.sector_bitmap(chunk, partial)?;
        }
        Ok(())
    }

    /// Examines the payload blocks of a chunk, and tells whether one is partially present.
    fn payload_blocks(&mut self, chunk: u64) -> Result<bool> {
        let ratio = self.bat.chunk_ratio;
        let mut partial = false;
        let mut block = chunk * ratio;
        while block < ((chunk + 1) * ratio).min(self.bat.blocks) {
            let piece = self.bat.piece(block)?;
            for block in piece.blocks.clone() {
                match piece.payload(block) {
                    Ok(Payload::NotPresent | Payload::Zero) => {}
                    // The entry keeps the place for the block, which has no right to it any more.
                    Ok(Payload::Unmapped(place)) => self.places.keep(place, self.bat.block_size),
                    Ok(payload @ (Payload::FullyPresent(place) | Payload::PartiallyPresent(place))) => {
                        partial |= matches!(payload, Payload::PartiallyPresent(_));
                        self.report.allocated_clusters += 1;
                        let follows = self.next.is_none_or(|next| next == place);
                        self.report.fragmented_clusters += u64::from(!follows);
                        self.next = Some(place + self.bat.block_size);
                        self.take(place, self.bat.block_size, piece.field(block));
                    }
                    Err(error) => self.report.corruption(|| error.to_string()),
                }
            }
            block = piece.blocks.end;
        }
        Ok(partial)
    }

    /// Examines the sector bitmap block of a chunk, which is needed if one of the payload blocks is partially present.
    fn sector_bitmap(&mut self, chunk: u64, needed: bool) -> Result<()> {
        if chunk + 1 == self.bat.chunks() && !self.bat.differencing {
            // It has no entry.
            return Ok(());
        }
        match self.bat.sector_bitmap(chunk) {
            Ok((None, field)) if needed => self.report.corruption(|| Bat::missing_bitmap(field).to_string()),
            Ok((None, _)) => {}
            Ok((Some(place), field)) => {
                self.take(place, MIB, field);
                if !needed {
                    self.report.leak(|| {
                        format!(
                            "the sector bitmap block of chunk {chunk} at file offset {place:#x} is needed by no block"
                        )
                    });
                }
            }
            Err(error @ Error::Corrupt(_)) => self.report.corruption(|| error.to_string()),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Notes a block.
    fn take(&mut self, place: u64, len: u64, field: Field) {
        let end = place.saturating_add(len).min(self.places.file_len);
        self.first_block = self.first_block.min(place);
        self.report.image_end_offset = self.report.image_end_offset.max(end);
        if let Some(offset) = self.places.take(&(place..end)) {
            let places = &self.places;
            self.report.corruption(|| {
                let with = places.what_is_at(offset);
                field.fault(Problem::Overlap { offset, with }).to_string()
            });
        }
    }

    /// Looks for space that nothing uses.
    fn gaps(self) {
        let first_block = self.first_block;
        for gap in self.places.gaps() {
            // Writers leave room before the first block, for tables to grow: qemu, up to 4 MiB.
            let room = if gap.end <= first_block { Places::ROOM_FOR_TABLES } else { 0 };
            // What has no room for a block cannot have been one.
            let blocks = (gap.end - gap.start).saturating_sub(room) / self.bat.block_size;
            if blocks > 0 {
                let Range { start, .. } = gap;
                self.report.leak(|| format!("room for {blocks} blocks at file offset {start:#x} is used by nothing"));
                self.report.leaks += blocks - 1;
            }
        }
    }
}

/// What is taken of a file, and by what.
struct Places {
    file_len: u64,
    /// Where everything but the blocks is.
    known: Vec<(Range<u64>, &'static str)>,
    /// The MiB that are in use.
    taken: BitSet,
    /// Those that entries keep, though they are not in use.
    kept: BitSet,
}

impl Places {
    const ROOM_FOR_TABLES: u64 = 4 * MIB;

    /// The places of a file, of which all is taken but the blocks.
    ///
    /// # Errors
    /// When the file is so long that the bits need more memory than there is.
    fn new(structure: &Structure, cx: &OpenContext<'_>) -> Result<Places> {
        let file_len = structure.file_len;
        let bound = file_len.div_ceil(MIB);
        let Field { format, at, .. } = FIELDS.at("file", 0);
        cx.budget.take(2 * bound.div_ceil(8), format, "the bits of what is taken of the file", at)?;
        let known: Vec<_> = structure.ranges().collect();
        let mut places = Places { file_len, known: Vec::new(), taken: BitSet::new(bound), kept: BitSet::new(bound) };
        for (range, _) in &known {
            places.take(range);
        }
        Ok(Places { known, ..places })
    }

    /// Takes a range, and tells which byte of it begins what was taken before.
    fn take(&mut self, range: &Range<u64>) -> Option<u64> {
        let mut first = None;
        for mib in range.start / MIB..range.end.div_ceil(MIB) {
            if self.taken.insert(mib) == Some(true) {
                first = first.or(Some(mib * MIB));
            }
        }
        first
    }

    /// Notes that the `len` bytes at `place` are kept, as far as they are in the file.
    fn keep(&mut self, place: u64, len: u64) {
        for mib in place / MIB..place.saturating_add(len).min(self.file_len).div_ceil(MIB) {
            self.kept.insert(mib);
        }
    }

    fn what_is_at(&self, offset: u64) -> &'static str {
        self.known.iter().find(|(range, _)| range.contains(&offset)).map_or("another block", |(_, what)| what)
    }

    /// What is neither taken nor kept, in whole MiB.
    fn gaps(self) -> impl Iterator<Item = Range<u64>> {
        let Places { file_len, taken: mut used, kept, .. } = self;
        used.union_with(&kept);
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
