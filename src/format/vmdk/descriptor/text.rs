//! Parts of a descriptor with their file offsets, and the character encodings of names.

use encoding_rs::{Encoding, UTF_8};

use crate::error::{Error, Problem, Result};
use crate::format::vmdk::FORMAT_NAME;
use crate::name::Name;

/// A part of a descriptor.
///
/// The text is split before it is decoded, so that offsets are file offsets. The result is the same as after decoding:
/// in every ASCII-compatible encoding of the WHATWG standard, a byte of a multi-byte character is a digit, `@` or
/// above, never a line break, blank, quote, `#` or `=`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    /// File offset of the first byte.
    pub at: u64,
    pub bytes: &'a [u8],
}

impl<'a> Text<'a> {
    /// Returns the text at file offset `at`, without NUL padding and byte order mark.
    pub fn new(bytes: &'a [u8], at: u64) -> Self {
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        let text = Text { at, bytes }.split(end).0;
        if text.bytes.starts_with(b"\xef\xbb\xbf") { text.split(3).1 } else { text }
    }

    /// Returns the lines that are neither blank nor comments.
    pub fn lines(self) -> impl Iterator<Item = Text<'a>> {
        let mut at = self.at;
        self.bytes
            .split(|byte| *byte == b'\n')
            .map(move |bytes| {
                let line = Text { at, bytes };
                at = at.saturating_add(bytes.len() as u64 + 1);
                line.trim()
            })
            .filter(|line| !line.bytes.is_empty() && !line.bytes.starts_with(b"#"))
    }

    /// Refuses what other readers take for a blank or for the end of a line, and see other lines then: vertical tabs, form feeds, and carriage returns that are not
    /// at the end of a line.
    pub fn check_blanks(self) -> Result<()> {
        let mut rest = self;
        while let Some(at) = rest.bytes.iter().position(|byte| matches!(byte, b'\x0b' | b'\x0c' | b'\r')) {
            let found = rest.split(at).1;
            let after = found.bytes.iter().position(|byte| *byte != b'\r').unwrap_or(found.bytes.len());
            if after == 0 || found.bytes.get(after).is_some_and(|byte| *byte != b'\n') {
                return Err(found
                    .fault("line", "must have no vertical tab, no form feed, and carriage returns only at its end"));
            }
            rest = found.split(after).1;
        }
        Ok(())
    }

    /// The text from each place on where it has this keyword, in any case.
    pub fn find_all(self, keyword: &str) -> impl Iterator<Item = Text<'a>> {
        let windows = self.bytes.windows(keyword.len()).enumerate();
        windows
            .filter(move |(_, bytes)| bytes.eq_ignore_ascii_case(keyword.as_bytes()))
            .map(move |(at, _)| self.split(at).1)
    }

    /// Splits at the first `=`; `None` without one or if the key is empty.
    pub fn key_value(self) -> Option<(Text<'a>, Text<'a>)> {
        let end = self.bytes.iter().position(|&byte| byte == b'=')?;
        let (key, value) = self.split(end);
        Some((key.trim(), value.split(1).1.trim())).filter(|(key, _)| !key.bytes.is_empty())
    }

    /// Splits off the first word, which ends at a blank or a quote.
    pub fn word(self) -> (Text<'a>, Text<'a>) {
        let end = self.bytes.iter().position(|byte| byte.is_ascii_whitespace() || *byte == b'"');
        let (word, rest) = self.split(end.unwrap_or(self.bytes.len()));
        (word, rest.trim())
    }

    /// Splits off a quoted string, without its quotes; `None` if the text does not begin with one.
    pub fn quoted(self) -> Option<(Text<'a>, Text<'a>)> {
        let (quote, inner) = self.split(1);
        let end = inner.bytes.iter().position(|&byte| byte == b'"').filter(|_| quote.bytes == b"\"")?;
        let (quoted, rest) = inner.split(end);
        Some((quoted, rest.split(1).1.trim()))
    }

    /// Returns the value of the key `field` without the surrounding quotes, if there are any. Inner quotes are kept,
    /// since VirtualBox writes them into comments.
    pub fn unquoted(self, field: &'static str) -> Result<Text<'a>> {
        let (quote, inner) = self.split(1);
        if quote.bytes != b"\"" {
            return Ok(self);
        }
        match inner.bytes.iter().rposition(|&byte| byte == b'"') {
            Some(end) => Ok(inner.split(end).0),
            None => Err(self.fault(field, "must end with a quote")),
        }
    }

    /// Parses a decimal number, saturating at the largest value.
    pub fn decimal(self, field: &'static str) -> Result<u64> {
        if self.bytes.is_empty() || !self.bytes.iter().all(u8::is_ascii_digit) {
            return Err(self.fault(field, "must be a decimal number"));
        }
        Ok(self.bytes.iter().fold(0, |n: u64, digit| n.saturating_mul(10).saturating_add(u64::from(digit & 15))))
    }

    /// Whether the text equals `keyword`, ignoring case.
    pub fn is(self, keyword: &str) -> bool {
        self.bytes.eq_ignore_ascii_case(keyword.as_bytes())
    }

    /// Looks up the text as a keyword in a table.
    pub fn lookup<T: Copy>(self, table: &[(&'static str, T)]) -> Option<T> {
        table.iter().find(|(keyword, _)| self.is(keyword)).map(|(_, value)| *value)
    }

    /// The error for an invalid `field`. Its value is the first byte of the text.
    pub fn fault(self, field: &'static str, rule: &'static str) -> Error {
        let value = self.bytes.first().copied().unwrap_or(0).into();
        Error::corrupt(FORMAT_NAME, field, self.at, Problem::Rule { value, rule })
    }

    /// The error for a `field` missing from this descriptor.
    pub fn missing(self, field: &'static str) -> Error {
        Error::corrupt(FORMAT_NAME, field, self.at, Problem::Rule { value: 0, rule: "must be present in a descriptor" })
    }

    /// The error for an unsupported feature requested by this text.
    pub fn unsupported(self, feature: String) -> Error {
        Error::Unsupported { format: FORMAT_NAME, feature: feature.into(), at: Some(self.at) }
    }

    /// The error for an unsupported value of `field`, with its meaning if the table has one.
    pub fn unsupported_name(self, field: &str, meanings: &[(&'static str, &'static str)]) -> Error {
        self.unsupported(match self.lookup(meanings) {
            Some(meaning) => format!("{field} {} ({meaning})", self.excerpt()),
            None => format!("{field} {}", self.excerpt()),
        })
    }

    /// Returns the first bytes, for messages.
    pub fn excerpt(self) -> Name {
        const MAX_LEN: usize = 64;
        Name::from(self.split(MAX_LEN).0.bytes)
    }

    /// Returns the text after `prefix`.
    pub fn strip_prefix(self, prefix: &str) -> Option<Text<'a>> {
        let (head, tail) = self.split(prefix.len());
        head.is(prefix).then_some(tail)
    }

    /// Returns the text without blanks at both ends.
    fn trim(self) -> Text<'a> {
        let rest = self.bytes.trim_ascii_start();
        let at = self.at.saturating_add((self.bytes.len().saturating_sub(rest.len())) as u64);
        Text { at, bytes: rest.trim_ascii_end() }
    }

    /// Splits after `mid` bytes, or at the end of a shorter text.
    pub fn split(self, mid: usize) -> (Text<'a>, Text<'a>) {
        let (head, tail) = self.bytes.split_at_checked(mid).unwrap_or((self.bytes, &[]));
        (Text { at: self.at, bytes: head }, Text { at: self.at.saturating_add(head.len() as u64), bytes: tail })
    }
}

