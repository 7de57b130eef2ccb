//! The JSON metadata (section 3), as far as it is needed to read a volume.

use std::ops::Range;

use base64ct::{Base64, Encoding};
use serde_json::Value as Json;

use super::HeaderCopy;
use crate::crypto::{Argon2Kind, CipherSpec, Hash, Kdf};
use crate::driver::OpenContext;
use crate::error::{Error, Problem, Result};
use crate::format::luks::{FIELDS, FORMAT_NAME};
use crate::format::shared::luks::{check_area, cipher_name, unsupported_cipher};
use crate::info::Value;

/// Memory for a byte of JSON: an empty array of two bytes takes 32 bytes, with a table that grows by doubling.
const MEMORY_PER_BYTE: u64 = 48;
/// Largest length of a key in bytes.
const MAX_KEY_LEN: u64 = 512;

/// The metadata of a volume that can be read.
#[derive(Debug)]
pub(in crate::format::luks) struct Metadata {
    pub segment: Segment,
    /// The key slots with keys of the segment, each with its number; the errors of those that cannot be used.
    pub keyslots: Vec<(String, Result<Keyslot>)>,
    pub digest: Digest,
}

/// The encrypted part of the file.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::format::luks) struct Segment {
    /// In bytes.
    pub offset: u64,
    /// In bytes; `None` if it ends with the file.
    pub size: Option<u64>,
    /// The number of the first sector in initialization vectors, in units of 512 bytes.
    pub iv_tweak: u64,
    /// "aes-xts-plain64"
    pub encryption: String,
    /// In bytes, a power of two from 512 to 4096.
    pub sector_size: u64,
}

/// A key slot.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::format::luks) struct Keyslot {
    /// Length of the key of the volume in bytes.
    pub key_len: usize,
    pub stripes: u64,
    /// The hash of the anti-forensic splitter.
    pub hash: Hash,
    /// Offset of the stripes in bytes.
    pub offset: u64,
    /// Length of the area in bytes, at least that of the stripes in whole sectors.
    pub size: u64,
    pub area: CipherSpec,
    /// Length of the key of the area in bytes.
    pub area_key_len: usize,
    pub kdf: Kdf,
}

/// The digest that recognizes the key of the segment: a PBKDF2 with the key as its passphrase.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::format::luks) struct Digest {
    pub kdf: Kdf,
    pub digest: Vec<u8>,
}

/// The JSON of a header, and where it is.
#[derive(Clone, Copy)]
struct Reader {
    at: u64,
}

impl Metadata {
    /// Parses the JSON of the header.
    ///
    /// # Errors
    /// [`Error::Unsupported`] names what this crate does not implement.
    pub fn parse(header: &HeaderCopy, cx: &OpenContext<'_>) -> Result<Metadata> {
        let reader = Reader { at: header.json_at() };
        cx.budget.take(header.json.len() as u64 * MEMORY_PER_BYTE, FORMAT_NAME, "LUKS2 metadata", reader.at)?;
        let json: Json = serde_json::from_slice(&header.json).map_err(|e| {
            let finding = "the text is not valid JSON from this column of the line on";
            FIELDS.at("LUKS2 metadata", reader.at).fault(Problem::Conflict { value: e.column() as u64, finding })
        })?;
        reader.check_requirements(&json)?;
        let (segment_id, segment) = reader.segment(&json)?;
        let (digest, slots) = reader.digest(&json, &segment_id)?;
        let all = reader.object(&json, "keyslots")?;
        // Between the headers and the guest data.
        let end = if cx.detached_header.is_some() { u64::MAX } else { segment.offset };
        let areas = 2 * header.size..end;
        let keyslots = slots
            .into_iter()
            .map(|id| {
                let slot = all.get(&id).ok_or_else(|| reader.missing("keyslot of a digest"));
                let slot = slot.and_then(|slot| reader.keyslot(slot, areas.clone()));
                (id, slot)
            })
            .collect();
        Ok(Metadata { segment, keyslots, digest })
    }

    /// The properties for `info`.
    pub fn describe(&self, header: &HeaderCopy, is_detached: bool) -> Vec<(&'static str, Value)> {
        let mut parts = self.segment.encryption.splitn(3, '-');
        let mut part = || parts.next().unwrap_or_default();
        let (cipher, mode, generator) = (part(), part(), part());
        // The length of the key is in the key slots only.
        let key_len = self.keyslots.iter().find_map(|(_, slot)| slot.as_ref().ok()).map(|slot| slot.key_len);
        let algorithm = match key_len {
            Some(len) => format!("{cipher}-{}", len * if mode == "xts" { 4 } else { 8 }),
            None => cipher.to_owned(),
        };
        let mut properties: Vec<(&'static str, Value)> = vec![
            ("version", 2.into()),
            ("detached-header", is_detached.into()),
            ("ivgen-alg", generator.into()),
            ("cipher-alg", algorithm.as_str().into()),
            ("cipher-mode", mode.into()),
            ("uuid", Value::Text(header.uuid.clone())),
            ("sector-size", self.segment.sector_size.into()),
            ("payload-offset", self.segment.offset.into()),
        ];
        if !header.label.as_bytes().is_empty() {
            properties.push(("label", Value::Text(header.label.clone())));
        }
        let slots = self.keyslots.iter().filter_map(|(id, slot)| slot.as_ref().ok().map(|slot| slot.describe(id)));
        properties.push(("slots", Value::List(slots.collect())));
        properties
    }
}

