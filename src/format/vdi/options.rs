//! The options of a new image.

use std::ops::RangeInclusive;

use uuid::{Builder, Uuid, Variant, Version};

use super::{FORMAT_NAME, SECTOR};
use crate::driver::CreateContext;
use crate::error::{Error, Result};
use crate::identifiers::ImageIdentifiers;
use crate::options::{OptionSpec, wrong};

pub(super) const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "static",
        values: "on|off",
        help: "preallocate all blocks in guest order; zeros stay holes of the file [default: off]",
    },
    OptionSpec {
        name: "block_size",
        values: "128k-128M",
        help: "block size in bytes, a power of two; qemu and 7-Zip read only 1M [default: 1M]",
    },
    OptionSpec {
        name: "uuid",
        values: "UUID",
        help: "UUID of the image; the modification UUID is derived from it [default: random]",
    },
];

/// Block sizes that VirtualBox 7.2 opens.
const BLOCK_SIZES: RangeInclusive<u64> = 128 << 10..=128 << 20;

/// Valid options.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub is_static: bool,
    pub block_size: u32,
    /// The UUID that the caller has set.
    pub uuid: Option<Uuid>,
    /// Size of the disk in bytes, a multiple of 512 and not 0.
    pub disk_size: u64,
}

impl Settings {
    pub fn parse(cx: &CreateContext<'_>) -> Result<Settings> {
        let unsupported =
            |feature: &'static str| Error::Unsupported { format: FORMAT_NAME, feature: feature.into(), at: None };
        if cx.compress {
            return Err(unsupported("compression"));
        }
        if cx.backing.is_some() {
            return Err(unsupported("writing a differencing image"));
        }
        if cx.size == 0 {
            return Err(unsupported("an empty disk, which VirtualBox does not open"));
        }
        let block_size = cx.options.power_of_two(FORMAT_NAME, "block_size", BLOCK_SIZES)?.unwrap_or(1 << 20);
        Ok(Settings {
            is_static: cx.options.flag(FORMAT_NAME, "static")?.unwrap_or(false),
            block_size: block_size as u32,
            uuid: cx.options.value("uuid").map(parse_uuid).transpose()?,
            disk_size: cx.size.div_ceil(SECTOR).saturating_mul(SECTOR),
        })
    }
}

/// The UUID and the modification UUID of a new image, whose UUID the caller may have set.
pub(super) fn uuids(set: Option<Uuid>, identifiers: &ImageIdentifiers) -> (Uuid, Uuid) {
    let (uuid, identifiers) = match set {
        None => (random(identifiers.bytes("uuid")), *identifiers),
        Some(uuid) => {
            let number = u128::from_le_bytes(uuid.to_bytes_le());
            (uuid, ImageIdentifiers::pinned((number >> 64) as u64 ^ number as u64))
        }
    };
    (uuid, random(identifiers.bytes("modification uuid")))
}

fn parse_uuid(text: &str) -> Result<Uuid> {
    let uuid = Uuid::try_parse(text).ok().filter(|uuid| !uuid.is_nil());
    uuid.ok_or_else(|| wrong(FORMAT_NAME, "uuid", format!("{text:?} is not a UUID, or the nil UUID")))
}

/// A version 4 UUID from pseudo-random bytes in on-disk order.
pub(super) fn random(bytes: [u8; 16]) -> Uuid {
    Builder::from_bytes_le(bytes).with_variant(Variant::RFC4122).with_version(Version::Random).into_uuid()
}
