//! Location of all structures that use host clusters.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use byteorder::{BigEndian, ByteOrder};

use super::Findings;
use crate::driver::OpenContext;
use crate::error::{Problem, Result};
use crate::format::qcow2::bitmap::BitmapFlags;
use crate::format::qcow2::extension::{BitmapDirectory, CryptoHeader};
use crate::format::qcow2::header::Header;
use crate::format::qcow2::{FIELDS, bitmap, luks, snapshot};
use crate::format::shared::table;
use crate::info::FileReference;
use crate::io::ReadAt;
use crate::name::Name;

/// Structures that use host clusters, except refcount blocks.
pub(super) struct Layout<'a> {
    pub file: Arc<dyn ReadAt>,
    pub file_len: u64,
    pub header: &'a Header,
    /// Whether guest clusters are in an external data file.
    pub data_file: bool,
    /// Length of the data file in bytes, if it is open.
    pub data_file_len: Option<u64>,
    pub regions: Vec<Region>,
    pub l1_tables: Vec<L1Table>,
    pub bitmap_tables: Vec<BitmapTable>,
}

/// A file range of exclusive metadata.
pub(super) struct Region {
    pub offset: u64,
    pub len: u64,
    /// Number of references. More than one is an error, but is counted.
    pub times: u32,
}

/// An L1 table of the active state or of snapshots.
pub(super) struct L1Table {
    pub offset: u64,
    pub entries: u64,
    /// Size of its disk in bytes.
    pub disk_size: u64,
    pub active: bool,
    /// Number of references.
    pub times: u32,
}

/// Table of the host offsets of a bitmap's data.
pub(super) struct BitmapTable {
    pub offset: u64,
    pub entries: u64,
}

impl<'a> Layout<'a> {
    /// Collects the layout of an image. Faults are added to `findings`.
    pub fn collect(
        file: Arc<dyn ReadAt>,
        header: &'a Header,
        cx: &OpenContext<'_>,
        findings: &mut Findings,
    ) -> Result<Layout<'a>> {
        let file_len = table::length(&*file)?;
        let snapshots = cx.budget.attempt(|budget| snapshot::read_snapshots(&file, header, cx.limits, budget));
        let snapshots = findings.list_of_uses(snapshots, "snapshots")?;
        let bitmaps = cx.budget.attempt(|budget| bitmap::read_bitmaps(&file, header, budget));
        let bitmaps = findings.list_of_uses(bitmaps, "bitmaps")?;
        let mut layout = Layout {
            file,
            file_len,
            data_file: header.has_data_file(),
            data_file_len: None,
            regions: Vec::new(),
            l1_tables: Vec::new(),
            bitmap_tables: Vec::new(),
            header,
        };
        if let Some(name) = &header.extensions.data_file {
            let reference = FileReference::new("data file", name.clone(), Some(Name::from("raw")));
            if let Some(data_file) = (cx.file)(&reference)? {
                layout.data_file_len = Some(table::length(&*data_file)?);
            }
        }

        layout.region("header", 0, 0, 1, 1, findings);
        let refcount_table = u64::from(header.refcount_table_clusters) << header.cluster_bits;
        layout.region("refcount_table_offset", 48, header.refcount_table_offset, refcount_table, 1, findings);
        if header.refcount_table_clusters == 0 {
            let rule = "must be at least 1";
            findings.fault("refcount_table_clusters", 56, Problem::Rule { value: 0, rule });
        }
        if let Some(CryptoHeader { offset, len, at }) = findings.usable(luks::location(header))? {
            layout.region("encryption header offset", at, offset, len, 1, findings);
        }
        let needed = header.l1_entries_for(header.size) * 8;
        let l1_table = FIELDS.at("l1_table_offset", 40);
        if findings.usable(l1_table.within(header.l1_table_offset, needed, file_len).map(|()| true))? {
            layout.l1_table(40, header.l1_table_offset, header.l1_size, header.size, None, findings);
        } else {
            findings.uses_unknown = true;
        }

        if let Some(last) = snapshots.last() {
            let len = last.range.end - header.snapshots_offset;
            layout.region("snapshots_offset", 64, header.snapshots_offset, len, 1, findings);
        }
        let mut by_table = BTreeMap::new();
        for snapshot in &snapshots {
            findings.usable(snapshot.check_fields(header).map(|()| true))?;
            if let Err(error) = snapshot.check(header, file_len) {
                findings.uses_unknown = true;
                findings.usable::<()>(Err(error))?;
                continue;
            }
            let key = (snapshot.l1_table_offset, snapshot.l1_size);
            let (_, size, times) = by_table.entry(key).or_insert((snapshot.range.start, 0, 0));
            *size = snapshot.info.virtual_size.max(*size);
            *times += 1;
        }
        // Sorted by offset. Overlapping L1 tables are skipped, as thousands of them could be in one range.
        let active = layout.l1_tables.first().map_or(0..0, |table| table.offset..table.offset + table.entries * 8);
        let mut end = 0;
        for ((offset, entries), (at, size, times)) in by_table {
            let table = offset..offset.saturating_add(u64::from(entries) * 8);
            if table.start < end || table.start < active.end && active.start < table.end {
                findings.uses_unknown = true;
                findings.fault("l1_table_offset", at, Problem::Overlap { offset, with: "another L1 table" });
                continue;
            }
            end = table.end;
            layout.l1_table(at, offset, entries, size, Some(times), findings);
        }

