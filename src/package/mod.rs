//! Packages: archives, and descriptors of files beside them, that hold the images of disks.
//!
//! OVA and OVF (DMTF DSP0243), and archives with the image of one disk: Vagrant boxes, UEC tarballs, images of Google Compute
//! Engine, exports of XenServer. A package yields the file of a disk as a [`ReadAt`]; what that holds is decided by its content, as for any other file.

mod content;
#[cfg(feature = "write")]
pub(crate) mod google;
pub(crate) mod manifest;
#[cfg(feature = "write")]
pub(crate) mod ova;
mod ovf;
pub(crate) mod tar;
mod xva;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::driver::Probe;
use crate::error::{Error, Problem, ReferenceProblem, Result};
use crate::format::shared::signature::Signature;
use crate::format::shared::table::{self, Fields};
use crate::info::{CompressionLayer, FileReference};
use crate::io::{ReadAt, Window};
use crate::limits::{Budget, LimitName, Limits};
use crate::name::Name;
use manifest::{Algorithm, Hasher, Hex, Manifest};
use ovf::Envelope;

/// A package of disks.
///
/// ```no_run
/// use diskimage::OpenOptions;
///
/// if let Some(package) = OpenOptions::new().package("vm.ova")? {
///     for disk in &package.disks {
///         println!("{} of {} bytes", disk.name, disk.size.unwrap_or_default());
///     }
/// }
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Package {
    /// `ova`, `ovf`, `xva` or `tar`.
    pub kind: &'static str,
    /// The files, in their order. Those of an OVF descriptor are the ones that it names.
    pub members: Vec<PackageMember>,
    /// The disks, in the order in which the machine has them.
    pub disks: Vec<PackageDisk>,
    /// The layers of compression around an archive, the outermost first.
    pub compression: Vec<CompressionLayer>,
    /// Findings that do not prevent reading.
    pub warnings: Vec<Cow<'static, str>>,
}

/// A file of a [`Package`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PackageMember {
    /// Its name within the package.
    pub name: Name,
    /// Length in bytes, where it is known.
    pub size: Option<u64>,
    /// What it is: `descriptor`, `manifest`, `certificate`, `disk`, `kernel`, `ramdisk`, `link`, `directory` or `other`.
    pub role: &'static str,
}

/// A disk of a [`Package`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PackageDisk {
    /// The name of its file within the package; its identifier, if it is empty.
    pub name: Name,
    /// Its identifier in the descriptor.
    pub id: Option<Name>,
    /// Length of its file in bytes, where it is known.
    pub size: Option<u64>,
    /// The capacity that the descriptor states, in bytes.
    pub capacity: Option<u64>,
    /// Whether it has a file.
    pub has_file: bool,
}

/// Opens a file that a descriptor names, if the reference policy allows it.
pub(crate) type OpenFile<'a> = dyn Fn(&FileReference) -> Result<Arc<dyn ReadAt>> + 'a;

/// The file of a disk.
pub(crate) struct DiskFile {
    pub file: Arc<dyn ReadAt>,
    /// What has to be compared before the disk is believed.
    pub checks: Vec<DigestCheck>,
    /// The capacity that the descriptor states, in bytes.
    pub capacity: Option<u64>,
    pub warnings: Vec<Cow<'static, str>>,
}

/// A file, with the digest that the manifest has of it.
pub(crate) struct DigestCheck {
    name: Name,
    file: Arc<dyn ReadAt>,
    algorithm: Algorithm,
    expected: Vec<u8>,
}

/// A package, with what is needed to open its disks.
pub(crate) struct Contents {
    pub description: Package,
    /// Where the files are.
    storage: Storage,
    /// Index of the member of an archive by its name.
    index: HashMap<Name, usize>,
    /// Name, in the package, of the descriptor and its text.
    descriptor: Option<(Name, Vec<u8>)>,
    /// The files of the descriptor, and of each disk the index of its file and its parent.
    files: Vec<ovf::File>,
    disks: Vec<(Option<usize>, Option<Name>)>,
    /// The disks of an XVA.
    xva: Vec<xva::Disk>,
    /// Largest number of chunks of a file.
    limits: Limits,
}

