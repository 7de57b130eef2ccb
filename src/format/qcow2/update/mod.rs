//! Changing an image in place.
//!
//! | module | content |
//! |---|---|
//! | `clusters` | refcounts: allocating and freeing host clusters |
//! | `mapping` | L2 entries: where writes go, and what they become |
//! | `resize` | the virtual size and the L1 table |
//! | `repair` | wrong refcounts and flags |
//! | `replace` | refcounts, tables and snapshots, all at once |
//! | `refcount_width` | refcounts of another width |
//! | `snapshots` | internal snapshots |
//! | `header` | the backing file, the version and features |
//! | `bitmap_changes` | persistent bitmaps: added, removed, cleared |
//! | `compressed` | compressed payloads, for changes of the backing file |
//! | `bitmap_sizes` | persistent bitmaps of a disk that is resized |
//! | `recording` | persistent bitmaps that record writes |
//!
//! # Order
//!
//! Tables are changed in memory, and written by [`Update::flush`] in these steps, with a sync after each that has something to write:
//!
//! 1. refcount blocks, in which new uses are counted; tables that nothing points to yet; payload, which the core has written before;
//! 2. refcount table entries of new refcount blocks;
//! 3. L2 tables and the L1 table;
//! 4. refcount blocks, in which former uses are no longer counted.
//!
//! A cluster that is no longer used is not used again before the third step has made that durable. So a power cut at any time leaves refcounts
//! that are too high at most. Tables that are replaced as a whole (L1, refcount table, snapshot table) are written elsewhere, and become those of
//! the image by a write to the first sector of the header.

mod bitmap_changes;
mod bitmap_sizes;
mod clusters;
mod compressed;
mod header;
mod mapping;
mod recording;
mod refcount_width;
mod repair;
mod replace;
mod resize;
mod snapshots;

use std::ops::Range;
use std::sync::Arc;

use super::bitmap::Bitmap;
#[cfg(feature = "crypto")]
use super::crypt::key_slots;
use super::extent::{Bounds, DATA};
use super::header::{Autoclear, Encryption, Header, Incompatible};
use super::reader::Reader;
use super::{FIELDS, FORMAT_NAME};
use crate::codec::Encoding;
#[cfg(feature = "crypto")]
use crate::crypto::EncryptedFile;
#[cfg(feature = "crypto")]
use crate::driver::KeyChange;
use crate::driver::{
    Allocation, BitmapChange, DirtyBitmap, Extent, OpenContext, Repair, SnapshotUpdate, SparseUpdate, UpdateContext,
    UpdateSpec, Zeroed,
};
use crate::error::{Error, Result};
#[cfg(feature = "crypto")]
use crate::format::shared::luks::KeySlots;
use crate::format::shared::table;
use crate::format::shared::table_pages::{Step, TablePages};
use crate::info::{FileReference, ImageInfo};
use crate::io::{ReadAt, Storage};
use crate::options::Options;
use clusters::RefcountTable;
pub(super) use repair::repair;

/// Refcount blocks, and tables that nothing points to yet.
const NEW: Step = Step(0);
/// The refcount table.
const REFCOUNT_TABLE: Step = Step(1);
/// L1 and L2 tables in use.
const TABLES: Step = Step(2);
/// Offset of the autoclear features in the header, in bytes.
const AUTOCLEAR: u64 = 88;
/// Largest page of tables in bytes. Tables of different steps are in different clusters.
const PAGE: u64 = 4096;
/// Most clusters that wait for being free.
const MAX_FREED: usize = 64 << 10;

/// An image that changes.
pub(super) struct Update {
    info: ImageInfo,
    header: Header,
    file: Arc<dyn Storage>,
    /// The file for guest data, which is the same, or encrypts it.
    disk: Arc<dyn Storage>,
    /// Of an encrypted image.
    #[cfg(feature = "crypto")]
    keys: Option<KeySlots>,
    data_file: Option<Arc<dyn Storage>>,
    /// Lengths in bytes.
    file_len: u64,
    data_file_len: u64,
    /// The entries that the virtual size needs.
    l1: Vec<u64>,
    pages: TablePages,
    refcounts: RefcountTable,
    /// The refcount table of the image on the storage, while another one is made: what either counts is not free.
    published_refcounts: Option<RefcountTable>,
    /// Former uses of clusters, which are counted until the tables without them are durable.
    freed: Vec<u64>,
    /// No cluster below is free.
    first_free: u64,
    /// End of the last payload, whose cluster may have space for more; 0 if there is none.
    compressed_end: u64,
    /// The bitmaps that record writes, as they were before they were marked as in use.
    recording: Vec<Bitmap>,
    /// Whether other programs have been told that the image changes.
    is_announced: bool,
}

