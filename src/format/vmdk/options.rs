//! Options for new images.

use super::{FORMAT_NAME, SECTOR};
use crate::codec::{Codec, Encoding};
use crate::driver::CreateContext;
use crate::error::{Error, Result};
use crate::name::Name;
use crate::options::{OptionSpec, wrong};

pub(super) const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "subformat",
        values: "monolithicSparse|streamOptimized|monolithicFlat|twoGbMaxExtentSparse|twoGbMaxExtentFlat|vmfs",
        help: "createType (default monolithicSparse, or streamOptimized with compression); the others consist of several \
               files, vmfs is for ESXi datastores",
    },
    OptionSpec {
        name: "adapter_type",
        values: "lsilogic|ide|buslogic|legacyESX",
        help: "disk controller of the guest (default lsilogic)",
    },
    OptionSpec { name: "hwversion", values: "1..99", help: "virtual hardware version (default 4)" },
    OptionSpec { name: "compat6", values: "on|off", help: "same as hwversion=6 (default off)" },
    OptionSpec { name: "toolsversion", values: "0..2147483647", help: "VMware Tools version (default 2147483647)" },
    OptionSpec {
        name: "zeroed_grain",
        values: "on|off",
        help: "mark zero grains over a parent instead of storing them; needs version 2, which VirtualBox does not read \
               (default off)",
    },
    OptionSpec {
        name: "cid",
        values: "HEX",
        help: "content ID, up to 8 hexadecimal digits, from which the other identifiers are derived (default: all random)",
    },
    OptionSpec {
        name: "compression_level",
        values: "1..9",
        help: "compression level of streamOptimized, from fastest to smallest (default 5)",
    },
    OptionSpec {
        name: "backing_file",
        values: "name",
        help: "parent, a VMDK, stored as given; only with monolithicSparse",
    },
    OptionSpec { name: "backing_fmt", values: "vmdk", help: "format of the parent" },
];

/// The subformat of a new image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subformat {
    MonolithicSparse,
    StreamOptimized,
    MonolithicFlat,
    TwoGbMaxExtentSparse,
    TwoGbMaxExtentFlat,
    Vmfs,
}

impl Subformat {
    const ALL: [Subformat; 6] = [
        Subformat::MonolithicSparse,
        Subformat::StreamOptimized,
        Subformat::MonolithicFlat,
        Subformat::TwoGbMaxExtentSparse,
        Subformat::TwoGbMaxExtentFlat,
        Subformat::Vmfs,
    ];

    /// `createType` in the descriptor.
    pub fn name(self) -> &'static str {
        match self {
            Subformat::MonolithicSparse => "monolithicSparse",
            Subformat::StreamOptimized => "streamOptimized",
            Subformat::MonolithicFlat => "monolithicFlat",
            Subformat::TwoGbMaxExtentSparse => "twoGbMaxExtentSparse",
            Subformat::TwoGbMaxExtentFlat => "twoGbMaxExtentFlat",
            Subformat::Vmfs => "vmfs",
        }
    }

    /// Whether all extents are flat.
    pub fn is_flat(self) -> bool {
        matches!(self, Subformat::MonolithicFlat | Subformat::TwoGbMaxExtentFlat | Subformat::Vmfs)
    }
}

/// Parsed and validated options.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub subformat: Subformat,
    /// Size of the disk in sectors.
    pub sectors: u64,
    pub adapter_type: &'static str,
    pub hardware_version: u64,
    pub tools_version: u64,
    pub zeroed_grain: bool,
    pub cid: Option<u32>,
    pub encoding: Encoding,
    pub parent: Option<Parent>,
}

/// The parent of a new image.
#[derive(Clone, Debug)]
pub(super) struct Parent {
    pub name: Name,
    pub cid: u32,
}

