//! The mapping of guest clusters: L1 and L2 entries.

use std::ops::Range;

use super::{NEW, TABLES, Update};
use crate::driver::{Allocation, Extent, ExtentKind, FileId, Location, Zeroed};
use crate::error::{Error, Problem, Result};
use crate::format::qcow2::entry::{COMPRESSED, COPIED, L2Entry, OFFSET_MASK, SUBCLUSTERS, ZERO, parse_l1_entry};
use crate::format::qcow2::extent::DATA;
use crate::format::qcow2::{FIELDS, FORMAT_NAME};
use crate::format::shared::run;

/// An L2 entry with its subcluster bitmap, 0 for standard entries, and its host offset, if there is a table.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub entry: u64,
    pub bitmap: u64,
    pub at: Option<u64>,
}

/// Where a write to a guest cluster goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    /// Where the data is, up to this guest offset.
    InPlace { host: u64, until: u64 },
    /// To the host cluster that the guest cluster has, in which the subclusters at the offset are not data yet, up to this guest offset.
    Unused { host: u64, until: u64 },
    /// To a new cluster, which gets all data of the guest cluster if `whole`.
    New { whole: bool },
}

impl Update {
    /// Smallest guest range that can be zeroed by itself.
    pub(super) fn granule(&self) -> u64 {
        if self.header.extended_l2() { self.cluster_size() / u64::from(SUBCLUSTERS) } else { self.cluster_size() }
    }

    /// Returns the extent at the start of a guest range.
    pub(super) fn map(&mut self, range: Range<u64>) -> Result<Extent> {
        let (offset, cluster_size) = (range.start, self.cluster_size());
        let end = range.end.min(self.info.virtual_size);
        let coverage = self.header.l2_coverage();
        if self.l2_table(offset / coverage)?.is_none() {
            let until = (offset / coverage + 1).saturating_mul(coverage).min(self.info.virtual_size);
            return Ok(Extent { offset, len: until - offset, kind: ExtentKind::Hole });
        }
        let first = self.extent_in_cluster(offset)?;
        Ok(run::merge(first, end, |at| {
            // The next L2 table is another lookup, as is the rest of a cluster after an extent of subclusters.
            if !at.is_multiple_of(cluster_size) || at.is_multiple_of(coverage) {
                return None;
            }
            self.extent_in_cluster(at).ok().map(|next| (next.kind, next.len))
        }))
    }

    fn extent_in_cluster(&mut self, offset: u64) -> Result<Extent> {
        let Entry { entry, bitmap, at } = self.entry(offset)?;
        self.bounds().extent((entry, bitmap), at.unwrap_or(0), offset)
    }

    /// Allocates a host range for the start of a guest range, or finds the one that it has.
    pub(super) fn place(&mut self, guest: Range<u64>) -> Result<Allocation> {
        let cluster_size = self.cluster_size();
        let cluster = guest.start - guest.start % cluster_size;
        let file = self.bounds().location(0).file;
        let first = self.target(guest.start)?;
        let allocation = |guest: Range<u64>, host: u64, is_new, reads_as_zeros| {
            let at = Location { file, offset: host };
            Allocation { guest, at, is_new, reads_as_zeros }
        };
        match first {
            Target::InPlace { host, until } => {
                let mut end = until;
                while end < guest.end && end.is_multiple_of(cluster_size) {
                    match self.target(end)? {
                        Target::InPlace { host: next, until } if next == host + (end - cluster) => end = until,
                        _ => break,
                    }
                }
                let clusters = (end - cluster).next_multiple_of(cluster_size);
                self.check_host(host, clusters)?;
                self.cover(file, host + clusters)?;
                let within = guest.start - cluster;
                Ok(allocation(guest.start..end.min(guest.end), host + within, false, false))
            }
            Target::Unused { host, until } => {
                self.check_host(host, cluster_size)?;
                self.cover(file, host + cluster_size)?;
                let granule = self.granule();
                let start = guest.start - guest.start % granule;
                let end = until.min(guest.end.next_multiple_of(granule));
                Ok(allocation(start..end, host + (start - cluster), true, false))
            }
            Target::New { whole } => {
                let mut wanted = 1;
                while cluster + wanted * cluster_size < guest.end
                    && self.target(cluster + wanted * cluster_size)? == first
                {
                    wanted += 1;
                }
                let unit = if whole { cluster_size } else { self.granule() };
                let file_len = self.file_len;
                let run = self.allocate_in_file(wanted, false)?;
                let (host, host_end) = (run.start << self.header.cluster_bits, run.end << self.header.cluster_bits);
                let reads_as_zeros = host >= file_len && self.disk.starts_zeroed();
                let start = guest.start - guest.start % unit;
                let end = guest.end.next_multiple_of(unit).min(cluster + (host_end - host));
                Ok(allocation(start..end, host + (start - cluster), true, reads_as_zeros))
            }
        }
    }

