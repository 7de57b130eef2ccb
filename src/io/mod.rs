//! Storage: positioned reads and writes, shared by threads, without a cursor.
//!
//! [`ReadAt`] and [`WriteAt`] are implemented for [`std::fs::File`], for memory, and through references, `Arc` and `Box`.
//! Implement them for storage of your own.
//!
//! # Platforms
//!
//! | | holes found by | holes made by | durable by | devices | locks of QEMU |
//! |---|---|---|---|---|---|
//! | Linux | `SEEK_DATA` | `fallocate` | `fsync` | read, write | `F_OFD_SETLK` (64-bit) |
//! | macOS | `SEEK_DATA` | `F_PUNCHHOLE` | `F_FULLFSYNC` | read (`/dev/disk`, `/dev/rdisk`), write | |
//! | FreeBSD | `SEEK_DATA` | zeros are written | `fsync` | read, write of whole sectors | |
//! | Windows | `FSCTL_QUERY_ALLOCATED_RANGES` | `FSCTL_SET_ZERO_DATA` | `FlushFileBuffers` | read (`\\.\PhysicalDrive0`) | |
//! | WASI | | zeros are written | `fd_sync` | | |
//!
//! On targets without files, such as `wasm32-unknown-unknown`, images are in memory or in storage of the caller. Functions
//! that take a path fail there with [`io::ErrorKind::Unsupported`].

mod cache;
mod direct;
mod directory;
mod file;
mod filler;
mod lock;
mod mem;
#[cfg(feature = "mmap")]
mod mmap;
mod pipe;
mod sys;
mod window;

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub use cache::CacheMode;
pub use directory::{MemDirectory, TargetDirectory};
pub(crate) use file::{FileDirectory, FileStatus, NotOpened};
pub use file::{FileIdentity, FileSource, FileStorage, FileTarget};
pub(crate) use lock::{WriteLock, is_in_use};
pub use mem::MemFile;
#[cfg(feature = "mmap")]
pub use mmap::MapSource;
pub use pipe::PipeTarget;
pub(crate) use sys::{
    FileKind, address_space, directory_of, path_from_bytes, rename_new, resolve, sync_directory, unix_time,
};
#[cfg(feature = "packages")]
pub(crate) use window::{Piece, Window};
pub use window::{range_of, zeros};

/// A file that is read at offsets.
///
/// # Examples
///
/// Storage of another kind, here a disk whose bytes count up:
///
/// ```
/// use std::io;
///
/// use diskimage::io::ReadAt;
///
/// struct Counter(u64);
///
/// impl ReadAt for Counter {
///     fn size(&self) -> io::Result<u64> {
///         Ok(self.0)
///     }
///
///     fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
///         let len = self.0.saturating_sub(offset).min(buf.len() as u64) as usize;
///         for (byte, at) in buf[..len].iter_mut().zip(offset..) {
///             *byte = at as u8;
///         }
///         Ok(len)
///     }
/// }
///
/// # fn main() -> io::Result<()> {
/// let mut buf = [0; 3];
/// Counter(100).read_exact_at(&mut buf, 97)?;
/// assert_eq!(buf, [97, 98, 99]);
/// assert_eq!(Counter(100).next_data(10)?, Some(10..u64::MAX), "no holes");
/// # Ok(())
/// # }
/// ```
pub trait ReadAt: Send + Sync {
    /// Returns the length in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Reads up to `buf.len()` bytes at `offset` and returns how many; 0 only at the end or for an empty `buf`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] when the file ends before.
    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match self.read_at(buf, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    buf = buf.get_mut(n..).unwrap_or_default();
                    offset += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Returns the identity of the file on this machine, the same for all its names; `None` if the storage has none.
    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        Ok(None)
    }

    /// Returns the allocated size in bytes; `None` if the storage cannot tell.
    fn allocated(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Returns the next range of data at or after `offset`; `None` if only a hole follows. The range may extend beyond the end
    /// of the file. Holes only save reading: where in doubt, return data. By default everything is data, without a query of the
    /// length, which a remote storage would have to answer.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok(Some(offset..u64::MAX))
    }

    /// Verifies what was read, where that is not done by each read: a checksum comes after the data. A conversion calls it before it
    /// completes the new image. By default there is nothing to verify.
    ///
    /// # Errors
    /// The data is not what the file says it is.
    fn verify(&self) -> io::Result<()> {
        Ok(())
    }

    /// The name for messages, where the storage has one, such as a URI. A path with which it was opened comes first.
    fn name(&self) -> Option<&Path> {
        None
    }

    /// Whether reads bypass the page cache of the system. False where there is none.
    fn bypasses_cache(&self) -> bool {
        false
    }

    /// The file of the operating system that holds these bytes at the same offsets, if there is one. Its blocks can be shared.
    fn as_file(&self) -> Option<&File> {
        None
    }
}

/// A file that is written at offsets.
///
/// # Examples
///
/// ```
/// use diskimage::io::{MemFile, WriteAt};
///
/// # fn main() -> std::io::Result<()> {
/// let file = MemFile::new();
/// file.set_len(6)?;
/// file.write_all_at(b"abcdef", 0)?;
/// file.zero_range(1..5)?;
/// assert_eq!(file.to_vec(), b"a\0\0\0\0f");
/// # Ok(())
/// # }
/// ```
pub trait WriteAt: Send + Sync {
    /// Writes all of `buf` at `offset`. The file grows if needed.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Sets the length in bytes. New bytes read as zeros. A device keeps its size, and fails if it is too small.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes all writes durable.
    fn sync(&self) -> io::Result<()>;

