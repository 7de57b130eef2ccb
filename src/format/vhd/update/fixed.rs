//! Fixed disks: the guest data is where it is, and only the footer changes, with the size.

use std::ops::Range;
use std::sync::Arc;

use super::{FooterBytes, sync};
use crate::driver::{
    Allocation, Extent, ExtentKind, FileId, Location, SparseRead, SparseUpdate, UpdateContext, UpdateSpec,
};
use crate::error::{Error, Result};
use crate::format::shared::whole_sectors;
use crate::format::vhd::footer::{Footer, Footers};
use crate::format::vhd::reader::{Reader, describe};
use crate::format::vhd::{FORMAT_NAME, SECTOR};
use crate::info::ImageInfo;
use crate::io::{Storage, write_zeros};
use crate::limits::Limits;

pub(super) struct Fixed {
    file: Arc<dyn Storage>,
    info: ImageInfo,
    footer: FooterBytes,
    /// Host offset of the footer.
    footer_at: u64,
    limits: Limits,
}

impl Fixed {
    pub fn open(file: Arc<dyn Storage>, footers: &Footers, cx: &UpdateContext<'_>) -> Result<Fixed> {
        let info = Reader::open(file.clone(), &cx.open)?.info().clone();
        let footer = FooterBytes::read(&*file, footers.at)?;
        Ok(Fixed { file, info, footer, footer_at: footers.at, limits: cx.open.limits.clone() })
    }

    /// Moves the footer, and then sets the size. Whatever the order in which storage writes, the file ends with a footer, which describes the
    /// disk before or after.
    fn grow(&mut self, new: &FooterBytes, size: u64) -> Result<()> {
        let old_at = self.footer_at;
        // One write makes the file longer and gives it a footer.
        self.footer.write(&*self.file, size)?;
        sync(&*self.file)?;
        self.footer_at = size;
        let end = (old_at + Footer::LEN).min(size);
        write_zeros(&*self.file, old_at..end).map_err(Error::io("clearing the footer", old_at))?;
        sync(&*self.file)?;
        new.write(&*self.file, size)?;
        sync(&*self.file)
    }

    fn shrink(&mut self, new: &FooterBytes, size: u64) -> Result<()> {
        new.write(&*self.file, self.footer_at)?;
        sync(&*self.file)?;
        new.write(&*self.file, size)?;
        sync(&*self.file)?;
        self.file.set_len(size + Footer::LEN).map_err(Error::io("setting the length", size))?;
        self.footer_at = size;
        sync(&*self.file)
    }
}

impl SparseUpdate for Fixed {
    fn info(&self) -> ImageInfo {
        self.info.clone()
    }

    fn spec(&self) -> UpdateSpec {
        UpdateSpec::new(1)
    }

    fn files(&self) -> Vec<Arc<dyn Storage>> {
        vec![self.file.clone()]
    }

    fn extent_at(&mut self, range: Range<u64>) -> Result<Extent> {
        let at = Location { file: FileId::default(), offset: range.start };
        Ok(Extent::new(range, ExtentKind::Data(at)))
    }

    fn allocate(&mut self, guest: Range<u64>) -> Result<Allocation> {
        let at = Location { file: FileId::default(), offset: guest.start };
        Ok(Allocation { guest, at, is_new: false, reads_as_zeros: false })
    }

    fn publish(&mut self, _allocation: &Allocation) -> Result<()> {
        Ok(())
    }

    fn release(&mut self, _allocation: &Allocation) {}

    fn resize(&mut self, size: u64, _below: u64) -> Result<()> {
        let (size, old) = (whole_sectors(FORMAT_NAME, size)?, self.info.virtual_size);
        if size == old {
            return Ok(());
        }
        if !self.file.starts_zeroed() {
            return Err(Error::unsupported(FORMAT_NAME, "changing the size of a fixed disk on a device"));
        }
        if !old.is_multiple_of(SECTOR) || self.footer_at != old {
            return Err(Error::unsupported(FORMAT_NAME, "changing the size of a disk that the footer does not follow"));
        }
        let mut new = self.footer.clone();
        new.set_size(size);
        if size > old {
            self.grow(&new, size)?
        } else {
            self.shrink(&new, size)?
        }
        let footer = Footer::parse(&new.0, size, &self.limits)?;
        (self.info, self.footer) = (describe(&footer, size, None), new);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        sync(&*self.file)
    }
}
