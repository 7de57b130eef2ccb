//! `imgconv map`

mod plot;

use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;

use diskimage::driver::{ExtentKind, FileId, Location as Host};
use diskimage::io::{FileSource, ReadAt};
use diskimage::nbd::Client;
use diskimage::{Error, Format, Image, ImageInfo, Name, Result, Span, Value};

use crate::args::Input;
use crate::failure::{Failure, Outcome};
use crate::guest;
use crate::location::Location;
use crate::output::{Stdout, Style};

/// Show the mapping of guest offsets to host offsets
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Draw the disk: how much of each part of it is stored, and how. In
    /// characters, as wide as COLUMNS says, or as SVG
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    #[arg(verbatim_doc_comment)]
    plot: Option<plot::How>,

    /// With --plot, also tell what the file systems of the disk do not use
    #[arg(long, requires = "plot")]
    guest: bool,

    #[command(flatten)]
    pub input: Input,
}

const AFTER_HELP: &str = "\
The human style is a table of the ranges with data and their host offsets. The JSON style
lists the whole disk with the keys of qemu-img map: start, length, depth (0 is FILE, 1 its
backing file), present, zero, data, compressed and, unless compressed, offset.

Of --plot, the JSON style has the bytes of each kind in each cell.

Examples:
  imgconv map --plot disk.qcow2
  imgconv map --plot=svg --guest disk.qcow2 >disk.svg";

