//! Options of a new image: those of qemu-img, plus `compression_level` and `window`.

use super::FORMAT_NAME;
use super::header::{MAX_BACKING_NAME, MAX_L1_ENTRIES};
use crate::codec::{Codec, Encoding};
use crate::driver::CreateContext;
use crate::error::{Error, Result};
use crate::format::shared::backing::{Backing, backing_file};
#[cfg(feature = "crypto")]
use crate::format::shared::luks::Parameters;
use crate::format::shared::whole_sectors;
use crate::info::FileReference;
use crate::name::Name;
use crate::options::{OptionSpec, Options, wrong};

pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "compat",
        values: "0.10|1.1|v2|v3",
        help: "format version: 0.10 is version 2, 1.1 is version 3 [default: 1.1]",
    },
    OptionSpec {
        name: "cluster_size",
        values: "512..2M",
        help: "cluster size in bytes, a power of two [default: 64k]",
    },
    OptionSpec {
        name: "refcount_bits",
        values: "1|2|4|8|16|32|64",
        help: "width of refcounts; values other than 16 need version 3 [default: 16]",
    },
    OptionSpec {
        name: "extended_l2",
        values: "on|off",
        help: "allocate subclusters of 1/32 cluster; needs version 3 and clusters of 16k or more [default: off]",
    },
    OptionSpec {
        name: "lazy_refcounts",
        values: "on|off",
        help: "allow writers to delay refcount updates; needs version 3 [default: off]",
    },
    OptionSpec {
        name: "preallocation",
        values: "off|metadata|falloc|full",
        help: "preallocate all clusters (metadata), with their space (falloc), or filled with zeros (full) [default: off]",
    },
    OptionSpec {
        name: "compression_type",
        values: "zlib|zstd|deflate",
        help: "compression method; deflate is an alias of zlib, zstd needs version 3 [default: zlib]",
    },
    OptionSpec {
        name: "compression_level",
        values: "1..9 (zlib), 1..22 (zstd)",
        help: "compression level, from fastest to smallest [default: a fast one]",
    },
    OptionSpec {
        name: "window",
        values: "9..15",
        help: "window of zlib in bits; 12 is that of qemu-img, for readers that do not support 15 [default: 15]",
    },
    #[cfg(feature = "crypto")]
    OptionSpec {
        name: "encrypt.format",
        values: "luks|aes",
        help: "encryption of guest data; aes is weak, for old programs only [default: none]",
    },
    #[cfg(feature = "crypto")]
    OptionSpec {
        name: "encrypt.cipher-alg",
        values: "{aes|serpent|twofish}-{128|192|256}",
        help: "cipher with the bits of its key [default: aes-256]",
    },
    #[cfg(feature = "crypto")]
    OptionSpec { name: "encrypt.cipher-mode", values: "xts|cbc", help: "mode of the cipher [default: xts]" },
    #[cfg(feature = "crypto")]
    OptionSpec {
        name: "encrypt.ivgen-alg",
        values: "plain|plain64|essiv",
        help: "generator of initialization vectors [default: plain64]",
    },
    #[cfg(feature = "crypto")]
    OptionSpec {
        name: "encrypt.ivgen-hash-alg",
        values: "sha256",
        help: "hash of essiv, whose digest must be a key of the cipher [default: sha256]",
    },
    #[cfg(feature = "crypto")]
    OptionSpec {
        name: "encrypt.hash-alg",
        values: "sha1|sha224|sha256|sha384|sha512|ripemd160",
        help: "hash of the key slots [default: sha256]",
    },
    #[cfg(feature = "crypto")]
    OptionSpec {
        name: "encrypt.iter-time",
        values: "1..3600000",
        help: "milliseconds that a try of a secret takes on this machine [default: 2000]",
    },
    OptionSpec { name: "backing_file", values: "name", help: "backing file, stored as given; needs backing_fmt" },
    OptionSpec { name: "backing_fmt", values: "format", help: "format of the backing file" },
    OptionSpec {
        name: "data_file",
        values: "name",
        help: "file for the guest data, stored as given; needs version 3; a relative name starts at the directory of the image",
    },
    OptionSpec {
        name: "data_file_raw",
        values: "on|off",
        help: "keep the data file readable as a raw disk; needs data_file [default: off]",
    },
];

