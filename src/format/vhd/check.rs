//! Checks the block allocation table: overlapping, missing and leaked blocks; and the sector bitmaps.

use std::ops::Range;
use std::sync::Arc;

use super::blocks::{BatEntry, Blocks};
use super::reader::{Content, Reader};
use super::{FIELDS, FORMAT_NAME};
use crate::driver::{CheckKind, CheckReport, OpenContext, SparseRead};
use crate::error::{Fault, Problem, Result};
use crate::io::ReadAt;

/// A host range in use.
struct Use {
    range: Range<u64>,
    /// Host offset of the table entry that points to it; `None` for other metadata.
    entry: Option<u64>,
}

/// Checks the metadata of an image.
///
/// # Errors
/// If the footer or the header is invalid or not supported, or the file cannot be read.
pub(super) fn check(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
    let reader = Reader::open(file, cx)?;
    let mut report = CheckReport::default();
    for warning in reader.info().warnings.iter().chain(&reader.info().ambiguities) {
        report.message(CheckKind::Note, || warning.to_string());
    }
    if let Content::Blocks(blocks) = &reader.content {
        let mut uses = collect(blocks, cx, &mut report)?;
        uses.sort_by_key(|it| it.range.start);
        // The file is read once at most, and before its leaks are told, however many there are.
        let is_sound = report.corruptions == 0 && report.check_errors == 0 && !overlap(&uses);
        if is_sound && !blocks.differencing {
            look_for_hidden_data(&uses, blocks, &mut report)?;
        }
        compare(uses, blocks, &mut report);
    }
    Ok(report)
}

/// Collects all host ranges in use. Ranges out of bounds are reported as corruption.
fn collect(blocks: &Blocks, cx: &OpenContext<'_>, report: &mut CheckReport) -> Result<Vec<Use>> {
    report.total_clusters = blocks.count();
    let mut uses: Vec<_> = blocks.metadata.iter().map(|range| Use { range: range.clone(), entry: None }).collect();
    let mut next: Option<u64> = None;
    let mut index = 0;
    while index < blocks.count() {
        let (entries, next_page) = blocks.allocated(index)?;
        index = next_page;
        for (BatEntry { index: number, at, .. }, offset) in entries {
            let len = blocks.bitmap_len + blocks.used_len(number);
            if let Err(error) = FIELDS.at("block allocation table entry", at).within(offset, len, blocks.file_len) {
                report.corrupt(|| error);
                continue;
            }
            report.allocated_clusters += 1;
            // Alignment may leave a gap, which is smaller than a block.
            let follows = next.is_none_or(|next| (next..next + blocks.block_size).contains(&offset));
            report.fragmented_clusters += u64::from(!follows);
            next = Some(offset + len);
            if let Err(error) = cx.budget.take(size_of::<Use>() as u64, FORMAT_NAME, "blocks to check", at) {
                report.limit(&error);
                return Ok(uses);
            }
            uses.push(Use { range: offset..offset + len, entry: Some(at) });
        }
    }
    Ok(uses)
}

/// Whether some of the ranges, which are in the order of the file, overlap.
fn overlap(uses: &[Use]) -> bool {
    uses.iter().zip(uses.iter().skip(1)).any(|(before, after)| before.range.end > after.range.start)
}

/// Reports data in sectors that the bitmaps mark as not written. They read as zeros; QEMU, which ignores the bitmaps, finds the data.
fn look_for_hidden_data(uses: &[Use], blocks: &Blocks, report: &mut CheckReport) -> Result<()> {
    let (mut count, mut first, mut buf) = (0, None, Vec::new());
    for Use { range, .. } in uses.iter().filter(|it| it.entry.is_some()) {
        if let Some(at) = blocks.hidden_data(range, &mut buf)? {
            first = first.or(Some(at));
            count += 1;
        }
    }
    if let Some(first) = first {
        let allocated = report.allocated_clusters;
        report.message(CheckKind::Warning, || {
            format!(
                "sectors that are not set in the sector bitmaps, and so read as zeros, have data that QEMU reads: in {count} of {allocated} blocks, the \
                 first at file offset {first:#x}"
            )
        });
    }
    Ok(())
}

/// Reports overlaps and gaps of the ranges in use, which are in the order of the file.
fn compare(uses: Vec<Use>, blocks: &Blocks, report: &mut CheckReport) {
    let whole_block = blocks.bitmap_len + blocks.block_size;
    // The last block has space beyond the end of the disk.
    let (mut end, mut end_of_space) = (0, 0);
    let (mut last_entry, mut reported) = (None, None);
    for Use { range, entry } in uses {
        let offset = range.start;
        if offset < end {
            // One range that overlaps several consecutive ones is reported once.
            let at = entry.or(last_entry).unwrap_or(offset);
            if reported.replace(at) != Some(at) {
                let with = if entry.and(last_entry).is_some() { "another block" } else { "other metadata" };
                report.corruption(|| {
                    let problem = Problem::Overlap { offset, with };
                    let field = "block allocation table entry".into();
                    Fault { format: FORMAT_NAME, field, at, problem }.to_string()
                });
            }
        } else {
            // Smaller gaps come from alignment.
            let unused = offset.saturating_sub(end_of_space) / whole_block;
            if unused > 0 {
                report.leak(|| format!("space for {unused} blocks at file offset {end:#x} is not referenced"));
                report.leaks += unused - 1;
            }
        }
        if range.end > end {
            (end, last_entry) = (range.end, entry);
        }
        end_of_space = end_of_space.max(if entry.is_some() { offset + whole_block } else { range.end });
        if entry.is_some() {
            report.image_end_offset = report.image_end_offset.max(range.end);
        }
    }
}
