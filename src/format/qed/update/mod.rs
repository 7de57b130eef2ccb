//! Changing an image in place, in the order of [`MapUpdate`]. The image is marked as in need of a check before its tables change, and unmarked
//! when it is closed (QED specification, "Consistency checking").

mod resize;

use std::ops::Range;
use std::sync::Arc;

use byteorder::{ByteOrder, LittleEndian};

use super::check::check;
use super::entry::{self, ZERO};
use super::header::{BACKING_FILE, BACKING_IS_RAW, Backing, Header, NEED_CHECK};
use super::{FORMAT_NAME, SECTOR, reader};
use crate::driver::{Allocation, Extent, ExtentKind, SparseUpdate, UpdateContext, UpdateSpec, Zeroed};
use crate::error::{Error, Result};
use crate::format::shared::table;
use crate::format::shared::two_level::MapUpdate;
use crate::info::{FileReference, ImageInfo};
use crate::io::Storage;
use crate::name::Name;

/// Offsets of `features` and `image_size` in the header.
const FEATURES_AT: u64 = 16;
const IMAGE_SIZE_AT: u64 = 48;

/// An image that changes.
pub(super) struct Update {
    file: Arc<dyn Storage>,
    header: Header,
    map: MapUpdate,
}

impl Update {
    pub fn open(file: Arc<dyn Storage>, cx: &UpdateContext<'_>) -> Result<Update> {
        cx.open.refuse_snapshots(FORMAT_NAME)?;
        let mut header = Header::read(&*file, cx.open.limits)?;
        if header.need_check {
            let report = check(file.clone(), &cx.open)?;
            if report.corruptions + report.check_errors > 0 {
                let feature = "writing to an image that was not closed cleanly and is damaged";
                return Err(Error::unsupported(FORMAT_NAME, feature));
            }
            // It is marked again before the first change.
            header.need_check = false;
        }
        let shape = header.shape();
        // The L1 table has the length of an L2 table.
        let reserved = [0..header.header_len(), shape.l1_offset..shape.l1_offset.saturating_add(shape.l2_len())];
        let map = MapUpdate::new(file.clone(), shape, entry::kind, reserved)?;
        Ok(Update { file, header, map })
    }

    /// Prepares for a change.
    fn begin(&mut self) -> Result<()> {
        if !self.header.need_check {
            self.mark(true)?;
        }
        if self.map.is_full() { self.flush() } else { Ok(()) }
    }

    /// Writes whether the image needs a check.
    fn mark(&mut self, need_check: bool) -> Result<()> {
        let mut features = [0; 8];
        table::read(&*self.file, &mut features, FEATURES_AT)?;
        let others = u64::from_le_bytes(features) & !NEED_CHECK;
        let features = if need_check { others | NEED_CHECK } else { others };
        self.write_header(&features.to_le_bytes(), FEATURES_AT)?;
        self.header.need_check = need_check;
        Ok(())
    }

    /// The answer for a cluster that was of this kind: only data has to be written over.
    fn zeroed(&self, guest: &Range<u64>, kind: ExtentKind) -> Zeroed {
        let len = self.map.one_cluster(guest);
        if matches!(kind, ExtentKind::Data(_)) { Zeroed::Not(len) } else { Zeroed::ByMetadata(len) }
    }

    fn write_header(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.file.write_all_at(bytes, at).map_err(Error::io("writing the header", at))
    }
}

impl SparseUpdate for Update {
    fn info(&self) -> ImageInfo {
        reader::describe(&self.header)
    }

    fn spec(&self) -> UpdateSpec {
        UpdateSpec::new(self.map.shape.cluster_size())
    }

    fn files(&self) -> Vec<Arc<dyn Storage>> {
        vec![self.file.clone()]
    }

    fn extent_at(&mut self, range: Range<u64>) -> Result<Extent> {
        self.map.extent_at(range)
    }

    fn allocate(&mut self, guest: Range<u64>) -> Result<Allocation> {
        self.begin()?;
        self.map.allocate(guest)
    }

    fn publish(&mut self, allocation: &Allocation) -> Result<()> {
        self.map.publish(allocation)
    }

    fn release(&mut self, allocation: &Allocation) {
        self.map.release(allocation);
    }

    /// A cluster without data becomes a zero cluster; one with data keeps its host offset.
    fn zero(&mut self, guest: Range<u64>, _keep: bool) -> Result<Zeroed> {
        let kind = self.map.kind_at(guest.start)?;
        if kind == ExtentKind::Hole && self.header.backing.is_some() {
            self.begin()?;
            self.map.set_entry(guest.start, ZERO)?;
        }
        Ok(self.zeroed(&guest, kind))
    }

    fn discard(&mut self, guest: Range<u64>) -> Result<Zeroed> {
        let kind = self.map.kind_at(guest.start)?;
        Ok(self.zeroed(&guest, kind))
    }

    fn resize(&mut self, size: u64, below: u64) -> Result<()> {
        self.set_size(size, below)
    }

    /// The name is written after the header, all in one sector.
    fn set_backing(&mut self, reference: Option<&FileReference>) -> Result<()> {
        let (name, format) = (reference.map(|file| &file.name), reference.and_then(|file| file.format.as_ref()));
        let mut sector = [0; SECTOR as usize];
        table::read(&*self.file, sector.get_mut(..Header::LEN).unwrap_or_default(), 0)?;
        let text = name.map_or(&[][..], Name::as_bytes);
        let Some(place) = sector.get_mut(Header::LEN..Header::LEN + text.len()) else {
            let limit = SECTOR - Header::LEN as u64;
            return Err(Error::limit(FORMAT_NAME, "length of the backing file name", text.len() as u64, limit));
        };
        place.copy_from_slice(text);
        let is_raw = format.is_some_and(|format| format.as_bytes() == b"raw");
        let backing = name.map(|name| Backing { name: name.clone(), is_raw });
        let mut features = LittleEndian::read_u64(&sector[FEATURES_AT as usize..]) & !(BACKING_FILE | BACKING_IS_RAW);
        if let Some(backing) = &backing {
            features |= BACKING_FILE | if backing.is_raw { BACKING_IS_RAW } else { 0 };
        }
        LittleEndian::write_u64(&mut sector[FEATURES_AT as usize..], features);
        LittleEndian::write_u32(&mut sector[56..], if text.is_empty() { 0 } else { Header::LEN as u32 });
        LittleEndian::write_u32(&mut sector[60..], text.len() as u32);
        self.write_header(&sector, 0)?;
        self.header.backing = backing;
        self.map.sync()
    }

    fn flush(&mut self) -> Result<()> {
        self.map.flush()
    }

    fn close(&mut self) -> Result<()> {
        self.flush()?;
        if self.header.need_check {
            self.mark(false)?;
            return self.map.sync();
        }
        Ok(())
    }
}
