//! A compressed file as a file that is read at offsets.

use std::io::{self, Cursor, Read};
use std::path::Path;
use std::sync::Arc;

use super::index::{self, Index};
use super::units::{EndCheck, Once, UnitFile};
use super::{Compression, decoder};
use crate::error::{Error, Result};
use crate::io::ReadAt;
use crate::limits::{LimitName, Limits};
use crate::spool::spool;

/// Bytes at the start of the decompressed file that tell its format and its size: the header of a GPT with sectors of 4 KiB ends there.
const HEAD: u64 = 8 << 10;

/// Opens a compressed file for reads at any offset: the decompressed file, with its length.
///
/// A file of several parts with known sizes (xz blocks, zstd frames) is decoded part by part as it is read. Every other file is decoded to
/// a sparse file without a name in `directory`.
///
/// # Errors
/// Those of [`decoder`], and errors of the temporary file.
pub(crate) fn open(
    file: Arc<dyn ReadAt>,
    compression: Compression,
    directory: &Path,
    limits: &Limits,
) -> Result<Arc<dyn ReadAt>> {
    let file_len = length(&file)?;
    if let Some(index) = index::read(&file, file_len, compression, limits).filter(|index| index.units().len() > 1) {
        index::check_size(index.size(), file_len, compression, limits)?;
        return Ok(Arc::new(UnitFile::new(file, compression, limits, directory.to_owned(), index, None)));
    }
    let decoded = decoder(compression, Box::new(Sequential::new(file)), limits);
    Ok(Arc::new(spool(decoded, directory, compression.name(), LimitName::Decompressed, limits.decompressed)?))
}

/// A compressed file without several parts, to be decoded once.
pub(crate) struct OneStream {
    file: Arc<dyn ReadAt>,
    compression: Compression,
    index: Option<Index>,
    /// The first bytes of the decompressed file, up to [`HEAD`].
    pub head: Vec<u8>,
    stream: Box<dyn Read + Send>,
}

impl OneStream {
    /// Opens a file; `None` if it has several parts, which [`open`] decodes as they are read.
    ///
    /// # Errors
    /// Those of [`decoder`].
    pub fn open(file: Arc<dyn ReadAt>, compression: Compression, limits: &Limits) -> Result<Option<OneStream>> {
        let file_len = length(&file)?;
        let index = index::read(&file, file_len, compression, limits);
        if index.as_ref().is_some_and(|index| index.units().len() > 1) {
            return Ok(None);
        }
        let mut stream = decoder(compression, Box::new(Sequential::new(file.clone())), limits);
        let mut head = Vec::new();
        (&mut stream).take(HEAD).read_to_end(&mut head).map_err(Error::io("reading", 0))?;
        Ok(Some(OneStream { file, compression, index, head, stream }))
    }

    /// The decompressed file as a stream.
    pub fn into_stream(self) -> Box<dyn Read + Send> {
        Box::new(Cursor::new(self.head).chain(self.stream))
    }

    /// The decompressed file, for reads in order. Its length is the one that the file states, or seems to have; `None` if there is
    /// nothing to tell it. Whether it was right is known when the last byte is decoded: the read fails then with
    /// [`Error::NotOnePass`]. `check_end` is called then with the last bytes.
    pub fn into_file(self, directory: &Path, limits: &Limits, check_end: EndCheck) -> Result<Option<Arc<dyn ReadAt>>> {
        let file_len = length(&self.file)?;
        let stated = self.index.as_ref().map(Index::size);
        let Some(size) = stated.or_else(|| self.seeming_size(file_len)).filter(|size| *size > 0) else {
            return Ok(None);
        };
        index::check_size(size, file_len, self.compression, limits)?;
        let mut index = Index::default();
        if index.push(0, file_len, size, None, limits).is_none() {
            return Ok(None);
        }
        let (file, compression) = (self.file.clone(), self.compression);
        let once = Once { decoder: self.into_stream(), check_end };
        Ok(Some(Arc::new(UnitFile::new(file, compression, limits, directory.to_owned(), index, Some(once)))))
    }

