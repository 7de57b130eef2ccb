//! Policies: what a service accepts.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

use crate::error::{Error, Result};
use crate::format::Format;
use crate::guest::ContentKind;
use crate::options::parse_size;

/// What a service accepts of the images that it is given.
///
/// [`Policy::default`] accepts every disk that can be read without another file: all formats, packages, compressed files, encrypted images and
/// images with snapshots. What no policy accepts is in the [documentation of the module](super).
///
/// A policy can be read from TOML, in which every key is optional:
///
/// ```
/// use diskimage::inspect::Policy;
///
/// let policy = Policy::parse(
///     r#"
///     like = "glance"              # the values of other keys: "default", "glance", "nova" or "strict"
///     formats = ["raw", "qcow2"]   # accepted formats
///     virtual-size = "2T"          # largest virtual size
///     expansion = 1000             # largest ratio of the virtual size to the size of the file
///     snapshots = false            # whether internal snapshots are accepted
///     "#,
/// )?;
/// assert_eq!(policy.virtual_size, Some(2 << 40));
/// assert!(!policy.compressed);
/// assert!(Policy::parse("snapshot = false").is_err());
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Policy {
    /// Names of the accepted formats; `None` for all.
    pub formats: Option<Vec<String>>,
    /// Names of the accepted subformats (createTypes) of VMDK; `None` for all.
    pub vmdk_subformats: Option<Vec<String>>,
    /// Accepted kinds of raw disks: `disk`, `file-system`, `optical-disc`, `kernel`, `ramdisk`; `None` for all.
    pub content: Option<Vec<String>>,
    /// Whether packages are accepted (OVA, tar and others), each of whose disks is inspected.
    pub packages: bool,
    /// Whether compressed files are accepted.
    pub compressed: bool,
    /// Whether images are accepted that name other files: backing files, data files, extents. Nothing is known of these files then.
    pub external_files: bool,
    /// Whether encrypted images are accepted. Nothing is known of their content.
    pub encrypted: bool,
    /// Whether images are accepted that their writer has not closed: with a log to be replayed, or a dirty bit.
    pub unclosed: bool,
    /// Whether internal snapshots are accepted, each of which has its own content and size.
    pub snapshots: bool,
    /// Whether space in the file is accepted that nothing uses, and that can have any content.
    pub leaks: bool,
    /// Whether oddities are accepted that do not prevent reading.
    pub warnings: bool,
    /// Whether all guest data is read, so that what does not decode is found, too.
    pub read_data: bool,
    /// Largest virtual size in bytes, of the disk and of each snapshot.
    #[serde(deserialize_with = "size")]
    pub virtual_size: Option<u64>,
    /// Largest size of the file in bytes.
    #[serde(deserialize_with = "size")]
    pub file_size: Option<u64>,
    /// Largest ratio of the virtual size to the size of the file. A disk without data has a large one, in every sparse format.
    pub expansion: Option<u64>,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            formats: None,
            vmdk_subformats: None,
            content: None,
            packages: true,
            compressed: true,
            external_files: false,
            encrypted: true,
            unclosed: true,
            snapshots: true,
            leaks: true,
            warnings: true,
            read_data: false,
            virtual_size: None,
            file_size: None,
            expansion: None,
        }
    }
}

/// The names of the policies that are built in, and their TOML.
const BUILT_IN: [(&str, &str); 4] = [
    ("default", ""),
    ("glance", include_str!("policies/glance.toml")),
    ("nova", include_str!("policies/nova.toml")),
    ("strict", include_str!("policies/strict.toml")),
];
/// The key that names another policy.
const LIKE: &str = "like";

impl Policy {
    /// The names of the policies that are built in.
    ///
    /// ```
    /// use diskimage::inspect::Policy;
    ///
    /// assert!(Policy::names().eq(["default", "glance", "nova", "strict"]));
    /// ```
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// A policy that is built in.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is none of this name.
    ///
    /// ```
    /// use diskimage::inspect::Policy;
    ///
    /// assert!(!Policy::built_in("strict")?.snapshots);
    /// assert!(Policy::built_in("lax").is_err());
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn built_in(name: &str) -> Result<Policy> {
        Policy::parse(text_of(name)?)
    }

