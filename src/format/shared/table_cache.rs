//! The table parts read last, which later lookups are likely to need again.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::table;
use crate::driver::Location;
use crate::error::Result;
use crate::io::ReadAt;
use crate::limits::{Budget, TableRoom};

/// A cached part of a table.
pub(crate) struct CachedTable {
    location: Location,
    pub bytes: Vec<u8>,
}

/// A cache of table parts. Readers do not wait for each other, unless a part is added, and not for the storage.
///
/// A chain can have hundreds of layers, so that all of them share the room for what is more than a few parts.
pub(crate) struct TableCache {
    parts: RwLock<Parts>,
    room: Arc<TableRoom>,
}

/// The parts, of which the clock algorithm replaces one that was not used since the hand passed it.
#[derive(Default)]
struct Parts {
    indexes: HashMap<(Location, usize), usize, LocationHash>,
    slots: Vec<Slot>,
    hand: usize,
}

struct Slot {
    table: Arc<CachedTable>,
    is_used: AtomicBool,
    /// Bytes of the shared room.
    taken: usize,
}

/// A hash of locations. That of the standard library takes a fifth of a lookup. It has a random key too, since an image decides where its
/// tables are.
#[derive(Clone)]
struct LocationHash(u64);

/// Multiplies each number with the key that the ones before it changed, and mixes both halves of the product.
struct LocationHasher(u64);

impl Default for LocationHash {
    fn default() -> Self {
        LocationHash(RandomState::new().hash_one(0))
    }
}

impl BuildHasher for LocationHash {
    type Hasher = LocationHasher;

    fn build_hasher(&self) -> LocationHasher {
        LocationHasher(self.0)
    }
}

impl Hasher for LocationHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(number ^ self.0) * u128::from(self.0 | 1);
        self.0 = self.0.rotate_left(23) ^ product as u64 ^ (product >> 64) as u64;
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl TableCache {
    /// Parts that do not count against the limit.
    const FREE: usize = 4;
    /// Bytes of memory for a part besides its own.
    const OVERHEAD: usize = 160;

    /// An empty cache, in the room of the chain that `budget` is for.
    pub fn new(budget: &Budget) -> TableCache {
        TableCache { parts: RwLock::default(), room: budget.table_room() }
    }

    /// Returns the `len` bytes at `location` of `file`, cached or read. The caller has checked that they lie within the file
    /// and that `len` is small.
    pub fn get(&self, file: &dyn ReadAt, location: Location, len: usize) -> Result<Arc<CachedTable>> {
        if let Some(table) = self.parts.read().unwrap_or_else(PoisonError::into_inner).find(location, len) {
            return Ok(table);
        }
        let mut bytes = vec![0; len];
        table::read(file, &mut bytes, location.offset)?;
        let mut parts = self.parts.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have read it meanwhile.
        Ok(match parts.find(location, len) {
            Some(table) => table,
            None => parts.add(CachedTable { location, bytes }, &self.room),
        })
    }
}

impl Parts {
    fn find(&self, location: Location, len: usize) -> Option<Arc<CachedTable>> {
        let slot = self.slots.get(*self.indexes.get(&(location, len))?)?;
        // A store by each reader would take the cache line from the others.
        if !slot.is_used.load(Ordering::Relaxed) {
            slot.is_used.store(true, Ordering::Relaxed);
        }
        Some(slot.table.clone())
    }

    fn add(&mut self, table: CachedTable, room: &TableRoom) -> Arc<CachedTable> {
        let size = table.bytes.len() + TableCache::OVERHEAD;
        let table = Arc::new(table);
        let (index, taken) = match self.slots.len() {
            len if len < TableCache::FREE => (len, 0),
            len if room.resize(0, size) => (len, size),
            _ => self.replaceable(size, room),
        };
        let slot = Slot { table: table.clone(), is_used: AtomicBool::new(false), taken };
        match self.slots.get_mut(index) {
            Some(old) => {
                let old = std::mem::replace(old, slot).table;
                self.indexes.remove(&old.key());
            }
            None => self.slots.push(slot),
        }
        self.indexes.insert(table.key(), index);
        table
    }

