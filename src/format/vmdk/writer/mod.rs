//! Creates images in one pass. Writers allocate host ranges and write metadata; the core writes the guest data.

mod extents;
mod sparse;
mod stream;

use self::extents::ExtentsWriter;
use self::stream::StreamWriter;
use super::FORMAT_NAME;
use super::descriptor::{Access, Descriptor, ExtentLine, ExtentType, Geometry, long_content_id, uuid};
use super::options::{Settings, Subformat};
use crate::driver::CreateContext;
use crate::driver::SparseWrite;
use crate::error::{Error, Result};
use crate::identifiers::ImageIdentifiers;
use crate::limits::Limits;
use crate::name::Name;

/// Sectors in a grain: 64 KiB, the size that all known writers use.
const GRAIN_SECTORS: u64 = 128;
/// Entries in a grain table: "for virtual disks, 512".
const ENTRIES_PER_TABLE: u32 = 512;
/// Sectors of an embedded descriptor.
const DESCRIPTOR_SECTORS: std::ops::Range<u64> = 1..21;

/// Largest disk in a sparse extent: 64 TiB, the largest size whose directories are within the default [`Limits`].
/// VMware's limit is 62 TiB.
const MAX_SPARSE_SECTORS: u64 = 1 << 37;

/// Creates an image.
pub(super) fn create(cx: &CreateContext<'_>) -> Result<Box<dyn SparseWrite>> {
    let settings = Settings::parse(cx)?;
    check_size(&settings)?;
    Ok(match settings.subformat {
        // A stream has its directory in the footer, which a program that appends grains would overwrite.
        Subformat::StreamOptimized if !cx.empty || !cx.out.seeks() => Box::new(StreamWriter::create(cx, settings)?),
        _ => Box::new(ExtentsWriter::create(cx, settings)?),
    })
}

/// Refuses sizes that this crate does not read.
fn check_size(settings: &Settings) -> Result<()> {
    let limit = match settings.subformat {
        Subformat::MonolithicSparse | Subformat::StreamOptimized => MAX_SPARSE_SECTORS,
        Subformat::TwoGbMaxExtentSparse | Subformat::TwoGbMaxExtentFlat => {
            Limits::default().extents * extents::SPLIT_SECTORS
        }
        Subformat::MonolithicFlat | Subformat::Vmfs => u64::MAX,
    };
    if settings.sectors <= limit {
        return Ok(());
    }
    let field = format!("size in sectors of {}", settings.subformat.name());
    Err(Error::limit(FORMAT_NAME, field, settings.sectors, limit))
}

/// Returns the descriptor of a new image. Its length does not depend on the identifiers.
fn descriptor(settings: &Settings, extents: Vec<ExtentLine>, identifiers: &ImageIdentifiers) -> Descriptor {
    let identifiers = match settings.cid {
        Some(cid) => ImageIdentifiers::pinned(u64::from(cid) << 32 ^ settings.sectors),
        None => *identifiers,
    };
    let [a, b, c, d, ..] = identifiers.bytes("content ID");
    let cid = settings.cid.unwrap_or(u32::from_be_bytes([a, b, c, d]).min(0xffff_fffd));
    let geometry = Geometry::new(settings.sectors, settings.adapter_type);
    let database = [
        ("adapterType", settings.adapter_type.to_owned()),
        ("encoding", "UTF-8".to_owned()),
        ("geometry.cylinders", geometry.cylinders.to_string()),
        ("geometry.heads", geometry.heads.to_string()),
        ("geometry.sectors", geometry.sectors.to_string()),
        ("longContentID", long_content_id(identifiers.bytes("long content ID"), cid)),
        ("toolsVersion", settings.tools_version.to_string()),
        ("uuid", uuid(identifiers.bytes("uuid"))),
        ("virtualHWVersion", settings.hardware_version.to_string()),
    ];
    Descriptor {
        version: 1,
        cid,
        parent_cid: settings.parent.as_ref().map(|parent| parent.cid),
        create_type: settings.subformat.name(),
        parent_hint: settings.parent.as_ref().map(|parent| parent.name.clone()),
        extents,
        database: database.map(|(key, value)| (key.to_owned(), value)).into(),
    }
}

/// Converts a sector to an entry of a grain directory or table: 32 bits, which limits files to 2 TiB.
fn sector_entry(sector: u64) -> Result<u32> {
    u32::try_from(sector).map_err(|_| Error::limit(FORMAT_NAME, "size of the file in sectors", sector, u32::MAX.into()))
}

/// Returns the descriptor line of an extent at the beginning of `file`.
fn extent_line(sectors: u64, kind: ExtentType, file: Name) -> ExtentLine {
    ExtentLine { access: Access::Rw, sectors, kind, file: Some(file), offset: 0, at: 0 }
}

#[cfg(test)]
mod tests;
