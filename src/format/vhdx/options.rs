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
        help: "fixed: preallocate all blocks in guest order; zeros stay holes of the file [default: dynamic]",
    },
    OptionSpec {
        name: "block_size",
        values: "1M-256M",
        help: "block size in bytes, a power of two [default: 32M; 2M with a parent; 2M or 1M for fixed]",
    },
    OptionSpec {
        name: "logical_sector_size",
        values: "512|4096",
        help: "logical sector size in bytes; qemu reads only 512 [default: 512, or as the parent]",
    },
    OptionSpec {
        name: "physical_sector_size",
        values: "512|4096",
        help: "physical sector size in bytes that is reported to the guest [default: 4096, or as the parent]",
    },
    OptionSpec { name: "log_size", values: "1M-4095M", help: "log size in bytes, a multiple of 1M [default: 1M]" },
    OptionSpec {
        name: "block_state_zero",
        values: "on|off",
        help: "mark unwritten blocks of a dynamic image as zero, not as undefined [default: on]",
    },
    OptionSpec {
        name: "uuid",
        values: "UUID",
        help: "virtual disk ID (with a parent: its ID is kept); the other GUIDs are derived from it [default: random]",
    },
    OptionSpec { name: "backing_file", values: "FILE", help: "parent, a VHDX of the same size; not with fixed" },
    OptionSpec { name: "backing_fmt", values: "vhdx", help: "format of the parent" },
];

/// Sizes of payload blocks (2.6.2.1).
const BLOCK_SIZES: RangeInclusive<u64> = MIB..=256 * MIB;
/// Default of Windows for dynamic disks of all sizes.
const DYNAMIC_BLOCK_SIZE: u64 = 32 * MIB;
/// Default of Windows for fixed and differencing disks.
const SMALL_BLOCK_SIZE: u64 = 2 * MIB;
/// Log sizes: multiples of 1 MiB in 32 bits (2.2.2).
const LOG_SIZES: RangeInclusive<u64> = MIB..=4095 * MIB;
const SECTOR_SIZES: &[(&str, u32)] = &[("512", 512), ("4096", 4096)];
/// Longest path in UTF-16 code units: its length in bytes has 16 bits (2.6.2.6.2).
const MAX_PATH_UNITS: usize = u16::MAX as usize / 2;

/// Valid options.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The metadata region, with the parent of a differencing image.
    pub metadata: Metadata,
    pub log_size: u64,
    /// Whether unwritten blocks have the state `ZERO`.
    pub block_state_zero: bool,
    pub guids: Guids,
}

/// The parent of a new image, with the properties that both share.
struct Parent {
    data_write_guid: Uuid,
    virtual_disk_id: Uuid,
    logical_sector_size: u32,
    physical_sector_size: u32,
    virtual_size: u64,
    /// The key of the path in the locator, and the Windows path.
    path: (&'static str, String),
}

impl Settings {
    pub fn parse(cx: &CreateContext<'_>) -> Result<Settings> {
        if cx.compress {
            return Err(unsupported("compression"));
        }
        if cx.size == 0 {
            return Err(unsupported("an empty disk, which neither qemu nor 7-Zip opens"));
        }
        let parent = Parent::from_context(cx)?;
        let subformat = cx.options.choice(FORMAT_NAME, "subformat", &[("dynamic", false), ("fixed", true)])?;
        let fixed = subformat.unwrap_or(false);
        if fixed && parent.is_some() {
            return Err(refuse("backing_file", "a fixed disk cannot have a parent"));
        }
        let (logical_sector_size, physical_sector_size) = sector_sizes(cx, parent.as_ref())?;
        let virtual_disk_size = disk_size(cx.size, logical_sector_size.into(), parent.as_ref())?;
        let block_size = match cx.options.power_of_two(FORMAT_NAME, "block_size", BLOCK_SIZES)? {
            Some(size) => size,
            None if parent.is_some() => SMALL_BLOCK_SIZE,
            None if !fixed => DYNAMIC_BLOCK_SIZE,
            // The last block extends beyond the disk by less than 1 MiB.
            None if virtual_disk_size.is_multiple_of(SMALL_BLOCK_SIZE) => SMALL_BLOCK_SIZE,
            None => MIB,
        };
        let guids = Guids::from_context(cx, parent.as_ref())?;
        Ok(Settings {
            metadata: Metadata {
                block_size: block_size as u32,
                leave_block_allocated: fixed,
                virtual_disk_size,
                virtual_disk_id: Uuid::nil(),
                logical_sector_size,
                physical_sector_size,
                parent: parent.map(Parent::locator),
                ignores_locator: false,
                block_size_at: 0,
                virtual_disk_size_at: 0,
            },
            log_size: log_size(cx)?,
            block_state_zero: cx.options.flag(FORMAT_NAME, "block_state_zero")?.unwrap_or(true),
            guids,
        })
    }
}

/// What determines the GUIDs of a new image, besides its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guids {
    /// The virtual disk ID that the caller has set.
    set: Option<Uuid>,
    /// The virtual disk ID and the DataWriteGuid of the parent.
    parent: Option<(Uuid, Uuid)>,
}

impl Guids {
    fn from_context(cx: &CreateContext<'_>, parent: Option<&Parent>) -> Result<Guids> {
        let set = cx.options.value("uuid").map(parse_uuid).transpose()?;
        Ok(Guids { set, parent: parent.map(|parent| (parent.virtual_disk_id, parent.data_write_guid)) })
    }

