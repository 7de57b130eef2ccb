//! A new volume in the layout of cryptsetup: two headers of 16 KiB, the key slots up to 16 MiB, the guest data.

use std::sync::Arc;

use base64ct::{Base64, Encoding};
use serde_json::json;
use zeroize::Zeroizing;

use super::binary::encode;
use crate::crypto::{Argon2Kind, Kdf, SectorCipher, argon2_passes, pbkdf2_iterations, random, split};
use crate::driver::CreateContext;
use crate::error::{Error, Result, SecretProblem};
use crate::format::luks::FORMAT_NAME;
use crate::format::luks::options::V2Options;
use crate::format::shared::luks::{Parameters, STRIPES};
use crate::io::WriteAt;

/// Length of a header with its JSON, in bytes.
const HEADER_SIZE: u64 = 16 << 10;
/// Offset of the first key slot in bytes.
const KEYSLOTS_AT: u64 = 2 * HEADER_SIZE;
/// Length of the headers and the key slots in bytes: where the guest data begins.
pub(in crate::format::luks) const PAYLOAD: u64 = 16 << 20;
/// Length of a key slot is a multiple of it, in bytes.
const ALIGNMENT: usize = 4096;
/// As many as cryptsetup uses at most.
const LANES: u32 = 4;
const MIN_PASSES: u32 = 4;
const MIN_ITERATIONS: u32 = 1000;
/// The digest has the key of the volume as its passphrase, which cannot be guessed, and takes this part of the time of a slot.
const DIGEST_PART: u32 = 8;

/// A new volume with a random key, and the secret in its first key slot.
pub(in crate::format::luks) struct NewVolume {
    pub cipher: Arc<SectorCipher>,
    /// Both headers.
    headers: [Vec<u8>; 2],
    /// The encrypted stripes of the first slot.
    material: Vec<u8>,
}

impl NewVolume {
    /// # Errors
    /// [`Error::Secret`] without a secret, and if the system has no random numbers or not enough memory for Argon2.
    pub fn new(parameters: &Parameters, options: &V2Options, cx: &CreateContext<'_>) -> Result<NewVolume> {
        let Parameters { spec, key_len, hash, iter_time } = *parameters;
        let Some(secret) = cx.secret else {
            return Err(Error::Secret { format: FORMAT_NAME, problem: SecretProblem::MissingForTarget });
        };
        let with_key = |key: &[u8], sector_size: u64| {
            let cipher = spec.with_key(key, sector_size as usize);
            cipher.ok_or_else(|| Error::unsupported(FORMAT_NAME, "a key of this length"))
        };
        let mut key = Zeroizing::new(vec![0; key_len]);
        let (mut salt, mut digest_salt, mut header_salts, mut uuid) = ([0; 32], [0; 32], [[0; 64]; 2], [0; 16]);
        random(&mut key)?;
        random(&mut salt)?;
        random(&mut digest_salt)?;
        random(&mut uuid)?;
        for salt in &mut header_salts {
            random(salt)?;
        }

        let out_of_memory =
            |_| Error::io("allocating the memory for Argon2", None)(std::io::ErrorKind::OutOfMemory.into());
        let memory_kib = options.memory_kib;
        let passes = argon2_passes(memory_kib, LANES, iter_time, MIN_PASSES).map_err(out_of_memory)?;
        let kdf = Kdf::Argon2 { kind: Argon2Kind::Id, salt: salt.to_vec(), passes, memory_kib, lanes: LANES };
        let slot_key = kdf.derive(secret.as_bytes(), key_len).map_err(out_of_memory)?;
        let mut stripes = split(&key, STRIPES as usize, hash)?;
        let area_len = stripes.len().next_multiple_of(ALIGNMENT);
        stripes.resize(area_len, 0);
        let material = with_key(&slot_key, 512)?.encrypted(&stripes, 0);

        let iterations = pbkdf2_iterations(hash, hash.len(), iter_time / DIGEST_PART, MIN_ITERATIONS);
        let digest_kdf = Kdf::Pbkdf2 { hash, salt: digest_salt.to_vec(), iterations };
        let digest = digest_kdf.derive(&key, hash.len()).map_err(out_of_memory)?;
        let encryption = format!("{}-{}", spec.cipher.name(), spec.mode_name());
        let json = json!({
            "keyslots": { "0": {
                "type": "luks2",
                "key_size": key_len,
                "af": { "type": "luks1", "stripes": STRIPES, "hash": hash.name() },
                "area": {
                    "type": "raw",
                    "offset": KEYSLOTS_AT.to_string(),
                    "size": area_len.to_string(),
                    "encryption": encryption,
                    "key_size": key_len,
                },
                "kdf": {
                    "type": "argon2id",
                    "time": passes,
                    "memory": memory_kib,
                    "cpus": LANES,
                    "salt": Base64::encode_string(&salt),
                },
            } },
            "tokens": {},
            "segments": { "0": {
                "type": "crypt",
                "offset": PAYLOAD.to_string(),
                "size": "dynamic",
                "iv_tweak": "0",
                "encryption": encryption,
                "sector_size": options.sector_size,
            } },
            "digests": { "0": {
                "type": "pbkdf2",
                "keyslots": ["0"],
                "segments": ["0"],
                "hash": hash.name(),
                "iterations": iterations,
                "salt": Base64::encode_string(&digest_salt),
                "digest": Base64::encode_string(&digest),
            } },
            "config": {
                "json_size": (HEADER_SIZE - 4096).to_string(),
                "keyslots_size": (PAYLOAD - KEYSLOTS_AT).to_string(),
            },
        });
        let uuid = uuid::Builder::from_random_bytes(uuid).into_uuid().to_string();
        let text = json.to_string();
        let [first, second] = header_salts;
        let headers = [(0, first), (HEADER_SIZE, second)]
            .map(|(at, salt)| encode(at, HEADER_SIZE, 1, &uuid, &salt, text.as_bytes()));
        Ok(NewVolume { cipher: Arc::new(with_key(&key, options.sector_size)?), headers, material })
    }

    /// Where the guest data begins, in bytes.
    pub fn header_len(&self) -> u64 {
        PAYLOAD
    }

    /// Writes the key slot, then the second header, then the first one.
    ///
    /// # Errors
    /// Errors of the storage.
    pub fn write(&self, out: &dyn WriteAt) -> Result<()> {
        let [first, second] = &self.headers;
        let write =
            |bytes: &[u8], at: u64| out.write_all_at(bytes, at).map_err(Error::io("writing the LUKS header", at));
        write(&self.material, KEYSLOTS_AT)?;
        write(second, HEADER_SIZE)?;
        out.sync().map_err(Error::io("syncing", None))?;
        write(first, 0)
    }
}
