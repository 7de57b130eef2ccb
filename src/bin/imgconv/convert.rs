//! `imgconv convert`

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::builder::RangedU64ValueParser;
use diskimage::driver::FileId;
use diskimage::{Converter, Error, Format, Image, Name, Report, parse_size};
use serde_json::json;

use crate::args::{self, BackingArgs, Endpoint, Output, ReferenceArgs};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Style};
use crate::progress::{Bar, When};
use crate::signals::Interrupt;
use crate::streams;

/// Convert an image to another format, or rewrite it in the same format
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Format of SOURCE [default: detected]
    #[arg(short = 'f', long = "source-format", value_name = "FMT", value_parser = args::format)]
    source_format: Option<Format>,

    /// Format of TARGET [default: from its extension]
    #[arg(short = 'O', long = "target-format", value_name = "FMT", value_parser = args::format)]
    target_format: Option<Format>,

    /// Options of the target format; see imgconv formats
    #[arg(short = 'o', long = "target-options", value_name = "K=V,...")]
    options: Vec<String>,

    /// Compress guest data
    #[arg(short = 'c', long)]
    compress: bool,

    /// Convert an internal snapshot: its ID or name, or
    /// snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long = "source-snapshot", value_name = "SNAPSHOT", verbatim_doc_comment)]
    snapshot: Option<String>,

    #[command(flatten)]
    backing: BackingArgs,

    /// Omit runs of at least SIZE zero bytes; 0 stores all zeros. SIZE is
    /// a multiple of 512, at most 16M, and rounded down to a power of two
    /// [default: 4k]
    #[arg(short = 'S', long, value_name = "SIZE", value_parser = sparse_size, verbatim_doc_comment)]
    sparse_size: Option<u64>,

    /// Number of threads, 1 to 64 [default: cores, at most 16]
    #[arg(short = 'm', long = "parallel", value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    threads: Option<usize>,

    /// Show the progress bar at once, not after a second
    #[arg(short = 'p', long)]
    progress: bool,

    /// Print errors only
    #[arg(short = 'q', long)]
    quiet: bool,

    #[command(flatten)]
    references: ReferenceArgs,

    /// Do not sync TARGET; a power failure may then damage it
    #[arg(long)]
    no_sync: bool,

    /// Fail if TARGET exists
    #[arg(long)]
    no_clobber: bool,

    #[command(flatten)]
    output: Output,

    /// Image to convert, or - for standard input
    #[arg(value_parser = args::endpoint())]
    source: Endpoint,

    /// Output file, or - for standard output; an existing file is
    /// replaced on success
    #[arg(value_parser = args::endpoint(), verbatim_doc_comment)]
    target: Endpoint,
}

const AFTER_HELP: &str = "\
TARGET is written to a temporary file in the same directory, synced and then renamed.
A failed conversion leaves nothing behind. Further files of an image are named after
TARGET, as disk-flat.vmdk or disk-s001.vmdk, and replace existing files.

Standard input is read sequentially: it must be a streamOptimized vmdk, with -f vmdk.
Standard output is written sequentially: it can be a raw disk, zeros included, or a
streamOptimized vmdk. For standard output, check the exit code: a failed conversion
leaves a truncated image.

Examples:
  imgconv convert disk.raw disk.qcow2
  imgconv convert -c -o cluster_size=128k,compression_type=zstd disk.raw disk.qcow2
  imgconv convert -l before-upgrade disk.qcow2 old.raw
  imgconv convert --references beside overlay.qcow2 whole.qcow2
  imgconv convert --references beside disk.vmdk disk.raw
  imgconv convert -B base.qcow2 changed.raw overlay.qcow2
  tar -xOf vm.ova vm-disk1.vmdk | imgconv convert -f vmdk - disk.qcow2
  imgconv convert -O vmdk -o subformat=streamOptimized disk.qcow2 - | ssh host 'cat >disk.vmdk'";

