//! A new volume, in the layout of qemu: the header, eight key slots with 4000 stripes at multiples of 4096 bytes, the guest data.

use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::{Header, Parameters, SECTOR, SLOTS, STRIPES, Slot};
use crate::crypto::{CipherSpec, Hash, Kdf, SectorCipher, pbkdf2_iterations, random, split};
use crate::error::{Error, Result, SecretProblem};
use crate::io::WriteAt;
use crate::limits::{LimitName, Limits};
use crate::name::Name;
use crate::secret::Secret;

/// Alignment of key slots and of the guest data, in sectors.
const ALIGNMENT: u32 = 8;
/// Least number of iterations ("LUKS1 On-Disk Format Specification", section 3).
const MIN_ITERATIONS: u32 = 1000;
/// The digest has the key of the volume as its passphrase, which cannot be guessed, and takes this part of the time of a slot.
const DIGEST_PART: u32 = 8;

/// A new volume with a random key, and the secret in its first key slot.
pub(crate) struct NewVolume {
    pub cipher: Arc<SectorCipher>,
    header: Header,
    /// The encrypted stripes of the first slot.
    material: Vec<u8>,
}

impl NewVolume {
    /// # Errors
    /// [`Error::Secret`] without a secret, and if the system has no random numbers.
    pub fn new(format: &'static str, parameters: &Parameters, secret: Option<&Secret>) -> Result<NewVolume> {
        let Parameters { spec, key_len, hash, iter_time } = *parameters;
        let Some(secret) = secret else {
            return Err(Error::Secret { format, problem: SecretProblem::MissingForTarget });
        };
        let with_key = |key: &[u8]| {
            spec.with_key(key, SECTOR as usize).ok_or_else(|| Error::unsupported(format, "a key of this length"))
        };
        let mut key = Zeroizing::new(vec![0; key_len]);
        let (mut digest_salt, mut uuid) = ([0; 32], [0; 16]);
        random(&mut key)?;
        random(&mut digest_salt)?;
        random(&mut uuid)?;

        let slots: [Slot; SLOTS] = std::array::from_fn(|index| {
            let sector = slot_sector(key_len, index as u32);
            Slot { active: false, iterations: 0, salt: [0; 32], sector, stripes: STRIPES }
        });
        let iterations = iterations_for(format, hash, key_len, iter_time)?;
        let mut header = Header {
            cipher: Name::from(spec.cipher.name()),
            mode: Name::from(spec.mode_name()),
            hash: Name::from(hash.name()),
            payload_sectors: slot_sector(key_len, SLOTS as u32),
            key_len: key_len as u32,
            digest: [0; 20],
            digest_salt,
            digest_iterations: (iterations / DIGEST_PART).max(MIN_ITERATIONS),
            uuid: Name::from(uuid::Builder::from_random_bytes(uuid).into_uuid().to_string()),
            slots,
        };
        header.digest = header.digest_of(&key, hash);
        let material = KeyMaterial::new(format, &key, secret, (spec, hash, iterations))?;
        if let Some(first) = header.slots.first_mut() {
            *first = Slot { active: true, iterations, salt: material.salt, ..*first };
        }
        Ok(NewVolume { cipher: Arc::new(with_key(&key)?), header, material: material.bytes })
    }

    /// Length of the header and the key slots in bytes: where the guest data begins.
    pub fn header_len(&self) -> u64 {
        self.header.payload_offset()
    }

    /// Writes the key slots and then the header, which is at byte `start` of `out`.
    ///
    /// # Errors
    /// Errors of the storage.
    pub fn write(&self, out: &dyn WriteAt, start: u64) -> Result<()> {
        let offset = start + self.header.slots.first().map_or(0, Slot::offset);
        out.write_all_at(&self.material, offset).map_err(Error::io("writing a key slot", offset))?;
        out.sync().map_err(Error::io("syncing", None))?;
        out.write_all_at(&self.header.encode(), start).map_err(Error::io("writing the LUKS header", start))
    }
}

/// What a key slot holds.
pub(super) struct KeyMaterial {
    /// The encrypted stripes, in whole sectors.
    pub bytes: Vec<u8>,
    pub salt: [u8; 32],
}

impl KeyMaterial {
    /// The key of a volume, encrypted with a secret.
    pub fn new(
        format: &'static str,
        key: &[u8],
        secret: &Secret,
        (spec, hash, iterations): (CipherSpec, Hash, u32),
    ) -> Result<KeyMaterial> {
        let mut salt = [0; 32];
        random(&mut salt)?;
        let kdf = Kdf::Pbkdf2 { hash, salt: salt.to_vec(), iterations };
        let slot_key = kdf.derive(secret.as_bytes(), key.len()).unwrap_or_default();
        let mut stripes = split(key, STRIPES as usize, hash)?;
        let whole = stripes.len().next_multiple_of(SECTOR as usize);
        stripes.resize(whole, 0);
        let cipher = spec.with_key(&slot_key, SECTOR as usize);
        let cipher = cipher.ok_or_else(|| Error::unsupported(format, "a key of this length"))?;
        Ok(KeyMaterial { bytes: cipher.encrypted(&stripes, 0), salt })
    }
}

/// Length of the header and the key slots of a new volume in bytes.
pub(crate) fn new_header_len(parameters: &Parameters) -> u64 {
    u64::from(slot_sector(parameters.key_len, SLOTS as u32)) * SECTOR
}

/// Offset of key slot `index` in sectors. The guest data follows the last one.
fn slot_sector(key_len: usize, index: u32) -> u32 {
    ALIGNMENT + index * stripes_len(key_len).div_ceil(SECTOR as u32).next_multiple_of(ALIGNMENT)
}

