//! The region tables: host ranges of the BAT and the metadata (2.2.3).
//!
//! The table has two copies. Both are written through the log, so both are valid once it is replayed.

use std::collections::HashSet;
use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};
use uuid::{Uuid, uuid};

use super::redundant_copy::{RedundantCopy, Signature, seal};
use super::{FIELDS, FORMAT_NAME, HEADER_SECTION, MIB};
use crate::error::{Error, Problem, Result};
use crate::io::ReadAt;

/// A region of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub range: Range<u64>,
    /// Host offset of its entry in the region table, for messages.
    pub at: u64,
}

/// The valid regions of a file: in bounds, aligned, after the header section, and without overlaps with each other or the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Regions {
    pub bat: Region,
    pub metadata: Region,
    /// Unknown regions, which are not required.
    pub others: Vec<Region>,
}

/// Host offsets of the two region tables.
pub(super) const TABLES_AT: [u64; 2] = [192 << 10, 256 << 10];
/// Bytes of a region table.
pub(super) const TABLE_LEN: usize = 64 << 10;
const SIGNATURE: Signature = Signature { bytes: b"regi", rule: "must be \"regi\"" };
const HEADER_LEN: usize = 16;
const ENTRY_LEN: usize = 32;
const BAT: Uuid = uuid!("2dc27766-f623-4200-9d64-115e9bfd4a08");
const METADATA: Uuid = uuid!("8b7ca206-4790-4b9a-b8fe-575f050f886e");

impl Regions {
    /// Reads the first valid region table. Returns a warning if the other one is damaged or differs.
    pub fn read(file: &dyn ReadAt, file_len: u64, log: &Range<u64>) -> Result<(Regions, Option<String>)> {
        let [first, second] = TABLES_AT.map(|at| RedundantCopy::read(file, at, SIGNATURE));
        let (first, second) = (first?, second?);
        let (used, warning) = match (&first.damage, &second.damage) {
            (Some(fault), Some(_)) => return Err(Error::Corrupt(fault.clone())),
            (Some(_), None) => (&second, first.warning("region tables")),
            (None, Some(_)) => (&first, second.warning("region tables")),
            (None, None) => {
                let differ = entries(&first)? != entries(&second).unwrap_or_default();
                (&first, differ.then(|| "the two region tables differ, the first one is used".to_owned()))
            }
        };
        Ok((parse(entries(used)?, used.at, file_len, log)?, warning))
    }

    /// Encodes a region table with the BAT and the metadata, as Windows writes it.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(TABLE_LEN);
        bytes.extend(SIGNATURE.bytes);
        bytes.extend([0; 4]);
        bytes.extend(2u64.to_le_bytes());
        for (guid, Region { range, .. }) in [(BAT, &self.bat), (METADATA, &self.metadata)] {
            bytes.extend(guid.to_bytes_le());
            bytes.extend(range.start.to_le_bytes());
            bytes.extend(((range.end - range.start) as u32).to_le_bytes());
            bytes.extend(1u32.to_le_bytes());
        }
        bytes.resize(TABLE_LEN, 0);
        seal(&mut bytes);
        bytes
    }
}

/// Changes the host range in the entry at byte `entry` of a region table, and seals the table.
pub(super) fn move_region(table: &mut [u8], entry: usize, range: &Range<u64>) {
    if let Some(entry) = table.get_mut(entry..entry + ENTRY_LEN) {
        LittleEndian::write_u64(&mut entry[16..], range.start);
        LittleEndian::write_u32(&mut entry[24..], (range.end - range.start) as u32);
    }
    seal(table);
}

/// Refuses a file whose log damages a region table. Tables are changed through the log only (2.2.3), so this is no accident.
pub(super) fn refuse_damage(on_disk: &dyn ReadAt, replayed: &dyn ReadAt) -> Result<()> {
    for at in TABLES_AT {
        let copy = |file| RedundantCopy::<TABLE_LEN>::read(file, at, SIGNATURE);
        let (before, after) = (copy(on_disk)?, copy(replayed)?);
        match after.damage {
            Some(fault) if before.bytes != after.bytes => return Err(Error::Corrupt(fault)),
            _ => {}
        }
    }
    Ok(())
}

