//! Bounded reads of tables whose length comes from an image, and the errors of a field.
//!
//! Other allocations with a size from an image are at most a cluster, or a name with its own limit.

use crate::error::{Error, Problem, Result};
use crate::io::ReadAt;
use crate::limits::{Budget, LimitName};

/// A field of an image, for error messages: the format, the name of the field or of the table it refers to, and the host offset
/// of the field.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub format: &'static str,
    pub name: &'static str,
    pub at: u64,
}

/// The fields of the format with this name. Each format has one constant of this type.
pub(crate) struct Fields(pub &'static str);

impl Fields {
    /// The field `name` at host offset `at`.
    pub const fn at(&self, name: &'static str, at: u64) -> Field {
        Field { format: self.0, name, at }
    }

    /// Reads the header at the start of `file`, and returns it with the length of the file.
    pub fn read_header<const LEN: usize>(&self, file: &dyn ReadAt) -> Result<([u8; LEN], u64)> {
        let file_len = length(file)?;
        self.at("header", 0).within(0, LEN as u64, file_len)?;
        let mut header = [0; LEN];
        read(file, &mut header, 0)?;
        Ok((header, file_len))
    }
}

impl Field {
    /// Checks that `len` bytes at `offset` lie within a file of `file_len` bytes.
    pub fn within(&self, offset: u64, len: u64, file_len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= file_len => Ok(()),
            _ => Err(self.fault(Problem::OutOfBounds { offset, len, file_len })),
        }
    }

    /// Checks that `value` is a multiple of `alignment`.
    pub fn aligned(&self, value: u64, alignment: u64) -> Result<()> {
        if value.is_multiple_of(alignment) { Ok(()) } else { Err(self.fault(Problem::Misaligned { value, alignment })) }
    }

    /// Checks that `len` bytes at `offset` end at or below the largest file offset, 2^63 - 1.
    pub fn fits_u63(&self, offset: u64, len: u64) -> Result<()> {
        self.within(offset, len, i64::MAX as u64)
    }

    /// Checks that `value` is at most `limit`, which is one of the format.
    pub fn at_most(&self, value: u64, limit: u64) -> Result<()> {
        self.check_limit(None, value, limit)
    }

    /// Checks that `value` is at most `limit`, which is this one of the caller, possibly in another unit.
    pub fn within_limit(&self, name: LimitName, value: u64, limit: u64) -> Result<()> {
        self.check_limit(Some(name), value, limit)
    }

    fn check_limit(&self, name: Option<LimitName>, value: u64, limit: u64) -> Result<()> {
        if value <= limit {
            Ok(())
        } else {
            Err(Error::Limit { name, format: self.format, field: self.name.into(), at: Some(self.at), value, limit })
        }
    }

    /// The error for this field.
    pub fn fault(&self, problem: Problem) -> Error {
        Error::corrupt(self.format, self.name, self.at, problem)
    }
}

/// Reads `len` bytes at `offset`. The file length, the budget and the allocator are checked first, in this order.
pub(crate) fn read_table(file: &dyn ReadAt, offset: u64, len: u64, field: Field, budget: &Budget) -> Result<Vec<u8>> {
    let mut bytes = reserve(file, offset, len, len, field, budget)?;
    bytes.resize(len as usize, 0);
    read(file, &mut bytes, offset)?;
    Ok(bytes)
}

/// Reads a table of big-endian 64-bit entries with the same checks.
pub(crate) fn read_table_u64_be(
    file: &dyn ReadAt,
    offset: u64,
    entries: u64,
    field: Field,
    budget: &Budget,
) -> Result<Vec<u64>> {
    const CHUNK: u64 = 64 << 10;
    let len = entries.saturating_mul(8);
    let mut table = reserve(file, offset, len, entries, field, budget)?;
    let mut bytes = vec![0; CHUNK.min(len) as usize];
    for at in (0..len).step_by(CHUNK as usize) {
        bytes.truncate((len - at) as usize);
        read(file, &mut bytes, offset + at)?;
        table.extend(bytes.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry)));
    }
    Ok(table)
}

/// Reserves a vector for `count` elements, which take `len` bytes at `offset` of the file.
fn reserve<T>(file: &dyn ReadAt, offset: u64, len: u64, count: u64, field: Field, budget: &Budget) -> Result<Vec<T>> {
    let file_len = length(file)?;
    field.within(offset, len, file_len)?;
    budget.take(len, field.format, field.name, field.at)?;
    let mut elements = Vec::new();
    elements.try_reserve_exact(count as usize).map_err(|_| Error::Limit {
        name: None,
        format: field.format,
        field: field.name.into(),
        at: Some(field.at),
        value: len,
        limit: isize::MAX as u64,
    })?;
    Ok(elements)
}

/// The length of a file in bytes.
pub(crate) fn length(file: &dyn ReadAt) -> Result<u64> {
    file.size().map_err(Error::io("reading the file length", None))
}

/// Fills `buf` from `offset`.
pub(crate) fn read(file: &dyn ReadAt, buf: &mut [u8], offset: u64) -> Result<()> {
    let len = buf.len();
    file.read_exact_at(buf, offset).map_err(|e| Error::io(format!("reading {len} bytes"), offset)(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemFile;

    const FIELD: Field = Field { format: "test", name: "table", at: 8 };

    #[test]
    fn a_table_out_of_bounds_is_refused_before_it_is_allocated() {
        let file = MemFile::from(vec![1; 100]);
        for (offset, len) in [(0, 101), (u64::MAX, 1), (1, u64::MAX), (101, 0)] {
            let error = read_table(&file, offset, len, FIELD, &Budget::new(u64::MAX)).unwrap_err();
            assert_eq!(error.kind().as_str(), "out-of-bounds", "{offset} {len}");
        }
        assert_eq!(read_table(&file, 90, 10, FIELD, &Budget::new(9)).unwrap_err().kind().as_str(), "limit");
        assert_eq!(read_table(&file, 90, 10, FIELD, &Budget::new(10)).unwrap(), [1; 10]);
    }

    #[test]
    fn entries_are_big_endian() {
        let bytes: Vec<u8> = (0..20_000u64).flat_map(u64::to_be_bytes).collect();
        let file = MemFile::from(bytes);
        let table = read_table_u64_be(&file, 8, 19_999, FIELD, &Budget::new(1 << 20)).unwrap();
        assert!(table.iter().copied().eq(1..20_000));
    }
}
