//! Disks one after another as one disk.

use std::ops::Range;

use super::{Image, Layer, Span};
use crate::driver::ExtentKind;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::info::ImageInfo;

/// The size of each part is rounded up to it, as in qemu-img: the disks of virtual machines consist of sectors.
const SECTOR: u64 = 512;

/// A disk in an image: all of the image, unless it is a concatenation.
pub(super) struct Part {
    /// Guest offsets in the image.
    pub guest: Range<u64>,
    /// Indexes of its layers, at least one, the top first.
    pub layers: Range<usize>,
    /// The package that it is the disk of.
    #[cfg(feature = "packages")]
    pub origin: Option<super::package::Origin>,
}

impl Image {
    /// Concatenates the disks: the result has their contents one after another, each padded with zeros to whole sectors of 512 bytes.
    ///
    /// The result is a disk without a format of its own, and is described as a raw one. Its [layers](Self::layers) are those of all
    /// disks. Compressed data is passed through where its guest offset in the new disk allows it.
    ///
    /// # Errors
    /// [`Error::Usage`] without a disk, and if the sum of the sizes is 2^63 or more.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Format, Image, OpenOptions};
    ///
    /// let open = |bytes: Vec<u8>| OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(bytes)));
    /// let disk = Image::concatenate(vec![open(vec![1; 1000])?, open(vec![2; 512])?])?;
    /// assert_eq!(disk.virtual_size(), 1536);
    /// let mut middle = [7; 3];
    /// disk.read_exact_at(&mut middle, 1022)?;
    /// assert_eq!(middle, [0, 0, 2]);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn concatenate(disks: Vec<Image>) -> Result<Image> {
        if disks.is_empty() {
            return Err(Error::Usage("there is no disk to concatenate".into()));
        }
        let (mut layers, mut parts, mut in_order, mut end) = (Vec::new(), Vec::new(), false, 0_u64);
        for disk in disks {
            let (start, first) = (end, layers.len());
            let size = disk.virtual_size().checked_next_multiple_of(SECTOR);
            end = size
                .and_then(|size| start.checked_add(size))
                .filter(|end| i64::try_from(*end).is_ok())
                .ok_or_else(|| Error::Usage("the concatenated disks have 2^63 bytes or more".into()))?;
            let own = disk.parts.len();
            for (index, part) in disk.parts.into_iter().enumerate() {
                let Range { start: from, end: to } = part.guest;
                // The padding is a part of the last one.
                let guest = start + from..if index + 1 == own { end } else { start + to };
                parts.push(Part { guest, layers: first + part.layers.start..first + part.layers.end, ..part });
            }
            layers.extend(disk.layers);
            in_order |= disk.in_order;
        }
        let info = Some(Box::new(ImageInfo::new(Format::RAW.name(), end)));
        Ok(Image { parts, concatenation: info, in_order, ..Image::new(layers) })
    }

    /// The part with the guest offset `at`; `None` after the end of the disk.
    pub(super) fn part_at(&self, at: u64) -> Option<&Part> {
        self.parts.get(self.parts.partition_point(|part| part.guest.end <= at))
    }

    /// The guest offset at which the disk begins that has this layer.
    pub(super) fn start_of_layer(&self, layer: usize) -> u64 {
        let part = self.parts.get(self.parts.partition_point(|part| part.layers.end <= layer));
        part.map_or(0, |part| part.guest.start)
    }
}

impl Part {
    /// The only part of an image with these layers.
    pub fn whole(layers: &[Layer]) -> Part {
        let size = layers.first().map_or(0, |layer| layer.reader.info().virtual_size);
        Part {
            guest: 0..size,
            layers: 0..layers.len(),
            #[cfg(feature = "packages")]
            origin: None,
        }
    }
}

impl Span {
    /// The span of a part that begins at guest offset `start`, as one of the whole disk.
    pub(super) fn in_part_at(self, start: u64) -> Span {
        let kind = match self.kind {
            ExtentKind::Compressed(mut unit) => {
                unit.unit += start;
                ExtentKind::Compressed(unit)
            }
            other => other,
        };
        Span { offset: self.offset + start, kind, ..self }
    }
}
