//! UUIDs, which name images and their states.

use std::fmt;

/// A UUID as VirtualBox has it in memory and in files: its first three fields are little-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Uuid(pub [u8; 16]);

impl Uuid {
    /// Stands for "none".
    pub const NULL: Uuid = Uuid([0; 16]);

    /// A UUID of version 4 (RFC 9562, section 5.4) from bytes that look random.
    pub fn from_random(mut bytes: [u8; 16]) -> Uuid {
        bytes[7] = bytes[7] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Uuid(bytes)
    }

    /// Reads what [`Display`](fmt::Display) writes, in either case, and in braces or without.
    pub fn parse(text: &str) -> Option<Uuid> {
        let bare = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text);
        let dashes = [8, 13, 18, 23];
        if !bare.is_ascii() || bare.len() != 36 || dashes.iter().any(|&at| bare.as_bytes().get(at) != Some(&b'-')) {
            return None;
        }
        let digits: String = bare.split('-').collect();
        // A sign would be read as well.
        let valid = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(&digits, 16).ok().filter(|_| valid)?;
        Some(Uuid(swap_fields(number.to_be_bytes())))
    }
}

/// Between the order in a file and that of the text.
fn swap_fields(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = u128::from_be_bytes(swap_fields(self.0));
        let part = |shift: u32, digits: u32| number >> shift & ((1 << (4 * digits)) - 1);
        let [a, b, c, d, e] = [part(96, 8), part(80, 4), part(64, 4), part(48, 4), part(0, 12)];
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in a file of VirtualBox, and what VirtualBox shows.
    const BYTES: [u8; 16] =
        [0x0f, 0x38, 0x37, 0x6a, 0x48, 0x55, 0x59, 0x43, 0x90, 0xf4, 0x3b, 0xce, 0xa3, 0x3d, 0x6c, 0xdb];
    const TEXT: &str = "6a37380f-5548-4359-90f4-3bcea33d6cdb";

    #[test]
    fn the_text_is_that_of_virtualbox() {
        assert_eq!(Uuid(BYTES).to_string(), TEXT);
        for text in [TEXT.to_owned(), TEXT.to_uppercase(), format!("{{{TEXT}}}")] {
            assert_eq!(Uuid::parse(&text), Some(Uuid(BYTES)), "{text}");
        }
    }

    #[test]
    fn other_texts_are_none() {
        for text in [
            "",
            "{6a37380f-5548-4359-90f4-3bcea33d6cdb",
            "6a37380f-5548-4359-90f4-3bcea33d6cd",
            "6a37380f55484359-90f4-3bcea33d6cdb--",
            "+a37380f-5548-4359-90f4-3bcea33d6cdb",
            "6a37380g-5548-4359-90f4-3bcea33d6cdb",
            "6a37380f-5548-4359-90f4-3bcea33d6c\u{e4}",
            "6a37380f 5548-4359-90f4-3bcea33d6cdb",
            "-------------------------------------",
            "6a37380f-5548-4359--0f4-3bcea33d6cdb",
        ] {
            assert_eq!(Uuid::parse(text), None, "{text}");
        }
    }

    #[test]
    fn random_ones_are_of_version_4() {
        for byte in [0, 0xff, 0x5a] {
            let text = Uuid::from_random([byte; 16]).to_string();
            assert_eq!(&text[14..15], "4", "{text}");
            assert!("89ab".contains(&text[19..20]), "{text}");
            assert_ne!(Uuid::from_random([byte; 16]), Uuid::NULL);
        }
    }
}
