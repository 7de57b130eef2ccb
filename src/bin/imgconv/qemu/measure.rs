//! `qemu-img measure`

use diskimage::Format;

use super::getopt::Parsed;
use super::message::{Failed, creation_problem};
use super::source::{SECTOR, Sources};
use super::target::{Target, format_for};
use super::{Outcome, convert, size, style};
use crate::measure;
use crate::output::{self, Style};

pub fn run(parsed: &Parsed) -> Outcome {
    let style = style(parsed)?;
    let given_size = match parsed.text("size") {
        None => None,
        Some(text) => Some(size(&text).map_err(|_| Failed::new(format!("Invalid image size specified: '{text}'.")))?),
    };
    let sources = Sources::new(parsed);
    let format = format_for(&parsed.text("target-format").unwrap_or("raw".into()))?;
    let target = Target::new(format, parsed.all("target-options"))?;
    let options = |size| {
        let mut options = target.options(size);
        if format == Format::LUKS {
            // The file of a volume is as long as its data, whether that is allocated or not.
            options.take("preallocation");
        }
        options
    };
    let measured = match (parsed.operands.as_slice(), given_size) {
        ([], Some(size)) => target.converter(&sources, options(size))?.measure_size(size.next_multiple_of(SECTOR)),
        ([name], None) => {
            let source = sources.source(name, parsed.text("format").as_deref())?;
            let image = match parsed.text("snapshot") {
                Some(selector) => convert::open_snapshot(source, &selector)?,
                None => source.open()?,
            };
            target.converter(&sources, options(image.virtual_size()))?.measure(&image)
        }
        ([], None) => return Err(Failed::new("Either --size N or one filename must be specified").see_help("measure")),
        ([_], Some(_)) => return Err(Failed::new("--size N cannot be used together with a filename")),
        _ => return Err(Failed::new("At most one filename argument is allowed.").see_help("measure")),
    };
    let measured = measured.map_err(|error| {
        Failed::new(creation_problem("", &error).replace(&format!(" for file format '{}'", format.name()), ""))
    })?;
    match style {
        Style::Json => output::print_json_indented(&measured)?,
        Style::Human => measure::print(&measured, style)?,
    }
    Ok(0)
}
