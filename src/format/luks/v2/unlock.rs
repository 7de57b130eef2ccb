//! Finding the key of the volume with a secret (section 4.9).

use std::sync::Arc;

use zeroize::Zeroizing;

use super::Metadata;
use super::metadata::{Keyslot, cipher};
use crate::crypto::{Kdf, KdfError, SectorCipher, merge};
use crate::driver::OpenContext;
use crate::error::{Error, Problem, Result};
use crate::format::luks::{FIELDS, FORMAT_NAME};
use crate::format::shared::luks::{Attempts, SECTOR};
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::limits::LimitName;

impl Metadata {
    /// Finds the key with one of the secrets. `at` is the file offset of the metadata, for messages.
    ///
    /// # Errors
    /// [`Error::Secret`], [`Error::Limit`] for key slots that take too long to try, and errors of the storage.
    pub fn unlock(self, file: &dyn ReadAt, at: u64, cx: &OpenContext<'_>) -> Result<Arc<SectorCipher>> {
        let mut attempts = Attempts::new(FORMAT_NAME, cx);
        let (digest_cost, digest_most) = check_cost(&self.digest.kdf, at, cx)?;
        for (_, slot) in self.keyslots {
            let attempt = slot.and_then(|slot| {
                let spec = cipher(&self.segment.encryption, slot.key_len)?;
                let key = slot.try_secrets(file, at, cx, &attempts, |key| {
                    attempts.add_cost(digest_cost, digest_most, cx)?;
                    // Digests of another length are cut off by no known program.
                    let digest = self.digest.kdf.derive(key, self.digest.digest.len());
                    let is_key = digest.is_ok_and(|digest| digest[..] == self.digest.digest[..]);
                    Ok(is_key && !self.digest.digest.is_empty())
                })?;
                Ok(key.and_then(|key| spec.with_key(&key, self.segment.sector_size as usize)))
            });
            if let Some(cipher) = attempts.note(attempt)? {
                return Ok(Arc::new(cipher));
            }
        }
        Err(attempts.failure())
    }
}

impl Keyslot {
    /// The key of the volume, if one of the secrets gives one that `is_key` recognizes.
    fn try_secrets(
        &self,
        file: &dyn ReadAt,
        at: u64,
        cx: &OpenContext<'_>,
        attempts: &Attempts,
        is_key: impl Fn(&[u8]) -> Result<bool>,
    ) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let (cost, most) = check_cost(&self.kdf, at, cx)?;
        let len = self.key_len as u64 * self.stripes;
        let field = FIELDS.at("keyslot area", at);
        let material = table::read_table(file, self.offset, len.next_multiple_of(SECTOR), field, cx.budget)?;
        for secret in cx.secrets {
            attempts.add_cost(cost, most, cx)?;
            let area_key = self.kdf.derive(secret.as_bytes(), self.area_key_len).map_err(|problem| match problem {
                KdfError::Parameters => {
                    let rule = "the parameters of Argon2 must be in its range";
                    FIELDS.at("kdf", at).fault(Problem::Rule { value: 0, rule })
                }
                KdfError::Memory => {
                    Error::io("allocating the memory for Argon2", None)(std::io::ErrorKind::OutOfMemory.into())
                }
            })?;
            let Some(cipher) = self.area.with_key(&area_key, SECTOR as usize) else { continue };
            let stripes = cipher.decrypted(&material, 0);
            let stripes = usize::try_from(len).ok().and_then(|len| stripes.get(..len)).unwrap_or_default();
            if let Some(key) = merge(stripes, self.key_len, self.hash)
                && is_key(&key)?
            {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }
}

/// Checks the cost of a key derivation against the limits. Returns it with its limit.
fn check_cost(kdf: &Kdf, at: u64, cx: &OpenContext<'_>) -> Result<(u64, u64)> {
    match kdf {
        Kdf::Pbkdf2 { iterations, .. } => {
            let (iterations, most) = (u64::from(*iterations), cx.limits.pbkdf2_iterations);
            FIELDS
                .at("PBKDF2 iterations", at)
                .within_limit(LimitName::Pbkdf2Iterations, iterations, most)
                .map(|()| (iterations, most))
        }
        Kdf::Argon2 { passes, memory_kib, .. } => {
            let memory = u64::from(*memory_kib) << 10;
            FIELDS.at("memory of Argon2", at).within_limit(LimitName::Argon2Memory, memory, cx.limits.argon2_memory)?;
            let work = memory.saturating_mul((*passes).into());
            let most = cx.limits.argon2_work;
            FIELDS
                .at("memory times passes of Argon2", at)
                .within_limit(LimitName::Argon2Work, work, most)
                .map(|()| (work, most))
        }
    }
}
