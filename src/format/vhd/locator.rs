//! Parent locators: the path of the parent in the notation of several platforms (the document, "Parent Locator Entry").

use byteorder::{BigEndian, ByteOrder};
use uuid::Uuid;

use super::header::Parent;
use super::{FIELDS, FORMAT_NAME};
use crate::error::Result;
use crate::format::shared::table;
use crate::info::FileReference;
use crate::io::ReadAt;
use crate::limits::Budget;
use crate::name::{Name, utf16_text};

/// Longest path in bytes: the limit of Windows, 32767 UTF-16 code units.
const MAX_LEN: u64 = 65_534;

/// A parent locator entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Locator {
    pub platform: [u8; 4],
    /// Space allocated for the path: whole sectors. The document counts sectors, Windows counts bytes; reading needs only the
    /// length.
    pub space: u32,
    /// Length of the path in bytes.
    pub len: u32,
    /// Host offset of the path.
    pub offset: u64,
    /// Host offset of this entry, for messages.
    pub at: u64,
}

impl Locator {
    /// Bytes in the header.
    pub const LEN: usize = 24;
    /// A relative Windows path in UTF-16, little-endian.
    pub const W2RU: [u8; 4] = *b"W2ru";
    /// An absolute Windows path in UTF-16, little-endian.
    pub const W2KU: [u8; 4] = *b"W2ku";

    /// Parses the entry at host offset `at`; `None` for an unused one.
    pub fn parse(bytes: &[u8], at: u64) -> Option<Locator> {
        let bytes: &[u8; Locator::LEN] = bytes.first_chunk()?;
        let u32_at = |offset: usize| BigEndian::read_u32(&bytes[offset..]);
        let locator = Locator {
            platform: u32_at(0).to_be_bytes(),
            space: u32_at(4),
            len: u32_at(8),
            offset: BigEndian::read_u64(&bytes[16..]),
            at,
        };
        (locator.platform != [0; 4] && locator.len != 0).then_some(locator)
    }

    /// Encodes the entry.
    pub fn encode(&self) -> [u8; Locator::LEN] {
        let mut bytes = [0; Locator::LEN];
        bytes[..4].copy_from_slice(&self.platform);
        BigEndian::write_u32(&mut bytes[4..], self.space);
        BigEndian::write_u32(&mut bytes[8..], self.len);
        BigEndian::write_u64(&mut bytes[16..], self.offset);
        bytes
    }

    /// Reads the path, converted to a path of this system where possible.
    fn read(&self, file: &dyn ReadAt, budget: &Budget) -> Result<Option<Name>> {
        let decode: fn(&[u8]) -> Name = match &self.platform {
            b"W2ru" | b"W2ku" => |bytes| Name::from_windows_path(utf16_text(bytes, u16::from_le_bytes).as_bytes()),
            b"Wi2r" | b"Wi2k" => {
                |bytes| Name::from_windows_path(bytes.split(|byte| *byte == 0).next().unwrap_or_default())
            }
            b"MacX" => file_url,
            // "Mac " is an alias record of Mac OS Classic.
            _ => return Ok(None),
        };
        FIELDS.at("platform data length", self.at + 8).at_most(self.len.into(), MAX_LEN)?;
        let at = FIELDS.at("platform data offset", self.at + 16);
        let bytes = table::read_table(file, self.offset, self.len.into(), at, budget)?;
        Ok(Some(decode(&bytes)).filter(|name| !name.as_bytes().is_empty()))
    }

    /// Whether the path is relative to the directory of the image.
    fn is_relative(&self) -> bool {
        matches!(&self.platform, b"W2ru" | b"Wi2r")
    }
}

/// A reference to the parent by all its paths, the relative ones first.
pub(super) fn reference(parent: &Parent, file: &dyn ReadAt, budget: &Budget) -> Result<FileReference> {
    let (mut relative, mut absolute) = (Vec::new(), Vec::new());
    for locator in &parent.locators {
        let names = if locator.is_relative() { &mut relative } else { &mut absolute };
        names.extend(locator.read(file, budget)?);
    }
    absolute.push(Name::from_windows_path(parent.name.as_bytes()));
    let names = relative.into_iter().chain(absolute).collect();
    // XenServer marks a raw parent by the absence of a UUID; a raw disk has none. Its guest could write a footer.
    let format = (!parent.unique_id.is_nil()).then(|| Name::from(FORMAT_NAME));
    let mut reference = FileReference::from_names("parent", names, format);
    if !parent.unique_id.is_nil() {
        reference.identities.push(identity(parent.unique_id));
    }
    Ok(reference)
}

/// What a UUID follows in an identity.
const IDENTITY: &str = "UUID ";

/// The identity by which children refer to an image with this UUID.
pub(super) fn identity(unique_id: Uuid) -> Name {
    Name::from(format!("{IDENTITY}{unique_id}"))
}

