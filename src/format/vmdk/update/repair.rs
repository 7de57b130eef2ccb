//! Repairs of a hosted sparse extent by its redundant metadata.

use std::sync::Arc;

use super::{ExtentStorage, Update};
use crate::driver::{Repair, RepairReport, SparseUpdate, UpdateContext};
use crate::error::{Error, Result};
use crate::format::vmdk::check::check;
use crate::format::vmdk::grains::DAMAGED;
use crate::format::vmdk::hosted::Hosted;
use crate::format::vmdk::reader::{IMAGE, sparse_kind};
use crate::format::vmdk::{FIELDS, SECTOR, SparseKind};
use crate::io::{ReadAt, Storage};

/// Makes damaged and missing entries of the grain directory point to the tables of the redundant one, which readers use in their place, and
/// completes the redundant tables of an extent that was not closed. Everything else could only be guessed. Other images are not changed.
pub(in crate::format::vmdk) fn repair(
    file: Arc<dyn Storage>,
    cx: &UpdateContext<'_>,
    what: Repair,
) -> Result<RepairReport> {
    let source: Arc<dyn ReadAt> = file.clone();
    let before = check(source.clone(), &cx.open)?;
    let mut report = RepairReport { after: before.clone(), before, ..RepairReport::default() };
    if what != Repair::All || sparse_kind(&*file)? != Some(SparseKind::Hosted) {
        return Ok(report);
    }
    let hosted = Hosted::read(source.clone(), IMAGE, &cx.open)?;
    if hosted.header.is_compressed() {
        return Ok(report);
    }
    let is_unclean = hosted.header.unclean;
    report.corruptions_fixed = repair_directory(&*file, &hosted, cx)?;
    if report.corruptions_fixed > 0 {
        report.after = check(source.clone(), &cx.open)?;
    }
    if is_unclean && report.after.corruptions + report.after.check_errors == 0 {
        let mut image = Update::open(file, cx)?;
        for extent in &mut image.extents {
            if let ExtentStorage::Sparse(sparse) = &mut extent.storage {
                sparse.complete()?;
            }
        }
        image.close()?;
        report.corruptions_fixed += 1;
        report.after = check(source, &cx.open)?;
    }
    Ok(report)
}

/// Writes entries of the grain directory, and returns their number.
fn repair_directory(file: &dyn Storage, hosted: &Hosted, cx: &UpdateContext<'_>) -> Result<u64> {
    // What is known to be damaged, and is no error of the storage.
    let mut on_damage = |error: Error| match error.root() {
        Error::Corrupt(_) => Ok(()),
        _ => Err(error),
    };
    let (Ok((primary, range)), Some(Ok((redundant, _)))) = hosted.directories(&cx.open, &mut on_damage) else {
        return Ok(0);
    };
    if redundant.contains(&DAMAGED) {
        return Ok(0);
    }
    let mut count = 0;
    for ((table, copy), at) in primary.iter().zip(&redundant).zip((range.start..).step_by(4)) {
        if !matches!(*table, 0 | DAMAGED) || *copy == 0 {
            continue;
        }
        let sector = u32::try_from(copy / SECTOR);
        let sector = sector.map_err(|_| {
            FIELDS.at("grain directory entry", at).fault(crate::error::Problem::Range {
                value: copy / SECTOR,
                min: 0,
                max: u32::MAX.into(),
            })
        })?;
        file.write_all_at(&sector.to_le_bytes(), at).map_err(Error::io("writing a grain directory", at))?;
        count += 1;
    }
    file.sync().map_err(Error::io("syncing", None))?;
    Ok(count)
}
