//! Pieces of a text with their places in the file, and the characters in them.

use encoding_rs::{Encoding, UTF_8};

use crate::error::{Error, Problem, Result};
use crate::format::vmdk::FORMAT_NAME;
use crate::name::Name;

/// A piece of the text.
///
/// It is taken apart before it is decoded, so that places are those in the file. That finds the same pieces as decoding
/// first: in every encoding of the WHATWG standard that extends ASCII, bytes below 0x30 stand for themselves alone, so that no
/// line end, blank, quote or `#` is a half of a character; and of the others, only digits, `@` and above can be. `=` is neither.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    /// Byte offset in the file.
    pub at: u64,
    pub bytes: &'a [u8],
}

impl<'a> Text<'a> {
    /// A text at file offset `at`, up to its padding and without a byte order mark.
    pub fn new(bytes: &'a [u8], at: u64) -> Self {
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        let text = Text { at, bytes }.split(end).0;
        if text.bytes.starts_with(b"\xef\xbb\xbf") { text.split(3).1 } else { text }
    }

    /// The lines that say something: neither blank nor a comment.
    pub fn lines(self) -> impl Iterator<Item = Text<'a>> {
        let mut at = self.at;
        self.bytes
            .split(|byte| matches!(byte, b'\n' | b'\r'))
            .map(move |bytes| {
                let line = Text { at, bytes };
                at = at.saturating_add(bytes.len() as u64 + 1);
                line.trim()
            })
            .filter(|line| !line.bytes.is_empty() && !line.bytes.starts_with(b"#"))
    }

    /// The parts before and after the first `=`, if there is something before it.
    pub fn key_value(self) -> Option<(Text<'a>, Text<'a>)> {
        let end = self.bytes.iter().position(|&byte| byte == b'=')?;
        let (key, value) = self.split(end);
        Some((key.trim(), value.split(1).1.trim())).filter(|(key, _)| !key.bytes.is_empty())
    }

    /// The first word, which ends at a blank or a quote, and the rest.
    pub fn word(self) -> (Text<'a>, Text<'a>) {
        let end = self.bytes.iter().position(|byte| byte.is_ascii_whitespace() || *byte == b'"');
        let (word, rest) = self.split(end.unwrap_or(self.bytes.len()));
        (word, rest.trim())
    }

    /// What stands between the quotes with which it begins, and the rest.
    pub fn quoted(self) -> Option<(Text<'a>, Text<'a>)> {
        let (quote, inner) = self.split(1);
        let end = inner.bytes.iter().position(|&byte| byte == b'"').filter(|_| quote.bytes == b"\"")?;
        let (quoted, rest) = inner.split(end);
        Some((quoted, rest.split(1).1.trim()))
    }

    /// The value of the key `field`: itself, or what stands between its quotes. Quotes in it are kept, since VirtualBox writes
    /// them into comments.
    pub fn unquoted(self, field: &'static str) -> Result<Text<'a>> {
        let (quote, inner) = self.split(1);
        if quote.bytes != b"\"" {
            return Ok(self);
        }
        match inner.bytes.iter().rposition(|&byte| byte == b'"') {
            Some(end) => Ok(inner.split(end).0),
            None => Err(self.fault(field, "its quote must be closed")),
        }
    }

    /// The number that these digits are, or the largest if it is larger than that.
    pub fn decimal(self, field: &'static str) -> Result<u64> {
        if self.bytes.is_empty() || !self.bytes.iter().all(u8::is_ascii_digit) {
            return Err(self.fault(field, "must be a decimal number"));
        }
        Ok(self.bytes.iter().fold(0, |n: u64, digit| n.saturating_mul(10).saturating_add(u64::from(digit & 15))))
    }

    /// Whether it is this keyword.
    pub fn is(self, keyword: &str) -> bool {
        self.bytes.eq_ignore_ascii_case(keyword.as_bytes())
    }

    /// What the table has for this keyword.
    pub fn of<T: Copy>(self, table: &[(&'static str, T)]) -> Option<T> {
        table.iter().find(|(keyword, _)| self.is(keyword)).map(|(_, value)| *value)
    }

    /// The error for this piece in place of a valid `field`; the value is its first byte.
    pub fn fault(self, field: &'static str, rule: &'static str) -> Error {
        let value = self.bytes.first().copied().unwrap_or(0).into();
        Error::corrupt(FORMAT_NAME, field, self.at, Problem::Rule { value, rule })
    }

    /// The error for `field`, which this whole text lacks.
    pub fn missing(self, field: &'static str) -> Error {
        Error::corrupt(FORMAT_NAME, field, self.at, Problem::Rule { value: 0, rule: "the descriptor must have it" })
    }

    /// The error for the feature that this piece asks for.
    pub fn unsupported(self, feature: String) -> Error {
        Error::Unsupported { format: FORMAT_NAME, feature: feature.into(), at: Some(self.at) }
    }

    /// The error for this name of a `field`, with what it means if the table has it.
    pub fn unsupported_name(self, field: &str, meanings: &[(&'static str, &'static str)]) -> Error {
        self.unsupported(match self.of(meanings) {
            Some(meaning) => format!("{field} {} ({meaning})", self.shown()),
            None => format!("{field} {}", self.shown()),
        })
    }

    /// The beginning, for messages.
    pub fn shown(self) -> Name {
        const SHOWN: usize = 64;
        Name::from(self.split(SHOWN).0.bytes)
    }

    /// What follows this prefix.
    pub fn without_prefix(self, prefix: &str) -> Option<Text<'a>> {
        let (head, tail) = self.split(prefix.len());
        head.is(prefix).then_some(tail)
    }

    /// The piece without blanks at its ends.
    fn trim(self) -> Text<'a> {
        let rest = self.bytes.trim_ascii_start();
        let at = self.at.saturating_add((self.bytes.len().saturating_sub(rest.len())) as u64);
        Text { at, bytes: rest.trim_ascii_end() }
    }

    /// The first `mid` bytes, or all of them, and the rest.
    fn split(self, mid: usize) -> (Text<'a>, Text<'a>) {
        let (head, tail) = self.bytes.split_at_checked(mid).unwrap_or((self.bytes, &[]));
        (Text { at: self.at, bytes: head }, Text { at: self.at.saturating_add(head.len() as u64), bytes: tail })
    }
}

/// How names are written, by the key `encoding`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Charset {
    /// UTF-8, or unknown. Linux allows any bytes in names, and VMware's programs there write them as they are.
    AsItIs,
    Legacy(&'static Encoding),
}

impl Charset {
    /// The encoding of this name.
    pub fn of_label(label: &[u8]) -> Charset {
        // The code pages by number, as far as the standard has other names for them only.
        let label = match label.to_ascii_lowercase().as_slice() {
            b"windows-932" => &b"shift_jis"[..],
            b"windows-936" => b"gbk",
            b"windows-950" => b"big5",
            _ => label,
        };
        match Encoding::for_label(label) {
            Some(encoding) if encoding != UTF_8 && encoding.is_ascii_compatible() => Charset::Legacy(encoding),
            _ => Charset::AsItIs,
        }
    }

    /// The name in UTF-8, or its bytes as they are when they are not of this encoding.
    pub fn decode(self, text: Text<'_>) -> Name {
        match self {
            Charset::Legacy(encoding) => encoding
                .decode_without_bom_handling_and_without_replacement(text.bytes)
                .map_or_else(|| Name::from(text.bytes), |text| Name::from(&*text)),
            Charset::AsItIs => Name::from(text.bytes),
        }
    }
}
