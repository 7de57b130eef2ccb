//! Opens images and maps guest ranges to the host ranges of their extents.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::descriptor::{Descriptor, ExtentLine, ExtentType, hidden_parent};
use super::grains::GrainMap;
use super::header::{Flags, Header};
use super::hosted::Hosted;
use super::{FIELDS, FORMAT_NAME, SECTOR, SparseKind, cowd, esxi};
use crate::driver::OpenContext;
use crate::driver::SparseRead;
use crate::driver::{Extent, ExtentKind, FileId, Location};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::format::shared::table_cache::TableCache;
use crate::info::{FileReference, ImageInfo, Value};
use crate::io::ReadAt;
use crate::limits::{Budget, LimitName};
use crate::name::Name;

/// The image file.
pub(super) const IMAGE: FileId = FileId(0);
/// Warning for an extent that is opened by itself.
const NO_DESCRIPTOR: &str =
    "no descriptor: the file is a single extent, possibly a part of a disk or a snapshot of a parent";

/// An opened image.
pub(super) struct Reader {
    pub info: ImageInfo,
    pub extents: Vec<DiskExtent>,
    table_cache: TableCache,
}

/// An extent as in the document: a contiguous range of the disk.
pub(super) struct DiskExtent {
    pub guest_range: Range<u64>,
    pub storage: Content,
}

/// The storage of an extent.
pub(super) enum Content {
    /// Not stored: reads as zeros.
    Zero,
    Flat {
        /// Where the extent starts.
        start: Location,
    },
    Sparse(Box<GrainMap>),
    /// The file was not opened, since only the image's properties are needed.
    Unopened,
}

impl Reader {
    pub fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        cx.refuse_snapshots(FORMAT_NAME)?;
        match sparse_kind(&*file)? {
            Some(SparseKind::Hosted) => Self::open_hosted(file, cx),
            Some(SparseKind::Cowd) => {
                let header = esxi::read_cowd(&*file, cx)?;
                if !header.flags.contains(cowd::Flags::ROOT) {
                    return Err(esxi::needs_descriptor("a COWD extent"));
                }
                let grains = esxi::open_cowd(file.clone(), IMAGE, &header, header.capacity_bytes(), cx, &mut Err)?;
                let mut info = describe_without_descriptor(header.capacity_bytes());
                (info.block_size, info.dirty) = (Some(header.grain_bytes() as u32), header.unclean);
                info.ambiguities.extend(hidden_parent(&*file, &[], None)?);
                Ok(Reader::from_grains(grains, info, cx.budget))
            }
            Some(SparseKind::SeSparse) => Err(esxi::needs_descriptor("a space-efficient sparse extent")),
            None => Self::open_descriptor(file, cx),
        }
    }

    /// Opens a hosted sparse extent, with its embedded descriptor if it has one.
    fn open_hosted(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        let hosted = Hosted::read(file.clone(), IMAGE, cx)?;
        let embedded = hosted.descriptor(cx)?;
        let parse = |(text, at): &(Vec<u8>, u64)| Descriptor::parse(text, *at, cx.limits);
        let descriptor = embedded.as_ref().map(parse).transpose()?;
        let mut info = describe_hosted(&hosted.header, descriptor.as_ref(), cx)?;
        let at_start = embedded.as_ref().filter(|(_, at)| *at == SECTOR).map_or(&[][..], |(text, _)| text);
        let hint = descriptor.as_ref().and_then(|descriptor| descriptor.parent_hint.as_ref());
        info.ambiguities.extend(hidden_parent(&*file, at_start, hint)?);
        let grains = hosted.into_grains(info.virtual_size, cx, &mut info.warnings)?;
        Ok(Reader::from_grains(grains, info, cx.budget))
    }

    /// Adds the name of the file to an error, unless it is the image file.
    fn in_file(&self, error: Error, id: FileId) -> Error {
        match self.info.files.get((id.0 as usize).wrapping_sub(1)) {
            Some(file) => in_extent(error, &file.name),
            None => error,
        }
    }

    /// Returns the reader of an image with one sparse extent.
    fn from_grains(grains: GrainMap, info: ImageInfo, budget: &Budget) -> Reader {
        let extents =
            vec![DiskExtent { guest_range: 0..info.virtual_size, storage: Content::Sparse(Box::new(grains)) }];
        Reader { info, extents, table_cache: TableCache::new(budget) }
    }

    /// Opens a descriptor file and its extents.
    fn open_descriptor(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        let descriptor = read_descriptor(&*file, cx)?;
        let mut info = describe(&descriptor, descriptor.sectors() * SECTOR);
        let mut files = ExtentFiles { opened: Vec::new(), sparse: HashSet::new(), info: &mut info, cx };
        let mut extents = Vec::new();
        let mut start = 0;
        for line in &descriptor.extents {
            let len = line.sectors * SECTOR;
            extents.push(DiskExtent { guest_range: start..start + len, storage: files.open_extent(line, len)? });
            start += len;
        }
        let listed = descriptor.extents.iter().zip(&extents).map(|(line, extent)| {
            let grain_bytes = match &extent.storage {
                Content::Sparse(grains) => Some(grains.grain_bytes),
                _ => None,
            };
            let full_name = |name: &Name| match cx.path {
                Some(path) => FileReference::new("extent", name.clone(), None).full_name(path),
                None => name.clone(),
            };
            describe_extent(line, line.file.as_ref().map(full_name), grain_bytes, false)
        });
        info.specific.push(("extents", Value::List(listed.collect())));
        extents.retain(|extent| !extent.guest_range.is_empty());
        Ok(Reader { info, extents, table_cache: TableCache::new(cx.budget) })
    }
}

