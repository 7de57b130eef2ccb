//! `-n`: existing images of formats that are not written at any offset.

use std::path::Path;

use diskimage::{Converter, Error, Format, Image, Report};

use super::Args;
use crate::failure::Failure;

/// Whether an existing image has what only its tables say, so that it is changed in place, and not written anew.
pub fn is_changed_in_place(error: &Error) -> bool {
    matches!(error.root(), Error::Unsupported { feature, .. } if feature.starts_with("writing into an existing image"))
}

impl Args {
    /// Writes the image at `path`, with -n the existing one: as a guest does if it has to be changed in place.
    pub(super) fn convert_to_file(
        &self,
        converter: &Converter,
        source: &Image,
        format: Format,
        path: &Path,
    ) -> Result<diskimage::Result<Report>, Failure> {
        match converter.convert(source, path) {
            Err(error) if self.no_create && is_changed_in_place(&error) => {
                let disk = self.references.options(Some(format))?.open_disk(path)?;
                let written = converter.convert_into_disk(source, &disk);
                Ok(written.and_then(|report| disk.close().map(|()| report)).map_err(|e| e.in_file(path)))
            }
            converted => Ok(converted),
        }
    }
}
