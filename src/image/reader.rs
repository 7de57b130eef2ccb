//! Guest data as a stream.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::{Deref, Range};
use std::sync::Arc;

use super::Image;

/// Guest data of a disk, or of a range of it, as [`Read`] and [`Seek`].
///
/// A `Reader<&Image>` borrows the image; a `Reader<Arc<Image>>` owns it and can be kept by file system and partition crates.
/// Some of them require [`Write`] although they only read: each write fails with
/// [`ReadOnlyFilesystem`](io::ErrorKind::ReadOnlyFilesystem).
///
/// ```
/// use std::io::{Read, Seek, SeekFrom};
/// use std::sync::Arc;
///
/// use diskimage::io::MemFile;
/// use diskimage::{Format, OpenOptions, Reader};
///
/// let disk = Arc::new(MemFile::from((0..=255).collect::<Vec<u8>>()));
/// let image = Arc::new(OpenOptions::new().format(Format::RAW).open_source(disk)?);
/// // A partition from byte 100 to byte 200.
/// let mut partition = Reader::new(image, 100..200);
/// partition.seek(SeekFrom::End(-2))?;
/// let mut tail = Vec::new();
/// partition.read_to_end(&mut tail)?;
/// assert_eq!(tail, [198, 199]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Reader<I = Arc<Image>> {
    image: I,
    /// Guest offsets of the first byte and of the end.
    range: Range<u64>,
    /// Offset in the range, which may be beyond its end.
    position: u64,
}

impl<I: Deref<Target = Image>> Reader<I> {
    /// A reader of the guest offsets `range`, clipped to the disk. Position 0 is the start of the range.
    pub fn new(image: I, range: Range<u64>) -> Self {
        let end = range.end.min(image.virtual_size());
        Reader { image, range: range.start.min(end)..end, position: 0 }
    }

    /// Length of the range in bytes.
    pub fn size(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The image.
    pub fn image(&self) -> &Image {
        &self.image
    }
}

impl<I: Deref<Target = Image>> Read for Reader<I> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.size().saturating_sub(self.position);
        let len = left.min(buf.len() as u64) as usize;
        if len == 0 {
            return Ok(0);
        }
        self.image.read_exact_at(&mut buf[..len], self.range.start + self.position)?;
        self.position += len as u64;
        Ok(len)
    }
}

impl<I: Deref<Target = Image>> Seek for Reader<I> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(by) => self.size().checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl<I> Write for Reader<I> {
    fn write(&mut self, _buf: &[u8]) -> io::Result<usize> {
        Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the image is open for reading only"))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
