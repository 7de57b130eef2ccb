//! Guest data in a data file, at its guest offset (qcow2 specification, "External data files"): nothing is allocated for it in the image.

use std::ops::Range;
use std::sync::Arc;

use super::Writer;
use crate::driver::CreateContext;
use crate::error::{Error, Result};
use crate::format::qcow2::FORMAT_NAME;
use crate::format::qcow2::options::DataFile;
use crate::io::WriteAt;
use crate::options::wrong;

/// Creates the data file. It has the guest data at its guest offsets.
pub(super) fn create(file: &DataFile, cx: &CreateContext<'_>) -> Result<Arc<dyn WriteAt>> {
    let files = cx.files.ok_or_else(|| Error::unsupported(FORMAT_NAME, "a data file of an image without a path"))?;
    let path = file.name.as_path().ok_or_else(|| wrong(FORMAT_NAME, "data_file", "not a file name"))?;
    files.add_at(path)
}

impl Writer {
    /// Maps a first part of `guest`, in these clusters, to the same range of the data file.
    pub(super) fn map_in_data_file(&mut self, guest: &Range<u64>, clusters: Range<u64>) -> Result<Range<u64>> {
        let bits = self.header.cluster_bits;
        // What has been preallocated is mapped already.
        self.mapping.set_run(clusters.start, clusters.start << bits..clusters.end << bits);
        self.preallocated = self.preallocated.max(clusters.end);
        Ok(guest.start..guest.end.min(clusters.end << bits))
    }

    /// Takes these guest clusters of the data file, whose last one ends with the disk.
    pub(super) fn take_in_data_file(&self, clusters: Range<u64>) -> Result<Range<u64>> {
        let run = clusters.start << self.header.cluster_bits..clusters.end << self.header.cluster_bits;
        self.reserve(&(run.start..run.end.min(self.spec.virtual_size)))?;
        Ok(run)
    }

    /// Completes the data file, which is as long as the disk.
    pub(super) fn finish_data_file(&self) -> Result<()> {
        if !self.header.has_data_file() {
            return Ok(());
        }
        let size = self.spec.virtual_size;
        self.data.set_len(size).map_err(Error::io(format!("setting the length to {size}"), None))?;
        self.data.sync().map_err(Error::io("syncing", None))
    }
}
