//! Bitmaps that record writes.
//!
//! An enabled bitmap is marked as in use before the first change, and no longer when the image is closed, as qemu does. In between its bits
//! are parts of the tables of the image: they are in the same bounded memory, and clusters for them are allocated in the same order. While a
//! bitmap is in use its bits count for nothing (qcow2 specification, "Bitmap directory", `in_use`), so that a power cut never leaves one that
//! lacks a change.

use std::ops::Range;
use std::sync::Arc;

use super::bitmap_changes::MEMORY;
use super::{FIELDS, NEW, TABLES, Update};
use crate::driver::SparseUpdate;
use crate::error::{Error, Result};
use crate::format::qcow2::bitmap::{Bitmap, BitmapFlags, Bits, Part, read_bitmaps, set_bits};
use crate::io::ReadAt;
use crate::limits::Budget;

/// Offset of the flags in an entry of the bitmap directory, in bytes.
const BITMAP_FLAGS: u64 = 12;

impl Update {
    /// Marks enabled bitmaps as in use, and records writes in those that can be read.
    pub(super) fn start_recording(&mut self) -> Result<()> {
        let source: Arc<dyn ReadAt> = self.file.clone();
        let budget = Budget::new(MEMORY);
        let mut enabled = read_bitmaps(&source, &self.header, &budget)?;
        enabled
            .retain(|bitmap| bitmap.flags.contains(BitmapFlags::AUTO) && !bitmap.flags.contains(BitmapFlags::IN_USE));
        for bitmap in &enabled {
            self.write_flags(bitmap, bitmap.flags | BitmapFlags::IN_USE)?;
        }
        if !enabled.is_empty() {
            self.sync()?;
        }
        // What cannot be recorded stays marked.
        enabled.retain(|bitmap| bitmap.is_usable && Bits::open(&source, &self.header, bitmap, &budget).is_ok());
        self.recording = enabled;
        Ok(())
    }

    /// Makes the bits durable, and marks the bitmaps as no longer in use.
    pub(super) fn stop_recording(&mut self) -> Result<()> {
        self.flush()?;
        self.is_announced = false;
        let recorded = std::mem::take(&mut self.recording);
        for bitmap in &recorded {
            self.write_flags(bitmap, bitmap.flags)?;
        }
        if recorded.is_empty() { Ok(()) } else { self.sync() }
    }

    /// Sets the bits of a guest range in all bitmaps that record writes.
    pub(super) fn record_change(&mut self, guest: Range<u64>) -> Result<()> {
        let guest = guest.start..guest.end.min(self.info.virtual_size);
        if guest.is_empty() {
            return Ok(());
        }
        self.begin()?;
        let mut recording = std::mem::take(&mut self.recording);
        // A bitmap that cannot be updated stays marked. It is no reason to refuse what a guest writes.
        recording.retain(|bitmap| self.set_bits_of(bitmap, &guest).is_ok());
        self.recording = recording;
        Ok(())
    }

    fn set_bits_of(&mut self, bitmap: &Bitmap, guest: &Range<u64>) -> Result<()> {
        let per_cluster = self.cluster_size() * 8;
        let bits = guest.start / bitmap.granularity..guest.end.div_ceil(bitmap.granularity);
        for index in bits.start / per_cluster..bits.end.div_ceil(per_cluster) {
            self.make_space()?;
            let Some(offset) = self.own_bits(bitmap.table_offset + index * 8)? else { continue };
            let first = index * per_cluster;
            let part = bits.start.max(first) - first..bits.end.min(first + per_cluster) - first;
            let (start, end) = (part.start / 8, part.end.div_ceil(8));
            let mut bytes = vec![0; (end - start) as usize];
            self.pages.read(&mut bytes, offset + start)?;
            let old = bytes.clone();
            set_bits(&mut bytes, part.start - start * 8..part.end - start * 8);
            if bytes != old {
                self.pages.write(&bytes, offset + start, NEW)?;
            }
        }
        Ok(())
    }

    /// Host offset of the cluster of bits for an entry of a bitmap table at `at`, which gets one if it has none; `None` if all bits are set.
    fn own_bits(&mut self, at: u64) -> Result<Option<u64>> {
        let entry = u64::from_be_bytes(self.pages.read_array(at)?);
        let field = FIELDS.at("bitmap table entry", at);
        match Part::parse(entry, self.cluster_size()).map_err(|problem| field.fault(problem))? {
            Part::Same(true) => Ok(None),
            Part::Same(false) => {
                let run = self.allocate_in_file(1, true)?;
                let (offset, size) = (run.start << self.header.cluster_bits, self.cluster_size());
                self.pages.create(offset..offset + size, NEW);
                self.pages.write(&offset.to_be_bytes(), at, TABLES)?;
                Ok(Some(offset))
            }
            Part::At(offset) => {
                let cluster = offset >> self.header.cluster_bits;
                self.check_not_in_use(&(cluster..cluster + 1))?;
                Ok(Some(offset))
            }
        }
    }

    fn write_flags(&self, bitmap: &Bitmap, flags: BitmapFlags) -> Result<()> {
        let at = bitmap.at + BITMAP_FLAGS;
        self.file.write_all_at(&flags.bits().to_be_bytes(), at).map_err(Error::io("writing the bitmap flags", at))
    }
}
