//! The error type of the crate.

mod kind;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::codec::{DecodeError, MissingCodec};
use crate::limit_name::LimitName;
use crate::name::Name;
pub use kind::ErrorKind;

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any failure of this crate.
///
/// The message is complete: it names the file, the guest range, the field and the cause, so that printing the error alone
/// is enough. [`source`](std::error::Error::source) returns the underlying [`io::Error`] or [`DecodeError`] for code that
/// examines it; its text is part of the message already. [`root`](Self::root) is the error without the file and the guest
/// range, [`kind`](Self::kind) the category to match on.
///
/// ```
/// use diskimage::{Error, ErrorKind, Problem};
///
/// // A driver reports a field with its offset in the file and the rule that it breaks.
/// let error = Error::corrupt("toy", "version", 4, Problem::Range { value: 9, min: 1, max: 2 });
/// assert_eq!(error.to_string(), "toy: corrupt image at file offset 0x4: version is 9, outside 1..=2");
///
/// // The core adds the file.
/// let error = error.in_file("disk.toy".as_ref());
/// assert_eq!(error.path(), Some("disk.toy".as_ref()));
/// assert_eq!(error.kind(), ErrorKind::InvalidField);
/// assert!(matches!(error.root(), Error::Corrupt(fault) if fault.at == 4));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The operating system, or the storage of the caller, reported an error.
    Io {
        /// The operation, as a participle: "reading 512 bytes".
        action: Cow<'static, str>,
        /// Byte offset in the file, where the operation has one.
        offset: Option<u64>,
        /// The error of the system.
        cause: io::Error,
    },

    /// The image breaks a rule of its format.
    Corrupt(Fault),

    /// A number in the image, or a requested size, exceeds the caller's [`Limits`](crate::Limits) or the format's own limit.
    Limit {
        /// Which one of the caller's limits it is; `None` for a limit of the format.
        name: Option<LimitName>,
        /// Name of the format.
        format: &'static str,
        /// The field, or what is limited: "virtual size".
        field: Cow<'static, str>,
        /// Byte offset of the field in the file, where it has one.
        at: Option<u64>,
        /// The value.
        value: u64,
        /// The largest accepted value.
        limit: u64,
    },

    /// A valid image or a valid request needs something that this crate does not implement.
    Unsupported {
        /// Name of the format.
        format: &'static str,
        /// The feature: "encryption (LUKS)".
        feature: Cow<'static, str>,
        /// Byte offset of the field that requires it, if any.
        at: Option<u64>,
    },

    /// A referenced file was not opened.
    Reference {
        /// Name of the format.
        format: &'static str,
        /// Role of the file: "backing file", "data file".
        role: &'static str,
        /// The name as stored in the image.
        name: Name,
        /// The reason.
        problem: ReferenceProblem,
    },

    /// An encrypted image cannot be read, or created, with the secrets given.
    Secret {
        /// Name of the format.
        format: &'static str,
        /// The reason.
        problem: SecretProblem,
    },

    /// A format option is unknown or invalid.
    Option {
        /// Name of the format.
        format: &'static str,
        /// Name of the option.
        name: String,
        /// What is wrong with it, and what is expected.
        problem: String,
    },

    /// The request is invalid for these files.
    Usage(String),

    /// The existing target cannot be replaced by a new file. It can be written in place:
    /// [`Converter::in_place`](crate::Converter::in_place).
    NotReplaceable {
        /// The reason.
        cause: Box<Error>,
    },

    /// A compressed file that was opened to be read in one pass turns out to need more. It can be read without
    /// [`OpenOptions::one_pass`](crate::OpenOptions::one_pass).
    NotOnePass {
        /// Name of the format of the compressed file.
        format: &'static str,
        /// The reason: "it has another size than it states".
        finding: &'static str,
    },

    /// No format has this name.
    UnknownFormat(String),

    /// The file is of a format that cannot be read: an image without a driver, a compressed file, an archive or an encrypted
    /// volume.
    Unreadable {
        /// Name of the format.
        format: &'static str,
        /// The reason, and what can be done: "compressed file, not a disk; unpack it first".
        reason: &'static str,
    },

    /// The extension of the file is that of an image format whose signature the file does not have.
    Extension {
        /// Name of the format.
        format: &'static str,
        /// The content: "raw", "HTML or XML", "empty".
        content: &'static str,
    },

    /// The package has several disks, of which none was selected.
    SeveralDisks {
        /// The names of the disks, in order.
        disks: Vec<Name>,
    },

    /// The package has no disk of this name.
    NoSuchDisk {
        /// The name, identifier or number that was asked for.
        wanted: Name,
        /// The names of the disks, in order.
        disks: Vec<Name>,
    },

    /// The digest of a file, or of a block of a disk, is not the one in the package that it is from: one of them was changed.
    Digest {
        /// The name of the file in the package.
        name: Name,
        /// The algorithm: "SHA256", "XXH64".
        algorithm: &'static str,
        /// The digest in the package, in hexadecimal digits.
        expected: String,
        /// The digest that was computed.
        found: String,
    },

    /// The file is valid in each of these formats.
    Ambiguous(Vec<&'static str>),

    /// The file is open as an image: a virtual machine uses it, for example, or an [`Image`](crate::Image) of this program.
    InUse {
        /// Whether it is open for writing and was to be read; else it was to be replaced.
        for_writing: bool,
    },

    /// A file changed its length while it was read.
    Changed {
        /// Length in bytes when it was opened.
        before: u64,
        /// Length in bytes at the end.
        after: u64,
    },

    /// The caller cancelled.
    Cancelled,

    /// An error in a certain file.
    File {
        /// Path of the file.
        path: PathBuf,
        /// The error.
        cause: Box<Error>,
    },

    /// An error in a certain guest range.
    Guest {
        /// Guest offsets in bytes.
        range: Range<u64>,
        /// The error.
        cause: Box<Error>,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { action, offset, cause } => write!(f, "{action}{}: {cause}", At(*offset)),
            Error::Corrupt(fault) => fault.fmt(f),
            Error::Limit { name, format, field, at, value, limit } => {
                write!(f, "{format}: {field}{} is {value}, above the limit of {limit}", At(*at))?;
                name.map_or(Ok(()), |name| write!(f, " ({name})"))
            }
            Error::Unsupported { format, feature, at } => write!(f, "{format}: not supported{}: {feature}", At(*at)),
            Error::Reference { format, role, name, problem } => {
                write!(f, "{format}: the {role} {name} is not opened: {problem}")
            }
            Error::Secret { format, problem } => write!(f, "{format}: {problem}"),
            Error::Option { format, name, problem } => write!(f, "{format}: option {name}: {problem}"),
            Error::Usage(problem) => f.write_str(problem),
            Error::NotReplaceable { cause } => write!(f, "the existing file cannot be replaced: {cause}"),
            Error::NotOnePass { format, finding } => {
                write!(f, "{format}: the file cannot be read in one pass: {finding}")
            }
            Error::UnknownFormat(name) => write!(f, "unknown format {name:?}"),
            Error::Unreadable { format, reason } => {
                write!(f, "{format}: {reason}; state the format raw to read its bytes as they are")
            }
            Error::Extension { format, content } => {
                write!(
                    f,
                    "the extension is that of {format}, but the content is {content}, not {format}: the file may be incomplete; or \
                     state the format"
                )
            }
            Error::SeveralDisks { disks } => write!(f, "the package has several disks; select one of {}", Disks(disks)),
            Error::NoSuchDisk { wanted, disks } => {
                write!(f, "the package has no disk '{wanted}'; its disks are {}", Disks(disks))
            }
            Error::Digest { name, algorithm, expected, found } => {
                write!(
                    f,
                    "digest mismatch: the {algorithm} of {name} is {found}, expected {expected} as the package says"
                )
            }
            Error::Ambiguous(formats) => {
                write!(f, "ambiguous format: the file is valid as {}; state the format", formats.join(" and as "))
            }
            Error::InUse { for_writing: true } => f.write_str("the image is open for writing in another program"),
            Error::InUse { for_writing: false } => f.write_str("the file is in use as a disk image"),
            Error::Changed { before, after } => {
                write!(f, "the file changed while it was read: it had {before} bytes and now has {after}")
            }
            Error::Cancelled => f.write_str("cancelled"),
            Error::File { path, cause } => write!(f, "{}: {cause}", crate::name::escaped_path(path)),
            Error::Guest { range, cause } => write!(f, "{}: {cause}", Guest(range)),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self.root() {
            Error::NotReplaceable { cause } => cause.source(),
            Error::Io { cause, .. } => Some(cause),
            Error::Corrupt(Fault { problem: Problem::Decode { source, .. }, .. }) => Some(source),
            _ => None,
        }
    }
}

