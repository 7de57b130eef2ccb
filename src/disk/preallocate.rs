//! Growing a disk and allocating what is added.

use std::ops::Range;

use super::write::pieces;
use super::{Disk, Use};
use crate::driver::Allocation;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::io::write_zeros;

/// What is allocated for a part of the disk that was never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Preallocation {
    /// Host ranges, which are holes of the file.
    Metadata,
    /// Space of the file system, too.
    Space,
    /// Space, with zeros written to it.
    Full,
}

/// Most guest bytes that a request holds at a time, as far as blocks are smaller.
const PIECE: u64 = 64 << 20;

impl Disk {
    /// Sets the virtual size in bytes, not below the present one, and allocates what is added. After a failure the disk has its former size, where
    /// the format can shrink.
    ///
    /// # Errors
    /// [`Error::Usage`] for a smaller size; [`Error::Unsupported`] for [`Preallocation::Metadata`] of a format without allocation units; and as
    /// [`resize`](Self::resize).
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Converter, Format, OpenOptions, Preallocation};
    ///
    /// let file = Arc::new(MemFile::new());
    /// Converter::new(Format::QCOW2).create_to(1 << 20, file.clone())?;
    /// let disk = OpenOptions::new().open_disk_in(file.clone())?;
    /// disk.grow_allocated(2 << 20, Preallocation::Metadata)?;
    /// disk.close()?;
    /// assert!(file.to_vec().len() >= 1 << 20);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn grow_allocated(&self, size: u64, how: Preallocation) -> Result<()> {
        let old = self.size();
        if size < old {
            return Err(Error::Usage("preallocation can only be used for growing images".into()));
        }
        if how == Preallocation::Metadata && self.info().block_size.is_none() {
            return Err(Error::unsupported(self.format.name(), "preallocation of metadata"));
        }
        self.resize(size)?;
        self.allocate_added(old, how).and_then(|()| self.flush()).inspect_err(|_| {
            // The failure is what the caller has to know.
            let _ = self.resize(old);
        })
    }

    /// Allocates the disk from byte `start` on.
    fn allocate_added(&self, start: u64, how: Preallocation) -> Result<()> {
        let image = self.image();
        for piece in pieces(start..image.virtual_size(), PIECE.max(self.spec.block_size)) {
            let _alone = self.hold(&piece, Use::Change);
            self.allocate_zeros(&image, piece, how)?;
        }
        Ok(())
    }

    /// Allocates a guest range that reads as zeros.
    fn allocate_zeros(&self, image: &Image, mut range: Range<u64>, how: Preallocation) -> Result<()> {
        while !range.is_empty() {
            let allocation = self.driver().allocate(range.clone()).map_err(|e| self.locate(e))?;
            let part = range.start..allocation.guest.end;
            range.start = part.end;
            if !allocation.is_new {
                self.allocate_space(&allocation, part, how)?;
                continue;
            }
            let allocate = || {
                self.fill(image, &allocation, allocation.guest.start..part.start)?;
                self.allocate_space(&allocation, part, how)?;
                self.driver().publish(&allocation).map_err(|e| self.locate(e))
            };
            allocate().inspect_err(|_| self.driver().release(&allocation))?;
        }
        Ok(())
    }

    fn allocate_space(&self, allocation: &Allocation, part: Range<u64>, how: Preallocation) -> Result<()> {
        let at = allocation.at.advance(part.start - allocation.guest.start);
        let (file, host) = (self.file(at)?, at.offset..at.offset.saturating_add(part.end - part.start));
        let zeroed = match how {
            Preallocation::Full => write_zeros(&**file, host.clone()),
            _ if allocation.is_new && !allocation.reads_as_zeros => file.zero_range(host.clone()),
            _ => Ok(()),
        };
        let allocated = zeroed.and_then(|()| match how {
            Preallocation::Space => file.allocate(host),
            _ => Ok(()),
        });
        allocated.map_err(|e| self.locate(Error::io("allocating space", at.offset)(e)))
    }
}
