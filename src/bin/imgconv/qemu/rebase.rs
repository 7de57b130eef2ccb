//! `qemu-img rebase`

use std::ffi::OsStr;
use std::path::Path;

use diskimage::{Error, Format, Image, Name, RebaseTo};

use super::getopt::Parsed;
use super::message::{Failed, describe};
use super::progress::Printer;
use super::source::{Sources, format_named};
use super::{Outcome, cache};

pub fn run(parsed: &Parsed) -> Outcome {
    let [name] = parsed.operands.as_slice() else {
        return Err(Failed::new("Expecting one image file name").see_help("rebase"));
    };
    let backing = parsed.text("backing").or(parsed.text("backing-file"));
    let unsafely = parsed.flag("backing-unsafe");
    if backing.is_none() && !unsafely {
        let problem = "Must specify backing file (-b) or use unsafe mode (-u)";
        return Err(Failed::new(problem).see_help("rebase"));
    }
    cache(parsed, "cache", "cache")?;
    cache(parsed, "source-cache", "source cache")?;
    let backing = backing.filter(|backing| !backing.is_empty());
    let format = parsed.text("backing-format");
    let format = format.map(|format| format_named(&format).map_err(|name| unknown_format(&name))).transpose()?;
    let sources = Sources::new(parsed);
    let source = sources.source(name, parsed.text("format").as_deref())?;
    let failed = |problem: &str| {
        let name = backing.as_deref().unwrap_or_default();
        Failed::new(format!("Could not change the backing file to '{name}': {problem}"))
    };
    let (path, options) = source.path_and_options()?;
    let disk = if unsafely { options.open_disk_alone(path) } else { options.open_disk(path) };
    let disk = disk.map_err(|error| match error.root() {
        Error::Unsupported { format, .. } if Format::by_name(format).is_ok_and(|format| !format.can_update()) => {
            failed("Operation not supported")
        }
        _ => source.not_opened(&error),
    })?;
    source.warn_of_probing(disk.format());
    let new = match &backing {
        Some(name) if !unsafely => Some(open_backing(&sources, path, name, format)?),
        _ => None,
    };
    if backing.is_some() && format.is_none() {
        return Err(failed("backing format must be specified"));
    }
    let name = backing.as_deref().map(Name::from);
    let printer = Printer::new(parsed.flag("progress"));
    let changed = if unsafely {
        disk.set_backing(name.as_ref(), format.filter(|_| name.is_some()))
    } else {
        let to = new.as_ref().zip(name.as_ref()).map(|(image, name)| RebaseTo { image, name });
        let progress = |done, total| printer.of(done, total);
        if parsed.flag("compress") { disk.rebase_compressed(to, &progress) } else { disk.rebase(to, &progress) }
    };
    changed.and_then(|()| disk.close()).map_err(|error| match error.root() {
        Error::Unsupported { feature, .. } if feature == "compressed blocks" => {
            Failed::new("Compression not supported for this file format")
        }
        Error::Unsupported { .. } => failed("Operation not supported"),
        _ => failed(&describe(&error, source.name())),
    })?;
    printer.finish();
    Ok(0)
}

/// Opens the new backing file, whose name is relative to the directory of the image.
fn open_backing(sources: &Sources, image: &Path, name: &str, format: Option<Format>) -> Result<Image, Failed> {
    let path = image.parent().unwrap_or(Path::new("")).join(name);
    let file = sources.file(path.as_os_str(), format.as_ref().map(Format::name))?;
    file.try_open().map_err(|error| {
        let path = path.to_string_lossy();
        Failed::new(format!("Could not open new backing file '{name}': {}", open_problem(&error, &path)))
    })
}

fn open_problem(error: &Error, name: &str) -> String {
    match describe(error, name) {
        problem if problem.starts_with("Could not open") => problem,
        problem => format!("Could not open '{name}': {problem}"),
    }
}

fn unknown_format(name: &str) -> Failed {
    Failed::new(format!("Invalid format name: '{}'", OsStr::new(name).to_string_lossy()))
}
