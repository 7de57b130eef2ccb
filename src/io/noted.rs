//! A target for tests that looks at what writers do.

use std::io;
use std::sync::{Arc, Mutex};

use super::{MemFile, ReadAt, WriteAt};

/// A target in memory that may be a device full of old content, and that notes what happens to it.
pub(crate) struct RecordingTarget {
    pub mem: MemFile,
    device: bool,
    /// "write" with its offset, and "sync" with 0.
    pub events: Mutex<Vec<(&'static str, u64)>>,
}

impl RecordingTarget {
    pub fn file() -> Arc<RecordingTarget> {
        Arc::new(RecordingTarget { mem: MemFile::new(), device: false, events: Mutex::default() })
    }

    /// A device of `len` bytes, none of which is zero.
    pub fn device(len: u64) -> Arc<RecordingTarget> {
        let mem = MemFile::from(vec![0xee; len as usize]);
        Arc::new(RecordingTarget { mem, device: true, events: Mutex::default() })
    }

    fn note(&self, what: &'static str, at: u64) {
        self.events.lock().unwrap().push((what, at));
    }
}

impl WriteAt for RecordingTarget {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.note("write", offset);
        self.mem.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.device {
            true if len > self.mem.size()? => Err(io::ErrorKind::StorageFull.into()),
            true => Ok(()),
            false => self.mem.set_len(len),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.note("sync", 0);
        Ok(())
    }

    fn starts_zeroed(&self) -> bool {
        !self.device
    }
}
