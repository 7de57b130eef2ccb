//! The metadata region: its table, and the known items (2.6).

use std::collections::HashSet;
use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};
use uuid::{Uuid, uuid};

use super::locator::ParentLocator;
use super::region::{Region, first_overlap};
use super::{FIELDS, FORMAT_NAME, MIB};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::limits::{Budget, LimitName, Limits};

/// The valid metadata of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Bytes of a payload block: a power of two from 1 to 256 MiB.
    pub block_size: u32,
    /// Whether the disk is fixed: blocks stay allocated. Meaningless with a parent, and false then.
    pub leave_block_allocated: bool,
    /// Size of the disk in bytes: a multiple of the logical sector size, at most 64 TiB.
    pub virtual_disk_size: u64,
    /// Identifies the disk to the guest, in page 83h of the SCSI inquiry data. Parent and child have the same ID.
    pub virtual_disk_id: Uuid,
    /// 512 or 4096.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// The parent of a differencing disk.
    pub parent: Option<ParentLocator>,
    /// Whether there is a parent locator, although the disk has no parent.
    pub ignores_locator: bool,
    /// Host offset of the item with the block size, for messages.
    pub block_size_at: u64,
    /// Host offset of the item with the disk size, for messages.
    pub virtual_disk_size_at: u64,
}

/// The largest disk (2.6.2.2).
pub(super) const MAX_DISK_SIZE: u64 = 64 << 40;
const MAX_BLOCK_SIZE: u64 = 256 * MIB;

/// A known item (2.6.2).
struct KnownItem {
    id: Uuid,
    flags: u32,
    /// The finding if it is missing.
    missing: &'static str,
}

const FILE_PARAMETERS: KnownItem = KnownItem {
    id: uuid!("caa16737-fa36-4d43-b3b6-33f0aa44e76b"),
    flags: IS_REQUIRED,
    missing: "the item File Parameters is missing",
};
const VIRTUAL_DISK_SIZE: KnownItem = KnownItem {
    id: uuid!("2fa54224-cd1b-4876-b211-5dbed83bf4b8"),
    flags: IS_REQUIRED | IS_VIRTUAL_DISK,
    missing: "the item Virtual Disk Size is missing",
};
const LOGICAL_SECTOR_SIZE: KnownItem = KnownItem {
    id: uuid!("8141bf1d-a96f-4709-ba47-f233a8faab5f"),
    flags: IS_REQUIRED | IS_VIRTUAL_DISK,
    missing: "the item Logical Sector Size is missing",
};
const PHYSICAL_SECTOR_SIZE: KnownItem = KnownItem {
    id: uuid!("cda348c7-445d-4471-9cc9-e9885251c556"),
    flags: IS_REQUIRED | IS_VIRTUAL_DISK,
    missing: "the item Physical Sector Size is missing",
};
const VIRTUAL_DISK_ID: KnownItem = KnownItem {
    id: uuid!("beca12ab-b2e6-4523-93ef-c309e000c746"),
    flags: IS_REQUIRED | IS_VIRTUAL_DISK,
    missing: "the item Virtual Disk ID is missing",
};
const PARENT_LOCATOR: KnownItem = KnownItem {
    id: uuid!("a8d35f2d-b30b-454d-abf7-d3d84834ab0c"),
    flags: IS_REQUIRED,
    missing: "HasParent is set and the item Parent Locator is missing",
};
const KNOWN: [&KnownItem; 6] = [
    &FILE_PARAMETERS,
    &VIRTUAL_DISK_SIZE,
    &LOGICAL_SECTOR_SIZE,
    &PHYSICAL_SECTOR_SIZE,
    &VIRTUAL_DISK_ID,
    &PARENT_LOCATOR,
];

/// Flags of a table entry (2.6.1.2).
const IS_USER: u32 = 1;
const IS_VIRTUAL_DISK: u32 = 2;
const IS_REQUIRED: u32 = 4;
/// Flags of the file parameters (2.6.2.1).
const LEAVE_BLOCK_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;

