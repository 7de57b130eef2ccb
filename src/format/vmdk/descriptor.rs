//! The descriptor: the text that says what a disk consists of, in a file of its own or within a sparse extent.
//!
//! VMware, "Virtual Disk Format 5.0", "The Descriptor File": a header of `key=value` lines, one line for each extent, and the
//! disk data base of `ddb.` lines. "The descriptor file is not case sensitive." What the document leaves open is read as the
//! programs of VMware, VirtualBox and qemu write it:
//!
//! - Lines end in LF, CR LF or CR, and the text ends at the first NUL, with which it is padded.
//! - `version` is 1 if missing, as the document says, and `CID` that of a disk which never changed. `createType` and an extent
//!   have to be there.
//! - Of two lines with one key the first counts, as in qemu, so that both open the same files.
//! - Keys that are not known are skipped. A line that is neither a comment, nor `key=value`, nor an extent is an error: one
//!   extent less would shift the guest's data.

mod database;
mod lines;
mod text;

#[cfg(test)]
mod tests;

use self::lines::Lines;
use self::text::{Charset, Text};
use super::{FIELDS, FORMAT_NAME, SECTOR};
use crate::error::{Error, Problem, Result};
use crate::limits::Limits;
use crate::name::Name;

pub(crate) use self::database::{Geometry, long_content_id, uuid};

/// Largest size and offset in sectors whose byte offsets have 64 bits.
const MAX_SECTORS: u64 = u64::MAX / SECTOR;

/// What `parentCID` is without a parent.
const NO_PARENT: u32 = u32::MAX;

/// What `CID` is in VMware's new disks, as in the document's examples.
const NEVER_CHANGED: u32 = 0xffff_fffe;

/// The values of `createType` that this crate reads, as the document and the programs write them.
const CREATE_TYPES: &[&str] = &[
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "2GbMaxExtentSparse",
    "2GbMaxExtentFlat",
    "streamOptimized",
    "custom",
    "vmfs",
    "vmfsPreallocated",
    "vmfsEagerZeroedThick",
    "vmfsThin",
    "vmfsSparse",
    "seSparse",
    "vmfsSeSparse",
];

/// Those whose data is on a device of the host.
const DEVICE_TYPES: &[(&str, &str)] = &[
    ("fullDevice", "a disk of the host"),
    ("partitionedDevice", "partitions of a disk of the host"),
    ("vmfsRaw", "a raw device"),
    ("vmfsRDM", "a raw device map"),
    ("vmfsRawDeviceMap", "a raw device map"),
    ("vmfsRDMP", "a raw device map"),
    ("vmfsPassthroughRawDeviceMap", "a raw device map"),
];

/// A valid descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// 1, 2 or 3, which read the same.
    pub version: u32,
    /// The content ID, which changes with the content.
    pub cid: u32,
    /// The content ID that the parent had when this image was made, if there is a parent.
    pub parent_cid: Option<u32>,
    /// One of the names in the document, in its upper and lower case.
    pub create_type: &'static str,
    /// Where the parent was.
    pub parent_hint: Option<Name>,
    /// At least one, in the order of the guest's sectors.
    pub extents: Vec<ExtentLine>,
    /// Keys without `ddb.` and values without quotes, in order, with replacement characters for what is no text.
    pub database: Vec<(String, String)>,
}

/// A line of the extent description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExtentLine {
    pub access: Access,
    /// Sectors of the guest's disk; with `offset` so small that the end in bytes has 64 bits.
    pub sectors: u64,
    pub kind: ExtentType,
    /// The file as the image names it; `None` exactly for [`ExtentType::Zero`].
    pub file: Option<Name>,
    /// Sectors of the file before the data; other than 0 only for [`ExtentType::Flat`] and [`ExtentType::Vmfs`].
    pub offset: u64,
    /// Byte offset of the line in the file, for errors.
    pub at: u64,
}

/// What a guest may do with an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "they are the words of the document")]
pub(crate) enum Access {
    Rw,
    RdOnly,
    NoAccess,
}

/// How the data of an extent is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExtentType {
    /// As it is.
    Flat,
    /// In a hosted sparse extent.
    Sparse,
    /// Not at all: it is zeros.
    Zero,
    /// As it is, on an ESXi datastore.
    Vmfs,
    /// In a COWD file.
    VmfsSparse,
    /// In a space-efficient sparse file.
    SeSparse,
}

const ACCESS: &[(&str, Access)] = &[("RW", Access::Rw), ("RDONLY", Access::RdOnly), ("NOACCESS", Access::NoAccess)];

const EXTENT_TYPES: &[(&str, ExtentType)] = &[
    ("FLAT", ExtentType::Flat),
    ("SPARSE", ExtentType::Sparse),
    ("ZERO", ExtentType::Zero),
    ("VMFS", ExtentType::Vmfs),
    ("VMFSSPARSE", ExtentType::VmfsSparse),
    ("SESPARSE", ExtentType::SeSparse),
];

