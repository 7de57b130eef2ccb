//! Format options as `key=value` text, and sizes with a unit.

pub(crate) mod json;

use std::ops::RangeInclusive;

use crate::error::{Error, Result};
use crate::name::Name;

/// An option for new images of a format.
///
/// Drivers list them in `static` tables, so that it is built by its fields and gets no further ones.
///
/// ```
/// use diskimage::Format;
///
/// let spec = Format::QCOW2.options().iter().find(|option| option.name == "cluster_size").unwrap();
/// println!("{} ({}): {}", spec.name, spec.values, spec.help);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Name of the option.
    pub name: &'static str,
    /// Accepted values, as text for people.
    pub values: &'static str,
    /// Purpose and default, in one line.
    pub help: &'static str,
}

/// Options for a new image, in the order given.
///
/// The typed getters are for drivers, which name their format for the message of the error.
///
/// ```
/// use diskimage::{Converter, Format, Options};
///
/// let mut options = Options::new();
/// options.add_list("cluster_size=128k,compat=1.1");
/// options.set("lazy_refcounts", "on");
/// assert_eq!(options.value("cluster_size"), Some("128k"));
/// assert_eq!(options.size("qcow2", "cluster_size", 512..=2 << 20)?, Some(128 << 10));
/// assert_eq!(options.flag("qcow2", "lazy_refcounts")?, Some(true));
/// let converter = Converter::new(Format::QCOW2).options(options);
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(Vec<(String, String)>);

/// Options of qemu for running an image, by their beginning: `cache.direct`, `cache-size`.
const RUNTIME_OPTIONS: [&str; 17] = [
    "aio",
    "auto-read-only",
    "cache",
    "detect-zeroes",
    "discard",
    "drop-cache",
    "l2-cache",
    "latency-ns",
    "lazy-refcounts",
    "locking",
    "node-name",
    "overlap-check",
    "pass-discard",
    "pr-manager",
    "read-only",
    "read-zeroes",
    "refcount-cache",
];

/// Whether this is a runtime option of an image or of the file below it.
fn is_runtime_option(name: &str) -> bool {
    let mut name = name;
    while let Some(inner) = name.strip_prefix("file.") {
        name = inner;
    }
    RUNTIME_OPTIONS.iter().any(|option| name.starts_with(option))
}

impl Options {
    /// No options: all have their default.
    pub const fn new() -> Self {
        Options(Vec::new())
    }

    /// Adds the options of a list like `cluster_size=128k,compat=1.1`. A comma in a value is doubled, and an option without
    /// a value is `on`. An option that is set already is refused when the image is created.
    pub fn add_list(&mut self, list: &str) {
        const COMMA: &str = "\0";
        for item in list.replace(",,", COMMA).split(',').filter(|item| !item.is_empty()) {
            let item = item.replace(COMMA, ",");
            let (name, value) = item.split_once('=').unwrap_or((&item, "on"));
            self.0.push((name.to_owned(), value.to_owned()));
        }
    }

    /// Adds the members of a JSON object, as qemu does for the description of an image: the names of nested objects are joined by dots, all values
    /// are text, and `null` is an empty one.
    ///
    /// # Errors
    /// [`Error::Usage`] for what is not such an object, or has a list or a name twice.
    ///
    /// ```
    /// use diskimage::Options;
    ///
    /// let mut options = Options::new();
    /// options.add_json(r#"{"driver": "qcow2", "file": {"filename": "a"}}"#)?;
    /// assert_eq!(options.value("file.filename"), Some("a"));
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn add_json(&mut self, object: &str) -> Result<()> {
        let options = json::flatten(object.as_bytes());
        self.0.extend(options.map_err(|invalid| Error::Usage(format!("JSON options: {invalid}")))?);
        Ok(())
    }

    /// Removes options of a description of an image that change neither what is read nor where it is, such as `cache.direct` and `file.locking`.
    pub fn remove_runtime_options(&mut self) {
        self.0.retain(|(name, _)| !is_runtime_option(name));
    }