impl Keyslot {
    fn describe(&self, id: &str) -> Value {
        let mut properties: Vec<(&'static str, Value)> = vec![("id", id.into()), ("active", true.into())];
        match &self.kdf {
            Kdf::Pbkdf2 { hash, iterations, .. } => {
                properties.push(("kdf", "pbkdf2".into()));
                properties.push(("hash-alg", hash.name().into()));
                properties.push(("iters", u64::from(*iterations).into()));
            }
            Kdf::Argon2 { kind, passes, memory_kib, lanes, .. } => {
                properties.push(("kdf", if *kind == Argon2Kind::I { "argon2i" } else { "argon2id" }.into()));
                properties.push(("time", u64::from(*passes).into()));
                properties.push(("memory-kib", u64::from(*memory_kib).into()));
                properties.push(("cpus", u64::from(*lanes).into()));
            }
        }
        properties.push(("key-offset", self.offset.into()));
        properties.push(("stripes", self.stripes.into()));
        Value::Map(properties)
    }
}

impl Reader {
    fn missing(self, name: &'static str) -> Error {
        FIELDS.at(name, self.at).fault(Problem::Missing)
    }

    fn object(self, json: &Json, name: &'static str) -> Result<serde_json::Map<String, Json>> {
        json.get(name).and_then(Json::as_object).cloned().ok_or_else(|| self.missing(name))
    }

    fn text<'a>(self, json: &'a Json, name: &'static str) -> Result<&'a str> {
        json.get(name).and_then(Json::as_str).ok_or_else(|| self.missing(name))
    }

    /// A number, which is a decimal string if it may have 64 bits.
    fn number(self, json: &Json, name: &'static str) -> Result<u64> {
        let value = json.get(name);
        let number = value.and_then(|value| value.as_u64().or_else(|| value.as_str()?.parse().ok()));
        number.ok_or_else(|| self.missing(name))
    }

    fn number_in(self, json: &Json, name: &'static str, min: u64, max: u64) -> Result<u64> {
        let value = self.number(json, name)?;
        match (min..=max).contains(&value) {
            true => Ok(value),
            false => Err(FIELDS.at(name, self.at).fault(Problem::Range { value, min, max })),
        }
    }

    fn u32(self, json: &Json, name: &'static str) -> Result<u32> {
        self.number_in(json, name, 1, u32::MAX.into()).map(|value| u32::try_from(value).unwrap_or(u32::MAX))
    }

    fn key_len(self, json: &Json) -> Result<usize> {
        self.number_in(json, "key_size", 1, MAX_KEY_LEN).map(|len| len as usize)
    }

    fn bytes(self, json: &Json, name: &'static str) -> Result<Vec<u8>> {
        Base64::decode_vec(self.text(json, name)?).map_err(|_| self.missing(name))
    }

    fn hash(self, json: &Json) -> Result<Hash> {
        let name = self.text(json, "hash")?;
        Hash::from_name(name).ok_or_else(|| unsupported(format!("hash {name}")))
    }

    /// Requirements of programs that write to the volume, such as a re-encryption in progress.
    fn check_requirements(self, json: &Json) -> Result<()> {
        let config = json.get("config").ok_or_else(|| self.missing("config"))?;
        let unknown = || unsupported("requirements of unknown type".to_owned());
        let Some(requirements) = config.get("requirements") else { return Ok(()) };
        let Some(mandatory) = requirements.as_object().ok_or_else(unknown)?.get("mandatory") else { return Ok(()) };
        match mandatory.as_array().ok_or_else(unknown)?.first() {
            None => Ok(()),
            Some(first) => Err(first.as_str().map_or_else(unknown, |name| unsupported(format!("requirement {name}")))),
        }
    }

