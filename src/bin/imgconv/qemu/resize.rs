//! `qemu-img resize`

use std::borrow::Cow;
use std::ffi::OsString;

use diskimage::{Disk, Error, Format, Preallocation};

use super::Outcome;
use super::getopt::Parsed;
use super::message::{self, Failed};
use super::source::{SECTOR, Sources};
use crate::output;
use crate::resize::NewSize;

const NO_RESIZE: &str = "Image format driver does not support resize";

pub fn run(parsed: &Parsed) -> Outcome {
    let (name, size) = match parsed.operands.as_slice() {
        [name, size] => (name, size),
        [_, _, _, ..] => return Err(Failed::new("Extra argument(s) in command line").see_help("resize")),
        _ => return Err(Failed::new("Expecting image file name and size").see_help("resize")),
    };
    let size = new_size(size)?;
    let preallocation = preallocation(parsed.text("preallocation").as_deref())?;
    let source = Sources::new(parsed).source(name, parsed.text("format").as_deref())?;
    let disk = source.open_disk(NO_RESIZE)?;
    let old = disk.size().next_multiple_of(SECTOR);
    let new = size.from(old).filter(|size| *size > 0).ok_or_else(|| Failed::new("New image size must be positive"))?;
    if new <= old && preallocation.is_some() {
        return Err(Failed::new("Preallocation can only be used for growing images"));
    }
    if new < old && !parsed.flag("shrink") {
        return Err(Failed::new(
            "Use the --shrink option to perform a shrink operation.\nqemu-img: warning: Shrinking an image will delete all data beyond the \
             shrunken image's end. Before performing such an operation, make sure there is no important data there.",
        ));
    }
    resize(disk, new, preallocation)?;
    if !parsed.flag("quiet") {
        output::print("Image resized.\n")?;
    }
    Ok(0)
}

/// The words of a command line, in which a negative size is no option.
pub fn without_options<'a>(command: &str, words: &'a [OsString]) -> Cow<'a, [OsString]> {
    let is_negative = |word: &OsString| {
        let word = word.to_string_lossy();
        word.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    match words.split_last() {
        Some((last, others)) if command == "resize" && is_negative(last) && !others.iter().any(|word| word == "--") => {
            Cow::Owned([others, &["--".into(), last.clone()]].concat())
        }
        _ => Cow::Borrowed(words),
    }
}

fn resize(disk: Disk, size: u64, preallocation: Option<Preallocation>) -> Result<(), Failed> {
    if disk.format() == Format::QCOW2 && !size.is_multiple_of(SECTOR) {
        return Err(Failed::new("The new size must be a multiple of 512"));
    }
    let resized = match preallocation {
        None => disk.resize(size),
        Some(how) => disk.grow_allocated(size, how),
    };
    let is_raw = disk.format() == Format::RAW;
    resized.and_then(|()| disk.close()).map_err(|error| match error.root() {
        Error::Io { action, .. } if *action == "allocating space" => {
            let file = if is_raw { "" } else { "Failed to resize underlying file: " };
            let what = match preallocation {
                Some(Preallocation::Full) => "Could not write zeros for preallocation",
                _ => "Could not preallocate new data",
            };
            let problem = message::describe(&error, "");
            let cause = problem.strip_prefix("allocating space: ").unwrap_or(&problem);
            Failed::new(format!("{file}{what}: {cause}"))
        }
        Error::Unsupported { format: "qcow2", feature, .. } if feature.contains("version 2") => {
            Failed::new("Can't resize a v2 image which has snapshots")
        }
        Error::Unsupported { feature, .. } if feature == "changing the size" => Failed::new(NO_RESIZE),
        Error::Unsupported { feature, .. } if feature.contains("preallocation of metadata") => {
            Failed::new("Unsupported preallocation mode: metadata")
        }
        _ => error.into(),
    })
}

fn new_size(text: &OsString) -> Result<NewSize, Failed> {
    NewSize::parse(&text.to_string_lossy(), super::size).map_err(|_| {
        Failed::new(
            "Parameter 'size' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means kilo-, mega-, giga-, \
             tera-, peta-\nand exabytes, respectively.",
        )
    })
}

fn preallocation(mode: Option<&str>) -> Result<Option<Preallocation>, Failed> {
    match mode {
        None | Some("off") => Ok(None),
        Some("metadata") => Ok(Some(Preallocation::Metadata)),
        Some("falloc") => Ok(Some(Preallocation::Space)),
        Some("full") => Ok(Some(Preallocation::Full)),
        Some(other) => Err(Failed::new(format!("Invalid preallocation mode '{other}'"))),
    }
}
