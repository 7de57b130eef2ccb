//! The way through everything that uses clusters of the file.

use byteorder::{BigEndian, ByteOrder};

use super::counts::{Counts, Uses};
use super::layout::Layout;
use super::stored::Stored;
use super::{Findings, Work};
use crate::error::{Problem, Result};
use crate::format::qcow2::entry::{COPIED, L2Entry, OFFSET_MASK, SUBCLUSTERS, parse_l1_entry};
use crate::format::qcow2::header::Header;
use crate::format::shared::table;

/// Entries that reach past the end of their file and whose place on the disk is looked up: they all share one cluster.
const MAX_TAILS: usize = 64;

/// A walk through the layout.
pub(super) struct Walk<'a> {
    layout: &'a Layout<'a>,
    findings: &'a mut Findings,
    work: &'a mut Work,
    /// Whether entries are looked at for themselves as well, which once is enough for.
    first: bool,
    /// An L2 table.
    table: Vec<u8>,
    tails: Vec<Tail>,
}

/// An L2 entry whose cluster is only in part within its file.
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

    /// Counts the uses of the clusters in the window of `counts`.
    pub fn run(mut self, stored: &Stored, counts: &mut Counts, l2_tables: &mut Counts) -> Result<()> {
        let cluster_size = self.layout.header.cluster_size();
        stored.for_each(counts.window(), self.work, |cluster, count| {
            if count == 1 {
                counts.add(cluster..cluster + 1, Uses::STORED_ONE, 0);
            }
        })?;
        for region in &self.layout.regions {
            let clusters = self.layout.clusters(region.offset, region.len);
            self.work.spend(clusters.end - clusters.start)?;
            counts.add(clusters, Uses::METADATA, region.times);
        }
        self.work.spend(stored.blocks().count() as u64)?;
        for block in stored.blocks() {
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
                    Err(problem) => self.wrong("bitmap table entry", at, problem),
                    Ok(None) => {}
                    Ok(Some(offset)) => counts.add(layout.clusters(offset, 1), Uses::METADATA, 1),
                }
            }
        }
        Ok(())
    }

    /// Counts the L2 tables that are in the window, as the L1 tables have them.
    fn count_l2_tables(&mut self, counts: &mut Counts) -> Result<()> {
        let layout = self.layout;
        for l1 in &layout.l1_tables {
            let uses = if l1.active { Uses::L2_TABLE | Uses::ACTIVE } else { Uses::L2_TABLE };
            let entries = layout.entries(l1.offset, l1.entries);
            self.work.spend(entries.len())?;
            for item in entries {
                let (at, entry) = item?;
                match l2_table(entry, layout) {
                    Err(problem) => self.wrong("L1 entry", at, problem),
                    Ok(None) if entry != 0 => {
                        let rule = "bit 63 has to be clear without an L2 table";
                        self.wrong("L1 entry", at, Problem::Rule { value: entry, rule });
                    }
                    Ok(None) => {}
                    Ok(Some(offset)) => {
                        let clusters = layout.clusters(offset, 1);
                        if l1.active {
                            self.check_copied("L1 entry", at, entry, counts.get(clusters.start));
                        }
                        counts.add(clusters, uses, l1.times);
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts the guest's clusters that are in the window. Each L2 table is read once, however many L1 tables name it; which
    /// ones there are is found out window by window, too.
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

    /// Counts what the L2 table at `l2_offset` uses, once for each use of the table itself.
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
                    self.wrong("L2 entry", at, problem);
                    continue;
                }
            };
            if self.first && !active.is_empty() {
                self.findings.count_cluster(&cluster, &mut next, layout.header.cluster_size());
            }
            self.check_bounds(l2_offset, index, &cluster);
            if layout.data_file {
                // Nothing is counted there, each cluster has its one use.
                if !active.is_empty() {
                    self.check_copied("L2 entry", at, entry, self.first.then_some(Uses::STORED_ONE));
                }
                continue;
            }
            let clusters = layout.clusters(cluster.host, cluster.space);
            if cluster.compressed {
                counts.add(clusters, Uses::COMPRESSED, table_uses.count());
            } else {
                if !active.is_empty() {
                    self.check_copied("L2 entry", at, entry, counts.get(clusters.start));
                }
                counts.add(clusters, Uses::DATA, table_uses.count());
            }
        }
        self.table = bytes;
        Ok(())
    }
}

