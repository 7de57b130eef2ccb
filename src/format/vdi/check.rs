//! The examination of the block map: has each block of the disk a block of the data area for itself, and does the header know
//! how many of those there are?

use std::sync::Arc;

use super::FIELDS;
use super::header::{BLOCKS_ALLOCATED_AT, Header};
use super::map::{BlockMap, Entry};
use crate::driver::{CheckReport, OpenContext};
use crate::error::{Error, Result};
use crate::format::shared::bits::BitSet;
use crate::io::ReadAt;

/// Examines the block map of an image.
///
/// # Errors
/// When the header is not that of an image which this crate reads, and when the file cannot be read.
pub(super) fn check(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
    let header = Header::read(&*file, cx.limits)?;
    let map = BlockMap::new(file, header)?;
    let mut report = CheckReport { total_clusters: map.header.blocks.into(), ..CheckReport::default() };
    report.image_end_offset = map.header.data_offset;
    match no_blocks(map.room(), cx) {
        Ok(used) => examine(&map, used, &mut report)?,
        Err(error @ Error::Limit { .. }) => {
            report.check_errors += 1;
            report.message("Not examined", || error.to_string());
        }
        Err(error) => return Err(error),
    }
    Ok(report)
}

fn examine(map: &BlockMap, mut used: BitSet, report: &mut CheckReport) -> Result<()> {
    let Header { blocks, blocks_allocated, .. } = map.header;
    // The number of the block before, and the largest one.
    let (mut previous, mut largest) = (None, None);
    let (mut counted, mut missing) = (0, false);
    let mut index = 0;
    while index < u64::from(blocks) {
        let piece = map.piece(index)?;
        for index in piece.indices.clone() {
            let Entry::Block(number) = piece.entry(index) else { continue };
            report.allocated_clusters += 1;
            let follows = previous.is_none_or(|previous| number.checked_sub(1) == Some(previous));
            report.fragmented_clusters += u64::from(!follows);
            (previous, largest) = (Some(number), largest.max(Some(number)));
            let place = map.place(number);
            if let Err(error) = map.check(index, place, map.visible(index)) {
                report.corruption(|| error.to_string());
                missing = true;
            } else if used.insert(number.into()) == Some(true) {
                report.corruption(|| {
                    format!("block {index} lies at file offset {place:#x}, where another one is already")
                });
            } else {
                counted += u32::from(number < blocks_allocated);
                let end = place.saturating_add(map.header.block_size.into());
                report.image_end_offset = report.image_end_offset.max(end);
            }
        }
        index = piece.indices.end;
    }
    let stated = format!("cBlocksAllocated at file offset {BLOCKS_ALLOCATED_AT:#x} is {blocks_allocated}");
    // That is where a writer puts the next one.
    if let Some(largest) = largest.filter(|largest| *largest >= blocks_allocated) {
        report.corruption(|| format!("{stated}, but block {largest} of the data area is in use"));
    }
    if blocks_allocated > blocks {
        report.corruption(|| format!("{stated}, but there are {blocks} blocks"));
    }
    let unused = blocks_allocated - counted;
    if unused > 0 && !missing {
        report.leaks += u64::from(unused);
        report.message("Leaked", || {
            format!("{unused} of {blocks_allocated} blocks of the data area are used by nothing")
        });
    }
    Ok(())
}

/// Room for the blocks of the data area that are in use, a bit for each.
fn no_blocks(blocks: u64, cx: &OpenContext<'_>) -> Result<BitSet> {
    // No entry has a larger number than fits in 32 bits.
    let blocks = blocks.min(1 << 32);
    let offset_field = FIELDS.at("offData", 344);
    cx.budget.take(blocks.div_ceil(8), offset_field.format, "the bits of blocks in use", offset_field.at)?;
    Ok(BitSet::new(blocks))
}

#[cfg(test)]
mod tests;
