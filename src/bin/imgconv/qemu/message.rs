//! Messages in the words that callers of qemu-img look for.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use diskimage::{Error, Fault, Problem, ReferenceProblem, SecretProblem};

use crate::failure::Failure;
use crate::node;
use crate::output;
use crate::signals::Interrupt;

/// The name of the program in messages, whatever it is called.
pub const NAME: &str = "qemu-img";

/// Why a command failed.
#[derive(Debug)]
pub struct Failed {
    exit: u8,
    program: String,
    message: String,
    /// The command whose help is named, or "" for that of the program.
    help: Option<&'static str>,
}

impl Failed {
    pub fn new(message: impl Into<String>) -> Failed {
        Failed::by(NAME, message)
    }

    /// A failure that another part of the program reports, such as the parser of options.
    pub fn by(program: &str, message: impl Into<String>) -> Failed {
        Failed { exit: 1, program: program.to_owned(), message: message.into(), help: None }
    }

    /// Points to the help of a command.
    pub fn see_help(self, command: &'static str) -> Failed {
        Failed { help: Some(command), ..self }
    }

    pub fn exit(self, exit: u8) -> Failed {
        Failed { exit, ..self }
    }

    /// An image that could not be opened.
    pub fn opening(name: &str, error: &Error) -> Failed {
        Failed::opening_as(name, name, error)
    }

    /// As [`opening`](Self::opening), of an image that is called otherwise on the command line.
    pub fn opening_as(given: &str, name: &str, error: &Error) -> Failed {
        if let Error::Reference { problem: ReferenceProblem::Loop, name, .. } = error.root() {
            let name = error.path().map_or_else(|| name.to_text().into_owned(), |path| path.display().to_string());
            return Failed::new(format!("Backing file '{name}' creates an infinite loop."));
        }
        Failed::new(format!("Could not open '{given}': {}", describe(error, name)))
    }

    /// An image that could not be created.
    pub fn creating(name: &str, error: &Error) -> Failed {
        Failed::new(creation_problem(name, error))
    }

    /// Why work ended: as `other` says, unless a signal has cancelled it.
    pub fn unless_cancelled(interrupt: &Interrupt, error: Error, other: impl FnOnce(&Error) -> Failed) -> Failed {
        match error.root() {
            Error::Cancelled => interrupt.failure(error).into(),
            _ => other(&error),
        }
    }

    /// Names the image that the failure is about.
    pub fn about(mut self, name: &str) -> Failed {
        if self.help.is_none() {
            self.message = format!("{name}: {}", self.message);
        }
        self
    }

    /// The message, without the name of the program.
    pub fn message(&self) -> String {
        self.message.clone()
    }

    pub fn report(self) -> ExitCode {
        line(&self.to_string());
        ExitCode::from(self.exit)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.message.split('\n').map(output::printable).collect();
        write!(f, "{}: {}", self.program, lines.join("\n"))?;
        match self.help {
            None => Ok(()),
            Some("") => write!(f, "\nTry '{NAME} --help' for more info"),
            Some(command) => write!(f, "\nTry '{NAME} {command} --help' for more info"),
        }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed::new(describe(&error, ""))
    }
}

