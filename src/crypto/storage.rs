//! Files whose sectors are encrypted.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::{SECTOR, SectorCipher};
use crate::io::{FileIdentity, ReadAt, WriteAt, write_zeros};

/// Bytes that are read, or written, and encrypted at once: they stay in the cache of a core, and are whole batches of sectors.
const PIECE: usize = 60 << 10;

/// A file of which everything from a certain offset on is decrypted. What precedes it is read as it is. It has no holes: a hole is the
/// ciphertext of something.
pub(crate) struct Decrypting {
    file: Arc<dyn ReadAt>,
    sectors: Sectors,
}

/// A file of which everything from a certain offset on is encrypted. Only whole sectors after this offset can be written.
pub(crate) struct Encrypting {
    file: Arc<dyn WriteAt>,
    sectors: Sectors,
}

struct Sectors {
    cipher: Arc<SectorCipher>,
    /// Offset of the first sector in the file, in bytes.
    start: u64,
    /// The number of the first sector, in units of 512 bytes.
    first: u64,
}

impl Sectors {
    /// Offset in its sector of the byte at `offset`, and the number of this sector; `None` before the first one.
    fn locate(&self, offset: u64) -> Option<(usize, u64)> {
        let at = offset.checked_sub(self.start)?;
        let size = self.cipher.sector_size() as u64;
        let within = at % size;
        Some((within as usize, self.first.wrapping_add((at - within) / SECTOR)))
    }
}

impl Decrypting {
    /// Sector number `first`, in units of 512 bytes, is at byte `start`.
    pub fn new(file: Arc<dyn ReadAt>, cipher: Arc<SectorCipher>, start: u64, first: u64) -> Decrypting {
        Decrypting { file, sectors: Sectors { cipher, start, first } }
    }

    /// Bytes in a sector.
    pub(super) fn sector_size(&self) -> usize {
        self.sectors.cipher.sector_size()
    }

    /// Offset in its sector of the byte at `offset`; `None` before the first one.
    pub(super) fn offset_in_sector(&self, offset: u64) -> Option<usize> {
        self.sectors.locate(offset).map(|(within, _)| within)
    }
}

impl ReadAt for Decrypting {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some((within, number)) = self.sectors.locate(offset) else {
            let before = self.sectors.start - offset;
            let len = usize::try_from(before).unwrap_or(usize::MAX).min(buf.len());
            return self.file.read_at(buf.get_mut(..len).unwrap_or_default(), offset);
        };
        let cipher = &self.sectors.cipher;
        let size = cipher.sector_size();
        if buf.is_empty() || offset >= self.file.size()? {
            return Ok(0);
        }
        if within == 0 && buf.len() >= size {
            let len = (buf.len() / size * size).min(PIECE);
            let piece = buf.get_mut(..len).unwrap_or_default();
            let read = self.file.read_at(piece, offset)?;
            let whole = read / size * size;
            if whole > 0 {
                cipher.decrypt(piece.get_mut(..whole).unwrap_or_default(), number);
                return Ok(whole);
            }
        }
        // A part of a sector, or a short read.
        let mut sector = Zeroizing::new(vec![0; size]);
        self.file.read_exact_at(&mut sector, offset - within as u64)?;
        cipher.decrypt(&mut sector, number);
        let rest = sector.get(within..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf.iter_mut().zip(rest).for_each(|(byte, plain)| *byte = *plain);
        Ok(len)
    }

    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        self.file.identity()
    }

    fn allocated(&self) -> io::Result<Option<u64>> {
        self.file.allocated()
    }
}

impl Encrypting {
    /// Sector number `first`, in units of 512 bytes, is at byte `start`.
    pub fn new(file: Arc<dyn WriteAt>, cipher: Arc<SectorCipher>, start: u64, first: u64) -> Encrypting {
        Encrypting { file, sectors: Sectors { cipher, start, first } }
    }
}

impl WriteAt for Encrypting {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let cipher = &self.sectors.cipher;
        let mut number = match self.sectors.locate(offset) {
            Some((0, number)) if buf.len().is_multiple_of(cipher.sector_size()) => number,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "only whole sectors can be encrypted")),
        };
        let mut piece = vec![0; PIECE.min(buf.len())];
        for (plain, at) in buf.chunks(PIECE).zip((offset..).step_by(PIECE)) {
            let piece = piece.get_mut(..plain.len()).unwrap_or_default();
            piece.copy_from_slice(plain);
            cipher.encrypt(piece, number);
            self.file.write_all_at(piece, at)?;
            number = number.wrapping_add(plain.len() as u64 / SECTOR);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    /// Zeros are the plaintext of something else.
    fn starts_zeroed(&self) -> bool {
        false
    }

    fn path(&self) -> Option<&Path> {
        self.file.path()
    }

    fn seeks(&self) -> bool {
        self.file.seeks()
    }

    fn abandon(&self) {
        self.file.abandon();
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        write_zeros(self, range)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.file.allocate(range)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::CipherSpec;
    use crate::io::MemFile;

    pub fn cipher(sector_size: usize) -> Arc<SectorCipher> {
        let spec = CipherSpec::parse("aes", "xts-plain64").unwrap();
        Arc::new(spec.with_key(&(0..32).collect::<Vec<_>>(), sector_size).unwrap())
    }

    /// Reads a few bytes at a time.
    struct Trickle(MemFile);

    impl ReadAt for Trickle {
        fn size(&self) -> io::Result<u64> {
            self.0.size()
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            let most = buf.len().min(700);
            self.0.read_at(&mut buf[..most], offset)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn what_is_encrypted_is_read_back(
            shift in 0u32..4,
            (start, first) in (prop::sample::select(vec![0u64, 512, 8192]), any::<u32>()),
            sectors in 1usize..80,
            (from, to) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        ) {
            let size = 512usize << shift;
            let plain: Vec<u8> = (0..size * sectors).map(|at| (at * 7 / 5) as u8).collect();
            let file = Arc::new(MemFile::from(vec![9; start as usize]));
            Encrypting::new(file.clone(), cipher(size), start, first.into()).write_all_at(&plain, start).unwrap();
            let stored = file.to_vec();
            prop_assert_eq!(&stored[start as usize..], &cipher(size).encrypted(&plain, first.into())[..]);
            prop_assert!(stored[..start as usize].iter().all(|byte| *byte == 9));

            let view = Decrypting::new(Arc::new(Trickle(MemFile::from(stored))), cipher(size), start, first.into());
            let whole = [vec![9; start as usize], plain].concat();
            let (from, to) = (from.index(whole.len() + 1), to.index(whole.len() + 1));
            let (from, to) = (from.min(to), from.max(to));
            let mut part = vec![0; to - from];
            view.read_exact_at(&mut part, from as u64).unwrap();
            prop_assert_eq!(&part[..], &whole[from..to]);
            prop_assert!(view.read_exact_at(&mut [0; 2], whole.len() as u64 - 1).is_err());
        }
    }

    #[test]
    fn parts_of_sectors_are_neither_written_nor_invented() {
        let file = Arc::new(MemFile::new());
        let out = Encrypting::new(file.clone(), cipher(512), 512, 0);
        for (len, offset) in [(100, 512), (512, 600), (512, 0)] {
            assert_eq!(out.write_all_at(&vec![0; len], offset).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(file.to_vec(), b"");
        let short = Decrypting::new(Arc::new(MemFile::from(vec![0; 700])), cipher(512), 0, 0);
        assert_eq!(short.read_exact_at(&mut [0; 188], 512).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(short.next_data(0).unwrap(), Some(0..u64::MAX), "a hole is not zeros");
    }
}