    /// Parses a policy in TOML.
    ///
    /// # Errors
    /// [`Error::Usage`] for text that is not TOML, unknown keys, and values of another type or outside their range.
    pub fn parse(text: &str) -> Result<Policy> {
        let mut table: Table = text.parse().map_err(invalid)?;
        if let Some(like) = table.remove(LIKE) {
            let name = like.as_str().ok_or_else(|| Error::Usage(format!("policy: {LIKE} is not a text")))?;
            let mut whole: Table = text_of(name)?.parse().map_err(invalid)?;
            whole.extend(table);
            table = whole;
        }
        let policy: Policy = table.try_into().map_err(invalid)?;
        policy.check_names()?;
        Ok(policy)
    }

    /// A mistyped name would refuse every image.
    fn check_names(&self) -> Result<()> {
        for format in self.formats.iter().flatten() {
            Format::by_name(format)?;
        }
        match self.content.iter().flatten().find(|name| !CONTENTS.iter().any(|(_, known)| known == name)) {
            Some(name) => Err(Error::Usage(format!("policy: unknown content '{name}'"))),
            None => Ok(()),
        }
    }

    /// Whether a list that may be absent has the name.
    pub(super) fn accepts(list: Option<&[String]>, name: &str) -> bool {
        list.is_none_or(|list| list.iter().any(|accepted| accepted.eq_ignore_ascii_case(name)))
    }
}

/// The names of what a raw disk holds.
const CONTENTS: [(ContentKind, &str); 5] = [
    (ContentKind::Disk, "disk"),
    (ContentKind::FileSystem, "file-system"),
    (ContentKind::OpticalDisc, "optical-disc"),
    (ContentKind::Kernel, "kernel"),
    (ContentKind::Ramdisk, "ramdisk"),
];

/// The name of a kind of content in a policy.
pub(super) fn name_of(content: ContentKind) -> &'static str {
    CONTENTS.iter().find(|(kind, _)| *kind == content).map_or("disk", |(_, name)| name)
}

fn text_of(name: &str) -> Result<&'static str> {
    let found = BUILT_IN.iter().find(|(built_in, _)| *built_in == name);
    let unknown = || {
        let names: Vec<_> = Policy::names().collect();
        Error::Usage(format!("unknown policy '{name}': expected {}", names.join(", ")))
    };
    found.map(|(_, text)| *text).ok_or_else(unknown)
}

fn invalid(error: toml::de::Error) -> Error {
    Error::Usage(format!("policy: {}", error.message()))
}

/// A number of bytes, or a text with a suffix.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let size = match Value::deserialize(deserializer)? {
        Value::Integer(bytes) => u64::try_from(bytes).ok(),
        Value::String(text) => return parse_size(&text).map(Some).map_err(D::Error::custom),
        _ => None,
    };
    size.map(Some).ok_or_else(|| D::Error::custom("invalid size: expected a number of bytes, or a text such as \"2T\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_policies_parse() {
        for name in Policy::names() {
            Policy::built_in(name).unwrap();
        }
        assert_eq!(Policy::built_in("default").unwrap(), Policy::default());
        let strict = Policy::built_in("strict").unwrap();
        assert_eq!((strict.virtual_size, strict.warnings, strict.external_files), (Some(64 << 40), false, false));
    }

    #[test]
    fn keys_override_those_of_another_policy() {
        let policy = Policy::parse("like = 'strict'\nsnapshots = true\nvirtual-size = 512").unwrap();
        let strict = Policy::built_in("strict").unwrap();
        assert_eq!(policy, Policy { snapshots: true, virtual_size: Some(512), ..strict });
    }

    #[test]
    fn mistakes_are_refused() {
        for (text, problem) in [
            ("formats = ", "policy: "),
            ("formats = ['qcow3']", "qcow3"),
            ("content = ['disc']", "unknown content 'disc'"),
            ("leak = true", "leak"),
            ("virtual-size = '10Q'", "10Q"),
            ("virtual-size = -1", "policy: "),
            ("like = 'lax'", "unknown policy 'lax'"),
            ("like = 1", "not a text"),
        ] {
            let error = Policy::parse(text).unwrap_err().to_string();
            assert!(error.contains(problem) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
