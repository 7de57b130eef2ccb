//! `imgconv compare`

use std::path::PathBuf;
use std::process::ExitCode;

use diskimage::{Comparison, Format};
use serde_json::json;

use crate::args::{self, Outcome, Output, ReferenceArgs};
use crate::failure::Failure;
use crate::output::{self, Style};

/// Tell whether two images hold the same bytes for a guest
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Format of A; without it, found by the content
    #[arg(short = 'f', long = "a-format", value_name = "FMT", value_parser = args::format)]
    a_format: Option<Format>,

    /// Format of B; without it, found by the content
    #[arg(short = 'F', long = "b-format", value_name = "FMT", value_parser = args::format)]
    b_format: Option<Format>,

    /// Take disks of different sizes for different in any case
    #[arg(short = 's', long)]
    strict: bool,

    /// Say nothing but errors: the exit code tells
    #[arg(short = 'q', long)]
    quiet: bool,

    #[command(flatten)]
    follow: ReferenceArgs,

    #[command(flatten)]
    pub output: Output,

    /// One image
    #[arg(value_name = "A", value_parser = args::file())]
    a: PathBuf,

    /// The other image
    #[arg(value_name = "B", value_parser = args::file())]
    b: PathBuf,
}

const AFTER_HELP: &str = "\
Exit codes: 0 the images are identical, 1 they differ, 2 they could not be compared.";

/// The subcommand's name, whose exit code 1 is taken.
pub const NAME: &str = "compare";
const DIFFERENT: u8 = 1;
/// The exit code for every failure.
pub const FAILED: u8 = 2;

/// What is said about two images.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Identical,
    Sizes,
    Content { offset: u64 },
}

impl Args {
    pub fn run(&self) -> Outcome {
        self.verdict().and_then(|verdict| self.tell(&verdict)).map_err(|failure| failure.exit(FAILED))
    }

    fn verdict(&self) -> Result<Verdict, Failure> {
        let a = self.follow.options(self.a_format).open(&self.a)?;
        let b = self.follow.options(self.b_format).open(&self.b)?;
        if self.strict && a.virtual_size() != b.virtual_size() {
            return Ok(Verdict::Sizes);
        }
        Ok(match diskimage::compare(&a, &b)? {
            Comparison::Identical => Verdict::Identical,
            Comparison::Different { offset } => Verdict::Content { offset },
        })
    }

    fn tell(&self, verdict: &Verdict) -> Outcome {
        match self.output.style {
            Style::Json => output::print_json(&match verdict {
                Verdict::Identical => json!({ "identical": true }),
                Verdict::Sizes => json!({ "identical": false, "difference": "size" }),
                Verdict::Content { offset } => json!({ "identical": false, "difference": "content", "offset": offset }),
            })?,
            Style::Human if !self.quiet => output::print(&match verdict {
                Verdict::Identical => "Images are identical.\n".to_owned(),
                Verdict::Sizes => "Strict mode: Image size mismatch!\n".to_owned(),
                Verdict::Content { offset } => format!("Content mismatch at offset {offset}!\n"),
            })?,
            Style::Human => {}
        }
        Ok(if *verdict == Verdict::Identical { ExitCode::SUCCESS } else { ExitCode::from(DIFFERENT) })
    }
}
