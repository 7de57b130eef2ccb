//! Changing an image in place: flat extents, and hosted sparse extents that are not compressed.
//!
//! | module | content |
//! |---|---|
//! | `extent` | a sparse extent: its grains and grain tables |
//! | `content_id` | the content ID in the descriptor |
//! | `descriptor` | changes of the size and of the parent |
//! | `repair` | what follows from the redundant metadata |
//! | `text` | changes of the text of a descriptor |

mod content_id;
mod descriptor;
mod extent;
mod repair;
mod text;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use super::descriptor::{Access, Descriptor};
use super::hosted::{Hosted, REDUNDANT_USED};
use super::reader::{self, Content, DiskExtent, IMAGE, Reader};
use super::{FORMAT_NAME, SparseKind};
use crate::driver::{
    Allocation, Extent, ExtentKind, Location, OpenContext, SparseUpdate, UpdateContext, UpdateSpec, Zeroed,
};
use crate::error::{Error, Result};
use crate::info::{FileReference, ImageInfo};
use crate::io::{ReadAt, Storage};
use extent::SparseExtent;
pub(super) use repair::repair;

/// An image that changes.
pub(super) struct Update {
    info: ImageInfo,
    /// The image file and those of the extents, by [`FileId`](crate::driver::FileId).
    files: Vec<Arc<dyn Storage>>,
    extents: Vec<WritableExtent>,
    block_size: u64,
    /// Where the content ID is in the image file, until it is a new one.
    content_id: Option<Range<u64>>,
    /// The host range of the descriptor in the image file, with its padding.
    text: Option<Range<u64>>,
    /// Whether the image file is the extent as well.
    is_embedded: bool,
}

/// A contiguous range of the disk.
struct WritableExtent {
    guest: Range<u64>,
    storage: ExtentStorage,
}

enum ExtentStorage {
    Zero,
    Flat(Location),
    Sparse(Box<SparseExtent>),
}

impl Update {
    pub fn open(file: Arc<dyn Storage>, cx: &UpdateContext<'_>) -> Result<Update> {
        let files = RefCell::new(vec![file.clone()]);
        let open = |reference: &FileReference| {
            let file = (cx.storage)(reference)?;
            files.borrow_mut().push(file.clone());
            Ok(Some(file as Arc<dyn ReadAt>))
        };
        let open_cx = OpenContext { file: &open, ..cx.open };
        let source: Arc<dyn ReadAt> = file.clone();
        // Before any file is opened.
        let descriptor = descriptor(&source, &open_cx)?;
        if let Some(line) = descriptor.iter().flat_map(|it| &it.0.extents).find(|line| line.access != Access::Rw) {
            let feature = format!("writing to an extent with the access {}", line.access.keyword());
            return Err(Error::Unsupported { format: FORMAT_NAME, feature: feature.into(), at: Some(line.at) });
        }
        let Reader { info, extents, .. } = Reader::open(source, &open_cx)?;
        if info.warnings.iter().any(|warning| warning == REDUNDANT_USED) {
            return Err(Error::unsupported(FORMAT_NAME, "writing to an image whose grain directory is damaged"));
        }
        let files = files.borrow().clone();
        let extents =
            extents.into_iter().map(|extent| writable(extent, &files, &open_cx)).collect::<Result<Vec<_>>>()?;
        let grains = extents.iter().filter_map(|extent| match &extent.storage {
            ExtentStorage::Sparse(sparse) => Some(sparse.grains.grain_bytes),
            _ => None,
        });
        let block_size = grains.max().unwrap_or(1);
        if extents.iter().any(|extent| extent.is_sparse() && !extent.guest.start.is_multiple_of(block_size)) {
            return Err(Error::unsupported(
                FORMAT_NAME,
                "writing to extents that do not begin with a grain of the disk",
            ));
        }
        let text = descriptor.as_ref().map(|(_, text, at)| *at..at + text.len() as u64);
        let content_id = descriptor.and_then(|(_, text, at)| content_id::find(&text, at));
        let is_embedded = files.len() == 1 && extents.iter().any(WritableExtent::is_sparse);
        Ok(Update { info, files, extents, block_size, content_id, text, is_embedded })
    }

