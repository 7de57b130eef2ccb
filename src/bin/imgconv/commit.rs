//! `imgconv commit`

use std::path::PathBuf;
use std::process::ExitCode;

use diskimage::Commit;

use crate::args::ChangedArgs;
use crate::failure::Outcome;

/// Write the data of an overlay into its backing file
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Image of the backing chain that is written to, and keep the data of
    /// FILE; images between the two are no longer valid
    #[arg(short = 'b', long, value_name = "BASE", verbatim_doc_comment)]
    base: Option<PathBuf>,

    /// Keep the data of FILE, which is empty afterwards by default
    #[arg(short = 'd', long)]
    keep: bool,

    #[command(flatten)]
    pub image: ChangedArgs,
}

const AFTER_HELP: &str = "\
The backing file grows if it is smaller. An interrupted commit can be run again: FILE is emptied when its data is durable elsewhere.

Examples:
  imgconv commit --references beside overlay.qcow2
  imgconv commit --references any -b base.qcow2 top.qcow2";

impl Args {
    pub fn run(&self) -> Outcome {
        let mut commit = Commit::new(self.image.options()?).keep(self.keep || self.base.is_some());
        if let Some(base) = &self.base {
            commit = commit.base(base);
        }
        commit.run(&self.image.file)?;
        Ok(ExitCode::SUCCESS)
    }
}
