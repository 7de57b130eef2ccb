//! Repairs: the offset of the data area, clusters that several entries of the BAT point to, and space after all clusters.
//!
//! An entry that points out of the file stays: what it should point to is not known.

use std::sync::Arc;

use super::bat::{Bat, BatEntry};
use super::check::check;
use super::header::{DATA_SECTOR_AT, Header, Unit};
use super::{FORMAT_NAME, SECTOR};
use crate::driver::{Repair, RepairReport, UpdateContext};
use crate::error::{Error, Result};
use crate::format::shared::bits::BitSet;
use crate::format::shared::table;
use crate::io::{ReadAt, Storage};

/// Bytes that are copied at a time.
const CHUNK: u64 = 1 << 20;
/// Most clusters that are copied before the BAT is written.
const MOVES: usize = 4096;

pub(super) fn repair(file: Arc<dyn Storage>, cx: &UpdateContext<'_>, what: Repair) -> Result<RepairReport> {
    let source: Arc<dyn ReadAt> = file.clone();
    let before = check(source.clone(), &cx.open)?;
    let mut after = before.clone();
    if what == Repair::All && before.corruptions > 0 && before.check_errors == 0 {
        let header = repair_data_sector(&file, cx)?;
        separate(&file, header, cx)?;
        after = check(source.clone(), &cx.open)?;
    }
    // Where something is damaged, nothing is counted as leaked.
    let end = after.image_end_offset;
    if after.leaks > 0 && after.check_errors == 0 && end < table::length(&*file)? {
        file.set_len(end).map_err(Error::io("setting the length", end))?;
        sync(&file)?;
        after = check(source, &cx.open)?;
    }
    let leaks_fixed = before.leaks.saturating_sub(after.leaks);
    let corruptions_fixed = before.corruptions.saturating_sub(after.corruptions);
    Ok(RepairReport { before, leaks_fixed, corruptions_fixed, after })
}

/// Writes where the data area is, if the header has an offset that is outside of the file or in the BAT. Where entries count in clusters, it
/// follows the BAT.
fn repair_data_sector(file: &Arc<dyn Storage>, cx: &UpdateContext<'_>) -> Result<Header> {
    let header = Header::read(&**file, cx.open.limits)?;
    if header.unit == Unit::Sectors || header.has_data_area(table::length(&**file)?) {
        return Ok(header);
    }
    let sector = Header { data_sector: 0, ..header.clone() }.data_offset() / SECTOR;
    let Ok(data_sector) = u32::try_from(sector) else { return Ok(header) };
    let at = DATA_SECTOR_AT;
    file.write_all_at(&data_sector.to_le_bytes(), at).map_err(Error::io("writing the header", at))?;
    sync(file)?;
    Ok(Header { data_sector, ..header })
}

/// Gives each entry but the first one that points to a cluster a copy of it.
fn separate(file: &Arc<dyn Storage>, header: Header, cx: &UpdateContext<'_>) -> Result<()> {
    let bat = Bat::new(file.clone(), header, cx.open.budget)?;
    let (data_offset, cluster_size) = (bat.header.data_offset(), bat.header.cluster_size());
    let area = bat.file_len.saturating_sub(data_offset).div_ceil(cluster_size);
    cx.open.budget.take(area.div_ceil(8), FORMAT_NAME, "the bitmap of clusters in use", DATA_SECTOR_AT)?;
    let mut used = BitSet::new(area);
    let mut next = area.saturating_mul(cluster_size).saturating_add(data_offset);
    let mut moves = Vec::new();
    let mut index = 0;
    while index < bat.header.clusters() {
        let page = bat.page(index)?;
        for index in page.indexes.clone() {
            let host = match bat.host_offset(&page, index) {
                Ok(Some(host)) => host,
                Ok(None) | Err(Error::Corrupt(_)) => continue,
                Err(error) => return Err(error),
            };
            let Some(within) = host.checked_sub(data_offset).filter(|within| within % cluster_size == 0) else {
                continue;
            };
            if used.insert(within / cluster_size) != Some(true) {
                continue;
            }
            let entry = entry_for(next, &bat.header)?;
            copy(file, host, next, cluster_size.min(bat.file_len.saturating_sub(host)))?;
            let end = next.saturating_add(cluster_size);
            file.set_len(end).map_err(Error::io("setting the length", end))?;
            moves.push((page.host_offset(index), entry));
            next = end;
            if moves.len() == MOVES {
                write_entries(file, &mut moves)?;
            }
        }
        index = page.indexes.end;
    }
    write_entries(file, &mut moves)
}

/// The entry of a cluster at `host`.
fn entry_for(host: u64, header: &Header) -> Result<BatEntry> {
    let limit = u64::from(u32::MAX).saturating_mul(header.unit_len());
    let entry = u32::try_from(host / header.unit_len()).map(BatEntry);
    entry.map_err(|_| Error::limit(FORMAT_NAME, "host offset of a cluster", host, limit))
}

fn copy(file: &Arc<dyn Storage>, from: u64, to: u64, len: u64) -> Result<()> {
    let mut buf = vec![0; len.min(CHUNK) as usize];
    let mut done = 0;
    while done < len {
        let part = buf.get_mut(..(len - done).min(CHUNK) as usize).unwrap_or_default();
        table::read(&**file, part, from + done)?;
        file.write_all_at(part, to + done).map_err(Error::io("writing a cluster", to + done))?;
        done += part.len() as u64;
    }
    Ok(())
}

/// Writes entries, whose clusters are durable before.
fn write_entries(file: &Arc<dyn Storage>, moves: &mut Vec<(u64, BatEntry)>) -> Result<()> {
    if moves.is_empty() {
        return Ok(());
    }
    sync(file)?;
    for (at, entry) in moves.drain(..) {
        file.write_all_at(&entry.0.to_le_bytes(), at).map_err(Error::io("writing the BAT", at))?;
    }
    sync(file)
}

fn sync(file: &Arc<dyn Storage>) -> Result<()> {
    file.sync().map_err(Error::io("syncing", None))
}

#[cfg(test)]
mod tests;
