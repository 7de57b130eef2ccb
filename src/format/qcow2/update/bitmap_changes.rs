//! Persistent bitmaps: added, removed, cleared, enabled and disabled. A new directory replaces the old one.

use std::sync::Arc;

use byteorder::{BigEndian, ByteOrder};

use super::{FORMAT_NAME, Update};
use crate::driver::{BitmapChange, DirtyBitmap, SparseUpdate};
use crate::error::{Error, Result};
use crate::format::qcow2::FIELDS;
use crate::format::qcow2::bitmap::{
    Bitmap, BitmapFlags, Bits, DIRTY_TRACKING, FIXED_LENGTH, MAX_BITMAPS, MAX_NAME, Part, Union, open_bitmaps,
    read_bitmaps,
};
use crate::format::qcow2::entry::OFFSET_MASK;
use crate::format::qcow2::extension::BitmapDirectory;
use crate::format::qcow2::header::{Autoclear, Header};
use crate::format::shared::table;
use crate::info::Value;
use crate::io::ReadAt;
use crate::limits::Budget;
use crate::name::Name;

/// Largest bitmap directory in qemu, in bytes, with room for what is read of it.
pub(super) const MEMORY: u64 = 128 << 20;
/// Largest bitmap table that is read, in bytes: qemu limits the bitmap to 512 MiB.
pub(super) const MAX_TABLE: u64 = 64 << 20;

/// An entry of the directory.
pub(super) struct Entry {
    pub bitmap: Bitmap,
    /// As it is stored.
    pub bytes: Vec<u8>,
}

impl Entry {
    pub fn check_consistent(&self) -> Result<()> {
        match self.bitmap.flags.contains(BitmapFlags::IN_USE) {
            true => Err(inconsistent(&self.bitmap.name)),
            false => Ok(()),
        }
    }
}

impl Update {
    /// The bitmaps with their bits.
    pub(super) fn open_bitmaps(&mut self) -> Result<Vec<DirtyBitmap>> {
        self.stop_recording()?;
        let source: Arc<dyn ReadAt> = self.file.clone();
        open_bitmaps(&source, &self.header, &Budget::new(MEMORY))
    }

    /// Sets the bits of another bitmap in the one called `name`. Its bits and its table are written beside the old ones.
    pub(super) fn merge_bits(&mut self, name: &str, source: &DirtyBitmap) -> Result<()> {
        self.check_directory()?;
        self.stop_recording()?;
        let mut entries = self.bitmap_entries()?;
        let found = position(&entries, name);
        let Some(entry) = found.and_then(|index| entries.get_mut(index)) else { return Err(not_found(name)) };
        entry.check_consistent()?;
        if source.inconsistent {
            return Err(inconsistent(&source.name));
        }
        let mut former = self.directory_range();
        former.extend(self.clusters_of(&entry.bitmap)?);
        let file: Arc<dyn ReadAt> = self.file.clone();
        let old = Bits::open(&file, &self.header, &entry.bitmap, &Budget::new(MEMORY))?;
        let size = self.info.virtual_size;
        let union = Union { old: &old, granularity: entry.bitmap.granularity, source, size };
        let mut table = Vec::new();
        let mut cluster = vec![0; self.cluster_size() as usize];
        for at in 0..u64::from(entry.bitmap.table_size) {
            union.read(&mut cluster, at * self.cluster_size())?;
            let part = match Part::of(&cluster) {
                Some(part) => part,
                None => Part::At(self.write_table(&cluster, "a bitmap")?),
            };
            table.extend(part.encode().to_be_bytes());
        }
        let offset = self.write_table(&table, "a bitmap table")?;
        put(&mut entry.bytes, 0, &offset.to_be_bytes());
        self.replace_directory(&entries, former)
    }