/// Bytes of all stripes of a key.
fn stripes_len(key_len: usize) -> u32 {
    key_len as u32 * STRIPES
}

/// The number of iterations with which a try of a secret takes `iter_time` on this machine.
///
/// # Errors
/// [`Error::Limit`] if readers refuse that many by default.
pub(super) fn iterations_for(format: &'static str, hash: Hash, key_len: usize, iter_time: Duration) -> Result<u32> {
    let (iterations, limit) =
        (pbkdf2_iterations(hash, key_len, iter_time, MIN_ITERATIONS), Limits::default().pbkdf2_iterations);
    match u64::from(iterations) {
        value if value > limit => Err(Error::Limit {
            name: Some(LimitName::Pbkdf2Iterations),
            format,
            field: "iterations of PBKDF2 in the time of iter-time".into(),
            at: None,
            value,
            limit,
        }),
        _ => Ok(iterations),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::with_pinned_random;
    use crate::driver::OpenContext;
    use crate::format::shared::table::Fields;
    use crate::io::MemFile;
    use crate::limits::{Budget, Limits};
    use crate::options::Options;

    const FIELDS: Fields = Fields("luks");

    fn parameters(list: &str) -> Parameters {
        let mut options = Options::new();
        options.add_list(list);
        options.set("iter-time", "1");
        Parameters::parse("luks", "", &options).unwrap()
    }

    fn file(list: &str, secret: &str) -> MemFile {
        let volume = NewVolume::new("luks", &parameters(list), Some(&Secret::new(secret))).unwrap();
        let file = MemFile::new();
        volume.write(&file, 512).unwrap();
        file
    }

    #[test]
    fn the_layout_is_that_of_qemu() {
        for (list, key_len, offsets, payload) in [
            ("", 64, [4096, 262_144, 520_192], 4040),
            ("cipher-mode=cbc", 32, [4096, 135_168, 266_240], 2056),
            ("cipher-mode=cbc,cipher-alg=aes-128", 16, [4096, 69_632, 135_168], 1032),
        ] {
            let header = Header::read(&file(list, "x"), 512, &FIELDS).unwrap();
            assert_eq!((header.key_len, header.payload_sectors), (key_len, payload));
            let found: Vec<_> = header.slots[..3].iter().map(Slot::offset).collect();
            assert_eq!(found, offsets);
            assert_eq!(header.slots.iter().filter(|slot| slot.active).count(), 1);
            assert!(header.digest_iterations <= header.slots[0].iterations);
        }
    }

    #[test]
    fn one_of_several_secrets_unlocks_it() {
        let (limits, budget) = (Limits::default(), Budget::new(8 << 20));
        let file = file("cipher-alg=serpent-128,hash-alg=sha1", "right");
        let header = Header::read(&file, 512, &FIELDS).unwrap();
        let unlock = |secrets: &[&str], limits: &Limits| {
            let secrets: Vec<_> = secrets.iter().map(|secret| Secret::new(*secret)).collect();
            let cx = OpenContext { secrets: &secrets, ..OpenContext::new(limits, &budget) };
            header.unlock(&file, 512..u64::MAX, &cx, &FIELDS).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(unlock(&["wrong", "right"], &limits), Ok(()));
        assert_eq!(unlock(&["wrong", "right\n", ""], &limits).unwrap_err(), "luks: no secret given unlocks a key slot");
        assert_eq!(unlock(&[], &limits).unwrap_err(), "luks: the image is encrypted, and no secret is given");
        let low = Limits { pbkdf2_iterations: 999, ..Limits::default() };
        let error = unlock(&["right"], &low).unwrap_err();
        assert!(
            error.starts_with("luks: mk-digest-iter at file offset 0x2a4 is")
                && error.ends_with("999 (pbkdf2-iterations)"),
            "{error}"
        );
    }

    #[test]
    fn each_slot_is_checked_where_it_is() {
        let file = file("", "x");
        let mut header = Header::read(&file, 512, &FIELDS).unwrap();
        header.slots.swap(0, 1);
        header.slots[1].sector = 0;
        let (limits, budget, secrets) = (Limits::default(), Budget::new(8 << 20), [Secret::new("x")]);
        let cx = OpenContext { secrets: &secrets, ..OpenContext::new(&limits, &budget) };
        let error = header.unlock(&file, 512..u64::MAX, &cx, &FIELDS).map(drop).unwrap_err().to_string();
        // 512 + 208, the second slot of 48 bytes, and its field of the material.
        assert!(error.contains("0x328: key material points to 0x200, which overlaps the header"), "{error}");
    }

    #[test]
    fn the_time_of_a_try_is_not_less_than_a_thousand_iterations() {
        let iterations = |time| iterations_for("luks", Hash::Sha256, 32, time);
        assert_eq!(iterations(Duration::ZERO).unwrap(), MIN_ITERATIONS);
        assert!(
            matches!(iterations(Duration::from_secs(1 << 40)), Err(Error::Limit { value, .. }) if value == u64::from(u32::MAX))
        );
    }

    #[test]
    fn keys_are_random_unless_a_test_pins_them() {
        assert_ne!(file("", "x").to_vec(), file("", "x").to_vec());
        let pinned =
            || with_pinned_random(|| NewVolume::new("luks", &parameters(""), Some(&Secret::new("x"))).unwrap());
        assert_eq!(pinned().header.digest_salt, pinned().header.digest_salt);
        assert_ne!(pinned().header.digest_salt, [0; 32]);
        let error = NewVolume::new("luks", &parameters(""), None).err().unwrap();
        assert_eq!(error.kind().as_str(), "secret");
    }
}
