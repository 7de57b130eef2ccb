//! A stream as a file: images that cannot be read in order, and raw disks, whose size is known at the end of the stream only.
//! Compressed files without an index are such streams, too. In the other direction, what cannot be written in order.

use std::collections::hash_map::RandomState;
use std::env;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::io::{FileSource, FileTarget, ReadAt, WriteAt};
use crate::limits::LimitName;
use crate::zero::data_runs;

/// Bytes read and written at once.
const PIECE: usize = 256 << 10;
/// Length in bytes of the zeros that become holes: a block of most file systems.
const BLOCK: usize = 4096;

/// The directory for temporary files, unless the caller sets one.
pub(crate) fn default_directory() -> PathBuf {
    // `temp_dir` panics on systems without one.
    if cfg!(any(unix, windows)) { env::temp_dir() } else { PathBuf::from(".") }
}

/// Copies the stream to a file in `directory`, with holes for zeros. The file has no name, so that nothing is left of it.
///
/// # Errors
/// Errors of the stream and of the system; [`Error::Limit`], by this name, for a stream of more than `limit` bytes, which may have no end.
pub(crate) fn spool(
    mut stream: impl Read,
    directory: &Path,
    format: &'static str,
    name: LimitName,
    limit: u64,
) -> Result<FileSource> {
    let in_directory = |error: Error| error.in_file(directory);
    let target = create_unnamed(directory)?;
    let mut piece = vec![0; PIECE];
    let mut len = 0;
    loop {
        let read = fill(&mut stream, &mut piece).map_err(Error::io("reading", len))?;
        let bytes = piece.get(..read).unwrap_or_default();
        let value = len + read as u64;
        if value > limit {
            return Err(Error::Limit {
                name: Some(name),
                format,
                field: "length of the stream".into(),
                at: None,
                value,
                limit,
            });
        }
        for run in data_runs(bytes, BLOCK) {
            let (at, data) = (len + run.start as u64, bytes.get(run).unwrap_or_default());
            target.write_all_at(data, at).map_err(Error::io("writing a temporary file", at)).map_err(in_directory)?;
        }
        len = value;
        if read < PIECE {
            break;
        }
    }
    let finished = target.set_len(len).and_then(|()| FileSource::try_from(target.into_file()));
    finished.map_err(Error::io("writing a temporary file", None)).map_err(in_directory)
}

/// A file without a name that is written in any order, and copied to a stream then, from start to end.
pub(crate) struct Spool {
    target: Arc<FileTarget>,
    directory: PathBuf,
}

impl Spool {
    /// Creates the file in `directory`.
    pub fn create(directory: &Path) -> Result<Spool> {
        let target = create_unnamed(directory)?.with_sync(false).with_path(directory);
        Ok(Spool { target: Arc::new(target), directory: directory.to_owned() })
    }

    /// The file.
    pub fn file(&self) -> Arc<dyn WriteAt> {
        self.target.clone()
    }

    /// Copies the file to `target`, from start to end. A target that seeks, and has zeros where nothing was written, gets the data
    /// without the holes.
    ///
    /// # Errors
    /// Errors of both files; [`Error::Cancelled`] soon after `cancelled` returns true.
    pub fn copy_to(&self, target: &dyn WriteAt, cancelled: &dyn Fn() -> bool) -> Result<()> {
        let file = self.target.file();
        let read_error = |at: u64| move |e: io::Error| Error::io("reading a temporary file", at)(e);
        let len = ReadAt::size(file).map_err(read_error(0)).map_err(|e| e.in_file(&self.directory))?;
        let write_error = |e: Error| e.in_file_at(target.path());
        // A device has its old content there.
        let skips_holes = target.seeks() && target.starts_zeroed();
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        while at < len {
            if cancelled() {
                return Err(Error::Cancelled);
            }
            let end = match skips_holes {
                false => len,
                true => match file.next_data(at).map_err(read_error(at)).map_err(|e| e.in_file(&self.directory))? {
                    Some(data) => {
                        at = data.start.max(at);
                        data.end.min(len)
                    }
                    None => break,
                },
            };
            piece.resize((end - at).min(PIECE as u64) as usize, 0);
            file.read_exact_at(&mut piece, at).map_err(read_error(at)).map_err(|e| e.in_file(&self.directory))?;
            let what = format!("writing {} bytes", piece.len());
            target.write_all_at(&piece, at).map_err(Error::io(what, at)).map_err(write_error)?;
            at += piece.len() as u64;
        }
        let end = target.set_len(len).map_err(Error::io("setting the length", len)).map_err(write_error);
        end.and_then(|()| target.sync().map_err(Error::io("syncing", None)).map_err(write_error))
    }
}