/// A field of an image that breaks a rule of its format.
///
/// ```
/// use diskimage::{Error, Fault, Problem};
///
/// let problem = Problem::Conflict { value: 3, finding: "another entry maps the same block" };
/// let error = Error::Corrupt(Fault::new("toy", "block map entry", 0x200, problem));
/// assert_eq!(
///     error.to_string(),
///     "toy: corrupt image at file offset 0x200: block map entry is 0x3: another entry maps the same block"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// Name of the format.
    pub format: &'static str,
    /// The field, named as in the specification.
    pub field: Cow<'static, str>,
    /// Byte offset of the field in the file.
    pub at: u64,
    /// The value found, and the rule that it breaks.
    pub problem: Problem,
}

/// A broken rule, with the value found.
///
/// The text is the rest of a sentence that begins with the name of the field.
///
/// ```
/// use diskimage::Problem;
///
/// let problem = Problem::Misaligned { value: 0x1001, alignment: 512 };
/// assert_eq!(problem.to_string(), "is 0x1001, not a multiple of 512");
/// let problem = Problem::Rule { value: 7, rule: "must be 0 without a backing file" };
/// assert_eq!(problem.to_string(), "is 0x7, but must be 0 without a backing file");
/// ```
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
    /// A structure that reaches beyond the end of its file.
    OutOfBounds {
        /// Byte offset of the structure.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// The file's length in bytes.
        file_len: u64,
    },
    /// An offset that is not aligned.
    Misaligned {
        /// The value found.
        value: u64,
        /// Its required alignment in bytes.
        alignment: u64,
    },
    /// Reserved bits that are set.
    Reserved {
        /// The value found.
        value: u64,
        /// The reserved bits that are set in it.
        bits: u64,
    },
    /// Two structures that occupy the same host range.
    Overlap {
        /// Byte offset of the second one.
        offset: u64,
        /// The first one: "metadata".
        with: &'static str,
    },
    /// Any other rule.
    Rule {
        /// The value found.
        value: u64,
        /// The rule, read after "but": "must be 0 without a backing file".
        rule: &'static str,
    },
    /// A value that contradicts another part of the image.
    Conflict {
        /// The value found.
        value: u64,
        /// What it contradicts: "another entry maps the same block".
        finding: &'static str,
    },
    /// A part of the metadata that is not there, or is of another type.
    Missing,
    /// The file ends before the structure does.
    Truncated,
    /// Compressed data that breaks a rule of its format.
    Invalid {
        /// The rule, or the message of the decoder: "invalid distance too far back".
        reason: Cow<'static, str>,
    },
    /// A compressed payload that does not decode.
    Decode {
        /// Byte offset of the payload.
        offset: u64,
        /// The error of the decoder.
        source: DecodeError,
    },
}

