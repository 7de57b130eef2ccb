//! Block ciphers with blocks of 16 bytes.

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes192, Aes256};
use serpent::Serpent;
use twofish::Twofish;

/// A block.
pub(super) type Block = aes::cipher::Block<Aes128>;
/// Bytes of a block.
pub(super) const BLOCK: usize = 16;

/// A cipher, without the size of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CipherName {
    Aes,
    Serpent,
    Twofish,
}

impl CipherName {
    /// The cipher with the name that Linux has for it.
    pub fn from_name(name: &str) -> Option<CipherName> {
        [CipherName::Aes, CipherName::Serpent, CipherName::Twofish].into_iter().find(|cipher| cipher.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            CipherName::Aes => "aes",
            CipherName::Serpent => "serpent",
            CipherName::Twofish => "twofish",
        }
    }
}

/// A cipher with its key schedule.
pub(super) enum BlockCipher {
    Aes128(Box<Aes128>),
    Aes192(Box<Aes192>),
    Aes256(Box<Aes256>),
    Serpent(Box<Serpent>),
    Twofish(Box<Twofish>),
}

impl BlockCipher {
    /// The cipher with `key`, of 128, 192 or 256 bits; `None` for another length.
    pub fn new(name: CipherName, key: &[u8]) -> Option<BlockCipher> {
        if ![16, 24, 32].contains(&key.len()) {
            return None;
        }
        match name {
            CipherName::Aes => match key.len() {
                16 => Aes128::new_from_slice(key).ok().map(|cipher| BlockCipher::Aes128(Box::new(cipher))),
                24 => Aes192::new_from_slice(key).ok().map(|cipher| BlockCipher::Aes192(Box::new(cipher))),
                _ => Aes256::new_from_slice(key).ok().map(|cipher| BlockCipher::Aes256(Box::new(cipher))),
            },
            CipherName::Serpent => {
                Serpent::new_from_slice(key).ok().map(|cipher| BlockCipher::Serpent(Box::new(cipher)))
            }
            CipherName::Twofish => {
                Twofish::new_from_slice(key).ok().map(|cipher| BlockCipher::Twofish(Box::new(cipher)))
            }
        }
    }

    /// Encrypts each block on its own.
    pub fn encrypt(&self, blocks: &mut [Block]) {
        match self {
            BlockCipher::Aes128(cipher) => cipher.encrypt_blocks(blocks),
            BlockCipher::Aes192(cipher) => cipher.encrypt_blocks(blocks),
            BlockCipher::Aes256(cipher) => cipher.encrypt_blocks(blocks),
            BlockCipher::Serpent(cipher) => cipher.encrypt_blocks(blocks),
            BlockCipher::Twofish(cipher) => cipher.encrypt_blocks(blocks),
        }
    }

    /// Decrypts each block on its own.
    pub fn decrypt(&self, blocks: &mut [Block]) {
        match self {
            BlockCipher::Aes128(cipher) => cipher.decrypt_blocks(blocks),
            BlockCipher::Aes192(cipher) => cipher.decrypt_blocks(blocks),
            BlockCipher::Aes256(cipher) => cipher.decrypt_blocks(blocks),
            BlockCipher::Serpent(cipher) => cipher.decrypt_blocks(blocks),
            BlockCipher::Twofish(cipher) => cipher.decrypt_blocks(blocks),
        }
    }
}

/// The blocks of `bytes`. A rest that is shorter than a block is left out.
pub(super) fn blocks_mut(bytes: &mut [u8]) -> &mut [Block] {
    Block::slice_as_chunks_mut(bytes).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn known_answers() {
        // FIPS 197, appendix C; the Twofish paper, appendix B.2.
        for (name, key, plain, cipher) in [
            (
                CipherName::Aes,
                "000102030405060708090a0b0c0d0e0f",
                "00112233445566778899aabbccddeeff",
                "69c4e0d86a7b0430d8cdb78070b4c55a",
            ),
            (
                CipherName::Aes,
                "000102030405060708090a0b0c0d0e0f1011121314151617",
                "00112233445566778899aabbccddeeff",
                "dda97ca4864cdfe06eaf70a0ec0d7191",
            ),
            (
                CipherName::Aes,
                "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
                "00112233445566778899aabbccddeeff",
                "8ea2b7ca516745bfeafc49904b496089",
            ),
            (
                CipherName::Twofish,
                "00000000000000000000000000000000",
                "00000000000000000000000000000000",
                "9f589f5cf6122c32b6bfec2f2ae8c35a",
            ),
            (
                CipherName::Twofish,
                "0123456789abcdeffedcba987654321000112233445566778899aabbccddeeff",
                "00000000000000000000000000000000",
                "37527be0052334b89f0cfccae87cfa20",
            ),
        ] {
            let (key, plain, expected) = (bytes(key), bytes(plain), bytes(cipher));
            let cipher = BlockCipher::new(name, &key).unwrap();
            let mut buf = plain.clone();
            cipher.encrypt(blocks_mut(&mut buf));
            assert_eq!(buf, expected, "{name:?} with {} bytes", key.len());
            cipher.decrypt(blocks_mut(&mut buf));
            assert_eq!(buf, plain);
        }
    }

    #[test]
    fn keys_of_other_lengths_are_refused() {
        for name in [CipherName::Aes, CipherName::Serpent, CipherName::Twofish] {
            assert_eq!(CipherName::from_name(name.name()), Some(name));
            for len in (0..40).filter(|len| ![16, 24, 32].contains(len)) {
                assert!(BlockCipher::new(name, &vec![0; len]).is_none(), "{name:?} {len}");
            }
        }
    }
}
