//! Writes images with flat or hosted sparse extents, in one file or several: all subformats except `streamOptimized` with
//! guest data.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::sparse::SparseExtent;
use super::{GRAIN_SECTORS, descriptor, extent_line};
use crate::driver::CreateContext;
use crate::driver::{Placement, SparseWrite, WriteSpec};
use crate::error::{Error, Result};
use crate::format::vmdk::descriptor::{ExtentLine, ExtentType};
use crate::format::vmdk::options::{Settings, Subformat};
use crate::format::vmdk::{FORMAT_NAME, SECTOR};
use crate::identifiers::ImageIdentifiers;
use crate::io::WriteAt;
use crate::name::Name;

/// Sectors in an extent of a split image, except the last: 2047 MiB, as in VMware.
pub(super) const SPLIT_SECTORS: u64 = 4_192_256;
/// File name in the embedded descriptor of an image that is not written to a file.
const NO_NAME: &str = "disk.vmdk";

/// A new image.
pub(super) struct ExtentsWriter {
    spec: WriteSpec,
    settings: Settings,
    extents: Vec<Extent>,
    /// The lines of the extents in the descriptor.
    lines: Vec<ExtentLine>,
    /// The file of the descriptor, unless it is embedded.
    descriptor_file: Option<Arc<dyn WriteAt>>,
}

struct Extent {
    guest_range: Range<u64>,
    storage: Storage,
}

enum Storage {
    Flat(Arc<dyn WriteAt>),
    Sparse(Box<SparseExtent>),
}

impl ExtentsWriter {
    pub fn create(cx: &CreateContext<'_>, settings: Settings) -> Result<ExtentsWriter> {
        let ((extents, lines), descriptor_file) = match settings.subformat {
            Subformat::MonolithicSparse | Subformat::StreamOptimized => (monolithic(cx, &settings)?, None),
            _ => (split(cx, &settings)?, Some(cx.out.clone())),
        };
        let grain = GRAIN_SECTORS * SECTOR;
        let over_backing = settings.parent.is_some();
        let spec = WriteSpec {
            virtual_size: settings.sectors * SECTOR,
            block_size: if settings.subformat.is_flat() { SECTOR } else { grain },
            // In a new file, unwritten parts of a grain read as zeros.
            granule: if over_backing || !cx.out.starts_zeroed() { grain } else { SECTOR },
            over_backing,
            host_alignment: grain,
            ..WriteSpec::default()
        };
        Ok(ExtentsWriter { spec, settings, extents, lines, descriptor_file })
    }

    /// Returns the extent at guest offset `offset`.
    fn extent(&mut self, offset: u64) -> Result<&mut Extent> {
        let index = self.extents.partition_point(|extent| extent.guest_range.end <= offset);
        let size = self.spec.virtual_size;
        self.extents
            .get_mut(index)
            .ok_or_else(|| Error::Usage(format!("guest offset {offset:#x} is beyond the end of the disk at {size:#x}")))
    }
}

impl SparseWrite for ExtentsWriter {
    fn spec(&self) -> &WriteSpec {
        &self.spec
    }

    fn place(&mut self, guest: Range<u64>) -> Result<Placement> {
        let Extent { guest_range, storage } = self.extent(guest.start)?;
        let local = guest.start - guest_range.start..guest.end.min(guest_range.end) - guest_range.start;
        let (out, host) = match storage {
            Storage::Flat(out) => (out.clone(), local),
            Storage::Sparse(extent) => extent.allocate(local).map_err(|error| error.in_file_at(extent.path()))?,
        };
        Ok(Placement { out, offset: host.start, before: Vec::new(), len: host.end - host.start })
    }

    fn place_compressed(&mut self, _guest: Range<u64>, _stored_len: u32) -> Result<Placement> {
        let feature = "compression in subformats other than streamOptimized".into();
        Err(Error::Unsupported { format: FORMAT_NAME, feature, at: None })
    }

    fn zero(&mut self, guest: Range<u64>) -> Result<()> {
        if !self.spec.over_backing {
            return Ok(());
        }
        let mut at = guest.start;
        while at < guest.end {
            let Extent { guest_range, storage } = self.extent(at)?;
            let end = guest.end.min(guest_range.end);
            if let Storage::Sparse(extent) = storage {
                extent.zero(at - guest_range.start..end - guest_range.start)?;
            }
            at = end;
        }
        Ok(())
    }