/// The reason why a referenced file was not opened.
///
/// ```
/// use diskimage::{Error, Image, ReferenceProblem};
///
/// fn advice(error: &Error) -> Option<&'static str> {
///     match error.root() {
///         Error::Reference { problem: ReferenceProblem::NotAllowed, .. } => Some("allow files beside the image"),
///         _ => None,
///     }
/// }
/// let error = Image::open("missing.qcow2").unwrap_err();
/// assert_eq!(advice(&error), None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReferenceProblem {
    /// The reference policy is [`Deny`](crate::ReferencePolicy::Deny). The text does not depend on what exists.
    NotAllowed,
    /// The reference policy is [`Beside`](crate::ReferencePolicy::Beside), and the name leads out of the image's directory.
    NotBeside,
    /// The name is an address (`nbd:`), not a file name.
    NotAFile,
    /// The name is a description (`json:`) of something else than one local file, for this reason.
    NotOneFile(Name),
    /// The name is a symbolic link, which the reference policy [`Beside`](crate::ReferencePolicy::Beside) does not follow.
    Link,
    /// The image does not state the file's format, and the file has the signature or the extension of this one.
    FormatNotStated(&'static str),
    /// The file is part of the chain already.
    Loop,
    /// No file beside the image has this identity, which the image states.
    NoneBeside(Name),
    /// Several files beside the image have this identity, which the image states.
    SeveralBeside(Name),
    /// The file is not the one that the overlay was created with, or was changed since.
    Changed {
        /// The identity that the image states.
        expected: Name,
        /// The identity that the file has.
        found: Name,
    },
    /// It is neither a regular file nor a block device.
    NotRegular,
    /// The image was not opened by path, and there is no resolver; or it is inside of a package.
    NoPlace,
    /// The package has no file of this name.
    NotInPackage,
}