    /// The slot to replace by a part of `size` bytes, and what that takes of the room.
    fn replaceable(&mut self, size: usize, room: &TableRoom) -> (usize, usize) {
        loop {
            let index = self.hand % self.slots.len().max(1);
            self.hand = index + 1;
            match self.slots.get(index) {
                Some(slot) if slot.is_used.swap(false, Ordering::Relaxed) => {}
                Some(slot) if slot.taken > 0 && room.resize(slot.taken, size) => return (index, size),
                // The first slots do not count against the limit.
                _ => return (index % TableCache::FREE, 0),
            }
        }
    }
}

impl Drop for TableCache {
    fn drop(&mut self) {
        let parts = self.parts.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.room.resize(parts.slots.iter().map(|slot| slot.taken).sum(), 0);
    }
}

impl CachedTable {
    /// The host offset in its file.
    pub fn offset(&self) -> u64 {
        self.location.offset
    }

    fn key(&self) -> (Location, usize) {
        (self.location, self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::FileId;
    use crate::io::MemFile;

    fn at(number: u32, offset: u64) -> Location {
        Location { file: FileId(number), offset }
    }

    #[test]
    fn a_table_is_read_once_while_it_is_cached() {
        let file = MemFile::from(vec![1; 100]);
        let cache = TableCache { parts: RwLock::default(), room: Arc::new(TableRoom::new(0)) };
        let get = |number, offset| cache.get(&file, at(number, offset), 10).unwrap();
        let first = get(0, 10);
        for (number, offset) in [(1, 10), (0, 20), (0, 30), (0, 10), (0, 40), (0, 50)] {
            get(number, offset);
        }
        assert!(Arc::ptr_eq(&first, &get(0, 10)), "used again, so still cached");
        for offset in [60, 70, 80, 55, 65] {
            get(0, offset);
        }
        let again = get(0, 10);
        assert!(!Arc::ptr_eq(&first, &again) && again.bytes == [1; 10], "read again");
        assert_eq!(cache.get(&file, at(0, 95), 10).err().unwrap().kind().as_str(), "io");
    }

    #[test]
    fn caches_share_their_room() {
        let file = MemFile::from(vec![1; 10_000]);
        let room = Arc::new(TableRoom::new(10 * (100 + TableCache::OVERHEAD)));
        let new = || TableCache { parts: RwLock::default(), room: room.clone() };
        let (a, b) = (new(), new());
        let kept = |cache: &TableCache| {
            let parts = cache.parts.read().unwrap();
            assert_eq!(parts.indexes.len(), parts.slots.len());
            for (key, index) in &parts.indexes {
                assert_eq!(parts.slots[*index].table.key(), *key);
            }
            let bytes: usize = parts.slots.iter().map(|slot| slot.taken).sum();
            (parts.slots.len(), bytes)
        };
        (0..50).for_each(|index| _ = a.get(&file, at(0, index * 100), 100).unwrap());
        assert_eq!(kept(&a), (14, 10 * (100 + TableCache::OVERHEAD)));
        // Larger ones replace only those that do not count, smaller ones give some memory back.
        (0..50).for_each(|index| _ = b.get(&file, at(0, index * 100), 100).unwrap());
        (0..50).for_each(|index| _ = a.get(&file, at(1, index * 100), 200).unwrap());
        assert_eq!((kept(&a).1, kept(&b)), (10 * (100 + TableCache::OVERHEAD), (4, 0)));
        (0..50).for_each(|index| _ = a.get(&file, at(2, index * 10), 10).unwrap());
        assert!(kept(&a).1 <= 10 * (100 + TableCache::OVERHEAD));
        drop(a);
        (0..50).for_each(|index| _ = b.get(&file, at(0, index * 100), 100).unwrap());
        assert_eq!(kept(&b).0, 14, "the room of a closed image");
    }

    #[cfg(not(target_family = "wasm"))] // WASI has no threads.
    #[test]
    fn threads_get_the_same_tables() {
        let file = MemFile::from((0..=255).collect::<Vec<u8>>());
        let cache = TableCache { parts: RwLock::default(), room: Arc::new(TableRoom::new(1000)) };
        std::thread::scope(|scope| {
            for step in [1, 3, 7, 11] {
                let (cache, file) = (&cache, &file);
                scope.spawn(move || {
                    for index in 0..5000 {
                        let offset = index * step % 250;
                        assert_eq!(cache.get(file, at(0, offset), 1).unwrap().bytes, [offset as u8]);
                    }
                });
            }
        });
    }
}