const DEVICE_EXTENTS: &[(&str, &str)] = &[("VMFSRDM", "a raw device map"), ("VMFSRAW", "a raw device")];

/// Whether a file with these first bytes is a descriptor: after comments and blank lines comes `version=`, as VMware demands.
pub(crate) fn looks_like_descriptor(head: &[u8]) -> bool {
    Text::new(head, 0).lines().next().and_then(Text::key_value).is_some_and(|(key, _)| key.is("version"))
}

impl Descriptor {
    /// Parses `text`, which stands at file offset `at`.
    pub fn parse(text: &[u8], at: u64, limits: &Limits) -> Result<Descriptor> {
        let text = Text::new(text, at);
        let lines = Lines::sort(text, limits)?;
        let version = version(lines.version)?;
        // Devices are refused by name before their extents, some of which have a syntax of their own.
        let create_type = create_type(lines.create_type, text)?;
        if let Some(key) = lines.key_id {
            return Err(key.unsupported("encryption".to_owned()));
        }
        let charset = match lines.encoding.or_else(|| lines.database_value("encoding")) {
            Some(label) => Charset::of_label(label.unquoted("encoding")?.bytes),
            None => Charset::AsItIs,
        };
        let hint = lines.parent_hint.map(|hint| hint.unquoted("parentFileNameHint")).transpose()?;
        let decoded = |(key, value): &(Text<'_>, Text<'_>)| {
            let value = charset.decode(value.unquoted("disk data base entry")?);
            Ok((String::from_utf8_lossy(key.bytes).into_owned(), value.to_text().into_owned()))
        };
        Ok(Descriptor {
            version,
            cid: content_id(lines.cid, "CID")?.unwrap_or(NEVER_CHANGED),
            parent_cid: content_id(lines.parent_cid, "parentCID")?.filter(|&cid| cid != NO_PARENT),
            create_type,
            parent_hint: hint.filter(|hint| !hint.bytes.is_empty()).map(|hint| charset.decode(hint)),
            extents: extents(&lines.extents, charset, text, limits)?,
            database: lines.database.iter().map(decoded).collect::<Result<_>>()?,
        })
    }

    /// Size of the disk in sectors; in bytes it is within [`Limits::virtual_size`] if the descriptor was parsed.
    pub fn sectors(&self) -> u64 {
        self.extents.iter().fold(0, |sum, extent| sum.saturating_add(extent.sectors))
    }

    /// The first value of `ddb.key`.
    pub fn database_value(&self, key: &str) -> Option<&str> {
        self.database.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value.as_str())
    }

    /// The text, as the programs of VMware lay it out.
    ///
    /// # Errors
    /// [`Error::Usage`] for what cannot stand between quotes in UTF-8.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let &Descriptor { version, cid, create_type, .. } = self;
        let parent_cid = self.parent_cid.unwrap_or(NO_PARENT);
        let mut text = format!(
            "# Disk DescriptorFile\nversion={version}\nencoding=\"UTF-8\"\nCID={cid:08x}\nparentCID={parent_cid:08x}\n\
             createType=\"{create_type}\"\n"
        );
        if let Some(hint) = &self.parent_hint {
            text += &format!("parentFileNameHint=\"{}\"\n", writable(hint)?);
        }
        text += "\n# Extent description\n";
        for extent in &self.extents {
            text += &extent.encode()?;
        }
        text += "\n# The Disk Data Base\n#DDB\n\n";
        for (key, value) in &self.database {
            text += &entry(key, value)?;
        }
        Ok(text.into_bytes())
    }
}

impl Access {
    /// The word for it in a descriptor.
    pub fn keyword(self) -> &'static str {
        keyword(ACCESS, self)
    }
}

impl ExtentType {
    /// The word for it in a descriptor.
    pub fn keyword(self) -> &'static str {
        keyword(EXTENT_TYPES, self)
    }
}

impl ExtentLine {
    fn encode(&self) -> Result<String> {
        let mut line = format!("{} {} {}", self.access.keyword(), self.sectors, self.kind.keyword());
        if let Some(file) = &self.file {
            line += &format!(" \"{}\"", writable(file)?);
        }
        if self.kind == ExtentType::Flat || self.offset != 0 {
            line += &format!(" {}", self.offset);
        }
        line.push('\n');
        Ok(line)
    }
}

fn version(text: Option<Text<'_>>) -> Result<u32> {
    let Some(text) = text else { return Ok(1) };
    match text.unquoted("version")?.decimal("version")? {
        version @ 1..=3 => Ok(version as u32),
        _ => Err(text.unsupported(format!("descriptor version {}", text.shown()))),
    }
}

