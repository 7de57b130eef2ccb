//! The options of a new image.

use uuid::{Builder, Uuid};

use super::geometry::Geometry;
use super::{EPOCH, FORMAT_NAME, SECTOR};
use crate::driver::CreateContext;
use crate::error::{Error, Result};
use crate::identifiers::ImageIdentifiers;
use crate::info::{ImageInfo, Value};
use crate::name::Name;
use crate::options::{OptionSpec, wrong};

pub(super) const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "subformat",
        values: "dynamic|fixed",
        help: "fixed: guest data and a footer only [default: dynamic]",
    },
    OptionSpec {
        name: "force_size",
        values: "on|off",
        help: "keep the exact size; off rounds it up to a CHS geometry, for Virtual PC [default: on]",
    },
    OptionSpec {
        name: "block_size",
        values: "512k-16M",
        help: "block size in bytes, a power of two; Windows accepts 512k and 2M; not with fixed [default: 2M]",
    },
    OptionSpec {
        name: "preset",
        values: "azure",
        help: "for Azure: fixed, with the size rounded up to a multiple of 1 MiB, from 20M to 32767G",
    },
    OptionSpec { name: "uuid", values: "UUID", help: "unique identifier of the disk [default: random]" },
    OptionSpec {
        name: "timestamp",
        values: "seconds since 1970",
        help: "creation time, from 2000 to 2136 [default: now, or SOURCE_DATE_EPOCH]",
    },
    OptionSpec { name: "backing_file", values: "FILE", help: "parent, a VHD of the same size; not with fixed" },
    OptionSpec { name: "backing_fmt", values: "vpc", help: "format of the parent" },
];

/// Supported block sizes of new images.
const BLOCK_SIZES: std::ops::RangeInclusive<u64> = 512 << 10..=16 << 20;
const DEFAULT_BLOCK_SIZE: u64 = 2 << 20;
/// Disk sizes that Azure accepts, without the footer. Its limits for files are 20972032 and 35183298347520 bytes.
const AZURE_SIZES: std::ops::RangeInclusive<u64> = 20 << 20..=32767 << 30;
/// Azure accepts disk sizes that are a multiple of this.
const AZURE_ALIGNMENT: u64 = 1 << 20;
/// The largest dynamic disk, the limit of other programs too: block offsets are 32-bit sector numbers.
const MAX_DYNAMIC_SIZE: u64 = 2040 << 30;

/// The subformat of a new image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subformat {
    Fixed,
    Dynamic { block_size: u32, parent: Option<Parent> },
}

/// Valid options.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub subformat: Subformat,
    /// Size of the disk in bytes, a multiple of a sector.
    pub size: u64,
    pub geometry: Geometry,
    /// The unique identifier that the caller has set.
    unique_id: Option<Uuid>,
    /// Seconds since [`EPOCH`].
    pub timestamp: u32,
}

/// The parent of a new image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub name: Name,
    pub unique_id: Uuid,
    /// Creation time: seconds since [`EPOCH`].
    pub timestamp: u32,
}

impl Settings {
    pub fn parse(cx: &CreateContext<'_>) -> Result<Settings> {
        if cx.compress {
            return Err(Error::Unsupported { format: FORMAT_NAME, feature: "compression".into(), at: None });
        }
        let azure = cx.options.choice(FORMAT_NAME, "preset", &[("azure", ())])?.is_some();
        let fixed = cx.options.choice(FORMAT_NAME, "subformat", &[("dynamic", false), ("fixed", true)])?;
        let exact = cx.options.flag(FORMAT_NAME, "force_size")?.unwrap_or(true);
        if azure && fixed == Some(false) {
            return Err(refuse("subformat", "Azure accepts fixed disks only"));
        }
        if azure && !exact {
            return Err(refuse("force_size", "Azure requires a multiple of 1 MiB, which no geometry has"));
        }
        let parent = parent(cx)?;
        let block_size = cx.options.power_of_two(FORMAT_NAME, "block_size", BLOCK_SIZES)?;
        let subformat = if fixed.unwrap_or(azure) {
            if parent.is_some() {
                return Err(refuse("backing_file", "a fixed disk cannot have a parent"));
            }
            if block_size.is_some() {
                return Err(refuse("block_size", "a fixed disk has no blocks"));
            }
            Subformat::Fixed
        } else {
            Subformat::Dynamic { block_size: block_size.unwrap_or(DEFAULT_BLOCK_SIZE) as u32, parent }
        };
        let (size, geometry) = size(cx.size, exact, azure)?;
        if let Subformat::Dynamic { .. } = subformat {
            limit("disk size of a dynamic image", size, MAX_DYNAMIC_SIZE)?;
        }
        Ok(Settings { subformat, size, geometry, unique_id: unique_id(cx)?, timestamp: timestamp(cx)? })
    }

