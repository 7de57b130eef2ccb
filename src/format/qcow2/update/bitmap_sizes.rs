//! The bitmaps of a disk that is resized. As with qemu, no bit is set for what is added.

use super::bitmap_changes::{Entry, MAX_TABLE, MEMORY, put};
use super::{FIELDS, FORMAT_NAME, Update};
use crate::error::{Error, Result};
use crate::format::qcow2::bitmap::Part;
use crate::format::qcow2::header::Autoclear;
use crate::format::shared::table;
use crate::limits::Budget;

/// Offsets in an entry of the directory in bytes.
const TABLE_OFFSET: usize = 0;
const TABLE_SIZE: usize = 8;

impl Update {
    /// The bitmaps before the disk is resized. Refuses those that could not be used afterwards.
    pub(super) fn bitmaps_to_resize(&mut self, size: u64) -> Result<Vec<Entry>> {
        if !self.header.autoclear.contains(Autoclear::BITMAPS) {
            return Ok(Vec::new());
        }
        self.stop_recording()?;
        let entries = self.bitmap_entries()?;
        for Entry { bitmap, .. } in &entries {
            if !bitmap.is_usable {
                let feature = format!("bitmap '{}' with unknown flags or extra data", bitmap.name).into();
                return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(bitmap.at) });
            }
            let len = self.table_entries_for(size, bitmap.granularity) * 8;
            FIELDS.at("bitmap_table_size", bitmap.at).at_most(len, MAX_TABLE)?;
        }
        entries.iter().try_for_each(Entry::check_consistent)?;
        Ok(entries)
    }

    /// Writes bitmaps for a disk of `size` bytes, and makes them and the size those of the image, in one sector of the header.
    pub(super) fn resize_bitmaps(&mut self, mut entries: Vec<Entry>, size: u64) -> Result<()> {
        let mut former = self.directory_range();
        for entry in &mut entries {
            former.extend(self.resize_bitmap(entry, size)?);
        }
        let mut header = self.header.clone();
        header.size = size;
        self.replace_directory_in(header, &entries, former)?;
        // They are not marked as in use.
        self.recording.clear();
        self.is_announced = false;
        Ok(())
    }

    /// Writes a table for a disk of `size` bytes, and returns the clusters that the bitmap no longer has.
    fn resize_bitmap(&mut self, Entry { bitmap, bytes }: &mut Entry, size: u64) -> Result<Vec<u64>> {
        let (bits, cluster_size) = (self.header.cluster_bits, self.cluster_size());
        let field = FIELDS.at("bitmap_table_offset", bitmap.at);
        field.aligned(bitmap.table_offset, cluster_size)?;
        let count = bitmap.table_size.into();
        let old = table::read_table_u64_be(&*self.file, bitmap.table_offset, count, field, &Budget::new(MEMORY))?;
        let table_end = bitmap.table_offset + count * 8;
        let mut former: Vec<_> = (bitmap.table_offset >> bits..table_end.div_ceil(cluster_size)).collect();

        // The bytes with bits of what both disks have.
        let kept = size.min(self.info.virtual_size).div_ceil(bitmap.granularity);
        let mut new = vec![0; self.table_entries_for(size, bitmap.granularity) as usize];
        for (index, entry) in (0..).zip(old) {
            let field = FIELDS.at("bitmap table entry", bitmap.table_offset + index * 8);
            let part = Part::parse(entry, cluster_size).map_err(|problem| field.fault(problem))?;
            let first = index * cluster_size * 8;
            let kept = match kept.saturating_sub(first).min(cluster_size * 8) {
                0 => Part::Same(false),
                all if all == cluster_size * 8 => part,
                some => self.first_bits(part, some)?,
            };
            if let (Part::At(offset), true) = (part, kept != part) {
                former.push(offset >> bits);
            }
            if let Some(place) = new.get_mut(index as usize) {
                *place = kept.encode();
            }
        }
        let table: Vec<u8> = new.iter().flat_map(|entry: &u64| entry.to_be_bytes()).collect();
        let offset = self.write_table(&table, "a bitmap table")?;
        put(bytes, TABLE_OFFSET, &offset.to_be_bytes());
        put(bytes, TABLE_SIZE, &(new.len() as u32).to_be_bytes());
        Ok(former)
    }

    /// A cluster of bits with the first ones of another, which is not changed.
    fn first_bits(&mut self, part: Part, count: u64) -> Result<Part> {
        let mut bytes = vec![0xff; self.cluster_size() as usize];
        match part {
            Part::Same(false) => return Ok(part),
            Part::Same(true) => {}
            Part::At(offset) => table::read(&*self.file, &mut bytes, offset)?,
        }
        for (first, byte) in (0..).step_by(8).zip(&mut bytes) {
            let valid = count.saturating_sub(first).min(8);
            *byte &= ((1_u16 << valid) - 1) as u8;
        }
        match Part::of(&bytes) {
            Some(part) => Ok(part),
            None => self.write_table(&bytes, "a bitmap").map(Part::At),
        }
    }

    /// The number of clusters with the bits of a disk of `size` bytes.
    pub(super) fn table_entries_for(&self, size: u64, granularity: u64) -> u64 {
        size.div_ceil(granularity).div_ceil(8).div_ceil(self.cluster_size()).max(1)
    }
}
