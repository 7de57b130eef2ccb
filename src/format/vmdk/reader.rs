//! Where the bytes of a guest range live: which extent they are in, and where in that.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::descriptor::{Descriptor, ExtentLine, ExtentType};
use super::grains::Grains;
use super::header::{Flags, Header};
use super::hosted::Hosted;
use super::{FIELDS, FORMAT_NAME, SECTOR, cowd, esxi};
use crate::driver::OpenContext;
use crate::driver::SparseRead;
use crate::driver::{Extent, ExtentKind, FileId};
use crate::error::{Error, Problem, Result};
use crate::format::shared::file_extents::FileExtents;
use crate::format::shared::table;
use crate::format::shared::table_cache::TableCache;
use crate::info::{FileReference, ImageInfo, Value};
use crate::io::ReadAt;
use crate::name::Name;

/// The image file itself.
const IMAGE: FileId = FileId(0);
/// The largest text that is read as a descriptor: four times what the largest number of extents needs.
pub(super) const MAX_DESCRIPTOR: u64 = 4 << 20;
const NO_DESCRIPTOR: &str =
    "it has no descriptor: it is one extent, and may be a part of a disk, or lie over another one";

/// An opened image.
pub(super) struct Reader {
    info: ImageInfo,
    parts: Vec<Part>,
    slices: TableCache,
}

/// An extent, in the words of the document: a contiguous part of the disk.
struct Part {
    /// Guest bytes.
    range: Range<u64>,
    content: Content,
}

enum Content {
    Zero,
    /// In a file, from this byte on.
    Flat {
        runs: FileExtents,
        offset: u64,
    },
    Sparse(Grains),
    /// In a file that is not opened, because only what the image says of itself is wanted.
    Unopened,
}

impl Reader {
    pub fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        cx.refuse_snapshots(FORMAT_NAME)?;
        match kind(&*file)? {
            Some(super::Kind::Hosted) => Self::open_hosted(file, cx),
            Some(super::Kind::Cowd) => {
                let header = esxi::read_cowd(&*file, cx)?;
                if !header.flags.contains(cowd::Flags::ROOT) {
                    return Err(esxi::needs_descriptor("a COWD extent"));
                }
                let grains = esxi::cowd_grains(file, IMAGE, &header, header.capacity_bytes(), cx, &mut Err)?;
                let mut info = describe_lone(header.capacity_bytes());
                (info.block_size, info.dirty) = (Some(header.grain_bytes() as u32), header.unclean);
                Ok(Reader::of_one(grains, info))
            }
            Some(super::Kind::SeSparse) => Err(esxi::needs_descriptor("a space-efficient sparse extent")),
            None => Self::open_descriptor(file, cx),
        }
    }

    /// A hosted sparse extent, which has its descriptor inside, if it has one.
    fn open_hosted(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        let hosted = Hosted::read(file, IMAGE, cx)?;
        let descriptor =
            hosted.descriptor(cx)?.map(|(text, at)| Descriptor::parse(&text, at, cx.limits)).transpose()?;
        let mut info = describe_hosted(&hosted.header, descriptor.as_ref())?;
        let (grains, warning) = hosted.grains(info.virtual_size, cx)?;
        info.warnings.extend(warning.map(Into::into));
        Ok(Reader::of_one(grains, info))
    }

    /// Says in which file a fault is, if that is not the image itself.
    fn name_file(&self, error: Error, id: FileId) -> Error {
        match self.info.files.get((id.0 as usize).wrapping_sub(1)) {
            Some(file) => name_extent(error, &file.name),
            None => error,
        }
    }

    fn of_one(grains: Grains, info: ImageInfo) -> Reader {
        let parts = vec![Part { range: 0..info.virtual_size, content: Content::Sparse(grains) }];
        Reader { info, parts, slices: TableCache::default() }
    }

    /// A descriptor in a file of its own.
    fn open_descriptor(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        let descriptor = read_descriptor(&*file, cx)?;
        let mut info = describe(&descriptor, descriptor.sectors() * SECTOR, None);
        let mut files = Files { opened: Vec::new(), sparse: HashSet::new(), info: &mut info, cx };
        let mut parts = Vec::new();
        let mut start = 0;
        for line in &descriptor.extents {
            let len = line.sectors * SECTOR;
            parts.push(Part { range: start..start + len, content: files.content(line, len)? });
            start += len;
        }
        parts.retain(|part| !part.range.is_empty());
        Ok(Reader { info, parts, slices: TableCache::default() })
    }
}

