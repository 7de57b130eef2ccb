//! The examination of an image's metadata.

use std::sync::Arc;

use super::header::Header;
use crate::error::Result;
use crate::format::{CheckReport, OpenContext};
use crate::io::ReadAt;

/// Examines the metadata of an image.
pub(super) fn check(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
    Header::read(&file, cx.limits)?;
    Ok(CheckReport::default())
}
