//! The descriptor: the text that lists the extents of a disk, in a file of its own or embedded in a sparse extent.
//!
//! VMware, "Virtual Disk Format 5.0", "The Descriptor File": a header of `key=value` lines, one line for each extent,
//! and the disk data base of `ddb.` lines. "The descriptor file is not case sensitive." Where the document is silent,
//! this parser follows what VMware, VirtualBox and qemu write:
//!
//! - Lines end with LF, CR LF or CR. The text ends at the first NUL, the padding.
//! - A missing `version` means 1, by the document, and a missing `CID` the content ID of a new disk. `createType` and
//!   at least one extent are required.
//! - The first of several lines with the same key is used, as in qemu. The keys that decide which files are opened have one line at most, and are
//!   nowhere else, so that both open the same files.
//! - Unknown keys are skipped. A line that is neither a comment, nor `key=value`, nor an extent is an error, because a
//!   missing extent would shift the guest data.

mod database;
mod lines;
mod text;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use self::lines::Lines;
use self::text::{Charset, Text};
use super::{FIELDS, FORMAT_NAME, SECTOR};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::limits::{LimitName, Limits};
use crate::name::Name;

pub(crate) use self::database::{Geometry, long_content_id, uuid};

/// Largest size and offset in sectors whose value in bytes fits in 64 bits.
const MAX_SECTORS: u64 = u64::MAX / SECTOR;

/// `parentCID` of a disk without a parent.
const NO_PARENT: u32 = u32::MAX;

/// `CID` of a new disk by VMware, as in the examples of the document.
const NEW_DISK_CID: u32 = 0xffff_fffe;

/// Supported values of `createType`, in the spelling of the document and of known writers.
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

/// Values of `createType` for disks stored on a host device, and their meanings.
const DEVICE_TYPES: &[(&str, &str)] = &[
    ("fullDevice", "a host disk"),
    ("partitionedDevice", "partitions of a host disk"),
    ("vmfsRaw", "a raw device"),
    ("vmfsRDM", "a raw device map"),
    ("vmfsRawDeviceMap", "a raw device map"),
    ("vmfsRDMP", "a raw device map"),
    ("vmfsPassthroughRawDeviceMap", "a raw device map"),
];

/// Whether a `createType` is known, supported or not.
#[cfg(feature = "inspect")]
pub(crate) fn is_create_type(name: &str) -> bool {
    let devices = DEVICE_TYPES.iter().map(|(device, _)| device);
    CREATE_TYPES.iter().chain(devices).any(|known| known.eq_ignore_ascii_case(name))
}

/// A valid descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// 1, 2 or 3, which have the same syntax.
    pub version: u32,
    /// The content ID, which writers change with the content.
    pub cid: u32,
    /// The content ID of the parent when this image was created; `None` without a parent.
    pub parent_cid: Option<u32>,
    /// One of the supported values, in its canonical spelling.
    pub create_type: &'static str,
    /// The file name of the parent.
    pub parent_hint: Option<Name>,
    /// At least one, in guest order.
    pub extents: Vec<ExtentLine>,
    /// Keys without `ddb.` and values without quotes, in file order. Invalid characters are replaced.
    pub database: Vec<(String, String)>,
}

/// A line of the extent description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExtentLine {
    pub access: Access,
    /// Size in sectors. The end of the extent in bytes, from `offset`, fits in 64 bits.
    pub sectors: u64,
    pub kind: ExtentType,
    /// The file name in the image; `None` if and only if the type is [`ExtentType::Zero`].
    pub file: Option<Name>,
    /// Offset of the data in the file, in sectors; nonzero only for [`ExtentType::Flat`] and [`ExtentType::Vmfs`].
    pub offset: u64,
    /// File offset of the line, for errors.
    pub at: u64,
}

/// The access of the guest to an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "the keywords of the document")]
pub(crate) enum Access {
    Rw,
    RdOnly,
    NoAccess,
}