/// Which of the binary files it is, if it is one.
pub(super) fn kind(file: &dyn ReadAt) -> Result<Option<super::Kind>> {
    let mut start = [0; 8];
    let len = (start.len() as u64).min(table::length(file)?) as usize;
    table::read(file, start.get_mut(..len).unwrap_or_default(), 0)?;
    Ok(super::Kind::of(&start))
}

/// Reads a descriptor that is a file of its own.
pub(super) fn read_descriptor(file: &dyn ReadAt, cx: &OpenContext<'_>) -> Result<Descriptor> {
    let len = table::length(file)?;
    FIELDS.at("descriptor", 0).at_most(len, MAX_DESCRIPTOR)?;
    let text = table::read_table(file, 0, len, FIELDS.at("descriptor", 0), cx.budget)?;
    Descriptor::parse(&text, 0, cx.limits)
}

/// The files of a descriptor's extents, opened as they come up.
struct Files<'a, 'b> {
    /// By [`FileId`], from 1 on.
    opened: Vec<(Name, Option<Arc<dyn ReadAt>>)>,
    /// Those that are sparse extents.
    sparse: HashSet<FileId>,
    info: &'a mut ImageInfo,
    cx: &'a OpenContext<'b>,
}

impl Files<'_, '_> {
    /// The file of this name, unless only what the image says of itself is wanted.
    fn file(&mut self, name: &Name) -> Result<(Option<Arc<dyn ReadAt>>, FileId)> {
        let known = self.opened.iter().position(|(opened, _)| opened == name);
        let index = match known {
            Some(index) => index,
            None => {
                let reference = FileReference::new("extent", name.clone(), None);
                self.opened.push((name.clone(), (self.cx.file)(&reference)?));
                self.info.files.push(reference);
                self.opened.len() - 1
            }
        };
        let file = self.opened.get(index).and_then(|(_, file)| file.clone());
        Ok((file, FileId(index as u32 + 1)))
    }

    /// The content of an extent of `len` bytes.
    fn content(&mut self, line: &ExtentLine, len: u64) -> Result<Content> {
        let Some(name) = &line.file else { return Ok(Content::Zero) };
        let (Some(file), id) = self.file(name)? else { return Ok(Content::Unopened) };
        self.open(file, id, line, len).map_err(|error| name_extent(error, name))
    }

    fn open(&mut self, file: Arc<dyn ReadAt>, id: FileId, line: &ExtentLine, len: u64) -> Result<Content> {
        let is_sparse = !matches!(line.kind, ExtentType::Zero | ExtentType::Flat | ExtentType::Vmfs);
        if is_sparse && !self.sparse.insert(id) {
            // Its metadata would be read again and again.
            return Err(FIELDS.at("place", line.at).fault(Problem::Overlap { offset: 0, with: "another extent" }));
        }
        let grains = match line.kind {
            ExtentType::Zero => return Ok(Content::Zero),
            ExtentType::Flat | ExtentType::Vmfs => {
                let offset = line.offset * SECTOR;
                FIELDS.at("place", line.at).within(offset, len, table::length(&*file)?)?;
                return Ok(Content::Flat { runs: FileExtents::new(file, id), offset });
            }
            ExtentType::Sparse => {
                let hosted = Hosted::read(file, id, self.cx)?;
                check_capacity(hosted.header.capacity, line)?;
                self.info.dirty |= hosted.header.unclean;
                self.info.block_size = Some(hosted.header.grain_bytes() as u32);
                let (grains, warning) = hosted.grains(len, self.cx)?;
                self.info.warnings.extend(warning.map(Into::into));
                grains
            }
            ExtentType::VmfsSparse => {
                let header = esxi::read_cowd(&*file, self.cx)?;
                check_capacity(header.capacity, line)?;
                self.info.dirty |= header.unclean;
                self.info.block_size = Some(header.grain_bytes() as u32);
                esxi::cowd_grains(file, id, &header, len, self.cx, &mut Err)?
            }
            ExtentType::SeSparse => {
                let check = |capacity| check_capacity(capacity, line);
                let grains = esxi::open_sesparse(file, id, len, check, self.cx, &mut Err)?;
                self.info.block_size = Some(grains.grain as u32);
                grains
            }
        };
        Ok(Content::Sparse(grains))
    }
}

