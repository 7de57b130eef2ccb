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
        help: "set all blocks aside, in the order of the disk; what is zero stays a hole of the file; default off",
    },
    OptionSpec {
        name: "block_size",
        values: "128k-128M",
        help: "bytes that are allocated at once, a power of two; default 1M, and qemu and 7-Zip read nothing else",
    },
    OptionSpec {
        name: "uuid",
        values: "UUID",
        help: "the image's UUID, from which that of its state follows then; default random",
    },
];

/// Block sizes that VirtualBox 7.2 opens.
const BLOCK_SIZES: RangeInclusive<u64> = 128 << 10..=128 << 20;

/// Valid options.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub is_static: bool,
    pub block_size: u32,
    pub uuid: Uuid,
    /// Changes when the disk does.
    pub modification: Uuid,
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
            return Err(unsupported("writing an image over another one"));
        }
        if cx.size == 0 {
            return Err(unsupported("a disk of no bytes, which VirtualBox does not open"));
        }
        let block_size = cx.options.power_of_two(FORMAT_NAME, "block_size", BLOCK_SIZES)?.unwrap_or(1 << 20);
        let (uuid, identifiers) = match cx.options.value("uuid").map(parse_uuid).transpose()? {
            None => (random(cx.identifiers.bytes("uuid")), cx.identifiers),
            Some(uuid) => {
                let number = u128::from_le_bytes(uuid.to_bytes_le());
                (uuid, ImageIdentifiers::pinned((number >> 64) as u64 ^ number as u64))
            }
        };
        Ok(Settings {
            is_static: cx.options.flag(FORMAT_NAME, "static")?.unwrap_or(false),
            block_size: block_size as u32,
            uuid,
            modification: random(identifiers.bytes("modification uuid")),
            disk_size: cx.size.div_ceil(SECTOR).saturating_mul(SECTOR),
        })
    }
}

fn parse_uuid(text: &str) -> Result<Uuid> {
    let uuid = Uuid::try_parse(text).ok().filter(|uuid| !uuid.is_nil());
    uuid.ok_or_else(|| wrong(FORMAT_NAME, "uuid", format!("{text:?} is no UUID, or the null UUID")))
}

/// A UUID of version 4 from bytes that look random, in the order of the file.
fn random(bytes: [u8; 16]) -> Uuid {
    Builder::from_bytes_le(bytes).with_variant(Variant::RFC4122).with_version(Version::Random).into_uuid()
}