/// The UUID in an [`identity`].
pub(super) fn unique_id_of(identity: &Name) -> Option<Uuid> {
    std::str::from_utf8(identity.as_bytes()).ok()?.strip_prefix(IDENTITY)?.parse().ok()
}

/// The path of a URL: `file://localhost/a%20b` is `/a b`. XenServer writes relative ones without a host: `file://./a` is `./a`.
fn file_url(url: &[u8]) -> Name {
    let url = url.split(|byte| *byte == 0).next().unwrap_or_default();
    let path = match url.strip_prefix(b"file://") {
        Some(rest) if rest.starts_with(b"./") || rest.starts_with(b"../") => rest,
        Some(rest) => {
            rest.iter().position(|byte| *byte == b'/').and_then(|slash| rest.get(slash..)).unwrap_or_default()
        }
        None => url,
    };
    let mut decoded = Vec::new();
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        let digit = |index: usize| after.get(index).and_then(|digit| char::from(*digit).to_digit(16));
        rest = after;
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => decoded.push(byte),
        }
    }
    Name::from(decoded.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemFile;
    use crate::name::utf16;

    fn names(locators: &[(&[u8; 4], &[u8])], name: &str) -> Vec<String> {
        let mut file = Vec::new();
        let mut parent = Parent { name: Name::from(name), ..Parent::default() };
        for (platform, bytes) in locators {
            let (len, offset) = (bytes.len() as u32, file.len() as u64);
            parent.locators.push(Locator { platform: **platform, space: 1, len, offset, at: 0 });
            file.extend_from_slice(bytes);
        }
        let FileReference { name, alternatives, identities, format, .. } =
            reference(&parent, &MemFile::from(file), &Budget::new(1 << 20)).unwrap();
        assert_eq!((identities, format), (vec![], None), "without a UUID, the parent may be raw");
        [name].iter().chain(&alternatives).map(|name| name.to_text().into_owned()).collect()
    }

    #[test]
    fn windows_and_mac_paths() {
        let wide = |text: &str| utf16(text, u16::to_le_bytes);
        let (relative, absolute) = (wide(".\\sub\\bäse.vhd"), wide("C:\\x\\sub\\bäse.vhd\0rest"));
        assert_eq!(
            names(&[(b"W2ku", &absolute), (b"W2ru", &relative)], "bäse.vhd"),
            ["sub/bäse.vhd", "C:/x/sub/bäse.vhd", "bäse.vhd"]
        );
        assert_eq!(names(&[(b"W2ru", &wide("..\\base.vhd"))], "x.vhd"), ["../base.vhd", "x.vhd", "base.vhd"]);
        assert_eq!(names(&[(b"Wi2r", b".\\a.vhd\0"), (b"Wi2k", b"D:\\a.vhd")], ""), ["a.vhd", "D:/a.vhd"]);
        assert_eq!(
            names(&[(b"MacX", b"file://localhost/Disks/my%20b%c3%a4se%2.vhd"), (b"Mac ", b"\x01\x02")], ""),
            ["/Disks/my bäse%2.vhd", "my bäse%2.vhd"]
        );
        assert_eq!(names(&[(b"MacX", b"file://./a.vhd")], ""), ["./a.vhd", "a.vhd"]);
        assert_eq!(names(&[(b"MacX", b"file://./a.vhd\0\x01rest")], ""), ["./a.vhd", "a.vhd"]);
        assert_eq!(names(&[(b"MacX", b"file://../b/a.vhd")], ""), ["../b/a.vhd", "a.vhd"]);
        assert_eq!(names(&[], ""), [""]);
    }

    #[test]
    fn an_entry_without_a_platform_or_a_path_is_unused() {
        let entry = Locator { platform: Locator::W2RU, space: 512, len: 1, offset: 4096, at: 7 };
        for (entry, is_used) in [
            (entry.clone(), true),
            (Locator { platform: [0; 4], ..entry.clone() }, false),
            (Locator { len: 0, ..entry }, false),
        ] {
            assert_eq!(Locator::parse(&entry.encode(), 7), is_used.then_some(entry));
        }
    }

    #[test]
    fn a_path_out_of_bounds_or_too_long_is_refused() {
        let file = MemFile::from(vec![0; 100_000]);
        for (len, offset, kind) in [(8, 99_993, "out-of-bounds"), (65_535, 0, "limit"), (8, u64::MAX, "out-of-bounds")]
        {
            let locator = Locator { platform: Locator::W2RU, space: 512, len, offset, at: u64::MAX - 100 };
            let parent = Parent { locators: vec![locator], ..Parent::default() };
            assert_eq!(reference(&parent, &file, &Budget::new(1 << 20)).unwrap_err().kind().as_str(), kind);
        }
    }
}
