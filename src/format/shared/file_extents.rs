//! The runs of data in a file that holds guest bytes as they are.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::driver::{ExtentKind, FileId, Location};
use crate::error::{Error, Result};
use crate::io::ReadAt;

/// A file that holds guest bytes as they are. Its holes read as zeros.
pub(crate) struct FileExtents {
    file: Arc<dyn ReadAt>,
    id: FileId,
    /// The run of data found last: looking for its end again can cost as much as reading it.
    last: Mutex<Range<u64>>,
}

impl FileExtents {
    pub fn new(file: Arc<dyn ReadAt>, id: FileId) -> FileExtents {
        FileExtents { file, id, last: Mutex::default() }
    }

    /// How the bytes from `offset` on live, and how many of those before `end` live in the same way.
    pub fn extent(&self, offset: u64, end: u64) -> Result<(ExtentKind, u64)> {
        let mut run = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !run.contains(&offset) {
            let next = self.file.next_data(offset).map_err(Error::io("looking for data", offset))?;
            *run = next.unwrap_or(u64::MAX..u64::MAX);
        }
        let place = Location { file: self.id, offset };
        Ok(if run.start > offset {
            (ExtentKind::Zero { allocated: Some(place) }, run.start.min(end) - offset)
        } else {
            (ExtentKind::Data(place), run.end.min(end).max(offset + 1) - offset)
        })
    }
}