/// A file in `directory` without a name, of which nothing is left when it is closed.
#[cfg(feature = "disk")]
pub(crate) fn unnamed_file(directory: &Path) -> Result<fs::File> {
    create_unnamed(directory).map(FileTarget::into_file)
}

/// Creates a file and removes its name. Windows allows that while the file is open, as Unix does.
fn create_unnamed(directory: &Path) -> Result<FileTarget> {
    let created = loop {
        let random = RandomState::new().build_hasher().finish() as u32;
        let path = directory.join(format!(".diskimage.{random:08x}.tmp"));
        match FileTarget::create_private(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            created => break created.and_then(|target| fs::remove_file(&path).map(|()| target)),
        }
    };
    created.map_err(Error::io("creating a temporary file", None)).map_err(|e| e.in_file(directory))
}

/// Fills `buf`, except at the end of the stream. Returns the number of bytes.
fn fill(stream: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemFile;
    use crate::testing::TempDir;

    /// Reads a few bytes at a time.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let most = buf.len().min(1000);
            self.0.read(&mut buf[..most])
        }
    }

    #[test]
    fn a_stream_becomes_a_sparse_file_without_a_name() {
        let dir = TempDir::new();
        for len in [1, 4096, PIECE, PIECE + 1, 3 * PIECE + 700] {
            let mut bytes = vec![0; len];
            bytes[len / 2] = 7;
            let file = spool(Trickle(&bytes), dir.path(), "raw", LimitName::VirtualSize, len as u64).unwrap();
            let mut copy = vec![1; len];
            file.read_exact_at(&mut copy, 0).unwrap();
            assert_eq!((file.size().unwrap(), copy == bytes), (len as u64, true));
            if cfg!(target_os = "linux") {
                assert!(file.allocated().unwrap() <= 2 * BLOCK as u64, "zeros are holes");
            }
            // Older versions of Windows remove the name when the file is closed.
            #[cfg(windows)]
            drop(file);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_is_written_in_any_order_is_copied_to_a_stream() {
        let dir = TempDir::new();
        let spooled = Spool::create(dir.path()).unwrap();
        let file = spooled.file();
        file.write_all_at(b"end", 2 * PIECE as u64).unwrap();
        file.write_all_at(b"start", 0).unwrap();
        let target = MemFile::new();
        spooled.copy_to(&target, &|| false).unwrap();
        let bytes = target.to_vec();
        assert_eq!(
            (bytes.len(), &bytes[..6], &bytes[2 * PIECE - 1..]),
            (2 * PIECE + 3, &b"start\0"[..], &b"\0end"[..])
        );
        assert_eq!(spooled.copy_to(&target, &|| true).unwrap_err().kind().as_str(), "cancelled");
        // Older versions of Windows remove the name when the file is closed.
        #[cfg(windows)]
        drop((file, spooled));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(Spool::create(&dir.join("missing")).is_err());
    }

    #[test]
    fn old_content_is_overwritten_in_the_holes() {
        struct Device(MemFile);
        impl WriteAt for Device {
            fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
                self.0.write_all_at(buf, offset)
            }
            fn set_len(&self, _len: u64) -> io::Result<()> {
                Ok(())
            }
            fn sync(&self) -> io::Result<()> {
                Ok(())
            }
            fn starts_zeroed(&self) -> bool {
                false
            }
        }
        let dir = TempDir::new();
        let spooled = Spool::create(dir.path()).unwrap();
        spooled.file().write_all_at(b"end", 2 * PIECE as u64).unwrap();
        let device = Device(MemFile::from(vec![7; 2 * PIECE + 10]));
        spooled.copy_to(&device, &|| false).unwrap();
        assert!(device.0.to_vec() == [vec![0; 2 * PIECE], b"end".to_vec(), vec![7; 7]].concat());
    }

    #[test]
    fn a_failing_stream_is_an_error_and_an_empty_one_a_file() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _buf: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let dir = TempDir::new();
        assert_eq!(spool(io::empty(), dir.path(), "raw", LimitName::VirtualSize, 0).unwrap().size().unwrap(), 0);
        assert_eq!(spool(Failing, dir.path(), "raw", LimitName::VirtualSize, 0).unwrap_err().kind().as_str(), "io");
        let error = spool(io::repeat(1), &dir.join("missing"), "raw", LimitName::VirtualSize, 0).unwrap_err();
        assert_eq!(error.path(), Some(&*dir.join("missing")));
        let endless = spool(io::repeat(1), dir.path(), "raw", LimitName::VirtualSize, 1 << 20).unwrap_err();
        assert!(matches!(endless, Error::Limit { value, limit: 0x10_0000, .. } if value <= (1 << 20) + PIECE as u64));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
