//! The header of LUKS version 1 ("LUKS1 On-Disk Format Specification", version 1.2.3), for `info`. The location of this header is in
//! the encryption header extension; guest data is not decrypted.

use std::ops::Range;

use byteorder::{BigEndian, ByteOrder};

use super::extension::CryptoHeader;
use super::header::{Encryption, Header};
use super::{FIELDS, until_nul};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::info::Value;
use crate::io::ReadAt;
use crate::name::Name;

const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
/// Unit of offsets in the header, in bytes.
const SECTOR: u64 = 512;
/// Bytes of the header.
const LEN: usize = 592;
/// The key slots, of 48 bytes each.
const SLOTS: Range<usize> = 208..LEN;
const SLOT_LEN: usize = 48;
/// State of a key slot in use.
const ACTIVE: u32 = 0x00ac_71f3;

/// Returns the location of the LUKS header, if the image has one.
///
/// # Errors
/// If the image is encrypted with LUKS and has no valid encryption header extension.
pub(super) fn location(header: &Header) -> Result<Option<CryptoHeader>> {
    match &header.extensions.crypto {
        None if header.encryption == Encryption::Luks => {
            let finding = "the encryption header extension with the offset of the LUKS header is missing";
            Err(FIELDS.at("crypt_method", 32).fault(Problem::Conflict { value: 2, finding }))
        }
        extension => extension.clone().transpose().map_err(Error::Corrupt),
    }
}

/// Returns the parameters of the encryption with the keys of qemu-img info; none unless the image is encrypted with LUKS.
///
/// # Errors
/// If the header is missing, out of bounds or invalid.
pub(super) fn describe(file: &dyn ReadAt, header: &Header) -> Result<Vec<(&'static str, Value)>> {
    let Some(CryptoHeader { offset, len, at }) = location(header)?.filter(|_| header.encryption == Encryption::Luks)
    else {
        return Ok(Vec::new());
    };
    let file_len = table::length(file)?;
    FIELDS.at("encryption header offset", at).within(offset, len.max(LEN as u64), file_len)?;
    let mut bytes = [0; LEN];
    table::read(file, &mut bytes, offset)?;
    parse(&bytes, offset)
}

/// Describes the header in `bytes`, which are at file offset `at`.
fn parse(bytes: &[u8; LEN], at: u64) -> Result<Vec<(&'static str, Value)>> {
    let u32_at = |at: usize| BigEndian::read_u32(&bytes[at..]);
    let text_at = |range: Range<usize>| Name::from(until_nul(&bytes[range])).to_text().into_owned();
    if !bytes.starts_with(MAGIC) {
        let rule = "must be 0x4c554b53 (\"LUKS\")";
        return Err(FIELDS.at("LUKS magic", at).fault(Problem::Rule { value: u32_at(0).into(), rule }));
    }
    let version = BigEndian::read_u16(&bytes[6..]);
    if version != 1 {
        let problem = Problem::Range { value: version.into(), min: 1, max: 1 };
        return Err(FIELDS.at("LUKS version", at + 6).fault(problem));
    }
    let (cipher, mode, key_bytes) = (text_at(8..40), text_at(40..72), u64::from(u32_at(108)));
    // "xts-plain64", "cbc-essiv:sha256"
    let (mode, generator) = mode.split_once('-').unwrap_or((&mode, ""));
    let (generator, generator_hash) =
        generator.split_once(':').map_or((generator, None), |(name, hash)| (name, Some(hash)));
    // XTS uses two keys of the size in the cipher's name.
    let key_bits = if mode == "xts" { key_bytes * 8 / 2 } else { key_bytes * 8 };

    let mut properties = vec![("ivgen-alg", generator.into())];
    properties.extend(generator_hash.map(|hash| ("ivgen-hash-alg", hash.into())));
    properties.push(("detached-header", false.into()));
    properties.push(("hash-alg", text_at(72..104).as_str().into()));
    properties.push(("cipher-alg", format!("{cipher}-{key_bits}").as_str().into()));
    properties.push(("uuid", text_at(168..208).as_str().into()));
    properties.push(("cipher-mode", mode.into()));
    properties.push(("slots", Value::List(bytes[SLOTS].chunks_exact(SLOT_LEN).map(slot).collect())));
    properties.push(("payload-offset", (u64::from(u32_at(104)) * SECTOR).into()));
    properties.push(("master-key-iters", u64::from(u32_at(164)).into()));
    Ok(properties)
}

fn slot(bytes: &[u8]) -> Value {
    let number = |at: usize| u64::from(bytes.get(at..at + 4).map_or(0, BigEndian::read_u32));
    let active = number(0) == u64::from(ACTIVE);
    let mut properties = vec![("active", active.into()), ("key-offset", (number(40) * SECTOR).into())];
    if active {
        properties.insert(1, ("iters", number(4).into()));
        properties.push(("stripes", number(44).into()));
    }
    Value::Map(properties)
}
