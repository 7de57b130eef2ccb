//! What the file systems of the disk do not use.

use std::sync::Arc;

use super::Image;
use crate::error::{Error, Result};
use crate::guest::free::{self, GuestVolume};
use crate::limits::Limits;

impl Image {
    /// Examines the volumes of the disk: its partitions, or all of it. Only tables of file systems are read.
    ///
    /// # Errors
    /// Errors of the image where partition tables are, and [`Error::Usage`] for an image that can be read only once. A file system that
    /// cannot be read has the reason in [`GuestVolume::kept`].
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Format, OpenOptions};
    ///
    /// let disk = Arc::new(MemFile::from(vec![0; 4096]));
    /// let volumes = OpenOptions::new().format(Format::RAW).open_source(disk)?.volumes()?;
    /// assert_eq!((volumes.len(), volumes[0].kept.as_deref()), (1, Some("no known file system")));
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn volumes(&self) -> Result<Vec<GuestVolume>> {
        self.find_free().map(|free| free.volumes)
    }

    /// Makes the disk read as zeros where its file systems do not use it, and returns its volumes. Deleted files are gone from what is read, and so from a
    /// conversion of the image. A volume of which anything is in doubt stays as it is, with the reason in [`GuestVolume::kept`].
    ///
    /// Cost follows the size of the tables of free blocks, not that of the disk.
    ///
    /// # Errors
    /// As [`volumes`](Self::volumes).
    ///
    /// ```no_run
    /// use diskimage::{Converter, Format, Image};
    ///
    /// let mut disk = Image::open("disk.qcow2")?;
    /// for volume in disk.drop_free_space()? {
    ///     println!("{:?}: {} bytes dropped", volume.range, volume.unused);
    /// }
    /// Converter::new(Format::QCOW2).compress(true).convert(&disk, "small.qcow2")?;
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn drop_free_space(&mut self) -> Result<Vec<GuestVolume>> {
        let free = self.find_free()?;
        let volumes = free.volumes.clone();
        self.free = Some(Arc::new(free));
        Ok(volumes)
    }

    fn find_free(&self) -> Result<free::FreeSpace> {
        if self.is_in_order() {
            return Err(Error::Usage(
                "the file systems of a disk that is read once, in order, cannot be examined".into(),
            ));
        }
        // Where the map is damaged, nothing is known to be stored. What is not in use is not read.
        let stored = |range| {
            let spans = self.spans(range).map_while(Result::ok);
            spans.filter(|span| !span.is_zero()).map(|span| span.len).sum()
        };
        free::find(self, &stored, &Limits::default())
    }

    /// The volumes, if what they do not use was dropped.
    pub(crate) fn dropped_volumes(&self) -> &[GuestVolume] {
        self.free.as_ref().map_or(&[], |free| &free.volumes)
    }

    /// Whether parts of the disk read as zeros that no file system uses.
    pub(super) fn has_free_space(&self) -> bool {
        self.free.is_some()
    }
}
