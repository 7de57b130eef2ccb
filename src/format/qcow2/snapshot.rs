//! Internal snapshots (qcow2 specification, "Snapshots"): a table of entries of variable length.

use std::ops::Range;
use std::sync::Arc;

use byteorder::{BigEndian, ByteOrder};

use super::header::{Header, MAX_L1_ENTRIES};
use super::{FIELDS, FORMAT_NAME, until_nul};
use crate::error::{Problem, Result};
use crate::format::shared::table;
use crate::info::Snapshot;
use crate::io::ReadAt;
use crate::limits::{Budget, LimitName, Limits};
use crate::name::Name;

/// Length of an entry in bytes, without extra data and names.
const FIXED_LENGTH: usize = 40;
/// Length of the known extra data in bytes: VM state size, virtual disk size, instruction count.
const KNOWN_EXTRA: usize = 24;
/// Length of the extra data in bytes that version 3 requires.
const REQUIRED_EXTRA: u32 = 16;
/// Largest snapshot table that QEMU opens, in bytes.
const MAX_TABLE: u64 = 64 << 20;

/// An entry of the snapshot table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SnapshotEntry {
    pub l1_table_offset: u64,
    pub l1_size: u32,
    pub info: Snapshot,
    /// Length of the extra data in bytes.
    extra_len: u32,
    /// File range of the entry.
    pub range: Range<u64>,
}

/// Reads the snapshot table. [`SnapshotEntry::check`] checks the L1 tables, so that an invalid one affects its snapshot only.
pub(super) fn read_snapshots(
    file: &Arc<dyn ReadAt>,
    header: &Header,
    limits: &Limits,
    budget: &Budget,
) -> Result<Vec<SnapshotEntry>> {
    if header.nb_snapshots == 0 {
        return Ok(Vec::new());
    }
    FIELDS.at("nb_snapshots", 60).within_limit(LimitName::Snapshots, header.nb_snapshots.into(), limits.snapshots)?;
    FIELDS.at("snapshots_offset", 64).aligned(header.snapshots_offset, header.cluster_size())?;
    let file_len = table::length(&**file)?;
    let mut snapshots = Vec::new();
    let mut at = header.snapshots_offset;
    for _ in 0..header.nb_snapshots {
        let entry = read_entry(&**file, at, file_len, header, budget)?;
        FIELDS.at("snapshot table", entry.range.start).at_most(entry.range.end - header.snapshots_offset, MAX_TABLE)?;
        // The end is within the file, far below 2^64.
        at = entry.range.end.next_multiple_of(8);
        snapshots.push(entry);
    }
    Ok(snapshots)
}

fn read_entry(file: &dyn ReadAt, at: u64, file_len: u64, header: &Header, budget: &Budget) -> Result<SnapshotEntry> {
    FIELDS.at("snapshot table entry", at).within(at, FIXED_LENGTH as u64, file_len)?;
    let mut fixed = [0; FIXED_LENGTH];
    table::read(file, &mut fixed, at)?;
    let (id_len, name_len) = (BigEndian::read_u16(&fixed[12..]), BigEndian::read_u16(&fixed[14..]));
    let extra_len = BigEndian::read_u32(&fixed[36..]);

    let extra_at = at + FIXED_LENGTH as u64;
    let names_len = u64::from(id_len) + u64::from(name_len);
    FIELDS.at("snapshot table entry", at).within(extra_at, u64::from(extra_len) + names_len, file_len)?;
    budget.take(names_len + size_of::<SnapshotEntry>() as u64, FORMAT_NAME, "snapshot table", at)?;
    let mut extra = [0; KNOWN_EXTRA];
    let known = KNOWN_EXTRA.min(extra_len as usize);
    table::read(file, &mut extra[..known], extra_at)?;
    // Images of version 2 may lack fields. A truncated field counts as missing.
    let extra_field = |at: usize| (known >= at + 8).then(|| BigEndian::read_u64(&extra[at..]));

    let names_at = extra_at + u64::from(extra_len);
    let mut names = vec![0; names_len as usize];
    table::read(file, &mut names, names_at)?;
    let (id, name) = names.split_at(id_len.into());

    let [id, name] = [id, name].map(|text| Name::from(until_nul(text)));
    let mut info = Snapshot::new(id, name, extra_field(8).unwrap_or(header.size));
    info.vm_state_size = extra_field(0).unwrap_or(BigEndian::read_u32(&fixed[32..]).into());
    info.date = (BigEndian::read_u32(&fixed[16..]), BigEndian::read_u32(&fixed[20..]));
    info.vm_clock_nsec = BigEndian::read_u64(&fixed[24..]);
    // All ones: the instruction count is unknown.
    info.icount = extra_field(16).filter(|count| *count != u64::MAX);
    Ok(SnapshotEntry {
        extra_len,
        l1_table_offset: BigEndian::read_u64(&fixed),
        l1_size: BigEndian::read_u32(&fixed[8..]),
        info,
        range: at..names_at + names_len,
    })
}

