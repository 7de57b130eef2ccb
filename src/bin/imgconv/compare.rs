//! `imgconv compare`

use std::path::PathBuf;
use std::process::ExitCode;

use diskimage::{Comparison, Format};
use serde_json::json;

use crate::args::{self, Output, ReferenceArgs};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Style};

/// Compare the guest data of two images
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Format of A [default: detected]
    #[arg(short = 'f', long = "a-format", value_name = "FMT", value_parser = args::format)]
    a_format: Option<Format>,

    /// Format of B [default: detected]
    #[arg(short = 'F', long = "b-format", value_name = "FMT", value_parser = args::format)]
    b_format: Option<Format>,

    /// Treat a size mismatch as a difference
    #[arg(short = 's', long)]
    strict: bool,

    /// Print errors only; the exit code is the result
    #[arg(short = 'q', long)]
    quiet: bool,

    #[command(flatten)]
    references: ReferenceArgs,

    #[command(flatten)]
    pub output: Output,

    /// First image
    #[arg(value_name = "A", value_parser = args::file())]
    a: PathBuf,

    /// Second image
    #[arg(value_name = "B", value_parser = args::file())]
    b: PathBuf,
}

const AFTER_HELP: &str = "\
Exit codes: 0 the images are identical, 1 they differ, 2 the comparison failed.
Without --strict, disks of different sizes are identical if the rest of the longer one is
zeros.";

/// Name of this subcommand. Its exit code 1 means a difference, not a failure.
pub const NAME: &str = "compare";
const DIFFERENT: u8 = 1;
/// Exit code of every failure.
pub const FAILED: u8 = 2;

/// Result of a comparison.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Identical,
    Sizes,
    Content { offset: u64 },
}

impl Args {
    pub fn run(&self) -> Outcome {
        self.verdict().and_then(|verdict| self.print(&verdict)).map_err(|failure| failure.exit(FAILED))
    }

    fn verdict(&self) -> Result<Verdict, Failure> {
        let a = self.references.options(self.a_format).open(&self.a)?;
        let b = self.references.options(self.b_format).open(&self.b)?;
        if self.strict && a.virtual_size() != b.virtual_size() {
            return Ok(Verdict::Sizes);
        }
        Ok(match diskimage::compare(&a, &b)? {
            Comparison::Identical => Verdict::Identical,
            Comparison::Different { offset } => Verdict::Content { offset },
        })
    }

    fn print(&self, verdict: &Verdict) -> Outcome {
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