/// The character encoding of names, from the key `encoding`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Charset {
    /// UTF-8 or unknown. File names on Linux are arbitrary bytes, and VMware writes them unchanged.
    Verbatim,
    Legacy(&'static Encoding),
}

impl Charset {
    /// Returns the encoding with this label.
    pub fn from_label(label: &[u8]) -> Charset {
        // Code page numbers that are not labels in the WHATWG standard.
        let label = match label.to_ascii_lowercase().as_slice() {
            b"windows-932" => &b"shift_jis"[..],
            b"windows-936" => b"gbk",
            b"windows-950" => b"big5",
            _ => label,
        };
        match Encoding::for_label(label) {
            Some(encoding) if encoding != UTF_8 && encoding.is_ascii_compatible() => Charset::Legacy(encoding),
            _ => Charset::Verbatim,
        }
    }

    /// Decodes a name to UTF-8; bytes that are invalid in this encoding are returned unchanged.
    pub fn decode(self, text: Text<'_>) -> Name {
        match self {
            Charset::Legacy(encoding) => encoding
                .decode_without_bom_handling_and_without_replacement(text.bytes)
                .map_or_else(|| Name::from(text.bytes), |text| Name::from(&*text)),
            Charset::Verbatim => Name::from(text.bytes),
        }
    }
}