    fn segment(self, json: &Json) -> Result<(String, Segment)> {
        let segments = self.object(json, "segments")?;
        if segments.len() > 1 {
            return Err(unsupported(format!("{} segments, as during a re-encryption", segments.len())));
        }
        let (id, segment) = segments.into_iter().next().ok_or_else(|| self.missing("segments"))?;
        let kind = self.text(&segment, "type")?;
        if kind != "crypt" {
            return Err(unsupported(format!("segment of type {kind}")));
        }
        if let Some(integrity) = segment.get("integrity") {
            let kind = integrity.get("type").and_then(Json::as_str).unwrap_or("of unknown type");
            return Err(unsupported(format!("integrity protection ({kind})")));
        }
        let size = match self.text(&segment, "size")? {
            "dynamic" => None,
            _ => Some(self.number(&segment, "size")?),
        };
        let sector_size = self.number_in(&segment, "sector_size", 512, 4096)?;
        if !sector_size.is_power_of_two() {
            let rule = "must be a power of two";
            return Err(FIELDS.at("sector_size", self.at).fault(Problem::Rule { value: sector_size, rule }));
        }
        let offset = self.number(&segment, "offset")?;
        FIELDS.at("segment offset", self.at).aligned(offset, 512)?;
        let iv_tweak = self.number(&segment, "iv_tweak")?;
        let encryption = self.text(&segment, "encryption")?.to_owned();
        Ok((id, Segment { offset, size, iv_tweak, encryption, sector_size }))
    }

    /// The digest of the segment, and the key slots with a key for it.
    fn digest(self, json: &Json, segment: &str) -> Result<(Digest, Vec<String>)> {
        let lists = |digest: &Json, name: &str| -> Vec<String> {
            let list = digest.get(name).and_then(Json::as_array).into_iter().flatten();
            list.filter_map(|id| id.as_str().map(str::to_owned)).collect()
        };
        let digests = self.object(json, "digests")?;
        let found = digests.values().find(|digest| lists(digest, "segments").iter().any(|id| id == segment));
        let digest = found.ok_or_else(|| self.missing("digest of the segment"))?;
        let kind = self.text(digest, "type")?;
        if kind != "pbkdf2" {
            return Err(unsupported(format!("digest of type {kind}")));
        }
        let slots = lists(digest, "keyslots");
        let kdf = self.pbkdf2(digest)?;
        Ok((Digest { kdf, digest: self.bytes(digest, "digest")? }, slots))
    }

    /// A key slot, whose area must be in `areas`.
    fn keyslot(self, slot: &Json, areas: Range<u64>) -> Result<Keyslot> {
        let kind = self.text(slot, "type")?;
        if kind != "luks2" {
            return Err(unsupported(format!("keyslot of type {kind}")));
        }
        let member = |name: &'static str| slot.get(name).ok_or_else(|| self.missing(name));
        let (area, kdf, splitter) = (member("area")?, member("kdf")?, member("af")?);
        let key_len = self.key_len(slot)?;
        let kind = self.text(splitter, "type")?;
        if kind != "luks1" {
            return Err(unsupported(format!("anti-forensic splitter of type {kind}")));
        }
        let stripes = self.number_in(splitter, "stripes", 1, 1 << 20)?;
        let (offset, size) = (self.number(area, "offset")?, self.number(area, "size")?);
        let needed = (key_len as u64 * stripes).next_multiple_of(512);
        let field = FIELDS.at("keyslot area", self.at);
        field.within(0, needed, size)?;
        check_area(offset..offset.saturating_add(size), areas, field)?;
        let area_key_len = self.key_len(area)?;
        Ok(Keyslot {
            key_len,
            stripes,
            hash: self.hash(splitter)?,
            offset,
            size,
            area: cipher(self.text(area, "encryption")?, area_key_len)?,
            area_key_len,
            kdf: self.kdf(kdf)?,
        })
    }

    fn kdf(self, kdf: &Json) -> Result<Kdf> {
        let kind = match self.text(kdf, "type")? {
            "pbkdf2" => return self.pbkdf2(kdf),
            "argon2i" => Argon2Kind::I,
            "argon2id" => Argon2Kind::Id,
            other => return Err(unsupported(format!("key derivation {other}"))),
        };
        let (passes, memory_kib, lanes) = (self.u32(kdf, "time")?, self.u32(kdf, "memory")?, self.u32(kdf, "cpus")?);
        Ok(Kdf::Argon2 { kind, salt: self.bytes(kdf, "salt")?, passes, memory_kib, lanes })
    }

    fn pbkdf2(self, kdf: &Json) -> Result<Kdf> {
        let iterations = self.u32(kdf, "iterations")?;
        Ok(Kdf::Pbkdf2 { hash: self.hash(kdf)?, salt: self.bytes(kdf, "salt")?, iterations })
    }
}

/// The cipher of a text like "aes-xts-plain64", with a key of `key_len` bytes.
pub(super) fn cipher(encryption: &str, key_len: usize) -> Result<CipherSpec> {
    match encryption.split_once('-') {
        Some((cipher, mode)) => cipher_name(FORMAT_NAME, cipher, mode, key_len),
        None => Err(unsupported_cipher(FORMAT_NAME, encryption, "", key_len as u64)),
    }
}

/// The error for a feature, whose name comes from the image.
fn unsupported(feature: String) -> Error {
    Error::unsupported(FORMAT_NAME, crate::name::Name::from(feature).to_string())
}