/// The offset of the L2 table that an L1 entry names. It is within the file.
fn l2_table(entry: u64, layout: &Layout<'_>) -> Result<Option<u64>, Problem> {
    let Some(offset) = parse_l1_entry(entry, layout.header)? else { return Ok(None) };
    within(offset, layout.header.cluster_size(), layout.file_len)?;
    Ok(Some(offset))
}

/// The offset of the data that a bitmap table's entry names. It begins within the file.
fn bitmap_data(entry: u64, layout: &Layout<'_>) -> Result<Option<u64>, Problem> {
    let (offset, cluster_size) = (entry & OFFSET_MASK, layout.header.cluster_size());
    // Without data, bit 0 says what all bits are.
    let reserved = entry & !OFFSET_MASK & !u64::from(offset == 0);
    if reserved != 0 {
        return Err(Problem::Reserved { value: entry, bits: reserved });
    }
    if !offset.is_multiple_of(cluster_size) {
        return Err(Problem::Misaligned { value: entry, alignment: cluster_size });
    }
    if offset == 0 {
        return Ok(None);
    }
    within(offset, 1, layout.file_len)?;
    Ok(Some(offset))
}

fn within(offset: u64, len: u64, file_len: u64) -> Result<(), Problem> {
    match offset.checked_add(len) {
        Some(end) if end <= file_len => Ok(()),
        _ => Err(Problem::OutOfBounds { offset, len, file_len }),
    }
}

/// What an L2 entry uses.
pub(super) struct GuestCluster {
    pub host: u64,
    /// Bytes that are set aside.
    pub space: u64,
    /// Bytes that have to be there to be read.
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
            // A cluster that is set aside, but no subcluster of it is in use yet.
            L2Entry::Unallocated if entry & OFFSET_MASK != 0 => plain(entry & OFFSET_MASK, 0),
            L2Entry::Compressed { host, len } => {
                Some(GuestCluster { host, space: len.into(), needed: 1, compressed: true })
            }
            L2Entry::Zero { host: None } | L2Entry::Subclusters { host: None, .. } | L2Entry::Unallocated => None,
        })
    }
}

impl Walk<'_> {
    /// Says once what is wrong with an entry.
    fn wrong(&mut self, name: &'static str, at: u64, problem: Problem) {
        if self.first {
            self.findings.fault(name, at, problem);
        }
    }

    /// "Bit 63: set exactly if the reference count is 1", in entries of the current state.
    fn check_copied(&mut self, name: &'static str, at: u64, entry: u64, uses: Option<Uses>) {
        let Some(uses) = uses else { return };
        let rule = match (entry & COPIED != 0, uses.contains(Uses::STORED_ONE)) {
            (true, false) => "bit 63 has to be clear, as the reference count is not 1",
            (false, true) => "bit 63 has to be set, as the reference count is 1",
            _ => return,
        };
        self.findings.fault(name, at, Problem::Rule { value: entry, rule });
    }

    /// Checks that the bytes of a guest's cluster are there. Some may be missing where nothing is stored or the disk ends.
    fn check_bounds(&mut self, l2_offset: u64, index: u64, cluster: &GuestCluster) {
        let file_len = if self.layout.data_file { self.layout.data_file_len } else { Some(self.layout.file_len) };
        let Some(file_len) = file_len.filter(|_| self.first) else { return };
        let &GuestCluster { host, space, needed, compressed } = cluster;
        let cluster_size = self.layout.header.cluster_size();
        let reserved_outside = !self.layout.data_file && host >= file_len;
        let payload_outside = compressed && host.saturating_add(space) >= file_len.saturating_add(cluster_size);
        let missing = host.saturating_add(needed) > file_len;
        if reserved_outside || payload_outside || missing && host >= file_len {
            let at = l2_offset + index * self.layout.header.l2_entry_size();
            self.wrong("L2 entry", at, Problem::OutOfBounds { offset: host, len: space, file_len });
        } else if missing && self.tails.len() < MAX_TAILS {
            self.tails.push(Tail { l2_offset, index, host, len: needed, file_len });
        }
    }

    /// Looks up the places on the disk of the entries that end past the end of their file: are the guest's bytes there?
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
                        self.wrong("L2 entry", at, problem);
                    }
                }
            }
        }
        Ok(())
    }
}
