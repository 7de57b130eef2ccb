//! Writes an image in one pass: the header, the L1 table, then L2 tables and clusters in the order of the guest.

use std::ops::Range;

use super::entry::ZERO;
use super::header::Header;
use super::{FORMAT_NAME, SECTOR, options};
use crate::driver::{CreateContext, Placement, SparseWrite, WriteSpec};
use crate::error::{Error, Result};
use crate::format::shared::two_level::TwoLevelWriter;
use crate::identifiers::ImageIdentifiers;

/// A new image.
pub(super) struct Writer {
    spec: WriteSpec,
    header: Header,
    map: TwoLevelWriter,
}

impl Writer {
    pub fn create(cx: &CreateContext<'_>) -> Result<Writer> {
        let header = options::header(cx)?;
        let shape = header.shape();
        let map = TwoLevelWriter::new(cx.out.clone(), shape, header.l1_table_offset + shape.l2_len())?;
        // Without a backing file, parts of a cluster can be placed: the rest stays a hole of the file, or is zeroed.
        let over_backing = header.backing.is_some();
        let unit = if over_backing { shape.cluster_size() } else { SECTOR };
        let spec =
            WriteSpec { over_backing, host_alignment: shape.cluster_size(), ..WriteSpec::new(header.image_size, unit) };
        Ok(Writer { spec, header, map })
    }
}

impl SparseWrite for Writer {
    fn spec(&self) -> &WriteSpec {
        &self.spec
    }

    fn place(&mut self, guest: Range<u64>) -> Result<Placement> {
        self.map.place(&guest)
    }

    fn place_compressed(&mut self, _guest: Range<u64>, _stored_len: u32) -> Result<Placement> {
        Err(Error::unsupported(FORMAT_NAME, "compression"))
    }

    fn zero(&mut self, guest: Range<u64>) -> Result<()> {
        // Without a backing file, unallocated clusters read as zeros.
        if self.spec.over_backing { self.map.fill(&guest, ZERO) } else { Ok(()) }
    }

    fn finish(&mut self, _identifiers: &ImageIdentifiers) -> Result<()> {
        self.map.finish(1 << self.header.cluster_bits)?;
        self.map.write_header(&self.header.encode())
    }
}

#[cfg(test)]
mod tests;
