//! Checks the BAT: overlapping, missing, misaligned and leaked clusters of the data area.

use std::sync::Arc;

use super::bat::Bat;
use super::header::Header;
use super::{FIELDS, FORMAT_NAME};
use crate::driver::{CheckKind, CheckReport, OpenContext};
use crate::error::{Error, Result};
use crate::format::shared::bits::BitSet;
use crate::format::shared::table;
use crate::io::ReadAt;

/// Checks the BAT of an image.
///
/// # Errors
/// If the header is invalid or not supported, or the file cannot be read.
pub(super) fn check(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
    let mut header = Header::read(&*file, cx.limits)?;
    let mut report = CheckReport { total_clusters: header.clusters(), ..CheckReport::default() };
    if !header.has_data_area(table::length(&*file)?) {
        report.corruption(|| format!("the data area at {:#x} is not in the file after the BAT", header.data_offset()));
        header.data_sector = 0;
    }
    let bat = Bat::new(file, header, cx.budget)?;
    report.image_end_offset = bat.header.data_offset();
    if bat.header.is_open() {
        report.message(CheckKind::Note, || "the image is open for writing, or was not closed".into());
    }
    let area = bat.file_len.saturating_sub(bat.header.data_offset()).div_ceil(bat.header.cluster_size());
    match cx.budget.take(area.div_ceil(8), FORMAT_NAME, "the bitmap of clusters in use", 48) {
        Ok(()) => check_entries(&bat, BitSet::new(area), area, &mut report)?,
        Err(error) => report.limit(&error),
    }
    Ok(report)
}

/// Checks all entries; `used` has the clusters of the data area, of which there are `area`.
fn check_entries(bat: &Bat, mut used: BitSet, area: u64, report: &mut CheckReport) -> Result<()> {
    let (data_offset, cluster_size) = (bat.header.data_offset(), bat.header.cluster_size());
    let mut previous: Option<u64> = None;
    let mut index = 0;
    while index < bat.header.clusters() {
        let page = bat.page(index)?;
        for index in page.indexes.clone() {
            let host = match bat.host_offset(&page, index) {
                Ok(None) => continue,
                Ok(Some(host)) => host,
                Err(error @ Error::Corrupt(_)) => {
                    report.allocated_clusters += 1;
                    report.corrupt(|| error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            report.allocated_clusters += 1;
            let follows = previous.is_none_or(|previous| host.checked_sub(cluster_size) == Some(previous));
            report.fragmented_clusters += u64::from(!follows);
            previous = Some(host);
            report.image_end_offset = report.image_end_offset.max(host.saturating_add(cluster_size));
            let at = FIELDS.at("BAT entry", page.host_offset(index));
            match host.checked_sub(data_offset) {
                None => report.corruption(|| format!("{} at {:#x} points before the data area", at.name, at.at)),
                // "The result of (cluster offset - data offset) must be aligned to cluster size."
                Some(within) if within % cluster_size != 0 => {
                    report.corruption(|| format!("{} at {:#x} is misaligned: {host:#x}", at.name, at.at));
                }
                Some(within) => {
                    if used.insert(within / cluster_size) == Some(true) {
                        report.corruption(|| {
                            format!("cluster {index} at host offset {host:#x} overlaps another cluster")
                        });
                    }
                }
            }
        }
        index = page.indexes.end;
    }
    // The clusters of a format extension and of its bitmaps are in use, too. Where something is damaged, freeing a cluster could lose
    // data.
    if bat.header.extension_sector == 0 && report.corruptions == 0 {
        let (mut in_use, mut end) = (0, 0);
        for number in (0..area).filter(|number| used.contains(*number)) {
            (in_use, end) = (in_use + 1, number + 1);
        }
        for (leaked, place) in [(end - in_use, "between others"), (area - end, "after all others")] {
            if leaked > 0 {
                report.leaks += leaked;
                report.message(CheckKind::Leak, || format!("{leaked} clusters {place} are not referenced"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