    /// The size of the disk by its partition table, or by the last bytes of a gzip file.
    fn seeming_size(&self, file_len: u64) -> Option<u64> {
        let disk = gpt_disk_size(&self.head);
        if self.compression != Compression::Gzip {
            return disk;
        }
        let mut trailer = [0; 4];
        self.file.read_exact_at(&mut trailer, file_len.checked_sub(4)?).ok()?;
        gzip_size(u32::from_le_bytes(trailer), file_len, disk)
    }
}

/// The size in bytes of a disk with a GPT: its last sector is the backup of the header (UEFI 2.10, section 5.3.2).
fn gpt_disk_size(head: &[u8]) -> Option<u64> {
    [512_usize, 4096].into_iter().find_map(|sector| {
        let header = head.get(sector..)?;
        let backup = header.get(32..40)?.first_chunk::<8>()?;
        let last = header.starts_with(b"EFI PART").then(|| u64::from_le_bytes(*backup))?;
        last.checked_add(1)?.checked_mul(sector as u64).filter(|size| *size <= i64::MAX as u64)
    })
}

/// The size of the data of a gzip file of `file_len` bytes whose last member ends with `isize`, the size modulo 2^32. `disk` is that of
/// the partition table. A disk has whole sectors.
fn gzip_size(isize: u32, file_len: u64, disk: Option<u64>) -> Option<u64> {
    const SECTOR: u64 = 512;
    let rest = u64::from(isize);
    if let Some(disk) = disk.filter(|disk| disk & u64::from(u32::MAX) == rest) {
        return Some(disk);
    }
    // DEFLATE makes data longer by 5 bytes in 65535, zlib by somewhat more.
    let least = file_len.saturating_sub(file_len / 1000 + 4096);
    let wraps = least.saturating_sub(rest).div_ceil(1 << 32);
    let size = rest.checked_add(wraps.checked_mul(1 << 32)?)?;
    Some(size).filter(|size| size.is_multiple_of(SECTOR))
}

fn length(file: &Arc<dyn ReadAt>) -> Result<u64> {
    file.size().map_err(Error::io("reading the file length", None))
}

/// A file from its beginning to its end.
pub(crate) struct Sequential {
    file: Arc<dyn ReadAt>,
    at: u64,
}

impl Sequential {
    pub fn new(file: Arc<dyn ReadAt>) -> Sequential {
        Sequential { file, at: 0 }
    }
}

impl Read for Sequential {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_gzip_data() {
        for (isize, file_len, disk, size) in [
            (1 << 20, 1000, None, Some(1 << 20)),
            (0, 1000, None, Some(0)),
            // Incompressible data.
            (1 << 20, (1 << 20) + 300, None, Some(1 << 20)),
            // More compressed bytes than ISIZE says.
            (1 << 20, 2 << 20, None, Some((1 << 32) + (1 << 20))),
            (0, 5 << 32, None, Some(5 << 32)),
            // A disk of 10 GiB that compresses well.
            (2 << 30, 1 << 20, Some(10 << 30), Some(10 << 30)),
            // The file is not the disk of its partition table.
            (2 << 30, 1 << 20, Some(11 << 30), Some(2 << 30)),
            // Not a disk.
            (1000, 500, None, None),
        ] {
            assert_eq!(gzip_size(isize, file_len, disk), size, "{isize} {file_len} {disk:?}");
        }
    }

    #[test]
    fn the_size_of_a_disk_with_a_gpt() {
        for sector in [512, 4096_usize] {
            let mut head = vec![0; 8192];
            head[sector..sector + 8].copy_from_slice(b"EFI PART");
            head[sector + 32..sector + 40].copy_from_slice(&999_u64.to_le_bytes());
            assert_eq!(gpt_disk_size(&head), Some(1000 * sector as u64));
            head[sector + 32..sector + 40].fill(0xff);
            assert_eq!(gpt_disk_size(&head), None);
        }
        assert_eq!((gpt_disk_size(&[0; 8192]), gpt_disk_size(b"")), (None, None));
    }
}