/// The reason why an encrypted image was not unlocked or not created.
///
/// ```no_run
/// use diskimage::{Error, OpenOptions, Secret, SecretProblem};
///
/// let opened = OpenOptions::new().secret(Secret::new("guess")).open("disk.luks");
/// if let Err(error) = opened
///     && let Error::Secret { problem: SecretProblem::Wrong, .. } = error.root()
/// {
///     println!("wrong passphrase");
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SecretProblem {
    /// The image is encrypted, and no secret was given.
    Missing,
    /// None of the secrets unlocks a key slot.
    Wrong,
    /// A new encrypted image needs a secret.
    MissingForTarget,
}

impl fmt::Display for SecretProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SecretProblem::Missing => "the image is encrypted, and no secret is given",
            SecretProblem::Wrong => "no secret given unlocks a key slot",
            SecretProblem::MissingForTarget => "a secret is needed to encrypt the new image",
        })
    }
}

impl Error {
    /// Returns a function for `map_err` that adds the operation, as a participle, and the byte offset in the file.
    ///
    /// ```
    /// use diskimage::Error;
    /// use diskimage::io::{MemFile, ReadAt};
    ///
    /// fn first_sector(file: &dyn ReadAt) -> diskimage::Result<[u8; 512]> {
    ///     let mut sector = [0; 512];
    ///     file.read_exact_at(&mut sector, 0).map_err(Error::io("reading the header", 0))?;
    ///     Ok(sector)
    /// }
    /// let error = first_sector(&MemFile::from(vec![0; 100])).unwrap_err();
    /// assert_eq!(error.to_string(), "reading the header at file offset 0x0: unexpected end of file");
    /// ```
    pub fn io(action: impl Into<Cow<'static, str>>, offset: impl Into<Option<u64>>) -> impl FnOnce(io::Error) -> Self {
        let (action, offset) = (action.into(), offset.into());
        // A file that this crate decodes fails with an error of this crate, which says more than the action.
        move |cause| cause.downcast::<Error>().unwrap_or_else(|cause| Error::Io { action, offset, cause })
    }

    /// Creates the error for a feature that the driver of `format` does not implement: "compression".
    ///
    /// ```
    /// use diskimage::Error;
    ///
    /// assert_eq!(Error::unsupported("toy", "compression").to_string(), "toy: not supported: compression");
    /// ```
    pub fn unsupported(format: &'static str, feature: impl Into<Cow<'static, str>>) -> Self {
        Error::Unsupported { format, feature: feature.into(), at: None }
    }

    /// The error for a codec whose feature is off.
    pub(crate) fn missing_codec(missing: MissingCodec) -> Self {
        Error::unsupported(missing.codec.name(), missing.to_string())
    }

    /// Creates the error for a `value` that exceeds a limit of the format, which is not the caller's to set.
    ///
    /// ```
    /// use diskimage::Error;
    ///
    /// let error = Error::limit("toy", "virtual size", 9, 8);
    /// assert_eq!(error.to_string(), "toy: virtual size is 9, above the limit of 8");
    /// ```
    pub fn limit(format: &'static str, field: impl Into<Cow<'static, str>>, value: u64, limit: u64) -> Self {
        Error::Limit { name: None, format, field: field.into(), at: None, value, limit }
    }

    /// Creates the error for the field at byte `at` of an image file.
    pub fn corrupt(format: &'static str, field: impl Into<Cow<'static, str>>, at: u64, problem: Problem) -> Self {
        Error::Corrupt(Fault::new(format, field, at, problem))
    }

