//! Opens the sparse extents of ESXi: COWD and space-efficient sparse.

use std::sync::Arc;

use super::cowd::{self, CowdHeader};
use super::directory::{OnDamage, read_directory, table_at_sector};
use super::grains::{EntryFormat, GrainMap};
use super::sesparse::{self, SeSparseHeader, parse_directory_entry};
use super::{FIELDS, FORMAT_NAME, SECTOR};
use crate::driver::FileId;
use crate::driver::OpenContext;
use crate::error::{Error, Result};
use crate::format::shared::data_runs::DataRuns;
use crate::format::shared::table::{self, Field};
use crate::io::ReadAt;

/// Reads the header of a COWD extent.
pub(super) fn read_cowd(file: &dyn ReadAt, cx: &OpenContext<'_>) -> Result<CowdHeader> {
    let mut bytes = [0; CowdHeader::LEN as usize];
    FIELDS.at("header", 0).within(0, CowdHeader::LEN, table::length(file)?)?;
    table::read(file, &mut bytes, 0)?;
    CowdHeader::parse(&bytes, cx.limits)
}

/// Reads the grain directory of a COWD extent of `len` guest bytes. `on_damage` handles invalid directory entries.
pub(super) fn open_cowd(
    file: Arc<dyn ReadAt>,
    id: FileId,
    header: &CowdHeader,
    len: u64,
    cx: &OpenContext<'_>,
    on_damage: &mut OnDamage<'_>,
) -> Result<GrainMap> {
    let file_len = table::length(&*file)?;
    let (start, entries) = (header.directory * SECTOR, header.directory_entries());
    let grains = len.div_ceil(header.grain_bytes());
    let table_offset = |index, entry, field| {
        // The last table may be shorter.
        let table_grains = grains.saturating_sub(index * cowd::TABLE_ENTRIES).min(cowd::TABLE_ENTRIES);
        table_at_sector(entry, table_grains * 4, field, file_len)
    };
    let directory = read_directory(&*file, start, entries, FIELDS.at("gdOffset", 20), table_offset, cx, on_damage)?;
    Ok(GrainMap {
        data_runs: DataRuns::new(file.clone(), file_len),
        file,
        id,
        file_len,
        len,
        grain_bytes: header.grain_bytes(),
        entries_per_table: cowd::TABLE_ENTRIES,
        entry_format: EntryFormat::Sectors { zeroed_grains: false, framing: None },
        directory,
        redundant_directory: Vec::new(),
        metadata: vec![0..CowdHeader::LEN, start..start + entries * 4],
    })
}

/// Reads the headers and the grain directory of a space-efficient sparse extent of `len` guest bytes. `check` validates
/// its capacity in sectors; `on_damage` handles invalid directory entries.
pub(super) fn open_sesparse(
    file: Arc<dyn ReadAt>,
    id: FileId,
    len: u64,
    check: impl FnOnce(u64) -> Result<()>,
    cx: &OpenContext<'_>,
    on_damage: &mut OnDamage<'_>,
) -> Result<GrainMap> {
    let file_len = table::length(&*file)?;
    let read_sector = |name, offset| {
        FIELDS.at(name, 0).within(offset, SeSparseHeader::LEN, file_len)?;
        let mut bytes = [0; SeSparseHeader::LEN as usize];
        table::read(&*file, &mut bytes, offset).map(|()| bytes)
    };
    let header = SeSparseHeader::parse(&read_sector("header", 0)?, cx.limits)?;
    check(header.capacity)?;
    header.check_volatile(&read_sector("volatile_header_offset", header.volatile_header.start)?)?;
    let (start, entries) = (header.grain_directory.start, header.directory_entries());
    let table_offset = |_, entry, field: Field| {
        let table = parse_directory_entry(u64::from_le_bytes(entry))
            .and_then(|index| index.map(|index| header.table_offset(index)).transpose());
        match table.map_err(|problem| field.fault(problem))? {
            Some(offset) => field.within(offset, sesparse::TABLE, file_len).map(|()| offset),
            None => Ok(0),
        }
    };
    let directory =
        read_directory(&*file, start, entries, FIELDS.at("grain_dir_offset", 128), table_offset, cx, on_damage)?;
    let constant_header = 0..SeSparseHeader::LEN;
    Ok(GrainMap {
        data_runs: DataRuns::new(file.clone(), file_len),
        file,
        id,
        file_len,
        len,
        grain_bytes: sesparse::GRAIN,
        entries_per_table: sesparse::TABLE_ENTRIES,
        entry_format: EntryFormat::SeSparse { grains: header.grains.clone() },
        directory,
        redundant_directory: Vec::new(),
        metadata: vec![constant_header, header.volatile_header, header.grain_directory],
    })
}

/// The error for an extent that may have a parent and was opened without the descriptor that names it.
pub(super) fn needs_descriptor(what: &str) -> Error {
    let feature = format!("{what} without its descriptor, which may name a parent");
    Error::Unsupported { format: FORMAT_NAME, feature: feature.into(), at: Some(0) }
}
