//! The command line: parsing and dispatch to the subcommands.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::failure::{Failure, Outcome};
use crate::output::Style;
use crate::sandbox::{self, Needs, When};
use crate::{
    amend, bitmap, check, commit, compare, convert, create, formats, hash, info, inspect, manual, map, measure, qemu,
    rebase, resize, serve, snapshot,
};

/// Convert, create and inspect virtual disk images
#[derive(Debug, Parser)]
#[command(name = "imgconv", version, arg_required_else_help = true, after_help = AFTER_HELP)]
pub struct Cli {
    /// Confine the program before it reads an image: no other files, programs
    /// or networks than the command needs. auto: as far as the kernel can
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", verbatim_doc_comment)]
    sandbox: When,

    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// Runs the subcommand.
    pub fn run(&self) -> Outcome {
        sandbox::enter(self.sandbox, || self.command.needs())?;
        self.command.run()
    }

    /// Output style of results and errors.
    pub fn style(&self) -> Style {
        self.command.style()
    }
}

const AFTER_HELP: &str = "\
Examples:
  imgconv convert disk.raw disk.qcow2       convert to the format of the extension
  imgconv convert -c -o compression_type=zstd disk.raw disk.qcow2
  imgconv info disk.qcow2                   show format, size and metadata
  imgconv compare disk.raw disk.qcow2       check that both hold the same disk
  imgconv convert --help                    show the options of a command
  imgconv qemu-img COMMAND ...              the command line of qemu-img, see install-links

Referenced files (backing files, parents, data files, extents) are opened only with
--references beside or --references any.

Exit codes: 0 success, 1 failure, 128 + n terminated by signal n. The commands check,
compare, convert and inspect define others, see their help.";

const SPARSIFY_HELP: &str = "\
The same as imgconv convert --sparsify, with all of its options. SOURCE remains as it is.
imgconv measure --sparsify tells the size of the result beforehand.

Examples:
  imgconv sparsify disk.raw small.qcow2
  imgconv sparsify -c -o compression_type=zstd disk.qcow2 small.qcow2";

#[derive(Debug, Subcommand)]
enum Command {
    Convert(convert::Args),
    /// Convert an image without what its file systems do not use
    #[command(after_help = SPARSIFY_HELP)]
    Sparsify(convert::Args),
    Info(info::Args),
    Create(create::Args),
    Check(check::Args),
    Inspect(inspect::Args),
    Compare(compare::Args),
    Map(map::Args),
    Measure(measure::Args),
    Hash(hash::Args),
    Snapshot(snapshot::Args),
    Resize(resize::Args),
    Commit(commit::Args),
    Rebase(rebase::Args),
    Bitmap(bitmap::Args),
    Amend(amend::Args),
    Serve(serve::Args),
    Formats(formats::Args),
    InstallLinks(qemu::InstallLinks),
    Man(manual::ManArgs),
    Completions(manual::CompletionArgs),
}

impl Command {
    /// What the sandbox leaves open; `None` for a command without one, because it changes images in place, or opens none.
    fn needs(&self) -> Option<Needs> {
        match self {
            Command::Convert(args) | Command::Sparsify(args) => Some(args.needs()),
            Command::Info(args) => Some(args.input.needs()),
            Command::Check(args) => args.needs(),
            Command::Snapshot(args) => args.needs(),
            Command::Inspect(args) => Some(args.needs()),
            Command::Compare(args) => Some(args.needs()),
            Command::Map(args) => Some(args.input.needs()),
            Command::Measure(args) => Some(args.needs()),
            Command::Hash(args) => Some(args.input.needs()),
            Command::Serve(args) => Some(args.needs()),
            Command::Create(_)
            | Command::Resize(_)
            | Command::Commit(_)
            | Command::Rebase(_)
            | Command::Bitmap(_)
            | Command::Amend(_)
            | Command::Formats(_)
            | Command::InstallLinks(_)
            | Command::Man(_)
            | Command::Completions(_) => None,
        }
    }

    /// Runs the subcommand.
    fn run(&self) -> Outcome {
        match self {
            Command::Convert(args) => args.run(),
            Command::Sparsify(args) => args.sparsified().run(),
            Command::Info(args) => args.run(),
            Command::Create(args) => args.run(),
            Command::Check(args) => args.run(),
            Command::Inspect(args) => args.run(),
            Command::Compare(args) => args.run(),
            Command::Map(args) => args.run(),
            Command::Measure(args) => args.run(),
            Command::Hash(args) => args.run(),
            Command::Snapshot(args) => args.run(),
            Command::Resize(args) => args.run(),
            Command::Commit(args) => args.run(),
            Command::Rebase(args) => args.run(),
            Command::Bitmap(args) => args.run(),
            Command::Amend(args) => args.run(),
            Command::Serve(args) => args.run(),
            Command::Formats(args) => args.run(),
            Command::InstallLinks(args) => args.run(),
            Command::Man(args) => args.run(Cli::command()),
            Command::Completions(args) => args.run(Cli::command()),
        }
    }