const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
const DEFAULT_CLUSTER_SIZE: u64 = 64 << 10;
const DEFAULT_REFCOUNT_BITS: u64 = 16;
/// Subclusters have at least one sector.
const MIN_EXTENDED_CLUSTER_BITS: u32 = 14;
/// Longest format name in qemu, in bytes.
const MAX_BACKING_FORMAT: usize = 15;

/// The parsed options of a new image. They are consistent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    /// In bytes, a multiple of the sector size.
    pub virtual_size: u64,
    /// 2 or 3.
    pub version: u32,
    pub cluster_bits: u32,
    pub refcount_order: u32,
    pub extended_l2: bool,
    pub lazy_refcounts: bool,
    pub preallocation: Preallocation,
    /// Compression type in the header, also without compressed clusters.
    pub codec: Codec,
    /// Encoding of compressed clusters; `None` without compression.
    pub encoding: Option<Encoding>,
    pub backing: Option<Backing>,
    pub data_file: Option<DataFile>,
    #[cfg(feature = "crypto")]
    pub encryption: Option<NewEncryption>,
}

/// The encryption of guest data.
#[cfg(feature = "crypto")]
#[derive(Clone, Debug, PartialEq)]
pub(super) enum NewEncryption {
    Luks(Parameters),
    /// The passphrase is the key.
    Aes,
}

/// The file for guest data.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct DataFile {
    /// As it is stored.
    pub name: Name,
    /// Whether it is also a raw disk.
    pub raw: bool,
}

/// Preallocation of guest clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preallocation {
    Off,
    /// Clusters are mapped; the file is sparse.
    Metadata,
    /// Clusters are mapped and their space is allocated.
    Falloc,
    /// Clusters are mapped and written.
    Full,
}

impl Settings {
    pub fn parse(cx: &CreateContext<'_>) -> Result<Settings> {
        let options = cx.options;
        let choices = [("0.10", 2), ("1.1", 3), ("v2", 2), ("v3", 3)];
        let version = options.choice(FORMAT_NAME, "compat", &choices)?.unwrap_or(3);
        let cluster_bits = cluster_bits(options)?;
        let extended_l2 = extended_l2(options, version, cluster_bits)?;
        let codec = codec(options, version)?;
        let encoding = encoding(options, codec)?;
        let backing = backing(cx)?;
        let data_file = data_file(cx, version, backing.as_ref())?;
        #[cfg(feature = "crypto")]
        let encryption = encryption(cx, data_file.is_some())?;
        Ok(Settings {
            #[cfg(feature = "crypto")]
            encryption,
            virtual_size: virtual_size(cx.size, cluster_bits, extended_l2)?,
            version,
            cluster_bits,
            refcount_order: refcount_order(options, version)?,
            extended_l2,
            lazy_refcounts: version_3_flag(options, "lazy_refcounts", version)?,
            preallocation: match preallocation(cx, extended_l2, backing.is_some())? {
                // A reader of the raw disk knows no unallocated clusters.
                Preallocation::Off if data_file.as_ref().is_some_and(|file| file.raw) => Preallocation::Metadata,
                preallocation => preallocation,
            },
            codec,
            encoding: cx.compress.then_some(encoding),
            backing,
            data_file,
        })
    }

    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }
}

