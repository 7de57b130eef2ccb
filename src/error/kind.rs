//! The kinds of errors.

use std::fmt;

/// The kinds of [`Error`](crate::Error), for programs that act on them.
///
/// ```
/// use diskimage::{ErrorKind, Image};
///
/// let error = Image::open("missing.qcow2").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Io);
/// assert_eq!(error.kind().as_str(), "io");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system, or the storage of the caller, reported an error.
    Io,
    /// A field of the image breaks a rule of its format.
    InvalidField,
    /// A field of the image points beyond the end of its file.
    OutOfBounds,
    /// Two structures of the image occupy the same host range.
    Overlap,
    /// A compressed payload does not decode.
    Decode,
    /// A value exceeds a limit of the caller or of the format.
    Limit,
    /// A valid image or a valid request needs something that this crate does not implement.
    Unsupported,
    /// A referenced file was not opened.
    Reference,
    /// An encrypted image needs a secret, or another one.
    Secret,
    /// A format option is unknown or invalid.
    Option,
    /// The request is invalid for these files.
    Usage,
    /// No format has the given name.
    UnknownFormat,
    /// The file is valid in several formats, or its extension contradicts its content.
    AmbiguousFormat,
    /// A file is open as an image.
    InUse,
    /// A file changed its length while it was read.
    Changed,
    /// The caller cancelled.
    Cancelled,
}

impl ErrorKind {
    /// The kind as one word in kebab case, which stays the same between versions.
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorKind::Io => "io",
            ErrorKind::InvalidField => "invalid-field",
            ErrorKind::OutOfBounds => "out-of-bounds",
            ErrorKind::Overlap => "overlap",
            ErrorKind::Decode => "decode",
            ErrorKind::Limit => "limit",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Reference => "reference",
            ErrorKind::Secret => "secret",
            ErrorKind::Option => "option",
            ErrorKind::Usage => "usage",
            ErrorKind::UnknownFormat => "unknown-format",
            ErrorKind::AmbiguousFormat => "ambiguous-format",
            ErrorKind::InUse => "in-use",
            ErrorKind::Changed => "changed",
            ErrorKind::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
