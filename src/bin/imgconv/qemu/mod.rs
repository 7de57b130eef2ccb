//! The command line of qemu-img, under the name `qemu-img` or as `imgconv qemu-img`: the same options, output, exit codes and
//! effects.
//!
//! [`table`] lists the options of every command, with what differs. A command is one file, as in the other command line. What is
//! read is [`source`], what is created is [`target`].

mod amend;
mod bitmap;
mod bitmaps;
mod check;
mod check_words;
mod commit;
mod compare;
mod convert;
mod create;
mod dd;
mod getopt;
mod info;
mod keys;
mod links;
mod map;
mod measure;
mod message;
mod progress;
mod rebase;
mod resize;
mod snapshot;
mod source;
mod table;
mod target;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use diskimage::io::CacheMode;
use diskimage::parse_size;

use crate::output::{self, Style};
pub use links::Args as InstallLinks;
use message::{Failed, NAME};

/// The version whose behavior is taken over.
const VERSION: &str = "10.0.2";

/// What a command returns: its exit code, or why it failed.
type Outcome = Result<u8, Failed>;

/// Whether a program called `word` is to behave as qemu-img.
pub fn is_meant_by(word: &OsString) -> bool {
    Path::new(word).file_stem().is_some_and(|stem| stem == NAME)
}

/// Runs a command line without the name of the program.
pub fn run(words: &[OsString]) -> ExitCode {
    let outcome = dispatch(words);
    match outcome {
        Ok(exit) => ExitCode::from(exit),
        Err(failed) => failed.report(),
    }
}

fn dispatch(words: &[OsString]) -> Outcome {
    let Some((first, rest)) = words.split_first() else {
        return Err(Failed::new("Not enough arguments").see_help(""));
    };
    let first = first.to_string_lossy();
    match &*first {
        "-h" | "--help" => print(&table::overview()),
        "-V" | "--version" => print(&version()),
        // What is traced are events of QEMU itself.
        "-T" | "--trace" => dispatch(rest.get(1..).unwrap_or_default()),
        option if option.starts_with("--trace=") => dispatch(rest),
        option if option.starts_with('-') => Err(getopt::unknown_option(NAME, option).see_help("")),
        name => match table::COMMANDS.iter().find(|command| command.name == name) {
            None => Err(Failed::new(format!("Command not found: {name}")).see_help("")),
            Some(command) => {
                let parsed = getopt::parse(command, &resize::without_options(name, rest))?;
                if parsed.flag("help") { print(&command.help()) } else { (command.run)(&parsed) }
            }
        },
    }
}

fn print(text: &str) -> Outcome {
    output::print(text)?;
    Ok(0)
}

fn version() -> String {
    format!("qemu-img version {VERSION} (imgconv {})\n", env!("CARGO_PKG_VERSION"))
}

/// The cache mode that an option states, if it is given.
fn cache(parsed: &getopt::Parsed, option: &str, what: &str) -> Result<Option<CacheMode>, Failed> {
    let parse =
        |name: String| CacheMode::by_name(&name).ok_or_else(|| Failed::new(format!("Invalid {what} option: {name}")));
    parsed.text(option).map(parse).transpose()
}

/// The style of `--output`.
fn style(parsed: &getopt::Parsed) -> Result<Style, Failed> {
    match parsed.text("output").as_deref() {
        None | Some("human") => Ok(Style::Human),
        Some("json") => Ok(Style::Json),
        Some(other) => {
            Err(Failed::new(format!("--output expects 'human' or 'json' not '{other}'")).see_help(parsed.command))
        }
    }
}

/// Parses a size, also a hexadecimal one. The error says whether it is too large.
fn size(text: &str) -> Result<u64, bool> {
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let size = match hexadecimal {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => parse_size(text).ok(),
    };
    let digits = text.trim_end_matches(|c: char| "bkmgtpeBKMGTPE".contains(c));
    let is_number = hexadecimal.is_some() || (text.len() - digits.len() <= 1 && digits.parse::<f64>().is_ok());
    size.filter(|size| i64::try_from(*size).is_ok()).ok_or(is_number)
}

/// A command that exists in qemu-img and not here.
fn refused(_: &getopt::Parsed) -> Outcome {
    Err(Failed::new("this command of qemu-img is not supported by imgconv"))
}
