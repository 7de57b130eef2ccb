//! Internal snapshots: made, gone back to and deleted.

use std::sync::Arc;

use super::replace::{Replacement, Uses};
use super::{FORMAT_NAME, Update};
use crate::driver::SnapshotUpdate;
use crate::error::{Error, Result};
use crate::format::qcow2::FIELDS;
use crate::format::qcow2::entry::COPIED;
use crate::format::qcow2::snapshot::{SnapshotEntry, read_snapshots};
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::limits::{Budget, Limits};
use crate::name::Name;

/// Length of an entry without names: the fixed fields, and the extra data that is written.
const ENTRY: usize = 64;
/// Memory for the snapshot table, which qemu limits to half of it.
const MEMORY: u64 = 128 << 20;

impl SnapshotUpdate for Update {
    fn create(&mut self, name: &str, time: (u32, u32)) -> Result<()> {
        if self.header.has_data_file() {
            return Err(Error::unsupported(FORMAT_NAME, "internal snapshots of an image with a data file"));
        }
        let entries = self.snapshots()?;
        // Others do not open an image with more, by default.
        if entries.len() as u64 >= Limits::default().snapshots {
            return Err(Error::unsupported(FORMAT_NAME, "more than 65536 internal snapshots"));
        }
        if name.len() > usize::from(u16::MAX) {
            return Err(Error::Usage("the name of the snapshot is too long".into()));
        }
        let ids = entries.iter().filter_map(|entry| entry.info.id.to_string().parse::<u64>().ok());
        let id = ids.max().unwrap_or(0).saturating_add(1).to_string();
        self.replace(|image| {
            let active = image.whole_l1()?;
            // The snapshot and the disk share everything.
            image.count_tree(&active, Uses::More)?;
            let shared = image.shared_tables(&active, 2)?;
            let bytes = encode(&shared);
            let (own, kept) = (image.write_table(&bytes, "the L1 table")?, image.write_table(&bytes, "an L1 table")?);
            image.drop_active_l1()?;
            let mut table = image.snapshot_table(&entries, None)?;
            table.extend(new_entry(kept, shared.len() as u32, &id, name, time, image.header.size));
            image.replacement(own, shared.len() as u32, image.header.size, &table, entries.len() + 1)
        })?;
        self.list_snapshots()
    }

    fn apply(&mut self, snapshot: &str) -> Result<()> {
        let entries = self.snapshots()?;
        let index = find(&entries, snapshot)?;
        let Some(entry) = entries.get(index) else { return Err(unknown(snapshot)) };
        entry.check(&self.header, self.file_len)?;
        if self.header.extensions.bitmaps.is_some() {
            return Err(Error::unsupported(FORMAT_NAME, "going back to a snapshot in an image with bitmaps"));
        }
        let size = entry.info.virtual_size;
        self.replace(|image| {
            let (active, wanted) = (image.whole_l1()?, image.l1_of(entry)?);
            image.count_tree(&wanted, Uses::More)?;
            image.count_tree(&active, Uses::Less)?;
            let shared = image.shared_tables(&wanted, 1)?;
            let own = image.write_table(&encode(&shared), "the L1 table")?;
            image.drop_active_l1()?;
            let table = image.snapshot_table(&entries, None)?;
            image.replacement(own, shared.len() as u32, size, &table, entries.len())
        })
    }

    fn delete(&mut self, snapshot: &str) -> Result<()> {
        let entries = self.snapshots()?;
        let index = find(&entries, snapshot)?;
        let Some(entry) = entries.get(index) else { return Err(unknown(snapshot)) };
        self.replace(|image| {
            let (active, deleted) = (image.whole_l1()?, image.l1_of(entry)?);
            image.count_tree(&deleted, Uses::Less)?;
            image.drop_table(entry.l1_table_offset, u64::from(entry.l1_size) * 8)?;
            let own = image.shared_tables(&active, 1)?;
            let offset = image.write_table(&encode(&own), "the L1 table")?;
            image.drop_active_l1()?;
            let table = image.snapshot_table(&entries, Some(index))?;
            image.replacement(offset, own.len() as u32, image.header.size, &table, entries.len() - 1)
        })?;
        self.list_snapshots()
    }
}

impl Update {
    /// The entries of the snapshot table.
    pub(super) fn snapshots(&self) -> Result<Vec<SnapshotEntry>> {
        let source: Arc<dyn ReadAt> = self.file.clone();
        let entries = read_snapshots(&source, &self.header, &Limits::default(), &Budget::new(MEMORY))?;
        entries.iter().try_for_each(|entry| entry.check_fields(&self.header))?;
        Ok(entries)
    }

    fn list_snapshots(&mut self) -> Result<()> {
        self.info.snapshots = self.snapshots()?.into_iter().map(|entry| entry.info).collect();
        Ok(())
    }

    /// All entries of the active L1 table, also those beyond the end of the disk.
    pub(super) fn whole_l1(&mut self) -> Result<Vec<u64>> {
        self.read_l1(self.header.l1_table_offset, self.header.l1_size)
    }

