//! `imgconv map`

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use diskimage::driver::ExtentKind;
use diskimage::{Image, Name, Result, Span};

use crate::args::{Input, Outcome};
use crate::failure::Failure;
use crate::output::{Stdout, Style};

/// Show where the bytes of the disk live
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    pub input: Input,
}

const AFTER_HELP: &str = "\
For people, a table of the data, with its place in the file that holds it. For programs,
the whole disk with qemu-img's keys: start, length, depth (0 is FILE, 1 its backing file,
and so on), present, zero, data, compressed, and offset where the bytes are stored as
they are.";

impl Args {
    pub fn run(&self) -> Outcome {
        let image = self.input.options().open(&self.input.file)?;
        // The metadata is read twice: so a bad image leaves nothing on standard output, and a large map is never in memory.
        entries(&image).try_for_each(|entry| entry.map(drop))?;
        let mut stdout = Stdout::new();
        match self.input.output.style {
            Style::Human => print_table(&image, &mut stdout)?,
            Style::Json => print_json(&image, &mut stdout)?,
        }
        stdout.finish()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn print_table(image: &Image, stdout: &mut Stdout) -> Result<(), Failure> {
    stdout.write(&row("Offset", "Length", "Mapped to", "File"))?;
    for entry in entries(image) {
        let entry = entry?;
        if entry.data {
            let place = entry.offset.map_or("compressed".to_owned(), hex);
            let file = entry.file.map_or("-".to_owned(), |path| Name::from(path).to_string());
            stdout.write(&row(&hex(entry.start), &hex(entry.length), &place, &file))?;
        }
    }
    Ok(())
}

fn row(offset: &str, length: &str, place: &str, file: &str) -> String {
    format!("{offset:<16}{length:<16}{place:<16}{file}\n")
}

fn hex(number: u64) -> String {
    if number == 0 { "0".to_owned() } else { format!("{number:#x}") }
}

/// One entry per line, exactly as qemu-img writes it: people take it apart with line tools.
fn print_json(image: &Image, stdout: &mut Stdout) -> Result<(), Failure> {
    let mut separator = "[";
    for entry in entries(image) {
        stdout.write(separator)?;
        stdout.write(&entry?.json())?;
        separator = ",\n";
    }
    stdout.write(if separator == "[" { "[]\n" } else { "]\n" })
}

/// What `map` tells of a run of guest bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry<'a> {
    start: u64,
    length: u64,
    depth: usize,
    /// Some layer has it, be it as zeros.
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    offset: Option<u64>,
    file: Option<&'a Path>,
}

impl<'a> Entry<'a> {
    fn new(span: &Span, image: &'a Image) -> Self {
        let (place, compressed) = match span.kind {
            ExtentKind::Data(at) => (Some(at), false),
            ExtentKind::Zero { allocated } => (allocated, false),
            ExtentKind::Compressed(_) => (None, true),
            _ => (None, false),
        };
        let holder = match span.kind {
            ExtentKind::Compressed(unit) => Some(unit.at.file),
            _ => place.map(|at| at.file),
        };
        Entry {
            start: span.offset,
            length: span.len,
            depth: span.layer,
            present: span.kind != ExtentKind::Hole,
            zero: span.is_zero(),
            data: !span.is_zero(),
            compressed,
            offset: place.map(|at| at.offset),
            file: holder.and_then(|file| image.file_path(span.layer, file)),
        }
    }

    /// The two as one, if `next` follows and nothing tells them apart.
    fn join(self, next: Entry<'a>) -> Option<Entry<'a>> {
        let moved = Entry {
            start: self.start + self.length,
            length: next.length,
            offset: self.offset.map(|offset| offset.saturating_add(self.length)),
            ..self
        };
        (moved == next).then(|| Entry { length: self.length + next.length, ..self })
    }

    fn json(&self) -> String {
        let Entry { start, length, depth, present, zero, data, compressed, offset, file: _ } = self;
        let mut text = format!(
            "{{ \"start\": {start}, \"length\": {length}, \"depth\": {depth}, \"present\": {present}, \"zero\": {zero}, \
             \"data\": {data}, \"compressed\": {compressed}"
        );
        if let Some(offset) = offset {
            // Writing to a string does not fail.
            let _ = write!(text, ", \"offset\": {offset}");
        }
        text + "}"
    }
}

/// The map of the whole disk, in as few entries as can be.
fn entries(image: &Image) -> impl Iterator<Item = Result<Entry<'_>>> {
    merged(image.spans(0..u64::MAX).map(|span| span.map(|span| Entry::new(&span, image))))
}

/// Joins neighbours. After an error it ends.
fn merged<'a>(entries: impl Iterator<Item = Result<Entry<'a>>>) -> impl Iterator<Item = Result<Entry<'a>>> {
    let mut entries = entries.peekable();
    std::iter::from_fn(move || {
        let mut entry = match entries.next()? {
            Ok(entry) => entry,
            error => return Some(error),
        };
        while let Some(Ok(next)) = entries.peek() {
            let Some(joined) = entry.join(*next) else { break };
            entry = joined;
            entries.next();
        }
        Some(Ok(entry))
    })
}

#[cfg(test)]
mod tests {
    use diskimage::Error;

    use super::*;

    const DATA: Entry<'_> = Entry {
        start: 0,
        length: 512,
        depth: 0,
        present: true,
        zero: false,
        data: true,
        compressed: false,
        offset: Some(4096),
        file: None,
    };

    fn after(entry: Entry<'static>, offset: Option<u64>) -> Entry<'static> {
        Entry { start: entry.start + entry.length, offset, ..entry }
    }

    fn merge(entries: &[Entry<'static>]) -> Vec<Entry<'static>> {
        merged(entries.iter().copied().map(Ok)).collect::<Result<_>>().unwrap()
    }

    #[test]
    fn neighbours_are_joined_where_the_file_goes_on() {
        let next = after(DATA, Some(4096 + 512));
        let apart = after(next, Some(0));
        assert_eq!(merge(&[DATA, next, apart]), [Entry { length: 1024, ..DATA }, apart]);
    }

    #[test]
    fn what_has_no_offset_is_joined_too() {
        let hole = Entry { present: false, zero: true, data: false, offset: None, ..DATA };
        let compressed = Entry { compressed: true, offset: None, ..after(DATA, None) };
        assert_eq!(merge(&[hole, after(hole, None)]), [Entry { length: 1024, ..hole }]);
        assert_eq!(merge(&[compressed, after(compressed, None)]), [Entry { length: 1024, ..compressed }]);
    }

    #[test]
    fn layers_and_files_stay_apart() {
        let deeper = Entry { depth: 1, ..after(DATA, Some(4096 + 512)) };
        let other_file = Entry { file: Some(Path::new("x")), ..after(DATA, Some(4096 + 512)) };
        assert_eq!(merge(&[DATA, deeper]).len(), 2);
        assert_eq!(merge(&[DATA, other_file]).len(), 2);
    }

    #[test]
    fn an_error_comes_after_what_was_before_it() {
        let mut merged = merged([Ok(DATA), Err(Error::Cancelled)].into_iter());
        assert_eq!(merged.next().unwrap().unwrap(), DATA);
        assert!(merged.next().unwrap().is_err());
        assert!(merged.next().is_none());
    }

    /// The expected line is one of qemu-img 10.
    #[test]
    fn a_line_is_that_of_qemu_img() {
        assert_eq!(
            DATA.json(),
            r#"{ "start": 0, "length": 512, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 4096}"#
        );
    }
}
