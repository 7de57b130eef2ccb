//! Encryption of sectors and derivation of keys, as LUKS and qcow2 have them.
//!
//! The primitives are those of RustCrypto. The modes are here, because a whole sector, or several, go through a cipher at once: the
//! crate `xts-mode`, which passes single blocks, has a fifth of the speed.
//!
//! Keys are wiped when they are dropped, and have no `Debug`.

mod anti_forensic;
mod cipher;
mod encrypted;
mod hash;
mod kdf;
mod mode;
mod random;
mod storage;

pub(crate) use anti_forensic::{merge, split};
pub(crate) use cipher::CipherName;
pub(crate) use encrypted::EncryptedFile;
pub(crate) use hash::Hash;
pub(crate) use kdf::{Argon2Kind, Kdf, KdfError, argon2_passes, pbkdf2_iterations};
pub(crate) use mode::{CipherSpec, SectorCipher};
pub(crate) use random::random;
#[cfg(test)]
pub(crate) use random::with_pinned_random;
pub(crate) use storage::{Decrypting, Encrypting};

/// Unit of sector numbers in initialization vectors, in bytes.
pub(crate) const SECTOR: u64 = 512;
