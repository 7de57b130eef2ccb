//! `qemu-img dd`

use std::sync::Arc;

use diskimage::{Converter, Format, Image, OpenOptions, io};

use super::Outcome;
use super::getopt::Parsed;
use super::message::{self, Failed, NAME};
use super::source::Sources;
use super::target::{Target, format_for};
use crate::node::Node;
use crate::signals::Interrupt;

/// The operands, in bytes and blocks.
struct Operands<'a> {
    input: &'a str,
    output: &'a str,
    block: u64,
    count: Option<u64>,
    skip: u64,
}

/// The largest block in bytes.
const MAX_BLOCK: u64 = i32::MAX as u64;

pub fn run(parsed: &Parsed) -> Outcome {
    let words: Vec<_> = parsed.operands.iter().map(|word| word.to_string_lossy()).collect();
    let operands = Operands::parse(words.iter().map(AsRef::as_ref))?;
    let interrupt = Interrupt::register()?;
    let sources = Sources::new(parsed);
    let image = sources.source(operands.input.as_ref(), parsed.text("format").as_deref())?.open()?;
    let path = Node::new_file(operands.output.as_ref())?;
    let format = format_for(&parsed.text("output-format").unwrap_or("raw".into()))?;

    // The count includes what is skipped, unlike that of dd(1).
    let end = operands.count.map_or(u64::MAX, |count| count.saturating_mul(operands.block)).min(image.virtual_size());
    let skipped = operands.skip.saturating_mul(operands.block);
    if skipped > end {
        // As in qemu-img, which then copies nothing.
        message::line(&format!("{NAME}: {}: cannot skip to specified offset", operands.input));
    }
    let start = skipped.min(end);
    let part = io::range_of(Arc::new(image), start..end);
    let part = OpenOptions::new()
        .format(Format::RAW)
        .open_source(part)
        .map_err(|error| Failed::opening(operands.input, &error))?;
    // Whole sectors, as in qemu.
    let part = Image::concatenate(vec![part])?;
    let options = Target::new(format, std::iter::empty())?.options(end - start);
    let converter = Converter::new(format).options(options).sync(false).in_place(true).cancel(interrupt.flag());
    converter.convert(&part, &path).map_err(|error| {
        Failed::unless_cancelled(&interrupt, error, |error| Failed::creating(operands.output, error))
    })?;
    Ok(0)
}

impl<'a> Operands<'a> {
    fn parse(words: impl Iterator<Item = &'a str>) -> Result<Operands<'a>, Failed> {
        let mut operands = Operands { input: "", output: "", block: 512, count: None, skip: 0 };
        for word in words {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match name {
                _ if !word.contains('=') => return Err(Failed::new(format!("unrecognized operand {word}"))),
                "if" => operands.input = value,
                "of" => operands.output = value,
                "bs" => operands.block = block_size(value)?,
                "count" => operands.count = Some(blocks(name, value)?),
                "skip" => operands.skip = blocks(name, value)?,
                _ => return Err(Failed::new(format!("unrecognized operand {name}"))),
            }
        }
        if operands.input.is_empty() || operands.output.is_empty() {
            return Err(Failed::new("Must specify both input and output files"));
        }
        Ok(operands)
    }
}

fn block_size(text: &str) -> Result<u64, Failed> {
    match super::size(text) {
        Ok(size @ 1..=MAX_BLOCK) => Ok(size),
        Ok(_) | Err(true) => Err(Failed::new(format!("Invalid bs specified. Must be between 1 and {MAX_BLOCK}."))),
        Err(false) => Err(Failed::new(format!("Invalid bs specified: '{text}'."))),
    }
}

/// A number without a suffix.
fn blocks(name: &str, text: &str) -> Result<u64, Failed> {
    let is_plain = !text.ends_with(|c: char| c.is_ascii_alphabetic()) || text.starts_with("0x");
    match super::size(text) {
        Ok(count) if is_plain => Ok(count),
        Err(true) if is_plain => {
            Err(Failed::new(format!("Invalid {name} specified. Must be between 0 and {}.", i64::MAX)))
        }
        _ => Err(Failed::new(format!("Invalid {name} specified: '{text}'."))),
    }
}