    /// Adds the path of the file, unless the error has one.
    pub fn in_file(self, path: &Path) -> Self {
        match self {
            Error::File { .. } | Error::Cancelled => self,
            Error::Guest { range, cause } => Error::Guest { range, cause: Box::new(cause.in_file(path)) },
            other => Error::File { path: path.to_owned(), cause: Box::new(other) },
        }
    }

    /// Adds the path of the file, if there is one.
    pub(crate) fn in_file_at(self, path: Option<&Path>) -> Self {
        match path {
            Some(path) => self.in_file(path),
            None => self,
        }
    }

    /// Adds the guest range in bytes, unless the error has one.
    pub fn in_guest(self, range: Range<u64>) -> Self {
        match self {
            Error::Guest { .. } | Error::Cancelled => self,
            other => Error::Guest { range, cause: Box::new(other) },
        }
    }

    /// Returns the error without the file and the guest range.
    pub fn root(&self) -> &Error {
        match self {
            Error::File { cause, .. } | Error::Guest { cause, .. } => cause.root(),
            other => other,
        }
    }

    /// Returns the path of the file in which the error occurred, where it is known.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::File { path, .. } => Some(path),
            Error::Guest { cause, .. } => cause.path(),
            _ => None,
        }
    }

    /// The kind of the cause.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::File { cause, .. } | Error::Guest { cause, .. } | Error::NotReplaceable { cause } => cause.kind(),
            Error::Io { .. } => ErrorKind::Io,
            Error::Corrupt(fault) => fault.problem.kind(),
            Error::Limit { .. } => ErrorKind::Limit,
            Error::Unsupported { .. } | Error::Unreadable { .. } | Error::NotOnePass { .. } => ErrorKind::Unsupported,
            Error::Reference { .. } => ErrorKind::Reference,
            Error::Secret { .. } => ErrorKind::Secret,
            Error::Option { .. } => ErrorKind::Option,
            Error::Usage(_) | Error::SeveralDisks { .. } | Error::NoSuchDisk { .. } => ErrorKind::Usage,
            Error::Digest { .. } => ErrorKind::Digest,
            Error::UnknownFormat(_) => ErrorKind::UnknownFormat,
            Error::Ambiguous(_) | Error::Extension { .. } => ErrorKind::AmbiguousFormat,
            Error::InUse { .. } => ErrorKind::InUse,
            Error::Changed { .. } => ErrorKind::Changed,
            Error::Cancelled => ErrorKind::Cancelled,
        }
    }
}

/// The [kind](io::Error::kind) follows from the cause, and the error itself is kept inside.
///
/// ```
/// use std::io;
///
/// let error = io::Error::from(diskimage::Image::open("missing.qcow2").unwrap_err());
/// assert_eq!(error.kind(), io::ErrorKind::NotFound);
/// assert!(error.get_ref().is_some_and(|inner| inner.is::<diskimage::Error>()));
/// ```
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let root = match error.root() {
            Error::NotReplaceable { cause } => cause.root(),
            root => root,
        };
        let kind = match root {
            Error::Io { cause, .. } => cause.kind(),
            Error::Corrupt(_) | Error::Limit { .. } => io::ErrorKind::InvalidData,
            Error::Unsupported { .. } | Error::Unreadable { .. } => io::ErrorKind::Unsupported,
            // Not `Interrupted`, which callers of `Read` retry.
            Error::Cancelled => io::ErrorKind::Other,
            _ => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, error)
    }
}

impl Fault {
    /// The field at byte `at` of the file.
    pub fn new(format: &'static str, field: impl Into<Cow<'static, str>>, at: u64, problem: Problem) -> Self {
        Fault { format, field: field.into(), at, problem }
    }
}

impl Problem {
    fn kind(&self) -> ErrorKind {
        match self {
            Problem::OutOfBounds { .. } | Problem::Truncated => ErrorKind::OutOfBounds,
            Problem::Overlap { .. } => ErrorKind::Overlap,
            Problem::Decode { .. } | Problem::Invalid { .. } => ErrorKind::Decode,
            _ => ErrorKind::InvalidField,
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
                write!(f, "is out of bounds: {len} bytes at {offset:#x}, file length {file_len:#x}")
            }
            Problem::Misaligned { value, alignment } => write!(f, "is {value:#x}, not a multiple of {alignment}"),
            Problem::Reserved { value, bits } => write!(f, "is {value:#x}, with the reserved bits {bits:#x} set"),
            Problem::Overlap { offset, with } => write!(f, "points to {offset:#x}, which overlaps {with}"),
            Problem::Rule { value, rule } => write!(f, "is {value:#x}, but {rule}"),
            Problem::Conflict { value, finding } => write!(f, "is {value:#x}: {finding}"),
            Problem::Missing => f.write_str("is missing, or is of another type"),
            Problem::Truncated => f.write_str("is truncated"),
            Problem::Invalid { reason } => write!(f, "is invalid: {reason}"),
            Problem::Decode { source, .. } => write!(f, "does not decode: {source}"),
        }
    }
}

