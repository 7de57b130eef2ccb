//! Guest data into an image that is open for changes.

use std::ops::Range;

use super::{CHUNK_SIZE, Converter, Progress, Report, SECTOR};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::image::{Image, Scratch};
use crate::zero::data_runs;

impl Converter {
    /// Writes the guest data of `source` to `disk`, as a guest would: the disk may have snapshots, bitmaps, a backing file, encryption or a data
    /// file. It has all data itself afterwards, also zeros and what the backing file has too, and keeps what is beyond the end of the source. This is
    /// for images that [`existing`](Self::existing) does not write; one thread writes. Of the settings, those for holes, the rate, progress and
    /// cancellation matter.
    ///
    /// # Errors
    /// Errors of the source and of the storage, after which the disk has a part of the data; [`Error::Limit`] if the disk is smaller than the source;
    /// [`Error::Usage`] for settings that cannot be followed: compression, salvage, digests and bitmaps; [`Error::Cancelled`].
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Converter, Format, OpenOptions};
    ///
    /// let source = OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(vec![7; 512])))?;
    /// let file = Arc::new(MemFile::new());
    /// Converter::new(Format::QCOW2).create_to(1 << 20, file.clone())?;
    /// let disk = OpenOptions::new().open_disk_in(file)?;
    /// disk.create_snapshot("before")?;
    /// Converter::new(Format::QCOW2).convert_into_disk(&source, &disk)?;
    /// let mut byte = [0];
    /// disk.read_exact_at(&mut byte, 511)?;
    /// assert_eq!(byte, [7]);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn convert_into_disk(&self, source: &Image, disk: &Disk) -> Result<Report> {
        self.check_for_disk()?;
        let (size, limit) = (source.virtual_size(), disk.size().next_multiple_of(SECTOR));
        if size > limit {
            let format = disk.format().name();
            return Err(Error::limit(format, "size of the source", size, limit));
        }
        let size = size.min(disk.size());
        let mut report = Report::new(Some(source.format()), disk.format(), disk.size(), 0);
        let stores_zeros = self.sparse == Some(0);
        let (mut buf, mut scratch) = (vec![0; CHUNK_SIZE as usize], Scratch::default());
        for span in source.spans_exclusive()? {
            let span = span?;
            let mut rest = span.offset..span.end().min(size);
            while !rest.is_empty() {
                if self.is_cancelled() {
                    return Err(Error::Cancelled);
                }
                let most = if span.is_zero() && !stores_zeros { u64::MAX } else { CHUNK_SIZE };
                // Chunks begin at multiples of their length, so that units of zeros are aligned.
                let end = (rest.start - rest.start % CHUNK_SIZE).saturating_add(most).min(rest.end);
                let part = rest.start..end;
                rest.start = end;
                if most == u64::MAX {
                    disk.write_zeros(part)?;
                } else {
                    let bytes = buf.get_mut(..(part.end - part.start) as usize).unwrap_or_default();
                    source.load(&span.clip(part.start, part.end), bytes, &mut scratch)?;
                    self.write_part(disk, bytes, part.start, stores_zeros, &mut report)?;
                }
                if let Some(progress) = &self.progress {
                    progress(Progress { done: end, total: size });
                }
            }
        }
        source.check_unchanged()?;
        #[cfg(feature = "packages")]
        source.verify_unless(&|| self.is_cancelled())?;
        disk.flush()?;
        Ok(report)
    }

    /// Writes `bytes` at guest offset `start`; runs of zeros without data, unless they are stored.
    fn write_part(&self, disk: &Disk, bytes: &[u8], start: u64, stores_zeros: bool, report: &mut Report) -> Result<()> {
        let whole = std::iter::once(0..bytes.len());
        let unit = self.sparse_size().max(SECTOR) as usize;
        let runs: Vec<Range<usize>> = if stores_zeros { whole.collect() } else { data_runs(bytes, unit).collect() };
        let mut at = 0;
        for run in runs {
            disk.write_zeros(start + at as u64..start + run.start as u64)?;
            let data = bytes.get(run.clone()).unwrap_or_default();
            let len = data.len() as u64;
            if let Some(rate) = &self.rate {
                rate.pass(len, || self.is_cancelled());
            }
            disk.write_all_at(data, start + run.start as u64)?;
            report.data_bytes += len;
            report.written_bytes += len;
            at = run.end;
        }
        disk.write_zeros(start + at as u64..start + bytes.len() as u64)
    }

    fn check_for_disk(&self) -> Result<()> {
        let wanted = [
            (self.compress, "compression"),
            (self.salvage, "salvage"),
            (self.verify, "verification"),
            (self.bitmaps != super::BitmapPolicy::Omit, "copying bitmaps"),
            #[cfg(feature = "hash")]
            (!self.hashes.is_empty() || !self.file_hashes.is_empty(), "digests"),
        ];
        match wanted.iter().find(|(is_wanted, _)| *is_wanted) {
            Some((_, what)) => Err(Error::Usage(format!("{what} while an image is changed in place"))),
            None => Ok(()),
        }
    }
}