impl From<node::Invalid> for Failed {
    fn from(invalid: node::Invalid) -> Failed {
        Failed::new(invalid.to_string())
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Failed {
        Failed::new(failure.message()).exit(failure.exit_code())
    }
}

/// Prints a line to standard error.
pub fn line(text: &str) {
    // A closed standard error cannot be reported anywhere.
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// The error in the words of qemu-img, where callers look for them. `name` is that of the image, whose file it may be in.
pub fn describe(error: &Error, name: &str) -> String {
    match error {
        Error::File { path, cause } => {
            let is_other = path != Path::new(name);
            match &**cause {
                inner @ Error::File { .. } => format!("Could not open backing file: {}", describe(inner, "")),
                Error::Io { cause, action, .. } if *action == "opening" => {
                    format!("Could not open '{}': {}", path.display(), system(cause))
                }
                Error::InUse { for_writing } => in_use(path, *for_writing),
                inner if is_other && !name.is_empty() => {
                    format!("Could not open '{}': {}", path.display(), describe(inner, ""))
                }
                inner => describe(inner, name),
            }
        }
        Error::NotReplaceable { cause } => describe(cause, name),
        Error::Io { cause, action, .. } if cause.raw_os_error().is_some() && *action != "opening" => {
            format!("{action}: {}", system(cause))
        }
        Error::Io { cause, .. } => system(cause),
        Error::InUse { for_writing } => in_use(Path::new(name), *for_writing),
        Error::UnknownFormat(name) => format!("Unknown driver '{name}'"),
        Error::Secret { format, problem: SecretProblem::Missing } => {
            let prefix = if *format == "luks" { "" } else { "encrypt." };
            format!("Parameter '{prefix}key-secret' is required for cipher")
        }
        Error::Corrupt(fault)
            if is_signature(&fault.field)
                && matches!(fault.problem, Problem::Rule { .. } | Problem::Missing | Problem::Truncated) =>
        {
            format!("Image is not in {} format", fault.format)
        }
        Error::Corrupt(Fault { field, problem: Problem::Conflict { value, .. }, .. }) if field == "crypt_method" => {
            format!("Missing CRYPTO header for crypt method {value}")
        }
        Error::Corrupt(Fault { field, problem: Problem::Range { value, min, .. }, .. })
            if field == "l1_size" && value < min =>
        {
            let fits = i32::try_from(*min).is_ok();
            if fits { "L1 table is too small" } else { "Image is too big" }.to_owned()
        }
        Error::Unsupported { format, feature, .. } => match feature.strip_prefix("incompatible feature ") {
            Some(bits) => format!("Unsupported {format} feature(s): {}", features(bits)),
            None => error.to_string(),
        },
        error => error.to_string(),
    }
}

/// The names of features from a list such as "60 (name), 61", and a mask of those without a name.
fn features(list: &str) -> String {
    let (mut names, mut mask) = (Vec::new(), 0u64);
    for feature in list.split(", ") {
        match (feature.split_once(" ("), feature.parse::<u32>()) {
            (Some((_, name)), _) => names.push(name.trim_end_matches(')').to_owned()),
            (None, Ok(bit)) => mask |= 1u64.checked_shl(bit).unwrap_or(0),
            (None, Err(_)) => names.push(feature.to_owned()),
        }
    }
    if mask != 0 {
        names.push(format!("Unknown incompatible feature: {mask:x}"));
    }
    names.join(", ")
}

/// Why an image could not be created.
pub fn creation_problem(name: &str, error: &Error) -> String {
    match error.root() {
        Error::Io { cause, action, .. } if action.contains("creating") || action.contains("opening") => {
            format!("Could not create '{name}': {}", system(cause))
        }
        Error::Option { name: option, problem, .. } if option == "preallocation" => match problem.split('"').nth(1) {
            None => describe(error, name),
            Some(mode @ ("off" | "metadata" | "falloc" | "full")) => format!("Unsupported preallocation mode: {mode}"),
            Some(mode) => format!("Parameter 'preallocation' does not accept value '{mode}'"),
        },
        Error::Option { format: "qcow2" | "vmdk", name: option, problem } => {
            let known = OPTION_PROBLEMS.iter().find(|(name, part, _)| name == option && problem.contains(part));
            known.map_or_else(|| describe(error, name), |(_, _, words)| (*words).to_owned())
        }
        _ => describe(error, name),
    }
}

/// Options of new qcow2 and VMDK images with a part of what is wrong with them, and the words of qemu-img for it.
const OPTION_PROBLEMS: [(&str, &str, &str); 11] = [
    (
        "cluster_size",
        "too small for a disk",
        "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
    ),
    ("cluster_size", "power of two", "Cluster size must be a power of two between 512 and 2048k"),
    ("cluster_size", "invalid value", "Cluster size must be a power of two between 512 and 2048k"),
    (
        "refcount_bits",
        "requires version 3",
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
    ),
    ("refcount_bits", "", "Refcount width must be a power of two and may not exceed 64 bits"),
    ("extended_l2", "16k", "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes"),
    (
        "data_file",
        "version 3",
        "External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
    ),
    ("data_file_raw", "requires data_file", "data-file-raw requires data-file"),
    ("data_file_raw", "backing", "Backing file and data-file-raw cannot be used at the same time"),
    (
        "lazy_refcounts",
        "version 3",
        "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)",
    ),
    ("zeroed_grain", "monolithicFlat", "Flat image can't enable zeroed grain"),
];

fn is_signature(field: &str) -> bool {
    ["magic", "signature", "cookie"].iter().any(|word| field.contains(word))
}

fn in_use(path: &Path, for_writing: bool) -> String {
    let lock = if for_writing { "shared \"write\"" } else { "\"write\"" };
    format!("Failed to get {lock} lock\nIs another process using the image [{}]?", path.display())
}

/// The message of the system, without its number.
pub fn system(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error ").map_or(text.as_str(), |(message, _)| message).to_owned()
}
