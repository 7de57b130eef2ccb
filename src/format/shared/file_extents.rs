//! Data and holes of a file that holds guest data unencoded.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::driver::{ExtentKind, FileId, Location};
use crate::error::{Error, Result};
use crate::io::ReadAt;

/// The extents of a file that holds guest data unencoded. Its holes read as zeros.
pub(crate) struct FileExtents {
    file: Arc<dyn ReadAt>,
    id: FileId,
    /// The data range found last. Querying the file system again can cost as much as reading the data.
    last_data: Mutex<Range<u64>>,
}

impl FileExtents {
    /// The extents of `file`, which is file `id` of the image.
    pub fn new(file: Arc<dyn ReadAt>, id: FileId) -> FileExtents {
        FileExtents { file, id, last_data: Mutex::default() }
    }

    /// The kind of the extent at host offset `offset`, and its length up to `end`.
    pub fn extent(&self, offset: u64, end: u64) -> Result<(ExtentKind, u64)> {
        let mut data = self.last_data.lock().unwrap_or_else(PoisonError::into_inner);
        if !data.contains(&offset) {
            let next = self.file.next_data(offset).map_err(Error::io("looking for data", offset))?;
            *data = next.unwrap_or(u64::MAX..u64::MAX);
        }
        let location = Location { file: self.id, offset };
        Ok(if data.start > offset {
            (ExtentKind::Zero { allocated: Some(location) }, data.start.min(end) - offset)
        } else {
            (ExtentKind::Data(location), data.end.min(end).max(offset + 1) - offset)
        })
    }
}
