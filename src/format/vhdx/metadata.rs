//! The metadata region: its table, and the items that are known (2.6).

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
use crate::limits::{Budget, Limits};

/// The valid metadata of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Bytes of a payload block: a power of two from 1 to 256 MiB.
    pub block_size: u32,
    /// The disk is fixed: its blocks stay where they are. Means nothing where there is a parent, and is not set there.
    pub leave_block_allocated: bool,
    /// Size of the disk in bytes: a multiple of the logical sector size, at most 64 TiB.
    pub virtual_disk_size: u64,
    /// Identifies the disk to its guest, in page 83h of its SCSI inquiry data. Parent and child have the same.
    pub virtual_disk_id: Uuid,
    /// 512 or 4096.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// Of a differencing disk: what it lies over.
    pub parent: Option<ParentLocator>,
    /// Byte offset of the item that holds the block size, for messages.
    pub block_size_at: u64,
    /// Byte offset of the item that holds the size of the disk, for messages.
    pub virtual_disk_size_at: u64,
}

/// The largest disk (2.6.2.2).
pub(super) const MAX_DISK_SIZE: u64 = 64 << 40;
const MAX_BLOCK_SIZE: u64 = 256 * MIB;

/// An item that is known (2.6.2).
struct Known {
    id: Uuid,
    flags: u32,
    missing: &'static str,
}

const FILE_PARAMETERS: Known = Known {
    id: uuid!("caa16737-fa36-4d43-b3b6-33f0aa44e76b"),
    flags: IS_REQUIRED,
    missing: "none of them is File Parameters",
};
const VIRTUAL_DISK_SIZE: Known = Known {
    id: uuid!("2fa54224-cd1b-4876-b211-5dbed83bf4b8"),
    flags: IS_REQUIRED | IS_VIRTUAL_DISK,
    missing: "none of them is Virtual Disk Size",
};
const LOGICAL_SECTOR_SIZE: Known = Known {
    id: uuid!("8141bf1d-a96f-4709-ba47-f233a8faab5f"),
    flags: IS_REQUIRED | IS_VIRTUAL_DISK,
    missing: "none of them is Logical Sector Size",
};
const PHYSICAL_SECTOR_SIZE: Known = Known {
    id: uuid!("cda348c7-445d-4471-9cc9-e9885251c556"),
    flags: IS_REQUIRED | IS_VIRTUAL_DISK,
    missing: "none of them is Physical Sector Size",
};
const VIRTUAL_DISK_ID: Known = Known {
    id: uuid!("beca12ab-b2e6-4523-93ef-c309e000c746"),
    flags: IS_REQUIRED | IS_VIRTUAL_DISK,
    missing: "none of them is Virtual Disk ID",
};
const PARENT_LOCATOR: Known = Known {
    id: uuid!("a8d35f2d-b30b-454d-abf7-d3d84834ab0c"),
    flags: IS_REQUIRED,
    missing: "none of them is Parent Locator, although HasParent is set",
};
const KNOWN: [&Known; 6] = [
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
    /// Reads the table and the items that are known.
    pub fn read(file: &dyn ReadAt, region: &Region, limits: &Limits, budget: &Budget) -> Result<Metadata> {
        let table = Table::read(file, region)?;

        let (parameters, block_size_at) = table.fixed::<8>(file, &FILE_PARAMETERS)?;
        let flags = LittleEndian::read_u32(&parameters[4..]);
        let reserved = flags & !(LEAVE_BLOCK_ALLOCATED | HAS_PARENT);
        if reserved != 0 {
            let problem = Problem::Reserved { value: flags.into(), bits: reserved.into() };
            return Err(FIELDS.at("File Parameters", block_size_at + 4).fault(problem));
        }
        // A locator without HasParent is not looked at: that flag alone makes a disk a differencing one (2.6.2.1). Nothing of the
        // file would show a parent, so that there is nothing to warn of.
        let has_parent = flags & HAS_PARENT != 0;
        let parent = if has_parent { Some(table.locator(file, budget)?) } else { None };

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
            block_size_at,
            virtual_disk_size_at,
        })
    }

    /// The beginning of the metadata region: the table, and behind its 64 KiB the items, in the order of Windows.
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

    /// Payload blocks in a chunk: the part of the disk that one sector bitmap block describes (2.4).
    pub fn chunk_ratio(&self) -> u64 {
        (u64::from(self.logical_sector_size) << 23) / u64::from(self.block_size)
    }

    /// Payload blocks of the disk.
    pub fn payload_blocks(&self) -> u64 {
        self.virtual_disk_size.div_ceil(self.block_size.into())
    }
}

fn parse_block_size(size: u32, at: u64) -> Result<u32> {
    let (field, value) = (FIELDS.at("BlockSize", at), u64::from(size));
    if !(MIB..=MAX_BLOCK_SIZE).contains(&value) {
        return Err(field.fault(Problem::Range { value, min: MIB, max: MAX_BLOCK_SIZE }));
    }
    if !size.is_power_of_two() {
        return Err(field.fault(Problem::Rule { value, rule: "it must be a power of two" }));
    }
    Ok(size)
}

fn parse_size(size: u64, sector_size: u32, at: u64, limits: &Limits) -> Result<u64> {
    let field = FIELDS.at("VirtualDiskSize", at);
    if size > MAX_DISK_SIZE {
        return Err(field.fault(Problem::Range { value: size, min: 0, max: MAX_DISK_SIZE }));
    }
    field.aligned(size, sector_size.into())?;
    field.at_most(size, limits.virtual_size)?;
    Ok(size)
}

