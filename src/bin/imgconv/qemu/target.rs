//! New images: their options, and the line that announces one.

use std::path::Path;

use diskimage::{Converter, Format, Options};

use super::message::Failed;
use super::source::{Source, Sources, format_named};
use crate::args::key_of_target;
use crate::node::split_protocol;

/// An image to be created, as the command line describes it.
pub struct Target {
    pub format: Format,
    /// The options in the order of the command line.
    given: Options,
    /// The name of the backing file, as it is stored.
    pub backing: Option<String>,
    pub backing_format: Option<String>,
}

/// What an option holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Size,
    Switch,
}

/// An option with its default, or "" if it has none.
type Known = (&'static str, Kind, &'static str);

const SIZE: Known = ("size", Kind::Size, "");
const BACKING: [Known; 2] = [("backing_file", Kind::Text, ""), ("backing_fmt", Kind::Text, "")];

/// The options of a format that qemu-img announces, in its order.
fn announced(format: &str) -> Vec<Known> {
    use Kind::{Size, Switch, Text};
    let encryption = |prefix: bool| {
        let names: [&'static str; 7] = match prefix {
            true => [
                "encrypt.key-secret",
                "encrypt.cipher-alg",
                "encrypt.cipher-mode",
                "encrypt.ivgen-alg",
                "encrypt.ivgen-hash-alg",
                "encrypt.hash-alg",
                "encrypt.iter-time",
            ],
            false => {
                ["key-secret", "cipher-alg", "cipher-mode", "ivgen-alg", "ivgen-hash-alg", "hash-alg", "iter-time"]
            }
        };
        names.map(|name| (name, Text, ""))
    };
    let own: Vec<Known> = match format {
        "qcow2" => [
            &[("encryption", Switch, ""), ("encrypt.format", Text, "")][..],
            &encryption(true),
            &[
                ("cluster_size", Size, "65536"),
                ("extended_l2", Switch, "off"),
                ("preallocation", Text, ""),
                ("compression_type", Text, "zlib"),
                SIZE,
                ("compat", Text, ""),
            ],
            &BACKING,
            &[
                ("data_file", Text, ""),
                ("data_file_raw", Switch, ""),
                ("lazy_refcounts", Switch, "off"),
                ("refcount_bits", Text, "16"),
            ],
        ]
        .concat(),
        "vmdk" => [
            &[SIZE, ("adapter_type", Text, "")][..],
            &BACKING,
            &[
                ("compat6", Switch, "off"),
                ("hwversion", Text, "undefined"),
                ("toolsversion", Text, ""),
                ("subformat", Text, ""),
                ("zeroed_grain", Switch, ""),
            ],
        ]
        .concat(),
        "vpc" => vec![SIZE, ("subformat", Text, ""), ("force_size", Switch, "")],
        "vhdx" => vec![
            SIZE,
            ("log_size", Size, "1048576"),
            ("block_size", Size, "0"),
            ("subformat", Text, ""),
            ("block_state_zero", Switch, ""),
        ],
        "vdi" => vec![SIZE, ("static", Switch, "off")],
        "qed" => [&[SIZE][..], &BACKING, &[("cluster_size", Size, "65536"), ("table_size", Size, "")]].concat(),
        "qcow" => [
            &[SIZE][..],
            &BACKING,
            &[("encryption", Switch, ""), ("encrypt.format", Text, ""), ("encrypt.key-secret", Text, "")],
        ]
        .concat(),
        "parallels" => vec![SIZE, ("cluster_size", Size, "1048576")],
        "luks" => [&[SIZE][..], &encryption(false)].concat(),
        _ => vec![SIZE],
    };
    // Of the file, whatever the format.
    let mut all = own;
    for option in [("nocow", Switch, ""), ("preallocation", Text, ""), ("extent_size_hint", Size, "")] {
        if !all.iter().any(|(name, _, _)| *name == option.0) {
            all.push(option);
        }
    }
    all
}

