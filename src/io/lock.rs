//! The locks of QEMU on image files.
//!
//! QEMU marks single bytes of an image file with locks for as long as it has the file open: byte 100 + n while it uses
//! permission n, and byte 200 + n while it does not share permission n with others. All locks are shared ones. What excludes
//! a use is the mark of another program on the other byte of the same permission.
//!
//! The locks belong to the open file (`F_OFD_SETLK` of Linux). Where the system or the file system has none, nobody has marked
//! anything.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use super::{FileIdentity, sys};

/// The first byte for permissions in use.
const USED: u64 = 100;
/// The first byte for permissions that are not shared.
const UNSHARED: u64 = 200;
/// The bytes of all permissions, with room for those that may be added.
const ALL: Range<u64> = USED..UNSHARED + 100;

const CONSISTENT_READ: u64 = 0;
const WRITE: u64 = 1;
const RESIZE: u64 = 3;

/// The marks of a program, and those of others that contradict them.
struct Marks {
    own: &'static [u64],
    contradicting: &'static [u64],
}

/// A reader does not share writing.
static READER: Marks = Marks {
    own: &[USED + CONSISTENT_READ, UNSHARED + WRITE, UNSHARED + RESIZE],
    contradicting: &[UNSHARED + CONSISTENT_READ, USED + WRITE, USED + RESIZE],
};

/// A writer of a new image shares nothing.
static WRITER: Marks = Marks {
    own: &[USED + WRITE, USED + RESIZE, UNSHARED + CONSISTENT_READ, UNSHARED + WRITE, UNSHARED + RESIZE],
    contradicting: &[UNSHARED + WRITE, UNSHARED + RESIZE, USED + CONSISTENT_READ, USED + WRITE, USED + RESIZE],
};

/// A writer that changes an image shares reading with nobody that relies on the data or the size.
static UPDATER: Marks = Marks {
    own: &[USED + CONSISTENT_READ, USED + WRITE, USED + RESIZE, UNSHARED + WRITE, UNSHARED + RESIZE],
    contradicting: &[UNSHARED + CONSISTENT_READ, UNSHARED + WRITE, UNSHARED + RESIZE, USED + WRITE, USED + RESIZE],
};

impl Marks {
    /// Sets the marks, until [`stop`].
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if another program has a contradicting one.
    fn set(&self, file: &File) -> io::Result<()> {
        let marked = self.own.iter().try_for_each(|byte| sys::set_lock(file, &(*byte..byte + 1), true));
        let refused = marked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        // The own marks come first: of two programs that do this at the same time, at least one sees the other.
        if refused || self.contradicting.iter().any(|byte| is_marked(file, *byte)) {
            stop(file);
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        Ok(())
    }
}

/// Marks an image as read, and its data and size as not to be changed, until [`stop`].
///
/// # Errors
/// [`io::ErrorKind::ResourceBusy`] if another program has marked it for writing.
pub(super) fn start_reading(file: &File) -> io::Result<()> {
    READER.set(file)
}

/// Marks an image as read and changed, until [`stop`].
///
/// # Errors
/// [`io::ErrorKind::ResourceBusy`] if another program has marked it for writing, or relies on it as it is.
pub(super) fn start_updating(file: &File) -> io::Result<()> {
    UPDATER.set(file)
}

/// Removes all marks. Closing the file is not enough: a process that was started meanwhile may still have it open.
pub(super) fn stop(file: &File) {
    // Where this fails, marking has failed too.
    let _ = sys::set_lock(file, &ALL, false);
}

/// The marks of a writer, for as long as it lives.
#[derive(Debug)]
pub(crate) struct WriteLock(File);

impl WriteLock {
    /// Marks the file at `path`, if it is the one with this identity; `None` if it is not, or cannot be opened for reading, as locks need
    /// it.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if another program has marked it for any use.
    pub fn new(path: &Path, identity: &FileIdentity) -> io::Result<Option<WriteLock>> {
        let Ok(file) = sys::open(path, true) else { return Ok(None) };
        if FileIdentity::from_file(&file).is_ok_and(|other| other == *identity) {
            WRITER.set(&file)?;
            return Ok(Some(WriteLock(file)));
        }
        Ok(None)
    }
}

impl Drop for WriteLock {
    fn drop(&mut self) {
        stop(&self.0);
    }
}

/// Whether the file at `path` is marked for any use. A file that cannot be opened is taken for unused.
pub(crate) fn is_in_use(path: &Path) -> bool {
    sys::open(path, true).and_then(|file| sys::is_locked(&file, &ALL)).unwrap_or(false)
}

/// Whether another open file has a mark on the byte.
fn is_marked(file: &File, byte: u64) -> bool {
    sys::is_locked(file, &(byte..byte + 1)).unwrap_or(false)
}

#[cfg(all(test, target_os = "linux", target_pointer_width = "64"))]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn reading_and_writing_contradict_the_marks_of_others() {
        let dir = TempDir::new();
        let path = dir.file("image", b"content");
        let (file, other) = (File::open(&path).unwrap(), File::open(&path).unwrap());
        for byte in (USED..USED + 5).chain(UNSHARED..UNSHARED + 5) {
            sys::set_lock(&other, &(byte..byte + 1), true).unwrap();
            assert!(is_in_use(&path), "{byte}");
            let started = start_reading(&file);
            assert_eq!(started.is_err(), [101, 103, 200].contains(&byte), "{byte}: {started:?}");
            stop(&file);
            let started = start_updating(&file);
            assert_eq!(started.is_err(), [101, 103, 200, 201, 203].contains(&byte), "{byte}: {started:?}");
            stop(&file);
            let writing = WriteLock::new(&path, &FileIdentity::from_file(&file).unwrap());
            assert_eq!(writing.is_err(), [100, 101, 103, 201, 203].contains(&byte), "{byte}: {writing:?}");
            drop(writing);
            sys::set_lock(&other, &(byte..byte + 1), false).unwrap();
            assert!(!is_in_use(&path), "{byte}");
        }
    }

    #[test]
    fn a_reader_leaves_its_marks_until_it_ends() {
        let dir = TempDir::new();
        let path = dir.file("image", b"content");
        let files = [(); 3].map(|()| File::open(&path).unwrap());
        let [one, two, other] = &files;
        let marked = || ALL.filter(|byte| is_marked(other, *byte)).collect::<Vec<_>>();
        // Readers do not exclude each other.
        start_reading(one).unwrap();
        start_reading(two).unwrap();
        stop(two);
        assert_eq!((marked(), is_in_use(&path)), (vec![100, 201, 203], true));
        stop(one);
        assert_eq!((marked(), is_in_use(&path)), (vec![], false));
        assert!(!is_in_use(&dir.join("missing")));
        let identity = FileIdentity::from_file(one).unwrap();
        let writing = WriteLock::new(&path, &identity).unwrap();
        assert_eq!((marked(), writing.is_some()), (vec![101, 103, 200, 201, 203], true));
        assert!(WriteLock::new(&path, &identity).is_err() && start_reading(one).is_err());
        drop(writing);
        assert!(marked().is_empty());
        let another = dir.file("another", b"content");
        assert!(WriteLock::new(&another, &identity).unwrap().is_none());
    }
}
