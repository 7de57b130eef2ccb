//! Checks of blocks (section 2.1.1.2).

use sha2::{Digest, Sha256};
use zlib_rs::crc32::crc32;

/// The kind of check of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    None,
    Crc32,
    Crc64,
    Sha256,
}

impl Check {
    /// The check with this number; `None` for those that are reserved.
    pub fn from_id(id: u8) -> Option<Check> {
        match id {
            0 => Some(Check::None),
            1 => Some(Check::Crc32),
            4 => Some(Check::Crc64),
            10 => Some(Check::Sha256),
            _ => None,
        }
    }

    /// Length in bytes.
    pub fn len(self) -> usize {
        match self {
            Check::None => 0,
            Check::Crc32 => 4,
            Check::Crc64 => 8,
            Check::Sha256 => 32,
        }
    }

    /// The check of no data.
    pub fn start(self) -> Running {
        match self {
            Check::None => Running::None,
            Check::Crc32 => Running::Crc32(0),
            Check::Crc64 => Running::Crc64(!0),
            Check::Sha256 => Running::Sha256(Sha256::new()),
        }
    }
}

/// The check of the data so far.
pub(crate) enum Running {
    None,
    Crc32(u32),
    Crc64(u64),
    Sha256(Sha256),
}

impl Running {
    pub fn add(&mut self, data: &[u8]) {
        match self {
            Running::None => {}
            Running::Crc32(crc) => *crc = crc32(*crc, data),
            Running::Crc64(crc) => *crc = crc64(*crc, data),
            Running::Sha256(sha256) => sha256.update(data),
        }
    }

    /// Whether `stored` is the check of the data.
    pub fn matches(self, stored: &[u8]) -> bool {
        match self {
            Running::None => stored.is_empty(),
            Running::Crc32(crc) => stored == crc.to_le_bytes(),
            Running::Crc64(crc) => stored == (!crc).to_le_bytes(),
            Running::Sha256(sha256) => stored == &sha256.finalize()[..],
        }
    }
}

/// Polynomial of ECMA-182 in reverse bit order.
const POLYNOMIAL: u64 = 0xc96c_5795_d787_0f42;

/// The CRC of each byte, followed by 0 to 7 zeros: eight bytes are looked up at once.
static TABLES: [[u64; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let crc = tables[table - 1][byte];
            tables[table][byte] = tables[0][(crc & 0xff) as usize] ^ (crc >> 8);
            byte += 1;
        }
        table += 1;
    }
    tables
};

/// Adds `data` to a CRC-64 that starts with all bits set.
fn crc64(mut crc: u64, data: &[u8]) -> u64 {
    let (words, rest) = data.as_chunks::<8>();
    for word in words {
        let bytes = (crc ^ u64::from_le_bytes(*word)).to_le_bytes();
        crc = TABLES.iter().rev().zip(bytes).fold(0, |crc, (table, byte)| crc ^ table[usize::from(byte)]);
    }
    rest.iter().fold(crc, |crc, byte| TABLES[0][usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bit by bit.
    fn naive(mut crc: u64, data: &[u8]) -> u64 {
        for byte in data {
            crc ^= u64::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            }
        }
        crc
    }

    #[test]
    fn the_known_answer() {
        assert_eq!(!crc64(!0, b"123456789"), 0x995d_c9bb_df19_39fa);
    }

    proptest! {
        #[test]
        fn the_tables_equal_the_naive_way(start: u64, data in prop::collection::vec(any::<u8>(), 0..100), cut: usize) {
            let (a, b) = data.split_at(cut % (data.len() + 1));
            prop_assert_eq!(crc64(crc64(start, a), b), naive(start, &data));
        }
    }
}