/// Detects the type of a sparse extent; `None` for other files.
pub(super) fn sparse_kind(file: &dyn ReadAt) -> Result<Option<SparseKind>> {
    let mut start = [0; 8];
    let len = (start.len() as u64).min(table::length(file)?) as usize;
    table::read(file, start.get_mut(..len).unwrap_or_default(), 0)?;
    Ok(SparseKind::from_magic(&start))
}

/// Reads a descriptor file.
pub(super) fn read_descriptor(file: &dyn ReadAt, cx: &OpenContext<'_>) -> Result<Descriptor> {
    Descriptor::parse(&read_descriptor_text(file, cx)?, 0, cx.limits)
}

/// Reads the text of a descriptor file.
pub(super) fn read_descriptor_text(file: &dyn ReadAt, cx: &OpenContext<'_>) -> Result<Vec<u8>> {
    let len = table::length(file)?;
    FIELDS.at("descriptor", 0).within_limit(LimitName::TextLength, len, cx.limits.text_length)?;
    table::read_table(file, 0, len, FIELDS.at("descriptor", 0), cx.budget)
}

/// The files of the extents in a descriptor, opened on demand.
struct ExtentFiles<'a, 'b> {
    /// Index 0 is [`FileId`] 1.
    opened: Vec<(Name, Option<Arc<dyn ReadAt>>)>,
    /// Files that are already in use as sparse extents.
    sparse: HashSet<FileId>,
    info: &'a mut ImageInfo,
    cx: &'a OpenContext<'b>,
}

impl ExtentFiles<'_, '_> {
    /// Opens the file `name` once; `None` if only the image's properties are needed.
    fn file(&mut self, name: &Name) -> Result<(Option<Arc<dyn ReadAt>>, FileId)> {
        let known = self.opened.iter().position(|(opened, _)| opened == name);
        let index = match known {
            Some(index) => index,
            None => {
                let reference = FileReference::new("extent", name.clone(), None).in_any_case();
                self.opened.push((name.clone(), (self.cx.file)(&reference)?));
                self.info.files.push(reference);
                self.opened.len() - 1
            }
        };
        let file = self.opened.get(index).and_then(|(_, file)| file.clone());
        Ok((file, FileId(index as u32 + 1)))
    }

    /// Opens an extent of `len` bytes.
    fn open_extent(&mut self, line: &ExtentLine, len: u64) -> Result<Content> {
        let Some(name) = &line.file else { return Ok(Content::Zero) };
        let (Some(file), id) = self.file(name)? else { return Ok(Content::Unopened) };
        self.open(file, id, line, len).map_err(|error| in_extent(error, name))
    }

    fn open(&mut self, file: Arc<dyn ReadAt>, id: FileId, line: &ExtentLine, len: u64) -> Result<Content> {
        let is_sparse = !matches!(line.kind, ExtentType::Zero | ExtentType::Flat | ExtentType::Vmfs);
        if is_sparse && !self.sparse.insert(id) {
            // Its metadata would be read once for each extent.
            return Err(FIELDS.at("file range", line.at).fault(Problem::Overlap { offset: 0, with: "another extent" }));
        }
        let grains = match line.kind {
            ExtentType::Zero => return Ok(Content::Zero),
            ExtentType::Flat | ExtentType::Vmfs => {
                let host_offset = line.offset * SECTOR;
                FIELDS.at("file range", line.at).within(host_offset, len, table::length(&*file)?)?;
                return Ok(Content::Flat { start: Location { file: id, offset: host_offset } });
            }
            ExtentType::Sparse => {
                let hosted = Hosted::read(file, id, self.cx)?;
                check_capacity(hosted.header.capacity, line)?;
                self.info.dirty |= hosted.header.unclean;
                self.info.block_size = Some(hosted.header.grain_bytes() as u32);
                hosted.into_grains(len, self.cx, &mut self.info.warnings)?
            }
            ExtentType::VmfsSparse => {
                let header = esxi::read_cowd(&*file, self.cx)?;
                check_capacity(header.capacity, line)?;
                self.info.dirty |= header.unclean;
                self.info.block_size = Some(header.grain_bytes() as u32);
                esxi::open_cowd(file, id, &header, len, self.cx, &mut Err)?
            }
            ExtentType::SeSparse => {
                let check = |capacity| check_capacity(capacity, line);
                let grains = esxi::open_sesparse(file, id, len, check, self.cx, &mut Err)?;
                self.info.block_size = Some(grains.grain_bytes as u32);
                grains
            }
        };
        Ok(Content::Sparse(Box::new(grains)))
    }
}

