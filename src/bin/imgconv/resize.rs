//! `imgconv resize`

use std::process::ExitCode;

use diskimage::{Preallocation, parse_size};
use serde_json::json;

use crate::args::ChangedArgs;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Style, printable};

/// Change the size of a disk, in the image itself
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Allow a smaller size; the data after it is lost
    #[arg(long)]
    shrink: bool,

    /// Allocate what is added
    #[arg(long, value_name = "MODE", conflicts_with = "shrink")]
    preallocation: Option<Mode>,

    /// Print errors only
    #[arg(short = 'q', long)]
    quiet: bool,

    #[command(flatten)]
    pub image: ChangedArgs,

    /// New size in bytes, or with a suffix K, M, G, T, P or E; +SIZE and
    /// -SIZE are relative to the present one
    #[arg(value_parser = new_size, allow_hyphen_values = true, verbatim_doc_comment)]
    size: NewSize,
}

const AFTER_HELP: &str = "\
A power failure leaves the old or the new size. The partitions on the disk are not changed.

Examples:
  imgconv resize disk.qcow2 40G
  imgconv resize disk.qcow2 +10G
  imgconv resize --shrink disk.raw 10G";

/// How much is allocated.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Mode {
    Metadata,
    Falloc,
    Full,
}

impl From<Mode> for Preallocation {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Metadata => Preallocation::Metadata,
            Mode::Falloc => Preallocation::Space,
            Mode::Full => Preallocation::Full,
        }
    }
}

impl Args {
    pub fn run(&self) -> Outcome {
        let disk = self.image.open()?;
        let old = disk.size();
        let new = self.size.from(old).filter(|size| *size > 0);
        let new = new.ok_or_else(|| Failure::usage("invalid size: expected more than 0 bytes"))?;
        if new < old && !self.shrink {
            let problem = format!(
                "the size would be {new} instead of {old} bytes: use --shrink if the data after it may be lost"
            );
            return Err(Failure::usage(problem));
        }
        match self.preallocation {
            Some(mode) => disk.grow_allocated(new, mode.into())?,
            None => disk.resize(new)?,
        }
        let size = disk.size();
        disk.close()?;
        match self.image.output.style {
            Style::Json => output::print_json(&json!({ "virtual-size": size, "previous-virtual-size": old }))?,
            Style::Human if self.quiet => {}
            Style::Human => {
                let name = printable(&self.image.file.to_string_lossy());
                output::print(&format!("{name}: {old} -> {size} bytes\n"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A size, or by how much the old one changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    Is(u64),
    Larger(u64),
    Smaller(u64),
}

impl NewSize {
    /// Parses `SIZE`, `+SIZE` or `-SIZE`, of which `parse` parses the number.
    pub fn parse<E>(text: &str, parse: impl Fn(&str) -> Result<u64, E>) -> Result<NewSize, E> {
        let (new, rest): (fn(u64) -> NewSize, &str) = match text.split_at_checked(1) {
            Some(("+", rest)) => (NewSize::Larger, rest),
            Some(("-", rest)) => (NewSize::Smaller, rest),
            _ => (NewSize::Is, text),
        };
        parse(rest).map(new)
    }

    /// The new size, if there is one.
    pub fn from(self, old: u64) -> Option<u64> {
        match self {
            NewSize::Is(size) => Some(size),
            NewSize::Larger(by) => old.checked_add(by),
            NewSize::Smaller(by) => old.checked_sub(by),
        }
    }
}

fn new_size(text: &str) -> diskimage::Result<NewSize> {
    NewSize::parse(text, parse_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_absolute_or_relative() {
        for (text, old, new) in [
            ("1M", 5, Some(1 << 20)),
            ("+1K", 5, Some(1029)),
            ("-5", 5, Some(0)),
            ("-6", 5, None),
            ("+7E", u64::MAX, None),
        ] {
            assert_eq!(new_size(text).unwrap().from(old), new, "{text}");
        }
        assert!(["", "+", "--1", "+-1", "many"].iter().all(|text| new_size(text).is_err()));
    }
}