    fn l1_of(&self, entry: &SnapshotEntry) -> Result<Vec<u64>> {
        FIELDS.at("snapshot l1_table_offset", entry.range.start).aligned(entry.l1_table_offset, self.cluster_size())?;
        self.read_l1(entry.l1_table_offset, entry.l1_size)
    }

    fn read_l1(&self, offset: u64, size: u32) -> Result<Vec<u64>> {
        let field = FIELDS.at("L1 table", offset);
        field.at_most(size.into(), crate::format::qcow2::header::MAX_L1_ENTRIES)?;
        field.within(offset, u64::from(size) * 8, self.file_len)?;
        let mut bytes = vec![0; size as usize * 8];
        table::read(&*self.file, &mut bytes, offset)?;
        let entries = bytes.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry));
        // A disk of no bytes may have none.
        Ok(entries.chain((size == 0).then_some(0)).collect())
    }

    /// The entries of an active L1 table for these tables, whose uses are counted: with the flags that go with the counts. A table in which
    /// flags are wrong is copied, and `moved` of its uses go to the copy.
    pub(super) fn shared_tables(&mut self, entries: &[u64], moved: u64) -> Result<Vec<u64>> {
        let mut own = Vec::with_capacity(entries.len());
        for entry in entries {
            self.make_room()?;
            let Some(mut offset) = self.l2_offset(*entry)? else {
                own.push(0);
                continue;
            };
            let table = self.read_l2(offset)?;
            if let Some(copy) = self.with_flags(&table)? {
                let former = offset >> self.header.cluster_bits;
                offset = self.write_table(&copy, "an L2 table")?;
                self.set_refcount(offset >> self.header.cluster_bits, moved)?;
                (0..moved).try_for_each(|_| self.count_use_less(former))?;
            }
            let uses = self.refcount(offset >> self.header.cluster_bits)?;
            own.push(if uses == 1 { offset | COPIED } else { offset });
        }
        Ok(own)
    }

    pub(super) fn drop_active_l1(&mut self) -> Result<()> {
        self.drop_table(self.header.l1_table_offset, u64::from(self.header.l1_size) * 8)
    }

    /// The snapshot table as it is, without an entry. Its clusters are counted no longer.
    fn snapshot_table(&mut self, entries: &[SnapshotEntry], without: Option<usize>) -> Result<Vec<u8>> {
        let mut table = Vec::new();
        for (_, entry) in entries.iter().enumerate().filter(|(index, _)| Some(*index) != without) {
            let start = table.len();
            table.resize(start + (entry.range.end - entry.range.start) as usize, 0);
            table::read(&*self.file, table.get_mut(start..).unwrap_or_default(), entry.range.start)?;
            table.resize(table.len().next_multiple_of(8), 0);
        }
        if let Some(last) = entries.last() {
            let start = self.header.snapshots_offset;
            self.drop_table(start, last.range.end - start)?;
        }
        Ok(table)
    }

    fn replacement(&mut self, l1: u64, l1_size: u32, size: u64, table: &[u8], count: usize) -> Result<Replacement> {
        let snapshots_offset = if count == 0 { 0 } else { self.write_table(table, "the snapshot table")? };
        Ok(Replacement { size, l1_table_offset: l1, l1_size, snapshot_count: count as u32, snapshots_offset })
    }
}

/// Finds a snapshot by ID or, if no ID matches, by name.
fn find(entries: &[SnapshotEntry], wanted: &str) -> Result<usize> {
    let by = |name: fn(&SnapshotEntry) -> &Name| {
        entries.iter().position(|entry| name(entry).as_bytes() == wanted.as_bytes())
    };
    by(|entry| &entry.info.id).or_else(|| by(|entry| &entry.info.name)).ok_or_else(|| unknown(wanted))
}

fn unknown(snapshot: &str) -> Error {
    Error::Usage(format!("{FORMAT_NAME}: unknown snapshot {snapshot:?}"))
}

fn encode(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

/// Encodes an entry of the snapshot table, without the state of a machine.
fn new_entry(l1_table_offset: u64, l1_size: u32, id: &str, name: &str, time: (u32, u32), size: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ENTRY + id.len() + name.len());
    bytes.extend(l1_table_offset.to_be_bytes());
    bytes.extend(l1_size.to_be_bytes());
    bytes.extend((id.len() as u16).to_be_bytes());
    bytes.extend((name.len() as u16).to_be_bytes());
    bytes.extend(time.0.to_be_bytes());
    bytes.extend(time.1.to_be_bytes());
    // Clock and state of the machine.
    bytes.extend([0; 12]);
    bytes.extend(24_u32.to_be_bytes());
    bytes.extend(0_u64.to_be_bytes());
    bytes.extend(size.to_be_bytes());
    // The instruction count, as qemu-img writes it.
    bytes.extend(0_u64.to_be_bytes());
    bytes.extend(id.as_bytes());
    bytes.extend(name.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}
