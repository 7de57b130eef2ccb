//! The command line: the subcommands, and the arguments that several of them share.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Parser, Subcommand, ValueEnum};
use diskimage::{Format, Image, Name, OpenOptions, Options};

use crate::failure::Failure;
use crate::output::Style;
use crate::{check, compare, convert, create, formats, info, map, snapshot};

/// What a subcommand comes to: an exit code, or a failure to report.
pub type Outcome = Result<ExitCode, Failure>;

/// Convert virtual disk images, and look into them.
#[derive(Debug, Parser)]
#[command(name = "imgconv", version, arg_required_else_help = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Every command has its own help: imgconv convert --help

Examples:
  imgconv convert disk.raw disk.qcow2             convert; the extensions tell the format
  imgconv convert -c -o compression_type=zstd disk.raw disk.qcow2
  imgconv info disk.qcow2                         what the image says of itself
  imgconv compare disk.raw disk.qcow2             whether a guest would see the same bytes

Files that an image names (backing files and parents, data files, extents) are
opened only when --references beside or --references any allows it.

Exit codes: 0 success, 1 failure, 128 + n ended by signal n; check and compare
have more, which their help lists.";

#[derive(Debug, Subcommand)]
pub enum Command {
    Convert(convert::Args),
    Info(info::Args),
    Create(create::Args),
    Check(check::Args),
    Compare(compare::Args),
    Map(map::Args),
    Snapshot(snapshot::Args),
    Formats(formats::Args),
}

impl Command {
    pub fn run(&self) -> Outcome {
        match self {
            Command::Convert(args) => args.run(),
            Command::Info(args) => args.run(),
            Command::Create(args) => args.run(),
            Command::Check(args) => args.run(),
            Command::Compare(args) => args.run(),
            Command::Map(args) => args.run(),
            Command::Snapshot(args) => args.run(),
            Command::Formats(args) => args.run(),
        }
    }

    /// In which style the user wants the results, and so the errors.
    pub fn style(&self) -> Style {
        match self {
            Command::Convert(args) => args.style(),
            Command::Info(args) => args.input.output.style,
            Command::Create(args) => args.output.style,
            Command::Check(args) => args.input.output.style,
            Command::Compare(args) => args.output.style,
            Command::Map(args) => args.input.output.style,
            Command::Snapshot(args) => args.output.style,
            Command::Formats(args) => args.output.style,
        }
    }
}

/// `--output`.
#[derive(Debug, clap::Args)]
pub struct Output {
    /// Style of the results and errors: human or json
    #[arg(long = "output", value_name = "STYLE", default_value = "human", hide_possible_values = true)]
    pub style: Style,
}

/// Which of the files that an image names may be opened.
#[derive(Debug, clap::Args)]
pub struct ReferenceArgs {
    /// Which files may be opened that an image names (backing files,
    /// data files, extents): none, those beside the image, or any
    #[arg(long, value_name = "WHICH", default_value = "none", verbatim_doc_comment, hide_possible_values = true)]
    references: ReferencePolicy,

    /// Take a backing file that was changed since the image was laid
    /// over it: what the guest sees is then a mix of old and new
    #[arg(long, verbatim_doc_comment)]
    allow_changed_backing: bool,

    /// Format of a backing file whose format the image does not state
    #[arg(long, value_name = "FMT", value_parser = format)]
    backing_format: Option<Format>,
}

/// The image that a command looks at.
#[derive(Debug, clap::Args)]
pub struct Input {
    /// Format of FILE; without it, found by the content
    #[arg(short = 'f', long, value_name = "FMT", value_parser = self::format)]
    format: Option<Format>,

    #[command(flatten)]
    follow: ReferenceArgs,

    #[command(flatten)]
    pub output: Output,

    /// The image
    #[arg(value_parser = self::file())]
    pub file: PathBuf,
}

impl Input {
    /// How to open it.
    pub fn options(&self) -> OpenOptions {
        self.follow.options(self.format)
    }
}

/// The image that a new one lies over.
#[derive(Debug, clap::Args)]
pub struct Base {
    /// Make the new image an overlay of BASE, with only what differs.
    /// BASE is written into it as given here: a relative name
    /// starts at the directory of the new image
    #[arg(short = 'B', visible_short_alias = 'b', long = "backing", value_name = "BASE")]
    #[arg(value_parser = self::file(), verbatim_doc_comment)]
    base: Option<PathBuf>,

    /// Format of BASE; without it, found by the content
    #[arg(short = 'F', long, value_name = "FMT", value_parser = self::format)]
    base_format: Option<Format>,
}