/// The storage of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExtentType {
    /// Guest data only.
    Flat,
    /// A hosted sparse extent.
    Sparse,
    /// Not stored: reads as zeros.
    Zero,
    /// Guest data only, on an ESXi datastore.
    Vmfs,
    /// A COWD sparse extent.
    VmfsSparse,
    /// A space-efficient sparse extent.
    SeSparse,
}

const PARENT_HINT: &str = "parentFileNameHint";

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

impl Descriptor {
    /// Parses `text`, which is at file offset `at`.
    pub fn parse(text: &[u8], at: u64, limits: &Limits) -> Result<Descriptor> {
        let text = Text::new(text, at);
        text.check_blanks()?;
        let lines = Lines::parse(text, limits)?;
        check_unique_keys(text, &lines)?;
        let version = version(lines.version)?;
        // Before the extents: some devices have extents with another syntax.
        let create_type = create_type(lines.create_type, text)?;
        if let Some(key) = lines.key_id {
            return Err(key.unsupported("encryption".to_owned()));
        }
        let charset = match lines.encoding.or_else(|| lines.database_value("encoding")) {
            Some(label) => Charset::from_label(label.unquoted("encoding")?.bytes),
            None => Charset::Verbatim,
        };
        let hint = lines.parent_hint.map(|hint| hint.unquoted(PARENT_HINT)).transpose()?;
        let decoded = |(key, value): &(Text<'_>, Text<'_>)| {
            let value = charset.decode(value.unquoted("disk data base entry")?);
            Ok((String::from_utf8_lossy(key.bytes).into_owned(), value.to_text().into_owned()))
        };
        Ok(Descriptor {
            version,
            cid: content_id(lines.cid, "CID")?.unwrap_or(NEW_DISK_CID),
            parent_cid: content_id(lines.parent_cid, "parentCID")?.filter(|&cid| cid != NO_PARENT),
            create_type,
            parent_hint: hint.filter(|hint| !hint.bytes.is_empty()).map(|hint| charset.decode(hint)),
            extents: extents(&lines.extents, charset, text, limits)?,
            database: lines.database.iter().map(decoded).collect::<Result<_>>()?,
        })
    }

    /// Size of the disk in sectors. For a parsed descriptor, the size in bytes is within [`Limits::virtual_size`].
    pub fn sectors(&self) -> u64 {
        self.extents.iter().fold(0, |sum, extent| sum.saturating_add(extent.sectors))
    }

    /// Returns the first value of `ddb.key`.
    pub fn database_value(&self, key: &str) -> Option<&str> {
        self.database.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value.as_str())
    }

    /// Returns the text, in the layout of VMware.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name or value that a quoted UTF-8 string cannot hold.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let &Descriptor { version, cid, create_type, .. } = self;
        let parent_cid = self.parent_cid.unwrap_or(NO_PARENT);
        let mut text = format!(
            "# Disk DescriptorFile\nversion={version}\nencoding=\"UTF-8\"\nCID={cid:08x}\nparentCID={parent_cid:08x}\n\
             createType=\"{create_type}\"\n"
        );
        if let Some(hint) = &self.parent_hint {
            text += &format!("parentFileNameHint=\"{}\"\n", quotable_name(hint)?);
        }
        text += "\n# Extent description\n";
        for extent in &self.extents {
            text += &extent.encode()?;
        }
        text += "\n# The Disk Data Base\n#DDB\n\n";
        for (key, value) in &self.database {
            text += &database_line(key, value)?;
        }
        Ok(text.into_bytes())
    }
}

impl Access {
    /// The keyword in a descriptor.
    pub fn keyword(self) -> &'static str {
        keyword(ACCESS, self)
    }
}

impl ExtentType {
    /// The keyword in a descriptor.
    pub fn keyword(self) -> &'static str {
        keyword(EXTENT_TYPES, self)
    }
}