impl Args {
    pub fn run(&self) -> Outcome {
        let (options, file) = self.input.open()?;
        let mut image = Location::find(file)?.open(&options)?;
        if let Some(how) = self.plot {
            if how == plot::How::Svg && self.input.output.style == Style::Json {
                return Err(Failure::usage("--plot=svg cannot be used with --output json"));
            }
            if self.guest {
                guest::note_kept(image.drop_free_space()?, &self.input.file.to_string_lossy());
            }
            plot::print(&image, how, self.input.output.style, &self.input.file)?;
            return Ok(ExitCode::SUCCESS);
        }
        print(&image, 0..u64::MAX, self.input.output.style, FileHoles::Shown)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Whether a hole of the file is told from data, where an image maps a range to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FileHoles {
    Shown,
    /// As by qemu-img, which looks for them only where the format allocates nothing, and in qcow2 images that seem to be preallocated.
    AsByQemu,
}

/// Prints the map of a guest range.
pub fn print(image: &Image, range: Range<u64>, style: Style, holes: FileHoles) -> Result<()> {
    // Reading the metadata twice: nothing is printed for a corrupt image, and a large map is never in memory.
    let details = details(image, range.clone(), holes)?;
    let mut stdout = Stdout::new();
    match style {
        Style::Human if holes == FileHoles::AsByQemu => {
            // The rows before are printed.
            let told = table_of(entries(image, range, &details).map(with_offset), &mut stdout);
            stdout.finish()?;
            return told;
        }
        Style::Human => table_of(entries(image, range, &details), &mut stdout)?,
        Style::Json => json_of(entries(image, range, &details), &mut stdout)?,
    }
    stdout.finish()
}

/// The entry, unless it is data that the table of qemu-img has no column for.
fn with_offset(entry: Result<MapEntry<'_>>) -> Result<MapEntry<'_>> {
    match entry {
        Ok(entry) if entry.data && entry.offset.is_none() => {
            Err(Error::Usage("File contains external, encrypted or compressed clusters.".into()))
        }
        entry => entry,
    }
}

/// The first guest offset at which qemu-img sees other states of the two images: what is allocated, is zeros, or is stored in another way.
pub fn first_other_state(a: &Image, b: &Image) -> Result<Option<u64>> {
    let [of_a, of_b] = [a, b].map(|image| details(image, 0..u64::MAX, FileHoles::AsByQemu));
    let (of_a, of_b) = (of_a?, of_b?);
    let mut others = entries(b, 0..u64::MAX, &of_b);
    let mut other = others.next().transpose()?;
    for entry in entries(a, 0..u64::MAX, &of_a) {
        let mut entry = entry?;
        while entry.length > 0 {
            let Some(theirs) = other else { return Ok(None) };
            if entry.state() != theirs.state() {
                return Ok(Some(entry.start));
            }
            let len = entry.length.min(theirs.length);
            entry = entry.after(len);
            let rest = theirs.after(len);
            other = if rest.length == 0 { others.next().transpose()? } else { Some(rest) };
        }
    }
    Ok(None)
}

/// What is told of each layer, from the metadata of a guest range.
fn details(image: &Image, range: Range<u64>, holes: FileHoles) -> Result<Vec<Detail>> {
    let mut mapped = vec![0u64; image.layer_count()];
    for span in image.spans(range) {
        let span = span?;
        if let (Some(mapped), Some(_)) = (mapped.get_mut(span.layer), span.location()) {
            *mapped = mapped.saturating_add(span.len);
        }
    }
    Ok(match holes {
        FileHoles::Shown => vec![Detail::FileHoles; image.layer_count()],
        FileHoles::AsByQemu => {
            let layers = image.layers().zip(mapped).enumerate();
            layers.map(|(layer, (info, mapped))| detail_of_qemu(image, layer, info, mapped)).collect()
        }
    })
}

/// What is told of a layer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detail {
    /// What is allocated, and the holes of its file.
    FileHoles,
    /// What is allocated.
    Blocks,
    /// Everything is data.
    Nothing,
}

/// What qemu-img tells of a layer, which maps `mapped` bytes.
fn detail_of_qemu(image: &Image, layer: usize, info: &ImageInfo, mapped: u64) -> Detail {
    match info.format {
        "vhdx" | "dmg" | "bochs" | "cloop" => Detail::Nothing,
        _ if hides_holes(image, layer, info, mapped) => Detail::Blocks,
        _ => Detail::FileHoles,
    }
}

/// Whether qemu-img takes the holes of the file of a layer for data. The layer maps `mapped` bytes.
fn hides_holes(image: &Image, layer: usize, info: &ImageInfo, mapped: u64) -> bool {
    let is = |key: &str, values: &[&str]| match info.specific.iter().find(|(name, _)| *name == key) {
        Some((_, Value::Text(text))) => values.iter().any(|value| text.to_text().contains(value)),
        _ => false,
    };
    match info.format {
        "raw" | "luks" => false,
        "vmdk" => !is("create-type", &["Flat", "vmfs"]),
        "vpc" => !is("subformat", &["fixed"]),
        "vdi" => !is("type", &["static"]),
        "qcow2" => {
            let file = image.file_path(layer, FileId::default()).and_then(|path| FileSource::open(path).ok());
            let (Some(Ok(allocated)), Some(cluster)) = (file.map(|file| file.allocated()), info.block_size) else {
                return false;
            };
            let clusters = allocated / u64::from(cluster);
            mapped / u64::from(cluster) < (clusters * 10 / 9).max(clusters + 2)
        }
        _ => true,
    }
}

/// Prints the states of a metadata context as the map of the export, as qemu-img does: bit 0 as what has no data, and bit 1 as zeros.
pub fn print_states(client: &Client, range: Range<u64>, style: Style) -> Result<()> {
    let size = client.size().map_err(Error::io("asking for the size", None))?;
    let (mut at, end) = (range.start, size.min(range.end));
    let mut states = Vec::new().into_iter();
    let states = std::iter::from_fn(|| {
        if at < end && states.len() == 0 {
            match client.states(at) {
                Ok(next) => states = next.into_iter(),
                Err(error) => {
                    at = end;
                    return Some(Err(Error::io("asking for the states", None)(error)));
                }
            }
        }
        let (part, state): (Range<u64>, u32) = states.next().filter(|(part, _)| part.start < end)?;
        at = part.end;
        Some(Ok(MapEntry::of_state(part.start..part.end.min(end), state)))
    });
    let mut stdout = Stdout::new();
    match style {
        Style::Human => table_of(merged(states), &mut stdout)?,
        Style::Json => json_of(merged(states), &mut stdout)?,
    }
    stdout.finish()
}

fn table_of<'a>(entries: impl Iterator<Item = Result<MapEntry<'a>>>, stdout: &mut Stdout) -> Result<()> {
    stdout.write(&row("Offset", "Length", "Mapped to", "File"))?;
    for entry in entries {
        let entry = entry?;
        if !entry.zero {
            let host_offset = entry.offset.map_or("compressed".to_owned(), hex);
            let file = entry.file.map_or("-".to_owned(), |path| Name::from(path).to_string());
            stdout.write(&row(&hex(entry.start), &hex(entry.length), &host_offset, &file))?;
        }
    }
    Ok(())
}

fn row(offset: &str, length: &str, host_offset: &str, file: &str) -> String {
    format!("{offset:<16}{length:<16}{host_offset:<16}{file}\n")
}

fn hex(number: u64) -> String {
    if number == 0 { "0".to_owned() } else { format!("{number:#x}") }
}

/// Prints one entry per line, exactly as qemu-img does, for line-based tools.
fn json_of<'a>(entries: impl Iterator<Item = Result<MapEntry<'a>>>, stdout: &mut Stdout) -> Result<()> {
    let mut separator = "[";
    for entry in entries {
        stdout.write(separator)?;
        stdout.write(&entry?.json())?;
        separator = ",\n";
    }
    stdout.write(if separator == "[" { "[]\n" } else { "]\n" })
}