    /// Makes the tables point to what was allocated for a guest range, which has been written.
    pub(super) fn point_to(&mut self, allocation: &Allocation) -> Result<()> {
        let cluster_size = self.cluster_size();
        let Range { start, end } = allocation.guest;
        let host_start = allocation.at.offset - start % cluster_size;
        let first = start - start % cluster_size;
        for cluster in (first..end).step_by(cluster_size as usize) {
            let host = host_start + (cluster - first);
            let old = self.entry(cluster)?;
            let bitmap = match self.header.extended_l2() {
                false => 0,
                true => {
                    let part = start.max(cluster) - cluster..end.min(cluster + cluster_size) - cluster;
                    let bits = self.subclusters(&part);
                    let is_same = old.entry & COMPRESSED == 0 && self.host_of(old) == Some(host);
                    let (allocated, zero) = (old.bitmap as u32, (old.bitmap >> 32) as u32);
                    u64::from(zero & !bits) << 32 | u64::from(if is_same { allocated | bits } else { bits })
                }
            };
            self.set_entry(cluster, COPIED | host, bitmap)?;
        }
        Ok(())
    }

    /// Frees the clusters of an allocation that no entry points to.
    pub(super) fn give_up(&mut self, allocation: &Allocation) {
        let cluster_size = self.cluster_size();
        let first = allocation.guest.start - allocation.guest.start % cluster_size;
        let host = allocation.at.offset - allocation.guest.start % cluster_size;
        for cluster in (first..allocation.guest.end).step_by(cluster_size as usize) {
            let host = host + (cluster - first);
            // Where it cannot be told, the cluster is leaked.
            if self.entry(cluster).is_ok_and(|old| self.host_of(old) != Some(host)) {
                let _ = self.count_use_less(host >> self.header.cluster_bits);
            }
        }
    }

    /// Makes the start of a guest range of whole granules read as zeros, where `has_backing` also what is unallocated.
    pub(super) fn zero_clusters(&mut self, guest: Range<u64>, keep: bool, has_backing: bool) -> Result<Zeroed> {
        let len = self.one_cluster(&guest);
        let (at, old) = (guest.start, self.entry(guest.start)?);
        if self.is_raw_data_file() || self.header.version == 2 && has_backing {
            return Ok(Zeroed::Not(len));
        }
        if old.at.is_none() && !has_backing {
            let coverage = self.header.l2_coverage();
            return Ok(Zeroed::ByMetadata((coverage - at % coverage).min(guest.end - at)));
        }
        let is_whole = len == self.cluster_size() || guest.start.is_multiple_of(self.cluster_size());
        let kind = self.parse(old)?;
        if self.header.extended_l2() {
            let cluster = at - at % self.cluster_size();
            let bits = self.subclusters(&(at - cluster..at - cluster + len));
            // The last cluster may end after the disk.
            let is_whole = is_whole && at + len >= (cluster + self.cluster_size()).min(self.info.virtual_size);
            return self.zero_subclusters(at, old, if is_whole { u32::MAX } else { bits }, keep, len);
        }
        let host = self.host_of(old).filter(|_| old.entry & COMPRESSED == 0 && old.entry & COPIED != 0);
        match kind {
            L2Entry::Zero { .. } => {}
            L2Entry::Unallocated if !has_backing => {}
            _ if self.header.version == 2 => self.set_entry(at, 0, 0)?,
            _ => match host.filter(|_| keep || self.header.has_data_file()) {
                Some(host) => self.set_entry(at, COPIED | host | ZERO, 0)?,
                None => self.set_entry(at, ZERO, 0)?,
            },
        }
        Ok(Zeroed::ByMetadata(len))
    }

    fn zero_subclusters(&mut self, at: u64, old: Entry, bits: u32, keep: bool, len: u64) -> Result<Zeroed> {
        let is_compressed = old.entry & COMPRESSED != 0;
        if is_compressed && bits != u32::MAX {
            return Ok(Zeroed::Not(len));
        }
        let bits = u64::from(bits);
        let bitmap = if is_compressed { bits << 32 } else { (old.bitmap | bits << 32) & !bits };
        let frees = is_compressed || bitmap as u32 == 0 && !keep && !self.header.has_data_file();
        let entry = if frees { 0 } else { old.entry };
        if (entry, bitmap) != (old.entry, old.bitmap) {
            self.set_entry(at, entry, bitmap)?;
        }
        Ok(Zeroed::ByMetadata(len))
    }

