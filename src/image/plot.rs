//! A picture of a disk: how much of each part of it is stored, and how.

use super::Image;
use crate::driver::ExtentKind;
use crate::error::Result;

/// A disk in cells of one length: what [`Image::plot`] returns.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plot {
    /// Length of a cell in bytes, at least 1; the last one can be shorter.
    pub cell_len: u64,
    /// In the order of the disk.
    pub cells: Vec<Allocation>,
    /// Of the whole disk.
    pub total: Allocation,
}

/// Bytes of a range of a disk, by how they are stored. Their sum is the length of the range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Allocation {
    /// Bytes that the image stores.
    pub data: u64,
    /// Bytes that the image stores compressed.
    pub compressed: u64,
    /// Bytes that a backing file or parent stores.
    pub backing: u64,
    /// Bytes that read as zeros because the image says so, or because its file has a hole.
    pub zero: u64,
    /// Bytes that no image of the chain has. They read as zeros.
    pub unallocated: u64,
    /// Bytes that the file systems of the disk do not use, after `Image::drop_free_space`.
    pub free: u64,
}

impl Allocation {
    /// Returns the number of bytes that are stored, in this image or in another one.
    ///
    /// ```
    /// assert_eq!(diskimage::Allocation::default().stored(), 0);
    /// ```
    pub fn stored(&self) -> u64 {
        self.data + self.compressed + self.backing
    }
}

impl Image {
    /// Summarizes the map of the disk in up to `count` cells of one length, for a picture of it. Only metadata is read.
    ///
    /// # Errors
    /// Errors of the image's metadata.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Format, OpenOptions};
    ///
    /// let disk = Arc::new(MemFile::from(vec![7; 10 << 10]));
    /// let plot = OpenOptions::new().format(Format::RAW).open_source(disk)?.plot(3)?;
    /// assert_eq!((plot.cell_len, plot.total.data), (3414, 10 << 10));
    /// assert_eq!(plot.cells.iter().map(|cell| cell.data).collect::<Vec<_>>(), [3414, 3414, 3412]);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn plot(&self, count: usize) -> Result<Plot> {
        let size = self.virtual_size();
        let cell_len = size.div_ceil((count as u64).max(1)).max(1);
        // Not more than `count`.
        let mut cells = vec![Allocation::default(); size.div_ceil(cell_len) as usize];
        let mut total = Allocation::default();
        for span in self.spans(0..size) {
            let span = span?;
            let is_top = self.part_at(span.offset).is_none_or(|part| part.layers.start == span.layer);
            let kind = |usage: &mut Allocation, len: u64| {
                let bytes = match span.kind {
                    _ if self.is_free(span.offset) => &mut usage.free,
                    _ if span.is_data() && span.host_hole => &mut usage.zero,
                    ExtentKind::Data(_) | ExtentKind::Compressed(_) if !is_top => &mut usage.backing,
                    ExtentKind::Data(_) => &mut usage.data,
                    ExtentKind::Compressed(_) => &mut usage.compressed,
                    ExtentKind::Zero { .. } => &mut usage.zero,
                    ExtentKind::Hole => &mut usage.unallocated,
                };
                *bytes += len;
            };
            kind(&mut total, span.len);
            let first = span.offset / cell_len;
            for (index, cell) in (first..).zip(cells.iter_mut().skip(first as usize)) {
                let (start, end) = (index * cell_len, (index + 1).saturating_mul(cell_len));
                if start >= span.end() {
                    break;
                }
                kind(cell, end.min(span.end()) - start.max(span.offset));
            }
        }
        Ok(Plot { cell_len, cells, total })
    }

    /// Whether the file systems of the disk do not use the byte, as far as that is to be looked at.
    #[cfg(feature = "sparsify")]
    fn is_free(&self, offset: u64) -> bool {
        self.free.as_ref().is_some_and(|free| free.at(offset).is_ok())
    }

    #[cfg(not(feature = "sparsify"))]
    fn is_free(&self, _: u64) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::image::OpenOptions;
    use crate::io::MemFile;

    fn image(bytes: &[u8]) -> Image {
        OpenOptions::new()
            .format(crate::format::Format::RAW)
            .open_source(Arc::new(MemFile::from(bytes.to_vec())))
            .unwrap()
    }

    #[test]
    fn cells_add_up() {
        for (len, count, cells) in [(0, 5, 0), (1, 5, 1), (5, 5, 5), (6, 5, 3), (1000, 7, 7), (1000, 0, 1), (3, 100, 3)]
        {
            let plot = image(&vec![1; len]).plot(count).unwrap();
            assert_eq!(plot.cells.len(), cells, "{len} in {count}");
            assert_eq!(plot.total, Allocation { data: len as u64, ..Allocation::default() });
            assert_eq!(plot.cells.iter().map(|cell| cell.data).sum::<u64>(), len as u64);
            assert!(plot.cells.iter().rev().skip(1).all(|cell| cell.data == plot.cell_len), "{len} in {count}");
        }
    }

    #[cfg(feature = "sparsify")]
    #[test]
    fn what_a_guest_does_not_use_is_free() {
        let mut disk = vec![7; 64 << 10];
        disk[..4096].fill(0);
        // Swap space: version 1, page 15 is the last one.
        (disk[1024], disk[1028]) = (1, 15);
        disk[4086..4096].copy_from_slice(b"SWAPSPACE2");
        let mut image = image(&disk);
        assert_eq!(image.plot(1).unwrap().total.free, 0);
        let volumes = image.drop_free_space().unwrap();
        assert_eq!((volumes[0].unused, volumes[0].unused_stored), (60 << 10, 60 << 10));
        let plot = image.plot(8).unwrap();
        let told: Vec<_> = plot.cells.iter().map(|cell| (cell.data >> 10, cell.free >> 10)).collect();
        assert_eq!(told, [(4, 4), (0, 8), (0, 8), (0, 8), (0, 8), (0, 8), (0, 8), (0, 8)]);
    }
}
