//! Key slots: finding the key of the volume with a secret (section 3, "Master key recovery").

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::{Header, Slot};
use crate::crypto::{CipherSpec, Hash, Kdf, SectorCipher, merge};
use crate::driver::OpenContext;
use crate::error::{Error, Problem, Result, SecretProblem};
use crate::format::shared::table::{self, Field, Fields};
use crate::io::ReadAt;
use crate::limits::LimitName;
use crate::name::Name;

/// Tries of secrets with the key slots of a volume. What is wrong with one slot does not prevent another one from being used, and is
/// reported if none is unlocked.
pub(crate) struct Attempts {
    format: &'static str,
    has_secret: bool,
    /// The cost of all key derivations so far, in thousandths of the largest cost of one.
    cost: Cell<u64>,
    /// Why the first slot that cannot be used cannot.
    problem: Option<Error>,
}

impl Attempts {
    /// Without a secret, the slots are checked all the same: their cost is in the header.
    pub fn new(format: &'static str, cx: &OpenContext<'_>) -> Attempts {
        Attempts { format, has_secret: !cx.secrets.is_empty(), cost: Cell::new(0), problem: None }
    }

    /// Adds a key derivation of cost `cost`, where a single one may cost `limit`. A volume may have many slots, and there may be many secrets.
    ///
    /// # Errors
    /// [`Error::Limit`] if it takes too long to try them all, and [`Error::Cancelled`].
    pub fn add_cost(&self, cost: u64, limit: u64, cx: &OpenContext<'_>) -> Result<()> {
        const MOST: u64 = 4;
        cx.check_cancelled()?;
        self.cost.set(self.cost.get().saturating_add(cost.saturating_mul(1000) / limit.max(1)));
        if self.cost.get() > 1000 * MOST {
            let field = "cost of trying the key slots, in key derivations of the largest cost allowed";
            let value = self.cost.get().div_ceil(1000);
            return Err(Error::limit(self.format, field, value, MOST));
        }
        Ok(())
    }

    /// The result of `attempt`, unless the slot is to blame for its failure.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn note<T>(&mut self, attempt: Result<Option<T>>) -> Result<Option<T>> {
        match attempt {
            Err(error @ (Error::Corrupt(_) | Error::Limit { .. } | Error::Unsupported { .. })) => {
                self.problem.get_or_insert(error);
                Ok(None)
            }
            other => other,
        }
    }

    /// The error if no slot was unlocked.
    pub fn failure(self) -> Error {
        let problem = if self.has_secret { SecretProblem::Wrong } else { SecretProblem::Missing };
        // Other faults of a slot do not matter before there is a secret, which may be that of another slot.
        let tell = |error: &Error| self.has_secret || matches!(error, Error::Limit { .. });
        self.problem.filter(tell).unwrap_or(Error::Secret { format: self.format, problem })
    }
}

/// The error for a cipher that is not known. Its names are text from the image.
pub(crate) fn unsupported_cipher(format: &'static str, cipher: &str, mode: &str, key_len: u64) -> Error {
    let bits = key_len.saturating_mul(8);
    let name = Name::from(format!("{cipher}-{mode}"));
    Error::unsupported(format, format!("cipher {name} with a key of {bits} bits"))
}

/// The cipher with these names and a key of `key_len` bytes.
///
/// # Errors
/// [`Error::Unsupported`]
pub(crate) fn cipher_name(format: &'static str, cipher: &str, mode: &str, key_len: usize) -> Result<CipherSpec> {
    CipherSpec::parse(cipher, mode)
        .filter(|spec| spec.with_key(&vec![0; key_len], super::SECTOR as usize).is_some())
        .ok_or_else(|| unsupported_cipher(format, cipher, mode, key_len as u64))
}