/// Mapping of a range of guest bytes; the fields are the JSON keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MapEntry<'a> {
    start: u64,
    length: u64,
    depth: usize,
    /// Whether a layer allocates it, as data or as zeros.
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    offset: Option<u64>,
    file: Option<&'a Path>,
}

impl<'a> MapEntry<'a> {
    fn new(span: &Span, image: &'a Image, details: &[Detail]) -> Self {
        let detail = details.get(span.layer).copied().unwrap_or(Detail::FileHoles);
        if detail == Detail::Nothing {
            let (present, zero, data) = (true, false, true);
            let (start, length, depth) = (span.offset, span.len, span.layer);
            return MapEntry { start, length, depth, present, zero, data, compressed: false, offset: None, file: None };
        }
        // What follows the end of a raw disk, up to a whole sector, would be there: as qemu-img sees it.
        let is_padding = span.kind == ExtentKind::Hole
            && image.layers().nth(span.layer).is_some_and(|layer| layer.format == Format::RAW.name());
        let padding = is_padding.then(|| Host { file: FileId::default(), offset: span.offset });
        let location = span.location().or(padding);
        let file = match span.kind {
            ExtentKind::Compressed(unit) => Some(unit.at.file),
            _ => location.map(|at| at.file),
        };
        MapEntry {
            start: span.offset,
            length: span.len,
            depth: span.layer,
            present: span.kind != ExtentKind::Hole || is_padding,
            zero: if detail == Detail::Blocks { !span.is_data() } else { span.is_zero() },
            data: span.is_data(),
            compressed: matches!(span.kind, ExtentKind::Compressed(_)),
            offset: location.map(|at| at.offset),
            file: file.and_then(|file| image.file_path(span.layer, file)),
        }
    }

    fn of_state(range: Range<u64>, state: u32) -> Self {
        let (data, zero) = (state & 1 == 0, state & 2 != 0);
        MapEntry {
            start: range.start,
            length: range.end - range.start,
            depth: 0,
            present: data || zero,
            zero,
            data,
            compressed: false,
            offset: data.then_some(range.start),
            file: None,
        }
    }

    /// What is told of each byte.
    fn state(&self) -> [bool; 5] {
        [self.present, self.zero, self.data, self.compressed, self.offset.is_some()]
    }

    /// What is left of an entry without its first `len` bytes.
    fn after(self, len: u64) -> Self {
        let offset = self.offset.map(|offset| offset.saturating_add(len));
        MapEntry { start: self.start + len, length: self.length - len, offset, ..self }
    }

