//! The options of a new image.

use std::ops::RangeInclusive;

use uuid::{Builder, Uuid};

use super::locator::ParentLocator;
use super::metadata::{MAX_DISK_SIZE, Metadata};
use super::{FORMAT_NAME, MIB};
use crate::driver::{CreateContext, NewBacking};
use crate::error::{Error, Result};
use crate::identifiers::ImageIdentifiers;
use crate::info::{ImageInfo, Value};
use crate::name::Name;
use crate::options::{OptionSpec, wrong};

pub(super) const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "subformat",
        values: "dynamic|fixed",
        help: "fixed sets all blocks aside, in the order of the disk; what is zero stays a hole of the file; default dynamic",
    },
    OptionSpec {
        name: "block_size",
        values: "1M-256M",
        help: "bytes that are allocated at once, a power of two; default 32M, 2M over a parent, and 2M or 1M for fixed",
    },
    OptionSpec {
        name: "logical_sector_size",
        values: "512|4096",
        help: "sectors that the guest sees; qemu reads 512 only; default 512, or as the parent's",
    },
    OptionSpec {
        name: "physical_sector_size",
        values: "512|4096",
        help: "sectors that the guest is told the disk has inside; default 4096, or as the parent's",
    },
    OptionSpec { name: "log_size", values: "1M-4095M", help: "bytes of the log, in whole MiB; default 1M" },
    OptionSpec {
        name: "block_state_zero",
        values: "on|off",
        help: "whether blocks that are never written are zeros, or of unknown content; for dynamic; default on",
    },
    OptionSpec {
        name: "uuid",
        values: "UUID",
        help: "the virtual disk id (over a parent, its), and what all other GUIDs follow from; default random",
    },
    OptionSpec { name: "backing_file", values: "FILE", help: "the parent, a VHDX of the same size; not with fixed" },
    OptionSpec { name: "backing_fmt", values: "vhdx", help: "format of the parent" },
];

/// Sizes of payload blocks (2.6.2.1).
const BLOCK_SIZES: RangeInclusive<u64> = MIB..=256 * MIB;
/// What Windows makes for dynamic disks of all sizes.
const DYNAMIC_BLOCK_SIZE: u64 = 32 * MIB;
/// What Windows makes for fixed and for differencing disks.
const SMALL_BLOCK_SIZE: u64 = 2 * MIB;
/// Lengths of the log: whole MiB in 32 bits (2.2.2).
const LOG_SIZES: RangeInclusive<u64> = MIB..=4095 * MIB;
const SECTOR_SIZES: &[(&str, u32)] = &[("512", 512), ("4096", 4096)];
/// The longest path: its length in bytes has 16 bits (2.6.2.6.2).
const MAX_PATH_UNITS: usize = u16::MAX as usize / 2;

/// Valid options.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// What the image says of its disk, and of its parent if it lies over one.
    pub metadata: Metadata,
    pub log_size: u64,
    /// Whether blocks that are never written are zeros by their state.
    pub block_state_zero: bool,
    pub file_write_guid: Uuid,
    pub data_write_guid: Uuid,
}