impl Metadata {
    /// Reads the table and the known items.
    pub fn read(file: &dyn ReadAt, region: &Region, limits: &Limits, budget: &Budget) -> Result<Metadata> {
        let table = Table::read(file, region)?;

        let (parameters, block_size_at) = table.fixed::<8>(file, &FILE_PARAMETERS)?;
        let flags = LittleEndian::read_u32(&parameters[4..]);
        let reserved = flags & !(LEAVE_BLOCK_ALLOCATED | HAS_PARENT);
        if reserved != 0 {
            let problem = Problem::Reserved { value: flags.into(), bits: reserved.into() };
            return Err(FIELDS.at("File Parameters", block_size_at + 4).fault(problem));
        }
        // A locator without HasParent is ignored: the flag alone makes a disk differencing (2.6.2.1).
        let has_parent = flags & HAS_PARENT != 0;
        let parent = if has_parent { Some(table.locator(file, budget)?) } else { None };
        let ignores_locator = !has_parent && table.get(&PARENT_LOCATOR).is_ok();

        let logical_sector_size = table.sector_size(file, &LOGICAL_SECTOR_SIZE, "LogicalSectorSize")?;
        let physical_sector_size = table.sector_size(file, &PHYSICAL_SECTOR_SIZE, "PhysicalSectorSize")?;
        let (size, virtual_disk_size_at) = table.fixed(file, &VIRTUAL_DISK_SIZE)?;
        let (id, _) = table.fixed(file, &VIRTUAL_DISK_ID)?;
        Ok(Metadata {
            block_size: parse_block_size(LittleEndian::read_u32(&parameters), block_size_at)?,
            leave_block_allocated: flags & LEAVE_BLOCK_ALLOCATED != 0 && !has_parent,
            virtual_disk_size: parse_size(u64::from_le_bytes(size), logical_sector_size, virtual_disk_size_at, limits)?,
            virtual_disk_id: Uuid::from_bytes_le(id),
            logical_sector_size,
            physical_sector_size,
            parent,
            ignores_locator,
            block_size_at,
            virtual_disk_size_at,
        })
    }

    /// Encodes the start of the metadata region: the table of 64 KiB, then the items, in the order of Windows.
    pub fn encode(&self) -> Vec<u8> {
        let leave_block_allocated = if self.leave_block_allocated { LEAVE_BLOCK_ALLOCATED } else { 0 };
        let flags = leave_block_allocated | if self.parent.is_some() { HAS_PARENT } else { 0 };
        let mut items = vec![
            (&FILE_PARAMETERS, [self.block_size.to_le_bytes(), flags.to_le_bytes()].concat()),
            (&VIRTUAL_DISK_SIZE, self.virtual_disk_size.to_le_bytes().to_vec()),
            (&LOGICAL_SECTOR_SIZE, self.logical_sector_size.to_le_bytes().to_vec()),
            (&PHYSICAL_SECTOR_SIZE, self.physical_sector_size.to_le_bytes().to_vec()),
            (&VIRTUAL_DISK_ID, self.virtual_disk_id.to_bytes_le().to_vec()),
        ];
        items.extend(self.parent.as_ref().map(|parent| (&PARENT_LOCATOR, parent.encode())));

        let mut bytes = Table::SIGNATURE.to_vec();
        bytes.extend(0u16.to_le_bytes());
        bytes.extend((items.len() as u16).to_le_bytes());
        bytes.resize(Table::HEADER_LEN, 0);
        let mut offset = Table::LEN as u32;
        for (known, item) in &items {
            bytes.extend(known.id.to_bytes_le());
            for word in [offset, item.len() as u32, known.flags, 0] {
                bytes.extend(word.to_le_bytes());
            }
            offset += item.len() as u32;
        }
        bytes.resize(Table::LEN, 0);
        bytes.extend(items.into_iter().flat_map(|(_, item)| item));
        bytes
    }

    /// Payload blocks per chunk, the range of the disk that one sector bitmap block covers (2.4).
    pub fn chunk_ratio(&self) -> u64 {
        (u64::from(self.logical_sector_size) << 23) / u64::from(self.block_size)
    }

    /// Number of payload blocks of the disk.
    pub fn payload_block_count(&self) -> u64 {
        self.virtual_disk_size.div_ceil(self.block_size.into())
    }
}

/// Where a parent locator of another length goes.
pub(super) struct LocatorPlace {
    /// Host offset of its entry in the table.
    pub entry_at: u64,
    /// Its offset in the region.
    pub offset: u32,
    /// Host offset of the region.
    pub region_at: u64,
}

/// Finds space for a parent locator of `len` bytes: that of the old one, or after all items.
pub(super) fn place_of_locator(file: &dyn ReadAt, region: &Region, len: usize) -> Result<LocatorPlace> {
    let table = Table::read(file, region)?;
    let old = table.get(&PARENT_LOCATOR)?;
    let (region_at, fits) = (region.range.start, (old.range.end - old.range.start) as usize >= len);
    let start = if fits { old.range.start } else { table.end.next_multiple_of(8) };
    let field = FIELDS.at("Length", old.at + 20);
    field.at_most(len as u64, MIB)?;
    field.at_most(start - region_at + len as u64, region.range.end - region_at)?;
    Ok(LocatorPlace { entry_at: old.at, offset: (start - region_at) as u32, region_at })
}

