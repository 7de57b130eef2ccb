//! The header: the parameters of the encryption, and the key slots (section 4).

use crate::error::{Problem, Result};
use crate::format::shared::signature::LUKS;
use crate::format::shared::table::{self, Fields};
use crate::info::Value;
use crate::io::ReadAt;
use crate::name::Name;

/// Unit of offsets in the header, in bytes.
pub(crate) const SECTOR: u64 = 512;
/// Number of key slots.
pub(crate) const SLOTS: usize = 8;
/// Number of stripes of a key, in every known image.
pub(crate) const STRIPES: u32 = 4000;
/// Largest accepted length of a key in bytes. The longest in use are 64.
const MAX_KEY_LEN: u64 = 512;
const SLOTS_AT: usize = 208;
const SLOT_LEN: usize = 48;
const ACTIVE: u32 = 0x00ac_71f3;
const INACTIVE: u32 = 0x0000_dead;

/// A header. The names of algorithms are as stored: unknown ones are described too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// "aes"
    pub cipher: Name,
    /// "xts-plain64", "cbc-essiv:sha256"
    pub mode: Name,
    pub hash: Name,
    /// Offset of the guest data in sectors.
    pub payload_sectors: u32,
    /// Length of the key in bytes, at least 1.
    pub key_len: u32,
    /// Digest of the key, by PBKDF2.
    pub digest: [u8; 20],
    pub digest_salt: [u8; 32],
    /// At least 1.
    pub digest_iterations: u32,
    pub uuid: Name,
    pub slots: [Slot; SLOTS],
}

/// A key slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub active: bool,
    /// At least 1, if it is active.
    pub iterations: u32,
    pub salt: [u8; 32],
    /// Offset of the stripes in sectors.
    pub sector: u32,
    /// Number of stripes; at least 1, if it is active.
    pub stripes: u32,
}

impl Header {
    /// Length in bytes.
    pub const LEN: usize = SLOTS_AT + SLOTS * SLOT_LEN;

    /// Reads the header at file offset `at`.
    ///
    /// # Errors
    /// If it is not valid.
    pub fn read(file: &dyn ReadAt, at: u64, fields: &Fields) -> Result<Header> {
        let mut bytes = [0; Header::LEN];
        table::read(file, &mut bytes, at)?;
        Header::parse(&bytes, at, fields)
    }

    /// Parses the header in `bytes`, which are at file offset `at`.
    pub fn parse(bytes: &[u8; Header::LEN], at: u64, fields: &Fields) -> Result<Header> {
        let fault =
            |name: &'static str, offset: usize, problem| Err(fields.at(name, at + offset as u64).fault(problem));
        if !bytes.starts_with(LUKS) {
            let rule = "must be 0x4c554b53 (\"LUKS\")";
            return fault("LUKS magic", 0, Problem::Rule { value: u32_at(bytes, 0).into(), rule });
        }
        let version = u32_at(bytes, 4) & 0xffff;
        if version != 1 {
            return fault("LUKS version", 6, Problem::Range { value: version.into(), min: 1, max: 1 });
        }
        let key_len = u32_at(bytes, 108);
        if !(1..=MAX_KEY_LEN).contains(&key_len.into()) {
            return fault("key-bytes", 108, Problem::Range { value: key_len.into(), min: 1, max: MAX_KEY_LEN });
        }
        let digest_iterations = u32_at(bytes, 164);
        if digest_iterations == 0 {
            return fault("mk-digest-iter", 164, Problem::Rule { value: 0, rule: "must be at least 1" });
        }
        let mut slots = [Slot { active: false, iterations: 0, salt: [0; 32], sector: 0, stripes: 0 }; SLOTS];
        for (index, slot) in slots.iter_mut().enumerate() {
            let start = SLOTS_AT + index * SLOT_LEN;
            let state = u32_at(bytes, start);
            *slot = Slot {
                active: state == ACTIVE,
                iterations: u32_at(bytes, start + 4),
                salt: array_at(bytes, start + 8),
                sector: u32_at(bytes, start + 40),
                stripes: u32_at(bytes, start + 44),
            };
            // Programs write 0 to the state of a slot that was never used, too.
            if ![ACTIVE, INACTIVE, 0].contains(&state) {
                let rule = "must be 0x00ac71f3 (active) or 0x0000dead";
                return fault("key slot state", start, Problem::Rule { value: state.into(), rule });
            }
            if slot.active && (slot.iterations == 0 || slot.stripes == 0) {
                let rule = "must have at least 1 iteration and 1 stripe";
                return fault("active key slot", start, Problem::Rule { value: state.into(), rule });
            }
        }
        let text = |offset: usize, len: usize| {
            let field = bytes.get(offset..offset + len).unwrap_or_default();
            Name::from(field.split(|byte| *byte == 0).next().unwrap_or_default())
        };
        Ok(Header {
            cipher: text(8, 32),
            mode: text(40, 32),
            hash: text(72, 32),
            payload_sectors: u32_at(bytes, 104),
            key_len,
            digest: array_at(bytes, 112),
            digest_salt: array_at(bytes, 132),
            digest_iterations,
            uuid: text(168, 40),
            slots,
        })
    }