/// The parameters of the encryption, if guest data is encrypted.
#[cfg(feature = "crypto")]
fn encryption(cx: &CreateContext<'_>, has_data_file: bool) -> Result<Option<NewEncryption>> {
    const PREFIX: &str = "encrypt.";
    let options = cx.options;
    let is_luks = options.choice(FORMAT_NAME, "encrypt.format", &[("luks", true), ("aes", false)])?;
    if is_luks != Some(true)
        && let Some(name) = options.names().find(|name| name.starts_with(PREFIX) && *name != "encrypt.format")
    {
        return Err(invalid(name, "requires encrypt.format=luks"));
    }
    let Some(is_luks) = is_luks else { return Ok(None) };
    if cx.compress {
        return Err(Error::unsupported(FORMAT_NAME, "compression of an encrypted image"));
    }
    if has_data_file {
        return Err(Error::unsupported(FORMAT_NAME, "creating an encrypted image with a data file"));
    }
    if !matches!(options.value("preallocation"), None | Some("off" | "full")) {
        // A cluster that was never written decrypts to garbage.
        return Err(invalid("preallocation", "an encrypted image can be preallocated with full only"));
    }
    Ok(Some(match is_luks {
        true => NewEncryption::Luks(Parameters::parse(FORMAT_NAME, PREFIX, options)?),
        false => NewEncryption::Aes,
    }))
}

fn cluster_bits(options: &Options) -> Result<u32> {
    let range = 1 << CLUSTER_BITS.start()..=1 << CLUSTER_BITS.end();
    let size = options.power_of_two(FORMAT_NAME, "cluster_size", range)?.unwrap_or(DEFAULT_CLUSTER_SIZE);
    Ok(size.ilog2())
}

fn refcount_order(options: &Options, version: u32) -> Result<u32> {
    let bits = options.number(FORMAT_NAME, "refcount_bits", 1..=64)?.unwrap_or(DEFAULT_REFCOUNT_BITS);
    if !bits.is_power_of_two() {
        return Err(invalid("refcount_bits", format!("invalid value {bits}: expected 1, 2, 4, 8, 16, 32 or 64")));
    }
    if version < 3 && bits != DEFAULT_REFCOUNT_BITS {
        return Err(invalid("refcount_bits", format!("{bits} requires version 3; use compat=1.1")));
    }
    Ok(bits.ilog2())
}

fn extended_l2(options: &Options, version: u32, cluster_bits: u32) -> Result<bool> {
    let on = version_3_flag(options, "extended_l2", version)?;
    if on && cluster_bits < MIN_EXTENDED_CLUSTER_BITS {
        return Err(invalid("extended_l2", "requires clusters of at least 16k; use cluster_size=16k or larger"));
    }
    Ok(on)
}

/// Parses a flag that requires version 3.
fn version_3_flag(options: &Options, name: &'static str, version: u32) -> Result<bool> {
    let on = options.flag(FORMAT_NAME, name)?.unwrap_or(false);
    if on && version < 3 {
        return Err(invalid(name, "requires version 3; use compat=1.1"));
    }
    Ok(on)
}

fn codec(options: &Options, version: u32) -> Result<Codec> {
    let choices = [("zlib", Codec::Deflate), ("zstd", Codec::Zstd), ("deflate", Codec::Deflate)];
    let codec = options.choice(FORMAT_NAME, "compression_type", &choices)?.unwrap_or(Codec::Deflate);
    if codec != Codec::Deflate && version < 3 {
        return Err(invalid("compression_type", "version 2 supports zlib only; use compat=1.1"));
    }
    Ok(codec)
}

fn encoding(options: &Options, codec: Codec) -> Result<Encoding> {
    let mut encoding = Encoding::new(codec);
    let levels = Encoding::levels(codec);
    let levels = u64::from(*levels.start())..=u64::from(*levels.end());
    if let Some(level) = options.number(FORMAT_NAME, "compression_level", levels)? {
        encoding.level = Some(level as u8);
    }
    if let Some(window) = options.number(FORMAT_NAME, "window", 9..=15)? {
        if codec != Codec::Deflate {
            return Err(invalid("window", "requires compression_type=zlib"));
        }
        encoding.window_bits = window as u8;
    }
    Ok(encoding)
}

