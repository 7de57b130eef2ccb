//! `imgconv convert`

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::builder::RangedU64ValueParser;
use diskimage::driver::FileId;
use diskimage::{Converter, Error, Format, Image, Name, Report, parse_size};
use serde_json::json;

use crate::args::{self, Base, Endpoint, Outcome, Output, ReferenceArgs};
use crate::failure::{self, Failure};
use crate::output::{self, Style};
use crate::progress::{Bar, When};
use crate::signals::Interrupt;
use crate::streams;

/// Convert an image to another format, or to the same one anew
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Format of SOURCE; without it, found by the content
    #[arg(short = 'f', long = "source-format", value_name = "FMT", value_parser = args::format)]
    source_format: Option<Format>,

    /// Format of TARGET; without it, told by the extension
    #[arg(short = 'O', long = "target-format", value_name = "FMT", value_parser = args::format)]
    target_format: Option<Format>,

    /// Options of the target format; imgconv formats lists them
    #[arg(short = 'o', long = "target-options", value_name = "K=V,...")]
    options: Vec<String>,

    /// Compress the data
    #[arg(short = 'c', long)]
    compress: bool,

    /// Read an internal snapshot of SOURCE: its id or its name, or
    /// snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long = "source-snapshot", value_name = "SNAPSHOT", verbatim_doc_comment)]
    snapshot: Option<String>,

    #[command(flatten)]
    base: Base,

    /// Leave out runs of at least this many zero bytes: a multiple of
    /// 512, at most 16M, rounded down to a power of two; 0 stores all
    /// zeros [default: 4k]
    #[arg(short = 'S', long, value_name = "SIZE", value_parser = sparse_size, verbatim_doc_comment)]
    sparse_size: Option<u64>,

    /// Number of threads, 1 to 64; without it, one per core, 16 at most
    #[arg(short = 'm', long = "parallel", value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    threads: Option<usize>,

    /// Show the progress at once; a terminal shows it after a second
    #[arg(short = 'p', long)]
    progress: bool,

    /// Say nothing but errors
    #[arg(short = 'q', long)]
    quiet: bool,

    #[command(flatten)]
    follow: ReferenceArgs,

    /// Return before TARGET is on stable storage: a power cut may then
    /// damage it
    #[arg(long, verbatim_doc_comment)]
    no_sync: bool,

    /// Fail if TARGET exists
    #[arg(long)]
    no_clobber: bool,

    #[command(flatten)]
    output: Output,

    /// The image to convert; - is standard input
    #[arg(value_parser = args::place())]
    source: Endpoint,

    /// The file to make, one that exists is replaced when all is done;
    /// - is standard output
    #[arg(value_parser = args::place(), verbatim_doc_comment)]
    target: Endpoint,
}

const AFTER_HELP: &str = "\
TARGET is written under a temporary name beside it and takes its place when it is
complete and on stable storage. A conversion that fails leaves no trace. Where an
image consists of several files, the others get names made from that of TARGET, as
in disk-flat.vmdk or disk-s001.vmdk, and replace files of these names.

What comes through a pipe or goes to one is read or written from its beginning to
its end: a vmdk from standard input (streamOptimized, with -f), and to standard
output a raw disk, all of its zeros included, or a streamOptimized vmdk. Only the
exit code tells whether what was written is whole.

Examples:
  imgconv convert disk.raw disk.qcow2
  imgconv convert -c -o cluster_size=128k,compression_type=zstd disk.raw disk.qcow2
  imgconv convert -l before-upgrade disk.qcow2 old.raw
  imgconv convert --references beside overlay.qcow2 whole.qcow2
  imgconv convert --references beside disk.vmdk disk.raw      extents beside it
  imgconv convert -B base.qcow2 changed.raw overlay.qcow2
  tar -xOf vm.ova vm-disk1.vmdk | imgconv convert -f vmdk - disk.qcow2
  imgconv convert -O vmdk -o subformat=streamOptimized disk.qcow2 - | ssh host 'cat >disk.vmdk'";

