//! `imgconv commit`

use std::path::PathBuf;
use std::process::ExitCode;

use diskimage::{Commit, Format};

use crate::args::{self, Output, ReferenceArgs};
use crate::failure::Outcome;

/// Write the data of an overlay into its backing file
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Format of FILE [default: detected]
    #[arg(short = 'f', long, value_name = "FMT", value_parser = args::format)]
    format: Option<Format>,

    /// Image of the backing chain that is written to, and keep the data of
    /// FILE; images between the two are no longer valid
    #[arg(short = 'b', long, value_name = "BASE", verbatim_doc_comment)]
    base: Option<PathBuf>,

    /// Keep the data of FILE, which is empty afterwards by default
    #[arg(short = 'd', long)]
    keep: bool,

    #[command(flatten)]
    references: ReferenceArgs,

    #[command(flatten)]
    pub output: Output,

    /// Overlay
    #[arg(value_parser = args::file())]
    file: PathBuf,
}

const AFTER_HELP: &str = "\
The backing file grows if it is smaller. An interrupted commit can be run again: FILE is emptied when its data is durable elsewhere.

Examples:
  imgconv commit --references beside overlay.qcow2
  imgconv commit --references any -b base.qcow2 top.qcow2";

impl Args {
    pub fn run(&self) -> Outcome {
        let mut commit = Commit::new(self.references.options(self.format)?).keep(self.keep || self.base.is_some());
        if let Some(base) = &self.base {
            commit = commit.base(base);
        }
        commit.run(&self.file)?;
        Ok(ExitCode::SUCCESS)
    }
}