impl fmt::Display for ReferenceProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReferenceProblem::NotAllowed => "the reference policy denies referenced files",
            ReferenceProblem::NotBeside => "the reference policy allows only files in the directory of the image",
            ReferenceProblem::NotAFile => "not a file name",
            ReferenceProblem::NotOneFile(reason) => return write!(f, "not the description of one local file: {reason}"),
            ReferenceProblem::Link => "a symbolic link, which the reference policy does not follow",
            ReferenceProblem::FormatNotStated(format) => {
                return write!(f, "its format is not stated, and it looks like {format}");
            }
            ReferenceProblem::Loop => "backing chain contains a loop",
            ReferenceProblem::NoneBeside(identity) => {
                return write!(f, "no such file, and no file beside the image has the identity {identity}");
            }
            ReferenceProblem::SeveralBeside(identity) => {
                return write!(f, "no such file, and several files beside the image have the identity {identity}");
            }
            ReferenceProblem::Changed { expected, found } => {
                return write!(f, "identity mismatch: {found}, expected {expected}; the file was changed after the overlay was created");
            }
            ReferenceProblem::NotRegular => "neither a regular file nor a block device",
            ReferenceProblem::NoPlace => "the image was not opened by path",
            ReferenceProblem::NotInPackage => "the package has no such file",
        })
    }
}

/// "guest bytes 0x0..0x200", or "guest offset 0x0" for a single byte.
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

/// "1 'a.vmdk', 2 'b.vmdk'".
struct Disks<'a>(&'a [Name]);

impl fmt::Display for Disks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 20;
        for (index, name) in self.0.iter().enumerate().take(MOST) {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{} '{name}'", index + 1)?;
        }
        if self.0.len() > MOST { write!(f, " and {} more", self.0.len() - MOST) } else { Ok(()) }
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
        assert_eq!(error.kind(), ErrorKind::InvalidField);
    }

    #[test]
    fn the_source_is_the_innermost_cause() {
        use std::error::Error as _;

        let io = Error::io("reading", None)(io::ErrorKind::NotFound.into()).in_file(Path::new("a")).in_guest(0..1);
        let cause = io.source().and_then(|source| source.downcast_ref::<io::Error>()).unwrap();
        assert_eq!(cause.kind(), io::ErrorKind::NotFound);
        let denied = Error::NotReplaceable {
            cause: Box::new(Error::io("creating", None)(io::ErrorKind::PermissionDenied.into())),
        };
        assert_eq!((denied.kind(), denied.source().is_some()), (ErrorKind::Io, true));
        assert_eq!(io::Error::from(denied.in_file(Path::new("a"))).kind(), io::ErrorKind::PermissionDenied);
        let source = DecodeError::Invalid { codec: crate::codec::Codec::Deflate, reason: "checksum mismatch".into() };
        let decode = Error::corrupt("qcow2", "compressed block", 0, Problem::Decode { offset: 0, source });
        assert!(decode.source().is_some_and(|source| source.is::<DecodeError>()));
        assert!(Error::Cancelled.source().is_none());
    }

    #[test]
    fn context_is_added_once_and_keeps_the_root() {
        let error = Error::io("reading 512 bytes", 0x1000)(io::Error::from(io::ErrorKind::UnexpectedEof))
            .in_file(Path::new("a.img"))
            .in_file(Path::new("b.img"))
            .in_guest(0..0x200);
        assert_eq!(error.path(), Some(Path::new("a.img")));
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(
            error.to_string(),
            "guest bytes 0x0..0x200: a.img: reading 512 bytes at file offset 0x1000: unexpected end of file"
        );
    }
}
