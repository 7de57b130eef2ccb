//! `qemu-img dd`

use std::sync::Arc;

use diskimage::{Converter, Format, Image, OpenOptions, io};

use super::Outcome;
use super::getopt::Parsed;
use super::message::{self, Failed, NAME};
use super::node::Node;
use super::source::Sources;
use super::target::{Target, format_for};
use crate::signals::Interrupt;

/// The operands, in bytes and blocks.
struct Operands<'a> {
    input: &'a str,
    output: &'a str,
    block: u64,
    count: Option<u64>,
    skip: u64,
}

pub fn run(parsed: &Parsed) -> Outcome {
    let words: Vec<_> = parsed.operands.iter().map(|word| word.to_string_lossy()).collect();
    let operands = Operands::parse(words.iter().map(AsRef::as_ref))?;
    let interrupt = Interrupt::register()?;
    let sources = Sources::new(parsed);
    let image = sources.source(operands.input.as_ref(), parsed.text("format").as_deref())?.open()?;
    let target = Node::new_file(operands.output.as_ref())?;
    let format = format_for(&parsed.text("output-format").unwrap_or("raw".into()))?;

    let size = image.virtual_size();
    let start = operands.skip.saturating_mul(operands.block).min(size);
    let end = operands.count.map_or(size, |count| start.saturating_add(count.saturating_mul(operands.block)).min(size));
    if operands.skip.saturating_mul(operands.block) > size {
        // As in qemu-img, which then copies nothing.
        message::line(&format!("{NAME}: {}: cannot skip to specified offset", operands.input));
    }
    let part = io::range_of(Arc::new(image), start..end);
    let part = OpenOptions::new()
        .format(Format::RAW)
        .open_source(part)
        .map_err(|error| Failed::opening(operands.input, &error))?;
    // Whole sectors, as in qemu.
    let part = Image::concatenate(vec![part])?;
    let options = Target::new(format, std::iter::empty())?.options(end - start);
    let converter = Converter::new(format).options(options).sync(false).in_place(true).cancel(interrupt.flag());
    converter.convert(&part, target).map_err(|error| Failed::creating(operands.output, &error))?;
    Ok(0)
}

impl<'a> Operands<'a> {
    fn parse(words: impl Iterator<Item = &'a str>) -> Result<Operands<'a>, Failed> {
        let mut operands = Operands { input: "", output: "", block: 512, count: None, skip: 0 };
        for word in words {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let number = || super::size(value).map_err(|_| Failed::new(format!("invalid number: '{value}'")));
            match name {
                "if" => operands.input = value,
                "of" => operands.output = value,
                "bs" => operands.block = number()?,
                "count" => operands.count = Some(number()?),
                "skip" => operands.skip = number()?,
                _ => return Err(Failed::new(format!("unrecognized operand {name}"))),
            }
        }
        if operands.input.is_empty() || operands.output.is_empty() {
            return Err(Failed::new("Must specify both input and output file names"));
        }
        if operands.block == 0 {
            return Err(Failed::new("invalid number: '0'"));
        }
        Ok(operands)
    }
}
