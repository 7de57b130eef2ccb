//! Changing the backing file of an overlay.

use std::ops::Range;
use std::sync::PoisonError;

use super::write::{Payload, pieces};
use super::{Disk, Top};
use crate::codec::Encoder;
use crate::driver::ExtentKind;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::image::Image;
use crate::info::FileReference;
use crate::name::Name;
use crate::zero::is_zero;

/// Most guest bytes that are compared at a time.
const CHUNK: u64 = 2 << 20;
/// The role of a backing file in messages.
const ROLE: &str = "backing file";

/// The new backing file of an overlay.
#[derive(Clone, Copy, Debug)]
pub struct RebaseTo<'a> {
    /// The image that is going to be the backing file.
    pub image: &'a Image,
    /// Its name, as it is written into the overlay.
    pub name: &'a Name,
}

impl Disk {
    /// Changes the backing file, or removes it, and keeps the content of the disk: what differs between the backing files is written to the overlay
    /// before. `progress` is called with the number of guest bytes done and their total.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) if the format has no backing files; errors of the storage and of the images.
    pub fn rebase(&self, to: Option<RebaseTo<'_>>, progress: &dyn Fn(u64, u64)) -> Result<()> {
        self.rebase_by(to, None, progress)
    }

    /// As [`rebase`](Self::rebase); whole blocks are compressed, unless that does not make them smaller.
    ///
    /// # Errors
    /// As [`rebase`](Self::rebase); [`Error::Unsupported`](crate::Error::Unsupported) if the image cannot have compressed blocks.
    pub fn rebase_compressed(&self, to: Option<RebaseTo<'_>>, progress: &dyn Fn(u64, u64)) -> Result<()> {
        let encoding = self.driver().encoding();
        let unsupported = || self.locate(Error::unsupported(self.format.name(), "compressed blocks"));
        let mut encoder = Encoder::new(&encoding.ok_or_else(unsupported)?).map_err(Error::missing_codec)?;
        self.rebase_by(to, Some(&mut encoder), progress)
    }

    fn rebase_by(
        &self,
        to: Option<RebaseTo<'_>>,
        mut encoder: Option<&mut Encoder>,
        progress: &dyn Fn(u64, u64),
    ) -> Result<()> {
        // Nobody else has a request under way.
        let image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        let size = image.virtual_size();
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for chunk in pieces(0..size, CHUNK.next_multiple_of(self.spec.block_size)) {
            progress(chunk.start, size);
            for Missing { guest, is_zero } in missing(&image, chunk)? {
                if is_zero && is_known_zero(to.map(|to| to.image), guest.clone())? {
                    continue;
                }
                for part in pieces(guest, CHUNK) {
                    let len = (part.end - part.start) as usize;
                    old.resize(len, 0);
                    new.resize(len, 0);
                    image.read_exact_at(&mut old, part.start)?;
                    read_backing(to.map(|to| to.image), &mut new, part.start)?;
                    self.keep_differences(&image, &old, &new, part, encoder.as_deref_mut())?;
                }
            }
        }
        progress(size, size);
        drop(image);
        self.flush()?;
        let reference = to.map(|to| {
            let format = Name::from(to.image.format().name());
            let identities = to.image.info().identities.clone();
            FileReference { identities, ..FileReference::new(ROLE, to.name.clone(), Some(format)) }
        });
        self.set_reference(reference.as_ref())
    }

    /// Writes the name and format of the backing file into the overlay, whatever they are, or removes them. The disk has the content of the new
    /// backing file wherever the overlay has none, when it is opened again.
    ///
    /// # Errors
    /// As [`rebase`](Self::rebase).
    pub fn set_backing(&self, name: Option<&Name>, format: Option<Format>) -> Result<()> {
        let format = format.map(|format| Name::from(format.name()));
        self.set_reference(name.map(|name| FileReference::new(ROLE, name.clone(), format)).as_ref())
    }

    fn set_reference(&self, reference: Option<&FileReference>) -> Result<()> {
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        let set = self.driver().set_backing(reference);
        image.replace_top(Top::boxed(&self.driver));
        set.map_err(|e| self.locate(e))
    }