impl Target {
    pub fn new(format: Format, lists: impl Iterator<Item = String>) -> Result<Target, Failed> {
        let (mut options, mut given) = (Options::new(), Options::new());
        lists.for_each(|list| options.add_list(&list));
        let names: Vec<_> = options.names().map(str::to_owned).collect();
        // The last one counts, where one is given twice.
        for name in names {
            if let Some(value) = options.take(&name) {
                given.set(name, value);
            }
        }
        let known = announced(format.name());
        for name in given.names() {
            if !known.iter().any(|(known, _, _)| *known == name) && !format.options().iter().any(|o| o.name == name) {
                return Err(Failed::new(format!("Invalid parameter '{name}'")));
            }
        }
        for (name, kind, _) in known {
            let Some(value) = given.value(name).map(str::to_owned) else { continue };
            match kind {
                Kind::Size => given.set(name, size_option(name, &value)?.to_string()),
                Kind::Switch => given.set(name, switch(name, &value)?),
                Kind::Text => {}
            }
        }
        let (backing, backing_format) = (given.take("backing_file"), given.take("backing_fmt"));
        Ok(Target { format, given, backing, backing_format })
    }

    /// Takes a size out of the options.
    pub fn take_size(&mut self) -> Option<u64> {
        self.given.take("size").and_then(|size| size.parse().ok())
    }

    pub fn option(&self, name: &str) -> Option<&str> {
        self.given.value(name)
    }

    pub fn takes_backing(&self) -> bool {
        announced(self.format.name()).contains(&BACKING[0])
    }

    /// The options for the library: without those that have no effect here, with the defaults of qemu-img.
    pub fn options(&self, size: u64) -> Options {
        let mut options = self.given.clone();
        for name in ["nocow", "extent_size_hint", "size"] {
            options.take(name);
        }
        // The name that it had before there was LUKS.
        if options.take("encryption").as_deref() == Some("on") && options.value("encrypt.format").is_none() {
            options.set("encrypt.format", "aes");
        }
        let preallocates = self.format.options().iter().any(|option| option.name == "preallocation");
        if !preallocates && options.value("preallocation") == Some("off") {
            options.take("preallocation");
        }
        if options.value("hwversion") == Some("undefined") {
            options.take("hwversion");
        }
        let mut default = |name: &str, value: String| {
            if options.value(name).is_none_or(|value| name == "block_size" && value == "0") {
                options.set(name, value);
            }
        };
        match self.format.name() {
            "raw" => default("first_block", "on".into()),
            // Sizes of a CHS geometry.
            "vpc" => default("force_size", "off".into()),
            "vhdx" => default("block_size", vhdx_block_size(size).to_string()),
            _ => {}
        }
        options
    }

    /// A converter to the new image with these options, and with its secret, whose ID is one of them.
    pub fn converter(&self, sources: &Sources, mut options: Options) -> Result<Converter, Failed> {
        let secret = key_of_target(sources.secrets(), self.format, &mut options)?;
        if secret.as_ref().is_some_and(|secret| std::str::from_utf8(secret.as_bytes()).is_err()) {
            // QEMU does not open such an image.
            let id = ["key-secret", "encrypt.key-secret"].iter().find_map(|option| self.given.value(option));
            return Err(Failed::new(format!("Data from secret {} is not valid UTF-8", id.unwrap_or_default())));
        }
        let converter = Converter::new(self.format).options(options);
        Ok(match secret {
            Some(secret) => converter.secret(secret),
            None => converter,
        })
    }

    /// The line that qemu-img prints before it creates an image.
    pub fn announcement(&self, name: &str, size: u64) -> String {
        let mut line = format!("Formatting '{name}', fmt={}", self.format.name());
        for (option, _, default) in announced(self.format.name()) {
            let size = size.to_string();
            let value = match option {
                "size" => Some(size.as_str()),
                "backing_file" => self.backing.as_deref(),
                "backing_fmt" => self.backing_format.as_deref(),
                option => self.given.value(option).or(Some(default).filter(|default| !default.is_empty())),
            };
            if let Some(value) = value {
                line.push_str(&format!(" {option}={}", value.replace(',', ",,")));
            }
        }
        line
    }

    /// The source that is the backing file. A relative name starts at the directory of the image.
    pub fn backing_source(&self, sources: &Sources, image: &Path) -> Result<Option<Source>, Failed> {
        let Some(backing) = &self.backing else { return Ok(None) };
        let format = self.backing_format.as_deref();
        if backing.starts_with("json:") {
            return sources.file(backing.as_ref(), format).map(Some);
        }
        let path = match split_protocol(backing) {
            Some(_) => backing.into(),
            None => image.with_file_name("").join(backing),
        };
        sources.file(path.as_os_str(), format).map(Some)
    }

