//! Files whose sectors are encrypted, for reading and writing.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::{Decrypting, Encrypting, SectorCipher};
use crate::io::{FileIdentity, ReadAt, Storage, WriteAt, write_zeros};

/// A file of which everything from a certain offset on is encrypted, for reading and writing any bytes after it. A sector of which a part is
/// written is read before; nobody else may write the rest of it meanwhile.
pub(crate) struct EncryptedFile {
    reads: Decrypting,
    writes: Encrypting,
}

impl EncryptedFile {
    /// Sector number `first`, in units of 512 bytes, is at byte `start`.
    pub fn new(file: Arc<dyn Storage>, cipher: Arc<SectorCipher>, start: u64, first: u64) -> EncryptedFile {
        let reads = Decrypting::new(file.clone(), cipher.clone(), start, first);
        EncryptedFile { reads, writes: Encrypting::new(file, cipher, start, first) }
    }

    /// Writes a part of the sector with the byte at `offset`.
    fn write_part(&self, part: &[u8], within: usize, offset: u64) -> io::Result<()> {
        let mut sector = Zeroizing::new(vec![0; self.reads.sector_size()]);
        let start = offset - within as u64;
        self.reads.read_exact_at(&mut sector, start)?;
        sector.iter_mut().skip(within).zip(part).for_each(|(byte, new)| *byte = *new);
        self.writes.write_all_at(&sector, start)
    }
}

impl ReadAt for EncryptedFile {
    fn size(&self) -> io::Result<u64> {
        self.reads.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.reads.read_at(buf, offset)
    }

    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        self.reads.identity()
    }

    fn allocated(&self) -> io::Result<Option<u64>> {
        self.reads.allocated()
    }
}

impl WriteAt for EncryptedFile {
    fn write_all_at(&self, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
        let size = self.reads.sector_size();
        let before = || io::Error::new(io::ErrorKind::InvalidInput, "the header cannot be written as guest data");
        while !buf.is_empty() {
            let within = self.reads.offset_in_sector(offset).ok_or_else(before)?;
            let len = if within == 0 && buf.len() >= size {
                let (whole, _) = buf.split_at(buf.len() / size * size);
                self.writes.write_all_at(whole, offset)?;
                whole.len()
            } else {
                let (part, _) = buf.split_at(buf.len().min(size - within));
                self.write_part(part, within, offset)?;
                part.len()
            };
            buf = buf.get(len..).unwrap_or_default();
            offset += len as u64;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writes.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.writes.sync()
    }

    fn starts_zeroed(&self) -> bool {
        self.writes.starts_zeroed()
    }

    fn path(&self) -> Option<&Path> {
        self.writes.path()
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        write_zeros(self, range)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.writes.allocate(range)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::storage::tests::cipher;
    use crate::io::MemFile;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_changed(
            shift in 0u32..4,
            (start, first) in (prop::sample::select(vec![0u64, 512, 8192]), any::<u32>()),
            sectors in 1usize..80,
            writes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let size = 512usize << shift;
            let mut plain: Vec<u8> = (0..size * sectors).map(|at| (at * 7 / 5) as u8).collect();
            let file = Arc::new(MemFile::from(vec![9; start as usize]));
            let view = EncryptedFile::new(file.clone(), cipher(size), start, first.into());
            view.write_all_at(&plain, start).unwrap();
            for (from, to, byte) in writes {
                let (from, to) = (from.index(plain.len() + 1), to.index(plain.len() + 1));
                let (from, to) = (from.min(to), from.max(to));
                plain[from..to].fill(byte);
                view.write_all_at(&plain[from..to], start + from as u64).unwrap();
            }
            let mut read = vec![0; plain.len()];
            view.read_exact_at(&mut read, start).unwrap();
            prop_assert_eq!(read, &plain[..]);
            prop_assert_eq!(&file.to_vec()[start as usize..], &cipher(size).encrypted(&plain, first.into())[..]);
        }
    }

    #[test]
    fn parts_of_sectors_are_not_invented() {
        let file = Arc::new(MemFile::new());
        let view = EncryptedFile::new(file.clone(), cipher(512), 512, 0);
        assert_eq!(view.write_all_at(&[0; 512], 511).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(view.write_all_at(&[0; 100], 512).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(file.to_vec(), b"");
    }
}
