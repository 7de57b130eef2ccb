//! Writing into an existing image that is not at a path.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::{Converter, Report};
use crate::error::Result;
use crate::image::Image;
use crate::io::{ReadAt, WriteAt};

impl Converter {
    /// Writes the guest data of `source` into the existing image `file`, as [`existing`](Self::existing) does with one at a path.
    ///
    /// # Errors
    /// As [`convert`](Self::convert).
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Converter, Format, OpenOptions};
    ///
    /// let disk = OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(vec![0; 512])))?;
    /// let file = Arc::new(MemFile::from(vec![7; 1024]));
    /// Converter::new(Format::RAW).convert_into_existing(&disk, file.clone())?;
    /// assert_eq!(file.to_vec(), [[0; 512], [7; 512]].concat());
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn convert_into_existing<F: ReadAt + WriteAt + 'static>(&self, source: &Image, file: Arc<F>) -> Result<Report> {
        self.check_has_path()?;
        let converter = self.clone().existing(true);
        let out = Arc::new(Existing(file.clone()));
        converter.write(Some(source), source.virtual_size(), out, None, None, Some(file))
    }
}

/// A file with old content.
struct Existing<F>(Arc<F>);

impl<F: WriteAt> WriteAt for Existing<F> {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn starts_zeroed(&self) -> bool {
        false
    }

    fn path(&self) -> Option<&Path> {
        self.0.path()
    }

    fn seeks(&self) -> bool {
        self.0.seeks()
    }

    fn abandon(&self) {
        self.0.abandon();
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        self.0.zero_range(range)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.0.allocate(range)
    }
}