    /// Encodes the header. Names are cut off to the length of their fields.
    pub fn encode(&self) -> [u8; Header::LEN] {
        let mut bytes = [0; Header::LEN];
        let mut put = |at: usize, value: &[u8]| {
            bytes.iter_mut().skip(at).zip(value).for_each(|(byte, value)| *byte = *value);
        };
        put(0, LUKS);
        put(6, &1_u16.to_be_bytes());
        for (at, len, name) in
            [(8, 32, &self.cipher), (40, 32, &self.mode), (72, 32, &self.hash), (168, 40, &self.uuid)]
        {
            // The last byte is NUL.
            let name = name.as_bytes();
            put(at, name.get(..name.len().min(len - 1)).unwrap_or_default());
        }
        put(104, &self.payload_sectors.to_be_bytes());
        put(108, &self.key_len.to_be_bytes());
        put(112, &self.digest);
        put(132, &self.digest_salt);
        put(164, &self.digest_iterations.to_be_bytes());
        for (index, slot) in self.slots.iter().enumerate() {
            let start = SLOTS_AT + index * SLOT_LEN;
            put(start, &if slot.active { ACTIVE } else { INACTIVE }.to_be_bytes());
            put(start + 4, &slot.iterations.to_be_bytes());
            put(start + 8, &slot.salt);
            put(start + 40, &slot.sector.to_be_bytes());
            put(start + 44, &slot.stripes.to_be_bytes());
        }
        bytes
    }

    /// Offset of the guest data in bytes.
    pub fn payload_offset(&self) -> u64 {
        u64::from(self.payload_sectors) * SECTOR
    }

    /// The parameters with the keys of qemu-img info.
    pub fn describe(&self, is_detached: bool) -> Vec<(&'static str, Value)> {
        let (cipher, mode) = (self.cipher.to_text(), self.mode.to_text());
        let (mode, generator) = mode.split_once('-').unwrap_or((&mode, ""));
        let (generator, generator_hash) =
            generator.split_once(':').map_or((generator, None), |(name, hash)| (name, Some(hash)));
        // XTS uses two keys of the size in the cipher's name.
        let key_bits = u64::from(self.key_len) * if mode == "xts" { 4 } else { 8 };
        let mut properties = vec![("ivgen-alg", generator.into())];
        properties.extend(generator_hash.map(|hash| ("ivgen-hash-alg", hash.into())));
        properties.push(("detached-header", is_detached.into()));
        properties.push(("hash-alg", Value::Text(self.hash.clone())));
        properties.push(("cipher-alg", format!("{cipher}-{key_bits}").as_str().into()));
        properties.push(("uuid", Value::Text(self.uuid.clone())));
        properties.push(("cipher-mode", mode.into()));
        properties.push(("slots", Value::List(self.slots.iter().map(Slot::describe).collect())));
        properties.push(("payload-offset", self.payload_offset().into()));
        properties.push(("master-key-iters", u64::from(self.digest_iterations).into()));
        properties
    }
}

impl Slot {
    /// Offset of the stripes in bytes, from the header on.
    pub fn offset(&self) -> u64 {
        u64::from(self.sector) * SECTOR
    }

    fn describe(&self) -> Value {
        let mut properties = vec![("active", self.active.into()), ("key-offset", self.offset().into())];
        if self.active {
            properties.insert(1, ("iters", u64::from(self.iterations).into()));
            properties.push(("stripes", u64::from(self.stripes).into()));
        }
        Value::Map(properties)
    }
}

