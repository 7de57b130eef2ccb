//! One error type, sorted by who is to blame: the operating system, the image, the caller, or nobody.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::codec::DecodeError;
use crate::name::Name;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
///
/// A message says everything there is to say, so that no error has a [`source`](std::error::Error::source) to be printed as
/// well. [`Error::root`] is the cause without the file and the guest range around it; [`Error::kind`] is its short name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{action}{}: {cause}", At(*offset))]
    Io {
        /// What was being done, as "reading 512 bytes".
        action: Cow<'static, str>,
        /// Byte offset in the file, where there is one.
        offset: Option<u64>,
        /// What the system said.
        cause: io::Error,
    },

    /// The image breaks a rule of its format.
    #[error("{0}")]
    Corrupt(Fault),

    /// A number in the image, or of the disk, is larger than the caller's [`Limits`](crate::Limits) or the format's
    /// programs allow.
    #[error("{format}: {field}{} is {value}, above the limit of {limit}", At(*at))]
    Limit {
        /// The format's name.
        format: &'static str,
        /// Which number.
        field: Cow<'static, str>,
        /// Byte offset of the field in the file, where it has one.
        at: Option<u64>,
        /// Its value.
        value: u64,
        /// The largest value that would have been accepted.
        limit: u64,
    },

    /// The image is sound, but uses something that this crate does not do.
    #[error("{format}: not supported{}: {feature}", At(*at))]
    Unsupported {
        /// The format's name.
        format: &'static str,
        /// What is not supported: "encryption (LUKS)".
        feature: Cow<'static, str>,
        /// Byte offset of the field that says so, where there is one.
        at: Option<u64>,
    },

    /// The image names another file, which is not opened, and why.
    #[error("{format}: the {role} {name} is not opened: {problem}")]
    Reference {
        /// The format's name.
        format: &'static str,
        /// What the file is to the image: "backing file", "data file".
        role: &'static str,
        /// The name as it stands in the image.
        name: Name,
        /// Why not.
        problem: ReferenceProblem,
    },

    /// An option of the caller is unknown or cannot be met.
    #[error("{format}: option {name}: {problem}")]
    Option {
        /// The format's name.
        format: &'static str,
        /// The option's name.
        name: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },

    /// The caller's request makes no sense for these files.
    #[error("{0}")]
    Usage(String),

    /// No format has this name.
    #[error("unknown format {0:?}")]
    UnknownFormat(String),

    /// The file is an image of a format that this crate does not read.
    #[error("this is a {0} image, which is not supported; as raw its bytes can be read as they are")]
    Unreadable(&'static str),

    /// The file is an image of several formats at once.
    #[error("this file is valid as {}: its format has to be stated", .0.join(" and as "))]
    Ambiguous(Vec<&'static str>),

    /// A file changed its length while it was read.
    #[error("the file changed while it was read: it had {before} bytes and has {after}")]
    Changed {
        /// Length in bytes when it was opened.
        before: u64,
        /// Length in bytes at the end.
        after: u64,
    },

    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,

    /// Something happened in this file.
    #[error("{}: {cause}", crate::name::escaped_path(path))]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        cause: Box<Error>,
    },

    /// Something happened to these guest bytes.
    #[error("{}: {cause}", Guest(range))]
    Guest {
        /// Guest offsets in bytes.
        range: Range<u64>,
        /// What happened.
        cause: Box<Error>,
    },
}

/// Where and how an image breaks a rule of its format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The format's name.
    pub format: &'static str,
    /// The field, by its name in the specification.
    pub field: Cow<'static, str>,
    /// Byte offset of the field in the file.
    pub at: u64,
    /// The value found and the rule it breaks.
    pub problem: Problem,
}

/// The rule that a field breaks, with the numbers that show it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// A value outside its range.
    Range {
        /// The value found.
        value: u64,
        /// The smallest valid value.
        min: u64,
        /// The largest valid value.
        max: u64,
    },
    /// Something that does not lie within the file.
    OutOfBounds {
        /// Byte offset of the thing.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// The file's length in bytes.
        file_len: u64,
    },
    /// An offset that is not a multiple of what it has to be.
    Misaligned {
        /// The value found.
        value: u64,
        /// What it has to be a multiple of.
        alignment: u64,
    },
    /// Reserved bits that are set.
    Reserved {
        /// The value found.
        value: u64,
        /// The reserved bits that are set in it.
        bits: u64,
    },
    /// Two things in one place.
    Overlap {
        /// Byte offset where the second one begins.
        offset: u64,
        /// What is there already.
        with: &'static str,
    },
    /// Any other rule.
    Rule {
        /// The value found.
        value: u64,
        /// The rule, to be read after "but": "must be 0 without a backing file".
        rule: &'static str,
    },
    /// A value that contradicts another part of the image.
    Conflict {
        /// The value found.
        value: u64,
        /// What it contradicts: "another entry maps the same block".
        finding: &'static str,
    },
    /// A compressed payload that does not decode.
    Decode {
        /// Byte offset of the payload.
        offset: u64,
        /// Why.
        source: DecodeError,
    },
}