    /// The unique identifier of the image.
    pub fn unique_id(&self, identifiers: &ImageIdentifiers) -> Uuid {
        self.unique_id.unwrap_or_else(|| Builder::from_random_bytes(identifiers.bytes("uuid")).into_uuid())
    }
}

/// The disk size, rounded up as the options require, and its geometry.
fn size(size: u64, exact: bool, azure: bool) -> Result<(u64, Geometry)> {
    // The disk and its footer have to fit into a file.
    limit("disk size", size, i64::MAX as u64 - AZURE_ALIGNMENT)?;
    let by_size = |size: u64| (size, Geometry::from_sectors(size / SECTOR));
    if !azure {
        let rounded = Geometry::enclosing(size.div_ceil(SECTOR)).filter(|_| !exact);
        return Ok(rounded.map_or_else(|| by_size(size.next_multiple_of(SECTOR)), |found| (found.bytes(), found)));
    }
    let size = size.next_multiple_of(AZURE_ALIGNMENT);
    let (min, max) = (AZURE_SIZES.start(), AZURE_SIZES.end());
    if !AZURE_SIZES.contains(&size) {
        return Err(refuse("preset", format!("invalid disk size {size}: Azure accepts {min} to {max} bytes")));
    }
    Ok(by_size(size))
}

fn unique_id(cx: &CreateContext<'_>) -> Result<Option<Uuid>> {
    let Some(text) = cx.options.value("uuid") else { return Ok(None) };
    let problem = || refuse("uuid", format!("{text:?} is not a UUID of 32 hexadecimal digits, or the nil UUID"));
    parse_unique_id(text).ok_or_else(problem).map(Some)
}

/// Hyphens may be anywhere. The nil UUID means "none".
fn parse_unique_id(text: &str) -> Option<Uuid> {
    Uuid::try_parse(&text.replace('-', "")).ok().filter(|id| !id.is_nil())
}

fn timestamp(cx: &CreateContext<'_>) -> Result<u32> {
    let pinned = cx.options.number(FORMAT_NAME, "timestamp", EPOCH..=EPOCH + u64::from(u32::MAX))?;
    Ok(since_2000(pinned.unwrap_or(cx.identifiers.time)))
}

/// Seconds since [`EPOCH`], clamped to the years 2000 to 2136.
fn since_2000(time: u64) -> u32 {
    time.saturating_sub(EPOCH).min(u32::MAX.into()) as u32
}

/// The parent, which the caller has opened.
fn parent(cx: &CreateContext<'_>) -> Result<Option<Parent>> {
    let Some(backing) = &cx.backing else {
        return match cx.options.value("backing_file").or(cx.options.value("backing_fmt")) {
            Some(_) => Err(refuse("backing_file", "the parent must be opened first: its unique identifier is needed")),
            None => Ok(None),
        };
    };
    // A locator holds a path in UTF-16 with backslashes between directories.
    if backing.name.as_bytes().contains(&b'\\') || std::str::from_utf8(backing.name.as_bytes()).is_err() {
        return Err(refuse("backing_file", format!("'{}' is not a valid Windows path", backing.name)));
    }
    let Some(unique_id) = parent_id(backing.info) else {
        let problem =
            format!("the parent must be a VHD with a unique identifier; its format is {}", backing.info.format);
        return Err(refuse("backing_file", problem));
    };
    let (size, parent_size) = (cx.size.next_multiple_of(SECTOR), backing.info.virtual_size.next_multiple_of(SECTOR));
    if size != parent_size {
        let problem = format!("size {size} differs from the size {parent_size} of the parent");
        return Err(refuse("backing_file", problem));
    }
    let timestamp = match backing.info.property("timestamp") {
        Some(Value::Number(time)) => since_2000(*time),
        _ => 0,
    };
    Ok(Some(Parent { name: backing.name.clone(), unique_id, timestamp }))
}

fn parent_id(info: &ImageInfo) -> Option<Uuid> {
    match info.property("uuid") {
        Some(Value::Text(text)) if info.format == FORMAT_NAME => parse_unique_id(&text.to_text()),
        _ => None,
    }
}

/// Checks a value against a limit of the format.
pub(super) fn limit(field: &'static str, value: u64, limit: u64) -> Result<()> {
    if value <= limit {
        return Ok(());
    }
    Err(Error::limit(FORMAT_NAME, field, value, limit))
}

fn refuse(name: &str, problem: impl Into<String>) -> Error {
    wrong(FORMAT_NAME, name, problem)
}
