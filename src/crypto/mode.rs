//! Modes of operation: XTS (IEEE 1619) and CBC over sectors, with the initialization vectors of dm-crypt.

use zeroize::Zeroizing;

use super::cipher::{BLOCK, Block, BlockCipher, blocks_mut};
use super::{CipherName, Hash, SECTOR};

/// Sectors that are encrypted at once.
const BATCH: usize = 30;
/// Blocks that go through a cipher at once, those of a batch of the smallest sectors. It is a multiple of the 8, 30 or 64 blocks that the crate
/// `aes` keeps in the registers of a CPU: the rest would be encrypted block by block, at a fraction of the speed.
const BLOCKS: usize = BATCH * SECTOR as usize / BLOCK;

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
        let mut masks = [0; BLOCKS];
        for batch in sectors.chunks_mut(BATCH * self.sector_size) {
            let mut ivs = [Block::default(); BATCH];
            let ivs = ivs.get_mut(..batch.len() / self.sector_size).unwrap_or_default();
            self.fill_ivs(ivs, number, step);
            number = number.wrapping_add(step * ivs.len() as u64);
            let batch = Sectors { blocks: blocks_mut(batch), per_sector: self.sector_size / BLOCK };
            match (&self.keys, direction) {
                (Keys::Xts { data, tweak }, _) => {
                    tweak.encrypt(ivs);
                    xts(data, direction, batch, ivs, &mut masks);
                }
                (Keys::Cbc(cipher), Direction::Encrypt) => cbc_encrypt(cipher, batch, ivs),
                (Keys::Cbc(cipher), Direction::Decrypt) => cbc_decrypt(cipher, batch, ivs, &mut masks),
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

/// A batch of sectors.
struct Sectors<'a> {
    blocks: &'a mut [Block],
    /// Blocks of a sector, a power of two.
    per_sector: usize,
}

/// The mask of each block is that of the preceding one, multiplied by x in GF(2^128); that of the first one in a sector is the tweak.
fn xts(cipher: &BlockCipher, direction: Direction, batch: Sectors<'_>, tweaks: &[Block], masks: &mut [u128; BLOCKS]) {
    let mut tweaks = tweaks.iter();
    let (mut mask, mut at) = (0_u128, 0_usize);
    for blocks in batch.blocks.chunks_mut(BLOCKS) {
        for (block, kept) in blocks.iter_mut().zip(&mut *masks) {
            mask = match first_mask(at, batch.per_sector, &mut tweaks) {
                Some(tweak) => tweak,
                None => mask << 1 ^ ((mask.cast_signed() >> 127).cast_unsigned() & 0x87),
            };
            *kept = mask;
            xor(block, mask);
            at += 1;
        }
        match direction {
            Direction::Encrypt => cipher.encrypt(blocks),
            Direction::Decrypt => cipher.decrypt(blocks),
        }
        blocks.iter_mut().zip(&*masks).for_each(|(block, mask)| xor(block, *mask));
    }
}

/// The blocks of one sector depend on each other, so that the first blocks of all sectors are encrypted at once, then the second ones, and so
/// on.
fn cbc_encrypt(cipher: &BlockCipher, batch: Sectors<'_>, ivs: &mut [Block]) {
    let state = ivs;
    for at in 0..batch.per_sector {
        for (sector, state) in batch.blocks.chunks_exact(batch.per_sector).zip(&mut *state) {
            sector.get(at).into_iter().for_each(|block| xor(state, u128::from_le_bytes((*block).into())));
        }
        cipher.encrypt(state);
        for (sector, state) in batch.blocks.chunks_exact_mut(batch.per_sector).zip(&*state) {
            sector.get_mut(at).into_iter().for_each(|block| *block = *state);
        }
    }
}

/// The mask of each block is the preceding one as it is stored; that of the first one in a sector is its initialization vector.
fn cbc_decrypt(cipher: &BlockCipher, batch: Sectors<'_>, ivs: &[Block], masks: &mut [u128; BLOCKS]) {
    let mut ivs = ivs.iter();
    let (mut previous, mut at) = (0_u128, 0_usize);
    for blocks in batch.blocks.chunks_mut(BLOCKS) {
        for (block, mask) in blocks.iter().zip(&mut *masks) {
            *mask = first_mask(at, batch.per_sector, &mut ivs).unwrap_or(previous);
            previous = u128::from_le_bytes((*block).into());
            at += 1;
        }
        cipher.decrypt(blocks);
        blocks.iter_mut().zip(&*masks).for_each(|(block, mask)| xor(block, *mask));
    }
}

/// The next of `ivs`, if block number `at` is the first one of a sector.
fn first_mask(at: usize, per_sector: usize, ivs: &mut std::slice::Iter<'_, Block>) -> Option<u128> {
    // A division would take as long as the encryption of the block.
    if at & (per_sector - 1) != 0 {
        return None;
    }
    ivs.next().map(|iv| u128::from_le_bytes((*iv).into()))
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
