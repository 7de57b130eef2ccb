//! `imgconv bitmap`

use std::path::PathBuf;
use std::process::ExitCode;

use diskimage::driver::{BitmapChange, DirtyBitmap};
use diskimage::{Disk, Error, parse_size};

use crate::args::{self, ChangedArgs};
use crate::failure::{Failure, Outcome};

/// Change a persistent dirty bitmap of an image
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    change: Change,

    /// Guest bytes per bit of a new bitmap, a power of two [default: 64k]
    #[arg(short = 'g', long, value_name = "SIZE", value_parser = parse_size)]
    granularity: Option<u64>,

    /// Image with the bitmap that --merge names [default: FILE]
    #[arg(short = 'b', long = "from", value_name = "IMAGE", value_parser = args::file())]
    from: Option<PathBuf>,

    #[command(flatten)]
    pub image: ChangedArgs,

    /// Name of the bitmap
    name: String,
}

/// What is done.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Change {
    /// Add a bitmap that records writes
    #[arg(long)]
    add: bool,

    /// Remove the bitmap, also if it is inconsistent
    #[arg(long)]
    remove: bool,

    /// Clear all bits
    #[arg(long)]
    clear: bool,

    /// Record writes from now on
    #[arg(long)]
    enable: bool,

    /// Record no more writes
    #[arg(long)]
    disable: bool,

    /// Add the bits of the bitmap OTHER
    #[arg(long, value_name = "OTHER")]
    merge: Option<String>,
}

const AFTER_HELP: &str = "\
Of the formats, only qcow2 has such bitmaps. imgconv info lists them.

Examples:
  imgconv bitmap --add disk.qcow2 since-monday
  imgconv bitmap --merge since-monday -b old.qcow2 disk.qcow2 all";

impl Args {
    pub fn run(&self) -> Outcome {
        // `requires` of clap is also content with an option that excludes the required one.
        if self.granularity.is_some() && !self.change.add {
            return Err(Failure::usage("--granularity is only for --add"));
        }
        if self.from.is_some() && self.change.merge.is_none() {
            return Err(Failure::usage("--from is only for --merge"));
        }
        let disk = self.image.open()?;
        match &self.change.merge {
            Some(other) => disk.merge_bitmap(&self.name, &self.merged(&disk, other)?)?,
            None => disk.change_bitmap(&self.name, self.change.of_one(self.granularity))?,
        }
        disk.close()?;
        Ok(ExitCode::SUCCESS)
    }

    /// The bitmap whose bits are added.
    fn merged(&self, disk: &Disk, name: &str) -> Result<DirtyBitmap, Failure> {
        let bitmaps = match &self.from {
            None => disk.bitmaps()?,
            // The image that changes may be its backing file.
            Some(path) => self.image.references.options(None)?.without_backing(true).open(path)?.bitmaps()?,
        };
        let found = bitmaps.into_iter().find(|bitmap| bitmap.name.as_bytes() == name.as_bytes());
        let file = self.from.as_ref().unwrap_or(&self.image.file);
        Ok(found.ok_or_else(|| Error::Usage(format!("{}: no bitmap {name:?}", file.display())))?)
    }
}

impl Change {
    fn of_one(&self, granularity: Option<u64>) -> BitmapChange {
        match self {
            Change { add: true, .. } => BitmapChange::Add { granularity, enabled: true },
            Change { remove: true, .. } => BitmapChange::Remove,
            Change { clear: true, .. } => BitmapChange::Clear,
            Change { enable: true, .. } => BitmapChange::Enable,
            _ => BitmapChange::Disable,
        }
    }
}
