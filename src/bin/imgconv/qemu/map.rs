//! `qemu-img map`

use diskimage::parse_size;

use super::getopt::Parsed;
use super::message::Failed;
use super::source::Sources;
use super::{Outcome, style};
use crate::map::{self, FileHoles};

pub fn run(parsed: &Parsed) -> Outcome {
    let style = style(parsed)?;
    let [name] = parsed.operands.as_slice() else {
        return Err(Failed::new("Expecting one image file name").see_help("map"));
    };
    let start = number(parsed, "start-offset", "start offset")?.unwrap_or(0);
    let end = number(parsed, "max-length", "max length")?.map_or(u64::MAX, |len| start.saturating_add(len));
    let source = Sources::new(parsed).source(name, parsed.text("format").as_deref())?;
    match source.states() {
        Some(client) => map::print_states(client, start..end, style)?,
        None => map::print(&source.open()?, start..end, style, FileHoles::AsByQemu)?,
    }
    Ok(0)
}

fn number(parsed: &Parsed, option: &str, what: &str) -> Result<Option<u64>, Failed> {
    let parse = |text: String| {
        super::size(&text)
            .or_else(|_| parse_size(&text))
            .map_err(|_| Failed::new(format!("Invalid {what} specified: '{text}'")))
    };
    parsed.text(option).map(parse).transpose()
}
