//! Files that are written in place.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Rules, close};
use crate::error::{Error, Result};
use crate::io::{FileIdentity, FileStatus, FileTarget, WriteAt, WriteLock};

/// A file that is written in place. The content of an existing one is untouched until the first write. Dropping it after that and before
/// [`finish`](InPlace::finish) empties it, so that a part of an image is never taken for an image. A device is not emptied, nor is an image into
/// which guest data is written.
pub(super) struct InPlace {
    file: Arc<Existing>,
    finished: bool,
    /// The path, if the file is new.
    created: Option<PathBuf>,
    /// Keeps machines from being started with it, and other conversions from writing to it.
    lock: Option<WriteLock>,
}

impl InPlace {
    /// Opens the file at `path`, which is the one that `status` describes.
    pub fn open(path: &Path, status: &FileStatus, rules: &Rules) -> Result<InPlace> {
        let device = status.kind.is_device();
        let (action, open): (_, fn(&Path) -> _) = match device {
            true => ("opening the device", FileTarget::open_device),
            false => ("opening the file for writing", FileTarget::open_existing),
        };
        let file = open(path).map_err(Error::io(action, None))?;
        let identity = FileIdentity::from_file(file.file()).map_err(Error::io(action, None))?;
        if identity != status.identity {
            return Err(Error::Usage("the file was replaced meanwhile".into()));
        }
        let lock = WriteLock::new(path, &identity).map_err(|cause| match cause.kind() {
            io::ErrorKind::ResourceBusy => Error::InUse { for_writing: false },
            _ => Error::io("locking", None)(cause),
        })?;
        let file = rules.apply(file.with_path(path))?;
        let (keep, emptied) = (rules.existing, AtomicBool::new(device || rules.existing));
        let file = Existing { file, keep, emptied, emptying: Mutex::default() };
        Ok(InPlace { file: Arc::new(file), finished: false, created: None, lock })
    }

    /// Creates the file at `path`. Dropping it before [`finish`](InPlace::finish) removes it.
    pub fn create(path: &Path, rules: &Rules) -> Result<InPlace> {
        let file = FileTarget::create_new(path).map_err(Error::io("creating the file", None))?;
        let file = rules.apply(file.with_path(path))?;
        let file = Existing { file, keep: false, emptied: AtomicBool::new(true), emptying: Mutex::default() };
        Ok(InPlace { file: Arc::new(file), finished: false, created: Some(path.to_owned()), lock: None })
    }

    /// The file to write to.
    pub fn file(&self) -> Arc<dyn WriteAt> {
        self.file.clone()
    }

    pub fn bypasses_cache(&self) -> bool {
        self.file.file.bypasses_cache()
    }

    pub fn is_empty(&self) -> bool {
        self.file.file.file().metadata().is_ok_and(|metadata| metadata.len() == 0)
    }

    /// Closes the file, which holds a complete image. The writer has synced and released it.
    pub fn finish(mut self) -> Result<()> {
        // An image may be empty.
        self.file.empty().map_err(Error::io("emptying the file", None))?;
        let (file, lock) = (self.file.clone(), self.lock.take());
        self.finished = Arc::strong_count(&file) == 2;
        drop(self);
        let closed = close(file, |existing| existing.file.close());
        drop(lock);
        closed
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        match self.created.take() {
            // There is no way to report an error.
            Some(path) => drop(fs::remove_file(path)),
            None => self.file.discard(),
        }
    }
}

/// Empties the file before the first write, unless its content is kept.
struct Existing {
    file: FileTarget,
    keep: bool,
    emptied: AtomicBool,
    /// Held by the thread that empties it.
    emptying: Mutex<()>,
}

impl Existing {
    fn empty(&self) -> io::Result<()> {
        if self.emptied.load(Ordering::Acquire) {
            return Ok(());
        }
        let _emptying = self.emptying.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.emptied.load(Ordering::Acquire) {
            // Of the file itself: it may be one that is to have no holes, which counts from here.
            self.file.file().set_len(0)?;
            self.emptied.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn discard(&self) {
        if self.emptied.load(Ordering::Acquire) && self.starts_zeroed() {
            // There is no way to report an error.
            let _ = self.file.set_len(0);
        }
    }
}

impl WriteAt for Existing {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.empty()?;
        self.file.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.empty()?;
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn starts_zeroed(&self) -> bool {
        !self.keep && self.file.starts_zeroed()
    }

    fn path(&self) -> Option<&Path> {
        self.file.path()
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        self.empty()?;
        self.file.zero_range(range)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.empty()?;
        self.file.allocate(range)
    }

    fn clone_unit(&self, source: &File) -> Option<u64> {
        self.file.clone_unit(source)
    }

    fn clone_range(&self, source: &File, offset: u64, range: Range<u64>) -> io::Result<()> {
        self.empty()?;
        self.file.clone_range(source, offset, range)
    }
}
