//! Walks through all tables and counts the uses of host clusters.

use std::borrow::Cow;

use byteorder::{BigEndian, ByteOrder};

use super::counts::{Counts, Uses};
use super::layout::Layout;
use super::refcounts::Refcounts;
use super::{Findings, Work};
use crate::error::{Problem, Result};
use crate::format::qcow2::bitmap::Part;
use crate::format::qcow2::entry::{COPIED, L2Entry, OFFSET_MASK, SUBCLUSTERS, parse_l1_entry};
use crate::format::qcow2::header::Header;
use crate::format::shared::table;

/// Largest number of collected tails. All tails share the last cluster of the file.
const MAX_TAILS: usize = 64;

/// A walk through the layout, for one window.
pub(super) struct Walk<'a> {
    layout: &'a Layout<'a>,
    findings: &'a mut Findings,
    work: &'a mut Work,
    /// Whether this is the first window. Faults of single entries are reported once, in the first one.
    first: bool,
    /// Buffer for an L2 table.
    table: Vec<u8>,
    tails: Vec<Tail>,
}

/// An L2 entry whose host cluster is partly beyond the end of its file.
struct Tail {
    l2_offset: u64,
    index: u64,
    host: u64,
    len: u64,
    file_len: u64,
}

impl<'a> Walk<'a> {
    pub fn new(layout: &'a Layout<'a>, first: bool, findings: &'a mut Findings, work: &'a mut Work) -> Self {
        let table = vec![0; layout.header.cluster_size() as usize];
        Walk { layout, findings, work, first, table, tails: Vec::new() }
    }

    /// Counts the uses of the host clusters in the window of `counts`.
    pub fn run(mut self, refcounts: &Refcounts, counts: &mut Counts, l2_tables: &mut Counts) -> Result<()> {
        let cluster_size = self.layout.header.cluster_size();
        refcounts.for_each(counts.window(), self.work, |cluster, refcount| {
            if refcount == 1 {
                counts.add(cluster..cluster + 1, Uses::REFCOUNT_ONE, 0);
            }
        })?;
        for region in &self.layout.regions {
            let clusters = self.layout.clusters(region.offset, region.len);
            self.work.spend(clusters.end - clusters.start)?;
            counts.add(clusters, Uses::METADATA, region.times);
        }
        self.work.spend(refcounts.blocks().count() as u64)?;
        for block in refcounts.blocks() {
            counts.add(self.layout.clusters(block, cluster_size), Uses::METADATA, 1);
        }
        self.count_bitmaps(counts)?;
        self.count_l2_tables(counts)?;
        self.count_guest_clusters(counts, l2_tables)?;
        self.check_tails()
    }

    fn count_bitmaps(&mut self, counts: &mut Counts) -> Result<()> {
        let layout = self.layout;
        for bitmap in &layout.bitmap_tables {
            let entries = layout.entries(bitmap.offset, bitmap.entries);
            self.work.spend(entries.len())?;
            for item in entries {
                let (at, entry) = item?;
                match bitmap_data(entry, layout) {
                    Err(problem) => self.fault("bitmap table entry", at, problem),
                    Ok(None) => {}
                    Ok(Some(offset)) => counts.add(layout.clusters(offset, 1), Uses::METADATA, 1),
                }
            }
        }
        Ok(())
    }

