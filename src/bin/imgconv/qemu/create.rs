//! `qemu-img create`

use std::path::Path;

use diskimage::Format;

use super::getopt::Parsed;
use super::message::{Failed, describe};
use super::source::{SECTOR, Sources};
use super::target::{Target, asks_for_help, format_for};
use super::{Outcome, print, size};
use crate::node::Node;
use crate::output;
use crate::signals::Interrupt;

pub fn run(parsed: &Parsed) -> Outcome {
    let format_name = parsed.text("format").unwrap_or("raw".into());
    if asks_for_help(parsed.all("options")) {
        return print(&Target::help(format_for(&format_name)?));
    }
    let (name, given_size) = match parsed.operands.as_slice() {
        [] => return Err(Failed::new("Expecting image file name").see_help("create")),
        [name] => (name, None),
        [name, size] => (name, Some(size.to_string_lossy().into_owned())),
        [_, _, more, ..] => {
            let problem = format!("Unexpected argument: {}", more.to_string_lossy());
            return Err(Failed::new(problem).see_help("create"));
        }
    };
    let given_size = given_size.map(|text| self::given_size(&text)).transpose()?;
    let path = Node::new_file(name)?;
    // As it was given, with its protocol.
    let name = name.to_string_lossy().into_owned();
    create(parsed, &path, &name, &format_name, given_size).map_err(|failed| failed.about(&name))
}

fn create(parsed: &Parsed, path: &Path, name: &str, format: &str, given_size: Option<u64>) -> Outcome {
    let interrupt = Interrupt::register()?;
    let sources = Sources::new(parsed);
    let mut target = Target::new(format_for(format)?, parsed.all("options"))?;
    target.backing = parsed.text("backing").or(target.backing);
    target.backing_format = parsed.text("backing-format").or(target.backing_format);
    let size = match (given_size, target.take_size()) {
        (Some(_), Some(_)) => return Err(Failed::new("The image size must be specified only once")),
        (given, option) => given.or(option),
    };
    if target.backing.is_some() && !target.takes_backing() {
        return Err(Failed::new(format!("Backing file not supported for file format '{format}'")));
    }
    let unsafely = parsed.flag("backing-unsafe");
    let backing = if unsafely { None } else { target.backing_source(&sources, path)? };
    let backing = match backing {
        None => None,
        Some(source) => {
            // Its properties are enough, and need no secret.
            let inspected = source.try_inspect().map_err(|error| {
                Failed::new(format!("{}\nCould not open backing image.", describe(&error, source.name())))
            })?;
            Some((source, inspected))
        }
    };
    if target.backing.is_some() && target.backing_format.is_none() {
        let detected = backing.as_ref().map(|(_, image)| format!("\nDetected format of {}.", image.format.name()));
        let problem = "Backing file specified without backing format";
        return Err(Failed::new(format!("{problem}{}", detected.unwrap_or_default())));
    }
    let size = size.or(backing.as_ref().map(|(_, image)| image.info.virtual_size.next_multiple_of(SECTOR)));
    let Some(size) = size else { return Err(Failed::new("Image creation needs a size parameter")) };
    if !parsed.flag("quiet") {
        output::print(&format!("{}\n", output::printable(&target.announcement(name, size))))?;
    }
    let mut options = target.options(size);
    let parent = match (backing, &target.backing, &target.backing_format) {
        // The overlay records the identity of its parent.
        (Some((source, _)), Some(name), _) if target.format == Format::VMDK => Some((source.open()?, name.as_str())),
        (_, Some(file), Some(format)) => {
            options.set("backing_file", file);
            options.set("backing_fmt", format);
            None
        }
        _ => None,
    };
    let mut converter = target.converter(&sources, options)?.sync(false).in_place(true).cancel(interrupt.flag());
    if let Some((image, name)) = parent {
        converter = converter.backing(image, name);
    }
    converter.create(size.next_multiple_of(SECTOR), path).map_err(|error| {
        Failed::unless_cancelled(&interrupt, error, |error| Failed::creating(&path.to_string_lossy(), error))
    })?;
    Ok(0)
}

fn given_size(text: &str) -> Result<u64, Failed> {
    size(text).map_err(|too_large| {
        let problem = match too_large {
            true => ". Must be between 0 and 9223372036854775807.".to_owned(),
            false => format!(": '{text}'."),
        };
        Failed::new(format!("Invalid image size specified{problem}"))
    })
}