impl SnapshotEntry {
    /// Checks that the entry has the fields that version 3 requires: the 64-bit size of the state of the machine, and that of the disk.
    pub fn check_fields(&self, header: &Header) -> Result<()> {
        if header.version == 2 || self.extra_len >= REQUIRED_EXTRA {
            return Ok(());
        }
        let problem = Problem::Range { value: self.extra_len.into(), min: REQUIRED_EXTRA.into(), max: u32::MAX.into() };
        Err(FIELDS.at("snapshot extra_data_size", self.range.start + 36).fault(problem))
    }

    /// Checks that the L1 table is within the file and large enough for the snapshot's disk.
    pub fn check(&self, header: &Header, file_len: u64) -> Result<()> {
        let at = self.range.start;
        let (offset, size) = (self.l1_table_offset, u64::from(self.l1_size));
        let needed = header.l1_entries_for(self.info.virtual_size);
        if size < needed || size > MAX_L1_ENTRIES {
            let problem = Problem::Range { value: size, min: needed, max: MAX_L1_ENTRIES.max(needed) };
            return Err(FIELDS.at("snapshot l1_size", at + 8).fault(problem));
        }
        FIELDS.at("snapshot l1_table_offset", at).aligned(offset, header.cluster_size())?;
        FIELDS.at("snapshot l1_table_offset", at).within(offset, needed * 8, file_len)?;
        if needed > 0 && offset == 0 {
            return Err(FIELDS
                .at("snapshot l1_table_offset", at)
                .fault(Problem::Overlap { offset, with: "the header" }));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{MemFile, WriteAt};
    use crate::limits::Limits;
    use crate::testing::SparseFile;

    /// A snapshot table entry with an L1 table of one entry at 1024.
    fn entry(id: &[u8], name: &[u8], extra: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(1024u64.to_be_bytes());
        bytes.extend(1u32.to_be_bytes());
        bytes.extend((id.len() as u16).to_be_bytes());
        bytes.extend((name.len() as u16).to_be_bytes());
        bytes.extend(1_700_000_000u32.to_be_bytes());
        bytes.extend(5u32.to_be_bytes());
        bytes.extend(6u64.to_be_bytes());
        bytes.extend(7u32.to_be_bytes());
        bytes.extend((extra.len() as u32).to_be_bytes());
        bytes.extend(extra);
        bytes.extend(id);
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    /// An image of a 16 KiB disk with these snapshot table entries.
    fn image(count: u32, entries: &[Vec<u8>]) -> (Arc<dyn ReadAt>, Header) {
        let mut bytes = vec![0; 2048];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[20..24].copy_from_slice(&9u32.to_be_bytes());
        bytes[24..32].copy_from_slice(&16384u64.to_be_bytes());
        bytes[36..40].copy_from_slice(&1u32.to_be_bytes());
        bytes[40..48].copy_from_slice(&1024u64.to_be_bytes());
        bytes[60..64].copy_from_slice(&count.to_be_bytes());
        bytes[64..72].copy_from_slice(&2048u64.to_be_bytes());
        bytes[100..104].copy_from_slice(&104u32.to_be_bytes());
        bytes.extend(entries.concat());
        let file: Arc<dyn ReadAt> = Arc::new(MemFile::from(bytes));
        let header = Header::read(&file, &Limits::default()).unwrap();
        (file, header)
    }

    fn read(count: u32, entries: &[Vec<u8>]) -> Result<Vec<SnapshotEntry>> {
        let (file, header) = image(count, entries);
        read_snapshots(&file, &header, &Limits::default(), &Budget::new(1 << 20))
    }

    #[test]
    fn entries_with_extra_data_of_any_length() {
        let sizes = [8u64, 9000, 10].map(u64::to_be_bytes).concat();
        let unknown = [&sizes[..16], &[0xff; 8], &[1; 100]].concat();
        let entries = [
            entry(b"1", b"old", &[]),
            entry(b"22", b"bare", &sizes[..8]),
            entry(b"3", b"sized", &sizes[..16]),
            entry(b"4", b"counted", &sizes),
            entry(b"", b"", &unknown),
        ];
        let found = read(5, &entries).unwrap();
        let seen = |entry: &SnapshotEntry| {
            let info = &entry.info;
            (info.name.to_string(), info.vm_state_size, info.virtual_size, info.icount)
        };
        let expected = [("old", 7, 16384, None), ("bare", 8, 16384, None), ("sized", 8, 9000, None)]
            .into_iter()
            .chain([("counted", 8, 9000, Some(10)), ("", 8, 9000, None)])
            .map(|(name, state, size, icount)| (name.to_owned(), state, size, icount));
        assert!(found.iter().map(seen).eq(expected), "{found:?}");
        let second = &found[1];
        assert_eq!(second.range, 2048 + 48..2048 + 48 + 54);
        assert_eq!(
            (second.info.id.as_bytes(), second.info.date, second.info.vm_clock_nsec),
            (&b"22"[..], (1_700_000_000, 5), 6)
        );
        assert_eq!((second.l1_table_offset, second.l1_size), (1024, 1));
    }

    #[test]
    fn names_end_at_the_first_nul() {
        let found = read(1, &[entry(b"1\0\0", b"nightly\0old", &[])]).unwrap().remove(0).info;
        assert_eq!((found.id, found.name), ("1".into(), "nightly".into()));
    }

    #[test]
    fn invalid_header_fields_affect_the_snapshots_only() {
        let (file, header) = image(1, &[entry(b"1", b"name", &[])]);
        let kind = |change: fn(&mut Header)| {
            let mut header = header.clone();
            change(&mut header);
            let error = read_snapshots(&file, &header, &Limits::default(), &Budget::new(1 << 20)).err();
            error.map(|error| error.kind().as_str())
        };
        assert_eq!(kind(|_| ()), None);
        assert_eq!(kind(|header| header.nb_snapshots = 65537), Some("limit"));
        assert_eq!(kind(|header| header.snapshots_offset += 8), Some("invalid-field"));
        assert_eq!(kind(|header| header.snapshots_offset = !511), Some("out-of-bounds"));
        assert_eq!(kind(|header| (header.nb_snapshots, header.snapshots_offset) = (0, 1)), None);
    }

    /// The limit counts what the table has, not where it is.
    #[test]
    fn the_table_may_be_far_into_the_file() {
        let (_, header) = image(1, &[]);
        let header = Header { snapshots_offset: MAX_TABLE, ..header };
        let file = SparseFile::default();
        file.write_all_at(&entry(b"1", b"name", &[]), MAX_TABLE).unwrap();
        let file: Arc<dyn ReadAt> = Arc::new(file);
        let found = read_snapshots(&file, &header, &Limits::default(), &Budget::new(1 << 20)).unwrap();
        assert_eq!(found[0].info.name, "name".into());
    }

    #[test]
    fn truncated_entries_are_refused() {
        let whole = entry(b"1", b"the name", &[0; 16]);
        assert!(read(1, std::slice::from_ref(&whole)).is_ok());
        for len in 0..40 + 16 + 9 {
            let error = read(1, &[whole[..len].to_vec()]).unwrap_err();
            assert_eq!(error.kind().as_str(), "out-of-bounds", "{len}");
        }
        assert_eq!(read(2, &[whole]).unwrap_err().kind().as_str(), "out-of-bounds");
    }

    #[test]
    fn huge_lengths_are_refused_before_allocation() {
        let mut entry = entry(b"1", b"name", &[]);
        entry[36..40].fill(0xff);
        assert_eq!(read(1, &[entry]).unwrap_err().kind().as_str(), "out-of-bounds");
    }

    #[test]
    fn names_count_against_the_budget() {
        let (file, header) = image(1, &[entry(b"1", &[b'n'; 1000], &[])]);
        assert_eq!(
            read_snapshots(&file, &header, &Limits::default(), &Budget::new(1000)).unwrap_err().kind().as_str(),
            "limit"
        );
    }

    #[test]
    fn l1_tables_are_checked_on_demand() {
        let (_, header) = image(0, &[]);
        let valid = read(1, &[entry(b"1", b"name", &[])]).unwrap().remove(0);
        let check = |change: fn(&mut SnapshotEntry)| {
            let mut entry = valid.clone();
            change(&mut entry);
            entry.check(&header, 2048).map_err(|error| error.kind().as_str())
        };
        assert_eq!(check(|_| ()), Ok(()));
        assert_eq!(check(|entry| entry.l1_table_offset = 1025), Err("invalid-field"));
        assert_eq!(check(|entry| entry.l1_table_offset = 2048), Err("out-of-bounds"));
        assert_eq!(check(|entry| entry.l1_table_offset = 1 << 63), Err("out-of-bounds"));
        assert_eq!(check(|entry| entry.l1_table_offset = 0), Err("overlap"));
        assert_eq!(check(|entry| (entry.info.virtual_size, entry.l1_table_offset) = (0, 0)), Ok(()));
        assert_eq!(check(|entry| entry.l1_size = 0), Err("invalid-field"));
        assert_eq!(check(|entry| entry.l1_size = MAX_L1_ENTRIES as u32), Ok(()));
        assert_eq!(check(|entry| entry.l1_size = MAX_L1_ENTRIES as u32 + 1), Err("invalid-field"));
        assert_eq!(check(|entry| entry.info.virtual_size = u64::MAX), Err("invalid-field"));
        // A longer table than needed may extend beyond the file.
        assert_eq!(check(|entry| entry.l1_size = 1000), Ok(()));
    }
}
