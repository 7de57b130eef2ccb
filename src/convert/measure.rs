//! Measuring: how long the files of a new image will be, from the metadata of the source alone.
//!
//! A driver that has no function for it allocates the image in files that keep nothing but their length.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{CHUNK_SIZE, Converter, SECTOR};
use crate::driver::{CreateContext, NewBacking, SparseWrite, TargetFiles, WriteSpec};
use crate::error::{Error, Result};
use crate::identifiers::Identifiers;
use crate::image::Image;
use crate::io::WriteAt;

/// Sizes of a new image, from [`Converter::measure`].
///
/// ```
/// use diskimage::{Converter, Format};
///
/// let measure = Converter::new(Format::QCOW2).measure_size(1 << 30)?;
/// assert_eq!((measure.required, measure.fully_allocated), (393_216, 1_074_135_040));
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measure {
    /// Bytes that the uncompressed image of this source takes at most. Of several files it is the sum.
    pub required: u64,
    /// Bytes that it takes when guests have written to all of the disk.
    pub fully_allocated: u64,
    /// Bytes that the persistent bitmaps of the source would take besides; only from qcow2 of version 3 to qcow2. A conversion does
    /// not copy them.
    pub bitmaps: Option<u64>,
}

impl Converter {
    /// Measures the image that [`convert`](Self::convert) makes of `source`, without compression. Nothing is written, and no guest data is
    /// read: data that turns out to be zeros is counted.
    ///
    /// The numbers for raw, qcow2 and LUKS are those of `qemu-img measure`. It counts holes of raw disks, and all tables of qcow2 that
    /// the whole disk needs. For a source that is neither raw nor qcow2 it counts holes within the allocation units of the source as data;
    /// here they are holes. A LUKS volume has whole sectors, to which qemu-img does not round a size. An encrypted image needs no secret.
    ///
    /// # Errors
    /// Errors of the source and of the options; [`Error::Cancelled`].
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Converter, Format, OpenOptions};
    ///
    /// let disk = Arc::new(MemFile::from(vec![7; 1 << 20]));
    /// let disk = OpenOptions::new().format(Format::RAW).open_source(disk)?;
    /// let converter = Converter::new(Format::VDI);
    /// let measure = converter.measure(&disk)?;
    /// let file = Arc::new(MemFile::new());
    /// converter.convert_to(&disk, file.clone())?;
    /// assert_eq!(file.to_vec().len() as u64, measure.required);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn measure(&self, source: &Image) -> Result<Measure> {
        self.measure_disk(Some(source), source.virtual_size())
    }

    /// Measures the empty image that [`create`](Self::create) makes for a disk of `size` bytes.
    ///
    /// # Errors
    /// As [`measure`](Self::measure).
    pub fn measure_size(&self, size: u64) -> Result<Measure> {
        self.measure_disk(None, size)
    }

    fn measure_disk(&self, source: Option<&Image>, size: u64) -> Result<Measure> {
        let files = Lengths::default();
        let backing = self.backing.as_ref();
        let cx = CreateContext {
            size,
            options: &self.options,
            compress: false,
            empty: source.is_none(),
            backing: backing.map(|backing| NewBacking { name: backing.name.clone(), info: backing.image.info() }),
            secret: self.secret.as_ref(),
            identifiers: self.identifiers_of(Identifiers::Reproducible { time: 0 }, size),
            out: files.next(),
            files: Some(&files),
        };
        let Some(file) = self.format.measure(&cx, source.map(Image::info))? else {
            let required = self.allocate(&cx, &files, source, false)?;
            let files = Lengths::default();
            let cx = CreateContext { out: files.next(), files: Some(&files), empty: false, ..cx };
            return Ok(Measure { required, fully_allocated: self.allocate(&cx, &files, None, true)?, bitmaps: None });
        };
        let fully_allocated = file.metadata.saturating_add(file.virtual_size);
        let required = match source {
            _ if file.dense => fully_allocated,
            None => file.metadata,
            Some(source) => {
                let mut data = 0;
                self.data_of(source, file.block_size, file.virtual_size, &mut |range| {
                    data += range.end - range.start;
                    Ok(())
                })?;
                file.metadata.saturating_add(data)
            }
        };
        Ok(Measure { required, fully_allocated, bitmaps: file.bitmaps })
    }

    /// Allocates an image in `files`, of which nothing is kept but the lengths, and returns their sum: the data of `source`, or the whole
    /// disk.
    fn allocate(&self, cx: &CreateContext<'_>, files: &Lengths, source: Option<&Image>, whole: bool) -> Result<u64> {
        let mut writer = self.format.create(cx)?;
        let spec = writer.spec().clone();
        let unit = spec.block_size.max(self.sparse_size()).max(SECTOR);
        let mut place = |range| self.place(&mut *writer, range, CHUNK_SIZE.max(unit));
        match source {
            // How much of its data the backing file has is not known.
            Some(_) if spec.dense || spec.over_backing || self.sparse == Some(0) => place(0..spec.virtual_size)?,
            Some(source) => self.data_of(source, unit, spec.virtual_size, &mut place)?,
            None if whole => place(0..spec.virtual_size)?,
            None => {}
        }
        writer.finish(&cx.identifiers)?;
        Ok(files.sum())
    }

    /// Places `range` as the pipeline does, chunk by chunk.
    fn place(&self, writer: &mut dyn SparseWrite, range: Range<u64>, chunk_size: u64) -> Result<()> {
        let payload_len = payload_len(writer.spec());
        let step = if payload_len.is_some() { writer.spec().block_size } else { chunk_size };
        let mut at = range.start;
        while at < range.end {
            if self.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let chunk = at..(at / step + 1).saturating_mul(step).min(range.end);
            at = match payload_len {
                Some(len) => {
                    let end = chunk.end;
                    writer.place_compressed(chunk, len)?;
                    end
                }
                None => at + writer.place(chunk)?.len,
            };
        }
        Ok(())
    }

    /// Calls `found` with the ranges of data in `source`, extended to multiples of `unit` that are not beyond `end`. They do not touch.
    fn data_of(
        &self,
        source: &Image,
        unit: u64,
        end: u64,
        found: &mut dyn FnMut(Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let mut last = 0..0;
        for span in source.spans(0..u64::MAX) {
            if self.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let span = span?;
            if span.is_zero() {
                continue;
            }
            let start = span.offset / unit * unit;
            let stop = span.end().checked_next_multiple_of(unit).unwrap_or(end).min(end);
            if start > last.end {
                found(std::mem::replace(&mut last, start..stop))?;
            } else {
                last.end = stop;
            }
        }
        found(last)
    }
}

