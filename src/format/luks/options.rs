//! Options of a new volume: those of qemu-img, and those of version 2.

use super::FORMAT_NAME;
use crate::error::Result;
use crate::options::{OptionSpec, Options, wrong};

pub(super) static OPTIONS: &[OptionSpec] = &[
    OptionSpec { name: "version", values: "1|2", help: "version of LUKS; QEMU reads version 1 only [default: 1]" },
    OptionSpec {
        name: "sector-size",
        values: "512..4096",
        help: "bytes that are encrypted at once, a power of two; needs version 2 for others than 512 [default: 512]",
    },
    OptionSpec {
        name: "argon2-memory",
        values: "64k..1G",
        help: "memory that a try of a secret takes, in bytes; needs version 2 [default: 128M]",
    },
    OptionSpec {
        name: "cipher-alg",
        values: "{aes|serpent|twofish}-{128|192|256}",
        help: "cipher with the bits of its key [default: aes-256]",
    },
    OptionSpec { name: "cipher-mode", values: "xts|cbc", help: "mode of the cipher [default: xts]" },
    OptionSpec {
        name: "ivgen-alg",
        values: "plain|plain64|essiv",
        help: "generator of initialization vectors [default: plain64]",
    },
    OptionSpec {
        name: "ivgen-hash-alg",
        values: "sha256",
        help: "hash of essiv, whose digest must be a key of the cipher [default: sha256]",
    },
    OptionSpec {
        name: "hash-alg",
        values: "sha1|sha224|sha256|sha384|sha512|ripemd160",
        help: "hash of the key slots [default: sha256]",
    },
    OptionSpec {
        name: "iter-time",
        values: "1..3600000",
        help: "milliseconds that a try of a secret takes on this machine [default: 2000]",
    },
];

/// The options of version 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct V2Options {
    /// In bytes.
    pub sector_size: u64,
    pub memory_kib: u32,
}

impl V2Options {
    /// Parses the options of version 2; `None` for version 1.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option)
    pub fn parse(options: &Options) -> Result<Option<V2Options>> {
        let is_version_2 = options.choice(FORMAT_NAME, "version", &[("1", false), ("2", true)])?.unwrap_or(false);
        let sector_size = options.power_of_two(FORMAT_NAME, "sector-size", 512..=4096)?;
        let memory = options.size(FORMAT_NAME, "argon2-memory", 64 << 10..=1 << 30)?;
        if is_version_2 {
            let memory_kib = u32::try_from(memory.unwrap_or(128 << 20) >> 10).unwrap_or(u32::MAX);
            return Ok(Some(V2Options { sector_size: sector_size.unwrap_or(512), memory_kib }));
        }
        match (sector_size, memory) {
            (Some(513..), _) => Err(wrong(FORMAT_NAME, "sector-size", "requires version=2")),
            (_, Some(_)) => Err(wrong(FORMAT_NAME, "argon2-memory", "requires version=2")),
            _ => Ok(None),
        }
    }
}
