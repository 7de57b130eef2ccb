//! Tables of fixed-size entries, such as a block allocation table, read page by page.

use std::ops::Range;
use std::sync::Arc;

use super::table_cache::{CachedTable, TableCache};
use crate::driver::{FileId, Location};
use crate::error::Result;
use crate::io::ReadAt;
use crate::limits::Budget;
use crate::zero;

/// A table of entries of `N` bytes in the image file. The pages read last are cached.
pub(crate) struct PagedTable<const N: usize> {
    file: Arc<dyn ReadAt>,
    host_offset: u64,
    table_cache: TableCache,
}

/// Consecutive entries of a [`PagedTable`].
pub(crate) struct TablePage<const N: usize> {
    /// Indexes of the entries in the table.
    pub indexes: Range<u64>,
    bytes: Arc<CachedTable>,
}

impl<const N: usize> PagedTable<N> {
    /// Bytes of an entry.
    pub const ENTRY_LEN: u64 = N as u64;
    /// Entries in a page of 16 KiB.
    pub const PAGE_ENTRIES: u64 = (16 << 10) / N as u64;

    /// The table at byte `host_offset` of `file`, which is the image file. Nothing is read.
    pub fn new(file: Arc<dyn ReadAt>, host_offset: u64, budget: &Budget) -> Self {
        PagedTable { file, host_offset, table_cache: TableCache::new(budget) }
    }

    /// The host offset of entry `index`.
    pub fn host_offset(&self, index: u64) -> u64 {
        self.host_offset + index * Self::ENTRY_LEN
    }

    /// The page of entry `index`. Pages are counted from the start of `section`, the part of the table that holds `index`, and
    /// do not cross its end. The caller has checked that the section is within the file.
    pub fn page(&self, index: u64, section: Range<u64>) -> Result<TablePage<N>> {
        let within = index.saturating_sub(section.start);
        let start = section.start + within / Self::PAGE_ENTRIES * Self::PAGE_ENTRIES;
        let end = section.end.min(start + Self::PAGE_ENTRIES).max(start);
        let location = Location { file: FileId(0), offset: self.host_offset(start) };
        let bytes = self.table_cache.get(&*self.file, location, ((end - start) * Self::ENTRY_LEN) as usize)?;
        Ok(TablePage { indexes: start..end, bytes })
    }
}

impl<const N: usize> TablePage<N> {
    /// The bytes of entry `index`; `None` outside the page.
    pub fn entry(&self, index: u64) -> Option<[u8; N]> {
        let start = index.checked_sub(self.indexes.start)? as usize;
        self.bytes.bytes.get(start.checked_mul(N)?..)?.first_chunk().copied()
    }

    /// How many of `count` entries from `index` on are equal to it, itself included; 0 outside the page.
    pub fn repeats(&self, index: u64, count: u64) -> u64 {
        self.entry(index).map_or(0, |first| self.equal(index, count, first))
    }

    /// How many of `count` entries from `index` on are `entry`, up to one that is not; 0 outside the page.
    pub fn equal(&self, index: u64, count: u64, entry: [u8; N]) -> u64 {
        const { assert!(8 % N == 0) }
        let start =
            index.checked_sub(self.indexes.start).map_or(usize::MAX, |index| (index as usize).saturating_mul(N));
        let bytes = self.bytes.bytes.get(start..).unwrap_or_default();
        let len = bytes.len().min(usize::try_from(count.saturating_mul(N as u64)).unwrap_or(usize::MAX));
        let mut pattern = [0; 8];
        pattern.as_chunks_mut().0.fill(entry);
        (zero::leading_repeats(bytes.get(..len).unwrap_or_default(), pattern) / N) as u64
    }

    /// The same page, of a table whose entries are counted otherwise: its first one has the index `first`.
    pub fn renumbered(self, first: u64) -> Self {
        let len = self.indexes.end - self.indexes.start;
        TablePage { indexes: first..first + len, ..self }
    }

    /// The host offset of entry `index`, which is at or after the start of the page.
    pub fn host_offset(&self, index: u64) -> u64 {
        self.bytes.offset() + index.saturating_sub(self.indexes.start) * N as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::io::MemFile;

    #[test]
    fn equal_entries_are_counted() {
        let bytes = [[1, 1], [2, 1], [2, 1], [2, 1], [1, 2]].concat();
        let table = PagedTable::<2>::new(Arc::new(MemFile::from(bytes)), 0, &Budget::new(0));
        let page = table.page(0, 0..5).unwrap();
        assert_eq!([0, 1, 2, 3, 4, 5].map(|index| page.repeats(index, 9)), [1, 3, 2, 1, 1, 0]);
        assert_eq!([0, 1, 2].map(|count| page.repeats(1, count)), [0, 1, 2]);
        assert_eq!([0, 1, 3, 4, 5].map(|index| page.equal(index, 9, [2, 1])), [0, 3, 1, 0, 0]);
        let page = page.renumbered(7);
        assert_eq!((page.indexes.clone(), page.entry(7), page.entry(11)), (7..12, Some([1, 1]), Some([1, 2])));
        assert_eq!([6, 7, 8, 12].map(|index| page.repeats(index, 9)), [0, 1, 3, 0]);
        assert_eq!(page.host_offset(8), 2);
    }

    proptest! {
        #[test]
        fn equal_entries_are_found_at_any_length(entry in 0u32..3, run in 0u64..200, after in 0u64..70, count in 0u64..300) {
            let entries = std::iter::repeat_n(entry, run as usize).chain(std::iter::repeat_n(9, after as usize));
            let bytes: Vec<u8> = entries.flat_map(u32::to_le_bytes).collect();
            let table = PagedTable::<4>::new(Arc::new(MemFile::from(bytes)), 0, &Budget::new(0));
            let page = table.page(0, 0..run + after).unwrap();
            prop_assert_eq!(page.equal(0, count, entry.to_le_bytes()), run.min(count));
            prop_assert_eq!(page.repeats(run, count), after.min(count));
        }
    }

    #[test]
    fn pages_start_with_their_section_and_end_with_it() {
        let mut bytes = vec![0xee; 8];
        bytes.extend((0..10_000u32).flat_map(u32::to_le_bytes));
        let table = PagedTable::<4>::new(Arc::new(MemFile::from(bytes)), 8, &Budget::new(0));
        for (index, section, indexes) in [
            (0, 0..10_000, 0..4096),
            (4095, 0..10_000, 0..4096),
            (4096, 0..10_000, 4096..8192),
            (9999, 0..10_000, 8192..10_000),
            (9999, 100..10_000, 8292..10_000),
            (99, 99..100, 99..100),
        ] {
            let page = table.page(index, section).unwrap();
            assert_eq!(page.indexes, indexes);
            let entry = page.entry(index).map(u32::from_le_bytes);
            assert_eq!((entry, page.host_offset(index)), (Some(index as u32), 8 + index * 4));
            assert_eq!([page.entry(indexes.start.wrapping_sub(1)), page.entry(indexes.end)], [None; 2]);
        }
        let page = table.page(9_000, 0..10_000).unwrap();
        assert_eq!([page.repeats(9_000, 5), page.repeats(9_999, 5), page.repeats(10_000, 5)], [1, 1, 0]);
        assert_eq!(table.page(10_000, 0..10_001).err().unwrap().kind().as_str(), "io");
    }
}