    /// Writes the blocks that differ to the overlay.
    fn keep_differences(
        &self,
        image: &Image,
        old: &[u8],
        new: &[u8],
        range: Range<u64>,
        mut encoder: Option<&mut Encoder>,
    ) -> Result<()> {
        let slice = |bytes: &'_ [u8], part: &Range<u64>| -> Vec<u8> {
            bytes
                .get((part.start - range.start) as usize..(part.end - range.start) as usize)
                .unwrap_or_default()
                .to_vec()
        };
        for block in pieces(range.clone(), self.spec.block_size) {
            let (old, new) = (slice(old, &block), slice(new, &block));
            if old == new {
                continue;
            }
            if is_zero(&old) {
                self.store_zeros(image, block)?;
                continue;
            }
            let is_whole = block.start.is_multiple_of(self.spec.block_size)
                && (old.len() as u64 == self.spec.block_size || block.end == image.virtual_size());
            match encoder.as_deref_mut().filter(|_| is_whole) {
                Some(encoder) => self.write_compressed(image, block, old, encoder)?,
                None => self.write_piece(image, block, Payload::Bytes(&old))?,
            }
        }
        Ok(())
    }

    /// Writes a whole block compressed, unless that does not make it smaller.
    fn write_compressed(
        &self,
        image: &Image,
        block: Range<u64>,
        mut bytes: Vec<u8>,
        encoder: &mut Encoder,
    ) -> Result<()> {
        let (len, block_size) = (bytes.len(), self.spec.block_size as usize);
        // Zeros follow the end of the disk.
        bytes.resize(block_size, 0);
        let Some(payload) = encoder.encode(&bytes, block_size) else {
            return self.write_piece(image, block, Payload::Bytes(bytes.get(..len).unwrap_or_default()));
        };
        let stored = payload.len() as u32;
        let mut driver = self.driver();
        let allocation = driver.record(block.clone()).and_then(|()| driver.allocate_compressed(block, stored));
        drop(driver);
        let allocation = allocation.map_err(|e| self.locate(e))?;
        let write = || {
            let offset = allocation.at.offset;
            let written = self.file(allocation.at)?.write_all_at(payload, offset);
            written.map_err(Error::io("writing", offset))?;
            self.driver().publish_compressed(&allocation, stored)
        };
        write().map_err(|e| self.locate(e)).inspect_err(|_| self.driver().release_compressed(&allocation, stored))
    }
}

/// A guest range that an overlay does not have.
struct Missing {
    guest: Range<u64>,
    /// Whether it is known to read as zeros.
    is_zero: bool,
}

/// What the top image does not have of a guest range, in whole granules, however the layers below divide it.
fn missing(image: &Image, guest: Range<u64>) -> Result<Vec<Missing>> {
    let mut all: Vec<Missing> = Vec::new();
    for span in image.spans(guest).without_holes() {
        let span = span?;
        if span.layer == 0 && span.kind != ExtentKind::Hole {
            continue;
        }
        match all.last_mut().filter(|last| last.guest.end == span.offset) {
            Some(last) => {
                last.guest.end = span.end();
                last.is_zero &= span.is_zero();
            }
            None => all.push(Missing { guest: span.offset..span.end(), is_zero: span.is_zero() }),
        }
    }
    Ok(all)
}

/// Whether a range of a backing file is known to be zeros without reading it.
fn is_known_zero(backing: Option<&Image>, range: Range<u64>) -> Result<bool> {
    let Some(backing) = backing else { return Ok(true) };
    for span in backing.spans(range) {
        if !span?.is_zero() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads a backing file, which may be shorter than its overlay.
fn read_backing(backing: Option<&Image>, buf: &mut [u8], offset: u64) -> Result<()> {
    buf.fill(0);
    let Some(backing) = backing else { return Ok(()) };
    let len = backing.virtual_size().saturating_sub(offset).min(buf.len() as u64) as usize;
    if len == 0 {
        return Ok(());
    }
    backing.read_exact_at(buf.get_mut(..len).unwrap_or_default(), offset)
}
