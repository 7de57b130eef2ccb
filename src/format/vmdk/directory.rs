//! Grain directories: the places of the grain tables.

use super::FORMAT_NAME;
use super::grains::DAMAGED;
use crate::driver::OpenContext;
use crate::error::{Error, Result};
use crate::format::shared::table::{self, Field};
use crate::io::ReadAt;

/// Decides what becomes of an entry that leads nowhere: its error, or nothing, and the table is [`DAMAGED`].
pub(super) type Damaged<'a> = dyn FnMut(Error) -> Result<()> + 'a;

/// Reads the directory of so many entries of `SIZE` bytes at `start`, which is what `field` says. `place` tells the byte
/// offset of a table that lies within the file, or 0 for one that does not exist, by its number, its entry, and the field
/// for what is wrong with that.
pub(super) fn read_directory<const SIZE: usize>(
    file: &dyn ReadAt,
    start: u64,
    entries: u64,
    field: Field,
    place: impl Fn(u64, [u8; SIZE], Field) -> Result<u64>,
    cx: &OpenContext<'_>,
    damaged: &mut Damaged<'_>,
) -> Result<Vec<u64>> {
    let bytes = table::read_table(file, start, entries.saturating_mul(SIZE as u64), field, cx.budget)?;
    cx.budget.take(entries.saturating_mul(8), FORMAT_NAME, field.name, field.at)?;
    let tables = bytes.as_chunks().0.iter().enumerate().map(|(index, entry)| {
        let entry_field = Field { name: "grain directory entry", at: start + (index * SIZE) as u64, ..field };
        place(index as u64, *entry, entry_field).or_else(|error| damaged(error).map(|()| DAMAGED))
    });
    tables.collect()
}

/// The place of a table of `len` bytes by an entry that is a sector.
pub(super) fn table_at_sector(entry: [u8; 4], len: u64, field: Field, file_len: u64) -> Result<u64> {
    let offset = u64::from(u32::from_le_bytes(entry)) * super::SECTOR;
    if offset != 0 {
        field.within(offset, len, file_len)?;
    }
    Ok(offset)
}