    /// Finds the content ID in a new text of the descriptor.
    fn find_content_id(&mut self, text: &[u8]) {
        if let (Some(_), Some(at)) = (&self.content_id, &self.text) {
            self.content_id = content_id::find(text, at.start);
        }
    }

    /// The index of the extent with a guest offset. The rest of the last grain is in the last one.
    fn index(&self, offset: u64) -> Result<usize> {
        let index = self.extents.partition_point(|extent| extent.guest.end <= offset);
        match self.extents.last() {
            _ if index < self.extents.len() => Ok(index),
            Some(last) if last.is_sparse() => Ok(index - 1),
            _ => Err(Error::unsupported(
                FORMAT_NAME,
                "changing the size of a disk with an extent of another kind at its end",
            )),
        }
    }

    fn extent(&mut self, offset: u64) -> Result<&mut WritableExtent> {
        let index = self.index(offset)?;
        self.extents.get_mut(index).ok_or_else(|| Error::Usage("no extent".into()))
    }

    /// Prepares for a change.
    fn begin(&mut self) -> Result<()> {
        let (Some(at), Some(file)) = (self.content_id.take(), self.files.first()) else { return Ok(()) };
        content_id::change(&**file, &at, &mut self.info).inspect_err(|_| self.content_id = Some(at))
    }
}

impl WritableExtent {
    fn is_sparse(&self) -> bool {
        matches!(self.storage, ExtentStorage::Sparse(_))
    }
}