impl ExtentLine {
    fn encode(&self) -> Result<String> {
        let mut line = format!("{} {} {}", self.access.keyword(), self.sectors, self.kind.keyword());
        if let Some(file) = &self.file {
            line += &format!(" \"{}\"", quotable_name(file)?);
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
        _ => Err(text.unsupported(format!("descriptor version {}", text.excerpt()))),
    }
}

fn content_id(text: Option<Text<'_>>, field: &'static str) -> Result<Option<u32>> {
    let Some(text) = text else { return Ok(None) };
    let text = text.unquoted(field)?;
    // qemu writes no leading zeros.
    let digits = str::from_utf8(text.bytes).ok().filter(|digits| !digits.starts_with('+'));
    match digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()) {
        Some(cid) => Ok(Some(cid)),
        None => Err(text.fault(field, "must be a hexadecimal 32-bit number")),
    }
}

/// Refuses keys that decide which files are opened, in a comment, a value or another line. QEMU takes the first one anywhere in the descriptor, and would
/// open a file of which a look at the lines tells nothing.
fn check_unique_keys(text: Text<'_>, lines: &Lines<'_>) -> Result<()> {
    for (key, is_known) in [
        (PARENT_HINT, lines.parent_hint.is_some()),
        ("parentCID", lines.parent_cid.is_some()),
        ("createType", lines.create_type.is_some()),
    ] {
        if let Some(found) = text.find_all(key).nth(usize::from(is_known)) {
            return Err(found.fault(key, "must be the key of one line, and nowhere else"));
        }
    }
    // QEMU takes what follows two characters after the key, up to a quote, for the name: it may be in another line.
    let is_empty = lines.parent_hint.is_some_and(|hint| matches!(hint.bytes, b"" | b"\"\""));
    match text.find_all(PARENT_HINT).next().filter(|_| is_empty) {
        Some(found) if !found.split(PARENT_HINT.len()).1.bytes.starts_with(b"=\"\"") => {
            Err(found.fault(PARENT_HINT, "must have two quotes after the equals sign if it is empty"))
        }
        _ => Ok(()),
    }
}

/// A parent at the start of a sparse extent that is not that of its descriptor, of which `embedded` is the text, if that begins there. QEMU looks for it in 20
/// sectors after the first one, wherever the header says that the descriptor is.
pub(super) fn hidden_parent(
    file: &dyn ReadAt,
    embedded: &[u8],
    hint: Option<&Name>,
) -> Result<Option<Cow<'static, str>>> {
    const LEN: u64 = 20 * SECTOR;
    // What QEMU looks at ends in the descriptor, as usual.
    if embedded.contains(&0) || embedded.len() as u64 >= LEN {
        return Ok(None);
    }
    let len = table::length(file)?.saturating_sub(SECTOR).min(LEN);
    let mut bytes = vec![0; len as usize];
    table::read(file, &mut bytes, SECTOR)?;
    let descriptor_end = SECTOR + embedded.len() as u64;
    let hidden = Text::new(&bytes, SECTOR).find_all(PARENT_HINT).filter(|found| found.at >= descriptor_end);
    // From two characters after the key on, up to a quote.
    let names = hidden
        .map(|found| found.split(PARENT_HINT.len() + 2).1.bytes.split(|byte| *byte == b'"').next().unwrap_or_default());
    let other = names.map(Name::from).find(|name| Some(name) != hint);
    Ok(other.map(|name| format!("QEMU takes {name} for the parent, which is not in the descriptor").into()))
}

/// Parses `createType`; returns its canonical spelling.
fn create_type(text: Option<Text<'_>>, all: Text<'_>) -> Result<&'static str> {
    let Some(text) = text else { return Err(all.missing("createType")) };
    let text = text.unquoted("createType")?;
    if let Some(spelling) = CREATE_TYPES.iter().find(|spelling| text.is(spelling)) {
        return Ok(spelling);
    }
    Err(text.unsupported_name("createType", DEVICE_TYPES))
}

