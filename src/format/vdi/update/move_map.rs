//! A larger map. It moves to where the first blocks of the data area are, which move to the end of the data area.
//!
//! Entries are relative to the data area, and the data area begins after the map, so that every entry changes. At first the blocks move, by
//! the old map. Then the new map is written where nothing is any more, and one sector of the header switches to it.

use super::{CHUNK, HEADER, MAP, Update};
use crate::driver::{ExtentKind, SparseUpdate};
use crate::error::{Error, Result};
use crate::format::shared::table;
use crate::format::vdi::header::{DATA_OFFSET_AT, MAP_OFFSET_AT};
use crate::format::vdi::map::BlockMapEntry;
use crate::format::vdi::{FORMAT_NAME, SECTOR};

/// Bytes of a block that are copied at once.
const COPIED: u64 = 1 << 20;

impl Update {
    /// The number of entries that the space of the map holds.
    pub(super) fn map_capacity(&self) -> u64 {
        (self.header.data_offset - self.header.map_offset) / BlockMapEntry::LEN
    }

    /// Makes the map large enough for this number of entries, and fills it with those of blocks without data.
    ///
    /// # Errors
    /// [`Error::Limit`] if the map would be beyond the first 4 GiB, or if fewer blocks are free than have to move: the map could not tell where
    /// they are. Errors of the storage. The image is as before.
    pub(super) fn move_map(&mut self, entries: u64) -> Result<()> {
        self.flush()?;
        let stride = self.header.stride();
        let map_len = (entries * BlockMapEntry::LEN).next_multiple_of(SECTOR);
        let moved = map_len.div_ceil(stride);
        let data_offset = self.header.data_offset + moved * stride;
        let used = self.blocks_in_use()?;
        let first = self.entries_below(moved)?;
        let end = u64::from(used).max(moved) + first.len() as u64;
        if data_offset > u32::MAX.into() || end > self.header.blocks.into() {
            let field = "virtual size, limited by the block map";
            let (value, limit) = (entries, self.map_capacity());
            let [value, limit] = [value, limit].map(|entries| entries.saturating_mul(self.block_size()));
            return Err(Error::limit(FORMAT_NAME, field, value, limit));
        }
        self.move_blocks(&first, u64::from(used).max(moved))?;
        self.write_map(data_offset, entries, moved)?;
        self.switch(data_offset, moved, end)
    }

    /// The indexes of the entries that point to one of the first `count` blocks of the data area.
    fn entries_below(&mut self, count: u64) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        let mut index = 0;
        self.each_entry(|entry| {
            if matches!(entry, BlockMapEntry::Block(number) if u64::from(number) < count) {
                found.push(index);
            }
            index += 1;
        })?;
        Ok(found)
    }

    /// Moves the blocks of these entries to the numbers from `first` on.
    fn move_blocks(&mut self, entries: &[u64], first: u64) -> Result<()> {
        let (stride, extra) = (self.header.stride(), u64::from(self.header.block_extra));
        for (index, number) in entries.iter().copied().zip(first..) {
            let entry = self.entry(index)?;
            let (kind, _) = self.header.extent(entry, index * self.block_size(), self.file_len)?;
            let ExtentKind::Data(from) = kind else { continue };
            let (from, to) = (from.offset - extra, self.header.host_offset(number as u32) - extra);
            // The last block of a file may end with the disk.
            let len = stride.min(self.file_len.saturating_sub(from));
            self.grow_file(to + stride)?;
            let mut bytes = Vec::new();
            for at in (0..len).step_by(COPIED as usize) {
                bytes.resize(COPIED.min(len - at) as usize, 0);
                table::read(&*self.file, &mut bytes, from + at)?;
                self.file.write_all_at(&bytes, to + at).map_err(Error::io("moving a block", to + at))?;
            }
        }
        // The blocks are durable before the map points to them.
        self.flush()?;
        let end = first + entries.len() as u64;
        self.set_blocks_allocated(self.header.blocks_allocated.max(end as u32))?;
        for (index, number) in entries.iter().copied().zip(first..) {
            if self.pages.is_full() {
                self.flush()?;
            }
            self.set_entry(index, BlockMapEntry::Block(number as u32), MAP)?;
        }
        self.flush()
    }

    /// Writes a map of `entries` entries to where the data area begins now, for a data area that begins `moved` blocks later.
    fn write_map(&mut self, data_offset: u64, entries: u64, moved: u64) -> Result<()> {
        self.grow_file(data_offset)?;
        let empty = self.empty_entry();
        let (file, start) = (self.file.clone(), self.header.data_offset);
        let (mut bytes, mut at) = (Vec::with_capacity(CHUNK as usize), start);
        let write = |bytes: &mut Vec<u8>, at: &mut u64| {
            file.write_all_at(bytes, *at).map_err(Error::io("writing the block map", *at))?;
            *at += bytes.len() as u64;
            bytes.clear();
            Ok(())
        };
        let old = self.header.map_len() / BlockMapEntry::LEN;
        let mut written = Ok(());
        let mut push = |entry: BlockMapEntry| {
            bytes.extend(entry.encode().to_le_bytes());
            if bytes.len() as u64 >= CHUNK && written.is_ok() {
                written = write(&mut bytes, &mut at);
            }
        };
        self.each_entry(|entry| {
            push(match entry {
                BlockMapEntry::Block(number) => BlockMapEntry::Block(number - moved as u32),
                other => other,
            });
        })?;
        // Up to the end of a sector.
        (old..entries.next_multiple_of(SECTOR / BlockMapEntry::LEN)).for_each(|_| push(empty));
        written?;
        write(&mut bytes, &mut at)?;
        // A page with the end of the old map may have what was after it.
        self.pages.forget(&(start..data_offset));
        self.file.sync().map_err(Error::io("syncing", None))
    }

    /// Makes the new map that of the image, by one sector of the header.
    fn switch(&mut self, data_offset: u64, moved: u64, end: u64) -> Result<()> {
        let map_offset = self.header.data_offset;
        self.pages.write(&(map_offset as u32).to_le_bytes(), MAP_OFFSET_AT, HEADER)?;
        self.pages.write(&(data_offset as u32).to_le_bytes(), DATA_OFFSET_AT, HEADER)?;
        self.set_blocks_allocated((end - moved) as u32)?;
        (self.header.map_offset, self.header.data_offset) = (map_offset, data_offset);
        self.released.clear();
        self.is_counted = false;
        self.flush()
    }

    /// Calls `see` with each entry of the map, which has no changes in memory.
    pub(super) fn each_entry(&self, mut see: impl FnMut(BlockMapEntry)) -> Result<()> {
        let mut bytes = Vec::new();
        for at in (0..self.header.map_len()).step_by(CHUNK as usize) {
            bytes.resize(CHUNK.min(self.header.map_len() - at) as usize, 0);
            table::read(&*self.file, &mut bytes, self.header.map_offset + at)?;
            bytes.as_chunks::<4>().0.iter().for_each(|entry| see(BlockMapEntry::parse(u32::from_le_bytes(*entry))));
        }
        Ok(())
    }
}