    /// Frees the clusters at the start of a guest range of whole granules.
    pub(super) fn discard_clusters(&mut self, guest: Range<u64>) -> Result<Zeroed> {
        let len = self.one_cluster(&guest);
        let (at, old) = (guest.start, self.entry(guest.start)?);
        if old.at.is_none() {
            let coverage = self.header.l2_coverage();
            return Ok(Zeroed::ByMetadata((coverage - at % coverage).min(guest.end - at)));
        }
        let is_whole = at.is_multiple_of(self.cluster_size())
            && (len == self.cluster_size() || at + len == self.info.virtual_size);
        let is_hidden = self.header.backing_file.is_some();
        match self.parse(old)? {
            _ if !is_whole || self.is_raw_data_file() => {}
            L2Entry::Unallocated => {}
            _ if !is_hidden => self.set_entry(at, 0, 0)?,
            _ if self.header.version == 2 => {}
            _ if self.header.extended_l2() => self.set_entry(at, 0, u64::from(u32::MAX) << 32)?,
            _ => self.set_entry(at, ZERO, 0)?,
        }
        Ok(Zeroed::ByMetadata(len))
    }

    /// Length in bytes of the part of a guest range in its first cluster.
    fn one_cluster(&self, guest: &Range<u64>) -> u64 {
        (self.cluster_size() - guest.start % self.cluster_size()).min(guest.end - guest.start)
    }

    /// The bits of the subclusters with these bytes of a cluster.
    fn subclusters(&self, part: &Range<u64>) -> u32 {
        let size = self.granule();
        let (first, end) = (part.start / size, part.end.div_ceil(size));
        (((1_u64 << end) - 1) & !((1_u64 << first) - 1)) as u32
    }

    /// Where a write at a guest offset goes.
    fn target(&mut self, offset: u64) -> Result<Target> {
        let (old, cluster_size) = (self.entry(offset)?, self.cluster_size());
        let cluster = offset - offset % cluster_size;
        let until = cluster + cluster_size;
        let host = if self.header.has_data_file() {
            Some(cluster)
        } else {
            self.host_of(old).filter(|_| old.entry & (COPIED | COMPRESSED) == COPIED)
        };
        let kind = self.parse(old)?;
        let Some(host) = host else {
            // A cluster with data, or in another place, is copied as a whole.
            let has_data = !matches!(kind, L2Entry::Unallocated | L2Entry::Subclusters { allocated: 0, .. });
            return Ok(Target::New { whole: has_data || !self.header.extended_l2() });
        };
        Ok(match kind {
            L2Entry::Data { .. } => Target::InPlace { host, until },
            L2Entry::Subclusters { allocated, .. } => {
                let (size, first) = (self.granule(), (offset - cluster) / self.granule());
                let state = |index: u64| allocated >> index & 1;
                let next = (first..SUBCLUSTERS.into()).find(|index| state(*index) != state(first));
                let until = cluster + next.unwrap_or(SUBCLUSTERS.into()) * size;
                match state(first) {
                    1 => Target::InPlace { host, until },
                    _ => Target::Unused { host, until },
                }
            }
            L2Entry::Unallocated | L2Entry::Zero { .. } | L2Entry::Compressed { .. } => Target::Unused { host, until },
        })
    }

    /// The host cluster of an uncompressed entry, also if it has no data.
    fn host_of(&self, Entry { entry, .. }: Entry) -> Option<u64> {
        let host = entry & OFFSET_MASK;
        let at_zero = self.header.has_data_file() && entry & COPIED != 0;
        (entry & COMPRESSED == 0 && (host != 0 || at_zero)).then_some(host)
    }

    fn parse(&self, Entry { entry, bitmap, at }: Entry) -> Result<L2Entry> {
        let fault = |problem| Error::corrupt(FORMAT_NAME, "L2 entry", at.unwrap_or(0), problem);
        L2Entry::parse(entry, bitmap, &self.header).map_err(fault)
    }

    /// Refuses to write where a table is, or after the end of the file.
    fn check_host(&self, host: u64, len: u64) -> Result<()> {
        if self.header.has_data_file() {
            return Ok(());
        }
        let bits = self.header.cluster_bits;
        let field = FIELDS.at("L2 entry", host);
        match self.fixed_table_in(&(host >> bits..(host + len) >> bits)) {
            Some(with) => Err(field.fault(Problem::Overlap { offset: host, with })),
            // The last cluster of a file may be cut off.
            None if host + len - self.cluster_size() >= self.file_len => {
                Err(field.fault(Problem::OutOfBounds { offset: host, len, file_len: self.file_len }))
            }
            None => Ok(()),
        }
    }

