//! `imgconv create`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use diskimage::mkfs::{DiskOptions, FileSystem, PartitionScheme};
use diskimage::{Converter, Format, Image, OpenOptions, parse_size};
use serde_json::json;

use crate::args::{self, BackingArgs, Output, ReferenceArgs};
use crate::failure::{Failure, Outcome};
use crate::location;
use crate::output::{self, Style, human_size, printable};
use crate::signals::Interrupt;

/// Create an empty image or an overlay
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Format of FILE [default: from its extension]
    #[arg(short = 'f', long, value_name = "FMT", value_parser = args::format)]
    format: Option<Format>,

    /// Options of the format; see imgconv formats
    #[arg(short = 'o', long, value_name = "K=V,...")]
    options: Vec<String>,

    #[command(flatten)]
    backing: BackingArgs,

    /// Print errors only
    #[arg(short = 'q', long)]
    quiet: bool,

    #[command(flatten)]
    references: ReferenceArgs,

    /// Do not sync FILE; a power failure may then damage it
    #[arg(long)]
    no_sync: bool,

    /// Fail if FILE exists
    #[arg(long)]
    no_clobber: bool,

    /// Write into an existing FILE instead of replacing it, so that it
    /// remains the same file; a failure may leave it empty
    #[arg(long, conflicts_with = "no_clobber", verbatim_doc_comment)]
    in_place: bool,

    /// File system of the new disk
    /// [possible values: ext4, vfat, swap]
    #[arg(
        long,
        value_name = "TYPE",
        value_parser = str::parse::<FileSystem>,
        conflicts_with = "base",
        verbatim_doc_comment
    )]
    fs: Option<FileSystem>,

    /// Label of the file system
    #[arg(long, requires = "fs", value_name = "TEXT")]
    label: Option<String>,

    /// Partition table, with the file system in its only partition
    /// [default: none] [possible values: gpt, mbr, none]
    #[arg(
        long,
        requires = "fs",
        value_name = "TABLE",
        value_parser = str::parse::<PartitionScheme>,
        verbatim_doc_comment
    )]
    partition: Option<PartitionScheme>,

    #[command(flatten)]
    pub output: Output,

    /// Output file; an existing one is replaced on success
    #[arg(value_parser = args::file())]
    file: PathBuf,

    /// Disk size in bytes, or with a suffix K, M, G, T, P or E
    /// [default: that of the backing file]
    #[arg(value_parser = parse_size, verbatim_doc_comment)]
    size: Option<u64>,
}

const AFTER_HELP: &str = "\
Examples:
  imgconv create disk.qcow2 10G
  imgconv create -o cluster_size=2M,preallocation=metadata disk.qcow2 1.5T
  imgconv create -B base.qcow2 overlay.qcow2
  imgconv create --fs ext4 --label data --partition gpt data.qcow2 100G
  imgconv create --object secret,id=sec0,file=passphrase -o key-secret=sec0 -f luks vol 5G

An encrypted image takes the secret of -o key-secret=ID (luks) or
-o encrypt.format=luks,encrypt.key-secret=ID (qcow2), or else the only one given.";

impl Args {
    pub fn run(&self) -> Outcome {
        let interrupt = Interrupt::register()?;
        if !location::is_file(&self.file) {
            return Err(Failure::usage("FILE is a URL, expected a file"));
        }
        let format = args::target_format(self.format, "-f", &self.file)?;
        let mut options = args::format_options(&self.options);
        let secret = self.references.target_secret(format, &mut options)?;
        let backing = self.backing.open(&self.references, format, &options, &self.file)?;
        if !self.quiet {
            self.references.note_unused_secrets(format, &options, backing.as_ref().map(|(image, _)| image));
        }
        let backing_size = backing.as_ref().map(|(image, _)| image.virtual_size());
        let Some(size) = self.size.or(backing_size) else {
            return Err(Failure::usage("the disk size is missing; give SIZE, or a backing file with -B"));
        };
        let mut converter = Converter::new(format)
            .options(options)
            .sync(!self.no_sync)
            .clobber(!self.no_clobber)
            .in_place(self.in_place)
            .cancel(interrupt.flag());
        if let Some((image, name)) = backing {
            converter = converter.backing(image, name);
        }
        if let Some(secret) = secret {
            converter = converter.secret(secret);
        }
        let created = match self.formatted(size)? {
            Some(disk) => converter.convert(&disk, &self.file),
            None => converter.create(size, &self.file),
        };
        match created {
            Ok(report) => self.print(format, report.virtual_size),
            Err(error) => Err(interrupt.failure(error)),
        }
    }

    /// The disk with its file system, if it has one.
    fn formatted(&self, size: u64) -> diskimage::Result<Option<Image>> {
        let Some(system) = self.fs.clone() else { return Ok(None) };
        let system = system.label(self.label.as_deref().unwrap_or_default());
        let disk = DiskOptions::new(system).partition(self.partition.unwrap_or_default()).build(size)?;
        OpenOptions::new().format(Format::RAW).open_source(Arc::new(disk)).map(Some)
    }

    fn print(&self, format: Format, size: u64) -> Outcome {
        let format = format.name();
        match self.output.style {
            Style::Json => output::print_json(&json!({
                "filename": self.file.to_string_lossy(),
                "format": format,
                "virtual-size": size,
                "file-system": self.fs.as_ref().map(FileSystem::name),
            }))?,
            Style::Human if !self.quiet => {
                let file = printable(&self.file.to_string_lossy());
                let system = self.fs.as_ref().map_or(String::new(), |system| format!(" with {}", system.name()));
                output::print(&format!("Created {file}: {format}{system}, {} ({size} bytes)\n", human_size(size)))?;
            }
            Style::Human => {}
        }
        Ok(ExitCode::SUCCESS)
    }
}
