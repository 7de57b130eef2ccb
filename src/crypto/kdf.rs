//! Derivation of keys from passphrases.

use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroizing;

use super::Hash;

/// A key derivation function with its parameters, which come from an image. The caller has checked their cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kdf {
    Pbkdf2 {
        hash: Hash,
        salt: Vec<u8>,
        /// At least 1.
        iterations: u32,
    },
    Argon2 {
        kind: Argon2Kind,
        salt: Vec<u8>,
        passes: u32,
        memory_kib: u32,
        lanes: u32,
    },
}

/// A variant of Argon2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Argon2Kind {
    I,
    Id,
}

/// Why no key was derived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KdfError {
    /// The parameters are outside the range of the function.
    Parameters,
    /// The system has not enough memory.
    Memory,
}

impl Kdf {
    /// Derives a key of `len` bytes.
    ///
    /// # Errors
    /// [`KdfError`], only for Argon2.
    pub fn derive(&self, passphrase: &[u8], len: usize) -> Result<Zeroizing<Vec<u8>>, KdfError> {
        let mut key = Zeroizing::new(vec![0; len]);
        match self {
            Kdf::Pbkdf2 { hash, salt, iterations } => hash.pbkdf2(passphrase, salt, *iterations, &mut key),
            Kdf::Argon2 { kind, salt, passes, memory_kib, lanes } => {
                let algorithm = match kind {
                    Argon2Kind::I => Algorithm::Argon2i,
                    Argon2Kind::Id => Algorithm::Argon2id,
                };
                let params = Params::new(*memory_kib, *passes, *lanes, Some(len)).map_err(|_| KdfError::Parameters)?;
                let count = params.block_count();
                let mut memory: Vec<Block> = Vec::new();
                memory.try_reserve_exact(count).map_err(|_| KdfError::Memory)?;
                memory.resize(count, Block::default());
                Argon2::new(algorithm, Version::V0x13, params)
                    .hash_password_into_with_memory(passphrase, salt, &mut key, &mut memory[..])
                    .map_err(|_| KdfError::Parameters)?;
            }
        }
        Ok(key)
    }
}

/// Number of iterations of PBKDF2 for a key of `len` bytes that take `duration` on this machine, at least `least`.
pub(crate) fn pbkdf2_iterations(hash: Hash, len: usize, duration: Duration, least: u32) -> u32 {
    const TRIAL: u32 = 10_000;
    let mut key = Zeroizing::new(vec![0; len]);
    // The fastest of several: another program may have interrupted one of them.
    let trial = || {
        let start = Instant::now();
        hash.pbkdf2(b"passphrase", &[0; 32], TRIAL, &mut key);
        start.elapsed()
    };
    let fastest = std::iter::repeat_with(trial).take(5).min().unwrap_or_default();
    let count = u128::from(TRIAL) * duration.as_nanos() / fastest.as_nanos().max(1);
    // A multiple of 1000 tells less of the machine.
    u32::try_from(count / 1000 * 1000).unwrap_or(u32::MAX).max(least)
}

/// Number of passes of Argon2id over `memory_kib` with `lanes` that take `duration` on this machine, at least `least`.
///
/// # Errors
/// [`KdfError`]
pub(crate) fn argon2_passes(memory_kib: u32, lanes: u32, duration: Duration, least: u32) -> Result<u32, KdfError> {
    let trial = Kdf::Argon2 { kind: Argon2Kind::Id, salt: vec![0; 32], passes: 1, memory_kib, lanes };
    let start = Instant::now();
    trial.derive(b"passphrase", 32)?;
    let count = duration.as_nanos() / start.elapsed().as_nanos().max(1);
    Ok(u32::try_from(count).unwrap_or(u32::MAX).max(least))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // RFC 6070, test vector 2; RFC 7914, section 11; both cut off.
        for (hash, passphrase, salt, iterations, start) in [
            (Hash::Sha1, &b"password"[..], &b"salt"[..], 2, [0xea, 0x6c, 0x01, 0x4d, 0xc7, 0x2d]),
            (Hash::Sha256, b"passwd", b"salt", 1, [0x55, 0xac, 0x04, 0x6e, 0x56, 0xe3]),
        ] {
            let kdf = Kdf::Pbkdf2 { hash, salt: salt.to_vec(), iterations };
            assert_eq!(kdf.derive(passphrase, 40).unwrap()[..6], start);
        }
        // The reference implementation: argon2 somesalt -t 2 -m 8 -p 1, with the passphrase "password".
        let kdf = |kind| Kdf::Argon2 { kind, salt: b"somesalt".to_vec(), passes: 2, memory_kib: 256, lanes: 1 };
        let i = kdf(Argon2Kind::I).derive(b"password", 32).unwrap();
        assert_eq!(i[..4], [0x89, 0xe9, 0x02, 0x9f]);
        let id = kdf(Argon2Kind::Id).derive(b"password", 32).unwrap();
        assert_eq!(id[..4], [0x9d, 0xfe, 0xb9, 0x10]);
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        for (passes, memory_kib, lanes, salt) in [(0, 64, 1, 8), (1, 4, 1, 8), (1, 64, 0, 8), (1, 64, 1, 4)] {
            let salt = vec![0; salt];
            let kdf = Kdf::Argon2 { kind: Argon2Kind::Id, salt, passes, memory_kib, lanes };
            assert_eq!(kdf.derive(b"", 32).err(), Some(KdfError::Parameters));
        }
    }

    #[test]
    fn iterations_grow_with_the_time() {
        assert_eq!(pbkdf2_iterations(Hash::Sha256, 32, Duration::ZERO, 1000), 1000);
        assert!(pbkdf2_iterations(Hash::Sha256, 32, Duration::from_secs(3600), 1000) > 1_000_000);
    }
}
