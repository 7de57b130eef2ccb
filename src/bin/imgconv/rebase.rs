//! `imgconv rebase`

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use diskimage::{Disk, Format, Image, Name, RebaseTo};

use crate::args::{self, ChangedArgs};
use crate::failure::{Failure, Outcome};

/// Change the backing file of an overlay, or make it independent
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// New backing file, stored as given; a relative BASE starts at the
    /// directory of FILE, and an empty one removes the backing file
    #[arg(short = 'b', visible_short_alias = 'B', long = "backing", value_name = "BASE", verbatim_doc_comment)]
    base: OsString,

    /// Format of BASE [default: detected; required with -u]
    #[arg(short = 'F', long, value_name = "FMT", value_parser = args::format)]
    base_format: Option<Format>,

    /// Only change the name of the backing file; the disk changes, unless
    /// the old and the new backing file have the same content
    #[arg(short = 'u', long = "unsafe", conflicts_with = "compress", verbatim_doc_comment)]
    name_only: bool,

    /// Compress the blocks that are copied into FILE
    #[arg(short = 'c', long)]
    compress: bool,

    #[command(flatten)]
    pub image: ChangedArgs,
}

const AFTER_HELP: &str = "\
The disk keeps its content: where the old and the new backing file differ, data is copied into FILE first. A power failure leaves
the old or the new backing file.

Examples:
  imgconv rebase --references beside -b new-base.qcow2 overlay.qcow2
  imgconv rebase --references beside -b '' overlay.qcow2      FILE needs no backing file any more
  imgconv rebase -u -b moved/base.qcow2 -F qcow2 overlay.qcow2";

impl Args {
    pub fn run(&self) -> Outcome {
        let name = (!self.base.is_empty()).then(|| Name::from(Path::new(&self.base)));
        if name.is_none() && self.base_format.is_some() {
            return Err(Failure::usage("-F needs a backing file; set one with -b"));
        }
        let disk = match name {
            name if self.name_only => self.rename(name.as_ref())?,
            name => self.copy(name.as_ref())?,
        };
        disk.close()?;
        Ok(ExitCode::SUCCESS)
    }

    /// Changes the name alone.
    fn rename(&self, name: Option<&Name>) -> Result<Disk, Failure> {
        if name.is_some() && self.base_format.is_none() {
            return Err(Failure::usage("-u does not open BASE; set its format with -F"));
        }
        let disk = self.image.options()?.open_disk_alone(&self.image.file)?;
        disk.set_backing(name, self.base_format)?;
        Ok(disk)
    }

    /// Changes the backing file, and copies what differs.
    fn copy(&self, name: Option<&Name>) -> Result<Disk, Failure> {
        let disk = self.image.open()?;
        let image = name.map(|_| self.open_base(&self.base)).transpose()?;
        let to = image.as_ref().zip(name).map(|(image, name)| RebaseTo { image, name });
        if self.compress {
            disk.rebase_compressed(to, &|_, _| ())?
        } else {
            disk.rebase(to, &|_, _| ())?
        }
        Ok(disk)
    }

    fn open_base(&self, base: &OsStr) -> Result<Image, Failure> {
        let options = self.image.references.options(self.base_format)?;
        let image = options.open(self.image.file.with_file_name("").join(base));
        image.map_err(|error| Failure::from(error).format_option("-F"))
    }
}