    /// Merges two entries, if `next` continues `self` in the same state.
    fn merge(self, next: MapEntry<'a>) -> Option<MapEntry<'a>> {
        let moved = MapEntry { length: next.length, ..self.after(self.length) };
        (moved == next).then(|| MapEntry { length: self.length + next.length, ..self })
    }

    fn json(&self) -> String {
        let MapEntry { start, length, depth, present, zero, data, compressed, offset, file: _ } = self;
        let mut text = format!(
            "{{ \"start\": {start}, \"length\": {length}, \"depth\": {depth}, \"present\": {present}, \"zero\": {zero}, \
             \"data\": {data}, \"compressed\": {compressed}"
        );
        if let Some(offset) = offset {
            // Writing to a string cannot fail.
            let _ = write!(text, ", \"offset\": {offset}");
        }
        text + "}"
    }
}

/// Iterates over the map of a guest range, with adjacent entries merged. `details` says what is told of each layer.
fn entries<'a>(
    image: &'a Image,
    range: Range<u64>,
    details: &'a [Detail],
) -> impl Iterator<Item = Result<MapEntry<'a>>> + 'a {
    merged(image.spans(range).map(|span| span.map(|span| MapEntry::new(&span, image, details))))
}

/// Merges adjacent entries. Ends after an error.
fn merged<'a>(entries: impl Iterator<Item = Result<MapEntry<'a>>>) -> impl Iterator<Item = Result<MapEntry<'a>>> {
    let mut entries = entries.peekable();
    std::iter::from_fn(move || {
        let mut entry = match entries.next()? {
            Ok(entry) => entry,
            error => return Some(error),
        };
        while let Some(Ok(next)) = entries.peek() {
            let Some(merged) = entry.merge(*next) else { break };
            entry = merged;
            entries.next();
        }
        Some(Ok(entry))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: MapEntry<'_> = MapEntry {
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

    fn after(entry: MapEntry<'static>, offset: Option<u64>) -> MapEntry<'static> {
        MapEntry { start: entry.start + entry.length, offset, ..entry }
    }

    fn merge(entries: &[MapEntry<'static>]) -> Vec<MapEntry<'static>> {
        merged(entries.iter().copied().map(Ok)).collect::<Result<_>>().unwrap()
    }

    #[test]
    fn contiguous_entries_are_merged() {
        let next = after(DATA, Some(4096 + 512));
        let apart = after(next, Some(0));
        assert_eq!(merge(&[DATA, next, apart]), [MapEntry { length: 1024, ..DATA }, apart]);
    }

    #[test]
    fn entries_without_offset_are_merged() {
        let hole = MapEntry { present: false, zero: true, data: false, offset: None, ..DATA };
        let compressed = MapEntry { compressed: true, offset: None, ..after(DATA, None) };
        assert_eq!(merge(&[hole, after(hole, None)]), [MapEntry { length: 1024, ..hole }]);
        assert_eq!(merge(&[compressed, after(compressed, None)]), [MapEntry { length: 1024, ..compressed }]);
    }

    #[test]
    fn entries_of_different_layers_and_files_are_not_merged() {
        let deeper = MapEntry { depth: 1, ..after(DATA, Some(4096 + 512)) };
        let other_file = MapEntry { file: Some(Path::new("x")), ..after(DATA, Some(4096 + 512)) };
        assert_eq!(merge(&[DATA, deeper]).len(), 2);
        assert_eq!(merge(&[DATA, other_file]).len(), 2);
    }

    #[test]
    fn an_error_follows_the_entries_before_it() {
        let mut merged = merged([Ok(DATA), Err(Error::Cancelled)].into_iter());
        assert_eq!(merged.next().unwrap().unwrap(), DATA);
        assert!(merged.next().unwrap().is_err());
        assert!(merged.next().is_none());
    }

    /// Expected line: qemu-img 10.
    #[test]
    fn a_line_matches_qemu_img() {
        assert_eq!(
            DATA.json(),
            r#"{ "start": 0, "length": 512, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 4096}"#
        );
    }
}