    /// Sets one option, in place of an earlier value.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let name = name.into();
        self.0.retain(|(other, _)| *other != name);
        self.0.push((name, value.into()));
    }

    /// Removes an option and returns its value, if it is set.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.remove(index).1)
    }

    /// Returns the value of an option, if it is set.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Iterates over the names of the options that are set.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// Checks that each option is one of `specs`, and is there once.
    pub(crate) fn check(&self, format: &'static str, specs: &[OptionSpec]) -> Result<()> {
        let mut seen = Vec::new();
        for name in self.names() {
            if seen.contains(&name) {
                return Err(wrong(format, name, "given twice"));
            }
            seen.push(name);
        }
        let known: Vec<_> = specs.iter().map(|spec| spec.name).collect();
        match self.names().find(|name| !known.contains(name)) {
            None => Ok(()),
            Some(name) if known.is_empty() => Err(wrong(format, name, "unknown option; this format has none")),
            Some(name) => Err(wrong(format, name, format!("unknown option; supported: {}", known.join(", ")))),
        }
    }

    /// Parses a switch: `on`, `yes`, `true` or `off`, `no`, `false`; `None` if it is not set.
    ///
    /// # Errors
    /// [`Error::Option`] for any other value.
    pub fn flag(&self, format: &'static str, name: &str) -> Result<Option<bool>> {
        self.choice(
            format,
            name,
            &[("on", true), ("off", false), ("yes", true), ("no", false), ("true", true), ("false", false)],
        )
    }

    /// Parses one of several words, each with its meaning; `None` if the option is not set.
    ///
    /// # Errors
    /// [`Error::Option`] for any other value.
    pub fn choice<T: Copy>(&self, format: &'static str, name: &str, words: &[(&str, T)]) -> Result<Option<T>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match words.iter().find(|(word, _)| *word == value) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                Err(wrong(format, name, format!("invalid value {value:?}: expected {}", words.join(", "))))
            }
        }
    }

    /// Parses a decimal number within `range`; `None` if the option is not set.
    ///
    /// # Errors
    /// [`Error::Option`] for any other value.
    pub fn number(&self, format: &'static str, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>> {
        self.parsed(format, name, range, |value| value.parse().ok())
    }

    /// Parses a number of bytes within `range`, with an optional unit as in [`parse_size`]; `None` if the option is not set.
    ///
    /// # Errors
    /// [`Error::Option`] for any other value.
    pub fn size(&self, format: &'static str, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>> {
        self.parsed(format, name, range, |value| parse_size(value).ok())
    }

    /// Parses a number of bytes within `range` that is a power of two; `None` if the option is not set.
    ///
    /// # Errors
    /// [`Error::Option`] for any other value.
    pub fn power_of_two(&self, format: &'static str, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>> {
        match self.size(format, name, range)? {
            Some(size) if !size.is_power_of_two() => Err(wrong(format, name, format!("{size} is not a power of two"))),
            size => Ok(size),
        }
    }

    fn parsed(
        &self,
        format: &'static str,
        name: &str,
        range: RangeInclusive<u64>,
        parse: impl Fn(&str) -> Option<u64>,
    ) -> Result<Option<u64>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match parse(value) {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(wrong(
                format,
                name,
                format!("invalid value {value:?}: expected a number from {} to {}", range.start(), range.end()),
            )),
        }
    }
}

/// Creates the error for an option.
pub(crate) fn wrong(format: &'static str, name: &str, problem: impl Into<String>) -> Error {
    Error::Option { format, name: name.to_owned(), problem: problem.into() }
}

/// Parses a number of bytes: decimal, with an optional fraction and an optional unit `b`, `k`, `M`, `G`, `T`, `P` or `E` in
/// powers of 1024, in either case. A fraction of a byte is rounded down.
///
/// # Errors
/// [`Error::Usage`] for any other text, and for sizes of 2^63 and above.
///
/// ```
/// use diskimage::parse_size;
///
/// assert_eq!(parse_size("64k")?, 65536);
/// assert_eq!(parse_size("1.5T")?, 1649267441664);
/// assert_eq!(
///     parse_size("10Q").unwrap_err().to_string(),
///     "invalid size '10Q': expected a number with an optional suffix K, M, G, T, P or E"
/// );
/// # Ok::<(), diskimage::Error>(())
/// ```
pub fn parse_size(text: &str) -> Result<u64> {
    let wrong = || {
        let text = Name::from(text);
        Error::Usage(format!("invalid size '{text}': expected a number with an optional suffix K, M, G, T, P or E"))
    };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..).unwrap_or_default().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        "e" => 60,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |part: &str| !part.is_empty() && part.len() <= 19 && part.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) {
        return Err(wrong());
    }
    let number = |part: &str| part.parse::<u128>().map_err(|_| wrong());
    let size = (number(whole)? << shift) + (number(fraction)? << shift) / 10u128.pow(fraction.len() as u32);
    let size = u64::try_from(size).ok().filter(|size| *size < 1 << 63);
    size.ok_or_else(|| Error::Usage(format!("invalid size '{text}': expected less than 8E")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in [
            ("0", 0),
            ("512", 512),
            ("64k", 65536),
            ("10G", 10 << 30),
            ("1.5T", 3 << 39),
            ("512M", 512 << 20),
            ("7b", 7),
            ("0.5k", 512),
            ("7E", 7 << 60),
        ] {
            assert_eq!(parse_size(text).unwrap(), size, "{text}");
        }
        for text in ["", "k", "-1", "1.k", ".5k", "1kb", "8E", "1e3", "99999999999999999999", "1 k", "٣"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(parse_size("16E").unwrap_err().to_string(), "invalid size '16E': expected less than 8E");
    }

    #[test]
    fn lists() {
        let mut options = Options::new();
        options.add_list("a=1,b=x,,y,c");
        options.set("a", "2");
        assert_eq!((options.take("y"), options.take("c")), (None, Some("on".to_owned())));
        options.add_list("c");
        assert_eq!(options.value("a"), Some("2"));
        assert_eq!(options.value("b"), Some("x,y"));
        assert_eq!(options.flag("f", "c").unwrap(), Some(true));
        assert!(options.flag("f", "b").is_err());
        assert_eq!(options.number("f", "a", 0..=2).unwrap(), Some(2));
        assert!(options.number("f", "a", 3..=9).is_err());
        assert!(options.check("f", &[]).is_err());
    }

    #[test]
    fn an_option_given_twice_is_refused() {
        const SPECS: &[OptionSpec] = &[OptionSpec { name: "a", values: "", help: "" }];
        let given = |lists: &[&str]| {
            let mut options = Options::new();
            lists.iter().for_each(|list| options.add_list(list));
            options
        };
        assert!(given(&["a=1"]).check("f", SPECS).is_ok());
        for lists in [&["a=1,a=2"][..], &["a=1", "a=1"], &["a,a=off"]] {
            assert_eq!(given(lists).check("f", SPECS).unwrap_err().to_string(), "f: option a: given twice");
        }
        let mut options = given(&["a=1,a=2"]);
        options.set("a", "3");
        assert!(options.check("f", SPECS).is_ok());
    }
}