impl Settings {
    pub fn parse(cx: &CreateContext<'_>) -> Result<Settings> {
        if cx.size == 0 {
            return Err(Error::unsupported(FORMAT_NAME, "an empty disk, which qemu does not open"));
        }
        let words: Vec<_> = Subformat::ALL.iter().map(|subformat| (subformat.name(), *subformat)).collect();
        let default = if cx.compress { Subformat::StreamOptimized } else { Subformat::MonolithicSparse };
        let subformat = cx.options.choice(FORMAT_NAME, "subformat", &words)?.unwrap_or(default);
        if cx.compress && subformat != Subformat::StreamOptimized {
            return Err(refuse("subformat", "compression requires streamOptimized"));
        }
        let adapters = ["lsilogic", "ide", "buslogic", "legacyESX"].map(|name| (name, name));
        let number = |name, range| cx.options.number(FORMAT_NAME, name, range);
        let level = number("compression_level", 1..=9)?;
        if level.is_some() && subformat != Subformat::StreamOptimized {
            return Err(refuse("compression_level", "requires streamOptimized"));
        }
        let zeroed_grain = cx.options.flag(FORMAT_NAME, "zeroed_grain")?.unwrap_or(false);
        if zeroed_grain && (subformat.is_flat() || subformat == Subformat::StreamOptimized) {
            return Err(refuse("zeroed_grain", format!("not supported by {}", subformat.name())));
        }
        let parent = parent(cx)?;
        if parent.is_some() && subformat != Subformat::MonolithicSparse {
            return Err(refuse("backing_file", format!("not supported by {}", subformat.name())));
        }
        Ok(Settings {
            subformat,
            sectors: cx.size.div_ceil(SECTOR),
            adapter_type: cx.options.choice(FORMAT_NAME, "adapter_type", &adapters)?.unwrap_or("lsilogic"),
            hardware_version: hardware_version(cx)?,
            tools_version: number("toolsversion", 0..=i32::MAX as u64)?.unwrap_or(i32::MAX as u64),
            zeroed_grain,
            cid: cx.options.value("cid").map(parse_cid).transpose()?,
            encoding: Encoding { level: level.map(|level| level as u8), ..Encoding::new(Codec::Zlib) },
            parent,
        })
    }
}

/// Parses the hardware version from `hwversion` or `compat6`, which are qemu-img's options.
fn hardware_version(cx: &CreateContext<'_>) -> Result<u64> {
    let number = cx.options.number(FORMAT_NAME, "hwversion", 1..=99)?;
    match (cx.options.flag(FORMAT_NAME, "compat6")?.unwrap_or(false), number) {
        (true, Some(number)) if number != 6 => Err(refuse("compat6", format!("conflicts with hwversion={number}"))),
        (true, _) => Ok(6),
        (false, number) => Ok(number.unwrap_or(4)),
    }
}

/// Parses a content ID as in a descriptor.
fn parse_cid(text: &str) -> Result<u32> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    match u32::from_str_radix(digits, 16) {
        // ffffffff means no parent, fffffffe a new disk.
        Ok(cid) if cid < 0xffff_fffe && !digits.starts_with('+') => Ok(cid),
        _ => Err(refuse("cid", format!("invalid content ID {text:?}: expected a hexadecimal number below fffffffe"))),
    }
}

/// Returns the parent. It is given as an opened image, because its content ID is needed, and the options must agree
/// with it.
fn parent(cx: &CreateContext<'_>) -> Result<Option<Parent>> {
    let (file, format) = (cx.options.value("backing_file"), cx.options.value("backing_fmt"));
    let Some(backing) = &cx.backing else {
        return match (file, format) {
            (Some(_), _) => Err(refuse("backing_file", "the parent must be opened to get its content ID")),
            (None, Some(_)) => Err(refuse("backing_fmt", "requires backing_file")),
            (None, None) => Ok(None),
        };
    };
    // The parent of a VMDK must be a VMDK.
    match backing.info.property("cid") {
        Some(crate::info::Value::Number(cid)) if backing.info.format == FORMAT_NAME => {
            Ok(Some(Parent { name: backing.name.clone(), cid: *cid as u32 }))
        }
        _ => Err(refuse(
            "backing_file",
            format!("the parent must be a VMDK with a descriptor, not {}", backing.info.format),
        )),
    }
}

fn refuse(name: &str, problem: impl Into<String>) -> Error {
    wrong(FORMAT_NAME, name, problem)
}
