//! The parent locator: paths and identity of the parent of a differencing disk (2.6.2.6).

use std::collections::HashSet;

use byteorder::{ByteOrder, LittleEndian};
use uuid::{Uuid, uuid};

use super::{FIELDS, FORMAT_NAME};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table::Field;
use crate::info::FileReference;
use crate::name::{Name, utf16, utf16_text};

/// The locator type of a VHDX parent, the only one in the document (2.6.2.6.3).
const VHDX: Uuid = uuid!("b04aefb7-d19e-4a81-b789-25b8e9445913");
const HEADER_LEN: usize = 20;
const ENTRY_LEN: usize = 12;
/// The keys of the parent's identity. During a merge the parent can have either of them.
const LINKAGE: &str = "parent_linkage";
const LINKAGE2: &str = "parent_linkage2";
/// What a GUID follows in an identity.
const IDENTITY: &str = "data write GUID ";
/// The keys of the paths, in the order in which they are tried.
const PATHS: [&str; 3] = ["relative_path", "volume_path", "absolute_win32_path"];

/// The entries with known keys of a valid parent locator, in file order.
///
/// The document requires a path. A locator without one is accepted: the parent is then found by its identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ParentLocator {
    pub entries: Vec<(String, String)>,
}

impl ParentLocator {
    /// A locator with the identity of the parent, as [`linkage`](Self::linkage) returns it, and a path.
    pub fn new(linkage: String, key: &str, path: String) -> ParentLocator {
        ParentLocator { entries: vec![(LINKAGE.to_owned(), linkage), (key.to_owned(), path)] }
    }

    /// The identity of the parent: its data write GUID in braces.
    pub fn linkage(&self) -> Option<&str> {
        self.get(LINKAGE)
    }

    /// Parses the item at host offset `at`.
    pub fn parse(bytes: &[u8], at: u64) -> Result<ParentLocator> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            let problem = Problem::Rule { value: bytes.len() as u64, rule: "must be at least 20" };
            return Err(FIELDS.at("length of Parent Locator", at).fault(problem));
        };
        let locator_type = Uuid::from_bytes_le(header.first_chunk().copied().unwrap_or_default());
        if locator_type != VHDX {
            let feature = format!("parent locator type {locator_type}").into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(at) });
        }
        let (count, entries) = (LittleEndian::read_u16(&header[18..]), rest.as_chunks().0);
        let Some(entries) = entries.get(..count.into()) else {
            let problem = Problem::Range { value: count.into(), min: 0, max: entries.len() as u64 };
            return Err(FIELDS.at("KeyValueCount", at + 18).fault(problem));
        };

        let mut strings = Strings::new(HEADER_LEN + entries.len() * ENTRY_LEN, bytes);
        let mut keys = HashSet::new();
        let mut locator = ParentLocator::default();
        for (entry, at) in entries.iter().zip((at + HEADER_LEN as u64..).step_by(ENTRY_LEN)) {
            let (key, value) = strings.read(entry, at)?;
            if [LINKAGE, LINKAGE2].contains(&key.as_str()) && parse_linkage(&value).is_none() {
                let finding = "the value of this key is not a GUID in braces";
                let value = LittleEndian::read_u32(&entry[4..]).into();
                return Err(FIELDS.at("ValueOffset", at + 4).fault(Problem::Conflict { value, finding }));
            }
            if !keys.insert(key.clone()) {
                let value = LittleEndian::read_u32(entry).into();
                return Err(FIELDS
                    .at("KeyOffset", at)
                    .fault(Problem::Conflict { value, finding: "another entry has the same key" }));
            }
            if [LINKAGE, LINKAGE2].iter().chain(&PATHS).any(|known| *known == key) {
                locator.entries.push((key, value));
            }
        }
        if locator.get(LINKAGE).is_none() {
            let problem = Problem::Conflict { value: count.into(), finding: "the key parent_linkage is missing" };
            return Err(FIELDS.at("KeyValueCount", at + 18).fault(problem));
        }
        Ok(locator)
    }

    /// Encodes the item with each value after its key, as Windows does.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = VHDX.to_bytes_le().to_vec();
        bytes.extend(0u16.to_le_bytes());
        bytes.extend((self.entries.len() as u16).to_le_bytes());
        let mut strings = Vec::new();
        let start = HEADER_LEN + self.entries.len() * ENTRY_LEN;
        for (key, value) in &self.entries {
            let (key, value) = (utf16(key, u16::to_le_bytes), utf16(value, u16::to_le_bytes));
            let offset = start + strings.len();
            bytes.extend((offset as u32).to_le_bytes());
            bytes.extend(((offset + key.len()) as u32).to_le_bytes());
            bytes.extend((key.len() as u16).to_le_bytes());
            bytes.extend((value.len() as u16).to_le_bytes());
            strings.extend([key, value].concat());
        }
        bytes.extend(strings);
        bytes
    }

    /// A reference to the parent, with its paths in the order of the document and its possible identities.
    pub fn reference(&self) -> FileReference {
        let paths = PATHS.iter().filter_map(|key| self.get(key)).map(|path| Name::from_windows_path(path.as_bytes()));
        let mut reference = FileReference::from_names("parent", paths.collect(), Some(Name::from(FORMAT_NAME)));
        // The second linkage is nil unless a merge is in progress.
        let linkages = [LINKAGE, LINKAGE2].iter().filter_map(|key| self.get(key)).filter_map(parse_linkage);
        let used = linkages.enumerate().filter(|(index, guid)| *index == 0 || !guid.is_nil());
        reference.identities = used.map(|(_, guid)| identity(guid)).collect();
        if reference.name.as_bytes().is_empty() {
            (reference.name, reference.beside) = (reference.identity(), Some("vhdx"));
        }
        reference
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.entries.iter().find(|(other, _)| other == key).map(|(_, value)| value.as_str())
    }
}