/// The descriptor of an image, its text and its host offset, if it has one.
fn descriptor(file: &Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Option<(Descriptor, Vec<u8>, u64)>> {
    let (text, at) = match reader::sparse_kind(&**file)? {
        Some(SparseKind::Hosted) => {
            let hosted = Hosted::read(file.clone(), IMAGE, cx)?;
            if hosted.header.is_compressed() {
                return Err(Error::unsupported(FORMAT_NAME, "writing in place to a streamOptimized image"));
            }
            match hosted.descriptor(cx)? {
                Some(found) => found,
                None => return Ok(None),
            }
        }
        Some(_) => return Err(Error::unsupported(FORMAT_NAME, "writing in place to an ESXi extent")),
        None => (reader::read_descriptor_text(&**file, cx)?, 0),
    };
    Ok(Some((Descriptor::parse(&text, at, cx.limits)?, text, at)))
}

fn writable(extent: DiskExtent, files: &[Arc<dyn Storage>], cx: &OpenContext<'_>) -> Result<WritableExtent> {
    let DiskExtent { guest_range: guest, storage } = extent;
    let storage = match storage {
        Content::Zero => ExtentStorage::Zero,
        Content::Flat { start } => ExtentStorage::Flat(start),
        Content::Sparse(grains) => {
            let Some(file) = files.get(grains.id.0 as usize) else {
                return Err(Error::Usage("the file of an extent was not opened".into()));
            };
            ExtentStorage::Sparse(Box::new(SparseExtent::open(file.clone(), *grains, cx)?))
        }
        Content::Unopened => return Err(Error::Usage("the file of an extent was not opened".into())),
    };
    Ok(WritableExtent { guest, storage })
}

impl SparseUpdate for Update {
    fn info(&self) -> ImageInfo {
        self.info.clone()
    }

    fn spec(&self) -> UpdateSpec {
        UpdateSpec::new(self.block_size)
    }

    fn files(&self) -> Vec<Arc<dyn Storage>> {
        self.files.clone()
    }

    fn extent_at(&mut self, range: Range<u64>) -> Result<Extent> {
        let extent = self.extent(range.start)?;
        let (base, end) = (extent.guest.start, range.end.min(extent.guest.end));
        match &mut extent.storage {
            ExtentStorage::Zero => Ok(Extent::new(range.start..end, ExtentKind::Zero { allocated: None })),
            ExtentStorage::Flat(at) => {
                Ok(Extent::new(range.start..end, ExtentKind::Data(at.advance(range.start - base))))
            }
            ExtentStorage::Sparse(sparse) => {
                let found = sparse.extent_at(range.start - base..end - base)?;
                Ok(Extent { offset: range.start, ..found })
            }
        }
    }

    fn allocate(&mut self, guest: Range<u64>) -> Result<Allocation> {
        self.begin()?;
        let extent = self.extent(guest.start)?;
        let (base, end) = (extent.guest.start, guest.end.min(extent.guest.end));
        match &mut extent.storage {
            ExtentStorage::Zero => Err(Error::unsupported(FORMAT_NAME, "writing to an extent of the type ZERO")),
            ExtentStorage::Flat(at) => {
                let at = at.advance(guest.start - base);
                Ok(Allocation { guest: guest.start..end, at, is_new: false, reads_as_zeros: false })
            }
            ExtentStorage::Sparse(sparse) => {
                // The rest of the last grain is after the end.
                let end = if guest.start < extent.guest.end { end } else { guest.end };
                let allocation = sparse.allocate(guest.start - base..end - base)?;
                let Range { start, end } = allocation.guest;
                Ok(Allocation { guest: base + start..base + end, ..allocation })
            }
        }
    }

    fn publish(&mut self, allocation: &Allocation) -> Result<()> {
        let extent = self.extent(allocation.guest.start)?;
        let offset = allocation.guest.start - extent.guest.start;
        match &mut extent.storage {
            ExtentStorage::Sparse(sparse) => sparse.publish(offset, allocation.at.offset),
            _ => Ok(()),
        }
    }

    fn release(&mut self, allocation: &Allocation) {
        if let Ok(WritableExtent { storage: ExtentStorage::Sparse(sparse), .. }) = self.extent(allocation.guest.start) {
            sparse.release(allocation.at.offset);
        }
    }

    fn zero(&mut self, guest: Range<u64>, _keep: bool) -> Result<Zeroed> {
        let has_parent = self.info.backing.is_some();
        let extent = self.extent(guest.start)?;
        let (base, end) = (extent.guest.start, guest.end.min(extent.guest.end));
        let zeroed = match &mut extent.storage {
            ExtentStorage::Zero => return Ok(Zeroed::ByMetadata(end - guest.start)),
            ExtentStorage::Flat(_) => return Ok(Zeroed::Not(end - guest.start)),
            ExtentStorage::Sparse(sparse) => sparse.zero(guest.start - base..end - base, has_parent)?,
        };
        if has_parent {
            self.begin()?;
        }
        Ok(zeroed)
    }

    /// A grain keeps its host offset.
    fn discard(&mut self, guest: Range<u64>) -> Result<Zeroed> {
        self.begin()?;
        let found = self.extent_at(guest.clone())?;
        let len = found.len.min(guest.end - guest.start);
        Ok(if matches!(found.kind, ExtentKind::Data(_)) { Zeroed::Not(len) } else { Zeroed::ByMetadata(len) })
    }

    fn resize(&mut self, size: u64, below: u64) -> Result<()> {
        self.set_size(size, below)
    }

    fn set_backing(&mut self, reference: Option<&FileReference>) -> Result<()> {
        self.replace_parent(reference)
    }

    fn flush(&mut self) -> Result<()> {
        for extent in &mut self.extents {
            if let ExtentStorage::Sparse(sparse) = &mut extent.storage {
                sparse.flush()?;
            }
        }
        // Flat extents, and the descriptor.
        self.files.iter().try_for_each(|file| file.sync()).map_err(Error::io("syncing", None))
    }

    fn close(&mut self) -> Result<()> {
        self.flush()?;
        for extent in &mut self.extents {
            if let ExtentStorage::Sparse(sparse) = &mut extent.storage {
                sparse.close()?;
            }
        }
        Ok(())
    }
}
