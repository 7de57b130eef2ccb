//! The options of a new image.

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
        help: "createType (default monolithicSparse, and streamOptimized if compressed); all but these two are several files, \
               and vmfs is for the datastore of an ESXi",
    },
    OptionSpec {
        name: "adapter_type",
        values: "lsilogic|ide|buslogic|legacyESX",
        help: "the controller that the disk is made for (default lsilogic)",
    },
    OptionSpec { name: "hwversion", values: "1..99", help: "version of the virtual hardware (default 4)" },
    OptionSpec { name: "compat6", values: "on|off", help: "the same as hwversion=6 (default off)" },
    OptionSpec { name: "toolsversion", values: "0..2147483647", help: "version of VMware Tools (default 2147483647)" },
    OptionSpec {
        name: "zeroed_grain",
        values: "on|off",
        help: "mark grains of zeros over a parent instead of storing them, in version 2, which VirtualBox does not read \
               (default off)",
    },
    OptionSpec {
        name: "cid",
        values: "HEX",
        help: "content ID, up to 8 hexadecimal digits; the other identifiers follow from it (default: all are random)",
    },
    OptionSpec {
        name: "compression_level",
        values: "1..9",
        help: "how hard streamOptimized is compressed, from the fastest to the smallest (default 5)",
    },
    OptionSpec {
        name: "backing_file",
        values: "name",
        help: "the parent, a VMDK, written as it is given; only with monolithicSparse",
    },
    OptionSpec { name: "backing_fmt", values: "vmdk", help: "format of the parent" },
];

/// What a new image consists of.
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

    /// The createType in the descriptor.
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

    /// Whether guest bytes are stored as they are, each at its place.
    pub fn is_flat(self) -> bool {
        matches!(self, Subformat::MonolithicFlat | Subformat::TwoGbMaxExtentFlat | Subformat::Vmfs)
    }
}

/// Valid options.
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

/// The image that a new one lies over.
#[derive(Clone, Debug)]
pub(super) struct Parent {
    pub name: Name,
    pub cid: u32,
}

impl Settings {
    pub fn parse(cx: &CreateContext<'_>) -> Result<Settings> {
        let words: Vec<_> = Subformat::ALL.iter().map(|subformat| (subformat.name(), *subformat)).collect();
        let default = if cx.compress { Subformat::StreamOptimized } else { Subformat::MonolithicSparse };
        let subformat = cx.options.choice(FORMAT_NAME, "subformat", &words)?.unwrap_or(default);
        if cx.compress && subformat != Subformat::StreamOptimized {
            return Err(refuse("subformat", "only streamOptimized is compressed"));
        }
        let adapters = ["lsilogic", "ide", "buslogic", "legacyESX"].map(|name| (name, name));
        let number = |name, range| cx.options.number(FORMAT_NAME, name, range);
        let level = number("compression_level", 1..=9)?;
        if level.is_some() && subformat != Subformat::StreamOptimized {
            return Err(refuse("compression_level", "only streamOptimized is compressed"));
        }
        let zeroed_grain = cx.options.flag(FORMAT_NAME, "zeroed_grain")?.unwrap_or(false);
        if zeroed_grain && (subformat.is_flat() || subformat == Subformat::StreamOptimized) {
            return Err(refuse("zeroed_grain", format!("{} has no such entries", subformat.name())));
        }
        let parent = parent(cx)?;
        if parent.is_some() && subformat != Subformat::MonolithicSparse {
            return Err(refuse("backing_file", format!("{} cannot lie over another image", subformat.name())));
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

/// The number, or what stands for one in the words of qemu-img.
fn hardware_version(cx: &CreateContext<'_>) -> Result<u64> {
    let number = cx.options.number(FORMAT_NAME, "hwversion", 1..=99)?;
    match (cx.options.flag(FORMAT_NAME, "compat6")?.unwrap_or(false), number) {
        (true, Some(number)) if number != 6 => Err(refuse("compat6", format!("hwversion is {number}"))),
        (true, _) => Ok(6),
        (false, number) => Ok(number.unwrap_or(4)),
    }
}

/// A content ID as descriptors have it.
fn parse_cid(text: &str) -> Result<u32> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    match u32::from_str_radix(digits, 16) {
        // The first stands for no parent, the second for a content ID that was never set.
        Ok(cid) if cid < 0xffff_fffe && !digits.starts_with('+') => Ok(cid),
        _ => Err(refuse("cid", format!("{text:?} is no hexadecimal number below fffffffe"))),
    }
}

/// The image that the caller gives apart from the options, with which these have to agree: it takes more than a name.
fn parent(cx: &CreateContext<'_>) -> Result<Option<Parent>> {
    let (file, format) = (cx.options.value("backing_file"), cx.options.value("backing_fmt"));
    let Some(backing) = &cx.backing else {
        return match (file, format) {
            (Some(_), _) => Err(refuse("backing_file", "the parent has to be opened, for its content ID")),
            (None, Some(_)) => Err(refuse("backing_fmt", "there is no backing_file")),
            (None, None) => Ok(None),
        };
    };
    // A snapshot chain of VMDKs holds nothing else.
    match backing.info.property("cid") {
        Some(crate::info::Value::Number(cid)) if backing.info.format == FORMAT_NAME => {
            Ok(Some(Parent { name: backing.name.clone(), cid: *cid as u32 }))
        }
        _ => Err(refuse(
            "backing_file",
            format!("the parent has to be a VMDK with a descriptor, and it is {}", backing.info.format),
        )),
    }
}

fn refuse(name: &str, problem: impl Into<String>) -> Error {
    wrong(FORMAT_NAME, name, problem)
}