impl Args {
    pub fn run(&self) -> Outcome {
        self.check_streams()?;
        let interrupt = match self.target {
            // There is nothing to clean up, and a write to a reader that has stopped reading blocks forever.
            Endpoint::Stream => Interrupt::at_once()?,
            Endpoint::File(_) => Interrupt::register()?,
        };
        let format = args::target_format(self.target_format, "-O", self.target_name())?;
        let source = self.open_source(&interrupt)?;
        self.warn(&source);
        let bar = Bar::new(match (self.quiet, self.progress) {
            (true, _) => When::Never,
            (false, true) => When::Immediately,
            (false, false) => When::Delayed,
        });
        let converter = self.converter(format, &bar)?.cancel(interrupt.flag());
        let result = match &self.target {
            Endpoint::Stream => converter.convert_to(&source, Arc::new(streams::output()?)),
            Endpoint::File(path) => converter.convert(&source, path),
        };
        bar.clear();
        match result {
            Ok(report) => self.print_report(&report),
            Err(error) => Err(interrupt.failure(self.in_stream(error))),
        }
    }

    /// Output style of results and errors. With an image on standard output, it is `Human`.
    pub fn style(&self) -> Style {
        if self.target == Endpoint::Stream { Style::Human } else { self.output.style }
    }

    /// Rejects options that a stream does not support.
    fn check_streams(&self) -> Result<(), Failure> {
        let refuse = |problem: &str| Err(Failure::usage(problem));
        if self.source == Endpoint::Stream {
            if self.source_format.is_none() {
                return refuse("the format of standard input cannot be detected; set it with -f");
            }
            if self.snapshot.is_some() {
                return refuse("-l needs a file as SOURCE: standard input is read sequentially");
            }
            if io::stdin().is_terminal() {
                return refuse("standard input is a terminal, expected a file or a pipe");
            }
        }
        if self.target == Endpoint::Stream {
            if self.output.style == Style::Json {
                return refuse("--output json needs a file as TARGET: the image is written to standard output");
            }
            if self.no_clobber {
                return refuse("--no-clobber needs a file as TARGET");
            }
            if self.backing.is_given() {
                return refuse("-B needs a file as TARGET: an overlay cannot be written sequentially");
            }
            if io::stdout().is_terminal() {
                return refuse("standard output is a terminal, expected a file or a pipe");
            }
        }
        Ok(())
    }

    fn source_name(&self) -> &Path {
        self.source.name("standard input")
    }

    fn target_name(&self) -> &Path {
        self.target.name("standard output")
    }

    /// Attributes an error without a file to standard input, if that is the source.
    fn in_stream(&self, error: Error) -> Error {
        match self.source {
            Endpoint::Stream => error.in_file(self.source_name()),
            Endpoint::File(_) => error,
        }
    }

    /// Prints the warnings of each layer.
    fn warn(&self, source: &Image) {
        for (layer, info) in source.layers().enumerate().filter(|_| !self.quiet) {
            let path = source.file_path(layer, FileId::default()).unwrap_or(self.source_name()).display();
            if info.corrupt {
                output::note(&format!("{path}: the image is marked as corrupt"));
            }
            if info.dirty {
                output::note(&format!("{path}: the image was not closed cleanly"));
            }
            for warning in &info.warnings {
                output::note(&format!("{path}: {warning}"));
            }
        }
    }

    fn open_source(&self, interrupt: &Interrupt) -> Result<Image, Failure> {
        let options = self.references.options(self.source_format);
        match (&self.source, &self.snapshot) {
            (Endpoint::Stream, _) => {
                let image = options.open_stream(streams::input(interrupt.flag())?);
                image.map_err(|error| interrupt.failure(self.in_stream(error)))
            }
            (Endpoint::File(path), None) => Ok(options.open(path)?),
            (Endpoint::File(path), Some(selector)) => {
                Ok(options.snapshot(self.snapshot_id(path, selector)?).open(path)?)
            }
        }
    }

    /// Returns the ID of the snapshot that `-l` selects, or the argument of `-l` if it is a plain ID or name.
    fn snapshot_id(&self, source: &Path, selector: &str) -> Result<String, Failure> {
        let Some(wanted) = SnapshotSelector::parse(selector)? else { return Ok(selector.to_owned()) };
        let inspection = self.references.options(self.source_format).inspect(source)?;
        let found = inspection.info.snapshots.iter().find(|snapshot| {
            let is = |name: &Name, wanted: Option<&str>| wanted.is_none_or(|w| name.as_bytes() == w.as_bytes());
            is(&snapshot.id, wanted.id) && is(&snapshot.name, wanted.name)
        });
        found
            .map(|snapshot| snapshot.id.to_text().into_owned())
            .ok_or_else(|| Failure::usage(format!("{}: no snapshot matches {selector}", source.display())))
    }