enum Storage {
    Archive(Arc<dyn ReadAt>, Vec<tar::Member>),
    /// Files beside the descriptor.
    Files,
}

/// What a file is by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Archive,
    Descriptor,
}

impl Kind {
    /// Detects a package. The image of a disk whose guest data starts as an archive is none.
    pub fn of(probe: &Probe<'_>) -> Option<Kind> {
        if ovf::is_descriptor(probe.head) {
            return Some(Kind::Descriptor);
        }
        let is_image = Signature::matching(probe).any(Signature::is_image);
        let is_archive = Signature::matching(probe).any(|signature| signature.name == tar::FORMAT_NAME);
        (is_archive && !is_image).then_some(Kind::Archive)
    }
}

impl Contents {
    /// Lists an archive.
    ///
    /// # Errors
    /// Those of [`tar::members`] and of [`Envelope::parse`]; [`Error::Unsupported`] for an archive with several descriptors.
    pub fn of_archive(file: Arc<dyn ReadAt>, limits: &Limits, budget: &Budget) -> Result<Contents> {
        let members = tar::members(&*file, limits, budget)?;
        let descriptors: Vec<_> = members.iter().filter(|member| is_file_with(member, "ovf")).collect();
        if !descriptors.is_empty() {
            tar::check_names(&members)?;
        }
        let descriptor = match *descriptors.as_slice() {
            [] => None,
            [member] => {
                let text = read_text(&*window(&file, member), limits, "length of the descriptor")?;
                Some((member.name.clone(), text))
            }
            _ => return Err(Error::unsupported("ova", "an archive with several OVF descriptors")),
        };
        let mut contents = Contents {
            description: Package { kind: "tar", ..Package::default() },
            index: members.iter().enumerate().map(|(index, member)| (member.name.clone(), index)).collect(),
            storage: Storage::Archive(file, members),
            descriptor,
            files: Vec::new(),
            disks: Vec::new(),
            xva: Vec::new(),
            limits: limits.clone(),
        };
        match contents.descriptor.clone() {
            Some((name, text)) => contents.describe_envelope("ova", &name, &text)?,
            None => contents.describe_archive()?,
        }
        Ok(contents)
    }

    /// Lists what the descriptor in the file `name` names.
    ///
    /// # Errors
    /// Those of [`Envelope::parse`].
    pub fn of_descriptor(file: &dyn ReadAt, name: Name, limits: &Limits) -> Result<Contents> {
        let text = read_text(file, limits, "length of the descriptor")?;
        let mut contents = Contents {
            description: Package::default(),
            storage: Storage::Files,
            index: HashMap::new(),
            descriptor: Some((name.clone(), text.clone())),
            files: Vec::new(),
            disks: Vec::new(),
            xva: Vec::new(),
            limits: limits.clone(),
        };
        contents.describe_envelope("ovf", &name, &text)?;
        Ok(contents)
    }

    fn describe_envelope(&mut self, kind: &'static str, name: &Name, text: &[u8]) -> Result<()> {
        let envelope = Envelope::parse(text, &self.limits)?;
        self.description.kind = kind;
        self.description.warnings.extend(envelope.warnings.into_iter().map(Cow::Owned));
        for disk in envelope.disks {
            let file = disk.file.and_then(|index| envelope.files.get(index));
            let in_package = file.map(|file| self.in_package(&file.href));
            let size = match (file, &in_package) {
                (Some(file), Some(name)) => file.size.or_else(|| self.member(name).map(|member| member.size)),
                _ => None,
            };
            self.description.disks.push(PackageDisk {
                name: in_package.unwrap_or_else(|| disk.id.clone()),
                id: Some(disk.id),
                size,
                capacity: disk.capacity,
                has_file: file.is_some(),
            });
            self.disks.push((disk.file, disk.parent));
        }
        let disks = self.description.disks.iter().filter(|disk| disk.has_file);
        let disks: HashSet<&[u8]> = disks.map(|disk| disk.name.as_bytes()).collect();
        let is_disk = |name: &Name| {
            let bytes = name.as_bytes();
            disks.contains(bytes) || without_chunk_suffix(bytes).is_some_and(|bytes| disks.contains(bytes))
        };
        let role = |own: &Name| match extension(own).as_slice() {
            _ if own == name => "descriptor",
            _ if is_disk(own) => "disk",
            b"mf" => "manifest",
            b"cert" => "certificate",
            _ => "other",
        };
        let members = match &self.storage {
            Storage::Archive(_, members) => members
                .iter()
                .map(|member| PackageMember {
                    name: member.name.clone(),
                    size: Some(member.size),
                    role: content::kind_of_member(member.kind).unwrap_or_else(|| role(&member.name)),
                })
                .collect(),
            Storage::Files => {
                let own = PackageMember { name: name.clone(), size: Some(text.len() as u64), role: "descriptor" };
                let named = envelope.files.iter().map(|file| PackageMember {
                    name: file.href.clone(),
                    size: file.size,
                    role: role(&file.href),
                });
                std::iter::once(own).chain(named).collect()
            }
        };
        self.description.members = members;
        self.files = envelope.files;
        Ok(())
    }