impl Update {
    pub fn open(file: Arc<dyn Storage>, cx: &UpdateContext<'_>) -> Result<Update> {
        let source: Arc<dyn ReadAt> = file.clone();
        let header = Header::read(&source, cx.open.limits)?;
        if header.incompatible.contains(Incompatible::CORRUPT) {
            return Err(Error::unsupported(FORMAT_NAME, "writing to an image that is marked as corrupt"));
        }
        // Its refcounts may be out of date. They are repaired, as by qemu.
        if header.incompatible.contains(Incompatible::DIRTY) {
            repair(file.clone(), cx, Repair::All)?;
        }
        let image = Update::open_for_repair(file, cx)?.unlocked(cx)?;
        if image.header.incompatible.contains(Incompatible::DIRTY) {
            let feature = "writing to an image that was not closed cleanly, and whose refcounts cannot be repaired";
            return Err(Error::unsupported(FORMAT_NAME, feature));
        }
        Ok(image)
    }

    /// As [`open`](Self::open), whatever the refcounts are.
    fn open_for_repair(file: Arc<dyn Storage>, cx: &UpdateContext<'_>) -> Result<Update> {
        let source: Arc<dyn ReadAt> = file.clone();
        let header = Header::read(&source, cx.open.limits)?;
        if header.encryption == Encryption::Aes {
            return Err(Error::unsupported(FORMAT_NAME, "writing to an image with AES encryption in place"));
        }
        if header.encryption != Encryption::None && header.has_data_file() {
            return Err(Error::unsupported(FORMAT_NAME, "encryption of an external data file"));
        }
        // Metadata is not encrypted.
        let inspect = header.encryption != Encryption::None;
        let disk = file.clone();
        let Reader { info, header, l1, .. } = Reader::open(source, &OpenContext { inspect, ..cx.open })?;
        let data_file = info.files.first().map(cx.storage).transpose()?;
        let data_file_len = data_file.as_ref().map_or(Ok(0), |file| table::length(&**file))?;
        let file_len = table::length(&*file)?;
        FIELDS.at("refcount_table_offset", 48).within(
            header.refcount_table_offset,
            u64::from(header.refcount_table_clusters) << header.cluster_bits,
            file_len,
        )?;
        let refcounts = RefcountTable::of(&header);
        let page_size = header.cluster_size().min(PAGE) as usize;
        let pages = TablePages::new(file.clone(), FORMAT_NAME, page_size);
        Ok(Update {
            info,
            header,
            file,
            disk,
            #[cfg(feature = "crypto")]
            keys: None,
            data_file,
            file_len,
            data_file_len,
            l1,
            pages,
            refcounts,
            published_refcounts: None,
            freed: Vec::new(),
            first_free: 0,
            compressed_end: 0,
            recording: Vec::new(),
            is_announced: false,
        })
    }

    /// Unlocks an encrypted image.
    #[cfg(feature = "crypto")]
    fn unlocked(mut self, cx: &UpdateContext<'_>) -> Result<Update> {
        if self.header.encryption != Encryption::None {
            self.check_complete()?;
            let keys = key_slots(&*self.file, &self.header, &cx.open)?;
            self.disk = Arc::new(EncryptedFile::new(self.file.clone(), keys.cipher()?, 0, 0));
            self.keys = Some(keys);
        }
        Ok(self)
    }

    #[cfg(not(feature = "crypto"))]
    fn unlocked(self, _: &UpdateContext<'_>) -> Result<Update> {
        match self.header.encryption {
            Encryption::None => Ok(self),
            _ => Err(Error::unsupported(FORMAT_NAME, "encryption; enable the feature `crypto`")),
        }
    }

    /// Refuses an image that was opened in spite of a missing L1 table.
    #[cfg(feature = "crypto")]
    fn check_complete(&self) -> Result<()> {
        let len = self.header.l1_entries_for(self.header.size) * 8;
        FIELDS.at("L1 table", 40).within(self.header.l1_table_offset, len, self.file_len)
    }

    /// Prepares for a change of guest data.
    fn begin(&mut self) -> Result<()> {
        if !self.is_announced {
            self.start_recording()?;
            self.clear_unknown_features()?;
            self.is_announced = true;
        }
        self.make_space()
    }

    /// Clears the autoclear features that this program does not know, before any change.
    fn clear_unknown_features(&mut self) -> Result<()> {
        let known = self.header.autoclear & (Autoclear::BITMAPS | Autoclear::RAW_DATA_FILE);
        if self.header.version == 2 || known == self.header.autoclear {
            return Ok(());
        }
        self.header.autoclear = known;
        self.write_header(AUTOCLEAR, &known.bits().to_be_bytes())
    }

    /// Makes space in memory for a change of tables.
    fn make_space(&mut self) -> Result<()> {
        if self.pages.is_full() || self.freed.len() >= MAX_FREED {
            self.flush()?;
        }
        Ok(())
    }

    fn cluster_size(&self) -> u64 {
        self.header.cluster_size()
    }

    /// Whether the data file has the guest data also without this image.
    fn is_raw_data_file(&self) -> bool {
        self.header.has_data_file() && self.header.autoclear.contains(Autoclear::RAW_DATA_FILE)
    }

    fn sync(&self) -> Result<()> {
        if let Some(data_file) = &self.data_file {
            data_file.sync().map_err(Error::io("syncing the data file", None))?;
        }
        self.file.sync().map_err(Error::io("syncing", None))
    }