    /// The virtual disk ID. Parent and child are the same disk to the guest (2.6.1.2).
    pub fn virtual_disk_id(&self, identifiers: &ImageIdentifiers) -> Uuid {
        let inherited = self.parent.map(|(virtual_disk_id, _)| virtual_disk_id);
        inherited.or(self.set).unwrap_or_else(|| self.derive("virtual disk id", identifiers))
    }

    pub fn file_write_guid(&self, identifiers: &ImageIdentifiers) -> Uuid {
        self.derive("file write guid", identifiers)
    }

    pub fn data_write_guid(&self, identifiers: &ImageIdentifiers) -> Uuid {
        self.derive("data write guid", identifiers)
    }

    /// The GUID for `purpose`. It differs between parent and child, even with the same options.
    fn derive(&self, purpose: &str, identifiers: &ImageIdentifiers) -> Uuid {
        let parent = self.parent.map_or(Uuid::nil(), |(_, data_write_guid)| data_write_guid);
        let identifiers = self.set.map_or(*identifiers, |uuid| {
            let (high, low) = uuid.as_u64_pair();
            ImageIdentifiers::pinned(high ^ low)
        });
        Builder::from_random_bytes(identifiers.bytes(&format!("{purpose} {parent}"))).into_uuid()
    }
}

fn parse_uuid(text: &str) -> Result<Uuid> {
    let uuid = Uuid::try_parse(text).ok().filter(|uuid| !uuid.is_nil());
    uuid.ok_or_else(|| refuse("uuid", format!("{text:?} is not a UUID, or the nil UUID")))
}

fn log_size(cx: &CreateContext<'_>) -> Result<u64> {
    match cx.options.size(FORMAT_NAME, "log_size", LOG_SIZES)?.unwrap_or(MIB) {
        size if size.is_multiple_of(MIB) => Ok(size),
        size => Err(refuse("log_size", format!("{size} is not a multiple of 1 MiB"))),
    }
}

/// The logical and the physical sector size, which a child inherits (2.6.1.2, 2.6.2.4).
fn sector_sizes(cx: &CreateContext<'_>, parent: Option<&Parent>) -> Result<(u32, u32)> {
    let sector_size = |name, default: u32, inherited: Option<u32>| {
        let size = cx.options.choice(FORMAT_NAME, name, SECTOR_SIZES)?;
        match (size, inherited) {
            (Some(size), Some(inherited)) if size != inherited => {
                Err(refuse(name, format!("{size} differs from the value {inherited} of the parent")))
            }
            _ => Ok(size.or(inherited).unwrap_or(default)),
        }
    };
    let logical = sector_size("logical_sector_size", 512, parent.map(|parent| parent.logical_sector_size))?;
    let physical = sector_size("physical_sector_size", 4096, parent.map(|parent| parent.physical_sector_size))?;
    if parent.is_none() && physical < logical {
        return Err(refuse(
            "physical_sector_size",
            format!("{physical} is smaller than the logical sector size {logical}"),
        ));
    }
    Ok((logical, physical))
}

/// The size of the disk in whole sectors.
fn disk_size(size: u64, sector_size: u64, parent: Option<&Parent>) -> Result<u64> {
    let size = size.div_ceil(sector_size).saturating_mul(sector_size);
    if size > MAX_DISK_SIZE {
        return Err(Error::limit(FORMAT_NAME, "disk size", size, MAX_DISK_SIZE));
    }
    match parent.map(|parent| parent.virtual_size) {
        Some(parent_size) if parent_size != size => {
            let problem = format!("size {size} differs from the size {parent_size} of the parent");
            Err(refuse("backing_file", problem))
        }
        _ => Ok(size),
    }
}

impl Parent {
    /// The parent that the caller has opened.
    fn from_context(cx: &CreateContext<'_>) -> Result<Option<Parent>> {
        let Some(NewBacking { name, info }) = &cx.backing else {
            return match cx.options.value("backing_file").or(cx.options.value("backing_fmt")) {
                Some(_) => {
                    Err(refuse("backing_file", "the parent must be opened first: its data write GUID is needed"))
                }
                None => Ok(None),
            };
        };
        let path = windows_path(name)
            .ok_or_else(|| refuse("backing_file", format!("'{name}' is not a valid Windows path")))?;
        let parent = Parent::from_info(info, path).ok_or_else(|| {
            let problem = format!("the parent must be a VHDX with a data write GUID; its format is {}", info.format);
            refuse("backing_file", problem)
        })?;
        Ok(Some(parent))
    }

    /// The parent with these properties; `None` if one is missing.
    fn from_info(info: &ImageInfo, path: (&'static str, String)) -> Option<Parent> {
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
            // The nil GUID identifies nothing.
            data_write_guid: guid("data-write-guid").filter(|guid| !guid.is_nil())?,
            virtual_disk_id: guid("virtual-disk-id")?,
            logical_sector_size: sector_size("logical-sector-size")?,
            physical_sector_size: sector_size("physical-sector-size")?,
            virtual_size: info.virtual_size,
            path,
        })
    }

    fn locator(self) -> ParentLocator {
        let linkage = self.data_write_guid.braced().to_string();
        ParentLocator::new(linkage, self.path.0, self.path.1)
    }
}

/// The locator key of a path, and the path with backslashes (2.6.2.6.3); `None` if it is not a valid Windows path. An absolute
/// path lacks the prefix that the document requires, because there are no drive letters here.
pub(super) fn windows_path(name: &Name) -> Option<(&'static str, String)> {
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
