//! Repairs of wrong refcounts, and of flags that do not go with them.
//!
//! The right refcount of a cluster is the number of its uses. It is repaired if all uses are known; an entry that cannot be right is left for
//! someone who knows more than the image says.

use std::sync::Arc;

use super::replace::Replacement;
use super::{NEW, REFCOUNT_TABLE, Update};
use crate::driver::{Repair, RepairReport, SparseUpdate, UpdateContext};
use crate::error::{Error, Result};
use crate::format::qcow2::check::{Checked, WrongCount, check_with};
use crate::format::qcow2::header::Incompatible;
use crate::io::{ReadAt, Storage};

/// Offset of the incompatible features in the header, in bytes.
const INCOMPATIBLE: u64 = 72;

/// Repairs an image.
pub(in crate::format::qcow2) fn repair(
    file: Arc<dyn Storage>,
    cx: &UpdateContext<'_>,
    what: Repair,
) -> Result<RepairReport> {
    let source: Arc<dyn ReadAt> = file.clone();
    let found = check_with(source.clone(), &cx.open, &mut |_| ())?;
    let mut report =
        RepairReport { before: found.report.clone(), after: found.report.clone(), ..RepairReport::default() };
    let is_marked = |image: &Update| image.header.incompatible.intersects(Incompatible::DIRTY | Incompatible::CORRUPT);
    let mut image = Update::open_for_repair(file, cx)?;
    // As any other program that writes to the image.
    image.clear_unknown_features()?;
    if found.report.leaks + found.report.corruptions == 0 && !is_marked(&image) {
        return Ok(report);
    }
    // Clusters that seem to be unused may be those of a damaged entry.
    let frees = found.is_understood();
    // A refcount block that is also a table or guest data would be written over.
    let raises = what == Repair::All && found.overlaps == 0;
    let (mut leaks, mut low, mut failed) = (0, 0, None);
    check_with(source.clone(), &cx.open, &mut |wrong: WrongCount| {
        let is_leak = wrong.refcount > wrong.uses;
        if failed.is_some() || !(if is_leak { frees } else { raises }) {
            return;
        }
        match image.correct(&wrong, frees) {
            Ok(true) if is_leak => leaks += 1,
            Ok(true) => low += 1,
            Ok(false) => {}
            Err(error) => failed = Some(error),
        }
    })?;
    failed.map_or(Ok(()), Err)?;
    image.flush()?;

    let mut counted = check_with(source.clone(), &cx.open, &mut |_| ())?;
    (report.leaks_fixed, report.corruptions_fixed) = (leaks, low);
    // Flags follow from the refcounts, also from those that have just been lowered to 1.
    if counted.flags > 0 && counted.is_understood() && counted.low == 0 {
        image.correct_flags()?;
        report.corruptions_fixed += counted.flags.min(found.flags);
        counted = check_with(source.clone(), &cx.open, &mut |_| ())?;
    }
    if what == Repair::All && counted.report.corruptions + counted.report.check_errors == 0 && is_marked(&image) {
        image.clear_marks()?;
        counted = check_with(source, &cx.open, &mut |_| ())?;
    }
    report.after = counted.report;
    Ok(report)
}

impl Checked {
    /// Whether nothing but refcounts and flags is wrong.
    fn is_understood(&self) -> bool {
        self.report.check_errors == 0 && self.report.corruptions == self.low + self.flags
    }
}

impl Update {
    /// Sets the refcount of a cluster to the number of its uses, unless the refcount table has no place for it, or the refcount width is too small.
    /// Missing refcount blocks are created if `creates`: an entry that is out of bounds may point to where they would be.
    fn correct(&mut self, wrong: &WrongCount, creates: bool) -> Result<bool> {
        let index = wrong.cluster / self.counts_per_block();
        match self.block(index) {
            Ok(Some(_)) => {}
            Ok(None) if creates && self.add_block(index)? => {}
            // An invalid entry of the table may be all that is left of the block.
            Ok(None) | Err(Error::Corrupt(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
        match self.set_refcount(wrong.cluster, wrong.uses) {
            Err(Error::Limit { .. }) => return Ok(false),
            other => other?,
        }
        // A power cut between two parts leaves what is not repaired yet.
        self.make_room()?;
        Ok(true)
    }

    /// Creates a missing refcount block at the end of the file, which nothing uses. Returns false if the refcount table is too short for the block,
    /// or for that of its own count.
    fn add_block(&mut self, index: u64) -> Result<bool> {
        let (size, per_block) = (self.cluster_size(), self.counts_per_block());
        let cluster = self.file_len.div_ceil(size);
        let own = cluster / per_block;
        if index.max(own) >= self.table_entries() {
            return Ok(false);
        }
        let offset = cluster << self.header.cluster_bits;
        self.pages.create(offset..offset + size, NEW);
        self.grow_file(offset + size)?;
        let entry = self.refcounts.offset + index * 8;
        self.pages.write(&offset.to_be_bytes(), entry, REFCOUNT_TABLE)?;
        let is_counted = self.block(own)?.is_some() || self.add_block(own)?;
        if is_counted {
            self.set_refcount(cluster, 1)?;
        }
        Ok(is_counted)
    }

    /// Replaces the active L1 table and those L2 tables in which flags are wrong.
    fn correct_flags(&mut self) -> Result<()> {
        self.replace(|image| {
            let active = image.whole_l1()?;
            let own = image.shared_tables(&active, 1)?;
            let bytes: Vec<u8> = own.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            let l1_table_offset = image.write_table(&bytes, "the L1 table")?;
            image.drop_active_l1()?;
            Ok(Replacement {
                size: image.header.size,
                l1_table_offset,
                l1_size: own.len() as u32,
                snapshot_count: image.header.nb_snapshots,
                snapshots_offset: image.header.snapshots_offset,
            })
        })
    }

    /// Marks the image as closed, and as not corrupt.
    fn clear_marks(&mut self) -> Result<()> {
        self.header.incompatible -= Incompatible::DIRTY | Incompatible::CORRUPT;
        let bits = self.header.incompatible.bits().to_be_bytes();
        self.write_header(INCOMPATIBLE, &bits)?;
        (self.info.dirty, self.info.corrupt) = (false, false);
        Ok(())
    }
}