/// Adds the name of an extent's file to an error, if the error has a field or an action.
pub(super) fn in_extent(error: Error, name: &Name) -> Error {
    match error {
        Error::Corrupt(mut fault) => {
            fault.field = format!("extent {name}: {}", fault.field).into();
            Error::Corrupt(fault)
        }
        Error::Io { action, offset, cause } => {
            Error::Io { action: format!("extent {name}: {action}").into(), offset, cause }
        }
        other => other,
    }
}

/// Checks the capacity of an extent in sectors against the size in the descriptor.
pub(super) fn check_capacity(capacity: u64, line: &ExtentLine) -> Result<()> {
    if capacity >= line.sectors {
        return Ok(());
    }
    Err(FIELDS.at("extent size", line.at).fault(Problem::Range { value: line.sectors, min: 0, max: capacity }))
}

/// Returns the properties of an image in one hosted sparse extent.
pub(super) fn describe_hosted(
    header: &Header,
    descriptor: Option<&Descriptor>,
    cx: &OpenContext<'_>,
) -> Result<ImageInfo> {
    let capacity = header.capacity_bytes();
    let mut info = match descriptor {
        Some(descriptor) => {
            let [line] = descriptor.extents.as_slice() else {
                let feature = format!("{} extents in an embedded descriptor", descriptor.extents.len());
                return Err(Error::Unsupported { format: FORMAT_NAME, feature: feature.into(), at: None });
            };
            if line.kind != ExtentType::Sparse {
                let rule = "must be SPARSE in an embedded descriptor";
                return Err(FIELDS.at("extent type", line.at).fault(Problem::Rule { value: line.kind as u64, rule }));
            }
            check_capacity(header.capacity, line)?;
            let mut info = describe(descriptor, exact_len(header.capacity, header.grain_size, line));
            // The file name in an embedded descriptor is ignored, since files are renamed.
            let name = cx.path.map(Name::from).or_else(|| line.file.clone());
            let is_compressed = header.flags.contains(Flags::COMPRESSED);
            let extent = describe_extent(line, name, Some(header.grain_bytes()), is_compressed);
            info.specific.push(("extents", Value::List(vec![extent])));
            info
        }
        None => describe_without_descriptor(capacity),
    };
    info.block_size = Some(header.grain_bytes() as u32);
    info.dirty = header.unclean;
    Ok(info)
}

/// Returns the size of an extent in bytes. If the capacity is the size in the descriptor rounded up to a grain, as
/// VirtualBox writes it, this is the size in the descriptor.
pub(super) fn exact_len(capacity: u64, grain_size: u64, line: &ExtentLine) -> u64 {
    let exact = line.sectors.next_multiple_of(grain_size) >= capacity;
    (if exact { line.sectors } else { capacity }) * SECTOR
}

/// Returns the properties of an extent without a descriptor.
fn describe_without_descriptor(virtual_size: u64) -> ImageInfo {
    let warnings = vec![NO_DESCRIPTOR.into()];
    ImageInfo { format: FORMAT_NAME, virtual_size, warnings, ..ImageInfo::default() }
}