fn array_at<const N: usize>(bytes: &[u8; Header::LEN], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

fn u32_at(bytes: &[u8; Header::LEN], at: usize) -> u32 {
    u32::from_be_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIELDS: Fields = Fields("luks");

    fn slot() -> impl Strategy<Value = Slot> {
        (any::<bool>(), 1u32.., any::<[u8; 32]>(), any::<u32>(), 1u32..)
            .prop_map(|(active, iterations, salt, sector, stripes)| Slot { active, iterations, salt, sector, stripes })
    }

    fn name(len: usize) -> impl Strategy<Value = Name> {
        prop::collection::vec(1u8.., 0..len).prop_map(|name| Name::from(&name[..]))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn headers_round_trip(
            (cipher, mode, hash, uuid) in (name(32), name(32), name(32), name(40)),
            (payload_sectors, key_len, digest_iterations) in (any::<u32>(), 1u32..=512, 1u32..),
            (digest, digest_salt) in (any::<[u8; 20]>(), any::<[u8; 32]>()),
            slots in prop::array::uniform8(slot()),
        ) {
            let header = Header {
                cipher, mode, hash, payload_sectors, key_len, digest, digest_salt, digest_iterations, uuid, slots,
            };
            prop_assert_eq!(Header::parse(&header.encode(), 0, &FIELDS).unwrap(), header);
        }

        #[test]
        fn any_bytes_are_a_header_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), Header::LEN)) {
            bytes[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
            let _ = Header::parse(bytes.first_chunk().unwrap(), 0, &FIELDS).map(|header| header.describe(false));
        }
    }

    fn sample() -> Header {
        let slot = Slot { active: true, iterations: 1, salt: [0; 32], sector: 8, stripes: 1 };
        Header {
            cipher: Name::from("aes"),
            mode: Name::from("xts-plain64"),
            hash: Name::from("sha256"),
            payload_sectors: 4040,
            key_len: 64,
            digest: [0; 20],
            digest_salt: [0; 32],
            digest_iterations: 1,
            uuid: Name::default(),
            slots: [slot; SLOTS],
        }
    }

    #[test]
    fn the_longest_key_and_the_longest_texts() {
        let longest = Name::from(&[b'x'; 40][..]);
        let header = Header { cipher: longest.clone(), uuid: longest, key_len: 512, ..sample() };
        let mut bytes = header.encode();
        let parsed = Header::parse(&bytes, 0, &FIELDS).unwrap();
        // They are written with a zero at the end.
        assert_eq!((parsed.cipher, parsed.uuid), (Name::from(&[b'x'; 31][..]), Name::from(&[b'x'; 39][..])));
        assert_eq!((parsed.mode, parsed.key_len), (sample().mode, 512));
        // Without it, the next field is not part of a text.
        bytes[39] = b'x';
        assert_eq!(Header::parse(&bytes, 0, &FIELDS).unwrap().cipher, Name::from(&[b'x'; 32][..]));
    }

    #[test]
    fn the_key_of_xts_is_two_keys() {
        let cipher = |mode: &str| {
            let properties = Header { mode: Name::from(mode), ..sample() }.describe(false);
            properties.into_iter().find(|(name, _)| *name == "cipher-alg").unwrap().1
        };
        assert_eq!((cipher("xts-plain64"), cipher("cbc-plain64")), ("aes-256".into(), "aes-512".into()));
    }

    #[test]
    fn invalid_fields() {
        let header = sample();
        for (at, value, message) in [
            (0, 0, "luks: corrupt image at file offset 0x1000: LUKS magic is 0x0, but must be 0x4c554b53 (\"LUKS\")"),
            (4, 0xbabe_0003, "0x1006: LUKS version is 3, outside 1..=1"),
            (108, 0, "0x106c: key-bytes is 0, outside 1..=512"),
            (108, 513, "0x106c: key-bytes is 513, outside 1..=512"),
            (164, 0, "0x10a4: mk-digest-iter is 0x0, but must be at least 1"),
            (208 + 48, 1, "0x1100: key slot state is 0x1, but must be 0x00ac71f3 (active) or 0x0000dead"),
            (212, 0, "0x10d0: active key slot is 0xac71f3, but must have at least 1 iteration and 1 stripe"),
            (252, 0, "0x10d0: active key slot is 0xac71f3, but must have at least 1 iteration and 1 stripe"),
        ] {
            let mut bytes = header.encode();
            bytes[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
            let error = Header::parse(&bytes, 0x1000, &FIELDS).unwrap_err().to_string();
            assert!(error.ends_with(message), "{error}");
        }
    }
}
