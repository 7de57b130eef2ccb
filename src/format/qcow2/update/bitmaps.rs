//! What other programs are told before the first change: which bitmaps do not track it, and which features this program does not know.

use std::sync::Arc;

use super::Update;
use crate::error::{Error, Result};
use crate::format::qcow2::bitmap::{BitmapFlags, read_bitmaps};
use crate::format::qcow2::header::Autoclear;
use crate::io::ReadAt;
use crate::limits::Budget;

/// Offset of the autoclear features in the header, in bytes.
const AUTOCLEAR: u64 = 88;
/// Offset of the flags in an entry of the bitmap directory, in bytes.
const BITMAP_FLAGS: u64 = 12;
/// Largest bitmap directory in qemu, in bytes, with room for what is read of it.
const MEMORY: u64 = 128 << 20;

impl Update {
    /// Marks enabled bitmaps as in use, which means that they may lack changes.
    pub(super) fn announce(&mut self) -> Result<()> {
        let source: Arc<dyn ReadAt> = self.file.clone();
        let mut is_changed = false;
        for bitmap in read_bitmaps(&source, &self.header, &Budget::new(MEMORY))? {
            if !bitmap.flags.contains(BitmapFlags::AUTO) || bitmap.flags.contains(BitmapFlags::IN_USE) {
                continue;
            }
            let (flags, at) = (bitmap.flags | BitmapFlags::IN_USE, bitmap.at + BITMAP_FLAGS);
            self.file
                .write_all_at(&flags.bits().to_be_bytes(), at)
                .map_err(Error::io("writing the bitmap flags", at))?;
            is_changed = true;
        }
        if is_changed {
            self.sync()?;
        }
        self.clear_unknown_features()
    }

    /// Clears the autoclear features that this program does not know, before any change.
    pub(super) fn clear_unknown_features(&mut self) -> Result<()> {
        let known = self.header.autoclear & (Autoclear::BITMAPS | Autoclear::RAW_DATA_FILE);
        if self.header.version == 2 || known == self.header.autoclear {
            return Ok(());
        }
        self.header.autoclear = known;
        self.write_header(AUTOCLEAR, &known.bits().to_be_bytes())
    }
}