    /// Output style of results and errors.
    fn style(&self) -> Style {
        match self {
            Command::Convert(args) | Command::Sparsify(args) => args.style(),
            Command::Info(args) => args.input.output.style,
            Command::Create(args) => args.output.style,
            Command::Check(args) => args.input.output.style,
            Command::Inspect(args) => args.output.style,
            Command::Compare(args) => args.output.style,
            Command::Map(args) => args.input.output.style,
            Command::Measure(args) => args.output.style,
            Command::Hash(args) => args.input.output.style,
            Command::Snapshot(args) => args.output.style,
            Command::Resize(args) => args.image.output.style,
            Command::Commit(args) => args.image.output.style,
            Command::Rebase(args) => args.image.output.style,
            Command::Bitmap(args) => args.image.output.style,
            Command::Amend(args) => args.image.output.style,
            Command::Serve(args) => args.input.output.style,
            Command::Formats(args) => args.output.style,
            Command::InstallLinks(_) => Style::Human,
            Command::Man(_) | Command::Completions(_) => Style::Human,
        }
    }
}

/// Parses the command line.
///
/// # Errors
///
/// The exit code, after help, the version or a usage error has been printed.
pub fn parse(words: &[OsString]) -> Result<Cli, ExitCode> {
    Cli::try_parse_from(words).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match error.print() {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
            _ => ExitCode::SUCCESS,
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A closed standard error cannot be reported anywhere.
            let _ = error.print();
            ExitCode::FAILURE
        }
        _ => {
            let subcommand = words.get(1).and_then(|word| word.to_str()).unwrap_or_default();
            let failure = Failure::usage(one_line(&error.to_string()));
            let failure = match subcommand {
                compare::NAME => failure.exit(compare::FAILED),
                inspect::NAME => failure.exit(inspect::UNKNOWN),
                _ => failure,
            };
            failure.report(requested_style(words))
        }
    })
}

/// Problem and tips of a message of clap, on one line.
fn one_line(message: &str) -> String {
    let mut paragraphs = message.split("\n\n").map(|lines| lines.lines().map(str::trim).collect::<Vec<_>>().join(" "));
    let problem = paragraphs.next().unwrap_or_default();
    let tips = paragraphs.filter_map(|text| text.strip_prefix("tip: ").map(|tip| format!("; {tip}")));
    format!("{}{} (see --help)", problem.strip_prefix("error: ").unwrap_or(&problem), tips.collect::<String>())
}

/// Output style requested by a command line that does not parse.
fn requested_style(words: &[OsString]) -> Style {
    let mut pairs = words.iter().zip(words.iter().skip(1));
    let json = words.iter().any(|word| word == "--output=json")
        || pairs.any(|(option, value)| option == "--output" && value == "json");
    if json { Style::Json } else { Style::Human }
}

#[cfg(test)]
mod tests {
    use diskimage::Format;

    use super::*;

    fn problem(words: &[&str]) -> String {
        one_line(&Cli::try_parse_from(words).unwrap_err().to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_errors_are_one_line() {
        assert_eq!(
            problem(&["imgconv", "convert"]),
            "the following required arguments were not provided: <SOURCE> <TARGET> (see --help)"
        );
        let supported: Vec<_> = Format::all().map(|format| format.name()).collect();
        let expected = "invalid value 'nope' for '--format <FMT>': unknown format; supported: ";
        assert_eq!(
            problem(&["imgconv", "info", "-f", "nope", "x"]),
            format!("{expected}{} (see --help)", supported.join(", "))
        );
        let typo = problem(&["imgconv", "info", "--backing-chian", "x"]);
        assert!(typo.contains("'--backing-chain'") && !typo.contains('\n'), "{typo}");
    }

    #[test]
    fn only_convert_accepts_a_stream() {
        assert!(problem(&["imgconv", "info", "-"]).contains("use ./-"));
        assert!(problem(&["imgconv", "convert", "-B", "-", "x.raw", "y.qcow2"]).contains("use ./-"));
    }

    #[test]
    fn the_style_is_known_before_the_line_parses() {
        let style = |line: &str| requested_style(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(style("imgconv info --output json --bad"), Style::Json);
        assert_eq!(style("imgconv info --bad --output=json"), Style::Json);
        assert_eq!(style("imgconv info --output human json"), Style::Human);
    }
}
