//! The options for limits.

use clap::{Arg, ArgMatches, Command};
use diskimage::{LimitName, Limits, parse_size};

use crate::output::human_size;

/// `--max-NAME` for each of the limits. The short help has none of them.
#[derive(Clone, Debug)]
pub struct LimitArgs(pub Limits);

/// A limit, its option, an older name of the option, and what is refused. The value that is set follows it.
struct LimitOption(LimitName, &'static str, Option<&'static str>, &'static str);

const OPTIONS: [LimitOption; 15] = [
    LimitOption(LimitName::VirtualSize, "max-virtual-size", None, "a disk of more bytes than"),
    LimitOption(LimitName::Metadata, "max-metadata", None, "images whose tables and names need more memory than"),
    LimitOption(LimitName::ChainDepth, "max-chain-depth", None, "a backing chain with more images than"),
    LimitOption(LimitName::Extents, "max-extents", None, "an image with more extents than"),
    LimitOption(LimitName::Snapshots, "max-snapshots", None, "to read the snapshots of an image with more than"),
    LimitOption(LimitName::Members, "max-members", None, "an archive or a package with more files than"),
    LimitOption(LimitName::Nesting, "max-nesting", None, "more compressions, and packages within packages, than"),
    LimitOption(LimitName::NameLength, "max-name-length", None, "an archive with a name longer than"),
    LimitOption(LimitName::TextLength, "max-text-length", None, "a descriptor or manifest longer than"),
    LimitOption(LimitName::Pbkdf2Iterations, "max-pbkdf2-iterations", None, "a key slot with more iterations than"),
    LimitOption(LimitName::Argon2Memory, "max-argon2-memory", None, "a key slot that needs more memory than"),
    LimitOption(LimitName::Argon2Work, "max-argon2-work", None, "a key slot whose memory times its passes is above"),
    LimitOption(
        LimitName::Decompressed,
        "max-decompressed",
        Some("max-output"),
        "a compressed file that decompresses to more than",
    ),
    LimitOption(
        LimitName::DecompressionRatio,
        "max-decompression-ratio",
        Some("max-ratio"),
        "a compressed file that decompresses, from 1G on, to a multiple of its size above",
    ),
    LimitOption(LimitName::Window, "max-window", None, "a compressed file whose window or dictionary is larger than"),
];

/// The option for a limit, as it is typed.
pub fn option(name: LimitName) -> String {
    format!("--max-{name}")
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}

impl clap::Args for LimitArgs {
    fn augment_args(command: Command) -> Command {
        let defaults = Limits::default();
        OPTIONS.iter().fold(command, |command, LimitOption(name, option, alias, refused)| {
            let default = match defaults.get(*name) {
                size if name.is_size() => human_size(size),
                number => number.to_string(),
            };
            let value = if name.is_size() { "SIZE" } else { "N" };
            let arg = Arg::new(*option).long(*option).value_name(value).hide_short_help(true).help_heading("Limits");
            command.arg(
                arg.aliases(*alias).value_parser(size).help(format!("Refuse {refused} {value} [default: {default}]")),
            )
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for LimitArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut limits = LimitArgs(Limits::default());
        limits.update_from_arg_matches(matches).map(|()| limits)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for LimitOption(name, option, ..) in OPTIONS {
            if let Some(value) = matches.get_one::<u64>(option) {
                self.0.set(name, *value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    #[test]
    fn each_limit_has_an_option_of_its_name() {
        assert!(LimitName::all().eq(OPTIONS.iter().map(|LimitOption(name, ..)| *name)));
        for (number, LimitOption(name, own, ..)) in (1..).zip(OPTIONS) {
            assert_eq!(option(name), format!("--{own}"));
            let command = LimitArgs::augment_args(Command::new("test"));
            let matches = command.try_get_matches_from(["test", &option(name), &format!("{number}K")]).unwrap();
            let mut expected = Limits::default();
            expected.set(name, number << 10);
            assert_eq!(LimitArgs::from_arg_matches(&matches).unwrap().0, expected);
        }
    }
}