/// Refuses a key slot whose stripes are not in `areas`, between the header and the guest data: one of both would be garbage.
///
/// # Errors
/// [`Error::Corrupt`]
pub(crate) fn check_area(stripes: Range<u64>, areas: Range<u64>, field: Field) -> Result<()> {
    let with = if stripes.start < areas.start {
        "the header"
    } else if stripes.end > areas.end {
        "the guest data"
    } else {
        return Ok(());
    };
    Err(field.fault(Problem::Overlap { offset: stripes.start, with }))
}

impl Header {
    /// Finds the key of the volume with one of the secrets. The header and the key slots are in `range` of `file`.
    ///
    /// # Errors
    /// [`Error::Secret`], [`Error::Unsupported`] for an unknown cipher or hash, [`Error::Limit`] for key slots that take too long to try,
    /// and errors of the storage.
    pub fn unlock(
        &self,
        file: &dyn ReadAt,
        range: Range<u64>,
        cx: &OpenContext<'_>,
        fields: &Fields,
    ) -> Result<Arc<SectorCipher>> {
        let key = self.unlock_key(file, range, cx, fields)?;
        self.cipher_with(&key, fields)
    }

    /// The cipher of the volume with this key.
    pub(super) fn cipher_with(&self, key: &[u8], fields: &Fields) -> Result<Arc<SectorCipher>> {
        let (spec, _) = self.algorithms(fields)?;
        let cipher = spec.with_key(key, super::SECTOR as usize).map(Arc::new);
        cipher.ok_or_else(|| Error::unsupported(fields.0, "a key of this length"))
    }

    /// The cipher, and the hash of the key slots.
    pub(super) fn algorithms(&self, fields: &Fields) -> Result<(CipherSpec, Hash)> {
        let format = fields.0;
        let spec = cipher_name(format, &self.cipher.to_text(), &self.mode.to_text(), self.key_len as usize)?;
        let hash = Hash::from_name(&self.hash.to_text())
            .ok_or_else(|| Error::unsupported(format, format!("hash {}", self.hash)))?;
        Ok((spec, hash))
    }

    /// As [`unlock`](Self::unlock), the key itself.
    pub(super) fn unlock_key(
        &self,
        file: &dyn ReadAt,
        range: Range<u64>,
        cx: &OpenContext<'_>,
        fields: &Fields,
    ) -> Result<Zeroizing<Vec<u8>>> {
        let (spec, hash) = self.algorithms(fields)?;
        let mut attempts = Attempts::new(fields.0, cx);
        let iterations = fields.at("mk-digest-iter", range.start + 164);
        iterations.within_limit(
            LimitName::Pbkdf2Iterations,
            self.digest_iterations.into(),
            cx.limits.pbkdf2_iterations,
        )?;
        let volume = Locked { header: self, file, range: &range, spec, hash, cx, fields };
        for (index, slot) in self.slots.iter().enumerate().filter(|(_, slot)| slot.active) {
            let attempt = volume.try_slot(slot, range.start + 208 + 48 * index as u64, &attempts);
            if let Some(key) = attempts.note(attempt)? {
                return Ok(key);
            }
        }
        Err(attempts.failure())
    }

    /// The indexes of the slots that one of the secrets unlocks. The arguments are those of [`unlock`](Self::unlock).
    pub(super) fn slots_of(
        &self,
        file: &dyn ReadAt,
        range: &Range<u64>,
        cx: &OpenContext<'_>,
        fields: &Fields,
    ) -> Result<Vec<usize>> {
        let (spec, hash) = self.algorithms(fields)?;
        let volume = Locked { header: self, file, range, spec, hash, cx, fields };
        if cx.secrets.is_empty() {
            return Err(Error::Secret { format: fields.0, problem: SecretProblem::Missing });
        }
        let mut found = Vec::new();
        for (index, slot) in self.slots.iter().enumerate().filter(|(_, slot)| slot.active) {
            // All slots have to be tried.
            let mut attempts = Attempts::new(fields.0, cx);
            let attempt = volume.try_slot(slot, range.start + 208 + 48 * index as u64, &attempts);
            if attempts.note(attempt)?.is_some() {
                found.push(index);
            }
        }
        Ok(found)
    }

