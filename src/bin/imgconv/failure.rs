//! Failures and their report: a line on standard error and, in JSON style, an object on standard output.

use std::process::ExitCode;

use diskimage::{Error, Fault, Name, Problem, ReferenceProblem, SecretProblem};
use serde_json::{Map, Value, json};

use crate::limits;
use crate::output::{self, Style};

/// Result of a subcommand.
pub type Outcome = Result<ExitCode, Failure>;

/// Failure of a subcommand: message, details and exit code.
#[derive(Debug)]
pub struct Failure {
    exit: u8,
    message: String,
    /// Members of the JSON object, "kind" and "message" first.
    details: Map<String, Value>,
}

impl Failure {
    /// Creates a failure with exit code 1. `kind` is a stable word for programs.
    pub fn new(kind: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        let mut failure = Failure { exit: 1, details: Map::new(), message: message.clone() };
        failure.detail("kind", kind);
        failure.detail("message", message);
        failure
    }

    /// Creates a failure of kind "usage".
    pub fn usage(message: impl Into<String>) -> Self {
        Failure::new("usage", message)
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    /// Sets the exit code.
    pub fn exit(self, exit: u8) -> Self {
        Failure { exit, ..self }
    }

    /// Appends a hint to the message.
    pub fn hint(mut self, hint: &str) -> Self {
        self.message.push_str(hint);
        self.detail("message", self.message.clone());
        self
    }

    /// Names `option`, and not `-f`, as the one that states the format.
    pub fn format_option(mut self, option: &str) -> Self {
        for (hint, own) in [(UNREADABLE, format!(" ({option} raw)")), (AMBIGUOUS, format!("; set it with {option}"))] {
            if let Some(rest) = self.message.strip_suffix(hint) {
                self.message = format!("{rest}{own}");
                break;
            }
        }
        self.detail("message", self.message.clone());
        self
    }

    /// Names `option`, and not `--disk`, as the one that selects the disk.
    pub fn disk_option(mut self, option: &str) -> Self {
        if let Some(rest) = self.message.strip_suffix(SELECT) {
            self.message = format!("{rest}; set it with {option}");
            self.detail("message", self.message.clone());
        }
        self
    }

    /// Adds a detail to the JSON object.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.detail(key, value);
        self
    }

    /// The exit code of the program.
    pub fn exit_code(&self) -> u8 {
        self.exit
    }

    /// Prints the failure and returns the exit code.
    pub fn report(&self, style: Style) -> ExitCode {
        if style == Style::Json {
            // If standard output is closed, the line on standard error is still printed.
            let _ = output::print_json(&json!({ "error": self.details }));
        }
        output::note(&self.message);
        ExitCode::from(self.exit)
    }

    fn detail(&mut self, key: &str, value: impl Into<Value>) {
        self.details.insert(key.to_owned(), value.into());
    }