    /// Writes fields in the first sector of the header, all at once, after all tables, and makes them durable.
    fn write_header(&mut self, at: u64, fields: &[u8]) -> Result<()> {
        self.file.write_all_at(fields, at).map_err(Error::io("writing the header", at))?;
        self.sync()
    }

    /// Makes the file at least this long, in bytes.
    fn grow_file(&mut self, len: u64) -> Result<()> {
        if len > self.file_len {
            self.file.set_len(len).map_err(Error::io("setting the length", len))?;
            self.file_len = len;
        }
        Ok(())
    }

    fn bounds(&self) -> Bounds<'_> {
        Bounds {
            header: &self.header,
            virtual_size: self.info.virtual_size,
            file_len: self.file_len,
            data_file_len: self.data_file.as_ref().map(|_| self.data_file_len),
        }
    }
}

impl SparseUpdate for Update {
    fn info(&self) -> ImageInfo {
        self.info.clone()
    }

    fn spec(&self) -> UpdateSpec {
        UpdateSpec { granule: self.granule(), ..UpdateSpec::new(self.cluster_size()) }
    }

    fn files(&self) -> Vec<Arc<dyn Storage>> {
        [Some(self.disk.clone()), self.data_file.clone()].into_iter().flatten().collect()
    }

    fn extent_at(&mut self, range: Range<u64>) -> Result<Extent> {
        self.info.check_offset(range.start)?;
        self.map(range)
    }

    fn record(&mut self, guest: Range<u64>) -> Result<()> {
        self.record_change(guest)
    }

    fn allocate(&mut self, guest: Range<u64>) -> Result<Allocation> {
        self.begin()?;
        self.place(guest)
    }

    fn publish(&mut self, allocation: &Allocation) -> Result<()> {
        self.point_to(allocation)
    }

    fn release(&mut self, allocation: &Allocation) {
        if allocation.at.file != DATA {
            self.give_up(allocation);
        }
    }

    fn encoding(&self) -> Option<Encoding> {
        self.compressed_encoding()
    }

    fn allocate_compressed(&mut self, guest: Range<u64>, len: u32) -> Result<Allocation> {
        self.begin()?;
        self.place_payload(guest, len.into())
    }

    fn publish_compressed(&mut self, allocation: &Allocation, len: u32) -> Result<()> {
        self.point_to_payload(allocation, len.into())
    }

    fn release_compressed(&mut self, allocation: &Allocation, len: u32) {
        self.free_payload(&(allocation.at.offset..allocation.at.offset + u64::from(len)));
    }

    fn zero(&mut self, guest: Range<u64>, keep: bool) -> Result<Zeroed> {
        self.begin()?;
        let has_backing = self.header.backing_file.is_some();
        self.zero_clusters(guest, keep, has_backing)
    }

    fn store_zeros(&mut self, guest: Range<u64>) -> Result<Zeroed> {
        self.begin()?;
        self.zero_clusters(guest, false, true)
    }

    fn discard(&mut self, guest: Range<u64>) -> Result<Zeroed> {
        self.begin()?;
        self.discard_clusters(guest)
    }

    fn resize(&mut self, size: u64, below: u64) -> Result<()> {
        self.set_size(size, below)
    }

    fn set_backing(&mut self, backing: Option<&FileReference>) -> Result<()> {
        self.replace_backing(backing.map(|file| &file.name), backing.and_then(|file| file.format.as_ref()))
    }

    fn check_amend(&mut self, options: &Options) -> Result<bool> {
        self.check_options(options)
    }

    fn amend(&mut self, options: &Options) -> Result<()> {
        self.change_options(options)
    }

    fn change_bitmap(&mut self, name: &str, change: BitmapChange) -> Result<()> {
        self.change_bitmaps(name, change)
    }

    fn bitmaps(&mut self) -> Result<Vec<DirtyBitmap>> {
        self.open_bitmaps()
    }

    fn merge_bitmap(&mut self, name: &str, source: &DirtyBitmap) -> Result<()> {
        self.merge_bits(name, source)
    }

    #[cfg(feature = "crypto")]
    fn change_keys(&mut self, change: &KeyChange) -> Result<()> {
        self.clear_unknown_features()?;
        let keys =
            self.keys.as_mut().ok_or_else(|| Error::unsupported(FORMAT_NAME, "keys of an image without encryption"))?;
        keys.change(&*self.file, change)
    }

    fn empty(&mut self) -> Result<()> {
        // The disk has the same data as before, from its backing file: bitmaps need not know.
        self.clear_unknown_features()?;
        self.make_space()?;
        self.clear(0..self.info.virtual_size)?;
        self.flush()
    }

    fn snapshots(&mut self) -> Option<&mut dyn SnapshotUpdate> {
        Some(self)
    }

    fn flush(&mut self) -> Result<()> {
        self.pages.write_back(NEW)?;
        self.sync()?;
        if self.pages.write_back(REFCOUNT_TABLE)? {
            self.sync()?;
        }
        if self.pages.write_back(TABLES)? {
            self.sync()?;
        }
        self.free_clusters()
    }

    fn close(&mut self) -> Result<()> {
        self.stop_recording()
    }
}