    /// Changes the bitmap called `name`.
    pub(super) fn change_bitmaps(&mut self, name: &str, change: BitmapChange) -> Result<()> {
        if self.header.version == 2 && matches!(change, BitmapChange::Add { .. }) {
            return Err(Error::unsupported(FORMAT_NAME, "bitmaps in version 2"));
        }
        self.check_directory()?;
        self.stop_recording()?;
        let mut entries = self.bitmap_entries()?;
        let found = position(&entries, name);
        let mut former = self.directory_range();
        match (change, found) {
            (BitmapChange::Add { .. }, Some(_)) => {
                return Err(Error::Usage(format!("Bitmap already exists: {name}")));
            }
            (BitmapChange::Add { granularity, enabled }, None) => {
                entries.push(self.new_bitmap(name, granularity, enabled)?);
            }
            (_, None) => return Err(not_found(name)),
            (BitmapChange::Remove, Some(index)) => {
                let removed = entries.remove(index);
                former.extend(self.clusters_of(&removed.bitmap)?);
            }
            (change, Some(index)) => {
                let Some(entry) = entries.get_mut(index) else { return Ok(()) };
                entry.check_consistent()?;
                match change {
                    BitmapChange::Clear => {
                        former.extend(self.clusters_of(&entry.bitmap)?);
                        let offset =
                            self.write_table(&vec![0; entry.bitmap.table_size as usize * 8], "a bitmap table")?;
                        put(&mut entry.bytes, 0, &offset.to_be_bytes());
                    }
                    change => {
                        let mut flags = entry.bitmap.flags;
                        flags.set(BitmapFlags::AUTO, change == BitmapChange::Enable);
                        put(&mut entry.bytes, 12, &flags.bits().to_be_bytes());
                    }
                }
            }
        }
        self.replace_directory(&entries, former)
    }

    /// Makes these bitmaps those of the image. `former` are the clusters that they no longer have.
    fn replace_directory(&mut self, entries: &[Entry], former: Vec<u64>) -> Result<()> {
        self.replace_directory_in(self.header.clone(), entries, former)
    }