    /// Describes an archive without a descriptor, by what its files are.
    fn describe_archive(&mut self) -> Result<()> {
        let Storage::Archive(file, members) = &self.storage else { return Ok(()) };
        if let Some(first) = members.first().filter(|first| first.name.as_bytes() == xva::DESCRIPTOR) {
            let text = read_text(&*window(file, first), &self.limits, "length of ova.xml")?;
            self.xva = xva::disks(members, &text, &self.limits)?;
        }
        if self.xva.is_empty() {
            tar::check_names(members)?;
        }
        if !self.xva.is_empty() {
            self.description.kind = xva::FORMAT_NAME;
            let (name, size) = (Name::from(xva::DESCRIPTOR), members.first().map(|first| first.size));
            self.description.members.push(PackageMember { name, size, role: "descriptor" });
            for disk in &self.xva {
                let (name, size) = (disk.name.clone(), Some(disk.stored()));
                self.description.members.push(PackageMember { name: name.clone(), size, role: content::DISK });
                let capacity = Some(disk.size);
                self.description.disks.push(PackageDisk { name, id: None, size, capacity, has_file: true });
                self.disks.push((None, None));
            }
            for disk in self.xva.iter().filter(|disk| disk.unchecked_count() > 0) {
                let warning = format!("{} blocks of {} have no checksum", disk.unchecked_count(), disk.name);
                self.description.warnings.push(warning.into());
            }
            return Ok(());
        }
        let roles = content::roles(file, members)?;
        for (member, role) in members.iter().zip(roles) {
            self.description.members.push(PackageMember { name: member.name.clone(), size: Some(member.size), role });
            if role == content::DISK {
                let (name, size) = (member.name.clone(), Some(member.size));
                self.description.disks.push(PackageDisk { name, id: None, size, capacity: None, has_file: true });
                self.disks.push((None, None));
            }
        }
        Ok(())
    }

    /// The index of the disk that is called `wanted`: the name of its file, its identifier, or its number from 1 on. Without a name,
    /// that of the only one with a file.
    ///
    /// # Errors
    /// [`Error::SeveralDisks`]; [`Error::Usage`] if there is no such disk, and [`Error::Unreadable`] if there is none at all.
    pub fn select(&self, wanted: Option<&str>) -> Result<usize> {
        let disks = || self.description.disks.iter().enumerate();
        let is = |disk: &PackageDisk, wanted: &str| {
            let is = |name: &Name| name.as_bytes() == wanted.as_bytes();
            is(&disk.name) || disk.id.as_ref().is_some_and(is)
        };
        let names = || self.description.disks.iter().map(|disk| disk.name.clone()).collect();
        match wanted {
            Some(wanted) => {
                let by_name = disks().find(|(_, disk)| is(disk, wanted)).map(|(index, _)| index);
                let number = wanted.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
                by_name
                    .or(number.filter(|index| *index < self.description.disks.len()))
                    .ok_or_else(|| Error::NoSuchDisk { wanted: Name::from(wanted), disks: names() })
            }
            None => {
                match disks().filter(|(_, disk)| disk.has_file).map(|(index, _)| index).collect::<Vec<_>>().as_slice() {
                    [only] => Ok(*only),
                    [] => Err(Error::Unreadable {
                        format: self.description.kind,
                        reason: "package in which no disk image was found; unpack it first",
                    }),
                    _ => Err(Error::SeveralDisks { disks: names() }),
                }
            }
        }
    }