/// Says in which of the files of an image a fault is, as far as there is a place for it.
pub(super) fn name_extent(error: Error, name: &Name) -> Error {
    match error {
        Error::Corrupt(mut fault) => {
            fault.field = format!("{} of the extent {name}", fault.field).into();
            Error::Corrupt(fault)
        }
        Error::Io { action, offset, cause } => {
            Error::Io { action: format!("{action} of the extent {name}").into(), offset, cause }
        }
        other => other,
    }
}

/// Checks that an extent has the sectors that the descriptor counts on.
pub(super) fn check_capacity(capacity: u64, line: &ExtentLine) -> Result<()> {
    if capacity >= line.sectors {
        return Ok(());
    }
    Err(FIELDS.at("extent size", line.at).fault(Problem::Range { value: line.sectors, min: 0, max: capacity }))
}

/// What an image in one hosted sparse extent says of itself.
pub(super) fn describe_hosted(header: &Header, descriptor: Option<&Descriptor>) -> Result<ImageInfo> {
    let capacity = header.capacity_bytes();
    let mut info = match descriptor {
        Some(descriptor) => {
            // The name that the extent has there is ignored: files are renamed.
            let [line] = descriptor.extents.as_slice() else {
                let feature = format!("{} extents in an embedded descriptor", descriptor.extents.len());
                return Err(Error::Unsupported { format: FORMAT_NAME, feature: feature.into(), at: None });
            };
            if line.kind != ExtentType::Sparse {
                let rule = "an embedded descriptor describes the sparse extent around it";
                return Err(FIELDS.at("extent", line.at).fault(Problem::Rule { value: line.kind as u64, rule }));
            }
            check_capacity(header.capacity, line)?;
            describe(descriptor, exact_len(header.capacity, header.grain_size, line), Some(header))
        }
        None => describe_lone(capacity),
    };
    info.block_size = Some(header.grain_bytes() as u32);
    info.dirty = header.unclean;
    Ok(info)
}

/// The bytes that grain tables are for. VirtualBox rounds the capacity up to a grain, and has the size of the disk in the
/// descriptor.
pub(super) fn exact_len(capacity: u64, grain_size: u64, line: &ExtentLine) -> u64 {
    let exact = line.sectors.next_multiple_of(grain_size) >= capacity;
    (if exact { line.sectors } else { capacity }) * SECTOR
}

/// What there is to say of an extent without a descriptor.
fn describe_lone(virtual_size: u64) -> ImageInfo {
    let warnings = vec![NO_DESCRIPTOR.into()];
    ImageInfo { format: FORMAT_NAME, virtual_size, warnings, ..ImageInfo::default() }
}

/// What a descriptor says, and the header of the extent that it stands in, by the names that qemu-img uses.
fn describe(descriptor: &Descriptor, virtual_size: u64, header: Option<&Header>) -> ImageInfo {
    let mut specific = vec![
        ("cid", u64::from(descriptor.cid).into()),
        ("parent-cid", u64::from(descriptor.parent_cid.unwrap_or(u32::MAX)).into()),
        ("create-type", descriptor.create_type.into()),
    ];
    for (key, name) in [("adapter-type", "adapterType"), ("hardware-version", "virtualHWVersion")] {
        specific.extend(descriptor.database_value(name).map(|value| (key, value.into())));
    }
    let extents = descriptor.extents.iter().map(|line| {
        let mut extent = vec![("virtual-size", (line.sectors * SECTOR).into())];
        extent.extend(line.file.clone().map(|name| ("filename", Value::Text(name))));
        if let Some(header) = header {
            extent.push(("cluster-size", header.grain_bytes().into()));
            extent.extend(header.flags.contains(Flags::COMPRESSED).then_some(("compressed", true.into())));
        }
        extent.push(("format", line.kind.keyword().into()));
        extent.push(("access", line.access.keyword().into()));
        Value::Map(extent)
    });
    specific.push(("extents", Value::List(extents.collect())));
    let uuid = descriptor.database_value("uuid.image").and_then(uuid_identity);
    ImageInfo {
        format: FORMAT_NAME,
        virtual_size,
        backing: parent(descriptor),
        identities: [content_id(descriptor.cid)].into_iter().chain(uuid).collect(),
        specific,
        ..ImageInfo::default()
    }
}

