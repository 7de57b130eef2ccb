//! Checks that each cluster is used once, and lies within the file (QED specification, "Consistency checking").

use std::ops::Range;
use std::sync::Arc;

use byteorder::{ByteOrder, LittleEndian};

use super::entry::L2Entry;
use super::header::Header;
use super::{FIELDS, FORMAT_NAME};
use crate::driver::{CheckKind, CheckReport, OpenContext};
use crate::error::{Error, Result};
use crate::format::shared::bits::BitSet;
use crate::format::shared::table;
use crate::format::shared::two_level::TwoLevelMap;
use crate::io::ReadAt;

/// Length of an L1 entry in bytes.
const ENTRY: u64 = 8;
/// Most bytes of the L1 table that are read at once.
const CHUNK: usize = 64 << 10;

/// Checks the tables of an image.
///
/// # Errors
/// If the header is invalid or not supported, or the file cannot be read.
pub(super) fn check(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
    let header = Header::read(&*file, cx.limits)?;
    let mut report =
        CheckReport { total_clusters: header.image_size.div_ceil(1 << header.cluster_bits), ..CheckReport::default() };
    if header.need_check {
        report.message(CheckKind::Note, || "the image was not closed cleanly".into());
    }
    let map = TwoLevelMap::open(file.clone(), header.shape(), cx.budget)?;
    let clusters = map.file_len.div_ceil(map.shape.cluster_size());
    match cx.budget.take(clusters.div_ceil(8), FORMAT_NAME, "the bitmap of clusters in use", 0) {
        Ok(()) => {
            let used = BitSet::new(clusters);
            Check { map: &map, file: &*file, used, previous: None, report: &mut report }.run(&header)?;
        }
        Err(error) => report.limit(&error),
    }
    Ok(report)
}

struct Check<'a> {
    map: &'a TwoLevelMap,
    file: &'a dyn ReadAt,
    /// Host clusters in use.
    used: BitSet,
    /// Host offset of the data cluster before.
    previous: Option<u64>,
    report: &'a mut CheckReport,
}

impl Check<'_> {
    fn run(mut self, header: &Header) -> Result<()> {
        let table_len = self.map.shape.l2_len();
        self.claim(&(0..header.header_len().min(self.map.file_len)), "the header");
        self.claim(&(header.l1_table_offset..header.l1_table_offset + table_len), "the L1 table");
        for index in 0..self.map.shape.l1_entries() {
            match self.map.l2_table(index) {
                Ok(None) => {}
                // A table that is used twice is not followed again.
                Ok(Some(l2)) => {
                    if self.claim(&(l2..l2 + table_len), "an L2 table") {
                        self.check_table(index, l2)?;
                    }
                }
                Err(error @ Error::Corrupt(_)) => self.report.corrupt(|| error),
                Err(error) => return Err(error),
            }
        }
        let tables_beyond = self.check_l1_beyond(header)?;
        // Clusters of what is damaged, or not looked at, are not called leaked: freeing them could lose data.
        if self.report.corruptions == 0 && tables_beyond == 0 {
            self.count_leaks();
        }
        Ok(())
    }

    /// Checks the L1 entries beyond the end of the disk, and returns how many there are. Their tables are not followed.
    fn check_l1_beyond(&mut self, header: &Header) -> Result<u64> {
        let shape = self.map.shape;
        let start = header.l1_table_offset + shape.l1_entries() * ENTRY;
        let end = (header.l1_table_offset + shape.l2_len()).min(self.map.file_len);
        let (mut at, mut count, mut buf) = (start, 0, vec![0; CHUNK]);
        while at + ENTRY <= end {
            let len = (end - at).min(CHUNK as u64) / ENTRY * ENTRY;
            let bytes = buf.get_mut(..len as usize).unwrap_or_default();
            table::read(self.file, bytes, at)?;
            for (entry_at, entry) in (at..).step_by(ENTRY as usize).zip(bytes.chunks_exact(ENTRY as usize)) {
                let offset = LittleEndian::read_u64(entry);
                if offset == 0 {
                    continue;
                }
                count += 1;
                let field = FIELDS.at("L1 entry", entry_at);
                let checked = field
                    .aligned(offset, shape.cluster_size())
                    .and_then(|()| field.within(offset, shape.l2_len(), self.map.file_len));
                match checked {
                    Ok(()) => drop(self.claim(&(offset..offset + shape.l2_len()), "an L2 table")),
                    Err(error) => self.report.corrupt(|| error),
                }
            }
            at += len;
        }
        Ok(count)
    }

    fn check_table(&mut self, l1_index: u64, l2: u64) -> Result<()> {
        let shape = self.map.shape;
        let first = l1_index * shape.l2_entries;
        let entries = shape.l2_entries.min(self.report.total_clusters - first);
        let mut index = 0;
        while index < entries {
            let slice = self.map.slice(l2, index)?;
            for index in slice.indexes.start..slice.indexes.end.min(entries) {
                let offset = (first + index) << shape.cluster_bits;
                let entry = slice.entry(index, offset);
                let L2Entry::Data(host) = L2Entry::parse(entry.value) else { continue };
                self.report.allocated_clusters += 1;
                let follows =
                    self.previous.is_none_or(|previous| previous.checked_add(shape.cluster_size()) == Some(host));
                self.report.fragmented_clusters += u64::from(!follows);
                self.previous = Some(host);
                match shape.check_cluster(entry, host, shape.len_in_cluster(offset), self.map.file_len) {
                    Ok(()) => drop(self.claim(&(host..host + shape.cluster_size()), "a data cluster")),
                    Err(error) => self.report.corrupt(|| error),
                }
            }
            index = slice.indexes.end;
        }
        Ok(())
    }

    /// Marks the clusters in a range of the file as in use, and returns whether none of them was.
    fn claim(&mut self, range: &Range<u64>, what: &str) -> bool {
        let bits = self.map.shape.cluster_bits;
        let clusters = range.start >> bits..range.end.div_ceil(1 << bits).min(self.map.file_len.div_ceil(1 << bits));
        let is_free = self.used.insert_all(clusters.clone());
        if is_free {
            self.report.image_end_offset = self.report.image_end_offset.max(clusters.end << bits);
        } else {
            self.report
                .corruption(|| format!("{what} at host offset {:#x} overlaps other clusters in use", range.start));
        }
        is_free
    }

    fn count_leaks(&mut self) {
        let bits = self.map.shape.cluster_bits;
        let end = self.map.file_len.div_ceil(1 << bits);
        let mut at = 0;
        while at < end {
            let (is_used, next) = self.used.run(at, end);
            if !is_used {
                let clusters = next - at;
                self.report.leaks += clusters;
                self.report.message(CheckKind::Leak, || {
                    format!("{clusters} clusters at host offset {:#x} are not in use", at << bits)
                });
            }
            at = next;
        }
    }
}

#[cfg(test)]
mod tests;
