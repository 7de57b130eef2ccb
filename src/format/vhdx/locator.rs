//! The parent locator: which file a differencing disk lies over (2.6.2.6).

use std::collections::HashSet;

use byteorder::{ByteOrder, LittleEndian};
use uuid::{Uuid, uuid};

use super::{FIELDS, FORMAT_NAME};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table::Field;
use crate::info::FileReference;
use crate::name::{Name, utf16, utf16_text};

/// The only type of the document: the parent is a VHDX file (2.6.2.6.3).
const VHDX: Uuid = uuid!("b04aefb7-d19e-4a81-b789-25b8e9445913");
const HEADER_LEN: usize = 20;
const ENTRY_LEN: usize = 12;
/// The keys for the parent's identity. During a merge it may have either of two.
const LINKAGE: &str = "parent_linkage";
const LINKAGE2: &str = "parent_linkage2";
/// The keys for its paths, in the order in which they are tried.
const PATHS: [&str; 3] = ["relative_path", "volume_path", "absolute_win32_path"];

/// The entries of a valid parent locator, in their order, as far as their keys are known.
///
/// It has a path by the document. Without one it is valid here: the parent is known by its identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ParentLocator {
    pub entries: Vec<(String, String)>,
}

impl ParentLocator {
    /// Parses the item, which stands at offset `at` of the file.
    pub fn parse(bytes: &[u8], at: u64) -> Result<ParentLocator> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            let problem = Problem::Rule { value: bytes.len() as u64, rule: "its header has 20 bytes" };
            return Err(FIELDS.at("the length of Parent Locator", at).fault(problem));
        };
        let locator_type = Uuid::from_bytes_le(header.first_chunk().copied().unwrap_or_default());
        if locator_type != VHDX {
            let feature = format!("a parent locator of type {locator_type}").into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(at) });
        }
        let (count, entries) = (LittleEndian::read_u16(&header[18..]), rest.as_chunks().0);
        let Some(entries) = entries.get(..count.into()) else {
            let problem = Problem::Range { value: count.into(), min: 0, max: entries.len() as u64 };
            return Err(FIELDS.at("KeyValueCount", at + 18).fault(problem));
        };

        let mut texts = Texts::behind(HEADER_LEN + entries.len() * ENTRY_LEN, bytes);
        let mut keys = HashSet::new();
        let mut locator = ParentLocator::default();
        for (entry, at) in entries.iter().zip((at + HEADER_LEN as u64..).step_by(ENTRY_LEN)) {
            let (key, value) = texts.read(entry, at)?;
            if [LINKAGE, LINKAGE2].contains(&key.as_str()) && parse_linkage(&value).is_none() {
                let rule = "the value of this key is a GUID in braces";
                let value = LittleEndian::read_u32(&entry[4..]).into();
                return Err(FIELDS.at("ValueOffset", at + 4).fault(Problem::Rule { value, rule }));
            }
            if !keys.insert(key.clone()) {
                let value = LittleEndian::read_u32(entry).into();
                return Err(FIELDS
                    .at("KeyOffset", at)
                    .fault(Problem::Rule { value, rule: "another entry has the same key" }));
            }
            if [LINKAGE, LINKAGE2].iter().chain(&PATHS).any(|known| *known == key) {
                locator.entries.push((key, value));
            }
        }
        if locator.get(LINKAGE).is_none() {
            let problem = Problem::Rule { value: count.into(), rule: "no key is parent_linkage" };
            return Err(FIELDS.at("KeyValueCount", at + 18).fault(problem));
        }
        Ok(locator)
    }

    /// The item as it stands in the file: each value behind its key, as Windows has them.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = VHDX.to_bytes_le().to_vec();
        bytes.extend(0u16.to_le_bytes());
        bytes.extend((self.entries.len() as u16).to_le_bytes());
        let mut texts = Vec::new();
        let start = HEADER_LEN + self.entries.len() * ENTRY_LEN;
        for (key, value) in &self.entries {
            let (key, value) = (utf16(key, u16::to_le_bytes), utf16(value, u16::to_le_bytes));
            let offset = start + texts.len();
            bytes.extend((offset as u32).to_le_bytes());
            bytes.extend(((offset + key.len()) as u32).to_le_bytes());
            bytes.extend((key.len() as u16).to_le_bytes());
            bytes.extend((value.len() as u16).to_le_bytes());
            texts.extend([key, value].concat());
        }
        bytes.extend(texts);
        bytes
    }

    /// The parent: by its paths in the order of the document, and by the identities that it may have.
    pub fn reference(&self) -> FileReference {
        let paths = PATHS.iter().filter_map(|key| self.get(key)).map(|path| Name::from_windows_path(path.as_bytes()));
        let mut reference = FileReference::from_names("parent", paths.collect(), Some(Name::from(FORMAT_NAME)));
        // The second one is nil unless a merge has begun.
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

/// What children know an image by that has this DataWriteGuid.
pub(super) fn identity(data_write_guid: Uuid) -> Name {
    Name::from(format!("data write GUID {data_write_guid}"))
}

/// A GUID with hyphens and in braces. Its letters are lowercase by the document, and uppercase in its example.
fn parse_linkage(value: &str) -> Option<Uuid> {
    let guid = value.strip_prefix('{')?.strip_suffix('}')?;
    // With hyphens it has 36 letters, and in no other form that is known.
    Uuid::try_parse(guid).ok().filter(|_| guid.len() == 36)
}

/// The keys and values of an item.
struct Texts<'a> {
    /// The whole item.
    bytes: &'a [u8],
    /// Where the entries end.
    start: usize,
    /// Bytes that texts may still have. They have places of their own, so that there are no more than the item has.
    left: usize,
}