/// The image that this one lies over.
fn parent(descriptor: &Descriptor) -> Option<FileReference> {
    if descriptor.parent_cid.is_none() && descriptor.parent_hint.is_none() {
        // VirtualBox states only a UUID, and has the name in its registry.
        let uuid = descriptor.database_value("uuid.parent").and_then(uuid_identity)?;
        let mut reference = FileReference::new("parent", uuid.clone(), Some(Name::from(FORMAT_NAME)));
        (reference.identities, reference.beside) = (vec![uuid], Some("vmdk"));
        return Some(reference);
    }
    let hint = descriptor.parent_hint.clone().unwrap_or_default();
    let mut reference = FileReference::new("parent", hint, Some(Name::from(FORMAT_NAME)));
    // A chain that was moved has the old path, which may be one of another system.
    let last = reference.name.as_bytes().rsplit(|byte| matches!(byte, b'/' | b'\\')).next().unwrap_or_default();
    if !last.is_empty() && last.len() < reference.name.as_bytes().len() {
        reference.alternatives.push(Name::from(last));
    }
    reference.identities = descriptor.parent_cid.map(content_id).into_iter().collect();
    Some(reference)
}

/// The identity by a UUID in the data base of VirtualBox, if it is not the one of nothing.
fn uuid_identity(text: &str) -> Option<Name> {
    let is_something = text.bytes().any(|byte| byte.is_ascii_hexdigit() && byte != b'0');
    is_something.then(|| Name::from(format!("UUID {}", text.trim().to_ascii_lowercase())))
}

fn content_id(cid: u32) -> Name {
    Name::from(format!("CID {cid:08x}"))
}

impl SparseRead for Reader {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        let (offset, end) = (range.start, range.end);
        let index = self.parts.partition_point(|part| part.range.end <= offset);
        let Some(Part { range, content }) = self.parts.get(index) else {
            return Err(Error::Usage(format!("guest offset {offset:#x} is beyond the disk")));
        };
        let end = end.min(range.end);
        let (kind, len) = match content {
            Content::Zero => (ExtentKind::Zero { allocated: None }, range.end - offset),
            Content::Flat { runs, offset: start } => {
                let from = start + (offset - range.start);
                runs.extent(from, start + (end - range.start))?
            }
            Content::Sparse(grains) => {
                let extent = grains.extent(&self.slices, offset - range.start, end - range.start);
                extent.map_err(|error| self.name_file(error, grains.id))?
            }
            Content::Unopened => return Err(Error::Usage("the extent's file was not opened".into())),
        };
        let kind = match kind {
            ExtentKind::Compressed(mut payload) => {
                payload.unit += range.start;
                ExtentKind::Compressed(payload)
            }
            kind => kind,
        };
        Ok(Extent { offset, len, kind })
    }

    fn host_alignment(&self) -> Option<u64> {
        Some(SECTOR)
    }

    fn metadata(&self, claim: &mut dyn FnMut(FileId, Range<u64>) -> bool) -> Result<()> {
        self.parts.iter().try_for_each(|part| match &part.content {
            Content::Sparse(grains) => grains.metadata(claim).map_err(|error| self.name_file(error, grains.id)),
            _ => Ok(()),
        })
    }
}

#[cfg(test)]
pub(super) mod tests;