    /// Adds the fields of `error` and its causes, outermost first.
    fn describe(&mut self, error: &Error) {
        match error {
            Error::NotReplaceable { cause } => self.describe(cause),
            Error::File { path, cause } => {
                self.detail("path", path.to_string_lossy());
                self.describe(cause);
            }
            Error::Guest { range, cause } => {
                self.detail("guest-start", range.start);
                self.detail("guest-end", range.end);
                self.describe(cause);
            }
            Error::Io { action, offset, cause } => {
                self.detail("action", action.as_ref());
                if let Some(offset) = offset {
                    self.detail("offset", *offset);
                }
                self.detail("cause", cause.to_string());
            }
            Error::Corrupt(Fault { format, field, at, problem, .. }) => {
                let (value, rule) = value_and_rule(problem);
                self.location(format, field, Some(*at));
                if let Some(value) = value {
                    self.detail("value", value);
                }
                self.detail("rule", rule);
            }
            Error::Limit { name, format, field, at, value, limit } => {
                self.location(format, field, *at);
                self.detail("value", *value);
                self.detail("rule", format!("must be at most {limit}"));
                self.detail("limit", *limit);
                if let Some(name) = name {
                    self.detail("limit-name", name.as_str());
                }
            }
            Error::Unsupported { format, feature, at } => {
                self.detail("format", *format);
                self.detail("feature", feature.as_ref());
                if let Some(at) = at {
                    self.detail("offset", *at);
                }
            }
            Error::Reference { format, role, name, problem } => {
                self.location(format, role, None);
                self.detail("value", name.to_text());
                self.detail("rule", problem.to_string());
            }
            Error::Secret { format, problem } => {
                self.detail("format", *format);
                self.detail("rule", problem.to_string());
            }
            Error::Option { format, name, problem } => {
                self.location(format, name, None);
                self.detail("rule", problem.as_str());
            }
            Error::UnknownFormat(name) => self.detail("value", name.as_str()),
            Error::Unreadable { format, reason } => {
                self.detail("format", *format);
                self.detail("rule", *reason);
            }
            Error::Extension { format, content } => {
                self.detail("format", *format);
                self.detail("value", *content);
            }
            Error::Ambiguous(formats) => self.detail("formats", formats.as_slice()),
            Error::SeveralDisks { disks } => self.detail("disks", names(disks)),
            Error::NoSuchDisk { wanted, disks } => {
                self.detail("value", wanted.to_text());
                self.detail("disks", names(disks));
            }
            Error::Digest { name, algorithm, expected, found } => {
                self.detail("member", name.to_text());
                self.detail("algorithm", *algorithm);
                self.detail("expected", expected.as_str());
                self.detail("found", found.as_str());
            }
            Error::Changed { before, after } => {
                self.detail("before", *before);
                self.detail("after", *after);
            }
            _ => {}
        }
    }

    fn location(&mut self, format: &str, field: &str, offset: Option<u64>) {
        self.detail("format", format);
        self.detail("field", field);
        if let Some(offset) = offset {
            self.detail("offset", offset);
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let hint = match error.root() {
            Error::Limit { name: Some(name), .. } => format!("; raise it with {}", limits::option(*name)),
            _ => hint(&error).unwrap_or_default().to_owned(),
        };
        let mut failure = Failure::new(error.kind().as_str(), format!("{error}{hint}"));
        failure.describe(&error);
        failure
    }
}

fn names(disks: &[Name]) -> Vec<String> {
    disks.iter().map(|name| name.to_text().into_owned()).collect()
}

/// The hint to the option that selects a disk.
const SELECT: &str = "; set it with --disk";
/// The hints to the option that states the format.
const UNREADABLE: &str = " (-f raw)";
const AMBIGUOUS: &str = "; set it with -f";

/// The option that resolves the error, to be appended to the message.
fn hint(error: &Error) -> Option<&'static str> {
    match error.root() {
        Error::Reference { problem: ReferenceProblem::NotAllowed, .. } => {
            Some("; allow files beside the image with --references beside, any file with --references any")
        }
        Error::Reference { problem: ReferenceProblem::NotBeside | ReferenceProblem::Link, .. } => {
            Some("; allow any file with --references any")
        }
        Error::Reference { problem: ReferenceProblem::FormatNotStated(_), .. } => {
            Some("; set it with --backing-format")
        }
        Error::Reference { problem: ReferenceProblem::Changed { .. }, .. } => {
            Some("; open it anyway with --allow-changed-backing")
        }
        Error::Secret { problem: SecretProblem::Missing, .. } => {
            Some("; give it with --object secret,id=ID,file=PATH or --secret-file")
        }
        Error::Secret { problem: SecretProblem::MissingForTarget, .. } => Some(
            "; give one with --object or --secret-file, or name one of several in -o key-secret=ID (luks) or \
                 -o encrypt.key-secret=ID (qcow2)",
        ),
        Error::Secret { problem: SecretProblem::Wrong, .. } => {
            Some("; all bytes of its file count, also a line feed at the end")
        }
        Error::NotReplaceable { .. } => Some("; write into it with --in-place"),
        Error::InUse { for_writing: true } => Some("; read it as it is with -U"),
        Error::SeveralDisks { .. } => Some(SELECT),
        Error::Unreadable { .. } => Some(UNREADABLE),
        Error::Ambiguous(_) | Error::Extension { .. } => Some(AMBIGUOUS),
        _ => None,
    }
}