    /// Makes the file with the data at least this long.
    fn cover(&mut self, file: FileId, end: u64) -> Result<()> {
        match &self.data_file {
            Some(data_file) if file == DATA => {
                let end = end.min(self.info.virtual_size);
                if end > self.data_file_len {
                    data_file.set_len(end).map_err(Error::io("setting the length of the data file", end))?;
                    self.data_file_len = end;
                }
                Ok(())
            }
            _ => self.grow_file(end),
        }
    }

    /// Host offset of an L2 table, if there is one.
    fn l2_table(&self, index: u64) -> Result<Option<u64>> {
        let entry = usize::try_from(index).ok().and_then(|index| self.l1.get(index)).copied().unwrap_or(0);
        let field = FIELDS.at("L1 entry", self.header.l1_table_offset + index * 8);
        let table = parse_l1_entry(entry, &self.header).map_err(|problem| field.fault(problem))?;
        table.map_or(Ok(()), |offset| field.within(offset, self.cluster_size(), self.file_len))?;
        Ok(table)
    }

    /// The L2 entry of a guest offset.
    pub(super) fn entry(&mut self, offset: u64) -> Result<Entry> {
        let Some(table) = self.l2_table(offset / self.header.l2_coverage())? else {
            return Ok(Entry { entry: 0, bitmap: 0, at: None });
        };
        let at = self.entry_in(table, offset);
        self.read_entry(at)
    }

    fn entry_in(&self, table: u64, offset: u64) -> u64 {
        let index = offset / self.cluster_size() % self.header.l2_entries();
        table + index * self.header.l2_entry_size()
    }

    fn read_entry(&mut self, at: u64) -> Result<Entry> {
        let entry = u64::from_be_bytes(self.pages.read_array(at)?);
        let bitmap = if self.header.extended_l2() { u64::from_be_bytes(self.pages.read_array(at + 8)?) } else { 0 };
        Ok(Entry { entry, bitmap, at: Some(at) })
    }

    /// Replaces the L2 entry of a guest offset, and frees what the old one had.
    pub(super) fn set_entry(&mut self, offset: u64, entry: u64, bitmap: u64) -> Result<()> {
        let table = self.own_l2_table(offset / self.header.l2_coverage())?;
        let at = self.entry_in(table, offset);
        let old = self.read_entry(at)?;
        let bytes = [entry.to_be_bytes(), bitmap.to_be_bytes()].concat();
        self.pages.write(bytes.get(..self.header.l2_entry_size() as usize).unwrap_or_default(), at, TABLES)?;
        let is_kept = entry & COMPRESSED == 0 && old.entry & COMPRESSED == 0 && (entry ^ old.entry) & OFFSET_MASK == 0;
        if !is_kept {
            self.drop_entry(old);
        }
        Ok(())
    }

    /// Frees the clusters of an entry that is no longer in a table.
    pub(super) fn drop_entry(&mut self, old: Entry) {
        if self.header.has_data_file() {
            return;
        }
        let bits = self.header.cluster_bits;
        match L2Entry::parse(old.entry, old.bitmap, &self.header) {
            Ok(L2Entry::Compressed { host, len }) => {
                self.freed.extend(host >> bits..=(host + u64::from(len) - 1) >> bits);
            }
            // What an invalid entry has is leaked.
            Ok(_) => self.freed.extend(self.host_of(old).map(|host| host >> bits)),
            Err(_) => {}
        }
    }

    /// Host offset of an L2 table that no snapshot shares. A missing one is created, and a shared one copied.
    fn own_l2_table(&mut self, index: u64) -> Result<u64> {
        let old = self.l2_table(index)?;
        let entry = usize::try_from(index).ok().and_then(|index| self.l1.get(index)).copied().unwrap_or(0);
        if let Some(table) = old.filter(|_| entry & COPIED != 0) {
            return Ok(table);
        }
        let run = self.allocate_in_file(1, true)?;
        let (offset, size) = (run.start << self.header.cluster_bits, self.cluster_size());
        self.pages.create(offset..offset + size, NEW);
        if let Some(old) = old {
            let mut bytes = vec![0; size as usize];
            self.pages.read(&mut bytes, old)?;
            self.pages.write(&bytes, offset, NEW)?;
        }
        self.set_l1_entry(index, COPIED | offset)?;
        self.freed.extend(old.map(|old| old >> self.header.cluster_bits));
        Ok(offset)
    }

    pub(super) fn set_l1_entry(&mut self, index: u64, entry: u64) -> Result<()> {
        let at = self.header.l1_table_offset + index * 8;
        let place = usize::try_from(index).ok().and_then(|index| self.l1.get_mut(index));
        let place = place.ok_or_else(|| Error::Usage("guest offset beyond the L1 table".into()))?;
        self.pages.write(&entry.to_be_bytes(), at, TABLES)?;
        *place = entry;
        Ok(())
    }
}