    /// The digest that recognizes the key of the volume.
    pub(super) fn digest_of(&self, key: &[u8], hash: Hash) -> [u8; 20] {
        let kdf = Kdf::Pbkdf2 { hash, salt: self.digest_salt.to_vec(), iterations: self.digest_iterations };
        let digest = kdf.derive(key, self.digest.len());
        digest.ok().and_then(|digest| digest.first_chunk().copied()).unwrap_or_default()
    }
}

/// A volume whose key is looked for.
struct Locked<'a> {
    header: &'a Header,
    file: &'a dyn ReadAt,
    /// File offsets of the header and the key slots in bytes.
    range: &'a Range<u64>,
    spec: CipherSpec,
    hash: Hash,
    cx: &'a OpenContext<'a>,
    fields: &'a Fields,
}

impl Locked<'_> {
    /// The key of the volume, if one of the secrets unlocks the slot at byte `at`.
    fn try_slot(&self, slot: &Slot, at: u64, attempts: &Attempts) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let Locked { header, file, range, spec, hash, cx, fields } = *self;
        fields.at("key slot iterations", at + 4).within_limit(
            LimitName::Pbkdf2Iterations,
            slot.iterations.into(),
            cx.limits.pbkdf2_iterations,
        )?;
        let len = u64::from(header.key_len) * u64::from(slot.stripes);
        let offset = range.start.saturating_add(slot.offset());
        let stored = len.next_multiple_of(super::SECTOR);
        let field = fields.at("key material", at + 40);
        check_area(offset..offset.saturating_add(stored), range.start + Header::LEN as u64..range.end, field)?;
        let material = table::read_table(file, offset, stored, field, cx.budget)?;
        let key_len = header.key_len as usize;
        for secret in cx.secrets {
            let cost = u64::from(slot.iterations) + u64::from(header.digest_iterations);
            attempts.add_cost(cost, cx.limits.pbkdf2_iterations, cx)?;
            let kdf = Kdf::Pbkdf2 { hash, salt: slot.salt.to_vec(), iterations: slot.iterations };
            let Ok(slot_key) = kdf.derive(secret.as_bytes(), key_len) else { continue };
            let Some(cipher) = spec.with_key(&slot_key, super::SECTOR as usize) else { continue };
            let stripes = cipher.decrypted(&material, 0);
            let Some(key) = stripes.get(..len as usize).and_then(|stripes| merge(stripes, key_len, hash)) else {
                continue;
            };
            if header.digest_of(&key, hash) == header.digest {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::limits::{Budget, Limits};
    use crate::secret::Secret;

    #[test]
    fn key_material_is_between_the_header_and_the_guest_data() {
        let field = Fields("luks").at("key material", 0);
        let with = |stripes| match check_area(stripes, 10..20, field) {
            Err(Error::Corrupt(crate::error::Fault { problem: Problem::Overlap { with, .. }, .. })) => Some(with),
            _ => None,
        };
        assert_eq!([10..20, 9..20, 10..21].map(with), [None, Some("the header"), Some("the guest data")]);
    }

    #[test]
    fn the_cost_of_all_tries_is_limited() {
        let (limits, secrets) = (Limits::default(), [Secret::new("x")]);
        let budget = Budget::new(0);
        let cancel = AtomicBool::new(false);
        let cx = OpenContext { secrets: &secrets, cancel: Some(&cancel), ..OpenContext::new(&limits, &budget) };
        let attempts = Attempts::new("luks", &cx);
        (0..8).for_each(|_| attempts.add_cost(50, 100, &cx).unwrap());
        assert!(matches!(attempts.add_cost(1, 100, &cx), Err(Error::Limit { value: 5, limit: 4, .. })));
        assert!(attempts.add_cost(u64::MAX, 0, &cx).is_err());
        cancel.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(matches!(attempts.add_cost(0, 100, &cx), Err(Error::Cancelled)));
    }
}