    /// Counts the L2 tables in the window by the L1 entries.
    fn count_l2_tables(&mut self, counts: &mut Counts) -> Result<()> {
        let layout = self.layout;
        for l1 in &layout.l1_tables {
            let uses = if l1.active { Uses::L2_TABLE | Uses::ACTIVE } else { Uses::L2_TABLE };
            let entries = layout.entries(l1.offset, l1.entries);
            self.work.spend(entries.len())?;
            for (index, item) in entries.enumerate() {
                let (at, entry) = item?;
                match l2_table(entry, layout) {
                    Err(problem) => self.fault("L1 entry", at, problem),
                    Ok(None) if entry != 0 => {
                        let rule = "must have bit 63 clear without an L2 table";
                        self.fault("L1 entry", at, Problem::Rule { value: entry, rule });
                    }
                    Ok(None) => {}
                    Ok(Some(offset)) => {
                        let clusters = layout.clusters(offset, 1);
                        if l1.active {
                            self.check_copied(
                                || format!("L1 entry {index}").into(),
                                at,
                                entry,
                                counts.get(clusters.start),
                            );
                        }
                        counts.add(clusters, uses, l1.times);
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts the guest clusters in the window. Each L2 table is read once, however many L1 tables reference it. L2 tables are
    /// collected in windows, too.
    fn count_guest_clusters(&mut self, counts: &mut Counts, l2_tables: &mut Counts) -> Result<()> {
        let layout = self.layout;
        l2_tables.restart(0);
        loop {
            for l1 in &layout.l1_tables {
                let uses = if l1.active { Uses::ACTIVE } else { Uses::empty() };
                let entries = layout.entries(l1.offset, l1.entries);
                self.work.spend(entries.len())?;
                for item in entries {
                    if let Ok(Some(offset)) = l2_table(item?.1, layout) {
                        l2_tables.add(layout.clusters(offset, 1), uses, l1.times);
                    }
                }
            }
            for (cluster, uses) in l2_tables.used() {
                self.count_l2_table(cluster << layout.header.cluster_bits, uses, counts)?;
            }
            match l2_tables.beyond() {
                Some(cluster) => l2_tables.restart(cluster),
                None => return Ok(()),
            }
        }
    }

    /// Counts the host clusters of the L2 table at `l2_offset`, once for each use of the table.
    fn count_l2_table(&mut self, l2_offset: u64, table_uses: Uses, counts: &mut Counts) -> Result<()> {
        let layout = self.layout;
        let entry_size = layout.header.l2_entry_size();
        let active = table_uses & Uses::ACTIVE;
        self.work.spend(layout.header.l2_entries() + Work::READ)?;
        let mut bytes = std::mem::take(&mut self.table);
        table::read(&*layout.file, &mut bytes, l2_offset)?;
        let mut next = None;
        for (index, raw) in (0..).zip(bytes.chunks_exact(entry_size as usize)) {
            let at = l2_offset + index * entry_size;
            let entry = BigEndian::read_u64(raw);
            let bitmap = raw.get(8..16).map_or(0, BigEndian::read_u64);
            if entry | bitmap == 0 {
                continue;
            }
            let cluster = match GuestCluster::parse(entry, bitmap, layout.header) {
                Ok(Some(cluster)) => cluster,
                Ok(None) => continue,
                Err(problem) => {
                    self.fault("L2 entry", at, problem);
                    continue;
                }
            };
            if self.first && !active.is_empty() {
                self.findings.count_cluster(&cluster, &mut next, layout.header.cluster_size());
            }
            self.check_bounds(l2_offset, index, &cluster);
            if layout.data_file {
                // Clusters of a data file have no refcounts; each has a single use.
                if !active.is_empty() {
                    self.check_copied(|| "L2 entry".into(), at, entry, self.first.then_some(Uses::REFCOUNT_ONE));
                }
                continue;
            }
            let clusters = layout.clusters(cluster.host, cluster.space);
            if cluster.compressed {
                counts.add(clusters, Uses::COMPRESSED, table_uses.count());
            } else {
                if !active.is_empty() {
                    self.check_copied(|| "L2 entry".into(), at, entry, counts.get(clusters.start));
                }
                counts.add(clusters, Uses::DATA, table_uses.count());
            }
        }
        self.table = bytes;
        Ok(())
    }
}

/// Returns the host offset of the L2 table of an L1 entry. The table is within the file.
fn l2_table(entry: u64, layout: &Layout<'_>) -> Result<Option<u64>, Problem> {
    let Some(offset) = parse_l1_entry(entry, layout.header)? else { return Ok(None) };
    within(offset, layout.header.cluster_size(), layout.file_len)?;
    Ok(Some(offset))
}

/// Returns the host offset of the data of a bitmap table entry. Its first byte is within the file.
fn bitmap_data(entry: u64, layout: &Layout<'_>) -> Result<Option<u64>, Problem> {
    match Part::parse(entry, layout.header.cluster_size())? {
        Part::Same(_) => Ok(None),
        Part::At(offset) => {
            within(offset, 1, layout.file_len)?;
            Ok(Some(offset))
        }
    }
}

fn within(offset: u64, len: u64, file_len: u64) -> Result<(), Problem> {
    match offset.checked_add(len) {
        Some(end) if end <= file_len => Ok(()),
        _ => Err(Problem::OutOfBounds { offset, len, file_len }),
    }
}

/// Host range of an L2 entry.
pub(super) struct GuestCluster {
    pub host: u64,
    /// Allocated bytes.
    pub space: u64,
    /// Bytes needed for reading.
    pub needed: u64,
    pub compressed: bool,
}

impl GuestCluster {
    fn parse(entry: u64, bitmap: u64, header: &Header) -> Result<Option<Self>, Problem> {
        let space = header.cluster_size();
        let plain = |host, needed| Some(GuestCluster { host, space, needed, compressed: false });
        Ok(match L2Entry::parse(entry, bitmap, header)? {
            L2Entry::Data { host } => plain(host, space),
            L2Entry::Zero { host: Some(host) } => plain(host, 0),
            L2Entry::Subclusters { host: Some(host), allocated, .. } => {
                let last = SUBCLUSTERS - allocated.leading_zeros();
                plain(host, space / u64::from(SUBCLUSTERS) * u64::from(last))
            }
            // A preallocated cluster without allocated subclusters.
            L2Entry::Unallocated if entry & OFFSET_MASK != 0 => plain(entry & OFFSET_MASK, 0),
            L2Entry::Compressed { host, len } => {
                Some(GuestCluster { host, space: len.into(), needed: 1, compressed: true })
            }
            L2Entry::Zero { host: None } | L2Entry::Subclusters { host: None, .. } | L2Entry::Unallocated => None,
        })
    }
}

impl Walk<'_> {
    /// Reports a fault of an entry, once.
    fn fault(&mut self, name: &'static str, at: u64, problem: Problem) {
        if self.first {
            self.findings.fault(name, at, problem);
        }
    }

    /// Checks bit 63 of an entry of the active state: set if and only if the refcount is 1.
    fn check_copied(&mut self, name: impl FnOnce() -> Cow<'static, str>, at: u64, entry: u64, uses: Option<Uses>) {
        let Some(uses) = uses else { return };
        let rule = match (entry & COPIED != 0, uses.contains(Uses::REFCOUNT_ONE)) {
            (true, false) => "must have bit 63 clear, as the refcount is not 1",
            (false, true) => "must have bit 63 set, as the refcount is 1",
            _ => return,
        };
        self.findings.fault(name(), at, Problem::Rule { value: entry, rule });
        self.findings.flags += 1;
    }

    /// Checks that the needed bytes of a guest cluster are within the file. Those beyond the end of the disk may be missing.
    fn check_bounds(&mut self, l2_offset: u64, index: u64, cluster: &GuestCluster) {
        let file_len = if self.layout.data_file { self.layout.data_file_len } else { Some(self.layout.file_len) };
        let Some(file_len) = file_len.filter(|_| self.first) else { return };
        let &GuestCluster { host, space, needed, compressed } = cluster;
        let cluster_size = self.layout.header.cluster_size();
        let is_outside = !self.layout.data_file && host >= file_len;
        let payload_outside = compressed && host.saturating_add(space) >= file_len.saturating_add(cluster_size);
        let missing = host.saturating_add(needed) > file_len;
        if is_outside || payload_outside || missing && host >= file_len {
            let at = l2_offset + index * self.layout.header.l2_entry_size();
            self.fault("L2 entry", at, Problem::OutOfBounds { offset: host, len: space, file_len });
        } else if missing && self.tails.len() < MAX_TAILS {
            self.tails.push(Tail { l2_offset, index, host, len: needed, file_len });
        }
    }

    /// Checks the collected tails: only bytes beyond the end of the disk may be missing.
    fn check_tails(&mut self) -> Result<()> {
        let layout = self.layout;
        for tail in std::mem::take(&mut self.tails) {
            for l1 in &layout.l1_tables {
                let entries = layout.entries(l1.offset, l1.entries);
                self.work.spend(entries.len())?;
                for (l1_index, item) in (0..).zip(entries) {
                    if l2_table(item?.1, layout) != Ok(Some(tail.l2_offset)) {
                        continue;
                    }
                    let guest = (l1_index * layout.header.l2_entries() + tail.index) << layout.header.cluster_bits;
                    let len = tail.len.min(l1.disk_size.saturating_sub(guest));
                    if let Err(problem) = within(tail.host, len, tail.file_len) {
                        let at = tail.l2_offset + tail.index * layout.header.l2_entry_size();
                        self.fault("L2 entry", at, problem);
                    }
                }
            }
        }
        Ok(())
    }
}