        if let Some(Ok(BitmapDirectory { offset, len, at, .. })) =
            bitmap::valid_directory(header).filter(|_| !bitmaps.is_empty())
        {
            layout.region("bitmap_directory_offset", at + 16, offset, len, 1, findings);
        }
        for bitmap in &bitmaps {
            let bits = u64::from((bitmap.flags & BitmapFlags::RESERVED).bits());
            if bits != 0 {
                findings.fault(
                    "bitmap flags",
                    bitmap.at + 12,
                    Problem::Reserved { value: bitmap.flags.bits().into(), bits },
                );
            }
            let (offset, entries) = (bitmap.table_offset, u64::from(bitmap.table_size));
            if layout.region("bitmap_table_offset", bitmap.at, offset, entries * 8, 1, findings) {
                layout.bitmap_tables.push(BitmapTable { offset, entries });
            } else if entries > 0 {
                findings.uses_unknown = true;
            }
        }
        // Overlapping bitmap tables are skipped, too. Their clusters are reported as used more than once anyway.
        layout.bitmap_tables.sort_unstable_by_key(|table| table.offset);
        let mut end = 0;
        layout.bitmap_tables.retain(|table| {
            let is_separate = table.offset >= end;
            end = end.max(table.offset + table.entries * 8);
            is_separate
        });
        Ok(layout)
    }

    /// Adds the L1 table of the active state, or of a number of `snapshots`.
    fn l1_table(
        &mut self,
        at: u64,
        offset: u64,
        entries: u32,
        disk_size: u64,
        snapshots: Option<u32>,
        findings: &mut Findings,
    ) {
        let (entries, times) = (u64::from(entries), snapshots.unwrap_or(1));
        if self.region("l1_table_offset", at, offset, entries * 8, times, findings) {
            self.l1_tables.push(L1Table { offset, entries, disk_size, active: snapshots.is_none(), times });
        } else if entries > 0 {
            findings.uses_unknown = true;
        }
    }

    /// Adds a region with `times` references. Returns whether it is aligned to clusters and within the file, rounded up to
    /// clusters.
    fn region(
        &mut self,
        name: &'static str,
        at: u64,
        offset: u64,
        len: u64,
        times: u32,
        findings: &mut Findings,
    ) -> bool {
        if len == 0 {
            return false;
        }
        let cluster_size = self.header.cluster_size();
        if !offset.is_multiple_of(cluster_size) {
            findings.fault(name, at, Problem::Misaligned { value: offset, alignment: cluster_size });
            return false;
        }
        if offset.saturating_add(len) >= self.file_len.saturating_add(cluster_size) || offset >= self.file_len {
            findings.fault(name, at, Problem::OutOfBounds { offset, len, file_len: self.file_len });
            return false;
        }
        self.regions.push(Region { offset, len, times });
        true
    }
}

impl Layout<'_> {
    /// Host clusters of `len` bytes at `offset`. At most one of them is beyond the end of the file.
    pub fn clusters(&self, offset: u64, len: u64) -> Range<u64> {
        let size = self.header.cluster_size();
        let end = offset.saturating_add(len).min(self.file_len.saturating_add(size)).div_ceil(size);
        let start = offset / size;
        start..end.max(start)
    }

    /// Iterates over the 64-bit entries of a table that are within the file, as (file offset, entry).
    pub fn entries(&self, offset: u64, entries: u64) -> Entries {
        let len = entries.saturating_mul(8).min(self.file_len.saturating_sub(offset)) & !7;
        Entries { file: self.file.clone(), at: offset, end: offset.saturating_add(len), buffer: Vec::new(), next: 0 }
    }
}

/// Iterator over table entries, read in chunks.
pub(super) struct Entries {
    file: Arc<dyn ReadAt>,
    /// File offset of the next chunk.
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    /// Position of the next entry in the buffer.
    next: usize,
}

impl Entries {
    const CHUNK: u64 = 64 << 10;

    pub fn len(&self) -> u64 {
        (self.end - self.at) / 8
    }
}

impl Iterator for Entries {
    type Item = Result<(u64, u64)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.buffer.len() {
            let len = (self.end - self.at).min(Self::CHUNK);
            if len == 0 {
                return None;
            }
            self.buffer.resize(len as usize, 0);
            if let Err(error) = table::read(&*self.file, &mut self.buffer, self.at) {
                self.at = self.end;
                self.next = self.buffer.len();
                return Some(Err(error));
            }
            self.at += len;
            self.next = 0;
        }
        let entry = BigEndian::read_u64(self.buffer.get(self.next..self.next + 8)?);
        let at = self.at - (self.buffer.len() - self.next) as u64;
        self.next += 8;
        Some(Ok((at, entry)))
    }
}
