//! Writes an image in one pass.

mod dynamic;
mod fixed;

use self::dynamic::DynamicWriter;
pub(super) use self::dynamic::windows_path;
use self::fixed::FixedWriter;
use super::FORMAT_NAME;
use super::footer::{DiskType, Footer};
use super::options::{Settings, Subformat};
use crate::driver::{CreateContext, SparseWrite};
use crate::error::{Error, Result};
use crate::identifiers::ImageIdentifiers;
use crate::io::WriteAt;

/// Creates an image.
pub(super) fn create(cx: &CreateContext<'_>) -> Result<Box<dyn SparseWrite>> {
    let settings = Settings::parse(cx)?;
    Ok(match settings.subformat {
        Subformat::Fixed => Box::new(FixedWriter::create(cx, settings)?),
        Subformat::Dynamic { block_size, ref parent } => {
            Box::new(DynamicWriter::create(cx, settings.clone(), block_size, parent.as_ref())?)
        }
    })
}

/// The footer of a new image. All programs use the exact size for its creator; see "Sizes" in the [format's
/// documentation](super).
fn footer(settings: &Settings, disk_type: DiskType, data_offset: u64, identifiers: &ImageIdentifiers) -> Footer {
    Footer {
        data_offset,
        timestamp: settings.timestamp,
        creator_app: *b"win ",
        creator_version: 10 << 16,
        creator_os: *b"Wi2k",
        original_size: settings.size,
        current_size: settings.size,
        geometry: settings.geometry,
        disk_type,
        unique_id: settings.unique_id(identifiers),
        saved_state: false,
    }
}

fn write(out: &dyn WriteAt, bytes: &[u8], offset: u64, action: &'static str) -> Result<()> {
    out.write_all_at(bytes, offset).map_err(Error::io(action, offset))
}

fn sync(out: &dyn WriteAt) -> Result<()> {
    out.sync().map_err(Error::io("syncing", None))
}

fn no_compression() -> Error {
    Error::Unsupported { format: FORMAT_NAME, feature: "compression".into(), at: None }
}
