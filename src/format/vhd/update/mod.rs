//! Changing an image in place.
//!
//! | module | content |
//! |---|---|
//! | `fixed` | fixed disks |
//! | `dynamic` | dynamic and differencing disks: blocks and their bitmaps |
//! | `parent` | the parent of a differencing disk |
//! | `resize` | the size of a dynamic disk |

mod dynamic;
mod fixed;
mod parent;
mod resize;

use std::sync::Arc;

use byteorder::{BigEndian, ByteOrder};

use super::check::check;
use super::footer::{CHECKSUM_AT, CURRENT_SIZE_AT, DiskType, Footer, Footers};
use super::geometry::Geometry;
use super::{FORMAT_NAME, SECTOR, checksum};
use crate::driver::{Repair, RepairReport, SparseUpdate, UpdateContext};
use crate::error::{Error, Result};
use crate::format::shared::table;
use crate::io::{ReadAt, Storage};

/// Opens an image that changes.
pub(super) fn open(file: Arc<dyn Storage>, cx: &UpdateContext<'_>) -> Result<Box<dyn SparseUpdate>> {
    cx.open.refuse_snapshots(FORMAT_NAME)?;
    let footers = Footers::read(&*file, table::length(&*file)?, cx.open.limits)?;
    match footers.footer.disk_type {
        DiskType::Fixed => Ok(Box::new(fixed::Fixed::open(file, &footers, cx)?)),
        _ => Ok(Box::new(dynamic::Dynamic::open(file, &footers, cx)?)),
    }
}

/// Writes the footer at the end of a dynamic or differencing disk, or its copy at the start, from the other one. If the table is damaged too,
/// nothing is written: where the blocks end is not known.
pub(super) fn repair(file: Arc<dyn Storage>, cx: &UpdateContext<'_>, what: Repair) -> Result<RepairReport> {
    let source: Arc<dyn ReadAt> = file.clone();
    let before = check(source.clone(), &cx.open)?;
    let footers = Footers::read(&*file, table::length(&*file)?, cx.open.limits)?;
    let is_damaged = footers.warning.is_some() && before.corruptions + before.check_errors == 0;
    if what != Repair::All || !is_damaged {
        return Ok(RepairReport { after: before.clone(), before, ..RepairReport::default() });
    }
    dynamic::Dynamic::open(file, &footers, cx)?.begin()?;
    Ok(RepairReport { before, corruptions_fixed: 1, after: check(source, &cx.open)?, ..RepairReport::default() })
}

/// A footer as it is in the file, with fields that are not known here.
#[derive(Clone)]
struct FooterBytes([u8; Footer::LEN as usize]);

impl FooterBytes {
    /// Reads the footer at host offset `at`, which may be one byte short.
    fn read(file: &dyn Storage, at: u64) -> Result<FooterBytes> {
        let mut bytes = [0; Footer::LEN as usize];
        let len = table::length(file)?.saturating_sub(at).min(Footer::LEN);
        table::read(file, bytes.get_mut(..len as usize).unwrap_or_default(), at)?;
        Ok(FooterBytes(bytes))
    }

    /// Sets the size of the disk in bytes. A creator whose images have the size of their geometry becomes another one, as in new images.
    fn set_size(&mut self, size: u64) {
        let bytes = &mut self.0;
        let geometry = Geometry::from_sectors(size / SECTOR);
        if matches!(&bytes[28..32], b"vpc " | b"qemu") && geometry.bytes() != size {
            bytes[28..32].copy_from_slice(b"win ");
        }
        BigEndian::write_u64(&mut bytes[CURRENT_SIZE_AT as usize..], size);
        BigEndian::write_u16(&mut bytes[56..], geometry.cylinders);
        (bytes[58], bytes[59]) = (geometry.heads, geometry.sectors_per_track);
        self.seal();
    }

    /// Sets a field.
    fn set_field(&mut self, at: usize, value: &[u8]) {
        self.0.iter_mut().skip(at).zip(value).for_each(|(byte, value)| *byte = *value);
        self.seal();
    }

    fn seal(&mut self) {
        let sum = checksum(&self.0, CHECKSUM_AT);
        BigEndian::write_u32(&mut self.0[CHECKSUM_AT..], sum);
    }

    fn write(&self, file: &dyn Storage, at: u64) -> Result<()> {
        file.write_all_at(&self.0, at).map_err(Error::io("writing the footer", at))
    }
}

fn sync(file: &dyn Storage) -> Result<()> {
    file.sync().map_err(Error::io("syncing", None))
}