fn content_id(text: Option<Text<'_>>, field: &'static str) -> Result<Option<u32>> {
    let Some(text) = text else { return Ok(None) };
    let text = text.unquoted(field)?;
    // qemu writes no leading zeros.
    let digits = str::from_utf8(text.bytes).ok().filter(|digits| !digits.starts_with('+'));
    match digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()) {
        Some(cid) => Ok(Some(cid)),
        None => Err(text.fault(field, "must be a hexadecimal number of 32 bits")),
    }
}

/// The type in the spelling of the table; `all` is the descriptor.
fn create_type(text: Option<Text<'_>>, all: Text<'_>) -> Result<&'static str> {
    let Some(text) = text else { return Err(all.missing("createType")) };
    let text = text.unquoted("createType")?;
    if let Some(spelling) = CREATE_TYPES.iter().find(|spelling| text.is(spelling)) {
        return Ok(spelling);
    }
    Err(text.unsupported_name("createType", DEVICE_TYPES))
}

/// The extents, which are within the limit of the disk's size.
fn extents(lines: &[Text<'_>], charset: Charset, all: Text<'_>, limits: &Limits) -> Result<Vec<ExtentLine>> {
    let Some(first) = lines.first() else { return Err(all.missing("extent description")) };
    let mut sum = 0;
    let mut extents = Vec::with_capacity(lines.len());
    for line in lines {
        let extent = extent(*line, charset)?;
        sum = in_range("sum of the extent sizes", line.at, extent.sectors.saturating_add(sum), MAX_SECTORS)?;
        extents.push(extent);
    }
    FIELDS.at("sum of the extent sizes", first.at).at_most(sum.saturating_mul(SECTOR), limits.virtual_size)?;
    Ok(extents)
}

/// "Access, size in sectors, type of extent, file name, offset". What follows is for devices and is skipped.
fn extent(line: Text<'_>, charset: Charset) -> Result<ExtentLine> {
    let (access, rest) = line.word();
    let (size, rest) = rest.word();
    let (kind, rest) = rest.word();
    let access = access.of(ACCESS).ok_or_else(|| access.fault("extent access", "must be RW, RDONLY or NOACCESS"))?;
    // An empty disk is one extent of 0 sectors in qemu.
    let sectors = in_range("extent size", size.at, size.decimal("extent size")?, MAX_SECTORS)?;
    let kind = kind.of(EXTENT_TYPES).ok_or_else(|| kind.unsupported_name("extent type", DEVICE_EXTENTS))?;
    // Some programs name a file here too, that of the partition which is not to be seen.
    if kind == ExtentType::Zero {
        return Ok(ExtentLine { access, sectors, kind, file: None, offset: 0, at: line.at });
    }
    let (file, rest) = rest
        .quoted()
        .filter(|(file, _)| !file.bytes.is_empty())
        .ok_or_else(|| rest.fault("extent file name", "must be a name in quotes"))?;
    // The document wants it for FLAT, and VMFS has none. One that is missing can only be 0.
    let (offset, _) = rest.word();
    let most = match kind {
        ExtentType::Flat | ExtentType::Vmfs => MAX_SECTORS.saturating_sub(sectors),
        _ => 0,
    };
    let value = if offset.bytes.is_empty() { 0 } else { offset.decimal("extent offset")? };
    let offset = in_range("extent offset", offset.at, value, most)?;
    Ok(ExtentLine { access, sectors, kind, file: Some(charset.decode(file)), offset, at: line.at })
}

/// `value`, which is at most `max`.
fn in_range(name: &'static str, at: u64, value: u64, max: u64) -> Result<u64> {
    if value <= max { Ok(value) } else { Err(FIELDS.at(name, at).fault(Problem::Range { value, min: 0, max })) }
}

/// How the table spells `value`.
fn keyword<T: Copy + PartialEq>(table: &[(&'static str, T)], value: T) -> &'static str {
    table.iter().find(|(_, other)| *other == value).map_or("", |(keyword, _)| keyword)
}

/// The text of a name, if a line can hold it between quotes.
fn writable(name: &Name) -> Result<&str> {
    text_between_quotes(name.as_bytes())
        .filter(|text| !text.is_empty())
        .ok_or_else(|| Error::Usage(format!("{FORMAT_NAME}: a descriptor cannot hold the name {name}")))
}

/// The line of the disk data base.
fn entry(key: &str, value: &str) -> Result<String> {
    let value = text_between_quotes(value.as_bytes())
        .filter(|_| key.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'='));
    match value {
        Some(value) => Ok(format!("ddb.{key} = \"{value}\"\n")),
        None => Err(Error::Usage(format!("{FORMAT_NAME}: a descriptor cannot hold ddb.{}", Name::from(key)))),
    }
}

fn text_between_quotes(bytes: &[u8]) -> Option<&str> {
    str::from_utf8(bytes).ok().filter(|text| !text.contains(['"', '\n', '\r', '\0']))
}
