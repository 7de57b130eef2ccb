//! `imgconv amend`

use std::process::ExitCode;

use diskimage::Options;

use crate::args::ChangedArgs;
use crate::failure::Outcome;

/// Change options of an image that were chosen when it was created
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Options and their new values; may be given several times
    #[arg(short = 'o', value_name = "NAME=VALUE[,...]", required = true)]
    options: Vec<String>,

    #[command(flatten)]
    pub image: ChangedArgs,
}

const AFTER_HELP: &str = "\
Of qcow2: compat, lazy_refcounts, refcount_bits, data_file, data_file_raw. The key slots of encrypted images are changed by imgconv qemu-img amend,
in the words of qemu-img.

Examples:
  imgconv amend -o compat=0.10 disk.qcow2
  imgconv amend -o compat=1.1,lazy_refcounts=on disk.qcow2";

impl Args {
    pub fn run(&self) -> Outcome {
        let mut options = Options::new();
        self.options.iter().for_each(|list| options.add_list(list));
        let disk = self.image.open()?;
        disk.amend(&options)?;
        disk.close()?;
        Ok(ExitCode::SUCCESS)
    }
}
