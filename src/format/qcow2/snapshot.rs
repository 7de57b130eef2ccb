//! Internal snapshots (qcow2 specification, "Snapshots"): a table of entries, each as long as its names.

use std::ops::Range;
use std::sync::Arc;

use byteorder::{BigEndian, ByteOrder};

use super::header::{Header, MAX_L1_ENTRIES};
use super::{FORMAT_NAME, field};
use crate::error::{Error, Problem, Result};
use crate::info::Snapshot;
use crate::io::{ReadAt, table};
use crate::limits::Budget;
use crate::name::Name;

/// Length of an entry without the extra data and the names.
const FIXED_LENGTH: usize = 40;
/// Bytes of extra data that mean something: the size of the machine state, the size of the disk, the instruction count.
const KNOWN_EXTRA: usize = 24;
/// qemu's limit for the whole table.
const MAX_TABLE: u64 = 64 << 20;

/// An entry of the snapshot table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SnapshotEntry {
    pub l1_table_offset: u64,
    pub l1_size: u32,
    pub info: Snapshot,
    /// Where in the file the entry stands.
    pub place: Range<u64>,
}

/// Reads the snapshot table. The L1 tables that it names are for [`SnapshotEntry::check`]: a bad one spoils its snapshot only.
pub(super) fn read_snapshots(file: &Arc<dyn ReadAt>, header: &Header, budget: &Budget) -> Result<Vec<SnapshotEntry>> {
    let file_len = file.size().map_err(Error::io("asking for the length", None))?;
    let mut snapshots = Vec::new();
    let mut at = header.snapshots_offset;
    for _ in 0..header.nb_snapshots {
        let entry = read_entry(&**file, at, file_len, header, budget)?;
        field("snapshot table", entry.place.start).at_most(entry.place.end - header.snapshots_offset, MAX_TABLE)?;
        // The end lies within the file, far below 2^64.
        at = entry.place.end.next_multiple_of(8);
        snapshots.push(entry);
    }
    Ok(snapshots)
}

fn read_entry(file: &dyn ReadAt, at: u64, file_len: u64, header: &Header, budget: &Budget) -> Result<SnapshotEntry> {
    field("snapshot table entry", at).within(at, FIXED_LENGTH as u64, file_len)?;
    let mut fixed = [0; FIXED_LENGTH];
    table::read(file, &mut fixed, at)?;
    let (id_len, name_len) = (BigEndian::read_u16(&fixed[12..]), BigEndian::read_u16(&fixed[14..]));
    let extra_len = BigEndian::read_u32(&fixed[36..]);

    let extra_at = at + FIXED_LENGTH as u64;
    let names_len = u64::from(id_len) + u64::from(name_len);
    field("snapshot table entry", at).within(extra_at, u64::from(extra_len) + names_len, file_len)?;
    budget.take(names_len + size_of::<SnapshotEntry>() as u64, FORMAT_NAME, "snapshot table", at)?;
    let mut extra = [0; KNOWN_EXTRA];
    let known = KNOWN_EXTRA.min(extra_len as usize);
    table::read(file, &mut extra[..known], extra_at)?;
    // Images of version 2 may lack fields; what is there in part is not there.
    let extra_field = |at: usize| (known >= at + 8).then(|| BigEndian::read_u64(&extra[at..]));

    let names_at = extra_at + u64::from(extra_len);
    let mut names = vec![0; names_len as usize];
    table::read(file, &mut names, names_at)?;
    let (id, name) = names.split_at(id_len.into());

    let mut info = Snapshot::new(Name::from(id), Name::from(name), extra_field(8).unwrap_or(header.size));
    info.vm_state_size = extra_field(0).unwrap_or(BigEndian::read_u32(&fixed[32..]).into());
    info.date = (BigEndian::read_u32(&fixed[16..]), BigEndian::read_u32(&fixed[20..]));
    info.vm_clock_nsec = BigEndian::read_u64(&fixed[24..]);
    // All ones stand for a guest whose instructions were not counted.
    info.icount = extra_field(16).filter(|count| *count != u64::MAX);
    Ok(SnapshotEntry {
        l1_table_offset: BigEndian::read_u64(&fixed),
        l1_size: BigEndian::read_u32(&fixed[8..]),
        info,
        place: at..names_at + names_len,
    })
}

impl SnapshotEntry {
    /// Checks that the L1 table lies within the file and is large enough for the snapshot's disk.
    pub fn check(&self, header: &Header, file_len: u64) -> Result<()> {
        let at = self.place.start;
        let (offset, size) = (self.l1_table_offset, u64::from(self.l1_size));
        field("snapshot l1_size", at + 8).at_most(size, MAX_L1_ENTRIES)?;
        let needed = header.l1_entries_for(self.info.virtual_size);
        if size < needed {
            let problem = Problem::Range { value: size, min: needed, max: MAX_L1_ENTRIES };
            return Err(field("snapshot l1_size", at + 8).fault(problem));
        }
        field("snapshot l1_table_offset", at).aligned(offset, header.cluster_size())?;
        field("snapshot l1_table_offset", at).within(offset, needed * 8, file_len)?;
        if needed > 0 && offset == 0 {
            return Err(field("snapshot l1_table_offset", at).fault(Problem::Overlap { offset, with: "the header" }));
        }
        Ok(())
    }
}