    fn finish(&mut self, identifiers: &ImageIdentifiers) -> Result<()> {
        let text = descriptor(&self.settings, self.lines.clone(), identifiers).encode()?;
        for Extent { storage, .. } in &mut self.extents {
            let (path, finished) = match storage {
                Storage::Flat(out) => (out.path(), out.sync().map_err(Error::io("syncing", None))),
                Storage::Sparse(extent) => {
                    let finished = extent.finish(&text);
                    (extent.path(), finished)
                }
            };
            finished.map_err(|error| error.in_file_at(path))?;
        }
        if let Some(out) = &self.descriptor_file {
            out.write_all_at(&text, 0).map_err(Error::io("writing the descriptor", 0))?;
            out.sync().map_err(Error::io("syncing", None))?;
        }
        Ok(())
    }
}

impl Storage {
    /// Creates an extent of a split image.
    fn create(out: Arc<dyn WriteAt>, sectors: u64, settings: &Settings) -> Result<Storage> {
        if settings.subformat.is_flat() {
            let len = sectors * SECTOR;
            out.set_len(len).map_err(Error::io("setting the length", len))?;
            Ok(Storage::Flat(out))
        } else {
            Ok(Storage::Sparse(Box::new(SparseExtent::create(out, sectors, None, settings)?)))
        }
    }
}

/// Creates one sparse extent with an embedded descriptor. Returns it with its line in the descriptor.
fn monolithic(cx: &CreateContext<'_>, settings: &Settings) -> Result<(Vec<Extent>, Vec<ExtentLine>)> {
    let described = |name: &OsStr| {
        let lines = vec![extent_line(settings.sectors, ExtentType::Sparse, Name::from(Path::new(name)))];
        let text = descriptor(settings, lines.clone(), &cx.identifiers).encode()?;
        Ok((lines, text))
    };
    // Readers ignore the file name in an embedded descriptor, so an unrepresentable one can be replaced.
    let own = cx.files.and_then(|files| described(files.image_name()).ok());
    let (lines, text) = own.map_or_else(|| described(OsStr::new(NO_NAME)), Ok)?;
    let extent = SparseExtent::create(cx.out.clone(), settings.sectors, Some(&text), settings)?;
    let storage = Storage::Sparse(Box::new(extent));
    Ok((vec![Extent { guest_range: 0..settings.sectors * SECTOR, storage }], lines))
}

/// Creates extents in files of their own. Returns them with their lines in the descriptor.
fn split(cx: &CreateContext<'_>, settings: &Settings) -> Result<(Vec<Extent>, Vec<ExtentLine>)> {
    let Some(files) = cx.files.filter(|_| cx.out.starts_zeroed()) else {
        let feature = format!("{}, which needs several files, on a target with one file", settings.subformat.name());
        return Err(Error::Unsupported { format: FORMAT_NAME, feature: feature.into(), at: None });
    };
    let (mut extents, mut lines) = (Vec::new(), Vec::new());
    let mut start = 0;
    for number in 1.. {
        let sectors = (settings.sectors - start).min(max_extent_sectors(settings.subformat));
        let name = extent_name(files.image_name(), settings.subformat, number);
        let line = extent_line(sectors, extent_type(settings.subformat), Name::from(Path::new(&name)));
        // An unrepresentable name is found before a file is created.
        descriptor(settings, vec![line.clone()], &cx.identifiers).encode()?;
        lines.push(line);
        let storage = Storage::create(files.add(&name)?, sectors, settings)?;
        extents.push(Extent { guest_range: start * SECTOR..(start + sectors) * SECTOR, storage });
        start += sectors;
        if start == settings.sectors {
            break;
        }
    }
    Ok((extents, lines))
}

/// Returns the largest number of sectors in an extent.
fn max_extent_sectors(subformat: Subformat) -> u64 {
    match subformat {
        Subformat::TwoGbMaxExtentSparse | Subformat::TwoGbMaxExtentFlat => SPLIT_SECTORS,
        _ => u64::MAX,
    }
}

fn extent_type(subformat: Subformat) -> ExtentType {
    match subformat {
        Subformat::MonolithicFlat | Subformat::TwoGbMaxExtentFlat => ExtentType::Flat,
        Subformat::Vmfs => ExtentType::Vmfs,
        _ => ExtentType::Sparse,
    }
}

/// Returns the file name of an extent: `disk-flat.vmdk`, `disk-f001.vmdk` or `disk-s001.vmdk` for the image
/// `disk.vmdk`.
fn extent_name(image: &OsStr, subformat: Subformat, number: u64) -> OsString {
    let mut name = Path::new(image).file_stem().unwrap_or(image).to_owned();
    name.push(match subformat {
        Subformat::TwoGbMaxExtentFlat => format!("-f{number:03}"),
        Subformat::TwoGbMaxExtentSparse => format!("-s{number:03}"),
        _ => "-flat".to_owned(),
    });
    if let Some(extension) = Path::new(image).extension() {
        name.push(".");
        name.push(extension);
    } else {
        name.push(".vmdk");
    }
    name
}
