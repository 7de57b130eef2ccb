//! The resource fork: what old images have in place of a property list.
//!
//! All integers are big-endian ("Inside Macintosh: More Macintosh Toolbox", chapter 1, "Resource File Format").
//!
//! | offset | content |
//! |---|---|
//! | 0 | offsets of the data and of the map in the fork; their lengths |
//! | map + 24 | offset of the types in the map |
//! | types | number of types, less 1 |
//! | types + 2 | types of 8 bytes: name, number of resources less 1, offset of the references from the start of the types |
//! | references | 12 bytes each: number, name, attributes (1 byte), offset in the data (3 bytes), reserved |
//! | data + offset | length of the resource; the resource |

use byteorder::{BigEndian, ByteOrder};

use super::FIELDS;
use crate::error::{Problem, Result};
use crate::format::shared::table::Field;

/// Calls `use_table` with each block table of the resource fork `fork`, which is at host offset `at`, and with a field for its errors.
///
/// # Errors
/// [`Error::Corrupt`](crate::Error::Corrupt) if a structure is out of bounds, or if there are no block tables.
pub(super) fn block_tables(fork: &[u8], at: u64, mut use_table: impl FnMut(&[u8], Field) -> Result<()>) -> Result<()> {
    let field = FIELDS.at("resource fork", at);
    let bytes = |start: usize, len: usize| {
        let found = fork.get(start..).and_then(|rest| rest.get(..len));
        found.ok_or_else(|| field.fault(Problem::Truncated))
    };
    let u16_at = |start| bytes(start, 2).map(|number| usize::from(BigEndian::read_u16(number)));
    let u32_at = |start| bytes(start, 4).map(|number| BigEndian::read_u32(number) as usize);
    let (data, map) = (u32_at(0)?, u32_at(4)?);
    let types = map.saturating_add(u16_at(map.saturating_add(24))?);
    let type_count = (u16_at(types)? + 1) & 0xffff;
    for entry in (0..type_count).map(|index| types + 2 + 8 * index) {
        if bytes(entry, 4)? != b"blkx" {
            continue;
        }
        let references = types + u16_at(entry + 6)?;
        for reference in (0..=u16_at(entry + 4)?).map(|index| references + 12 * index) {
            let start = data.saturating_add(u32_at(reference + 4)? & 0xff_ffff);
            let table = bytes(start.saturating_add(4), u32_at(start)?)?;
            use_table(table, FIELDS.at("block table", at + start as u64))?;
        }
        return Ok(());
    }
    Err(FIELDS.at("blkx", at).fault(Problem::Missing))
}