/// What makes a disk one without a parent.
pub(super) struct WithoutParent {
    /// The table without the entry of the parent locator, from the start of the region.
    pub table: Vec<u8>,
    /// The flags of the file parameters.
    pub flags: u32,
    /// Host offsets of the region and of the flags.
    pub region_at: u64,
    pub flags_at: u64,
}

/// Removes the parent locator and the flag `HasParent`, in memory.
pub(super) fn without_parent(file: &dyn ReadAt, region: &Region) -> Result<WithoutParent> {
    let table = Table::read(file, region)?;
    let (parameters, parameters_at) = table.fixed::<8>(file, &FILE_PARAMETERS)?;
    let flags = LittleEndian::read_u32(&parameters[4..]) & !HAS_PARENT;
    let entry = (table.get(&PARENT_LOCATOR)?.at - table.at) as usize;
    let end = Table::HEADER_LEN + table.count as usize * Table::ENTRY_LEN;
    let mut bytes = vec![0; end];
    table::read(file, &mut bytes, table.at)?;
    bytes.drain(entry..entry + Table::ENTRY_LEN);
    bytes.resize(end, 0);
    LittleEndian::write_u16(&mut bytes[10..], table.count as u16 - 1);
    Ok(WithoutParent { table: bytes, flags, region_at: table.at, flags_at: parameters_at + 4 })
}

fn parse_block_size(size: u32, at: u64) -> Result<u32> {
    let (field, value) = (FIELDS.at("BlockSize", at), u64::from(size));
    if !(MIB..=MAX_BLOCK_SIZE).contains(&value) {
        return Err(field.fault(Problem::Range { value, min: MIB, max: MAX_BLOCK_SIZE }));
    }
    if !size.is_power_of_two() {
        return Err(field.fault(Problem::Rule { value, rule: "must be a power of two" }));
    }
    Ok(size)
}

fn parse_size(size: u64, sector_size: u32, at: u64, limits: &Limits) -> Result<u64> {
    let field = FIELDS.at("VirtualDiskSize", at);
    if size > MAX_DISK_SIZE {
        return Err(field.fault(Problem::Range { value: size, min: 0, max: MAX_DISK_SIZE }));
    }
    field.aligned(size, sector_size.into())?;
    field.within_limit(LimitName::VirtualSize, size, limits.virtual_size)?;
    Ok(size)
}

/// The metadata table (2.6.1).
struct Table {
    /// Items of system metadata, with unique IDs.
    items: Vec<Item>,
    /// Number of entries of the table.
    count: u64,
    /// Host offset after the table and all items, also those of users.
    end: u64,
    /// Host offset of the table.
    at: u64,
}

/// An item of system metadata.
struct Item {
    id: Uuid,
    /// Host range.
    range: Range<u64>,
    /// Host offset of its entry, for messages.
    at: u64,
}

impl Table {
    const SIGNATURE: &[u8; 8] = b"metadata";
    /// Bytes of the table. The items follow.
    const LEN: usize = 64 << 10;
    const HEADER_LEN: usize = 32;
    const ENTRY_LEN: usize = 32;
    const MAX_ENTRIES: u64 = 2047;
    const MAX_USER_ENTRIES: usize = 1024;

    /// Reads the table at the start of `region`, and checks all entries, known or not.
    fn read(file: &dyn ReadAt, region: &Region) -> Result<Table> {
        let at = region.range.start;
        let len = region.range.end - at;
        if len < Table::LEN as u64 {
            let problem = Problem::Rule { value: len, rule: "must be at least 64 KiB" };
            return Err(FIELDS.at("Length", region.at + 24).fault(problem));
        }
        let mut bytes = vec![0; Table::LEN];
        table::read(file, &mut bytes, at)?;
        let (header, entries) = bytes.split_at(Table::HEADER_LEN);
        if !header.starts_with(Table::SIGNATURE) {
            let problem = Problem::Rule { value: LittleEndian::read_u64(header), rule: "must be \"metadata\"" };
            return Err(FIELDS.at("Signature", at).fault(problem));
        }
        let count = u64::from(LittleEndian::read_u16(&header[10..]));
        if count > Table::MAX_ENTRIES {
            let problem = Problem::Range { value: count, min: 0, max: Table::MAX_ENTRIES };
            return Err(FIELDS.at("EntryCount", at + 10).fault(problem));
        }
        let entries = entries.as_chunks().0.iter().take(count as usize);
        let host_offsets = (at + Table::HEADER_LEN as u64..).step_by(Table::ENTRY_LEN);
        let items =
            entries.zip(host_offsets).map(|(entry, at)| parse_entry(entry, at, region)).collect::<Result<Vec<_>>>()?;
        check_entries(&items, at)?;
        let end = items.iter().map(|(item, _)| item.range.end).fold(at + Table::LEN as u64, u64::max);
        let items = items.into_iter().filter(|(_, is_user)| !is_user).map(|(item, _)| item).collect();
        Ok(Table { items, count, end, at })
    }

