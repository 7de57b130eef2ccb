//! Text that comes from an image: any bytes at all, and never shown to a terminal as they are.

use std::borrow::Cow;
use std::fmt;
use std::path::{Component, MAIN_SEPARATOR, Path, PathBuf};

use crate::io::path_from_bytes;

/// A name that an image holds. Its `Display` escapes what a terminal or a log could take for more than text.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Name(Vec<u8>);

impl Name {
    /// The bytes, as they stand in the image.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as a path of this system: any bytes on Unix; UTF-8 elsewhere, and `None` if they are not.
    pub fn as_path(&self) -> Option<&Path> {
        path_from_bytes(&self.0)
    }

    /// Whether it can be that of a file; see [`FileReference::is_file_name`](crate::FileReference::is_file_name).
    pub(crate) fn is_file_name(&self) -> bool {
        let Some(path) = self.as_path() else { return false };
        let prefix = match path.components().next() {
            // Of Windows only: `C:`, `\\server\share`, `\\.\PhysicalDrive0`. `C:name` depends on the process, it is refused.
            Some(Component::Prefix(prefix)) if path.is_absolute() => prefix.as_os_str().len(),
            _ => 0,
        };
        let rest = self.0.get(prefix..).unwrap_or_default();
        match rest.iter().position(|&byte| byte == b':') {
            // On Windows a stream within a file would follow.
            Some(_) if MAIN_SEPARATOR == '\\' => false,
            Some(colon) => colon == 0 || rest.iter().take(colon).any(|&byte| byte == b'/'),
            None => !self.0.is_empty(),
        }
    }

    /// The path that it means in the image at `image`. `None` if it cannot be a path of this system.
    pub(crate) fn path_from(&self, image: &Path) -> Option<PathBuf> {
        Some(image.with_file_name("").join(self.as_path()?))
    }

    /// A path of Windows, with slashes: `.\a\b` is `a/b`.
    pub(crate) fn from_windows_path(path: &[u8]) -> Name {
        let path: Vec<_> = path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect();
        Name::from(path.strip_prefix(b"./").unwrap_or(&path))
    }

    /// The text, with replacement characters where it is not UTF-8.
    pub fn to_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl From<&[u8]> for Name {
    fn from(bytes: &[u8]) -> Self {
        Name(bytes.to_vec())
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Name(text.as_bytes().to_vec())
    }
}

impl From<String> for Name {
    fn from(text: String) -> Self {
        Name(text.into_bytes())
    }
}

impl From<&Path> for Name {
    fn from(path: &Path) -> Self {
        Name(path.as_os_str().as_encoded_bytes().to_vec())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(&self.0, f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({self})")
    }
}

/// A path for messages, escaped as a [`Name`] is.
pub fn escaped_path(path: &Path) -> Name {
    Name::from(path)
}

/// Writes printable text as it is, and the rest (controls, direction marks, bytes outside UTF-8) as escapes.
fn escape(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\'' | '"' => write!(f, "{c}")?,
                _ => write!(f, "{}", c.escape_debug())?,
            }
        }
        for byte in chunk.invalid() {
            write!(f, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

/// The text up to the first NUL of one in UTF-16, with replacement characters where it is not that.
pub(crate) fn utf16_text(bytes: &[u8], decode: fn([u8; 2]) -> u16) -> String {
    let units = bytes.as_chunks().0.iter().map(|unit| decode(*unit)).take_while(|unit| *unit != 0);
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// The text in UTF-16.
pub(crate) fn utf16(text: &str, encode: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_escaped() {
        let name = Name::from(&b"a\x1b[31m\n\0\xff 'b\".qcow2\xe2\x80\xae"[..]);
        assert_eq!(name.to_string(), "a\\u{1b}[31m\\n\\0\\xff 'b\".qcow2\\u{202e}");
    }

    #[cfg(windows)]
    #[test]
    fn drives_and_shares_are_no_protocols() {
        for name in
            ["C:\\vm\\a.vhd", "c:/vm/a.vhd", "\\\\server\\share\\a", "\\\\?\\C:\\a", "\\\\.\\PhysicalDrive1", "a\\b"]
        {
            assert!(Name::from(name).is_file_name(), "{name}");
        }
        for name in ["C:a", "nbd:host", "nbd://host", "file.img:stream", "C:\\a:stream", "json:{}", ""] {
            assert!(!Name::from(name).is_file_name(), "{name}");
        }
        assert_eq!(Name::from("b").path_from(Path::new("C:\\vm\\a")), Some("C:\\vm\\b".into()));
    }

    #[test]
    fn bytes_that_are_no_text_are_a_path_of_unix_only() {
        assert_eq!(Name::from(&b"\xff"[..]).as_path().is_some(), cfg!(unix));
        assert_eq!(Name::from(&b"\xff"[..]).is_file_name(), cfg!(unix));
    }

    #[test]
    fn plain_text_stays_as_it_is() {
        assert_eq!(Name::from("Größe 磁盘.img").to_string(), "Größe 磁盘.img");
    }
}