/// The entries of a table. Bytes after them are reserved and ignored.
fn entries(table: &RedundantCopy<TABLE_LEN>) -> Result<&[[u8; ENTRY_LEN]]> {
    let (header, entries) = table.bytes.split_at(HEADER_LEN);
    let (count, entries) = (LittleEndian::read_u32(&header[8..]), entries.as_chunks().0);
    entries.get(..count as usize).ok_or_else(|| {
        let problem = Problem::Range { value: count.into(), min: 0, max: entries.len() as u64 };
        FIELDS.at("EntryCount", table.at + 8).fault(problem)
    })
}

/// Parses the entries of the table at host offset `at` in a file of `file_len` bytes.
fn parse(entries: &[[u8; ENTRY_LEN]], at: u64, file_len: u64, log: &Range<u64>) -> Result<Regions> {
    let (mut bat, mut metadata, mut others) = (None, None, Vec::new());
    let mut ranges = vec![(log.clone(), ("the log", None))];
    let mut guids = HashSet::new();
    for (entry, at) in entries.iter().zip((at + HEADER_LEN as u64..).step_by(ENTRY_LEN)) {
        let guid = Uuid::from_bytes_le(entry.first_chunk().copied().unwrap_or_default());
        if !guids.insert(guid) {
            let problem =
                Problem::Conflict { value: guid.as_fields().0.into(), finding: "another entry has the same GUID" };
            return Err(FIELDS.at("Guid", at).fault(problem));
        }
        let region = Region { range: parse_range(entry, at, file_len)?, at };
        let (name, required) = (region_name(guid), LittleEndian::read_u32(&entry[28..]) & 1 != 0);
        ranges.push((region.range.clone(), (name, Some(at))));
        match guid {
            BAT => bat = Some(region),
            METADATA => metadata = Some(region),
            _ if required => {
                let feature = format!("required region {guid}").into();
                return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(at) });
            }
            _ => others.push(region),
        }
    }
    check_overlaps(ranges)?;
    let missing = |finding| {
        let problem = Problem::Conflict { value: entries.len() as u64, finding };
        move || FIELDS.at("EntryCount", at + 8).fault(problem)
    };
    let bat = bat.ok_or_else(missing("the BAT region is missing"))?;
    let metadata = metadata.ok_or_else(missing("the metadata region is missing"))?;
    Ok(Regions { bat, metadata, others })
}

/// The host range of the region of an entry. It can be empty here; a required region is checked by its reader.
fn parse_range(entry: &[u8; ENTRY_LEN], at: u64, file_len: u64) -> Result<Range<u64>> {
    let (start, len) = (LittleEndian::read_u64(&entry[16..]), u64::from(LittleEndian::read_u32(&entry[24..])));
    let start_field = FIELDS.at("FileOffset", at + 16);
    start_field.aligned(start, MIB)?;
    FIELDS.at("Length", at + 24).aligned(len, MIB)?;
    if start < HEADER_SECTION {
        return Err(start_field.fault(Problem::Overlap { offset: start, with: "the header section" }));
    }
    start_field.within(start, len, file_len)?;
    Ok(start..start + len)
}

fn region_name(guid: Uuid) -> &'static str {
    match guid {
        BAT => "the BAT",
        METADATA => "the metadata region",
        _ => "another region",
    }
}

/// A host range, its content, and the host offset of its table entry. The log has none.
type NamedRange = (Range<u64>, (&'static str, Option<u64>));

/// Checks that no two ranges overlap.
fn check_overlaps(ranges: Vec<NamedRange>) -> Result<()> {
    let Some((offset, [first, second])) = first_overlap(ranges) else { return Ok(()) };
    let (at, with) = match (first, second) {
        ((with, _), (_, Some(at))) | ((_, Some(at)), (with, None)) => (at, with),
        // Only the log has no entry.
        ((_, None), (_, None)) => return Ok(()),
    };
    Err(FIELDS.at("FileOffset", at + 16).fault(Problem::Overlap { offset, with }))
}

/// The first overlap of the ranges, in the order of their offsets: its host offset, and the labels of both ranges.
pub(super) fn first_overlap<T: Copy>(mut ranges: Vec<(Range<u64>, T)>) -> Option<(u64, [T; 2])> {
    ranges.retain(|(range, _)| !range.is_empty());
    ranges.sort_by_key(|(range, _)| range.start);
    ranges.windows(2).find_map(|pair| match pair {
        [(first, a), (second, b)] if second.start < first.end => Some((second.start, [*a, *b])),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