    fn get(&self, known: &KnownItem) -> Result<&Item> {
        self.items.iter().find(|item| item.id == known.id).ok_or_else(|| {
            let problem = Problem::Conflict { value: self.count, finding: known.missing };
            FIELDS.at("EntryCount", self.at + 10).fault(problem)
        })
    }

    /// Reads an item of `N` bytes. Returns it with its host offset.
    fn fixed<const N: usize>(&self, file: &dyn ReadAt, known: &KnownItem) -> Result<([u8; N], u64)> {
        let Item { range, at, .. } = self.get(known)?;
        let (value, len) = (range.end - range.start, N as u64);
        if value != len {
            return Err(FIELDS.at("Length", at + 20).fault(Problem::Range { value, min: len, max: len }));
        }
        let mut bytes = [0; N];
        table::read(file, &mut bytes, range.start)?;
        Ok((bytes, range.start))
    }

    fn sector_size(&self, file: &dyn ReadAt, known: &KnownItem, name: &'static str) -> Result<u32> {
        let (bytes, at) = self.fixed(file, known)?;
        match u32::from_le_bytes(bytes) {
            size @ (512 | 4096) => Ok(size),
            other => Err(FIELDS.at(name, at).fault(Problem::Rule { value: other.into(), rule: "must be 512 or 4096" })),
        }
    }

    fn locator(&self, file: &dyn ReadAt, budget: &Budget) -> Result<ParentLocator> {
        let Item { range, at, .. } = self.get(&PARENT_LOCATOR)?;
        let len = range.end - range.start;
        let bytes = table::read_table(file, range.start, len, FIELDS.at("Parent Locator", *at), budget)?;
        ParentLocator::parse(&bytes, range.start)
    }
}

/// Parses the table entry at host offset `at`. Returns the item, and whether it is user metadata.
fn parse_entry(entry: &[u8; Table::ENTRY_LEN], at: u64, region: &Region) -> Result<(Item, bool)> {
    let u32_at = |offset: usize| LittleEndian::read_u32(&entry[offset..]);
    let id = Uuid::from_bytes_le(entry.first_chunk().copied().unwrap_or_default());
    let (offset, len, flags) = (u64::from(u32_at(16)), u64::from(u32_at(20)), u32_at(24));
    let reserved = flags & !(IS_USER | IS_VIRTUAL_DISK | IS_REQUIRED);
    if reserved != 0 {
        return Err(FIELDS
            .at("IsRequired", at + 24)
            .fault(Problem::Reserved { value: flags.into(), bits: reserved.into() }));
    }
    let is_user = flags & IS_USER != 0;
    let known = !is_user && KNOWN.iter().any(|known| known.id == id);
    if flags & IS_REQUIRED != 0 && !known {
        let feature = format!("required metadata item {id}").into();
        return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(at) });
    }
    let max = MIB.min(region.range.end - region.range.start - Table::LEN as u64);
    if len > max {
        return Err(FIELDS.at("Length", at + 20).fault(Problem::Range { value: len, min: 0, max }));
    }
    // An empty item has no valid offset.
    let (min, max) = (Table::LEN as u64, region.range.end - region.range.start - len);
    if len != 0 && !(min..=max).contains(&offset) {
        return Err(FIELDS.at("Offset", at + 16).fault(Problem::Range { value: offset, min, max }));
    }
    let start = region.range.start + if len == 0 { 0 } else { offset };
    Ok((Item { id, range: start..start + len, at }, is_user))
}

/// Checks the rules for all entries together of the table at host offset `at`.
fn check_entries(items: &[(Item, bool)], at: u64) -> Result<()> {
    let users = items.iter().filter(|(_, is_user)| *is_user).count();
    if users > Table::MAX_USER_ENTRIES {
        let problem =
            Problem::Conflict { value: items.len() as u64, finding: "more than 1024 items are user metadata" };
        return Err(FIELDS.at("EntryCount", at + 10).fault(problem));
    }
    let mut ids = HashSet::new();
    for (Item { id, at, .. }, is_user) in items {
        if !ids.insert((id, is_user)) {
            let problem =
                Problem::Conflict { value: id.as_fields().0.into(), finding: "another entry has the same ID" };
            return Err(FIELDS.at("ItemID", *at).fault(problem));
        }
    }
    match first_overlap(items.iter().map(|(item, _)| (item.range.clone(), item.at)).collect()) {
        Some((offset, [_, at])) => {
            Err(FIELDS.at("Offset", at + 16).fault(Problem::Overlap { offset, with: "another metadata item" }))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
