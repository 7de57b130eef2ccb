//! The options of a new image: those of qemu-img, plus `cluster_size`, `compression_level` and `window`.

use super::FORMAT_NAME;
use super::header::{CLUSTER_BITS, Header, MAX_BACKING_NAME, MAX_L1_ENTRIES};
use crate::codec::{Codec, Encoding};
use crate::driver::CreateContext;
use crate::error::{Error, Result};
use crate::format::shared::backing::backing_file;
use crate::format::shared::whole_sectors;
use crate::options::{OptionSpec, wrong};

pub(super) const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "cluster_size",
        values: "512..64k",
        help: "cluster size in bytes, a power of two [default: 4k, or 512 with a backing file, as in qemu-img]",
    },
    OptionSpec {
        name: "compression_level",
        values: "1..9",
        help: "compression level, from fastest to smallest [default: a fast one]",
    },
    OptionSpec {
        name: "window",
        values: "9..15",
        help: "window of deflate in bits; 12 is that of qemu-img, for readers that do not support 15 [default: 15]",
    },
    #[cfg(feature = "crypto")]
    OptionSpec {
        name: "encrypt.format",
        values: "aes",
        help: "encryption of guest data, which is weak, for old programs only [default: none]",
    },
    OptionSpec { name: "backing_file", values: "name", help: "backing file, stored as given; needs backing_fmt" },
    OptionSpec { name: "backing_fmt", values: "format", help: "format of the backing file, which is not stored" },
];

/// Length in bytes of L2 tables of qemu-img: 4 KiB, or 32 KiB with a backing file.
const L2_TABLE_BITS: [u8; 2] = [12, 15];
const DEFAULT_CLUSTER_SIZE: [u64; 2] = [4096, 512];

/// The header of an image with these options, without clusters.
pub(super) fn header(cx: &CreateContext<'_>) -> Result<Header> {
    if cx.size == 0 {
        return Err(Error::unsupported(FORMAT_NAME, "an empty disk, which qemu does not open"));
    }
    let size = whole_sectors(FORMAT_NAME, cx.size)?;
    let backing = backing_file(cx, FORMAT_NAME, MAX_BACKING_NAME)?;
    let kind = usize::from(backing.is_some());
    let range = 1 << CLUSTER_BITS.start()..=1 << CLUSTER_BITS.end();
    let cluster_size = cx.options.power_of_two(FORMAT_NAME, "cluster_size", range)?;
    let cluster_size = cluster_size.unwrap_or(DEFAULT_CLUSTER_SIZE[kind]);
    let mut header = Header {
        backing_file: backing.map(|backing| backing.file),
        size,
        cluster_bits: cluster_size.ilog2() as u8,
        l2_bits: L2_TABLE_BITS[kind].max(cluster_size.ilog2() as u8) - 3,
        is_encrypted: is_encrypted(cx)?,
        l1_table_offset: 0,
    };
    header.l1_table_offset = (header.encode().len() as u64).next_multiple_of(8);
    if header.shape().l1_entries() > MAX_L1_ENTRIES {
        let problem = format!("{cluster_size} is too small for a disk of {} bytes", cx.size);
        return Err(wrong(FORMAT_NAME, "cluster_size", problem));
    }
    Ok(header)
}

#[cfg(feature = "crypto")]
fn is_encrypted(cx: &CreateContext<'_>) -> Result<bool> {
    let is_encrypted = cx.options.choice(FORMAT_NAME, "encrypt.format", &[("aes", ())])?.is_some();
    match is_encrypted && cx.compress {
        true => Err(Error::unsupported(FORMAT_NAME, "compression of an encrypted image")),
        false => Ok(is_encrypted),
    }
}

#[cfg(not(feature = "crypto"))]
fn is_encrypted(_: &CreateContext<'_>) -> Result<bool> {
    Ok(false)
}

/// How clusters are compressed; `None` without compression.
pub(super) fn encoding(cx: &CreateContext<'_>) -> Result<Option<Encoding>> {
    let mut encoding = Encoding::new(Codec::Deflate);
    if let Some(level) = cx.options.number(FORMAT_NAME, "compression_level", 1..=9)? {
        encoding.level = Some(level as u8);
    }
    if let Some(window) = cx.options.number(FORMAT_NAME, "window", 9..=15)? {
        encoding.window_bits = window as u8;
    }
    Ok(cx.compress.then_some(encoding))
}
