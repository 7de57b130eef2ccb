//! Writes an image in one pass: the header, the BAT, then clusters in the order of the guest.

use std::ops::Range;
use std::sync::Arc;

use super::bat::BatEntry;
use super::header::Header;
use super::{FORMAT_NAME, SECTOR, options};
use crate::driver::{CreateContext, Placement, SparseWrite, WriteSpec};
use crate::error::{Error, Result};
use crate::format::shared::written::Written;
use crate::identifiers::ImageIdentifiers;
use crate::io::WriteAt;

/// Bytes of entries that are written at once.
const FLUSH: usize = 256 << 10;
/// Bytes of empty entries above which they are skipped.
const GAP: u64 = 4096;

/// A new image.
pub(super) struct Writer {
    out: Arc<dyn WriteAt>,
    spec: WriteSpec,
    header: Header,
    /// Encoded entries not yet written. The last one is of the cluster placed last.
    entries: Vec<u8>,
    /// Number of entries so far, written or not.
    mapped: u64,
    /// Number of clusters of the data area.
    allocated: u64,
    /// What is placed or zeroed.
    written: Written,
}

impl Writer {
    pub fn create(cx: &CreateContext<'_>) -> Result<Writer> {
        let header = options::header(cx)?;
        // Parts of a cluster can be placed: the rest stays a hole of the file, or is zeroed.
        let spec = WriteSpec::new(header.virtual_size(), SECTOR);
        let out = cx.out.clone();
        let mut writer =
            Writer { out, spec, header, entries: Vec::new(), mapped: 0, allocated: 0, written: Written::default() };
        // The header of an old image must not describe the new one while it is incomplete.
        writer.written.zero_until(&*writer.out, writer.header.data_offset())?;
        Ok(writer)
    }

    /// Adds the entries of the clusters before `end`. Clusters from `start` on are allocated at the end of the data area.
    fn map(&mut self, start: u64, end: u64) -> Result<()> {
        let empty = start.saturating_sub(self.mapped) * BatEntry::LEN;
        // The table is zeros already.
        if empty > GAP {
            self.flush()?;
            self.mapped = start;
        } else {
            self.entries.resize(self.entries.len() + empty as usize, 0);
            self.mapped = self.mapped.max(start);
        }
        while self.mapped < end {
            // The options limit the size of the disk accordingly.
            let entry = BatEntry((self.host_offset(self.allocated) / self.header.cluster_size()) as u32);
            self.entries.extend(entry.0.to_le_bytes());
            self.allocated += 1;
            self.mapped += 1;
            if self.entries.len() >= FLUSH {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if !self.entries.is_empty() {
            let end = Header::LEN as u64 + self.mapped * BatEntry::LEN;
            self.write(&self.entries, end - self.entries.len() as u64, "writing the BAT")?;
            self.entries.clear();
        }
        Ok(())
    }

    /// The host offset of cluster `number` of the data area.
    fn host_offset(&self, number: u64) -> u64 {
        self.header.data_offset() + number * self.header.cluster_size()
    }

    fn write(&self, bytes: &[u8], offset: u64, action: &'static str) -> Result<()> {
        self.out.write_all_at(bytes, offset).map_err(Error::io(action, offset))
    }

    fn sync(&self) -> Result<()> {
        self.out.sync().map_err(Error::io("syncing", None))
    }
}

impl SparseWrite for Writer {
    fn spec(&self) -> &WriteSpec {
        &self.spec
    }

    fn place(&mut self, guest: Range<u64>) -> Result<Placement> {
        let cluster_size = self.header.cluster_size();
        let (first, end) = (guest.start / cluster_size, guest.end.div_ceil(cluster_size));
        if guest.start >= guest.end || guest.end > self.spec.virtual_size || self.mapped > first + 1 {
            return Err(Error::Usage(format!("guest range {guest:x?} is not in ascending order")));
        }
        self.map(first, end)?;
        // The clusters of `guest` are contiguous and were allocated last.
        let offset = self.host_offset(self.allocated - (end - first)) + guest.start % cluster_size;
        let len = guest.end - guest.start;
        self.written.zero_until(&*self.out, offset)?;
        self.written.advance(offset + len);
        Ok(Placement::new(self.out.clone(), offset, len))
    }

    fn place_compressed(&mut self, _guest: Range<u64>, _payload_len: u32) -> Result<Placement> {
        Err(Error::unsupported(FORMAT_NAME, "compression"))
    }

    fn zero(&mut self, _guest: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self, _identifiers: &ImageIdentifiers) -> Result<()> {
        self.flush()?;
        let end = self.host_offset(self.allocated);
        self.written.zero_until(&*self.out, end)?;
        self.out.set_len(end).map_err(Error::io("setting the length", end))?;
        self.sync()?;
        self.write(&self.header.encode(), 0, "writing the header")?;
        self.sync()
    }
}

#[cfg(test)]
mod tests;