impl<'a> Texts<'a> {
    fn behind(start: usize, bytes: &'a [u8]) -> Self {
        Texts { bytes, start, left: bytes.len().saturating_sub(start) }
    }

    /// The key and the value of an entry, which stands at offset `at` of the file.
    fn read(&mut self, entry: &[u8; ENTRY_LEN], at: u64) -> Result<(String, String)> {
        let u32_at = |offset: usize| LittleEndian::read_u32(&entry[offset..]);
        let u16_at = |offset: usize| LittleEndian::read_u16(&entry[offset..]);
        let key = self.text(u32_at(0), FIELDS.at("KeyOffset", at), u16_at(8), FIELDS.at("KeyLength", at + 8))?;
        let value =
            self.text(u32_at(4), FIELDS.at("ValueOffset", at + 4), u16_at(10), FIELDS.at("ValueLength", at + 10))?;
        Ok((key, value))
    }

    fn text(&mut self, offset: u32, offset_field: Field, len: u16, len_field: Field) -> Result<String> {
        let value = u64::from(len);
        len_field.aligned(value, 2)?;
        if len == 0 {
            return Err(len_field.fault(Problem::Rule { value, rule: "a key or value is never empty" }));
        }
        if usize::from(len) > self.left {
            let rule = "with those before it there is more text than the item has room for";
            return Err(len_field.fault(Problem::Rule { value, rule }));
        }
        self.left -= usize::from(len);
        let (value, max) = (u64::from(offset), (self.bytes.len() - usize::from(len)) as u64);
        let bytes = self.bytes.get(offset as usize..).and_then(|rest| rest.get(..len.into()));
        let Some(bytes) = bytes.filter(|_| offset as usize >= self.start) else {
            return Err(offset_field.fault(Problem::Range { value, min: self.start as u64, max }));
        };
        if bytes.as_chunks().0.contains(&[0; 2]) {
            return Err(offset_field.fault(Problem::Rule { value, rule: "there is no NUL in a key or value" }));
        }
        Ok(utf16_text(bytes, u16::from_le_bytes))
    }
}

#[cfg(test)]
mod tests;