/// Parses the extents and checks the size of the disk against the limit.
fn extents(lines: &[Text<'_>], charset: Charset, all: Text<'_>, limits: &Limits) -> Result<Vec<ExtentLine>> {
    let Some(first) = lines.first() else { return Err(all.missing("extent description")) };
    let mut sum = 0;
    let mut extents = Vec::with_capacity(lines.len());
    for line in lines {
        let extent = extent(*line, charset)?;
        sum = in_range("sum of the extent sizes", line.at, extent.sectors.saturating_add(sum), MAX_SECTORS)?;
        extents.push(extent);
    }
    FIELDS.at("sum of the extent sizes", first.at).within_limit(
        LimitName::VirtualSize,
        sum.saturating_mul(SECTOR),
        limits.virtual_size,
    )?;
    Ok(extents)
}

/// Parses an extent line: "access, size in sectors, type of extent, file name, offset". Further words, which describe
/// devices, are skipped.
fn extent(line: Text<'_>, charset: Charset) -> Result<ExtentLine> {
    let (access, rest) = line.word();
    let (size, rest) = rest.word();
    let (kind, rest) = rest.word();
    let access =
        access.lookup(ACCESS).ok_or_else(|| access.fault("extent access", "must be RW, RDONLY or NOACCESS"))?;
    // 0 is valid: qemu writes an empty disk as one extent of 0 sectors.
    let sectors = in_range("extent size", size.at, size.decimal("extent size")?, MAX_SECTORS)?;
    let kind = kind.lookup(EXTENT_TYPES).ok_or_else(|| kind.unsupported_name("extent type", DEVICE_EXTENTS))?;
    // Some writers add a file name, the partition hidden by this extent.
    if kind == ExtentType::Zero {
        return Ok(ExtentLine { access, sectors, kind, file: None, offset: 0, at: line.at });
    }
    let (file, rest) = rest
        .quoted()
        .filter(|(file, _)| !file.bytes.is_empty())
        .ok_or_else(|| rest.fault("extent file name", "must be a quoted name"))?;
    // The document requires an offset for FLAT; VMFS has none. A missing one is 0.
    let (offset, _) = rest.word();
    let max = match kind {
        ExtentType::Flat | ExtentType::Vmfs => MAX_SECTORS.saturating_sub(sectors),
        _ => 0,
    };
    let value = if offset.bytes.is_empty() { 0 } else { offset.decimal("extent offset")? };
    let offset = in_range("extent offset", offset.at, value, max)?;
    Ok(ExtentLine { access, sectors, kind, file: Some(charset.decode(file)), offset, at: line.at })
}

/// Checks that `value` is at most `max`.
fn in_range(name: &'static str, at: u64, value: u64, max: u64) -> Result<u64> {
    if value <= max { Ok(value) } else { Err(FIELDS.at(name, at).fault(Problem::Range { value, min: 0, max })) }
}

/// Returns the keyword for `value` in a table.
fn keyword<T: Copy + PartialEq>(table: &[(&'static str, T)], value: T) -> &'static str {
    table.iter().find(|(_, other)| *other == value).map_or("", |(keyword, _)| keyword)
}

/// Returns a name as text for a quoted string.
pub(super) fn quotable_name(name: &Name) -> Result<&str> {
    quotable(name.as_bytes()).filter(|text| !text.is_empty()).ok_or_else(|| {
        Error::Usage(format!(
            "{FORMAT_NAME}: invalid file name {name}: expected UTF-8 without quotes, line breaks and NUL"
        ))
    })
}

/// Returns a line of the disk data base.
fn database_line(key: &str, value: &str) -> Result<String> {
    let value = quotable(value.as_bytes()).filter(|_| key.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'='));
    match value {
        Some(value) => Ok(format!("ddb.{key} = \"{value}\"\n")),
        None => Err(Error::Usage(format!(
            "{FORMAT_NAME}: invalid key or value of ddb.{} for a descriptor",
            Name::from(key)
        ))),
    }
}

/// Returns `bytes` as text, if a quoted string can hold it.
fn quotable(bytes: &[u8]) -> Option<&str> {
    str::from_utf8(bytes).ok().filter(|text| !text.contains(['"', '\n', '\r', '\x0b', '\x0c', '\0']))
}
