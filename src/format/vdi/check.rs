//! Checks the block map: overlapping, missing and leaked blocks of the data area, and their count in the header.

use std::sync::Arc;

use super::FIELDS;
use super::header::{BLOCKS_ALLOCATED_AT, Header};
use super::map::{BlockMap, BlockMapEntry};
use crate::driver::{CheckKind, CheckReport, OpenContext};
use crate::error::{Error, Result};
use crate::format::shared::bits::BitSet;
use crate::format::shared::table;
use crate::io::ReadAt;

/// Checks the block map of an image.
///
/// # Errors
/// If the header is invalid or not supported, or the file cannot be read.
pub(super) fn check(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
    let header = Header::read(&*file, cx.limits)?;
    let file_len = table::length(&*file)?;
    let map = BlockMap::new(file, header, cx.budget)?;
    let mut report = CheckReport { total_clusters: map.header.blocks.into(), ..CheckReport::default() };
    report.image_end_offset = map.header.data_offset;
    match unused_blocks(map.capacity(), cx) {
        Ok(used) => {
            check_entries(&map, used, &mut report)?;
            report.unused_end = file_len.saturating_sub(report.image_end_offset);
        }
        Err(error @ Error::Limit { .. }) => report.limit(&error),
        Err(error) => return Err(error),
    }
    Ok(report)
}

fn check_entries(map: &BlockMap, mut used: BitSet, report: &mut CheckReport) -> Result<()> {
    let Header { blocks, blocks_allocated, .. } = map.header;
    // Indexes in the data area: of the preceding block, and the largest one.
    let (mut previous, mut largest) = (None, None);
    let (mut counted, mut missing) = (0, false);
    let mut index = 0;
    while index < u64::from(blocks) {
        let page = map.page(index)?;
        for index in page.indexes.clone() {
            let BlockMapEntry::Block(number) = BlockMapEntry::from_page(&page, index) else { continue };
            report.allocated_clusters += 1;
            let follows = previous.is_none_or(|previous| number.checked_sub(1) == Some(previous));
            report.fragmented_clusters += u64::from(!follows);
            (previous, largest) = (Some(number), largest.max(Some(number)));
            let host_offset = map.host_offset(number);
            if let Err(error) = map.check(index, host_offset, map.visible_len(index)) {
                report.corrupt(|| error);
                missing = true;
            } else if used.insert(number.into()) == Some(true) {
                report.corruption(|| format!("block {index} at file offset {host_offset:#x} overlaps another block"));
            } else {
                counted += u32::from(number < blocks_allocated);
                let end = host_offset.saturating_add(map.header.block_size.into());
                report.image_end_offset = report.image_end_offset.max(end);
            }
        }
        index = page.indexes.end;
    }
    let stated = format!("cBlocksAllocated at file offset {BLOCKS_ALLOCATED_AT:#x} is {blocks_allocated}");
    // A writer allocates the next block at this index.
    if let Some(largest) = largest.filter(|largest| *largest >= blocks_allocated) {
        report.corruption(|| format!("{stated}, but block {largest} of the data area is in use"));
    }
    if blocks_allocated > blocks {
        report.corruption(|| format!("{stated}, but the disk has {blocks} blocks"));
    }
    let unused = blocks_allocated - counted;
    if unused > 0 && !missing {
        report.leaks += u64::from(unused);
        report.message(CheckKind::Leak, || {
            format!("{unused} of {blocks_allocated} blocks of the data area are not referenced")
        });
    }
    Ok(())
}

/// An empty set of the blocks of the data area in use.
fn unused_blocks(blocks: u64, cx: &OpenContext<'_>) -> Result<BitSet> {
    // An index has 32 bits.
    let blocks = blocks.min(1 << 32);
    let offset_field = FIELDS.at("offData", 344);
    cx.budget.take(blocks.div_ceil(8), offset_field.format, "the bitmap of blocks in use", offset_field.at)?;
    Ok(BitSet::new(blocks))
}

#[cfg(test)]
mod tests;
