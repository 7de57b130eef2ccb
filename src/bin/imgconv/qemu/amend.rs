//! `qemu-img amend`

use diskimage::{Disk, Error, Format, Options, Value};

use super::getopt::Parsed;
use super::keys;
use super::message::{Failed, describe};
use super::progress::Printer;
use super::source::Sources;
use super::{Outcome, cache, size};

pub fn run(parsed: &Parsed) -> Outcome {
    if !parsed.flag("options") {
        return Err(Failed::new("Must specify options (-o)").see_help("amend"));
    }
    let [name] = parsed.operands.as_slice() else {
        return Err(Failed::new("Expecting one image file name").see_help("amend"));
    };
    cache(parsed, "cache", "cache")?;
    let mut options = Options::new();
    parsed.all("options").for_each(|list| options.add_list(&list));
    let sources = Sources::new(parsed);
    let source = sources.source(name, parsed.text("format").as_deref())?;
    let format = source.inspect()?.format;
    let unsupported = format!("Format driver '{format}' does not support option amendment");
    if format != Format::QCOW2 && format != Format::LUKS {
        return Err(Failed::new(unsupported));
    }
    let keys = keys::take(&mut options, format, &sources, parsed.flag("force"))?;
    let disk = source.open_disk(&unsupported)?;
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

/// The options that the library changes, and the size.
fn to_change(disk: &Disk, given: &Options) -> Result<(Options, Option<u64>), Failed> {
    let (mut options, mut new_size) = (Options::new(), None);
    for name in given.names() {
        let value = given.value(name).unwrap_or_default();
        match name {
            "compat" | "lazy_refcounts" | "data_file" | "data_file_raw" => options.set(name, value),
            "size" => {
                let problem = || Failed::new("Parameter 'size' expects a non-negative number below 2^64");
                new_size = Some(size(value).map_err(|_| problem())?);
            }
            "backing_file" | "backing_fmt" => {
                return Err(Failed::new("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead."));
            }
            "refcount_bits" => {
                let info = disk.info();
                let now = info.specific.iter().find(|(key, _)| *key == "refcount-bits").map(|(_, value)| value);
                if now.is_none_or(|now| *now != Value::Number(value.parse().unwrap_or(0))) {
                    return Err(Failed::new("imgconv does not change the width of refcounts"));
                }
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
        Error::Usage(problem) => Some(problem.clone()),
        Error::Option { name, problem, .. } if name == "compat" => {
            Some(format!("Unknown compatibility level {}", problem.split('"').nth(1).unwrap_or_default()))
        }
        Error::Unsupported { feature, .. } if feature.contains("lazy refcounts") => Some(
            "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)".into(),
        ),
        Error::Unsupported { feature, .. } if feature.contains("a data file for an image without one") => {
            Some("data-file can only be set for images that use an external data file".into())
        }
        Error::Unsupported { feature, .. } if feature.contains("than of 16 bits") => {
            Some("compat=0.10 requires refcount_bits=16".into())
        }
        _ => None,
    }
}
