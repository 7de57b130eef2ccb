//! Pieces of tables that are kept for a while, because the next lookup is likely to need them again.

use std::sync::{Arc, Mutex, PoisonError};

use super::table;
use crate::driver::Location;
use crate::error::Result;
use crate::io::ReadAt;

/// A piece of a table.
pub(crate) struct CachedTable {
    at: Location,
    pub bytes: Vec<u8>,
}

/// The slices used last, the latest first. Few: a chain may have hundreds of layers.
#[derive(Default)]
pub(crate) struct TableCache(Mutex<Vec<Arc<CachedTable>>>);

impl TableCache {
    const KEPT: usize = 4;

    /// The `len` bytes at `at`, which is in `file`. The caller knows that they are there, and that they are few.
    pub fn get(&self, file: &dyn ReadAt, at: Location, len: usize) -> Result<Arc<CachedTable>> {
        let mut slices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = slices.iter().position(|slice| slice.at == at && slice.bytes.len() == len) {
            let slice = slices.remove(index);
            slices.insert(0, slice.clone());
            return Ok(slice);
        }
        let mut bytes = vec![0; len];
        table::read(file, &mut bytes, at.offset)?;
        let slice = Arc::new(CachedTable { at, bytes });
        slices.truncate(Self::KEPT - 1);
        slices.insert(0, slice.clone());
        Ok(slice)
    }
}

impl CachedTable {
    /// Byte offset in its file.
    pub fn offset(&self) -> u64 {
        self.at.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::FileId;
    use crate::io::MemFile;

    #[test]
    fn a_slice_is_read_once_while_it_is_kept() {
        let file = MemFile::from(vec![1; 100]);
        let slices = TableCache::default();
        let get = |number, offset| slices.get(&file, Location { file: FileId(number), offset }, 10).unwrap();
        let first = get(0, 10);
        for (number, offset) in [(1, 10), (0, 20), (0, 30), (0, 10)] {
            get(number, offset);
        }
        assert!(Arc::ptr_eq(&first, &get(0, 10)), "still kept");
        for offset in [40, 50, 60, 70] {
            get(0, offset);
        }
        let again = get(0, 10);
        assert!(!Arc::ptr_eq(&first, &again) && again.bytes == [1; 10], "read again");
        assert_eq!(
            slices.get(&file, Location { file: FileId(0), offset: 95 }, 10).err().unwrap().kind().as_str(),
            "io"
        );
    }
}
