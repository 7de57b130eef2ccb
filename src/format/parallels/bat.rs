//! The BAT: the host offset of each cluster of the disk (Parallels specification, "BAT").

use std::sync::Arc;

use byteorder::{ByteOrder, LittleEndian};

use super::FIELDS;
use super::header::Header;
use crate::driver::FileId;
use crate::error::{Problem, Result};
use crate::format::shared::paged_table::{PagedTable, TablePage};
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::limits::Budget;

/// The image file.
pub(super) const IMAGE: FileId = FileId(0);

/// An entry of the BAT: 0, or the host offset of a cluster in sectors or clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatEntry(pub u32);

impl BatEntry {
    /// Bytes in the file.
    pub const LEN: u64 = 4;
    /// The entry of a cluster of zeros.
    pub const ZERO: BatEntry = BatEntry(0);
}

/// A page of the BAT.
pub(super) type BatPage = TablePage<{ BatEntry::LEN as usize }>;

/// The BAT of an open image.
pub(super) struct Bat {
    pub header: Header,
    pub file_len: u64,
    entries: PagedTable<{ BatEntry::LEN as usize }>,
}

impl Bat {
    pub fn new(file: Arc<dyn ReadAt>, header: Header, budget: &Budget) -> Result<Bat> {
        let file_len = table::length(&*file)?;
        let entries = PagedTable::new(file, Header::LEN as u64, budget);
        Ok(Bat { header, file_len, entries })
    }

    /// The page of the entry of cluster `index` of the disk.
    pub fn page(&self, index: u64) -> Result<BatPage> {
        self.entries.page(index, 0..self.header.clusters())
    }

    /// The host offset of cluster `index` of the disk, which is on `page`; `None` for zeros. At least the part that the disk shows is
    /// within the file, after the BAT.
    pub fn host_offset(&self, page: &BatPage, index: u64) -> Result<Option<u64>> {
        let entry = page.entry(index).map_or(0, |entry| LittleEndian::read_u32(&entry));
        if BatEntry(entry) == BatEntry::ZERO {
            return Ok(None);
        }
        let field = FIELDS.at("BAT entry", page.host_offset(index));
        let offset = u64::from(entry).saturating_mul(self.header.unit_len());
        field.within(offset, self.visible_len(index), self.file_len)?;
        if offset < self.header.bat_end() {
            return Err(field.fault(Problem::Overlap { offset, with: "the BAT" }));
        }
        Ok(Some(offset))
    }

    /// Bytes of the disk in cluster `index`: a whole cluster, or less at the end of the disk.
    pub fn visible_len(&self, index: u64) -> u64 {
        let cluster_size = self.header.cluster_size();
        self.header.virtual_size().saturating_sub(index * cluster_size).min(cluster_size)
    }
}