impl Base {
    /// Whether there is one on the command line.
    pub fn is_stated(&self) -> bool {
        self.base.is_some() || self.base_format.is_some()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ReferencePolicy {
    None,
    Beside,
    Any,
}

impl ReferenceArgs {
    /// How to open an image of `format`, or of the format that its content has.
    pub fn options(&self, format: Option<Format>) -> OpenOptions {
        let references = match self.references {
            ReferencePolicy::None => diskimage::ReferencePolicy::Deny,
            ReferencePolicy::Beside => diskimage::ReferencePolicy::Beside,
            ReferencePolicy::Any => diskimage::ReferencePolicy::Any,
        };
        let options =
            open_options(format).reference_policy(references).allow_changed_backing(self.allow_changed_backing);
        match self.backing_format {
            Some(format) => options.backing_format(format),
            None => options,
        }
    }

    /// Opens the image that the new image `target` is to lie over, if there is one, and says how `target` shall name it: as
    /// the user did. A relative name is therefore looked up in `target`'s directory, as every reader of `target` will do.
    pub fn open_base(
        &self,
        base: &Base,
        format: Format,
        options: &Options,
        target: &Path,
    ) -> Result<Option<(Image, Name)>, Failure> {
        // A format without this option will say so itself.
        let takes_backing = format.options().iter().any(|option| option.name == "backing_file");
        let in_options = options.value("backing_file").filter(|_| takes_backing).map(Path::new);
        let Some(name) = base.base.as_deref().or(in_options) else {
            return match base.base_format {
                Some(_) => Err(Failure::usage("-F is the format of a backing file, and there is none")),
                None => Ok(None),
            };
        };
        let format = match (base.base_format, options.value("backing_fmt")) {
            (None, Some(name)) => Some(Format::by_name(name)?),
            (format, _) => format,
        };
        let image = self.options(format).open(target.with_file_name("").join(name))?;
        Ok(Some((image, Name::from(name))))
    }
}

/// How to look at an image of `format`, or of the format that its content has, and at nothing else.
pub fn open_options(format: Option<Format>) -> OpenOptions {
    match format {
        Some(format) => OpenOptions::new().format(format),
        None => OpenOptions::new(),
    }
}

/// The format of a new image: the one stated, or else the one that its name tells.
pub fn target_format(stated: Option<Format>, option: &str, target: &Path) -> Result<Format, Failure> {
    let by_extension = || target.extension().and_then(OsStr::to_str).and_then(Format::by_extension);
    stated.or_else(by_extension).ok_or_else(|| {
        let target = target.to_string_lossy();
        Failure::usage(format!("{target}: the name does not tell the format: state it with {option}"))
    })
}

/// The options of all `-o`, in order.
pub fn format_options(lists: &[String]) -> Options {
    let mut options = Options::new();
    for list in lists {
        options.add_list(list);
    }
    options
}

/// For clap: a format by its name.
pub fn format(name: &str) -> Result<Format, String> {
    Format::by_name(name).map_err(|_| {
        let known: Vec<_> = Format::all().map(|format| format.name()).collect();
        format!("there are {}", known.join(", "))
    })
}

/// Where an image comes from or goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `-`: standard input or output.
    Stream,
    File(PathBuf),
}

impl Endpoint {
    /// What to call it, where the stream is called `stream`.
    pub fn name<'a>(&'a self, stream: &'a str) -> &'a Path {
        match self {
            Endpoint::Stream => Path::new(stream),
            Endpoint::File(path) => path,
        }
    }
}

/// For clap: the name of a file, or `-`.
pub fn place() -> impl TypedValueParser<Value = Endpoint> {
    PathBufValueParser::new().map(|path| if path.as_os_str() == "-" { Endpoint::Stream } else { Endpoint::File(path) })
}

/// For clap: the name of a file.
pub fn file() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.as_os_str() == OsStr::new("-") {
        true => Err("only the source and the target of convert can be streams; a file of this name is ./-"),
        false => Ok(path),
    })
}

/// Reads the command line. What cannot be run is dealt with here, and only its exit code comes back.
pub fn parse() -> Result<Command, ExitCode> {
    let words: Vec<OsString> = env::args_os().collect();
    Cli::try_parse_from(&words).map(|cli| cli.command).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match error.print() {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
            _ => ExitCode::SUCCESS,
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // There is nowhere left to say that standard error is gone.
            let _ = error.print();
            ExitCode::FAILURE
        }
        _ => {
            let subcommand = words.get(1).and_then(|word| word.to_str()).unwrap_or_default();
            let failure = Failure::usage(one_line(&error.to_string()));
            let failure = if subcommand == compare::NAME { failure.exit(compare::FAILED) } else { failure };
            failure.report(asked_style(&words))
        }
    })
}

/// The part of clap's message that says what is wrong, on one line.
fn one_line(message: &str) -> String {
    let mut paragraphs = message.split("\n\n").map(|lines| lines.lines().map(str::trim).collect::<Vec<_>>().join(" "));
    let problem = paragraphs.next().unwrap_or_default();
    let tips = paragraphs.filter_map(|text| text.strip_prefix("tip: ").map(|tip| format!("; {tip}")));
    format!("{}{} (see --help)", problem.strip_prefix("error: ").unwrap_or(&problem), tips.collect::<String>())
}

/// The style that was asked for on a command line that does not parse.
fn asked_style(words: &[OsString]) -> Style {
    let mut pairs = words.iter().zip(words.iter().skip(1));
    let json = words.iter().any(|word| word == "--output=json")
        || pairs.any(|(option, value)| option == "--output" && value == "json");
    if json { Style::Json } else { Style::Human }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

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
        assert_eq!(
            problem(&["imgconv", "info", "-f", "nope", "x"]),
            "invalid value 'nope' for '--format <FMT>': there are qcow2, vmdk, vpc, vhdx, vdi, raw (see --help)"
        );
        let typo = problem(&["imgconv", "info", "--backing-chian", "x"]);
        assert!(typo.contains("'--backing-chain'") && !typo.contains('\n'), "{typo}");
    }

    #[test]
    fn a_stream_is_a_dash_and_nothing_else() {
        assert!(problem(&["imgconv", "info", "-"]).contains("a file of this name is ./-"));
        assert!(problem(&["imgconv", "convert", "-B", "-", "x.raw", "y.qcow2"]).contains("a file of this name is ./-"));
        let parse = |word| place().parse_ref(&Cli::command(), None, OsStr::new(word)).unwrap();
        assert_eq!(parse("-"), Endpoint::Stream);
        assert_eq!(parse("./-"), Endpoint::File("./-".into()));
    }

    #[test]
    fn the_style_is_known_before_the_line_parses() {
        let style = |line: &str| asked_style(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(style("imgconv info --output json --bad"), Style::Json);
        assert_eq!(style("imgconv info --bad --output=json"), Style::Json);
        assert_eq!(style("imgconv info --output human json"), Style::Human);
    }
}