/// Why a file that an image names is not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReferenceProblem {
    /// The caller's policy does not allow it. The same text whether the file exists or not.
    NotAllowed,
    /// The policy allows only files in the directory of the image.
    NotBeside,
    /// It is not a file name but an address (`nbd:`) or a description (`json:`).
    NotAFile,
    /// Its format is not stated in the image, and its content looks like this format.
    FormatNotStated(&'static str),
    /// The chain of files comes back to a file that is in it already.
    Loop,
    /// None of the files beside the image has the identity that the image states.
    NoneBeside(Name),
    /// Several of the files beside the image have the identity that the image states.
    SeveralBeside(Name),
    /// The file is not, or is no longer, the one that the image was made over.
    Changed {
        /// The identity that the image states.
        expected: Name,
        /// The identity that the file has.
        found: Name,
    },
    /// It is neither a regular file nor a block device.
    NotRegular,
    /// The caller has only the image, no place to look for other files.
    NoPlace,
}

impl Error {
    /// For `map_err`: an I/O error of `action` at byte `offset`.
    pub fn io(action: impl Into<Cow<'static, str>>, offset: impl Into<Option<u64>>) -> impl FnOnce(io::Error) -> Self {
        let (action, offset) = (action.into(), offset.into());
        move |cause| Error::Io { action, offset, cause }
    }

    /// The error for something that the driver of `format` does not support, as "compression".
    pub fn unsupported(format: &'static str, feature: impl Into<Cow<'static, str>>) -> Self {
        Error::Unsupported { format, feature: feature.into(), at: None }
    }

    /// The error for a field of an image, which stands at byte `at` of the file.
    pub fn corrupt(format: &'static str, field: impl Into<Cow<'static, str>>, at: u64, problem: Problem) -> Self {
        Error::Corrupt(Fault { format, field: field.into(), at, problem })
    }

    /// Says in which file the error happened, unless it says so already.
    pub fn in_file(self, path: &Path) -> Self {
        match self {
            Error::File { .. } | Error::Cancelled => self,
            Error::Guest { range, cause } => Error::Guest { range, cause: Box::new(cause.in_file(path)) },
            other => Error::File { path: path.to_owned(), cause: Box::new(other) },
        }
    }

    /// Says in which file the error happened, if that has a path.
    pub(crate) fn in_file_at(self, path: Option<&Path>) -> Self {
        match path {
            Some(path) => self.in_file(path),
            None => self,
        }
    }

    /// Says which guest bytes the error concerns, unless it says so already.
    pub fn in_guest(self, range: Range<u64>) -> Self {
        match self {
            Error::Guest { .. } | Error::Cancelled => self,
            other => Error::Guest { range, cause: Box::new(other) },
        }
    }

    /// The cause, without the file and the guest range around it.
    pub fn root(&self) -> &Error {
        match self {
            Error::File { cause, .. } | Error::Guest { cause, .. } => cause.root(),
            other => other,
        }
    }

    /// The file in which it happened, where that is known.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::File { path, .. } => Some(path),
            Error::Guest { cause, .. } => cause.path(),
            _ => None,
        }
    }

    /// The cause's name: a word that stays the same between versions, for programs.
    ///
    /// `io`; for a corrupt image `invalid-field`, `out-of-bounds`, `overlap` or `decode`; `limit`, `unsupported`, `reference`,
    /// `option`, `usage`, `unknown-format`, `ambiguous-format`, `changed`, `cancelled`.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::File { cause, .. } | Error::Guest { cause, .. } => cause.kind(),
            Error::Io { .. } => "io",
            Error::Corrupt(fault) => fault.problem.kind(),
            Error::Limit { .. } => "limit",
            Error::Unsupported { .. } | Error::Unreadable(_) => "unsupported",
            Error::Reference { .. } => "reference",
            Error::Option { .. } => "option",
            Error::Usage(_) => "usage",
            Error::UnknownFormat(_) => "unknown-format",
            Error::Ambiguous(_) => "ambiguous-format",
            Error::Changed { .. } => "changed",
            Error::Cancelled => "cancelled",
        }
    }
}

