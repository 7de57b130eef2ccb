//! Modes of operation: XTS (IEEE 1619) and CBC over sectors, with the initialization vectors of dm-crypt.

use zeroize::Zeroizing;

use super::cipher::{BLOCK, Block, BlockCipher, blocks_mut};
use super::{CipherName, Hash, SECTOR};

/// Blocks that go through a cipher at once.
const BATCH: usize = 32;

/// A cipher, mode and generator of initialization vectors: "aes", "xts-plain64".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CipherSpec {
    pub cipher: CipherName,
    pub mode: Mode,
    pub iv: Iv,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Xts,
    Cbc,
}

/// A generator of initialization vectors. The vector is the number of a sector, little-endian and filled with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Iv {
    /// Its low 32 bits.
    Plain,
    Plain64,
    /// Encrypted, with the digest of the key as the key.
    Essiv(Hash),
}

impl CipherSpec {
    /// Parses the name of a cipher and of a mode, as LUKS1 headers have them; `None` if one of them is not known.
    pub fn parse(cipher: &str, mode: &str) -> Option<CipherSpec> {
        let (mode, generator) = mode.split_once('-')?;
        let mode = match mode {
            "xts" => Mode::Xts,
            "cbc" => Mode::Cbc,
            _ => return None,
        };
        let iv = match generator.split_once(':') {
            None if generator == "plain" => Iv::Plain,
            None if generator == "plain64" => Iv::Plain64,
            Some(("essiv", hash)) => Iv::Essiv(Hash::from_name(hash)?),
            _ => return None,
        };
        Some(CipherSpec { cipher: CipherName::from_name(cipher)?, mode, iv })
    }

    /// The mode and the generator, as [`parse`](Self::parse) takes them.
    pub fn mode_name(&self) -> String {
        let mode = match self.mode {
            Mode::Xts => "xts",
            Mode::Cbc => "cbc",
        };
        match self.iv {
            Iv::Plain => format!("{mode}-plain"),
            Iv::Plain64 => format!("{mode}-plain64"),
            Iv::Essiv(hash) => format!("{mode}-essiv:{}", hash.name()),
        }
    }

    /// The cipher with `key` for sectors of `sector_size` bytes, a power of two from 512 on; `None` if the key does not have a length of the
    /// cipher, or the hash of ESSIV none of a key.
    pub fn with_key(&self, key: &[u8], sector_size: usize) -> Option<SectorCipher> {
        let cipher = |key: &[u8]| BlockCipher::new(self.cipher, key);
        let keys = match self.mode {
            Mode::Xts => {
                let (data, tweak) = key.split_at_checked(key.len() / 2)?;
                Keys::Xts { data: cipher(data)?, tweak: cipher(tweak)? }
            }
            Mode::Cbc => Keys::Cbc(cipher(key)?),
        };
        let iv = match self.iv {
            Iv::Plain => IvGenerator::Plain,
            Iv::Plain64 => IvGenerator::Plain64,
            Iv::Essiv(hash) => IvGenerator::Essiv(cipher(&hash.digest(&[key]))?),
        };
        Some(SectorCipher { keys, iv, sector_size })
    }
}

/// Encrypts and decrypts sectors with one key.
pub(crate) struct SectorCipher {
    keys: Keys,
    iv: IvGenerator,
    sector_size: usize,
}

enum Keys {
    Xts { data: BlockCipher, tweak: BlockCipher },
    Cbc(BlockCipher),
}

enum IvGenerator {
    Plain,
    Plain64,
    Essiv(BlockCipher),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Encrypt,
    Decrypt,
}

impl SectorCipher {
    /// In bytes.
    pub fn sector_size(&self) -> usize {
        self.sector_size
    }

    /// Encrypts whole sectors. `number` is that of the first one, in units of 512 bytes whatever the size of a sector.
    pub fn encrypt(&self, sectors: &mut [u8], number: u64) {
        self.apply(Direction::Encrypt, sectors, number);
    }

    /// Decrypts whole sectors, numbered as by [`encrypt`](Self::encrypt).
    pub fn decrypt(&self, sectors: &mut [u8], number: u64) {
        self.apply(Direction::Decrypt, sectors, number);
    }