/// The image that a new one lies over, and what both have in common.
struct Parent {
    data_write_guid: Uuid,
    virtual_disk_id: Uuid,
    logical_sector_size: u32,
    physical_sector_size: u32,
    virtual_size: u64,
    /// The key of the locator's path, and the path as Windows has it.
    path: (&'static str, String),
}

impl Settings {
    pub fn parse(cx: &CreateContext<'_>) -> Result<Settings> {
        if cx.compress {
            return Err(unsupported("compression"));
        }
        if cx.size == 0 {
            return Err(unsupported("a disk of no bytes, which neither qemu nor 7-Zip opens"));
        }
        let parent = Parent::of(cx)?;
        let subformat = cx.options.choice(FORMAT_NAME, "subformat", &[("dynamic", false), ("fixed", true)])?;
        let fixed = subformat.unwrap_or(false);
        if fixed && parent.is_some() {
            return Err(refuse("backing_file", "a fixed disk cannot lie over another image"));
        }
        let (logical_sector_size, physical_sector_size) = sector_sizes(cx, parent.as_ref())?;
        let virtual_disk_size = disk_size(cx.size, logical_sector_size.into(), parent.as_ref())?;
        let block_size = match cx.options.power_of_two(FORMAT_NAME, "block_size", BLOCK_SIZES)? {
            Some(size) => size,
            None if parent.is_some() => SMALL_BLOCK_SIZE,
            None if !fixed => DYNAMIC_BLOCK_SIZE,
            // So that what the last block has beyond the disk is less than a MiB.
            None if virtual_disk_size.is_multiple_of(SMALL_BLOCK_SIZE) => SMALL_BLOCK_SIZE,
            None => MIB,
        };
        let guids = Guids::of(cx, parent.as_ref())?;
        Ok(Settings {
            metadata: Metadata {
                block_size: block_size as u32,
                leave_block_allocated: fixed,
                virtual_disk_size,
                virtual_disk_id: guids.virtual_disk_id,
                logical_sector_size,
                physical_sector_size,
                parent: parent.map(Parent::locator),
                block_size_at: 0,
                virtual_disk_size_at: 0,
            },
            log_size: log_size(cx)?,
            block_state_zero: cx.options.flag(FORMAT_NAME, "block_state_zero")?.unwrap_or(true),
            file_write_guid: guids.derive("file write guid"),
            data_write_guid: guids.derive("data write guid"),
        })
    }
}

/// The GUIDs of a new image.
struct Guids {
    virtual_disk_id: Uuid,
    identifiers: ImageIdentifiers,
    /// That of the parent; nil without one.
    parent: Uuid,
}

impl Guids {
    fn of(cx: &CreateContext<'_>, parent: Option<&Parent>) -> Result<Guids> {
        let pinned = cx.options.value("uuid").map(parse_uuid).transpose()?;
        let identifiers = pinned.map_or(cx.identifiers, |uuid| {
            let (high, low) = uuid.as_u64_pair();
            ImageIdentifiers::pinned(high ^ low)
        });
        let parent_guid = parent.map_or(Uuid::nil(), |parent| parent.data_write_guid);
        let mut guids = Guids { virtual_disk_id: Uuid::nil(), identifiers, parent: parent_guid };
        // Parent and child are one disk to their guest (2.6.1.2).
        guids.virtual_disk_id = match parent {
            Some(parent) => parent.virtual_disk_id,
            None => pinned.unwrap_or_else(|| guids.derive("virtual disk id")),
        };
        Ok(guids)
    }

