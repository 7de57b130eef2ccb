//! Files whose sectors are encrypted.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use zeroize::Zeroizing;

use super::{SECTOR, SectorCipher};
use crate::io::{FileIdentity, ReadAt, Storage, WriteAt, write_zeros};

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

/// A file whose guest data, from a certain offset on, is decrypted when it is read and encrypted when it is written. A part of a sector is
/// written with the rest of it.
pub(crate) struct EncryptedFile {
    reader: Decrypting,
    writer: Encrypting,
    /// Held while a part of a sector is replaced.
    partial_writes: Mutex<()>,
}

impl EncryptedFile {
    /// As [`Decrypting::new`] and [`Encrypting::new`].
    pub fn new(file: Arc<dyn Storage>, cipher: Arc<SectorCipher>, start: u64, first: u64) -> EncryptedFile {
        EncryptedFile {
            reader: Decrypting::new(file.clone(), cipher.clone(), start, first),
            writer: Encrypting::new(file, cipher, start, first),
            partial_writes: Mutex::new(()),
        }
    }

    /// Writes bytes that are within one sector.
    fn write_in_sector(&self, buf: &[u8], offset: u64, within: usize) -> io::Result<()> {
        let _alone = self.partial_writes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sector = Zeroizing::new(vec![0; self.reader.sectors.cipher.sector_size()]);
        let start = offset - within as u64;
        self.reader.read_exact_at(&mut sector, start)?;
        let part = sector.get_mut(within..within + buf.len());
        part.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(buf);
        self.writer.write_all_at(&sector, start)
    }
}

impl ReadAt for EncryptedFile {
    fn size(&self) -> io::Result<u64> {
        self.reader.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.reader.read_at(buf, offset)
    }

    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        self.reader.identity()
    }

    fn allocated(&self) -> io::Result<Option<u64>> {
        self.reader.allocated()
    }
}

impl WriteAt for EncryptedFile {
    fn write_all_at(&self, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
        let size = self.reader.sectors.cipher.sector_size();
        while !buf.is_empty() {
            let (within, _) = self.reader.sectors.locate(offset).ok_or(io::ErrorKind::InvalidInput)?;
            let len = match within {
                0 if buf.len() >= size => buf.len() - buf.len() % size,
                within => (size - within).min(buf.len()),
            };
            let (piece, rest) = buf.split_at(len);
            match len.is_multiple_of(size) {
                true => self.writer.write_all_at(piece, offset)?,
                false => self.write_in_sector(piece, offset, within)?,
            }
            (buf, offset) = (rest, offset + len as u64);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writer.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.writer.sync()
    }

    fn starts_zeroed(&self) -> bool {
        false
    }

    fn path(&self) -> Option<&Path> {
        WriteAt::path(&self.writer)
    }

    fn seeks(&self) -> bool {
        self.writer.seeks()
    }

    fn abandon(&self) {
        self.writer.abandon();
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        write_zeros(self, range)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.writer.allocate(range)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::CipherSpec;
    use crate::io::MemFile;

    fn cipher(sector_size: usize) -> Arc<SectorCipher> {
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
    fn parts_of_sectors_are_written_with_the_rest() {
        for size in [512, 4096] {
            let file = Arc::new(MemFile::from(vec![9; 100 + 4 * size]));
            let view = EncryptedFile::new(file.clone(), cipher(size), 100, 0);
            let mut plain = vec![7; 4 * size];
            view.write_all_at(&plain, 100).unwrap();
            for (from, len) in [(3, 5), (size - 1, 2), (size, size), (size + 5, 3 * size - 5), (0, 1)] {
                plain[from..from + len].fill(from as u8);
                view.write_all_at(&vec![from as u8; len], 100 + from as u64).unwrap();
                let mut found = vec![0; 4 * size];
                view.read_exact_at(&mut found, 100).unwrap();
                assert_eq!(found, plain, "{from} {len}");
            }
            view.zero_range(110..120).unwrap();
            plain[10..20].fill(0);
            assert_eq!(&file.to_vec()[100..], &cipher(size).encrypted(&plain, 0)[..]);
            assert_eq!(&file.to_vec()[..100], [9; 100]);
            assert!(view.write_all_at(&[0], 99).is_err());
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