/// The identity by which children refer to an image with this DataWriteGuid.
pub(super) fn identity(data_write_guid: Uuid) -> Name {
    Name::from(format!("{IDENTITY}{data_write_guid}"))
}

/// The value of `parent_linkage` for an [`identity`].
pub(super) fn linkage_of(identity: &Name) -> Option<String> {
    let text = std::str::from_utf8(identity.as_bytes()).ok()?.strip_prefix(IDENTITY)?;
    Some(format!("{{{text}}}"))
}

/// Parses a GUID with hyphens, in braces. The document requires lower case, but its example is in upper case.
fn parse_linkage(value: &str) -> Option<Uuid> {
    let guid = value.strip_prefix('{')?.strip_suffix('}')?;
    // Only the form with hyphens has 36 characters.
    Uuid::try_parse(guid).ok().filter(|_| guid.len() == 36)
}

/// The keys and values of an item.
struct Strings<'a> {
    /// The whole item.
    bytes: &'a [u8],
    /// Offset in the item of the end of the entries.
    start: usize,
    /// Bytes left for strings. Strings do not overlap, so their total length is bounded by the item.
    left: usize,
}

impl<'a> Strings<'a> {
    fn new(start: usize, bytes: &'a [u8]) -> Self {
        Strings { bytes, start, left: bytes.len().saturating_sub(start) }
    }

    /// Returns the key and the value of the entry at host offset `at`.
    fn read(&mut self, entry: &[u8; ENTRY_LEN], at: u64) -> Result<(String, String)> {
        let u32_at = |offset: usize| LittleEndian::read_u32(&entry[offset..]);
        let u16_at = |offset: usize| LittleEndian::read_u16(&entry[offset..]);
        let key = self.string(u32_at(0), FIELDS.at("KeyOffset", at), u16_at(8), FIELDS.at("KeyLength", at + 8))?;
        let value =
            self.string(u32_at(4), FIELDS.at("ValueOffset", at + 4), u16_at(10), FIELDS.at("ValueLength", at + 10))?;
        Ok((key, value))
    }

    fn string(&mut self, offset: u32, offset_field: Field, len: u16, len_field: Field) -> Result<String> {
        let value = u64::from(len);
        len_field.aligned(value, 2)?;
        if len == 0 {
            return Err(len_field.fault(Problem::Rule { value, rule: "must not be 0" }));
        }
        if usize::from(len) > self.left {
            let finding = "keys and values are longer than the item";
            return Err(len_field.fault(Problem::Conflict { value, finding }));
        }
        self.left -= usize::from(len);
        let (value, max) = (u64::from(offset), (self.bytes.len() - usize::from(len)) as u64);
        let bytes = self.bytes.get(offset as usize..).and_then(|rest| rest.get(..len.into()));
        let Some(bytes) = bytes.filter(|_| offset as usize >= self.start) else {
            return Err(offset_field.fault(Problem::Range { value, min: self.start as u64, max }));
        };
        if bytes.as_chunks().0.contains(&[0; 2]) {
            return Err(offset_field.fault(Problem::Conflict { value, finding: "the key or value contains a NUL" }));
        }
        Ok(utf16_text(bytes, u16::from_le_bytes))
    }
}

#[cfg(test)]
mod tests;
