//! What a change of the size or of the parent writes to the descriptor.

use std::ops::Range;

use super::text::{DescriptorText, write_in_one_sector};
use super::{ExtentStorage, Update, WritableExtent};
use crate::driver::{Location, SparseUpdate};
use crate::error::{Error, Result};
use crate::format::shared::{table, whole_sectors};
use crate::format::vmdk::descriptor::Descriptor;
use crate::format::vmdk::reader::{content_id_of, parent};
use crate::format::vmdk::{FORMAT_NAME, SECTOR};
use crate::info::{FileReference, Value};
use crate::io::write_zeros;
use crate::limits::Limits;

/// Largest extent of a split disk in bytes.
const MAX_SPLIT: u64 = 2 << 30;

impl Update {
    /// Makes the last extent larger, and writes the size of the disk to the descriptor after that. If it becomes smaller, the descriptor is first.
    pub(super) fn set_size(&mut self, size: u64, below: u64) -> Result<()> {
        let size = whole_sectors(FORMAT_NAME, size)?;
        let old = self.info.virtual_size;
        if size == old {
            return Ok(());
        }
        let start = self.extents.last().map_or(0, |extent| extent.guest.start);
        if size <= start {
            return Err(Error::unsupported(FORMAT_NAME, "making a disk smaller by whole extents"));
        }
        if size > old && below > old {
            return Err(Error::unsupported(FORMAT_NAME, "making a disk larger in place that has a larger parent"));
        }
        self.begin()?;
        self.flush()?;
        let bytes = self.read_text()?;
        let mut text = DescriptorText::new(bytes.clone());
        let (count, sectors) = (self.extents.len(), (size - start) / SECTOR);
        if text.set_last_extent(sectors) != count {
            return Err(Error::unsupported(FORMAT_NAME, "changing the size of a disk with empty extents"));
        }
        if size > old {
            self.check_split(size - start)?;
        }
        let without_geometry = text.clone();
        text.set_geometry(old / SECTOR, size / SECTOR);

        let is_embedded = self.is_embedded;
        // What fits into the file of the descriptor is known before the extent changes.
        let write = match is_embedded {
            true => None,
            false => Some(
                write_in_one_sector(&bytes, &text)
                    .or_else(|| write_in_one_sector(&bytes, &without_geometry))
                    .ok_or_else(too_long)?,
            ),
        };
        let text = is_embedded.then(|| text.bytes());
        if size > old {
            self.grow_last_extent(size - start, text)?;
            self.write_text(write)?;
        } else {
            self.write_text(write)?;
            self.shrink_last_extent(size - start, text)?;
        }
        self.info.virtual_size = size;
        if let Some(extent) = self.extents.last_mut() {
            extent.guest.end = size;
        }
        self.describe_last_extent(size - start);
        Ok(())
    }

    /// Writes another name of the parent to the descriptor, or removes it.
    pub(super) fn replace_parent(&mut self, reference: Option<&FileReference>) -> Result<()> {
        self.flush()?;
        let bytes = self.read_text()?;
        let mut text = DescriptorText::new(bytes.clone());
        match reference {
            None => text.remove_parent()?,
            Some(reference) => {
                let id = reference.identities.iter().find_map(content_id_of);
                let is_known = id.is_some() || reference.identities.is_empty() && self.info.backing.is_some();
                if !is_known {
                    return Err(Error::unsupported(FORMAT_NAME, "a parent without a content ID"));
                }
                text.set_parent(&reference.name, id)?;
            }
        }
        let descriptor = Descriptor::parse(text.bytes(), 0, &Limits::default())?;
        match self.extents.as_mut_slice() {
            [extent] if self.is_embedded => match &mut extent.storage {
                ExtentStorage::Sparse(sparse) => sparse.replace_descriptor(text.bytes())?,
                _ => return Err(no_descriptor()),
            },
            _ => self.write_text(Some(write_in_one_sector(&bytes, &text).ok_or_else(too_long)?))?,
        }
        // The line may have moved.
        self.find_content_id(text.bytes());
        self.info.backing = parent(&descriptor);
        Ok(())
    }