    /// Whether bytes that were never written read as zeros. False for a device, which holds old data.
    fn starts_zeroed(&self) -> bool {
        true
    }

    /// The path of the file, or its later path while it has a temporary name.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// Whether it can be written in any order. False for a pipe.
    fn seeks(&self) -> bool {
        true
    }

    /// Wakes writers that wait for preceding data, since that will not be written.
    fn abandon(&self) {}

    /// Makes `range` read as zeros in the cheapest way.
    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        write_zeros(self, range)
    }

    /// The unit in bytes in which ranges of `source` can be cloned into this file, which is empty; `None` if they cannot. A later
    /// [`clone_range`](Self::clone_range) may fail nevertheless.
    fn clone_unit(&self, _source: &File) -> Option<u64> {
        None
    }

    /// Makes `range` share the blocks of `source` from `offset` on, which therefore move no data. Both ends of both ranges are multiples of the
    /// [unit](Self::clone_unit).
    ///
    /// # Errors
    /// Those of the system. The range is as before then, and can be written.
    fn clone_range(&self, _source: &File, _offset: u64, _range: Range<u64>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Preallocates space for `range`, which holds no data yet: where the system cannot preallocate, zeros are written.
    fn allocate(&self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }
}

/// A file that is both read and written at offsets. Every type that implements [`ReadAt`] and [`WriteAt`] is one.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::io::{MemFile, Storage};
///
/// # fn main() -> std::io::Result<()> {
/// let storage: Arc<dyn Storage> = Arc::new(MemFile::from(b"content".to_vec()));
/// storage.write_all_at(b"trol", 3)?;
/// let mut bytes = [0; 7];
/// storage.read_exact_at(&mut bytes, 0)?;
/// assert_eq!(&bytes, b"control");
/// # Ok(())
/// # }
/// ```
pub trait Storage: ReadAt + WriteAt {}

impl<T: ReadAt + WriteAt + ?Sized> Storage for T {}

/// Writes zeros as data, so that space is allocated. No sector is written in two parts.
pub(crate) fn write_zeros<W: WriteAt + ?Sized>(file: &W, range: Range<u64>) -> io::Result<()> {
    const ZEROS: &[u8] = &[0; 256 << 10];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(ZEROS.len() as u64 - at % ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..len as usize], at)?;
        at += len;
    }
    Ok(())
}

/// Copies the bytes at `offset` to `buf`, and returns their number.
fn read_slice(bytes: &[u8], buf: &mut [u8], offset: u64) -> usize {
    let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
    let n = rest.len().min(buf.len());
    buf[..n].copy_from_slice(&rest[..n]);
    n
}

impl ReadAt for [u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(read_slice(self, buf, offset))
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(read_slice(self, buf, offset))
    }
}

/// Implements both traits for a pointer to a file.
macro_rules! impl_for_pointer {
    ($pointer:ty) => {
        impl<T: ReadAt + ?Sized> ReadAt for $pointer {
            fn size(&self) -> io::Result<u64> {
                (**self).size()
            }

            fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
                (**self).read_at(buf, offset)
            }

            fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
                (**self).read_exact_at(buf, offset)
            }

            fn identity(&self) -> io::Result<Option<FileIdentity>> {
                (**self).identity()
            }

            fn allocated(&self) -> io::Result<Option<u64>> {
                (**self).allocated()
            }

            fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
                (**self).next_data(offset)
            }

            fn verify(&self) -> io::Result<()> {
                (**self).verify()
            }

            fn name(&self) -> Option<&Path> {
                (**self).name()
            }

            fn bypasses_cache(&self) -> bool {
                (**self).bypasses_cache()
            }

            fn as_file(&self) -> Option<&File> {
                (**self).as_file()
            }
        }

        impl<T: WriteAt + ?Sized> WriteAt for $pointer {
            fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
                (**self).write_all_at(buf, offset)
            }

            fn set_len(&self, len: u64) -> io::Result<()> {
                (**self).set_len(len)
            }

            fn sync(&self) -> io::Result<()> {
                (**self).sync()
            }

            fn starts_zeroed(&self) -> bool {
                (**self).starts_zeroed()
            }

            fn path(&self) -> Option<&Path> {
                (**self).path()
            }

            fn seeks(&self) -> bool {
                (**self).seeks()
            }

            fn abandon(&self) {
                (**self).abandon();
            }

            fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
                (**self).zero_range(range)
            }

            fn allocate(&self, range: Range<u64>) -> io::Result<()> {
                (**self).allocate(range)
            }

            fn clone_unit(&self, source: &File) -> Option<u64> {
                (**self).clone_unit(source)
            }

            fn clone_range(&self, source: &File, offset: u64, range: Range<u64>) -> io::Result<()> {
                (**self).clone_range(source, offset, range)
            }
        }
    };
}

impl_for_pointer!(&T);
impl_for_pointer!(Arc<T>);
impl_for_pointer!(Box<T>);

impl fmt::Debug for dyn ReadAt + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadAt")
    }
}

impl fmt::Debug for dyn Storage + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Storage")
    }
}

impl fmt::Debug for dyn WriteAt + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WriteAt")
    }
}
