//! `qemu-img amend`

use diskimage::{Disk, Error, Format, Options};

use super::getopt::Parsed;
use super::keys;
use super::message::{Failed, describe};
use super::progress::Printer;
use super::source::{Sources, format_named};
use super::target::asks_for_help;
use super::{Outcome, cache, print, size};

pub fn run(parsed: &Parsed) -> Outcome {
    if !parsed.flag("options") {
        return Err(Failed::new("Must specify options (-o)").see_help("amend"));
    }
    let asks_for_help = asks_for_help(parsed.all("options"));
    if let (true, Some(format)) = (asks_for_help, parsed.text("format")) {
        let format = format_named(&format).map_err(|name| Failed::new(format!("Unknown file format '{name}'")))?;
        return print(&help(format)?);
    }
    let [name] = parsed.operands.as_slice() else {
        let problem = Failed::new("Expecting one image file name");
        return Err(if asks_for_help { problem } else { problem.see_help("amend") });
    };
    cache(parsed, "cache", "cache")?;
    let mut options = Options::new();
    parsed.all("options").for_each(|list| options.add_list(&list));
    let sources = Sources::new(parsed);
    let source = sources.source(name, parsed.text("format").as_deref())?;
    let format = source.inspect()?.format;
    if asks_for_help {
        return print(&help(format)?);
    }
    if format != Format::QCOW2 && format != Format::LUKS {
        return Err(unsupported(format));
    }
    let keys = keys::take(&mut options, format, &sources, parsed.flag("force"))?;
    let disk = source.open_disk(&unsupported(format).message())?;
    let printer = Printer::new(parsed.flag("progress"));
    let (options, size) = to_change(&disk, &options)?;
    let amended = match options.names().next() {
        None => Ok(()),
        Some(_) => disk.amend(&options),
    };
    amended
        .and_then(|()| keys.map_or(Ok(()), |change| disk.change_keys(&change)))
        .and_then(|()| size.map_or(Ok(()), |size| disk.resize(size)))
        .and_then(|()| disk.close())
        .map_err(|error| Failed::new(problem(&error).unwrap_or_else(|| describe(&error, source.name()))))?;
    printer.finish();
    Ok(0)
}

fn unsupported(format: Format) -> Failed {
    Failed::new(format!("Format driver '{format}' does not support option amendment"))
}

/// The options that can be changed, with their values and meaning: of the key slots of both formats, and others of qcow2.
const KEY_OPTIONS: [(&str, &str, &str); 5] = [
    ("iter-time", "<num>", "Time to spend in PBKDF in milliseconds"),
    ("keyslot", "<num>", "Select a single keyslot to modify explicitly"),
    ("new-secret", "<str>", "New secret to set in the matching keyslots. Empty string to erase"),
    ("old-secret", "<str>", "Select all keyslots that match this password"),
    ("state", "<str>", "Select new state of affected keyslots (active/inactive)"),
];
const QCOW2_OPTIONS: [(&str, &str, &str); 8] = [
    ("backing_file", "<str>", "File name of a base image"),
    ("backing_fmt", "<str>", "Image format of the base image"),
    ("compat", "<str>", "Compatibility level (v2 [0.10] or v3 [1.1])"),
    ("data_file", "<str>", "File name of an external data file"),
    ("data_file_raw", "<bool (on/off)>", "The external data file must stay valid as a raw image"),
    ("lazy_refcounts", "<bool (on/off)>", "Postpone refcount updates"),
    ("refcount_bits", "<num>", "Width of a reference count entry in bits"),
    ("size", "<size>", "Virtual disk size"),
];

fn help(format: Format) -> Result<String, Failed> {
    let line = |prefix: &str, (name, value, help): (&str, &str, &str)| {
        let option = format!("{prefix}{name}={value}");
        format!("  {option:<22} - {help}\n")
    };
    let mut lines: Vec<String> = match format.name() {
        "qcow2" => {
            let keys = KEY_OPTIONS.iter().map(|option| line("encrypt.", *option));
            keys.chain(QCOW2_OPTIONS.iter().map(|option| line("", *option))).collect()
        }
        "luks" => KEY_OPTIONS.iter().map(|option| line("", *option)).collect(),
        _ => return Err(unsupported(format)),
    };
    lines.sort_unstable();
    Ok(format!("Amend options for '{format}':\n{}", lines.concat()))
}

/// The options that the library changes, and the size.
fn to_change(disk: &Disk, given: &Options) -> Result<(Options, Option<u64>), Failed> {
    let (mut options, mut new_size) = (Options::new(), None);
    for name in given.names() {
        let value = given.value(name).unwrap_or_default();
        match name {
            "compat" | "lazy_refcounts" | "refcount_bits" | "data_file" | "data_file_raw" => options.set(name, value),
            "size" => {
                let problem = || Failed::new("Parameter 'size' expects a non-negative number below 2^64");
                new_size = Some(size(value).map_err(|_| problem())?);
            }
            "backing_file" | "backing_fmt" => {
                return Err(Failed::new("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead."));
            }
            other if disk.format().options().iter().any(|option| option.name == other) => {
                let problem = "This option is only supported for image creation";
                return Err(Failed::new(format!("Invalid parameter '{other}'\n{problem}")));
            }
            other => return Err(Failed::new(format!("Invalid parameter '{other}'"))),
        }
    }
    Ok((options, new_size))
}

/// The words of qemu-img for what an image cannot have.
fn problem(error: &Error) -> Option<String> {
    match error.root() {
        Error::Usage(problem) => Some(keys::words(problem)),
        Error::Option { name, problem, .. } if name == "compat" => {
            Some(format!("Unknown compatibility level {}", problem.split('"').nth(1).unwrap_or_default()))
        }
        Error::Unsupported { feature, .. } if feature.contains("lazy refcounts") => Some(
            "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)".into(),
        ),
        Error::Unsupported { feature, .. } if feature.contains("a data file for an image without one") => {
            Some("data-file can only be set for images that use an external data file".into())
        }
        Error::Option { name, problem, .. } if name == "refcount_bits" => {
            let value = problem.split('"').nth(1).unwrap_or_default();
            Some(match value.parse::<u64>() {
                Ok(_) => "Refcount width must be a power of two and may not exceed 64 bits".into(),
                Err(_) => "Parameter 'refcount_bits' expects a number".into(),
            })
        }
        Error::Unsupported { feature, .. } if feature.starts_with("other refcounts than of 16 bits") => Some(
            "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)"
                .into(),
        ),
        Error::Unsupported { feature, .. } if feature.contains("than of 16 bits") => {
            Some("compat=0.10 requires refcount_bits=16".into())
        }
        Error::Unsupported { feature, .. } => {
            let (bits, rest) = feature.strip_prefix("refcounts of ")?.split_once(" bits: the cluster at ")?;
            let (offset, count) = rest.strip_suffix(" times")?.split_once(" is used ")?;
            Some(format!(
                "Cannot decrease refcount entry width to {bits} bits: Cluster at offset {offset} has a refcount of {count}"
            ))
        }
        _ => None,
    }
}