    /// The text with its padding.
    fn read_text(&self) -> Result<Vec<u8>> {
        let (Some(Range { start, end }), Some(file)) = (self.text.clone(), self.files.first()) else {
            return Err(no_descriptor());
        };
        let mut bytes = vec![0; (end - start) as usize];
        table::read(&**file, &mut bytes, start)?;
        Ok(bytes)
    }

    fn write_text(&mut self, write: Option<(u64, Vec<u8>)>) -> Result<()> {
        let (Some((at, bytes)), Some(file)) = (write, self.files.first()) else { return Ok(()) };
        file.write_all_at(&bytes, at).map_err(Error::io("writing the descriptor", at))?;
        file.sync().map_err(Error::io("syncing the descriptor", None))?;
        let end = at + bytes.len() as u64;
        self.text = self.text.take().map(|text| text.start..text.end.max(end));
        Ok(())
    }

    fn check_split(&self, len: u64) -> Result<()> {
        let create_type = self.info.property("create-type");
        let is_split = matches!(create_type, Some(Value::Text(name)) if name.to_string().contains("GbMaxExtent"));
        match is_split && len > MAX_SPLIT {
            true => Err(Error::unsupported(FORMAT_NAME, "adding an extent to a split disk in place")),
            false => Ok(()),
        }
    }

    fn grow_last_extent(&mut self, len: u64, text: Option<&[u8]>) -> Result<()> {
        let Some((last, others)) = self.extents.split_last_mut() else { return Err(no_descriptor()) };
        match &mut last.storage {
            ExtentStorage::Sparse(sparse) => sparse.grow(len, text),
            ExtentStorage::Zero => Ok(()),
            ExtentStorage::Flat(at) => {
                let Some(file) = self.files.get(at.file.0 as usize).filter(|_| !shares_file(others, at)) else {
                    return Err(Error::unsupported(
                        FORMAT_NAME,
                        "changing the size of one of several extents in a file",
                    ));
                };
                let old_end = at.offset + (last.guest.end - last.guest.start);
                let (end, file_len) = (at.offset.saturating_add(len), table::length(&**file)?);
                // What follows the extent is not data of the disk.
                let zeroed = write_zeros(&**file, old_end..file_len.min(end).max(old_end));
                zeroed.map_err(Error::io("writing zeros", old_end))?;
                if end > file_len {
                    file.set_len(end).map_err(Error::io("setting the length", end))?;
                }
                file.sync().map_err(Error::io("syncing", None))
            }
        }
    }

    fn shrink_last_extent(&mut self, len: u64, text: Option<&[u8]>) -> Result<()> {
        let Some((last, others)) = self.extents.split_last_mut() else { return Err(no_descriptor()) };
        match &mut last.storage {
            ExtentStorage::Sparse(sparse) => sparse.shrink(len, text),
            ExtentStorage::Zero => Ok(()),
            ExtentStorage::Flat(at) => {
                let Some(file) = self.files.get(at.file.0 as usize) else { return Err(no_descriptor()) };
                let old_end = at.offset + (last.guest.end - last.guest.start);
                // What follows is of somebody else.
                if table::length(&**file)? != old_end || shares_file(others, at) {
                    return Ok(());
                }
                let end = at.offset + len;
                file.set_len(end).map_err(Error::io("setting the length", end))?;
                file.sync().map_err(Error::io("syncing", None))
            }
        }
    }

    fn describe_last_extent(&mut self, len: u64) {
        for (key, value) in &mut self.info.specific {
            if let ("extents", Value::List(extents)) = (*key, value)
                && let Some(Value::Map(properties)) = extents.last_mut()
            {
                properties
                    .iter_mut()
                    .filter(|(key, _)| *key == "virtual-size")
                    .for_each(|(_, size)| *size = len.into());
            }
        }
    }
}

/// Whether another extent is in the same file.
fn shares_file(others: &[WritableExtent], at: &Location) -> bool {
    others.iter().any(|other| matches!(&other.storage, ExtentStorage::Flat(other) if other.file == at.file))
}

fn no_descriptor() -> Error {
    Error::unsupported(FORMAT_NAME, "changing an extent without a descriptor")
}

fn too_long() -> Error {
    Error::unsupported(FORMAT_NAME, "changing several sectors of a descriptor in place")
}