/// Returns the properties in a descriptor, except its extents, with qemu-img's key names.
fn describe(descriptor: &Descriptor, virtual_size: u64) -> ImageInfo {
    let mut specific = vec![
        ("cid", u64::from(descriptor.cid).into()),
        ("parent-cid", u64::from(descriptor.parent_cid.unwrap_or(u32::MAX)).into()),
        ("create-type", descriptor.create_type.into()),
    ];
    for (key, name) in [("adapter-type", "adapterType"), ("hardware-version", "virtualHWVersion")] {
        specific.extend(descriptor.database_value(name).map(|value| (key, value.into())));
    }
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

/// Returns the properties of an extent, with qemu-img's key names.
fn describe_extent(line: &ExtentLine, file: Option<Name>, grain_bytes: Option<u64>, is_compressed: bool) -> Value {
    let mut extent = vec![("virtual-size", (line.sectors * SECTOR).into())];
    extent.extend(file.map(|name| ("filename", Value::Text(name))));
    extent.extend(grain_bytes.map(|len| ("cluster-size", len.into())));
    extent.extend(is_compressed.then_some(("compressed", true.into())));
    extent.push(("format", line.kind.keyword().into()));
    extent.push(("access", line.access.keyword().into()));
    Value::Map(extent)
}

/// Returns the reference to the parent, if there is one.
pub(super) fn parent(descriptor: &Descriptor) -> Option<FileReference> {
    if descriptor.parent_cid.is_none() && descriptor.parent_hint.is_none() {
        // VirtualBox stores only a UUID; the name is in its registry.
        let uuid = descriptor.database_value("uuid.parent").and_then(uuid_identity)?;
        let mut reference = FileReference::new("parent", uuid.clone(), Some(Name::from(FORMAT_NAME)));
        (reference.identities, reference.beside) = (vec![uuid], Some("vmdk"));
        return Some(reference);
    }
    let hint = descriptor.parent_hint.clone().unwrap_or_default();
    let mut reference = FileReference::new("parent", hint, Some(Name::from(FORMAT_NAME))).in_any_case();
    // After a chain is moved, the hint is the old path, possibly of another operating system.
    let last = reference.name.as_bytes().rsplit(|byte| matches!(byte, b'/' | b'\\')).next().unwrap_or_default();
    if !last.is_empty() && last.len() < reference.name.as_bytes().len() {
        reference.alternatives.push(Name::from(last));
    }
    reference.identities = descriptor.parent_cid.map(content_id).into_iter().collect();
    Some(reference)
}

/// Returns the identity by a UUID in the disk data base, as VirtualBox writes it, unless it is the nil UUID.
fn uuid_identity(text: &str) -> Option<Name> {
    let is_nil = !text.bytes().any(|byte| byte.is_ascii_hexdigit() && byte != b'0');
    (!is_nil).then(|| Name::from(format!("UUID {}", text.trim().to_ascii_lowercase())))
}

/// What a content ID follows in an identity.
const CONTENT_ID: &str = "CID ";

/// Returns the identity by a content ID.
pub(super) fn content_id(cid: u32) -> Name {
    Name::from(format!("{CONTENT_ID}{cid:08x}"))
}

/// The content ID in an identity, in hexadecimal digits.
pub(super) fn content_id_of(identity: &Name) -> Option<&str> {
    std::str::from_utf8(identity.as_bytes()).ok()?.strip_prefix(CONTENT_ID)
}

impl SparseRead for Reader {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        let (offset, end) = (range.start, range.end);
        let index = self.extents.partition_point(|extent| extent.guest_range.end <= offset);
        let Some(DiskExtent { guest_range, storage }) = self.extents.get(index) else {
            return Err(Error::Usage(format!("guest offset {offset:#x} is beyond the end of the disk")));
        };
        let end = end.min(guest_range.end);
        let (kind, len) = match storage {
            Content::Zero => (ExtentKind::Zero { allocated: None }, guest_range.end - offset),
            Content::Flat { start } => (ExtentKind::Data(start.advance(offset - guest_range.start)), end - offset),
            Content::Sparse(grains) => {
                let extent = grains.extent(&self.table_cache, offset - guest_range.start, end - guest_range.start);
                extent.map_err(|error| self.in_file(error, grains.id))?
            }
            Content::Unopened => return Err(Error::Usage("the file of the extent was not opened".into())),
        };
        let kind = match kind {
            ExtentKind::Compressed(mut payload) => {
                payload.unit += guest_range.start;
                ExtentKind::Compressed(payload)
            }
            kind => kind,
        };
        Ok(Extent { offset, len, kind })
    }

    fn reads_payload(&self) -> bool {
        self.extents.iter().any(|extent| matches!(&extent.storage, Content::Sparse(grains) if grains.is_marked()))
    }

    fn host_alignment(&self) -> Option<u64> {
        Some(SECTOR)
    }

    fn metadata(&self, claim: &mut dyn FnMut(FileId, Range<u64>) -> bool) -> Result<()> {
        self.extents.iter().try_for_each(|extent| match &extent.storage {
            Content::Sparse(grains) => grains.metadata(claim).map_err(|error| self.in_file(error, grains.id)),
            _ => Ok(()),
        })
    }
}

#[cfg(test)]
pub(super) mod tests;