/// For code that speaks [`io::Error`]: the kind is the cause's, and the error itself is kept inside.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.root() {
            Error::Io { cause, .. } => cause.kind(),
            Error::Corrupt(_) | Error::Limit { .. } => io::ErrorKind::InvalidData,
            Error::Unsupported { .. } | Error::Unreadable(_) => io::ErrorKind::Unsupported,
            // Not `Interrupted`, which callers of `Read` retry.
            Error::Cancelled => io::ErrorKind::Other,
            _ => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, error)
    }
}

impl Problem {
    fn kind(&self) -> &'static str {
        match self {
            Problem::OutOfBounds { .. } => "out-of-bounds",
            Problem::Overlap { .. } => "overlap",
            Problem::Decode { .. } => "decode",
            _ => "invalid-field",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { format, field, at, problem } = self;
        write!(f, "{format}: corrupt image at file offset {at:#x}: {field} {problem}")
    }
}

/// The rest of a sentence that begins with the field's name.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Range { value, min, max } => write!(f, "is {value}, outside {min}..={max}"),
            Problem::OutOfBounds { offset, len, file_len } => {
                write!(f, "puts {len} bytes at {offset:#x}, but the file ends at {file_len:#x}")
            }
            Problem::Misaligned { value, alignment } => write!(f, "is {value:#x}, not a multiple of {alignment}"),
            Problem::Reserved { value, bits } => write!(f, "is {value:#x}, with the reserved bits {bits:#x} set"),
            Problem::Overlap { offset, with } => write!(f, "points to {offset:#x}, where {with} is already"),
            Problem::Rule { value, rule } => write!(f, "is {value:#x}, but {rule}"),
            Problem::Conflict { value, finding } => write!(f, "is {value:#x}: {finding}"),
            Problem::Decode { source, .. } => write!(f, "does not decode: {source}"),
        }
    }
}

impl fmt::Display for ReferenceProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReferenceProblem::NotAllowed => "files that an image names are opened only if that is asked for",
            ReferenceProblem::NotBeside => "only files in the image's own directory are allowed",
            ReferenceProblem::NotAFile => "it is not the name of a file",
            ReferenceProblem::FormatNotStated(format) => {
                return write!(f, "its format is not stated, and it looks like {format}");
            }
            ReferenceProblem::Loop => "it is a part of this chain already",
            ReferenceProblem::NoneBeside(identity) => {
                return write!(f, "there is no such file, and none beside the image has {identity}");
            }
            ReferenceProblem::SeveralBeside(identity) => {
                return write!(f, "there is no such file, and several beside the image have {identity}");
            }
            ReferenceProblem::Changed { expected, found } => {
                return write!(f, "it has been changed since: the image was made over {expected}, and this is {found}");
            }
            ReferenceProblem::NotRegular => "it is neither a regular file nor a block device",
            ReferenceProblem::NoPlace => "the image was not opened from a path",
        })
    }
}

/// "guest bytes 0x0..0x200", or "guest offset 0x0" where it is not known how many.
struct Guest<'a>(&'a Range<u64>);

impl fmt::Display for Guest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { start, end } = self.0;
        if end - start == 1 {
            write!(f, "guest offset {start:#x}")
        } else {
            write!(f, "guest bytes {start:#x}..{end:#x}")
        }
    }
}

/// " at file offset 0x10", or nothing.
struct At(Option<u64>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(offset) => write!(f, " at file offset {offset:#x}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_reads_as_a_sentence() {
        let error = Error::corrupt("qcow2", "cluster_bits", 0x14, Problem::Range { value: 40, min: 9, max: 21 });
        assert_eq!(error.to_string(), "qcow2: corrupt image at file offset 0x14: cluster_bits is 40, outside 9..=21");
        assert_eq!(error.kind(), "invalid-field");
    }

    #[test]
    fn context_is_added_once_and_keeps_the_root() {
        let error = Error::io("reading 512 bytes", 0x1000)(io::Error::from(io::ErrorKind::UnexpectedEof))
            .in_file(Path::new("a.img"))
            .in_file(Path::new("b.img"))
            .in_guest(0..0x200);
        assert_eq!(error.path(), Some(Path::new("a.img")));
        assert_eq!(error.kind(), "io");
        assert_eq!(
            error.to_string(),
            "guest bytes 0x0..0x200: a.img: reading 512 bytes at file offset 0x1000: unexpected end of file"
        );
    }
}
