//! The result of a check.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::error::Error;

/// Findings of a check of an image's metadata.
///
/// ```
/// use diskimage::{CheckKind, CheckReport};
///
/// let mut report = CheckReport::default();
/// report.corruption(|| "block 3 is mapped twice".into());
/// assert_eq!((report.corruptions, report.messages[0].kind()), (1, CheckKind::Error));
/// assert_eq!(report.messages[0].to_string(), "ERROR: block 3 is mapped twice");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckReport {
    /// Name of the format.
    pub format: &'static str,
    /// The findings in words, at most [`CheckReport::MESSAGES`] of them.
    pub messages: Vec<CheckMessage>,
    /// Number of faults that lose or mix up guest data, now or when the image is written to.
    pub corruptions: u64,
    /// Number of host clusters that are allocated but not used.
    pub leaks: u64,
    /// Number of parts that could not be checked.
    pub check_errors: u64,
    /// Number of allocation units of the virtual disk.
    pub total_clusters: u64,
    /// Number of allocation units that are stored in the file.
    pub allocated_clusters: u64,
    /// Number of allocated units that are compressed.
    pub compressed_clusters: u64,
    /// Number of allocated units that do not follow the preceding one in the file.
    pub fragmented_clusters: u64,
    /// Host offset of the end of the last cluster in use, in bytes.
    pub image_end_offset: u64,
    /// Number of bytes at the end of the file that no structure of the image refers to: they prevent nothing, and can have any content. Only of
    /// VDI and VHDX; the leaks of other formats include them.
    pub unused_end: u64,
}

/// What a finding of a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckKind {
    /// A fault that loses or mixes up guest data, now or when the image is written to.
    Error,
    /// Host clusters that are allocated but not used.
    Leak,
    /// A part that could not be checked.
    NotChecked,
    /// A part that was not checked, because that would exceed one of the [`Limits`](crate::Limits).
    Limit,
    /// Something odd that prevents nothing, such as data that other programs read in another way.
    Warning,
    /// Something that the properties of the image tell as well, and that is not wrong.
    Note,
}

/// A finding of a check in words. As a text, it begins with its kind: `ERROR: `, `Leaked: `, `Not checked: `, `Warning: ` or
/// `Note: `.
#[derive(Clone)]
pub struct CheckMessage {
    kind: CheckKind,
    text: String,
    error: Option<Arc<Error>>,
}

impl CheckReport {
    /// Largest number of messages; further findings are only counted.
    pub const MESSAGES: usize = 1000;

    /// Counts a corruption. `message` is called only if the text is kept.
    pub fn corruption(&mut self, message: impl FnOnce() -> String) {
        self.corruptions += 1;
        self.message(CheckKind::Error, message);
    }

    /// Counts a corruption at which reading the image fails with an error, which is made only if it is kept.
    pub fn corrupt(&mut self, error: impl FnOnce() -> Error) {
        let room = self.messages.len() < Self::MESSAGES;
        let error = room.then(error).map(Arc::new);
        self.corruption(|| error.as_ref().map(ToString::to_string).unwrap_or_default());
        if let Some(message) = self.messages.last_mut().filter(|_| room) {
            message.error = error;
        }
    }

    /// Counts a leaked cluster. `message` is called only if the text is kept.
    pub fn leak(&mut self, message: impl FnOnce() -> String) {
        self.leaks += 1;
        self.message(CheckKind::Leak, message);
    }

    /// Counts a part that could not be checked. `message` is called only if the text is kept.
    pub fn not_checked(&mut self, message: impl FnOnce() -> String) {
        self.check_errors += 1;
        self.message(CheckKind::NotChecked, message);
    }

    /// Counts a part that was not checked, because that would exceed a limit, as `error` says.
    pub fn limit(&mut self, error: &Error) {
        self.check_errors += 1;
        self.message(CheckKind::Limit, || error.to_string());
    }

    /// Adds a message without counting it. The text is formatted only if it is kept: a corrupt image can have millions of findings.
    pub fn message(&mut self, kind: CheckKind, message: impl FnOnce() -> String) {
        if self.messages.len() < Self::MESSAGES {
            let text = format!("{}: {}", kind.as_str(), message());
            self.messages.push(CheckMessage { kind, text, error: None });
        }
    }
}

impl CheckKind {
    /// How messages of this kind begin.
    const fn as_str(self) -> &'static str {
        match self {
            CheckKind::Error => "ERROR",
            CheckKind::Leak => "Leaked",
            CheckKind::NotChecked | CheckKind::Limit => "Not checked",
            CheckKind::Warning => "Warning",
            CheckKind::Note => "Note",
        }
    }
}

impl CheckMessage {
    /// What the finding is.
    pub fn kind(&self) -> CheckKind {
        self.kind
    }

    /// The error of which the finding tells, with the field and the offset, if it is one at which reading the image fails.
    pub fn error(&self) -> Option<&Error> {
        self.error.as_deref()
    }

    /// The words without the kind.
    pub fn words(&self) -> &str {
        self.text.get(self.kind.as_str().len() + 2..).unwrap_or_default()
    }
}

/// The whole text.
impl Deref for CheckMessage {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for CheckMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for CheckMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl AsRef<str> for CheckMessage {
    fn as_ref(&self) -> &str {
        self
    }
}

impl Eq for CheckMessage {}

impl<T: AsRef<str>> PartialEq<T> for CheckMessage {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

/// What is repaired of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repair {
    /// Host clusters that are allocated but not used become free.
    Leaks,
    /// Also what loses or mixes up guest data when the image is written to, as far as the right value follows from the rest of the metadata.
    All,
}

/// The result of a repair.
///
/// ```
/// use diskimage::RepairReport;
///
/// let report = RepairReport::default();
/// assert_eq!((report.leaks_fixed, report.corruptions_fixed), (0, 0));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairReport {
    /// What a check found before.
    pub before: CheckReport,
    /// Number of leaked clusters that are free now.
    pub leaks_fixed: u64,
    /// Number of other faults that were repaired.
    pub corruptions_fixed: u64,
    /// What a check finds now.
    pub after: CheckReport,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_bounded_and_counts_are_not() {
        let mut report = CheckReport::default();
        (0..CheckReport::MESSAGES + 5).for_each(|number| report.leak(|| number.to_string()));
        report.corruption(|| panic!("the text of a finding beyond the limit was formatted"));
        assert_eq!((report.leaks, report.corruptions), (CheckReport::MESSAGES as u64 + 5, 1));
        assert_eq!(report.messages.len(), CheckReport::MESSAGES);
        assert_eq!((&*report.messages[0], &*report.messages[999]), ("Leaked: 0", "Leaked: 999"));
        let last = &report.messages[999];
        assert_eq!((last.kind(), last.words()), (CheckKind::Leak, "999"));
    }
}
