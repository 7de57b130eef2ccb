//! Opening the sparse extents of ESXi: COWD and space-efficient sparse.

use std::sync::Arc;

use super::cowd::{self, CowdHeader};
use super::directory::{Damaged, read_directory, table_at_sector};
use super::grains::{Entries, Grains};
use super::sesparse::{self, DirectoryEntry, SeSparseHeader};
use super::{FIELDS, FORMAT_NAME, SECTOR};
use crate::driver::FileId;
use crate::driver::OpenContext;
use crate::error::{Error, Result};
use crate::format::shared::table::{self, Field};
use crate::io::ReadAt;

/// Reads the header of a COWD extent.
pub(super) fn read_cowd(file: &dyn ReadAt, cx: &OpenContext<'_>) -> Result<CowdHeader> {
    let mut bytes = [0; CowdHeader::LEN as usize];
    FIELDS.at("header", 0).within(0, CowdHeader::LEN, table::length(file)?)?;
    table::read(file, &mut bytes, 0)?;
    CowdHeader::parse(&bytes, cx.limits)
}

/// The grains of a COWD extent of which `len` bytes belong to the disk. What is said of `damaged` entries of the directory comes
/// back as the error, or they are [`DAMAGED`].
pub(super) fn cowd_grains(
    file: Arc<dyn ReadAt>,
    id: FileId,
    header: &CowdHeader,
    len: u64,
    cx: &OpenContext<'_>,
    damaged: &mut Damaged<'_>,
) -> Result<Grains> {
    let file_len = table::length(&*file)?;
    let (start, entries) = (header.directory * SECTOR, header.directory_entries());
    let grains = len.div_ceil(header.grain_bytes());
    let place = |index, entry, field| {
        // The last table may be shorter.
        let in_table = grains.saturating_sub(index * cowd::TABLE_ENTRIES).min(cowd::TABLE_ENTRIES);
        table_at_sector(entry, in_table * 4, field, file_len)
    };
    let directory = read_directory(&*file, start, entries, FIELDS.at("gdOffset", 20), place, cx, damaged)?;
    Ok(Grains {
        file,
        id,
        file_len,
        len,
        grain: header.grain_bytes(),
        entries_per_table: cowd::TABLE_ENTRIES,
        entries: Entries::Sectors { zeroed_grains: false, packing: None },
        directory,
        copies: Vec::new(),
        metadata: vec![0..CowdHeader::LEN, start..start + entries * 4],
    })
}

/// Opens a space-efficient sparse extent of which `len` bytes belong to the disk; its capacity goes to `check` first. What is
/// said of `damaged` entries of the directory comes back as the error, or they are [`DAMAGED`].
pub(super) fn open_sesparse(
    file: Arc<dyn ReadAt>,
    id: FileId,
    len: u64,
    check: impl FnOnce(u64) -> Result<()>,
    cx: &OpenContext<'_>,
    damaged: &mut Damaged<'_>,
) -> Result<Grains> {
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
    let place = |_, entry, field: Field| {
        let table = DirectoryEntry::parse(u64::from_le_bytes(entry))
            .and_then(|number| number.map(|number| header.table(number)).transpose());
        match table.map_err(|problem| field.fault(problem))? {
            Some(offset) => field.within(offset, sesparse::TABLE, file_len).map(|()| offset),
            None => Ok(0),
        }
    };
    let directory = read_directory(&*file, start, entries, FIELDS.at("grain_dir_offset", 128), place, cx, damaged)?;
    let constant_header = 0..SeSparseHeader::LEN;
    Ok(Grains {
        file,
        id,
        file_len,
        len,
        grain: sesparse::GRAIN,
        entries_per_table: sesparse::TABLE_ENTRIES,
        entries: Entries::SeSparse { grains: header.grains.clone() },
        directory,
        copies: Vec::new(),
        metadata: vec![constant_header, header.volatile_header, header.grain_directory],
    })
}

/// The refusal of an extent that says itself that it lies over another one, without a descriptor that says which.
pub(super) fn needs_descriptor(what: &str) -> Error {
    let feature = format!("{what} without its descriptor: it may lie over another image");
    Error::Unsupported { format: FORMAT_NAME, feature: feature.into(), at: Some(0) }
}