/// The invalid value and the rule it breaks.
fn value_and_rule(problem: &Problem) -> (Option<u64>, String) {
    match problem {
        Problem::Range { value, min, max } => (Some(*value), format!("must be in {min}..={max}")),
        Problem::OutOfBounds { offset, len, file_len } => {
            (Some(*offset), format!("{len} bytes must lie within the file of {file_len} bytes"))
        }
        Problem::Misaligned { value, alignment } => (Some(*value), format!("must be a multiple of {alignment}")),
        Problem::Reserved { value, bits } => (Some(*value), format!("the reserved bits {bits:#x} must be clear")),
        Problem::Overlap { offset, with } => (Some(*offset), format!("must not overlap {with}")),
        Problem::Rule { value, rule } => (Some(*value), (*rule).to_owned()),
        Problem::Conflict { value, finding } => (Some(*value), (*finding).to_owned()),
        Problem::Truncated => (None, "must not be truncated".to_owned()),
        Problem::Invalid { reason } => (None, format!("must decode: {reason}")),
        Problem::Decode { offset, source } => (Some(*offset), format!("the payload must decode: {source}")),
        other => (None, other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::*;

    fn details(error: Error) -> Value {
        Value::Object(Failure::from(error).details)
    }

    #[test]
    fn a_fault_is_reported_with_all_fields() {
        let error = Error::corrupt("qcow2", "cluster_bits", 0x14, Problem::Range { value: 40, min: 9, max: 21 })
            .in_file(Path::new("a.qcow2"))
            .in_guest(512..1024);
        let message = error.to_string();
        assert_eq!(
            details(error),
            json!({
                "kind": "invalid-field", "message": message, "guest-start": 512, "guest-end": 1024, "path": "a.qcow2",
                "format": "qcow2", "field": "cluster_bits", "offset": 20, "value": 40, "rule": "must be in 9..=21",
            })
        );
    }

    #[test]
    fn the_hint_names_the_option_of_the_image() {
        let error = || Error::Ambiguous(vec!["qcow2", "vpc"]);
        let message = |failure: Failure| (failure.message.clone(), failure.details["message"].clone());
        let (before, _) = message(error().into());
        let (after, detail) = message(Failure::from(error()).format_option("-F"));
        assert_eq!(after, before.replace("-f", "-F"));
        assert_eq!(detail, after);
    }

    #[test]
    fn an_io_error_is_reported_with_action_and_offset() {
        let error = Error::io("reading 512 bytes", 4096)(io::ErrorKind::UnexpectedEof.into());
        assert_eq!(
            details(error),
            json!({
                "kind": "io", "message": "reading 512 bytes at file offset 0x1000: unexpected end of file",
                "action": "reading 512 bytes", "offset": 4096, "cause": "unexpected end of file",
            })
        );
    }

    #[test]
    fn a_limit_is_reported_with_its_value() {
        let error =
            Error::Limit { name: None, format: "qcow2", field: "l1_size".into(), at: Some(36), value: 9, limit: 8 };
        let details = details(error);
        assert_eq!((&details["value"], &details["limit"], &details["offset"]), (&json!(9), &json!(8), &json!(36)));
    }

    #[test]
    fn every_problem_has_a_value_and_a_rule() {
        for problem in [
            Problem::Range { value: 1, min: 2, max: 3 },
            Problem::OutOfBounds { offset: 1, len: 2, file_len: 2 },
            Problem::Misaligned { value: 1, alignment: 2 },
            Problem::Reserved { value: 1, bits: 1 },
            Problem::Overlap { offset: 1, with: "the header" },
            Problem::Rule { value: 1, rule: "must be 0" },
            Problem::Conflict { value: 1, finding: "another entry has the same offset" },
        ] {
            let (value, rule) = value_and_rule(&problem);
            assert_eq!(value, Some(1), "{problem}");
            assert_ne!(rule, problem.to_string());
        }
    }
}