    fn converter(&self, format: Format, bar: &Bar) -> Result<Converter, Failure> {
        let bar = bar.clone();
        let options = args::format_options(&self.options);
        let mut converter = Converter::new(format)
            .options(options.clone())
            .compress(self.compress)
            .sync(!self.no_sync)
            .clobber(!self.no_clobber)
            .progress(move |progress| bar.update(progress));
        if let Some(size) = self.sparse_size {
            converter = converter.sparse(size);
        }
        if let Some(threads) = self.threads {
            converter = converter.threads(threads);
        }
        if let Some((image, name)) = self.backing.open(&self.references, format, &options, self.target_name())? {
            converter = converter.backing(image, name);
        }
        Ok(converter)
    }

    /// Prints the report in JSON style, and a note about padding.
    fn print_report(&self, report: &Report) -> Outcome {
        if report.padding > 0 && !self.quiet {
            let (target, padding) = (self.target_name().display(), report.padding);
            output::note(&format!("{target}: the disk was padded with {padding} zero bytes"));
        }
        if self.style() == Style::Json {
            output::print_json(&json!({
                "source": self.source.name("-").to_string_lossy(),
                "source-format": report.source_format.map_or("", |format| format.name()),
                "target": self.target_name().to_string_lossy(),
                "target-format": report.format.name(),
                "virtual-size": report.virtual_size,
                "padding": report.padding,
                "data-bytes": report.data_bytes,
                "compressed-blocks": report.compressed_blocks,
                "passthrough-blocks": report.passthrough_blocks,
                "written-bytes": report.written_bytes,
            }))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Selects a snapshot by ID, by name or by both.
#[derive(Debug, Default, PartialEq, Eq)]
struct SnapshotSelector<'a> {
    id: Option<&'a str>,
    name: Option<&'a str>,
}

impl<'a> SnapshotSelector<'a> {
    /// Parses `snapshot.id=ID`, `snapshot.name=NAME`, or both with a comma. Returns `None` for text without this prefix.
    fn parse(text: &'a str) -> Result<Option<Self>, Failure> {
        if !text.starts_with("snapshot.") {
            return Ok(None);
        }
        let mut wanted = SnapshotSelector::default();
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("snapshot.id", id)) => wanted.id = Some(id),
                Some(("snapshot.name", name)) => wanted.name = Some(name),
                _ => {
                    let problem =
                        format!("-l: invalid selector {part:?}: expected snapshot.id=ID or snapshot.name=NAME");
                    return Err(Failure::usage(problem));
                }
            }
        }
        Ok(Some(wanted))
    }
}

/// Parses the argument of `-S`, for clap.
fn sparse_size(text: &str) -> Result<u64, String> {
    const MAX: u64 = 16 << 20;
    match parse_size(text) {
        Ok(size) if size <= MAX && size % 512 == 0 => Ok(size),
        Ok(_) => Err("must be a multiple of 512 and at most 16M".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_selectors() {
        let parse = |text| SnapshotSelector::parse(text).unwrap();
        assert_eq!(parse("before"), None);
        assert_eq!(parse("a=b,c"), None);
        assert_eq!(parse("snapshot.id=1"), Some(SnapshotSelector { id: Some("1"), name: None }));
        assert_eq!(parse("snapshot.name=a=b"), Some(SnapshotSelector { id: None, name: Some("a=b") }));
        assert_eq!(parse("snapshot.id=1,snapshot.name=x"), Some(SnapshotSelector { id: Some("1"), name: Some("x") }));
        assert!(SnapshotSelector::parse("snapshot.foo=1").is_err());
        assert!(SnapshotSelector::parse("snapshot.id").is_err());
    }

    #[test]
    fn sparse_sizes() {
        assert_eq!(sparse_size("0"), Ok(0));
        assert_eq!(sparse_size("4k"), Ok(4096));
        assert_eq!(sparse_size("16M"), Ok(16 << 20));
        for text in ["511", "16385k", "x", "1.1k"] {
            assert!(sparse_size(text).is_err(), "{text}");
        }
    }
}
