//! Grain directories: the host offsets of the grain tables.

use super::FORMAT_NAME;
use super::grains::DAMAGED;
use crate::driver::OpenContext;
use crate::error::{Error, Result};
use crate::format::shared::table::{self, Field};
use crate::io::ReadAt;

/// Handles the error of an invalid directory entry: returns it, or returns `Ok` to have the table recorded as
/// [`DAMAGED`].
pub(super) type OnDamage<'a> = dyn FnMut(Error) -> Result<()> + 'a;

/// Reads the grain directory of `entries` entries of `SIZE` bytes at `start`, the value of `field`.
///
/// `table_offset` parses an entry: it gets the index of the table, the entry and the field for errors, and returns the
/// host offset of the table, checked against the file length, or 0 if the table is unallocated.
pub(super) fn read_directory<const SIZE: usize>(
    file: &dyn ReadAt,
    start: u64,
    entries: u64,
    field: Field,
    table_offset: impl Fn(u64, [u8; SIZE], Field) -> Result<u64>,
    cx: &OpenContext<'_>,
    on_damage: &mut OnDamage<'_>,
) -> Result<Vec<u64>> {
    let bytes = table::read_table(file, start, entries.saturating_mul(SIZE as u64), field, cx.budget)?;
    cx.budget.take(entries.saturating_mul(8), FORMAT_NAME, field.name, field.at)?;
    let tables = bytes.as_chunks().0.iter().enumerate().map(|(index, entry)| {
        let entry_field = Field { name: "grain directory entry", at: start + (index * SIZE) as u64, ..field };
        table_offset(index as u64, *entry, entry_field).or_else(|error| on_damage(error).map(|()| DAMAGED))
    });
    tables.collect()
}

/// Returns the host offset of a grain table of `len` bytes from an entry that holds its sector; 0 if it is unallocated.
pub(super) fn table_at_sector(entry: [u8; 4], len: u64, field: Field, file_len: u64) -> Result<u64> {
    let offset = u64::from(u32::from_le_bytes(entry)) * super::SECTOR;
    if offset != 0 {
        field.within(offset, len, file_len)?;
    }
    Ok(offset)
}
