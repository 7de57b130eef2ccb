//! `imgconv measure`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use diskimage::{Converter, Format, Image, Measure, parse_size};

use crate::args::{self, HeaderArgs, Output, PackageArgs, ReferenceArgs};
use crate::failure::{Failure, Outcome};
use crate::guest::{self, SparsifyArgs};
use crate::location::Location;
use crate::output::{self, Style};
use crate::sandbox::Needs;
use crate::signals::Interrupt;
use crate::snapshot_selector;

/// Measure the file that a conversion makes, without writing it
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Format of the new image
    #[arg(short = 'O', long = "target-format", value_name = "FMT", value_parser = args::format, default_value = "raw")]
    target_format: Format,

    /// Options of the new image; see imgconv formats
    #[arg(short = 'o', long = "target-options", value_name = "K=V,...")]
    options: Vec<String>,

    /// Format of FILE [default: detected]
    #[arg(short = 'f', long = "source-format", value_name = "FMT", value_parser = args::format)]
    source_format: Option<Format>,

    /// FILE is a list of options, as in qemu-img:
    /// driver=FMT,file.filename=PATH,header.filename=PATH,key-secret=ID
    #[arg(long, conflicts_with = "source_format", verbatim_doc_comment)]
    image_opts: bool,

    /// Measure an internal snapshot: its ID or name, or
    /// snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long = "source-snapshot", value_name = "SNAPSHOT", requires = "file", verbatim_doc_comment)]
    snapshot: Option<String>,

    /// Size of an empty disk, instead of FILE: bytes, or with a suffix K, M,
    /// G, T, P or E
    #[arg(short = 's', long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "file", verbatim_doc_comment)]
    size: Option<u64>,

    #[command(flatten)]
    references: ReferenceArgs,

    #[command(flatten)]
    package: PackageArgs,

    #[command(flatten)]
    header: HeaderArgs,

    #[command(flatten)]
    sparsify: SparsifyArgs,

    #[command(flatten)]
    pub output: Output,

    /// Image that would be converted
    #[arg(value_parser = args::file(), required_unless_present = "size")]
    file: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
required is the size of the file that a conversion of FILE makes, or creating an empty
disk of --size; fully-allocated is its size once all of the disk has been written to.
Images of several files are measured as a whole. Compression (-c) is not considered, and
guest data is not read: required is an upper bound, because data can be zeros. A
streamOptimized vmdk, which is always compressed, is measured as if nothing got shorter.

For raw, qcow2 and luks the numbers are those of qemu-img measure; an image of qcow2 by
convert can be smaller, since it has no tables for parts of the disk without data. With
-O qcow2, and a qcow2 image as FILE, bitmaps is what its persistent bitmaps take besides.

Examples:
  imgconv measure -O qcow2 disk.raw
  imgconv measure -O qcow2 --sparsify disk.raw
  imgconv measure -O qcow2 -o cluster_size=2M --size 1T
  imgconv measure --output json -O vmdk -o subformat=monolithicFlat disk.qcow2";

impl Args {
    /// What reading the image needs, if there is one.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        match &self.file {
            Some(file) => self.references.add_needs(&mut needs, self.image_opts, file),
            None => self.references.add_needs_of_options(&mut needs),
        }
        self.header.add_needs(&mut needs);
        needs
    }

    pub fn run(&self) -> Outcome {
        let interrupt = Interrupt::register()?;
        let mut options = args::format_options(&self.options);
        let secret = self.references.target_secret(self.target_format, &mut options)?;
        let mut converter = Converter::new(self.target_format).options(options).cancel(interrupt.flag());
        if let Some(secret) = secret {
            converter = converter.secret(secret);
        }
        let measure = match (&self.file, self.size) {
            (Some(file), _) => converter.measure(&self.open(file)?),
            (None, size) => converter.measure_size(size.unwrap_or_default()),
        };
        print(&measure.map_err(|error| interrupt.failure(error))?, self.output.style)?;
        Ok(ExitCode::SUCCESS)
    }

    fn open(&self, file: &Path) -> Result<Image, Failure> {
        let (options, path) = self.references.open(self.image_opts, self.source_format, file)?;
        let mut options = self.header.add_to(self.package.select(options));
        let image = Location::find(path)?;
        if let Some(selector) = &self.snapshot {
            options = snapshot_selector::select(options, &image, file, selector)?;
        }
        let mut image = image.open(&options)?;
        let name = file.to_string_lossy();
        guest::note_kept(self.sparsify.apply(&mut image, &name)?, &name);
        Ok(image)
    }
}

/// Prints the sizes, as qemu-img does.
pub fn print(measure: &Measure, style: Style) -> diskimage::Result<()> {
    match style {
        Style::Json => output::print_json(measure),
        Style::Human => {
            let Measure { required, fully_allocated, bitmaps, .. } = measure;
            let bitmaps = bitmaps.map_or_else(String::new, |bitmaps| format!("bitmaps size: {bitmaps}\n"));
            output::print(&format!("required size: {required}\nfully allocated size: {fully_allocated}\n{bitmaps}"))
        }
    }
}