    /// The GUID for `what`. A child never has its parent's, even where both are made with the same options.
    fn derive(&self, what: &str) -> Uuid {
        Builder::from_random_bytes(self.identifiers.bytes(&format!("{what} {}", self.parent))).into_uuid()
    }
}

fn parse_uuid(text: &str) -> Result<Uuid> {
    let uuid = Uuid::try_parse(text).ok().filter(|uuid| !uuid.is_nil());
    uuid.ok_or_else(|| refuse("uuid", format!("{text:?} is no UUID, or the nil UUID")))
}

fn log_size(cx: &CreateContext<'_>) -> Result<u64> {
    match cx.options.size(FORMAT_NAME, "log_size", LOG_SIZES)?.unwrap_or(MIB) {
        size if size.is_multiple_of(MIB) => Ok(size),
        size => Err(refuse("log_size", format!("{size} is no multiple of 1 MiB"))),
    }
}

/// The logical and the physical sector size, which a child has of its parent (2.6.1.2, 2.6.2.4).
fn sector_sizes(cx: &CreateContext<'_>, parent: Option<&Parent>) -> Result<(u32, u32)> {
    let sector_size = |name, default: u32, inherited: Option<u32>| {
        let size = cx.options.choice(FORMAT_NAME, name, SECTOR_SIZES)?;
        match (size, inherited) {
            (Some(size), Some(inherited)) if size != inherited => {
                Err(refuse(name, format!("the parent has {inherited}, and a disk over it cannot have {size}")))
            }
            _ => Ok(size.or(inherited).unwrap_or(default)),
        }
    };
    let logical = sector_size("logical_sector_size", 512, parent.map(|parent| parent.logical_sector_size))?;
    let physical = sector_size("physical_sector_size", 4096, parent.map(|parent| parent.physical_sector_size))?;
    if parent.is_none() && physical < logical {
        return Err(refuse("physical_sector_size", format!("{physical} bytes hold no logical sector of {logical}")));
    }
    Ok((logical, physical))
}

/// The size of the disk in whole sectors.
fn disk_size(size: u64, sector_size: u64, parent: Option<&Parent>) -> Result<u64> {
    let size = size.div_ceil(sector_size).saturating_mul(sector_size);
    if size > MAX_DISK_SIZE {
        let field = "size of the disk".into();
        return Err(Error::Limit { format: FORMAT_NAME, field, at: None, value: size, limit: MAX_DISK_SIZE });
    }
    match parent.map(|parent| parent.virtual_size) {
        Some(parent_size) if parent_size != size => {
            let problem = format!("the parent has {parent_size} bytes, and a disk over it cannot have {size}");
            Err(refuse("backing_file", problem))
        }
        _ => Ok(size),
    }
}

impl Parent {
    /// The image that the caller opened.
    fn of(cx: &CreateContext<'_>) -> Result<Option<Parent>> {
        let Some(NewBacking { name, info }) = &cx.backing else {
            return match cx.options.value("backing_file").or(cx.options.value("backing_fmt")) {
                Some(_) => Err(refuse("backing_file", "the parent has to be opened, for its data write GUID")),
                None => Ok(None),
            };
        };
        let path = windows_path(name)
            .ok_or_else(|| refuse("backing_file", format!("no VHDX can name '{name}': Windows has no such names")))?;
        let parent = Parent::of_info(info, path).ok_or_else(|| {
            let problem = format!("the parent has to be a VHDX with a data write GUID, and it is {}", info.format);
            refuse("backing_file", problem)
        })?;
        Ok(Some(parent))
    }

    /// By what the image says of itself.
    fn of_info(info: &ImageInfo, path: (&'static str, String)) -> Option<Parent> {
        if info.format != FORMAT_NAME {
            return None;
        }
        let guid = |name| match info.property(name) {
            Some(Value::Text(text)) => Uuid::try_parse(&text.to_text()).ok(),
            _ => None,
        };
        let sector_size = |name| match info.property(name) {
            Some(Value::Number(size)) => u32::try_from(*size).ok(),
            _ => None,
        };
        Some(Parent {
            // A nil one names nothing.
            data_write_guid: guid("data-write-guid").filter(|guid| !guid.is_nil())?,
            virtual_disk_id: guid("virtual-disk-id")?,
            logical_sector_size: sector_size("logical-sector-size")?,
            physical_sector_size: sector_size("physical-sector-size")?,
            virtual_size: info.virtual_size,
            path,
        })
    }

    fn locator(self) -> ParentLocator {
        let linkage = ("parent_linkage".to_owned(), self.data_write_guid.braced().to_string());
        ParentLocator { entries: vec![linkage, (self.path.0.to_owned(), self.path.1)] }
    }
}

/// A path with backslashes between directories, and the key that a locator has it by (2.6.2.6.3); `None` for one that UTF-16
/// or Windows does not have. An absolute one is without the prefix that the document wants: here are no drives.
fn windows_path(name: &Name) -> Option<(&'static str, String)> {
    let path = std::str::from_utf8(name.as_bytes()).ok().filter(|path| !path.contains('\\'))?;
    let windows = path.replace('/', "\\");
    let (key, path) = if windows.starts_with('\\') {
        ("absolute_win32_path", windows)
    } else if windows.starts_with(".\\") || windows.starts_with("..\\") {
        ("relative_path", windows)
    } else {
        ("relative_path", format!(".\\{windows}"))
    };
    (!name.as_bytes().is_empty() && path.encode_utf16().count() <= MAX_PATH_UNITS).then_some((key, path))
}

fn unsupported(feature: &'static str) -> Error {
    Error::Unsupported { format: FORMAT_NAME, feature: feature.into(), at: None }
}

fn refuse(name: &str, problem: impl Into<String>) -> Error {
    wrong(FORMAT_NAME, name, problem)
}