/// The metadata table (2.6.1).
struct Table {
    /// Of system metadata, each with an ID of its own.
    items: Vec<Item>,
    /// Entries of the table.
    count: u64,
    /// Byte offset of the table in the file.
    at: u64,
}

/// An item of system metadata.
struct Item {
    id: Uuid,
    /// Where it is in the file.
    range: Range<u64>,
    /// Byte offset of its entry, for messages.
    at: u64,
}

impl Table {
    const SIGNATURE: &[u8; 8] = b"metadata";
    /// Bytes of the table, behind which are the items.
    const LEN: usize = 64 << 10;
    const HEADER_LEN: usize = 32;
    const ENTRY_LEN: usize = 32;
    const MAX_ENTRIES: u64 = 2047;
    const MAX_USER_ENTRIES: usize = 1024;

    /// Reads the table at the beginning of `region`, and checks all entries, known or not.
    fn read(file: &dyn ReadAt, region: &Region) -> Result<Table> {
        let at = region.range.start;
        let len = region.range.end - at;
        if len < Table::LEN as u64 {
            let problem = Problem::Rule { value: len, rule: "the metadata table has 64 KiB" };
            return Err(FIELDS.at("Length", region.at + 24).fault(problem));
        }
        let mut bytes = vec![0; Table::LEN];
        table::read(file, &mut bytes, at)?;
        let (header, entries) = bytes.split_at(Table::HEADER_LEN);
        if !header.starts_with(Table::SIGNATURE) {
            let problem = Problem::Rule { value: LittleEndian::read_u64(header), rule: "it is \"metadata\"" };
            return Err(FIELDS.at("Signature", at).fault(problem));
        }
        let count = u64::from(LittleEndian::read_u16(&header[10..]));
        if count > Table::MAX_ENTRIES {
            let problem = Problem::Range { value: count, min: 0, max: Table::MAX_ENTRIES };
            return Err(FIELDS.at("EntryCount", at + 10).fault(problem));
        }
        let entries = entries.as_chunks().0.iter().take(count as usize);
        let places = (at + Table::HEADER_LEN as u64..).step_by(Table::ENTRY_LEN);
        let items =
            entries.zip(places).map(|(entry, at)| parse_entry(entry, at, region)).collect::<Result<Vec<_>>>()?;
        check_entries(&items, at)?;
        let items = items.into_iter().filter(|(_, is_user)| !is_user).map(|(item, _)| item).collect();
        Ok(Table { items, count, at })
    }

    fn get(&self, known: &Known) -> Result<&Item> {
        self.items.iter().find(|item| item.id == known.id).ok_or_else(|| {
            let problem = Problem::Rule { value: self.count, rule: known.missing };
            FIELDS.at("EntryCount", self.at + 10).fault(problem)
        })
    }

    /// Reads an item of `N` bytes, and tells its offset in the file.
    fn fixed<const N: usize>(&self, file: &dyn ReadAt, known: &Known) -> Result<([u8; N], u64)> {
        let Item { range, at, .. } = self.get(known)?;
        let (value, len) = (range.end - range.start, N as u64);
        if value != len {
            return Err(FIELDS.at("Length", at + 20).fault(Problem::Range { value, min: len, max: len }));
        }
        let mut bytes = [0; N];
        table::read(file, &mut bytes, range.start)?;
        Ok((bytes, range.start))
    }

    fn sector_size(&self, file: &dyn ReadAt, known: &Known, name: &'static str) -> Result<u32> {
        let (bytes, at) = self.fixed(file, known)?;
        match u32::from_le_bytes(bytes) {
            size @ (512 | 4096) => Ok(size),
            other => {
                Err(FIELDS.at(name, at).fault(Problem::Rule { value: other.into(), rule: "it must be 512 or 4096" }))
            }
        }
    }

    fn locator(&self, file: &dyn ReadAt, budget: &Budget) -> Result<ParentLocator> {
        let Item { range, at, .. } = self.get(&PARENT_LOCATOR)?;
        let len = range.end - range.start;
        let bytes = table::read_table(file, range.start, len, FIELDS.at("Parent Locator", *at), budget)?;
        ParentLocator::parse(&bytes, range.start)
    }
}

/// Parses an entry of the table, which stands at offset `at` of the file, and tells whether it is of user metadata.
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
        let feature = format!("the metadata item {id}").into();
        return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(at) });
    }
    let max = MIB.min(region.range.end - region.range.start - Table::LEN as u64);
    if len > max {
        return Err(FIELDS.at("Length", at + 20).fault(Problem::Range { value: len, min: 0, max }));
    }
    // An item of no bytes is nowhere.
    let (min, max) = (Table::LEN as u64, region.range.end - region.range.start - len);
    if len != 0 && !(min..=max).contains(&offset) {
        return Err(FIELDS.at("Offset", at + 16).fault(Problem::Range { value: offset, min, max }));
    }
    let start = region.range.start + if len == 0 { 0 } else { offset };
    Ok((Item { id, range: start..start + len, at }, is_user))
}

/// Checks what concerns several entries of the table, which stands at offset `at`.
fn check_entries(items: &[(Item, bool)], at: u64) -> Result<()> {
    let users = items.iter().filter(|(_, is_user)| *is_user).count();
    if users > Table::MAX_USER_ENTRIES {
        let problem = Problem::Rule { value: items.len() as u64, rule: "more than 1024 of them are user metadata" };
        return Err(FIELDS.at("EntryCount", at + 10).fault(problem));
    }
    let mut ids = HashSet::new();
    for (Item { id, at, .. }, is_user) in items {
        if !ids.insert((id, is_user)) {
            let problem = Problem::Rule { value: id.as_fields().0.into(), rule: "another entry has the same" };
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
