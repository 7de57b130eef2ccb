//! Findings: what speaks against an image.

use crate::error::{Error, ErrorKind, Problem};
use crate::name::Name;

/// The answer to whether an image can be accepted. The greater one of two counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The policy accepts the image.
    Safe,
    /// The image could not be examined to the end: it could not be read, or has a feature that is unknown here.
    #[default]
    Unknown,
    /// The policy refuses the image.
    Unsafe,
}

impl Verdict {
    /// The verdict in one word: `safe`, `unknown` or `unsafe`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::Safe => "safe",
            Verdict::Unknown => "unknown",
            Verdict::Unsafe => "unsafe",
        }
    }
}

/// One reason for a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// Name of the check: one of those in the [documentation of the module](super).
    pub check: &'static str,
    /// The verdict that follows from this finding alone; never [`Verdict::Safe`].
    pub verdict: Verdict,
    /// The disk within a package.
    pub disk: Option<Name>,
    /// The field of the image, named as in the specification of its format.
    pub field: Option<String>,
    /// Byte offset of the field in the file.
    pub offset: Option<u64>,
    /// The value found.
    pub value: Option<String>,
    /// What is expected of it, or how it breaks the rule.
    pub rule: Option<String>,
    /// The whole in words.
    pub message: String,
}

impl Finding {
    /// A finding for which the policy refuses the image.
    pub(super) fn refused(check: &'static str, message: impl Into<String>) -> Finding {
        Finding {
            check,
            verdict: Verdict::Unsafe,
            disk: None,
            field: None,
            offset: None,
            value: None,
            rule: None,
            message: message.into(),
        }
    }

    /// A finding after which it is not known whether the image can be accepted.
    pub(super) fn unknown(check: &'static str, message: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Unknown, ..Finding::refused(check, message) }
    }

    /// With the value found, and what is expected.
    pub(super) fn with(self, value: impl ToString, rule: impl Into<String>) -> Finding {
        Finding { value: Some(value.to_string()), rule: Some(rule.into()), ..self }
    }
}

/// An error at which the examination ends.
impl From<&Error> for Finding {
    fn from(error: &Error) -> Self {
        let root = error.root();
        let refused = |check| Finding::refused(check, root.to_string());
        let unknown = |check| Finding::unknown(check, root.to_string());
        match root {
            Error::Corrupt(fault) => Finding {
                field: Some(fault.field.to_string()),
                offset: Some(fault.at),
                value: value(&fault.problem),
                rule: Some(fault.problem.to_string()),
                ..refused("structure")
            },
            Error::Limit { field, at, value, limit, .. } => Finding {
                field: Some(field.to_string()),
                offset: *at,
                ..refused("limits").with(value, format!("at most {limit}"))
            },
            Error::Unsupported { feature, at, .. } => {
                Finding { field: Some(feature.to_string()), offset: *at, ..unknown("features") }
            }
            Error::Unreadable { .. } | Error::UnknownFormat(_) => refused("format"),
            Error::Ambiguous(_) | Error::Extension { .. } => refused("signatures"),
            Error::SeveralDisks { .. } | Error::NoSuchDisk { .. } | Error::Digest { .. } => refused("packages"),
            Error::Reference { .. } => refused("external-files"),
            Error::Secret { .. } => unknown("encryption"),
            _ => match root.kind() {
                ErrorKind::Decode | ErrorKind::InvalidField | ErrorKind::OutOfBounds | ErrorKind::Overlap => {
                    refused("structure")
                }
                _ => unknown("readable"),
            },
        }
    }
}

/// The number that breaks a rule.
fn value(problem: &Problem) -> Option<String> {
    match problem {
        Problem::Range { value, .. }
        | Problem::Misaligned { value, .. }
        | Problem::Reserved { value, .. }
        | Problem::Rule { value, .. }
        | Problem::Conflict { value, .. } => Some(value.to_string()),
        Problem::OutOfBounds { offset, .. } | Problem::Overlap { offset, .. } => Some(offset.to_string()),
        Problem::Missing | Problem::Truncated | Problem::Invalid { .. } | Problem::Decode { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn errors_become_findings() {
        let fault = Error::corrupt("toy", "version", 4, Problem::Range { value: 9, min: 1, max: 2 });
        let finding = Finding::from(&fault.in_file("disk.toy".as_ref()));
        assert_eq!((finding.check, finding.verdict), ("structure", Verdict::Unsafe));
        assert_eq!(
            (finding.field.as_deref(), finding.offset, finding.value.as_deref()),
            (Some("version"), Some(4), Some("9"))
        );
        assert_eq!(finding.rule.as_deref(), Some("is 9, outside 1..=2"));
        assert!(!finding.message.contains("disk.toy"), "{}", finding.message);

        let io = Error::Io { action: "reading".into(), offset: None, cause: io::ErrorKind::PermissionDenied.into() };
        assert_eq!(Finding::from(&io).verdict, Verdict::Unknown);
        assert_eq!(Finding::from(&Error::Ambiguous(vec!["qcow2", "vpc"])).check, "signatures");
        assert_eq!(Finding::from(&Error::unsupported("toy", "dots")).verdict, Verdict::Unknown);
    }

    #[test]
    fn the_worst_verdict_counts() {
        assert_eq!([Verdict::Unsafe, Verdict::Safe, Verdict::Unknown].into_iter().max(), Some(Verdict::Unsafe));
        assert!(Verdict::Unknown > Verdict::Safe);
    }
}
