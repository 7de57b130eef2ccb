//! The examination of an image's metadata: does every block lie in a place of its own in the file?

use std::ops::Range;
use std::sync::Arc;

use super::blocks::{Blocks, Entry};
use super::reader::{Content, Reader};
use super::{FIELDS, FORMAT_NAME};
use crate::driver::SparseRead;
use crate::driver::{CheckReport, OpenContext};
use crate::error::{Error, Fault, Problem, Result};
use crate::io::ReadAt;

/// What uses a part of the file.
struct Use {
    range: Range<u64>,
    /// Byte offset of the table's entry that leads there; nothing for other metadata.
    entry: Option<u64>,
}

/// Examines the metadata of an image.
///
/// # Errors
/// When the footers and the header are not those of an image which this crate reads, and when the file cannot be read.
pub(super) fn check(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
    let reader = Reader::open(file, cx)?;
    let mut report = CheckReport::default();
    for warning in &reader.info().warnings {
        report.message("Note", || warning.to_string());
    }
    if let Content::Blocks(blocks) = &reader.content {
        let uses = collect(blocks, cx, &mut report)?;
        compare(uses, blocks, &mut report);
    }
    Ok(report)
}

/// Collects where everything is. What is not in the file goes to the report.
fn collect(blocks: &Blocks, cx: &OpenContext<'_>, report: &mut CheckReport) -> Result<Vec<Use>> {
    report.total_clusters = blocks.count();
    let mut uses: Vec<_> = blocks.metadata.iter().map(|range| Use { range: range.clone(), entry: None }).collect();
    let mut next: Option<u64> = None;
    let mut index = 0;
    while index < blocks.count() {
        for Entry { index: number, at, block } in blocks.entries(index)? {
            index = number + 1;
            let Some(offset) = block else { continue };
            let len = blocks.bitmap_len + blocks.used_len(number);
            if let Err(error) = FIELDS.at("block allocation table entry", at).within(offset, len, blocks.file_len) {
                report.corruption(|| error.to_string());
                continue;
            }
            report.allocated_clusters += 1;
            // Aligning may leave a gap, which is smaller than a block.
            let follows = next.is_none_or(|next| (next..next + blocks.block_size).contains(&offset));
            report.fragmented_clusters += u64::from(!follows);
            next = Some(offset + len);
            if let Err(error) = cx.budget.take(size_of::<Use>() as u64, FORMAT_NAME, "blocks to be examined", at) {
                return not_examined(uses, &error, report);
            }
            uses.push(Use { range: offset..offset + len, entry: Some(at) });
        }
    }
    Ok(uses)
}

fn not_examined(uses: Vec<Use>, why: &Error, report: &mut CheckReport) -> Result<Vec<Use>> {
    report.check_errors += 1;
    report.message("Not examined", || why.to_string());
    Ok(uses)
}

/// Goes through the file from its beginning to its end.
fn compare(mut uses: Vec<Use>, blocks: &Blocks, report: &mut CheckReport) {
    uses.sort_by_key(|it| it.range.start);
    let whole_block = blocks.bitmap_len + blocks.block_size;
    let mut end = 0;
    let (mut last_entry, mut told) = (None, None);
    for Use { range, entry } in uses {
        let offset = range.start;
        if offset < end {
            // What is in the way of several is told once, as far as they follow each other.
            let at = entry.or(last_entry).unwrap_or(offset);
            if told.replace(at) != Some(at) {
                let with = if entry.and(last_entry).is_some() { "another block" } else { "other metadata" };
                report.corruption(|| {
                    let problem = Problem::Overlap { offset, with };
                    let field = "block allocation table entry".into();
                    Fault { format: FORMAT_NAME, field, at, problem }.to_string()
                });
            }
        } else {
            // Smaller gaps are what aligning leaves.
            let unused = (offset - end) / whole_block;
            if unused > 0 {
                report.leak(|| format!("room for {unused} blocks at file offset {end:#x} is used by nothing"));
                report.leaks += unused - 1;
            }
        }
        if range.end > end {
            (end, last_entry) = (range.end, entry);
        }
        if entry.is_some() {
            report.image_end_offset = report.image_end_offset.max(range.end);
        }
    }
}