    /// Opens the file of a disk.
    ///
    /// # Errors
    /// [`Error::Reference`] for a file that is not in the package, or that `open` refuses; [`Error::Digest`] if the descriptor is not
    /// that of the manifest; [`Error::Unsupported`] for a disk without a file, or whose file has changes to another disk.
    pub fn open_disk(&self, index: usize, open: &OpenFile<'_>) -> Result<DiskFile> {
        let Some((disk, (file, parent))) = self.description.disks.get(index).zip(self.disks.get(index)) else {
            return Err(Error::Usage("the package has no such disk".into()));
        };
        let kind = self.description.kind;
        if parent.is_some() {
            return Err(Error::unsupported(kind, "a disk that is stored as changes to its parent"));
        }
        if !disk.has_file {
            return Err(Error::unsupported(kind, format!("disk {}: it is empty, without a file", disk.name)));
        }
        let capacity = disk.capacity;
        let Some(file) = file.and_then(|index| self.files.get(index)) else {
            // Without a descriptor, the disk is a member.
            let file = match (&self.storage, self.xva.get(index)) {
                (Storage::Archive(file, _), Some(disk)) => {
                    Arc::new(xva::CheckedDisk::new(disk, file.clone())) as Arc<dyn ReadAt>
                }
                _ => self.open_file(&disk.name, open)?,
            };
            return Ok(DiskFile { file, checks: Vec::new(), capacity, warnings: Vec::new() });
        };
        let parts = self.open_parts(file, open)?;
        let mut warnings = Vec::new();
        let checks = match self.manifest(open)? {
            Some(manifest) => self.checks(&manifest, &parts, &mut warnings)?,
            None => {
                warnings.push(Cow::Borrowed("the package has no manifest: the file of the disk is not verified"));
                Vec::new()
            }
        };
        let mut files = Vec::new();
        for (_, part) in parts {
            let len = table::length(&*part)?;
            files.push((part, len));
        }
        let stored = files.iter().map(|(_, len)| len).sum::<u64>();
        if let Some(stated) = file.size.filter(|stated| *stated != stored) {
            warnings.push(format!("{} has {stored} bytes, but the descriptor states {stated}", file.href).into());
        }
        let file = match files.as_slice() {
            [(file, _)] => file.clone(),
            _ => Arc::new(Window::joined(files)) as Arc<dyn ReadAt>,
        };
        Ok(DiskFile { file, checks, capacity, warnings })
    }

    /// Opens the file, or the chunks that it was split into (DSP0243, section 7.1).
    fn open_parts(&self, file: &ovf::File, open: &OpenFile<'_>) -> Result<Vec<(Name, Arc<dyn ReadAt>)>> {
        let Some(chunk_size) = file.chunk_size.filter(|chunk| file.size.is_none_or(|size| size > *chunk)) else {
            return Ok(vec![(file.href.clone(), self.open_file(&file.href, open)?)]);
        };
        let Some(size) = file.size else {
            return Err(Error::unsupported(ovf::FORMAT_NAME, "a file in chunks without its size"));
        };
        let count = size.div_ceil(chunk_size);
        Fields(ovf::FORMAT_NAME).at("number of chunks", 0).within_limit(
            LimitName::Extents,
            count,
            self.limits.extents,
        )?;
        let mut parts = Vec::new();
        for index in 0..count {
            let name = Name::from([file.href.as_bytes(), format!(".{index:09}").as_bytes()].concat().as_slice());
            let part = self.open_file(&name, open)?;
            let (len, expected) = (table::length(&*part)?, chunk_size.min(size - index * chunk_size));
            if len != expected {
                let finding = "a chunk has another length than the descriptor states";
                return Err(Fields(ovf::FORMAT_NAME)
                    .at("chunkSize", 0)
                    .fault(Problem::Conflict { value: len, finding }));
            }
            parts.push((name, part));
        }
        Ok(parts)
    }