impl Args {
    pub fn run(&self) -> Outcome {
        self.check_streams()?;
        let interrupt = match self.target {
            // There is nothing to clean up, and whoever reads may never take what is left.
            Endpoint::Stream => Interrupt::at_once()?,
            Endpoint::File(_) => Interrupt::register()?,
        };
        let format = args::target_format(self.target_format, "-O", self.target_name())?;
        let source = self.open_source(&interrupt)?;
        self.warn(&source);
        let bar = Bar::new(match (self.quiet, self.progress) {
            (true, _) => When::Never,
            (false, true) => When::AtOnce,
            (false, false) => When::Later,
        });
        let converter = self.converter(format, &bar)?.cancel(interrupt.flag());
        let result = match &self.target {
            Endpoint::Stream => converter.convert_to(&source, Arc::new(streams::output()?)),
            Endpoint::File(path) => converter.convert(&source, path),
        };
        bar.clear();
        match result {
            Ok(report) => self.tell(&report),
            Err(error) => Err(interrupt.failure(self.in_stream(error))),
        }
    }

    /// In which style the user wants the result, and so the errors. Standard output has no place for them beside an image.
    pub fn style(&self) -> Style {
        if self.target == Endpoint::Stream { Style::Human } else { self.output.style }
    }

    /// Refuses what makes no sense for a stream.
    fn check_streams(&self) -> Result<(), Failure> {
        let refuse = |problem: &str| Err(Failure::usage(problem));
        if self.source == Endpoint::Stream {
            if self.source_format.is_none() {
                return refuse("an image from standard input cannot be looked at beforehand: state its format with -f");
            }
            if self.snapshot.is_some() {
                return refuse(
                    "-l needs a file: an image from standard input is read once, from its beginning to its end",
                );
            }
            if io::stdin().is_terminal() {
                return refuse("standard input is a terminal, and no image comes from there");
            }
        }
        if self.target == Endpoint::Stream {
            if self.output.style == Style::Json {
                return refuse("--output json needs a file as TARGET: the image itself goes to standard output");
            }
            if self.no_clobber {
                return refuse("--no-clobber needs a file as TARGET");
            }
            if self.base.is_stated() {
                return refuse("-B needs a file as TARGET: an overlay cannot be written to standard output");
            }
            if io::stdout().is_terminal() {
                return refuse("standard output is a terminal: no image is written there");
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

    /// Says that an error that happened in no file happened in the stream that the image comes from.
    fn in_stream(&self, error: Error) -> Error {
        match self.source {
            Endpoint::Stream => error.in_file(self.source_name()),
            Endpoint::File(_) => error,
        }
    }

    /// Says of each layer what its owner should know, and what does not keep it from being read.
    fn warn(&self, source: &Image) {
        for (depth, info) in source.layers().enumerate().filter(|_| !self.quiet) {
            let path = source.file_path(depth, FileId::default()).unwrap_or(self.source_name()).display();
            if info.corrupt {
                failure::note(&format!("{path}: the image is marked as corrupt"));
            }
            if info.dirty {
                failure::note(&format!("{path}: the image was not closed by the program that wrote it"));
            }
            for warning in &info.warnings {
                failure::note(&format!("{path}: {warning}"));
            }
        }
    }

    fn open_source(&self, interrupt: &Interrupt) -> Result<Image, Failure> {
        let options = self.follow.options(self.source_format);
        match (&self.source, &self.snapshot) {
            (Endpoint::Stream, _) => {
                let image = options.open_stream(streams::input(interrupt.flag())?);
                image.map_err(|error| interrupt.failure(self.in_stream(error)))
            }
            (Endpoint::File(path), None) => Ok(options.open(path)?),
            (Endpoint::File(path), Some(words)) => Ok(options.snapshot(self.snapshot_id(path, words)?).open(path)?),
        }
    }

    /// What `-l` stands for: an id or a name, either of them stated as such, or both.
    fn snapshot_id(&self, source: &Path, words: &str) -> Result<String, Failure> {
        let Some(wanted) = SnapshotId::parse(words)? else { return Ok(words.to_owned()) };
        let inspection = args::open_options(self.source_format).inspect(source)?;
        let found = inspection.info.snapshots.iter().find(|snapshot| {
            let is = |name: &Name, wanted: Option<&str>| wanted.is_none_or(|w| name.as_bytes() == w.as_bytes());
            is(&snapshot.id, wanted.id) && is(&snapshot.name, wanted.name)
        });
        found
            .map(|snapshot| snapshot.id.to_text().into_owned())
            .ok_or_else(|| Failure::usage(format!("{}: there is no snapshot with {words}", source.display())))
    }

    fn converter(&self, format: Format, bar: &Bar) -> Result<Converter, Failure> {
        let shown = bar.clone();
        let options = args::format_options(&self.options);
        let mut converter = Converter::new(format)
            .options(options.clone())
            .compress(self.compress)
            .sync(!self.no_sync)
            .clobber(!self.no_clobber)
            .progress(move |progress| shown.show(progress));
        if let Some(size) = self.sparse_size {
            converter = converter.sparse(size);
        }
        if let Some(threads) = self.threads {
            converter = converter.threads(threads);
        }
        if let Some((image, name)) = self.follow.open_base(&self.base, format, &options, self.target_name())? {
            converter = converter.backing(image, name);
        }
        Ok(converter)
    }

    /// Without JSON, success is silent, but for what the user may not expect.
    fn tell(&self, report: &Report) -> Outcome {
        if report.padding > 0 && !self.quiet {
            let (target, padding) = (self.target_name().display(), report.padding);
            failure::note(&format!("{target}: the disk was rounded up by {padding} bytes of zeros"));
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

/// A snapshot by what is stated of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct SnapshotId<'a> {
    id: Option<&'a str>,
    name: Option<&'a str>,
}

impl<'a> SnapshotId<'a> {
    /// Reads `snapshot.id=ID`, `snapshot.name=NAME`, or both with a comma; `None` for anything that does not begin like that.
    fn parse(words: &'a str) -> Result<Option<Self>, Failure> {
        if !words.starts_with("snapshot.") {
            return Ok(None);
        }
        let mut wanted = SnapshotId::default();
        for word in words.split(',') {
            match word.split_once('=') {
                Some(("snapshot.id", id)) => wanted.id = Some(id),
                Some(("snapshot.name", name)) => wanted.name = Some(name),
                _ => {
                    let problem = format!("-l {words}: {word:?} is neither snapshot.id=ID nor snapshot.name=NAME");
                    return Err(Failure::usage(problem));
                }
            }
        }
        Ok(Some(wanted))
    }
}

/// For clap: the argument of `-S`.
fn sparse_size(text: &str) -> Result<u64, String> {
    const MAX: u64 = 16 << 20;
    match parse_size(text) {
        Ok(size) if size <= MAX && size % 512 == 0 => Ok(size),
        Ok(_) => Err("it must be a multiple of 512, and at most 16M".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_named_in_four_ways() {
        let parse = |words| SnapshotId::parse(words).unwrap();
        assert_eq!(parse("before"), None);
        assert_eq!(parse("a=b,c"), None);
        assert_eq!(parse("snapshot.id=1"), Some(SnapshotId { id: Some("1"), name: None }));
        assert_eq!(parse("snapshot.name=a=b"), Some(SnapshotId { id: None, name: Some("a=b") }));
        assert_eq!(parse("snapshot.id=1,snapshot.name=x"), Some(SnapshotId { id: Some("1"), name: Some("x") }));
        assert!(SnapshotId::parse("snapshot.foo=1").is_err());
        assert!(SnapshotId::parse("snapshot.id").is_err());
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
