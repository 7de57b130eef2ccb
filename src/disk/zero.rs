//! Zeros and discards.

use std::ops::Range;

use super::write::{Payload, pieces};
use super::{Disk, Use};
use crate::driver::{ExtentKind, Zeroed};
use crate::error::{Error, Result};
use crate::image::Image;

/// Most guest bytes that a request holds at a time, as far as blocks are smaller.
const PIECE: u64 = 256 << 20;

impl Disk {
    /// Makes the guest range `range` read as zeros, in the cheapest way that the format has.
    ///
    /// # Errors
    /// As [`write_all_at`](Self::write_all_at).
    pub fn write_zeros(&self, range: Range<u64>) -> Result<()> {
        let image = self.image();
        let range = self.range(&image, range.start, range.end.saturating_sub(range.start), "write")?;
        self.zero_pieces(&image, range, false)
    }

    /// Gives up the content of the guest range `range`. It reads as zeros then, or as before where nothing can be gained, as for parts of
    /// blocks.
    ///
    /// # Errors
    /// As [`write_all_at`](Self::write_all_at).
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Converter, Format, OpenOptions};
    ///
    /// let file = Arc::new(MemFile::new());
    /// Converter::new(Format::QCOW2).create_to(1 << 20, file.clone())?;
    /// let disk = OpenOptions::new().open_disk_in(file)?;
    /// disk.write_all_at(&[7; 512], 0)?;
    /// disk.discard(0..1 << 20)?;
    /// let mut sector = [9; 512];
    /// disk.read_exact_at(&mut sector, 0)?;
    /// assert_eq!(sector, [0; 512]);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn discard(&self, range: Range<u64>) -> Result<()> {
        let image = self.image();
        let range = self.range(&image, range.start, range.end.saturating_sub(range.start), "discard")?;
        for piece in pieces(range, PIECE.max(self.spec.block_size)) {
            let _alone = self.hold(&piece, Use::Change);
            self.driver().record(piece.clone()).map_err(|e| self.locate(e))?;
            let (_, mut whole, _) = self.split(&image, piece);
            while !whole.is_empty() {
                let discarded = self.driver().discard(whole.clone()).map_err(|e| self.locate(e))?;
                let part = whole.start..checked_end(&whole, discarded)?;
                if let Zeroed::Not(_) = discarded {
                    self.punch(part.clone())?;
                }
                whole.start = part.end;
            }
        }
        Ok(())
    }

    /// Makes a guest range read as zeros.
    pub(super) fn zero_pieces(&self, image: &Image, range: Range<u64>, keep: bool) -> Result<()> {
        for piece in pieces(range, PIECE.max(self.spec.block_size)) {
            let _alone = self.hold(&piece, Use::Change);
            self.driver().record(piece.clone()).map_err(|e| self.locate(e))?;
            let (head, mut whole, tail) = self.split(image, piece);
            self.write_zero_payload(image, head)?;
            while !whole.is_empty() {
                let zeroed = self.driver().zero(whole.clone(), keep).map_err(|e| self.locate(e))?;
                let part = whole.start..checked_end(&whole, zeroed)?;
                if let Zeroed::Not(_) = zeroed {
                    self.write_zero_payload(image, part.clone())?;
                }
                whole.start = part.end;
            }
            self.write_zero_payload(image, tail)?;
        }
        Ok(())
    }

    /// Makes the top image have zeros for a guest range that reads as zeros already, so that they do not depend on lower layers.
    pub(super) fn store_zeros(&self, image: &Image, range: Range<u64>) -> Result<()> {
        for piece in pieces(range, PIECE.max(self.spec.block_size)) {
            let _alone = self.hold(&piece, Use::Change);
            let (head, mut whole, tail) = self.split(image, piece);
            self.fill_holes(image, head)?;
            while !whole.is_empty() {
                let zeroed = self.driver().store_zeros(whole.clone()).map_err(|e| self.locate(e))?;
                let part = whole.start..checked_end(&whole, zeroed)?;
                // Without zero blocks nothing has been stored.
                self.fill_holes(image, part.clone())?;
                whole.start = part.end;
            }
            self.fill_holes(image, tail)?;
        }
        Ok(())
    }

    /// Allocates what the top image does not have, as zeros.
    fn fill_holes(&self, image: &Image, mut range: Range<u64>) -> Result<()> {
        while !range.is_empty() {
            let extent = self.driver().extent_at(range.clone()).map_err(|e| self.locate(e))?;
            let part = extent.clip(range.start, range.end);
            if part.kind == ExtentKind::Hole {
                self.write_piece(image, part.offset..part.end(), Payload::Zeros)?;
            }
            range.start = part.end();
        }
        Ok(())
    }

    /// Splits a guest range into a part of a granule, whole granules, and a part of a granule. A last granule that ends after the disk is
    /// whole.
    fn split(&self, image: &Image, range: Range<u64>) -> (Range<u64>, Range<u64>, Range<u64>) {
        let granule = self.spec.granule;
        let start = range.start.checked_next_multiple_of(granule).unwrap_or(range.end).min(range.end);
        let end = if range.end == image.virtual_size() { range.end } else { range.end - range.end % granule };
        let end = end.max(start);
        (range.start..start, start..end, end..range.end)
    }

    /// Writes zeros to what does not read as zeros yet.
    fn write_zero_payload(&self, image: &Image, range: Range<u64>) -> Result<()> {
        for piece in pieces(range, self.spec.block_size.max(64 << 20)) {
            let spans: Vec<_> = image.spans(piece).without_holes().collect::<Result<_>>()?;
            for span in spans.into_iter().filter(|span| !span.is_zero()) {
                self.write_piece(image, span.offset..span.end(), Payload::Zeros)?;
            }
        }
        Ok(())
    }

    /// Makes holes in the file where the data of the range is, if that is cheap.
    fn punch(&self, mut range: Range<u64>) -> Result<()> {
        while !range.is_empty() {
            let extent = self.driver().extent_at(range.clone()).map_err(|e| self.locate(e))?;
            let part = extent.clip(range.start, range.end);
            if let ExtentKind::Data(at) = part.kind {
                let file = self.file(at)?;
                if file.starts_zeroed() {
                    let zeroed = file.zero_range(at.offset..at.offset.saturating_add(part.len));
                    zeroed.map_err(|e| self.locate(Error::io("making a hole", at.offset)(e)))?;
                }
            }
            range.start = part.end();
        }
        Ok(())
    }
}

/// The end of what was zeroed, which the driver of another crate might return as nothing.
fn checked_end(range: &Range<u64>, zeroed: Zeroed) -> Result<u64> {
    match zeroed.len().min(range.end - range.start) {
        0 => Err(Error::Usage(format!("the driver zeroed nothing at guest offset {:#x}", range.start))),
        len => Ok(range.start + len),
    }
}
