//! Changing options of an image.

use std::sync::PoisonError;

use super::write::{Payload, pieces};
use super::{Disk, Top};
use crate::driver::{ExtentKind, KeyChange};
use crate::error::Result;
use crate::image::Image;
use crate::options::Options;

/// Most guest bytes that are looked at at a time.
const PIECE: u64 = 256 << 20;

impl Disk {
    /// Changes options of the image, as far as its format allows that; the content stays the same. qcow2 has `compat` (0.10, 1.1),
    /// `lazy_refcounts` (on, off), `refcount_bits` (1 to 64), `data_file` (the name only) and `data_file_raw` (off).
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) if the format has no such option, or the image cannot have this value;
    /// [`Error::Option`](crate::Error::Option) for an invalid value; errors of the storage.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Converter, Format, OpenOptions, Options};
    ///
    /// let file = Arc::new(MemFile::new());
    /// Converter::new(Format::QCOW2).create_to(1 << 20, file.clone())?;
    /// let disk = OpenOptions::new().open_disk_in(file.clone())?;
    /// let mut options = Options::new();
    /// options.set("compat", "0.10");
    /// disk.amend(&options)?;
    /// disk.close()?;
    /// assert_eq!(file.to_vec()[..8], *b"QFI\xfb\0\0\0\x02");
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn amend(&self, options: &Options) -> Result<()> {
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        let needs_data = self.driver().check_amend(options).map_err(|e| self.locate(e))?;
        if needs_data {
            self.replace_zero_blocks(&image)?;
        }
        let mut driver = self.driver();
        let amended = driver.flush().and_then(|()| driver.amend(options));
        drop(driver);
        image.replace_top(Top::boxed(&self.driver));
        amended.map_err(|e| self.locate(e))
    }

    /// Changes the key slots of an encrypted image, and makes that durable.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) if the image has none that can be changed; [`Error::Usage`](crate::Error::Usage) for a
    /// change that is refused, as that of the last slot without `force`; errors of the storage.
    ///
    /// ```no_run
    /// use diskimage::driver::KeyChange;
    /// use diskimage::{OpenOptions, Secret};
    ///
    /// let disk = OpenOptions::new().secret(Secret::new("old")).open_disk("disk.luks")?;
    /// disk.change_keys(&KeyChange::Add { secret: Secret::new("new"), slot: None, iter_time: None, force: false })?;
    /// disk.change_keys(&KeyChange::EraseSecret { secret: Secret::new("old"), force: false })?;
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn change_keys(&self, change: &KeyChange) -> Result<()> {
        let _alone = self.image.write().unwrap_or_else(PoisonError::into_inner);
        let mut driver = self.driver();
        driver.flush().and_then(|()| driver.change_keys(change)).map_err(|e| self.locate(e))
    }

    /// Replaces blocks that the format marks as zeros: by unallocated ones, or if a backing file would show through, by data.
    fn replace_zero_blocks(&self, image: &Image) -> Result<()> {
        let is_overlay = image.layer_count() > 1;
        for piece in pieces(0..image.virtual_size(), PIECE.max(self.spec.block_size)) {
            let mut at = piece.start;
            while at < piece.end {
                let extent = self.driver().extent_at(at..piece.end).map_err(|e| self.locate(e))?.clip(at, piece.end);
                let range = at..extent.end();
                at = range.end;
                if !matches!(extent.kind, ExtentKind::Zero { .. }) {
                    continue;
                }
                if is_overlay {
                    self.write_piece(image, range, Payload::Zeros)?;
                    continue;
                }
                let mut rest = range;
                while !rest.is_empty() {
                    rest.start += self.driver().discard(rest.clone()).map_err(|e| self.locate(e))?.len();
                }
            }
        }
        Ok(())
    }
}