fn backing(cx: &CreateContext<'_>) -> Result<Option<Backing>> {
    let backing = backing_file(cx, FORMAT_NAME, MAX_BACKING_NAME)?;
    if let Some(Backing { format, .. }) = &backing
        && !(1..=MAX_BACKING_FORMAT).contains(&format.as_bytes().len())
    {
        return Err(invalid(
            "backing_fmt",
            format!("invalid format name '{format}': expected 1 to {MAX_BACKING_FORMAT} bytes"),
        ));
    }
    Ok(backing)
}

fn data_file(cx: &CreateContext<'_>, version: u32, backing: Option<&Backing>) -> Result<Option<DataFile>> {
    let name = cx.options.value("data_file").filter(|name| !name.is_empty());
    let raw = cx.options.flag(FORMAT_NAME, "data_file_raw")?.unwrap_or(false);
    let Some(name) = name else {
        return if raw { Err(invalid("data_file_raw", "requires data_file")) } else { Ok(None) };
    };
    if version < 3 {
        return Err(invalid("data_file", "requires version 3; use compat=1.1"));
    }
    if cx.compress {
        return Err(invalid("data_file", "compressed clusters cannot be in a data file"));
    }
    if raw && backing.is_some() {
        return Err(invalid("data_file_raw", "a raw disk has no backing file"));
    }
    let name = Name::from(name);
    if backing.is_some_and(|backing| backing.file == name) {
        return Err(invalid("data_file", "it is the backing file, too"));
    }
    if !FileReference::new("data file", name.clone(), None).is_file_name() {
        return Err(invalid("data_file", format!("'{name}' is read as a URL, './{name}' is a file")));
    }
    Ok(Some(DataFile { name, raw }))
}

fn preallocation(cx: &CreateContext<'_>, extended_l2: bool, has_backing: bool) -> Result<Preallocation> {
    let choices = [
        ("off", Preallocation::Off),
        ("metadata", Preallocation::Metadata),
        ("falloc", Preallocation::Falloc),
        ("full", Preallocation::Full),
    ];
    match cx.options.choice(FORMAT_NAME, "preallocation", &choices)?.unwrap_or(Preallocation::Off) {
        Preallocation::Off => Ok(Preallocation::Off),
        _ if cx.compress => Err(invalid("preallocation", "compressed clusters cannot be preallocated")),
        // A standard L2 entry with a host cluster hides the backing file; an extended one need not.
        _ if has_backing && !extended_l2 => {
            Err(invalid("preallocation", "requires extended_l2=on with a backing file"))
        }
        some => Ok(some),
    }
}

/// Rounds `size` up to sectors. Refuses sizes beyond the largest L1 table in qemu.
fn virtual_size(size: u64, cluster_bits: u32, extended_l2: bool) -> Result<u64> {
    // L2 entries have 8 or 16 bytes.
    let largest = |bits: u32| u128::from(MAX_L1_ENTRIES) << (2 * bits - if extended_l2 { 4 } else { 3 });
    let rounded = whole_sectors(FORMAT_NAME, size)?;
    if u128::from(rounded) <= largest(cluster_bits) {
        return Ok(rounded);
    }
    match CLUSTER_BITS.clone().find(|&bits| u128::from(rounded) <= largest(bits)) {
        Some(bits) => {
            let (small, large) = (1 << cluster_bits, 1 << bits);
            Err(invalid(
                "cluster_size",
                format!("{small} is too small for a disk of {size} bytes; use {large} or more"),
            ))
        }
        None => {
            let limit = u64::try_from(largest(*CLUSTER_BITS.end())).unwrap_or(i64::MAX as u64);
            Err(Error::limit(FORMAT_NAME, "virtual size", size, limit))
        }
    }
}

fn invalid(name: &str, problem: impl Into<String>) -> Error {
    wrong(FORMAT_NAME, name, problem)
}
