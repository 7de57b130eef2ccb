//! Opening the sparse extents of ESXi: COWD and space-efficient sparse.

use std::sync::Arc;

use super::cowd::{self, CowdHeader};
use super::grains::{DAMAGED, Entries, Grains};
use super::sesparse::{self, DirectoryEntry, SeSparseHeader};
use super::{FORMAT_NAME, SECTOR, field};
use crate::error::{Error, Result};
use crate::extent::FileId;
use crate::format::OpenContext;
use crate::io::{ReadAt, table};

/// Reads the header of a COWD extent.
pub(super) fn read_cowd(file: &dyn ReadAt, cx: &OpenContext<'_>) -> Result<CowdHeader> {
    let mut bytes = [0; CowdHeader::LEN as usize];
    field("header", 0).within(0, CowdHeader::LEN, table::length(file)?)?;
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
    damaged: &mut dyn FnMut(Error) -> Result<()>,
) -> Result<Grains> {
    let file_len = table::length(&*file)?;
    let place = header.directory * SECTOR;
    let bytes = read_directory(&*file, place, header.directory_entries(), 4, cx)?;
    let mut grains = Grains {
        file,
        id,
        file_len,
        len,
        grain: header.grain_bytes(),
        entries_per_table: cowd::TABLE_ENTRIES,
        entries: Entries::Sectors { zeroed_grains: false, packing: None },
        directory: Vec::new(),
        copies: Vec::new(),
        metadata: vec![0..CowdHeader::LEN, place..place + bytes.len() as u64],
    };
    let entries = bytes.as_chunks().0.iter().enumerate().map(|(index, entry)| {
        let offset = u64::from(u32::from_le_bytes(*entry)) * SECTOR;
        if offset != 0 {
            let len = grains.table_entries(index) * grains.entry_size();
            let field = field("grain directory entry", place + index as u64 * 4);
            if let Err(error) = field.within(offset, len, file_len) {
                damaged(error)?;
                return Ok(DAMAGED);
            }
        }
        Ok(offset)
    });
    grains.directory = entries.collect::<Result<_>>()?;
    Ok(grains)
}

/// Opens a space-efficient sparse extent of which `len` bytes belong to the disk; its capacity goes to `check` first. What is
/// said of `damaged` entries of the directory comes back as the error, or they are [`DAMAGED`].
pub(super) fn open_sesparse(
    file: Arc<dyn ReadAt>,
    id: FileId,
    len: u64,
    check: impl FnOnce(u64) -> Result<()>,
    cx: &OpenContext<'_>,
    damaged: &mut dyn FnMut(Error) -> Result<()>,
) -> Result<Grains> {
    let file_len = table::length(&*file)?;
    let read_sector = |name, offset| {
        field(name, 0).within(offset, SeSparseHeader::LEN, file_len)?;
        let mut bytes = [0; SeSparseHeader::LEN as usize];
        table::read(&*file, &mut bytes, offset).map(|()| bytes)
    };
    let header = SeSparseHeader::parse(&read_sector("header", 0)?, cx.limits)?;
    check(header.capacity)?;
    header.check_volatile(&read_sector("volatile_header_offset", header.volatile_header.start)?)?;
    let place = header.grain_directory.start;
    let bytes = read_directory(&*file, place, header.directory_entries(), 8, cx)?;
    let entries = bytes.as_chunks().0.iter().enumerate().map(|(index, entry)| {
        let field = field("grain directory entry", place + index as u64 * 8);
        let table = DirectoryEntry::parse(u64::from_le_bytes(*entry))
            .and_then(|number| number.map(|number| header.table(number)).transpose())
            .map_err(|problem| field.fault(problem))
            .and_then(|table| match table {
                Some(offset) => field.within(offset, sesparse::TABLE, file_len).map(|()| offset),
                None => Ok(0),
            });
        table.or_else(|error| damaged(error).map(|()| DAMAGED))
    });
    let directory = entries.collect::<Result<_>>()?;
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

/// Reads a directory, and takes what it needs in memory from the budget.
fn read_directory(file: &dyn ReadAt, offset: u64, entries: u64, size: u64, cx: &OpenContext<'_>) -> Result<Vec<u8>> {
    let field = field("grain directory", offset);
    let bytes = table::read_table(file, offset, entries.saturating_mul(size), field, cx.budget)?;
    cx.budget.take(entries.saturating_mul(8), FORMAT_NAME, field.name, offset)?;
    Ok(bytes)
}

/// The refusal of an extent that says itself that it lies over another one, without a descriptor that says which.
pub(super) fn needs_descriptor(what: &str) -> Error {
    let feature = format!("{what} without its descriptor: it may lie over another image");
    Error::Unsupported { format: FORMAT_NAME, feature: feature.into(), at: Some(0) }
}