    /// As [`replace_directory`](Self::replace_directory), with other changes of the header at the same time.
    pub(super) fn replace_directory_in(
        &mut self,
        mut header: Header,
        entries: &[Entry],
        former: Vec<u64>,
    ) -> Result<()> {
        header.extensions.bitmaps = None;
        if !entries.is_empty() {
            let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.bytes.iter().copied()).collect();
            let offset = self.write_table(&bytes, "the bitmap directory")?;
            let (count, len) = (entries.len() as u32, bytes.len() as u64);
            header.extensions.bitmaps = Some(Ok(BitmapDirectory { count, len, offset, at: 0 }));
        }
        header.autoclear.set(Autoclear::BITMAPS, !entries.is_empty());
        // What the header is going to point to, and its refcounts, are durable before it.
        self.flush()?;
        self.replace_header(header)?;
        self.freed.extend(former);
        self.flush()?;
        self.list_bitmaps()
    }

    /// Refuses bitmaps that are out of date.
    fn check_directory(&self) -> Result<()> {
        if self.header.extensions.bitmaps.is_some() && !self.header.autoclear.contains(Autoclear::BITMAPS) {
            let feature = "bitmaps that a program without support for them has made invalid";
            return Err(Error::unsupported(FORMAT_NAME, feature));
        }
        Ok(())
    }

    pub(super) fn bitmap_entries(&self) -> Result<Vec<Entry>> {
        let source: Arc<dyn ReadAt> = self.file.clone();
        let bitmaps = read_bitmaps(&source, &self.header, &Budget::new(MEMORY))?;
        let end = match &self.header.extensions.bitmaps {
            Some(Ok(directory)) => directory.offset.saturating_add(directory.len),
            _ => 0,
        };
        let ends: Vec<_> = bitmaps.iter().skip(1).map(|next| next.at).chain([end]).collect();
        let read = |(bitmap, end): (Bitmap, u64)| {
            let mut bytes = vec![0; end.saturating_sub(bitmap.at) as usize];
            table::read(&*self.file, &mut bytes, bitmap.at)?;
            Ok(Entry { bitmap, bytes })
        };
        bitmaps.into_iter().zip(ends).map(read).collect()
    }

    fn list_bitmaps(&mut self) -> Result<()> {
        let bitmaps = self.bitmap_entries()?;
        self.info.specific.retain(|(key, _)| *key != "bitmaps");
        if !bitmaps.is_empty() {
            let list = bitmaps.iter().map(|entry| entry.bitmap.to_value()).collect();
            self.info.specific.push(("bitmaps", Value::List(list)));
        }
        Ok(())
    }

    /// The clusters of the directory.
    pub(super) fn directory_range(&self) -> Vec<u64> {
        match &self.header.extensions.bitmaps {
            Some(Ok(BitmapDirectory { offset, len, .. })) => {
                let bits = self.header.cluster_bits;
                (offset >> bits..(offset + len).div_ceil(self.cluster_size())).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The clusters of the table and of the data of a bitmap.
    fn clusters_of(&self, bitmap: &Bitmap) -> Result<Vec<u64>> {
        let (bits, len) = (self.header.cluster_bits, u64::from(bitmap.table_size) * 8);
        let field = FIELDS.at("bitmap_table_offset", bitmap.at);
        field.at_most(len, MAX_TABLE)?;
        field.aligned(bitmap.table_offset, self.cluster_size())?;
        field.within(bitmap.table_offset, len, self.file_len)?;
        let mut bytes = vec![0; len as usize];
        table::read(&*self.file, &mut bytes, bitmap.table_offset)?;
        let data = bytes.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry) & OFFSET_MASK);
        let data = data.filter(|offset| *offset != 0).map(|offset| offset >> bits);
        let table = bitmap.table_offset >> bits..(bitmap.table_offset + len).div_ceil(self.cluster_size());
        Ok(table.chain(data).collect())
    }

    /// A bitmap of which no bit is set.
    fn new_bitmap(&mut self, name: &str, granularity: Option<u64>, enabled: bool) -> Result<Entry> {
        let granularity = granularity.unwrap_or(self.cluster_size().clamp(4 << 10, 64 << 10));
        if !granularity.is_power_of_two() || !(512..=1 << 31).contains(&granularity) {
            return Err(Error::Usage("Granularity must be power of 2 and at least 512".into()));
        }
        if !(1..=MAX_NAME).contains(&(name.len() as u64)) {
            return Err(Error::Usage("the name of a bitmap has 1 to 1023 bytes".into()));
        }
        let count = self.bitmap_entries()?.len() as u64 + 1;
        FIELDS.at("nb_bitmaps", 0).at_most(count, MAX_BITMAPS)?;
        let table_size = self.table_entries_for(self.info.virtual_size, granularity);
        FIELDS.at("bitmap_table_size", 0).at_most(table_size * 8, MAX_TABLE)?;
        let table_offset = self.write_table(&vec![0; table_size as usize * 8], "a bitmap table")?;
        let flags = if enabled { BitmapFlags::AUTO } else { BitmapFlags::empty() };
        let mut entry = vec![0; FIXED_LENGTH];
        BigEndian::write_u64(&mut entry, table_offset);
        BigEndian::write_u32(&mut entry[8..], table_size as u32);
        BigEndian::write_u32(&mut entry[12..], flags.bits());
        entry[16] = DIRTY_TRACKING;
        entry[17] = granularity.trailing_zeros() as u8;
        BigEndian::write_u16(&mut entry[18..], name.len() as u16);
        entry.extend(name.as_bytes());
        entry.resize(entry.len().next_multiple_of(8), 0);
        let (table_size, name) = (table_size as u32, name.into());
        Ok(Entry {
            bitmap: Bitmap { name, granularity, flags, table_offset, table_size, is_usable: true, at: 0 },
            bytes: entry,
        })
    }
}

fn position(entries: &[Entry], name: &str) -> Option<usize> {
    entries.iter().position(|entry| entry.bitmap.name.as_bytes() == name.as_bytes())
}

fn not_found(name: &str) -> Error {
    Error::Usage(format!("Dirty bitmap '{name}' not found"))
}

fn inconsistent(name: &Name) -> Error {
    Error::Usage(format!("Bitmap '{name}' is inconsistent and cannot be used; it can be removed"))
}

pub(super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}