    fn apply(&self, direction: Direction, sectors: &mut [u8], mut number: u64) {
        debug_assert!(sectors.len().is_multiple_of(self.sector_size));
        let step = self.sector_size as u64 / SECTOR;
        for batch in sectors.chunks_mut(BATCH * self.sector_size) {
            let mut ivs = [Block::default(); BATCH];
            let ivs = ivs.get_mut(..batch.len() / self.sector_size).unwrap_or_default();
            self.fill_ivs(ivs, number, step);
            number = number.wrapping_add(step * ivs.len() as u64);
            match (&self.keys, direction) {
                (Keys::Xts { data, tweak }, _) => {
                    tweak.encrypt(ivs);
                    for (sector, tweak) in batch.chunks_exact_mut(self.sector_size).zip(ivs) {
                        xts(data, direction, blocks_mut(sector), u128::from_le_bytes((*tweak).into()));
                    }
                }
                (Keys::Cbc(cipher), Direction::Encrypt) => cbc_encrypt(cipher, batch, self.sector_size, ivs),
                (Keys::Cbc(cipher), Direction::Decrypt) => {
                    for (sector, iv) in batch.chunks_exact_mut(self.sector_size).zip(ivs) {
                        cbc_decrypt(cipher, blocks_mut(sector), *iv);
                    }
                }
            }
        }
    }

    fn fill_ivs(&self, ivs: &mut [Block], mut number: u64, step: u64) {
        for iv in &mut *ivs {
            let value = match self.iv {
                IvGenerator::Plain => number & u64::from(u32::MAX),
                IvGenerator::Plain64 | IvGenerator::Essiv(_) => number,
            };
            *iv = u128::from(value).to_le_bytes().into();
            number = number.wrapping_add(step);
        }
        if let IvGenerator::Essiv(cipher) = &self.iv {
            cipher.encrypt(ivs);
        }
    }
}

/// One sector. The mask of each block is that of the preceding one, multiplied by x in GF(2^128).
fn xts(cipher: &BlockCipher, direction: Direction, sector: &mut [Block], tweak: u128) {
    let mut mask = tweak;
    for blocks in sector.chunks_mut(BATCH) {
        let mut masks = [0; BATCH];
        for (block, kept) in blocks.iter_mut().zip(&mut masks) {
            *kept = mask;
            xor(block, mask);
            let carry = (mask.cast_signed() >> 127).cast_unsigned() & 0x87;
            mask = mask << 1 ^ carry;
        }
        match direction {
            Direction::Encrypt => cipher.encrypt(blocks),
            Direction::Decrypt => cipher.decrypt(blocks),
        }
        blocks.iter_mut().zip(masks).for_each(|(block, mask)| xor(block, mask));
    }
}

/// A batch of sectors. The blocks of one sector depend on each other, so that the first blocks of all sectors are encrypted at once, then
/// the second ones, and so on.
fn cbc_encrypt(cipher: &BlockCipher, batch: &mut [u8], sector_size: usize, ivs: &mut [Block]) {
    let state = ivs;
    for at in 0..sector_size / BLOCK {
        let blocks = |batch: &mut [u8], each: &mut dyn FnMut(usize, &mut Block)| {
            for (index, sector) in batch.chunks_exact_mut(sector_size).enumerate() {
                blocks_mut(sector).get_mut(at).into_iter().for_each(|block| each(index, block));
            }
        };
        blocks(batch, &mut |index, block| {
            if let Some(state) = state.get_mut(index) {
                xor(state, u128::from_le_bytes((*block).into()));
            }
        });
        cipher.encrypt(state);
        blocks(batch, &mut |index, block| state.get(index).into_iter().for_each(|state| *block = *state));
    }
}

/// One sector.
fn cbc_decrypt(cipher: &BlockCipher, sector: &mut [Block], iv: Block) {
    let mut previous = iv;
    for blocks in sector.chunks_mut(BATCH) {
        let mut stored = [Block::default(); BATCH];
        stored.iter_mut().zip(&*blocks).for_each(|(stored, block)| *stored = *block);
        cipher.decrypt(blocks);
        for (block, stored) in blocks.iter_mut().zip(stored) {
            xor(block, u128::from_le_bytes(previous.into()));
            previous = stored;
        }
    }
}

fn xor(block: &mut Block, mask: u128) {
    *block = (u128::from_le_bytes((*block).into()) ^ mask).to_le_bytes().into();
}

impl SectorCipher {
    /// Encrypts `plain` to a new buffer.
    pub fn encrypted(&self, plain: &[u8], number: u64) -> Vec<u8> {
        let mut bytes = plain.to_vec();
        self.encrypt(&mut bytes, number);
        bytes
    }

    /// Decrypts `stored` to a new buffer, which is wiped.
    pub fn decrypted(&self, stored: &[u8], number: u64) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(stored.to_vec());
        self.decrypt(&mut bytes, number);
        bytes
    }
}

#[cfg(test)]
mod tests;
