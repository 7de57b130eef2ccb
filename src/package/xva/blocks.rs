//! The blocks of a disk, with their checksums: each is compared when it is read as a whole, which a conversion does, or else at the end.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha1::{Digest as _, Sha1};
use twox_hash::XxHash64;

use super::super::manifest::Hex;
use super::super::tar::Member;
use super::{BLOCK, FIELDS};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::io::{FileIdentity, Piece, ReadAt, Window};
use crate::name::Name;

/// Longest text of a checksum in bytes, with what is around the digits.
const MAX_TEXT: u64 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    /// 40 digits, in `.checksum`: XenServer before version 8.1.
    Sha1,
    /// XXH64 with the seed 0: 16 digits, in `.xxhash`.
    Xxh64,
}

/// A block, or a part of one at the end of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Offset on the disk in bytes.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// The algorithm of its checksum, and where the digits are in the archive.
    checksum: Option<(Algorithm, Piece)>,
}

impl Block {
    pub fn new(start: u64, len: u64) -> Block {
        Block { start, len, checksum: None }
    }

    pub fn has_checksum(&self) -> bool {
        self.checksum.is_some()
    }

    /// Sets the checksum in the member, whose name is that of the block and this `suffix`. Others are no checksums.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for one that is too long.
    pub fn set_checksum(&mut self, suffix: &[u8], member: &Member) -> Result<()> {
        let algorithm = match suffix {
            b".checksum" => Algorithm::Sha1,
            b".xxhash" => Algorithm::Xxh64,
            _ => return Ok(()),
        };
        FIELDS.at("length of a checksum", member.at).at_most(member.size, MAX_TEXT)?;
        self.checksum = member.pieces.first().map(|piece| (algorithm, *piece));
        Ok(())
    }

    /// Offset of its end on the disk in bytes.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Algorithm::Sha1 => "SHA1",
            Algorithm::Xxh64 => "XXH64",
        }
    }

    /// The digits of the checksum of `bytes`, in lower case.
    fn digits_of(self, bytes: &[u8]) -> String {
        match self {
            Algorithm::Sha1 => Hex(Sha1::digest(bytes).as_slice()).to_string(),
            Algorithm::Xxh64 => format!("{:016x}", XxHash64::oneshot(0, bytes)),
        }
    }
}

/// A disk whose blocks are compared with their checksums.
pub(in super::super) struct CheckedDisk {
    name: Name,
    disk: Window,
    archive: Arc<dyn ReadAt>,
    /// In ascending order.
    blocks: Vec<Block>,
    /// Whether the block of the same index was compared.
    compared: Vec<AtomicBool>,
}

impl CheckedDisk {
    pub fn new(disk: &super::Disk, archive: Arc<dyn ReadAt>) -> CheckedDisk {
        CheckedDisk {
            name: disk.name.clone(),
            disk: Window::new(archive.clone(), disk.pieces.clone(), disk.size),
            archive,
            blocks: disk.blocks.clone(),
            compared: disk.blocks.iter().map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// Compares the blocks that are as a whole in `bytes`, which are those at `offset`.
    fn compare(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        let first = self.blocks.partition_point(|block| block.start < offset);
        for (block, compared) in self.blocks.iter().zip(&self.compared).skip(first) {
            if block.end() > end {
                break;
            }
            let of_block = (block.start - offset) as usize..(block.end() - offset) as usize;
            self.compare_block(block, compared, bytes.get(of_block).unwrap_or_default())?;
        }
        Ok(())
    }

    fn compare_block(&self, block: &Block, compared: &AtomicBool, bytes: &[u8]) -> Result<()> {
        let Some((algorithm, at)) = &block.checksum else { return Ok(()) };
        if compared.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut text = vec![0; at.len as usize];
        table::read(&*self.archive, &mut text, at.offset)?;
        let expected = text.trim_ascii().to_ascii_lowercase();
        if expected.is_empty() || !expected.iter().all(u8::is_ascii_hexdigit) {
            let rule = "must be hexadecimal digits";
            return Err(FIELDS.at("checksum", at.offset).fault(Problem::Rule { value: at.len, rule }));
        }
        let found = algorithm.digits_of(bytes);
        if found.as_bytes() != expected {
            let name = [self.name.as_bytes(), format!("/{:08}", block.start / BLOCK).as_bytes()].concat();
            let expected = String::from_utf8_lossy(&expected).into_owned();
            return Err(Error::Digest { name: Name::from(&*name), algorithm: algorithm.name(), expected, found });
        }
        compared.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl ReadAt for CheckedDisk {
    fn size(&self) -> io::Result<u64> {
        self.disk.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = self.disk.read_at(buf, offset)?;
        self.compare(buf.get(..len).unwrap_or_default(), offset)?;
        Ok(len)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read_exact_at(buf, offset)?;
        Ok(self.compare(buf, offset)?)
    }

    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        self.disk.identity()
    }

    fn allocated(&self) -> io::Result<Option<u64>> {
        self.disk.allocated()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.disk.next_data(offset)
    }

    /// Reads the blocks that have not been compared.
    fn verify(&self) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (block, compared) in self.blocks.iter().zip(&self.compared) {
            if block.has_checksum() && !compared.load(Ordering::Relaxed) {
                bytes.resize(block.len as usize, 0);
                self.disk.read_exact_at(&mut bytes, block.start)?;
                self.compare_block(block, compared, &bytes)?;
            }
        }
        self.disk.verify()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_other_programs() {
        assert_eq!(Algorithm::Sha1.digits_of(b"abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
        // The test vectors of xxHash.
        assert_eq!(Algorithm::Xxh64.digits_of(b""), "ef46db3751d8e999");
        assert_eq!(Algorithm::Xxh64.digits_of(b"abc"), "44bc2cf5ad770999");
    }
}