    /// The options of the format, for `-o help`.
    pub fn help(format: Format) -> String {
        let mut text = format!("Supported {} options:\n", format.name());
        let mut all: Vec<_> = format.options().iter().map(|option| (option.name, option.values, option.help)).collect();
        all.push(("size", "SIZE", "disk size"));
        all.sort_unstable();
        all.dedup_by_key(|(name, _, _)| *name);
        for (name, values, help) in all {
            text.push_str(&format!("  {:<22} - {help}\n", format!("{name}=<{values}>")));
        }
        text
    }
}

/// Whether a list of options asks for help.
pub fn asks_for_help(mut lists: impl Iterator<Item = String>) -> bool {
    lists.any(|list| list.split(',').any(|item| item == "help" || item == "?"))
}

/// The format of a new image.
pub fn format_for(name: &str) -> Result<Format, Failed> {
    match format_named(name) {
        Ok(format) if format.can_create() => Ok(format),
        Ok(format) => Err(Failed::new(format!("Format driver '{}' does not support image creation", format.name()))),
        Err(name) => Err(Failed::new(format!("Unknown file format '{name}'"))),
    }
}

/// The block size that qemu-img chooses.
fn vhdx_block_size(size: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    let sizes = [(GIB, 8 * MIB), (100 * GIB, 16 * MIB), (32 << 40, 32 * MIB)];
    sizes.iter().find(|(most, _)| size <= *most).map_or(64 * MIB, |(_, block)| *block)
}

fn size_option(name: &str, value: &str) -> Result<u64, Failed> {
    super::size(value).map_err(|_| {
        Failed::new(format!(
            "Parameter '{name}' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means kilo-, mega-, \
             giga-, tera-, peta-\nand exabytes, respectively."
        ))
    })
}

fn switch(name: &str, value: &str) -> Result<&'static str, Failed> {
    match value {
        "on" | "yes" | "true" | "y" => Ok("on"),
        "off" | "no" | "false" | "n" => Ok("off"),
        _ => Err(Failed::new(format!("Parameter '{name}' expects 'on' or 'off'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(format: Format, list: &str) -> Result<Target, String> {
        Target::new(format, std::iter::once(list.to_owned())).map_err(|failed| failed.to_string())
    }

    /// Expected: qemu-img 10.
    #[test]
    fn announcements() {
        for (format, list, line) in [
            (Format::RAW, "preallocation=off,nocow=on", "raw size=1024 nocow=on preallocation=off"),
            (
                Format::QCOW2,
                "backing_fmt=raw,backing_file=a,,b,lazy_refcounts=yes,cluster_size=64k,cluster_size=0x8000",
                "qcow2 cluster_size=32768 extended_l2=off compression_type=zlib size=1024 backing_file=a,,b backing_fmt=raw \
                 lazy_refcounts=on refcount_bits=16",
            ),
            (Format::VMDK, "compat6", "vmdk size=1024 compat6=on hwversion=undefined"),
            (Format::VHD, "force_size,subformat=dynamic", "vpc size=1024 subformat=dynamic force_size=on"),
            (Format::VHDX, "log_size=2M", "vhdx size=1024 log_size=2097152 block_size=0"),
            (Format::VDI, "", "vdi size=1024 static=off"),
        ] {
            let found = target(format, list).unwrap().announcement("x", 1024);
            assert_eq!(found, format!("Formatting 'x', fmt={line}"));
        }
    }

    #[test]
    fn wrong_options() {
        for (list, error) in [
            ("foo=1", "qemu-img: Invalid parameter 'foo'"),
            ("lazy_refcounts=maybe", "qemu-img: Parameter 'lazy_refcounts' expects 'on' or 'off'"),
        ] {
            assert_eq!(target(Format::QCOW2, list).err().unwrap(), error);
        }
        assert!(target(Format::QCOW2, "cluster_size=x").err().unwrap().contains("expects a non-negative number"));
    }

    #[test]
    fn defaults_are_those_of_qemu_img() {
        let options = target(Format::VHDX, "block_size=0").unwrap().options(2 << 30);
        assert_eq!(options.value("block_size"), Some("16777216"));
        let options = target(Format::VHD, "").unwrap().options(1 << 20);
        assert_eq!(options.value("force_size"), Some("off"));
    }
}