/// The most bytes of a block with its frame, if all blocks are stored compressed.
fn payload_len(spec: &WriteSpec) -> Option<u32> {
    let encoding = spec.encoding.as_ref().filter(|_| spec.always_encoded)?;
    let payload = encoding.max_len(usize::try_from(spec.block_size).ok()?);
    let framed = spec.frame.map_or(payload, |frame| {
        payload.saturating_add(frame.header_len).checked_next_multiple_of(frame.alignment).unwrap_or(usize::MAX)
    });
    Some(u32::try_from(framed).unwrap_or(u32::MAX))
}

/// The files of an image that keep nothing but their length.
#[derive(Default)]
struct Lengths(RefCell<Vec<Arc<Length>>>);

impl Lengths {
    fn next(&self) -> Arc<dyn WriteAt> {
        let file = Arc::new(Length::default());
        self.0.borrow_mut().push(file.clone());
        file
    }

    fn sum(&self) -> u64 {
        self.0.borrow().iter().map(|file| file.0.load(Ordering::Relaxed)).fold(0, u64::saturating_add)
    }
}

impl TargetFiles for Lengths {
    /// A long name: descriptors hold the names of the files.
    fn image_name(&self) -> &OsStr {
        const NAME: &[u8] = &[b'x'; 240];
        OsStr::new(std::str::from_utf8(NAME).unwrap_or_default())
    }

    fn add(&self, _name: &OsStr) -> Result<Arc<dyn WriteAt>> {
        Ok(self.next())
    }
}

/// The length of a file that is written.
#[derive(Default)]
pub(super) struct Length(AtomicU64);

impl WriteAt for Length {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.fetch_max(offset.saturating_add(buf.len() as u64), Ordering::Relaxed);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        self.0.fetch_max(range.end, Ordering::Relaxed);
        Ok(())
    }
}
