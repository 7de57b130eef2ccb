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

use super::sys;

/// The first byte for permissions in use.
const USED: u64 = 100;
/// The first byte for permissions that are not shared.
const UNSHARED: u64 = 200;
/// The bytes of all permissions, with room for those that may be added.
const ALL: Range<u64> = USED..UNSHARED + 100;

const CONSISTENT_READ: u64 = 0;
const WRITE: u64 = 1;
const RESIZE: u64 = 3;

/// Marks an image as read, and its data and size as not to be changed. Returns whether that contradicts a mark of another
/// program.
pub(super) fn contradicts_reading(file: &File) -> bool {
    let mark = |byte| sys::lock_shared(file, &(byte..byte + 1));
    let is_marked = |byte| sys::is_locked(file, &(byte..byte + 1)).unwrap_or(false);
    // The own marks first: of two programs that do this at the same time, at least one sees the other.
    let marked = [USED + CONSISTENT_READ, UNSHARED + WRITE, UNSHARED + RESIZE].into_iter().try_for_each(mark);
    let is_refused = marked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    is_refused || [USED + WRITE, USED + RESIZE, UNSHARED + CONSISTENT_READ].into_iter().any(is_marked)
}

/// Whether a program has marked the file at `path` for any use. A file that cannot be opened is taken for unused.
pub(crate) fn is_in_use(path: &Path) -> bool {
    sys::open(path, true).and_then(|file| sys::is_locked(&file, &ALL)).unwrap_or(false)
}

#[cfg(all(test, target_os = "linux", target_pointer_width = "64"))]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    fn mark(path: &Path, byte: u64) -> File {
        let file = File::open(path).unwrap();
        sys::lock_shared(&file, &(byte..byte + 1)).unwrap();
        file
    }

    #[test]
    fn reading_contradicts_the_marks_of_writers() {
        let dir = TempDir::new();
        let path = dir.file("image", b"content");
        for permission in 0..5 {
            for (byte, refused) in [
                (USED + permission, [WRITE, RESIZE].contains(&permission)),
                (UNSHARED + permission, permission == CONSISTENT_READ),
            ] {
                let other = mark(&path, byte);
                let file = File::open(&path).unwrap();
                assert_eq!(contradicts_reading(&file), refused, "{byte}");
                drop(other);
                assert!(!contradicts_reading(&file), "{byte}: the mark ends with the open file");
            }
        }
    }

    #[test]
    fn a_reader_leaves_its_marks_while_the_file_is_open() {
        let dir = TempDir::new();
        let path = dir.file("image", b"content");
        let (one, two) = (File::open(&path).unwrap(), File::open(&path).unwrap());
        assert!(!is_in_use(&path));
        assert!(!contradicts_reading(&one) && !contradicts_reading(&two), "readers do not exclude each other");
        drop(two);
        let other = File::open(&path).unwrap();
        let marked: Vec<_> = ALL.filter(|byte| sys::is_locked(&other, &(*byte..byte + 1)).unwrap()).collect();
        assert_eq!(marked, [100, 201, 203]);
        assert!(is_in_use(&path));
        drop(one);
        assert!(!is_in_use(&path) && !is_in_use(&dir.join("missing")));
    }
}
