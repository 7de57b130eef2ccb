//! Policies: what a service accepts.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml::{Spanned, Table, Value};

use crate::error::{Error, Result};
use crate::format::Format;
use crate::guest::ContentKind;
use crate::image::OpenOptions;
use crate::limits::LimitName;
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
///     limits = { members = 100 }   # limits as in `Limits`, where they are lower than those of the caller
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
    #[serde(deserialize_with = "formats")]
    pub formats: Option<Vec<String>>,
    /// Names of the accepted subformats (createTypes) of VMDK; `None` for all.
    #[serde(deserialize_with = "subformats")]
    pub vmdk_subformats: Option<Vec<String>>,
    /// Accepted kinds of raw disks: `disk`, `file-system`, `optical-disc`, `kernel`, `ramdisk`; `None` for all.
    #[serde(deserialize_with = "contents")]
    pub content: Option<Vec<String>>,
    /// Whether packages are accepted (OVA, tar and others), each of whose disks is inspected.
    pub packages: bool,
    /// Whether compressed files are accepted.
    pub compressed: bool,
    /// Whether images are accepted that name other files: backing files, data files, extents, the disks of an OVF descriptor. Nothing is known of these files then.
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
    /// Whether all guest data is read, so that what does not decode is found, too. It is not if there is a reason to refuse the image
    /// anyway.
    pub read_data: bool,
    /// Largest virtual size in bytes, of the disk and of each snapshot.
    #[serde(deserialize_with = "size")]
    pub virtual_size: Option<u64>,
    /// Largest size of the file in bytes.
    #[serde(deserialize_with = "size")]
    pub file_size: Option<u64>,
    /// Largest ratio of the virtual size to the size of the file. A disk without data has a large one, in every sparse format.
    pub expansion: Option<u64>,
    /// Limits that are lower than those of the [options](OpenOptions::limits).
    #[serde(deserialize_with = "limits")]
    pub limits: BTreeMap<LimitName, u64>,
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
            limits: BTreeMap::new(),
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

/// The key that names another policy, among others.
#[derive(Deserialize)]
struct Like {
    like: Option<Spanned<String>>,
}

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
    /// [`Error::Usage`], with the number of the line, for text that is not TOML, unknown keys and names, and values of another type or outside
    /// their range.
    pub fn parse(text: &str) -> Result<Policy> {
        let invalid = |error| invalid(text, &error);
        let Like { like } = toml::from_str(text).map_err(invalid)?;
        let Some(like) = like else { return toml::from_str(text).map_err(invalid) };
        let line = line_of(text, like.span().start);
        let base = text_of(like.get_ref()).map_err(|error| Error::Usage(format!("policy, line {line}: {error}")))?;
        // Checked apart from the other policy: a value in a table has no line.
        let own: String = text
            .split_inclusive('\n')
            .enumerate()
            .map(|(index, own)| if index + 1 == line { "\n" } else { own })
            .collect();
        toml::from_str::<Policy>(&own).map_err(|error| self::invalid(&own, &error))?;
        let mut whole: Table = base.parse().map_err(invalid)?;
        whole.extend(own.parse::<Table>().map_err(invalid)?);
        whole.try_into().map_err(invalid)
    }

    /// The options with the limits of the policy.
    pub(super) fn limit(&self, options: &OpenOptions) -> OpenOptions {
        self.limits.iter().fold(options.clone(), |options, (name, value)| options.at_most(*name, *value))
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

fn invalid(text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map(|span| format!(", line {}", line_of(text, span.start))).unwrap_or_default();
    Error::Usage(format!("policy{line}: {}", error.message()))
}

/// The number of the line, from 1 on, with byte `at` of the text.
fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

/// A list of formats, by any of their names.
fn formats<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    let names = names(deserializer, "format", |name| Format::by_name(name).is_ok())?;
    let own = |name: String| Format::by_name(&name).map_or(name, |format| format.name().to_owned());
    Ok(names.map(|names| names.into_iter().map(own).collect()))
}

/// A list of values of `createType`.
fn subformats<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[cfg(feature = "vmdk")]
    let is_known = crate::format::vmdk::is_create_type;
    #[cfg(not(feature = "vmdk"))]
    let is_known = |_: &str| true;
    names(deserializer, "subformat", is_known)
}

/// A list of what a raw disk holds.
fn contents<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    names(deserializer, "content", |name| CONTENTS.iter().any(|(_, known)| *known == name))
}

/// A list of known names. A mistyped one would refuse every image.
fn names<'de, D: Deserializer<'de>>(
    deserializer: D,
    what: &str,
    is_known: impl Fn(&str) -> bool,
) -> Result<Option<Vec<String>>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    match names.iter().find(|name| !is_known(name)) {
        Some(name) => Err(D::Error::custom(format!("unknown {what} {name:?}"))),
        None => Ok(Some(names)),
    }
}

/// Limits by their names.
fn limits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<LimitName, u64>, D::Error> {
    let table = BTreeMap::<String, Value>::deserialize(deserializer)?;
    let limit = |(name, value): (String, Value)| {
        let name: LimitName = name.parse().map_err(D::Error::custom)?;
        Ok((name, number(value).map_err(D::Error::custom)?))
    };
    table.into_iter().map(limit).collect()
}

/// A number of bytes, or a text with a suffix.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    number(Value::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

fn number(value: Value) -> Result<u64, String> {
    let number = match value {
        Value::Integer(bytes) => u64::try_from(bytes).ok(),
        Value::String(text) => return parse_size(&text).map_err(|error| error.to_string()),
        _ => None,
    };
    number.ok_or_else(|| "invalid size: expected a number of bytes, or a text such as \"2T\"".to_owned())
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
    fn mistakes_are_refused_by_their_line() {
        for (text, problem) in [
            ("\nformats = ", "policy, line 2: "),
            ("leaks = true\nformats = ['qcow3']", "policy, line 2: unknown format \"qcow3\""),
            ("vmdk-subformats = ['monolithicSprase']", "policy, line 1: unknown subformat \"monolithicSprase\""),
            ("content = ['disc']", "policy, line 1: unknown content \"disc\""),
            ("like = 'strict'\n\nleak = true", "policy, line 3: unknown field `leak`"),
            ("virtual-size = '10Q'", "10Q"),
            ("virtual-size = -1", "policy, line 1: "),
            ("leaks = true\nlike = 'lax'", "policy, line 2: unknown policy 'lax'"),
            ("like = 1", "policy, line 1: "),
            ("limits = { memory = 1 }", "policy, line 1: unknown limit \"memory\""),
            ("[limits]\nmetadata = '1M'\nmembers = 'many'", "many"),
        ] {
            let error = Policy::parse(text).unwrap_err().to_string();
            assert!(error.contains(problem) && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn formats_have_several_names() {
        let policy = Policy::parse("formats = ['vhd', 'img', 'vpc', 'qcow2']").unwrap();
        assert_eq!(policy.formats.unwrap(), ["vpc", "raw", "vpc", "qcow2"]);
    }

    #[test]
    fn limits_are_lowered_only() {
        let policy = Policy::parse("[limits]\nmetadata = '1M'\nchain-depth = 1000").unwrap();
        let limits = format!("{:?}", policy.limit(&OpenOptions::new()));
        assert!(limits.contains("metadata: 1048576,") && limits.contains("chain_depth: 200,"), "{limits}");
    }
}
