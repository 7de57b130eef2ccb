//! The table parts read last, which the next lookup is likely to need again.

use std::sync::{Arc, Mutex, PoisonError};

use super::table;
use crate::driver::Location;
use crate::error::Result;
use crate::io::ReadAt;

/// A cached part of a table.
pub(crate) struct CachedTable {
    location: Location,
    pub bytes: Vec<u8>,
}

/// A cache of table parts, most recently used first. It is small, because a chain can have hundreds of layers.
#[derive(Default)]
pub(crate) struct TableCache(Mutex<Vec<Arc<CachedTable>>>);

impl TableCache {
    const CAPACITY: usize = 4;

    /// Returns the `len` bytes at `location` of `file`, cached or read. The caller has checked that they lie within the file
    /// and that `len` is small.
    pub fn get(&self, file: &dyn ReadAt, location: Location, len: usize) -> Result<Arc<CachedTable>> {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = tables.iter().position(|table| table.location == location && table.bytes.len() == len) {
            let table = tables.remove(index);
            tables.insert(0, table.clone());
            return Ok(table);
        }
        let mut bytes = vec![0; len];
        table::read(file, &mut bytes, location.offset)?;
        let table = Arc::new(CachedTable { location, bytes });
        tables.truncate(Self::CAPACITY - 1);
        tables.insert(0, table.clone());
        Ok(table)
    }
}

impl CachedTable {
    /// The host offset in its file.
    pub fn offset(&self) -> u64 {
        self.location.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::FileId;
    use crate::io::MemFile;

    #[test]
    fn a_table_is_read_once_while_it_is_cached() {
        let file = MemFile::from(vec![1; 100]);
        let cache = TableCache::default();
        let get = |number, offset| cache.get(&file, Location { file: FileId(number), offset }, 10).unwrap();
        let first = get(0, 10);
        for (number, offset) in [(1, 10), (0, 20), (0, 30), (0, 10)] {
            get(number, offset);
        }
        assert!(Arc::ptr_eq(&first, &get(0, 10)), "still cached");
        for offset in [40, 50, 60, 70] {
            get(0, offset);
        }
        let again = get(0, 10);
        assert!(!Arc::ptr_eq(&first, &again) && again.bytes == [1; 10], "read again");
        assert_eq!(cache.get(&file, Location { file: FileId(0), offset: 95 }, 10).err().unwrap().kind().as_str(), "io");
    }
}