    /// Opens the file that the descriptor, or the caller, calls `name`.
    fn open_file(&self, name: &Name, open: &OpenFile<'_>) -> Result<Arc<dyn ReadAt>> {
        let decoded = decoded(name);
        match &self.storage {
            Storage::Files => {
                let mut reference = FileReference::new(ROLE, name.clone(), None);
                reference.alternatives.extend(decoded);
                open(&reference)
            }
            Storage::Archive(file, _) => {
                let full = self.in_package(name);
                let found = self.member(&full).or_else(|| self.member(&self.in_package(&decoded?)));
                match found {
                    Some(member) if member.kind == tar::Kind::File => Ok(window(file, member)),
                    found => {
                        let problem = match found {
                            Some(_) => ReferenceProblem::NotRegular,
                            None => ReferenceProblem::NotInPackage,
                        };
                        let format = self.description.kind;
                        Err(Error::Reference { format, role: ROLE, name: name.clone(), problem })
                    }
                }
            }
        }
    }

    /// The file called `name` in the directory of a disk in an archive: it may be an extent of the disk.
    pub fn sibling(&self, index: usize, name: &Name) -> Option<Arc<dyn ReadAt>> {
        let Storage::Archive(file, _) = &self.storage else { return None };
        let disk = &self.description.disks.get(index)?.name;
        let name = Name::from([directory_of(disk), name.as_bytes()].concat().as_slice());
        let member = self.member(&name).filter(|member| member.kind == tar::Kind::File && name != *disk)?;
        Some(window(file, member))
    }

    /// The name in the archive of a file that the descriptor names, relative to its directory.
    fn in_package(&self, href: &Name) -> Name {
        let Some((Storage::Archive(..), (descriptor, _))) = Some(&self.storage).zip(self.descriptor.as_ref()) else {
            return href.clone();
        };
        let href = href.as_bytes().strip_prefix(b"./").unwrap_or(href.as_bytes());
        Name::from([directory_of(descriptor), href].concat().as_slice())
    }

    fn member(&self, name: &Name) -> Option<&tar::Member> {
        match &self.storage {
            Storage::Archive(_, members) => members.get(*self.index.get(name)?),
            Storage::Files => None,
        }
    }

    /// The manifest: the file of the descriptor's name with the extension `mf`, or the only one in the archive.
    fn manifest(&self, open: &OpenFile<'_>) -> Result<Option<Manifest>> {
        let Some((descriptor, _)) = &self.descriptor else { return Ok(None) };
        let stem = descriptor.as_bytes().get(..descriptor.as_bytes().len().saturating_sub(4)).unwrap_or_default();
        let name = Name::from([stem, b".mf"].concat().as_slice());
        let file = match &self.storage {
            Storage::Archive(file, members) => {
                let mut others = members.iter().filter(|member| is_file_with(member, "mf"));
                let only = others.next().filter(|_| others.next().is_none());
                let own = self.member(&name).filter(|member| member.kind == tar::Kind::File);
                own.or(only).map(|member| window(file, member))
            }
            Storage::Files => match open(&FileReference::new("manifest", name, None)) {
                Ok(file) => Some(file),
                Err(error) if is_not_found(&error) => None,
                Err(error) => return Err(error),
            },
        };
        let Some(file) = file else { return Ok(None) };
        read_text(&*file, &self.limits, "length of the manifest").map(|text| Some(Manifest::parse(&text)))
    }

    /// Compares the descriptor with the manifest, and returns what is left to compare.
    fn checks(
        &self,
        manifest: &Manifest,
        parts: &[(Name, Arc<dyn ReadAt>)],
        warnings: &mut Vec<Cow<'static, str>>,
    ) -> Result<Vec<DigestCheck>> {
        if manifest.ignored > 0 {
            warnings.push(format!("{} lines of the manifest are not understood", manifest.ignored).into());
        }
        let mut checks = Vec::new();
        let mut add = |name: &Name, file: &Arc<dyn ReadAt>, checks: &mut Vec<DigestCheck>| {
            let names = [Some(name.clone()), decoded(name)];
            let entries: Vec<_> = names.iter().flatten().flat_map(|name| manifest.of(name.as_bytes())).collect();
            if entries.is_empty() {
                warnings.push(format!("the manifest has no digest of {name}").into());
            }
            checks.extend(entries.into_iter().map(|entry| DigestCheck {
                name: name.clone(),
                file: file.clone(),
                algorithm: entry.algorithm,
                expected: entry.digest.clone(),
            }));
        };
        if let Some((name, text)) = &self.descriptor {
            let base = name.as_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            let mut own = Vec::new();
            add(&Name::from(base), &(Arc::new(text.clone()) as Arc<dyn ReadAt>), &mut own);
            own.iter().try_for_each(|check| check.verify(&|| false))?;
        }
        for (name, file) in parts {
            add(name, file, &mut checks);
        }
        if let Storage::Archive(..) = &self.storage {
            let missing = |name: &&Name| self.member(&self.in_package(name)).is_none();
            for name in manifest.entries.iter().map(|entry| &entry.name).filter(missing).take(100) {
                warnings.push(format!("the manifest lists {name}, which is not in the package").into());
            }
        }
        Ok(checks)
    }
}

