//! Blocks of the data area between those in use, which other programs leave there.

use super::Update;
use crate::driver::SparseUpdate;
use crate::error::Result;
use crate::format::shared::bits::BitSet;
use crate::format::vdi::map::BlockMapEntry;

/// Blocks of the data area that are looked at in one pass over the map.
const WINDOW: u32 = 8 << 20;
/// Most blocks that are found at a time.
const MOST: usize = 4096;

impl Update {
    /// Numbers of blocks that neither the map nor an allocation has, at most a few thousand of them. They may be allocated: the map on the storage
    /// does not point to them either.
    pub(super) fn holes(&mut self) -> Result<Vec<u32>> {
        self.flush()?;
        let mut found = Vec::new();
        let mut start = 0;
        while start < self.header.blocks_allocated && found.is_empty() {
            let count = (self.header.blocks_allocated - start).min(WINDOW);
            let mut used = BitSet::new(count.into());
            self.each_entry(|entry| {
                if let BlockMapEntry::Block(number) = entry {
                    number.checked_sub(start).filter(|within| *within < count).map(|within| used.insert(within.into()));
                }
            })?;
            let is_free =
                |number: &u32| !self.pending.contains(number) && used.insert((number - start).into()) == Some(false);
            found = (start..start + count).filter(is_free).take(MOST).collect();
            start += count;
        }
        Ok(found)
    }
}
