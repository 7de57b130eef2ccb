//! What a server exports: an image to be read, or a disk that clients write.

use std::ops::Range;
#[cfg(feature = "disk")]
use std::sync::Arc;

#[cfg(feature = "disk")]
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::image::Image;

#[derive(Debug)]
pub enum Export {
    Image(Image),
    #[cfg(feature = "disk")]
    Disk(Arc<Disk>),
}

impl Export {
    /// Calls `look` with the image, for its size and its map as they are now.
    pub fn with_image<T>(&self, look: impl FnOnce(&Image) -> T) -> T {
        match self {
            Export::Image(image) => look(image),
            #[cfg(feature = "disk")]
            Export::Disk(disk) => look(&disk.image()),
        }
    }

    pub fn size(&self) -> u64 {
        self.with_image(Image::virtual_size)
    }

    pub fn is_writable(&self) -> bool {
        !matches!(self, Export::Image(_))
    }

    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Export::Image(image) => image.read_exact_at(buf, offset),
            #[cfg(feature = "disk")]
            Export::Disk(disk) => disk.read_exact_at(buf, offset),
        }
    }

    pub fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        match self {
            Export::Image(_) => Err(read_only(buf.len() as u64, offset)),
            #[cfg(feature = "disk")]
            Export::Disk(disk) => disk.write_all_at(buf, offset),
        }
    }

    pub fn write_zeros(&self, range: Range<u64>) -> Result<()> {
        match self {
            Export::Image(_) => Err(read_only(range.end - range.start, range.start)),
            #[cfg(feature = "disk")]
            Export::Disk(disk) => disk.write_zeros(range),
        }
    }

    pub fn discard(&self, range: Range<u64>) -> Result<()> {
        match self {
            Export::Image(_) => Err(read_only(range.end - range.start, range.start)),
            #[cfg(feature = "disk")]
            Export::Disk(disk) => disk.discard(range),
        }
    }

    /// Makes everything durable that was written by any client.
    pub fn flush(&self) -> Result<()> {
        match self {
            Export::Image(_) => Ok(()),
            #[cfg(feature = "disk")]
            Export::Disk(disk) => disk.flush(),
        }
    }
}

fn read_only(len: u64, offset: u64) -> Error {
    Error::Usage(format!("cannot change {len} bytes at {offset:#x} of a read-only export"))
}