/// What messages call a file that a descriptor names.
const ROLE: &str = "file of the package";

impl DigestCheck {
    /// Reads the file, and compares its digest.
    ///
    /// # Errors
    /// [`Error::Digest`] for another one; [`Error::Cancelled`] if `cancelled` returns true.
    pub fn verify(&self, cancelled: &dyn Fn() -> bool) -> Result<()> {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update_file(&*self.file, cancelled)?.ok_or(Error::Cancelled)?;
        let found = hasher.finish();
        if found == self.expected {
            return Ok(());
        }
        let (expected, found) = (Hex(&self.expected).to_string(), Hex(&found).to_string());
        Err(Error::Digest { name: self.name.clone(), algorithm: self.algorithm.name(), expected, found })
    }
}

/// The directory in the name of a member, with its slash; empty without one.
fn directory_of(name: &Name) -> &[u8] {
    let bytes = name.as_bytes();
    let len = bytes.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    bytes.get(..len).unwrap_or_default()
}

fn window(file: &Arc<dyn ReadAt>, member: &tar::Member) -> Arc<dyn ReadAt> {
    Arc::new(Window::new(file.clone(), member.pieces.clone(), member.size))
}

/// Whether it is a file with this extension. Archives of macOS have the attributes of `name` in `._name`.
fn is_file_with(member: &tar::Member, wanted: &str) -> bool {
    member.kind == tar::Kind::File && !is_apple_double(&member.name) && extension(&member.name) == wanted.as_bytes()
}

fn is_apple_double(name: &Name) -> bool {
    name.as_bytes().rsplit(|byte| *byte == b'/').next().is_some_and(|base| base.starts_with(b"._"))
}

/// The extension in lower case.
fn extension(name: &Name) -> Vec<u8> {
    let base = name.as_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let dot = base.iter().rposition(|byte| *byte == b'.');
    dot.and_then(|dot| base.get(dot + 1..)).unwrap_or_default().to_ascii_lowercase()
}

/// The name of the file of which a file of this name is a chunk.
fn without_chunk_suffix(name: &[u8]) -> Option<&[u8]> {
    let (rest, digits) = name.split_last_chunk::<9>()?;
    rest.strip_suffix(b".").filter(|_| digits.iter().all(u8::is_ascii_digit))
}

/// The name with `%20` and the like decoded; `None` if there is nothing to decode.
fn decoded(name: &Name) -> Option<Name> {
    let mut bytes = Vec::new();
    let mut rest = name.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.first_chunk::<2>().filter(|_| *first == b'%').and_then(|hex| {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            u8::try_from(digit(hex[0])? << 4 | digit(hex[1])?).ok()
        });
        bytes.push(hex.unwrap_or(*first));
        rest = if hex.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    (bytes != name.as_bytes()).then(|| Name::from(&*bytes))
}

fn is_not_found(error: &Error) -> bool {
    matches!(error.root(), Error::Io { cause, .. } if cause.kind() == std::io::ErrorKind::NotFound)
}

/// Reads a whole text.
fn read_text(file: &dyn ReadAt, limits: &Limits, what: &'static str) -> Result<Vec<u8>> {
    let field = Fields(ovf::FORMAT_NAME).at(what, 0);
    let len = table::length(file)?;
    field.within_limit(LimitName::TextLength, len, limits.text_length)?;
    table::read_table(file, 0, len, field, &Budget::new(len))
}
